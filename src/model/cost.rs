//! What scoring a row costs: a scorer and its schema in, nanoseconds out, timed on made-up rows.

use std::time::Duration;

use super::made_up::by_kind;
use super::validate::{made_up, narrow};
use super::{ModelSchema, RowType, Rows, ScoreError, Scorer, Values};
use crate::clock;

/// The best of so many passes counts, or of those that fit into this time.
const PASSES: usize = 5;
const LONG_ENOUGH: Duration = Duration::from_millis(200);
/// Calls a pass: enough to be timed, few enough for a slow model.
const CALLS_MAX: usize = 64;

/// Nanoseconds a row, where `batch` rows are scored at a time.
pub(super) fn nanos_a_row(schema: &ModelSchema, scorer: &mut dyn Scorer, batch: usize) -> Result<f64, ScoreError> {
    let width = schema.width();
    let rows = made_up(width, &scorer.asking());
    // The first row is one that any model takes; a model that may be asked about few rows scores them several times over.
    let rows = if scorer.asking().refuses { rows[..width].to_vec() } else { rows };
    let rows = rows.repeat((batch * width).div_ceil(rows.len()));
    let words = scorer.words().to_vec();
    let (rows, texts) = by_kind(&schema.kinds, &rows, width, &words);
    let text_width = schema.kinds.text_columns().len();
    let narrowed: Vec<f32> = rows.iter().map(|&value| narrow(value)).collect();
    let places = |call: usize, width: usize| call * batch * width..(call + 1) * batch * width;
    let calls = (rows.len() / width / batch).clamp(1, CALLS_MAX);
    let mut scores = vec![0.0; batch * schema.outputs];
    let (start, mut best) = (clock::now(), f64::INFINITY);
    for _ in 0..PASSES {
        let from = clock::now();
        for call in 0..calls {
            let values = match schema.row_type {
                RowType::F64 => Values::F64(&rows[places(call, width)]),
                RowType::F32 => Values::F32(&narrowed[places(call, width)]),
            };
            let texts = &texts[places(call, text_width)];
            scorer.score(Rows { values, width, texts }, &mut scores)?;
        }
        let now = clock::now();
        best = best.min((now - from).as_secs_f64() * 1e9 / (calls * batch) as f64);
        if now - start > LONG_ENOUGH {
            break;
        }
    }
    Ok(best)
}
