//! The waiting entries: one lane per priority level, and their deadlines.
//!
//! What enters is pushed at the end of its lane; what leaves is popped from the front of a lane, or
//! taken out of the middle when its deadline passes. Where the level's policy says [`TimeoutAction::Delay`] it does not
//! leave then, but goes behind all that is in time.
//!
//! Invariants:
//! 1. The first slot of a lane is occupied. An entry taken out of the middle leaves an empty slot behind.
//! 2. The top of the deadline heap belongs to a waiting entry, so the next deadline is read in O(1). An entry that
//!    left with its batch leaves a stale item behind, below the top.
//! 3. Neither leftover can pile up: past twice the live count plus [`LEFTOVERS_MIN`] they are swept, which costs
//!    amortised O(1) for each entry that left one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::policy::{LevelPolicy, Levels, TimeoutAction};
use crate::record::Priority;

/// One request in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<T> {
    /// What the caller wants back in the batch.
    pub item: T,
    /// Feature rows of the request; they stay together.
    pub rows: u32,
    /// Its level, 1 the highest.
    pub priority: Priority,
    /// When it reached this process; the queue delay counts from here.
    pub arrived: Instant,
    /// From this moment on it is not scored any more, or behind all others: as its level's policy says.
    pub deadline: Option<Instant>,
}

/// Leftovers that are never worth a sweep.
const LEFTOVERS_MIN: usize = 8;

/// All lanes of one batcher.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Level 1 first.
    lanes: Box<[Lane<T>]>,
    deadlines: BinaryHeap<Reverse<Due>>,
    /// Waiting entries that have a deadline; the rest of `deadlines` is stale.
    deadlines_live: usize,
    waiting: usize,
    rows: u64,
}

/// A waiting entry's place in the order of deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    lane: usize,
    seq: u64,
}

impl<T> Queue<T> {
    pub(super) fn new(levels: &Levels) -> Self {
        Self {
            lanes: levels.iter().map(Lane::new).collect(),
            deadlines: BinaryHeap::new(),
            deadlines_live: 0,
            waiting: 0,
            rows: 0,
        }
    }

    /// The entry comes back when its lane is full.
    #[inline]
    pub(super) fn push(&mut self, entry: Entry<T>) -> Result<(), Entry<T>> {
        let lane = &self.lanes[lane_of(&entry)];
        if lane.len() >= lane.depth_max {
            return Err(entry);
        }
        self.push_again(entry);
        Ok(())
    }

    /// Pushes an entry that had its place before: its lane may be full.
    #[inline]
    pub(super) fn push_again(&mut self, entry: Entry<T>) {
        let lane = lane_of(&entry);
        self.waiting += 1;
        self.rows += u64::from(entry.rows);
        let deadline = entry.deadline;
        let seq = self.lanes[lane].push(entry);
        if let Some(at) = deadline {
            self.deadlines.push(Reverse(Due { at, lane, seq }));
            self.deadlines_live += 1;
        }
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The next entry to leave lane `lane`; lane 0 is level 1.
    pub(super) fn head(&self, lane: usize) -> Option<&Entry<T>> {
        let lane = &self.lanes[lane];
        lane.head().or_else(|| lane.late.front())
    }

    /// When the oldest entry of a lane arrived, as far as heads tell: that of the entries in time, and that of the late.
    pub(super) fn oldest(&self, lane: usize) -> Option<Instant> {
        let lane = &self.lanes[lane];
        lane.head().into_iter().chain(lane.late.front()).map(|head| head.arrived).min()
    }

    /// Takes the head of lane `lane`.
    pub(super) fn pop(&mut self, lane: usize) -> Option<Entry<T>> {
        let lane = &mut self.lanes[lane];
        let entry = lane.pop().or_else(|| lane.late.pop_front())?;
        self.count_out(&entry);
        self.drop_stale_deadlines();
        Some(entry)
    }

    /// The head that came to the front first of those that have, by waiting `aging` for each level above their own. A late
    /// one counts as of the level below.
    pub(super) fn aged(&self, now: Instant, aging: Duration) -> Option<Place> {
        let ages =
            |level: u32, head: &Entry<T>| aging.checked_mul(level).and_then(|wait| head.arrived.checked_add(wait));
        let lanes = (0_u32..).zip(self.lanes.iter()).zip(0..);
        let heads = lanes.flat_map(|((level, lane), index)| {
            let in_time = lane.head().filter(|_| level > 0).and_then(|head| ages(level, head));
            let late = lane.late.front().and_then(|head| ages(level + 1, head));
            [in_time.map(|at| (at, Place::InTime(index))), late.map(|at| (at, Place::Late(index)))]
        });
        let (_, place) = heads.flatten().filter(|(at, _)| *at <= now).min_by_key(|(at, _)| *at)?;
        Some(place)
    }

    pub(super) fn pop_at(&mut self, place: Place) -> Option<Entry<T>> {
        let entry = match place {
            Place::InTime(lane) => self.lanes[lane].pop(),
            Place::Late(lane) => self.lanes[lane].late.pop_front(),
        }?;
        self.count_out(&entry);
        self.drop_stale_deadlines();
        Some(entry)
    }

    pub(super) fn head_at(&self, place: Place) -> Option<&Entry<T>> {
        match place {
            Place::InTime(lane) => self.lanes[lane].head(),
            Place::Late(lane) => self.lanes[lane].late.front(),
        }
    }

    /// Moves the entries with `deadline <= now` to the end of `expired`, earliest deadline first; or behind the others of
    /// their lane, which is counted in the answer.
    pub(super) fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<T>>) -> u64 {
        let mut late = 0;
        while let Some(&Reverse(due)) = self.deadlines.peek() {
            if due.at > now {
                break;
            }
            self.deadlines.pop();
            let Some(mut entry) = self.lanes[due.lane].take(due.seq) else { continue };
            if self.lanes[due.lane].delays {
                self.deadlines_live -= 1;
                entry.deadline = None;
                self.lanes[due.lane].late.push_back(entry);
                late += 1;
            } else {
                self.count_out(&entry);
                expired.push(entry);
            }
        }
        self.drop_stale_deadlines();
        late
    }

    /// Whether an entry of this level goes behind the others when its deadline passes.
    pub(super) fn delays(&self, priority: Priority) -> bool {
        self.lanes[usize::from(priority.get()) - 1].delays
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse(due)| due.at)
    }

    /// Moves everything to the end of `out`, highest level first.
    pub(super) fn drain(&mut self, out: &mut Vec<Entry<T>>) {
        out.reserve(self.waiting);
        for lane in &mut self.lanes {
            out.extend(lane.slots.drain(..).filter_map(|slot| slot.entry));
            out.extend(lane.late.drain(..));
            lane.occupied = 0;
        }
        self.deadlines.clear();
        self.deadlines_live = 0;
        self.waiting = 0;
        self.rows = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Entries in each lane, level 1 first.
    pub(super) fn depths(&self) -> impl Iterator<Item = usize> {
        self.lanes.iter().map(Lane::len)
    }

    fn count_out(&mut self, entry: &Entry<T>) {
        self.waiting -= 1;
        self.rows -= u64::from(entry.rows);
        self.deadlines_live -= usize::from(entry.deadline.is_some());
    }

    /// Keeps the top of the heap live, and the heap's size in proportion to what waits.
    fn drop_stale_deadlines(&mut self) {
        let lanes = &self.lanes;
        let is_live = |due: &Due| lanes[due.lane].holds(due.seq);
        while self.deadlines.peek().is_some_and(|Reverse(due)| !is_live(due)) {
            self.deadlines.pop();
        }
        if self.deadlines.len() > 2 * self.deadlines_live + LEFTOVERS_MIN {
            self.deadlines.retain(|Reverse(due)| is_live(due));
        }
    }
}

fn lane_of<T>(entry: &Entry<T>) -> usize {
    usize::from(entry.priority.get()) - 1
}

/// Where the next entry to leave stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At the head of that lane.
    InTime(usize),
    /// At the head of that lane's late entries.
    Late(usize),
}

/// One priority level, first in first out.
#[derive(Debug)]
struct Lane<T> {
    depth_max: usize,
    /// Whether an entry whose deadline passes goes to `late`.
    delays: bool,
    /// Entries whose deadline has passed, in that order: behind all others.
    late: VecDeque<Entry<T>>,
    /// Rising `seq`.
    slots: VecDeque<Slot<T>>,
    occupied: usize,
    /// What the next entry of this lane is known by in the deadline heap.
    seq_next: u64,
}

#[derive(Debug)]
struct Slot<T> {
    seq: u64,
    entry: Option<Entry<T>>,
}

impl<T> Lane<T> {
    fn new(policy: &LevelPolicy) -> Self {
        Self {
            depth_max: usize::try_from(policy.queue_depth_max.get()).unwrap_or(usize::MAX),
            delays: policy.timeout_action == TimeoutAction::Delay,
            late: VecDeque::new(),
            slots: VecDeque::new(),
            occupied: 0,
            seq_next: 0,
        }
    }

    fn len(&self) -> usize {
        self.occupied + self.late.len()
    }

    #[inline]
    fn push(&mut self, entry: Entry<T>) -> u64 {
        let seq = self.seq_next;
        self.seq_next += 1;
        self.slots.push_back(Slot { seq, entry: Some(entry) });
        self.occupied += 1;
        seq
    }

    fn head(&self) -> Option<&Entry<T>> {
        self.slots.front()?.entry.as_ref()
    }

    fn pop(&mut self) -> Option<Entry<T>> {
        let entry = self.slots.pop_front()?.entry;
        self.occupied -= usize::from(entry.is_some());
        self.drop_empty_front();
        entry
    }

    /// Takes an entry out of the middle, if it still waits.
    fn take(&mut self, seq: u64) -> Option<Entry<T>> {
        let index = self.find(seq)?;
        let entry = self.slots[index].entry.take()?;
        self.occupied -= 1;
        self.drop_empty_front();
        if self.slots.len() > 2 * self.occupied + LEFTOVERS_MIN {
            self.slots.retain(|slot| slot.entry.is_some());
        }
        Some(entry)
    }

    fn holds(&self, seq: u64) -> bool {
        self.find(seq).is_some_and(|index| self.slots[index].entry.is_some())
    }

    fn find(&self, seq: u64) -> Option<usize> {
        // Most stale items lie before the front: no search for those.
        if seq < self.slots.front()?.seq {
            return None;
        }
        self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok()
    }

    fn drop_empty_front(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.entry.is_none()) {
            self.slots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use super::*;
    use crate::batch::tests::start;

    const MS: Duration = Duration::from_millis(1);

    fn two_lanes() -> Queue<()> {
        Queue::new(&Levels::uniform(NonZeroU8::new(2).expect("2 is not 0"), LevelPolicy::default()))
    }

    fn push(queue: &mut Queue<()>, level: u8, deadline: Option<Instant>) {
        let priority = Priority::new(level).expect("levels count from 1");
        let arrived = start();
        queue.push(Entry { item: (), rows: 1, priority, arrived, deadline }).expect("deep enough");
    }

    #[test]
    fn expired_entries_behind_a_waiting_head_do_not_pile_up() {
        let t = start();
        let mut queue = two_lanes();
        push(&mut queue, 1, None);
        for i in 1..2_000 {
            push(&mut queue, 1, Some(t + i * MS));
            queue.expire(t + i * MS, &mut Vec::new());
            assert!(queue.lanes[0].slots.len() <= 2 + LEFTOVERS_MIN);
        }
        assert_eq!((queue.len(), queue.rows()), (1, 1));
    }

    #[test]
    fn deadlines_of_popped_entries_do_not_pile_up_below_an_early_one() {
        let t = start();
        let mut queue = two_lanes();
        push(&mut queue, 2, Some(t + MS));
        for _ in 0..2_000 {
            push(&mut queue, 1, Some(t + 9 * MS));
            queue.pop(0).expect("just pushed");
            assert!(queue.deadlines.len() <= 2 + LEFTOVERS_MIN);
        }
        assert_eq!(queue.next_deadline(), Some(t + MS));
    }

    #[test]
    fn a_swept_lane_still_finds_its_entries() {
        let t = start();
        let mut queue = two_lanes();
        push(&mut queue, 1, None);
        (0..100).for_each(|_| push(&mut queue, 1, Some(t + MS)));
        (0..5).for_each(|_| push(&mut queue, 1, Some(t + 2 * MS)));
        let mut expired = Vec::new();
        queue.expire(t + MS, &mut expired);
        assert_eq!((expired.len(), queue.len()), (100, 6));
        queue.expire(t + 2 * MS, &mut expired);
        assert_eq!((expired.len(), queue.len(), queue.next_deadline()), (105, 1, None));
    }
}
