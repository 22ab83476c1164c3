//! compose.yaml, with the configs that it mounts: what one service says of another is so.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use forebay::config::{Config, Route};
use serde_json::Value;

use crate::{CLOSE_BOUND, at, check_image, config, image, kafka_of, list, port, root, seconds, string, text, yaml};

fn compose() -> Value {
    yaml("deploy/compose.yaml")
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    at(compose, "/services").as_object().unwrap().iter().map(|(name, service)| (name.as_str(), service))
}

/// A service's mounts: what is mounted, and where.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let volumes = service.get("volumes").and_then(Value::as_array).into_iter().flatten();
    volumes
        .map(|mount| {
            let mut parts = mount.as_str().unwrap().split(':');
            (parts.next().unwrap(), parts.next().unwrap())
        })
        .collect()
}

/// The file of the repository that is mounted there.
#[track_caller]
fn mounted(service: &Value, target: &str) -> String {
    let (source, _) =
        mounts(service).into_iter().find(|(_, there)| *there == target).unwrap_or_else(|| panic!("{target}"));
    let mut path = PathBuf::from("deploy");
    for part in Path::new(source).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{source}"),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path.to_str().unwrap().to_owned()
}

/// The port of the container that is shown outside.
fn published(service: &Value) -> Vec<u16> {
    let ports = service.get("ports").and_then(Value::as_array).into_iter().flatten().map(|port| port.as_str().unwrap());
    ports
        .map(|published| {
            assert!(published.starts_with("127.0.0.1:"), "{published} is open to the network");
            port(published)
        })
        .collect()
}

#[test]
fn images_are_of_the_versions_that_the_tests_run_with() {
    let compose = compose();
    let image = |name: &str| string(&compose, &format!("/services/{name}/image")).to_owned();
    services(&compose).for_each(|(name, _)| check_image(&image(name)));
    let between = |text: &str, before: &str, after: &str| {
        let (_, rest) = text.split_once(before).unwrap();
        rest.split(after).next().unwrap().to_owned()
    };
    let kafka = between(&text("tests/setup/kafka-pom.xml"), "<kafka.version>", "<");
    assert_eq!([image("kafka"), image("topics")], [const { "apache/kafka:" }; 2].map(|name| format!("{name}{kafka}")));
    let nats = between(&text("tests/setup/test"), "nats_version=", "\n");
    assert_eq!(image("nats"), format!("nats:{nats}-alpine"));
    assert_eq!(image("forebay"), format!("forebay:{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn services_wait_for_what_says_that_it_is_healthy_and_mount_what_is_there() {
    let compose = compose();
    let volumes = at(&compose, "/volumes").as_object().unwrap();
    for (name, service) in services(&compose) {
        for (other, how) in service.get("depends_on").and_then(Value::as_object).into_iter().flatten() {
            let other = at(&compose, &format!("/services/{other}"));
            match string(how, "/condition") {
                "service_healthy" => assert!(!list(other, "/healthcheck/test").is_empty(), "{name}"),
                "service_completed_successfully" => assert!(other.get("restart").is_none(), "{name}"),
                "service_started" => {}
                condition => panic!("{name}: {condition}"),
            }
        }
        for (source, target) in mounts(service) {
            if source.starts_with('.') {
                let file = mounted(service, target);
                assert!(root().join(&file).is_file(), "{name}: {file}");
            } else {
                assert!(volumes.contains_key(source), "{name}: the volume {source} is declared nowhere");
            }
        }
        published(service);
    }
}

/// The workers, each with its config.
fn workers(compose: &Value) -> Vec<(&str, &Value, Config)> {
    let workers = services(compose).filter(|(name, _)| name.starts_with("forebay"));
    workers.map(|(name, worker)| (name, worker, config(&mounted(worker, &image::config_path())))).collect()
}

#[test]
fn workers_are_locked_in_and_have_what_their_configs_name() {
    let compose = compose();
    let workers = workers(&compose);
    assert_eq!(workers.len(), 2);
    for (name, worker, config) in &workers {
        assert_eq!(at(worker, "/read_only"), true);
        assert_eq!(at(worker, "/cap_drop/0"), "ALL");
        assert_eq!(at(worker, "/security_opt/0"), "no-new-privileges:true");
        assert_eq!(published(worker), [config.admin.listen.port()], "{name}");
        assert!(string(worker, "/hostname").starts_with(name), "{name}: the instance is the same over restarts");
        let grace = seconds(string(worker, "/stop_grace_period"));
        assert!(grace >= config.drain_timeout() + CLOSE_BOUND, "{name}: killed before it has drained, after {grace:?}");
        for model in &config.models {
            let model = mounted(worker, model.path.to_str().unwrap());
            assert!(root().join(&model).is_file(), "{name}: {model}");
        }
        assert!(mounts(worker).iter().any(|(source, target)| *target == "/tmp" && !source.starts_with('.')), "{name}");
        let file = mounted(worker, &image::config_path());
        assert!(text(&file).contains("journal = \"/tmp/"), "{name}: the journal is on the volume");
    }
    let volumes: BTreeSet<&str> = workers
        .iter()
        .flat_map(|(_, worker, _)| mounts(worker))
        .filter(|(_, at)| *at == "/tmp")
        .map(|(from, _)| from)
        .collect();
    assert_eq!(volumes.len(), workers.len(), "a journal is one worker's");
}

#[test]
fn one_worker_builds_the_image_and_the_others_wait_for_it() {
    let compose = compose();
    let workers = workers(&compose);
    // Of two builds that run at once the second finds its image's name taken, and fails.
    let (builders, takers): (Vec<_>, Vec<_>) = workers.iter().partition(|(_, worker, _)| worker.get("build").is_some());
    let [(builder, worker, _)] = &builders[..] else { panic!("{} workers build", builders.len()) };
    assert_eq!(string(worker, "/build/context"), "..");
    assert!(root().join(string(worker, "/build/dockerfile")).is_file());
    assert!(!takers.is_empty());
    for (name, taker, _) in takers {
        assert_eq!(string(taker, "/image"), string(worker, "/image"), "{name}");
        assert_eq!(string(taker, "/pull_policy"), "never", "{name}: no registry has the image");
        assert!(taker.pointer(&format!("/depends_on/{builder}")).is_some(), "{name} alone: nobody builds its image");
    }
}

/// Input topics, reply topics and dead letter topics of a config.
fn topics(config: &Config) -> Vec<String> {
    let of = |route: &Route| {
        let letters = |input: &String| route.dead_letter.as_ref().map(|letter| letter.topic(input));
        let letters: Vec<String> = route.input.iter().filter_map(letters).collect();
        route.input.iter().cloned().chain([route.reply_topic.clone()]).chain(letters).collect::<Vec<_>>()
    };
    config.routes.iter().flat_map(of).collect()
}

#[test]
fn the_worker_on_kafka_finds_its_broker_and_topics() {
    let compose = compose();
    let (_, _, config) = workers(&compose).remove(0);
    let listeners = string(&compose, "/services/kafka/environment/KAFKA_ADVERTISED_LISTENERS");
    assert!(listeners.contains(&format!("://{}", kafka_of(&config).brokers)), "{listeners}");
    let script = string(&compose, "/services/topics/command/2");
    let created = script.split_once("for topic in ").unwrap().1.split(';').next().unwrap();
    let created: Vec<&str> = created.split(' ').collect();
    let topics = topics(&config);
    assert_eq!(topics.len(), 3, "{topics:?}");
    for topic in topics {
        assert!(created.contains(&topic.as_str()), "nobody creates {topic}");
    }
}

#[test]
fn the_worker_on_nats_finds_its_server_and_streams() {
    let compose = compose();
    let (_, _, config) = workers(&compose).remove(1);
    let nats = config.nats.as_ref().unwrap();
    assert_eq!(nats.connection.servers.len(), 1);
    let (server, own) = (&nats.connection.servers[0], at(&compose, "/services/nats"));
    assert_eq!((server.host(), server.port()), ("nats", published(own)[0]));
    // What `make NAME 'JSON'` sends.
    let script = string(&compose, "/services/streams/command/2");
    let made = script.lines().filter_map(|line| line.strip_prefix("make ")?.split_once(" '"));
    let streams: Vec<Value> = made
        .map(|(name, json)| {
            let stream: Value = serde_json::from_str(json.trim_end_matches('\'')).unwrap();
            assert_eq!(string(&stream, "/name"), name);
            stream
        })
        .collect();
    let of = |subject: &str| {
        let takes =
            |stream: &&Value| list(stream, "/subjects").iter().any(|filter| takes(filter.as_str().unwrap(), subject));
        streams.iter().find(takes).unwrap_or_else(|| panic!("no stream takes {subject}"))
    };
    let replies = of(&config.routes[0].reply_topic);
    assert_eq!(at(replies, "/allow_atomic"), true, "replies and checkpoints go out in one batch");
    for partition in 0..nats.flow.partitions.get() {
        let input = config.routes[0].input[0].replace("{partition}", &partition.to_string());
        assert_ne!(of(&input), replies, "{input}");
        let letter = config.routes[0].dead_letter.as_ref().unwrap().topic(&input);
        assert_eq!(of(&letter), replies, "dead letters go out in the same batch");
    }
    let checkpoint = format!("{}.{}.FEATURES.0", nats.flow.checkpoint_subject, nats.flow.group);
    assert_eq!(of(&checkpoint), replies);
}

/// Whether a filter of subjects fits one.
fn takes(filter: &str, subject: &str) -> bool {
    if let Some((first, _)) = filter.split_once('>') {
        return subject.starts_with(first);
    }
    let (filter, subject): (Vec<_>, Vec<_>) = (filter.split('.').collect(), subject.split('.').collect());
    filter.len() == subject.len() && filter.iter().zip(&subject).all(|(one, other)| *one == "*" || one == other)
}

#[test]
fn prometheus_finds_the_worker_and_grafana_finds_prometheus() {
    let compose = compose();
    let service = |name: &str| at(&compose, &format!("/services/{name}"));
    let prometheus = service("prometheus");
    let command = list(prometheus, "/command");
    let file = command.iter().find_map(|word| word.as_str()?.strip_prefix("--config.file=")).unwrap();
    let scraping = yaml(&mounted(prometheus, file));
    for rules in list(&scraping, "/rule_files") {
        assert_eq!(mounted(prometheus, rules.as_str().unwrap()), "deploy/alerts.yml");
    }
    let job = at(&scraping, "/scrape_configs/0");
    assert_eq!(string(job, "/job_name"), "forebay", "alerts and dashboard ask for that job");
    assert_eq!(string(job, "/metrics_path"), "/metrics");
    let targets = workers(&compose).into_iter().map(|(name, worker, _)| format!("{name}:{}", published(worker)[0]));
    assert_eq!(*list(job, "/static_configs/0/targets"), targets.collect::<Vec<_>>());
    let grafana = service("grafana");
    let sources = yaml(&mounted(grafana, "/etc/grafana/provisioning/datasources/forebay.yaml"));
    assert_eq!(string(&sources, "/datasources/0/url"), format!("http://prometheus:{}", published(prometheus)[0]));
    let dashboards = yaml(&mounted(grafana, "/etc/grafana/provisioning/dashboards/forebay.yaml"));
    let folder = string(&dashboards, "/providers/0/options/path");
    let home = string(grafana, "/environment/GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH");
    assert!(home.starts_with(folder), "{home}");
    assert_eq!(mounted(grafana, home), "deploy/grafana/forebay.json");
}
