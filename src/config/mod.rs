//! worker.toml in, [`Config`] out: every value substituted, parsed, within its bounds and consistent with the others.
//!
//! The way is the same for every file: text -> spanned TOML -> `shape` (unknown keys, kinds and bounds, against the
//! JSON Schema that the types of `raw` generate; `${…}` filled in) -> `raw` -> `check` (units, names, cross checks) ->
//! [`Config`]. Invariants:
//!
//! 1. Nobody behind [`Config`] checks a value again: it holds counts that are not zero, durations, topics that Kafka
//!    takes, and a model for each route.
//! 2. All problems of a file are reported together, each with its line, its key and what the key wants.
//! 3. There is one list of keys, the types in `raw`: schema, defaults, nearest names and dump come from it.
//! 4. No secret is printed: not by errors (they show text as the file has it, `${…}` unfilled), not by `Debug`, not by
//!    [`dump`].

mod batch;
mod candidate;
mod check;
mod client;
mod cross;
mod dump;
mod error;
mod jetstream;
mod names;
mod nats;
mod onnx;
mod places;
mod preprocess;
mod python;
mod raw;
mod route;
mod service;
mod shape;
mod subject;
mod substitute;
mod topic;
mod units;
mod values;
mod wants;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::batch::{BatchPolicy, LevelPolicy};
use crate::engine::CandidateSpec;
use crate::model::LoadOptions;
use crate::placement::Pin;
use crate::record::Priority;

pub(crate) use check::parse_sha256;
pub use client::ClientValue;
pub use dump::dump;
pub use error::{ConfigError, Problem};
pub use jetstream::JetStream;
pub use nats::{ClientCertificate, Nats, NatsAuth, NatsSettings, NatsTls};
pub use raw::schema;
pub use service::NatsService;
pub use subject::SubjectFilter;
#[cfg(feature = "kafka")]
pub(crate) use subject::is_at;
pub use substitute::{Environment, ProcessEnvironment};
pub use topic::TopicPattern;
pub use values::{
    CacheMode, DeadlineFrom, Delivery, HugePages, LogFormat, LogLevel, OnBadPosition, Ordering, Rebalance, Reload,
    ReplyMetadata, StartPosition, Switch, System,
};

/// A whole worker.toml, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The worker's name: unique among the workers of its group, and the same over restarts.
    pub instance: String,
    /// Kafka, if records come from there or replies go there.
    pub kafka: Option<Kafka>,
    /// NATS, if records come from there or replies go there.
    pub nats: Option<Nats>,
    /// What is done with which input topic; at least one. All have the same source and the same sink.
    pub routes: Vec<Route>,
    /// The models that the routes name; at least one, each name once.
    pub models: Vec<Model>,
    /// Score threads and how much work may be inside.
    pub engine: Engine,
    /// Results that are kept.
    pub cache: Cache,
    /// The admin port.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
}

/// The Kafka connection and its transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Kafka {
    /// Brokers to ask first, `host:port` joined by commas.
    pub brokers: String,
    /// The consumer group.
    pub group: String,
    /// What is promised of each reply.
    pub delivery: Delivery,
    /// Whose replies keep the order of their records.
    pub ordering: Ordering,
    /// Where a group without committed offsets starts.
    pub start: StartPosition,
    /// What becomes of a partition whose position lies past its end.
    pub on_bad_position: OnBadPosition,
    /// What becomes of a partition whose offset map is damaged.
    pub on_bad_offset_map: OnBadPosition,
    /// How partitions move between workers.
    pub rebalance: Rebalance,
    /// Consumer and producer pairs in this process.
    pub shards: NonZeroU32,
    /// Least time between two commits.
    pub commit_interval: Duration,
    /// Most records in one transaction.
    pub commit_records_max: NonZeroU32,
    /// Most bytes of replies in one transaction.
    pub commit_bytes_max: NonZeroUsize,
    /// How long a drain may take, on SIGTERM and on revoke.
    pub drain_timeout: Duration,
    /// Passed on to librdkafka; no key in it touches the promise.
    pub client: BTreeMap<String, ClientValue>,
}

/// From input topics through a model to a reply topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The system that records come from; its table is there.
    pub source: System,
    /// The system that replies go to; its table is there.
    pub sink: System,
    /// Topics to read, or filters of subjects; at least one, and no topic or subject is in two routes.
    pub input: Vec<String>,
    /// Which of [`Config::models`] scores.
    pub model_index: usize,
    /// Where replies go when the request names no topic.
    pub reply_topic: String,
    /// Further topics that requests may name. None of them matches an input of this route.
    pub reply_topics_allowed: Vec<TopicPattern>,
    /// What a request's time-out counts from.
    pub deadline_from: DeadlineFrom,
    /// How much a reply tells about its scoring.
    pub reply_metadata: ReplyMetadata,
    /// Where failed records go besides their error reply.
    pub dead_letter: Option<DeadLetter>,
    /// Larger records get an error reply.
    pub record_bytes_max: NonZeroUsize,
    /// Whether tombstones are skipped and counted instead of answered with an error.
    pub compacted: bool,
    /// How often a request is tried again after a transient error of its model.
    pub retries: u8,
}

impl Route {
    /// Whether a request may have its reply sent to `topic`.
    #[must_use]
    pub fn allows_reply_topic(&self, topic: &str) -> bool {
        topic == self.reply_topic || self.reply_topics_allowed.iter().any(|pattern| pattern.matches(topic))
    }
}

/// Where records that cannot be read or scored go, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    template: String,
}

impl DeadLetter {
    /// What stands for the record's own topic.
    pub const INPUT: &'static str = "<input>";

    /// The topic for records of `input`.
    #[must_use]
    pub fn topic(&self, input: &str) -> String {
        self.template.replace(Self::INPUT, input)
    }
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.template)
    }
}

/// A model file and how its batches are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name in routes, requests and metrics.
    pub name: String,
    /// The model file; a relative path of the file has been taken from the config file's folder.
    pub path: PathBuf,
    /// How the file becomes a model.
    pub load: LoadOptions,
    /// The digest that the file must have.
    pub sha256: Option<[u8; 32]>,
    /// When the file is read again.
    pub reload: Reload,
    /// What is tried beside it.
    pub candidate: Option<CandidateSpec>,
    /// How its requests are batched.
    pub batch: Batch,
}

/// How requests wait for each other, and in which order they leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What the model's batcher goes by.
    pub policy: BatchPolicy,
    /// The policy of the levels that the file gives none of their own.
    pub level_default: LevelPolicy,
    /// The priority of requests that name none; one of the levels.
    pub priority_default: Priority,
}

/// Score threads and how much work may be inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Score threads; `None` is one for each core that the container grants.
    pub num_threads: Option<NonZeroU32>,
    /// Which cores they are pinned to.
    pub pin: Pin,
    /// Which pages large batch buffers lie in.
    pub huge_pages: HugePages,
    /// Most records in the worker; past it the source pauses.
    pub in_flight_max: NonZeroU32,
    /// Where the records that native models score are named.
    pub journal: Journal,
}

/// Where the records that native models score are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Journal {
    /// In a file named by group and instance, in the system's folder for temporary files.
    Auto,
    /// Nowhere.
    Off,
    /// In this file; a relative path of the config has been taken from its own folder.
    At(PathBuf),
}

/// Results that are kept, for requests with the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// When a request is looked up.
    pub mode: CacheMode,
    /// Most bytes that results may take.
    pub bytes_max: NonZeroUsize,
    /// How long a result is good for.
    pub ttl: Duration,
    /// Whether preprocessed rows are kept.
    pub features: Switch,
    /// Most bytes that those may take.
    pub features_bytes_max: NonZeroUsize,
}

/// The admin port.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What a call that changes something must bring; `None` for no such calls.
    pub token: Option<ClientValue>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe level that is printed.
    pub level: LogLevel,
}

/// Values of the command line; they go before the file's, and are checked like them.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--instance`: then the file's `instance` is not even substituted.
    pub instance: Option<String>,
}

impl Config {
    /// The name that workers with the same routes share.
    #[must_use]
    pub fn group(&self) -> &str {
        match (self.routes.first().map(|route| route.source), &self.kafka, &self.nats) {
            (Some(System::Kafka) | None, Some(kafka), _) => &kafka.group,
            (_, _, Some(nats)) => &nats.flow.group,
            _ => "",
        }
    }

    /// How long a drain may take, on SIGTERM and when partitions go.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        let kafka = self.kafka.as_ref().map(|kafka| kafka.drain_timeout);
        let nats = self.nats.as_ref().map(|nats| nats.flow.drain_timeout);
        match self.routes.first().map(|route| route.source) {
            Some(System::Nats) => nats.or(kafka),
            _ => kafka.or(nats),
        }
        .unwrap_or_default()
    }

    /// Lines from the source to the sink in this process.
    #[must_use]
    pub fn shards(&self) -> NonZeroU32 {
        let is_kafka = self.routes.first().is_some_and(|route| route.source == System::Kafka);
        self.kafka.as_ref().filter(|_| is_kafka).map_or(NonZeroU32::MIN, |kafka| kafka.shards)
    }

    /// Reads and validates a file, with the environment of this process.
    ///
    /// # Errors
    /// The file cannot be read, or has problems: all of them are in the error.
    pub fn from_file(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { file: file.clone(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        // Absolute, so that what `dump` prints means the same from every folder.
        let base_dir = std::path::absolute(folder.join(".")).unwrap_or_else(|_| folder.to_path_buf());
        load(&Input { text: &text, base_dir: &base_dir, env: &ProcessEnvironment, overrides })
            .map_err(|problems| ConfigError::Invalid { file, problems })
    }

    /// Validates the text of a config. `file_name` is for messages; relative paths are taken from `base_dir`.
    ///
    /// # Errors
    /// The text has problems: all of them are in the error.
    pub fn from_toml(text: &str, file_name: &str, base_dir: &Path, env: &dyn Environment) -> Result<Self, ConfigError> {
        load(&Input { text, base_dir, env, overrides: &Overrides::default() })
            .map_err(|problems| ConfigError::Invalid { file: file_name.to_owned(), problems })
    }

    /// The model that scores a route of this config.
    #[must_use]
    pub fn model_of(&self, route: &Route) -> &Model {
        &self.models[route.model_index]
    }
}

/// What a config is made from.
struct Input<'a> {
    text: &'a str,
    base_dir: &'a Path,
    env: &'a dyn Environment,
    overrides: &'a Overrides,
}

fn load(input: &Input<'_>) -> Result<Config, Vec<Problem>> {
    let shaped = shape::shape(input)?;
    let (config, found) = check::check(shaped.raw, &shaped.places, input.base_dir);
    let mut problems = shaped.problems;
    // What stands in for a refused value is nobody's fault.
    let news: Vec<Problem> = found.into_iter().filter(|new| problems.iter().all(|told| told.key != new.key)).collect();
    problems.extend(news);
    if problems.is_empty() {
        return Ok(config);
    }
    // A stable sort: what was found first on a line stays first; what is in no line (overrides, defaults) comes last.
    problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    Err(problems)
}

#[cfg(test)]
mod tests;
