//! Records of a consumer group in, one [`Message`] at a time; assignments and revocations out to a [`GroupListener`].
//!
//! Invariants: a listener hears of a partition before the first of its records is received, and a revocation returns
//! only when the listener has let the partition go; each assignment has its own [`PartitionId`]; what is committed of a
//! partition is known before its first record is received, and a record that is committed is not received again.

pub(crate) mod checkpoint;
mod context;
mod headers;
mod idle;
mod start;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, Timestamp, TopicPartitionList};

use self::checkpoint::CheckpointStarts;
pub use self::context::GroupContext;
use self::context::names;
use self::headers::headers_of;
use self::start::{Answer, Asked, Starter};
use super::{GroupListener, Source, SourceError};
use crate::client::{BrokerWatch, ClientSettings};
use crate::clock::{self, Stop};
use crate::metrics::Metrics;
use crate::record::{Message, PartitionId, Position};

/// How long a seek to the start of a partition may take before it is tried again.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// Assignments whose start is asked for, and answers that were not looked at: far more than a group makes in a second.
const ASSIGNMENTS_MAX: usize = 65_536;
/// How long a broker that was away may take to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a poll waits while partitions are about to start.
const STARTING_WAIT: Duration = Duration::from_millis(5);

/// A member of a consumer group.
pub struct KafkaSource {
    consumer: Arc<GroupConsumer>,
    answers: Receiver<Answer>,
    starter: Option<JoinHandle<()>>,
    /// Partitions that start as soon as the consumer stands where they do.
    starting: Vec<Asked>,
    paused: bool,
    resumed: Instant,
    /// Partitions whose checkpoints the sink found to be another's.
    lost: Option<Receiver<PartitionId>>,
}

/// The consumer as the sink needs it too: for the group's metadata and the committed positions.
pub type GroupConsumer = BaseConsumer<GroupContext>;

impl KafkaSource {
    /// Joins the group. Partitions are assigned while [`Source::recv`] is called.
    pub(crate) fn join(
        settings: &ClientSettings,
        topics: &[&str],
        listener: Arc<dyn GroupListener>,
        watch: Arc<BrokerWatch>,
        metrics: Arc<Metrics>,
        stop: Arc<Stop>,
        checkpoints: Option<CheckpointStarts>,
    ) -> Result<Self, SourceError> {
        let (ask, asked) = bounded(ASSIGNMENTS_MAX);
        let (answer, answers) = bounded(ASSIGNMENTS_MAX);
        let context = GroupContext::new(listener, watch, metrics, ask);
        let fatal = |error: KafkaError| SourceError::Fatal(format!("kafka.client: {error}"));
        let consumer = BaseConsumer::from_config_and_context(&settings.consumer(), context).map_err(fatal)?;
        let consumer = Arc::new(consumer);
        consumer.subscribe(topics).map_err(fatal)?;
        let starter = Starter {
            consumer: Arc::clone(&consumer),
            limits: settings.limits().clone(),
            checkpoints,
            stop,
            answers: answer,
            first_counts: HashMap::new(),
        };
        let thread = Builder::new().name(format!("forebay-start-{}", settings.shard()));
        let starter = thread.spawn(move || starter.run(&asked));
        let starter = starter.map_err(|error| SourceError::Fatal(format!("cannot start a thread: {error}")))?;
        let starter = Some(starter);
        Ok(Self { consumer, answers, starter, starting: Vec::new(), paused: false, resumed: clock::now(), lost: None })
    }

    /// The consumer, for the sink.
    #[must_use]
    pub fn consumer(&self) -> Arc<GroupConsumer> {
        Arc::clone(&self.consumer)
    }

    /// Where the sink tells of partitions whose checkpoints are another's. Those that are this member's still are started
    /// anew.
    pub(crate) fn hear_losses(&mut self, lost: Receiver<PartitionId>) {
        self.lost = Some(lost);
    }

    fn take_losses(&mut self) {
        let context = self.consumer.context();
        for id in self.lost.iter().flat_map(Receiver::try_iter) {
            let Some(place) = context.place_of(id) else { continue };
            tracing::warn!(partitions = ?names(&place), "another worker wrote the checkpoint; claiming the partition anew");
            if let Err(error) = self.consumer.pause(&place) {
                tracing::warn!(%error, "could not pause the input");
            }
            context.let_go(&place);
            context.take(&place);
        }
    }

    /// Lets partitions flow whose start is known by now.
    fn start(&mut self) -> Result<(), SourceError> {
        let context = self.consumer.context();
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Answer::Start { asked, committed, lost, fence } => {
                    if context.begin(&asked, &committed, fence) {
                        context.metrics.records_lost.inc_by(lost);
                        self.starting.push(asked);
                    }
                }
                Answer::Stop { asked, reason } => {
                    tracing::error!(topic = asked.topic, partition = asked.number, "stopped: {reason}");
                    context.stop(asked.id);
                    context.listener.stopped(asked.id, &reason);
                }
                Answer::Fail(error) => return Err(error),
            }
        }
        if self.starting.is_empty() {
            return Ok(());
        }
        self.starting.retain(|asked| context.is_wanted(asked.id));
        let mut places = TopicPartitionList::new();
        for Asked { id, topic, number } in &self.starting {
            let Some(base) = context.next_of(*id) else { continue };
            let added = places.add_partition_offset(topic, *number, Offset::Offset(base));
            added.map_err(|error| SourceError::Fatal(error.to_string()))?;
        }
        if places.count() == 0 {
            return Ok(());
        }
        let sought = match self.consumer.seek_partitions(places, SEEK_TIMEOUT) {
            Ok(sought) => sought,
            Err(error) => {
                tracing::debug!(%error, "seeking again");
                return Ok(());
            }
        };
        let mut there = TopicPartitionList::new();
        for element in sought.elements() {
            if let Err(error) = element.error() {
                // Its fetcher is not up yet; again with the next poll.
                tracing::debug!(%error, topic = element.topic(), "seeking again");
                continue;
            }
            there.add_partition(element.topic(), element.partition());
            self.starting.retain(|asked| asked.topic != element.topic() || asked.number != element.partition());
        }
        tracing::info!(partitions = ?names(&sought), "started");
        if !self.paused
            && there.count() > 0
            && let Err(error) = self.consumer.resume(&there)
        {
            return Err(SourceError::Fatal(format!("cannot start assigned partitions: {error}")));
        }
        Ok(())
    }

    /// A position lies outside of its topic, which was truncated, recreated or cleaned up meanwhile: all partitions are
    /// started anew, from what is committed.
    fn start_over(&mut self) {
        let context = self.consumer.context();
        let flowing = context.started();
        if let Err(error) = self.consumer.pause(&flowing) {
            tracing::warn!(%error, "could not pause the input");
        }
        tracing::warn!(partitions = ?names(&flowing), "a position lies outside of its topic; starting over from what is committed");
        let old = context.let_go(&flowing);
        context.listener.lost(&old);
        context.take(&flowing);
        self.starting.clear();
    }

    fn pass_on(&self, record: &BorrowedMessage<'_>, each: &mut dyn FnMut(&Message<'_>)) -> bool {
        let context = self.consumer.context();
        context.watch.back();
        let Some(partition) = context.admit(record.topic(), record.partition(), record.offset()) else { return false };
        let headers = headers_of(record);
        each(&Message {
            topic: record.topic(),
            partition_number: record.partition(),
            position: Position { partition, offset: record.offset() },
            timestamp_ms: record.timestamp().to_millis(),
            is_append_time: matches!(record.timestamp(), Timestamp::LogAppendTime(_)),
            key: record.key(),
            payload: record.payload(),
            headers: &headers,
        });
        true
    }

    fn on_error(&self, error: &KafkaError) -> Result<(), SourceError> {
        use RDKafkaErrorCode as Code;
        match (error, error.rdkafka_error_code()) {
            (_, Some(Code::FencedInstanceId)) => Err(SourceError::Fenced),
            (KafkaError::MessageConsumptionFatal(code), _) => {
                Err(SourceError::Fatal(format!("the consumer cannot go on: {code}")))
            }
            (_, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic)) => {
                tracing::warn!(%error, "an input topic does not exist (yet); waiting for it");
                Ok(())
            }
            (_, Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed)) => Err(not_authorised(error)),
            (_, Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)) => {
                self.consumer.context().out_of_range.store(true, Ordering::Relaxed);
                Ok(())
            }
            _ => {
                self.consumer.context().watch.client_error(error, "consumer");
                Ok(())
            }
        }
    }
}

impl Source for KafkaSource {
    fn recv(&mut self, most: usize, wait: Duration, each: &mut dyn FnMut(&Message<'_>)) -> Result<usize, SourceError> {
        let context = self.consumer.context();
        if context.out_of_range.swap(false, Ordering::Relaxed) {
            self.start_over();
        }
        self.take_losses();
        self.start()?;
        let context = self.consumer.context();
        let mut wait = if context.is_starting() { wait.min(STARTING_WAIT) } else { wait };
        let mut received = 0;
        while received < most {
            match self.consumer.poll(wait) {
                None => {
                    if received == 0 && !self.paused {
                        context.tell_idle(self.resumed);
                    }
                    break;
                }
                Some(Err(error)) => self.on_error(&error)?,
                Some(Ok(record)) => {
                    received += usize::from(self.pass_on(&record, each));
                }
            }
            wait = Duration::ZERO;
        }
        match context.failure.lock().take() {
            Some(failure) => Err(failure),
            None => Ok(received),
        }
    }

    fn set_paused(&mut self, paused: bool) {
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        self.resumed = clock::now();
        let context = self.consumer.context();
        context.paused.store(paused, Ordering::Relaxed);
        let flowing = context.started();
        if flowing.count() == 0 {
            return;
        }
        let done = if paused { self.consumer.pause(&flowing) } else { self.consumer.resume(&flowing) };
        if let Err(error) = done {
            tracing::warn!(%error, paused, "could not pause or resume the input");
        }
    }

    fn look(&mut self) {
        let watch = &self.consumer.context().watch;
        if watch.is_away() && self.consumer.fetch_metadata(None, PROBE_TIMEOUT).is_ok() {
            watch.back();
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        // The starter holds the consumer, whose context holds who asks it.
        self.consumer.context().ask.lock().take();
        if let Some(starter) = self.starter.take() {
            let _ = starter.join();
        }
    }
}

fn not_authorised(error: &KafkaError) -> SourceError {
    SourceError::Fatal(format!("{error}: grant this worker READ on its input topics and its group"))
}
