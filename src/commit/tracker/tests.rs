use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::commit::LIMIT;

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

pub(super) fn sent<R>(tracker: &Tracker<R>) -> Vec<i64> {
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

proptest! {
    /// Records that come in any order and again, each done by itself, against a map of what is there.
    #[test]
    fn in_any_order_and_again(steps in prop::collection::vec((0_u8..4, 0_i64..40), 0..300)) {
        let mut tracker: Tracker<i64> = Tracker::new(&OffsetMap::empty(0), Ordering::None);
        // The state of each that is tracked: 0 unfinished, 1 finished, 2 sent.
        let mut naive: BTreeMap<i64, u8> = BTreeMap::new();
        for (step, offset) in steps {
            match step {
                0 => {
                    let is_new = !naive.contains_key(&offset);
                    prop_assert_eq!(tracker.deliver_again(offset), is_new);
                    naive.entry(offset).or_insert(0);
                }
                1 => {
                    let wanted = match naive.get(&offset) {
                        None => Finish::Unknown,
                        Some(0) => Finish::Accepted,
                        Some(_) => Finish::Duplicate,
                    };
                    prop_assert_eq!(tracker.finish(offset, offset), wanted);
                    naive.entry(offset).and_modify(|state| *state = 1.max(*state));
                }
                2 => {
                    let mut taken = Vec::new();
                    tracker.send(&mut Budget::new(usize::MAX, usize::MAX), |_| 0, &mut taken);
                    let wanted: Vec<i64> = naive.iter().filter(|(_, state)| **state == 1).map(|(at, _)| *at).collect();
                    prop_assert_eq!(taken, wanted);
                    naive.values_mut().filter(|state| **state == 1).for_each(|state| *state = 2);
                }
                _ => prop_assert_eq!(tracker.forget(offset), naive.remove(&offset).is_some()),
            }
            let count = |wanted: u8| naive.values().filter(|state| **state == wanted).count();
            prop_assert_eq!((tracker.len(), tracker.unfinished(), tracker.finished()), (naive.len(), count(0), count(1)));
        }
    }
}
