//! Every query of the dashboard, the alert rules and the autoscaler, against what a worker shows.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use forebay::admin::{self, Health};
use forebay::clock::{self, Stop};
use forebay::config::Config;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, PredictionRequest};
use forebay::metrics::{CandidateInfo, NodePoolSnapshot, RunnerInfo, RunnerProcess, TrialStats, VersionInfo};
use forebay::pipeline::Worker;
use forebay::placement::Pin;
use forebay::record::ErrorCode;
use serde_json::Value;

use crate::queries::{Labels, Shown, mentioned};
use crate::{at, files, has_extension, list, root, seconds, string, text, yaml};

/// A worker's engine with a model that has scored, behind an admin port of its own.
pub(crate) struct Served {
    pub(crate) engine: Arc<InferenceEngine>,
    pub(crate) health: Arc<Health>,
    pub(crate) address: SocketAddr,
}

impl Served {
    pub(crate) fn start() -> Self {
        let config = InferenceEngineConfig { num_threads: 1, pin: Pin::Off, ..InferenceEngineConfig::default() };
        let engine = Arc::new(InferenceEngine::new(config).unwrap());
        engine.load_model(root().join("tests/data/higgs/higgs.model.txt"), None, true).unwrap();
        for scored in engine.predict_all([PredictionRequest::new(vec![0.5; 28])]) {
            scored.unwrap();
        }
        let health = Arc::new(Health::default());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = admin::serve(any, Arc::clone(&health), Arc::clone(&engine), None).unwrap();
        Self { engine, health, address }
    }

    /// What `/metrics` shows when all has happened that can: errors of each kind, a service, a shadow, a canary and a Python model.
    fn shown(&self) -> Shown {
        let metrics = self.engine.metrics();
        metrics.lags.assigned("features", 0, 0);
        metrics.lags.ends("features", 0, 1);
        let _ = metrics.endpoint("higgs");
        for changed in [true, false] {
            metrics.model_change("higgs", changed);
        }
        for (model, code) in ErrorCode::ALL.into_iter().flat_map(|code| [("higgs", code), ("", code)]) {
            metrics.record_error(model, code);
        }
        let mut sights = self.engine.sights();
        let plain = sights.models[0].clone();
        for mode in ["canary", "shadow"] {
            let version = VersionInfo { version: 2, sha256: String::new(), path: String::new() };
            let candidate = CandidateInfo { version, mode: mode.to_owned(), share: 1.0, stats: TrialStats::default() };
            sights.models.push(forebay::metrics::ModelInfo { candidate: Some(candidate), ..plain.clone() });
        }
        let process = RunnerProcess { pid: 1, state: "ready".to_owned(), resident_bytes: Some(1) };
        let runner = RunnerInfo { processes: vec![process], ..RunnerInfo::default() };
        sights.models.push(forebay::metrics::ModelInfo { runner: Some(runner), ..plain });
        let pool = NodePoolSnapshot { node: Some(0), total_buffers: 1, memory_usage_mb: 1.0, hits: 0, misses: 0 };
        sights.pool.nodes = vec![pool];
        Shown::new(&metrics.to_text(&sights))
    }
}

/// One query, where it stands, and the labels that the text around it uses.
struct Query {
    place: String,
    text: String,
    used: Vec<String>,
}

/// The worker's part of a dashboard's variables: a range, and whatever else they stand for stays text.
fn filled(query: &str) -> String {
    ["$__rate_interval", "$__interval", "$__range"]
        .iter()
        .fold(query.to_owned(), |query, name| query.replace(name, "5m"))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/grafana/forebay.json")).unwrap()
}

fn dashboard_queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in list(dashboard, "/panels") {
        let title = string(panel, "/title");
        for target in panel.get("targets").and_then(Value::as_array).into_iter().flatten() {
            let used = owned(&mentioned(string(target, "/legendFormat"), "{{"));
            queries.push(Query { place: format!("panel {title:?}"), text: filled(string(target, "/expr")), used });
        }
    }
    for annotation in list(dashboard, "/annotations/list") {
        let used = owned(&mentioned(string(annotation, "/titleFormat"), "{{"));
        let place = format!("annotation {}", at(annotation, "/name"));
        queries.push(Query { place, text: filled(string(annotation, "/expr")), used });
    }
    for variable in list(dashboard, "/templating/list") {
        let place = format!("variable {}", at(variable, "/name"));
        let inside =
            string(variable, "/query/query").strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (query, label) = inside.and_then(|inside| inside.rsplit_once(',')).expect(&place);
        queries.push(Query { place, text: filled(query), used: vec![label.trim().to_owned()] });
    }
    queries
}

pub(crate) fn alerts() -> Vec<Value> {
    let rules = yaml("deploy/alerts.yml");
    list(&rules, "/groups").iter().flat_map(|group| list(group, "/rules").to_vec()).collect()
}

fn alert_queries() -> Vec<Query> {
    let query = |rule: &Value| {
        let texts = [string(rule, "/annotations/summary"), string(rule, "/annotations/description")];
        let used = texts.iter().flat_map(|text| owned(&mentioned(text, "$labels."))).collect();
        Query { place: format!("alert {}", string(rule, "/alert")), text: string(rule, "/expr").to_owned(), used }
    };
    alerts().iter().map(query).collect()
}

fn scaler_queries() -> Vec<Query> {
    let manifests = files("deploy/kubernetes").into_iter().filter(|path| has_extension(path, &["yaml"]));
    let of = |path: String| {
        let manifest = yaml(&path);
        let triggers = manifest.pointer("/spec/triggers").and_then(Value::as_array).cloned().unwrap_or_default();
        let prometheus = triggers.into_iter().filter(|trigger| string(trigger, "/type") == "prometheus");
        prometheus
            .map(|trigger| Query {
                place: path.clone(),
                text: string(&trigger, "/metadata/query").to_owned(),
                used: Vec::new(),
            })
            .collect::<Vec<_>>()
    };
    manifests.flat_map(of).collect()
}

#[test]
fn every_query_asks_for_what_a_worker_shows() {
    let shown = Served::start().shown();
    let dashboard = dashboard();
    let sources = [dashboard_queries(&dashboard), alert_queries(), scaler_queries()];
    for (queries, least) in sources.iter().zip([60, 15, 1]) {
        assert!(queries.len() >= least, "{} queries, of {least} at least", queries.len());
    }
    let mut wrong = Vec::new();
    for Query { place, text: query, used } in sources.iter().flatten() {
        match shown.check(query) {
            Err(error) => wrong.push(format!("{place}: {error}")),
            Ok(labels) => {
                let missing = used.iter().filter(|label| !labels.contains(*label));
                wrong.extend(
                    missing.map(|label| format!("{place}: {query} gives {labels:?}, and its text uses {label}")),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_worker_that_runs_shows_the_same_metrics_as_those_that_queries_are_held_against() {
    let served = Served::start();
    let all = served.shown();
    let url = format!("http://{}/metrics", served.address);
    let live = Shown::new(&ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap());
    let names: BTreeSet<&str> = live.names().collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let (live, all): (Labels, Labels) = (live.labels(name), all.labels(name));
        assert!(live.is_subset(&all), "{name}: {live:?}, not {all:?}");
    }
}

#[test]
fn the_metric_ready_says_what_readyz_says() {
    let served = Served::start();
    let ready = || {
        let text = ureq::get(format!("http://{}/metrics", served.address)).call().unwrap().body_mut().read_to_string();
        text.unwrap().lines().find_map(|line| line.strip_prefix("forebay_ready ")).map(str::to_owned)
    };
    assert_eq!(ready().as_deref(), Some("1"));
    served.health.not_ready("service", "no NATS server is connected");
    assert_eq!(ready().as_deref(), Some("0"));
    served.health.ready("service");
    served.engine.metrics().broker_away.set(1);
    assert_eq!(ready().as_deref(), Some("0"));
}

#[test]
fn a_worker_on_jetstream_is_not_ready_without_a_server() {
    // Nobody listens at the near end of a connection.
    let far_end = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_end = TcpStream::connect(far_end.local_addr().unwrap()).unwrap();
    let (server, model) = (near_end.local_addr().unwrap(), root().join("tests/data/higgs/higgs.model.txt"));
    for delivery in ["exactly_once", "at_least_once"] {
        let text = format!(
            "instance = \"deploy\"\n[nats]\nservers = \"nats://{server}\"\ngroup = \"g\"\ndelivery = \"{delivery}\"\n\
             [[route]]\ninput = [\"in\"]\nreply_topic = \"out\"\n[[model]]\nname = \"m\"\npath = {model:?}\n\
             [engine]\njournal = \"off\"\n[admin]\nlisten = \"127.0.0.1:0\"\n"
        );
        let config =
            Config::from_toml(&text, "worker.toml", root(), &crate::Pod).unwrap_or_else(|error| panic!("{error}"));
        let stop = Arc::new(Stop::default());
        let worker = Worker::start(&config, None, Arc::clone(&stop)).unwrap();
        let start = clock::now();
        while !worker.not_ready().lines().any(|line| line.starts_with("nats: ")) {
            assert!(clock::now() - start < Duration::from_secs(20), "{delivery}: {}", worker.not_ready());
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.request(Duration::ZERO);
        let _ = worker.wait();
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let sources = yaml("deploy/grafana/datasources.yaml");
    let uid = string(&sources, "/datasources/0/uid");
    let variables: Vec<String> =
        list(&dashboard, "/templating/list").iter().map(|variable| format!("${}", string(variable, "/name"))).collect();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard, "/panels") {
        let title = string(panel, "/title");
        assert!(ids.insert(at(panel, "/id").as_u64().unwrap()), "{title}: its id is another's");
        let cell = |name| at(panel, &format!("/gridPos/{name}")).as_u64().unwrap();
        for (x, y) in
            (cell("x")..cell("x") + cell("w")).flat_map(|x| (cell("y")..cell("y") + cell("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && taken.insert((x, y)), "{title}: lies on another, or outside");
        }
        if string(panel, "/type") == "row" {
            continue;
        }
        assert_eq!(string(panel, "/datasource/uid"), uid, "{title}");
        assert!(string(panel, "/description").ends_with('.'), "{title}: a sentence says what it shows");
        for target in list(panel, "/targets") {
            assert_eq!(string(target, "/datasource/uid"), uid, "{title}");
            let expr = filled(string(target, "/expr"));
            let used =
                expr.split('$').skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap());
            for variable in used {
                assert!(
                    variables.contains(&format!("${variable}")),
                    "{title}: ${variable} is no variable of the dashboard"
                );
            }
        }
    }
}

#[test]
fn each_alert_has_a_name_of_its_own_a_severity_and_words() {
    let mut names = BTreeSet::new();
    for rule in alerts() {
        let name = string(&rule, "/alert");
        assert!(name.starts_with("Forebay") && names.insert(name.to_owned()), "{name}");
        assert!(["page", "ticket"].contains(&string(&rule, "/labels/severity")), "{name}");
        if let Some(held) = rule.get("for") {
            assert!(seconds(held.as_str().unwrap()).as_secs() > 0, "{name}");
        }
        assert!(string(&rule, "/annotations/description").ends_with('.'), "{name}");
    }
}
