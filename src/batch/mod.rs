//! Entries in, batches out: when to dispatch, and with what.
//!
//! What enters is an [`Entry`]: one request's rows with its priority, arrival and deadline. What leaves is a batch:
//! entries in the order in which their rows are scored. Nothing here reads a clock, sleeps or wakes anybody: the
//! score threads pass `now` in, and [`Dispatch`] tells them what to do. One batcher serves one model.
//!
//! Invariants:
//! 1. An entry leaves exactly once: in a batch ([`DynamicBatcher::poll`]), expired ([`DynamicBatcher::expire`]) or
//!    drained ([`DynamicBatcher::drain`]).
//! 2. No entry leaves in a batch before one of a higher level, or an earlier one of its own level, that was waiting.
//!    One that was put back ([`DynamicBatcher::put_back`]) waits in its level from the end of its delay on.
//! 3. A batch has at most `batch_size_max` rows, unless it is one entry that alone has more. The rows of one entry
//!    are never split.
//! 4. A batch never holds an entry whose deadline has passed.

mod buffer;
mod delayed;
#[cfg(test)]
mod naive;
mod queue;

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

pub use buffer::{Element, MemoryPool, PoolStats, PooledBuffer};
pub use queue::Entry;

use delayed::Delayed;
use queue::Queue;

/// The first back-off of [`back_off`].
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// How long an entry is left alone after it failed for the `tries`-th time: 100 ms after the first, then twice the last.
#[must_use]
pub fn back_off(tries: u8) -> Duration {
    BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(u32::from(tries.saturating_sub(1))))
}

/// How entries are gathered into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// The most rows in a batch of more than one entry. From 1.
    pub batch_size_max: NonZeroU32,
    /// How long the oldest entry may wait for company. Zero: an idle score thread takes whatever there is.
    pub queue_delay_max: Duration,
    /// Levels from 1, the highest, to this one. 1 to 255.
    pub priority_levels: NonZeroU8,
    /// The most entries that wait in one level; past it [`DynamicBatcher::enqueue`] gives entries back. From 1.
    pub queue_depth_max: NonZeroU32,
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
}

/// Gathers entries into batches: strict priority, first in first out inside a level.
///
/// `enqueue` and `poll` cost amortised O(1) for an entry without a deadline and O(log n) for one with, and allocate
/// nothing once the queues have grown to their working size.
#[derive(Debug)]
pub struct DynamicBatcher<T> {
    policy: BatchPolicy,
    queue: Queue<T>,
    delayed: Delayed<T>,
    processed_batches: u64,
    processed_rows: u64,
    expired: u64,
    refused: u64,
}

impl<T> DynamicBatcher<T> {
    /// An empty batcher.
    #[must_use]
    pub fn new(policy: BatchPolicy) -> Self {
        let depth_max = usize::try_from(policy.queue_depth_max.get()).unwrap_or(usize::MAX);
        Self {
            policy,
            queue: Queue::new(policy.priority_levels, depth_max),
            delayed: Delayed::new(),
            processed_batches: 0,
            processed_rows: 0,
            expired: 0,
            refused: 0,
        }
    }

    /// Puts an entry at the end of its level.
    ///
    /// # Errors
    /// The entry itself, when its level is full.
    ///
    /// # Panics
    /// When its priority lies outside `priority_levels`: decode rejects such a request, so none can arrive here.
    pub fn enqueue(&mut self, entry: Entry<T>) -> Result<(), Entry<T>> {
        self.assert_level(&entry);
        self.queue.push(entry).inspect_err(|_| self.refused += 1)
    }

    /// Takes an entry back that left in a batch: from `until` on it waits at the end of its level again. Until then it is
    /// in no batch, and no other entry waits for it; its deadline holds all the while.
    ///
    /// It is never refused: it had its place before, so a level may hold more than `queue_depth_max` by as many.
    ///
    /// # Panics
    /// As [`enqueue`](Self::enqueue).
    pub fn put_back(&mut self, entry: Entry<T>, until: Instant) {
        self.assert_level(&entry);
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
            entry.priority.get() <= self.policy.priority_levels.get(),
            "priority {} of {} levels: decode rejects it",
            entry.priority.get(),
            self.policy.priority_levels
        );
    }

    /// Asked by an idle score thread: moves a batch into `batch`, which must be empty, or says when to ask again.
    ///
    /// A batch is due when the policy asks for no delay, when the waiting rows fill one, when the oldest entry
    /// ([`oldest_arrival`](Self::oldest_arrival)) has waited `queue_delay_max`, or when some entry would expire
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
        let wait = self.oldest_arrival().map_or(Some(Dispatch::Idle), |oldest| self.wait(now, oldest));
        if let Some(wait) = wait {
            return match (wait, self.delayed.next()) {
                (Dispatch::WaitUntil(time), Some(end)) => Dispatch::WaitUntil(time.min(end)),
                (_, Some(end)) => Dispatch::WaitUntil(end),
                (wait, None) => wait,
            };
        }
        self.fill(batch);
        Dispatch::Batch
    }

    /// Moves every waiting entry with `deadline <= now` to the end of `expired`, earliest deadline first.
    pub fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<T>>) {
        let before = expired.len();
        self.queue.expire(now, expired);
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
        (0..self.queue.lanes()).filter_map(|lane| self.queue.head(lane)).map(|head| head.arrived).min()
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
            refused: self.refused,
            waiting: self.len(),
            delayed: self.delayed.len(),
            waiting_rows: self.rows(),
            depth: self.queue.depths().collect(),
        }
    }

    /// Why no batch is due yet, or none if one is.
    fn wait(&self, now: Instant, oldest: Instant) -> Option<Dispatch> {
        let full = self.rows() >= u64::from(self.policy.batch_size_max.get());
        if full || self.policy.queue_delay_max.is_zero() {
            return None;
        }
        match (oldest.checked_add(self.policy.queue_delay_max), self.queue.next_deadline()) {
            // An entry expires AT its deadline: one at the very end of the delay would be lost by waiting, too.
            (Some(delay_end), Some(deadline)) if deadline <= delay_end => None,
            (Some(delay_end), _) => (now < delay_end).then_some(Dispatch::WaitUntil(delay_end)),
            // A delay beyond the range of the clock never ends: only a deadline or more rows cut it short.
            (None, Some(_)) => None,
            (None, None) => Some(Dispatch::Idle),
        }
    }

    /// Takes entries from level 1 down until the next one does not fit, and counts the batch.
    ///
    /// The batch is closed there, spare room or not. To skip over that head would break the order of its level. To
    /// fill up from lower levels would let them overtake it, and make longer what it waits for now: this batch.
    fn fill(&mut self, batch: &mut Vec<Entry<T>>) {
        let rows_max = u64::from(self.policy.batch_size_max.get());
        let mut rows = 0;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Priority;

    const MS: Duration = Duration::from_millis(1);

    /// The moment that the tests of this room count from.
    #[allow(clippy::disallowed_methods, reason = "any moment will do; all later ones are counted from it")]
    pub(super) fn start() -> Instant {
        Instant::now()
    }

    fn policy(batch_size_max: u32, queue_delay_max: Duration) -> BatchPolicy {
        BatchPolicy {
            batch_size_max: NonZeroU32::new(batch_size_max).expect("a test's own size"),
            queue_delay_max,
            priority_levels: NonZeroU8::new(3).expect("3 is not 0"),
            queue_depth_max: NonZeroU32::new(1_000).expect("1000 is not 0"),
        }
    }

    fn entry(item: u32, level: u8, rows: u32, arrived: Instant) -> Entry<u32> {
        let priority = Priority::new(level).expect("levels count from 1");
        Entry { item, rows, priority, arrived, deadline: None }
    }

    fn with_deadline(mut entry: Entry<u32>, deadline: Instant) -> Entry<u32> {
        entry.deadline = Some(deadline);
        entry
    }

    fn items(entries: &[Entry<u32>]) -> Vec<u32> {
        entries.iter().map(|entry| entry.item).collect()
    }

    /// A batcher that holds `entries`.
    fn holding(policy: BatchPolicy, entries: impl IntoIterator<Item = Entry<u32>>) -> DynamicBatcher<u32> {
        let mut batcher = DynamicBatcher::new(policy);
        for entry in entries {
            batcher.enqueue(entry).expect("deep enough for the test");
        }
        batcher
    }

    /// The items of each batch that is due at `now`, then the answer that ended them.
    fn poll_all(batcher: &mut DynamicBatcher<u32>, now: Instant) -> (Vec<Vec<u32>>, Dispatch) {
        let mut polled = Vec::new();
        loop {
            let mut batch = Vec::new();
            match batcher.poll(now, &mut batch) {
                Dispatch::Batch => polled.push(items(&batch)),
                other => return (polled, other),
            }
        }
    }

    #[test]
    fn nothing_waiting_is_idle() {
        let mut batcher = holding(policy(4, MS), []);
        assert_eq!(poll_all(&mut batcher, start()), (vec![], Dispatch::Idle));
        assert!(batcher.is_empty());
        assert_eq!((batcher.oldest_arrival(), batcher.next_deadline()), (None, None));
    }

    #[test]
    fn no_delay_dispatches_at_once() {
        let t = start();
        let mut batcher = holding(policy(4, Duration::ZERO), [entry(1, 1, 1, t)]);
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![1]], Dispatch::Idle));
    }

    #[test]
    fn enough_rows_dispatch_at_once_and_the_rest_waits() {
        let t = start();
        let mut batcher = holding(policy(4, 5 * MS), (0..6).map(|i| entry(i, 1, 1, t)));
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![0, 1, 2, 3]], Dispatch::WaitUntil(t + 5 * MS)));
        assert_eq!((batcher.len(), batcher.rows()), (2, 2));
    }

    #[test]
    fn the_oldest_of_all_levels_ends_the_wait() {
        let t = start();
        let mut batcher = holding(policy(9, 5 * MS), [entry(1, 1, 1, t + 2 * MS), entry(2, 3, 1, t)]);
        assert_eq!(poll_all(&mut batcher, t + 4 * MS), (vec![], Dispatch::WaitUntil(t + 5 * MS)));
        assert_eq!(poll_all(&mut batcher, t + 5 * MS), (vec![vec![1, 2]], Dispatch::Idle));
    }

    #[test]
    fn the_oldest_arrival_is_read_at_the_heads() {
        let t = start();
        let batcher = holding(policy(9, 5 * MS), [entry(1, 1, 1, t + 2 * MS), entry(2, 1, 1, t)]);
        assert_eq!(batcher.oldest_arrival(), Some(t + 2 * MS));
    }

    #[test]
    fn an_entry_that_would_expire_during_the_wait_is_not_kept_waiting() {
        let t = start();
        for (deadline, due) in [(4 * MS, true), (5 * MS, true), (6 * MS, false)] {
            let mut batcher = holding(policy(9, 5 * MS), [with_deadline(entry(1, 2, 1, t), t + deadline)]);
            let later = (vec![], Dispatch::WaitUntil(t + 5 * MS));
            let at_once = (vec![vec![1]], Dispatch::Idle);
            let want = if due { at_once } else { later };
            assert_eq!(poll_all(&mut batcher, t), want, "deadline after {deadline:?}");
        }
    }

    #[test]
    fn an_endless_delay_waits_for_rows_or_a_deadline_only() {
        let t = start();
        let mut batcher = holding(policy(2, Duration::MAX), [entry(1, 1, 1, t)]);
        assert_eq!(poll_all(&mut batcher, t), (vec![], Dispatch::Idle));
        batcher.enqueue(entry(2, 1, 1, t)).expect("room");
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![1, 2]], Dispatch::Idle));
        batcher.enqueue(with_deadline(entry(3, 1, 1, t), t + MS)).expect("room");
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![3]], Dispatch::Idle));
    }

    #[test]
    fn higher_levels_first_and_in_order_inside_a_level() {
        let t = start();
        let levels = [3, 1, 2, 1, 3, 2];
        let entries = (0..).zip(levels).map(|(item, level)| entry(item, level, 1, t));
        let mut batcher = holding(policy(4, Duration::ZERO), entries);
        assert_eq!(poll_all(&mut batcher, t).0, [vec![1, 3, 2, 5], vec![0, 4]]);
    }

    #[test]
    fn a_head_that_does_not_fit_closes_the_batch() {
        let t = start();
        let entries = [entry(1, 1, 3, t), entry(2, 1, 2, t), entry(3, 1, 1, t), entry(4, 2, 1, t)];
        let mut batcher = holding(policy(4, Duration::ZERO), entries);
        // Neither 3, of the same level, nor 4, of a lower one, takes the spare row before 2.
        assert_eq!(poll_all(&mut batcher, t).0, [vec![1], vec![2, 3, 4]]);
    }

    #[test]
    fn an_entry_larger_than_a_batch_goes_alone() {
        let t = start();
        let entries = [entry(1, 1, 1, t), entry(2, 1, 9, t), entry(3, 1, 1, t)];
        let mut batcher = holding(policy(4, Duration::ZERO), entries);
        assert_eq!(poll_all(&mut batcher, t).0, [vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn a_full_level_gives_the_entry_back_and_others_have_room() {
        let t = start();
        let depth_one = BatchPolicy { queue_depth_max: NonZeroU32::MIN, ..policy(4, MS) };
        let mut batcher = holding(depth_one, [entry(1, 2, 1, t)]);
        assert_eq!(batcher.enqueue(entry(2, 2, 1, t)), Err(entry(2, 2, 1, t)));
        assert_eq!(batcher.enqueue(entry(3, 1, 1, t)), Ok(()));
        assert_eq!((batcher.len(), batcher.get_stats().refused), (2, 1));
    }

    #[test]
    #[should_panic(expected = "priority 4 of 3 levels")]
    fn a_priority_beyond_the_levels_is_a_bug_of_the_caller() {
        let _ = holding(policy(4, MS), [entry(1, 4, 1, start())]);
    }

    #[test]
    fn expired_entries_leave_earliest_deadline_first() {
        let t = start();
        let deadlines = [3, 1, 2, 9];
        let entries = (0..).zip(deadlines).map(|(i, ms)| with_deadline(entry(i, 1, 2, t), t + ms * MS));
        let mut batcher = holding(policy(100, 20 * MS), entries);
        assert_eq!(batcher.next_deadline(), Some(t + MS));
        let mut expired = Vec::new();
        batcher.expire(t + 3 * MS, &mut expired);
        assert_eq!(items(&expired), [1, 2, 0]);
        assert_eq!((batcher.len(), batcher.rows(), batcher.next_deadline()), (1, 2, Some(t + 9 * MS)));
        assert_eq!(batcher.get_stats().expired, 3);
    }

    #[test]
    #[should_panic(expected = "expire(now) comes before poll(now)")]
    fn poll_refuses_to_hand_out_an_expired_entry() {
        let t = start();
        let mut batcher = holding(policy(4, MS), [with_deadline(entry(1, 1, 1, t), t + MS)]);
        let _ = batcher.poll(t + MS, &mut Vec::new());
    }

    #[test]
    fn the_back_off_doubles() {
        let delays: Vec<_> = (1..=10).map(|tries| back_off(tries).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200]);
        assert_eq!(back_off(u8::MAX), BACK_OFF_FIRST * u32::MAX, "no overflow");
    }

    #[test]
    fn an_entry_put_back_holds_nobody_back_and_keeps_its_level() {
        let t = start();
        let mut batcher = holding(policy(4, Duration::ZERO), [entry(1, 3, 1, t)]);
        batcher.put_back(entry(2, 1, 1, t), t + 2 * MS);
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![1]], Dispatch::WaitUntil(t + 2 * MS)));
        assert_eq!((batcher.len(), batcher.rows(), batcher.get_stats().delayed), (1, 0, 1));
        batcher.enqueue(entry(3, 1, 1, t)).expect("room");
        batcher.enqueue(entry(4, 2, 1, t)).expect("room");
        assert_eq!(poll_all(&mut batcher, t + 2 * MS), (vec![vec![3, 2, 4]], Dispatch::Idle));
    }

    #[test]
    fn a_deadline_holds_while_an_entry_is_delayed_and_makes_no_batch_due() {
        let t = start();
        let mut batcher = holding(policy(9, 5 * MS), [with_deadline(entry(1, 1, 1, t), t + 8 * MS)]);
        batcher.put_back(with_deadline(entry(2, 1, 1, t), t + MS), t + 20 * MS);
        batcher.put_back(with_deadline(entry(3, 1, 1, t), t + 9 * MS), t + 20 * MS);
        assert_eq!(batcher.next_deadline(), Some(t + MS));
        assert_eq!(poll_all(&mut batcher, t), (vec![], Dispatch::WaitUntil(t + 5 * MS)), "1 waits for company");
        let mut expired = Vec::new();
        batcher.expire(t + 9 * MS, &mut expired);
        assert_eq!(items(&expired), [2, 1, 3]);
        assert!(batcher.is_empty());
    }

    #[test]
    fn delays_can_be_ended_and_a_full_level_takes_what_was_put_back() {
        let t = start();
        let depth_one = BatchPolicy { queue_depth_max: NonZeroU32::MIN, ..policy(4, Duration::ZERO) };
        let mut batcher = holding(depth_one, [entry(1, 1, 1, t)]);
        batcher.put_back(entry(2, 1, 1, t), t + 9 * MS);
        batcher.put_back(entry(3, 1, 1, t), t + 8 * MS);
        batcher.end_delays();
        assert_eq!(poll_all(&mut batcher, t), (vec![vec![1, 3, 2]], Dispatch::Idle));
    }

    #[test]
    fn drain_empties_every_level() {
        let t = start();
        let entries = [entry(1, 3, 1, t), with_deadline(entry(2, 1, 1, t), t + MS), entry(3, 1, 1, t)];
        let mut batcher = holding(policy(4, MS), entries);
        batcher.put_back(entry(4, 2, 1, t), t + 9 * MS);
        let mut out = Vec::new();
        batcher.drain(&mut out);
        assert_eq!(items(&out), [2, 3, 4, 1]);
        assert_eq!((batcher.len(), batcher.rows(), batcher.next_deadline()), (0, 0, None));
        assert_eq!(poll_all(&mut batcher, t + 9 * MS), (vec![], Dispatch::Idle));
    }

    #[test]
    fn stats_count_batches_and_rows() {
        let t = start();
        let mut batcher = holding(policy(4, Duration::ZERO), (0..6).map(|i| entry(i, 1, 1, t)));
        assert!(batcher.get_stats().avg_batch_size.abs() < f64::EPSILON);
        assert_eq!(poll_all(&mut batcher, t).0.len(), 2);
        batcher.enqueue(entry(7, 2, 5, t)).expect("room");
        let stats = batcher.get_stats();
        assert_eq!((stats.processed_batches, stats.waiting, stats.waiting_rows), (2, 1, 5));
        assert!((stats.avg_batch_size - 3.0).abs() < f64::EPSILON);
        assert_eq!(stats.depth, [0, 1, 0]);
    }
}
