//! The batcher case by case. `naive` holds it against its definition.

use std::num::NonZeroU8;

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
        ..BatchPolicy::default()
    }
}

/// Every level with this policy.
fn levels(policy: LevelPolicy) -> Levels {
    Levels::uniform(NonZeroU8::new(3).expect("3 is not 0"), policy)
}

/// The same with room for one entry a level.
fn depth_one(policy: BatchPolicy) -> BatchPolicy {
    let one = LevelPolicy { queue_depth_max: NonZeroU32::MIN, ..LevelPolicy::default() };
    BatchPolicy { levels: levels(one), ..policy }
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
    let mut batcher = holding(depth_one(policy(4, MS)), [entry(1, 2, 1, t)]);
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
    let mut batcher = holding(depth_one(policy(4, Duration::ZERO)), [entry(1, 1, 1, t)]);
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

fn preferred(batch_size_max: u32, delay: Duration, sizes: &[u32]) -> BatchPolicy {
    let sizes = sizes.iter().map(|size| NonZeroU32::new(*size).expect("a test's own size")).collect();
    BatchPolicy { preferred_sizes: sizes, ..policy(batch_size_max, delay) }
}

#[test]
fn a_batch_is_cut_to_the_largest_preferred_size_that_is_filled() {
    let t = start();
    let ones = |n| (0..n).map(move |item| entry(item, 1, 1, t));
    let sizes = |policy: BatchPolicy, n| {
        let (batches, end) = poll_all(&mut holding(policy, ones(n)), t);
        (batches.iter().map(Vec::len).collect::<Vec<_>>(), end)
    };
    assert_eq!(sizes(preferred(16, Duration::ZERO, &[4, 8]), 15), (vec![8, 4, 3], Dispatch::Idle));
    let wait = Dispatch::WaitUntil(t + MS);
    assert_eq!(sizes(preferred(16, MS, &[4, 8]), 15), (vec![8, 4], wait), "3 wait for a fourth");
    assert_eq!(sizes(preferred(16, MS, &[4, 8]), 40), (vec![8, 8, 8, 8, 8], Dispatch::Idle), "16 is not preferred");
}

#[test]
fn at_the_end_of_the_delay_all_that_fits_goes() {
    let t = start();
    let mut batcher = holding(preferred(16, MS, &[4]), (0..7).map(|item| entry(item, 1, 1, t)));
    assert_eq!(poll_all(&mut batcher, t + MS).0, [(0..7).collect::<Vec<_>>()]);
}

#[test]
fn what_is_late_goes_behind_its_level_where_the_policy_says_so() {
    let t = start();
    let delay = LevelPolicy { timeout_action: TimeoutAction::Delay, ..LevelPolicy::default() };
    let policy = BatchPolicy { levels: levels(delay), ..policy(9, Duration::ZERO) };
    let entries = [
        with_deadline(entry(1, 2, 1, t), t + 2 * MS),
        with_deadline(entry(2, 2, 1, t), t + MS),
        entry(3, 2, 1, t),
        entry(4, 3, 1, t),
    ];
    let mut batcher = holding(policy, entries);
    let mut expired = Vec::new();
    batcher.expire(t + 2 * MS, &mut expired);
    assert_eq!((expired, batcher.next_deadline(), batcher.len()), (vec![], None, 4));
    assert_eq!((batcher.get_stats().late, batcher.get_stats().depth), (2, vec![0, 3, 1]));
    assert_eq!(poll_all(&mut batcher, t + 2 * MS).0, [[3, 2, 1, 4]]);
}

#[test]
fn an_aged_entry_takes_its_share_and_no_more() {
    let t = start();
    let mut batcher = holding(policy(8, Duration::ZERO), (0..3).map(|item| entry(item, 3, 1, t)));
    let long_after = t + Duration::from_secs(1);
    let mut aged = Vec::new();
    for _ in 0..4 {
        (0..8).for_each(|_| batcher.enqueue(entry(9, 1, 1, long_after)).expect("room"));
        let mut batch = Vec::new();
        assert_eq!(batcher.poll(long_after, &mut batch), Dispatch::Batch);
        aged.push(batch.iter().filter(|entry| entry.priority.get() == 3).count());
    }
    assert_eq!(aged, [0, 1, 1, 1], "the first batch earns the share of the second");
}

#[test]
fn an_entry_has_aged_when_it_has_waited_for_each_level_above_it() {
    let t = start();
    let left = |wait: Duration, policy: BatchPolicy| {
        let mut batcher = holding(policy, [entry(1, 3, 1, t)]);
        batcher.aged_credit = i64::from(AGED_SHARE);
        (0..4).for_each(|_| batcher.enqueue(entry(9, 1, 1, t)).expect("room"));
        let mut batch = Vec::new();
        assert_eq!(batcher.poll(t + wait, &mut batch), Dispatch::Batch);
        items(&batch)
    };
    assert_eq!(left(199 * MS, policy(4, Duration::ZERO)), [9, 9, 9, 9]);
    assert_eq!(left(200 * MS, policy(4, Duration::ZERO)), [1, 9, 9, 9]);
    let never = BatchPolicy { priority_aging: None, ..policy(4, Duration::ZERO) };
    assert_eq!(left(Duration::from_secs(3_600), never), [9, 9, 9, 9]);
}

#[test]
fn the_learned_delay_is_the_fixed_cost_as_far_as_all_threads_are_busy_and_has_a_bound() {
    let t = start();
    let adaptive = |delay_max| {
        let policy = BatchPolicy { queue_delay: QueueDelay::Adaptive, ..policy(64, delay_max) };
        let mut batcher = holding(policy, []).for_threads(NonZeroU32::new(2).expect("2 is not 0"));
        assert_eq!(batcher.queue_delay(t), Duration::ZERO, "nothing is known yet");
        // 4 ms and 10 us a row, one every 5 ms: 2 threads are busy for about 0.4 of the time.
        for i in 0..1_000_u32 {
            let rows = 1 + i % 20;
            batcher.scored(t + 5 * MS * i, u64::from(rows), 4 * MS + MS / 100 * rows);
        }
        batcher.queue_delay(t + 5 * MS * 999)
    };
    let delay = adaptive(Duration::from_secs(1));
    // 4 ms x 0.41 x 0.41.
    assert!((600..750).contains(&delay.as_micros()), "{delay:?}");
    assert_eq!(adaptive(MS / 2), MS / 2);
}
