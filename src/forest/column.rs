//! Rows in, columns of f32 out, one for each way in which some split reads a feature. All that is particular to a
//! library's missing values, categories and float type is done here, once a row, so that a split is `value <= threshold`
//! (or a look into a set) and nothing more.
//!
//! A missing value becomes -infinity where its splits send it left and NaN where right: `-inf <= t` always holds,
//! `NaN <= t` never does. A row of f64 becomes its rank among the column's thresholds, an integer that f32 holds
//! exactly; so one kernel and one node of 8 bytes serve both float types, and nothing is rounded.

use std::collections::HashMap;
use std::hint::select_unpredictable;

use super::{CategoryRule, Comparison, Float, ForestParts, Missing};

/// A category that no set holds.
pub(super) const NO_CATEGORY: u32 = u32::MAX;
/// A missing category.
pub(super) const MISSING_CATEGORY: u32 = u32::MAX - 1;

/// Places that a column has, one a row.
pub(super) const STRIDE: usize = 8;

/// `LightGBM`'s `kZeroThreshold`, an f32 in the source.
const TINY: f32 = 1e-35;

/// How some splits read a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Column {
    pub(super) feature: u32,
    pub(super) reading: Reading,
}

/// What is made of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reading {
    /// The value, or its rank.
    Number { missing: Missing, default_left: bool },
    /// Only whether it is missing: `x < -inf` holds for none, yet missing values may go left there.
    Presence { missing: Missing, default_left: bool },
    /// Only whether it is this number, by its bits; NaN goes to the default side.
    Equal { bits: u64, default_left: bool },
    /// The bits of a category's number, [`NO_CATEGORY`] or [`MISSING_CATEGORY`].
    Category(CategoryRule),
}

/// How a number becomes the f32 that thresholds are compared with.
#[derive(Clone, Debug, PartialEq)]
enum Scale {
    /// It is one already, or is narrowed as the library does.
    Narrow,
    /// The next f32 that is not below, exact where all thresholds are f32.
    RoundUp,
    /// Its rank among these, ascending, filled up with infinity to a power of two above their number.
    Rank(Vec<f64>),
}

/// The plan by which rows become columns.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    plan: Vec<(Column, Scale)>,
    /// The library compares f32.
    narrows: bool,
    flush_tiny: bool,
}

/// How many columns a forest's splits read in which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// As their rank among the column's thresholds.
    pub ranks: usize,
    /// As floats of 32 bits, which its thresholds are, too: as the library narrows them, or the next that is not below.
    pub singles: usize,
    /// As a category, as whether they are missing, or whether they are one number.
    pub others: usize,
}

/// A value of a row.
pub(super) trait Value: Copy {
    fn to_f32(self) -> f32;
    fn to_f64(self) -> f64;
}

impl Value for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Value for f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the library narrows with the same cast")]
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn to_f64(self) -> f64 {
        self
    }
}

impl Columns {
    /// Number of columns.
    pub(super) fn count(&self) -> usize {
        self.plan.len()
    }

    /// In which forms they are read.
    pub(super) fn reads(&self) -> Reads {
        let mut reads = Reads::default();
        for (column, scale) in &self.plan {
            match (column.reading, scale) {
                (Reading::Number { .. }, Scale::Rank(_)) => reads.ranks += 1,
                (Reading::Number { .. }, Scale::Narrow | Scale::RoundUp) => reads.singles += 1,
                (Reading::Presence { .. } | Reading::Equal { .. } | Reading::Category(_), _) => reads.others += 1,
            }
        }
        reads
    }

    /// Fills `out[column][lane]` from as many rows as there are lanes, or fewer: the last is repeated. The column after
    /// the last is for leaves, which compare it with anything and must go left.
    pub(super) fn prepare<V: Value, const LANES: usize>(&self, rows: &[V], features: usize, out: &mut [[f32; STRIDE]]) {
        let last = rows.len() / features - 1;
        out[self.plan.len()] = [f32::NEG_INFINITY; STRIDE];
        for ((column, scale), out) in self.plan.iter().zip(out) {
            let out = &mut out[..LANES];
            let feature = column.feature as usize;
            let values: [V; LANES] = std::array::from_fn(|lane| rows[lane.min(last) * features + feature]);
            match (column.reading, scale) {
                (Reading::Number { missing: Missing::NaN, default_left }, Scale::Narrow) if !self.flush_tiny => {
                    let stand_in = stand_in(default_left);
                    out.copy_from_slice(&values.map(|value| {
                        let value = value.to_f32();
                        if value.is_nan() { stand_in } else { value }
                    }));
                }
                (Reading::Number { missing, default_left }, scale) => {
                    out.copy_from_slice(&self.numbers(values, (missing, default_left), scale));
                }
                (Reading::Presence { missing, default_left }, _) => {
                    out.copy_from_slice(&values.map(|value| {
                        let default_left = default_left && is_missing(self.read(value), missing);
                        stand_in(default_left)
                    }));
                }
                (Reading::Equal { bits, default_left }, _) => {
                    out.copy_from_slice(&values.map(|value| {
                        let value = self.read(value);
                        stand_in(if value.is_nan() { default_left } else { (value + 0.0).to_bits() == bits })
                    }));
                }
                (Reading::Category(rule), _) => {
                    let category = |value: V| category(self.read(value), rule, self.narrows);
                    out.copy_from_slice(&values.map(|value| f32::from_bits(category(value))));
                }
            }
        }
    }

    /// The row's value as the library sees it.
    #[inline]
    pub(super) fn read<V: Value>(&self, value: V) -> f64 {
        // Narrowing may make a tiny number 0, so it comes first.
        let value = if self.narrows { f64::from(value.to_f32()) } else { value.to_f64() };
        if self.flush_tiny && value.abs() <= f64::from(TINY) { 0.0 } else { value }
    }

    #[inline]
    fn numbers<V: Value, const LANES: usize>(
        &self,
        values: [V; LANES],
        (missing, default_left): (Missing, bool),
        scale: &Scale,
    ) -> [f32; LANES] {
        let read = values.map(|value| self.read(value));
        let present = read.map(|read| if read.is_nan() { 0.0 } else { read });
        let scaled = match scale {
            Scale::Narrow => present.map(Value::to_f32),
            Scale::RoundUp => present.map(round_up),
            Scale::Rank(thresholds) => ranks(thresholds, present).map(|rank| rank as f32),
        };
        let stand_in = stand_in(default_left);
        std::array::from_fn(|lane| if is_missing(read[lane], missing) { stand_in } else { scaled[lane] })
    }
}

fn stand_in(default_left: bool) -> f32 {
    if default_left { f32::NEG_INFINITY } else { f32::NAN }
}

#[inline]
fn is_missing(value: f64, missing: Missing) -> bool {
    match missing {
        Missing::Never => false,
        Missing::Zero => value.is_nan() || value.abs() <= f64::from(TINY),
        Missing::NaN => value.is_nan(),
    }
}

/// How many thresholds are below each value. As many steps for every value and no branches, since which way a step goes
/// is a coin toss; the lanes' searches overlap.
#[inline]
fn ranks<const LANES: usize>(thresholds: &[f64], values: [f64; LANES]) -> [usize; LANES] {
    let mut below = [0; LANES];
    let mut half = thresholds.len() / 2;
    while half > 0 {
        let probes = &thresholds[half - 1..];
        for (below, value) in below.iter_mut().zip(values) {
            *below = select_unpredictable(probes[*below] < value, *below + half, *below);
        }
        half /= 2;
    }
    below
}

#[expect(clippy::cast_possible_truncation, reason = "the cut is what the library does; the guards leave it in range")]
#[expect(clippy::cast_sign_loss, reason = "negative values have been sorted out")]
fn category(value: f64, rule: CategoryRule, narrows: bool) -> u32 {
    let last = if narrows { 16_777_216.0 } else { 4_294_967_295.0 };
    match rule {
        CategoryRule::XGBoost | CategoryRule::Treelite { .. } if value.is_nan() => MISSING_CATEGORY,
        CategoryRule::XGBoost if (0.0..16_777_216.0).contains(&value) => value as u32,
        CategoryRule::LightGBM if value > -1.0 && value < 2_147_483_648.0 => value as u32,
        // No set holds the two numbers that stand for something else here: the check refuses them.
        CategoryRule::Treelite { .. } if (0.0..=last).contains(&value) && value < f64::from(MISSING_CATEGORY) => {
            value as u32
        }
        _ => NO_CATEGORY,
    }
}

/// Gathers columns and thresholds while trees are compiled.
pub(super) struct Planner {
    columns: Vec<Column>,
    index: HashMap<Column, u32>,
    /// Ascending thresholds of each column, for f64 rows alone.
    thresholds: Vec<Vec<f64>>,
    mode: Mode,
    flush_tiny: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// The library compares f32.
    F32,
    /// The library compares f64, and only f32 rows will come.
    F64FromF32,
    /// The library compares f64.
    F64,
}

/// A split of numbers on its way to a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) column: u32,
    /// Compared with `<=`.
    threshold: f64,
}

impl Planner {
    pub(super) fn new(parts: &ForestParts, rows: Float) -> Self {
        let mode = match (parts.row_type, rows) {
            (Float::F32, _) => Mode::F32,
            (Float::F64, Float::F32) => Mode::F64FromF32,
            (Float::F64, Float::F64) => Mode::F64,
        };
        let flush_tiny = parts.flush_tiny;
        Self { columns: Vec::new(), index: HashMap::new(), thresholds: Vec::new(), mode, flush_tiny }
    }

    /// The column of a category split.
    pub(super) fn category(&mut self, feature: u32, rule: CategoryRule) -> u32 {
        // Which side the set is on is the split's matter.
        let rule = match rule {
            CategoryRule::Treelite { .. } => CategoryRule::Treelite { holds_left: true },
            other => other,
        };
        self.column(Column { feature, reading: Reading::Category(rule) })
    }

    /// The column and threshold of a number split.
    pub(super) fn number(
        &mut self,
        feature: u32,
        default_left: bool,
        (threshold, comparison, missing): (f64, Comparison, Missing),
    ) -> Question {
        let default_left = default_left && missing != Missing::Never;
        if comparison == Comparison::Less && threshold == f64::NEG_INFINITY {
            let column = self.column(Column { feature, reading: Reading::Presence { missing, default_left } });
            return Question { column, threshold };
        }
        let column = self.column(Column { feature, reading: Reading::Number { missing, default_left } });
        let threshold = match (self.mode, comparison) {
            (Mode::F32, Comparison::Less) => f64::from(threshold.to_f32().next_down()),
            (Mode::F64FromF32 | Mode::F64, Comparison::Less) => threshold.next_down(),
            (_, Comparison::AtMost) => threshold,
        };
        // -0 and +0 are one threshold.
        let threshold = threshold + 0.0;
        if self.mode == Mode::F64 {
            self.thresholds[column as usize].push(threshold);
        }
        Question { column, threshold }
    }

    /// The column and threshold of an equality split.
    pub(super) fn equal(&mut self, feature: u32, default_left: bool, value: f64) -> Question {
        // -0 and +0 are one number.
        let bits = (value + 0.0).to_bits();
        let column = self.column(Column { feature, reading: Reading::Equal { bits, default_left } });
        Question { column, threshold: f64::NEG_INFINITY }
    }

    fn column(&mut self, column: Column) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "features are at most 2^20, splits below 2^27, readings of one few"
        )]
        let next = self.columns.len() as u32;
        *self.index.entry(column).or_insert_with(|| {
            self.columns.push(column);
            self.thresholds.push(Vec::new());
            next
        })
    }

    /// Closes the plan. Then questions can be put as nodes have them.
    pub(super) fn finish(self) -> Columns {
        let scale = |mut thresholds: Vec<f64>| {
            if self.mode != Mode::F64 {
                return Scale::Narrow;
            }
            thresholds.sort_unstable_by(f64::total_cmp);
            thresholds.dedup();
            #[expect(clippy::float_cmp, reason = "asks whether the conversion loses anything")]
            if thresholds.iter().all(|&threshold| f64::from(threshold.to_f32()) == threshold) {
                return Scale::RoundUp;
            }
            // At least one is left over, so that the highest rank, too, is reached by halving steps.
            let size = (thresholds.len() + 1).next_power_of_two();
            thresholds.resize(size, f64::INFINITY);
            Scale::Rank(thresholds)
        };
        let plan = self.columns.into_iter().zip(self.thresholds.into_iter().map(scale)).collect();
        Columns { plan, narrows: self.mode == Mode::F32, flush_tiny: self.flush_tiny }
    }
}

impl Columns {
    /// The question's threshold among its column's values.
    pub(super) fn threshold(&self, question: Question) -> f32 {
        let threshold = question.threshold;
        match &self.plan[question.column as usize].1 {
            Scale::Narrow | Scale::RoundUp => round_down(threshold),
            Scale::Rank(thresholds) => ranks(thresholds, [threshold])[0] as f32,
        }
    }
}

/// The largest f32 that is not above.
fn round_down(value: f64) -> f32 {
    let narrow = value.to_f32();
    if f64::from(narrow) > value { narrow.next_down() } else { narrow }
}

/// The smallest f32 that is not below.
fn round_up(value: f64) -> f32 {
    let narrow = value.to_f32();
    if f64::from(narrow) < value { narrow.next_up() } else { narrow }
}
