//! The worker's own batcher, driven with simulated time, and the plain rules beside it.

use std::collections::VecDeque;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use forebay::batch::{AGED_SHARE, BatchPolicy, Dispatch, DynamicBatcher, Entry, LevelPolicy, Levels, QueueDelay};
use forebay::clock;
use forebay::record::Priority;

use crate::workload::{Machine, Workload};
use crate::world::{Batcher, Overtaking, Turn, Waiting};

/// How the worker's batcher is set.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) delay: QueueDelay,
    pub(crate) delay_max: u64,
    pub(crate) preferred: &'static [u32],
    pub(crate) aging: Option<u64>,
}

/// The worker's batcher. Its deadline thread is part of it: what expires is answered at its deadline.
pub(crate) struct Forebay {
    batcher: DynamicBatcher<u32>,
    /// What is 0 in the simulation; nothing depends on it.
    start: Instant,
    taken: Vec<Entry<u32>>,
}

impl Forebay {
    pub(crate) fn new(settings: Settings, machine: Machine, workload: &Workload) -> Self {
        let from_one = |number: u32| NonZeroU32::new(number).expect("from 1");
        let level = LevelPolicy { queue_depth_max: from_one(workload.depth_max), ..LevelPolicy::default() };
        let count = |number: usize| from_one(u32::try_from(number).expect("small"));
        let policy = BatchPolicy {
            batch_size_max: count(machine.rows_max),
            preferred_sizes: settings.preferred.iter().copied().map(from_one).collect(),
            queue_delay: settings.delay,
            queue_delay_max: Duration::from_nanos(settings.delay_max),
            priority_aging: settings.aging.map(Duration::from_nanos),
            levels: Levels::uniform(NonZeroU8::new(3).expect("from 1"), level),
        };
        let batcher = DynamicBatcher::new(policy).for_threads(count(machine.threads));
        Self { batcher, start: clock::now(), taken: Vec::new() }
    }

    fn at(&self, ns: u64) -> Instant {
        self.start + Duration::from_nanos(ns)
    }

    fn ns(&self, time: Instant) -> u64 {
        u64::try_from((time - self.start).as_nanos()).expect("some seconds")
    }
}

impl Batcher for Forebay {
    fn enqueue(&mut self, _now: u64, request: Waiting) -> bool {
        let entry = Entry {
            item: request.id,
            rows: 1,
            priority: Priority::new(request.level).expect("from 1"),
            arrived: self.at(request.arrived),
            deadline: request.deadline.map(|deadline| self.at(deadline)),
        };
        self.batcher.enqueue(entry).is_ok()
    }

    fn turn(&mut self, now: u64, thread_free: bool, batch: &mut Vec<u32>, expired: &mut Vec<u32>) -> Turn {
        let time = self.at(now);
        self.batcher.expire(time, &mut self.taken);
        expired.extend(self.taken.drain(..).map(|entry| entry.item));
        let dispatch = if thread_free { self.batcher.poll(time, &mut self.taken) } else { Dispatch::Idle };
        batch.extend(self.taken.drain(..).map(|entry| entry.item));
        let ask = match dispatch {
            Dispatch::Batch => return Turn::Batch,
            Dispatch::WaitUntil(time) => Some(time),
            Dispatch::Idle => None,
        };
        Turn::AskAt(ask.into_iter().chain(self.batcher.next_deadline()).min().map(|time| self.ns(time)))
    }

    fn scored(&mut self, now: u64, rows: usize, took: u64) {
        self.batcher.scored(self.at(now), rows as u64, Duration::from_nanos(took));
    }

    fn overtaking(&self) -> Overtaking {
        self.batcher.policy().priority_aging.map_or(Overtaking::Never, |aging| Overtaking::Aged {
            aging: u64::try_from(aging.as_nanos()).expect("some seconds"),
            share: AGED_SHARE.into(),
        })
    }
}

/// First come, first served, whatever the level: a batch when `size` wait or the oldest has waited for `delay`. Deadlines are
/// looked at when a batch is made.
pub(crate) struct Plain {
    queue: VecDeque<Waiting>,
    size: usize,
    delay: u64,
    depth_max: usize,
}

impl Plain {
    pub(crate) fn new(size: usize, delay: u64, workload: &Workload) -> Self {
        Self { queue: VecDeque::new(), size, delay, depth_max: 3 * workload.depth_max as usize }
    }
}

impl Batcher for Plain {
    fn enqueue(&mut self, _now: u64, request: Waiting) -> bool {
        let room = self.queue.len() < self.depth_max;
        if room {
            self.queue.push_back(request);
        }
        room
    }

    fn turn(&mut self, now: u64, thread_free: bool, batch: &mut Vec<u32>, expired: &mut Vec<u32>) -> Turn {
        while thread_free && let Some(oldest) = self.queue.front() {
            let end = oldest.arrived + self.delay;
            if self.queue.len() < self.size && end > now {
                return Turn::AskAt(Some(end));
            }
            while batch.len() < self.size
                && let Some(request) = self.queue.pop_front()
            {
                let late = request.deadline.is_some_and(|deadline| deadline < now);
                if late { &mut *expired } else { &mut *batch }.push(request.id);
            }
            if !batch.is_empty() {
                return Turn::Batch;
            }
        }
        Turn::AskAt(None)
    }

    fn overtaking(&self) -> Overtaking {
        Overtaking::Anybody
    }
}
