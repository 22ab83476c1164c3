//! What a key of worker.toml may hold, as the file writes it: the words of its choices, and durations, sizes and pins
//! still as text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model;

/// Where a consumer group without committed offsets starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StartPosition {
    /// At the oldest record that the topic holds.
    #[default]
    Earliest,
    /// With the records that arrive from now on.
    Latest,
    /// Not at all: the worker stops and says so.
    Error,
}

/// A system that records come from or replies go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum System {
    /// Kafka: topics.
    Kafka,
    /// NATS: subjects of `JetStream`'s streams.
    Nats,
}

impl System {
    /// Its table's name in worker.toml.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Nats => "nats",
        }
    }
}

/// What is promised of each reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// It comes once, for readers with `read_committed`: replies and positions are committed in one transaction.
    #[default]
    ExactlyOnce,
    /// It comes, and after a crash perhaps again: it goes out at once, and its position after it.
    AtLeastOnce,
}

/// Whose replies keep the order of their records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// Nobody's: a reply goes out when it is there.
    #[default]
    None,
    /// Those of records with the same key, within a partition.
    Key,
    /// Those of a whole partition.
    Partition,
}

/// What becomes of a partition whose committed state cannot be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnBadPosition {
    /// It is not read until somebody has looked.
    #[default]
    Stop,
    /// It is read all the same.
    Continue,
}

/// How partitions move between the workers of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rebalance {
    /// Only those that must move stop ("cooperative-sticky").
    #[default]
    Cooperative,
    /// All stop and are dealt out anew ("range").
    Eager,
    /// The broker deals them out (KIP-848).
    Consumer,
}

/// What a request's time-out counts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeadlineFrom {
    /// From when the worker received the record.
    #[default]
    Arrival,
    /// From the record's Kafka timestamp; after downtime old records are answered as expired.
    Timestamp,
}

/// How much a reply tells about its scoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReplyMetadata {
    /// Nothing.
    None,
    /// Model, version, batch size, queue and inference time, cache hit.
    #[default]
    Short,
    /// Also the model's digest, whether it is compiled, and a hash of the prediction.
    Full,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It is not done.
    #[default]
    Off,
    /// It is done.
    On,
}

/// When a request is looked up in the result cache before it is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Where that is cheaper than scoring: timed when the model is loaded, and as long as enough is found.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: each request is scored.
    Off,
}

/// The kind of a model file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// By the file's content.
    #[default]
    Auto,
    /// `LightGBM`'s text format.
    Lightgbm,
    /// An ONNX graph.
    Onnx,
    /// A Python file or "module:Class" with a `predict` of its own.
    Python,
    /// A scikit-learn estimator: a pickle, a joblib or a skops file.
    Sklearn,
    /// A Treelite checkpoint, or a shared library that `TL2cgen` made of one.
    Treelite,
    /// `XGBoost`'s JSON, UBJSON or old binary format.
    Xgboost,
}

impl From<ModelType> for Option<model::ModelType> {
    fn from(text: ModelType) -> Self {
        match text {
            ModelType::Auto => None,
            ModelType::Lightgbm => Some(model::ModelType::LightGbm),
            ModelType::Onnx => Some(model::ModelType::Onnx),
            ModelType::Python => Some(model::ModelType::Python),
            ModelType::Sklearn => Some(model::ModelType::Sklearn),
            ModelType::Treelite => Some(model::ModelType::Treelite),
            ModelType::Xgboost => Some(model::ModelType::XgBoost),
        }
    }
}

impl From<Option<model::ModelType>> for ModelType {
    fn from(kind: Option<model::ModelType>) -> Self {
        match kind {
            None => Self::Auto,
            Some(model::ModelType::LightGbm) => Self::Lightgbm,
            Some(model::ModelType::Onnx) => Self::Onnx,
            Some(model::ModelType::Python) => Self::Python,
            Some(model::ModelType::Sklearn) => Self::Sklearn,
            Some(model::ModelType::Treelite) => Self::Treelite,
            Some(model::ModelType::XgBoost) => Self::Xgboost,
        }
    }
}

/// When a model's file is read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reload {
    /// When it is asked for.
    #[default]
    Off,
    /// Also when it has changed.
    Watch,
}

/// Which pages large batch buffers lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Those of the usual size.
    #[default]
    Off,
    /// Huge ones, if the kernel has some (it is asked by madvise).
    Transparent,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How severe a message must be to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What stopped work.
    Error,
    /// Also what may need a look.
    Warn,
    /// Also what happens seldom: start, rebalances, stop.
    #[default]
    Info,
    /// Also each step.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's name in a filter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// A duration as text.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(title = "duration", extend("examples" = ["5ms", "20s", "1m30s"]))]
pub(super) struct DurationText(pub(super) String);

/// A size in bytes as text.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(title = "size", extend("examples" = ["512B", "64KiB", "8MiB"]))]
pub(super) struct BytesText(pub(super) String);

/// A value for librdkafka, which takes all of them as text.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawClientValue {
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// A number.
    Real(f64),
    /// A switch.
    Flag(bool),
}

/// What scores a model that more than one thing can score.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawCompile {
    /// By the model's kind.
    Mode(CompileMode),
    /// The compiled form, or the model's own library.
    Flag(bool),
}

impl Default for RawCompile {
    fn default() -> Self {
        Self::Mode(CompileMode::Auto)
    }
}

/// A rule for what scores a model.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CompileMode {
    /// The compiled form where the model's kind has one in its file.
    Auto,
}

impl From<&RawCompile> for model::Backend {
    fn from(text: &RawCompile) -> Self {
        match *text {
            RawCompile::Mode(CompileMode::Auto) => Self::Auto,
            RawCompile::Flag(compile) => Self::new(compile),
        }
    }
}

impl From<model::Backend> for RawCompile {
    fn from(backend: model::Backend) -> Self {
        match backend {
            model::Backend::Auto => Self::Mode(CompileMode::Auto),
            model::Backend::Compiled => Self::Flag(true),
            model::Backend::Reference => Self::Flag(false),
        }
    }
}

/// Which cores score threads are pinned to.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawPin {
    /// By a rule.
    Mode(PinMode),
    /// These cores in turn.
    Cores(#[schemars(length(min = 1), inner(range(min = 0, max = 4095)))] Vec<u32>),
}

/// A rule for pinning.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PinMode {
    /// The worker chooses.
    Auto,
    /// Threads go where the system puts them.
    Off,
}
