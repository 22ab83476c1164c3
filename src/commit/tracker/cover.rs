//! How much a commit takes, and what it says: both grown offset by offset, from the lowest.

use super::super::offset_map::{MapSize, OffsetMap};

/// How much one commit may still take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    records: usize,
    bytes: usize,
    is_whole: bool,
}

impl Budget {
    /// So many records, and so many bytes of replies. The first reply goes out whatever its size, else it would wait for
    /// ever.
    #[must_use]
    pub fn new(records: usize, bytes: usize) -> Self {
        Self { records, bytes, is_whole: true }
    }

    /// Whether no further record can be taken.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.records == 0
    }

    pub(super) fn allows(&self, bytes: usize) -> bool {
        self.records > 0 && (bytes <= self.bytes || self.is_whole)
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_whole = false;
    }
}

/// What a commit says of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The position, and what is done above it.
    pub map: OffsetMap,
    /// Replies that it covers for the first time.
    pub records: usize,
    /// Characters of the encoded map.
    pub chars: usize,
}

/// What a commit would say, grown upwards offset by offset.
pub(super) struct Cover {
    /// The end of what is done.
    pub(super) end: i64,
    chars_max: usize,
    open: Vec<i64>,
    size: MapSize,
}

impl Cover {
    pub(super) fn new(end: i64, chars_max: usize) -> Self {
        Self { end, chars_max, open: Vec::new(), size: MapSize::new() }
    }

    /// Whether the list still fits when this offset is done. Once it does not, it does for none above.
    pub(super) fn fits(&self, offset: i64) -> bool {
        offset < self.end || self.size.chars(offset + 1) <= self.chars_max
    }

    pub(super) fn done(&mut self, offset: i64) {
        self.end = self.end.max(offset + 1);
    }

    pub(super) fn open(&mut self, offset: i64) {
        self.open.push(offset);
        self.size.open(offset);
    }

    pub(super) fn commit(mut self, records: usize) -> Commit {
        let below = self.open.partition_point(|&open| open < self.end);
        let map = if below == 0 {
            // Nothing open below the end: the position is the first open offset, past any gap.
            OffsetMap::empty(self.open.first().map_or(self.end, |&open| open.max(self.end)))
        } else {
            self.open.truncate(below);
            OffsetMap::new(self.open[0], self.end, self.open)
        };
        Commit { chars: chars_of(&map), map, records }
    }
}

/// Characters of an encoded map.
pub(super) fn chars_of(map: &OffsetMap) -> usize {
    let mut size = MapSize::new();
    map.open().iter().for_each(|&open| size.open(open));
    size.chars(map.end())
}
