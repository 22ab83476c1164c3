//! Replies in, atomic batches out: replies, dead letters and the checkpoints of the partitions that they answer become
//! visible together, or not at all.
//!
//! Invariants:
//! 1. A reply becomes visible if and only if its record is done in the checkpoint: both are in one batch.
//! 2. A checkpoint goes out only behind its fence, the sequence of the one that this process wrote or took over. So of two
//!    processes that believe to hold a partition one is refused, and it acknowledges nothing.
//! 3. One batch is under way at a time. After an answer that is missing or unclear the checkpoints are read back: they say
//!    what truly went out. A batch that still arrives after that finds its fence stale, or makes the next one's stale.
//! 4. A record is acknowledged after its checkpoint stands. That is only flow control: an acknowledgement that is lost
//!    brings the record again, which is then found done.

mod batch;
mod message;
mod recover;
mod shared;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;
use crossbeam_channel::Sender;
use rdkafka::TopicPartitionList;
use tokio::runtime::Handle;

use self::batch::{BatchError, MESSAGES_MAX};
use super::ledger::{Ledger, Partition, Take};
use super::{Sink, SinkError};
use crate::admin::Health;
use crate::client::checkpoints::Checkpoints;
use crate::client::{GroupMember, positions};
use crate::clock::{self, Stop};
use crate::commit::{Budget, Checkpoint, Commit, LIMIT, OffsetMap, Owner};
use crate::config::{Delivery, JetStream};
use crate::record::PartitionId;

/// The longest wait for the server's word on a batch; the server forgets an open one after 10 s.
const BATCH_BOUND: Duration = Duration::from_secs(8);
/// How long the thread sleeps while nothing comes.
const IDLE: Duration = Duration::from_millis(250);
/// How often the group's positions follow the checkpoints.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// How often superseded checkpoints are removed, and how many of them make it sooner.
const REMOVE_EVERY: Duration = Duration::from_secs(30);
const SUPERSEDED_MAX: usize = 1024;
/// How long a stream that refuses batches is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// All that the thread is made of.
pub(crate) struct JetStreamSink {
    pub(crate) runtime: Handle,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) limits: JetStream,
    /// Kafka's group, where records come from there: it gives out the partitions, and its positions follow the checkpoints
    /// for those who watch them.
    pub(crate) group: Option<Arc<dyn GroupMember>>,
    /// Where the source hears of partitions that another process has.
    pub(crate) lost: Sender<PartitionId>,
    pub(crate) health: Arc<Health>,
    /// The name of this thread at `/readyz`.
    pub(crate) part: String,
    pub(crate) stop: Arc<Stop>,
}

impl Sink for JetStreamSink {
    fn run(self: Box<Self>, ledger: Ledger) -> Result<usize, SinkError> {
        let now = clock::now();
        // What the stream is like is known before a partition is claimed, and no reply goes out before that.
        self.health.ready(&self.part);
        let delivery = self.limits.delivery;
        let committer = Committer {
            sink: *self,
            ledger,
            last_begin: None,
            last_followed: now,
            last_progress: now,
            last_removed: now,
            paused_until: None,
            refused: String::new(),
            records_max: MESSAGES_MAX,
            batches: 0,
        };
        match delivery {
            Delivery::ExactlyOnce => committer.run(),
            Delivery::AtLeastOnce => committer.run_shared(),
        }
    }
}

struct Committer {
    sink: JetStreamSink,
    ledger: Ledger,
    last_begin: Option<Instant>,
    last_followed: Instant,
    last_progress: Instant,
    last_removed: Instant,
    /// The stream refuses batches until then.
    paused_until: Option<Instant>,
    /// Why the stream refused batches last, as it was said.
    refused: String,
    /// Most records of the next batch, besides `commit_records_max`: small while the stream refuses batches, and doubled with each
    /// success.
    records_max: usize,
    batches: u64,
}

impl Committer {
    fn run(mut self) -> Result<usize, SinkError> {
        loop {
            let wait = self.wait();
            self.ledger.gather(wait);
            let is_leaving = !self.ledger.leaving.is_empty();
            if self.wait().is_zero() || is_leaving {
                self.transact()?;
            }
            if is_leaving {
                // The next member's lag begins where this one's ended.
                self.follow(true);
                self.release_leaving();
                self.ledger.forget_leaving();
            }
            self.tell_progress(clock::now());
            self.remove_superseded(clock::now());
            self.follow(false);
            if (self.ledger.draining && self.ledger.in_flight() == 0) || self.sink.stop.overdue() {
                self.follow(true);
                let held = self.ledger.partitions.keys().copied().collect();
                self.release(held);
                return Ok(self.ledger.in_flight());
            }
        }
    }

    /// How long to wait for events: until the next batch is due, or idly.
    fn wait(&self) -> Duration {
        let now = clock::now();
        let left = |until: Instant| until.saturating_duration_since(now);
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return left(until).min(IDLE);
        }
        let renewals = self.claims().filter_map(|written| written.checked_add(self.renewal())).min();
        let renewal = renewals.map_or(IDLE, left).min(IDLE);
        if !self.ledger.is_news {
            return renewal;
        }
        let due = self.last_begin.map(|begin| begin + self.sink.limits.commit_interval);
        due.map_or(Duration::ZERO, left).min(renewal)
    }

    /// How long after its checkpoint a partition says that it is held. One of Kafka's group need not.
    fn renewal(&self) -> Duration {
        if self.sink.group.is_some() { Duration::MAX } else { self.sink.limits.lease / 3 }
    }

    /// The group's positions follow the checkpoints, now and then: nothing starts at them, but lag is told by them.
    fn follow(&mut self, is_end: bool) {
        let Some(group) = &self.sink.group else { return };
        let now = clock::now();
        if !is_end && now.saturating_duration_since(self.last_followed) < FOLLOW_EVERY {
            return;
        }
        self.last_followed = now;
        let mut list = TopicPartitionList::new();
        for Partition { topic, number, claim, .. } in self.ledger.partitions.values() {
            if let Some(claim) = claim
                && let Err(error) = positions::add_commit(&mut list, topic, *number, &claim.map)
            {
                tracing::debug!(%error, "a position is left out");
            }
        }
        let done = match list.count() {
            0 => Ok(()),
            _ if is_end => group.commit(&list),
            _ => group.commit_soon(&list),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the group's positions are behind");
        }
    }

    fn claims(&self) -> impl Iterator<Item = Instant> {
        self.ledger.partitions.values().filter_map(|partition| Some(partition.claim.as_ref()?.written))
    }

    /// Sends what is finished, and the checkpoints that are due.
    fn transact(&mut self) -> Result<(), SinkError> {
        let begin = clock::now();
        self.paused_until = None;
        let mut take = self.take();
        while self.readdress_wrong(&take) > 0 {
            self.ledger.untake();
            take = self.take();
        }
        self.add_due_checkpoints(&mut take, begin);
        if take.is_empty() {
            self.ledger.is_news = false;
            return Ok(());
        }
        match self.send(&take, begin) {
            Ok(()) => {
                self.refused.clear();
                self.records_max = self.records_max.saturating_mul(2).min(MESSAGES_MAX);
                Ok(())
            }
            Err(error) => self.after_error(&error, &take),
        }
    }

    /// One batch. When it went through, what it says stands.
    fn send(&mut self, take: &Take, begin: Instant) -> Result<(), BatchError> {
        self.last_begin = Some(begin);
        fail::fail_point!("sink::begin");
        let (messages, checkpoints) = self.messages(take);
        let count = messages.len() as u64;
        self.batches += 1;
        let id = format!("{}-{}", self.sink.checkpoints.owner().run, self.batches);
        let sent = batch::publish(self.sink.checkpoints.client(), &id, messages, BATCH_BOUND);
        let done = self.sink.runtime.block_on(sent);
        let is_lost = done.is_ok() && loses_the_answer();
        let done = if is_lost { Err(BatchError::Unknown("a fail point".to_owned())) } else { done };
        let last = done.inspect_err(|_| self.ledger.metrics.transactions_aborted.inc())?;
        let end = clock::now();
        for (id, place) in checkpoints {
            // Without a gap: the last message has the highest sequence.
            self.stands(id, last + 1 + place as u64 - count, take, end);
        }
        self.ledger.count_letters(take);
        self.ledger.count_latencies(take, end);
        self.ledger.commit(take);
        self.acknowledge();
        self.ledger.metrics.commit_seconds.add_duration(end - begin);
        tracing::trace!(messages = count, took = ?(end - begin), "committed");
        self.sink.health.ready(&self.sink.part);
        Ok(())
    }

    fn take(&mut self) -> Take {
        let limits = &self.sink.limits;
        // A record may bring a reply and a dead letter.
        let per_record = if self.ledger.routes.iter().any(|route| route.dead_letter.is_some()) { 2 } else { 1 };
        let room = MESSAGES_MAX.saturating_sub(self.ledger.partitions.len()).max(2) / per_record;
        let records = (limits.commit_records_max.get() as usize).min(room).min(self.records_max);
        let budget = Budget::new(records, limits.commit_bytes_max.get());
        self.ledger.take(budget, LIMIT, usize::MAX)
    }

    /// Partitions of which nobody has heard for a third of the lease say that they are held.
    fn add_due_checkpoints(&self, take: &mut Take, now: Instant) {
        let mut room = MESSAGES_MAX / 2;
        for (id, partition) in &self.ledger.partitions {
            let Some(claim) = &partition.claim else { continue };
            let is_due = now.saturating_duration_since(claim.written) >= self.renewal();
            if is_due && room > 0 && take.iter().all(|(taken, _)| taken != id) {
                room -= 1;
                take.push((*id, Commit { map: claim.map.clone(), records: 0, chars: 0 }));
            }
        }
    }

    /// The checkpoint of a partition stands.
    fn stands(&mut self, id: PartitionId, sequence: u64, take: &Take, now: Instant) {
        let commit = take.iter().find(|(taken, _)| *taken == id).map(|(_, commit)| commit);
        let claim = self.ledger.partitions.get_mut(&id).and_then(|partition| partition.claim.as_mut());
        if let (Some(claim), Some(commit)) = (claim, commit) {
            (claim.fence.sequence, claim.written) = (sequence, now);
            claim.map = commit.map.clone();
            claim.superseded += 1;
        }
    }

    /// Only the last checkpoint of a partition says anything: those before it are removed, now and then. Nobody waits for
    /// that.
    fn remove_superseded(&mut self, now: Instant) {
        let claims = || self.ledger.partitions.values().filter_map(|partition| partition.claim.as_ref());
        let superseded: usize = claims().map(|claim| claim.superseded).sum();
        let is_due = superseded > 0 && now.saturating_duration_since(self.last_removed) >= REMOVE_EVERY;
        if superseded < SUPERSEDED_MAX && !is_due {
            return;
        }
        self.last_removed = now;
        let mut places = Vec::new();
        for partition in self.ledger.partitions.values_mut() {
            if let Some(claim) = partition.claim.as_mut().filter(|claim| claim.superseded > 0) {
                claim.superseded = 0;
                places.push((partition.topic.clone(), partition.number));
            }
        }
        let checkpoints = Arc::clone(&self.sink.checkpoints);
        self.sink.runtime.spawn(async move { checkpoints.remove_superseded(&places).await });
    }

    /// What the checkpoints say is done needs to come no more. Nobody waits for the server's word.
    fn acknowledge(&mut self) {
        let mut done = Vec::new();
        for partition in self.ledger.partitions.values_mut() {
            let Some(claim) = &partition.claim else { continue };
            let end = claim.map.end().max(claim.map.base());
            let covered: Vec<i64> = partition
                .acks
                .range(..end)
                .map(|(&offset, _)| offset)
                .filter(|&offset| claim.map.is_done(offset))
                .collect();
            done.extend(covered.iter().filter_map(|offset| partition.acks.remove(offset)));
        }
        self.publish_all(done, b"+ACK");
    }

    /// Records that wait are spoken for, so that they are not sent again meanwhile.
    fn tell_progress(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last_progress) < self.sink.limits.ack_wait / 3 {
            return;
        }
        self.last_progress = now;
        // Also those that came again and were done already.
        self.acknowledge();
        let waiting = self.ledger.partitions.values().flat_map(|partition| partition.acks.values().cloned()).collect();
        self.publish_all(waiting, b"+WPI");
    }

    fn publish_all(&self, subjects: Vec<Subject>, word: &'static [u8]) {
        fail::fail_point!("sink::acknowledge", |_| ());
        let client = self.sink.checkpoints.client();
        self.sink.runtime.block_on(async {
            for subject in subjects {
                if client.publish(subject, Bytes::from_static(word)).await.is_err() {
                    // The client is at its end; what was not acknowledged comes again.
                    break;
                }
            }
        });
    }

    /// Partitions that go are free for others at once.
    fn release_leaving(&mut self) {
        let leaving = self.ledger.leaving.iter().flat_map(|leaving| leaving.partitions.iter().copied()).collect();
        self.release(leaving);
    }

    /// Says of each that nobody holds it. Where that fails the lease runs out.
    fn release(&mut self, partitions: Vec<PartitionId>) {
        let mut messages = Vec::new();
        for id in partitions {
            messages.extend(self.checkpoint(id, None));
        }
        for some in messages.chunks(MESSAGES_MAX) {
            self.batches += 1;
            let id = format!("{}-{}", self.sink.checkpoints.owner().run, self.batches);
            let sent = batch::publish(self.sink.checkpoints.client(), &id, some.to_vec(), REFUSED_PAUSE);
            if let Err(error) = self.sink.runtime.block_on(sent) {
                tracing::debug!(%error, "partitions could not be released; others take them when the lease has run out");
            }
        }
    }

    fn owner(&self) -> Owner {
        self.sink.checkpoints.owner().clone()
    }

    /// A partition's checkpoint: what its last one says, or `map`.
    fn checkpoint_of(
        &self,
        id: PartitionId,
        map: Option<&OffsetMap>,
        owner: Option<Owner>,
    ) -> Option<(u64, Checkpoint)> {
        let partition = self.ledger.partitions.get(&id)?;
        let claim = partition.claim.as_ref()?;
        let checkpoint = Checkpoint {
            source: partition.topic.clone(),
            created: claim.fence.created.clone(),
            subjects: claim.fence.subjects.clone(),
            partition: partition.number,
            map: map.unwrap_or(&claim.map).clone(),
            owner,
        };
        Some((claim.fence.sequence, checkpoint))
    }
}

/// A fail point: a batch went out, and nobody hears of it.
fn loses_the_answer() -> bool {
    fail::fail_point!("sink::committed", |_| true);
    false
}
