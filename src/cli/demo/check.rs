//! The demo's judge: every reply is counted by its id and its score compared with the one made beforehand. Nothing that
//! the worker says about itself is believed.

use std::sync::Arc;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Deserialize;

use super::data::Data;
use super::feed::Sent;

/// Scores are equal up to this: the same sums in the same order leave nothing to round.
const TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Reply {
    id: String,
    success: bool,
    #[serde(default)]
    prediction: Vec<f64>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    batch_size: u64,
}

/// The replies so far.
pub(super) struct Check {
    data: Arc<Data>,
    sent: Arc<Sent>,
    /// Records whose replies are kept.
    show: &'static [usize],
    replies_of: Vec<u32>,
    pub(super) wrong: Vec<String>,
    /// Producer to reader, in microseconds.
    pub(super) latency_us: Histogram<u64>,
    /// Rows of the batch that each reply was scored in.
    pub(super) batch_rows: Histogram<u64>,
    /// A few replies to show.
    pub(super) shown: Vec<(usize, String)>,
}

/// The count at the end.
pub(super) struct Counts {
    pub(super) replies: usize,
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) wrong: Vec<String>,
}

impl Check {
    pub(super) fn new(data: Arc<Data>, sent: Arc<Sent>, show: &'static [usize]) -> anyhow::Result<Self> {
        Ok(Self {
            replies_of: vec![0; sent.records()],
            data,
            sent,
            show,
            wrong: Vec::new(),
            latency_us: Histogram::new(3).context("a histogram of three digits")?,
            batch_rows: Histogram::new(3).context("a histogram of three digits")?,
            shown: Vec::new(),
        })
    }

    /// Records that have a reply.
    pub(super) fn answered(&self) -> usize {
        self.replies_of.iter().filter(|replies| **replies > 0).count()
    }

    /// Takes a reply, at the moment that it came.
    pub(super) fn count(&mut self, payload: &[u8]) {
        let text = || String::from_utf8_lossy(payload);
        let reply: Reply = match serde_json::from_slice(payload) {
            Ok(reply) => reply,
            Err(error) => return self.wrong.push(format!("not a reply ({error}): {}", text())),
        };
        let record = reply.id.strip_prefix('r').and_then(|id| id.parse().ok()).filter(|&id| id < self.replies_of.len());
        let Some(record) = record else { return self.wrong.push(format!("an id that was never sent: {}", text())) };
        self.replies_of[record] += 1;
        if let Some(age) = self.sent.age(record) {
            self.latency_us += u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        }
        if let Some(metadata) = reply.metadata {
            self.batch_rows += metadata.batch_size;
        }
        let wanted = self.data.score(record);
        let right = match wanted {
            None => !reply.success,
            Some(score) => reply.success && matches!(reply.prediction[..], [own] if (own - score).abs() <= TOLERANCE),
        };
        if !right {
            self.wrong.push(format!("expected {wanted:?}: {}", text()));
        }
        if self.show.contains(&record) {
            self.shown.push((record, text().into_owned()));
        }
    }

    pub(super) fn counts(self) -> Counts {
        let replies = self.replies_of.iter().map(|replies| *replies as usize).sum();
        let lost = self.replies_of.iter().filter(|replies| **replies == 0).count();
        let doubled = self.replies_of.iter().map(|replies| replies.saturating_sub(1) as usize).sum();
        Counts { replies, lost, doubled, wrong: self.wrong }
    }
}
