//! Text features of a chunk: a cell for each text column of each row in, [`Texts`] of a request's rows out.
//!
//! A cell is a string or missing. The strings of all cells lie in one arena; a cell that is left out of the end again
//! ([`TextArena::truncate`]) leaves no bytes behind.

use std::ops::Range;

use super::Span;

/// Text features of some rows, row-major: a cell for each text column of the model, in the order of its columns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Texts<'a> {
    cells: &'a [Option<Span>],
    bytes: &'a [u8],
}

impl Texts<'static> {
    /// Those of a model without text columns.
    pub const NONE: Self = Self { cells: &[], bytes: &[] };
}

impl<'a> Texts<'a> {
    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there is no cell, as for a model without text columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The cells in their order; `None` is a missing value.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&'a str>> + use<'a> {
        let Self { cells, bytes } = *self;
        cells.iter().map(move |cell| cell.map(|span| str_at(bytes, span)))
    }
}

/// The text cells of all requests of a chunk.
#[derive(Debug, Default)]
pub struct TextArena {
    cells: Vec<Option<Span>>,
    bytes: Vec<u8>,
}

/// Where a [`TextArena`] ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextMark {
    cells: usize,
    bytes: usize,
}

impl TextArena {
    /// The end, to come back to.
    #[must_use]
    pub fn mark(&self) -> TextMark {
        TextMark { cells: self.cells.len(), bytes: self.bytes.len() }
    }

    /// Takes everything away that was pushed since the mark.
    pub fn truncate(&mut self, mark: TextMark) {
        self.cells.truncate(mark.cells);
        self.bytes.truncate(mark.bytes);
    }

    /// Adds a cell.
    ///
    /// # Panics
    /// Panics when the texts pass 4 GiB; the source bounds a chunk far below that.
    pub fn push(&mut self, text: Option<&str>) {
        let small = |n: usize| u32::try_from(n).expect("a chunk's text stays below 4 GiB");
        let cell = text.map(|text| {
            let span = Span { start: small(self.bytes.len()), len: small(text.len()) };
            self.bytes.extend_from_slice(text.as_bytes());
            span
        });
        self.cells.push(cell);
    }

    /// The text of the cell of that number since the mark, if it has one.
    #[must_use]
    pub fn get(&self, mark: TextMark, index: usize) -> Option<&str> {
        self.cells.get(mark.cells + index)?.map(|span| str_at(&self.bytes, span))
    }

    /// Cells since the mark.
    #[must_use]
    pub fn len_since(&self, mark: TextMark) -> usize {
        self.cells.len() - mark.cells
    }

    /// Adds the cell of that number since the mark once more, or a missing one.
    pub fn push_again(&mut self, mark: TextMark, index: Option<u32>) {
        let cell = index.and_then(|index| self.cells[mark.cells + index as usize]);
        self.cells.push(cell);
    }

    /// Takes the first `count` cells since the mark away.
    pub fn remove_first(&mut self, mark: TextMark, count: usize) {
        self.cells.drain(mark.cells..mark.cells + count);
    }

    pub(super) fn range_since(&self, mark: TextMark) -> Range<u32> {
        let small = |n: usize| u32::try_from(n).expect("a chunk holds far fewer cells than 2^32");
        small(mark.cells)..small(self.cells.len())
    }

    pub(super) fn texts(&self, range: &Range<u32>) -> Texts<'_> {
        Texts { cells: &self.cells[range.start as usize..range.end as usize], bytes: &self.bytes }
    }

    /// What is in it, in an arena of just that size; the room stays.
    pub(super) fn take(&mut self) -> Self {
        if self.cells.is_empty() {
            return Self::default();
        }
        let taken = Self { cells: self.cells.as_slice().to_vec(), bytes: self.bytes.as_slice().to_vec() };
        self.truncate(TextMark::default());
        taken
    }
}

fn str_at(bytes: &[u8], span: Span) -> &str {
    let start = span.start as usize;
    std::str::from_utf8(&bytes[start..start + span.len()]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(arena: &TextArena, mark: TextMark) -> Vec<Option<&str>> {
        arena.texts(&arena.range_since(mark)).iter().collect()
    }

    #[test]
    fn cells_keep_their_texts_through_reordering_and_truncation() {
        let mut arena = TextArena::default();
        arena.push(Some("first"));
        let mark = arena.mark();
        for text in [Some("a"), None, Some(""), Some("ä")] {
            arena.push(text);
        }
        assert_eq!(cells(&arena, mark), [Some("a"), None, Some(""), Some("ä")]);
        assert_eq!((arena.get(mark, 3), arena.get(mark, 1), arena.get(mark, 4)), (Some("ä"), None, None));
        for index in [Some(3), None, Some(0), Some(2), None] {
            arena.push_again(mark, index);
        }
        arena.remove_first(mark, 4);
        assert_eq!(cells(&arena, mark), [Some("ä"), None, Some("a"), Some(""), None]);
        let taken = arena.take();
        assert_eq!((taken.cells.len(), arena.cells.len(), arena.bytes.len()), (6, 0, 0));
        let mut taken = taken;
        taken.truncate(mark);
        assert_eq!((cells(&taken, TextMark::default()), taken.bytes.as_slice()), (vec![Some("first")], &b"first"[..]));
    }
}
