//! Replies that cannot go where they are addressed: one sender's bad address, or a reply that is too large, must stop
//! nobody else's. Such a reply becomes a small error on the route's own topic; refused there too, it is counted.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use super::super::producer::{Refusal, ReplyProducer, TransactionError};
use super::transaction::Take;
use super::{CALL_BOUND, Committer, Pending};
use crate::clock;
use crate::record::{ErrorCode, PartitionId, Reject, ReplyAddress};

/// How long the answer counts that a topic has so many partitions.
const TOPIC_KNOWN_FOR: Duration = Duration::from_secs(30);
/// How long a route whose own topic refuses replies is left alone.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Most topics that are remembered: senders choose their names.
const TOPICS_KNOWN_MAX: usize = 4096;

impl Committer {
    /// Before replies go out: the topics and partitions that requests named exist, or their replies go to the route.
    /// Returns how many were readdressed.
    pub(super) fn check_addresses(&mut self, producer: &ReplyProducer, take: &Take) -> Result<usize, TransactionError> {
        let mut named = Vec::new();
        let mut has_letters = false;
        for (id, commit) in take {
            for (offset, pending) in self.partitions[id].tracker.sent().take(commit.records) {
                has_letters |= pending.letter;
                if let ReplyAddress::Named { topic, partition } = pending.address() {
                    named.push((*id, offset, pending.reply.ticket.chunk.str(topic).to_owned(), partition));
                }
            }
        }
        if has_letters {
            self.look_up_letter_topics(producer)?;
        }
        let mut readdressed = 0;
        for (id, offset, topic, partition) in named {
            readdressed += usize::from(self.readdress_wrong(producer, id, offset, &topic, partition)?);
        }
        Ok(readdressed)
    }

    /// Readdresses one reply if its request named what does not exist. Returns whether it did.
    pub(super) fn readdress_wrong(
        &mut self,
        producer: &ReplyProducer,
        id: PartitionId,
        offset: i64,
        topic: &str,
        partition: Option<i32>,
    ) -> Result<bool, TransactionError> {
        let count = self.partitions_of(producer, topic)?;
        let wrong = wrong_address(topic, count, partition);
        if let Some(wrong) = &wrong {
            self.readdress(id, offset, &Reject::bad_request(wrong));
        }
        Ok(wrong.is_some())
    }

    /// How many partitions a topic has, asked again after a while; `None` when there is no such topic.
    pub(super) fn partitions_of(
        &mut self,
        producer: &ReplyProducer,
        topic: &str,
    ) -> Result<Option<i32>, TransactionError> {
        if let Some((count, asked)) = self.topics.get(topic)
            && clock::now() - *asked < TOPIC_KNOWN_FOR
        {
            return Ok(*count);
        }
        let count = producer.partitions_of(topic, CALL_BOUND)?;
        if self.topics.len() >= TOPICS_KNOWN_MAX {
            self.topics.clear();
        }
        self.topics.insert(topic.to_owned(), (count, clock::now()));
        Ok(count)
    }

    /// Puts a small error reply to the route's own topic in the place of one that was refused.
    pub(super) fn readdress(&mut self, id: PartitionId, offset: i64, reject: &Reject) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let Some(old) = partition.tracker.reply(offset) else { return };
        let (ticket, letter) = (old.reply.ticket.clone(), old.letter);
        let dropped = old.reply.error.is_some() && matches!(old.address(), ReplyAddress::Route);
        let reply = self.encoder.encode_reject(ticket, reject);
        self.sink.metrics.requests_failed.with_label_values(&[reject.code.as_str()]).inc();
        if dropped {
            tracing::error!(topic = partition.topic, offset, "even the error reply was refused; the record is dropped");
            self.sink.metrics.replies_dropped.inc();
        }
        partition.tracker.replace(offset, Pending { reply, to_route: true, dropped, letter });
    }

    /// A dead letter is larger than its topic takes.
    fn drop_letter(&mut self, id: PartitionId, offset: i64) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let Some(old) = partition.tracker.reply(offset) else { return };
        let Pending { reply, to_route, dropped, .. } = old;
        let (reply, to_route, dropped) = (reply.clone(), *to_route, *dropped);
        tracing::error!(topic = partition.topic, offset, "a dead letter is larger than its topic takes; it is dropped");
        self.sink.metrics.dead_letters_dropped.inc();
        partition.tracker.replace(offset, Pending { reply, to_route, dropped, letter: false });
    }

    /// Some replies of a transaction were refused for good.
    pub(super) fn refused(&mut self, take: &Take, refused: &[Refusal]) {
        let mut places = Vec::new();
        for (id, commit) in take {
            places.extend(self.partitions[id].tracker.sent().take(commit.records).map(|(offset, _)| (*id, offset)));
        }
        if places.len() > 1 && names_nobody(refused) {
            // The same replies come again, the first half of them, until it is known which one it was.
            self.records_max = places.len().div_ceil(2);
            self.turn -= 1;
            return;
        }
        for Refusal { index, code } in refused {
            let index = index.unwrap_or(0);
            let Some(&(id, offset)) = places.get(index / 2) else { continue };
            if self.refuse(id, offset, index % 2 == 1, *code) == Refused::Route {
                // What refuses all would refuse it again at once.
                std::thread::sleep(REFUSED_PAUSE);
                return;
            }
        }
    }

    /// One reply, or its dead letter, was refused for good.
    pub(super) fn refuse(&mut self, id: PartitionId, offset: i64, is_letter: bool, code: RDKafkaErrorCode) -> Refused {
        let at_route = self.partitions.get(&id).and_then(|partition| partition.tracker.reply(offset));
        let at_route = at_route.is_some_and(|pending| is_letter || matches!(pending.address(), ReplyAddress::Route));
        let is_size = matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge);
        if at_route && !is_size && code != RDKafkaErrorCode::InvalidRecord {
            // The route's own topic is gone or closed to us: that is the operator's to mend, not the sender's fault.
            self.sink.not_ready(&format!("a route's own topic refuses replies: {code}"));
            if !std::mem::replace(&mut self.refusing, true) {
                tracing::error!(%code, "a route's own topic refuses replies; trying again every second");
            }
            return Refused::Route;
        }
        if is_letter {
            self.drop_letter(id, offset);
        } else {
            let kind = if is_size { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
            self.readdress(id, offset, &Reject::new(kind, format!("the reply was refused by the broker: {code}")));
        }
        Refused::Reply
    }
}

/// Who is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// One reply, which has another in its place now.
    Reply,
    /// The route's own topic takes none.
    Route,
}

/// Why a reply cannot go where its request says, if it cannot.
fn wrong_address(topic: &str, count: Option<i32>, partition: Option<i32>) -> Option<String> {
    match (count, partition) {
        (None, _) => Some(format!("the reply topic {topic} does not exist")),
        (Some(count), Some(wanted)) if wanted < 0 || wanted >= count => {
            Some(format!("the reply topic {topic} has {count} partitions, not one of number {wanted}"))
        }
        _ => None,
    }
}

/// Whether a refusal may be of a whole batch of replies, or of the whole transaction: then only one of them is bad, or
/// all are good and too large together.
fn names_nobody(refused: &[Refusal]) -> bool {
    use RDKafkaErrorCode as Code;
    let of_a_batch =
        |code| matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord);
    let several = refused.len() > 1;
    refused.iter().any(|refusal| refusal.index.is_none() || (several && of_a_batch(refusal.code)))
}
