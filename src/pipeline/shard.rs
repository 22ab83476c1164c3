//! One line from the source to the sink: a source thread that consumes, decodes and submits, and the sink's thread, joined
//! by one queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::hands::{PartitionKeys, ShardGroup, ShardReturns};
use super::line::{self, Line};
use super::{Ended, Failure, WorkerError};
use crate::admin::Health;
use crate::clock::{self, Stop};
use crate::config::{Config, Route, SubjectFilter, System};
use crate::decode::{Decoded, Received, RouteDecoder};
use crate::engine::InferenceEngine;
use crate::placement::settle_shard;
use crate::record::{Chunk, Message, ModelId};
use crate::score::SubmitterId;
use crate::sink::SinkError;
use crate::sink::inbox::{Event, Inbox};
use crate::sink::ledger::{Ledger, ReplyRoute};
use crate::source::{Source, SourceError};

/// Most records that one poll hands on.
const CHUNK_RECORDS_MAX: usize = 512;
/// How long a client of NATS may take to say its last words.
const CLIENT_CLOSE_BOUND: Duration = Duration::from_millis(500);
/// How long a poll waits for the first record.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// How long a poll waits while the source is paused: then it looks again whether there is room.
const PAUSED_WAIT: Duration = Duration::from_millis(2);

/// One consumer-to-producer line.
pub(super) struct Shard {
    pub(super) number: u32,
    pub(super) config: Config,
    decoders: Vec<(RouteInputs, RouteDecoder)>,
    pub(super) engine: Arc<InferenceEngine>,
    pub(super) health: Arc<Health>,
    pub(super) stop: Arc<Stop>,
    failure: Arc<Failure>,
}

/// What a route reads.
enum RouteInputs {
    Topics(Vec<String>),
    Subjects(Vec<SubjectFilter>),
}

impl RouteInputs {
    fn new(route: &Route) -> Self {
        match route.source {
            System::Kafka => Self::Topics(route.input.clone()),
            System::Nats => {
                Self::Subjects(route.input.iter().filter_map(|filter| SubjectFilter::new(filter)).collect())
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Topics(topics) => topics.iter().any(|topic| topic == name),
            Self::Subjects(filters) => filters.iter().any(|filter| filter.matches(name)),
        }
    }
}

impl Shard {
    pub(super) fn new(
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
                any_model: true,
            };
            (RouteInputs::new(route), decoder)
        });
        Self {
            number,
            config: config.clone(),
            decoders: decoders.collect(),
            engine: Arc::clone(engine),
            health: Arc::clone(health),
            stop: Arc::clone(stop),
            failure: Arc::clone(failure),
        }
    }

    /// A part's name at `/readyz`.
    pub(super) fn part(&self, name: &str) -> String {
        if self.config.shards().get() == 1 { name.to_owned() } else { format!("{name}-{}", self.number) }
    }

    /// The source thread. `None` when the worker failed; why is in [`Failure`].
    pub(super) fn run(self) -> Option<Ended> {
        // First of all: the clients' threads, and the shard's own, stay where the thread is that starts them.
        settle_shard(self.engine.plan(), self.number);
        let ended = self.serve();
        let ended = ended.map_err(|error| self.failure.set(error));
        ended.ok().flatten()
    }

    /// Starts the transaction thread, feeds it, and ends after it.
    fn serve(&self) -> Result<Option<Ended>, WorkerError> {
        let shards = self.config.shards().get() as usize;
        let in_flight_max = (self.config.engine.in_flight_max.get() as usize).div_ceil(shards);
        let (inbox, events) = Inbox::new(in_flight_max + CHUNK_RECORDS_MAX);
        let keys = Arc::new(PartitionKeys::default());
        let returns = ShardReturns { inbox: Arc::clone(&inbox), keys: Arc::clone(&keys) };
        let submitter = self.engine.register(Arc::new(returns));
        let listener = Arc::new(ShardGroup {
            inbox: Arc::clone(&inbox),
            engine: Arc::clone(&self.engine),
            group: self.config.group().to_owned(),
            keys,
            health: Arc::clone(&self.health),
            part: self.part("group"),
            revoke_bound: self.config.drain_timeout(),
        });
        let Line { mut source, sink, runtime } = line::open(self, listener, &inbox, in_flight_max)?;
        let ledger = self.ledger(&inbox, events);
        let sink = Builder::new().name(format!("forebay-txn-{}", self.number)).spawn(move || sink.run(ledger))?;

        let intake = Intake { shard: self, inbox: &inbox, submitter, in_flight_max };
        if let Err(error) = intake.run(&mut *source, || sink.is_finished()) {
            // Nothing more can come: what is finished is committed if the group still lets it, and that is all.
            self.fail(error);
        }
        self.health.not_ready(&self.part("group"), "draining");
        inbox.send(Event::Drain);
        while !sink.is_finished() {
            // The transaction thread needs the group's word for its last commit: the consumer must be polled.
            source.set_paused(true);
            let _ = source.recv(CHUNK_RECORDS_MAX, PAUSED_WAIT, &mut |_| {});
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
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(CLIENT_CLOSE_BOUND);
        }
        Ok(ended)
    }

    /// The worker ends with this error: at once, whatever may still hang on the way out.
    fn fail(&self, error: impl Into<WorkerError>) {
        self.failure.set(error);
        self.stop.request(Duration::ZERO);
    }

    fn ledger(&self, inbox: &Arc<Inbox>, events: Receiver<Event>) -> Ledger {
        let routes = self.config.routes.iter().map(|route| ReplyRoute {
            topic: route.reply_topic.clone(),
            metadata: route.reply_metadata,
            inputs: route.input.clone(),
            dead_letter: route.dead_letter.clone(),
        });
        let metrics = Arc::clone(self.engine.metrics());
        Ledger::new(routes.collect(), line::ordering(&self.config), Arc::clone(inbox), events, metrics)
    }

    fn decode(&self, message: &Message<'_>, received: Received, chunk: &mut Chunk) {
        let route = self.decoders.iter().find(|(inputs, _)| inputs.has(message.topic));
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
    fn run(&self, source: &mut dyn Source, sink_ended: impl Fn() -> bool) -> Result<(), SourceError> {
        // What found its level of the queue full waits here, and the source is paused until it is taken.
        let mut parked: VecDeque<(Arc<Chunk>, usize)> = VecDeque::new();
        let mut full = false;
        let mut scratch = Chunk::default();
        let mut looked = clock::now();
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
            if now - looked > Duration::from_secs(1) {
                source.look();
                looked = now;
            }
        }
        Ok(())
    }

    /// One poll, decoded. Past the stop nothing is taken on: it was not committed, so it is read again by who comes next.
    fn receive(
        &self,
        source: &mut dyn Source,
        scratch: &mut Chunk,
        wait: Duration,
        stopping: bool,
    ) -> Result<Option<Arc<Chunk>>, SourceError> {
        let mut arrival = None;
        let count = source.recv(CHUNK_RECORDS_MAX, wait, &mut |message| {
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
