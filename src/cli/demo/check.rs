//! The demo's reader: every reply is counted by its id and its score compared with the one made beforehand. Nothing
//! that the worker says about itself is believed.

use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::cluster::{Cluster, PARTITIONS};
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

/// What the reply topic holds so far.
pub(super) struct Check {
    consumer: BaseConsumer,
    at_end: [bool; PARTITIONS as usize],
    replies_of: Vec<u32>,
    wrong: Vec<String>,
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
    pub(super) fn new(cluster: &Cluster, records: usize) -> anyhow::Result<Self> {
        let mut client = cluster.client();
        client
            .set("group.id", format!("{}-reader", cluster.group))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer = client.create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(&cluster.scores, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        Ok(Self {
            consumer,
            at_end: [false; PARTITIONS as usize],
            replies_of: vec![0; records],
            wrong: Vec::new(),
            latency_us: Histogram::new(3).context("a histogram of three digits")?,
            batch_rows: Histogram::new(3).context("a histogram of three digits")?,
            shown: Vec::new(),
        })
    }

    /// Reads what is there; waits a moment when nothing is.
    pub(super) fn read(&mut self, data: &Data, sent: &Sent, show: &[usize]) -> anyhow::Result<()> {
        let mut wait = Duration::from_millis(20);
        while let Some(record) = self.consumer.poll(wait) {
            match record {
                Ok(record) => {
                    if let Ok(partition) = usize::try_from(record.partition()) {
                        self.at_end[partition] = false;
                    }
                    let payload = String::from_utf8_lossy(record.payload().unwrap_or_default()).into_owned();
                    self.count(&payload, data, sent, show);
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    if let Ok(partition) = usize::try_from(partition) {
                        self.at_end[partition] = true;
                    }
                }
                Err(error) if error.rdkafka_error_code().is_some_and(crate::client::is_connection) => {}
                Err(error) => return Err(error).context("the reply topic cannot be read"),
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Whether every partition was read to its end.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_end.iter().all(|end| *end)
    }

    /// Records that have a reply.
    pub(super) fn answered(&self) -> usize {
        self.replies_of.iter().filter(|replies| **replies > 0).count()
    }

    fn count(&mut self, payload: &str, data: &Data, sent: &Sent, show: &[usize]) {
        let reply: Reply = match serde_json::from_str(payload) {
            Ok(reply) => reply,
            Err(error) => return self.wrong.push(format!("not a reply ({error}): {payload}")),
        };
        let record = reply.id.strip_prefix('r').and_then(|id| id.parse().ok()).filter(|&id| id < self.replies_of.len());
        let Some(record) = record else { return self.wrong.push(format!("an id that was never sent: {payload}")) };
        self.replies_of[record] += 1;
        if let Some(age) = sent.age(record) {
            self.latency_us += u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        }
        if let Some(metadata) = reply.metadata {
            self.batch_rows += metadata.batch_size;
        }
        let right = match data.score(record) {
            None => !reply.success,
            Some(score) => reply.success && matches!(reply.prediction[..], [own] if (own - score).abs() <= TOLERANCE),
        };
        if !right {
            self.wrong.push(format!("expected {:?}: {payload}", data.score(record)));
        }
        if show.contains(&record) {
            self.shown.push((record, payload.to_owned()));
        }
    }

    pub(super) fn counts(self) -> Counts {
        let replies = self.replies_of.iter().map(|replies| *replies as usize).sum();
        let lost = self.replies_of.iter().filter(|replies| **replies == 0).count();
        let doubled = self.replies_of.iter().map(|replies| replies.saturating_sub(1) as usize).sum();
        Counts { replies, lost, doubled, wrong: self.wrong }
    }
}
