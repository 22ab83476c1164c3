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

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::error::KafkaResult;
use rdkafka::message::{Header, OwnedHeaders};

use self::address::TopicFacts;
use super::ledger::{Ledger, Partition, Pending, Take};
use super::producer::{Outgoing, ReplyProducer, TransactionError};
use super::{Sink, SinkError, doubles_a_reply, drops_a_reply};
use crate::admin::Health;
use crate::client::acks::Acks;
use crate::client::topics::TopicSettings;
use crate::client::{BrokerWatch, ClientSettings, GroupMember, positions};
use crate::clock::Stop;
use crate::commit::LIMIT;
use crate::config::{Delivery, Kafka};
use crate::record::{Position, Reply, ReplyAddress, Request, Ticket};

/// The longest wait for one of librdkafka's calls; past it the producer is recycled.
const CALL_BOUND: Duration = Duration::from_secs(8);
/// The header of an id that a message always has which may come twice.
const MESSAGE_ID: &str = "forebay-message-id";
/// How long the thread sleeps while nothing comes.
const IDLE: Duration = Duration::from_millis(250);

/// All that a transaction thread is made of.
pub(crate) struct KafkaSink {
    pub(crate) settings: ClientSettings,
    pub(crate) limits: Kafka,
    pub(crate) told: Told,
    pub(crate) watch: Arc<BrokerWatch>,
    pub(crate) health: Arc<Health>,
    /// The name of this thread's producer at `/readyz`.
    pub(crate) part: String,
    pub(crate) stop: Arc<Stop>,
}

impl Sink for KafkaSink {
    fn run(self: Box<Self>, ledger: Ledger) -> Result<usize, SinkError> {
        let delivery = self.limits.delivery;
        let mut committer = Committer {
            settings_of: TopicSettings::new(self.settings.admin()),
            bytes_max: usize::MAX,
            sink: *self,
            ledger,
            topics: HashMap::new(),
            recycles: Vec::new(),
            last_begin: None,
            last_end: None,
            refusing: false,
            records_max: usize::MAX,
            chars_max: LIMIT,
        };
        match delivery {
            Delivery::ExactlyOnce => committer.run_transactions(),
            Delivery::AtLeastOnce => committer.run_at_least_once(),
        }
    }
}

impl KafkaSink {
    /// What another worker took from this one.
    fn fenced_by(&self) -> String {
        format!("transactional.id {}", self.settings.transactional_id())
    }

    fn ready(&self) {
        self.health.ready(&self.part);
    }

    fn not_ready(&self, reason: &str) {
        self.health.not_ready(&self.part, reason);
    }
}

/// Who is told of records that are answered.
#[derive(Clone)]
pub(crate) enum Told {
    /// The group, by its positions.
    Group(Arc<dyn GroupMember>),
    /// NATS' server, one by one.
    Acks(Acks),
}

impl Told {
    fn group(&self) -> Option<&Arc<dyn GroupMember>> {
        match self {
            Self::Group(group) => Some(group),
            Self::Acks(_) => None,
        }
    }
}

struct Committer {
    sink: KafkaSink,
    ledger: Ledger,
    /// What is known of the topics that replies go to.
    topics: HashMap<String, TopicFacts>,
    settings_of: TopicSettings,
    /// The least `max.message.bytes` of the topics that replies went to: no batch is larger.
    bytes_max: usize,
    recycles: Vec<Instant>,
    last_begin: Option<Instant>,
    last_end: Option<Instant>,
    /// The route's own reply topic refused replies, and has not taken any since.
    refusing: bool,
    /// Most records of the next transaction, besides `commit_records_max`: small while a reply that is refused is
    /// looked for, and doubled with each success.
    records_max: usize,
    /// Most characters of a partition's offset map; fewer than [`LIMIT`] where the broker takes fewer.
    chars_max: usize,
}

impl Committer {
    /// Whether all is done that was asked for, or there is no more time for it.
    fn is_over(&self) -> bool {
        (self.ledger.draining && self.ledger.in_flight() == 0) || self.sink.stop.overdue()
    }

    fn gather(&mut self, wait: Duration) {
        self.ledger.gather(wait);
        self.refuses_none();
    }

    /// Lets go of the partitions that leave, and says so.
    fn forget_leaving(&mut self) {
        self.ledger.forget_leaving();
        self.refuses_none();
    }

    /// Without partitions there are no replies to refuse.
    fn refuses_none(&mut self) {
        if self.refusing && self.ledger.partitions.is_empty() {
            self.refusing = false;
            self.sink.ready();
        }
    }

    /// The broker has these commits.
    fn commit(&mut self, commits: &Take) {
        self.ledger.commit(commits);
        self.sink.watch.back();
    }

    /// Commits as the broker takes them. A partition that was let go meanwhile has none.
    fn positions_of(&self, commits: &Take) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (id, commit) in commits {
            if let Some(Partition { topic, number, .. }) = self.ledger.partitions.get(id) {
                positions::add_commit(&mut list, topic, *number, &commit.map)?;
            }
        }
        Ok(list)
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
            ReplyAddress::Route => (self.ledger.routes[request.route as usize].topic.as_str(), None),
            ReplyAddress::Named { topic, partition } => (chunk.str(topic), partition),
        };
        let outgoing = || Outgoing {
            topic,
            partition,
            key: request.key.map(|key| chunk.bytes(key)),
            payload: Some(&pending.reply.payload),
            headers: headers(&pending.reply, request, self.message_id(request.position, "reply").as_deref()),
            index,
        };
        if doubles_a_reply() {
            producer.send(outgoing())?;
        }
        producer.send(outgoing())
    }

    /// What tells a message that comes twice, where Kafka cannot keep it from that: answers to records of NATS.
    fn message_id(&self, position: Position, kind: &str) -> Option<String> {
        match self.sink.told {
            Told::Group(_) => None,
            Told::Acks(_) => self.ledger.message_id(&self.sink.limits.group, position, kind),
        }
    }
}

/// The headers of a reply: what the request asked to have back, the code of an error, and the reply's id.
fn headers(reply: &Reply, request: &Request, id: Option<&str>) -> Option<OwnedHeaders> {
    let chunk = &reply.ticket.chunk;
    let echo = chunk.echo(request);
    if echo.is_empty() && reply.error.is_none() && id.is_none() {
        return None;
    }
    let mut headers = OwnedHeaders::new_with_capacity(echo.len() + 2);
    if let Some(id) = id {
        headers = headers.insert(Header { key: MESSAGE_ID, value: Some(id.as_bytes()) });
    }
    for header in echo {
        headers = headers.insert(Header { key: header.name, value: Some(chunk.bytes(header.value)) });
    }
    if let Some(reject) = &reply.error {
        headers = headers.insert(Header { key: "forebay-error", value: Some(reject.code.as_str().as_bytes()) });
    }
    Some(headers)
}
