//! Records of a consumer group in, one [`Message`] at a time; assignments and revocations out to a [`GroupListener`].
//!
//! Invariants: a listener hears of a partition before the first of its records is received, and a revocation returns
//! only when the listener has let the partition go; each assignment has its own [`PartitionId`]; what is committed of a
//! partition is known before its first record is received, and a record that is committed is not received again.

mod headers;
mod idle;
mod start;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, Timestamp, TopicPartitionList};
use rdkafka_sys::types::RDKafkaRespErr;

use self::headers::headers_of;
use self::start::{Answer, Asked, Starter};
use crate::client::positions::{self, Committed};
use crate::client::{self, BrokerWatch, ClientSettings, GroupMember};
use crate::clock::{self, Stop};
use crate::commit::OffsetMap;
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, Message, PartitionId, Position};

/// How long a seek to the start of a partition may take before it is tried again.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a poll waits while partitions are about to start.
const STARTING_WAIT: Duration = Duration::from_millis(5);

/// Who must know which partitions are this worker's.
pub trait GroupListener: Send + Sync {
    /// The group has this worker as a member; partitions may follow.
    fn joined(&self);

    /// These partitions are now this worker's; none of their records was received yet.
    fn assigned(&self, partitions: Vec<AssignedPartition>);

    /// This partition is this worker's, but must not be read until somebody has looked.
    fn stopped(&self, id: PartitionId, reason: &str);

    /// These partitions go to another member. Returns when nothing more will be committed for them, or its bound
    /// ran out.
    fn revoked(&self, partitions: &[PartitionId]);

    /// These partitions went to another member already: nothing may be committed for them any more. Must not block.
    fn lost(&self, partitions: &[PartitionId]);

    /// Everything below this offset was received, and there is nothing above.
    fn idle(&self, id: PartitionId, position: i64);
}

/// Why the source cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Another member joined with this worker's name.
    #[error("another worker joined the group as this instance; `instance` must be unique among running workers")]
    Fenced,
    /// Nothing that waiting would mend.
    #[error("{0}")]
    Fatal(String),
}

/// A member of a consumer group.
pub struct KafkaSource {
    consumer: Arc<GroupConsumer>,
    answers: Receiver<Answer>,
    starter: Option<JoinHandle<()>>,
    /// Partitions that start as soon as the consumer stands where they do.
    starting: Vec<Asked>,
    paused: bool,
    resumed: Instant,
}

/// The consumer as the sink needs it too: for the group's metadata and the committed positions.
pub type GroupConsumer = BaseConsumer<GroupContext>;

impl KafkaSource {
    /// Joins the group. Partitions are assigned while [`KafkaSource::recv`] is called.
    pub(crate) fn join(
        settings: &ClientSettings,
        topics: &[&str],
        listener: Arc<dyn GroupListener>,
        watch: Arc<BrokerWatch>,
        metrics: Arc<Metrics>,
        stop: Arc<Stop>,
    ) -> Result<Self, SourceError> {
        let (ask, asked) = unbounded();
        let (answer, answers) = unbounded();
        let context = GroupContext {
            listener,
            watch,
            table: Mutex::default(),
            next_id: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            out_of_range: AtomicBool::new(false),
            ask: Mutex::new(Some(ask)),
            ends: Mutex::default(),
            metrics,
            failure: Mutex::default(),
        };
        let fatal = |error: KafkaError| SourceError::Fatal(format!("kafka.client: {error}"));
        let consumer = BaseConsumer::from_config_and_context(&settings.consumer(), context).map_err(fatal)?;
        let consumer = Arc::new(consumer);
        consumer.subscribe(topics).map_err(fatal)?;
        let starter = Starter {
            consumer: Arc::clone(&consumer),
            limits: settings.limits().clone(),
            stop,
            answers: answer,
            first_counts: HashMap::new(),
        };
        let thread = Builder::new().name(format!("forebay-start-{}", settings.shard()));
        let starter = thread.spawn(move || starter.run(&asked));
        let starter = starter.map_err(|error| SourceError::Fatal(format!("cannot start a thread: {error}")))?;
        let starter = Some(starter);
        Ok(Self { consumer, answers, starter, starting: Vec::new(), paused: false, resumed: clock::now() })
    }

    /// The consumer, for the sink.
    #[must_use]
    pub fn consumer(&self) -> Arc<GroupConsumer> {
        Arc::clone(&self.consumer)
    }

    /// Waits up to `wait` for a record, then passes on what else is there, `most` records at most. Returns how many.
    ///
    /// # Errors
    /// [`SourceError`] when waiting would not help.
    pub fn recv(
        &mut self,
        most: usize,
        wait: Duration,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<usize, SourceError> {
        let context = self.consumer.context();
        if context.out_of_range.swap(false, Ordering::Relaxed) {
            self.start_over();
        }
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
                    received += usize::from(self.pass_on(&record, &mut each));
                }
            }
            wait = Duration::ZERO;
        }
        match context.failure.lock().take() {
            Some(failure) => Err(failure),
            None => Ok(received),
        }
    }

    /// Stops or resumes the flow of records; assignments are served all the same.
    pub fn set_paused(&mut self, paused: bool) {
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

    /// Asks a broker whether it is there. For a source that is idle because none was.
    pub fn probe(&self) {
        if self.consumer.fetch_metadata(None, Duration::from_millis(500)).is_ok() {
            self.consumer.context().watch.back();
        }
    }

    /// Lets partitions flow whose start is known by now.
    fn start(&mut self) -> Result<(), SourceError> {
        let context = self.consumer.context();
        while let Ok(answer) = self.answers.try_recv() {
            match answer {
                Answer::Start { asked, committed, lost } => {
                    if context.begin(&asked, &committed) {
                        context.metrics.records_lost.inc_by(lost);
                        self.starting.push(asked);
                    }
                }
                Answer::Stop { asked, reason } => {
                    tracing::error!(topic = asked.topic, partition = asked.number, "stopped: {reason}");
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
            match element.error() {
                // Its fetcher is not up yet; again with the next poll.
                Err(error) => tracing::debug!(%error, topic = element.topic(), "seeking again"),
                Ok(()) => {
                    there.add_partition(element.topic(), element.partition());
                    self.starting.retain(|asked| asked.topic != element.topic() || asked.number != element.partition());
                }
            }
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

    fn pass_on(&self, record: &BorrowedMessage<'_>, each: &mut impl FnMut(&Message<'_>)) -> bool {
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

#[derive(Clone, Debug)]
struct Owned {
    topic: String,
    number: i32,
    id: PartitionId,
    flow: Flow,
}

/// Whether a partition's records are passed on.
#[derive(Clone, Debug)]
enum Flow {
    /// What is committed is not known yet.
    Asked,
    Started {
        /// The least offset that was not passed on yet.
        next: i64,
        /// What is done above the committed position, until that is behind.
        done: Option<OffsetMap>,
        since: Instant,
    },
}

/// Serves the group's callbacks, which come inside [`KafkaSource::recv`] on its thread.
pub struct GroupContext {
    listener: Arc<dyn GroupListener>,
    watch: Arc<BrokerWatch>,
    table: Mutex<Vec<Owned>>,
    next_id: AtomicU32,
    paused: AtomicBool,
    out_of_range: AtomicBool,
    ask: Mutex<Option<Sender<Vec<Asked>>>>,
    /// Where partitions were read to their end, as of librdkafka's last statistics.
    ends: Mutex<Vec<idle::End>>,
    metrics: Arc<Metrics>,
    failure: Mutex<Option<SourceError>>,
}

impl GroupContext {
    /// The partition that a record belongs to. `None` when it is not to be passed on: a fetched record may outlive its
    /// assignment by one poll, come a second time after a pause, or have its reply committed already.
    fn admit(&self, topic: &str, number: i32, offset: i64) -> Option<PartitionId> {
        let mut table = self.table.lock();
        let owned = table.iter_mut().find(|owned| owned.number == number && owned.topic == topic)?;
        let Flow::Started { next, done, .. } = &mut owned.flow else { return None };
        if offset < *next {
            return None;
        }
        *next = offset + 1;
        if let Some(map) = done {
            if map.is_done(offset) {
                self.metrics.records_done_before.inc();
                return None;
            }
            if offset >= map.end() {
                *done = None;
            }
        }
        Some(owned.id)
    }

    /// Whether this assignment still stands.
    fn is_wanted(&self, id: PartitionId) -> bool {
        self.table.lock().iter().any(|owned| owned.id == id)
    }

    fn is_starting(&self) -> bool {
        self.table.lock().iter().any(|owned| matches!(owned.flow, Flow::Asked))
    }

    fn next_of(&self, id: PartitionId) -> Option<i64> {
        self.table.lock().iter().find(|owned| owned.id == id).and_then(|owned| match owned.flow {
            Flow::Started { next, .. } => Some(next),
            Flow::Asked => None,
        })
    }

    /// The partitions whose records are passed on.
    fn started(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for owned in self.table.lock().iter().filter(|owned| matches!(owned.flow, Flow::Started { .. })) {
            list.add_partition(&owned.topic, owned.number);
        }
        list
    }

    /// What is committed of a partition is known: it belongs to the listener from here on. Not when it went meanwhile.
    fn begin(&self, asked: &Asked, committed: &OffsetMap) -> bool {
        let mut table = self.table.lock();
        let Some(owned) = table.iter_mut().find(|owned| owned.id == asked.id) else { return false };
        let done = (committed.end() > committed.base()).then(|| committed.clone());
        owned.flow = Flow::Started { next: committed.base(), done, since: clock::now() };
        drop(table);
        let Asked { id, topic, number } = asked.clone();
        self.listener.assigned(vec![AssignedPartition { id, topic, number, committed: committed.clone() }]);
        true
    }

    /// New assignments, each with an id of its own, and the question where they start.
    fn take(&self, partitions: &TopicPartitionList) {
        let elements = partitions.elements();
        let asked: Vec<Asked> = elements
            .iter()
            .map(|element| {
                let id = PartitionId(self.next_id.fetch_add(1, Ordering::Relaxed));
                Asked { id, topic: element.topic().to_owned(), number: element.partition() }
            })
            .collect();
        self.table.lock().extend(asked.iter().map(|Asked { id, topic, number }| Owned {
            topic: topic.clone(),
            number: *number,
            id: *id,
            flow: Flow::Asked,
        }));
        if let Some(ask) = &*self.ask.lock() {
            let _ = ask.send(asked);
        }
    }

    /// Takes the partitions paused: they flow when it is known where they start.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), SourceError> {
        let fatal = |error: KafkaError| SourceError::Fatal(format!("cannot take the assigned partitions: {error}"));
        let mut places = partitions.clone();
        // Not where they start, but a place that every topic has; the seek comes before the first record.
        places.set_all_offsets(Offset::Beginning).map_err(fatal)?;
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&places),
            _ => consumer.assign(&places),
        }
        .map_err(fatal)?;
        if partitions.count() > 0 {
            consumer.pause(partitions).map_err(fatal)?;
            tracing::info!(partitions = ?names(partitions), "assigned");
        }
        self.take(partitions);
        self.listener.joined();
        Ok(())
    }

    fn let_go(&self, partitions: &TopicPartitionList) -> Vec<PartitionId> {
        let mut table = self.table.lock();
        let elements = partitions.elements();
        let gone = |owned: &Owned| elements.iter().any(|e| e.topic() == owned.topic && e.partition() == owned.number);
        let ids = table.iter().filter(|owned| gone(owned)).map(|owned| owned.id).collect();
        table.retain(|owned| !gone(owned));
        ids
    }

    /// Nothing came although nothing is paused: what was read to its end is idle.
    fn tell_idle(&self, resumed: Instant) {
        let ends = std::mem::take(&mut *self.ends.lock());
        if ends.is_empty() {
            return;
        }
        let now = clock::now();
        let settled = |since: Instant| now.saturating_duration_since(since) > idle::SETTLED_AFTER;
        let mut idle = Vec::new();
        for owned in &*self.table.lock() {
            let Flow::Started { next, since, .. } = owned.flow else { continue };
            let end = ends.iter().find(|end| end.number == owned.number && end.topic == owned.topic);
            if let Some(end) = end.filter(|end| end.offset > next && settled(since) && settled(resumed)) {
                idle.push((owned.id, end.offset));
            }
        }
        for (id, position) in idle {
            self.listener.idle(id, position);
        }
    }
}

fn names(partitions: &TopicPartitionList) -> Vec<String> {
    let name = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match e.offset() {
        Offset::Offset(offset) => format!("{}/{}@{offset}", e.topic(), e.partition()),
        _ => format!("{}/{}", e.topic(), e.partition()),
    };
    partitions.elements().iter().map(name).collect()
}

impl GroupMember for GroupConsumer {
    fn metadata(&self) -> Option<ConsumerGroupMetadata> {
        self.group_metadata()
    }

    fn committed(&self, partitions: TopicPartitionList, bound: Duration) -> KafkaResult<Vec<Committed>> {
        let (committed, refused) = positions::committed(&self.committed_offsets(partitions, bound)?);
        refused.into_iter().next().map_or(Ok(committed), Err)
    }

    fn commit(&self, positions: &TopicPartitionList) -> KafkaResult<()> {
        Consumer::commit(self, positions, CommitMode::Sync)
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.client_error(&error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        *self.ends.lock() = idle::ends(statistics);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Err(failure) = self.assign(consumer, partitions) {
                *self.failure.lock() = Some(failure);
                // An assignment without an answer would keep the consumer from closing.
                let nothing = TopicPartitionList::new();
                let answered = match consumer.rebalance_protocol() {
                    RebalanceProtocol::Cooperative => consumer.incremental_assign(&nothing),
                    _ => consumer.assign(&nothing),
                };
                if let Err(error) = answered {
                    tracing::debug!(%error, "could not answer an assignment");
                }
            }
            return;
        }
        let ids = self.let_go(partitions);
        if consumer.assignment_lost() {
            tracing::warn!(partitions = ?names(partitions), "lost: another member has them already");
            self.listener.lost(&ids);
        } else {
            if !ids.is_empty() {
                tracing::info!(partitions = ?names(partitions), "revoked");
            }
            self.listener.revoked(&ids);
        }
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "could not let partitions go");
        }
    }
}
