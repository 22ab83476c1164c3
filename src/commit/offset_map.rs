//! The offsets of a partition that are done beyond the committed one in, the commit's metadata text out; and back.
//!
//! A committed offset says "everything below is done". What is done above it travels beside it, in the metadata string
//! of the same offset commit, as Confluent's Parallel Consumer does it. [`OffsetMap`] is the set, [`OffsetMap::encode`]
//! and [`OffsetMap::read`] its text, [`MapSize`] the length of that text before it is written.
//!
//! ```text
//! "fbm1:" base64( kind u8 │ base i64 │ span varint │ open offsets │ CRC32C u32 )
//! ```
//!
//! - `fbm`, the version in decimal digits and a colon are clear text, so that a damaged map is told from foreign
//!   metadata and a later version from both. Base64 has the standard alphabet without padding (RFC 4648, section 4).
//! - Numbers are little-endian, varints LEB128. `span` is `end - base`, above 0.
//! - Kind 0: each open offset's distance to the one before it less one, as a varint; the first's distance to `base`.
//!   Kind 1: bit `offset - base` set where open, lowest bit first, up to the last byte that is not 0. The shorter kind
//!   is written, kind 0 when both are as long.
//! - The CRC covers the topic, a zero byte, the partition's number (i32) and all before it in the brackets. It stands
//!   last, so that the whole is a code word: a change within 32 bits in a row is always found.
//!
//! At most [`LIMIT`] characters are stored. That holds 3,052 open offsets that are at most 128 apart, wherever they
//! lie (1,526 at most 16,384 apart), or any number of them within 24,416 offsets.
//!
//! Invariants:
//! 1. A map has one text, and a text of ours one map: what differs in a bit from what `encode` writes is not ours.
//! 2. Closing an offset never lengthens a text that is not empty; nor does it when the base then moves up to the next
//!    open one.
//! 3. Reading is total: any bytes have a [`Reading`], and it takes at most 50 bytes of memory for a byte of ours, and
//!    24 MiB for a map of Parallel Consumer's.

mod parallel_consumer;
mod size;
mod text;

pub use size::MapSize;

/// How many characters of metadata a broker stores with an offset: its default `offset.metadata.max.bytes`, which
/// counts characters. A broker may be set to fewer.
pub const LIMIT: usize = 4096;

/// Which offsets of a partition are done beyond the committed one: everything in `base..end` except the open ones.
///
/// Two maps that say the same may differ: in an `end` below which open offsets lie without a break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetMap {
    /// The committed offset: everything below is done.
    base: i64,
    /// Nothing is known of this offset and of those above.
    end: i64,
    /// Rising, within `base..end`.
    open: Vec<i64>,
}

/// What the metadata of an offset commit turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "damage and unknown versions must not pass for nothing"]
pub enum Reading {
    /// No metadata: nothing is done above the committed offset.
    Nothing,
    /// Somebody else's text, such as Kafka Streams': nothing is known above the committed offset.
    Foreign,
    /// Ours, of the committed offset.
    Ours(OffsetMap),
    /// Written by Confluent's Parallel Consumer, which names no base: it is taken to be the committed offset.
    ParallelConsumer(OffsetMap),
    /// Ours and intact, but of another committed offset: somebody reset the group. It says nothing of this one.
    Stale {
        /// The committed offset that the map was written with.
        base: i64,
        /// The one it was found with.
        committed: i64,
    },
    /// A map that can't be read, and why. What was done is lost; to go on without it repeats records.
    Damaged(String),
    /// Ours, of a version that this worker does not know.
    UnknownVersion(u8),
}

impl OffsetMap {
    /// Everything in `base..end` is done except `open`, which may be empty.
    ///
    /// # Panics
    /// When `base` is negative or above `end`, or `open` does not rise strictly or leaves `base..end`.
    #[must_use]
    pub fn new(base: i64, end: i64, open: Vec<i64>) -> Self {
        assert!(0 <= base && base <= end, "{base}..{end} are not offsets");
        assert!(open.is_sorted_by(|a, b| a < b), "open offsets do not rise");
        let within = open.first().is_none_or(|first| base <= *first) && open.last().is_none_or(|last| *last < end);
        assert!(within, "open offsets outside of {base}..{end}");
        Self { base, end, open }
    }

    /// Nothing is done above `base`.
    ///
    /// # Panics
    /// When `base` is negative.
    #[must_use]
    pub fn empty(base: i64) -> Self {
        Self::new(base, base, Vec::new())
    }

    /// The committed offset: everything below is done.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// The first offset of which nothing is known; the base when nothing is done above that.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// The offsets in `base..end` that are not done, rising.
    pub fn open(&self) -> &[i64] {
        &self.open
    }

    /// Whether an offset is below the base, or below the end and not open. O(log n).
    pub fn is_done(&self, offset: i64) -> bool {
        offset < self.base || offset < self.end && self.open.binary_search(&offset).is_err()
    }

    /// What is left of it when the source starts at `low`; how many open offsets are gone, and how many offsets past the
    /// end.
    #[must_use]
    pub fn raised_to(&self, low: i64) -> (Self, u64, u64) {
        if low <= self.base {
            return (self.clone(), 0, 0);
        }
        let (gone, open): (Vec<i64>, Vec<i64>) = self.open.iter().partition(|&&open| open < low);
        let beyond = (low - self.end).max(0).unsigned_abs();
        let raised = match open.first() {
            Some(&first) => Self::new(first, self.end, open),
            None => Self::empty(low.max(self.end)),
        };
        (raised, gone.len() as u64, beyond)
    }

    /// The metadata to commit with the base, in ASCII; empty when nothing is done above it.
    ///
    /// It is as long as it must be, past [`LIMIT`] too: [`MapSize`] says how long before there is a map.
    #[must_use]
    pub fn encode(&self, topic: &str, partition: i32) -> String {
        // Both fit: 0 <= base <= end.
        let all_open = self.open.len() as u64 == self.span();
        if all_open { String::new() } else { text::encode(self, topic, partition) }
    }

    /// Reads the metadata that was committed with the offset `committed`.
    pub fn read(metadata: &[u8], topic: &str, partition: i32, committed: i64) -> Reading {
        if metadata.is_empty() {
            return Reading::Nothing;
        }
        let read = match text::version(metadata) {
            text::Version::Foreign => parallel_consumer::read(metadata, committed).map(|map| match map {
                Some(map) => Reading::ParallelConsumer(map),
                None => Reading::Foreign,
            }),
            text::Version::Damaged => Err("no colon after the version".to_owned()),
            text::Version::Unknown(version) => Ok(Reading::UnknownVersion(version)),
            text::Version::Known => text::decode(metadata, topic, partition).map(|map| match map {
                map if map.base == committed => Reading::Ours(map),
                map => Reading::Stale { base: map.base, committed },
            }),
        };
        read.unwrap_or_else(Reading::Damaged)
    }

    fn span(&self) -> u64 {
        self.end.abs_diff(self.base)
    }
}

#[cfg(test)]
mod tests;
