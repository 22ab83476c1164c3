//! The keys of worker.toml as the file has them, with their meaning, defaults and bounds. The JSON Schema is generated
//! from these types, and the schema is what the file is held against: a key added here is known everywhere.
//!
//! Durations and sizes are still text here; `check` parses them and holds them to the bounds that their text names.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU32};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::nats::RawNats;
use super::onnx::RawOnnx;
use super::preprocess::RawStep;
use super::python::RawPython;
use super::values::{
    BytesText, CacheMode, DeadlineFrom, Delivery, DurationText, HugePages, LogFormat, LogLevel, ModelType,
    OnBadPosition, Ordering, PinMode, RawClientValue, RawCompile, RawPin, Rebalance, Reload, ReplyMetadata,
    StartPosition, Switch, System,
};
use crate::batch::{QueueDelay, QueueFull, TimeoutAction};
use crate::model::Quantization;
use crate::score::TrialMode;

/// The JSON Schema of worker.toml (draft 2020-12), without references, each key with its description and default.
#[must_use]
pub fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<RawConfig>();
    if let Some(root) = schema.as_object_mut() {
        close_tables(root);
    }
    schema
}

/// Says of each table that it has no other keys, and drops the defaults of tables, which repeat those of their keys.
fn close_tables(table: &mut Map<String, Json>) {
    table.insert("additionalProperties".to_owned(), false.into());
    let keys = table.get_mut("properties").and_then(Json::as_object_mut);
    for schema in keys.into_iter().flat_map(|keys| keys.values_mut().filter_map(Json::as_object_mut)) {
        let is_table = |schema: &Map<String, Json>| schema.contains_key("properties");
        let is_list = schema.get("items").and_then(Json::as_object).is_some_and(is_table);
        if is_list || is_table(schema) {
            schema.remove("default");
        }
        if is_table(schema) {
            close_tables(schema);
        } else if let Some(items) = schema.get_mut("items").and_then(Json::as_object_mut).filter(|_| is_list) {
            close_tables(items);
        }
    }
}

/// The config of a forebay worker: records of Kafka or NATS in, scores out.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(title = "worker.toml", extend("required" = ["model"]))]
pub(super) struct RawConfig {
    /// The worker's name: unique among the workers of its group, and the same over restarts. A second worker with the
    /// same name is fenced and exits 3. Default the environment variable HOSTNAME, else the system's host name; 1 to
    /// 200 of the characters a-z, A-Z, 0-9, ".", "_" and "-". The option --instance goes before it.
    #[serde(default = "instance")]
    pub(super) instance: String,
    /// Kafka, where records come from there or replies go there. There is this table, or `[nats]`, or both. Default not at
    /// all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RawKafka")]
    pub(super) kafka: Option<RawKafka>,
    /// NATS, where records come from there or replies go there, or requests are answered. Default not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RawNats")]
    pub(super) nats: Option<RawNats>,
    /// What is done with which input topic. At least one, unless there is `[nats.service]`.
    #[serde(default)]
    pub(super) route: Vec<RawRoute>,
    /// The models that routes name and requests ask. At least one.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) model: Vec<RawModel>,
    /// Score threads and how much work may be inside.
    #[serde(default)]
    pub(super) engine: RawEngine,
    /// Results that are kept, for requests with the same rows.
    #[serde(default)]
    pub(super) cache: RawCache,
    /// The admin port: /livez, /readyz, /metrics, /stats.
    #[serde(default)]
    pub(super) admin: RawAdmin,
    /// What is logged, and how.
    #[serde(default)]
    pub(super) log: RawLog,
}

/// `[kafka]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["group"]))]
pub(super) struct RawKafka {
    /// Brokers to ask first, "host:port" joined by commas. Default "localhost:9092".
    pub(super) brokers: String,
    /// The consumer group, which workers with the same routes share. Required; 1 to 249 characters.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
    /// What is promised: each reply exactly once, or at least once and sooner. Default `exactly_once`.
    pub(super) delivery: Delivery,
    /// Whose replies keep the order of their records; there, order goes before priority. Default "none".
    pub(super) ordering: Ordering,
    /// Where a group without committed offsets starts; partitions added later start at their oldest record. Default
    /// "earliest".
    pub(super) start: StartPosition,
    /// What becomes of a partition whose committed position lies past its end (the topic was truncated or recreated):
    /// "stop" leaves it alone and says so, "continue" goes on at its end. Default "stop".
    pub(super) on_bad_position: OnBadPosition,
    /// What becomes of a partition whose committed offset map is damaged: "stop" leaves it alone and says so, "continue"
    /// scores all above the position again, whether answered or not. Default "stop".
    pub(super) on_bad_offset_map: OnBadPosition,
    /// How partitions move between workers: "cooperative" (only those that must), "eager" (all stop, for groups with
    /// members that know no other), "consumer" (the broker decides: KIP-848). The same in all workers of a group.
    /// Default "cooperative".
    pub(super) rebalance: Rebalance,
    /// Consumer and producer pairs in this process, each with partitions of its own. Default 1, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub(super) shards: NonZeroU32,
    /// Least time between two commits. With `exactly_once` replies become visible at a commit; with `at_least_once` it
    /// bounds what comes twice after a crash. Default 5 ms, or 50 ms with `at_least_once`; 0 to 60 s.
    #[schemars(with = "DurationText")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit_interval: Option<DurationText>,
    /// Most records in one transaction. Default 4096, 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) commit_records_max: NonZeroU32,
    /// Most bytes of replies in one transaction. Default 8 MiB, 1 KiB to 1 GiB.
    pub(super) commit_bytes_max: BytesText,
    /// How long a drain may take, on SIGTERM and when partitions are revoked; what is unfinished then is aborted, to be
    /// scored again. Default 20 s, 0 to 5 min.
    pub(super) drain_timeout: DurationText,
    /// Passed on to librdkafka: its own names, quoted because they hold dots. Keys that would break the promise are
    /// refused. Default none.
    pub(super) client: BTreeMap<String, RawClientValue>,
}

/// `[[route]]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["input", "reply_topic"]))]
pub(super) struct RawRoute {
    /// The system that records come from; all routes of a worker name the same. Default "kafka" where there is a `[kafka]`
    /// table, else "nats".
    #[schemars(with = "System")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<System>,
    /// The system that replies go to; all routes of a worker name the same. Default that of `source`.
    #[schemars(with = "System")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sink: Option<System>,
    /// What to read. Topics of Kafka; or subjects of NATS, in which "*" stands for any token, ">" for all at the end, and
    /// "{partition}" for the partition's number. Required; at least one, and each in one route only.
    #[schemars(with = "Vec<String>", length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Vec<String>>,
    /// The name of the model that scores. Default the only [[model]].
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    /// The topic or subject that replies go to when the request names none. Required.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reply_topic: Option<String>,
    /// Further topics that requests may name for their reply; "*" stands for any characters. Default none.
    pub(super) reply_topics_allowed: Vec<String>,
    /// What a request's time-out counts from. Default "arrival".
    pub(super) deadline_from: DeadlineFrom,
    /// How much a reply tells about its scoring. Default "short".
    pub(super) reply_metadata: ReplyMetadata,
    /// Where a record that cannot be read or scored goes besides its error reply, as it came: "off", or a topic, in
    /// which "<input>" stands for the record's own. Default "off".
    pub(super) dead_letter: String,
    /// Larger records get an error reply. Default 1 MiB, 1 B to 1 GiB.
    pub(super) record_bytes_max: BytesText,
    /// The input topics are compacted: a tombstone is skipped and counted instead of answered with an error. Default
    /// false.
    pub(super) compacted: bool,
    /// Tries again after a transient error of the model, at most this often; back-off 100 ms, doubling.
    /// Default 0, 0 to 10.
    #[schemars(range(min = 0, max = 10))]
    pub(super) retries: u8,
}

/// `[[model]]`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "path"]))]
pub(super) struct RawModel {
    /// Its name in routes, requests and metrics. Required; unique, 1 to 128 of the characters a-z, A-Z, 0-9, ".", "_"
    /// and "-".
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// The model file. Required; a relative path is taken from the folder of this config file.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// The kind of file. Default "auto".
    #[serde(rename = "type")]
    pub(super) kind: ModelType,
    /// Trees (XGBoost, `LightGBM`, Treelite, ONNX): true scores them with the compiled forest, false with their own library.
    /// scikit-learn models: true converts them, which is checked against their own scores; false leaves them to Python.
    /// "auto" is true for trees and false for scikit-learn; other kinds take no notice. Default "auto".
    pub(super) compile_model: RawCompile,
    /// The SHA-256 digest that the file must have, as 64 hex digits; empty for any. Default empty.
    pub(super) sha256: String,
    /// The file may run code of its own when it is loaded, as pickles, Python files and shared libraries do; they also
    /// need a `sha256`. Default false.
    pub(super) trusted: bool,
    /// The model's own numbers are stored in fewer bits, which moves its scores: weights of ONNX graphs that ONNX Runtime
    /// scores become int8, leaves of trees that the compiled forest scores 16 bits. Other models are refused. Default false.
    pub(super) enable_model_quantization: bool,
    /// What numeric features are rounded to behind the steps of `preprocess`, which moves scores: "f16" to floats of 16 bits,
    /// "u8" to 256 levels between the least and the greatest value in the rows of `calibration`. Compiled forests need
    /// none and take no notice; trees that their own library scores are refused. Default "off".
    pub(super) enable_quantization: Quantization,
    /// The file of rows for "u8", at least 100: JSON lines, CSV or TSV, as `forebay score` reads them. A relative path is taken
    /// from the folder of this config file. Default empty.
    pub(super) calibration: String,
    /// When the file, and the candidate's, is read again: "off" for SIGHUP and the admin port only, "watch" also when it has
    /// changed. What is read is validated first, and swapped in between two batches. Default "off".
    pub(super) reload: Reload,
    /// A version that is tried beside the one that serves. Default none; one at the most.
    pub(super) candidate: Vec<RawCandidate>,
    /// How ONNX Runtime scores it, where it is an ONNX graph.
    pub(super) onnx: RawOnnx,
    /// scikit-learn and Python models: how Python runs them.
    pub(super) python: RawPython,
    /// What is done to a record's features before the model sees them, in this order. Default none.
    pub(super) preprocess: Vec<RawStep>,
    /// How its requests are batched.
    pub(super) batch: RawBatch,
}

/// `[[model.candidate]]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["path"]))]
pub(super) struct RawCandidate {
    /// The model file. Required; a relative path is taken from the folder of this config file.
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// What it does: "canary" answers its share of the requests; "shadow" scores its share after they were answered, and
    /// the scores are compared. Default "shadow".
    pub(super) mode: TrialMode,
    /// Its share of the requests. A key (or id, where a record has no key) always is in it or never is. Default 1.0,
    /// 0 to 1.
    #[schemars(range(min = 0, max = 1))]
    pub(super) share: f64,
    /// As in [[model]]. Default "auto", or what stands there.
    #[serde(rename = "type")]
    pub(super) kind: ModelType,
    /// As in [[model]]. Default what stands there.
    #[schemars(with = "RawCompile")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compile_model: Option<RawCompile>,
    /// As in [[model]], of this file. Default empty.
    pub(super) sha256: String,
    /// As in [[model]], of this file. Default false.
    pub(super) trusted: bool,
    /// As in [[model]]. Default what stands there.
    #[schemars(with = "bool")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enable_model_quantization: Option<bool>,
    /// As in [[model]]. Default what stands there.
    #[schemars(with = "Quantization")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enable_quantization: Option<Quantization>,
    /// As in [[model]]. Default empty: what stands there.
    pub(super) calibration: String,
}

/// `[model.batch]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawBatch {
    /// Most rows in a batch. Default 1024, 1 to 65536.
    #[schemars(range(min = 1, max = 65_536))]
    pub(super) batch_size_max: NonZeroU32,
    /// Sizes in rows that the model scores best, each at most `batch_size_max`: a batch is cut to the largest that the
    /// waiting rows fill. Default none.
    #[schemars(inner(range(min = 1, max = 65_536)))]
    pub(super) preferred_sizes: Vec<NonZeroU32>,
    /// How long the oldest record may wait for company. Default 0, 0 to 10 s.
    pub(super) queue_delay_max: DurationText,
    /// Whether it always waits so long, or as long as the model's learned service time and the load make it worth, and
    /// `queue_delay_max` at the most. Default "fixed".
    pub(super) queue_delay: QueueDelay,
    /// How many priorities there are; 1 is the highest. Default 3, 1 to 255.
    #[schemars(range(min = 1, max = 255))]
    pub(super) priority_levels: NonZeroU8,
    /// The priority of requests that name none. Default 2, or 1 where `priority_levels` is 1; 1 to `priority_levels`.
    #[schemars(with = "NonZeroU8", range(min = 1, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority_default: Option<NonZeroU8>,
    /// A record that has waited so long for each level above its own comes to the front: one in eight rows that are
    /// scored is such a record's, so that no level starves. 0 for never. Default 100 ms, 0 to 1 h.
    pub(super) priority_aging: DurationText,
    /// Most requests that wait in one level. Default 65536, 1 to 10000000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) queue_depth_max: NonZeroU32,
    /// What becomes of a request that finds its level full: "pause" keeps it and pauses the source, "reject" answers it
    /// with the error `queue_full`. Default "pause".
    pub(super) queue_full: QueueFull,
    /// How long a request may take before it is answered as expired; requests may only shorten it; 0 for any time.
    /// Default 0, 0 to 1 h.
    pub(super) timeout: DurationText,
    /// What becomes of a request then: "reject" answers it with the error `deadline_exceeded`, "delay" scores it after
    /// all others of its level. Default "reject".
    pub(super) timeout_action: TimeoutAction,
    /// Whether requests may name a shorter timeout; if not, theirs is passed over. Default true.
    pub(super) allow_timeout_override: bool,
    /// Levels whose queue differs from the keys above. Default none.
    pub(super) level: Vec<RawLevel>,
}

/// `[[model.batch.level]]`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["level"]))]
pub(super) struct RawLevel {
    /// Which level. Required; 1 to `priority_levels`, each once.
    #[schemars(with = "NonZeroU8", range(min = 1, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) level: Option<NonZeroU8>,
    /// As in [model.batch]. Default what stands there, 1 to 10000000.
    #[schemars(with = "NonZeroU32", range(min = 1, max = 10_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue_depth_max: Option<NonZeroU32>,
    /// As in [model.batch]. Default what stands there.
    #[schemars(with = "QueueFull")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue_full: Option<QueueFull>,
    /// As in [model.batch]. Default what stands there, 0 to 1 h.
    #[schemars(with = "DurationText")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<DurationText>,
    /// As in [model.batch]. Default what stands there.
    #[schemars(with = "TimeoutAction")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout_action: Option<TimeoutAction>,
    /// As in [model.batch]. Default what stands there.
    #[schemars(with = "bool")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow_timeout_override: Option<bool>,
}

/// `[engine]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawEngine {
    /// Score threads; 0 for one on each core that the container grants (a quota of 1.5 CPUs counts as 2).
    /// Default 0, 0 to 1024.
    #[schemars(range(min = 0, max = 1024))]
    pub(super) num_threads: u32,
    /// Which cores the score threads are pinned to, each with its buffers on its NUMA node: "auto", "off", or a list of
    /// cores by the numbers that `forebay topology` shows. Default "auto".
    pub(super) pin: RawPin,
    /// Whether batch buffers of 2 MiB and more lie in huge pages: "off", or "transparent" where the kernel gives some.
    /// Default "off".
    pub(super) huge_pages: HugePages,
    /// Most records in the worker; past it the source pauses. Default 65536, 1 to 10000000.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) in_flight_max: NonZeroU32,
    /// Where the records that native models (C or C++ code in this process) score are named, so that one that ends the
    /// worker three times is rejected: "off", "auto" for a file in the system's folder for temporary files, or the path of
    /// a file, a relative one from the folder of this config file. Default "auto".
    pub(super) journal: String,
}

/// `[cache]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawCache {
    /// When a request is looked up before it is scored: "auto" (where that is cheaper, as timed for each model), "on" or
    /// "off". One with the same rows as another that is being scored waits for its scores. Default "auto".
    pub(super) mode: CacheMode,
    /// Most bytes that results may take, of all models together. Default 64 MiB, 1 KiB to 64 GiB.
    pub(super) bytes_max: BytesText,
    /// How long a result is good for. Default 60 s, 1 ms to 24 h.
    pub(super) ttl: DurationText,
    /// Whether preprocessed rows are kept for requests with the same raw rows, of any model with equal steps. It pays where
    /// steps are many and rows repeat. Default "off".
    pub(super) features: Switch,
    /// Most bytes that preprocessed rows may take. Default 64 MiB, 1 KiB to 64 GiB.
    pub(super) features_bytes_max: BytesText,
}

/// `[admin]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawAdmin {
    /// Address and port that it listens on; port 0 takes a free one. Default "127.0.0.1:9640".
    pub(super) listen: String,
    /// What a call that changes something must bring as `Authorization: Bearer <token>`; empty for no such calls at all.
    /// Default empty.
    pub(super) token: String,
}

/// `[log]`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawLog {
    /// How a line looks. Default "text".
    pub(super) format: LogFormat,
    /// The least severe level that is printed. Default "info".
    pub(super) level: LogLevel,
}

fn instance() -> String {
    "${HOSTNAME}".to_owned()
}

fn duration(text: &str) -> DurationText {
    DurationText(text.to_owned())
}

fn bytes(text: &str) -> BytesText {
    BytesText(text.to_owned())
}

const fn count(default: u32) -> NonZeroU32 {
    NonZeroU32::new(default).expect("the defaults below are literals above 0")
}

impl Default for RawKafka {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".to_owned(),
            group: None,
            delivery: Delivery::default(),
            ordering: Ordering::default(),
            start: StartPosition::default(),
            on_bad_position: OnBadPosition::default(),
            on_bad_offset_map: OnBadPosition::default(),
            rebalance: Rebalance::default(),
            shards: const { count(1) },
            commit_interval: None,
            commit_records_max: const { count(4096) },
            commit_bytes_max: bytes("8MiB"),
            drain_timeout: duration("20s"),
            client: BTreeMap::new(),
        }
    }
}

impl Default for RawRoute {
    fn default() -> Self {
        Self {
            source: None,
            sink: None,
            input: None,
            model: None,
            reply_topic: None,
            reply_topics_allowed: Vec::new(),
            dead_letter: "off".to_owned(),
            deadline_from: DeadlineFrom::default(),
            reply_metadata: ReplyMetadata::default(),
            record_bytes_max: bytes("1MiB"),
            compacted: false,
            retries: 0,
        }
    }
}

impl Default for RawCandidate {
    fn default() -> Self {
        Self {
            path: None,
            mode: TrialMode::default(),
            share: 1.0,
            kind: ModelType::default(),
            compile_model: None,
            sha256: String::new(),
            trusted: false,
            enable_model_quantization: None,
            enable_quantization: None,
            calibration: String::new(),
        }
    }
}

impl Default for RawBatch {
    fn default() -> Self {
        Self {
            batch_size_max: const { count(1024) },
            preferred_sizes: Vec::new(),
            queue_delay_max: duration("0ms"),
            queue_delay: QueueDelay::default(),
            priority_levels: const { NonZeroU8::new(3).expect("3 is above 0") },
            priority_default: None,
            priority_aging: duration("100ms"),
            queue_depth_max: const { count(65_536) },
            queue_full: QueueFull::default(),
            timeout: duration("0ms"),
            timeout_action: TimeoutAction::default(),
            allow_timeout_override: true,
            level: Vec::new(),
        }
    }
}

impl Default for RawEngine {
    fn default() -> Self {
        Self {
            num_threads: 0,
            pin: RawPin::Mode(PinMode::Auto),
            huge_pages: HugePages::default(),
            in_flight_max: const { count(65_536) },
            journal: "auto".to_owned(),
        }
    }
}

impl Default for RawCache {
    fn default() -> Self {
        Self {
            mode: CacheMode::default(),
            bytes_max: bytes("64MiB"),
            ttl: duration("60s"),
            features: Switch::default(),
            features_bytes_max: bytes("64MiB"),
        }
    }
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9640".to_owned(), token: String::new() }
    }
}
