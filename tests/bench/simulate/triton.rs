//! The dynamic batcher of Triton Inference Server by its documented rules, written plainly for requests of one row.
//!
//! After `docs/user_guide/batcher.md`, and where that is silent after `GetDynamicBatch` and `WaitForPayloadSlotAvailable`
//! in core's `src/dynamic_batch_scheduler.cc` and `PriorityQueue` in `src/scheduler_utils.cc` (2026):
//!
//! - A batch is formed when an instance is free. Levels are strict; there is no aging. A model without preferred sizes
//!   prefers the largest (`NormalizeModelConfig`).
//! - The largest preferred size that is reached goes at once, unless the oldest request has waited for the delay: then
//!   goes all there is, as it does without a delay. Else it waits, until a preferred size is reached, the delay ends or a
//!   request that was looked at expires.
//! - Timeouts are looked at while a batch is formed, and only as far as its requests reach; and in all the queues when no
//!   instance was free for half a second.
//!
//! In its favour: an instance that becomes free is known at once, at no cost.

use std::collections::VecDeque;

use crate::MS;
use crate::workload::{Machine, Workload};
use crate::world::{Batcher, Overtaking, Turn, Waiting};

/// After so long without a free instance, timeouts are looked at (`default_wait_microseconds`).
const SWEEP: u64 = 500 * MS;

pub(crate) struct Triton {
    /// Level 1 first.
    queues: [VecDeque<Waiting>; 3],
    /// Ascending, not empty.
    preferred: Vec<usize>,
    delay: u64,
    rows_max: usize,
    depth_max: usize,
    /// Since when something waits and no instance is free.
    blocked: Option<u64>,
    /// While a batch waits for company: until when at most, and what queue length ends it.
    held: Option<(u64, usize)>,
}

/// What a look through the queues came to.
struct Pending {
    count: usize,
    /// The largest preferred size that it reached.
    preferred: Option<usize>,
    oldest: u64,
    closest_timeout: Option<u64>,
}

impl Triton {
    pub(crate) fn new(preferred: &[u32], delay: u64, machine: Machine, workload: &Workload) -> Self {
        let mut preferred: Vec<_> = preferred.iter().map(|size| *size as usize).collect();
        if preferred.is_empty() {
            preferred.push(machine.rows_max);
        }
        Self {
            queues: Default::default(),
            preferred,
            delay,
            rows_max: machine.rows_max,
            depth_max: workload.depth_max as usize,
            blocked: None,
            held: None,
        }
    }

    fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// Walks the requests in order up to a full batch. What has expired on the way leaves.
    fn look(&mut self, now: u64, expired: &mut Vec<u32>) -> Pending {
        let mut pending = Pending { count: 0, preferred: None, oldest: u64::MAX, closest_timeout: None };
        let preferred_max = self.preferred.last().copied().expect("not empty");
        for queue in &mut self.queues {
            let mut index = 0;
            while let Some(request) = queue.get(index).copied() {
                if request.deadline.is_some_and(|deadline| deadline < now) {
                    expired.push(request.id);
                    queue.remove(index);
                    continue;
                }
                if pending.count == preferred_max {
                    pending.preferred = pending.preferred.or(Some(pending.count));
                }
                if pending.count == self.rows_max {
                    return pending;
                }
                index += 1;
                pending.count += 1;
                pending.oldest = pending.oldest.min(request.arrived);
                pending.closest_timeout = pending.closest_timeout.into_iter().chain(request.deadline).min();
                if self.preferred.contains(&pending.count) {
                    pending.preferred = Some(pending.count);
                }
            }
        }
        pending
    }

    /// `GetDynamicBatch`: how many to send, or until when to wait.
    fn due(&mut self, now: u64, expired: &mut Vec<u32>) -> Result<usize, Option<u64>> {
        let Pending { count, preferred, oldest, closest_timeout } = self.look(now, expired);
        if count == 0 {
            return Err(None);
        }
        let delay_end = oldest + self.delay;
        let exceeded = self.delay > 0 && delay_end <= now;
        if let Some(size) = preferred.filter(|_| !exceeded) {
            return Ok(size);
        }
        let preferred_max = self.preferred.last().copied().expect("not empty");
        if exceeded || self.delay == 0 || count >= preferred_max {
            return Ok(count);
        }
        let next = self.preferred.iter().copied().find(|size| *size > count).unwrap_or(preferred_max);
        // A request expires after its timeout, not at it.
        let until = closest_timeout.map(|timeout| timeout + 1).into_iter().chain([delay_end]).min();
        self.held = until.map(|until| (until, next));
        Err(until)
    }

    fn sweep(&mut self, now: u64, expired: &mut Vec<u32>) {
        for queue in &mut self.queues {
            let late = |request: &Waiting| request.deadline.is_some_and(|deadline| deadline < now);
            expired.extend(queue.iter().filter(|request| late(request)).map(|request| request.id));
            queue.retain(|request| !late(request));
        }
    }
}

impl Batcher for Triton {
    fn enqueue(&mut self, _now: u64, request: Waiting) -> bool {
        let queue = &mut self.queues[usize::from(request.level) - 1];
        let room = queue.len() < self.depth_max;
        if room {
            queue.push_back(request);
        }
        room
    }

    fn turn(&mut self, now: u64, thread_free: bool, batch: &mut Vec<u32>, expired: &mut Vec<u32>) -> Turn {
        if self.len() == 0 {
            self.blocked = None;
            return Turn::AskAt(None);
        }
        if !thread_free {
            let since = *self.blocked.get_or_insert(now);
            if now < since + SWEEP {
                return Turn::AskAt(Some(since + SWEEP));
            }
            self.blocked = Some(now);
            self.sweep(now, expired);
            return Turn::AskAt(Some(now + SWEEP));
        }
        self.blocked = None;
        // An arrival wakes the batcher only when it fills the next preferred size.
        if let Some((until, _)) = self.held.filter(|(until, size)| now < *until && self.len() < *size) {
            return Turn::AskAt(Some(until));
        }
        self.held = None;
        match self.due(now, expired) {
            Err(until) => Turn::AskAt(until),
            Ok(count) => {
                batch.extend(take(&mut self.queues, count));
                Turn::Batch
            }
        }
    }

    fn overtaking(&self) -> Overtaking {
        Overtaking::Never
    }
}

fn take(queues: &mut [VecDeque<Waiting>], count: usize) -> Vec<u32> {
    let mut ids = Vec::with_capacity(count);
    for queue in queues {
        let taken = queue.len().min(count - ids.len());
        ids.extend(queue.drain(..taken).map(|request| request.id));
    }
    ids
}
