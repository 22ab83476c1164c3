//! Which records ended the worker. A native model (C or C++ code in this process) can end the process: a crash, an abort,
//! more memory than there is. The journal is a small memory-mapped file that names the records being scored right now; it
//! outlives the process, and the next one reads it.
//!
//! A record that was being scored when a process ended abnormally is a suspect. Suspects are scored alone, with nothing
//! else in native code meanwhile, so that a second end names only the guilty. After [`EXITS_MAX`] ends it is not scored any
//! more.
//!
//! Invariants:
//! 1. A record is named before native code sees it, until that code has returned: two stores a record, no system call.
//! 2. While a suspect is being scored, no other record is.
//! 3. A suspect that was scored and did not end the process is none any more. Nor is one whose position was committed:
//!    a partition that is assigned beyond it tells so.
//! 4. What is in the file is no more than a help: a file that is damaged, missing or in use stops nobody.
//!
//! The file has room for a full batch a score thread, and for as many suspects (about 40 bytes a record); past 2^20 records
//! together, and where a model is loaded with larger batches later, the rest of a batch is not named.

mod layout;
mod mapped;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::layout::{Damage, Layout};
use self::mapped::Mapped;

/// Abnormal ends of the process after which a record is not scored any more.
pub(super) const EXITS_MAX: u32 = 3;
/// Most characters of the instance in a file's name.
const INSTANCE_CHARS_MAX: usize = 64;
/// How often a file may be removed by another process while this one opens it.
const LOCK_TRIES: u32 = 16;

/// A partition as it is known over restarts: a hash of its group, topic and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey(u64);

impl PartitionKey {
    /// The key of a group's partition.
    #[must_use]
    pub fn new(group: &str, topic: &str, number: i32) -> Self {
        let mut hasher = blake3::Hasher::new();
        for text in [group, topic] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        let mut word = [0; 8];
        hasher.update(&number.to_le_bytes()).finalize_xof().fill(&mut word);
        Self(u64::from_le_bytes(word))
    }
}

/// Where an engine keeps its journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalFile {
    /// The file. It is made where it is missing, and removed when nothing is left to remember.
    pub path: PathBuf,
    /// The most requests of a batch: as many records a score thread can be named.
    pub batch_size_max: u32,
}

impl JournalFile {
    /// The file of a worker that names none: by group and instance, in the system's folder for temporary files.
    #[must_use]
    pub fn auto(group: &str, instance: &str, batch_size_max: u32) -> Self {
        let PartitionKey(worker) = PartitionKey::new(group, instance, 0);
        let readable: String = instance.chars().take(INSTANCE_CHARS_MAX).collect();
        let path = std::env::temp_dir().join(format!("forebay-{readable}-{worker:016x}.journal"));
        Self { path, batch_size_max }
    }
}

/// A record as the journal names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RecordName {
    partition: u64,
    offset: u64,
}

impl RecordName {
    pub(super) fn new(partition: PartitionKey, offset: i64) -> Self {
        Self { partition: partition.0, offset: offset.cast_unsigned() }
    }
}

/// Why there is no journal. The worker goes on without.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("{} is in use by another worker: give each its own `instance`, or its own file by `engine.journal`", path.display())]
    Busy { path: PathBuf },
    #[error("{} cannot be used ({reason}): name another file by `engine.journal`, or set it to \"off\"", path.display())]
    Unusable { path: PathBuf, reason: io::Error },
}

/// An open journal, shared by the score threads.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    layout: Layout,
    mapped: Mapped,
    suspects: Mutex<HashMap<RecordName, Suspect>>,
    /// How many those are, to be asked for each batch.
    suspects_count: AtomicUsize,
    /// Shared by those who score, exclusive for a suspect.
    alone: RwLock<()>,
    closed: AtomicBool,
    said_full: Once,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// Its place in the file.
    place: usize,
    exits: u32,
}

impl Journal {
    /// Opens a journal, reads what the last process left, and writes it anew with those suspects.
    pub(crate) fn open(file: &JournalFile, threads: usize) -> Result<Self, JournalError> {
        let path = file.path.clone();
        let unusable = |reason| JournalError::Unusable { path: path.clone(), reason };
        let mut opened = lock(&path)?;
        let layout = Layout::new(threads, file.batch_size_max as usize);
        let mut left = left_behind(&mut opened, &path).map_err(unusable)?;
        if left.len() > layout.suspects {
            // The guilty one is among the most frequent.
            left.sort_by_key(|(_, exits)| std::cmp::Reverse(*exits));
            left.truncate(layout.suspects);
        }
        // All of it is written, so that the system holds room for each page before it is written through the mapping.
        opened.rewind().and_then(|()| opened.write_all(&layout.write(&left))).map_err(unusable)?;
        opened.set_len(layout.bytes() as u64).map_err(unusable)?;
        let mapped = Mapped::new(opened).map_err(unusable)?;
        let suspects: HashMap<_, _> =
            left.into_iter().enumerate().map(|(place, (record, exits))| (record, Suspect { place, exits })).collect();
        if !suspects.is_empty() {
            tracing::warn!(
                file = %path.display(), records = suspects.len(),
                "the last run ended abnormally while it scored these records; each is scored alone now"
            );
        }
        Ok(Self {
            path,
            layout,
            mapped,
            suspects_count: AtomicUsize::new(suspects.len()),
            suspects: Mutex::new(suspects),
            alone: RwLock::new(()),
            closed: AtomicBool::new(false),
            said_full: Once::new(),
        })
    }

    /// Whether any record is a suspect.
    pub(super) fn has_suspects(&self) -> bool {
        self.suspects_count.load(Ordering::Relaxed) > 0
    }

    /// How often the process ended abnormally while it scored this record.
    pub(super) fn exits(&self, record: RecordName) -> u32 {
        self.suspects.lock().get(&record).map_or(0, |suspect| suspect.exits)
    }

    /// It was scored, and the process is still there.
    pub(super) fn acquit(&self, record: RecordName) {
        let mut suspects = self.suspects.lock();
        if let Some(suspect) = suspects.remove(&record) {
            self.free(suspect);
        }
        self.suspects_count.store(suspects.len(), Ordering::Relaxed);
    }

    /// A partition's positions below `base` are committed: they will not come again.
    pub(crate) fn committed(&self, partition: PartitionKey, base: i64) {
        let mut suspects = self.suspects.lock();
        suspects.retain(|record, suspect| {
            let gone = record.partition == partition.0 && record.offset.cast_signed() < base;
            if gone {
                self.free(*suspect);
            }
            !gone
        });
        self.suspects_count.store(suspects.len(), Ordering::Relaxed);
    }

    /// Takes a suspect out of the file.
    fn free(&self, suspect: Suspect) {
        let exits = Layout::suspect(suspect.place) + 2;
        self.mapped.words()[exits].store(0, Ordering::Relaxed);
    }

    /// A score thread is about to enter native code, and has left it when the answer is dropped. A suspect waits until
    /// nothing else is being scored, and the others wait for it.
    pub(super) fn enter(&self, thread: usize, suspect: bool) -> Named<'_> {
        let alone = if suspect { Alone::Yes(self.alone.write()) } else { Alone::No(self.alone.read()) };
        Named { journal: self, thread, _alone: alone }
    }

    fn say_full(&self) {
        self.said_full.call_once(|| {
            tracing::warn!(
                file = %self.path.display(), names = self.layout.names,
                "a batch is larger than the journal has room for; the rest of it is not named"
            );
        });
    }

    /// The process ends by itself: what is being scored is no suspect for that. A file without suspects is removed.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        (0..self.layout.threads).for_each(|thread| self.clear(thread));
        if !self.has_suspects() {
            // It would say nothing; left behind, it does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn clear(&self, thread: usize) {
        self.mapped.words()[self.layout.block(thread)].store(0, Ordering::Release);
    }
}

/// Records are named while it lives.
#[derive(Debug)]
pub(super) struct Named<'a> {
    journal: &'a Journal,
    thread: usize,
    _alone: Alone<'a>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Alone<'a> {
    Yes(RwLockWriteGuard<'a, ()>),
    No(RwLockReadGuard<'a, ()>),
}

impl Named<'_> {
    /// Names what is handed to native code, once.
    pub(super) fn name(&self, records: impl Iterator<Item = RecordName>) {
        let Journal { layout, mapped, closed, .. } = self.journal;
        if self.thread >= layout.threads || closed.load(Ordering::Relaxed) {
            return;
        }
        let words = mapped.words();
        let mut count = 0;
        for record in records {
            if count == layout.names {
                self.journal.say_full();
                break;
            }
            let first = layout.name(self.thread, count);
            words[first].store(record.partition, Ordering::Relaxed);
            words[first + 1].store(record.offset, Ordering::Relaxed);
            count += 1;
        }
        words[layout.block(self.thread)].store(count as u64, Ordering::Release);
        // Native code comes next: what names its records must not be written after it began. A process that ends has
        // made all stores before the one that ended it, so that only the compiler must be told.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if self.thread < self.journal.layout.threads {
            self.journal.clear(self.thread);
        }
    }
}

/// Opens the file and locks it, as this process's own.
fn lock(path: &Path) -> Result<File, JournalError> {
    let unusable = |reason| JournalError::Unusable { path: path.to_owned(), reason };
    for _ in 0..LOCK_TRIES {
        // A pipe would block, a device is nobody's journal, and who can write to a shared folder could plant a link.
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(unusable(io::Error::other("it is no regular file")));
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let opened = opened.map_err(unusable)?;
        match opened.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Its last owner may have removed it between the two calls: then nobody would find it again.
        let mine = opened.metadata().map_err(unusable)?;
        if fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (mine.dev(), mine.ino())) {
            return Ok(opened);
        }
    }
    Err(JournalError::Busy { path: path.to_owned() })
}

/// What a file says of the process that had it last. A damaged one is told, and taken over; so is one that holds something
/// else, but only under a journal's name: a path in the config that is a mistake must not cost a file.
fn left_behind(file: &mut File, path: &Path) -> io::Result<Vec<(RecordName, u32)>> {
    let mut bytes = Vec::new();
    file.take(Layout::bytes_max() as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    match layout::read(&bytes) {
        Ok(left) => Ok(left),
        Err(Damage::Foreign) if path.extension().is_none_or(|ending| ending != "journal") => {
            Err(io::Error::other(format!("{}, nor is it named *.journal", Damage::Foreign)))
        }
        Err(damage) => {
            tracing::warn!(file = %path.display(), "the journal starts afresh: {damage}");
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;

    const GROUP: &str = "g";

    fn file(folder: &Path) -> JournalFile {
        JournalFile { path: folder.join("a.journal"), batch_size_max: 4 }
    }

    fn open(file: &JournalFile) -> Journal {
        Journal::open(file, 2).unwrap_or_else(|error| panic!("{error}"))
    }

    fn key() -> PartitionKey {
        PartitionKey::new(GROUP, "t", 3)
    }

    fn record(offset: i64) -> RecordName {
        RecordName::new(key(), offset)
    }

    /// Opens the journal, names these records, and leaves as a process that is killed does.
    fn end_while_scoring(file: &JournalFile, thread: usize, offsets: impl IntoIterator<Item = i64>) {
        let journal = open(file);
        name_for_ever(&journal, thread, offsets);
        // Not closed; the lock goes with the file.
    }

    /// Names these records, as a score thread that does not come back from native code.
    fn name_for_ever(journal: &Journal, thread: usize, offsets: impl IntoIterator<Item = i64>) {
        let named = journal.enter(thread, false);
        named.name(offsets.into_iter().map(record));
        std::mem::forget(named);
    }

    fn exits(journal: &Journal, offsets: impl IntoIterator<Item = i64>) -> Vec<u32> {
        offsets.into_iter().map(|offset| journal.exits(record(offset))).collect()
    }

    #[test]
    fn partitions_are_told_apart() {
        let keys = [("g", "t", 3), ("gt", "", 3), ("", "gt", 3), ("g", "t", 4), ("g", "u", 3), ("h", "t", 3)];
        let keys: std::collections::BTreeSet<_> = keys.map(|(g, t, n)| PartitionKey::new(g, t, n)).into();
        assert_eq!(keys.len(), 6);
        assert_eq!(key(), PartitionKey(0x95a9_5c32_7524_9da8), "the same over restarts and versions");
    }

    #[test]
    fn the_next_process_knows_what_was_being_scored() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        end_while_scoring(&file, 1, [5, 6]);
        let journal = open(&file);
        assert_eq!(exits(&journal, [5, 6, 7]), [1, 1, 0]);
        journal.acquit(record(6));
        drop(journal);
        end_while_scoring(&file, 0, [5, -1]);
        assert_eq!(exits(&open(&file), [5, 6, -1]), [2, 0, 1]);
        assert_eq!(exits(&open(&file), [5, 6, -1]), [2, 0, 1], "only what was named counts");
    }

    #[test]
    fn what_returned_is_no_suspect() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let journal = open(&file);
        let named = journal.enter(0, false);
        named.name([1, 2].map(record).into_iter());
        drop(named);
        drop(journal);
        assert!(!open(&file).has_suspects());
    }

    #[test]
    fn committed_positions_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        end_while_scoring(&file, 0, [5, 6, 7]);
        let journal = open(&file);
        journal.committed(PartitionKey::new(GROUP, "t", 4), 100);
        assert_eq!(exits(&journal, [5, 6, 7]), [1, 1, 1]);
        journal.committed(key(), 7);
        assert_eq!(exits(&journal, [5, 6, 7]), [0, 0, 1]);
        drop(journal);
        assert_eq!(exits(&open(&file), [5, 6, 7]), [0, 0, 1]);
    }

    #[test]
    fn a_clean_end_leaves_nothing_but_open_suspicions() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let journal = open(&file);
        name_for_ever(&journal, 0, [5]);
        journal.close();
        assert!(!file.path.exists());
        drop(journal);
        end_while_scoring(&file, 0, [6]);
        let journal = open(&file);
        name_for_ever(&journal, 0, [7]);
        journal.close();
        name_for_ever(&journal, 0, [8]);
        drop(journal);
        assert_eq!(exits(&open(&file), [5, 6, 7, 8]), [0, 1, 0, 0]);
    }

    #[test]
    fn a_suspect_is_scored_when_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let journal = open(&file(folder.path()));
        let others = journal.enter(0, false);
        let (sender, receiver) = sync_channel(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _alone = journal.enter(1, true);
                sender.send(()).unwrap();
            });
            assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err());
            drop(others);
            receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        });
    }

    #[test]
    fn more_records_than_fit_are_named_as_far_as_they_fit() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        end_while_scoring(&file, 0, 0..6);
        end_while_scoring(&file, 9, [9]);
        assert_eq!(exits(&open(&file), [0, 3, 4, 9]), [1, 1, 0, 0]);
    }

    #[test]
    fn another_number_of_threads_reads_it_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        end_while_scoring(&file, 1, [5]);
        let larger = JournalFile { batch_size_max: 900, ..file };
        let journal = Journal::open(&larger, 7).unwrap();
        assert_eq!(exits(&journal, [5]), [1]);
        name_for_ever(&journal, 6, 0..900);
        drop(journal);
        let journal = open(&larger);
        assert_eq!(exits(&journal, [0, 5, 899]), [1, 2, 1]);
    }

    #[test]
    fn two_processes_never_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let first = open(&file);
        let error = Journal::open(&file, 2).unwrap_err().to_string();
        assert!(error.contains("a.journal is in use") && error.contains("`instance`"), "{error}");
        drop(first);
        open(&file);
    }

    #[test]
    fn a_damaged_file_is_started_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        end_while_scoring(&file, 0, [5]);
        let whole = fs::read(&file.path).unwrap();
        for damaged in [&b"not a journal"[..], &whole[..whole.len() / 2], &[&whole[..], b"more"].concat()] {
            fs::write(&file.path, damaged).unwrap();
            assert!(!open(&file).has_suspects());
            assert_eq!(fs::read(&file.path).unwrap().len(), whole.len());
        }
    }

    #[test]
    fn what_cannot_be_a_journal_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let error = |name: &str| {
            let file = JournalFile { path: folder.path().join(name), batch_size_max: 4 };
            Journal::open(&file, 2).unwrap_err().to_string()
        };
        fs::write(folder.path().join("model.txt"), "tree").unwrap();
        assert!(error("model.txt").contains("it is no journal of forebay's, nor is it named *.journal"));
        assert_eq!(fs::read(folder.path().join("model.txt")).unwrap(), b"tree");
        fs::create_dir(folder.path().join("folder.journal")).unwrap();
        assert!(error("folder.journal").contains("it is no regular file"));
        std::os::unix::fs::symlink("model.txt", folder.path().join("link.journal")).unwrap();
        assert!(error("link.journal").contains("it is no regular file"));
        assert!(error("missing/a.journal").contains("set it to \"off\""));
    }

    #[test]
    fn the_automatic_file_is_named_by_group_and_instance() {
        let path = |group, instance: &str| JournalFile::auto(group, instance, 1).path;
        let name = |group, instance| path(group, instance).file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name("g/../x", "fraud-1").starts_with("forebay-fraud-1-") && !name("g/../x", "i").contains('/'));
        assert_ne!(path("g", "a"), path("h", "a"));
        assert_ne!(path("g", &"a".repeat(199)), path("g", &"a".repeat(200)));
        assert!(name("g", &"a".repeat(200)).len() < 255);
    }
}
