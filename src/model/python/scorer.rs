//! [`PythonScorer`]: a place for one process at a time, and its replacement when it fails.
//!
//! - A process that ended is followed by another at once; one that ended before it ever answered, after 100 ms, and twice as
//!   long each time, up to 30 s. So a record that ends its process costs a start and no more, and a model that does
//!   not work at all costs little.
//! - A batch waits for a process that is being started, up to a bound; then it has failed for now.
//! - Who scores rows one by one after a failed batch finds each of them with an answer of its own: a process that ends or
//!   hangs takes only the batch with it that it was given.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::super::validate::Asking;
use super::super::{RowType, Rows, ScoreError, Scorer};
use super::process::{Fault, NotLoaded, Process};
use super::recipe::Recipe;
use super::{Ask, keeper};
use crate::clock;

const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// How long a batch waits for a process to be started in the place of one that ended.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// A start that is further away than this is not waited for.
const DUE_MAX: Duration = Duration::from_secs(5);
/// The system's own part of a start.
const SPAWN_MAX: Duration = Duration::from_secs(10);
pub(super) struct PythonScorer {
    recipe: Arc<Recipe>,
    /// What each process must be asked, and say of itself.
    ask: Arc<Ask>,
    state: State,
    /// Whether there ever was a process that had loaded the model.
    was_ready: bool,
    /// Processes that ended in a row without ever having answered.
    failures: u32,
    last_error: String,
}

enum State {
    Gone,
    /// Ordered, for that time.
    Ordered(Receiver<io::Result<Process>>, Instant),
    /// It runs, and must have loaded the model by then.
    Loading(Box<Process>, Instant),
    Ready(Box<Process>),
}

impl PythonScorer {
    /// With a process that is ready, or one that is ordered now.
    pub(super) fn new(recipe: &Arc<Recipe>, ask: &Arc<Ask>, ready: Option<Process>) -> io::Result<Self> {
        let state = if let Some(process) = ready {
            State::Ready(Box::new(process))
        } else {
            let now = clock::now();
            State::Ordered(keeper::start(recipe, now)?, now)
        };
        let was_ready = matches!(state, State::Ready(_));
        let (recipe, ask) = (Arc::clone(recipe), Arc::clone(ask));
        Ok(Self { recipe, ask, state, was_ready, failures: 0, last_error: String::new() })
    }

    /// Waits for a process that has loaded the model.
    fn make_ready(&mut self) -> Result<(), ScoreError> {
        // The first one may take as long as the model needs; batches wait for it as for any model that is loaded.
        let wait = if self.was_ready { WAIT_MAX } else { WAIT_MAX.max(self.recipe.options.start_timeout) };
        let patience = clock::now() + wait;
        while !matches!(&self.state, State::Ready(process) if process.is_quiet()) {
            match std::mem::replace(&mut self.state, State::Gone) {
                State::Gone => {
                    let now = clock::now();
                    let ordered = keeper::start(&self.recipe, now);
                    let answer = ordered.map_err(|error| ScoreError::Transient(format!("no process: {error}")))?;
                    self.state = State::Ordered(answer, now);
                }
                State::Ordered(answer, due) => self.receive(answer, due)?,
                State::Loading(process, deadline) => self.load(process, deadline, patience)?,
                State::Ready(process) => {
                    self.recipe.stats.crashed();
                    self.replace(Some(process), "its process ended between two batches");
                }
            }
        }
        Ok(())
    }

    /// The process that was ordered.
    fn receive(&mut self, answer: Receiver<io::Result<Process>>, due: Instant) -> Result<(), ScoreError> {
        if due > clock::now() + DUE_MAX {
            self.state = State::Ordered(answer, due);
            let seconds = due.saturating_duration_since(clock::now()).as_secs_f64();
            return Err(self.not_yet(&format!("starts again in {seconds:.0} s")));
        }
        match answer.recv_deadline(due + SPAWN_MAX) {
            Ok(Ok(process)) => {
                let deadline = clock::now() + self.recipe.options.start_timeout;
                self.state = State::Loading(Box::new(process), deadline);
            }
            Ok(Err(error)) => self.replace(None, &format!("cannot start Python: {error}")),
            Err(error) => self.replace(None, &format!("cannot start Python: {error}")),
        }
        Ok(())
    }

    /// The process that loads the model.
    fn load(&mut self, mut process: Box<Process>, deadline: Instant, patience: Instant) -> Result<(), ScoreError> {
        match process.wait_loaded(deadline.min(patience)) {
            Ok(loaded) if self.ask.is_met_by(&loaded) => {
                self.was_ready = true;
                self.state = State::Ready(process);
            }
            Ok(_) => self.replace(Some(process), "it loads the same file with other features or outputs than before"),
            Err(NotLoaded::Late) if patience < deadline => {
                self.state = State::Loading(process, deadline);
                return Err(self.not_yet("loads the model"));
            }
            Err(NotLoaded::Late) => {
                self.recipe.stats.killed();
                self.replace(Some(process), "it does not load the model within `start_timeout`");
            }
            Err(NotLoaded::Refused(reason) | NotLoaded::Failed(reason)) => {
                self.recipe.stats.crashed();
                self.replace(Some(process), &reason);
            }
        }
        Ok(())
    }

    /// Kills the process, if it has not ended, and orders another one.
    fn replace(&mut self, process: Option<Box<Process>>, error: &str) {
        tracing::warn!(model = self.recipe.name, "a Python process is replaced: {error}");
        self.recipe.stats.failed(error);
        error.clone_into(&mut self.last_error);
        if process.as_ref().is_some_and(|process| process.has_answered) {
            self.failures = 0;
        }
        drop(process);
        let due = clock::now() + back_off(self.failures);
        self.failures += 1;
        self.state = keeper::start(&self.recipe, due).map_or(State::Gone, |answer| State::Ordered(answer, due));
    }

    fn not_yet(&self, what: &str) -> ScoreError {
        let (name, error) = (self.recipe.short_name(), &self.last_error);
        let after = if error.is_empty() { String::new() } else { format!(" after: {error}") };
        ScoreError::Transient(format!("model {name}: its Python process {what}{after}"))
    }

    /// What a fault means for the batch, and for the process.
    fn fail(&mut self, fault: Fault) -> ScoreError {
        let name = self.recipe.short_name();
        let stats = &self.recipe.stats;
        let (told, is_transient) = match fault {
            Fault::Said(error) => {
                let error = format!("model {name}: {error}");
                stats.failed(&error);
                return ScoreError::Failed(error);
            }
            Fault::NoMemory => {
                stats.killed();
                let most = self.recipe.options.memory_max;
                (format!("its Python process needs more than `memory_max` ({most} bytes) and is replaced"), true)
            }
            Fault::Late => {
                stats.killed();
                let most = self.recipe.options.batch_timeout;
                (format!("its Python process gave no answer within `batch_timeout` ({most:?}) and is replaced"), false)
            }
            Fault::Ended(how) => {
                stats.crashed();
                (format!("its Python process ended while it scored ({how}) and is replaced"), false)
            }
            Fault::Garbage => {
                stats.killed();
                ("its Python process sent what is no answer and is replaced".to_owned(), false)
            }
        };
        if let State::Ready(process) = std::mem::replace(&mut self.state, State::Gone) {
            self.replace(Some(process), &told);
        }
        let told = format!("model {name}: {told}");
        if is_transient { ScoreError::Transient(told) } else { ScoreError::Failed(told) }
    }
}

impl Scorer for PythonScorer {
    fn asking(&self) -> Asking {
        self.ask.asking
    }

    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let count = rows.count();
        assert_eq!(rows.width, self.ask.features.len(), "rows as wide as the model");
        assert_eq!(scores.len(), count * self.ask.outputs, "a place for each score");
        if count == 0 {
            return Ok(());
        }
        // A model is told only numbers of the type that it was loaded for.
        match self.recipe.options.row_type {
            RowType::F32 => _ = rows.as_f32()?,
            RowType::F64 => _ = rows.as_f64()?,
        }
        let batch_timeout = self.recipe.options.batch_timeout;
        self.make_ready()?;
        let State::Ready(process) = &mut self.state else { return Err(self.not_yet("starts")) };
        let scored = process.score(rows, scores, clock::now() + batch_timeout);
        scored.map_err(|fault| self.fail(fault))?;
        self.failures = 0;
        Ok(())
    }
}

/// How long the next process waits after so many that never answered.
fn back_off(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            BACK_OFF_FIRST.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(BACK_OFF_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_then_the_wait_doubles() {
        let waits: Vec<u128> = (0..12).map(|failures| back_off(failures).as_millis()).collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}
