//! A stream that flows while something happens to its workers: records in at a pace, replies out as they become visible,
//! and a fleet of workers of which one can be killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use forebay::clock;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;

use super::checks::number;
use super::{BOUND, Kafka, Record, Worker, until};

/// Sends records at a pace, from a thread of its own.
pub struct Feed {
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Instant>>,
}

impl Feed {
    /// Sends `record(0)`, `record(1)`, … up to `count`. One that is late catches up.
    pub fn start(
        kafka: &Kafka,
        topic: &str,
        rate_per_s: f64,
        count: usize,
        record: impl Fn(usize) -> Record + Send + 'static,
    ) -> Self {
        let (producer, topic, sent) = (kafka.producer(), topic.to_owned(), Arc::new(AtomicUsize::new(0)));
        let progress = Arc::clone(&sent);
        let feed = move || {
            let (start, mut times) = (clock::now(), Vec::with_capacity(count));
            for n in 0..count {
                let due = Duration::from_secs_f64(n as f64 / rate_per_s);
                let early = due.saturating_sub(clock::now() - start);
                // A sleep of less is not worth its system call.
                if early > Duration::from_micros(500) {
                    std::thread::sleep(early);
                }
                times.push(clock::now());
                record(n).send(&producer, &topic);
                progress.store(n + 1, Ordering::Relaxed);
            }
            producer.flush(BOUND).unwrap();
            times
        };
        Self { sent, thread: Builder::new().name("test-feed".to_owned()).spawn(feed).unwrap() }
    }

    /// How many were handed to the producer.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many were.
    pub fn wait_sent(&self, count: usize) {
        until("the feed", || self.sent() >= count || self.thread.is_finished());
    }

    /// Waits until all are acknowledged; when each was handed to the producer.
    pub fn end(self) -> Vec<Instant> {
        until("the feed's end", || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

/// A reply, and when it could be read.
pub struct Arrival {
    pub n: usize,
    pub at: Instant,
    pub partition: i32,
    pub offset: i64,
}

/// Reads replies as they become visible, from a thread of its own.
pub struct Watcher {
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Record)>>,
}

impl Watcher {
    pub fn start(kafka: &Kafka, topic: &str) -> Self {
        let (consumer, _) = kafka.reader(topic);
        let (seen, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let watch = move || {
            let mut records = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match consumer.poll(Duration::from_millis(20)) {
                    None | Some(Err(KafkaError::PartitionEOF(_))) => {}
                    Some(Ok(message)) => {
                        records.push((clock::now(), Record::of(&message)));
                        count.store(records.len(), Ordering::Relaxed);
                    }
                    Some(Err(error)) => super::passes(&error),
                }
            }
            records
        };
        Self { seen, stop, thread: Builder::new().name("test-watch".to_owned()).spawn(watch).unwrap() }
    }

    pub fn wait_seen(&self, count: usize) {
        until("the replies", || self.seen.load(Ordering::Relaxed) >= count || self.thread.is_finished());
    }

    /// What it has read, in the order of arrival.
    pub fn end(self) -> Vec<Arrival> {
        self.stop.store(true, Ordering::Relaxed);
        let arrival = |(at, record): (Instant, Record)| {
            let n = number(&record).unwrap_or_else(|| panic!("a reply without an id: {}", record.text()));
            Arrival { n, at, partition: record.partition.unwrap(), offset: record.offset }
        };
        self.thread.join().unwrap().into_iter().map(arrival).collect()
    }
}

/// Workers of one group, each under a name that stays when it is replaced.
pub struct Fleet {
    toml: String,
    failpoints: String,
    names: Vec<String>,
    workers: Vec<Worker>,
}

impl Fleet {
    /// Starts them and waits until all are ready.
    pub fn start(toml: &str, name: &str, count: usize, failpoints: &str) -> Self {
        let names: Vec<String> = (0..count).map(|index| format!("{name}-{index}")).collect();
        let workers = names.iter().map(|name| Worker::start(toml, name, failpoints)).collect();
        let mut fleet = Self { toml: toml.to_owned(), failpoints: failpoints.to_owned(), names, workers };
        fleet.wait_ready();
        fleet
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    pub fn worker(&mut self, index: usize) -> &mut Worker {
        &mut self.workers[index]
    }

    /// SIGKILL, in a moment with records in flight if there is one soon, and at once another in its place. Returns whether
    /// there was one. A worker whose partitions wait for a killed one's transaction has none for a while.
    pub fn kill(&mut self, index: usize) -> bool {
        let bound = clock::now() + Duration::from_secs(5);
        let mut in_flight = 0;
        while in_flight == 0 && clock::now() < bound {
            in_flight = self.workers[index].metric("forebay_records_in_flight");
        }
        self.workers[index].kill();
        self.workers[index] = Worker::start(&self.toml, &self.names[index], &self.failpoints);
        in_flight > 0
    }

    pub fn wait_ready(&mut self) {
        self.workers.iter_mut().for_each(Worker::wait_ready);
    }

    /// Waits until everything that was sent is committed and no transaction is open: what is then missing is lost.
    pub fn wait_quiet(&mut self, kafka: &Kafka, group: &str, (input, partitions): (&str, i32), output: &str) {
        self.wait_ready();
        until("the group at the input's end", || {
            self.workers.iter_mut().for_each(|worker| assert!(worker.exit().is_none(), "it ended: {}", worker.log()));
            kafka.committed(group, input, partitions) == kafka.ends(input, partitions)
        });
        until("the end of all transactions", || kafka.ends(output, partitions) == kafka.high_ends(output, partitions));
    }

    /// SIGTERM to all; each must have answered everything.
    pub fn terminate(&mut self) {
        self.workers.iter().for_each(|worker| worker.signal("-TERM"));
        for worker in &mut self.workers {
            assert_eq!(worker.wait_exit(), Some(0), "{}", worker.log());
        }
    }
}

/// Steele, Lea and Flood's `SplitMix64`.
pub struct Random(u64);

impl Random {
    /// The seed of the environment's `FOREBAY_SEED`, else one from the clock.
    pub fn seed() -> u64 {
        let given = std::env::var("FOREBAY_SEED").ok();
        given.map_or_else(|| clock::unix_ms().unsigned_abs() % 1_000_000, |seed| seed.parse().unwrap())
    }

    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }
}

/// A number of the environment, or another.
pub fn env_or(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}
