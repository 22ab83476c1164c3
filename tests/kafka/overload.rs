//! Twice as many records as the model can score: the high level's latency, the worker's memory, and every record answered
//! once, with its score or with why not. `FOREBAY_OVERLOAD_S` sets the seconds; `make test-overload` takes 60.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::checks::{number, percentile};
use crate::support::stream::{Arrival, Feed, Watcher, env_or};
use crate::support::{Record, Worker, until};
use crate::{EXACTLY_ONCE, Shared, Toml};

const PARTITIONS: i32 = 4;
/// Two threads, 16 rows in 10 ms each: 3,200 a second.
const SLOWLY: &str = "score::batch=sleep(10)";
const CAPACITY_PER_S: usize = 3200;
const LEVELS: usize = 3;
/// Of ten records, how many are of level 1 and 2.
const SHARES: [usize; 2] = [1, 3];
/// Levels 1 and 2 fit into what the model can score; level 3 does not.
const MODEL: &str = r#"
[model.batch]
batch_size_max = 16
[[model.batch.level]]
level = 3
queue_depth_max = 128
queue_full = "reject"
timeout = "150ms"
[engine]
num_threads = 2
"#;

fn level_of(n: usize) -> usize {
    match n % 10 {
        part if part < SHARES[0] => 1,
        part if part < SHARES[0] + SHARES[1] => 2,
        _ => 3,
    }
}

pub(crate) fn is_survived(shared: &Shared) {
    let seconds = env_or("FOREBAY_OVERLOAD_S", 10);
    let (input, output) = shared.topics("overload", PARTITIONS);
    let toml = Toml { kafka: &EXACTLY_ONCE.lines(), model: MODEL, ..Toml::new("overload") };
    let mut worker = Worker::start(&toml.text(&shared.kafka.brokers()), "overload", SLOWLY);
    worker.wait_ready();
    let watcher = Watcher::start(&shared.kafka, &output);

    // Numbers 0..unloaded at a fifth of the capacity; from there on at twice.
    let unloaded = seconds * CAPACITY_PER_S / 5;
    let records = unloaded + seconds * 2 * CAPACITY_PER_S;
    let feed = |from: usize, count: usize, rate: usize| {
        let requests: Vec<String> = shared.higgs.rows.clone();
        let record = move |index: usize| {
            let n = from + index;
            let (row, level) = (&requests[n % requests.len()], level_of(n));
            let body = format!("{{\"id\":\"r{n}\",\"features\":{row},\"priority\":{level}}}");
            Record::new(&format!("k{n}"), body)
        };
        Feed::start(&shared.kafka, &input, rate as f64, count, record)
    };
    let calm = feed(0, unloaded, CAPACITY_PER_S / 5);
    while calm.sent() < unloaded {
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut sent = calm.end();
    watcher.wait_seen(unloaded);
    let loaded = feed(unloaded, records - unloaded, 2 * CAPACITY_PER_S);
    let mut memory = Vec::new();
    while loaded.sent() < records - unloaded {
        memory.push(resident_mb(worker.pid()));
        std::thread::sleep(Duration::from_millis(250));
    }
    sent.extend(loaded.end());
    watcher.wait_seen(records);
    let arrivals = watcher.end();

    let p99_ms = |numbers: std::ops::Range<usize>, level: usize| {
        let of_level = |arrival: &&Arrival| numbers.contains(&arrival.n) && level_of(arrival.n) == level;
        let latency = |arrival: &Arrival| (arrival.at - sent[arrival.n]).as_secs_f64() * 1e3;
        percentile(arrivals.iter().filter(of_level).map(latency).collect(), 99)
    };
    // Without the first second of each: a producer and a JVM that warm up.
    let (calm, busy) = (unloaded / seconds..unloaded, unloaded + 2 * CAPACITY_PER_S..records);
    let [before, during] =
        [calm, busy].map(|numbers| (1..=LEVELS).map(|level| p99_ms(numbers.clone(), level)).collect());
    let (before, during): (Vec<f64>, Vec<f64>) = (before, during);
    let (third, last) = (memory[memory.len() / 3], memory[memory.len() - 1]);
    println!(
        "overload: {seconds} s at {}/s, capacity {CAPACITY_PER_S}/s; p99 by level {during:.1?} ms, unloaded {before:.1?} ms: \
         level 1 {:.2} of its unloaded value; resident {third:.1} MiB after a third, {last:.1} MiB at the end",
        2 * CAPACITY_PER_S,
        during[0] / before[0],
    );
    assert!(last < third * 1.1 + 4.0, "memory grew: {memory:.1?}");
    judge(shared, &output, records);
    assert_eq!(worker.terminate(), Some(0));
    let ends = shared.kafka.ends(&input, PARTITIONS);
    assert_eq!(ends.iter().sum::<i64>(), i64::try_from(records).unwrap(), "what the input topic holds was judged");
    until("the input's end", || shared.kafka.committed("overload", &input, PARTITIONS) == ends);
}

/// From the reply topic and the list of what was sent: each record once, with its score or a rejection of level 3.
fn judge(shared: &Shared, output: &str, records: usize) {
    let mut answers = vec![0_usize; records];
    let mut counts: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for reply in shared.kafka.read(output, records) {
        let n = number(&reply).unwrap_or_else(|| panic!("a reply without an id: {}", reply.text()));
        answers[n] += 1;
        let json = reply.json();
        let end = if json["success"] == true {
            let score = json["prediction"][0].as_f64().unwrap();
            assert!((score - shared.higgs.score_at(n)).abs() < 1e-12, "r{n}: {score}");
            "scored"
        } else {
            json["error"]["code"].as_str().unwrap()
        };
        *counts.entry((level_of(n), end.to_owned())).or_default() += 1;
    }
    println!("overload: {counts:?}");
    let lost = answers.iter().filter(|count| **count == 0).count();
    let doubled: usize = answers.iter().map(|count| count.saturating_sub(1)).sum();
    assert_eq!((lost, doubled), (0, 0), "of {records} records");
    let rejected = |level: usize| {
        ["queue_full", "deadline_exceeded"].map(|code| counts.get(&(level, code.to_owned())).copied().unwrap_or(0))
    };
    assert_eq!([rejected(1), rejected(2)], [[0, 0], [0, 0]], "levels 1 and 2 have room and no time-out");
    assert!(rejected(3).iter().sum::<usize>() > records / 10, "there was no overload: nothing was shown");
    let known = |(_, end): &&(usize, String)| ["scored", "queue_full", "deadline_exceeded"].contains(&end.as_str());
    assert_eq!(counts.keys().filter(known).count(), counts.len(), "another error");
    assert!(counts.contains_key(&(3, "scored".to_owned())), "level 3 starved");
}

fn resident_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
