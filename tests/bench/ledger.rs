//! The bench's reader: every reply is counted by its id and its score held against the expected one. Nothing that a
//! subject says about itself is believed, but for the size of its batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use forebay::clock;
use hdrhistogram::Histogram;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use crate::clients::{self, PARTITIONS};
use crate::stream::{Format, NO_WORK_SCORE, Reply, Stream};

/// A topic of this size is read in seconds.
const END_BOUND: Duration = Duration::from_secs(60);

/// What a reply holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The record's own score.
    Score,
    /// The same score for all.
    NoWork,
    /// The request again.
    Copy,
    /// The request again, with a header that it came without.
    CopyWithHeader,
}

/// When each record of the latency phase was handed to the feeder, in microseconds since the start; 0 is not yet.
pub(crate) struct SentUs {
    start: Instant,
    first: usize,
    at: Vec<AtomicU64>,
}

impl SentUs {
    /// For `count` records from number `first` on.
    pub(crate) fn new(first: usize, count: usize) -> Self {
        Self { start: clock::now(), first, at: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn stamp(&self, record: usize) {
        let now = u64::try_from((clock::now() - self.start).as_micros()).unwrap_or(u64::MAX);
        self.at[record - self.first].store(now.max(1), Ordering::Relaxed);
    }

    fn age_us(&self, record: usize) -> Option<u64> {
        let at = self.at.get(record.checked_sub(self.first)?)?.load(Ordering::Relaxed);
        let now = u64::try_from((clock::now() - self.start).as_micros()).unwrap_or(u64::MAX);
        (at > 0).then(|| now.saturating_sub(at))
    }
}

/// The reader of a reply topic, and what it has seen so far.
pub(crate) struct Ledger<'a> {
    consumer: BaseConsumer,
    at_end: Vec<bool>,
    pub(crate) counts: Counts<'a>,
}

/// What the reply topic holds so far.
pub(crate) struct Counts<'a> {
    stream: &'a Stream,
    answer: Answer,
    replies_of: Vec<u32>,
    answered: usize,
    wrong: usize,
    first_wrong: Option<String>,
    /// Offsets of the replies by partition, ascending.
    offsets: Vec<Vec<i64>>,
    probes: usize,
    batch_rows: f64,
    /// Of batches, each counted once: a reply of a batch of 8 is an eighth of one.
    batches: f64,
    timed_from: usize,
    /// From the feeder's hands to this reader, of the records that are timed.
    pub(crate) latency_us: Histogram<u64>,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(stream: &'a Stream, brokers: &str, topic: &str, answer: Answer) -> anyhow::Result<Self> {
        let counts = Counts {
            stream,
            answer,
            replies_of: Vec::new(),
            answered: 0,
            wrong: 0,
            first_wrong: None,
            offsets: vec![Vec::new(); PARTITIONS as usize],
            probes: 0,
            batch_rows: 0.0,
            batches: 0.0,
            timed_from: usize::MAX,
            latency_us: Histogram::new(3).context("a histogram of three digits")?,
        };
        Ok(Self { consumer: clients::reader(brokers, topic)?, at_end: vec![false; PARTITIONS as usize], counts })
    }

    /// Reads what is there; waits a moment when nothing is. Returns whether something was.
    pub(crate) fn read(&mut self, sent: &SentUs) -> anyhow::Result<bool> {
        let mut wait = Duration::from_millis(50);
        while let Some(record) = self.consumer.poll(wait) {
            match record {
                Ok(record) => {
                    let partition = usize::try_from(record.partition())?;
                    self.at_end[partition] = false;
                    self.counts.offsets[partition].push(record.offset());
                    self.counts.count(record.payload().unwrap_or_default(), record.headers().is_some(), sent);
                }
                Err(KafkaError::PartitionEOF(partition)) => self.at_end[usize::try_from(partition)?] = true,
                Err(error) => return Err(error).context("the reply topic cannot be read"),
            }
            wait = Duration::ZERO;
        }
        Ok(wait.is_zero())
    }

    /// Reads until every record that is expected has a reply, or none came for a while.
    pub(crate) fn read_all(
        &mut self,
        sent: &SentUs,
        quiet_max: Duration,
        mut each: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let mut last = clock::now();
        while self.counts.answered < self.counts.replies_of.len() && clock::now() - last < quiet_max {
            if self.read(sent)? {
                last = clock::now();
            }
            each(self.counts.answered);
        }
        Ok(())
    }

    /// Reads to the topic's end: a reply too many would be there.
    pub(crate) fn read_to_end(&mut self, sent: &SentUs) -> anyhow::Result<()> {
        let start = clock::now();
        while self.read(sent)? || self.at_end.contains(&false) {
            ensure!(clock::now() - start < END_BOUND, "the reply topic has no end that can be read");
        }
        Ok(())
    }
}

impl Counts<'_> {
    /// So many more records are being sent; those from number `timed_from` on have a latency, and only they.
    pub(crate) fn expect(&mut self, records: usize, timed_from: usize) {
        self.latency_us.reset();
        self.replies_of.resize(self.replies_of.len() + records, 0);
        self.timed_from = timed_from;
    }

    /// Replies of the stream that lie before these offsets.
    pub(crate) fn before(&self, ends: &[i64]) -> usize {
        let count = |(offsets, end): (&Vec<i64>, &i64)| offsets.partition_point(|offset| offset < end);
        self.offsets.iter().zip(ends).map(count).sum()
    }

    pub(crate) fn probes(&self) -> usize {
        self.probes
    }

    /// Mean rows of a batch, where the subject tells.
    pub(crate) fn batch_rows_mean(&self) -> Option<f64> {
        (self.batches > 0.0).then(|| self.batch_rows / self.batches)
    }

    /// How many replies were right; an error says what was not.
    pub(crate) fn verdict(&self) -> anyhow::Result<usize> {
        let lost = self.replies_of.iter().filter(|replies| **replies == 0).count();
        let doubled: u32 = self.replies_of.iter().map(|replies| replies.saturating_sub(1)).sum();
        let first = self.first_wrong.as_deref().unwrap_or_default();
        ensure!(
            lost == 0 && doubled == 0 && self.wrong == 0,
            "of {} records: {lost} lost, {doubled} doubled, {} wrong {first}",
            self.replies_of.len(),
            self.wrong
        );
        Ok(self.answered)
    }

    fn count(&mut self, payload: &[u8], headers: bool, sent: &SentUs) {
        let reply = match serde_json::from_slice::<Reply<'_>>(payload) {
            Ok(reply) => reply,
            Err(error) => return self.wrong(&error.to_string(), payload),
        };
        let Some(record) = reply.record() else {
            self.probes += 1;
            return;
        };
        if record >= self.replies_of.len() {
            return self.wrong("a record that was never sent", payload);
        }
        if record >= self.timed_from {
            self.latency_us += sent.age_us(record).unwrap_or(0);
        }
        if let Some(rows) = reply.batch_rows().filter(|rows| *rows > 0) {
            self.batch_rows += 1.0;
            self.batches += 1.0 / rows as f64;
        }
        self.answered += usize::from(self.replies_of[record] == 0);
        self.replies_of[record] += 1;
        let is_copy = || payload == self.stream.request(record, Format::Reference).as_bytes();
        let right = match self.answer {
            Answer::Copy => is_copy(),
            Answer::CopyWithHeader => headers && is_copy(),
            Answer::NoWork => reply.score() == Some(NO_WORK_SCORE),
            Answer::Score => reply.score().is_some_and(|score| self.stream.is_score(record, score)),
        };
        if !right {
            self.wrong(&format!("wants {:?}, r{record} scores {}", self.answer, self.stream.score(record)), payload);
        }
    }

    fn wrong(&mut self, why: &str, payload: &[u8]) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(|| format!("({why}: {})", String::from_utf8_lossy(payload)));
    }
}
