//! A batch through its model: rows in, and for each request the place of its scores or its rejection out. A failed batch
//! is scored again request by request, so that one bad record takes nobody with it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Queued;
#[cfg(feature = "failpoints")]
use super::failpoints;
use super::matrix::{Form, Matrix, NodePools};
use crate::batch::Entry;
use crate::model::{LoadedModel, ModelSchema, Rows, ScoreError, Scorer};
use crate::record::{ErrorCode, Reject, Texts};

/// For each request of a batch its first row in the scores, or why it has none.
pub(super) type Outcomes = Vec<Result<usize, Reject>>;

pub(super) fn features_of(entry: &Entry<Queued>) -> &[f64] {
    let ticket = &entry.item.ticket;
    ticket.request().work.as_ref().map_or(&[], |work| ticket.chunk.rows(work))
}

pub(super) fn texts_of(entry: &Entry<Queued>) -> Texts<'_> {
    let ticket = &entry.item.ticket;
    ticket.request().work.as_ref().map_or(Texts::NONE, |work| ticket.chunk.texts(work))
}

/// Whether a request's features are as many, and as many of them texts, as a model of this schema takes.
pub(super) fn fits(entry: &Entry<Queued>, schema: &ModelSchema) -> bool {
    let rows = entry.rows as usize;
    features_of(entry).len() == rows * schema.width()
        && texts_of(entry).len() == rows * schema.kinds.text_columns().len()
}

/// Puts the rows of all requests into a matrix for a model of that schema, and gives each its first row there. A request
/// decoded for another width (the model was swapped meanwhile) is refused, and so is one with a value that the model
/// cannot take.
pub(super) fn lay_out<'b>(
    batch: &'b [Entry<Queued>],
    model: &LoadedModel,
    pools: &NodePools,
) -> (Matrix<'b>, Outcomes) {
    let schema = model.schema();
    let mut rows = 0;
    let outcomes = batch.iter().map(|entry| {
        if !fits(entry, schema) {
            let width = schema.width();
            let message = format!("the model was replaced by one of {width} features while this request waited");
            return Err(Reject::new(ErrorCode::ModelError, message));
        }
        rows += entry.rows as usize;
        Ok(rows - entry.rows as usize)
    });
    let mut outcomes: Outcomes = outcomes.collect();
    let mut matrix = Matrix::new(pools, Form::of(model), rows);
    for (entry, outcome) in batch.iter().zip(&mut outcomes) {
        if let Ok(first) = outcome
            && let Err(reject) = matrix.put(*first, features_of(entry), texts_of(entry))
        {
            *outcome = Err(reject);
        }
    }
    (matrix, outcomes)
}

/// Scores a batch. Returns the places of the requests that failed transiently and may be tried again, in order; their
/// outcomes are what they end with if they are not.
pub(super) fn score(
    scorer: &mut dyn Scorer,
    batch: &[Entry<Queued>],
    matrix: &Matrix<'_>,
    outcomes: &mut [Result<usize, Reject>],
    scores: &mut [f64],
) -> Vec<usize> {
    match score_caught(scorer, batch, matrix.rows(0..matrix.count()), scores) {
        Ok(()) => Vec::new(),
        Err(error) => score_one_by_one(scorer, batch, matrix, outcomes, scores, &error),
    }
}

/// A model that panics must not take the score thread with it.
#[cfg_attr(not(feature = "failpoints"), expect(unused_variables, reason = "only fail points look at the requests"))]
pub(super) fn score_caught(
    scorer: &mut dyn Scorer,
    batch: &[Entry<Queued>],
    rows: Rows<'_>,
    scores: &mut [f64],
) -> Result<(), ScoreError> {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        fail::fail_point!("score::batch", |message| Err(ScoreError::Failed(message.unwrap_or_default())));
        #[cfg(feature = "failpoints")]
        failpoints::fail_transiently(batch)?;
        scorer.score_prepared(rows, scores)
    }));
    caught.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(ScoreError::Failed(format!("the model panicked: {message}")))
    })
}

fn score_one_by_one(
    scorer: &mut dyn Scorer,
    batch: &[Entry<Queued>],
    matrix: &Matrix<'_>,
    outcomes: &mut [Result<usize, Reject>],
    scores: &mut [f64],
    batch_error: &ScoreError,
) -> Vec<usize> {
    let outputs = scores.len() / matrix.count().max(1);
    let mut again = Vec::new();
    for (place, outcome) in outcomes.iter_mut().enumerate() {
        let (Ok(first), alone) = (outcome.as_ref(), &batch[place..=place]) else { continue };
        let rows = *first..first + alone[0].rows as usize;
        let own = &mut scores[rows.start * outputs..rows.end * outputs];
        let scored = match batch.len() {
            1 => Err(batch_error.clone()),
            _ => score_caught(scorer, alone, matrix.rows(rows), own),
        };
        if let Err(error) = scored {
            if error.is_transient() && alone[0].item.tries < retries_of(&alone[0]) {
                again.push(place);
            }
            *outcome = Err(failed(&error, alone[0].item.tries));
        }
    }
    again
}

fn retries_of(entry: &Entry<Queued>) -> u8 {
    entry.item.ticket.request().work.as_ref().map_or(0, |work| work.retries)
}

/// The end of a request that failed now, and `tries` times before.
fn failed(error: &ScoreError, tries: u8) -> Reject {
    let message = match tries {
        0 => error.to_string(),
        _ => format!("{error}; tried {} times", u32::from(tries) + 1),
    };
    Reject::new(ErrorCode::ModelError, message)
}

/// A score that is no finite number is an error, never an answer.
pub(super) fn refuse_non_finite(
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
