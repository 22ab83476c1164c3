//! Ordered rows in, and whether each column holds what it takes: numbers, whole numbers or strings. The strings' cells are
//! put in the order of the rows, one for each text column.
//!
//! While a record is read, a string is known by its number among those of the record, and the number stands in the low
//! half of a NaN in its place among the values: whatever moves values moves strings with them.

use crate::model::{FeatureKind, FeatureKinds};
use crate::record::{TextArena, TextMark};

use super::message::quoted;

/// The upper half of a NaN that no JSON makes.
const TEXT: u64 = 0x7ff8_7e47;

/// What stands among the values for a string of this number.
pub(super) fn text_cell(number: usize) -> f64 {
    // A record's bytes bound its strings far below 2^32.
    f64::from_bits(TEXT << 32 | number as u64)
}

/// The number of the string that a value stands for.
pub(super) fn text_number(value: f64) -> Option<u32> {
    let bits = value.to_bits();
    if bits >> 32 == TEXT { u32::try_from(bits & u64::from(u32::MAX)).ok() } else { None }
}

/// A value that its column does not take.
pub(super) struct Misfit {
    pub(super) row: usize,
    pub(super) column: usize,
    got: String,
    wants: FeatureKind,
}

impl Misfit {
    /// The message, for a value at this place.
    pub(super) fn message(&self, place: &str) -> String {
        format!("{place}: got {}, wants {} or null", self.got, self.wants)
    }
}

/// Checks rows of `width` values against their columns' kinds. After a good check the cells of `texts` since the mark are
/// those of the text columns, row by row, and their places among the values are NaN.
pub(super) fn settle(
    kinds: &FeatureKinds,
    values: &mut [f64],
    width: usize,
    texts: &mut TextArena,
    mark: TextMark,
) -> Result<(), Misfit> {
    let (read, mut taken) = (texts.len_since(mark), 0);
    for (row, columns) in values.chunks_exact_mut(width.max(1)).enumerate() {
        for &column in kinds.text_columns() {
            let value = std::mem::replace(&mut columns[column], f64::NAN);
            let number = text_number(value);
            if number.is_none() && !value.is_nan() {
                return Err(Misfit { row, column, got: value.to_string(), wants: FeatureKind::Text });
            }
            taken += usize::from(number.is_some());
            texts.push_again(mark, number);
        }
    }
    if taken < read {
        return Err(stray(kinds, values, width, texts, mark));
    }
    kinds.check_integers(values, width).map_err(|bad| {
        let (row, column, got, wants) = (bad.row, bad.column, bad.value.to_string(), bad.kind);
        Misfit { row, column, got, wants }
    })?;
    texts.remove_first(mark, read);
    Ok(())
}

/// The first string that stands in no text column.
#[cold]
fn stray(kinds: &FeatureKinds, values: &[f64], width: usize, texts: &TextArena, mark: TextMark) -> Misfit {
    let mut numbers = values.iter().enumerate().filter_map(|(place, value)| Some((place, text_number(*value)?)));
    let (place, number) = numbers.next().expect("a string that no text column took is still there");
    let (row, column) = (place / width, place % width);
    let got = quoted(texts.get(mark, number as usize).unwrap_or_default());
    Misfit { row, column, got, wants: kinds.of(column) }
}
