//! The whole room: text in; config, schema and dump out. What it says to a bad text is in `messages`.

mod messages;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::batch::{QueueDelay, QueueFull, TimeoutAction};
use crate::model::{
    Action, Backend, Category, GraphOptimization, Input, Method, ModelType, Quantization, Real, RowType, Sandbox,
    Unknown,
};
use crate::score::{Trial, TrialMode};

/// An environment out of two tables, on a host named "box".
pub(super) struct Fake {
    vars: HashMap<String, String>,
    files: HashMap<String, String>,
}

impl Fake {
    pub(super) fn new(vars: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let table =
            |pairs: &[(&str, &str)]| pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Self { vars: table(vars), files: table(files) }
    }
}

impl Environment for Fake {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).cloned()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let text = path.to_str().and_then(|path| self.files.get(path));
        text.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn host_name(&self) -> Option<String> {
        Some("box".to_owned())
    }
}

fn kafka(config: &Config) -> &Kafka {
    config.kafka.as_ref().expect("the table is there")
}

/// The least that a worker.toml needs.
const LEAST: &str = r#"
[kafka]
group = "fraud-scorers"

[[route]]
input = ["features"]
reply_topic = "scores"

[[model]]
name = "fraud"
path = "models/fraud.txt"
"#;

/// Every key with its default.
const WHOLE: &str = r#"
instance = "${HOSTNAME}"

[kafka]
brokers = "localhost:9092"
group = "fraud-scorers"
delivery = "exactly_once"
ordering = "none"
start = "earliest"
on_bad_position = "stop"
on_bad_offset_map = "stop"
rebalance = "cooperative"
shards = 1
commit_interval = "5ms"
commit_records_max = 4096
commit_bytes_max = "8MiB"
drain_timeout = "20s"
[kafka.client]

[nats]
servers = "nats://localhost:4222"
user = ""
password = ""
token = ""
nkey = ""
nkey_file = ""
creds_file = ""
connect_timeout = "5s"
ping_interval = "5s"
group = "fraud-scorers"
delivery = "exactly_once"
ordering = "none"
start = "earliest"
partitions = 1
lease = "10s"
ack_wait = "30s"
commit_interval = "0ms"
commit_records_max = 900
commit_bytes_max = "8MiB"
drain_timeout = "20s"
checkpoint_subject = "ckpt"
on_missing_checkpoint = "stop"
[nats.tls]
ca_file = ""
cert_file = ""
key_file = ""
required = false
first = false
[nats.service]
name = "forebay"
prefix = "forebay"
version = "0.1.0"
description = ""
queue_group = "q"
models = []
in_flight_max = 16384
reply_metadata = "short"
record_bytes_max = "1MiB"
retries = 0

[[route]]
source = "kafka"
sink = "kafka"
input = ["features"]
model = "fraud"
reply_topic = "scores"
reply_topics_allowed = []
deadline_from = "arrival"
reply_metadata = "short"
dead_letter = "off"
record_bytes_max = "1MiB"
compacted = false
retries = 0

[[model]]
name = "fraud"
path = "models/fraud.txt"
type = "auto"
compile_model = "auto"
sha256 = ""
trusted = false
enable_model_quantization = false
enable_quantization = "off"
calibration = ""
reload = "off"
candidate = []
preprocess = []
[model.onnx]
intra_threads = 1
inter_threads = 1
graph_optimization = "all"
output = ""
library = ""
[model.python]
interpreter = "python3"
processes = 0
batch_timeout = "10s"
start_timeout = "60s"
memory_max = "2GiB"
method = "auto"
input = "auto"
row_type = "f64"
features = []
class = ""
import_paths = []
sandbox = "auto"
gc_pause_min = "10ms"
[model.batch]
batch_size_max = 1024
preferred_sizes = []
queue_delay_max = "0ms"
queue_delay = "fixed"
priority_levels = 3
priority_default = 2
priority_aging = "100ms"
queue_depth_max = 65536
queue_full = "pause"
timeout = "0ms"
timeout_action = "reject"
allow_timeout_override = true
level = []

[engine]
num_threads = 0
pin = "auto"
huge_pages = "off"
in_flight_max = 65536
journal = "auto"
[cache]
mode = "auto"
bytes_max = "64MiB"
ttl = "60s"
features = "off"
features_bytes_max = "64MiB"
[admin]
listen = "127.0.0.1:9640"
token = ""
[log]
format = "text"
level = "info"
"#;

/// No key has its default.
const OTHER: &str = r#"
instance = "worker-1"

[kafka]
brokers = "a:9092, SASL_SSL://[::1]:9093"
group = "${GROUP}"
delivery = "at_least_once"
ordering = "key"
start = "error"
on_bad_position = "continue"
on_bad_offset_map = "continue"
rebalance = "consumer"
shards = 3
commit_interval = "1s 500ms"
commit_records_max = 7
commit_bytes_max = "1000KB"
drain_timeout = "1m"
[kafka.client]
"security.protocol" = "SASL_SSL"
"sasl.username" = "pay$$er"
"sasl.password" = "${file:secrets/kafka}"
"session.timeout.ms" = 15000
"socket.keepalive.enable" = true

[nats]
servers = ["a:1", "tls://[::1]:4222", "nats://b"]
user = "pay$$er"
password = "${file:secrets/kafka}"
connect_timeout = "100ms"
ping_interval = "5m"
group = "other"
delivery = "at_least_once"
ordering = "partition"
start = "latest"
partitions = 3
lease = "1s"
ack_wait = "1h"
commit_interval = "60s"
commit_records_max = 7
commit_bytes_max = "1KiB"
drain_timeout = "0s"
checkpoint_subject = "a.b"
on_missing_checkpoint = "continue"
[nats.tls]
ca_file = "ca.pem"
cert_file = "/run/cert.pem"
key_file = "key$$.pem"
first = true
[nats.service]
name = "Fraud_1-x"
prefix = "shop.scores"
version = "1.2.3-rc.1+b"
description = "for $$"
queue_group = "q.eu"
models = ["second"]
in_flight_max = 1
reply_metadata = "full"
record_bytes_max = "1KiB"
retries = 10

[[route]]
source = "kafka"
sink = "kafka"
input = ["features", "features-2"]
model = "second"
reply_topic = "scores"
reply_topics_allowed = ["scores-*", "other"]
deadline_from = "timestamp"
reply_metadata = "full"
dead_letter = "<input>-dlt"
record_bytes_max = "1KiB"
compacted = true
retries = 10

[[route]]
source = "kafka"
sink = "kafka"
input = ["scores"]
model = "first"
reply_topic = "done"

[[model]]
name = "first"
path = "/models/first.txt"
type = "lightgbm"
compile_model = false
trusted = true
enable_model_quantization = true
enable_quantization = "f16"
calibration = "rows$$.csv"
sha256 = "000102030405060708090A0B0C0D0E0F101112131415161718191a1b1c1d1e1f"
[model.python]
interpreter = "venv/bin/python"
processes = 3
batch_timeout = "1ms"
start_timeout = "1h"
memory_max = "64MiB"
method = "decision_function"
input = "dataframe"
row_type = "f32"
features = ["a", "b$$c"]
class = "shop:Model"
import_paths = ["lib", "/opt/lib"]
sandbox = "required"
gc_pause_min = "0ms"

[[model]]
name = "second"
path = "second.txt"
reload = "watch"
[[model.preprocess]]
step = "order"
features = ["b", "a", "c", "d", "e"]
[[model.preprocess]]
step = "impute"
features = ["a", "b"]
values = [1, 2.5]
[[model.preprocess]]
step = "minmax"
features = ["a", "b"]
min = [0]
max = [2, 4]
[[model.preprocess]]
step = "clip"
features = ["c"]
min = [-1]
max = [1]
[[model.preprocess]]
step = "categories"
features = ["d"]
codes = { red = 0, "dark green" = 1 }
unknown = -1
[[model.preprocess]]
step = "categories"
features = ["e"]
codes = { "3" = 0.5 }
codes_of = "number"
unknown = "missing"
[[model.candidate]]
path = "third.pkl"
mode = "canary"
share = 0.25
type = "sklearn"
compile_model = true
sha256 = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
trusted = true
enable_model_quantization = true
enable_quantization = "u8"
calibration = "/var/rows.jsonl"
[model.onnx]
intra_threads = 64
inter_threads = 2
graph_optimization = "extended"
output = ["probabilities", "$$core"]
library = "lib/libonnxruntime.so"
[model.batch]
batch_size_max = 8
preferred_sizes = [8, 4]
queue_delay_max = "10s"
queue_delay = "adaptive"
priority_levels = 4
priority_default = 1
priority_aging = "0s"
queue_depth_max = 1
queue_full = "reject"
timeout = "1h"
timeout_action = "delay"
allow_timeout_override = false
[[model.batch.level]]
level = 3
queue_depth_max = 2
queue_full = "pause"
timeout = "0s"
timeout_action = "reject"
allow_timeout_override = true
[[model.batch.level]]
level = 4
timeout = "20ms"

[engine]
num_threads = 2
pin = [0, 2]
huge_pages = "transparent"
in_flight_max = 1
journal = "state/$$.journal"
[cache]
mode = "on"
bytes_max = "1KiB"
ttl = "1ms"
features = "on"
features_bytes_max = "2KiB"
[admin]
listen = "[::1]:0"
token = "${SECRET}"
[log]
format = "json"
level = "debug"
"#;

fn fake() -> Fake {
    Fake::new(&[("GROUP", "of $ four"), ("SECRET", "hunter2")], &[("/etc/forebay/secrets/kafka", "hunter2\n")])
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_toml(text, "worker.toml", Path::new("/etc/forebay"), &fake())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_defaults_are_those_of_the_whole_example() {
    // A table that is not there stands for no NATS at all; an empty one has the defaults.
    assert_eq!(good(&format!("{LEAST}[nats]\ngroup = \"fraud-scorers\"\n[nats.service]\n")), good(WHOLE));
    assert_eq!(good(&format!("{LEAST}[nats]\n")).nats.unwrap().service, None);
    let config = good(LEAST);
    assert_eq!(config, Config { nats: None, ..good(WHOLE) });
    assert_eq!(config.instance, "box");
    assert_eq!(kafka(&config).brokers, "localhost:9092");
    assert_eq!(kafka(&config).commit_interval, Duration::from_millis(5));
    assert_eq!(kafka(&config).commit_bytes_max.get(), 8 << 20);
    assert_eq!(config.routes[0].record_bytes_max.get(), 1 << 20);
    assert_eq!(config.model_of(&config.routes[0]).path, Path::new("/etc/forebay/models/fraud.txt"));
    assert_eq!(config.models[0].batch.priority_default.get(), 2);
    assert_eq!(config.models[0].batch.policy, BatchPolicy::default());
    assert_eq!(
        config.engine,
        Engine {
            num_threads: None,
            pin: Pin::Auto,
            huge_pages: HugePages::Off,
            in_flight_max: config.engine.in_flight_max,
            journal: Journal::Auto
        }
    );
    assert_eq!((config.cache.mode, config.cache.bytes_max.get()), (CacheMode::Auto, 64 << 20));
    assert_eq!(config.cache.ttl, Duration::from_secs(60));
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9640");
}

#[test]
fn the_schema_and_the_whole_example_have_the_same_keys_and_defaults() {
    fn compare(schema: &Json, example: &toml::Table) {
        for (key, inner) in wants::keys_of(schema) {
            let value = example.get(key).unwrap_or_else(|| panic!("{key} is in the example"));
            match value {
                toml::Value::Table(table) => compare(inner, table),
                toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
                    compare(&inner["items"], list[0].as_table().expect("a table"));
                }
                value => {
                    let needed = wants::requires(schema, key) || inner.get("default").is_none();
                    let default = Json::deserialize(value.clone()).expect("plain values");
                    assert!(needed || inner["default"] == default, "{key}: {} is not {default}", inner["default"]);
                }
            }
            assert!(inner["description"].is_string(), "{key} has a description");
        }
        let known: Vec<&str> = wants::keys_of(schema).map(|(key, _)| key).collect();
        assert!(example.keys().all(|key| known.contains(&key.as_str())));
    }
    use serde::Deserialize;
    compare(&schema().to_value(), &WHOLE.parse().expect("TOML"));
}

#[test]
fn everything_may_differ_from_its_default() {
    let config = good(OTHER);
    assert_eq!(kafka(&config).group, "of $ four");
    assert_eq!(kafka(&config).commit_interval, Duration::from_millis(1500));
    assert_eq!(kafka(&config).commit_bytes_max.get(), 1_000_000);
    assert_eq!((kafka(&config).delivery, kafka(&config).ordering), (Delivery::AtLeastOnce, Ordering::Key));
    assert_eq!((kafka(&config).rebalance, kafka(&config).shards.get()), (Rebalance::Consumer, 3));
    assert_eq!([kafka(&config).on_bad_position, kafka(&config).on_bad_offset_map], [OnBadPosition::Continue; 2]);
    let client = |key: &str| kafka(&config).client[key].expose();
    assert_eq!(client("sasl.username"), "pay$er");
    assert_eq!(client("sasl.password"), "hunter2");
    assert_eq!(client("session.timeout.ms"), "15000");
    assert_eq!(client("socket.keepalive.enable"), "true");
    let nats = &config.nats.as_ref().unwrap().connection;
    let servers: Vec<&str> = nats.servers.iter().map(async_nats::ServerAddr::as_url_str).collect();
    assert_eq!((&*nats.name, servers), ("worker-1", vec!["nats://a:1", "tls://[::1]:4222", "nats://b"]));
    let password = ClientValue::new("password", "hunter2".to_owned());
    assert_eq!(nats.auth, NatsAuth::UserPassword { user: "pay$er".to_owned(), password });
    assert_eq!((nats.connect_timeout, nats.ping_interval), (Duration::from_millis(100), Duration::from_secs(300)));
    let client = ClientCertificate { cert_file: "/run/cert.pem".into(), key_file: "/etc/forebay/key$.pem".into() };
    let ca_file = Some("/etc/forebay/ca.pem".into());
    assert_eq!(nats.tls, NatsTls { ca_file, client: Some(client), required: true, first: true });
    let service = config.nats.as_ref().unwrap().service.as_ref().unwrap();
    assert_eq!((&*service.name, &*service.version, &*service.description), ("Fraud_1-x", "1.2.3-rc.1+b", "for $"));
    assert_eq!((service.subject("a.b"), &*service.queue_group), ("shop.scores.a.b.predict".to_owned(), "q.eu"));
    assert_eq!((&service.models[..], service.in_flight_max.get()), (&["second".to_owned()][..], 1));
    assert_eq!((service.reply_metadata, service.record_bytes_max.get()), (ReplyMetadata::Full, 1 << 10));
    assert_eq!(service.retries, 10);
    let route = &config.routes[0];
    assert_eq!(route.retries, 10);
    assert_eq!(config.model_of(route).name, "second");
    assert!(["scores", "scores-eu", "other"].iter().all(|topic| route.allows_reply_topic(topic)));
    assert!(!route.allows_reply_topic("others"));
    assert_eq!(route.dead_letter.as_ref().map(|letter| letter.topic("features")), Some("features-dlt".to_owned()));
    assert_eq!(config.models[0].path, Path::new("/models/first.txt"));
    assert_eq!(config.models[0].sha256.map(|digest| digest[31]), Some(0x1f));
    assert_eq!([Backend::Reference, Backend::Auto], [0, 1].map(|at: usize| config.models[at].load.backend));
    assert!(config.models[0].load.trusted && config.models[0].load.quantize);
    assert_eq!(config.models[0].load.quantize_inputs, Quantization::F16);
    assert_eq!(config.models[0].load.calibration.as_deref(), Some(Path::new("/etc/forebay/rows$.csv")));
    let steps = &config.models[1].load.preprocess;
    let scale = Action::Scale { offset: vec![Real(0.0)], divisor: vec![Real(2.0), Real(4.0)] };
    assert_eq!((steps.len(), &steps[2].action), (6, &scale));
    let codes = [(Category::Number(3.0_f64.to_bits()), Real(0.5))].into();
    assert_eq!(steps[5].action, Action::Categories { codes, unknown: Unknown::Missing });
    assert_eq!([Reload::Off, Reload::Watch], [0, 1].map(|at: usize| config.models[at].reload));
    let onnx = &config.models[1].load.onnx;
    assert_eq!((onnx.intra_threads.get(), onnx.inter_threads.get()), (64, 2));
    assert_eq!((onnx.graph_optimization, &onnx.output[1]), (GraphOptimization::Extended, &"$core".to_owned()));
    assert_eq!(onnx.library.as_deref(), Some(Path::new("/etc/forebay/lib/libonnxruntime.so")));
    let candidate = config.models[1].candidate.as_ref().unwrap();
    assert_eq!(&candidate.load.onnx, onnx);
    assert_eq!(candidate.path, Path::new("/etc/forebay/third.pkl"));
    assert_eq!(candidate.trial, Trial { mode: TrialMode::Canary, share: 0.25 });
    assert_eq!((candidate.load.model_type, candidate.load.backend), (Some(ModelType::Sklearn), Backend::Compiled));
    assert!(candidate.load.trusted && candidate.load.quantize && candidate.sha256 == config.models[0].sha256);
    assert_eq!(candidate.load.quantize_inputs, Quantization::U8);
    assert_eq!(candidate.load.calibration.as_deref(), Some(Path::new("/var/rows.jsonl")));
    assert_eq!(config.admin.token.as_ref().map(ClientValue::expose), Some("hunter2"));
    let python = &config.models[0].load.python;
    assert_eq!(python.interpreter, Path::new("/etc/forebay/venv/bin/python"));
    assert_eq!((python.processes(), python.memory_max.get()), (NonZeroU32::new(3).unwrap(), 64 << 20));
    assert_eq!((python.batch_timeout, python.start_timeout), (Duration::from_millis(1), Duration::from_secs(3600)));
    assert_eq!(
        (python.method, python.input, python.row_type),
        (Method::DecisionFunction, Input::DataFrame, RowType::F32)
    );
    assert_eq!((&*python.features[1], python.class.as_deref()), ("b$c", Some("shop:Model")));
    assert_eq!(python.import_paths, [Path::new("/etc/forebay/lib"), Path::new("/opt/lib")]);
    assert_eq!((python.sandbox, python.gc_pause_min), (Sandbox::Required, Duration::ZERO));
    // A name without a slash is looked up in PATH.
    assert_eq!(config.models[1].load.python.interpreter, Path::new("python3"));
    assert_eq!(config.models[1].batch.priority_default.get(), 1);
    let policy = &config.models[1].batch.policy;
    assert_eq!((policy.queue_delay, policy.priority_aging), (QueueDelay::Adaptive, None));
    assert_eq!(policy.preferred_sizes.iter().map(|size| size.get()).collect::<Vec<_>>(), [4, 8]);
    let of = |level| policy.levels.of(Priority::new(level).unwrap());
    assert_eq!(of(2).timeout, Some(Duration::from_secs(3600)));
    assert_eq!((of(2).queue_full, of(2).timeout_action), (QueueFull::Reject, TimeoutAction::Delay));
    let three = LevelPolicy { queue_depth_max: NonZeroU32::new(2).unwrap(), ..LevelPolicy::default() };
    assert_eq!(*of(3), three);
    assert_eq!(*of(4), LevelPolicy { timeout: Some(Duration::from_millis(20)), ..*of(2) });
    assert_eq!(config.engine.pin, Pin::Cores(vec![0, 2]));
    assert_eq!(config.engine.huge_pages, HugePages::Transparent);
    assert_eq!((config.cache.mode, config.cache.bytes_max.get()), (CacheMode::On, 1 << 10));
    assert_eq!(config.cache.ttl, Duration::from_millis(1));
    assert_eq!((config.cache.features, config.cache.features_bytes_max.get()), (Switch::On, 2 << 10));
    assert_eq!(config.engine.journal, Journal::At("/etc/forebay/state/$.journal".into()));
}

#[test]
fn a_dump_reads_back_as_the_same_config() {
    for text in [LEAST, WHOLE, OTHER] {
        let config = good(text);
        let dumped = dump(&config);
        assert!(!dumped.contains("hunter2") && !format!("{config:?}").contains("hunter2"));
        let mut again = good(&dumped);
        assert_eq!(dump(&again), dumped);
        for (key, value) in &mut again.kafka.as_mut().expect("the table").client {
            if matches!(value, ClientValue::Secret(_)) {
                assert_eq!(value.expose(), "***");
                *value = kafka(&config).client[key].clone();
            }
        }
        again.admin.token = config.admin.token.clone();
        if let (Some(again), Some(nats)) = (&mut again.nats, &config.nats) {
            again.connection.auth = nats.connection.auth.clone();
        }
        assert_eq!(again, config);
    }
}

#[test]
fn each_way_to_log_in_to_nats() {
    let secret = || ClientValue::new("token", "hunter2".to_owned());
    let cases = [
        ("", NatsAuth::None),
        (
            "user = \"ann\"\npassword = \"${SECRET}\"",
            NatsAuth::UserPassword { user: "ann".to_owned(), password: secret() },
        ),
        ("token = \"${SECRET}\"", NatsAuth::Token(secret())),
        ("nkey = \"${SECRET}\"", NatsAuth::Nkey(secret())),
        ("nkey_file = \"a.nk\"", NatsAuth::NkeyFile("/etc/forebay/a.nk".into())),
        ("creds_file = \"/run/a.creds\"", NatsAuth::CredsFile("/run/a.creds".into())),
    ];
    for (lines, want) in cases {
        let config = good(&format!("{LEAST}[nats]\n{lines}\n"));
        assert_eq!(config.nats.as_ref().unwrap().connection.auth, want);
        let dumped = dump(&config);
        assert!(!dumped.contains("hunter2") && !format!("{config:?}").contains("hunter2"));
        assert_eq!(dump(&good(&dumped)), dumped);
    }
}

#[test]
fn files_and_overrides() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("worker.toml");
    let name = path.display().to_string();
    let instance = |name: &str| Overrides { instance: Some(name.to_owned()) };
    let read = |overrides: &Overrides| Config::from_file(&path, overrides).map_err(|error| error.to_string());

    let gone = read(&instance("w-1")).expect_err("no file yet");
    assert!(gone.starts_with(&format!("{name}: cannot be read: ")), "{gone}");
    assert!(gone.ends_with("; check the path and that this user may read it"), "{gone}");

    // The option goes before the file, whose variable then need not be set.
    std::fs::write(&path, format!("instance = \"${{FOREBAY_NOT_SET}}\"\n{LEAST}")).expect("written");
    let config = read(&instance("w-1")).expect("a good file");
    assert_eq!(config.instance, "w-1");
    assert_eq!(config.models[0].path, folder.path().join("models/fraud.txt"));
    let wanted = "wants 1 to 200 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"; the name comes from --instance, \
                  else from instance in the file, else from HOSTNAME";
    assert_eq!(read(&instance("a b")), Err(format!("{name}: --instance: got \"a b\", {wanted}")));
    assert_eq!(
        read(&Overrides::default()),
        Err(format!(
            "{name}:1: instance: the environment variable FOREBAY_NOT_SET is not set; set it, or write \
             \"${{FOREBAY_NOT_SET:-default}}\""
        ))
    );
}

#[test]
fn numbers_in_the_schema_stand_in_the_descriptions() {
    fn look(schema: &Json) {
        for (key, inner) in wants::keys_of(schema) {
            let description = inner["description"].as_str().expect("a description");
            // Those two are bounded by another key.
            if inner["type"] == "integer" && !["priority_default", "level"].contains(&key) {
                let default = inner.get("default").map_or_else(|| "what stands there".to_owned(), Json::to_string);
                let bounds = format!("Default {default}, {} to {}", inner["minimum"], inner["maximum"]);
                assert!(description.contains(&bounds), "{key}: {description}");
            }
            look(inner);
            look(&inner["items"]);
        }
    }
    look(&schema().to_value());
}

/// One random change to a text, at a character boundary.
fn mutated(text: &str, (at, cut, insert): (prop::sample::Index, usize, String)) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let start = at.index(chars.len() + 1);
    let end = (start + cut).min(chars.len());
    chars.splice(start..end, insert.chars());
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the text, there is a config that its own dump gives back, or a message; and never a panic or a secret.
    #[test]
    fn any_text_is_answered(
        whole in any::<bool>(),
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..12_usize, r#"([\[\]{}="'.,$#:*\n\\ -]|[0-9a-z]|"x"|\$\{A\}|99999|ä|\PC){0,4}"#),
            1..4,
        ),
    ) {
        let start = if whole { WHOLE } else { OTHER };
        let text = changes.into_iter().fold(start.to_owned(), |text, change| mutated(&text, change));
        match parse(&text) {
            Ok(config) => {
                let dumped = dump(&config);
                let again = parse(&dumped).map_err(|error| TestCaseError::fail(format!("{error}\n{dumped}")))?;
                prop_assert_eq!(dump(&again), dumped);
            }
            Err(error) => prop_assert!(!error.to_string().contains("hunter2")),
        }
    }

    #[test]
    fn any_characters_are_answered(text in r#"([\[\]{}="'.\n]|kafka|route|model|group|input|[a-z0-9]|\PC){0,40}"#) {
        match parse(&text) {
            Ok(config) => prop_assert!(!dump(&config).is_empty()),
            Err(error) => prop_assert!(error.to_string().starts_with("worker.toml:")),
        }
    }
}
