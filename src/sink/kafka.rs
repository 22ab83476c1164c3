//! The transaction thread: replies in, transactions out, each with the positions of the records that it answers.
//!
//! Invariants:
//! 1. A reply becomes visible if and only if its record's position is committed: both are in one transaction.
//! 2. Of each partition only the contiguous finished run is committed, so a position never passes an unanswered record.
//! 3. The group's metadata is taken first, then it is checked that no partition was given up meanwhile, then the
//!    positions are sent, and then the replies. A member that was replaced is so refused by the broker, one that knows
//!    it refrains; and between the positions and the commit the group waits, because the positions are pending.
//! 4. After any error the producer is dropped and made anew (an old `EndTxn` may still be under way and would end the
//!    next transaction), and the committed positions are read back: they say what truly committed. Scores in memory
//!    are sent again, not computed again.

mod recover;
mod refused;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};

use super::inbox::{Event, Inbox};
use super::producer::{Outgoing, TransactionError, TransactionalProducer};
use crate::admin::Health;
use crate::client::{BrokerWatch, ClientSettings, GroupMember};
use crate::clock::{self, Stop};
use crate::commit::{Finish, Tracker};
use crate::config::{Kafka, ReplyMetadata};
use crate::encode::Encoder;
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, PartitionId, Reply, ReplyAddress, Request, ScoredBatch, Ticket};

/// The longest wait for one of librdkafka's calls; past it the producer is recycled.
const CALL_BOUND: Duration = Duration::from_secs(8);
/// How long the thread sleeps while nothing comes.
const IDLE: Duration = Duration::from_millis(250);
/// Fewer records than this, right after another transaction, are flushed before the commit: 13 slow cycles in 1,000
/// instead of 90.
const FLUSH_FIRST_BELOW: usize = 1000;
/// Why the transaction thread ended before it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Another worker has this worker's transactional id.
    #[error(
        "another worker runs with the same `instance` (transactional.id {0}); it must be unique among running workers"
    )]
    Fenced(String),
    /// Nothing that waiting would mend.
    #[error("{0}")]
    Fatal(String),
}

/// Where a route's replies go, and what is in them.
#[derive(Clone, Debug)]
pub(crate) struct ReplyRoute {
    pub(crate) topic: String,
    pub(crate) metadata: ReplyMetadata,
}

/// All that a transaction thread is made of.
pub(crate) struct KafkaSink {
    pub(crate) settings: ClientSettings,
    pub(crate) limits: Kafka,
    pub(crate) routes: Vec<ReplyRoute>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) group: Arc<dyn GroupMember>,
    pub(crate) watch: Arc<BrokerWatch>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Arc<Stop>,
}

impl KafkaSink {
    /// Runs until it is drained. Returns how many records were left unanswered.
    pub(crate) fn run(self, events: Receiver<Event>) -> Result<usize, SinkError> {
        let mut thread = Transactions {
            sink: self,
            events,
            encoder: Encoder::default(),
            partitions: BTreeMap::new(),
            topics: HashMap::new(),
            draining: false,
            replies: Vec::new(),
            recycles: Vec::new(),
            last_begin: None,
            last_end: None,
            losses: 0,
            turn: 0,
            refusing: false,
            records_max: usize::MAX,
        };
        thread.run()
    }
}

/// A reply that waits for its transaction.
#[derive(Debug)]
struct Pending {
    reply: Reply,
    /// Its own address was refused: it goes to the route's topic.
    to_route: bool,
    /// It was refused there too, and is counted instead of sent.
    dropped: bool,
}

impl Pending {
    fn new(reply: Reply) -> Self {
        Self { reply, to_route: false, dropped: false }
    }

    fn address(&self) -> ReplyAddress {
        if self.to_route { ReplyAddress::Route } else { self.reply.ticket.request().address }
    }
}

struct Partition {
    topic: String,
    number: i32,
    tracker: Tracker<Pending>,
}

/// What a transaction takes: of each partition the first `n` of its run.
type Take = Vec<(PartitionId, usize)>;

struct Transactions {
    sink: KafkaSink,
    events: Receiver<Event>,
    encoder: Encoder,
    partitions: BTreeMap<PartitionId, Partition>,
    /// Partitions of the topics that requests named, and when that was asked.
    topics: HashMap<String, (Option<i32>, Instant)>,
    draining: bool,
    replies: Vec<Reply>,
    recycles: Vec<Instant>,
    last_begin: Option<Instant>,
    last_end: Option<Instant>,
    /// The losses that were handled, as the inbox counts them.
    losses: u64,
    /// Which partition the next transaction takes from first.
    turn: usize,
    /// The route's own reply topic refused replies, and has not taken any since.
    refusing: bool,
    /// Most records of the next transaction, besides `commit_records_max`: small while a reply that is refused is
    /// looked for, and doubled with each success.
    records_max: usize,
}

impl Transactions {
    fn run(&mut self) -> Result<usize, SinkError> {
        let Some(mut producer) = self.connect()? else { return Ok(self.in_flight()) };
        if !self.reply_topics_exist(&producer) {
            return Ok(self.in_flight());
        }
        self.sink.health.ready("producer");
        loop {
            let wait = self.wait();
            self.gather(wait);
            if self.has_run() && self.wait().is_zero() {
                producer = match self.transact(producer)? {
                    Some(producer) => producer,
                    None => return Ok(self.in_flight()),
                };
            }
            let finished = self.draining && self.in_flight() == 0;
            if finished || self.sink.stop.overdue() {
                return Ok(self.in_flight());
            }
        }
    }

    fn in_flight(&self) -> usize {
        // The inbox counts those too whose messages were not looked at yet.
        self.sink.inbox.in_flight()
    }

    fn has_run(&self) -> bool {
        self.partitions.values().any(|partition| partition.tracker.run_len() > 0)
    }

    /// How long to wait for events: until the next transaction is due, or idly.
    fn wait(&self) -> Duration {
        if !self.has_run() {
            return IDLE;
        }
        let due = self.last_begin.map(|begin| begin + self.sink.limits.commit_interval);
        due.map_or(Duration::ZERO, |due| due.saturating_duration_since(clock::now()))
    }

    // ---- events ----

    fn gather(&mut self, wait: Duration) {
        if let Ok(event) = self.events.recv_timeout(wait) {
            self.handle(event);
        }
        // Every loss counted by now is in the queue, and so handled below; one counted later stops the transaction.
        self.losses = self.sink.inbox.losses();
        while let Ok(event) = self.events.try_recv() {
            self.handle(event);
        }
        self.sink.metrics.records_in_flight.set(i64::try_from(self.sink.inbox.in_flight()).unwrap_or(i64::MAX));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Assigned(assigned) => self.assigned(assigned),
            Event::Revoked { partitions, done } => {
                self.forget(&partitions);
                // Who waited longer than its bound has gone on already.
                let _ = done.send(());
            }
            Event::Lost(partitions) => self.forget(&partitions),
            Event::Received(chunk) => {
                for (request, index) in chunk.requests().iter().zip(0..) {
                    let Some(partition) = self.partitions.get_mut(&request.position.partition) else {
                        // Its partition was let go inside the poll that brought it.
                        self.sink.inbox.release(1);
                        continue;
                    };
                    if request.position.offset < partition.tracker.base() {
                        // Another member has committed it: that the partition was lost is not in the queue yet.
                        self.sink.inbox.release(1);
                        continue;
                    }
                    partition.tracker.deliver(request.position.offset);
                    if let Err(reject) = &request.work {
                        self.sink.metrics.requests_failed.with_label_values(&[reject.code.as_str()]).inc();
                        let ticket = Ticket { chunk: Arc::clone(&chunk), index };
                        let reply = self.encoder.encode_reject(ticket, reject);
                        self.finish(reply);
                    }
                }
            }
            Event::Ended(batch) => self.ended(*batch),
            Event::Drain => self.draining = true,
        }
    }

    fn assigned(&mut self, assigned: Vec<AssignedPartition>) {
        for AssignedPartition { id, topic, number, base } in assigned {
            self.partitions.insert(id, Partition { topic, number, tracker: Tracker::new(base) });
        }
        self.count_partitions();
    }

    /// What these partitions have in flight is another member's to score again.
    fn forget(&mut self, partitions: &[PartitionId]) {
        for id in partitions {
            if let Some(gone) = self.partitions.remove(id) {
                self.sink.inbox.release(gone.tracker.len());
            }
        }
        if self.partitions.is_empty() && std::mem::take(&mut self.refusing) {
            self.sink.health.ready("producer");
        }
        self.count_partitions();
    }

    fn count_partitions(&self) {
        self.sink.metrics.rebalances.inc();
        self.sink.metrics.partitions_assigned.set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
    }

    fn ended(&mut self, batch: ScoredBatch) {
        let mut replies = std::mem::take(&mut self.replies);
        let routes = &self.sink.routes;
        self.encoder.encode_batch(batch, |route| routes[route as usize].metadata, &mut replies);
        for reply in replies.drain(..) {
            self.finish(reply);
        }
        self.replies = replies;
    }

    fn finish(&mut self, reply: Reply) {
        let position = reply.ticket.request().position;
        let Some(partition) = self.partitions.get_mut(&position.partition) else { return };
        // One that is not known was committed by another member, and let go.
        if partition.tracker.finish(position.offset, Pending::new(reply)) == Finish::Duplicate {
            tracing::error!(
                topic = partition.topic,
                offset = position.offset,
                "a record ended twice; the first end counts"
            );
        }
    }

    // ---- one transaction ----

    /// Sends what is finished. Gives back the producer, a new one after a failure, or none when the worker stops.
    fn transact(&mut self, producer: TransactionalProducer) -> Result<Option<TransactionalProducer>, SinkError> {
        let take = self.take();
        let begin = clock::now();
        let back_to_back = self.last_end.is_some_and(|end| begin.saturating_duration_since(end) < IDLE / 10);
        self.last_begin = Some(begin);
        let done =
            self.check_addresses(&producer, &take).and_then(|()| self.try_transact(&producer, &take, back_to_back));
        let end = clock::now();
        self.last_end = Some(end);
        let records: usize = take.iter().map(|(_, n)| n).sum();
        match done {
            Ok(()) => {
                for (id, n) in take {
                    if let Some(partition) = self.partitions.get_mut(&id) {
                        partition.tracker.commit(n);
                    }
                }
                self.records_max = self.records_max.saturating_mul(2);
                self.sink.inbox.release(records);
                self.sink.watch.back();
                if std::mem::take(&mut self.refusing) {
                    self.sink.health.ready("producer");
                }
                self.sink.metrics.commits.inc();
                self.sink.metrics.commit_records.observe(records as f64);
                self.sink.metrics.commit_seconds.observe((end - begin).as_secs_f64());
                Ok(Some(producer))
            }
            Err(error) => {
                self.sink.metrics.transactions_aborted.inc();
                self.after_error(&error, &take, end - begin)?;
                producer.abort(Duration::from_secs(2));
                drop(producer);
                self.recycle()
            }
        }
    }

    fn try_transact(
        &self,
        producer: &TransactionalProducer,
        take: &Take,
        back_to_back: bool,
    ) -> Result<(), TransactionError> {
        fail::fail_point!("sink::begin");
        let start = clock::now();
        producer.begin()?;
        // Positions first: right after another transaction the broker answers "concurrent transactions" to what comes
        // first, which librdkafka asks again after retry.backoff.ms for positions, but after 20 ms for replies.
        let group = self.sink.group.metadata();
        let group = group.ok_or_else(|| TransactionError::Connection("the consumer has left its group".to_owned()))?;
        if self.sink.inbox.losses() != self.losses {
            return Err(TransactionError::Connection("partitions were lost meanwhile".to_owned()));
        }
        producer.send_offsets(&self.positions(take)?, &group, CALL_BOUND)?;
        fail::fail_point!("sink::positions_sent", |_| Err(TransactionError::Connection("a fail point".to_owned())));
        let positions_sent = clock::now();
        let mut index = 0;
        for (id, n) in take {
            for (_, pending) in self.partitions[id].tracker.run().take(*n) {
                self.send(producer, pending, index)?;
                index += 1;
            }
        }
        fail::fail_point!("sink::produced");
        let produced = clock::now();
        if back_to_back && index < FLUSH_FIRST_BELOW {
            producer.flush(CALL_BOUND)?;
        }
        fail::fail_point!("sink::flushed");
        let flushed = clock::now();
        producer.commit(CALL_BOUND)?;
        tracing::trace!(
            records = index,
            positions = ?(positions_sent - start),
            produce = ?(produced - positions_sent),
            flush = ?(flushed - produced),
            commit = ?(clock::now() - flushed),
            "committed"
        );
        fail::fail_point!("sink::committed", |_| Err(TransactionError::Connection("a fail point".to_owned())));
        Ok(())
    }

    fn positions(&self, take: &Take) -> Result<TopicPartitionList, TransactionError> {
        let mut positions = TopicPartitionList::new();
        for (id, n) in take {
            let partition = &self.partitions[id];
            let position = Offset::Offset(partition.tracker.position_after(*n));
            let added = positions.add_partition_offset(&partition.topic, partition.number, position);
            added.map_err(|error| TransactionError::Failed(error.to_string()))?;
        }
        Ok(positions)
    }

    /// Lowest offsets first, as many as one transaction may hold. Each time another partition is served first, so that a
    /// full transaction of one does not keep the others waiting for ever.
    fn take(&mut self) -> Take {
        self.turn += 1;
        let start = self.turn % self.partitions.len().max(1);
        let mut records = (self.sink.limits.commit_records_max.get() as usize).min(self.records_max);
        let mut bytes = self.sink.limits.commit_bytes_max.get();
        let mut take = Take::new();
        for (id, partition) in self.partitions.iter().skip(start).chain(self.partitions.iter().take(start)) {
            let mut n = 0;
            for (_, pending) in partition.tracker.run().take(records) {
                // The first reply goes out whatever its size, else it would wait for ever.
                if pending.reply.payload.len() > bytes && !(take.is_empty() && n == 0) {
                    break;
                }
                bytes = bytes.saturating_sub(pending.reply.payload.len());
                n += 1;
            }
            records -= n;
            if n > 0 {
                take.push((*id, n));
            }
        }
        take
    }

    fn send(&self, producer: &TransactionalProducer, pending: &Pending, index: usize) -> Result<(), TransactionError> {
        if pending.dropped || drops_a_reply() {
            return Ok(());
        }
        let Ticket { chunk, .. } = &pending.reply.ticket;
        let request = pending.reply.ticket.request();
        let (topic, partition) = match pending.address() {
            ReplyAddress::Route => (self.sink.routes[request.route as usize].topic.as_str(), None),
            ReplyAddress::Named { topic, partition } => (chunk.str(topic), partition),
        };
        let outgoing = || Outgoing {
            topic,
            partition,
            key: request.key.map(|key| chunk.bytes(key)),
            payload: &pending.reply.payload,
            headers: headers(&pending.reply, request),
            index,
        };
        if doubles_a_reply() {
            producer.send(outgoing())?;
        }
        producer.send(outgoing())
    }
}

/// The headers of a reply: what the request asked to have back, and the code of an error.
fn headers(reply: &Reply, request: &Request) -> Option<OwnedHeaders> {
    let chunk = &reply.ticket.chunk;
    let echo = chunk.echo(request);
    if echo.is_empty() && reply.error.is_none() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(echo.len() + 1);
    for header in echo {
        headers = headers.insert(Header { key: header.name, value: Some(chunk.bytes(header.value)) });
    }
    if let Some(code) = reply.error {
        headers = headers.insert(Header { key: "forebay-error", value: Some(code.as_str().as_bytes()) });
    }
    Some(headers)
}

/// A fail point that proves the checkers: they must see a reply that is missing.
fn drops_a_reply() -> bool {
    fail::fail_point!("sink::drop_reply", |_| true);
    false
}

/// A fail point that proves the checkers: they must see a reply that came twice.
fn doubles_a_reply() -> bool {
    fail::fail_point!("sink::double_reply", |_| true);
    false
}
