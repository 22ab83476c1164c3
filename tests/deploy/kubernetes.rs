//! deploy/kubernetes: the manifests fit together, and the pods fit the worker and its config.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use forebay::config::Config;
use serde_json::{Value, json};

use crate::image::{config_path, instructions};
use crate::{CLOSE_BOUND, at, check_image, config, files, has_extension, kafka_of, list, string, text, yaml};

const FOLDER: &str = "deploy/kubernetes";

fn manifest(name: &str) -> Value {
    yaml(&format!("{FOLDER}/{name}"))
}

fn worker() -> Config {
    config(&format!("{FOLDER}/worker.toml"))
}

fn stateful_set() -> Value {
    manifest("statefulset.yaml")
}

fn container(set: &Value) -> &Value {
    at(set, "/spec/template/spec/containers/0")
}

/// What has that name in a list.
#[track_caller]
fn named<'v>(entries: &'v [Value], name: &str) -> &'v Value {
    entries.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name} in {entries:?}"))
}

fn admin_port(set: &Value) -> u64 {
    at(named(list(container(set), "/ports"), "admin"), "/containerPort").as_u64().unwrap()
}

#[test]
fn the_kustomization_names_every_manifest_and_each_image_has_a_version() {
    let kustomization = manifest("kustomization.yaml");
    let whole = text(&format!("{FOLDER}/kustomization.yaml"));
    let used: Vec<&str> =
        list(&kustomization, "/resources").iter().map(|resource| resource.as_str().unwrap()).collect();
    for path in files(FOLDER) {
        let name = Path::new(&path).file_name().unwrap().to_str().unwrap();
        let is_optional = whole.contains(&format!("# - {name}\n"));
        let is_manifest = has_extension(name, &["yaml"]) && name != "kustomization.yaml";
        assert!(!is_manifest || used.contains(&name) != is_optional, "{name}: neither used nor offered");
    }
    for resource in used {
        assert!(!manifest(resource)["kind"].is_null(), "{resource}");
    }
    for (name, tag) in [("forebay", env!("CARGO_PKG_VERSION")), ("forebay-models", "1")] {
        let image = named(list(&kustomization, "/images"), name);
        assert_eq!(string(image, "/newTag"), tag);
        check_image(&format!("{}:{tag}", string(image, "/newName")));
    }
    let set = stateful_set();
    let containers = list(&set, "/spec/template/spec/initContainers").iter().chain([container(&set)]);
    for image in containers.map(|container| string(container, "/image")) {
        named(list(&kustomization, "/images"), image);
    }
    let generated = at(&kustomization, "/configMapGenerator/0");
    let volume = named(list(&set, "/spec/template/spec/volumes"), "config");
    assert_eq!(at(volume, "/configMap/name"), at(generated, "/name"));
    assert_eq!(list(generated, "/files"), ["worker.toml"]);
}

#[test]
fn a_pods_name_is_its_workers_and_it_has_time_to_drain() {
    let (set, config) = (stateful_set(), worker());
    assert!(text(&format!("{FOLDER}/worker.toml")).contains("\ninstance = \"${HOSTNAME}\"\n"));
    assert_eq!(config.instance, "forebay-7", "the pod's name");
    let grace = Duration::from_secs(at(&set, "/spec/template/spec/terminationGracePeriodSeconds").as_u64().unwrap());
    let drain = config.drain_timeout();
    assert!(grace > drain + CLOSE_BOUND, "{grace:?} for a drain of {drain:?} and {CLOSE_BOUND:?} to close");
    assert_eq!(string(&set, "/kind"), "StatefulSet");
    assert_eq!(string(&set, "/spec/podManagementPolicy"), "Parallel");
    assert_eq!(string(&set, "/spec/serviceName"), string(&manifest("service.yaml"), "/metadata/name"));
    let spread = list(&set, "/spec/template/spec/topologySpreadConstraints");
    assert!(spread.iter().any(|rule| rule["topologyKey"] == "kubernetes.io/hostname"));
    for rule in spread {
        assert_eq!(at(rule, "/labelSelector/matchLabels"), at(&set, "/spec/template/metadata/labels"));
    }
}

#[test]
fn probes_and_services_ask_the_admin_port() {
    let (set, config) = (stateful_set(), worker());
    assert_eq!(admin_port(&set), u64::from(config.admin.listen.port()));
    for (probe, path) in [("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")] {
        let asked = at(container(&set), &format!("/{probe}Probe/httpGet"));
        assert_eq!(*asked, json!({"path": path, "port": "admin"}), "{probe}");
    }
    let service = manifest("service.yaml");
    assert_eq!(at(&service, "/spec/clusterIP"), "None");
    let port = named(list(&service, "/spec/ports"), "admin");
    assert_eq!((at(port, "/targetPort"), at(port, "/port").as_u64()), (&json!("admin"), Some(admin_port(&set))));
    let monitor = manifest("servicemonitor.yaml");
    assert_eq!(string(&monitor, "/spec/endpoints/0/port"), "admin");
    assert_eq!(string(&monitor, "/spec/endpoints/0/path"), "/metrics");
    let label = string(&monitor, "/spec/jobLabel");
    assert_eq!(service["metadata"]["labels"][label], "forebay", "the job that alerts and dashboard ask for");
    let pods = at(&set, "/spec/template/metadata/labels");
    assert_eq!(at(&set, "/spec/selector/matchLabels"), pods);
    assert_eq!(at(&service, "/spec/selector"), pods);
    assert_eq!(at(&monitor, "/spec/selector/matchLabels"), at(&service, "/metadata/labels"));
    let budget = manifest("poddisruptionbudget.yaml");
    assert_eq!(at(&budget, "/spec/selector/matchLabels"), pods);
    assert_eq!(at(&budget, "/spec/maxUnavailable"), 1);
}

#[test]
fn pods_have_no_rights_and_mounts_for_all_that_they_read_and_write() {
    let (set, config) = (stateful_set(), worker());
    let pod = at(&set, "/spec/template/spec");
    let user = instructions("deploy/Dockerfile").into_iter().find(|one| one.word == "USER").unwrap().rest;
    assert_eq!(at(pod, "/securityContext/runAsNonRoot"), true);
    assert_eq!(at(pod, "/securityContext/runAsUser").to_string(), user.split(':').next().unwrap());
    assert_eq!(string(pod, "/securityContext/seccompProfile/type"), "RuntimeDefault");
    assert_eq!(at(pod, "/automountServiceAccountToken"), false);
    for container in list(pod, "/initContainers").iter().chain(list(pod, "/containers")) {
        let locked = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
        assert_eq!(*at(container, "/securityContext"), locked);
        for resource in ["cpu", "memory"] {
            let of = |kind: &str| string(container, &format!("/resources/{kind}/{resource}"));
            assert_eq!(of("requests"), of("limits"), "{} of {}: the pod is Guaranteed", resource, container["name"]);
        }
    }
    let processors = string(container(&set), "/resources/limits/cpu");
    assert!(processors.parse::<u32>().is_ok(), "{processors}: cores of its own are whole ones");
    let mounts = list(container(&set), "/volumeMounts");
    let under = |path: &str| {
        let inside = |mount: &&Value| path.starts_with(&format!("{}/", string(mount, "/mountPath")));
        let mount = mounts.iter().find(inside).unwrap_or_else(|| panic!("nothing is mounted for {path}"));
        named(list(pod, "/volumes"), string(mount, "/name"))
    };
    let arguments = list(container(&set), "/args");
    assert_eq!(arguments.last().unwrap(), &config_path(), "the path of the image's own command");
    assert!(under(&config_path()).get("configMap").is_some());
    assert!(config_path().ends_with("/worker.toml"));
    // The journal is in the folder for temporary files, on a volume of the pod: one in memory would be the container's limit.
    assert_eq!(under("/tmp/forebay.journal")["emptyDir"]["medium"], Value::Null);
    let models = text(&format!("{FOLDER}/models.Dockerfile"));
    for model in &config.models {
        let path = model.path.to_str().unwrap();
        assert!(under(path).get("emptyDir").is_some());
        assert!(models.contains(path), "{path} is not in the image of models");
    }
}

#[test]
fn the_autoscaler_looks_at_what_the_worker_reads() {
    let (set, config) = (stateful_set(), worker());
    for name in ["scaledobject-kafka.yaml", "scaledobject-nats.yaml"] {
        let scaled = manifest(name);
        let target = at(&scaled, "/spec/scaleTargetRef");
        assert_eq!(
            (at(target, "/kind"), at(target, "/name")),
            (at(&set, "/kind"), at(&set, "/metadata/name")),
            "{name}"
        );
        assert!(at(&scaled, "/spec/minReplicaCount").as_u64() >= Some(1), "{name}");
        for trigger in list(&scaled, "/spec/triggers") {
            let metadata = at(trigger, "/metadata").as_object().unwrap();
            assert!(metadata.values().all(Value::is_string), "{name}: KEDA reads texts only");
        }
    }
    let scaled = manifest("scaledobject-kafka.yaml");
    let triggers = list(&scaled, "/spec/triggers");
    let kafka = at(named(triggers, "lag"), "/metadata");
    assert_eq!(string(kafka, "/bootstrapServers"), kafka_of(&config).brokers);
    assert_eq!(string(kafka, "/consumerGroup"), kafka_of(&config).group);
    assert!(config.routes[0].input.contains(&string(kafka, "/topic").to_owned()));
    formula_of_triggers(&scaled);
    // The consumers of partitions: `{group}-{number}`.
    let config = crate::config("deploy/worker-nats.toml");
    let (nats, scaled) = (config.nats.as_ref().unwrap(), manifest("scaledobject-nats.yaml"));
    let consumers =
        list(&scaled, "/spec/triggers").iter().map(|trigger| string(trigger, "/metadata/consumer").to_owned());
    let partitions = 0..nats.flow.partitions.get();
    assert!(consumers.eq(partitions.clone().map(|number| format!("{}-{number}", nats.flow.group))));
    assert_eq!(at(&scaled, "/spec/maxReplicaCount").as_u64(), Some(u64::from(partitions.end)));
    formula_of_triggers(&scaled);
}

/// The formula holds each trigger's name, and no other.
fn formula_of_triggers(scaled: &Value) {
    let formula = string(scaled, "/spec/advanced/scalingModifiers/formula");
    let words = formula.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: BTreeSet<&str> = words.collect();
    let names: BTreeSet<&str> = list(scaled, "/spec/triggers").iter().map(|trigger| string(trigger, "/name")).collect();
    assert_eq!(words, names);
}
