//! The questions that a wrong binding would answer wrongly, asked before a model takes traffic: are all scores finite,
//! does a row score the same alone as in a batch, does it score the same in another order, and, where samples with
//! expected outputs are given, are those met.

use serde::Serialize;

use super::{ModelError, ModelSchema, RowType, Rows, Scorer, Values};

/// Rows that are made up for the checks.
const ROWS: usize = 257;

/// Rows with the outputs that the original library gave for them.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Row-major features.
    pub rows: Vec<f64>,
    /// Row-major outputs of the original library.
    pub expected: Vec<f64>,
    /// The largest difference that counts as equal.
    pub tolerance: f64,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was asked.
    pub name: &'static str,
    /// Whether the answer is as it must be.
    pub passed: bool,
    /// The figures, or the first row that differs.
    pub detail: String,
}

/// The answers of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Validation {
    /// In the order in which they were asked.
    pub checks: Vec<Check>,
}

impl Validation {
    /// Whether every check passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// The first check that failed, in words.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.checks.iter().find(|check| !check.passed).map(|check| format!("{}: {}", check.name, check.detail))
    }
}

/// Asks a model everything, through one of its scorers.
///
/// # Errors
/// [`ModelError::Refused`] when the sample does not fit the model's width.
pub fn validate(
    name: &str,
    schema: &ModelSchema,
    scorer: &mut dyn Scorer,
    sample: Option<&Sample>,
) -> Result<Validation, ModelError> {
    let (width, outputs) = (schema.width(), schema.outputs);
    let mut scorer = Asked { scorer, schema };
    let scorer = &mut scorer;
    let rows = made_up_rows(width);
    let mut checks = Vec::new();
    match scorer.score(&rows) {
        Err(error) => checks.push(Check { name: "scores made-up rows", passed: false, detail: error }),
        Ok(batch) => {
            checks.push(finite(&batch, outputs));
            checks.push(alone(scorer, &rows, &batch, width, outputs));
            checks.push(permuted(scorer, &rows, &batch, width, outputs));
        }
    }
    if let Some(sample) = sample {
        if sample.rows.len() % width != 0 || sample.rows.len() / width * outputs != sample.expected.len() {
            let (values, expected) = (sample.rows.len(), sample.expected.len());
            let reason = format!(
                "a sample of {values} values and {expected} outputs does not fit {width} features and {outputs} outputs a row"
            );
            return Err(ModelError::refused(name, reason));
        }
        checks.push(meets(scorer, sample, width, outputs));
    }
    Ok(Validation { checks })
}

/// A scorer, asked in f64 whatever its own type is.
pub(super) struct Asked<'a> {
    pub(super) scorer: &'a mut dyn Scorer,
    pub(super) schema: &'a ModelSchema,
}

impl Asked<'_> {
    pub(super) fn score(&mut self, values: &[f64]) -> Result<Vec<f64>, String> {
        let width = self.schema.width();
        let mut scores = vec![0.0; values.len() / width * self.schema.outputs];
        let scored = match self.schema.row_type {
            RowType::F64 => self.scorer.score(Rows { values: Values::F64(values), width }, &mut scores),
            RowType::F32 => {
                let values: Vec<f32> = values.iter().map(|&value| narrow(value)).collect();
                self.scorer.score(Rows { values: Values::F32(&values), width }, &mut scores)
            }
        };
        scored.map(|()| scores).map_err(|error| error.to_string())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the nearest f32 is what the model's own library makes of it")]
#[inline]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Numbers that look random, the same in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// `SplitMix64` (Steele, Lea, Flood 2014).
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// From -1 to 1, from the higher bits.
pub(super) fn signed_unit(bits: u64) -> f64 {
    f64::from(i32::try_from(bits >> 33).unwrap_or(0)) / f64::from(1 << 30) - 1.0
}

fn finite(batch: &[f64], outputs: usize) -> Check {
    let bad = batch.iter().position(|score| !score.is_finite());
    let detail = match bad {
        Some(place) => format!("row {}, output {}: {}", place / outputs, place % outputs, batch[place]),
        None => format!("{} rows, {outputs} outputs a row", batch.len() / outputs),
    };
    Check { name: "finite outputs", passed: bad.is_none(), detail }
}

fn alone(scorer: &mut Asked<'_>, rows: &[f64], batch: &[f64], width: usize, outputs: usize) -> Check {
    let name = "batch 1 = batch n, bit for bit";
    for (number, (row, expected)) in rows.chunks(width).zip(batch.chunks(outputs)).enumerate() {
        match scorer.score(row) {
            Err(error) => return Check { name, passed: false, detail: format!("row {number}: {error}") },
            Ok(own) if !same_bits(&own, expected) => {
                let detail = format!("row {number}: {own:?} alone, {expected:?} in a batch");
                return Check { name, passed: false, detail };
            }
            Ok(_) => {}
        }
    }
    Check { name, passed: true, detail: format!("{} rows", rows.len() / width) }
}

fn permuted(scorer: &mut Asked<'_>, rows: &[f64], batch: &[f64], width: usize, outputs: usize) -> Check {
    let name = "permuted rows, permuted scores";
    let backwards: Vec<f64> = rows.chunks(width).rev().flatten().copied().collect();
    match scorer.score(&backwards) {
        Err(error) => Check { name, passed: false, detail: error },
        Ok(scores) => {
            let differs = scores.chunks(outputs).rev().zip(batch.chunks(outputs)).position(|(a, b)| !same_bits(a, b));
            let detail =
                differs.map_or_else(|| format!("{} rows", rows.len() / width), |row| format!("row {row} differs"));
            Check { name, passed: differs.is_none(), detail }
        }
    }
}

fn meets(scorer: &mut Asked<'_>, sample: &Sample, width: usize, outputs: usize) -> Check {
    let name = "expected outputs";
    match scorer.score(&sample.rows) {
        Err(error) => Check { name, passed: false, detail: error },
        Ok(scores) => {
            let differences = scores.iter().zip(&sample.expected).map(|(own, expected)| (own - expected).abs());
            // A NaN difference is the worst there is, and stays so.
            let worst = differences.enumerate().fold((0, 0.0_f64), |worst, (place, difference)| {
                if worst.1.is_nan() || difference <= worst.1 { worst } else { (place, difference) }
            });
            let passed = worst.1 <= sample.tolerance;
            let rows = sample.rows.len() / width;
            let detail = format!("{rows} rows, largest difference {:e} (row {})", worst.1, worst.0 / outputs);
            Check { name, passed, detail }
        }
    }
}

fn same_bits(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Rows of several magnitudes, with zeros and missing values; the same in every run.
pub(super) fn made_up_rows(width: usize) -> Vec<f64> {
    let mut random = Random(0x5eed);
    let value = |bits: u64| {
        let signed = signed_unit(bits);
        match bits % 16 {
            0 => f64::NAN,
            1 => 0.0,
            2 => (signed * 20.0).round(),
            3 => signed * 1e3,
            4 => signed * 1e-3,
            _ => signed * 3.0,
        }
    };
    (0..ROWS * width).map(|_| value(random.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ModelType, ScoreError};
    use super::*;

    struct Fake(fn(&[f64], usize) -> f64);

    impl Scorer for Fake {
        fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
            let count = rows.count();
            for (row, score) in rows.as_f64()?.chunks(rows.width).zip(scores) {
                *score = (self.0)(row, count);
            }
            Ok(())
        }
    }

    fn ask(mut model: Fake, sample: Option<&Sample>) -> Result<Validation, ModelError> {
        let feature_names = vec!["a".to_owned(), "b".to_owned()];
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names,
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        validate("m", &schema, &mut model, sample)
    }

    fn first(row: &[f64]) -> f64 {
        if row[0].is_nan() { -1.0 } else { row[0] }
    }

    #[test]
    fn each_fault_fails_its_own_check() {
        let failure = |model: Fake| ask(model, None).unwrap().failure().unwrap_or_default();
        assert_eq!(failure(Fake(|row, _| first(row))), "");
        assert!(failure(Fake(|row, _| row[0])).starts_with("finite outputs: row"));
        assert!(failure(Fake(|row, count| first(row) + if count == 1 { 0.1 } else { 0.0 })).starts_with("batch 1"));
    }

    #[test]
    fn a_sample_is_met_within_its_tolerance_and_never_by_nan() {
        let model = || Fake(|row, _| first(row));
        let check = |expected: f64, tolerance| {
            let sample = Sample { rows: vec![2.0, 0.0, 2.0, 0.0], expected: vec![expected, 2.0], tolerance };
            ask(model(), Some(&sample)).unwrap().passed()
        };
        assert!(check(2.0, 0.0) && check(2.1, 0.2));
        assert!(!check(2.1, 0.01) && !check(f64::NAN, 1.0));
        let sample = Sample { rows: vec![1.0; 3], expected: vec![1.0], tolerance: 0.0 };
        assert!(ask(model(), Some(&sample)).is_err());
    }
}
