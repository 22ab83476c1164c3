//! What follows an error: the producer is dropped and made anew, and the broker says what truly committed.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::error::RDKafkaErrorCode;

use super::super::ledger::{Partition, Take};
use super::super::producer::{ReplyProducer, TransactionError};
use super::address::TopicFacts;
use super::{CALL_BOUND, Committer, IDLE, SinkError};
use crate::client::TRANSACTION_TIMEOUT;
use crate::clock;
use crate::commit::{OffsetMap, Reading};

/// Producers that may be made anew in a minute for errors that are nobody's connection.
const RECYCLES_A_MINUTE: usize = 5;

impl Committer {
    pub(super) fn after_error(
        &mut self,
        error: &TransactionError,
        take: &Take,
        took: Duration,
    ) -> Result<(), SinkError> {
        // What a topic was like may be why.
        self.topics.clear();
        match error {
            // After a stall past the transaction's timeout the broker fenced this producer itself; else somebody did.
            TransactionError::Fenced(_) if took < TRANSACTION_TIMEOUT => Err(SinkError::Fenced(self.sink.fenced_by())),
            TransactionError::Refused(refused) => {
                self.refused(take, refused);
                Ok(())
            }
            TransactionError::MapTooLarge => {
                // What is committed was taken by a broker, so that a smaller limit than it needs comes from a change.
                self.shrink_maps(take.iter().map(|(_, commit)| commit.chars).max().unwrap_or(0));
                Ok(())
            }
            TransactionError::Connection(reason) | TransactionError::Fenced(reason) => {
                if !self.sink.watch.is_away() {
                    tracing::warn!(reason, "a transaction was given up; its replies are sent again");
                }
                Ok(())
            }
            TransactionError::Failed(reason) => {
                tracing::warn!(reason, "a transaction failed; its replies are sent again");
                self.count_failure(reason)
            }
        }
    }

    /// A few failures that are nobody's connection are borne; a row of them ends the worker.
    pub(super) fn count_failure(&mut self, reason: &str) -> Result<(), SinkError> {
        let now = clock::now();
        self.recycles.retain(|at| now - *at < Duration::from_secs(60));
        self.recycles.push(now);
        if self.recycles.len() > RECYCLES_A_MINUTE {
            return Err(SinkError::Fatal(format!("the producer fails again and again; the last time: {reason}")));
        }
        Ok(())
    }

    /// The broker took no offset maps of so many characters.
    pub(super) fn shrink_maps(&mut self, chars: usize) {
        self.chars_max = chars.min(self.chars_max) / 2;
        tracing::warn!(
            chars_max = self.chars_max,
            "the broker takes less metadata with an offset than usual (offset.metadata.max.bytes): replies behind slow \
             records wait longer"
        );
    }

    pub(super) fn recycle(&mut self) -> Result<Option<ReplyProducer>, SinkError> {
        self.ledger.metrics.producers_recycled.inc();
        let Some(producer) = self.connect()? else { return Ok(None) };
        // Partitions may have come and gone while the producer was made.
        self.gather(Duration::ZERO);
        let done = self.read_back()?;
        if !self.refusing {
            self.sink.ready();
        }
        Ok(done.then_some(producer))
    }

    /// A producer that is not connected yet.
    pub(super) fn new_producer(&self, every: bool) -> Result<ReplyProducer, SinkError> {
        let settings = self.sink.settings.producer(self.bytes_max);
        ReplyProducer::new(&settings, Arc::clone(&self.sink.watch), every).map_err(SinkError::Fatal)
    }

    /// A producer whose predecessors are fenced and their transactions ended. `None` when the worker stops meanwhile.
    pub(super) fn connect(&mut self) -> Result<Option<ReplyProducer>, SinkError> {
        let producer = self.new_producer(false)?;
        loop {
            match producer.init(CALL_BOUND) {
                Ok(()) => {
                    self.sink.watch.back();
                    return Ok(Some(producer));
                }
                Err(TransactionError::Fenced(_)) => {
                    return Err(SinkError::Fenced(self.sink.fenced_by()));
                }
                Err(TransactionError::Failed(reason)) => {
                    let id = self.sink.settings.transactional_id();
                    return Err(SinkError::Fatal(format!("cannot use transactional.id {id}: {reason}")));
                }
                Err(error) => {
                    if self.sink.stop.overdue() || (self.sink.stop.requested() && self.ledger.inbox.in_flight() == 0) {
                        return Ok(None);
                    }
                    self.sink.not_ready(&error.to_string());
                    self.sink.watch.gone(&error.to_string());
                }
            }
        }
    }

    /// The routes' own topics must be there before anything is scored for them. `false`: the worker stops meanwhile.
    pub(super) fn topics_exist(&mut self, producer: &ReplyProducer) -> bool {
        let mut said = false;
        let replies = self.ledger.routes.iter().map(|route| ("reply", route.topic.clone()));
        let letters = self.letter_topics().into_iter().map(|topic| ("dead letter", topic));
        let topics: Vec<_> = replies.chain(letters).collect();
        for (kind, topic) in topics {
            while !matches!(self.facts_of(producer, &topic), Ok(TopicFacts { partitions: Some(_), .. })) {
                if self.sink.stop.requested() {
                    return false;
                }
                self.sink.not_ready(&format!("the {kind} topic {topic} does not exist"));
                if !said && !self.sink.watch.is_away() {
                    tracing::error!(topic, "a route's {kind} topic does not exist; waiting for it to be created");
                    said = true;
                }
                self.gather(IDLE);
            }
        }
        true
    }

    /// What the broker says is committed counts. `false`: the worker stops meanwhile.
    pub(super) fn read_back(&mut self) -> Result<bool, SinkError> {
        let mut asked = TopicPartitionList::new();
        for partition in self.ledger.partitions.values() {
            asked.add_partition(&partition.topic, partition.number);
        }
        if asked.count() == 0 {
            return Ok(true);
        }
        let Some(group) = self.sink.told.group() else { return Ok(true) };
        let committed = loop {
            match group.committed(asked.clone(), Duration::from_secs(5)) {
                Ok(committed) => break committed,
                Err(_) if self.sink.stop.overdue() => return Ok(false),
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                    return Err(SinkError::Fatal(format!("not allowed to read the group's positions: {error}")));
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the committed positions again");
                    let reason = format!("cannot read the committed positions: {error}");
                    self.sink.not_ready(&reason);
                    // A question that is refused at once must not be a busy loop.
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        };
        for committed in committed {
            let is = |p: &&mut Partition| p.topic == committed.topic && p.number == committed.number;
            let Some(partition) = self.ledger.partitions.values_mut().find(is) else { continue };
            let Some(position) = committed.position else { continue };
            let place = format!("{}/{}", partition.topic, partition.number);
            let map = match committed.read(position) {
                Reading::Ours(map) => map,
                Reading::Damaged(reason) => {
                    return Err(SinkError::Fatal(format!(
                        "the offset map of {place} at {position} is damaged: {reason}"
                    )));
                }
                Reading::UnknownVersion(version) => {
                    return Err(SinkError::Fatal(format!("the offset map of {place} has version {version}")));
                }
                // This worker wrote none, so nothing above the position is done.
                _ => OffsetMap::empty(position),
            };
            let done = partition.tracker.committed_to(&map);
            let done = done.map_err(|error| SinkError::Fatal(format!("{place}: {error}")))?;
            self.ledger.metrics.lags.committed(&partition.topic, partition.number, map.base());
            self.ledger.release(done);
        }
        self.ledger.is_news = true;
        Ok(true)
    }
}
