//! A file as shared memory: what is written here is in the file when the process ends, however it ends.
#![allow(unsafe_code, reason = "the mapping is read and written as 64-bit words")]

use std::fs::File;
use std::io;
use std::slice;
use std::sync::atomic::AtomicU64;

use memmap2::MmapRaw;

/// The words of a file.
#[derive(Debug)]
pub(super) struct Mapped {
    map: MmapRaw,
    /// Holds the file's lock.
    _file: File,
}

impl Mapped {
    /// Maps a file, which must be this process's alone and keep its length.
    pub(super) fn new(file: File) -> io::Result<Self> {
        Ok(Self { map: MmapRaw::map_raw(&file)?, _file: file })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let first = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: `first` is aligned; the mapping is for reading and writing, for its whole length, as long as `self`
        // lives; any bytes are a word. All access is atomic. The file is locked and keeps its length, by
        // `Mapped::new`'s condition, so that no page of it goes away.
        unsafe { slice::from_raw_parts(first, self.map.len() / size_of::<AtomicU64>()) }
    }
}
