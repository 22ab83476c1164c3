//! Delivered offsets and their replies in; the run of finished ones, lowest first, and the offset to commit out.
//!
//! ```text
//!          base                     first unfinished
//!           │                        │
//!    ───────┼───┬───┬───┬───┬───┬───┼───┬───┬───┬──────►  offset
//!  committed│ F │ F │gap│ F │ F │gap│ U │ F │ U │
//!           └────── run (4) ────────┘     waits for its turn
//! ```
//!
//! Invariants:
//! 1. Every tracked offset is at or above `base`; offsets rise. A gap (control records, compaction, aborted
//!    transactions) is not tracked and holds nothing back.
//! 2. The first end of an offset counts. A later one is told so and its reply dropped.
//! 3. The run is the longest beginning of the tracked offsets of which all are finished. Only it can be committed.
//! 4. `base` never goes back.

use std::collections::VecDeque;

/// One partition's delivered offsets above the committed one, and their replies.
///
/// `deliver`, `finish` and `commit` cost amortised O(1) for an offset where the offsets have no gaps; with gaps
/// `finish` searches in O(log n). One tracker serves one assignment: after a seek or a new assignment, make a new one.
#[derive(Clone, Debug)]
pub struct Tracker<R> {
    /// The committed offset: the next to be read after a restart.
    base: i64,
    /// Delivered and not committed, offsets rising.
    slots: VecDeque<Slot<R>>,
    /// How many of the first slots are finished without a break.
    run_len: usize,
    unfinished: usize,
    highest_delivered: Option<i64>,
}

/// What became of an end that was reported to [`Tracker::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an end that was not accepted is worth counting"]
pub enum Finish {
    /// The reply is kept until it is committed.
    Accepted,
    /// The offset had its end already; this reply was dropped.
    Duplicate,
    /// The offset is committed already or was never delivered; this reply was dropped.
    Unknown,
}

/// The broker's committed offset lies below one that was committed before: somebody reset the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("committed offset went back from {base} to {committed}: was the consumer group reset while a worker ran?")]
pub struct OffsetWentBack {
    /// What this tracker knows to be committed.
    pub base: i64,
    /// What the broker says.
    pub committed: i64,
}

#[derive(Clone, Debug)]
struct Slot<R> {
    offset: i64,
    state: State<R>,
}

#[derive(Clone, Debug)]
enum State<R> {
    Unfinished,
    Finished(R),
}

impl<R> Tracker<R> {
    /// Nothing delivered yet; `base` is the committed offset, the next to be read.
    ///
    /// # Panics
    /// When `base` is negative: such a number names a place (beginning, end, none stored), not an offset.
    #[must_use]
    pub fn new(base: i64) -> Self {
        assert!(base >= 0, "{base} is not an offset");
        Self { base, slots: VecDeque::new(), run_len: 0, unfinished: 0, highest_delivered: None }
    }

    /// Tracks an offset that was handed on. Offsets rise strictly; gaps are allowed.
    ///
    /// # Panics
    /// When `offset` is not above all delivered before, or below the base: a record would be scored twice.
    pub fn deliver(&mut self, offset: i64) {
        assert!(
            offset >= self.base && self.highest_delivered.is_none_or(|highest| offset > highest),
            "offset {offset} delivered again: base {}, highest delivered {:?}",
            self.base,
            self.highest_delivered
        );
        self.highest_delivered = Some(offset);
        self.slots.push_back(Slot { offset, state: State::Unfinished });
        self.unfinished += 1;
    }

    /// Keeps the reply of a delivered offset, if this is its first end.
    pub fn finish(&mut self, offset: i64, reply: R) -> Finish {
        let Some(index) = self.find(offset) else {
            return Finish::Unknown;
        };
        let state = &mut self.slots[index].state;
        if matches!(state, State::Finished(_)) {
            return Finish::Duplicate;
        }
        *state = State::Finished(reply);
        self.unfinished -= 1;
        if index == self.run_len {
            self.extend_run();
        }
        Finish::Accepted
    }

    /// Puts another reply in the place of a finished one that was refused. Returns whether there was one.
    pub fn replace(&mut self, offset: i64, reply: R) -> bool {
        let found = self.find(offset).map(|index| &mut self.slots[index].state);
        match found {
            Some(state @ State::Finished(_)) => {
                *state = State::Finished(reply);
                true
            }
            _ => false,
        }
    }

    /// The finished offsets that can be committed now, lowest first, with their replies.
    pub fn run(&self) -> impl Iterator<Item = (i64, &R)> {
        self.slots.iter().take(self.run_len).filter_map(|slot| match &slot.state {
            State::Finished(reply) => Some((slot.offset, reply)),
            State::Unfinished => None,
        })
    }

    /// How many [`run`](Self::run) yields. O(1).
    #[must_use]
    pub fn run_len(&self) -> usize {
        self.run_len
    }

    /// The offset to commit when the first `n` replies of the run are written; for 0, the base.
    ///
    /// It stays right while more offsets are delivered and finished, so it can be asked before a transaction and
    /// [`commit`](Self::commit) called with the same `n` after it.
    ///
    /// # Panics
    /// When the run is shorter than `n`.
    #[must_use]
    pub fn position_after(&self, n: usize) -> i64 {
        assert!(n <= self.run_len, "{n} replies of a run of {}", self.run_len);
        n.checked_sub(1).map_or(self.base, |last| self.slots[last].offset + 1)
    }

    /// The first `n` replies of the run and the offset behind them are committed: forgets them.
    ///
    /// # Panics
    /// When the run is shorter than `n`.
    pub fn commit(&mut self, n: usize) {
        self.base = self.position_after(n);
        self.slots.drain(..n);
        self.run_len -= n;
    }

    /// After a commit whose outcome is uncertain the broker's committed offset counts: forgets everything below it,
    /// finished or not, and returns how many offsets that were.
    ///
    /// # Errors
    /// When `committed` lies below the base. Nothing changes then.
    pub fn committed_to(&mut self, committed: i64) -> Result<usize, OffsetWentBack> {
        if committed < self.base {
            return Err(OffsetWentBack { base: self.base, committed });
        }
        self.base = committed;
        let below = self.slots.partition_point(|slot| slot.offset < committed);
        let unfinished = self.slots.drain(..below).filter(|slot| matches!(slot.state, State::Unfinished)).count();
        self.unfinished -= unfinished;
        self.run_len = self.run_len.saturating_sub(below);
        // An unfinished offset that broke the run may be among the forgotten.
        self.extend_run();
        Ok(below)
    }

    /// The committed offset: the next to be read after a restart.
    #[must_use]
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Delivered offsets without a reply.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Offsets delivered and not committed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether everything delivered is committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The highest offset delivered in this assignment, committed or not.
    #[must_use]
    pub fn highest_delivered(&self) -> Option<i64> {
        self.highest_delivered
    }

    fn find(&self, offset: i64) -> Option<usize> {
        let first = self.slots.front()?.offset;
        // Gaps only ever make a slot's index smaller than its distance from the first offset.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.slots.get(guess).is_some_and(|slot| slot.offset == offset) {
            return Some(guess);
        }
        self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()
    }

    fn extend_run(&mut self) {
        while matches!(self.slots.get(self.run_len), Some(Slot { state: State::Finished(_), .. })) {
            self.run_len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Base 10, delivered 10, 11, 13, 20.
    fn with_gaps() -> Tracker<&'static str> {
        let mut tracker = Tracker::new(10);
        for offset in [10, 11, 13, 20] {
            tracker.deliver(offset);
        }
        tracker
    }

    #[test]
    fn a_slow_head_holds_the_run_back_and_a_gap_does_not() {
        let mut tracker = with_gaps();
        assert_eq!(tracker.finish(13, "c"), Finish::Accepted);
        assert_eq!(tracker.finish(11, "b"), Finish::Accepted);
        assert_eq!((tracker.run_len(), tracker.unfinished()), (0, 2));
        assert_eq!(tracker.finish(10, "a"), Finish::Accepted);
        assert_eq!(tracker.run().collect::<Vec<_>>(), [(10, &"a"), (11, &"b"), (13, &"c")]);
        assert_eq!([0, 1, 2, 3].map(|n| tracker.position_after(n)), [10, 11, 12, 14]);
    }

    #[test]
    fn part_of_a_run_is_committed_and_the_rest_stays() {
        let mut tracker = with_gaps();
        for offset in [10, 11, 13] {
            assert_eq!(tracker.finish(offset, "x"), Finish::Accepted);
        }
        tracker.commit(2);
        assert_eq!((tracker.base(), tracker.run_len(), tracker.len()), (12, 1, 2));
        tracker.commit(1);
        assert_eq!((tracker.base(), tracker.run_len(), tracker.len()), (14, 0, 1));
        assert_eq!(tracker.finish(20, "d"), Finish::Accepted);
        tracker.commit(1);
        assert_eq!((tracker.base(), tracker.is_empty(), tracker.highest_delivered()), (21, true, Some(20)));
    }

    #[test]
    fn the_first_end_counts() {
        let mut tracker = with_gaps();
        assert_eq!(tracker.finish(10, "first"), Finish::Accepted);
        assert_eq!(tracker.finish(10, "second"), Finish::Duplicate);
        assert_eq!(tracker.run().collect::<Vec<_>>(), [(10, &"first")]);
        tracker.commit(1);
        assert_eq!(tracker.finish(10, "after the commit"), Finish::Unknown);
    }

    #[test]
    fn an_offset_that_was_never_delivered_is_unknown() {
        let mut tracker = with_gaps();
        for offset in [i64::MIN, 9, 12, 19, 21, i64::MAX] {
            assert_eq!(tracker.finish(offset, "x"), Finish::Unknown, "offset {offset}");
        }
        assert_eq!(tracker.unfinished(), 4);
    }

    #[test]
    fn the_brokers_word_drops_what_is_below_it() {
        let mut tracker = with_gaps();
        assert_eq!(tracker.finish(13, "c"), Finish::Accepted);
        // 10 and 11 were unfinished here, yet the broker has them: 13 can be committed next.
        assert_eq!(tracker.committed_to(12), Ok(2));
        assert_eq!((tracker.base(), tracker.run_len(), tracker.unfinished()), (12, 1, 1));
        assert_eq!(tracker.committed_to(11), Err(OffsetWentBack { base: 12, committed: 11 }));
        assert_eq!(tracker.base(), 12);
        assert_eq!(tracker.committed_to(100), Ok(2));
        assert_eq!((tracker.base(), tracker.is_empty()), (100, true));
    }

    #[test]
    #[should_panic(expected = "offset 20 delivered again")]
    fn an_offset_is_delivered_once() {
        with_gaps().deliver(20);
    }

    #[test]
    #[should_panic(expected = "offset 9 delivered again")]
    fn an_offset_below_the_base_is_not_delivered() {
        Tracker::<()>::new(10).deliver(9);
    }

    #[test]
    #[should_panic(expected = "1 replies of a run of 0")]
    fn no_more_than_the_run_is_committed() {
        with_gaps().commit(1);
    }

    /// The definition: a sorted map from offset to its first reply, and everything else worked out from it.
    struct Naive {
        base: i64,
        map: BTreeMap<i64, Option<u32>>,
        highest: Option<i64>,
    }

    impl Naive {
        fn run(&self) -> Vec<(i64, u32)> {
            self.map.iter().map_while(|(&offset, reply)| reply.map(|reply| (offset, reply))).collect()
        }

        fn finish(&mut self, offset: i64, reply: u32) -> Finish {
            match self.map.get_mut(&offset) {
                None => Finish::Unknown,
                Some(Some(_)) => Finish::Duplicate,
                Some(slot @ None) => {
                    *slot = Some(reply);
                    Finish::Accepted
                }
            }
        }

        /// Forgets what lies below `base`; how many that were.
        fn move_base(&mut self, base: i64) -> usize {
            let kept = self.map.split_off(&base);
            self.base = base;
            std::mem::replace(&mut self.map, kept).len()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// This far above the next offset that can come.
        Deliver {
            gap: i64,
        },
        /// This far above the base, delivered or not.
        Finish {
            above: i64,
        },
        /// This share of the run, in percent.
        Commit {
            percent: usize,
        },
        CommittedTo {
            above: i64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let gap = prop_oneof![6 => Just(0), 1 => 1..4_i64];
        prop_oneof![
            8 => gap.prop_map(|gap| Step::Deliver { gap }),
            12 => (-2..24_i64).prop_map(|above| Step::Finish { above }),
            2 => (0..=100_usize).prop_map(|percent| Step::Commit { percent }),
            1 => (-2..12_i64).prop_map(|above| Step::CommittedTo { above }),
        ]
    }

    fn take(step: &Step, reply: u32, naive: &mut Naive, tracker: &mut Tracker<u32>) -> Result<(), TestCaseError> {
        match *step {
            Step::Deliver { gap } => {
                let next = naive.highest.map_or(naive.base, |highest| naive.base.max(highest + 1)) + gap;
                naive.map.insert(next, None);
                naive.highest = Some(next);
                tracker.deliver(next);
            }
            Step::Finish { above } => {
                let offset = naive.base + above;
                prop_assert_eq!(tracker.finish(offset, reply), naive.finish(offset, reply));
            }
            Step::Commit { percent } => {
                let run = naive.run();
                let n = run.len() * percent / 100;
                let position = if n == 0 { naive.base } else { run[n - 1].0 + 1 };
                prop_assert_eq!(tracker.position_after(n), position);
                tracker.commit(n);
                prop_assert_eq!(naive.move_base(position), n);
            }
            Step::CommittedTo { above } if above < 0 => {
                let (base, committed) = (naive.base, naive.base + above);
                prop_assert_eq!(tracker.committed_to(committed), Err(OffsetWentBack { base, committed }));
            }
            Step::CommittedTo { above } => {
                let committed = naive.base + above;
                prop_assert_eq!(tracker.committed_to(committed), Ok(naive.move_base(committed)));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_tracker_does_what_its_definition_says(steps in prop::collection::vec(step(), 1..300)) {
            let mut naive = Naive { base: 10, map: BTreeMap::new(), highest: None };
            let mut tracker = Tracker::new(10);
            for (reply, step) in (0..).zip(&steps) {
                take(step, reply, &mut naive, &mut tracker)?;
                let run: Vec<_> = tracker.run().map(|(offset, &reply)| (offset, reply)).collect();
                prop_assert_eq!(&run, &naive.run());
                prop_assert_eq!(tracker.run_len(), run.len());
                prop_assert_eq!(tracker.base(), naive.base);
                prop_assert_eq!(tracker.len(), naive.map.len());
                prop_assert_eq!(tracker.is_empty(), naive.map.is_empty());
                prop_assert_eq!(tracker.unfinished(), naive.map.values().filter(|reply| reply.is_none()).count());
                prop_assert_eq!(tracker.highest_delivered(), naive.highest);
            }
        }
    }
}
