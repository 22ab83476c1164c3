//! [`Quantizer`]: features in as the steps before a model leave them, features of fewer bits out, in the model's own
//! units. Pure: numbers in, numbers out.
//!
//! Invariants, feature by feature:
//! 1. What has been quantized is not moved again.
//! 2. A number that is not below another is not below it afterwards.
//! 3. A missing value (NaN) stays missing. A number beyond what the form holds becomes the nearest that it holds, an
//!    infinite one too.
//! 4. Texts, whole numbers of a graph's integer inputs, and what a `categories` step gave are left as they are: of those
//!    another number is another thing.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The form that a model's features are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// As they come.
    #[default]
    Off,
    /// IEEE 754 binary16: 11 significant bits, from -65504 to 65504.
    F16,
    /// 256 levels, evenly from the least to the greatest value that a feature has in the calibration rows.
    U8,
}

impl Quantization {
    /// The form's name in the config and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::F16 => "f16",
            Self::U8 => "u8",
        }
    }
}

/// What a model makes of features that are to be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputForm {
    /// Numbers, that may be rounded.
    Numbers,
    /// It reads no more of them than its thresholds tell apart: rounding could only do harm.
    Native,
    /// It may read some as categories, and does not say which.
    Unknown,
}

/// The greatest number of 16 bits.
const HALF_MAX: f64 = 65_504.0;
/// The exponent of the least normal number of 16 bits.
const HALF_EXPONENT_MIN: u64 = 1023 - 14;
/// A number of 11 significant bits has 42 fewer than an f64.
const BITS_DROPPED: u64 = 42;
/// The last of 256 levels.
const LAST_LEVEL: f64 = 255.0;
/// Added and taken away again, it leaves a number below 2^51 rounded to a whole one, ties to even.
const WHOLE: f64 = 6_755_399_441_055_744.0;

/// Rounds the features of one model.
#[derive(Clone, Debug)]
pub struct Quantizer {
    quantization: Quantization,
    /// By the model's column.
    columns: Vec<Form>,
    calibration: Option<Calibration>,
    digest: [u8; 32],
}

/// The rows that ranges were taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Their file.
    pub path: PathBuf,
    /// The SHA-256 of its bytes, hex.
    pub sha256: String,
    /// How many there are.
    pub rows: u64,
}

/// What becomes of a feature.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Exact,
    Half,
    Levels(Levels),
}

/// 256 numbers, evenly apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Levels {
    min: f64,
    max: f64,
    step: f64,
}

/// The least and the greatest value of a feature; empty at first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureRange {
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Default for FeatureRange {
    fn default() -> Self {
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl FeatureRange {
    /// Takes in a value; a missing one changes nothing.
    pub fn take(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Whether no value was taken in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.min > self.max
    }
}

impl Quantizer {
    /// Rounds the columns for which `rounds` is true to 16 bits.
    #[must_use]
    pub fn half(rounds: &[bool]) -> Self {
        let columns = rounds.iter().map(|&rounds| if rounds { Form::Half } else { Form::Exact });
        Self::new(Quantization::F16, columns.collect(), None)
    }

    /// Rounds each column that has a range to the 256 levels of that. A column of one value, and one whose range f64 cannot
    /// divide so, is left as it is.
    #[must_use]
    pub fn levels(ranges: &[Option<FeatureRange>], calibration: Calibration) -> Self {
        let columns = ranges.iter().map(|range| range.and_then(Levels::new).map_or(Form::Exact, Form::Levels));
        Self::new(Quantization::U8, columns.collect(), Some(calibration))
    }

    fn new(quantization: Quantization, columns: Vec<Form>, calibration: Option<Calibration>) -> Self {
        // Debug's floats read back as the same bits.
        let digest = *blake3::hash(format!("{quantization:?} {columns:?}").as_bytes()).as_bytes();
        Self { quantization, columns, calibration, digest }
    }

    /// The form of what it rounds.
    #[must_use]
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// How many columns it rounds.
    #[must_use]
    pub fn rounded(&self) -> usize {
        self.columns.iter().filter(|form| **form != Form::Exact).count()
    }

    /// Where its ranges come from.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// Stands for all that it does: where it is equal, so are results.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Rounds rows, in the model's order.
    pub fn apply(&self, rows: &mut [f64]) {
        for row in rows.chunks_exact_mut(self.columns.len().max(1)) {
            for (value, form) in row.iter_mut().zip(&self.columns) {
                *value = match form {
                    Form::Exact => *value,
                    Form::Half => half(*value),
                    Form::Levels(levels) => levels.nearest(*value),
                };
            }
        }
    }

    /// How many values of these rows lie beyond what their column's form holds.
    #[must_use]
    pub fn out_of_range(&self, rows: &[f64]) -> usize {
        let beyond = |value: f64, form: &Form| match form {
            Form::Exact => false,
            Form::Half => value.abs() > HALF_MAX,
            Form::Levels(levels) => value < levels.min || value > levels.max,
        };
        let count = |row: &[f64]| row.iter().zip(&self.columns).filter(|(value, form)| beyond(**value, form)).count();
        rows.chunks_exact(self.columns.len().max(1)).map(count).sum()
    }
}

/// The nearest number of 16 bits, ties to even.
#[inline]
fn half(value: f64) -> f64 {
    let bounded = value.clamp(-HALF_MAX, HALF_MAX);
    let exponent = (bounded.to_bits() >> 52 & 0x7ff).max(HALF_EXPONENT_MIN);
    // So large that the sum's last bit is the last one that 16 bits have at this exponent.
    let large = f64::from_bits((exponent + BITS_DROPPED) << 52) * 1.5;
    let rounded = (bounded + large) - large;
    if value.is_nan() { f64::NAN } else { rounded.copysign(value) }
}

impl Levels {
    /// `None` where the levels are not 256 different numbers, each of which is its own nearest.
    fn new(range: FeatureRange) -> Option<Self> {
        // No -0: it would be a key of its own in the cache.
        let (min, max) = (range.min + 0.0, range.max + 0.0);
        let levels = Self { min, max, step: (max - min) / LAST_LEVEL };
        let values = || (0..=255).map(|level| levels.value(f64::from(level)));
        let ascend = values().zip(values().skip(1)).all(|(a, b)| a < b);
        let is_steady = values().all(|value| levels.nearest(value).to_bits() == value.to_bits());
        (ascend && is_steady).then_some(levels)
    }

    /// min + level * step, as `NumPy` would: a product, then a sum.
    #[inline]
    fn value(&self, level: f64) -> f64 {
        if level >= LAST_LEVEL { self.max } else { self.min + level * self.step }
    }

    #[inline]
    fn nearest(&self, value: f64) -> f64 {
        let level = ((value - self.min) / self.step).clamp(0.0, LAST_LEVEL);
        if value.is_nan() { f64::NAN } else { self.value((level + WHOLE) - WHOLE) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn calibration() -> Calibration {
        Calibration { path: PathBuf::new(), sha256: String::new(), rows: 2 }
    }

    fn rounded(quantizer: &Quantizer, value: f64) -> f64 {
        let mut row = [value];
        quantizer.apply(&mut row);
        row[0]
    }

    fn halves() -> Quantizer {
        Quantizer::half(&[true])
    }

    fn levels(min: f64, max: f64) -> Quantizer {
        Quantizer::levels(&[Some(FeatureRange { min, max })], calibration())
    }

    /// Every number of 16 bits that is not negative, by the standard's own words.
    fn all_halves() -> Vec<f64> {
        let number = |bits: u32| match (bits >> 10, f64::from(bits & 1023)) {
            (0, fraction) => fraction * 2_f64.powi(-24),
            (exponent, fraction) => (1024.0 + fraction) * 2_f64.powi(exponent.cast_signed() - 25),
        };
        (0..0x7c00).map(number).collect()
    }

    /// The nearest by looking at its neighbours, the even one of two that are as near.
    fn naive_half(all: &[f64], value: f64) -> f64 {
        if value.is_nan() {
            return value;
        }
        let size = value.abs().min(HALF_MAX);
        let above = all.partition_point(|half| *half < size);
        let below = above.saturating_sub(1);
        // Exact: both differences have few bits.
        let (down, up) = (size - all[below], all[above] - size);
        let nearest = if down < up || (down <= up && below % 2 == 0) { all[below] } else { all[above] };
        nearest.copysign(value)
    }

    fn naive_level(min: f64, max: f64, value: f64) -> f64 {
        let step = (max - min) / 255.0;
        let level = ((value - min) / step).round_ties_even();
        match level {
            _ if value.is_nan() => value,
            _ if level < 0.0 => min,
            _ if level >= 255.0 => max,
            _ => min + level * step,
        }
    }

    fn same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn every_number_of_16_bits_and_what_is_between_two_has_its_nearest() {
        let (all, quantizer) = (all_halves(), halves());
        for (place, pair) in all.windows(2).enumerate() {
            let middle = f64::midpoint(pair[0], pair[1]);
            let even = pair[place % 2];
            let near = [(pair[0], pair[0]), (middle, even), (middle.next_down(), pair[0]), (middle.next_up(), pair[1])];
            for (value, wanted) in near {
                assert!(same(rounded(&quantizer, value), wanted), "{value}");
                assert!(same(rounded(&quantizer, -value), -wanted), "-{value}");
            }
        }
    }

    #[test]
    fn numbers_beyond_16_bits_become_the_last_and_tiny_ones_zero() {
        let quantizer = halves();
        for value in [65_504.0, 65_519.9, 65_520.0, 1e300, f64::INFINITY] {
            assert!(same(rounded(&quantizer, value), HALF_MAX));
            assert!(same(rounded(&quantizer, -value), -HALF_MAX));
        }
        // Half of the least subnormal is a tie, and 0 is even.
        for (value, wanted) in [(2_f64.powi(-25), 0.0), (2_f64.powi(-25).next_up(), 2_f64.powi(-24)), (5e-324, 0.0)] {
            assert!(same(rounded(&quantizer, value), wanted), "{value}");
            assert!(same(rounded(&quantizer, -value), -wanted), "-{value}");
        }
        assert_eq!(quantizer.out_of_range(&[1.0, f64::NAN, 65_504.0, -65_505.0, f64::INFINITY]), 2);
    }

    #[test]
    fn levels_are_clamped_at_their_ends() {
        let quantizer = levels(-1.0, 4.1);
        let step = (4.1 - -1.0) / 255.0;
        let pairs = [(-2.0, -1.0), (-1.0, -1.0), (-0.995, -1.0), (0.005, -1.0 + 50.0 * step), (4.1, 4.1), (5.0, 4.1)];
        for (value, wanted) in pairs.into_iter().chain([(f64::INFINITY, 4.1), (f64::NEG_INFINITY, -1.0)]) {
            assert!(same(rounded(&quantizer, value), wanted), "{value}");
        }
        assert_eq!(quantizer.out_of_range(&[-2.0, -1.0, 4.1, 4.2, f64::NAN]), 2);
    }

    #[test]
    fn what_has_no_256_levels_is_left_as_it_is() {
        let wide = 1e16;
        for (min, max) in [(3.0, 3.0), (wide, wide + 2.0), (-1e308, 1e308), (0.0, 5e-324), (0.0, f64::INFINITY)] {
            let quantizer = levels(min, max);
            assert_eq!(quantizer.rounded(), 0, "{min} {max}");
            assert!(same(rounded(&quantizer, 0.1234), 0.1234));
        }
        let mut row = [0.3, 0.3];
        Quantizer::levels(&[None, Some(FeatureRange { min: 0.0, max: 255.0 })], calibration()).apply(&mut row);
        assert!(same(row[0], 0.3) && same(row[1], 0.0), "{row:?}");
        let mut row = [0.1, 0.1];
        Quantizer::half(&[false, true]).apply(&mut row);
        assert!(same(row[0], 0.1) && same(row[1], 0.099_975_585_937_5), "{row:?}");
    }

    #[test]
    fn ranges_and_columns_are_in_the_digest() {
        let digests = [levels(0.0, 1.0), levels(0.0, 2.0), halves(), Quantizer::half(&[true, false])];
        let digests = digests.map(|quantizer| *quantizer.digest());
        for (place, digest) in digests.iter().enumerate() {
            assert!(!digests[..place].contains(digest));
        }
        assert_eq!(levels(0.0, 1.0).digest(), &digests[0]);
    }

    #[test]
    fn a_range_passes_over_what_is_missing() {
        let mut range = FeatureRange::default();
        range.take(f64::NAN);
        assert!(range.is_empty());
        for value in [2.0, f64::NAN, -1.0] {
            range.take(value);
        }
        assert_eq!(range, FeatureRange { min: -1.0, max: 2.0 });
    }

    /// Numbers of every magnitude and sign, and missing ones.
    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => (-30..20_i32, -1.0..1.0_f64).prop_map(|(exponent, part)| part * 2_f64.powi(exponent)),
            4 => -10.0..10.0_f64,
            1 => any::<f64>(),
            1 => Just(f64::NAN),
        ]
    }

    proptest! {
        #[test]
        fn halves_are_the_nearest_ones(values in prop::collection::vec(number(), 1..200)) {
            let (all, quantizer) = (all_halves(), halves());
            for value in values {
                let (own, wanted) = (rounded(&quantizer, value), naive_half(&all, value));
                prop_assert!(same(own, wanted), "{value}: {own}, wants {wanted}");
            }
        }

        #[test]
        fn levels_are_the_nearest_ones(
            (a, b) in (number(), number()),
            values in prop::collection::vec(number(), 1..50),
        ) {
            let (min, max) = (a.min(b) + 0.0, a.max(b) + 0.0);
            let quantizer = levels(min, max);
            for value in values {
                let wanted = if quantizer.rounded() == 0 { value } else { naive_level(min, max, value) };
                let own = rounded(&quantizer, value);
                prop_assert!(same(own, wanted), "{value} of {min} to {max}: {own}, wants {wanted}");
            }
        }

        #[test]
        fn what_is_rounded_stays_and_keeps_its_order(
            (a, b) in (number(), number()),
            values in prop::collection::vec(number(), 2..50),
        ) {
            for quantizer in [halves(), levels(a.min(b), a.max(b))] {
                let once: Vec<f64> = values.iter().map(|value| rounded(&quantizer, *value)).collect();
                for (value, own) in values.iter().zip(&once) {
                    prop_assert!(same(rounded(&quantizer, *own), *own), "{value} becomes {own}, and that another");
                    prop_assert_eq!(value.is_nan(), own.is_nan());
                }
                for (first, own) in values.iter().zip(&once) {
                    for (second, other) in values.iter().zip(&once) {
                        prop_assert!(first > second || own <= other || own.is_nan() || other.is_nan(), "{first} {second}: {own} {other}");
                    }
                }
            }
        }
    }
}
