//! Exactly once: replies, dead letters and positions in one transaction.

use std::time::{Duration, Instant};

use super::super::ledger::Take;
use super::super::producer::{ReplyProducer, TransactionError};
use super::{CALL_BOUND, Committer, IDLE, SinkError};
use crate::client::BATCH_BYTES;
use crate::clock;
use crate::commit::Budget;

/// Fewer records than this, right after another transaction, are flushed before the commit: 13 slow cycles in 1,000
/// instead of 90.
const FEW_RECORDS: usize = 1000;
/// How long the broker is left to write a transaction's markers where few records wait. Asked sooner for the next one it
/// only answers "concurrent transactions", and has less time for the markers: replies would come later, not sooner.
const REST: Duration = Duration::from_millis(4);
/// A transaction that begins so soon after another is likely to get that answer.
const BACK_TO_BACK: Duration = Duration::from_millis(3);
/// Characters of offset maps in one transaction: past 512 kB the broker answers an unknown error, for ever.
const CHARS_A_TRANSACTION: usize = 384 * 1024;

impl Committer {
    pub(super) fn run_transactions(&mut self) -> Result<usize, SinkError> {
        let Some(mut producer) = self.connect()? else { return Ok(self.ledger.in_flight()) };
        if !self.topics_exist(&producer) {
            return Ok(self.ledger.in_flight());
        }
        if self.bytes_max < BATCH_BYTES {
            // Made anew with the batches that the topics take.
            drop(producer);
            producer = match self.connect()? {
                Some(producer) => producer,
                None => return Ok(self.ledger.in_flight()),
            };
        }
        self.sink.ready();
        loop {
            let wait = self.wait();
            self.gather(wait);
            if self.ledger.is_news && (self.wait().is_zero() || !self.ledger.leaving.is_empty()) {
                producer = match self.transact(producer)? {
                    Some(producer) => producer,
                    None => return Ok(self.ledger.in_flight()),
                };
            }
            self.forget_leaving();
            if self.is_over() {
                return Ok(self.ledger.in_flight());
            }
        }
    }

    /// How long to wait for events: until the next transaction is due, or idly.
    fn wait(&self) -> Duration {
        if !self.ledger.is_news {
            return IDLE;
        }
        let interval = self.sink.limits.commit_interval;
        let due = self.last_begin.map(|begin| begin + interval);
        let finished: usize = self.ledger.partitions.values().map(|partition| partition.tracker.finished()).sum();
        let rested = self.last_end.filter(|_| finished < FEW_RECORDS).map(|end| end + REST.min(interval));
        due.max(rested).map_or(Duration::ZERO, |due| due.saturating_duration_since(clock::now()))
    }

    /// Sends what is finished. Gives back the producer, a new one after a failure, or none when the worker stops.
    fn transact(&mut self, producer: ReplyProducer) -> Result<Option<ReplyProducer>, SinkError> {
        let begin = clock::now();
        let batch_bytes = self.bytes_max;
        let mut take = self.take();
        loop {
            match self.check_addresses(&producer, &take) {
                Ok(0) if self.bytes_max < batch_bytes.min(BATCH_BYTES) => {
                    // A topic that takes smaller batches than this producer makes.
                    self.ledger.untake();
                    drop(producer);
                    return self.connect();
                }
                Ok(0) => break,
                // What stands in for a wrong one goes elsewhere, which is right: all are taken anew.
                Ok(_) => {
                    self.ledger.untake();
                    take = self.take();
                }
                Err(error) => return self.failed(producer, &error, &take, begin),
            }
        }
        if take.is_empty() {
            self.ledger.is_news = false;
            return Ok(Some(producer));
        }
        let back_to_back = self.last_end.is_some_and(|end| begin.saturating_duration_since(end) < BACK_TO_BACK);
        self.last_begin = Some(begin);
        let done = self.try_transact(&producer, &take, back_to_back);
        let end = clock::now();
        self.last_end = Some(end);
        match done {
            Ok(()) => {
                self.ledger.count_letters(&take);
                self.ledger.count_latencies(&take, end);
                self.commit(&take);
                self.records_max = self.records_max.saturating_mul(2);
                if std::mem::take(&mut self.refusing) {
                    self.sink.ready();
                }
                self.ledger.metrics.commit_seconds.add_duration(end - begin);
                Ok(Some(producer))
            }
            Err(error) => self.failed(producer, &error, &take, begin),
        }
    }

    fn failed(
        &mut self,
        producer: ReplyProducer,
        error: &TransactionError,
        take: &Take,
        begin: Instant,
    ) -> Result<Option<ReplyProducer>, SinkError> {
        self.ledger.metrics.transactions_aborted.inc();
        self.after_error(error, take, clock::now() - begin)?;
        producer.abort(Duration::from_secs(2));
        drop(producer);
        self.ledger.untake();
        self.recycle()
    }

    fn try_transact(&self, producer: &ReplyProducer, take: &Take, back_to_back: bool) -> Result<(), TransactionError> {
        fail::fail_point!("sink::begin");
        let start = clock::now();
        producer.begin()?;
        let group = self.sink.told.group().and_then(|group| group.metadata());
        let group = group.ok_or_else(|| TransactionError::Connection("the consumer has left its group".to_owned()))?;
        fail::fail_point!("sink::metadata_taken");
        if self.ledger.inbox.losses() != self.ledger.losses {
            return Err(TransactionError::Connection("partitions were lost meanwhile".to_owned()));
        }
        let list = self.positions_of(take).map_err(|error| TransactionError::Failed(error.to_string()))?;
        // After a pause the replies are on their way while the positions are sent. Right after another transaction the
        // broker answers "concurrent transactions" to what comes first, which librdkafka asks again after
        // retry.backoff.ms for positions, but after 20 ms for replies: then positions go first.
        let mut records = 0;
        if !back_to_back {
            records = self.send_taken(producer, take)?;
        }
        producer.send_offsets(&list, &group, CALL_BOUND)?;
        fail::fail_point!("sink::positions_sent", |_| Err(TransactionError::Connection("a fail point".to_owned())));
        let positions_sent = clock::now();
        if back_to_back {
            records = self.send_taken(producer, take)?;
        }
        fail::fail_point!("sink::produced");
        let produced = clock::now();
        if back_to_back && records < FEW_RECORDS {
            producer.flush(CALL_BOUND)?;
        }
        fail::fail_point!("sink::flushed");
        let flushed = clock::now();
        producer.commit(CALL_BOUND)?;
        tracing::trace!(
            records,
            positions = ?(positions_sent - start),
            produce = ?(produced - positions_sent),
            flush = ?(flushed - produced),
            commit = ?(clock::now() - flushed),
            "committed"
        );
        fail::fail_point!("sink::committed", |_| Err(TransactionError::Connection("a fail point".to_owned())));
        Ok(())
    }

    /// Hands what was taken to the producer. Returns how many replies those were.
    fn send_taken(&self, producer: &ReplyProducer, take: &Take) -> Result<usize, TransactionError> {
        let mut index = 0;
        for (id, commit) in take {
            for (_, pending) in self.ledger.partitions[id].tracker.sent().take(commit.records) {
                self.send(producer, pending, 2 * index)?;
                index += 1;
            }
        }
        Ok(index)
    }

    fn take(&mut self) -> Take {
        let limits = &self.sink.limits;
        let records = (limits.commit_records_max.get() as usize).min(self.records_max);
        let budget = Budget::new(records, limits.commit_bytes_max.get());
        self.ledger.take(budget, self.chars_max, CHARS_A_TRANSACTION)
    }
}
