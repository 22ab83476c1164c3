//! The score threads: requests in by [`InferenceEngine::submit`](crate::engine::InferenceEngine::submit), scored batches
//! out by [`Submitter::completed`].
//!
//! Invariants: a request that was accepted is handed back exactly once, with scores or with a rejection; a batch never
//! mixes models; a failing row takes no neighbour with it (its batch is scored again row by row).
//!
//! A request whose scoring failed transiently goes back into its queue, as often as it may ([`Work::retries`]), and waits
//! there for its back-off: no thread waits with it. A closed engine waits for no back-off: what was put back is tried
//! once more at once, and what fails then has failed.
//!
//! One lock guards the queues of all models. A submitter takes it once for a whole chunk, a score thread once for a
//! whole batch, so that it is held for microseconds a few thousand times a second.

mod attempt;
#[cfg(feature = "failpoints")]
mod failpoints;
mod here;
mod journal;
mod lookup;
mod matrix;
mod prepared;
mod serving;
mod shadow;

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::batch::{BatchPolicy, BatcherStats, Dispatch, DynamicBatcher, Entry, QueueFull, back_off};
use crate::clock;
use crate::metrics::{Metrics, PerformanceMetrics};
use crate::model::LoadedModel;
use crate::placement::{Plan, settle_score};
#[cfg(doc)]
use crate::record::Work;
use crate::record::{Chunk, ErrorCode, ModelId, PartitionId, Reject, ScoredBatch, Ticket};

use self::attempt::{Outcomes, lay_out, refuse_non_finite};
use self::here::Here;
use self::journal::{EXITS_MAX, Journal, RecordName};
pub use self::journal::{JournalFile, PartitionKey};
use self::lookup::Admitted;
use self::lookup::Leads;
pub(crate) use self::lookup::ResultCache;
pub(crate) use self::matrix::Pools;
pub(crate) use self::prepared::FeatureCache;
pub(crate) use self::serving::{Candidate, InService, Serving};
pub use self::serving::{Trial, TrialMode};
use self::shadow::ShadowRun;

/// Who submits requests and takes them back: a shard of the pipeline, or the library's door.
pub trait Submitter: Send + Sync {
    /// Takes back requests that ended. Called on a score thread: it must not block.
    fn completed(&self, batch: ScoredBatch);

    /// The partition as it is known over restarts. A record of a partition without one is not named in the journal.
    fn partition_key(&self, _partition: PartitionId) -> Option<PartitionKey> {
        None
    }
}

/// A registered submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmitterId(usize);

/// The engine was shut down: nothing is accepted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine was shut down")]
pub struct Closed;

#[derive(Clone, Debug)]
struct Queued {
    ticket: Ticket,
    submitter: SubmitterId,
    /// How often it was scored and failed.
    tries: u8,
    /// It followed a request that failed, and follows nobody again.
    alone: bool,
}

struct State {
    lanes: Vec<Lane>,
    next_lane: usize,
    open: bool,
}

/// The queue of one slot.
struct Lane {
    batcher: DynamicBatcher<Queued>,
    /// Where the slot's own threads wait, if it has some. The score threads then leave the lane to them.
    crew: Option<Arc<Condvar>>,
}

impl State {
    fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<Queued>>) {
        for lane in &mut self.lanes {
            lane.batcher.expire(now, expired);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.batcher.next_deadline()).min()
    }

    /// Whether nothing waits in the lanes that a thread of that seat serves.
    fn is_empty_for(&self, seat: Seat) -> bool {
        self.lanes.iter().enumerate().all(|(number, lane)| !seat.serves(number, lane) || lane.batcher.is_empty())
    }
}

/// Which thread it is that scores.
#[derive(Clone, Copy)]
struct Seat {
    /// The score thread near whose buffers it works.
    thread: usize,
    /// Which of a model's scorers is its own.
    scorer: usize,
    /// The only lane that it serves; `None` for a score thread, which serves all that have no threads of their own.
    lane: Option<usize>,
}

impl Seat {
    fn serves(self, number: usize, lane: &Lane) -> bool {
        self.lane.map_or(lane.crew.is_none(), |own| own == number)
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
    serving: RwLock<Vec<Serving>>,
    submitters: RwLock<Vec<Arc<dyn Submitter>>>,
    pub(crate) pools: Pools,
    /// What was scored lately; `None` where all is scored.
    cache: Option<ResultCache>,
    /// Names what native models score; there from the first such model on, if it can be.
    journal: OnceLock<Option<Journal>>,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    pub(crate) fn new(pools: Pools, cache: Option<ResultCache>, metrics: Arc<Metrics>) -> Self {
        Self {
            state: Mutex::new(State { lanes: Vec::new(), next_lane: 0, open: true }),
            work: Condvar::new(),
            deadlines: Condvar::new(),
            serving: RwLock::default(),
            submitters: RwLock::default(),
            pools,
            cache,
            journal: OnceLock::new(),
            metrics,
        }
    }

    /// Starts one score thread a place of the plan, and the thread that keeps deadlines.
    pub(crate) fn start(self: &Arc<Self>, plan: &Arc<Plan>) -> std::io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(plan.places.len() + 1);
        for (thread, place) in plan.places.iter().copied().enumerate() {
            let (scheduler, plan) = (Arc::clone(self), Arc::clone(plan));
            threads.push(Builder::new().name(format!("forebay-score-{thread}")).spawn(move || {
                settle_score(&plan, place);
                scheduler.run_score(Seat { thread, scorer: thread, lane: None });
            })?);
        }
        let scheduler = Arc::clone(self);
        threads.push(Builder::new().name("forebay-deadline".to_owned()).spawn(move || scheduler.run_deadlines())?);
        Ok(threads)
    }

    /// Nothing is accepted any more; what waits is scored, what waits for its back-off too, then the threads end.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.open = false;
        for lane in &mut state.lanes {
            lane.batcher.end_delays();
            if let Some(crew) = &lane.crew {
                crew.notify_all();
            }
        }
        drop(state);
        self.work.notify_all();
        self.deadlines.notify_all();
    }

    /// Opens the journal, once. Without one the records of native models are not named, which is said.
    pub(crate) fn open_journal(&self, file: &JournalFile, threads: usize) {
        self.journal.get_or_init(|| {
            let opened = Journal::open(file, threads);
            opened.inspect_err(|error| tracing::warn!("a record that ends the worker will not be known: {error}")).ok()
        });
    }

    pub(crate) fn journal(&self) -> Option<&Journal> {
        self.journal.get().and_then(Option::as_ref)
    }

    /// Makes a version ready to be served: its keys in the result cache, where looking up pays.
    pub(crate) fn admit(&self, id: ModelId, model: Arc<LoadedModel>) -> Arc<InService> {
        let admitted = self.cache.as_ref().and_then(|cache| cache.admit(id, &model));
        Arc::new(InService { model, admitted, alone: here::Alone::default() })
    }

    /// What the slot of that id serves from the next batch on: a new slot, or an old one.
    pub(crate) fn serve(&self, id: ModelId, serving: Serving, policy: &BatchPolicy, threads: usize) {
        let slot = id.0 as usize;
        let mut all = self.serving.write();
        if slot < all.len() {
            let before = std::mem::replace(&mut all[slot], serving);
            drop(all);
            // A version that ends here takes its time, and score threads wait for that lock.
            drop(before);
        } else {
            all.push(serving);
            let threads = u32::try_from(threads).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
            let batcher = DynamicBatcher::new(policy.clone()).for_threads(threads);
            self.state.lock().lanes.push(Lane { batcher, crew: None });
        }
    }

    /// Gives a slot threads of its own, which no pinned score thread waits for: `threads` of them, if it has none yet.
    pub(crate) fn crew(self: &Arc<Self>, id: ModelId, threads: usize) -> std::io::Result<Vec<JoinHandle<()>>> {
        let number = id.0 as usize;
        let mut state = self.state.lock();
        let crew = &mut state.lanes[number].crew;
        if crew.is_some() {
            return Ok(Vec::new());
        }
        let start = |scorer| {
            let scheduler = Arc::clone(self);
            let seat = Seat { thread: scorer % self.pools.threads(), scorer, lane: Some(number) };
            let name = format!("forebay-own{number}-{scorer}");
            Builder::new().name(name).spawn(move || scheduler.run_score(seat))
        };
        // With fewer than were asked for, the first of them at least, the model is scored all the same.
        let handles: Vec<_> = (0..threads).map_while(|scorer| start(scorer).ok()).collect();
        if handles.is_empty() {
            return Ok(vec![start(0)?]);
        }
        *crew = Some(Arc::new(Condvar::new()));
        Ok(handles)
    }

    /// The version that answers in a slot.
    pub(crate) fn model(&self, id: ModelId) -> Option<Arc<LoadedModel>> {
        self.serving.read().get(id.0 as usize).map(|serving| Arc::clone(&serving.version.model))
    }

    pub(crate) fn register(&self, submitter: Arc<dyn Submitter>) -> SubmitterId {
        let mut submitters = self.submitters.write();
        submitters.push(submitter);
        SubmitterId(submitters.len() - 1)
    }

    /// Queues the readable requests of a chunk from index `from` on, and returns the index of the first that found its
    /// level full and waits for room (the chunk's length when there was none). Where the level's policy is to reject what
    /// finds it full, the submitter gets it back at once. Rejected requests are passed over: they are the submitter's.
    pub(crate) fn submit(&self, submitter: SubmitterId, chunk: &Arc<Chunk>, from: usize) -> Result<usize, Closed> {
        self.submit_as(submitter, chunk, from, None)
    }

    /// The same; requests for `here` that make a batch by themselves are scored before it returns.
    fn submit_as(
        &self,
        submitter: SubmitterId,
        chunk: &Arc<Chunk>,
        from: usize,
        here: Option<Here>,
    ) -> Result<usize, Closed> {
        let mut earliest: Option<Instant> = None;
        let (mut full, mut crews) = (Vec::new(), Crews::default());
        let mut index = from;
        let mut state = self.state.lock();
        if !state.open {
            return Err(Closed);
        }
        let earliest_before = state.next_deadline();
        let here = here.filter(|here| state.lanes[here.model.0 as usize].batcher.is_empty());
        for request in &chunk.requests()[from..] {
            if let Ok(work) = &request.work {
                let ticket = Ticket { chunk: Arc::clone(chunk), index: u32::try_from(index).expect("a small chunk") };
                let entry = Entry {
                    item: Queued { ticket, submitter, tries: 0, alone: false },
                    rows: work.rows,
                    priority: work.priority,
                    arrived: request.arrived,
                    deadline: work.deadline,
                };
                let lane = &mut state.lanes[work.model.0 as usize];
                match lane.batcher.enqueue(entry) {
                    Ok(()) => {
                        crews.add(lane);
                        earliest = earliest.into_iter().chain(work.deadline).min();
                    }
                    Err(entry) => match lane.batcher.policy().levels.of(work.priority).queue_full {
                        QueueFull::Pause => break,
                        QueueFull::Reject => full.push(entry),
                    },
                }
            }
            index += 1;
        }
        let mut expired = Vec::new();
        let taken = here.and_then(|here| state.take_here(here.model, &mut expired).map(|batch| (here, batch)));
        let is_left = taken.as_ref().is_none_or(|(here, _)| !state.lanes[here.model.0 as usize].batcher.is_empty());
        drop(state);
        if is_left {
            crews.wake(&self.work);
        }
        if !expired.is_empty() {
            self.reject_expired(expired);
        }
        if let Some((here, batch)) = taken {
            self.score_here(&here, batch);
        }
        if is_left && earliest.is_some_and(|new| earliest_before.is_none_or(|old| new < old)) {
            self.deadlines.notify_one();
        }
        if !full.is_empty() {
            self.reject(full, queue_full);
        }
        Ok(index)
    }

    /// What waits now, model by model.
    pub(crate) fn queues(&self) -> Vec<BatcherStats> {
        self.state.lock().lanes.iter().map(|lane| lane.batcher.get_stats()).collect()
    }

    /// What each slot serves now.
    pub(crate) fn all_serving(&self) -> Vec<Serving> {
        self.serving.read().clone()
    }

    fn run_score(&self, seat: Seat) {
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let mut last = None;
        loop {
            match self.next(seat, last.take(), &mut batch, &mut expired) {
                Next::Batch(model) => last = self.take_turn(seat, model, std::mem::take(&mut batch)),
                Next::Expired => self.reject_expired(std::mem::take(&mut expired)),
                Next::Closed => return,
            }
        }
    }

    /// Waits for something to do. `last` is what the thread did before: the batcher learns from it.
    fn next(
        &self,
        seat: Seat,
        last: Option<Served>,
        batch: &mut Vec<Entry<Queued>>,
        expired: &mut Vec<Entry<Queued>>,
    ) -> Next {
        let mut state = self.state.lock();
        if let Some(Served { model, started, rows }) = last {
            let now = clock::now();
            state.lanes[model.0 as usize].batcher.scored(now, rows, now.saturating_duration_since(started));
        }
        loop {
            let now = clock::now();
            state.expire(now, expired);
            if !expired.is_empty() {
                return Next::Expired;
            }
            let lanes = state.lanes.len();
            let mut wake: Option<Instant> = None;
            let crew = seat.lane.and_then(|own| state.lanes[own].crew.clone());
            let waiting_room = crew.as_deref().unwrap_or(&self.work);
            for step in 0..lanes {
                let number = (state.next_lane + step) % lanes;
                if !seat.serves(number, &state.lanes[number]) {
                    continue;
                }
                match state.lanes[number].batcher.poll(now, batch) {
                    Dispatch::Batch => {
                        if seat.lane.is_none() {
                            state.next_lane = (number + 1) % lanes;
                        }
                        if !state.is_empty_for(seat) {
                            // Each thread that finds more than it takes wakes the next: no thundering herd.
                            waiting_room.notify_one();
                        }
                        return Next::Batch(ModelId(u32::try_from(number).expect("few models")));
                    }
                    Dispatch::WaitUntil(time) => wake = wake.into_iter().chain([time]).min(),
                    Dispatch::Idle => {}
                }
            }
            if !state.open && state.is_empty_for(seat) {
                return Next::Closed;
            }
            match wake {
                Some(time) => {
                    waiting_room.wait_until(&mut state, time);
                }
                None => waiting_room.wait(&mut state),
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
        self.reject(expired, |entry| deadline_exceeded(entry, now));
    }

    /// Ends requests without asking their model.
    fn reject(&self, entries: Vec<Entry<Queued>>, why: impl Fn(&Entry<Queued>) -> Reject) {
        let outcomes = entries.iter().map(|entry| Err(why(entry))).collect();
        let (scores, started) = (Vec::new(), clock::now());
        let scored = Scored { outcomes, scores, outputs: 0, model: None, batch_size: 0, started, cache_hit: false };
        self.hand_back(entries, scored, std::time::Duration::ZERO);
    }

    fn take_turn(&self, seat: Seat, id: ModelId, mut batch: Vec<Entry<Queued>>) -> Option<Served> {
        let Serving { version, candidate } = self.serving.read()[id.0 as usize].clone();
        let (canary, shadow) = match &candidate {
            Some(candidate) if candidate.trial.mode == TrialMode::Canary => (Some(candidate), None),
            other => (None, other.as_ref()),
        };
        let mut served = None;
        if let Some(canary) = canary {
            let own: Vec<_> = batch.extract_if(.., |entry| canary.takes(entry)).collect();
            if !own.is_empty() {
                served = self.take_version(Turn::new(seat, id, &canary.version).counted_by(canary), own);
            }
        }
        if batch.is_empty() {
            return served;
        }
        let rest = self.take_version(Turn { shadow, ..Turn::new(seat, id, &version) }, batch);
        Served::both(served, rest)
    }

    fn take_version(&self, turn: Turn<'_>, batch: Vec<Entry<Queued>>) -> Option<Served> {
        // The journal has a place for each score thread; what has threads of its own scores in another process.
        let native = turn.model().runs_native_code() && turn.seat.lane.is_none();
        let journal = self.journal().filter(|_| native);
        let turn = Turn { journal, ..turn };
        match journal.filter(|journal| journal.has_suspects()) {
            Some(journal) => {
                self.score_around_suspects(turn, journal, batch);
                None
            }
            None => self.score(turn, batch),
        }
    }

    /// Suspects of the journal are taken out of the batch, and each is scored alone after the others.
    fn score_around_suspects(&self, turn: Turn<'_>, journal: &Journal, mut batch: Vec<Entry<Queued>>) {
        let mut names = Names::default();
        let submitters = self.submitters.read();
        let mut suspects = Vec::new();
        let is_suspect = |entry: &mut Entry<Queued>| {
            let record = names.of(entry, &submitters).filter(|record| journal.exits(*record) > 0);
            suspects.extend(record);
            record.is_some()
        };
        let entries: Vec<_> = batch.extract_if(.., is_suspect).collect();
        drop(submitters);
        if !batch.is_empty() {
            self.score(turn, batch);
        }
        for (entry, record) in entries.into_iter().zip(suspects) {
            let (now, exits) = (clock::now(), journal.exits(record));
            if entry.deadline.is_some_and(|deadline| deadline <= now) {
                self.reject(vec![entry], |entry| deadline_exceeded(entry, now));
            } else if exits < EXITS_MAX {
                self.score(Turn { suspect: true, ..turn }, vec![entry]);
                journal.acquit(record);
            } else {
                let offset = entry.item.ticket.request().position.offset;
                tracing::error!(
                    model = turn.model().name(),
                    offset,
                    exits,
                    "a record that ends the worker is not scored"
                );
                let message =
                    format!("not scored: the worker ended abnormally {exits} times while it scored this record");
                self.reject(vec![entry], |_| Reject::new(ErrorCode::ModelError, &*message));
            }
        }
    }

    /// What was scored, if anything was.
    fn score(&self, turn: Turn<'_>, batch: Vec<Entry<Queued>>) -> Option<Served> {
        let started = clock::now();
        let arrivals = batch.iter().map(|entry| (entry.priority, entry.arrived));
        self.metrics.model(turn.model().name()).taken(started, arrivals);
        let (mut batch, leads) = self.look_up(turn, batch, started);
        if batch.is_empty() {
            leads.into_iter().for_each(Leads::settle_empty);
            return None;
        }
        let Turn { seat, id, journal, suspect, .. } = turn;
        let model = turn.model();
        let outputs = model.schema().outputs;
        let (matrix, mut outcomes) = lay_out(&batch, model, self.pools.of(seat.thread));
        let rows = matrix.count();
        let mut scores = vec![0.0; rows * outputs];
        let mut scorer = model.scorer(seat.scorer);
        let named = journal.map(|journal| journal.enter(seat.thread, suspect));
        if let Some(named) = &named {
            let (mut names, submitters) = (Names::default(), self.submitters.read());
            named.name(batch.iter().filter_map(|entry| names.of(entry, &submitters)));
        }
        let scoring = clock::now();
        #[cfg(feature = "failpoints")]
        failpoints::before_batch(&batch);
        #[cfg(feature = "failpoints")]
        failpoints::after_naming(&batch);
        let again = attempt::score(scorer.as_mut(), &batch, &matrix, &mut outcomes, &mut scores);
        let inference = clock::now() - scoring;
        if rows == 1 {
            turn.version.alone.took(inference);
        }
        drop((named, scorer, matrix));
        refuse_non_finite(&batch, &mut outcomes, &scores, outputs, model.name());

        if let Some(candidate) = turn.counted_by {
            candidate.tally.count(batch.len(), outcomes.iter().filter(|outcome| outcome.is_err()).count());
        }
        let shadow = turn.shadow.and_then(|shadow| ShadowRun::new(shadow, (&batch, &outcomes), (&scores, outputs)));
        let batch_size = u32::try_from(rows).unwrap_or(u32::MAX);
        PerformanceMetrics::new(&self.metrics).update_inference(model.name(), batch_size, inference);
        if let Some(leads) = leads {
            leads.settle(&mut batch, &mut outcomes, (&scores, outputs), inference);
        }
        self.put_back(id, &mut batch, &mut outcomes, again);
        let model = Some(Arc::clone(model));
        let scored = Scored { outcomes, scores, outputs, model, batch_size, started, cache_hit: false };
        self.hand_back(batch, scored, inference);
        if let Some(shadow) = shadow {
            // After the answers, which do not wait for it.
            shadow.run(self.pools.of(seat.thread), seat.scorer);
        }
        Some(Served { model: id, started, rows: u64::from(batch_size) })
    }

    /// Takes the requests at the places `again` out of the batch and puts them back in their queue, each until its
    /// back-off ends. A closed engine takes none back: they end with the outcome that they have.
    fn put_back(&self, id: ModelId, batch: &mut Vec<Entry<Queued>>, outcomes: &mut Outcomes, again: Vec<usize>) {
        if again.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        self.metrics.retries.inc_by(again.len() as u64);
        let now = clock::now();
        let earliest_before = state.next_deadline();
        let lane = &mut state.lanes[id.0 as usize];
        let crew = lane.crew.clone();
        let mut again = again.into_iter().peekable();
        let ended = std::mem::take(batch).into_iter().zip(std::mem::take(outcomes));
        for (place, (mut entry, outcome)) in ended.enumerate() {
            if again.next_if_eq(&place).is_some() {
                entry.item.tries += 1;
                let until = now + back_off(entry.item.tries);
                lane.batcher.put_back(entry, until);
            } else {
                batch.push(entry);
                outcomes.push(outcome);
            }
        }
        // An idle thread must learn when the first back-off ends, and the deadline thread of an earlier deadline.
        crew.as_deref().unwrap_or(&self.work).notify_one();
        if state.next_deadline() != earliest_before {
            self.deadlines.notify_one();
        }
    }

    fn count_ends(&self, batch: &[Entry<Queued>], scored: &Scored) {
        let mut failed = 0;
        for (entry, outcome) in batch.iter().zip(&scored.outcomes) {
            if let Err(reject) = outcome {
                failed += 1;
                // What expired never met its model.
                let asked = || entry.item.ticket.request().work.as_ref().ok().and_then(|work| self.model(work.model));
                let model = scored.model.clone().or_else(asked);
                let name = model.as_ref().map_or("", |model| model.name());
                PerformanceMetrics::new(&self.metrics).record_error(name, reject.code);
            }
        }
        if let Some(model) = &scored.model {
            self.metrics.model(model.name()).scored.inc_by((batch.len() - failed) as u64);
        }
    }

    /// Gives each submitter its own requests, as one batch.
    fn hand_back(&self, batch: Vec<Entry<Queued>>, scored: Scored, inference: std::time::Duration) {
        self.count_ends(&batch, &scored);
        let Scored { outcomes, scores, outputs, model, batch_size, started, cache_hit } = scored;
        let mut shares: Vec<Share> = Vec::new();
        let size = batch.len();
        for (entry, outcome) in batch.into_iter().zip(outcomes) {
            let Queued { ticket, submitter, .. } = entry.item;
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
            let batch =
                ScoredBatch { tickets, outcomes, scores, outputs, model, batch_size, started, inference, cache_hit };
            submitters[submitter.0].completed(batch);
        }
    }
}

/// Whose turn it is to score what.
#[derive(Clone, Copy)]
struct Turn<'a> {
    seat: Seat,
    id: ModelId,
    version: &'a Arc<InService>,
    /// Whose trial counts what is scored.
    counted_by: Option<&'a Candidate>,
    /// What scores the same rows afterwards.
    shadow: Option<&'a Arc<Candidate>>,
    /// Where what is scored is named, if the model is native.
    journal: Option<&'a Journal>,
    /// Whether the batch is a suspect alone.
    suspect: bool,
}

impl<'a> Turn<'a> {
    fn new(seat: Seat, id: ModelId, version: &'a Arc<InService>) -> Self {
        Self { seat, id, version, counted_by: None, shadow: None, journal: None, suspect: false }
    }

    fn counted_by(self, candidate: &'a Candidate) -> Self {
        Self { counted_by: Some(candidate), ..self }
    }

    fn model(&self) -> &'a Arc<LoadedModel> {
        &self.version.model
    }

    fn admitted(&self) -> Option<&'a Arc<Admitted>> {
        self.version.admitted.as_ref()
    }
}

/// Whom to wake: the lanes that got something have threads of their own, or not.
#[derive(Default)]
struct Crews {
    score_threads: bool,
    own: Vec<Arc<Condvar>>,
}

impl Crews {
    fn add(&mut self, lane: &Lane) {
        match &lane.crew {
            None => self.score_threads = true,
            Some(crew) if self.own.iter().any(|known| Arc::ptr_eq(known, crew)) => {}
            Some(crew) => self.own.push(Arc::clone(crew)),
        }
    }

    fn wake(self, score_threads: &Condvar) {
        if self.score_threads {
            score_threads.notify_one();
        }
        for crew in self.own {
            crew.notify_one();
        }
    }
}

/// The journal's names of requests. Those of one partition are mostly neighbours, so its key is asked for once.
#[derive(Default)]
struct Names {
    last: Option<(SubmitterId, PartitionId, Option<PartitionKey>)>,
}

impl Names {
    fn of(&mut self, entry: &Entry<Queued>, submitters: &[Arc<dyn Submitter>]) -> Option<RecordName> {
        let (submitter, position) = (entry.item.submitter, entry.item.ticket.request().position);
        let key = match self.last {
            Some((last, partition, key)) if (last, partition) == (submitter, position.partition) => key,
            _ => submitters[submitter.0].partition_key(position.partition),
        };
        self.last = Some((submitter, position.partition, key));
        key.map(|key| RecordName::new(key, position.offset))
    }
}

/// A batch that a thread was busy with from `started` on, as its batcher wants to know it.
#[derive(Clone, Copy)]
struct Served {
    model: ModelId,
    started: Instant,
    rows: u64,
}

impl Served {
    /// Both parts of one batch, scored one after the other.
    fn both(first: Option<Self>, second: Option<Self>) -> Option<Self> {
        match (first, second) {
            (Some(first), Some(second)) => Some(Self { rows: first.rows + second.rows, ..first }),
            (one, other) => one.or(other),
        }
    }
}

/// A batch's requests of one submitter.
struct Share {
    submitter: SubmitterId,
    tickets: Vec<Ticket>,
    outcomes: Outcomes,
}

/// What a batch came to, before it is split by submitter.
struct Scored {
    outcomes: Outcomes,
    scores: Vec<f64>,
    outputs: usize,
    model: Option<Arc<LoadedModel>>,
    batch_size: u32,
    started: Instant,
    cache_hit: bool,
}

fn queue_full(entry: &Entry<Queued>) -> Reject {
    let level = entry.priority.get();
    Reject::new(ErrorCode::QueueFull, format!("as many requests of priority {level} wait as may; send it again later"))
}

fn deadline_exceeded(entry: &Entry<Queued>, now: Instant) -> Reject {
    let waited = now.saturating_duration_since(entry.arrived);
    Reject::new(ErrorCode::DeadlineExceeded, format!("waited {:.1} ms, past its deadline", waited.as_secs_f64() * 1e3))
}
