//! The batcher's definition, written plainly, and random histories that both must tell alike.
//!
//! The definition keeps one list in the order of `enqueue` and works everything out anew from it on each call.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::tests::start;
use super::{BatchPolicy, Dispatch, DynamicBatcher, Entry};
use crate::record::Priority;

/// Times are milliseconds since the start of the history.
#[derive(Clone, Debug, PartialEq)]
struct Waiting {
    id: u64,
    level: u8,
    rows: u32,
    arrived: u64,
    deadline: Option<u64>,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Batch(Vec<u64>),
    WaitUntil(u64),
    Idle,
}

struct Naive {
    size_max: u64,
    delay: u64,
    depth_max: usize,
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
        sorted.sort_by_key(|entry| entry.level);
        sorted
    }

    fn next_deadline(&self) -> Option<u64> {
        let delayed = self.delayed.iter().map(|(_, entry)| entry);
        self.list.iter().chain(delayed).filter_map(|entry| entry.deadline).min()
    }

    fn oldest_arrival(&self) -> Option<u64> {
        let mut heads = self.in_order();
        heads.dedup_by_key(|entry| entry.level);
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
        let ids: Vec<_> = gone.iter().map(|entry| entry.id).collect();
        self.remove(&ids);
        ids
    }

    fn poll(&mut self, now: u64) -> Answer {
        self.end_delays(now);
        let next_end = self.delayed.iter().map(|(until, _)| *until).min();
        let Some(oldest) = self.oldest_arrival() else {
            return next_end.map_or(Answer::Idle, Answer::WaitUntil);
        };
        let delay_end = oldest + self.delay;
        let would_expire = self.list.iter().any(|entry| entry.deadline.is_some_and(|deadline| deadline <= delay_end));
        let reasons = [self.delay == 0, self.rows() >= self.size_max, delay_end <= now, would_expire];
        if reasons == [false; 4] {
            return Answer::WaitUntil(next_end.map_or(delay_end, |end| end.min(delay_end)));
        }
        // The longest beginning of the order that fits, and never less than one entry.
        let sorted = self.in_order();
        let rows_of = |n: usize| sorted[..n].iter().map(|entry| u64::from(entry.rows)).sum::<u64>();
        let fits = (1..=sorted.len()).rev().find(|&n| rows_of(n) <= self.size_max).unwrap_or(1);
        let ids: Vec<_> = sorted[..fits].iter().map(|entry| entry.id).collect();
        self.remove(&ids);
        Answer::Batch(ids)
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
    (size, delay, depth).prop_map(|(size, delay, depth)| BatchPolicy {
        batch_size_max: NonZeroU32::new(size).expect("from 1"),
        queue_delay_max: Duration::from_millis(delay),
        priority_levels: NonZeroU8::new(LEVELS).expect("4 is not 0"),
        queue_depth_max: NonZeroU32::new(depth).expect("from 1"),
    })
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
        let naive = Naive {
            size_max: u64::from(policy.batch_size_max.get()),
            delay: u64::try_from(policy.queue_delay_max.as_millis()).expect("short"),
            depth_max: usize::try_from(policy.queue_depth_max.get()).expect("small"),
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
                let (waiting, entry) = self.entry(level, rows, 0, timeout);
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
        (Waiting { id, level, rows, arrived, deadline }, entry)
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
