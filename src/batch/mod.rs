//! Entries in, batches out: when to dispatch, and with what.
//!
//! What enters is an [`Entry`]: one request's rows with its priority, arrival and deadline. What leaves is a batch:
//! entries in the order in which their rows are scored. Nothing here reads a clock, sleeps or wakes anybody: the
//! score threads pass `now` in, and [`Dispatch`] tells them what to do. One batcher serves one model.
//!
//! Invariants:
//! 1. An entry leaves exactly once: in a batch ([`DynamicBatcher::poll`]), expired ([`DynamicBatcher::expire`]) or
//!    drained ([`DynamicBatcher::drain`]).
//! 2. No entry leaves in a batch before one of a higher level, or an earlier one of its own level, that was waiting;
//!    those that have aged aside ([`BatchPolicy::priority_aging`]), and of those the one leaves first that aged first.
//!    One that was put back ([`DynamicBatcher::put_back`]) waits in its level from the end of its delay on.
//! 3. A batch has at most `batch_size_max` rows, unless it is one entry that alone has more. The rows of one entry
//!    are never split.
//! 4. A batch never holds an entry whose deadline has passed, but where the level's policy is to delay such entries.
//! 5. No level starves. Let an entry have aged, and let the entries that aged before it and still wait, with the one that
//!    left last for that reason, have k rows: it leaves before [`AGED_SHARE`] x (k + 1) rows and two batches more have
//!    left, however many come in the levels above.

mod buffer;
mod delayed;
#[cfg(test)]
mod naive;
mod policy;
mod queue;
mod service;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

pub use buffer::{Block, BlockSource, Element, MemoryPool, PoolStats, PooledBuffer};
pub use policy::{AGED_SHARE, BatchPolicy, LevelPolicy, Levels, QueueDelay, QueueFull, TimeoutAction};
pub use queue::Entry;
pub use service::ServiceTime;

use delayed::Delayed;
use queue::Queue;

/// The first back-off of [`back_off`].
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// How long an entry is left alone after it failed for the `tries`-th time: 100 ms after the first, then twice the last.
#[must_use]
pub fn back_off(tries: u8) -> Duration {
    BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(u32::from(tries.saturating_sub(1))))
}

/// What the batcher answers to a score thread that asks for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a batch that was moved out must be scored"]
pub enum Dispatch {
    /// A batch was moved into the caller's vector.
    Batch,
    /// Nothing yet: ask again at this moment, or after an `enqueue`, whichever comes first.
    WaitUntil(Instant),
    /// Nothing that time alone would turn into a batch: ask again after an `enqueue`.
    Idle,
}

/// What a batcher has done and what it holds, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct BatcherStats {
    /// Batches handed out since the start.
    pub processed_batches: u64,
    /// Mean rows in those batches; 0 before the first.
    pub avg_batch_size: f64,
    /// Entries that left because their deadline passed while they waited.
    pub expired: u64,
    /// Entries that went behind their level because their deadline passed.
    pub late: u64,
    /// Entries given back because their level was full.
    pub refused: u64,
    /// Entries waiting now.
    pub waiting: usize,
    /// Those of them that were put back and whose delay has not ended.
    pub delayed: usize,
    /// Rows of the entries waiting now, the delayed ones aside.
    pub waiting_rows: u64,
    /// Entries waiting now in each level, level 1 first, the delayed ones aside.
    pub depth: Vec<usize>,
    /// When the oldest of them arrived, as far as the heads of each level tell.
    pub oldest: Vec<Option<Instant>>,
}

/// Gathers entries into batches: strict priority, first in first out inside a level.
///
/// `enqueue` and `poll` cost amortised O(1) for an entry without a deadline and O(log n) for one with, and allocate
/// nothing once the queues have grown to their working size.
#[derive(Debug)]
pub struct DynamicBatcher<T> {
    policy: BatchPolicy,
    /// Threads that take these batches.
    threads: u32,
    queue: Queue<T>,
    delayed: Delayed<T>,
    service: ServiceTime,
    /// What aged entries may take: each row that leaves adds one, each row of theirs takes [`AGED_SHARE`].
    aged_credit: i64,
    processed_batches: u64,
    processed_rows: u64,
    expired: u64,
    late: u64,
    refused: u64,
}

impl<T> DynamicBatcher<T> {
    /// An empty batcher, whose batches one thread takes.
    #[must_use]
    pub fn new(policy: BatchPolicy) -> Self {
        Self {
            threads: 1,
            queue: Queue::new(&policy.levels),
            policy,
            delayed: Delayed::new(),
            service: ServiceTime::default(),
            aged_credit: 0,
            processed_batches: 0,
            processed_rows: 0,
            expired: 0,
            late: 0,
            refused: 0,
        }
    }

    /// The same for several threads: [`QueueDelay::Adaptive`] must know how many share the load.
    #[must_use]
    pub fn for_threads(self, threads: NonZeroU32) -> Self {
        Self { threads: threads.get(), ..self }
    }

    /// What this batcher goes by.
    #[must_use]
    pub fn policy(&self) -> &BatchPolicy {
        &self.policy
    }

    /// Puts an entry at the end of its level.
    ///
    /// # Errors
    /// The entry itself, when its level is full: [`LevelPolicy::queue_full`] says what the caller does with it.
    ///
    /// # Panics
    /// When its priority lies outside the levels: decode rejects such a request, so none can arrive here.
    // Inlined down to the slot, an entry is copied once less for each call.
    #[inline]
    pub fn enqueue(&mut self, entry: Entry<T>) -> Result<(), Entry<T>> {
        self.assert_level(&entry);
        self.queue.push(entry).inspect_err(|_| self.refused += 1)
    }

    /// Takes an entry back that left in a batch: from `until` on it waits at the end of its level again. Until then it is
    /// in no batch, and no other entry waits for it; its deadline holds all the while, or is forgotten where the level's
    /// policy is to delay.
    ///
    /// It is never refused: it had its place before, so a level may hold more than `queue_depth_max` by as many.
    ///
    /// # Panics
    /// As [`enqueue`](Self::enqueue).
    pub fn put_back(&mut self, mut entry: Entry<T>, until: Instant) {
        self.assert_level(&entry);
        if self.queue.delays(entry.priority) {
            entry.deadline = None;
        }
        self.delayed.push(entry, until);
    }

    /// Ends all delays: what was put back waits in its level from now on.
    pub fn end_delays(&mut self) {
        while let Some(entry) = self.delayed.pop(None) {
            self.queue.push_again(entry);
        }
    }

    fn assert_level(&self, entry: &Entry<T>) {
        assert!(
            usize::from(entry.priority.get()) <= self.queue.lanes(),
            "priority {} of {} levels: decode rejects it",
            entry.priority.get(),
            self.policy.levels.count()
        );
    }

    /// Asked by an idle score thread: moves a batch into `batch`, which must be empty, or says when to ask again.
    ///
    /// A batch is due when the policy asks for no delay, when the waiting rows fill one or a preferred size, when the
    /// oldest entry ([`oldest_arrival`](Self::oldest_arrival)) has waited for the delay, or when some entry would expire
    /// before that: it must not expire only because the batcher waited for company.
    ///
    /// # Panics
    /// When a waiting entry's deadline has passed (call [`expire`](Self::expire) with the same `now` first), or when
    /// `batch` is not empty.
    pub fn poll(&mut self, now: Instant, batch: &mut Vec<Entry<T>>) -> Dispatch {
        assert!(batch.is_empty(), "the last batch was taken before the next is asked for");
        assert!(self.next_deadline().is_none_or(|deadline| deadline > now), "expire(now) comes before poll(now)");
        while let Some(entry) = self.delayed.pop(Some(now)) {
            self.queue.push_again(entry);
        }
        let due = self.oldest_arrival().ok_or(Dispatch::Idle).and_then(|oldest| self.due(now, oldest));
        match (due, self.delayed.next()) {
            (Ok(rows_max), _) => {
                self.fill(now, rows_max, batch);
                Dispatch::Batch
            }
            (Err(Dispatch::WaitUntil(time)), Some(end)) => Dispatch::WaitUntil(time.min(end)),
            (Err(_), Some(end)) => Dispatch::WaitUntil(end),
            (Err(wait), None) => wait,
        }
    }

    /// A batch that left was scored, and took so long: what [`QueueDelay::Adaptive`] learns from.
    pub fn scored(&mut self, now: Instant, rows: u64, took: Duration) {
        if self.policy.queue_delay == QueueDelay::Adaptive {
            self.service.record(now, rows, took);
        }
    }

    /// How long the oldest entry may wait for company now.
    #[must_use]
    pub fn queue_delay(&self, now: Instant) -> Duration {
        match self.policy.queue_delay {
            QueueDelay::Fixed => self.policy.queue_delay_max,
            QueueDelay::Adaptive => self.service.delay(now, self.threads).min(self.policy.queue_delay_max),
        }
    }

    /// Moves every waiting entry with `deadline <= now` to the end of `expired`, earliest deadline first; or, where its
    /// level's policy is to delay, behind all that is in time in its level.
    pub fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<T>>) {
        let before = expired.len();
        self.late += self.queue.expire(now, expired);
        let queued = expired.len();
        self.delayed.expire(now, expired);
        if expired.len() > queued {
            expired[before..].sort_by_key(|entry| entry.deadline);
        }
        self.expired += (expired.len() - before) as u64;
    }

    /// The earliest deadline of a waiting entry: when to call [`expire`](Self::expire) next. O(1).
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline().into_iter().chain(self.delayed.next_deadline()).min()
    }

    /// The earliest arrival among the heads of the levels.
    ///
    /// Only heads count: inside a level the order of `enqueue` rules, and callers whose clocks differ a little may
    /// enqueue arrivals that are not quite in order.
    #[must_use]
    pub fn oldest_arrival(&self) -> Option<Instant> {
        (0..self.queue.lanes()).filter_map(|lane| self.queue.oldest(lane)).min()
    }

    /// Moves everything that waits to the end of `out`, highest level first, for shutdown.
    pub fn drain(&mut self, out: &mut Vec<Entry<T>>) {
        self.end_delays();
        self.queue.drain(out);
    }

    /// Entries waiting, the delayed ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len() + self.delayed.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of the waiting entries, the delayed ones aside.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.queue.rows()
    }

    /// The figures for metrics. Allocates: not for the record path.
    #[must_use]
    pub fn get_stats(&self) -> BatcherStats {
        #[expect(clippy::cast_precision_loss, reason = "a mean for people; exact below 2^53 rows")]
        let avg_batch_size = self.processed_rows as f64 / self.processed_batches.max(1) as f64;
        BatcherStats {
            processed_batches: self.processed_batches,
            avg_batch_size,
            expired: self.expired,
            late: self.late,
            refused: self.refused,
            waiting: self.len(),
            delayed: self.delayed.len(),
            waiting_rows: self.rows(),
            depth: self.queue.depths().collect(),
            oldest: (0..self.queue.lanes()).map(|lane| self.queue.oldest(lane)).collect(),
        }
    }

    /// The most rows of the batch that is due, or why none is.
    fn due(&self, now: Instant, oldest: Instant) -> Result<u64, Dispatch> {
        let (rows, size_max) = (self.rows(), u64::from(self.policy.batch_size_max.get()));
        let sizes = self.policy.preferred_sizes.iter().map(|size| u64::from(size.get()));
        let preferred = sizes.filter(|size| *size <= rows).max();
        let delay = self.queue_delay(now);
        if delay.is_zero() {
            return Ok(preferred.unwrap_or(size_max));
        }
        let delay_end = oldest.checked_add(delay);
        if delay_end.is_some_and(|end| end <= now) {
            return Ok(size_max);
        }
        if preferred.is_some() || rows >= size_max {
            return Ok(preferred.unwrap_or(size_max));
        }
        match (delay_end, self.queue.next_deadline()) {
            // An entry expires AT its deadline: one at the very end of the delay would be lost by waiting, too.
            (Some(delay_end), Some(deadline)) if deadline <= delay_end => Ok(size_max),
            (Some(delay_end), _) => Err(Dispatch::WaitUntil(delay_end)),
            // A delay beyond the range of the clock never ends: only a deadline or more rows cut it short.
            (None, Some(_)) => Ok(size_max),
            (None, None) => Err(Dispatch::Idle),
        }
    }

    /// Takes aged entries as far as their share goes, then entries from level 1 down until the next one does not fit, and
    /// counts the batch.
    ///
    /// The batch is closed there, spare room or not. To skip over that head would break the order of its level. To
    /// fill up from lower levels would let them overtake it, and make longer what it waits for now: this batch.
    fn fill(&mut self, now: Instant, rows_max: u64, batch: &mut Vec<Entry<T>>) {
        batch.reserve(self.queue.len().min(usize::try_from(rows_max).unwrap_or(usize::MAX)));
        let mut rows = self.fill_aged(now, rows_max, batch);
        'lanes: for lane in 0..self.queue.lanes() {
            while let Some(head) = self.queue.head(lane) {
                let rows_with_head = rows + u64::from(head.rows);
                if rows_with_head > rows_max && !batch.is_empty() {
                    break 'lanes;
                }
                rows = rows_with_head;
                batch.extend(self.queue.pop(lane));
            }
        }
        self.processed_batches += 1;
        self.processed_rows += rows;
        // What is saved up is one batch's share and a row at the most: aged entries never come as a flood.
        let left = i64::try_from(rows.max(batch.len() as u64)).unwrap_or(i64::MAX);
        let saved_max = left.max(self.policy.batch_size_max.get().into()).saturating_add(AGED_SHARE.into());
        self.aged_credit = self.aged_credit.saturating_add(left).min(saved_max);
    }

    /// Takes entries that have aged while their credit lasts. Returns their rows.
    fn fill_aged(&mut self, now: Instant, rows_max: u64, batch: &mut Vec<Entry<T>>) -> u64 {
        let mut rows = 0;
        let Some(aging) = self.policy.priority_aging else { return rows };
        while self.aged_credit >= i64::from(AGED_SHARE)
            && let Some(place) = self.queue.aged(now, aging)
            && let Some(head) = self.queue.head_at(place)
        {
            let head_rows = u64::from(head.rows);
            if rows + head_rows > rows_max && !batch.is_empty() {
                break;
            }
            rows += head_rows;
            self.aged_credit -= i64::from(AGED_SHARE) * i64::from(head.rows.max(1));
            batch.extend(self.queue.pop_at(place));
        }
        rows
    }
}

#[cfg(test)]
mod tests;
