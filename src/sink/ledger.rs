//! What a worker owes: the records in flight by partition, their replies, and what the next commit may say of them. A
//! sink takes replies from it and tells it what was committed; where they go is the sink's own.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use crossbeam_channel::{Receiver, Sender};

use super::inbox::{Event, Inbox};
use crate::clock;
use crate::commit::{Budget, Commit, Finish, LIMIT, OffsetMap, Tracker};
use crate::config::{DeadLetter, Ordering, ReplyMetadata};
use crate::encode::Encoder;
use crate::metrics::Metrics;
use crate::record::{
    AssignedPartition, Chunk, ErrorCode, Fence, PartitionId, Position, Reject, Reply, ReplyAddress, ScoredBatch, Ticket,
};

/// Where a route's replies go, and what is in them.
#[derive(Clone, Debug)]
pub(crate) struct ReplyRoute {
    pub(crate) topic: String,
    pub(crate) metadata: ReplyMetadata,
    pub(crate) inputs: Vec<String>,
    pub(crate) dead_letter: Option<DeadLetter>,
}

/// A reply that waits for its way out.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) reply: Reply,
    /// Its own address was refused: it goes to the route's topic.
    pub(super) to_route: bool,
    /// It was refused there too, and is counted instead of sent.
    pub(super) dropped: bool,
    /// Its record goes to the route's dead letters too.
    pub(super) letter: bool,
}

impl Pending {
    pub(super) fn address(&self) -> ReplyAddress {
        if self.to_route { ReplyAddress::Route } else { self.reply.ticket.request().address }
    }

    /// What it counts for against `commit_bytes_max`.
    pub(super) fn bytes(&self) -> usize {
        let request = self.reply.ticket.request();
        let letter = self.reply.ticket.chunk.original(request).filter(|_| self.letter);
        let record = letter.and_then(|original| original.payload).map_or(0, crate::record::Span::len);
        self.reply.payload.len() + record
    }
}

pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) tracker: Tracker<Pending>,
    /// Where it was read to its end, past what is no record.
    pub(super) idle: Option<i64>,
    /// The checkpoint by which this worker holds it, where that is a message of its own.
    pub(super) claim: Option<Claim>,
    /// Where the source wants to hear of records that are done, by their offsets.
    pub(super) acks: BTreeMap<i64, Subject>,
}

/// The last checkpoint of a partition that is held.
pub(super) struct Claim {
    pub(super) fence: Fence,
    /// What it says is done.
    pub(super) map: OffsetMap,
    pub(super) written: Instant,
    /// Checkpoints that it took the place of, and that were not removed.
    pub(super) superseded: usize,
}

/// Partitions that go, and who waits for it.
pub(super) struct Leaving {
    pub(super) partitions: Vec<PartitionId>,
    pub(super) done: Sender<()>,
}

/// What is taken of each partition, with what its commit says.
pub(super) type Take = Vec<(PartitionId, Commit)>;

pub(crate) struct Ledger {
    pub(super) routes: Vec<ReplyRoute>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Receiver<Event>,
    pub(super) encoder: Encoder,
    ordering: Ordering,
    /// Records come in any order and again, and each is done by itself.
    is_shared: bool,
    /// Hashes keys, where those keep order.
    keys: RandomState,
    pub(super) partitions: BTreeMap<PartitionId, Partition>,
    pub(super) draining: bool,
    pub(super) leaving: Vec<Leaving>,
    replies: Vec<Reply>,
    /// The losses that were handled, as the inbox counts them.
    pub(super) losses: u64,
    /// Which partition the next commit takes from first.
    pub(super) turn: usize,
    /// Whether anything came since nothing could be taken.
    pub(super) is_news: bool,
}

impl Ledger {
    pub(crate) fn new(
        routes: Vec<ReplyRoute>,
        ordering: Ordering,
        inbox: Arc<Inbox>,
        events: Receiver<Event>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            routes,
            inbox,
            metrics,
            events,
            encoder: Encoder::default(),
            ordering,
            is_shared: false,
            keys: RandomState::new(),
            partitions: BTreeMap::new(),
            draining: false,
            leaving: Vec::new(),
            replies: Vec::new(),
            losses: 0,
            turn: 0,
            is_news: false,
        }
    }

    /// For records that come in any order and again, and are done one by one.
    pub(super) fn share(&mut self) {
        self.is_shared = true;
    }

    pub(super) fn in_flight(&self) -> usize {
        // The inbox counts those too whose messages were not looked at yet.
        self.inbox.in_flight()
    }

    // ---- events ----

    pub(super) fn gather(&mut self, wait: Duration) {
        if let Ok(event) = self.events.recv_timeout(wait) {
            self.handle(event);
        }
        // Every loss counted by now is in the queue, and so handled below; one counted later stops the transaction.
        self.losses = self.inbox.losses();
        while let Ok(event) = self.events.try_recv() {
            self.handle(event);
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
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
            Event::Acks { id, acks } => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.acks.extend(acks);
                }
            }
            Event::Look => {}
            Event::Drain => self.draining = true,
        }
    }

    fn assigned(&mut self, assigned: Vec<AssignedPartition>) {
        let (ordering, written) = (self.ordering, clock::now());
        for AssignedPartition { id, topic, number, committed, fence } in assigned {
            let tracker = Tracker::new(&committed, ordering);
            self.metrics.lags.assigned(&topic, number, committed.base());
            let claim = fence.map(|fence| Claim { fence, map: committed, written, superseded: 0 });
            let partition = Partition { topic, number, tracker, idle: None, claim, acks: BTreeMap::new() };
            self.partitions.insert(id, partition);
            self.metrics.partitions_assigned.inc();
        }
        self.metrics.rebalances.inc();
    }

    fn received(&mut self, chunk: &Arc<Chunk>) {
        self.metrics.records_in_flight.add(i64::try_from(chunk.requests().len()).unwrap_or(i64::MAX));
        let is_keyed = self.ordering == Ordering::Key;
        for (request, index) in chunk.requests().iter().zip(0..) {
            let Some(partition) = self.partitions.get_mut(&request.position.partition) else {
                // Its partition was let go inside the poll that brought it.
                self.release(1);
                continue;
            };
            if self.is_shared {
                if !partition.tracker.deliver_again(request.position.offset) {
                    // It is being scored: its one end is the end of both.
                    self.release(1);
                    continue;
                }
            } else if partition.tracker.is_committed(request.position.offset) {
                // Another member has committed it: that the partition was lost is not in the queue yet.
                self.release(1);
                continue;
            }
            if !self.is_shared {
                let key = request.key.filter(|_| is_keyed).map(|key| self.keys.hash_one(chunk.bytes(key)));
                partition.tracker.deliver(request.position.offset, key);
            }
            if let Err(reject) = &request.work {
                self.metrics.record_error("", reject.code);
                let ticket = Ticket { chunk: Arc::clone(chunk), index };
                let reply = self.encoder.encode_reject(ticket, reject);
                self.finish(reply);
            }
        }
    }

    /// What these partitions have in flight is another member's to score again.
    pub(super) fn forget(&mut self, partitions: &[PartitionId]) {
        for id in partitions {
            if let Some(gone) = self.partitions.remove(id) {
                self.release(gone.tracker.len());
                self.metrics.lags.gone(&gone.topic, gone.number);
                self.metrics.partitions_assigned.dec();
            }
        }
        self.metrics.rebalances.inc();
    }

    /// Lets go of the partitions that leave, and says so.
    pub(super) fn forget_leaving(&mut self) {
        for Leaving { partitions, done } in std::mem::take(&mut self.leaving) {
            self.forget(&partitions);
            // Who waited longer than its bound has gone on already.
            let _ = done.send(());
        }
    }

    pub(super) fn release(&self, records: usize) {
        self.inbox.release(records);
        self.metrics.records_in_flight.sub(i64::try_from(records).unwrap_or(i64::MAX));
    }

    fn ended(&mut self, batch: ScoredBatch) {
        let mut replies = std::mem::take(&mut self.replies);
        let routes = &self.routes;
        self.encoder.encode_batch(batch, |route| routes[route as usize].metadata, &mut replies);
        for reply in replies.drain(..) {
            self.finish(reply);
        }
        self.replies = replies;
    }

    pub(super) fn finish(&mut self, reply: Reply) {
        let position = reply.ticket.request().position;
        let Some(partition) = self.partitions.get_mut(&position.partition) else { return };
        let letter = is_letter_due(&reply, &self.routes);
        let pending = Pending { reply, to_route: false, dropped: false, letter };
        // One that is not known was committed by another member, and let go.
        if partition.tracker.finish(position.offset, pending) == Finish::Duplicate && !self.is_shared {
            tracing::error!(
                topic = partition.topic,
                offset = position.offset,
                "a record ended twice; the first end counts"
            );
        }
    }

    /// Puts a small error reply to the route's own topic in the place of one that was refused.
    pub(super) fn readdress(&mut self, id: PartitionId, offset: i64, reject: &Reject) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let Some(old) = partition.tracker.reply(offset) else { return };
        let (ticket, had_letter, was_error) = (old.reply.ticket.clone(), old.letter, old.reply.error.is_some());
        let dropped = old.reply.error.is_some() && matches!(old.address(), ReplyAddress::Route);
        let reply = self.encoder.encode_reject(ticket, reject);
        self.metrics.record_error("", reject.code);
        if dropped {
            tracing::error!(topic = partition.topic, offset, "even the error reply was refused; the record is dropped");
            self.metrics.replies_dropped.inc();
        }
        // What its sender got wrong makes it a dead letter, if it was none before.
        let letter = had_letter || (!was_error && is_letter_due(&reply, &self.routes));
        partition.tracker.replace(offset, Pending { reply, to_route: true, dropped, letter });
    }

    /// A dead letter cannot go out, for this.
    pub(super) fn drop_letter(&mut self, id: PartitionId, offset: i64, reason: &str) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let Some(old) = partition.tracker.reply(offset) else { return };
        let Pending { reply, to_route, dropped, .. } = old;
        let (reply, to_route, dropped) = (reply.clone(), *to_route, *dropped);
        tracing::error!(topic = partition.topic, offset, reason, "a dead letter cannot go out; it is dropped");
        self.metrics.dead_letters_dropped.inc();
        partition.tracker.replace(offset, Pending { reply, to_route, dropped, letter: false });
    }

    /// An id that a record's message of this kind always has, where workers share records and may answer one twice: two groups, or
    /// a reply and a dead letter, must not pass for one.
    pub(super) fn message_id(&self, group: &str, position: Position, kind: &str) -> Option<String> {
        let Partition { topic, claim, .. } = self.partitions.get(&position.partition)?;
        let created = claim.as_ref().map_or("", |claim| &claim.fence.created);
        Some(format!("{group}:{topic}:{created}:{}:{kind}", position.offset))
    }

    /// A reply that was not committed yet.
    pub(super) fn pending(&self, id: PartitionId, offset: i64) -> Option<&Pending> {
        self.partitions.get(&id)?.tracker.reply(offset)
    }

    /// What was on its way is not.
    pub(super) fn untake(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.tracker.untake();
        }
    }

    /// A record that was shared is done.
    pub(super) fn settled(&mut self, id: PartitionId, offset: i64) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        if let Some(pending) = partition.tracker.reply(offset) {
            let arrived = pending.reply.ticket.request().arrived;
            self.metrics.dead_letters.inc_by(u64::from(pending.letter));
            self.metrics.request_seconds.add_since(clock::now(), std::iter::once(arrived));
        }
        if partition.tracker.forget(offset) {
            partition.acks.remove(&offset);
            self.release(1);
        }
    }

    /// The broker has these commits.
    pub(super) fn commit(&mut self, commits: &Take) {
        let mut records = 0;
        for (id, commit) in commits {
            if let Some(partition) = self.partitions.get_mut(id) {
                records += partition.tracker.commit(commit);
                self.metrics.lags.committed(&partition.topic, partition.number, commit.map.base());
            }
        }
        self.release(records);
        self.metrics.commits.inc();
        self.metrics.commit_records.add(records as u64);
    }

    /// Lowest offsets first, as many as one commit may hold, with at most `chars_max` characters of offset map a partition
    /// and `chars` in all. Each time another partition is served first, so that a full commit of one does not keep the
    /// others waiting for ever.
    pub(super) fn take(&mut self, mut budget: Budget, chars_max: usize, mut chars: usize) -> Take {
        self.turn += 1;
        let start = self.turn % self.partitions.len().max(1);
        let mut take = self.take_idle();
        let ids: Vec<PartitionId> = self.partitions.keys().copied().collect();
        for id in ids[start..].iter().chain(&ids[..start]) {
            if budget.is_spent() || chars < LIMIT {
                break;
            }
            let Some(partition) = self.partitions.get_mut(id) else { continue };
            if let Some(commit) = partition.tracker.take(&mut budget, chars_max, Pending::bytes) {
                chars -= commit.chars.min(chars);
                take.push((*id, commit));
            }
        }
        take
    }

    /// How long the records of a commit that went through took, from their arrival.
    pub(super) fn count_latencies(&self, take: &Take, end: Instant) {
        let sent = take.iter().flat_map(|(id, commit)| self.partitions[id].tracker.sent().take(commit.records));
        let arrivals = sent.map(|(_, pending)| pending.reply.ticket.request().arrived);
        self.metrics.request_seconds.add_since(end, arrivals);
    }

    /// Counts the dead letters of a commit that went through.
    pub(super) fn count_letters(&self, take: &Take) {
        if self.routes.iter().all(|route| route.dead_letter.is_none()) {
            return;
        }
        let sent = take.iter().flat_map(|(id, commit)| self.partitions[id].tracker.sent().take(commit.records));
        let letters = sent.filter(|(_, pending)| pending.letter).count();
        self.metrics.dead_letters.inc_by(letters as u64);
    }

    /// Commits of partitions that were read to their end, past what is no record.
    pub(super) fn take_idle(&mut self) -> Take {
        let idle = self.partitions.iter_mut().filter_map(|(id, partition)| {
            let commit = partition.tracker.idle_commit(partition.idle.take()?)?;
            Some((*id, commit))
        });
        idle.collect()
    }
}

/// Whether a reply's record is a dead letter: its route has a place for them, and the record itself is at fault. One
/// that came too late is not.
pub(super) fn is_letter_due(reply: &Reply, routes: &[ReplyRoute]) -> bool {
    use ErrorCode as Code;
    let Some(reject) = &reply.error else { return false };
    let at_fault = matches!(reject.code, Code::BadRequest | Code::UnknownModel | Code::ModelError | Code::TooLarge);
    at_fault && routes[reply.ticket.request().route as usize].dead_letter.is_some()
}
