//! The simulated machine: requests come, threads score batches, and time jumps from one event to the next.
//!
//! What enters is a workload and a batcher; what leaves is what became of each request. Nothing here costs time but the
//! scoring itself: threads wake at once, and the batcher thinks at no cost.
//!
//! Each step is checked: a request ends once; a level keeps its order; nobody overtakes a higher level that may not; no
//! batch is larger than allowed, or holds a request whose deadline has passed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::{Context as _, ensure};

use crate::workload::{Machine, Workload};

/// A request as a batcher sees it. Times are nanoseconds since the start.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) id: u32,
    pub(crate) level: u8,
    pub(crate) arrived: u64,
    pub(crate) deadline: Option<u64>,
}

/// A batcher's answer.
pub(crate) enum Turn {
    Batch,
    /// Nothing more now: ask again then, or at the next event.
    AskAt(Option<u64>),
}

/// Whom a lower level may overtake.
#[derive(Clone, Copy)]
pub(crate) enum Overtaking {
    Never,
    /// One that waited so long for each level above its own, and one row in `share`.
    Aged {
        aging: u64,
        share: u64,
    },
    Anybody,
}

/// The rules that are compared.
pub(crate) trait Batcher {
    /// Whether there was room.
    fn enqueue(&mut self, now: u64, request: Waiting) -> bool;

    /// Asked after each event: moves a batch into `batch` if a thread is free and one is due, and what ends unscored into
    /// `expired`.
    fn turn(&mut self, now: u64, thread_free: bool, batch: &mut Vec<u32>, expired: &mut Vec<u32>) -> Turn;

    fn scored(&mut self, _now: u64, _rows: usize, _took: u64) {}

    fn overtaking(&self) -> Overtaking;
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Scored { start: u64, end: u64 },
    Expired { at: u64 },
    Refused,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Batch {
    pub(crate) start: u64,
    pub(crate) rows: usize,
}

/// A whole run.
#[derive(PartialEq)]
pub(crate) struct History {
    /// Of each arrival.
    pub(crate) fates: Vec<Fate>,
    pub(crate) batches: Vec<Batch>,
}

pub(crate) fn run(workload: &Workload, machine: Machine, batcher: &mut dyn Batcher) -> anyhow::Result<History> {
    let mut world = World {
        workload,
        machine,
        overtaking: batcher.overtaking(),
        fates: vec![None; workload.arrivals.len()],
        batches: Vec::new(),
        running: BinaryHeap::new(),
        waiting: [0; 3],
        started: [0; 3],
        rows: 0,
        overtakers: 0,
    };
    let (mut batch, mut expired) = (Vec::new(), Vec::new());
    let (mut arrived, mut ask_at) = (0, None);
    loop {
        let arrival = workload.arrivals.get(arrived).map(|arrival| arrival.at);
        let end = world.running.peek().map(|Reverse((end, ..))| *end);
        let Some(now) = arrival.into_iter().chain(end).chain(ask_at).min() else { break };
        while let Some(Reverse((end, rows, took))) =
            world.running.peek().copied().filter(|Reverse((end, ..))| *end <= now)
        {
            world.running.pop();
            batcher.scored(end, rows, took);
        }
        while let Some(arrival) = workload.arrivals.get(arrived).filter(|arrival| arrival.at <= now) {
            let id = u32::try_from(arrived)?;
            let deadline = workload.timeout.map(|timeout| arrival.at + timeout);
            let request = Waiting { id, level: arrival.level, arrived: arrival.at, deadline };
            if batcher.enqueue(now, request) {
                world.waiting[usize::from(arrival.level) - 1] += 1;
            } else {
                world.end(id, Fate::Refused)?;
            }
            arrived += 1;
        }
        loop {
            let free = world.running.len() < machine.threads;
            let turn = batcher.turn(now, free, &mut batch, &mut expired);
            for id in expired.drain(..) {
                world.leave(id);
                world.end(id, Fate::Expired { at: now })?;
            }
            match turn {
                Turn::Batch => {
                    ensure!(free, "a batch for no thread");
                    world.start(now, &batch)?;
                    batch.clear();
                }
                Turn::AskAt(time) => {
                    ensure!(time.is_none_or(|time| time > now), "it wants to be asked in the past");
                    ask_at = time;
                    break;
                }
            }
        }
    }
    let fates: Option<Vec<Fate>> = world.fates.into_iter().collect();
    Ok(History { fates: fates.context("a request never ended")?, batches: world.batches })
}

struct World<'a> {
    workload: &'a Workload,
    machine: Machine,
    overtaking: Overtaking,
    fates: Vec<Option<Fate>>,
    batches: Vec<Batch>,
    /// End, rows and duration of the batches that are being scored.
    running: BinaryHeap<Reverse<(u64, usize, u64)>>,
    /// Of each level.
    waiting: [usize; 3],
    /// The number after that of the last that was started in each level.
    started: [u32; 3],
    rows: u64,
    overtakers: u64,
}

impl World<'_> {
    fn start(&mut self, now: u64, batch: &[u32]) -> anyhow::Result<()> {
        ensure!(!batch.is_empty() && batch.len() <= self.machine.rows_max, "a batch of {} rows", batch.len());
        let took = self.machine.cost.of(batch.len());
        for &id in batch {
            self.leave(id);
            self.end(id, Fate::Scored { start: now, end: now + took })?;
            let arrival = self.workload.arrivals[id as usize];
            let deadline = self.workload.timeout.map(|timeout| arrival.at + timeout);
            ensure!(deadline.is_none_or(|deadline| now <= deadline), "scored after its deadline");
            let started = &mut self.started[usize::from(arrival.level) - 1];
            ensure!(id >= *started, "a level's order was broken");
            *started = id + 1;
        }
        self.rows += batch.len() as u64;
        self.check_overtakers(now, batch)?;
        self.running.push(Reverse((now + took, batch.len(), took)));
        self.batches.push(Batch { start: now, rows: batch.len() });
        Ok(())
    }

    /// Of those that left in a batch, who overtook a higher level that still waits?
    fn check_overtakers(&mut self, now: u64, batch: &[u32]) -> anyhow::Result<()> {
        let Some(highest) = self.waiting.iter().position(|waiting| *waiting > 0) else { return Ok(()) };
        let arrivals = batch.iter().map(|id| self.workload.arrivals[*id as usize]);
        for arrival in arrivals.filter(|arrival| usize::from(arrival.level) > highest + 1) {
            self.overtakers += 1;
            match self.overtaking {
                Overtaking::Anybody => {}
                Overtaking::Never => anyhow::bail!("level {} overtook level {}", arrival.level, highest + 1),
                Overtaking::Aged { aging, share } => {
                    let waited = now - arrival.at;
                    ensure!(waited >= aging * (u64::from(arrival.level) - 1), "it overtook before it had aged");
                    ensure!(self.overtakers * share <= self.rows + share, "aged requests took more than their share");
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: u32) {
        self.waiting[usize::from(self.workload.arrivals[id as usize].level) - 1] -= 1;
    }

    fn end(&mut self, id: u32, fate: Fate) -> anyhow::Result<()> {
        let place = self.fates.get_mut(id as usize).context("nobody sent that")?;
        ensure!(place.is_none(), "a request ended twice");
        *place = Some(fate);
        Ok(())
    }
}
