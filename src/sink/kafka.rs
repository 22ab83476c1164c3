//! The transaction thread: replies in, transactions out, each with what it does to the positions of the records that it
//! answers. With `delivery = "at_least_once"` the same thread sends each reply by itself, and commits behind it.
//!
//! Invariants:
//! 1. A reply becomes visible if and only if its record is committed: both are in one transaction.
//! 2. A commit names every offset below its end that has no reply yet, so a position never passes one unsaid, and a slow
//!    record holds no other back.
//! 3. The group's metadata is taken first, then it is checked that no partition was given up meanwhile, then the
//!    positions are sent. A member that was replaced is so refused by the broker, one that knows it refrains; and between
//!    the positions and the commit the group waits, because the positions are pending.
//! 4. After any error the producer is dropped and made anew (an old `EndTxn` may still be under way and would end the
//!    next transaction), and the committed positions are read back: they say what truly committed. Scores in memory
//!    are sent again, not computed again.

mod address;
mod at_least_once;
mod letter;
mod recover;
mod refused;
mod transaction;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::TopicPartitionList;
use rdkafka::error::KafkaResult;
use rdkafka::message::{Header, OwnedHeaders};

use self::address::TopicFacts;
use super::inbox::{Event, Inbox};
use super::producer::{Outgoing, ReplyProducer, TransactionError};
use crate::admin::Health;
use crate::client::topics::TopicSettings;
use crate::client::{BrokerWatch, ClientSettings, GroupMember, positions};
use crate::clock::Stop;
use crate::commit::{Commit, Finish, LIMIT, Tracker};
use crate::config::{DeadLetter, Delivery, Kafka, Ordering, ReplyMetadata};
use crate::encode::Encoder;
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, Chunk, PartitionId, Reply, ReplyAddress, Request, ScoredBatch, Ticket};

/// The longest wait for one of librdkafka's calls; past it the producer is recycled.
const CALL_BOUND: Duration = Duration::from_secs(8);
/// How long the thread sleeps while nothing comes.
const IDLE: Duration = Duration::from_millis(250);

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
    pub(crate) inputs: Vec<String>,
    pub(crate) dead_letter: Option<DeadLetter>,
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
    /// The name of this thread's producer at `/readyz`.
    pub(crate) part: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Arc<Stop>,
}

impl KafkaSink {
    /// Runs until it is drained. Returns how many records were left unanswered.
    pub(crate) fn run(self, events: Receiver<Event>) -> Result<usize, SinkError> {
        let delivery = self.limits.delivery;
        let mut committer = Committer {
            settings_of: TopicSettings::new(self.settings.admin()),
            bytes_max: usize::MAX,
            sink: self,
            events,
            encoder: Encoder::default(),
            keys: RandomState::new(),
            partitions: BTreeMap::new(),
            topics: HashMap::new(),
            draining: false,
            leaving: Vec::new(),
            replies: Vec::new(),
            recycles: Vec::new(),
            last_begin: None,
            last_end: None,
            losses: 0,
            turn: 0,
            is_news: false,
            refusing: false,
            records_max: usize::MAX,
            chars_max: LIMIT,
        };
        match delivery {
            Delivery::ExactlyOnce => committer.run_transactions(),
            Delivery::AtLeastOnce => committer.run_at_least_once(),
        }
    }

    fn ready(&self) {
        self.health.ready(&self.part);
    }

    fn not_ready(&self, reason: &str) {
        self.health.not_ready(&self.part, reason);
    }
}

/// A reply that waits for its way out.
#[derive(Debug)]
struct Pending {
    reply: Reply,
    /// Its own address was refused: it goes to the route's topic.
    to_route: bool,
    /// It was refused there too, and is counted instead of sent.
    dropped: bool,
    /// Its record goes to the route's dead letters too.
    letter: bool,
}

impl Pending {
    fn address(&self) -> ReplyAddress {
        if self.to_route { ReplyAddress::Route } else { self.reply.ticket.request().address }
    }

    /// What it counts for against `commit_bytes_max`.
    fn bytes(&self) -> usize {
        let request = self.reply.ticket.request();
        let letter = self.reply.ticket.chunk.original(request).filter(|_| self.letter);
        let record = letter.and_then(|original| original.payload).map_or(0, crate::record::Span::len);
        self.reply.payload.len() + record
    }
}

struct Partition {
    topic: String,
    number: i32,
    tracker: Tracker<Pending>,
    /// Where it was read to its end, past what is no record.
    idle: Option<i64>,
}

/// Partitions that go, and who waits for it.
struct Leaving {
    partitions: Vec<PartitionId>,
    done: Sender<()>,
}

/// What is taken of each partition, with what its commit says.
type Take = Vec<(PartitionId, Commit)>;

struct Committer {
    sink: KafkaSink,
    events: Receiver<Event>,
    encoder: Encoder,
    /// Hashes keys, where those keep order.
    keys: RandomState,
    partitions: BTreeMap<PartitionId, Partition>,
    /// What is known of the topics that replies go to.
    topics: HashMap<String, TopicFacts>,
    settings_of: TopicSettings,
    /// The least `max.message.bytes` of the topics that replies went to: no batch is larger.
    bytes_max: usize,
    draining: bool,
    leaving: Vec<Leaving>,
    replies: Vec<Reply>,
    recycles: Vec<Instant>,
    last_begin: Option<Instant>,
    last_end: Option<Instant>,
    /// The losses that were handled, as the inbox counts them.
    losses: u64,
    /// Which partition the next transaction takes from first.
    turn: usize,
    /// Whether anything came since nothing could be taken.
    is_news: bool,
    /// The route's own reply topic refused replies, and has not taken any since.
    refusing: bool,
    /// Most records of the next transaction, besides `commit_records_max`: small while a reply that is refused is
    /// looked for, and doubled with each success.
    records_max: usize,
    /// Most characters of a partition's offset map; fewer than [`LIMIT`] where the broker takes fewer.
    chars_max: usize,
}

impl Committer {
    fn in_flight(&self) -> usize {
        // The inbox counts those too whose messages were not looked at yet.
        self.sink.inbox.in_flight()
    }

    /// Whether all is done that was asked for, or there is no more time for it.
    fn is_over(&self) -> bool {
        (self.draining && self.in_flight() == 0) || self.sink.stop.overdue()
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
    }

    fn handle(&mut self, event: Event) {
        self.is_news = true;
        match event {
            Event::Assigned(assigned) => self.assigned(assigned),
            Event::Revoked { partitions, done } => self.leaving.push(Leaving { partitions, done }),
            Event::Lost(partitions) => self.forget(&partitions),
            Event::Received(chunk) => self.received(&chunk),
            Event::Ended(batch) => self.ended(*batch),
            Event::Idle { id, position } => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.idle = Some(position);
                }
            }
            Event::Look => {}
            Event::Drain => self.draining = true,
        }
    }

    fn assigned(&mut self, assigned: Vec<AssignedPartition>) {
        let ordering = self.sink.limits.ordering;
        for AssignedPartition { id, topic, number, committed } in assigned {
            let tracker = Tracker::new(&committed, ordering);
            self.sink.metrics.lags.assigned(&topic, number, committed.base());
            self.partitions.insert(id, Partition { topic, number, tracker, idle: None });
            self.sink.metrics.partitions_assigned.inc();
        }
        self.sink.metrics.rebalances.inc();
    }

    fn received(&mut self, chunk: &Arc<Chunk>) {
        self.sink.metrics.records_in_flight.add(i64::try_from(chunk.requests().len()).unwrap_or(i64::MAX));
        let is_keyed = self.sink.limits.ordering == Ordering::Key;
        for (request, index) in chunk.requests().iter().zip(0..) {
            let Some(partition) = self.partitions.get_mut(&request.position.partition) else {
                // Its partition was let go inside the poll that brought it.
                self.release(1);
                continue;
            };
            if partition.tracker.is_committed(request.position.offset) {
                // Another member has committed it: that the partition was lost is not in the queue yet.
                self.release(1);
                continue;
            }
            let key = request.key.filter(|_| is_keyed).map(|key| self.keys.hash_one(chunk.bytes(key)));
            partition.tracker.deliver(request.position.offset, key);
            if let Err(reject) = &request.work {
                self.sink.metrics.record_error("", reject.code);
                let ticket = Ticket { chunk: Arc::clone(chunk), index };
                let reply = self.encoder.encode_reject(ticket, reject);
                self.finish(reply);
            }
        }
    }

    /// What these partitions have in flight is another member's to score again.
    fn forget(&mut self, partitions: &[PartitionId]) {
        for id in partitions {
            if let Some(gone) = self.partitions.remove(id) {
                self.release(gone.tracker.len());
                self.sink.metrics.lags.gone(&gone.topic, gone.number);
                self.sink.metrics.partitions_assigned.dec();
            }
        }
        if self.partitions.is_empty() && std::mem::take(&mut self.refusing) {
            self.sink.ready();
        }
        self.sink.metrics.rebalances.inc();
    }

    /// Lets go of the partitions that leave, and says so.
    fn forget_leaving(&mut self) {
        for Leaving { partitions, done } in std::mem::take(&mut self.leaving) {
            self.forget(&partitions);
            // Who waited longer than its bound has gone on already.
            let _ = done.send(());
        }
    }

    fn release(&self, records: usize) {
        self.sink.inbox.release(records);
        self.sink.metrics.records_in_flight.sub(i64::try_from(records).unwrap_or(i64::MAX));
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
        let letter = letter::is_due(&reply, &self.sink.routes);
        let pending = Pending { reply, to_route: false, dropped: false, letter };
        // One that is not known was committed by another member, and let go.
        if partition.tracker.finish(position.offset, pending) == Finish::Duplicate {
            tracing::error!(
                topic = partition.topic,
                offset = position.offset,
                "a record ended twice; the first end counts"
            );
        }
    }

    /// A reply that was not committed yet.
    fn pending(&self, id: PartitionId, offset: i64) -> Option<&Pending> {
        self.partitions.get(&id)?.tracker.reply(offset)
    }

    /// What was on its way is not.
    fn untake(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.tracker.untake();
        }
    }

    /// Commits as the broker takes them. A partition that was let go meanwhile has none.
    fn positions_of(&self, commits: &Take) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (id, commit) in commits {
            if let Some(Partition { topic, number, .. }) = self.partitions.get(id) {
                positions::add_commit(&mut list, topic, *number, &commit.map)?;
            }
        }
        Ok(list)
    }

    /// The broker has these commits.
    fn commit(&mut self, commits: &Take) {
        let mut records = 0;
        for (id, commit) in commits {
            if let Some(partition) = self.partitions.get_mut(id) {
                records += partition.tracker.commit(commit);
                self.sink.metrics.lags.committed(&partition.topic, partition.number, commit.map.base());
            }
        }
        self.release(records);
        self.sink.watch.back();
        self.sink.metrics.commits.inc();
        self.sink.metrics.commit_records.add(records as u64);
    }

    /// Commits of partitions that were read to their end, past what is no record.
    fn take_idle(&mut self) -> Take {
        let idle = self.partitions.iter_mut().filter_map(|(id, partition)| {
            let commit = partition.tracker.idle_commit(partition.idle.take()?)?;
            Some((*id, commit))
        });
        idle.collect()
    }

    /// Hands a reply to the producer, and its record as a dead letter where that is due. `index` names it to the
    /// delivery report; the letter has the index above it.
    fn send(&self, producer: &ReplyProducer, pending: &Pending, index: usize) -> Result<(), TransactionError> {
        if pending.letter {
            self.send_letter(producer, pending, index + 1)?;
        }
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
            payload: Some(&pending.reply.payload),
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
    if let Some(reject) = &reply.error {
        headers = headers.insert(Header { key: "forebay-error", value: Some(reject.code.as_str().as_bytes()) });
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
