//! A shadow's turn: what the serving version scored, scored again by the candidate, and both held against each other.
//! Nobody waits for it, and nothing that it does reaches an answer.

use std::sync::Arc;

use super::Queued;
use super::attempt::{Outcomes, lay_out, score_caught};
use super::matrix::NodePools;
use super::serving::Candidate;
use crate::batch::Entry;

/// The requests of a batch that the shadow scores too, with the scores that answered them.
pub(super) struct ShadowRun {
    candidate: Arc<Candidate>,
    batch: Vec<Entry<Queued>>,
    served: Vec<f64>,
    outputs: usize,
}

impl ShadowRun {
    /// What of a scored batch is in the shadow's share; `None` when that is nothing.
    pub(super) fn new(
        candidate: &Arc<Candidate>,
        (batch, outcomes): (&[Entry<Queued>], &Outcomes),
        (scores, outputs): (&[f64], usize),
    ) -> Option<Self> {
        let mut run = Self { candidate: Arc::clone(candidate), batch: Vec::new(), served: Vec::new(), outputs };
        for (entry, outcome) in batch.iter().zip(outcomes) {
            if let Ok(first) = *outcome
                && candidate.takes(entry)
            {
                run.batch.push(entry.clone());
                run.served.extend_from_slice(&scores[first * outputs..(first + entry.rows as usize) * outputs]);
            }
        }
        (!run.batch.is_empty()).then_some(run)
    }

    /// Scores and compares. A batch that the shadow fails on is counted and not tried again.
    pub(super) fn run(self, pools: &NodePools, scorer: usize) {
        let Self { candidate, batch, served, outputs } = self;
        let model = &candidate.version.model;
        let (matrix, outcomes) = lay_out(&batch, model, pools);
        let mut scores = vec![0.0; matrix.count() * outputs];
        let scored = score_caught(model.scorer(scorer).as_mut(), &[], matrix.rows(0..matrix.count()), &mut scores);
        if let Err(error) = &scored {
            tracing::debug!(model = model.name(), version = model.version(), %error, "a shadow failed on a batch");
        }
        let (mut failed, mut from) = (0, 0);
        for (entry, outcome) in batch.iter().zip(&outcomes) {
            let wide = entry.rows as usize * outputs;
            let answer = &served[from..from + wide];
            from += wide;
            let own = outcome.as_ref().ok().filter(|_| scored.is_ok());
            let own = own.map(|first| &scores[first * outputs..first * outputs + wide]);
            match own.filter(|own| own.iter().all(|score| score.is_finite())) {
                Some(own) => candidate.tally.compare(answer, own, outputs),
                None => failed += 1,
            }
        }
        candidate.tally.count(batch.len(), failed);
    }
}
