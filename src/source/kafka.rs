//! Records of a consumer group in, one [`Message`] at a time; assignments and revocations out to a [`GroupListener`].
//!
//! Invariants: a listener hears of a partition before the first of its records is received, and a revocation returns
//! only when the listener has let the partition go; each assignment has its own [`PartitionId`]; the position that a
//! partition starts from is known (and, for a new group, committed) before its first record is received.
#![allow(unsafe_code, reason = "rdkafka's own header access panics on names that are not UTF-8")]

use std::ffi::{CStr, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys::types::RDKafkaRespErr;

use crate::client::{self, BrokerWatch, ClientSettings, GroupMember};
use crate::clock::Stop;
use crate::config::StartPosition;
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, Message, PartitionId, Position};

/// How long one question to the broker may take while partitions are assigned; it is asked again until answered.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Who must know which partitions are this worker's.
pub trait GroupListener: Send + Sync {
    /// These partitions are now this worker's; none of their records was received yet.
    fn assigned(&self, partitions: Vec<AssignedPartition>);

    /// These partitions go to another member. Returns when nothing more will be committed for them, or its bound
    /// ran out.
    fn revoked(&self, partitions: &[PartitionId]);

    /// These partitions went to another member already: nothing may be committed for them any more. Must not block.
    fn lost(&self, partitions: &[PartitionId]);
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
    paused: bool,
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
        let context = GroupContext {
            listener,
            watch,
            start: settings.start(),
            table: Mutex::default(),
            next_id: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            stop,
            metrics,
            failure: Mutex::default(),
        };
        let fatal = |error: KafkaError| SourceError::Fatal(format!("kafka.client: {error}"));
        let consumer = BaseConsumer::from_config_and_context(&settings.consumer(), context).map_err(fatal)?;
        consumer.subscribe(topics).map_err(fatal)?;
        Ok(Self { consumer: Arc::new(consumer), paused: false })
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
    pub fn recv(&self, most: usize, wait: Duration, mut each: impl FnMut(&Message<'_>)) -> Result<usize, SourceError> {
        let mut received = 0;
        let mut wait = wait;
        while received < most {
            match self.consumer.poll(wait) {
                None => break,
                Some(Err(error)) => self.on_error(&error)?,
                Some(Ok(record)) => {
                    received += usize::from(self.pass_on(&record, &mut each));
                }
            }
            wait = Duration::ZERO;
        }
        match self.consumer.context().failure.lock().take() {
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
        self.consumer.context().paused.store(paused, Ordering::Relaxed);
        let assignment = self.consumer.assignment();
        let done =
            assignment.and_then(|all| if paused { self.consumer.pause(&all) } else { self.consumer.resume(&all) });
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
            (_, Some(Code::AutoOffsetReset | Code::OffsetOutOfRange)) => Err(SourceError::Fatal(format!(
                "{error}: the committed position lies outside of the topic; was it recreated, or did retention remove \
                 unread records? Reset the group's offsets, or use another group"
            ))),
            _ => {
                self.consumer.context().watch.client_error(error, "consumer");
                Ok(())
            }
        }
    }
}

fn not_authorised(error: &KafkaError) -> SourceError {
    SourceError::Fatal(format!("{error}: grant this worker READ on its input topics and its group"))
}

fn is_rebalance(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress)
}

/// The headers of a record. A name that is not UTF-8 is none that we read, so it is passed over.
fn headers_of<'a>(record: &'a BorrowedMessage<'_>) -> Vec<(&'a str, Option<&'a [u8]>)> {
    // Most records have none, and an empty vector allocates nothing.
    let mut headers = Vec::new();
    let mut native = std::ptr::null_mut();
    // SAFETY: the message is alive for 'a; the headers belong to it and live as long.
    let found = unsafe { rdkafka_sys::rd_kafka_message_headers(record.ptr(), &raw mut native) };
    if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return headers;
    }
    for index in 0.. {
        let mut name = std::ptr::null();
        let mut value: *const c_void = std::ptr::null();
        let mut size = 0;
        // SAFETY: as above; past the last index the call answers NOENT and writes nothing.
        let found = unsafe {
            rdkafka_sys::rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut size)
        };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: a header's name is NUL-terminated and lives with the message.
        let name: &'a CStr = unsafe { CStr::from_ptr(name) };
        // SAFETY: a value that is there has `size` bytes, which live with the message.
        let value = (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) });
        if let Ok(name) = name.to_str() {
            headers.push((name, value));
        }
    }
    headers
}

#[derive(Clone, Debug)]
struct Owned {
    topic: String,
    number: i32,
    id: PartitionId,
    /// The least offset that was not passed on yet.
    next: i64,
}

/// Serves the group's callbacks, which come inside [`KafkaSource::recv`] on its thread.
pub struct GroupContext {
    listener: Arc<dyn GroupListener>,
    watch: Arc<BrokerWatch>,
    start: StartPosition,
    table: Mutex<Vec<Owned>>,
    next_id: AtomicU32,
    paused: AtomicBool,
    stop: Arc<Stop>,
    metrics: Arc<Metrics>,
    failure: Mutex<Option<SourceError>>,
}

impl GroupContext {
    /// The partition that a record belongs to. `None` when it is not to be passed on: a fetched record may outlive its
    /// assignment by one poll, and come a second time after a pause.
    fn admit(&self, topic: &str, number: i32, offset: i64) -> Option<PartitionId> {
        let mut table = self.table.lock();
        let owned = table.iter_mut().find(|owned| owned.number == number && owned.topic == topic)?;
        if offset < owned.next {
            return None;
        }
        owned.next = offset + 1;
        Some(owned.id)
    }

    /// Whether it took the partitions; not when the worker stops meanwhile.
    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<bool, SourceError> {
        let Some(starts) = self.start_positions(consumer, partitions)? else { return Ok(false) };
        let mut assigned = Vec::new();
        {
            let mut table = self.table.lock();
            for element in starts.elements() {
                let Offset::Offset(base) = element.offset() else { continue };
                let id = PartitionId(self.next_id.fetch_add(1, Ordering::Relaxed));
                let (topic, number) = (element.topic().to_owned(), element.partition());
                table.push(Owned { topic: topic.clone(), number, id, next: base });
                assigned.push(AssignedPartition { id, topic, number, base });
            }
        }
        tracing::info!(partitions = ?names(&starts), "assigned");
        self.listener.assigned(assigned);
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&starts),
            _ => consumer.assign(&starts),
        };
        done.map_err(|error| SourceError::Fatal(format!("cannot take the assigned partitions: {error}")))?;
        if self.paused.load(Ordering::Relaxed) {
            // Newly assigned partitions obey the pause that stands.
            let _ = consumer.pause(&starts);
        }
        Ok(true)
    }

    /// Where each partition starts: its committed position, or what the config says for a group that has none.
    /// `None` when the worker gives up meanwhile.
    fn start_positions(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<Option<TopicPartitionList>, SourceError> {
        let read = || client::settled(consumer.committed_offsets(partitions.clone(), QUESTION_TIMEOUT)?);
        let Some(mut starts) = self.ask(read, "the committed positions")? else { return Ok(None) };
        let mut fresh = TopicPartitionList::new();
        for element in partitions.elements() {
            let (topic, number) = (element.topic(), element.partition());
            let read = || consumer.fetch_watermarks(topic, number, QUESTION_TIMEOUT);
            let Some((low, high)) = self.ask(read, "the bounds of a partition")? else { return Ok(None) };
            let committed = starts.find_partition(topic, number).map(|found| found.offset());
            let (offset, is_fresh) = match committed {
                Some(Offset::Offset(committed)) => {
                    let start = self.within(topic, number, committed, (low, high))?;
                    (start, start != committed)
                }
                _ => (self.start_of_new(topic, number, (low, high))?, true),
            };
            let set = |list: &mut TopicPartitionList| list.add_partition_offset(topic, number, Offset::Offset(offset));
            if is_fresh {
                set(&mut fresh).map_err(|error| SourceError::Fatal(error.to_string()))?;
            }
            let set = starts.set_partition_offset(topic, number, Offset::Offset(offset));
            set.map_err(|error| SourceError::Fatal(error.to_string()))?;
        }
        if fresh.count() > 0 {
            // Else a crash before the first commit would start a "latest" group at a later end, past unread records.
            let commit = || match consumer.commit(&fresh, CommitMode::Sync) {
                // The group has moved on already, and takes these partitions back in a moment.
                Err(error) if error.rdkafka_error_code().is_some_and(is_rebalance) => Ok(()),
                done => done,
            };
            if self.ask(commit, "the commit of the first position")?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(starts))
    }

    fn start_of_new(&self, topic: &str, number: i32, (low, high): (i64, i64)) -> Result<i64, SourceError> {
        match self.start {
            StartPosition::Earliest => Ok(low),
            StartPosition::Latest => Ok(high),
            StartPosition::Error => Err(SourceError::Fatal(format!(
                "the group has no committed position for {topic}/{number}; set kafka.start to \"earliest\" or \"latest\""
            ))),
        }
    }

    /// Asks until answered: a broker that is away, or a transaction that a killed worker left open, passes.
    fn ask<T>(&self, mut question: impl FnMut() -> KafkaResult<T>, what: &str) -> Result<Option<T>, SourceError> {
        use RDKafkaErrorCode as Code;
        let mut said = false;
        loop {
            match question() {
                Ok(answer) => {
                    self.watch.back();
                    return Ok(Some(answer));
                }
                Err(_) if self.stop.requested() => return Ok(None),
                Err(error) => {
                    match error.rdkafka_error_code() {
                        Some(Code::FencedInstanceId) => return Err(SourceError::Fenced),
                        Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
                            return Err(not_authorised(&error));
                        }
                        _ => {}
                    }
                    if !said && !self.watch.is_away() {
                        tracing::info!(%error, "waiting for {what}");
                        said = true;
                    }
                    // A question that is refused at once must not be a busy loop.
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// A committed position must lie in the topic. Below its start, retention removed records that nobody read.
    fn within(&self, topic: &str, number: i32, committed: i64, (low, high): (i64, i64)) -> Result<i64, SourceError> {
        if committed > high {
            return Err(SourceError::Fatal(format!(
                "the group's position {committed} in {topic}/{number} lies past its end {high}: the topic was truncated or \
                 recreated; reset the group's offsets"
            )));
        }
        if committed < low {
            let lost = low - committed;
            self.metrics.records_lost.inc_by(lost.unsigned_abs());
            tracing::error!(topic, partition = number, lost, "retention removed records before they were read");
        }
        Ok(committed.max(low))
    }

    fn let_go(&self, partitions: &TopicPartitionList) -> Vec<PartitionId> {
        let mut table = self.table.lock();
        let elements = partitions.elements();
        let gone = |owned: &Owned| elements.iter().any(|e| e.topic() == owned.topic && e.partition() == owned.number);
        let ids = table.iter().filter(|owned| gone(owned)).map(|owned| owned.id).collect();
        table.retain(|owned| !gone(owned));
        ids
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

    fn committed(&self, partitions: TopicPartitionList, bound: Duration) -> KafkaResult<TopicPartitionList> {
        client::settled(self.committed_offsets(partitions, bound)?)
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.client_error(&error, reason);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let taken = self.assign(consumer, partitions).unwrap_or_else(|failure| {
                *self.failure.lock() = Some(failure);
                false
            });
            if !taken {
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
