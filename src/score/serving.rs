//! What a slot serves: the version that answers, and the candidate that is tried beside it. A batch takes one look at
//! it, so that a swap falls between two batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use highway::{HighwayHash as _, HighwayHasher, Key};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Queued;
use super::here::Alone;
use super::lookup::Admitted;
use crate::batch::Entry;
use crate::metrics::TrialStats;
use crate::model::LoadedModel;

/// A version that can be served, with its keys in the result cache.
pub(crate) struct InService {
    pub(crate) model: Arc<LoadedModel>,
    pub(super) admitted: Option<Arc<Admitted>>,
    /// How long a row takes alone.
    pub(super) alone: Alone,
}

/// What a slot serves.
#[derive(Clone)]
pub(crate) struct Serving {
    /// Answers.
    pub(crate) version: Arc<InService>,
    /// Is tried beside it.
    pub(crate) candidate: Option<Arc<Candidate>>,
}

/// How a candidate is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrialMode {
    /// It answers its share of the requests.
    Canary,
    #[default]
    /// It scores its share of what the serving version scored, and the scores are compared.
    Shadow,
}

/// How much of the traffic a candidate sees, and what it does with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// What it does.
    pub mode: TrialMode,
    /// Its share of the requests, 0 to 1.
    pub share: f64,
}

/// A version on trial.
pub(crate) struct Candidate {
    pub(crate) version: Arc<InService>,
    pub(crate) trial: Trial,
    pub(super) tally: TrialTally,
}

impl Candidate {
    pub(crate) fn new(version: Arc<InService>, trial: Trial) -> Self {
        Self { version, trial, tally: TrialTally::default() }
    }

    /// Whether a request is in the candidate's share. The same key (or id, where it has none) always is or never is, also
    /// when it is delivered again and in another worker.
    pub(super) fn takes(&self, entry: &Entry<Queued>) -> bool {
        let ticket = &entry.item.ticket;
        let request = ticket.request();
        let mut hasher = HighwayHasher::new(Key::default());
        hasher.append(self.version.model.name().as_bytes());
        match request.key {
            Some(key) => hasher.append(ticket.chunk.bytes(key)),
            // An id that was not given is the record's place, but for the library's requests, which have none.
            None if request.id_json.len() > 0 => hasher.append(ticket.chunk.bytes(request.id_json)),
            None => hasher.append(&request.position.offset.to_le_bytes()),
        }
        // The 53 bits that an f64 holds, as a number from 0 up to 1.
        let place = (hasher.finalize64() >> 11) as f64 / (1_u64 << 53) as f64;
        place < self.trial.share
    }

    /// What it has done so far.
    pub(crate) fn stats(&self) -> TrialStats {
        self.tally.stats()
    }
}

/// What a trial came to.
#[derive(Default)]
pub(super) struct TrialTally {
    requests: AtomicU64,
    failed: AtomicU64,
    compared: Mutex<Compared>,
}

/// How far a shadow's scores lie from the serving version's.
#[derive(Clone, Copy, Default)]
struct Compared {
    rows: u64,
    differing: u64,
    changed: u64,
    difference_sum: f64,
    difference_max: f64,
}

impl TrialTally {
    /// Requests that the candidate scored, and those of them that it could not.
    pub(super) fn count(&self, requests: usize, failed: usize) {
        self.requests.fetch_add(requests as u64, Ordering::Relaxed);
        self.failed.fetch_add(failed as u64, Ordering::Relaxed);
    }

    /// Scores of the same rows, row-major, `outputs` a row.
    pub(super) fn compare(&self, served: &[f64], shadow: &[f64], outputs: usize) {
        let mut all = self.compared.lock();
        for (served, shadow) in served.chunks(outputs).zip(shadow.chunks(outputs)) {
            let difference = served.iter().zip(shadow).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            all.rows += 1;
            all.differing += u64::from(difference > 0.0);
            all.changed += u64::from(class_of(served) != class_of(shadow));
            all.difference_sum += difference;
            all.difference_max = all.difference_max.max(difference);
        }
    }

    fn stats(&self) -> TrialStats {
        let Compared { rows, differing, changed, difference_sum, difference_max } = *self.compared.lock();
        TrialStats {
            requests: self.requests.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            compared_rows: rows,
            differing_rows: differing,
            changed_rows: changed,
            difference_mean: if rows == 0 { 0.0 } else { difference_sum / rows as f64 },
            difference_max,
        }
    }
}

/// Which class the scores of a row say: the largest of several, the side of one half for a single one.
fn class_of(scores: &[f64]) -> usize {
    match scores {
        [score] => usize::from(*score > 0.5),
        _ => scores.iter().enumerate().fold(0, |best, (place, score)| if *score > scores[best] { place } else { best }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_tells_how_far_and_how_often() {
        let tally = TrialTally::default();
        tally.count(4, 1);
        tally.compare(&[0.4, 0.9], &[0.6, 0.9], 1);
        tally.compare(&[0.2, 0.5, 0.3], &[0.2, 0.4, 0.4], 3);
        let stats = tally.stats();
        assert_eq!((stats.requests, stats.failed, stats.compared_rows), (4, 1, 3));
        assert_eq!((stats.differing_rows, stats.changed_rows), (2, 1));
        assert!((stats.difference_max - 0.2).abs() < 1e-12 && (stats.difference_mean - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_class_is_the_largest_or_the_side_of_one_half() {
        assert_eq!([class_of(&[0.5]), class_of(&[0.6]), class_of(&[0.1, 0.7, 0.2])], [0, 1, 1]);
    }
}
