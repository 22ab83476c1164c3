//! Delivered offsets and their replies in; which of them go into the next commit, and what that commit says, out.
//!
//! ```text
//!          base                                    end
//!           │                                       │
//!    ───────┼───┬───┬───┬───┬───┬───┬───┬───┬───┬───┼───┬───┬───►  offset
//!           │ U │ C │gap│ U │ C │ C │gap│ U │ C │ C │ U │ F │ U
//!           └── committed, but for the open ones (U) ──┘  └── taken next
//! ```
//!
//! Invariants:
//! 1. A tracked offset is delivered and not committed. Offsets rise. A gap (control records, compaction, aborted
//!    transactions) is not tracked and holds nothing back.
//! 2. The first end of an offset counts. A later one is told so and its reply dropped.
//! 3. What a commit says is exact: everything below its end is done but the offsets that it names as open. So no position
//!    passes an unanswered record unsaid.
//! 4. `base` and `end` never go back, and the open ones below `end` only become fewer.

mod cover;

use std::collections::{HashSet, VecDeque};

pub use self::cover::{Budget, Commit};
use self::cover::{Cover, chars_of};
use super::offset_map::OffsetMap;
use crate::config::Ordering;

/// One partition's delivered offsets that are not committed, and their replies.
///
/// `deliver`, `finish` and a commit of what finished in order cost amortised O(1) for an offset. What finished out of
/// order costs a walk over the open offsets below it, which ends where their list no longer fits into a commit.
/// One tracker serves one assignment: after a seek or a new assignment, make a new one.
#[derive(Clone, Debug)]
pub struct Tracker<R> {
    ordering: Ordering,
    /// The committed offset: where reading starts after a restart.
    base: i64,
    /// All of `base..end` is committed but what is open.
    end: i64,
    /// Characters of the committed list of open offsets.
    chars: usize,
    /// Delivered and not committed, offsets rising; with holes where one above an open offset was committed.
    slots: VecDeque<Slot<R>>,
    holes: usize,
    /// Open offsets below `end` that an earlier assignment left and that were not delivered here yet, rising.
    expected: VecDeque<i64>,
    highest_delivered: Option<i64>,
    unfinished: usize,
    finished: usize,
    answered: usize,
    /// The keys of the open records that a walk has passed; kept for its memory.
    passed: HashSet<u64>,
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

/// The broker's committed position lies behind one that was committed before: somebody reset the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("committed position went back from {known} to {committed}: was the consumer group reset while a worker ran?")]
pub struct WentBack {
    /// What this tracker knows to be committed.
    pub known: i64,
    /// What the broker says.
    pub committed: i64,
}

#[derive(Clone, Debug)]
struct Slot<R> {
    offset: i64,
    /// The hash of its key; 0 for none.
    key: u64,
    state: State,
    /// There while it is finished or sent.
    reply: Option<R>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unfinished,
    Finished,
    /// On its way, in a transaction or by itself.
    Sent,
    /// Its reply is out; its position is not committed.
    Answered,
    /// Committed, with an open offset below.
    Hole,
}

impl<R> Tracker<R> {
    /// Nothing delivered yet. `committed` is the position and the open offsets above it.
    #[must_use]
    pub fn new(committed: &OffsetMap, ordering: Ordering) -> Self {
        Self {
            ordering,
            base: committed.base(),
            end: committed.end(),
            chars: chars_of(committed),
            slots: VecDeque::new(),
            holes: 0,
            expected: committed.open().iter().copied().collect(),
            highest_delivered: None,
            unfinished: 0,
            finished: 0,
            answered: 0,
            passed: HashSet::new(),
        }
    }

    /// Tracks an offset that was handed on, with the hash of its key if it has one. Offsets rise strictly; gaps are
    /// allowed.
    ///
    /// # Panics
    /// When `offset` is not above all delivered before, or is committed: a record would be scored twice.
    pub fn deliver(&mut self, offset: i64, key: Option<u64>) {
        assert!(
            !self.is_committed(offset) && self.highest_delivered.is_none_or(|highest| offset > highest),
            "offset {offset} delivered again: done up to {}, highest delivered {:?}",
            self.end,
            self.highest_delivered
        );
        // What lies below and was expected never came: it is gone from the topic.
        while self.expected.front().is_some_and(|&open| open <= offset) {
            self.expected.pop_front();
        }
        self.highest_delivered = Some(offset);
        // That another key may share the number of one costs at most a wait.
        let key = key.map_or(0, |hash| hash.max(1));
        self.slots.push_back(Slot { offset, key, state: State::Unfinished, reply: None });
        self.unfinished += 1;
    }

    /// Tracks an offset where they come in any order and again, and each is done by itself: then nothing is committed, and
    /// [`forget`](Self::forget) says that one is done. Returns whether it was not tracked.
    pub fn deliver_again(&mut self, offset: i64) -> bool {
        let slot = Slot { offset, key: 0, state: State::Unfinished, reply: None };
        match self.slots.binary_search_by_key(&offset, |slot| slot.offset) {
            Ok(index) if self.slots[index].state == State::Hole => {
                self.slots[index] = slot;
                self.holes -= 1;
            }
            Ok(_) => return false,
            Err(index) => self.slots.insert(index, slot),
        }
        self.unfinished += 1;
        true
    }

    /// One that was [delivered in any order](Self::deliver_again) is done. Returns whether it was tracked.
    pub fn forget(&mut self, offset: i64) -> bool {
        let Some(index) = self.find(offset) else { return false };
        let slot = &mut self.slots[index];
        match slot.state {
            State::Hole => return false,
            State::Unfinished => self.unfinished -= 1,
            State::Finished => self.finished -= 1,
            State::Answered => self.answered -= 1,
            State::Sent => {}
        }
        (slot.state, slot.reply) = (State::Hole, None);
        self.holes += 1;
        self.drop_holes();
        true
    }

    /// Whether an offset is committed, as far as is known before it is delivered.
    #[must_use]
    pub fn is_committed(&self, offset: i64) -> bool {
        offset < self.base || (offset < self.end && self.expected.binary_search(&offset).is_err())
    }

    /// Keeps the reply of a delivered offset, if this is its first end.
    pub fn finish(&mut self, offset: i64, reply: R) -> Finish {
        let Some(index) = self.find(offset) else {
            return Finish::Unknown;
        };
        let slot = &mut self.slots[index];
        match slot.state {
            State::Unfinished => {}
            State::Finished | State::Sent | State::Answered => return Finish::Duplicate,
            State::Hole => return Finish::Unknown,
        }
        (slot.state, slot.reply) = (State::Finished, Some(reply));
        self.unfinished -= 1;
        self.finished += 1;
        Finish::Accepted
    }

    /// Puts another reply in the place of one that was refused; it is taken anew. Returns whether there was one.
    pub fn replace(&mut self, offset: i64, reply: R) -> bool {
        let Some(index) = self.find(offset) else { return false };
        let slot = &mut self.slots[index];
        match slot.state {
            State::Finished => {}
            State::Sent => self.finished += 1,
            State::Unfinished | State::Answered | State::Hole => return false,
        }
        (slot.state, slot.reply) = (State::Finished, Some(reply));
        true
    }

    /// The reply of an offset, while it is kept.
    #[must_use]
    pub fn reply(&self, offset: i64) -> Option<&R> {
        self.slots[self.find(offset)?].reply.as_ref()
    }

    // ---- in a transaction: replies and the commit that covers them go together ----

    /// Takes finished replies for a transaction, lowest offset first: as many as the budget allows, and as far up as the
    /// list of open offsets below them fits into `chars_max` characters. `None` when none can go now. What is taken is
    /// [`sent`](Self::sent) until [`commit`](Self::commit) or [`untake`](Self::untake).
    pub fn take(&mut self, budget: &mut Budget, chars_max: usize, bytes_of: impl Fn(&R) -> usize) -> Option<Commit> {
        if self.finished == 0 {
            return None;
        }
        // A committed list that is longer than is allowed now can only shrink: then nothing is left behind.
        let forced = self.chars > chars_max;
        let mut cover = Cover::new(self.end, chars_max);
        let (mut taking, mut taken, mut seen) = (true, 0, 0);
        self.passed.clear();
        for slot in &mut self.slots {
            let offset = slot.offset;
            if seen == self.finished {
                taking = false;
            }
            if !(taking && (forced || cover.fits(offset))) && offset >= cover.end {
                cover.open(offset);
                break;
            }
            match slot.state {
                State::Hole => continue,
                State::Finished => {
                    seen += 1;
                    let blocked = self.ordering == Ordering::Key && self.passed.contains(&slot.key);
                    let bytes = slot.reply.as_ref().map_or(0, &bytes_of);
                    if taking && !blocked && (forced || budget.allows(bytes)) {
                        budget.spend(bytes);
                        taken += 1;
                        slot.state = State::Sent;
                        cover.done(offset);
                        continue;
                    }
                    taking &= blocked;
                }
                State::Unfinished | State::Sent | State::Answered => taking &= self.ordering != Ordering::Partition,
            }
            if self.ordering == Ordering::Key && slot.key != 0 {
                self.passed.insert(slot.key);
            }
            cover.open(offset);
        }
        self.finished -= taken;
        if taken == 0 {
            return None;
        }
        self.expected.iter().for_each(|&open| cover.open(open));
        let commit = cover.commit(taken);
        if commit.chars > chars_max {
            self.untake();
            return None;
        }
        Some(commit)
    }

    /// Takes finished replies to be sent by themselves, lowest offset first, and appends their offsets to `taken`. What is
    /// taken is [`sent`](Self::sent) until [`answered`](Self::answered).
    pub fn send(&mut self, budget: &mut Budget, bytes_of: impl Fn(&R) -> usize, taken: &mut Vec<i64>) {
        let before = taken.len();
        let mut seen = 0;
        self.passed.clear();
        for slot in &mut self.slots {
            if seen == self.finished {
                break;
            }
            match slot.state {
                State::Finished => {
                    seen += 1;
                    let bytes = slot.reply.as_ref().map_or(0, &bytes_of);
                    let blocked = self.ordering == Ordering::Key && self.passed.contains(&slot.key);
                    if !blocked && budget.allows(bytes) {
                        budget.spend(bytes);
                        taken.push(slot.offset);
                        slot.state = State::Sent;
                        continue;
                    }
                    if !blocked {
                        break;
                    }
                }
                State::Unfinished if self.ordering == Ordering::Partition => break,
                State::Unfinished => {}
                State::Sent | State::Answered | State::Hole => continue,
            }
            if self.ordering == Ordering::Key && slot.key != 0 {
                self.passed.insert(slot.key);
            }
        }
        self.finished -= taken.len() - before;
    }

    /// What is on its way, lowest offset first.
    pub fn sent(&self) -> impl Iterator<Item = (i64, &R)> {
        let sent = self.slots.iter().filter(|slot| slot.state == State::Sent);
        sent.filter_map(|slot| Some((slot.offset, slot.reply.as_ref()?)))
    }

    /// What is on its way is not: it is finished, and taken anew.
    pub fn untake(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.state == State::Sent) {
            slot.state = State::Finished;
            self.finished += 1;
        }
    }

    /// One reply that was on its way is not.
    pub fn send_again(&mut self, offset: i64) {
        let Some(index) = self.find(offset) else { return };
        let state = &mut self.slots[index].state;
        if *state == State::Sent {
            *state = State::Finished;
            self.finished += 1;
        }
    }

    /// A reply that was on its way has arrived. Returns whether there was one.
    pub fn answered(&mut self, offset: i64) -> bool {
        let Some(index) = self.find(offset) else { return false };
        let slot = &mut self.slots[index];
        let arrived = slot.state == State::Sent;
        if arrived {
            (slot.state, slot.reply) = (State::Answered, None);
            self.answered += 1;
        }
        arrived
    }

    /// The offsets whose replies have arrived, lowest first.
    pub fn answered_offsets(&self) -> impl Iterator<Item = i64> {
        self.slots.iter().filter(|slot| slot.state == State::Answered).map(|slot| slot.offset)
    }

    /// What can be committed of the replies that have arrived, as far up as the list of open offsets fits into
    /// `chars_max` characters. `None` when nothing new can.
    #[must_use]
    pub fn answered_commit(&self, chars_max: usize) -> Option<Commit> {
        let mut cover = Cover::new(self.end, chars_max);
        let (mut records, mut seen) = (0, 0);
        for slot in &self.slots {
            let offset = slot.offset;
            if (seen == self.answered || !cover.fits(offset)) && offset >= cover.end {
                cover.open(offset);
                break;
            }
            match slot.state {
                State::Hole => {}
                State::Answered => {
                    seen += 1;
                    records += 1;
                    cover.done(offset);
                }
                State::Unfinished | State::Finished | State::Sent => cover.open(offset),
            }
        }
        self.expected.iter().for_each(|&open| cover.open(open));
        let commit = cover.commit(records);
        (records > 0 && commit.chars <= chars_max).then_some(commit)
    }

    /// What can be committed when everything below `position` was delivered and the topic has nothing above: the position
    /// itself, past what is no record. `None` when something is tracked, or it is committed already.
    #[must_use]
    pub fn idle_commit(&self, position: i64) -> Option<Commit> {
        let all_gone = self.expected.back().is_none_or(|&open| open < position);
        let further = position >= self.end && position > self.base;
        let idle = self.is_empty() && all_gone && further;
        idle.then(|| Commit { map: OffsetMap::empty(position), records: 0, chars: 0 })
    }

    /// The broker has this commit: forgets what it covers, and returns how many offsets that were.
    pub fn commit(&mut self, commit: &Commit) -> usize {
        self.cover(&commit.map, commit.chars)
    }

    /// After a commit whose outcome is uncertain the broker's word counts: forgets everything that is done according to
    /// it, finished or not, and returns how many offsets that were. What was on its way and is not done is taken anew.
    ///
    /// # Errors
    /// When the broker knows of less than was committed before. Nothing changes then.
    pub fn committed_to(&mut self, committed: &OffsetMap) -> Result<usize, WentBack> {
        if committed.base() < self.base || committed.end() < self.end {
            return Err(WentBack { known: self.end, committed: committed.end() });
        }
        self.expected.retain(|open| !committed.is_done(*open));
        let covered = self.cover(committed, chars_of(committed));
        self.untake();
        Ok(covered)
    }

    /// The committed offset: where reading starts after a restart.
    #[must_use]
    pub fn base(&self) -> i64 {
        self.base
    }

    /// Delivered offsets without a reply.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Replies that were not taken yet.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Offsets delivered and not committed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.holes
    }

    /// Whether everything delivered is committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest offset delivered in this assignment, committed or not.
    #[must_use]
    pub fn highest_delivered(&self) -> Option<i64> {
        self.highest_delivered
    }

    fn cover(&mut self, map: &OffsetMap, chars: usize) -> usize {
        let mut covered = 0;
        let mut open = map.open().iter().peekable();
        for slot in &mut self.slots {
            if slot.offset >= map.end() {
                break;
            }
            while open.next_if(|&&open| open < slot.offset).is_some() {}
            if open.peek() == Some(&&slot.offset) {
                continue;
            }
            match slot.state {
                State::Hole => continue,
                State::Unfinished => self.unfinished -= 1,
                State::Finished => self.finished -= 1,
                State::Answered => self.answered -= 1,
                State::Sent => {}
            }
            (slot.state, slot.reply) = (State::Hole, None);
            self.holes += 1;
            covered += 1;
        }
        (self.base, self.end, self.chars) = (map.base(), map.end(), chars);
        self.drop_holes();
        covered
    }

    /// Drops the lowest slots that are holes, and all of them where they are many.
    fn drop_holes(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.state == State::Hole) {
            self.slots.pop_front();
            self.holes -= 1;
        }
        // Half of it holes: worth a pass, whose cost the commits that made them have paid.
        if self.holes > 64 && self.holes * 2 > self.slots.len() {
            self.slots.retain(|slot| slot.state != State::Hole);
            self.holes = 0;
        }
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
}

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;
