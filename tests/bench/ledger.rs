//! The bench's reader: every reply is counted by its id and its score held against the expected one. Nothing that a
//! subject says about itself is believed, but for the size of its batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use forebay::clock;
use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message};

use crate::clients::{self, PARTITIONS};
use crate::stream::{Format, Reply, Stream};

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

/// What the reply topic holds so far.
pub(crate) struct Ledger<'a> {
    stream: &'a Stream,
    consumer: BaseConsumer,
    /// Replies are the requests again.
    copies: bool,
    replies_of: Vec<u32>,
    answered: usize,
    wrong: usize,
    first_wrong: Option<String>,
    at_end: Vec<bool>,
    /// Offsets of the replies by partition, ascending.
    offsets: Vec<Vec<i64>>,
    batch_rows_sum: u64,
    batch_count: f64,
    /// The records whose latency counts, from the feeder's hands to this reader.
    pub(crate) latency_us: Histogram<u64>,
    timed_from: usize,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(stream: &'a Stream, brokers: &str, topic: &str, copies: bool) -> anyhow::Result<Self> {
        Ok(Self {
            stream,
            consumer: clients::reader(brokers, topic)?,
            copies,
            replies_of: Vec::new(),
            answered: 0,
            wrong: 0,
            first_wrong: None,
            at_end: vec![false; PARTITIONS as usize],
            offsets: vec![Vec::new(); PARTITIONS as usize],
            batch_rows_sum: 0,
            batch_count: 0.0,
            latency_us: Histogram::new(3).context("a histogram of three digits")?,
            timed_from: usize::MAX,
        })
    }

    /// So many more records were, or will be, sent. Those from number `timed_from` on have a latency.
    pub(crate) fn expect(&mut self, records: usize, timed_from: usize) {
        self.replies_of.resize(self.replies_of.len() + records, 0);
        self.timed_from = timed_from;
    }

    pub(crate) fn all_answered(&self) -> bool {
        self.answered == self.replies_of.len()
    }

    /// Reads what is there; waits a moment when nothing is. Returns how many replies came.
    pub(crate) fn read(&mut self, sent: &SentUs) -> anyhow::Result<usize> {
        let mut wait = Duration::from_millis(50);
        let mut count = 0;
        // A message borrows the consumer, and the count needs all the rest.
        let consumer = std::mem::replace(&mut self.consumer, clients::nobody()?);
        let mut read = || -> anyhow::Result<()> {
            while let Some(record) = consumer.poll(wait) {
                match record {
                    Ok(record) => self.count(&record, sent)?,
                    Err(KafkaError::PartitionEOF(partition)) => self.at_end[usize::try_from(partition)?] = true,
                    Err(error) => return Err(error).context("the reply topic cannot be read"),
                }
                wait = Duration::ZERO;
                count += 1;
            }
            Ok(())
        };
        let done = read();
        self.consumer = consumer;
        done.map(|()| count)
    }
}
