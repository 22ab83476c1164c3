//! Entries that were put back, each until its own moment. They hold nobody back: a batch is filled without them.
//!
//! Invariant: `deadlines` holds exactly the entries of `entries` that have a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Entry;

/// Entries by the moment at which they wait in their level again; all operations are O(log n).
#[derive(Debug)]
pub(super) struct Delayed<T> {
    entries: BTreeMap<Place, Entry<T>>,
    deadlines: BTreeSet<(Instant, Place)>,
    /// Tells apart entries of one moment, in the order in which they were put back.
    seq_next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    until: Instant,
    seq: u64,
}

impl<T> Delayed<T> {
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), deadlines: BTreeSet::new(), seq_next: 0 }
    }

    pub(super) fn push(&mut self, entry: Entry<T>, until: Instant) {
        let place = Place { until, seq: self.seq_next };
        self.seq_next += 1;
        self.deadlines.extend(entry.deadline.map(|deadline| (deadline, place)));
        self.entries.insert(place, entry);
    }

    /// The entry whose moment is the earliest, if that has come at `now`; with no `now`, whenever it is.
    pub(super) fn pop(&mut self, now: Option<Instant>) -> Option<Entry<T>> {
        let first = self.entries.first_entry()?;
        if now.is_some_and(|now| first.key().until > now) {
            return None;
        }
        let (place, entry) = first.remove_entry();
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, place));
        }
        Some(entry)
    }

    /// Moves the entries with `deadline <= now` to the end of `expired`, earliest deadline first.
    pub(super) fn expire(&mut self, now: Instant, expired: &mut Vec<Entry<T>>) {
        while let Some(&(deadline, place)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            expired.extend(self.entries.remove(&place));
        }
    }

    /// When the next entry waits in its level again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|(place, _)| place.until)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
