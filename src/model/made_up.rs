//! Made-up numbers in, cells of each column's own kind out: whole numbers within their bounds, and words, half of them of
//! those that the model may know. Missing stays missing.

use std::borrow::Cow;

use super::FeatureKinds;

/// Words that a category may be, or not.
const WORDS: [&str; 6] = ["a", "other", "", "42", "Ä b", "unknown"];

/// Values, and a cell for each text column.
type Cells<'a> = (Cow<'a, [f64]>, Vec<Option<&'a str>>);

/// The cells that numbers stand for, in rows of `width`. Equal numbers make equal cells.
pub(super) fn by_kind<'a>(kinds: &FeatureKinds, values: &'a [f64], width: usize, known: &'a [String]) -> Cells<'a> {
    if kinds.all_numbers() {
        return (Cow::Borrowed(values), Vec::new());
    }
    let (mut values, mut texts) = (values.to_vec(), Vec::new());
    for row in values.chunks_exact_mut(width.max(1)) {
        for &column in kinds.text_columns() {
            let number = std::mem::replace(&mut row[column], f64::NAN);
            texts.push((!number.is_nan()).then(|| word(number, known)));
        }
        for &(column, least, most) in kinds.integers() {
            row[column] = row[column].round().clamp(least as f64, most as f64);
        }
    }
    (Cow::Owned(values), texts)
}

fn word(number: f64, known: &[String]) -> &str {
    let random = (number.to_bits() >> 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    let place = |words: usize| usize::try_from(random >> 1).unwrap_or(0) % words;
    if random.is_multiple_of(2) && !known.is_empty() { &known[place(known.len())] } else { WORDS[place(WORDS.len())] }
}

#[cfg(test)]
mod tests {
    use super::super::FeatureKind;
    use super::*;

    #[test]
    fn each_column_gets_its_kind() {
        let numbers = [1.5, f64::NAN];
        assert!(
            matches!(by_kind(&FeatureKinds::default(), &numbers, 2, &[]), (Cow::Borrowed(_), texts) if texts.is_empty())
        );
        let kinds = FeatureKinds::new(vec![FeatureKind::Text, FeatureKind::UINT8, FeatureKind::Number]);
        let rows = [0.3, -7.4, 0.5, f64::NAN, f64::NAN, 2.0, 0.3, 3e9, 0.0];
        let (values, texts) = by_kind(&kinds, &rows, 3, &[]);
        assert_eq!((values[1], values[2], values[7]), (0.0, 0.5, 255.0));
        assert!([0, 3, 4, 6].iter().all(|&place: &usize| values[place].is_nan()));
        assert_eq!((texts.len(), texts[1], texts[0]), (3, None, texts[2]));
        assert_eq!(kinds.check_integers(&values, 3), Ok(()));
        let known = ["x".to_owned(), "y".to_owned()];
        let words = |known| (0..200).map(move |number| word(f64::from(number) * 0.37, known));
        let found = |known| words(known).collect::<std::collections::HashSet<&str>>().len();
        assert_eq!((found(&[]), found(&known)), (WORDS.len(), WORDS.len() + 2));
    }
}
