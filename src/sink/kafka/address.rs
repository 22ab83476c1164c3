//! Before replies go out: the topics and partitions that they are addressed to exist, and take replies of their size. One
//! that does not would fail all its neighbours in a transaction.

use std::time::{Duration, Instant};

use super::super::ledger::{Pending, Take};
use super::super::producer::{ReplyProducer, TransactionError};
use super::{CALL_BOUND, Committer, Told};
use crate::clock;
use crate::record::{ErrorCode, PartitionId, Reject, ReplyAddress};

/// How long counts what was learnt of a topic.
const TOPIC_KNOWN_FOR: Duration = Duration::from_secs(30);
/// Most topics that are remembered: senders choose their names.
const TOPICS_KNOWN_MAX: usize = 4096;
/// What the id of an answer to a record of NATS takes: group, stream, when that was created, and the rest.
const MESSAGE_ID_BYTES: usize = 512;
/// What a batch of one record takes besides its key, value and headers, and what a header does.
const RECORD_BYTES: usize = 100;
const HEADER_BYTES: usize = 10;

/// What is known of a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopicFacts {
    /// `None` when there is no such topic.
    pub(super) partitions: Option<i32>,
    /// Most bytes of a batch.
    bytes_max: usize,
    asked: Instant,
}

impl Committer {
    /// Readdresses what cannot go where its request says. Returns how many those were.
    pub(super) fn check_addresses(&mut self, producer: &ReplyProducer, take: &Take) -> Result<usize, TransactionError> {
        let mut odd = Vec::new();
        let mut has_letters = false;
        for (id, commit) in take {
            for (offset, pending) in self.ledger.partitions[id].tracker.sent().take(commit.records) {
                has_letters |= pending.letter;
                if self.is_worth_a_look(pending) {
                    odd.push((*id, offset));
                }
            }
        }
        if has_letters {
            self.look_up_letter_topics(producer)?;
        }
        let mut readdressed = 0;
        for (id, offset) in odd {
            readdressed += usize::from(self.readdress_wrong(producer, id, offset)?);
        }
        Ok(readdressed)
    }

    /// About what a reply takes in a batch of its own, its id included; never less than it does.
    fn wire_bytes(&self, pending: &Pending) -> usize {
        let id = if matches!(self.sink.told, Told::Acks(_)) { MESSAGE_ID_BYTES } else { 0 };
        id + wire_bytes(pending)
    }

    /// Whether a reply may be one that cannot go out. The usual one goes to the route's topic and is small.
    fn is_worth_a_look(&self, pending: &Pending) -> bool {
        let is_named = matches!(pending.address(), ReplyAddress::Named { .. });
        !pending.dropped && (is_named || self.wire_bytes(pending) > self.bytes_max)
    }

    /// Readdresses one reply if its topic does not take it. Returns whether it did.
    pub(super) fn readdress_wrong(
        &mut self,
        producer: &ReplyProducer,
        id: PartitionId,
        offset: i64,
    ) -> Result<bool, TransactionError> {
        let Some(pending) = self.ledger.pending(id, offset) else {
            return Ok(false);
        };
        if !self.is_worth_a_look(pending) {
            return Ok(false);
        }
        let (request, chunk) = (pending.reply.ticket.request(), &pending.reply.ticket.chunk);
        let bytes = self.wire_bytes(pending);
        let (topic, wanted, is_named) = match pending.address() {
            ReplyAddress::Route => (self.ledger.routes[request.route as usize].topic.clone(), None, false),
            ReplyAddress::Named { topic, partition } => (chunk.str(topic).to_owned(), partition, true),
        };
        let TopicFacts { partitions, bytes_max, .. } = self.facts_of(producer, &topic)?;
        let wrong = match (partitions, wanted) {
            (None, _) if is_named => Reject::bad_request(format!("the reply topic {topic} does not exist")),
            (Some(count), Some(wanted)) if wanted < 0 || wanted >= count => Reject::bad_request(format!(
                "the reply topic {topic} has {count} partitions, not one of number {wanted}"
            )),
            _ if bytes > bytes_max => Reject::new(
                ErrorCode::TooLarge,
                format!("the reply takes {bytes} bytes, the topic {topic} takes {bytes_max} (max.message.bytes)"),
            ),
            _ => return Ok(false),
        };
        self.ledger.readdress(id, offset, &wrong);
        Ok(true)
    }

    /// What is known of a topic, asked again after a while.
    pub(super) fn facts_of(&mut self, producer: &ReplyProducer, topic: &str) -> Result<TopicFacts, TransactionError> {
        if let Some(facts) = self.topics.get(topic)
            && clock::now() - facts.asked < TOPIC_KNOWN_FOR
        {
            return Ok(*facts);
        }
        let partitions = producer.partitions_of(topic, CALL_BOUND)?;
        let bytes_max = match partitions {
            // Compressed, a batch is smaller than its parts tell.
            Some(_) if !self.sink.settings.compresses() => self.settings_of.message_bytes_max(topic, CALL_BOUND),
            _ => None,
        };
        let facts = TopicFacts { partitions, bytes_max: bytes_max.unwrap_or(usize::MAX), asked: clock::now() };
        if self.topics.len() >= TOPICS_KNOWN_MAX {
            self.topics.clear();
        }
        self.topics.insert(topic.to_owned(), facts);
        self.bytes_max = self.bytes_max.min(facts.bytes_max);
        Ok(facts)
    }
}

/// The same without an id.
fn wire_bytes(pending: &Pending) -> usize {
    let request = pending.reply.ticket.request();
    let chunk = &pending.reply.ticket.chunk;
    let key = request.key.map_or(0, crate::record::Span::len);
    let echo = chunk.echo(request).iter().map(|header| header.name.len() + header.value.len() + HEADER_BYTES);
    let error = pending.reply.error.as_ref().map_or(0, |_| "forebay-error".len() + HEADER_BYTES + 20);
    RECORD_BYTES + key + pending.reply.payload.len() + echo.sum::<usize>() + error
}
