//! The score threads: requests in by [`InferenceEngine::submit`](crate::engine::InferenceEngine::submit), scored batches
//! out by [`Submitter::completed`].
//!
//! Invariants: a request that was accepted is handed back exactly once, with scores or with a rejection; a batch never
//! mixes models; a failing row takes no neighbour with it (its batch is scored again row by row).
//!
//! One lock guards the queues of all models. A submitter takes it once for a whole chunk, a score thread once for a
//! whole batch, so that it is held for microseconds a few thousand times a second.

mod matrix;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::batch::{BatchPolicy, Dispatch, DynamicBatcher, Entry};
use crate::clock;
use crate::metrics::{Metrics, PerformanceMetrics};
use crate::model::{LoadedModel, Rows, ScoreError, Scorer};

use crate::placement::{self, Plan};
use crate::record::{Chunk, ErrorCode, ModelId, Reject, ScoredBatch, Ticket};

use self::matrix::Matrix;
pub(crate) use self::matrix::Pools;

/// Who submits requests and takes them back: a shard of the pipeline, or the library's door.
pub trait Submitter: Send + Sync {
    /// Takes back requests that ended. Called on a score thread: it must not block.
    fn completed(&self, batch: ScoredBatch);
}

/// A registered submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmitterId(usize);

/// The engine was shut down: nothing is accepted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine was shut down")]
pub struct Closed;

#[derive(Debug)]
struct Queued {
    ticket: Ticket,
    submitter: SubmitterId,
}

struct State {
    lanes: Vec<DynamicBatcher<Queued>>,
    next_lane: usize,
    open: bool,
}

impl State {
    fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<Queued>>) {
        for lane in &mut self.lanes {
            lane.expire(now, expired);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(DynamicBatcher::next_deadline).min()
    }

    fn is_empty(&self) -> bool {
        self.lanes.iter().all(DynamicBatcher::is_empty)
    }
}

enum Next {
    Batch(ModelId),
    Expired,
    Closed,
}

/// The queues of all models, and the threads that empty them.
pub(crate) struct Scheduler {
    state: Mutex<State>,
    /// Idle score threads wait here.
    work: Condvar,
    /// The deadline thread waits here: deadlines hold while every score thread is busy.
    deadlines: Condvar,
    models: RwLock<Vec<Arc<LoadedModel>>>,
    submitters: RwLock<Vec<Arc<dyn Submitter>>>,
    pub(crate) pools: Pools,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    pub(crate) fn new(pools: Pools, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::new(State { lanes: Vec::new(), next_lane: 0, open: true }),
            work: Condvar::new(),
            deadlines: Condvar::new(),
            models: RwLock::default(),
            submitters: RwLock::default(),
            pools,
            metrics,
        }
    }

    /// Starts one score thread a place of the plan, and the thread that keeps deadlines.
    pub(crate) fn start(self: &Arc<Self>, plan: &Plan) -> std::io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(plan.cores.len() + 1);
        for (thread, core) in plan.cores.iter().copied().enumerate() {
            let scheduler = Arc::clone(self);
            threads.push(Builder::new().name(format!("forebay-score-{thread}")).spawn(move || {
                placement::pin_current(core);
                scheduler.run_score(thread);
            })?);
        }
        let scheduler = Arc::clone(self);
        threads.push(Builder::new().name("forebay-deadline".to_owned()).spawn(move || scheduler.run_deadlines())?);
        Ok(threads)
    }

    /// Nothing is accepted any more; what waits is scored, then the threads end.
    pub(crate) fn close(&self) {
        self.state.lock().open = false;
        self.work.notify_all();
        self.deadlines.notify_all();
    }

    /// Puts a model in the slot of that id: a new slot, or a new version of the old one.
    pub(crate) fn put_model(&self, id: ModelId, model: Arc<LoadedModel>, policy: BatchPolicy) {
        let slot = id.0 as usize;
        let mut models = self.models.write();
        if slot < models.len() {
            models[slot] = model;
        } else {
            models.push(model);
            self.state.lock().lanes.push(DynamicBatcher::new(policy));
        }
    }

    pub(crate) fn model(&self, id: ModelId) -> Option<Arc<LoadedModel>> {
        self.models.read().get(id.0 as usize).cloned()
    }

    pub(crate) fn register(&self, submitter: Arc<dyn Submitter>) -> SubmitterId {
        let mut submitters = self.submitters.write();
        submitters.push(submitter);
        SubmitterId(submitters.len() - 1)
    }

    /// Queues the readable requests of a chunk from index `from` on, and returns the index of the first that found its
    /// level full (the chunk's length when all were taken). Rejected requests are passed over: they are the submitter's.
    pub(crate) fn submit(&self, submitter: SubmitterId, chunk: &Arc<Chunk>, from: usize) -> Result<usize, Closed> {
        let mut earliest: Option<Instant> = None;
        let mut index = from;
        let mut state = self.state.lock();
        if !state.open {
            return Err(Closed);
        }
        let earliest_before = state.next_deadline();
        for request in &chunk.requests()[from..] {
            if let Ok(work) = &request.work {
                let ticket = Ticket { chunk: Arc::clone(chunk), index: u32::try_from(index).expect("a small chunk") };
                let entry = Entry {
                    item: Queued { ticket, submitter },
                    rows: work.rows,
                    priority: work.priority,
                    arrived: request.arrived,
                    deadline: work.deadline,
                };
                if state.lanes[work.model.0 as usize].enqueue(entry).is_err() {
                    break;
                }
                earliest = earliest.into_iter().chain(work.deadline).min();
            }
            index += 1;
        }
        drop(state);
        if index > from {
            self.work.notify_one();
        }
        if earliest.is_some_and(|new| earliest_before.is_none_or(|old| new < old)) {
            self.deadlines.notify_one();
        }
        Ok(index)
    }

    /// Requests that wait in a queue now.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().lanes.iter().map(DynamicBatcher::len).sum()
    }

    fn run_score(&self, thread: usize) {
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        loop {
            match self.next(&mut batch, &mut expired) {
                Next::Batch(model) => self.score(thread, model, std::mem::take(&mut batch)),
                Next::Expired => self.reject_expired(std::mem::take(&mut expired)),
                Next::Closed => return,
            }
        }
    }

    /// Waits for something to do.
    fn next(&self, batch: &mut Vec<Entry<Queued>>, expired: &mut Vec<Entry<Queued>>) -> Next {
        let mut state = self.state.lock();
        loop {
            let now = clock::now();
            state.expire(now, expired);
            if !expired.is_empty() {
                return Next::Expired;
            }
            let lanes = state.lanes.len();
            let mut wake: Option<Instant> = None;
            for step in 0..lanes {
                let lane = (state.next_lane + step) % lanes;
                match state.lanes[lane].poll(now, batch) {
                    Dispatch::Batch => {
                        state.next_lane = (lane + 1) % lanes;
                        if !state.is_empty() {
                            // Each thread that finds more than it takes wakes the next: no thundering herd.
                            self.work.notify_one();
                        }
                        return Next::Batch(ModelId(u32::try_from(lane).expect("few models")));
                    }
                    Dispatch::WaitUntil(time) => wake = wake.into_iter().chain([time]).min(),
                    Dispatch::Idle => {}
                }
            }
            if !state.open && state.is_empty() {
                return Next::Closed;
            }
            match wake {
                Some(time) => {
                    self.work.wait_until(&mut state, time);
                }
                None => self.work.wait(&mut state),
            }
        }
    }

    fn run_deadlines(&self) {
        let mut expired = Vec::new();
        let mut state = self.state.lock();
        while state.open {
            state.expire(clock::now(), &mut expired);
            if !expired.is_empty() {
                drop(state);
                self.reject_expired(std::mem::take(&mut expired));
                state = self.state.lock();
                continue;
            }
            match state.next_deadline() {
                Some(time) => {
                    self.deadlines.wait_until(&mut state, time);
                }
                None => self.deadlines.wait(&mut state),
            }
        }
    }

    fn reject_expired(&self, expired: Vec<Entry<Queued>>) {
        let now = clock::now();
        let outcomes = expired.iter().map(|entry| Err(deadline_exceeded(entry, now))).collect();
        let scored = Scored { outcomes, scores: Vec::new(), outputs: 0, model: None, batch_size: 0, started: now };
        self.hand_back(expired, scored, std::time::Duration::ZERO);
    }

    fn score(&self, thread: usize, id: ModelId, batch: Vec<Entry<Queued>>) {
        let started = clock::now();
        let model = self.model(id).expect("a lane exists only beside its model");
        let (width, outputs) = (model.schema().width(), model.schema().outputs);
        let (mut outcomes, rows) = lay_out(&batch, width);
        let mut matrix = Matrix::new(&self.pools, model.schema().row_type, rows, width);
        for (entry, outcome) in batch.iter().zip(&mut outcomes) {
            if let Ok(first) = outcome
                && let Err(reject) = matrix.put(*first, features_of(entry))
            {
                *outcome = Err(reject);
            }
        }
        let mut scores = vec![0.0; rows * outputs];
        let mut scorer = model.scorer(thread);
        let scoring = clock::now();
        if let Err(error) = score_caught(scorer.as_mut(), matrix.rows(0..rows), &mut scores) {
            score_one_by_one(scorer.as_mut(), &batch, &mut outcomes, &matrix, &mut scores, &error);
        }
        let inference = clock::now() - scoring;
        drop((scorer, matrix));
        refuse_non_finite(&batch, &mut outcomes, &scores, outputs, model.name());

        let batch_size = u32::try_from(rows).unwrap_or(u32::MAX);
        let oldest = batch.iter().map(|entry| entry.arrived).min().unwrap_or(started);
        let queued = started.saturating_duration_since(oldest);
        PerformanceMetrics::new(&self.metrics).update_inference(model.name(), batch_size, inference, queued);
        let scored = Scored { outcomes, scores, outputs, model: Some(model), batch_size, started };
        self.hand_back(batch, scored, inference);
    }

    /// Gives each submitter its own requests, as one batch.
    fn hand_back(&self, batch: Vec<Entry<Queued>>, scored: Scored, inference: std::time::Duration) {
        let recorder = PerformanceMetrics::new(&self.metrics);
        let failed = scored.outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        let failed = failed.map(|reject| recorder.record_error(reject.code)).count();
        self.metrics.requests_scored.inc_by((scored.outcomes.len() - failed) as u64);

        let Scored { outcomes, scores, outputs, model, batch_size, started } = scored;
        let mut shares: Vec<Share> = Vec::new();
        let size = batch.len();
        for (entry, outcome) in batch.into_iter().zip(outcomes) {
            let Queued { ticket, submitter } = entry.item;
            let found = shares.iter().position(|share| share.submitter == submitter);
            let place = found.unwrap_or_else(|| {
                shares.push(Share { submitter, tickets: Vec::with_capacity(size), outcomes: Vec::with_capacity(size) });
                shares.len() - 1
            });
            shares[place].tickets.push(ticket);
            shares[place].outcomes.push(outcome);
        }
        let submitters = self.submitters.read();
        let last = shares.len().saturating_sub(1);
        let mut scores = Some(scores);
        for (index, Share { submitter, tickets, outcomes }) in shares.into_iter().enumerate() {
            // Batches that several submitters share are rare (shards fill whole ones), so a copy will do.
            let scores = if index == last { scores.take() } else { scores.clone() }.unwrap_or_default();
            let model = model.clone();
            let batch = ScoredBatch { tickets, outcomes, scores, outputs, model, batch_size, started, inference };
            submitters[submitter.0].completed(batch);
        }
    }
}

/// A batch's requests of one submitter.
struct Share {
    submitter: SubmitterId,
    tickets: Vec<Ticket>,
    outcomes: Vec<Result<usize, Reject>>,
}

/// What a batch came to, before it is split by submitter.
struct Scored {
    outcomes: Vec<Result<usize, Reject>>,
    scores: Vec<f64>,
    outputs: usize,
    model: Option<Arc<LoadedModel>>,
    batch_size: u32,
    started: Instant,
}

fn features_of(entry: &Entry<Queued>) -> &[f64] {
    let ticket = &entry.item.ticket;
    ticket.request().work.as_ref().map_or(&[], |work| ticket.chunk.rows(work))
}

/// Gives each request its first row in the matrix. A request decoded for another width (the model was swapped
/// meanwhile) is refused.
fn lay_out(batch: &[Entry<Queued>], width: usize) -> (Vec<Result<usize, Reject>>, usize) {
    let mut rows = 0;
    let outcomes = batch.iter().map(|entry| {
        let wide = entry.rows as usize * width;
        if features_of(entry).len() != wide {
            let message = format!("the model was replaced by one of {width} features while this request waited");
            return Err(Reject::new(ErrorCode::ModelError, message));
        }
        rows += entry.rows as usize;
        Ok(rows - entry.rows as usize)
    });
    let outcomes = outcomes.collect();
    (outcomes, rows)
}

fn deadline_exceeded(entry: &Entry<Queued>, now: Instant) -> Reject {
    let waited = now.saturating_duration_since(entry.arrived);
    Reject::new(ErrorCode::DeadlineExceeded, format!("waited {:.1} ms, past its deadline", waited.as_secs_f64() * 1e3))
}

/// A model that panics must not take the score thread with it.
fn score_caught(scorer: &mut dyn Scorer, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        fail::fail_point!("score::batch", |message| Err(ScoreError(message.unwrap_or_default())));
        scorer.score(rows, scores)
    }));
    caught.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(ScoreError(format!("the model panicked: {message}")))
    })
}

/// One bad record takes nobody with it: after a failed batch every request is scored alone.
fn score_one_by_one(
    scorer: &mut dyn Scorer,
    batch: &[Entry<Queued>],
    outcomes: &mut [Result<usize, Reject>],
    matrix: &Matrix,
    scores: &mut [f64],
    batch_error: &ScoreError,
) {
    let alone = batch.len() == 1;
    let outputs = scores.len() / matrix.count().max(1);
    for (entry, outcome) in batch.iter().zip(outcomes) {
        let Ok(first) = *outcome else { continue };
        let rows = first..first + entry.rows as usize;
        let places = &mut scores[rows.start * outputs..rows.end * outputs];
        let scored = if alone { Err(batch_error.clone()) } else { score_caught(scorer, matrix.rows(rows), places) };
        if let Err(error) = scored {
            *outcome = Err(Reject::new(ErrorCode::ModelError, error.to_string()));
        }
    }
}

/// A score that is no finite number is an error, never an answer.
fn refuse_non_finite(
    batch: &[Entry<Queued>],
    outcomes: &mut [Result<usize, Reject>],
    scores: &[f64],
    outputs: usize,
    model: &str,
) {
    if scores.iter().all(|score| score.is_finite()) {
        return;
    }
    for (entry, outcome) in batch.iter().zip(outcomes) {
        let Ok(first) = *outcome else { continue };
        let own = &scores[first * outputs..(first + entry.rows as usize) * outputs];
        if let Some(place) = own.iter().position(|score| !score.is_finite()) {
            let message = format!("model {model} answered {} in output {}", own[place], place % outputs);
            *outcome = Err(Reject::new(ErrorCode::ModelError, message));
        }
    }
}
