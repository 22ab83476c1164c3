//! Read me first: the whole line of a worker, front to back.
//!
//! ```text
//! source ── Message ──► decode ── Chunk ──► engine ── ScoredBatch ──► encode ── Reply ──► sink: one transaction of
//!                                              │                                          replies and positions
//!                            source thread ◄───┴───► score threads ──► transaction thread
//! ```
//! [`Worker::start`] loads the models and starts the threads; [`Worker::wait`] returns when they have ended. A shard is
//! a source thread (consume, decode, submit) and a transaction thread (encode, produce, commit), joined by one queue.
//! Backpressure is a full queue or a full worker: the source is paused, and polled all the same, so that the group
//! knows it is alive.

mod hands;
mod line;
mod shard;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use self::shard::Shard;
use crate::admin::{self, Health};
use crate::cache::CachePolicy;
use crate::client::check_settings;
use crate::clock::{self, Stop};
use crate::config::{self, Config};
use crate::engine::{EngineError, InferenceEngine, InferenceEngineConfig, RegistryError};
use crate::metrics::Metrics;
use crate::model::ModelError;
use crate::reload::{self, ConfigSource, Reloader};
use crate::score::JournalFile;
use crate::service::{Service, ServiceError};
use crate::sink::SinkError;
use crate::source::SourceError;

/// What a client may take to close, past the drain's own bound.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// How a worker ended when it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything received was answered and committed.
    Drained,
    /// The bound ran out first. What was not committed is another worker's to score.
    CutShort {
        /// Records received and not committed.
        unanswered: usize,
    },
}

impl Ended {
    /// How two shards ended together; `None` for one that failed.
    fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let unanswered = |ended| match ended {
            Self::Drained => 0,
            Self::CutShort { unanswered } => unanswered,
        };
        match unanswered(one?) + unanswered(other?) {
            0 => Some(Self::Drained),
            unanswered => Some(Self::CutShort { unanswered }),
        }
    }
}

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The engine's threads.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A model that must not be scored.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A candidate that must not be tried.
    #[error(transparent)]
    Candidate(#[from] RegistryError),
    /// The admin port.
    #[error("admin.listen: cannot listen on {0}: {1}")]
    Admin(SocketAddr, std::io::Error),
    /// Settings that librdkafka does not take.
    #[error("{0}")]
    Client(String),
    /// A thread that the system refused.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// Another worker runs under the same name.
    #[error("fenced: {0}")]
    Fenced(String),
    /// Nothing that waiting would mend.
    #[error("{0}")]
    Failed(String),
}

impl From<SourceError> for WorkerError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Fenced => Self::Fenced(error.to_string()),
            SourceError::Fatal(reason) => Self::Failed(reason),
        }
    }
}

impl From<SinkError> for WorkerError {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Fenced(_) => Self::Fenced(error.to_string()),
            SinkError::Fatal(reason) => Self::Failed(reason),
        }
    }
}

impl From<ServiceError> for WorkerError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Nats(error) => Self::Client(error.to_string()),
            ServiceError::Thread(error) => Self::Thread(error),
            ServiceError::Model(_) | ServiceError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

/// A running worker.
pub struct Worker {
    engine: Arc<InferenceEngine>,
    reloader: Arc<Reloader>,
    health: Arc<Health>,
    stop: Arc<Stop>,
    admin: SocketAddr,
    shards: Vec<JoinHandle<Option<Ended>>>,
    service: Option<Service>,
    failure: Arc<Failure>,
}

impl Worker {
    /// Loads the models, opens the admin port, joins the group and answers requests. The worker runs until `stop` is requested. `source` is
    /// where the config is read again when a reload is asked for.
    ///
    /// # Errors
    /// [`WorkerError`] for what is wrong before the first record. A broker that is away is no error: it is waited for.
    pub fn start(config: &Config, source: Option<ConfigSource>, stop: Arc<Stop>) -> Result<Self, WorkerError> {
        check_settings(config).map_err(WorkerError::Client)?;
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::default());
        let engine = Arc::new(InferenceEngine::with_metrics(engine_config(config), Arc::clone(&metrics))?);
        let mut models = Vec::new();
        for model in &config.models {
            let id = engine.load_spec(&reload::spec(model))?;
            if let Some(loaded) = engine.model(id) {
                let (kind, sha256) = (loaded.schema().model_type, loaded.sha256());
                let (compiled, features) = (loaded.is_compiled(), loaded.schema().width());
                tracing::info!(model = model.name, %kind, compiled, sha256, features, "loaded");
            }
            models.push(id);
        }
        for model in config.models.iter().filter(|model| model.candidate.is_some()) {
            engine.apply(&reload::spec(model), model.candidate.as_ref())?;
        }
        let reloader = Arc::new(Reloader::new(config, source, Arc::clone(&engine)));
        reloader.watch(&stop)?;
        let token = config.admin.token.clone();
        let control = token.map(|token| admin::Control { token, reloader: Arc::clone(&reloader) });
        let admin = admin::serve(config.admin.listen, Arc::clone(&health), Arc::clone(&engine), control);
        let admin = admin.map_err(|error| WorkerError::Admin(config.admin.listen, error))?;
        engine.plan().log();
        tracing::info!(instance = config.instance, group = config.group(), %admin, "started");
        let failure = Arc::new(Failure::default());
        let mut shards = Vec::new();
        let lines = if config.routes.is_empty() { 0 } else { config.shards().get() };
        for number in 0..lines {
            let shard = Shard::new(config, number, &models, &engine, &health, &stop, &failure);
            health.not_ready(&shard.part("producer"), "starting");
            health.not_ready(&shard.part("group"), "no partitions were assigned yet");
            let thread = Builder::new().name(format!("forebay-source-{number}"));
            shards.push(thread.spawn(move || shard.run())?);
        }
        let service = config.nats.as_ref().and_then(|nats| Some((&nats.connection, nats.service.as_ref()?)));
        let service = service.map(|(nats, service)| Service::start(nats, service, &engine, &health, &stop));
        Ok(Self { engine, reloader, health, stop, admin, shards, service: service.transpose()?, failure })
    }

    /// The engine that scores.
    #[must_use]
    pub fn engine(&self) -> &Arc<InferenceEngine> {
        &self.engine
    }

    /// What reads models and config again.
    #[must_use]
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// What is not ready, a line each; empty when the worker does its work.
    #[must_use]
    pub fn not_ready(&self) -> String {
        self.health.reasons()
    }

    /// Where the admin port listens.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`WorkerError`] when it ended by itself.
    pub fn wait(self) -> Result<Ended, WorkerError> {
        let mut overdue_since = None;
        let ended = loop {
            let service_ended = self.service.as_ref().is_none_or(Service::is_finished);
            if service_ended && self.shards.iter().all(JoinHandle::is_finished) {
                let shards = self.shards.into_iter().map(|shard| self.failure.join(shard));
                let service = self.service.map(|service| self.failure.of_service(service.join()));
                break shards.chain(service).reduce(Ended::both).flatten();
            }
            if self.service.is_some() && service_ended {
                // By itself or not: the rest ends with it.
                self.stop.request(Duration::ZERO);
            }
            if self.stop.overdue() {
                let since = *overdue_since.get_or_insert_with(clock::now);
                if clock::now() - since > CLOSE_BOUND {
                    // librdkafka hangs in a call; the process ends without it.
                    break None;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.engine.close_journal();
        if let Some(error) = self.failure.take() {
            self.health.died();
            return Err(error);
        }
        if ended == Some(Ended::Drained) {
            self.engine.shutdown();
        }
        let in_flight = self.engine.metrics().records_in_flight.get();
        Ok(ended.unwrap_or(Ended::CutShort { unanswered: usize::try_from(in_flight).unwrap_or(0) }))
    }
}

/// Why the worker ends by itself: the first reason counts, and is there before the threads have ended.
#[derive(Default)]
struct Failure(Mutex<Option<WorkerError>>);

impl Failure {
    fn set(&self, error: impl Into<WorkerError>) {
        self.0.lock().get_or_insert(error.into());
    }

    fn take(&self) -> Option<WorkerError> {
        self.0.lock().take()
    }

    /// How the NATS service ended, by how many requests it left unanswered.
    fn of_service(&self, ended: Result<usize, ServiceError>) -> Option<Ended> {
        let ended = ended.map_err(|error| self.set(error)).ok()?;
        Some(if ended == 0 { Ended::Drained } else { Ended::CutShort { unanswered: ended } })
    }

    fn join(&self, shard: JoinHandle<Option<Ended>>) -> Option<Ended> {
        shard.join().unwrap_or_else(|_| {
            self.set(WorkerError::Failed("the source thread panicked".to_owned()));
            None
        })
    }
}

fn engine_config(config: &Config) -> InferenceEngineConfig {
    let largest = config.models.iter().map(|model| model.batch.policy.batch_size_max.get()).max().unwrap_or(1);
    let journal = match &config.engine.journal {
        config::Journal::Off => None,
        config::Journal::Auto => Some(JournalFile::auto(config.group(), &config.instance, largest)),
        config::Journal::At(path) => Some(JournalFile { path: path.clone(), batch_size_max: largest }),
    };
    let config::Cache { mode, bytes_max, ttl, features, features_bytes_max } = config.cache;
    InferenceEngineConfig {
        enable_request_deduplication: mode != config::CacheMode::Off,
        cache: CachePolicy { auto: mode == config::CacheMode::Auto, bytes_max, ttl },
        feature_cache_bytes: (features == config::Switch::On).then_some(features_bytes_max),
        journal,
        num_threads: config.engine.num_threads.map_or(0, |threads| threads.get() as usize),
        pin: config.engine.pin.clone(),
        huge_pages: config.engine.huge_pages == config::HugePages::Transparent,
        ..InferenceEngineConfig::default()
    }
}
