//! How far a model's scores move when its numbers are stored in fewer bits, or its features rounded: the original and the
//! quantized model in; out, the differences on a sample, or on the rows of a calibration, and on made-up rows.

use serde::Serialize;

use super::validate::{Asked, Check, Sample, made_up};
use super::{Model, ModelError};

/// Classes are told apart at this score where a row has one, as probabilities are.
const HALF: f64 = 0.5;

/// The differences on some rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moved {
    /// Rows that both gave numbers for.
    pub rows: usize,
    /// The largest difference of a score.
    pub max: f64,
    /// The mean difference.
    pub mean: f64,
    /// The share of rows whose class changed: the output with the highest score, or the side of 0.5 of a single
    /// score from 0 to 1. `None` where scores are no classes.
    pub classes_changed: Option<f64>,
}

/// How far scores move.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// On the sample, where there is one.
    pub sample: Option<Moved>,
    /// On the rows that ranges were taken from, where they were.
    pub calibration: Option<Moved>,
    /// On made-up rows, as validation asks them.
    pub made_up: Moved,
}

/// Scores the same rows with both: made-up ones, and those of a sample and of a calibration where there are.
///
/// # Errors
/// [`ModelError::Refused`] when one has no scorer, fails on all rows, or takes or gives other things than the other.
pub fn drift(
    name: &str,
    original: &dyn Model,
    quantized: &dyn Model,
    sample: Option<&Sample>,
    calibration: Option<&Sample>,
) -> Result<Drift, ModelError> {
    let (schema, other) = (original.schema(), quantized.schema());
    if (&schema.feature_names, &schema.kinds, schema.outputs) != (&other.feature_names, &other.kinds, other.outputs) {
        return Err(ModelError::refused(name, "quantized, it has other features or outputs"));
    }
    let refuse = |reason: String| ModelError::refused(name, format!("its drift cannot be told: {reason}"));
    let (mut original, mut quantized) = (original.scorer()?, quantized.scorer()?);
    let asking = original.asking();
    let mut original = Asked { scorer: original.as_mut(), schema };
    let mut quantized = Asked { scorer: quantized.as_mut(), schema: other };
    let rows = original.scored_only(&made_up(schema.width(), &asking)).and_then(|rows| quantized.scored_only(&rows));
    let rows = rows.map_err(refuse)?;
    let mut moved = |score: &dyn Fn(&mut Asked<'_>) -> Result<Vec<f64>, String>| {
        let (own, wanted) = (score(&mut quantized).map_err(refuse)?, score(&mut original).map_err(refuse)?);
        Ok(Moved::new(&own, &wanted, schema.outputs))
    };
    let made_up = moved(&|asked| asked.score(&rows))?;
    let mut moved_on =
        |sample: Option<&Sample>| sample.map(|sample| moved(&|asked| asked.score_sample(sample))).transpose();
    Ok(Drift { sample: moved_on(sample)?, calibration: moved_on(calibration)?, made_up })
}

impl Moved {
    fn new(own: &[f64], wanted: &[f64], outputs: usize) -> Self {
        let numbers = |row: &[f64]| row.iter().all(|score| score.is_finite());
        let pairs = own.chunks(outputs).zip(wanted.chunks(outputs));
        let pairs: Vec<_> = pairs.filter(|(own, wanted)| numbers(own) && numbers(wanted)).collect();
        let (mut max, mut sum, mut changed) = (0.0_f64, 0.0, 0);
        for (own, wanted) in &pairs {
            let differences = own.iter().zip(*wanted).map(|(own, wanted)| (own - wanted).abs());
            (max, sum) = differences.fold((max, sum), |(max, sum), difference| (max.max(difference), sum + difference));
            changed += usize::from(class(own) != class(wanted));
        }
        let rows = pairs.len();
        let probabilities = || pairs.iter().all(|(_, wanted)| (0.0..=1.0).contains(&wanted[0]));
        let has_classes = rows > 0 && (outputs > 1 || probabilities());
        Self {
            rows,
            max,
            mean: sum / (rows * outputs).max(1) as f64,
            classes_changed: has_classes.then(|| f64::from(u32::try_from(changed).unwrap_or(u32::MAX)) / rows as f64),
        }
    }

    fn told(&self, of: &str) -> String {
        let Self { rows, max, mean, classes_changed } = self;
        let classes = classes_changed.map(|share| format!(", {:.2} % of classes changed", share * 1e2));
        format!("{rows} {of} rows: max {max:.3e}, mean {mean:.3e}{}", classes.unwrap_or_default())
    }
}

/// The class that the scores of a row name.
fn class(scores: &[f64]) -> usize {
    match scores {
        [score] => usize::from(*score > HALF),
        _ => (1..scores.len()).fold(0, |best, place| if scores[place] > scores[best] { place } else { best }),
    }
}

impl Drift {
    /// As `forebay model validate` prints it, under that name. It passes whatever it says: how far is too far is the
    /// reader's to judge.
    #[must_use]
    pub fn check(&self, name: &'static str) -> Check {
        let parts = [(self.sample.as_ref(), "sample"), (self.calibration.as_ref(), "calibration")];
        let parts = parts.into_iter().chain([(Some(&self.made_up), "made-up")]);
        let parts: Vec<String> = parts.filter_map(|(moved, of)| moved.map(|moved| moved.told(of))).collect();
        Check { name, passed: true, detail: parts.join("; ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_measured_where_both_are_numbers() {
        let moved = Moved::new(&[0.5, 0.5, f64::NAN, 1.0, 0.25, 0.75], &[0.75, 0.25, 0.0, 1.0, 0.25, 0.75], 2);
        assert_eq!((moved.rows, moved.max, moved.mean), (2, 0.25, 0.125));
        assert_eq!(moved.classes_changed, Some(0.0), "the first of two equal scores is the class");
        let moved = Moved::new(&[0.4, 0.6, 0.9, 0.1], &[0.6, 0.4, 0.9, 0.1], 2);
        assert_eq!(moved.classes_changed, Some(0.5));
    }

    #[test]
    fn a_single_score_is_a_class_where_it_looks_like_a_probability() {
        assert_eq!(Moved::new(&[0.4, 0.7], &[0.6, 0.8], 1).classes_changed, Some(0.5));
        assert_eq!(Moved::new(&[-0.4, 7.0], &[0.6, 8.0], 1).classes_changed, None);
        assert_eq!(Moved::new(&[f64::NAN], &[0.1], 1), Moved::default());
        let (sample, made_up) = (Some(Moved::new(&[0.4], &[0.6], 1)), Moved::new(&[7.0], &[8.5], 1));
        let drift = Drift { sample, calibration: None, made_up };
        assert_eq!(
            drift.check("moved").detail,
            "1 sample rows: max 2.000e-1, mean 2.000e-1, 100.00 % of classes changed; 1 made-up rows: max 1.500e0, mean 1.500e0"
        );
    }
}
