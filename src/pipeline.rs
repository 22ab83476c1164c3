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

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use self::hands::{PartitionKeys, ShardGroup, ShardReturns};
use crate::admin::{self, Health};
use crate::cache::CachePolicy;
use crate::client::{BrokerWatch, ClientSettings, GroupMember, check_settings};
use crate::clock::{self, Stop};
use crate::config::{self, Config};
use crate::decode::{Decoded, Received, RouteDecoder};
use crate::engine::{EngineError, InferenceEngine, InferenceEngineConfig, RegistryError};
use crate::metrics::Metrics;
use crate::model::ModelError;
use crate::placement::settle_shard;
use crate::record::{Chunk, Message, ModelId};
use crate::reload::{self, ConfigSource, Reloader};
use crate::score::{JournalFile, SubmitterId};
use crate::sink::inbox::{Event, Inbox};
use crate::sink::kafka::{KafkaSink, SinkError};
use crate::sink::ledger::{Ledger, ReplyRoute};
use crate::source::kafka::{KafkaSource, SourceError};

/// Most records that one poll hands on.
const CHUNK_RECORDS_MAX: usize = 512;
/// How long a poll waits for the first record.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// How long a poll waits while the source is paused: then it looks again whether there is room.
const PAUSED_WAIT: Duration = Duration::from_millis(2);
/// What librdkafka may take to close, past the drain's own bound.
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

/// A running worker.
pub struct Worker {
    engine: Arc<InferenceEngine>,
    reloader: Arc<Reloader>,
    health: Arc<Health>,
    stop: Arc<Stop>,
    admin: SocketAddr,
    shards: Vec<JoinHandle<Option<Ended>>>,
    failure: Arc<Failure>,
}

impl Worker {
    /// Loads the models, opens the admin port and joins the group. The worker runs until `stop` is requested. `source` is
    /// where the config is read again when a reload is asked for.
    ///
    /// # Errors
    /// [`WorkerError`] for what is wrong before the first record. A broker that is away is no error: it is waited for.
    pub fn start(config: &Config, source: Option<ConfigSource>, stop: Arc<Stop>) -> Result<Self, WorkerError> {
        check_settings(config).map_err(WorkerError::Client)?;
        if config.nats.is_some() {
            let reason =
                "nats: this version serves Kafka only, and NATS would get no replies; take the [nats] table out";
            return Err(WorkerError::Client(reason.to_owned()));
        }
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
        tracing::info!(instance = config.instance, group = config.kafka.group, %admin, "started");
        let failure = Arc::new(Failure::default());
        let mut shards = Vec::new();
        for number in 0..config.kafka.shards.get() {
            let shard = Shard::new(config, number, &models, &engine, &health, &stop, &failure);
            health.not_ready(&shard.part("producer"), "starting");
            health.not_ready(&shard.part("group"), "no partitions were assigned yet");
            let thread = Builder::new().name(format!("forebay-source-{number}"));
            shards.push(thread.spawn(move || shard.run())?);
        }
        Ok(Self { engine, reloader, health, stop, admin, shards, failure })
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
            if self.shards.iter().all(JoinHandle::is_finished) {
                break self.shards.into_iter().map(|shard| self.failure.join(shard)).reduce(Ended::both).flatten();
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
        config::Journal::Auto => Some(JournalFile::auto(&config.kafka.group, &config.instance, largest)),
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

/// One consumer-to-producer line.
struct Shard {
    number: u32,
    settings: ClientSettings,
    config: Config,
    decoders: Vec<(Vec<String>, RouteDecoder)>,
    engine: Arc<InferenceEngine>,
    health: Arc<Health>,
    watch: Arc<BrokerWatch>,
    stop: Arc<Stop>,
    failure: Arc<Failure>,
}

impl Shard {
    fn new(
        config: &Config,
        number: u32,
        models: &[ModelId],
        engine: &Arc<InferenceEngine>,
        health: &Arc<Health>,
        stop: &Arc<Stop>,
        failure: &Arc<Failure>,
    ) -> Self {
        let decoders = config.routes.iter().zip(0..).map(|(route, index)| {
            let decoder = RouteDecoder {
                route: index,
                model: Some(models[route.model_index]),
                reply_topics_allowed: route.reply_topics_allowed.clone(),
                reply_topic: route.reply_topic.clone(),
                deadline_from: route.deadline_from,
                record_bytes_max: route.record_bytes_max.get(),
                compacted: route.compacted,
                keep_original: route.dead_letter.is_some(),
                retries: route.retries,
            };
            (route.input.clone(), decoder)
        });
        Self {
            number,
            settings: ClientSettings::new(config, number),
            config: config.clone(),
            decoders: decoders.collect(),
            engine: Arc::clone(engine),
            health: Arc::clone(health),
            watch: Arc::new(BrokerWatch::new(&config.kafka.brokers, Arc::clone(engine.metrics()))),
            stop: Arc::clone(stop),
            failure: Arc::clone(failure),
        }
    }

    /// A part's name at `/readyz`.
    fn part(&self, name: &str) -> String {
        if self.config.kafka.shards.get() == 1 { name.to_owned() } else { format!("{name}-{}", self.number) }
    }

    /// The source thread. `None` when the worker failed; why is in [`Failure`].
    fn run(self) -> Option<Ended> {
        // First of all: librdkafka's threads, and the shard's own, stay where the thread is that starts them.
        settle_shard(self.engine.plan(), self.number);
        let ended = self.serve();
        let ended = ended.map_err(|error| self.failure.set(error));
        ended.ok().flatten()
    }

    /// Starts the transaction thread, feeds it, and ends after it.
    fn serve(&self) -> Result<Option<Ended>, WorkerError> {
        let shards = self.config.kafka.shards.get() as usize;
        let in_flight_max = (self.config.engine.in_flight_max.get() as usize).div_ceil(shards);
        let (inbox, events) = Inbox::new(in_flight_max + CHUNK_RECORDS_MAX);
        let keys = Arc::new(PartitionKeys::default());
        let returns = ShardReturns { inbox: Arc::clone(&inbox), keys: Arc::clone(&keys) };
        let submitter = self.engine.register(Arc::new(returns));
        let listener = Arc::new(ShardGroup {
            inbox: Arc::clone(&inbox),
            engine: Arc::clone(&self.engine),
            group: self.config.kafka.group.clone(),
            keys,
            health: Arc::clone(&self.health),
            part: self.part("group"),
            revoke_bound: self.config.kafka.drain_timeout,
        });
        let topics: Vec<&str> = self.decoders.iter().flat_map(|(topics, _)| topics).map(String::as_str).collect();
        let (watch, metrics) = (Arc::clone(&self.watch), Arc::clone(self.engine.metrics()));
        let mut source = KafkaSource::join(&self.settings, &topics, listener, watch, metrics, Arc::clone(&self.stop))?;
        let (sink, ledger) = (self.sink(source.consumer()), self.ledger(&inbox, events));
        let sink = Builder::new().name(format!("forebay-txn-{}", self.number)).spawn(move || sink.run(ledger))?;

        let intake = Intake { shard: self, inbox: &inbox, submitter, in_flight_max };
        if let Err(error) = intake.run(&mut source, || sink.is_finished()) {
            // Nothing more can come: what is finished is committed if the group still lets it, and that is all.
            self.fail(error);
        }
        self.health.not_ready(&self.part("group"), "draining");
        inbox.send(Event::Drain);
        while !sink.is_finished() {
            // The transaction thread needs the group's word for its last commit: the consumer must be polled.
            source.set_paused(true);
            let _ = source.recv(CHUNK_RECORDS_MAX, PAUSED_WAIT, |_| {});
        }
        let ended = match sink.join() {
            Ok(Ok(0)) => Some(Ended::Drained),
            Ok(Ok(unanswered)) => Some(Ended::CutShort { unanswered }),
            Ok(Err(error)) => {
                self.fail(error);
                None
            }
            Err(_) => {
                self.fail(SinkError::Fatal("the transaction thread panicked".to_owned()));
                None
            }
        };
        drop(source);
        Ok(ended)
    }

    /// The worker ends with this error: at once, whatever may still hang on the way out.
    fn fail(&self, error: impl Into<WorkerError>) {
        self.failure.set(error);
        self.stop.request(Duration::ZERO);
    }

    fn sink(&self, group: Arc<dyn GroupMember>) -> KafkaSink {
        KafkaSink {
            settings: self.settings.clone(),
            limits: self.config.kafka.clone(),
            group,
            watch: Arc::clone(&self.watch),
            health: Arc::clone(&self.health),
            part: self.part("producer"),
            stop: Arc::clone(&self.stop),
        }
    }

    fn ledger(&self, inbox: &Arc<Inbox>, events: Receiver<Event>) -> Ledger {
        let routes = self.config.routes.iter().map(|route| ReplyRoute {
            topic: route.reply_topic.clone(),
            metadata: route.reply_metadata,
            inputs: route.input.clone(),
            dead_letter: route.dead_letter.clone(),
        });
        let metrics = Arc::clone(self.engine.metrics());
        Ledger::new(routes.collect(), self.config.kafka.ordering, Arc::clone(inbox), events, metrics)
    }

    fn decode(&self, message: &Message<'_>, received: Received, chunk: &mut Chunk) {
        let route = self.decoders.iter().find(|(topics, _)| topics.iter().any(|topic| topic == message.topic));
        let Some((_, decoder)) = route else { return };
        match decoder.decode(message, received, &self.engine.catalog(), chunk) {
            Decoded::Request => {}
            Decoded::Skipped => self.engine.metrics().records_skipped.inc(),
        }
    }
}

/// The source thread's loop: consume, decode, submit; pause when there is no room.
struct Intake<'a> {
    shard: &'a Shard,
    inbox: &'a Arc<Inbox>,
    submitter: SubmitterId,
    in_flight_max: usize,
}

impl Intake<'_> {
    /// Until the worker is asked to stop, or the transaction thread has ended.
    fn run(&self, source: &mut KafkaSource, sink_ended: impl Fn() -> bool) -> Result<(), SourceError> {
        // What found its level of the queue full waits here, and the source is paused until it is taken.
        let mut parked: VecDeque<(Arc<Chunk>, usize)> = VecDeque::new();
        let mut full = false;
        let mut scratch = Chunk::default();
        let mut probed = clock::now();
        while !sink_ended() {
            self.submit(&mut parked)?;
            let stopping = self.shard.stop.requested();
            if stopping && (self.inbox.in_flight() == 0 || self.shard.stop.overdue()) {
                return Ok(());
            }
            // High mark: the limit; low mark: half of it. A pause throws fetched records away, so it must be rare.
            let in_flight = self.inbox.in_flight();
            full = in_flight >= self.in_flight_max || (full && in_flight > self.in_flight_max / 2);
            let paused = stopping || full || !parked.is_empty();
            source.set_paused(paused);
            let wait = if paused { PAUSED_WAIT } else { POLL_WAIT };
            if let Some(chunk) = self.receive(source, &mut scratch, wait, stopping)? {
                self.inbox.received(&chunk);
                parked.push_back((chunk, 0));
                self.submit(&mut parked)?;
            }
            let now = clock::now();
            if self.shard.watch.is_away() && now - probed > Duration::from_secs(1) {
                source.probe();
                probed = now;
            }
        }
        Ok(())
    }

    /// One poll, decoded. Past the stop nothing is taken on: it was not committed, so it is read again by who comes next.
    fn receive(
        &self,
        source: &mut KafkaSource,
        scratch: &mut Chunk,
        wait: Duration,
        stopping: bool,
    ) -> Result<Option<Arc<Chunk>>, SourceError> {
        let mut arrival = None;
        let count = source.recv(CHUNK_RECORDS_MAX, wait, |message| {
            if !stopping {
                let now = || Received { arrived: clock::now(), unix_ms: clock::unix_ms() };
                self.shard.decode(message, *arrival.get_or_insert_with(now), scratch);
            }
        })?;
        self.shard.engine.metrics().records_received.inc_by(count as u64);
        Ok((!scratch.requests().is_empty()).then(|| Arc::new(scratch.take())))
    }

    /// Submits what is parked, in order, as far as the queues take it.
    fn submit(&self, parked: &mut VecDeque<(Arc<Chunk>, usize)>) -> Result<(), SourceError> {
        while let Some((chunk, from)) = parked.front_mut() {
            let submitted = self.shard.engine.submit(self.submitter, chunk, *from);
            *from = submitted.map_err(|closed| SourceError::Fatal(closed.to_string()))?;
            if *from < chunk.requests().len() {
                break;
            }
            parked.pop_front();
        }
        Ok(())
    }
}
