//! The batcher's definition, written plainly, and random histories that both must tell alike.
//!
//! The definition keeps one list in the order of `enqueue` and works everything out anew from it on each call.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::tests::start;
use super::{AGED_SHARE, BatchPolicy, Dispatch, DynamicBatcher, Entry, LevelPolicy, Levels, QueueDelay, TimeoutAction};
use crate::record::Priority;

/// Times are milliseconds since the start of the history.
#[derive(Clone, Debug, PartialEq)]
struct Waiting {
    id: u64,
    level: u8,
    rows: u32,
    arrived: u64,
    deadline: Option<u64>,
    /// Whether its deadline has passed, in a level that delays such entries.
    late: bool,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Batch(Vec<u64>),
    WaitUntil(u64),
    Idle,
}

struct Naive {
    size_max: u64,
    preferred: Vec<u64>,
    delay: u64,
    aging: Option<u64>,
    depth_max: usize,
    /// Of each level, whether it delays what is late.
    delays: [bool; LEVELS as usize],
    credit: i64,
    list: Vec<Waiting>,
    /// What was put back, with the end of its delay.
    delayed: Vec<(u64, Waiting)>,
}

impl Naive {
    fn enqueue(&mut self, new: Waiting) -> bool {
        let room = self.list.iter().filter(|other| other.level == new.level).count() < self.depth_max;
        if room {
            self.list.push(new);
        }
        room
    }

    /// What was put back until `now` or earlier goes to the end of the list, in the order of those moments.
    fn end_delays(&mut self, now: u64) {
        self.delayed.sort_by_key(|(until, _)| *until);
        let ended = self.delayed.iter().filter(|(until, _)| *until <= now).count();
        self.list.extend(self.delayed.drain(..ended).map(|(_, entry)| entry));
    }

    /// In the order in which entries leave: stable, so that each level keeps the order of `enqueue`.
    fn in_order(&self) -> Vec<Waiting> {
        let mut sorted = self.list.clone();
        sorted.sort_by_key(|entry| (entry.level, entry.late));
        sorted
    }

    fn delays(&self, level: u8) -> bool {
        self.delays[usize::from(level) - 1]
    }

    fn next_deadline(&self) -> Option<u64> {
        let delayed = self.delayed.iter().map(|(_, entry)| entry);
        self.list.iter().chain(delayed).filter_map(|entry| entry.deadline).min()
    }

    fn oldest_arrival(&self) -> Option<u64> {
        let mut heads = self.in_order();
        heads.dedup_by_key(|entry| (entry.level, entry.late));
        heads.iter().map(|head| head.arrived).min()
    }

    fn rows(&self) -> u64 {
        self.list.iter().map(|entry| u64::from(entry.rows)).sum()
    }

    fn remove(&mut self, ids: &[u64]) {
        self.list.retain(|entry| !ids.contains(&entry.id));
        self.delayed.retain(|(_, entry)| !ids.contains(&entry.id));
    }

    fn expire(&mut self, now: u64) -> Vec<u64> {
        let mut gone = self.in_order();
        self.delayed.sort_by_key(|(until, _)| *until);
        gone.extend(self.delayed.iter().map(|(_, entry)| entry.clone()));
        gone.retain(|entry| entry.deadline.is_some_and(|deadline| deadline <= now));
        gone.sort_by_key(|entry| entry.deadline);
        let all: Vec<_> = gone.iter().map(|entry| entry.id).collect();
        self.remove(&all);
        let (late, expired): (Vec<_>, Vec<_>) = gone.into_iter().partition(|entry| self.delays(entry.level));
        self.list.extend(late.into_iter().map(|entry| Waiting { deadline: None, late: true, ..entry }));
        expired.iter().map(|entry| entry.id).collect()
    }

    /// The rows that a batch may have now, or when to ask again.
    fn due(&self, now: u64) -> Result<u64, Answer> {
        let oldest = self.oldest_arrival().ok_or(Answer::Idle)?;
        let preferred = self.preferred.iter().copied().filter(|size| *size <= self.rows()).max();
        let delay_end = oldest + self.delay;
        if self.delay > 0 && now >= delay_end {
            return Ok(self.size_max);
        }
        let would_expire = self.list.iter().any(|entry| entry.deadline.is_some_and(|deadline| deadline <= delay_end));
        if self.delay == 0 || preferred.is_some() || self.rows() >= self.size_max || would_expire {
            return Ok(preferred.unwrap_or(self.size_max));
        }
        Err(Answer::WaitUntil(delay_end))
    }

    fn poll(&mut self, now: u64) -> Answer {
        self.end_delays(now);
        let next_end = self.delayed.iter().map(|(until, _)| *until).min();
        let rows_max = match (self.due(now), next_end) {
            (Ok(rows_max), _) => rows_max,
            (Err(Answer::WaitUntil(time)), Some(end)) => return Answer::WaitUntil(time.min(end)),
            (Err(_), Some(end)) => return Answer::WaitUntil(end),
            (Err(answer), None) => return answer,
        };
        let mut batch: Vec<Waiting> = Vec::new();
        let rows_of = |entries: &[Waiting]| entries.iter().map(|entry| u64::from(entry.rows)).sum::<u64>();
        while let Some(head) = self.aged(now).filter(|_| self.credit >= i64::from(AGED_SHARE)) {
            if !batch.is_empty() && rows_of(&batch) + u64::from(head.rows) > rows_max {
                break;
            }
            self.credit -= i64::from(AGED_SHARE) * i64::from(head.rows.max(1));
            self.remove(&[head.id]);
            batch.push(head);
        }
        for entry in self.in_order() {
            if !batch.is_empty() && rows_of(&batch) + u64::from(entry.rows) > rows_max {
                break;
            }
            self.remove(&[entry.id]);
            batch.push(entry);
        }
        let left = i64::try_from(rows_of(&batch).max(batch.len() as u64)).expect("small");
        let most = left.max(i64::try_from(self.size_max).expect("small"));
        self.credit = (self.credit + left).min(most + i64::from(AGED_SHARE));
        Answer::Batch(batch.iter().map(|entry| entry.id).collect())
    }

    /// Of the heads that have waited `aging` for each level above their own (a late one: and for its own), the first that
    /// had.
    fn aged(&self, now: u64) -> Option<Waiting> {
        let mut heads = self.in_order();
        heads.dedup_by_key(|entry| (entry.level, entry.late));
        let aging = self.aging?;
        let since = |entry: &Waiting| entry.arrived + aging * (u64::from(entry.level) - u64::from(!entry.late));
        heads.retain(|entry| (entry.level > 1 || entry.late) && since(entry) <= now);
        heads.into_iter().min_by_key(since)
    }

    fn drain(&mut self) -> Vec<u64> {
        self.end_delays(u64::MAX);
        let ids = self.in_order().iter().map(|entry| entry.id).collect();
        self.list.clear();
        ids
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// `arrived` lies `skew` before now, or a little after it, as clocks differ. The deadline lies `timeout`
    /// after now: at zero it has passed already.
    Enqueue {
        level: u8,
        rows: u32,
        skew: i64,
        timeout: Option<u64>,
    },
    /// Like an enqueue, but with a delay and without a refusal.
    PutBack {
        level: u8,
        rows: u32,
        timeout: Option<u64>,
        delay: u64,
    },
    EndDelays,
    Advance(u64),
    Expire,
    Poll,
    Drain,
}

const LEVELS: u8 = 4;
/// The first moment of a history, so that an arrival can lie before it.
const FIRST: u64 = 10;

fn step() -> impl Strategy<Value = Step> {
    let timeout = || prop_oneof![2 => Just(None), 3 => (0..30_u64).prop_map(Some), 1 => (0..500_u64).prop_map(Some)];
    prop_oneof![
        60 => (1..=LEVELS, 0..6_u32, -2..6_i64, timeout())
            .prop_map(|(level, rows, skew, timeout)| Step::Enqueue { level, rows, skew, timeout }),
        8 => (1..=LEVELS, 0..6_u32, timeout(), 0..40_u64)
            .prop_map(|(level, rows, timeout, delay)| Step::PutBack { level, rows, timeout, delay }),
        1 => Just(Step::EndDelays),
        15 => (0..8_u64).prop_map(Step::Advance),
        6 => Just(Step::Expire),
        12 => Just(Step::Poll),
        1 => Just(Step::Drain),
    ]
}

fn policy() -> impl Strategy<Value = BatchPolicy> {
    let size = prop_oneof![1..20_u32, 50..400_u32];
    let delay = prop_oneof![Just(0), 1..20_u64, Just(300)];
    let depth = prop_oneof![1..6_u32, 30..300_u32];
    let aging = prop_oneof![Just(None), (1..60_u64).prop_map(Some)];
    let preferred = prop_oneof![Just(vec![]), prop::collection::btree_set(1..20_u32, 1..4).prop_map(Vec::from_iter)];
    (size, delay, depth, aging, preferred, prop::array::uniform4(any::<bool>())).prop_map(
        |(size, delay, depth, aging, preferred, delays)| {
            let from_one = |n| NonZeroU32::new(n).expect("from 1");
            let level = LevelPolicy { queue_depth_max: from_one(depth), ..LevelPolicy::default() };
            let mut levels = Levels::uniform(NonZeroU8::new(LEVELS).expect("4 is not 0"), level);
            for (priority, _) in (1..=LEVELS).zip(delays).filter(|(_, delays)| *delays) {
                let late = LevelPolicy { timeout_action: TimeoutAction::Delay, ..level };
                levels.set(Priority::new(priority).expect("from 1"), late);
            }
            BatchPolicy {
                batch_size_max: from_one(size),
                preferred_sizes: preferred.into_iter().filter(|n| *n <= size).map(from_one).collect(),
                queue_delay: QueueDelay::Fixed,
                queue_delay_max: Duration::from_millis(delay),
                priority_aging: aging.map(Duration::from_millis),
                levels,
            }
        },
    )
}

/// Both told the same history, step by step.
struct Pair {
    start: Instant,
    now: u64,
    enqueued: u64,
    naive: Naive,
    batcher: DynamicBatcher<u64>,
}

impl Pair {
    fn new(policy: BatchPolicy) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).expect("short");
        let first = policy.levels.iter().next().expect("one level or more");
        let delays: Vec<bool> =
            policy.levels.iter().map(|level| level.timeout_action == TimeoutAction::Delay).collect();
        let naive = Naive {
            size_max: u64::from(policy.batch_size_max.get()),
            preferred: policy.preferred_sizes.iter().map(|size| u64::from(size.get())).collect(),
            delay: millis(policy.queue_delay_max),
            aging: policy.priority_aging.map(millis),
            depth_max: usize::try_from(first.queue_depth_max.get()).expect("small"),
            delays: delays.try_into().expect("LEVELS of them"),
            credit: 0,
            list: Vec::new(),
            delayed: Vec::new(),
        };
        let batcher = DynamicBatcher::new(policy);
        Self { start: start(), now: FIRST, enqueued: 0, naive, batcher }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Enqueue { level, rows, skew, timeout } => self.enqueue(level, rows, skew, timeout)?,
            Step::PutBack { level, rows, timeout, delay } => {
                let (mut waiting, entry) = self.entry(level, rows, 0, timeout);
                waiting.deadline = waiting.deadline.filter(|_| !self.naive.delays(level));
                self.naive.delayed.push((self.now + delay, waiting));
                self.batcher.put_back(entry, self.at(self.now + delay));
            }
            Step::EndDelays => {
                self.naive.end_delays(u64::MAX);
                self.batcher.end_delays();
            }
            Step::Advance(ms) => self.now += ms,
            Step::Expire => self.expire()?,
            Step::Poll => self.poll()?,
            Step::Drain => {
                let mut out = Vec::new();
                self.batcher.drain(&mut out);
                prop_assert_eq!(ids(&out), self.naive.drain());
            }
        }
        self.compare()
    }

    fn enqueue(&mut self, level: u8, rows: u32, skew: i64, timeout: Option<u64>) -> Result<(), TestCaseError> {
        let (waiting, entry) = self.entry(level, rows, skew, timeout);
        let want = if self.naive.enqueue(waiting) { Ok(()) } else { Err(entry.clone()) };
        prop_assert_eq!(self.batcher.enqueue(entry), want);
        Ok(())
    }

    /// A new entry, for both.
    fn entry(&mut self, level: u8, rows: u32, skew: i64, timeout: Option<u64>) -> (Waiting, Entry<u64>) {
        let id = self.enqueued;
        self.enqueued += 1;
        let arrived = self.now.checked_add_signed(-skew).expect("FIRST leaves room for the skew");
        let deadline = timeout.map(|ms| self.now + ms);
        let entry = Entry {
            item: id,
            rows,
            priority: Priority::new(level).expect("from 1"),
            arrived: self.at(arrived),
            deadline: deadline.map(|ms| self.at(ms)),
        };
        (Waiting { id, level, rows, arrived, deadline, late: false }, entry)
    }

    fn expire(&mut self) -> Result<(), TestCaseError> {
        let mut expired = Vec::new();
        self.batcher.expire(self.at(self.now), &mut expired);
        prop_assert_eq!(ids(&expired), self.naive.expire(self.now));
        Ok(())
    }

    fn poll(&mut self) -> Result<(), TestCaseError> {
        self.expire()?;
        let mut batch = Vec::new();
        let answer = match self.batcher.poll(self.at(self.now), &mut batch) {
            Dispatch::Batch => Answer::Batch(ids(&batch)),
            Dispatch::WaitUntil(moment) => {
                let ms = moment.duration_since(self.start).as_millis();
                Answer::WaitUntil(u64::try_from(ms).expect("short"))
            }
            Dispatch::Idle => Answer::Idle,
        };
        prop_assert_eq!(answer, self.naive.poll(self.now));
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let stats = self.batcher.get_stats();
        let depth = |level| self.naive.list.iter().filter(|entry| entry.level == level).count();
        prop_assert_eq!(stats.depth, (1..=LEVELS).map(depth).collect::<Vec<_>>());
        prop_assert_eq!(stats.delayed, self.naive.delayed.len());
        let oldest = stats.oldest.iter().flatten().min().copied();
        prop_assert_eq!(oldest, self.batcher.oldest_arrival());
        prop_assert_eq!(self.batcher.len(), self.naive.list.len() + self.naive.delayed.len());
        prop_assert_eq!(self.batcher.is_empty(), self.naive.list.is_empty() && self.naive.delayed.is_empty());
        prop_assert_eq!(self.batcher.rows(), self.naive.rows());
        prop_assert_eq!(self.batcher.next_deadline(), self.naive.next_deadline().map(|ms| self.at(ms)));
        prop_assert_eq!(self.batcher.oldest_arrival(), self.naive.oldest_arrival().map(|ms| self.at(ms)));
        Ok(())
    }
}

fn ids(entries: &[Entry<u64>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.item).collect()
}

proptest! {
    #[test]
    fn the_batcher_does_what_its_definition_says(
        policy in policy(),
        steps in prop::collection::vec(step(), 1..600),
    ) {
        let mut pair = Pair::new(policy);
        for step in &steps {
            pair.take(step)?;
        }
    }
}

/// A batcher with a level 1 that never ends, and lower entries of these levels and rows that all arrived at the start. What
/// has left, in rows, when each of them leaves.
fn rows_before_each_leaves(policy: BatchPolicy, lower: &[(u8, u32)]) -> Vec<u64> {
    let t = start();
    let size_max = policy.batch_size_max.get();
    let mut batcher = DynamicBatcher::new(policy);
    let entry = |item: u64, level: u8, rows: u32, arrived: Instant| {
        let priority = Priority::new(level).expect("from 1");
        Entry { item, rows, priority, arrived, deadline: None }
    };
    for (item, &(level, rows)) in (0..).zip(lower) {
        batcher.enqueue(entry(item, level, rows, t)).expect("room");
    }
    let now = t + Duration::from_secs(3_600);
    let (mut left, mut leaves) = (0_u64, vec![None; lower.len()]);
    while leaves.contains(&None) {
        for _ in 0..2 * size_max {
            // What finds its level full does not matter: there is always enough.
            let _ = batcher.enqueue(entry(u64::MAX, 1, 1, now));
        }
        let mut batch = Vec::new();
        assert_eq!(batcher.poll(now, &mut batch), Dispatch::Batch);
        for entry in &batch {
            if let Some(leave) = usize::try_from(entry.item).ok().and_then(|item| leaves.get_mut(item)) {
                *leave = Some(left);
            }
        }
        left += batch.iter().map(|entry| u64::from(entry.rows)).sum::<u64>();
    }
    leaves.into_iter().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_level_starves_beyond_the_stated_bound(
        size in prop_oneof![1..4_u32, 4..200_u32],
        lower in prop::collection::vec((2..=LEVELS, 1..5_u32), 1..40),
    ) {
        let aging = Duration::from_millis(100);
        let policy = BatchPolicy {
            batch_size_max: NonZeroU32::new(size).expect("from 1"),
            priority_aging: Some(aging),
            levels: Levels::uniform(NonZeroU8::new(LEVELS).expect("4 is not 0"), LevelPolicy::default()),
            ..BatchPolicy::default()
        };
        let leaves = rows_before_each_leaves(policy, &lower);
        // All arrived at once: the lower a level, the later it aged.
        let mut order: Vec<usize> = (0..lower.len()).collect();
        order.sort_by_key(|&item| lower[item].0);
        let (mut before, mut share) = (0, 0);
        for item in order {
            let batch_max = u64::from(size.max(4));
            prop_assert!(leaves[item] < u64::from(AGED_SHARE) * (before + 1) + 2 * batch_max, "{leaves:?}");
            before += u64::from(lower[item].1);
            share = share.max(leaves[item]);
        }
        // And the others keep theirs: all but the saved-up share of the first batches.
        let least = (before - u64::from(lower.iter().map(|entry| entry.1).max().unwrap_or(0))) * u64::from(AGED_SHARE);
        prop_assert!(share + 2 * u64::from(size.max(AGED_SHARE)) + u64::from(AGED_SHARE) * 8 >= least, "{share} of {least}");
    }
}
