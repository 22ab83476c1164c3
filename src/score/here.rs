//! Scoring on the submitter's own thread. To wake a score thread and be woken by it costs tens of microseconds, and a few rows of a
//! small model far less: where nothing else waits, who submits such requests scores them at once.
//!
//! Invariants: only models of safe code (compiled forests) that were timed lately, without a candidate on trial, are scored so,
//! and only for about 50 us; what waits already goes first, and by the batcher's own rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Closed, InService, Queued, Scheduler, Seat, Serving, State, SubmitterId, Turn};
use crate::batch::{Dispatch, Entry};
use crate::clock;
use crate::model::LoadedModel;
use crate::record::{Chunk, ModelId};

/// About the longest that a submitter scores. To wake another thread and be woken by it takes as long.
const HERE_NS_MAX: u64 = 50_000;
/// What a row counts for at the most: one that was held up for longer says nothing of the next.
const ROW_NS_MAX: u64 = 4 * HERE_NS_MAX;
/// Most requests that are scored so: more are better shared out.
const HERE_REQUESTS_MAX: usize = 8;
/// Who scores there: near the first score thread's buffers, with a scorer that is no score thread's.
const SEAT: Seat = Seat { thread: 0, scorer: LoadedModel::SPARE, lane: None };

/// How long a row takes that is scored alone, in nanoseconds; 0 before one was.
#[derive(Debug, Default)]
pub(crate) struct Alone(AtomicU32);

impl Alone {
    /// A batch of one row was scored. The mean forgets: after ten rows it is the present.
    pub(super) fn took(&self, time: Duration) {
        let now = u32::try_from(time.as_nanos().min(ROW_NS_MAX.into())).unwrap_or(u32::MAX).max(1);
        let before = self.0.load(Ordering::Relaxed);
        let mean = if before == 0 { now } else { before - before / 8 + now / 8 };
        self.0.store(mean.max(1), Ordering::Relaxed);
    }

    fn nanos(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed).into()).filter(|&nanos| nanos > 0)
    }
}

/// What is scored here, and by what.
pub(super) struct Here {
    pub(super) model: ModelId,
    version: Arc<InService>,
}

impl State {
    /// What was queued just now into a queue that was empty, if it makes a batch.
    pub(super) fn take_here(&mut self, model: ModelId, expired: &mut Vec<Entry<Queued>>) -> Option<Vec<Entry<Queued>>> {
        let now = clock::now();
        self.expire(now, expired);
        let lane = &mut self.lanes[model.0 as usize];
        if lane.crew.is_some() {
            return None;
        }
        let mut batch = Vec::new();
        matches!(lane.batcher.poll(now, &mut batch), Dispatch::Batch).then_some(batch)
    }
}

impl Scheduler {
    /// The model that all readable requests of a chunk are for, and the version that serves, if they may be scored here.
    fn may_score_here(&self, chunk: &Chunk) -> Option<Here> {
        let mut works = chunk.requests().iter().filter_map(|request| request.work.as_ref().ok());
        let model = works.clone().next()?.model;
        if chunk.requests().len() > HERE_REQUESTS_MAX || works.clone().any(|work| work.model != model) {
            return None;
        }
        let serving = self.serving.read();
        let Serving { version, candidate } = serving.get(model.0 as usize)?;
        let alone = version.alone.nanos().filter(|_| candidate.is_none() && version.model.is_compiled())?;
        let rows: u64 = works.by_ref().map(|work| u64::from(work.rows)).sum();
        (rows * alone <= HERE_NS_MAX).then(|| Here { model, version: Arc::clone(version) })
    }

    /// Scores a batch, by the version that was looked at. In an engine that was closed meanwhile the score threads have ended: what
    /// went back to the queue is scored here, too.
    pub(super) fn score_here(&self, here: &Here, mut batch: Vec<Entry<Queued>>) {
        let Here { model, version } = here;
        loop {
            let served = self.take_version(Turn::new(SEAT, *model, version), batch);
            let mut expired = Vec::new();
            let mut state = self.state.lock();
            if let Some(served) = served {
                let now = clock::now();
                let took = now.saturating_duration_since(served.started);
                state.lanes[model.0 as usize].batcher.scored(now, served.rows, took);
            }
            let next = if state.open { None } else { state.take_here(*model, &mut expired) };
            drop(state);
            if !expired.is_empty() {
                self.reject_expired(expired);
            }
            match next {
                Some(next) => batch = next,
                None => return,
            }
        }
    }

    /// Queues the readable requests of a chunk as [`Scheduler::submit`] does, and scores them before it returns where that is
    /// sooner done than another thread is woken. [`Submitter::completed`](super::Submitter::completed) is then called on this thread.
    pub(crate) fn submit_here(&self, submitter: SubmitterId, chunk: &Arc<Chunk>, from: usize) -> Result<usize, Closed> {
        let here = if from == 0 { self.may_score_here(chunk) } else { None };
        self.submit_as(submitter, chunk, from, here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_row_follows_what_is_seen() {
        let alone = Alone::default();
        assert_eq!(alone.nanos(), None);
        alone.took(Duration::from_micros(80));
        assert_eq!(alone.nanos(), Some(80_000));
        (0..40).for_each(|_| alone.took(Duration::from_micros(8)));
        assert!((7_900..9_000).contains(&alone.nanos().unwrap_or(0)), "{alone:?}");
        alone.took(Duration::from_secs(60));
        assert!(alone.nanos().unwrap_or(0) < HERE_NS_MAX, "once is chance: {alone:?}");
        (0..4).for_each(|_| alone.took(Duration::from_secs(60)));
        assert!(alone.nanos().unwrap_or(0) > HERE_NS_MAX, "{alone:?}");
        (0..200).for_each(|_| alone.took(Duration::ZERO));
        assert!((1..20).contains(&alone.nanos().unwrap_or(0)), "{alone:?}");
    }
}
