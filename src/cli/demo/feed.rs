//! The demo's producer: records in, paced, each stamped with the moment that it was handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::data::Data;
use super::place::Requests;
use crate::clock;

/// When each record was sent, in microseconds since the start; 0 is not yet.
pub(super) struct Sent {
    start: Instant,
    at_us: Vec<AtomicU64>,
    count: AtomicUsize,
}

impl Sent {
    pub(super) fn new(records: usize) -> Self {
        Self {
            start: clock::now(),
            at_us: (0..records).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicUsize::new(0),
        }
    }

    /// How long ago a record was sent.
    pub(super) fn age(&self, record: usize) -> Option<Duration> {
        let at = self.at_us[record].load(Ordering::Relaxed);
        (at > 0).then(|| (clock::now() - self.start).saturating_sub(Duration::from_micros(at)))
    }

    /// How many there are to send.
    pub(super) fn records(&self) -> usize {
        self.at_us.len()
    }

    /// How many were sent.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// This one is sent now.
    pub(super) fn stamp(&self, record: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let at = u64::try_from((clock::now() - self.start).as_micros()).unwrap_or(u64::MAX).max(1);
        self.at_us[record].store(at, Ordering::Relaxed);
    }
}

/// The thread that sends.
pub(super) type Feed = JoinHandle<anyhow::Result<()>>;

/// Sends all records, `rate` a second (0: as fast as it goes).
pub(super) fn start(
    mut requests: Box<dyn Requests>,
    data: Arc<Data>,
    sent: Arc<Sent>,
    rate: u32,
) -> anyhow::Result<Feed> {
    let feed = move || {
        let start = clock::now();
        for record in 0..sent.records() {
            if rate > 0 {
                let due = Duration::from_secs_f64(record as f64 / f64::from(rate));
                std::thread::sleep(due.saturating_sub(clock::now() - start));
            }
            let body = data.request(record);
            sent.stamp(record);
            requests.send(record, body)?;
        }
        requests.flush()
    };
    Ok(Builder::new().name("demo-feed".to_owned()).spawn(feed)?)
}
