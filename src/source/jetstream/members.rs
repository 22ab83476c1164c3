//! Who shares the partitions: the workers that were heard of lately, and how many partitions are one worker's part.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a worker says of itself, now and then and whenever it lets a partition go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Word {
    /// The worker's name.
    pub(super) instance: String,
    /// The process's own.
    pub(super) run: String,
    /// Partitions that it holds.
    pub(super) held: usize,
    /// It ends.
    #[serde(default)]
    pub(super) is_leaving: bool,
}

/// The workers of a group.
#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<String, Heard>);

/// What a worker said last.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    held: usize,
}

impl Members {
    /// Takes a worker's word. Returns whether it says anything new: who shares, or who holds how many.
    pub(super) fn heard(&mut self, word: &Word, now: Instant) -> bool {
        if word.is_leaving {
            return self.0.remove(&word.run).is_some();
        }
        let before = self.0.insert(word.run.clone(), Heard { at: now, held: word.held });
        before.is_none_or(|before| before.held != word.held)
    }

    /// How many of `partitions` are this worker's part, it being one of those that were heard of within `lease`.
    pub(super) fn part(&mut self, run: &str, partitions: usize, lease: Duration, now: Instant) -> usize {
        self.0.retain(|_, heard| now.saturating_duration_since(heard.at) < lease);
        let others = self.0.keys().filter(|other| *other != run).count();
        partitions.div_ceil(others + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_of_each() {
        let (start, lease) = (crate::clock::now(), Duration::from_secs(10));
        let word_of =
            |run: &str, held, is_leaving| Word { instance: "w".to_owned(), run: run.to_owned(), held, is_leaving };
        let word = |run: &str, is_leaving| word_of(run, 0, is_leaving);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut members = Members::default();
        assert_eq!(members.part("a", 9, lease, start), 9);
        assert!(members.heard(&word("b", false), start) && !members.heard(&word("b", false), at(1)));
        assert!(members.heard(&word_of("b", 1, false), at(1)) && !members.heard(&word_of("b", 1, false), at(1)));
        assert!(members.heard(&word("a", false), at(1)));
        assert_eq!(members.part("a", 9, lease, at(2)), 5);
        assert!(members.heard(&word("c", false), at(5)));
        assert_eq!((members.part("a", 9, lease, at(6)), members.part("a", 1, lease, at(6))), (3, 1));
        assert_eq!(members.part("a", 9, lease, at(11)), 5);
        assert!(members.heard(&word("c", true), at(12)) && !members.heard(&word("c", true), at(12)));
        assert_eq!(members.part("a", 9, lease, at(12)), 9);
    }
}
