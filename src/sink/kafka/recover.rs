//! What follows an error: the producer is dropped and made anew, and the broker says what truly committed.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::super::producer::{TransactionError, TransactionalProducer};
use super::{CALL_BOUND, IDLE, SinkError, Take, Transactions};
use crate::client::TRANSACTION_TIMEOUT;
use crate::clock;

/// Producers that may be made anew in a minute for errors that are nobody's connection.
const RECYCLES_A_MINUTE: usize = 5;

impl Transactions {
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
            TransactionError::Fenced(_) if took < TRANSACTION_TIMEOUT => {
                Err(SinkError::Fenced(self.sink.settings.transactional_id().to_owned()))
            }
            TransactionError::Refused(refused) => {
                self.refused(take, refused);
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
                let now = clock::now();
                self.recycles.retain(|at| now - *at < Duration::from_secs(60));
                self.recycles.push(now);
                if self.recycles.len() > RECYCLES_A_MINUTE {
                    return Err(SinkError::Fatal(format!(
                        "transactions fail again and again; the last time: {reason}"
                    )));
                }
                Ok(())
            }
        }
    }

    pub(super) fn recycle(&mut self) -> Result<Option<TransactionalProducer>, SinkError> {
        self.sink.metrics.producers_recycled.inc();
        let Some(producer) = self.connect()? else { return Ok(None) };
        // Partitions may have come and gone while the producer was made.
        self.gather(Duration::ZERO);
        let done = self.read_back()?;
        if !self.refusing {
            self.sink.health.ready("producer");
        }
        Ok(done.then_some(producer))
    }

    /// A producer whose predecessors are fenced and their transactions ended. `None` when the worker stops meanwhile.
    pub(super) fn connect(&mut self) -> Result<Option<TransactionalProducer>, SinkError> {
        let settings = self.sink.settings.producer();
        let producer = TransactionalProducer::new(&settings, Arc::clone(&self.sink.watch));
        let producer = producer.map_err(SinkError::Fatal)?;
        loop {
            match producer.init(CALL_BOUND) {
                Ok(()) => {
                    self.sink.watch.back();
                    return Ok(Some(producer));
                }
                Err(TransactionError::Fenced(_)) => {
                    return Err(SinkError::Fenced(self.sink.settings.transactional_id().to_owned()));
                }
                Err(TransactionError::Failed(reason)) => {
                    let id = self.sink.settings.transactional_id();
                    return Err(SinkError::Fatal(format!("cannot use transactional.id {id}: {reason}")));
                }
                Err(error) => {
                    if self.sink.stop.overdue() || (self.sink.stop.requested() && self.sink.inbox.in_flight() == 0) {
                        return Ok(None);
                    }
                    self.sink.health.not_ready("producer", &error.to_string());
                    self.sink.watch.gone(&error.to_string());
                }
            }
        }
    }

    /// The route's own topics must be there before anything is scored for them. `false`: the worker stops meanwhile.
    pub(super) fn reply_topics_exist(&mut self, producer: &TransactionalProducer) -> bool {
        let mut said = false;
        let topics: Vec<String> = self.sink.routes.iter().map(|route| route.topic.clone()).collect();
        for topic in topics {
            while !matches!(producer.partitions_of(&topic, CALL_BOUND), Ok(Some(_))) {
                if self.sink.stop.requested() {
                    return false;
                }
                self.sink.health.not_ready("producer", &format!("the reply topic {topic} does not exist"));
                if !said && !self.sink.watch.is_away() {
                    tracing::error!(topic, "the route's reply topic does not exist; waiting for it to be created");
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
        for partition in self.partitions.values() {
            asked.add_partition(&partition.topic, partition.number);
        }
        if asked.count() == 0 {
            return Ok(true);
        }
        let committed = loop {
            match self.sink.group.committed(asked.clone(), Duration::from_secs(5)) {
                Ok(committed) => break committed,
                Err(_) if self.sink.stop.overdue() => return Ok(false),
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                    return Err(SinkError::Fatal(format!("not allowed to read the group's positions: {error}")));
                }
                Err(error) => {
                    tracing::debug!(%error, "reading the committed positions again");
                    let reason = format!("cannot read the committed positions: {error}");
                    self.sink.health.not_ready("producer", &reason);
                    // A question that is refused at once must not be a busy loop.
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        };
        for partition in self.partitions.values_mut() {
            let found = committed.find_partition(&partition.topic, partition.number).map(|found| found.offset());
            let Some(Offset::Offset(position)) = found else { continue };
            let done = partition.tracker.committed_to(position);
            let done =
                done.map_err(|error| SinkError::Fatal(format!("{}/{}: {error}", partition.topic, partition.number)))?;
            self.sink.inbox.release(done);
        }
        Ok(true)
    }
}
