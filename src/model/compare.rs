//! One file through both backends: the compiled forest's model and a sample's rows in; out, whether the library that
//! the model was trained with gives the same scores, on the sample and on made-up rows.
//!
//! Made-up rows hold what decides: values on the model's own thresholds and one step beside them, NaN, both zeros,
//! subnormals, the largest values, infinities where the library takes them, categories in and out of range.

use super::validate::{Asked, Check, Random, narrow, signed_unit};
use super::{LoadOptions, Model, ModelBytes, ModelError, ModelType, RowType, compiled, load};
use crate::forest::{Body, Test, read};

const NAME: &str = "compiled = reference";
/// Margins are equal to the bit; the link is the same formula from another build of the same functions.
const ULPS_MAX: u64 = 2;
/// Made-up rows, and the most values in all of them together.
const ROWS: usize = 1024;
const ROWS_MIN: usize = 16;
const VALUES_MAX: usize = 4 << 20;
/// Values of a row that a message shows.
const SHOWN: usize = 64;

/// What no training set is likely to hold. The last of each list lie around LightGBM's zero threshold, 1e-35f.
const EDGES_F32: [f64; 12] = [f64::NAN, 0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38, 1e-35, -1e-35, 1.1e-35];
const EDGES_F64: [f64; 16] = [
    f64::NAN,
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    2.2e-308,
    1e300,
    -1e300,
    f64::INFINITY,
    f64::NEG_INFINITY,
    3.402_823_567_797_336_6e38,
    1e-35,
    -1e-35,
    1.000_000_018_002_509_5e-35,
    1.000_000_018_002_510_2e-35,
    1.1e-35,
];
/// Around the ends of bit sets, of f32's whole numbers and of the integers that libraries convert to.
const CATEGORIES: [f64; 18] = [
    -1.0,
    -0.5,
    0.99,
    2.7,
    31.0,
    32.0,
    63.0,
    64.0,
    255.0,
    1e6,
    16_777_215.0,
    16_777_216.0,
    16_777_217.0,
    2_147_483_647.0,
    2_147_483_648.0,
    4_294_967_296.0,
    1e12,
    -1e12,
];

/// Asks both backends and compares. A model that its own library does not score here has nothing to be compared with:
/// the answer says so, and counts as passed.
///
/// `sample` is row-major, in the model's width.
#[must_use]
pub fn compare(file: &ModelBytes, model: &dyn Model, sample: &[f64]) -> Check {
    let schema = model.schema();
    if read::format_of(&file.bytes) == Some(read::Format::Saved) {
        return not_compared("the file holds the compiled form only");
    }
    let library = match load::load_library(file, schema.model_type, &LoadOptions::default()) {
        Ok(library) => library,
        Err(ModelError::Refused { reason, .. }) => return not_compared(&reason),
        Err(error) => return not_compared(&error.to_string()),
    };
    let known = library.schema();
    if known.feature_names != schema.feature_names || known.outputs != schema.outputs {
        let (width, outputs) = (known.width(), known.outputs);
        let detail = format!(
            "{} features and {} outputs compiled, {width} and {outputs} by its library, or other names",
            schema.width(),
            schema.outputs
        );
        return Check { name: NAME, passed: false, detail };
    }
    let mut rows = Compared::new(sample, schema.width(), schema.row_type);
    rows.make_up(&thresholds(file, model));
    let score = |model: &dyn Model| {
        let mut scorer = model.scorer().map_err(|error| error.to_string())?;
        Asked { scorer: scorer.as_mut(), schema }.score(&rows.values)
    };
    match (score(model), score(library.as_ref())) {
        (Err(error), _) => Check { name: NAME, passed: false, detail: error },
        (Ok(_), Err(error)) => not_compared(&error),
        (Ok(own), Ok(wanted)) => {
            // ONNX's operators give f32 for rows of f64, too.
            let is_narrow = |&score: &f64| score.is_nan() || f64::from(narrow(score)).to_bits() == score.to_bits();
            if schema.model_type == ModelType::Onnx && wanted.iter().all(is_narrow) {
                rows.result_type = RowType::F32;
            }
            rows.judge(&own, &wanted, schema.outputs, schema.model_type.as_str())
        }
    }
}

/// Whether a compiled form scores as the model that it was made from, to the bit, on made-up rows.
#[must_use]
pub fn same_bits(file: &ModelBytes, original: &dyn Model, compiled: &dyn Model) -> Check {
    let name = "compiled = original, bit for bit";
    let schema = original.schema();
    if schema.feature_names != compiled.schema().feature_names || schema.outputs != compiled.schema().outputs {
        return Check { name, passed: false, detail: "other features or outputs".to_owned() };
    }
    let mut rows = Compared::new(&[], schema.width(), schema.row_type);
    rows.make_up(&thresholds(file, original));
    let score = |model: &dyn Model| {
        let mut scorer = model.scorer().map_err(|error| error.to_string())?;
        Asked { scorer: scorer.as_mut(), schema }.score(&rows.values)
    };
    let differs = match (score(original), score(compiled)) {
        (Ok(wanted), Ok(own)) => wanted.iter().zip(&own).position(|(a, b)| a.to_bits() != b.to_bits()),
        (Err(error), _) | (_, Err(error)) => return Check { name, passed: false, detail: error },
    };
    let count = rows.values.len() / schema.width();
    let detail = differs.map_or_else(|| format!("{count} rows"), |at| format!("row {} differs", at / schema.outputs));
    Check { name, passed: differs.is_none(), detail }
}

fn not_compared(reason: &str) -> Check {
    Check { name: NAME, passed: true, detail: format!("not compared: {reason}") }
}

/// Each feature's thresholds.
fn thresholds(file: &ModelBytes, model: &dyn Model) -> Vec<Vec<f64>> {
    let mut thresholds = vec![Vec::new(); model.schema().width()];
    let format = read::format_of(&file.bytes).or_else(|| compiled::format(model.schema().model_type));
    let read = format.and_then(|format| read::read(format, &file.bytes).ok());
    if let Some(Body::Trees(trees)) = read.as_ref().map(|read| &read.forest.parts().body) {
        for split in trees.iter().flat_map(|tree| &tree.splits) {
            if let Test::Number { threshold: value, .. } | Test::Equal { value } = split.test {
                thresholds[split.feature as usize].push(value);
            }
        }
    }
    thresholds
}

/// The rows that both score: the sample's, then made-up ones.
struct Compared {
    values: Vec<f64>,
    width: usize,
    row_type: RowType,
    /// The float type of scores.
    result_type: RowType,
    /// Rows of the sample, and how many of it are left out.
    sample: usize,
    left_out: usize,
}

impl Compared {
    fn new(sample: &[f64], width: usize, row_type: RowType) -> Self {
        let mut rows = Self { values: Vec::new(), width, row_type, result_type: row_type, sample: 0, left_out: 0 };
        for row in sample.chunks_exact(width) {
            // XGBoost refuses a batch that holds an infinity.
            if row_type == RowType::F32 && row.iter().any(|&value| narrow(value).is_infinite()) {
                rows.left_out += 1;
            } else {
                rows.sample += 1;
                rows.values.extend_from_slice(row);
            }
        }
        rows
    }

    fn make_up(&mut self, thresholds: &[Vec<f64>]) {
        let count = (VALUES_MAX / self.width).clamp(ROWS_MIN, ROWS);
        let mut random = Random(0xc0de);
        for _ in 0..count {
            for thresholds in thresholds {
                let value = made_up(&mut random, thresholds, self.row_type);
                self.values.push(value);
            }
        }
    }

    fn judge(&self, own: &[f64], wanted: &[f64], outputs: usize, library: &str) -> Check {
        let mut worst = 0;
        for (row, (own, wanted)) in own.chunks(outputs).zip(wanted.chunks(outputs)).enumerate() {
            for (&own_score, &wanted_score) in own.iter().zip(wanted) {
                let apart = ulps_apart(own_score, wanted_score, self.result_type);
                if apart > ULPS_MAX {
                    let detail = format!("{}: compiled {own:?}, {library} {wanted:?}", self.shown(row));
                    return Check { name: NAME, passed: false, detail };
                }
                worst = worst.max(apart);
            }
        }
        let (rows, sample, left_out) = (self.values.len() / self.width, self.sample, self.left_out);
        let left_out = if left_out > 0 { format!(", {left_out} with infinities left out") } else { String::new() };
        let detail = format!("{rows} rows, {sample} of the sample{left_out}; at most {worst} ulp apart");
        Check { name: NAME, passed: true, detail }
    }

    fn shown(&self, row: usize) -> String {
        let values = &self.values[row * self.width..][..self.width];
        let (shown, more) = (&values[..values.len().min(SHOWN)], if values.len() > SHOWN { ", …" } else { "" });
        let place = row.checked_sub(self.sample);
        let place =
            place.map_or_else(|| format!("row {row} of the sample"), |made_up| format!("made-up row {made_up}"));
        format!("{place} ({shown:?}{more})")
    }
}

fn made_up(random: &mut Random, thresholds: &[f64], row_type: RowType) -> f64 {
    let (kind, bits) = (random.next() % 16, random.next());
    let edges = if row_type == RowType::F32 { &EDGES_F32[..] } else { &EDGES_F64[..] };
    match kind {
        0..=5 => pick(thresholds, bits).map_or(signed_unit(bits) * 3.0, |on| beside(on, random.next(), row_type)),
        6 => pick(edges, bits).unwrap_or(0.0),
        7 => pick(&CATEGORIES, bits).unwrap_or(0.0),
        8 => f64::NAN,
        9 => f64::from(u8::try_from(bits >> 56).unwrap_or(0)),
        10 => (signed_unit(bits) * 20.0).round(),
        _ => signed_unit(bits) * 3.0,
    }
}

fn pick(list: &[f64], bits: u64) -> Option<f64> {
    let place = usize::try_from(bits >> 32).ok()?.checked_rem(list.len())?;
    Some(list[place])
}

/// The threshold, or the next number below or above it; never an infinity for XGBoost.
fn beside(threshold: f64, bits: u64, row_type: RowType) -> f64 {
    let single = narrow(threshold);
    match (row_type, bits % 3) {
        (RowType::F32, _) if single.abs() >= f32::MAX => f64::from(single.clamp(f32::MIN, f32::MAX)),
        (RowType::F32, 0) => f64::from(single.next_down()),
        (RowType::F32, 1) => f64::from(single.next_up()),
        (RowType::F64, 0) => threshold.next_down(),
        (RowType::F64, 1) => threshold.next_up(),
        _ => threshold,
    }
}

/// How many steps of the library's own float type lie between two scores. NaN of any kind is one.
fn ulps_apart(a: f64, b: f64, row_type: RowType) -> u64 {
    if a.is_nan() || b.is_nan() {
        return if a.is_nan() && b.is_nan() { 0 } else { u64::MAX };
    }
    match row_type {
        RowType::F32 => {
            let ordered = |x: f32| sign_magnitude(i64::from(x.abs().to_bits()), x.is_sign_negative());
            ordered(narrow(a)).abs_diff(ordered(narrow(b)))
        }
        RowType::F64 => {
            let ordered = |x: f64| sign_magnitude(x.abs().to_bits().cast_signed(), x.is_sign_negative());
            ordered(a).abs_diff(ordered(b))
        }
    }
}

fn sign_magnitude(magnitude: i64, negative: bool) -> i64 {
    if negative { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_in_the_librarys_own_type() {
        let next = f64::from(1.0_f32.next_up());
        assert_eq!(ulps_apart(1.0, next, RowType::F32), 1);
        assert!(ulps_apart(1.0, next, RowType::F64) > ULPS_MAX);
        assert_eq!(ulps_apart(1.0, 1.0_f64.next_down().next_down(), RowType::F64), 2);
        assert_eq!(ulps_apart(-0.0, 0.0, RowType::F64), 0);
        assert_eq!(ulps_apart(-5e-324, 5e-324, RowType::F64), 2);
        assert_eq!(ulps_apart(f64::NAN, f64::NAN, RowType::F32), 0);
        assert_eq!(ulps_apart(f64::NAN, 0.0, RowType::F32), u64::MAX);
        assert!(ulps_apart(f64::INFINITY, f64::NEG_INFINITY, RowType::F32) > ULPS_MAX);
    }

    #[test]
    fn a_difference_names_its_row_and_both_scores() {
        let mut rows = Compared::new(&[1.0, 2.0, 1e300, 0.0], 2, RowType::F32);
        rows.make_up(&[vec![0.5], vec![f64::from(f32::MAX)]]);
        assert_eq!((rows.sample, rows.left_out), (1, 1));
        assert!(rows.values.iter().all(|&value| !narrow(value).is_infinite()), "XGBoost takes no infinity");
        let wanted = vec![0.25; rows.values.len() / 2];
        let mut own = wanted.clone();
        let fine = rows.judge(&own, &wanted, 1, "xgboost");
        assert!(
            fine.passed && fine.detail == "1025 rows, 1 of the sample, 1 with infinities left out; at most 0 ulp apart",
            "{fine:?}"
        );
        own[0] = 0.5;
        let first = rows.judge(&own, &wanted, 1, "xgboost");
        assert_eq!(first.detail, "row 0 of the sample ([1.0, 2.0]): compiled [0.5], xgboost [0.25]");
        own[0] = 0.25;
        own[7] = f64::NAN;
        let seventh = rows.judge(&own, &wanted, 1, "xgboost");
        assert!(!seventh.passed && seventh.detail.starts_with("made-up row 6 (["), "{seventh:?}");
    }

    #[cfg(feature = "lightgbm")]
    #[test]
    fn the_shipped_model_scores_the_same_on_both() {
        let path = std::path::Path::new("tests/data/higgs/higgs.model.txt");
        let file = ModelBytes::read(path, None).unwrap();
        let model = load::load(&file, &super::super::LoadOptions::default()).unwrap();
        let check = compare(&file, model.as_ref(), &[0.5; 28]);
        assert!(check.passed && check.detail.starts_with("1025 rows, 1 of the sample; at most 0 ulp"), "{check:?}");
    }
}
