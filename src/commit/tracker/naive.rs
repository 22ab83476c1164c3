//! The tracker against its definition: every offset ever delivered with its fate, and all else worked out from it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::sent;
use super::*;
use crate::commit::{LIMIT, Reading};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Read by an earlier worker, not yet by this one.
    Expected,
    Unfinished,
    Finished,
    Sent,
    Answered,
    Committed,
}

/// The definition: every offset ever delivered with its fate, and everything else worked out from it.
struct Naive {
    ordering: Ordering,
    all: BTreeMap<i64, (u64, Fate)>,
    /// What the broker has: position, end, open offsets.
    broker: OffsetMap,
}

impl Naive {
    fn set(&mut self, offset: i64, fate: Fate) {
        self.all.get_mut(&offset).expect("it was delivered").1 = fate;
    }

    fn with(&self, fate: Fate) -> Vec<i64> {
        self.all.iter().filter(|(_, of)| of.1 == fate).map(|(offset, _)| *offset).collect()
    }

    fn tracked(&self) -> usize {
        self.all.values().filter(|of| !matches!(of.1, Fate::Committed | Fate::Expected)).count()
    }

    /// Whether an offset may go before those below that cannot.
    fn is_blocked(&self, offset: i64, open: impl Fn(Fate) -> bool) -> bool {
        let key = self.all[&offset].0;
        self.all.range(..offset).any(|(_, (other, fate))| {
            open(*fate)
                && match self.ordering {
                    Ordering::None => false,
                    Ordering::Key => key != 0 && *other == key,
                    Ordering::Partition => true,
                }
        })
    }

    /// The map when all offsets below `end` are done but those of other fates.
    fn map(&self, end: i64, done: impl Fn(Fate) -> bool) -> OffsetMap {
        // Of what this worker has not read it knows what an earlier one left open.
        let is_known = |offset: i64, fate| fate != Fate::Expected || offset < self.broker.end();
        let open = self.all.iter().filter(|&(&offset, of)| !done(of.1) && is_known(offset, of.1));
        let open: Vec<i64> = open.map(|(offset, _)| *offset).collect();
        let below: Vec<i64> = open.iter().copied().filter(|&offset| offset < end).collect();
        match below.first() {
            Some(&first) => OffsetMap::new(first, end, below),
            None => OffsetMap::empty(open.first().map_or(end, |&first| first.max(end))),
        }
    }

    /// What a transaction takes, offset by offset from the lowest, each checked by encoding the whole map.
    fn take(&mut self, records: usize, chars_max: usize) -> Option<OffsetMap> {
        let mut end = self.broker.end();
        let mut left = records;
        for offset in self.with(Fate::Finished) {
            if self.is_blocked(offset, |fate| matches!(fate, Fate::Unfinished | Fate::Finished)) {
                continue;
            }
            if left == 0 {
                break;
            }
            self.set(offset, Fate::Sent);
            let new_end = end.max(offset + 1);
            let map = self.map(new_end, |fate| matches!(fate, Fate::Sent | Fate::Committed));
            if map.encode("t", 0).len() > chars_max {
                self.set(offset, Fate::Finished);
                break;
            }
            end = new_end;
            left -= 1;
        }
        (left < records).then(|| self.map(end, |fate| matches!(fate, Fate::Sent | Fate::Committed)))
    }

    fn commit(&mut self, map: &OffsetMap) {
        self.broker = map.clone();
        for (offset, (_, fate)) in &mut self.all {
            if map.is_done(*offset) {
                *fate = Fate::Committed;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// This far above the next offset that can come.
    Deliver { gap: i64, key: Option<u64> },
    /// One of the unfinished, by share.
    Finish { percent: usize },
    /// A transaction of so many records; it goes through, is aborted, or ends unknown, gone through or not.
    Transact { records: usize, outcome: u8 },
    /// The worker dies and another starts from what is committed; so much of it is read at once.
    Restart { percent: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![6 => Just(0), 1 => 1..200_i64];
    let key = prop_oneof![1 => Just(None), 3 => (1..4_u64).prop_map(Some)];
    prop_oneof![
        10 => (gap, key).prop_map(|(gap, key)| Step::Deliver { gap, key }),
        8 => (0..100_usize).prop_map(|percent| Step::Finish { percent }),
        3 => (1..12_usize, 0..4_u8).prop_map(|(records, outcome)| Step::Transact { records, outcome }),
        1 => (0..101_usize).prop_map(|percent| Step::Restart { percent }),
    ]
}

fn ordering() -> impl Strategy<Value = Ordering> {
    prop_oneof![Just(Ordering::None), Just(Ordering::Key), Just(Ordering::Partition)]
}

/// A fresh tracker on what the broker has, with some of what is not done delivered again.
fn restart(naive: &mut Naive, percent: usize) -> Result<Tracker<i64>, TestCaseError> {
    let text = naive.broker.encode("t", 0);
    let read = match OffsetMap::read(text.as_bytes(), "t", 0, naive.broker.base()) {
        Reading::Ours(map) => map,
        other => {
            prop_assert_eq!(other, Reading::Nothing);
            OffsetMap::empty(naive.broker.base())
        }
    };
    let mut tracker = Tracker::new(&read, naive.ordering);
    let mut open = 0;
    for (offset, (_, fate)) in &mut naive.all {
        prop_assert_eq!(tracker.is_committed(*offset), *fate == Fate::Committed, "offset {}", offset);
        if *fate != Fate::Committed {
            *fate = Fate::Expected;
            open += 1;
        }
    }
    for _ in 0..open * percent / 100 {
        deliver(naive, &mut tracker, 0, None);
    }
    Ok(tracker)
}

/// The next offset that an earlier worker read, or else a new one.
fn deliver(naive: &mut Naive, tracker: &mut Tracker<i64>, gap: i64, key: Option<u64>) {
    if let Some((offset, (key, fate))) = naive.all.iter_mut().find(|(_, of)| of.1 == Fate::Expected) {
        tracker.deliver(*offset, (*key != 0).then_some(*key));
        *fate = Fate::Unfinished;
        return;
    }
    let next = naive.all.last_key_value().map_or(10, |(offset, _)| offset + 1) + gap;
    naive.all.insert(next, (key.unwrap_or(0), Fate::Unfinished));
    tracker.deliver(next, key);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn transactions_are_those_of_the_naive_model(
        ordering in ordering(),
        chars_max in prop_oneof![Just(LIMIT), 24..60_usize],
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mut naive = Naive { ordering, all: BTreeMap::new(), broker: OffsetMap::empty(10) };
        let mut tracker: Tracker<i64> = Tracker::new(&naive.broker, ordering);
        for step in steps {
            match step {
                Step::Deliver { gap, key } => deliver(&mut naive, &mut tracker, gap, key),
                Step::Finish { percent } => {
                    let unfinished = naive.with(Fate::Unfinished);
                    let Some(&offset) = unfinished.get(unfinished.len() * percent / 100) else { continue };
                    naive.set(offset, Fate::Finished);
                    prop_assert_eq!(tracker.finish(offset, offset), Finish::Accepted);
                }
                Step::Transact { records, outcome } => {
                    let wanted = naive.take(records, chars_max);
                    let commit = tracker.take(&mut Budget::new(records, usize::MAX), chars_max, |_| 1);
                    prop_assert_eq!(commit.as_ref().map(|commit| &commit.map), wanted.as_ref());
                    prop_assert_eq!(sent(&tracker), naive.with(Fate::Sent));
                    let Some(commit) = commit else { continue };
                    prop_assert_eq!(commit.map.encode("t", 0).len(), commit.chars);
                    match outcome {
                        0 => {
                            tracker.untake();
                        }
                        1 => {
                            prop_assert_eq!(tracker.committed_to(&naive.broker), Ok(0));
                        }
                        2 => {
                            prop_assert_eq!(tracker.committed_to(&commit.map), Ok(commit.records));
                            naive.commit(&commit.map);
                        }
                        _ => {
                            prop_assert_eq!(tracker.commit(&commit), commit.records);
                            naive.commit(&commit.map);
                        }
                    }
                    for offset in naive.with(Fate::Sent) {
                        naive.set(offset, Fate::Finished);
                    }
                }
                Step::Restart { percent } => tracker = restart(&mut naive, percent)?,
            }
            prop_assert_eq!(tracker.base(), naive.broker.base());
            prop_assert_eq!(tracker.unfinished(), naive.with(Fate::Unfinished).len());
            prop_assert_eq!(tracker.finished(), naive.with(Fate::Finished).len());
            prop_assert_eq!(tracker.len(), naive.tracked());
        }
    }

    #[test]
    fn sending_by_itself_is_that_of_the_naive_model(
        ordering in ordering(),
        steps in prop::collection::vec((step(), 0..100_usize), 1..160),
    ) {
        let mut naive = Naive { ordering, all: BTreeMap::new(), broker: OffsetMap::empty(10) };
        let mut tracker: Tracker<i64> = Tracker::new(&naive.broker, ordering);
        for (step, share) in steps {
            match step {
                Step::Deliver { gap, key } => deliver(&mut naive, &mut tracker, gap, key),
                Step::Finish { percent } => {
                    let unfinished = naive.with(Fate::Unfinished);
                    let Some(&offset) = unfinished.get(unfinished.len() * percent / 100) else { continue };
                    naive.set(offset, Fate::Finished);
                    prop_assert_eq!(tracker.finish(offset, offset), Finish::Accepted);
                }
                Step::Transact { records, outcome: 0 | 1 } => {
                    let mut taken = Vec::new();
                    tracker.send(&mut Budget::new(records, usize::MAX), |_| 1, &mut taken);
                    let free: Vec<i64> = naive
                        .with(Fate::Finished)
                        .into_iter()
                        .filter(|&offset| !naive.is_blocked(offset, |fate| fate == Fate::Unfinished))
                        .take(records)
                        .collect();
                    prop_assert_eq!(&taken, &free);
                    for &offset in &free {
                        naive.set(offset, Fate::Sent);
                    }
                }
                Step::Transact { .. } => {
                    let arrived = naive.with(Fate::Sent);
                    for &offset in arrived.iter().skip(arrived.len() * share / 100) {
                        prop_assert!(tracker.answered(offset));
                        naive.set(offset, Fate::Answered);
                    }
                    let last = naive.with(Fate::Answered).last().copied();
                    let done = |fate| matches!(fate, Fate::Answered | Fate::Committed);
                    let wanted = last.map(|last| naive.map(naive.broker.end().max(last + 1), done));
                    let commit = tracker.answered_commit(LIMIT);
                    prop_assert_eq!(commit.as_ref().map(|commit| &commit.map), wanted.as_ref());
                    if let Some(commit) = commit {
                        prop_assert_eq!(tracker.commit(&commit), commit.records);
                        naive.commit(&commit.map);
                    }
                }
                Step::Restart { percent } => tracker = restart(&mut naive, percent)?,
            }
            prop_assert_eq!(tracker.base(), naive.broker.base());
            prop_assert_eq!(sent(&tracker), naive.with(Fate::Sent));
            prop_assert_eq!(tracker.len(), naive.tracked());
        }
    }
}
