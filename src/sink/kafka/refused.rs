//! Replies that cannot go where they are addressed: one sender's bad address, or a reply that is too large, must stop
//! nobody else's. Such a reply becomes a small error on the route's own topic; refused there too, it is counted.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use super::super::producer::{Refusal, TransactionError, TransactionalProducer};
use super::{CALL_BOUND, Pending, Take, Transactions};
use crate::clock;
use crate::record::{ErrorCode, PartitionId, Reject, ReplyAddress};

/// How long the answer counts that a topic has so many partitions.
const TOPIC_KNOWN_FOR: Duration = Duration::from_secs(30);
/// Most topics that are remembered: senders choose their names.
const TOPICS_KNOWN_MAX: usize = 4096;

impl Transactions {
    /// Before a transaction: the topics and partitions that requests named exist, or their replies go to the route.
    pub(super) fn check_addresses(
        &mut self,
        producer: &TransactionalProducer,
        take: &Take,
    ) -> Result<(), TransactionError> {
        let mut refused = Vec::new();
        for (id, n) in take {
            for (offset, pending) in self.partitions[id].tracker.run().take(*n) {
                let ReplyAddress::Named { topic, partition } = pending.address() else { continue };
                let topic = pending.reply.ticket.chunk.str(topic);
                let count = match self.topics.get(topic) {
                    Some((count, asked)) if clock::now() - *asked < TOPIC_KNOWN_FOR => *count,
                    _ => {
                        let count = producer.partitions_of(topic, CALL_BOUND)?;
                        if self.topics.len() >= TOPICS_KNOWN_MAX {
                            self.topics.clear();
                        }
                        self.topics.insert(topic.to_owned(), (count, clock::now()));
                        count
                    }
                };
                let wrong = match (count, partition) {
                    (None, _) => format!("the reply topic {topic} does not exist"),
                    (Some(count), Some(wanted)) if wanted < 0 || wanted >= count => {
                        format!("the reply topic {topic} has {count} partitions, not one of number {wanted}")
                    }
                    _ => continue,
                };
                refused.push((*id, offset, wrong));
            }
        }
        for (id, offset, wrong) in refused {
            self.readdress(id, offset, &Reject::bad_request(wrong));
        }
        Ok(())
    }

    /// Puts a small error reply to the route's own topic in the place of one that was refused.
    pub(super) fn readdress(&mut self, id: PartitionId, offset: i64, reject: &Reject) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let Some((_, old)) = partition.tracker.run().find(|(at, _)| *at == offset) else { return };
        let was_error_on_route = old.reply.error.is_some() && matches!(old.address(), ReplyAddress::Route);
        let reply = self.encoder.encode_reject(old.reply.ticket.clone(), reject);
        self.sink.metrics.requests_failed.with_label_values(&[reject.code.as_str()]).inc();
        if was_error_on_route {
            tracing::error!(topic = partition.topic, offset, "even the error reply was refused; the record is dropped");
            self.sink.metrics.replies_dropped.inc();
        }
        partition.tracker.replace(offset, Pending { reply, to_route: true, dropped: was_error_on_route });
    }

    /// Some replies were refused for good.
    pub(super) fn refused(&mut self, take: &Take, refused: &[Refusal]) {
        let mut places = Vec::new();
        for (id, n) in take {
            places.extend(self.partitions[id].tracker.run().take(*n).map(|(offset, _)| (*id, offset)));
        }
        if places.len() > 1 && names_nobody(refused) {
            // The same replies come again, the first half of them, until it is known which one it was.
            self.records_max = places.len().div_ceil(2);
            self.turn -= 1;
            return;
        }
        for Refusal { index, code } in refused {
            let Some(&(id, offset)) = places.get(index.unwrap_or(0)) else { continue };
            let at_route = self.partitions[&id].tracker.run().find(|(at, _)| *at == offset);
            let at_route = at_route.is_some_and(|(_, pending)| matches!(pending.address(), ReplyAddress::Route));
            let is_size =
                matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge);
            if at_route && !is_size && *code != RDKafkaErrorCode::InvalidRecord {
                // The route's own topic is gone or closed to us: that is the operator's to mend, not the sender's fault.
                self.sink.health.not_ready("producer", &format!("the route's reply topic refuses replies: {code}"));
                if !std::mem::replace(&mut self.refusing, true) {
                    tracing::error!(%code, "the route's own reply topic refuses replies; trying again every second");
                }
                std::thread::sleep(Duration::from_secs(1));
                return;
            }
            let kind = if is_size { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
            self.readdress(id, offset, &Reject::new(kind, format!("the reply was refused by the broker: {code}")));
        }
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
