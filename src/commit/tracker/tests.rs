use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::commit::{LIMIT, Reading};

/// Base 10, delivered 10, 11, 13, 20.
fn with_gaps() -> Tracker<&'static str> {
    delivered(Ordering::None, &[(10, None), (11, None), (13, None), (20, None)])
}

fn delivered(ordering: Ordering, offsets: &[(i64, Option<u64>)]) -> Tracker<&'static str> {
    let mut tracker = Tracker::new(&OffsetMap::empty(10), ordering);
    for &(offset, key) in offsets {
        tracker.deliver(offset, key);
    }
    tracker
}

fn finish<R: Clone>(tracker: &mut Tracker<R>, offsets: &[i64], reply: R) {
    for &offset in offsets {
        assert_eq!(tracker.finish(offset, reply.clone()), Finish::Accepted, "offset {offset}");
    }
}

fn take<R>(tracker: &mut Tracker<R>) -> Option<Commit> {
    tracker.take(&mut Budget::new(usize::MAX, usize::MAX), LIMIT, |_| 1)
}

fn sent<R>(tracker: &Tracker<R>) -> Vec<i64> {
    tracker.sent().map(|(offset, _)| offset).collect()
}

#[test]
fn a_slow_head_holds_nobody_back_and_a_gap_does_not_either() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[13, 11], "x");
    let commit = take(&mut tracker).expect("two are finished");
    assert_eq!(commit.map, OffsetMap::new(10, 14, vec![10]));
    assert_eq!((commit.records, sent(&tracker)), (2, vec![11, 13]));
    assert_eq!(tracker.commit(&commit), 2);
    assert_eq!((tracker.base(), tracker.len(), tracker.unfinished()), (10, 2, 2));

    finish(&mut tracker, &[10], "x");
    let commit = take(&mut tracker).expect("one is finished");
    // Past the gap: 14 to 19 are no records, 20 is the first that has no reply.
    assert_eq!((&commit.map, commit.chars), (&OffsetMap::empty(20), 0));
    assert_eq!(tracker.commit(&commit), 1);
    finish(&mut tracker, &[20], "x");
    let commit = take(&mut tracker).expect("one is finished");
    assert_eq!(commit.map, OffsetMap::empty(21));
    assert_eq!((tracker.commit(&commit), tracker.is_empty(), tracker.highest_delivered()), (1, true, Some(20)));
}

#[test]
fn part_is_taken_and_the_rest_stays() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[10, 11, 13], "x");
    let commit = tracker.take(&mut Budget::new(2, 100), LIMIT, |_| 1).expect("three are finished");
    assert_eq!((commit.records, &commit.map), (2, &OffsetMap::empty(13)));
    assert_eq!((tracker.commit(&commit), tracker.finished(), tracker.len()), (2, 1, 2));

    // Bytes: the first goes out whatever its size, the next only where there is room.
    finish(&mut tracker, &[20], "x");
    let commit = tracker.take(&mut Budget::new(9, 100), LIMIT, |_| 150).expect("two are finished");
    assert_eq!((commit.records, sent(&tracker)), (1, vec![13]));
}

#[test]
fn what_did_not_go_out_is_taken_again() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[11, 13], "x");
    let commit = take(&mut tracker).expect("two are finished");
    assert_eq!((tracker.finished(), take(&mut tracker)), (0, None));
    tracker.untake();
    assert_eq!((tracker.finished(), sent(&tracker)), (2, vec![]));
    assert_eq!(take(&mut tracker), Some(commit));
}

#[test]
fn the_first_end_counts() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[10], "first");
    assert_eq!(tracker.finish(10, "second"), Finish::Duplicate);
    let commit = take(&mut tracker).expect("one is finished");
    assert_eq!(tracker.sent().collect::<Vec<_>>(), [(10, &"first")]);
    assert_eq!(tracker.finish(10, "on its way"), Finish::Duplicate);
    tracker.commit(&commit);
    assert_eq!(tracker.finish(10, "after the commit"), Finish::Unknown);
    for offset in [i64::MIN, 9, 12, 19, 21, i64::MAX] {
        assert_eq!(tracker.finish(offset, "x"), Finish::Unknown, "offset {offset}");
    }
}

#[test]
fn a_refused_reply_is_replaced() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[10, 11], "x");
    take(&mut tracker).expect("two are finished");
    assert!(tracker.replace(11, "small"));
    assert!(!tracker.replace(13, "has none yet"));
    tracker.untake();
    take(&mut tracker).expect("two are finished");
    assert_eq!(tracker.sent().collect::<Vec<_>>(), [(10, &"x"), (11, &"small")]);
    assert_eq!((tracker.reply(11), tracker.reply(13)), (Some(&"small"), None));
}

#[test]
fn records_of_a_key_wait_for_each_other() {
    let keys = [(10, Some(1)), (11, Some(2)), (12, Some(1)), (13, None), (14, Some(2))];
    let mut tracker = delivered(Ordering::Key, &keys);
    finish(&mut tracker, &[12, 13, 11, 14], "x");
    let commit = take(&mut tracker).expect("four are finished");
    // 12 waits for 10; 11, 13 and 14 do not.
    assert_eq!(sent(&tracker), [11, 13, 14]);
    assert_eq!(commit.map, OffsetMap::new(10, 15, vec![10, 12]));
    tracker.commit(&commit);
    assert_eq!(take(&mut tracker), None);
    finish(&mut tracker, &[10], "x");
    let commit = take(&mut tracker).expect("two are finished");
    assert_eq!((sent(&tracker), commit.map), (vec![10, 12], OffsetMap::empty(15)));
}

#[test]
fn records_of_a_partition_wait_for_each_other() {
    let mut tracker = delivered(Ordering::Partition, &[(10, None), (11, None), (12, None), (13, None)]);
    finish(&mut tracker, &[11, 13], "x");
    assert_eq!(take(&mut tracker), None);
    finish(&mut tracker, &[10], "x");
    let commit = take(&mut tracker).expect("two can go");
    assert_eq!((sent(&tracker), commit.map), (vec![10, 11], OffsetMap::empty(12)));
}

#[test]
fn what_an_earlier_worker_left_open_is_delivered_and_nothing_else() {
    let mut tracker = Tracker::new(&OffsetMap::new(10, 20, vec![10, 13, 18]), Ordering::None);
    let committed: Vec<i64> = (8..22).filter(|&offset| tracker.is_committed(offset)).collect();
    assert_eq!(committed, [8, 9, 11, 12, 14, 15, 16, 17, 19]);
    // 10 is gone from the topic: 13 comes first.
    tracker.deliver(13, None);
    finish(&mut tracker, &[13], "x");
    let commit = take(&mut tracker).expect("one is finished");
    // 18 was not delivered yet, and is said to be open all the same.
    assert_eq!(commit.map, OffsetMap::new(18, 20, vec![18]));
    tracker.commit(&commit);
    tracker.deliver(18, None);
    tracker.deliver(25, None);
    finish(&mut tracker, &[18, 25], "x");
    assert_eq!(take(&mut tracker).map(|commit| commit.map), Some(OffsetMap::empty(26)));
}

#[test]
fn replies_are_taken_as_far_up_as_the_list_of_open_ones_fits() {
    let mut tracker = Tracker::new(&OffsetMap::empty(0), Ordering::None);
    // Two out of three are slow, so that neither form of the list is short.
    for offset in 0..60_000 {
        tracker.deliver(offset, None);
    }
    let finished: Vec<i64> = (0..60_000).filter(|offset| offset % 3 == 1).collect();
    finish(&mut tracker, &finished, "x");
    let commit = take(&mut tracker).expect("a part fits");
    let text = commit.map.encode("features", 0);
    assert_eq!(text.len(), commit.chars);
    assert!(commit.chars <= LIMIT && commit.chars > LIMIT - 8, "{} characters", commit.chars);
    assert_eq!(tracker.commit(&commit), commit.records);
    // Nothing more fits until a slow one ends; then what its place makes room for does.
    assert_eq!(take(&mut tracker), None);
    finish(&mut tracker, &(0..3000).filter(|offset| offset % 3 != 1).collect::<Vec<_>>(), "x");
    let next = take(&mut tracker).expect("the first 3,000 are done");
    assert!(next.map.base() == 3000 && next.map.end() > commit.map.end() && next.chars <= LIMIT, "{}", next.chars);
}

#[test]
fn a_smaller_limit_lets_the_list_only_shrink() {
    let mut tracker = Tracker::new(&OffsetMap::empty(0), Ordering::None);
    (0..1000).for_each(|offset| tracker.deliver(offset, None));
    let odd: Vec<i64> = (0..1000).filter(|offset| offset % 2 == 1).collect();
    finish(&mut tracker, &odd, "x");
    let commit = take(&mut tracker).expect("odd ones are finished");
    tracker.commit(&commit);
    let limit = commit.chars / 2;
    let budget = || Budget::new(1, 1);
    finish(&mut tracker, &[0], "x");
    assert_eq!(tracker.take(&mut budget(), limit, |_| 1), None, "half of the list is still too long");
    let even: Vec<i64> = (2..900).filter(|offset| offset % 2 == 0).collect();
    finish(&mut tracker, &even, "x");
    let next = tracker.take(&mut budget(), limit, |_| 1).expect("a short list is left");
    assert!(next.chars <= limit && next.records == even.len() + 1, "{next:?}");
}

#[test]
fn by_themselves_replies_are_sent_answered_and_committed() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[11, 13], "x");
    let mut offsets = Vec::new();
    tracker.send(&mut Budget::new(9, 9), |_| 1, &mut offsets);
    assert_eq!((&offsets[..], tracker.answered_commit(LIMIT)), (&[11, 13][..], None));
    assert!(tracker.answered(13) && !tracker.answered(13) && !tracker.answered(10));
    let commit = tracker.answered_commit(LIMIT).expect("one has arrived");
    assert_eq!(commit.map, OffsetMap::new(10, 14, vec![10, 11]));
    // What arrives after the commit was made is not covered by it.
    assert!(tracker.answered(11));
    assert_eq!(tracker.commit(&commit), 1);
    assert_eq!(tracker.answered_commit(LIMIT).map(|commit| commit.map), Some(OffsetMap::new(10, 14, vec![10])));
    finish(&mut tracker, &[10], "x");
    offsets.clear();
    tracker.send(&mut Budget::new(9, 9), |_| 1, &mut offsets);
    tracker.send_again(10);
    assert_eq!((&offsets[..], tracker.finished()), (&[10][..], 1));
}

#[test]
fn an_idle_partition_is_committed_past_what_is_no_record() {
    let mut tracker = with_gaps();
    assert_eq!(tracker.idle_commit(25), None);
    finish(&mut tracker, &[10, 11, 13, 20], "x");
    let commit = take(&mut tracker).expect("all are finished");
    tracker.commit(&commit);
    let idle = tracker.idle_commit(25).expect("nothing is tracked");
    assert_eq!((tracker.commit(&idle), tracker.base()), (0, 25));
    assert_eq!(tracker.idle_commit(25), None);
    assert_eq!(tracker.idle_commit(24), None);
}

#[test]
fn the_brokers_word_drops_what_it_covers() {
    let mut tracker = with_gaps();
    finish(&mut tracker, &[11, 13], "x");
    let commit = take(&mut tracker).expect("two are finished");
    // It did not go through.
    assert_eq!(tracker.committed_to(&OffsetMap::empty(10)), Ok(0));
    assert_eq!((sent(&tracker), tracker.finished()), (vec![], 2));
    // It did.
    take(&mut tracker).expect("two are finished");
    assert_eq!(tracker.committed_to(&commit.map), Ok(2));
    assert_eq!((tracker.len(), tracker.finished()), (2, 0));
    // The group was reset.
    let back = WentBack { known: 14, committed: 12 };
    assert_eq!(tracker.committed_to(&OffsetMap::empty(12)), Err(back));
    assert_eq!(tracker.committed_to(&OffsetMap::empty(100)), Ok(2));
    assert_eq!((tracker.base(), tracker.is_empty()), (100, true));
}

#[test]
#[should_panic(expected = "offset 20 delivered again")]
fn an_offset_is_delivered_once() {
    with_gaps().deliver(20, None);
}

#[test]
#[should_panic(expected = "offset 9 delivered again")]
fn a_committed_offset_is_not_delivered() {
    Tracker::<()>::new(&OffsetMap::empty(10), Ordering::None).deliver(9, None);
}

// ---- against a naive model ----

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
