//! Open offsets in, one after the other; the length of the map's text out, before there is a map.

use super::text::{MAGIC, OVERHEAD_BYTES};

/// How many characters [`OffsetMap::encode`](super::OffsetMap::encode) writes for the map whose base is its first open
/// offset: kept up while open offsets are added in rising order, O(1) each.
///
/// This is how a transaction finds how far up it may take finished replies:
///
/// ```
/// use forebay::commit::{LIMIT, MapSize};
///
/// let mut size = MapSize::new();
/// let mut taken = Vec::new();
/// for (offset, finished) in [(7, true), (8, false), (9, true), (12, false), (20, true)] {
///     if !finished {
///         size.open(offset);
///     } else if size.chars(offset + 1) <= LIMIT {
///         taken.push(offset);
///     } else {
///         break;
///     }
/// }
/// assert_eq!(taken, [7, 9, 20]);
/// ```
///
/// The length never falls on this way: not when the end grows, and not with open offsets at or above every end that
/// was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapSize {
    /// First and last open offset.
    open: Option<(i64, i64)>,
    open_count: u64,
    /// What the open offsets take as distances.
    distance_bytes: usize,
}

/// How the open offsets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Distances,
    Bitmap,
}

impl MapSize {
    /// No offset is open yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an open offset, above all before it.
    ///
    /// # Panics
    /// When it is not above the last one.
    pub fn open(&mut self, offset: i64) {
        let (first, distance) = match self.open {
            Some((first, last)) => {
                assert!(offset > last, "open offset {offset} is not above {last}");
                (first, offset.abs_diff(last) - 1)
            }
            None => (offset, 0),
        };
        self.open = Some((first, offset));
        self.open_count += 1;
        self.distance_bytes += varint_bytes(distance);
    }

    /// Characters of the map from the first open offset to `end`; 0 when nothing is done above its base.
    ///
    /// # Panics
    /// When `end` is not above the last open offset.
    pub fn chars(&self, end: i64) -> usize {
        let Some((first, last)) = self.open else {
            return 0;
        };
        assert!(end > last, "end {end} is not above the open offset {last}");
        let span = end.abs_diff(first);
        if self.open_count == span {
            return 0;
        }
        let (_, open_bytes) = shorter(self.distance_bytes, last.abs_diff(first));
        let bytes = OVERHEAD_BYTES + varint_bytes(span) + open_bytes;
        MAGIC.len() + (bytes * 4).div_ceil(3)
    }
}

/// The kind that writes open offsets shorter, and its bytes. `last` is the last open offset's distance to the base.
pub(super) fn shorter(distance_bytes: usize, last: u64) -> (Kind, usize) {
    match usize::try_from(last / 8 + 1) {
        Ok(bitmap_bytes) if bitmap_bytes < distance_bytes => (Kind::Bitmap, bitmap_bytes),
        _ => (Kind::Distances, distance_bytes),
    }
}

/// Bytes of a LEB128 number: 1 to 10.
pub(super) fn varint_bytes(number: u64) -> usize {
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}
