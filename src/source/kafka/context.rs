//! What librdkafka calls back for: assignments and revocations, each on the source's thread inside a poll; and the table
//! of the partitions that are this worker's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};
use rdkafka_sys::types::RDKafkaRespErr;

use super::idle::{self, End, Ends};
use super::start::Asked;
use super::{GroupConsumer, GroupListener, SourceError};
use crate::client::positions::{self, Committed};
use crate::client::{self, BrokerWatch, GroupMember};
use crate::clock;
use crate::commit::OffsetMap;
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, Fence, PartitionId};

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
    /// It must not be read until somebody has looked.
    Stopped,
    Started {
        /// The least offset that was not passed on yet.
        next: i64,
        /// What is done above the committed position, until that is behind.
        done: Option<OffsetMap>,
        since: Instant,
    },
}

/// Serves the group's callbacks, which come inside [`Source::recv`](crate::source::Source::recv) on its thread.
pub struct GroupContext {
    pub(super) listener: Arc<dyn GroupListener>,
    pub(super) watch: Arc<BrokerWatch>,
    table: Mutex<Vec<Owned>>,
    next_id: AtomicU32,
    pub(super) paused: AtomicBool,
    pub(super) out_of_range: AtomicBool,
    pub(super) ask: Mutex<Option<Sender<Vec<Asked>>>>,
    /// Where partitions were read to their end, as of librdkafka's last statistics.
    ends: Mutex<Vec<End>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) failure: Mutex<Option<SourceError>>,
}

impl GroupContext {
    pub(super) fn new(
        listener: Arc<dyn GroupListener>,
        watch: Arc<BrokerWatch>,
        metrics: Arc<Metrics>,
        ask: Sender<Vec<Asked>>,
    ) -> Self {
        Self {
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
        }
    }

    /// The partition that a record belongs to. `None` when it is not to be passed on: a fetched record may outlive its
    /// assignment by one poll, come a second time after a pause, or have its reply committed already.
    pub(super) fn admit(&self, topic: &str, number: i32, offset: i64) -> Option<PartitionId> {
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
    pub(super) fn is_wanted(&self, id: PartitionId) -> bool {
        self.table.lock().iter().any(|owned| owned.id == id)
    }

    pub(super) fn is_starting(&self) -> bool {
        self.table.lock().iter().any(|owned| matches!(owned.flow, Flow::Asked))
    }

    pub(super) fn next_of(&self, id: PartitionId) -> Option<i64> {
        self.table.lock().iter().find(|owned| owned.id == id).and_then(|owned| match owned.flow {
            Flow::Started { next, .. } => Some(next),
            Flow::Asked | Flow::Stopped => None,
        })
    }

    /// The partitions whose records are passed on.
    pub(super) fn started(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for owned in self.table.lock().iter().filter(|owned| matches!(owned.flow, Flow::Started { .. })) {
            list.add_partition(&owned.topic, owned.number);
        }
        list
    }

    /// What is committed of a partition is known: it belongs to the listener from here on. Not when it went meanwhile.
    pub(super) fn begin(&self, asked: &Asked, committed: &OffsetMap, fence: Option<Fence>) -> bool {
        let mut table = self.table.lock();
        let Some(owned) = table.iter_mut().find(|owned| owned.id == asked.id) else { return false };
        let done = (committed.end() > committed.base()).then(|| committed.clone());
        owned.flow = Flow::Started { next: committed.base(), done, since: clock::now() };
        drop(table);
        let Asked { id, topic, number } = asked.clone();
        self.listener.assigned(vec![AssignedPartition { id, topic, number, committed: committed.clone(), fence }]);
        true
    }

    /// The partition of an assignment that still stands.
    pub(super) fn place_of(&self, id: PartitionId) -> Option<TopicPartitionList> {
        let table = self.table.lock();
        let owned = table.iter().find(|owned| owned.id == id)?;
        let mut place = TopicPartitionList::new();
        place.add_partition(&owned.topic, owned.number);
        Some(place)
    }

    pub(super) fn stop(&self, id: PartitionId) {
        if let Some(owned) = self.table.lock().iter_mut().find(|owned| owned.id == id) {
            owned.flow = Flow::Stopped;
        }
    }

    /// New assignments, each with an id of its own, and the question where they start.
    pub(super) fn take(&self, partitions: &TopicPartitionList) {
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

    pub(super) fn let_go(&self, partitions: &TopicPartitionList) -> Vec<PartitionId> {
        let mut table = self.table.lock();
        let elements = partitions.elements();
        let gone = |owned: &Owned| elements.iter().any(|e| e.topic() == owned.topic && e.partition() == owned.number);
        let ids = table.iter().filter(|owned| gone(owned)).map(|owned| owned.id).collect();
        table.retain(|owned| !gone(owned));
        ids
    }

    /// Nothing came although nothing is paused: what was read to its end is idle.
    pub(super) fn tell_idle(&self, resumed: Instant) {
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

pub(super) fn names(partitions: &TopicPartitionList) -> Vec<String> {
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

    fn commit_soon(&self, positions: &TopicPartitionList) -> KafkaResult<()> {
        Consumer::commit(self, positions, CommitMode::Async)
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
        let Ends { stable, read } = idle::ends(statistics);
        for End { topic, number, offset } in stable {
            self.metrics.lags.ends(&topic, number, offset);
        }
        *self.ends.lock() = read;
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
