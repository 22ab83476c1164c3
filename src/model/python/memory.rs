//! Memory that this process and a runner share: rows in, scores out, both copied once.
//!
//! The runner's code is not trusted to leave it alone while it is read or written here: all access is atomic, and the
//! length is sealed, so that no page of it goes away.
#![allow(unsafe_code, reason = "the mapping is read and written as 64-bit words")]

use std::fs::File;
use std::io::{self, Write as _};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::super::Values;

const WORD_BYTES: usize = size_of::<u64>();

/// A file in memory that nobody can change any more.
pub(super) fn sealed_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Room for the rows and scores of a batch.
#[derive(Debug)]
pub(super) struct BatchMemory {
    map: MmapRaw,
    file: File,
    rows_max: usize,
    /// Where the scores begin, in words.
    scores_at: usize,
}

impl BatchMemory {
    /// `row_bytes` a row, and `outputs` scores for each.
    pub(super) fn new(rows_max: usize, row_bytes: usize, outputs: usize) -> io::Result<Self> {
        let scores_at = (rows_max * row_bytes).div_ceil(WORD_BYTES);
        let bytes = (scores_at + rows_max * outputs) * WORD_BYTES;
        let file = File::from(memfd_create("forebay-batch", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(bytes as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { map: MmapRaw::map_raw(&file)?, file, rows_max, scores_at })
    }

    pub(super) fn rows_max(&self) -> usize {
        self.rows_max
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes in all, rows that fit, and the byte at which the scores begin.
    pub(super) fn sizes(&self) -> [u64; 3] {
        [self.map.len() as u64, self.rows_max as u64, (self.scores_at * WORD_BYTES) as u64]
    }

    fn words(&self) -> &[AtomicU64] {
        #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let first = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: `first` is aligned; the mapping is for reading and writing, for its whole length, as long as `self`
        // lives; any bytes are a word. All access from here is atomic. The file's length is sealed, so that no page of it
        // goes away.
        unsafe { slice::from_raw_parts(first, self.map.len() / WORD_BYTES) }
    }

    /// Puts rows in their place; they fit.
    pub(super) fn put(&self, values: Values<'_>) {
        let place = &self.words()[..self.scores_at];
        match values {
            Values::F64(values) => {
                assert!(values.len() <= place.len(), "rows that fit");
                for (word, value) in place.iter().zip(values) {
                    word.store(value.to_bits(), Ordering::Relaxed);
                }
            }
            Values::F32(values) => {
                assert!(values.len().div_ceil(2) <= place.len(), "rows that fit");
                for (word, pair) in place.iter().zip(values.chunks(2)) {
                    let mut bytes = [0; WORD_BYTES];
                    bytes[..4].copy_from_slice(&pair[0].to_ne_bytes());
                    if let Some(second) = pair.get(1) {
                        bytes[4..].copy_from_slice(&second.to_ne_bytes());
                    }
                    word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes the first scores.
    pub(super) fn take(&self, scores: &mut [f64]) {
        let place = &self.words()[self.scores_at..][..scores.len()];
        for (score, word) in scores.iter_mut().zip(place) {
            *score = f64::from_bits(word.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn rows_and_scores_lie_where_the_other_side_looks() {
        let memory = BatchMemory::new(3, 5 * 4, 2).unwrap();
        let [bytes, rows, scores_at] = memory.sizes();
        assert_eq!((rows, scores_at, bytes), (3, 64, 64 + 48));
        let rows: Vec<f32> = (0..15_u8).map(f32::from).collect();
        memory.put(Values::F32(&rows));
        let mut seen = vec![0; 60];
        memory.file().read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, rows.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>());
        memory.file().write_all_at(&2.5_f64.to_ne_bytes(), 64 + 8).unwrap();
        let mut scores = [1.0; 4];
        memory.take(&mut scores);
        assert_eq!(scores.map(f64::to_bits), [0.0, 2.5, 0.0, 0.0].map(f64::to_bits));
    }

    #[test]
    fn nobody_can_take_the_memory_away_or_change_a_model() {
        let memory = BatchMemory::new(1, 8, 1).unwrap();
        assert!(memory.file().set_len(0).is_err() && memory.file().set_len(1 << 20).is_err());
        let file = sealed_file("model", b"bytes").unwrap();
        assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(0).is_err());
    }
}
