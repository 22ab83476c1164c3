//! The journal's bytes. The file is an array of little-endian 64-bit words:
//!
//! ```text
//! 0         "forebay", then the byte 0x4a          ┐
//! 1         version of this layout, 1              │ header
//! 2 3 4     threads, names a thread, suspects      │
//! 5..8      0                                      ┘
//! 8         suspects x (partition, offset, exits)  a free place has 0 exits; filled up to a multiple of 8 words
//! ...       a block for each thread:               each a multiple of 8 words, so that no two share a cache line
//!             0      how many names follow; 0: nothing is being scored
//!             8      names x (partition, offset)
//! ```
//! Any bytes can be read: what is no journal is told as [`Damage`].

use std::collections::BTreeMap;

use super::RecordName;

const MAGIC: u64 = u64::from_le_bytes(*b"forebayJ");
const VERSION: u64 = 1;
const HEADER_WORDS: usize = 8;
const SUSPECT_WORDS: usize = 3;
const NAME_WORDS: usize = 2;
/// Words of a cache line.
const LINE_WORDS: usize = 8;
/// The most names that a file holds, all threads together; as many suspects fit. 40 MiB.
const NAMES_MAX: usize = 1 << 20;
/// The most threads that can name anything; more are never started.
const THREADS_MAX: usize = 1 << 12;
/// Suspects of a small file: those of more than one crash.
const SUSPECTS_MIN: usize = 1 << 10;

/// Why bytes are no journal that this version reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("it is no journal of forebay's")]
    Foreign,
    #[error("its version is {0}, this one reads {VERSION}")]
    Version(u64),
    #[error("it is cut short or damaged")]
    Cut,
}

/// Where everything stands in a file for so many threads and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Threads that can name what they score.
    pub(super) threads: usize,
    /// Names that a thread can write.
    pub(super) names: usize,
    /// Suspects that fit.
    pub(super) suspects: usize,
}

impl Layout {
    /// As many names a thread as asked for, if they fit into the file's bound; else fewer.
    pub(super) fn new(threads: usize, names: usize) -> Self {
        let threads = threads.clamp(1, THREADS_MAX);
        let names = names.clamp(1, NAMES_MAX / threads);
        Self { threads, names, suspects: (threads * names).max(SUSPECTS_MIN) }
    }

    pub(super) fn words(self) -> usize {
        self.block(self.threads)
    }

    pub(super) fn bytes(self) -> usize {
        self.words() * size_of::<u64>()
    }

    /// The most bytes of any journal.
    pub(super) fn bytes_max() -> usize {
        let blocks = (NAME_WORDS * NAMES_MAX + 2 * LINE_WORDS * THREADS_MAX) * size_of::<u64>();
        Self { threads: 0, names: 0, suspects: NAMES_MAX }.bytes() + blocks
    }

    /// The first word of a suspect.
    pub(super) fn suspect(place: usize) -> usize {
        HEADER_WORDS + place * SUSPECT_WORDS
    }

    /// The first word of a thread's block.
    pub(super) fn block(self, thread: usize) -> usize {
        let block = LINE_WORDS + (self.names * NAME_WORDS).next_multiple_of(LINE_WORDS);
        Self::suspect(self.suspects).next_multiple_of(LINE_WORDS) + thread * block
    }

    /// The first word of a thread's name.
    pub(super) fn name(self, thread: usize, place: usize) -> usize {
        self.block(thread) + LINE_WORDS + place * NAME_WORDS
    }

    /// A file in which nothing is being scored.
    pub(super) fn write(self, suspects: &[(RecordName, u32)]) -> Vec<u8> {
        let mut words = vec![0; self.words()];
        words[..5].copy_from_slice(&[MAGIC, VERSION, self.threads as u64, self.names as u64, self.suspects as u64]);
        for (place, (record, exits)) in suspects.iter().take(self.suspects).enumerate() {
            let first = Self::suspect(place);
            words[first..first + SUSPECT_WORDS].copy_from_slice(&[record.partition, record.offset, u64::from(*exits)]);
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn of(words: &[u64]) -> Result<Self, Damage> {
        let header: &[u64; HEADER_WORDS] = words.first_chunk().ok_or(Damage::Foreign)?;
        if header[0] != MAGIC {
            return Err(Damage::Foreign);
        }
        if header[1] != VERSION {
            return Err(Damage::Version(header[1]));
        }
        let [threads, names, suspects] =
            [header[2], header[3], header[4]].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        // In these bounds none of the sums below can overflow.
        let whole = threads <= THREADS_MAX
            && suspects <= NAMES_MAX
            && threads.checked_mul(names).is_some_and(|all| all <= NAMES_MAX);
        let layout = Self { threads, names, suspects };
        if whole && layout.words() == words.len() { Ok(layout) } else { Err(Damage::Cut) }
    }
}

/// How often each record was there when a process ended abnormally: the suspects of the file, and once more each record
/// that was being scored at its end.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(RecordName, u32)>, Damage> {
    let (words, rest) = bytes.as_chunks::<{ size_of::<u64>() }>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let layout = Layout::of(&words)?;
    if !rest.is_empty() {
        return Err(Damage::Cut);
    }
    let mut exits: BTreeMap<RecordName, u32> = BTreeMap::new();
    for place in 0..layout.suspects {
        let first = Layout::suspect(place);
        let count = u32::try_from(words[first + 2]).unwrap_or(u32::MAX);
        if count > 0 {
            exits.insert(RecordName { partition: words[first], offset: words[first + 1] }, count);
        }
    }
    let mut named = Vec::new();
    for thread in 0..layout.threads {
        let count = usize::try_from(words[layout.block(thread)]).unwrap_or(usize::MAX);
        if count > layout.names {
            return Err(Damage::Cut);
        }
        named.extend((0..count).map(|place| {
            let first = layout.name(thread, place);
            RecordName { partition: words[first], offset: words[first + 1] }
        }));
    }
    // One process ended once, however often it named a record.
    named.sort_unstable();
    named.dedup();
    for record in named {
        let count = exits.entry(record).or_default();
        *count = count.saturating_add(1);
    }
    Ok(exits.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(partition: u64, offset: u64) -> RecordName {
        RecordName { partition, offset }
    }

    /// Writes names into a thread's block, as a score thread does.
    fn name(bytes: &mut [u8], layout: Layout, thread: usize, names: &[RecordName]) {
        let mut put = |word: usize, value: u64| bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
        for (place, record) in names.iter().enumerate() {
            put(layout.name(thread, place), record.partition);
            put(layout.name(thread, place) + 1, record.offset);
        }
        put(layout.block(thread), names.len() as u64);
    }

    #[test]
    fn what_was_being_scored_counts_once_more() {
        let layout = Layout::new(2, 3);
        let mut bytes = layout.write(&[(record(1, 5), 2), (record(1, 6), 1)]);
        assert_eq!(read(&bytes), Ok(vec![(record(1, 5), 2), (record(1, 6), 1)]));
        name(&mut bytes, layout, 0, &[record(1, 5), record(9, 0), record(1, 7)]);
        name(&mut bytes, layout, 1, &[record(1, 7)]);
        let want = [(record(1, 5), 3), (record(1, 6), 1), (record(1, 7), 1), (record(9, 0), 1)];
        assert_eq!(read(&bytes), Ok(want.to_vec()));
    }

    #[test]
    fn sizes_have_their_bounds() {
        assert_eq!(Layout::new(2, 1024), Layout { threads: 2, names: 1024, suspects: 2048 });
        assert_eq!(Layout::new(1, 1), Layout { threads: 1, names: 1, suspects: SUSPECTS_MIN });
        let largest = Layout::new(1024, 65_536);
        assert_eq!((largest.names, largest.suspects), (1024, NAMES_MAX));
        assert!(largest.bytes() <= Layout::bytes_max() && Layout::bytes_max() < 44 << 20);
        assert!(Layout::new(THREADS_MAX + 1, 1).bytes() <= Layout::bytes_max());
    }

    #[test]
    fn what_is_no_journal_is_told_by_its_fault() {
        assert_eq!(read(b""), Err(Damage::Foreign));
        assert_eq!(read(&[0; 4096]), Err(Damage::Foreign));
        let layout = Layout::new(1, 2);
        let whole = layout.write(&[]);
        assert_eq!(read(&whole[..whole.len() - 1]), Err(Damage::Cut));
        assert_eq!(read(&[&whole[..], &[0]].concat()), Err(Damage::Cut));
        let mut later = whole.clone();
        later[8] = 2;
        assert_eq!(read(&later), Err(Damage::Version(2)));
        let mut full = whole;
        name(&mut full, layout, 0, &[record(1, 1), record(1, 2)]);
        full[layout.block(0) * 8] = 3;
        assert_eq!(read(&full), Err(Damage::Cut), "more names than fit");
    }

    proptest! {
            #[test]
            fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
                prop_assert!(read(&bytes).is_err());
            }

            /// Near misses: the header's numbers and a few words of the body are anything.
            #[test]
            fn a_damaged_journal_is_read_or_refused(
                layout in (1..4_usize, 1..9_usize).prop_map(|(threads, names)| Layout::new(threads, names)),
                header in prop::collection::vec((1..8_usize, prop_oneof![0..20_u64, any::<u64>()]), 0..3),
                body in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..9),
                cut in prop::option::of(any::<prop::sample::Index>()),
            ) {
                let mut bytes = layout.write(&[(record(3, 4), 1)]);
                let words = bytes.len() / 8;
                let body = body.into_iter().map(|(place, value)| (place.index(words), value));
                for (word, value) in header.into_iter().chain(body) {
                    bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                let _ = read(&bytes);
            }

            #[test]
            fn what_is_written_is_read(
                suspects in prop::collection::btree_map(any::<(u64, u64)>(), 1..9_u32, 0..40),
                names in prop::collection::btree_set(any::<(u64, u64)>(), 0..9),
                threads in 1..5_usize,
            ) {
                let layout = Layout::new(threads, 8);
                let suspects: Vec<_> = suspects.into_iter().map(|((p, o), exits)| (record(p, o), exits)).collect();
                let names: Vec<_> = names.into_iter().map(|(p, o)| record(p, o)).collect();
                let mut bytes = layout.write(&suspects);
                name(&mut bytes, layout, threads - 1, &names);
                let mut want: BTreeMap<_, _> = suspects.into_iter().collect();
                for record in names {
     *want.entry(record).or_insert(0) += 1;
    }
                prop_assert_eq!(read(&bytes), Ok(want.into_iter().collect()));
            }
        }
}
