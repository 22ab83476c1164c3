//! The questions that a wrong binding would answer wrongly, asked before a model takes traffic: are all scores finite,
//! does a row score the same alone as in a batch, does it score the same in another order, and, where samples with
//! expected outputs are given, are those met.

use serde::Serialize;

use super::made_up::by_kind;
use super::{ModelError, ModelSchema, RowType, Rows, Scorer, Values};

/// How a model may be asked about made-up rows. The default is a model whose own code this process runs: it takes any
/// number and always gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asking {
    /// Rows that are made up for the checks; fewer for a model whose calls are slow.
    pub rows: usize,
    /// Whether it scores rows with missing values.
    pub missing: bool,
    /// Whether it may refuse a row, or give no number for it, and be right: then such rows are left out, and
    /// the first is all zeros.
    pub refuses: bool,
    /// How equal the scores of a row are, alone and in any batch.
    pub repeats: Repeats,
}

impl Default for Asking {
    fn default() -> Self {
        Self { rows: 257, missing: true, refuses: false, repeats: Repeats::Bits }
    }
}

/// How equal the scores of one row are from call to call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repeats {
    /// To the bit.
    Bits,
    /// Within so much of the larger one, or of 1: sums are taken in another order in another batch.
    Within(f64),
}

impl Repeats {
    fn hold(self, a: &[f64], b: &[f64]) -> bool {
        let equal = |(a, b): (&f64, &f64)| match self {
            Self::Bits => a.to_bits() == b.to_bits(),
            Self::Within(share) => a.to_bits() == b.to_bits() || (a - b).abs() <= share * a.abs().max(b.abs()).max(1.0),
        };
        a.len() == b.len() && a.iter().zip(b).all(equal)
    }

    fn alone(self) -> &'static str {
        match self {
            Self::Bits => "batch 1 = batch n, bit for bit",
            Self::Within(_) => "batch 1 = batch n",
        }
    }
}

/// Rows with the outputs that the original library gave for them.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Row-major features.
    pub rows: Vec<f64>,
    /// Their texts, a cell for each text column.
    pub texts: Vec<Option<String>>,
    /// Row-major outputs of the original library.
    pub expected: Vec<f64>,
    /// The largest difference that counts as equal: of an output above 1 the share.
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
    let asking = scorer.asking();
    let mut scorer = Asked { scorer, schema };
    let scorer = &mut scorer;
    let rows = made_up(width, &asking);
    let rows = if asking.refuses { scorer.scored_only(&rows) } else { Ok(rows) };
    let mut checks = Vec::new();
    match rows.and_then(|rows| Ok((scorer.score(&rows)?, rows))) {
        // A model that takes text may know none of the words.
        Err(error) if asking.refuses && schema.kinds.has_text() => {
            checks.push(Check { name: "scores made-up rows", passed: true, detail: format!("none: {error}") });
        }
        Err(error) => checks.push(Check { name: "scores made-up rows", passed: false, detail: error }),
        Ok((batch, rows)) => {
            checks.push(finite(&batch, outputs));
            checks.push(alone(scorer, &rows, &batch, asking.repeats));
            checks.push(permuted(scorer, &rows, &batch, asking.repeats));
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
        checks.push(meets(scorer, sample));
    }
    Ok(Validation { checks })
}

/// A scorer, asked in f64 whatever its own type is.
pub(super) struct Asked<'a> {
    pub(super) scorer: &'a mut dyn Scorer,
    pub(super) schema: &'a ModelSchema,
}

impl Asked<'_> {
    /// Scores made-up numbers, or what they stand for in columns of another kind.
    pub(super) fn score(&mut self, values: &[f64]) -> Result<Vec<f64>, String> {
        let words = if self.schema.kinds.has_text() { self.scorer.words().to_vec() } else { Vec::new() };
        let (values, texts) = by_kind(&self.schema.kinds, values, self.schema.width(), &words);
        self.score_cells(&values, &texts)
    }

    /// Scores a sample's own rows.
    pub(super) fn score_sample(&mut self, sample: &Sample) -> Result<Vec<f64>, String> {
        let texts: Vec<Option<&str>> = sample.texts.iter().map(Option::as_deref).collect();
        self.score_cells(&sample.rows, &texts)
    }

    fn score_cells(&mut self, values: &[f64], texts: &[Option<&str>]) -> Result<Vec<f64>, String> {
        let width = self.schema.width();
        let mut scores = vec![0.0; values.len() / width * self.schema.outputs];
        let narrowed: Vec<f32>;
        let values = match self.schema.row_type {
            RowType::F64 => Values::F64(values),
            RowType::F32 => {
                narrowed = values.iter().map(|&value| narrow(value)).collect();
                Values::F32(&narrowed)
            }
        };
        let scored = self.scorer.score(Rows { values, width, texts }, &mut scores);
        scored.map(|()| scores).map_err(|error| error.to_string())
    }

    /// The rows that it scores with numbers, or why there is none.
    pub(super) fn scored_only(&mut self, rows: &[f64]) -> Result<Vec<f64>, String> {
        let (mut kept, mut first_refusal) = (Vec::with_capacity(rows.len()), None);
        for row in rows.chunks(self.schema.width()) {
            match self.score(row) {
                Ok(scores) if scores.iter().all(|score| score.is_finite()) => kept.extend_from_slice(row),
                Ok(scores) => _ = first_refusal.get_or_insert_with(|| format!("{row:?}: {scores:?}")),
                Err(error) => _ = first_refusal.get_or_insert(error),
            }
        }
        match first_refusal {
            Some(refusal) if kept.is_empty() => Err(refusal),
            _ => Ok(kept),
        }
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

fn alone(scorer: &mut Asked<'_>, rows: &[f64], batch: &[f64], repeats: Repeats) -> Check {
    let name = repeats.alone();
    let (width, outputs) = (scorer.schema.width(), scorer.schema.outputs);
    for (number, (row, expected)) in rows.chunks(width).zip(batch.chunks(outputs)).enumerate() {
        match scorer.score(row) {
            Err(error) => return Check { name, passed: false, detail: format!("row {number}: {error}") },
            Ok(own) if !repeats.hold(&own, expected) => {
                let detail = format!("row {number}: {own:?} alone, {expected:?} in a batch");
                return Check { name, passed: false, detail };
            }
            Ok(_) => {}
        }
    }
    Check { name, passed: true, detail: format!("{} rows", rows.len() / width) }
}

fn permuted(scorer: &mut Asked<'_>, rows: &[f64], batch: &[f64], repeats: Repeats) -> Check {
    let name = "permuted rows, permuted scores";
    let (width, outputs) = (scorer.schema.width(), scorer.schema.outputs);
    let backwards: Vec<f64> = rows.chunks(width).rev().flatten().copied().collect();
    match scorer.score(&backwards) {
        Err(error) => Check { name, passed: false, detail: error },
        Ok(scores) => {
            let pairs = scores.chunks(outputs).rev().zip(batch.chunks(outputs));
            let differs = pairs.into_iter().position(|(a, b)| !repeats.hold(a, b));
            let detail =
                differs.map_or_else(|| format!("{} rows", rows.len() / width), |row| format!("row {row} differs"));
            Check { name, passed: differs.is_none(), detail }
        }
    }
}

pub(super) fn meets(scorer: &mut Asked<'_>, sample: &Sample) -> Check {
    let (width, outputs) = (scorer.schema.width(), scorer.schema.outputs);
    let name = "expected outputs";
    match scorer.score_sample(sample) {
        Err(error) => Check { name, passed: false, detail: error },
        Ok(scores) => {
            // Of the output itself where that is above 1.
            let difference = |(own, expected): (&f64, &f64)| (own - expected).abs() / expected.abs().max(1.0);
            let differences = scores.iter().zip(&sample.expected).map(difference);
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

/// Rows of several magnitudes, with zeros and, where the model takes them, missing values; the same in every run.
pub(super) fn made_up(width: usize, asking: &Asking) -> Vec<f64> {
    let mut random = Random(0x5eed);
    let value = |bits: u64| {
        let signed = signed_unit(bits);
        match bits % 16 {
            0 if asking.missing => f64::NAN,
            1 => 0.0,
            2 => (signed * 20.0).round(),
            3 => signed * 1e3,
            4 => signed * 1e-3,
            _ => signed * 3.0,
        }
    };
    let mut rows: Vec<f64> = (0..asking.rows * width).map(|_| value(random.next())).collect();
    if asking.refuses {
        rows.iter_mut().take(width).for_each(|value| *value = 0.0);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::{FeatureKinds, ModelType, ScoreError};
    use super::*;

    struct Fake(fn(&[f64], usize) -> f64);

    /// One that is asked otherwise, and refuses rows that begin with more than 1.
    struct Choosy(Fake, Asking);

    impl Scorer for Choosy {
        fn asking(&self) -> Asking {
            self.1
        }

        fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
            if rows.as_f64()?.chunks(rows.width).any(|row| row[0] > 1.0) {
                return Err(ScoreError::Failed("above 1".to_owned()));
            }
            self.0.score(rows, scores)
        }
    }

    impl Scorer for Fake {
        fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
            let count = rows.count();
            for (row, score) in rows.as_f64()?.chunks(rows.width).zip(scores) {
                *score = (self.0)(row, count);
            }
            Ok(())
        }
    }

    fn ask(mut model: impl Scorer, sample: Option<&Sample>) -> Result<Validation, ModelError> {
        let feature_names = vec!["a".to_owned(), "b".to_owned()];
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names,
            kinds: FeatureKinds::default(),
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
    fn a_model_is_asked_only_what_it_may_be_asked() {
        let asking = Asking { rows: 17, missing: false, refuses: true, repeats: Repeats::Within(1e-9) };
        let ask = |score, asking| ask(Choosy(Fake(score), asking), None).unwrap();
        let validation = ask(|row, count| row[0] + if count == 1 { 1e-12 } else { 0.0 }, asking);
        assert_eq!(validation.failure(), None);
        let rows: usize = validation.checks[1].detail.strip_suffix(" rows").unwrap().parse().unwrap();
        assert!((2..17).contains(&rows), "{rows} of 17 rows begin with 1 or less");
        let differs = ask(|row, count| row[0] + if count == 1 { 1e-6 } else { 0.0 }, asking);
        assert!(differs.failure().unwrap().starts_with("batch 1 = batch n: row"));
        let bits = ask(
            |row, count| row[0] + if count == 1 { 1e-12 } else { 0.0 },
            Asking { repeats: Repeats::Bits, ..asking },
        );
        assert!(bits.failure().unwrap().contains("bit for bit"));
        // NaN is left out too, but something must be scored.
        let nothing = ask(|_, _| f64::NAN, asking).failure().unwrap();
        assert!(nothing.starts_with("scores made-up rows: [0.0, 0.0]: [NaN]"), "{nothing}");
        let refused = ask(|row, _| row[0], Asking { refuses: false, ..asking }).failure().unwrap();
        assert!(refused.starts_with("scores made-up rows: above 1"), "{refused}");
        assert!(made_up(3, &asking).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn a_sample_is_met_within_its_tolerance_and_never_by_nan() {
        let model = || Fake(|row, _| first(row));
        let check = |expected: f64, tolerance| {
            let sample =
                Sample { rows: vec![2.0, 0.0, 2.0, 0.0], texts: Vec::new(), expected: vec![expected, 2.0], tolerance };
            ask(model(), Some(&sample)).unwrap().passed()
        };
        assert!(check(2.0, 0.0) && check(2.1, 0.2));
        assert!(!check(2.1, 0.01) && !check(f64::NAN, 1.0));
        let sample = Sample { rows: vec![1.0; 3], texts: Vec::new(), expected: vec![1.0], tolerance: 0.0 };
        assert!(ask(model(), Some(&sample)).is_err());
    }
}
