//! Replies that cannot go where they are addressed: one sender's bad address, or a reply that is too large, must stop
//! nobody else's. Such a reply becomes a small error on the route's own topic; refused there too, it is counted.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use super::super::ledger::Take;
use super::super::producer::Refusal;
use super::Committer;
use crate::record::{ErrorCode, PartitionId, Reject, ReplyAddress};

/// How long a route whose own topic refuses replies is left alone.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl Committer {
    /// Some replies of a transaction were refused for good.
    pub(super) fn refused(&mut self, take: &Take, refused: &[Refusal]) {
        let mut places = Vec::new();
        for (id, commit) in take {
            places.extend(
                self.ledger.partitions[id].tracker.sent().take(commit.records).map(|(offset, _)| (*id, offset)),
            );
        }
        if places.len() > 1 && names_nobody(refused) {
            // The same replies come again, the first half of them, until it is known which one it was.
            self.records_max = places.len().div_ceil(2);
            self.ledger.turn -= 1;
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
        let at_route = self.ledger.pending(id, offset);
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
            self.ledger.drop_letter(id, offset, "it is larger than its topic takes");
        } else {
            let kind = if is_size { ErrorCode::TooLarge } else { ErrorCode::BadRequest };
            self.ledger.readdress(
                id,
                offset,
                &Reject::new(kind, format!("the reply was refused by the broker: {code}")),
            );
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

/// Whether a refusal may be of a whole batch of replies, or of the whole transaction: then only one of them is bad, or
/// all are good and too large together.
fn names_nobody(refused: &[Refusal]) -> bool {
    use RDKafkaErrorCode as Code;
    let of_a_batch =
        |code| matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord);
    let several = refused.len() > 1;
    refused.iter().any(|refusal| refusal.index.is_none() || (several && of_a_batch(refusal.code)))
}
