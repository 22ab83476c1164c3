//! What a model's columns hold: [`FeatureKind`] of each, and [`FeatureKinds`] of all, in which a model of numbers only,
//! the usual one, is told at once.

use std::fmt;

/// Whole numbers up to this are exact in the f64 in which features travel.
const WHOLE_MAX: i64 = 1 << 53;

/// What a column holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// Any finite number.
    #[default]
    Number,
    /// A whole number within bounds, both included.
    Integer {
        /// The least.
        least: i64,
        /// The greatest.
        most: i64,
    },
    /// A string. Its cell among the numbers is NaN.
    Text,
}

impl FeatureKind {
    /// 64-bit integers, as far as features carry them exactly: up to 2^53 either way.
    pub const INT64: Self = Self::Integer { least: -WHOLE_MAX, most: WHOLE_MAX };
    /// 64-bit integers without a sign, up to 2^53.
    pub const UINT64: Self = Self::Integer { least: 0, most: WHOLE_MAX };
    /// 32-bit integers.
    pub const INT32: Self = Self::Integer { least: i32::MIN as i64, most: i32::MAX as i64 };
    /// 32-bit integers without a sign.
    pub const UINT32: Self = Self::Integer { least: 0, most: u32::MAX as i64 };
    /// 16-bit integers.
    pub const INT16: Self = Self::Integer { least: i16::MIN as i64, most: i16::MAX as i64 };
    /// 16-bit integers without a sign.
    pub const UINT16: Self = Self::Integer { least: 0, most: u16::MAX as i64 };
    /// 8-bit integers.
    pub const INT8: Self = Self::Integer { least: i8::MIN as i64, most: i8::MAX as i64 };
    /// 8-bit integers without a sign.
    pub const UINT8: Self = Self::Integer { least: 0, most: u8::MAX as i64 };
    /// Truth values: 0 or 1.
    pub const BOOL: Self = Self::Integer { least: 0, most: 1 };

    /// The kind's name in `forebay model inspect --json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Integer { .. } => "integer",
            Self::Text => "text",
        }
    }
}

/// In the words of an error: what a cell of this kind wants.
impl fmt::Display for FeatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number => f.write_str("a number"),
            Self::Integer { least, most } => write!(f, "a whole number from {least} to {most}"),
            Self::Text => f.write_str("a string"),
        }
    }
}

/// A number that a column of integers does not take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotWhole {
    /// Its row.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// The number.
    pub value: f64,
    /// What the column takes.
    pub kind: FeatureKind,
}

/// The kinds of a model's columns. The default is a model of numbers only, however wide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureKinds {
    /// By column; empty where all are numbers.
    kinds: Vec<FeatureKind>,
    text_columns: Vec<usize>,
    /// Columns, and the least and greatest number of each.
    integers: Vec<(usize, i64, i64)>,
}

impl FeatureKinds {
    /// The kinds of these columns.
    #[must_use]
    pub fn new(kinds: Vec<FeatureKind>) -> Self {
        if kinds.iter().all(|kind| *kind == FeatureKind::Number) {
            return Self::default();
        }
        let (mut text_columns, mut integers) = (Vec::new(), Vec::new());
        for (column, kind) in kinds.iter().enumerate() {
            match *kind {
                FeatureKind::Number => {}
                FeatureKind::Integer { least, most } => integers.push((column, least, most)),
                FeatureKind::Text => text_columns.push(column),
            }
        }
        Self { kinds, text_columns, integers }
    }

    /// A column's kind.
    #[must_use]
    pub fn of(&self, column: usize) -> FeatureKind {
        self.kinds.get(column).copied().unwrap_or_default()
    }

    /// Whether every column takes any number.
    #[must_use]
    pub fn all_numbers(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Whether some column takes text.
    #[must_use]
    pub fn has_text(&self) -> bool {
        !self.text_columns.is_empty()
    }

    /// The columns that take text, in order.
    #[must_use]
    pub fn text_columns(&self) -> &[usize] {
        &self.text_columns
    }

    /// The columns of integers, with the least and the greatest number of each.
    #[must_use]
    pub fn integers(&self) -> &[(usize, i64, i64)] {
        &self.integers
    }

    /// Whether the columns of integers hold such, or missing values, in rows of `width` values.
    ///
    /// # Errors
    /// The first number that is none.
    pub fn check_integers(&self, rows: &[f64], width: usize) -> Result<(), NotWhole> {
        if self.integers.is_empty() {
            return Ok(());
        }
        for (row, values) in rows.chunks_exact(width.max(1)).enumerate() {
            for &(column, least, most) in &self.integers {
                let value = values[column];
                // Both bounds are exact as f64: they are at most 2^53.
                let fits = value.fract() == 0.0 && (least as f64..=most as f64).contains(&value);
                if !fits && !value.is_nan() {
                    return Err(NotWhole { row, column, value, kind: FeatureKind::Integer { least, most } });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_is_the_default_and_told_at_once() {
        assert_eq!(FeatureKinds::new(vec![FeatureKind::Number; 3]), FeatureKinds::default());
        let mixed =
            FeatureKinds::new(vec![FeatureKind::Text, FeatureKind::Number, FeatureKind::BOOL, FeatureKind::Text]);
        assert!(!mixed.all_numbers() && mixed.has_text());
        assert_eq!(mixed.text_columns(), [0, 3]);
        assert_eq!(
            (mixed.of(1), mixed.of(2), mixed.of(9)),
            (FeatureKind::Number, FeatureKind::BOOL, FeatureKind::Number)
        );
    }

    #[test]
    fn integers_are_whole_and_within_their_bounds_or_missing() {
        let kinds = FeatureKinds::new(vec![FeatureKind::Number, FeatureKind::INT64, FeatureKind::UINT8]);
        let check = |row: [f64; 3]| kinds.check_integers(&row, 3).map_err(|bad| bad.column);
        let most = 9_007_199_254_740_992.0;
        for good in [[0.5, most, 255.0], [f64::NAN; 3], [1e300, -most, 0.0], [0.0, -0.0, -0.0]] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        for (bad, column) in
            [([0.5, 0.5, 1.0], 1), ([0.0, most * 2.0, 0.0], 1), ([0.0, 1.0, 256.0], 2), ([0.0, 1.0, -1.0], 2)]
        {
            assert_eq!(check(bad), Err(column), "{bad:?}");
        }
        let bad = kinds.check_integers(&[0.0, 1.0, 2.0, 0.0, 1.0, 2.5], 3).unwrap_err();
        assert_eq!((bad.row, bad.column, bad.kind.to_string()), (1, 2, "a whole number from 0 to 255".to_owned()));
    }
}
