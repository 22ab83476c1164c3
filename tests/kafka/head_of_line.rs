//! One record that takes five seconds, in a stream that flows: the others of its partition are answered meanwhile, and a
//! kill beside it loses and doubles nothing. `FOREBAY_RATE` sets the records a second; `make test-kills` takes 20,000.

use std::time::{Duration, Instant};

use crate::support::checks::{Tally, number, percentile};
use crate::support::stream::{Arrival, Feed, Watcher, env_or};
use crate::support::{Record, Worker, until};
use crate::{EXACTLY_ONCE, Shared, Toml};

const PARTITIONS: usize = 4;
const SLOW_MS: usize = 5000;
/// Seconds of the stream before the slow record, the first of them not looked at, and after it is done.
const BEFORE_S: usize = 4;
const AFTER_S: usize = 1;
/// In each of these the partition must get replies.
const WINDOW: Duration = Duration::from_millis(500);

/// A stream with a slow record.
struct Run {
    rate_per_s: usize,
    records: usize,
    /// The number of the slow one.
    slow: usize,
    toml: String,
    failpoints: String,
    input: String,
    output: String,
}

impl Run {
    fn new(shared: &Shared, name: &str) -> Self {
        let (input, output) = shared.topics(name, i32::try_from(PARTITIONS).unwrap());
        let rate_per_s = env_or("FOREBAY_RATE", 5000);
        let slow = BEFORE_S * rate_per_s;
        let toml = Toml { kafka: &EXACTLY_ONCE.lines(), ..Toml::new(name) }.text(&shared.kafka.brokers());
        let failpoints = format!("score::slow_record=return(r{slow}:{SLOW_MS})");
        let records = slow + (SLOW_MS / 1000 + AFTER_S) * rate_per_s;
        Self { rate_per_s, records, slow, toml, failpoints, input, output }
    }

    fn feed(&self, shared: &Shared) -> Feed {
        let requests: Vec<String> = (0..self.records).map(|n| shared.higgs.request_at(n, 2)).collect();
        let record = move |n: usize| {
            let partition = i32::try_from(n % PARTITIONS).unwrap();
            Record::new(&format!("k{n}"), requests[n].as_bytes()).at_partition(partition)
        };
        Feed::start(&shared.kafka, &self.input, self.rate_per_s as f64, self.records, record)
    }

    /// Whether a record is of the slow one's partition, and another.
    fn is_neighbour(&self, n: usize) -> bool {
        n != self.slow && n % PARTITIONS == self.slow % PARTITIONS
    }
}

pub(crate) fn flows(shared: &Shared) {
    let run = Run::new(shared, "headofline");
    let mut worker = Worker::start(&run.toml, "headofline", &run.failpoints);
    worker.wait_ready();
    let watcher = Watcher::start(&shared.kafka, &run.output);
    let sent = run.feed(shared).end();
    watcher.wait_seen(run.records);
    let arrivals = watcher.end();

    let of_slow = arrivals.iter().find(|arrival| arrival.n == run.slow).expect("a reply to the slow record").at;
    let slow_took = of_slow - sent[run.slow];
    assert!(
        slow_took >= Duration::from_millis(SLOW_MS as u64),
        "the slow record took {slow_took:?}: nothing was shown"
    );
    // Those right before it may be in its batch, and wait with it.
    let (before, during) =
        (run.rate_per_s..run.slow - run.rate_per_s / 2, run.slow + 1..run.slow + SLOW_MS / 1000 * run.rate_per_s);
    let p99_ms = |numbers: &std::ops::Range<usize>| {
        let neighbours = arrivals.iter().filter(|arrival| numbers.contains(&arrival.n) && run.is_neighbour(arrival.n));
        percentile(neighbours.map(|arrival| (arrival.at - sent[arrival.n]).as_secs_f64() * 1e3).collect(), 99)
    };
    let (before, during) = (p99_ms(&before), p99_ms(&during));
    let pauses = pauses(&run, &arrivals, sent[run.slow], of_slow);
    println!(
        "headofline: {}/s, slow {slow_took:.1?}; p99 of its partition {before:.1} ms before, {during:.1} ms beside it, \
         ratio {:.2}; {pauses} windows of {WINDOW:?} without a reply",
        run.rate_per_s,
        during / before
    );
    assert_eq!(pauses, 0, "its partition stood still");
    assert_eq!(worker.terminate(), Some(0));
    let replies = shared.kafka.read(&run.output, run.records);
    Tally::of(&replies, run.records, |n| shared.higgs.score_at(n)).assert_exactly_once();
}

/// Windows between the two moments in which no other reply of the slow record's partition came.
fn pauses(run: &Run, arrivals: &[Arrival], from: Instant, to: Instant) -> usize {
    let windows = (to - from).as_millis() / WINDOW.as_millis();
    let mut replies = vec![0_usize; usize::try_from(windows).unwrap()];
    for arrival in arrivals.iter().filter(|arrival| run.is_neighbour(arrival.n) && arrival.at >= from) {
        let window = (arrival.at - from).as_millis() / WINDOW.as_millis();
        if let Some(count) = replies.get_mut(usize::try_from(window).unwrap()) {
            *count += 1;
        }
    }
    replies.iter().filter(|count| **count == 0).count()
}

pub(crate) fn killed(shared: &Shared) {
    let run = Run::new(shared, "slowkilled");
    let partitions = i32::try_from(PARTITIONS).unwrap();
    let mut worker = Worker::start(&run.toml, "slowkilled", &run.failpoints);
    worker.wait_ready();
    let feed = run.feed(shared);
    // Two seconds into the slow record's five.
    feed.wait_sent(run.slow + 2 * run.rate_per_s);
    worker.kill();
    // Its partition's position waits before the slow record, while later ones of that partition are answered.
    let slow_partition = run.slow % PARTITIONS;
    let position = shared.kafka.committed("slowkilled", &run.input, partitions)[slow_partition];
    let neighbour_after = |reply: &&Record| number(reply).is_some_and(|n| n > run.slow && run.is_neighbour(n));
    let beyond = shared.kafka.read(&run.output, 0).iter().filter(neighbour_after).count();
    let slow_offset = i64::try_from(run.slow / PARTITIONS).unwrap();
    let mut worker = Worker::ready(&run.toml, "slowkilled");
    feed.end();
    let ends = shared.kafka.ends(&run.input, partitions);
    until("the input's end", || shared.kafka.committed("slowkilled", &run.input, partitions) == ends);
    let replies = shared.kafka.read(&run.output, 0);
    let tally = Tally::of(&replies, run.records, |n| shared.higgs.score_at(n));
    // Every record of a batch that the slow one was in waited with it; they lie next to it.
    println!(
        "slowkilled: position {position} at the kill, slow record at {slow_offset}, {beyond} replies of its partition \
         beyond it; {tally}"
    );
    assert!(position <= slow_offset && position >= slow_offset - 2048, "the kill missed the slow record");
    assert!(beyond > 0, "nothing was finished beyond the position, so nothing could be doubled");
    tally.assert_exactly_once();
    assert_eq!(worker.terminate(), Some(0));
}
