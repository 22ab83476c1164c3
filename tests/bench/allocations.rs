//! `make bench`, its second part: how often the worker's Rust code asks for memory on the steady Kafka path.
//!
//! A filled topic on a real broker, a worker in this very process, exactly once, and a counting allocator: allocations a
//! record between the moments when [`MIDDLE`] of the records were scored. librdkafka's own allocations (C) are not among
//! them. The exit code is 1 when a reply is missing or is an error.
#![allow(clippy::print_stdout, reason = "it is a program")]
#![allow(clippy::unwrap_used, reason = "a panic ends it with its reason")]

mod allocator;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use forebay::clock::Stop;
use forebay::config::{Config, ProcessEnvironment};
use forebay::pipeline::Worker;
use rdkafka::producer::Producer as _;

use allocator::Counted;
use support::{BOUND, Kafka, Record, repository, until};

const PARTITIONS: i32 = 4;
const RECORDS: usize = 300_000;
/// The steady part, as hundredths of the records.
const MIDDLE: [usize; 2] = [30, 80];

fn main() -> ExitCode {
    let kafka = Kafka::start();
    let (requests, model) = (requests(), repository().join("tests/data/higgs/higgs.model.txt"));
    println!(
        "{:<28} {:>14} {:>12} {:>14} {:>10}",
        "exactly once, 4 partitions", "allocations", "bytes", "records a", "batch"
    );
    println!("{:<28} {:>14} {:>12} {:>14} {:>10}", "", "a record", "a record", "transaction", "rows");
    let mut all_right = true;
    for (name, batch_size_max) in [("batches of 1024 at most", 1024), ("batches of 64 at most", 64)] {
        all_right &= measure(&kafka, &requests, &format!("allocations-{batch_size_max}"), name, |name| {
            format!(
                "instance = \"bench\"\n[kafka]\nbrokers = \"{}\"\ngroup = \"{name}\"\n[[route]]\ninput = [\"{name}-in\"]\n\
                 reply_topic = \"{name}-out\"\n[[model]]\nname = \"higgs\"\npath = \"{}\"\n[model.batch]\nbatch_size_max = \
                 {batch_size_max}\n[cache]\nmode = \"off\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
                kafka.brokers(),
                model.display()
            )
        });
    }
    if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The JSON rows of the HIGGS file.
fn requests() -> Vec<String> {
    let data = fs::read_to_string(repository().join("tests/data/higgs/higgs.test.tsv")).unwrap();
    data.lines().map(|line| line.split('\t').skip(1).collect::<Vec<_>>().join(",")).collect()
}

fn measure(kafka: &Kafka, rows: &[String], name: &str, title: &str, toml: impl Fn(&str) -> String) -> bool {
    let (input, output) = (format!("{name}-in"), format!("{name}-out"));
    kafka.create(&[&input, &output], PARTITIONS);
    let producer = kafka.producer();
    for n in 0..RECORDS {
        let body = format!("{{\"id\":\"r{n}\",\"features\":[{}]}}", rows[n % rows.len()]);
        Record::new(&format!("k{n}"), body).at_partition(i32::try_from(n % 4).unwrap()).send(&producer, &input);
        if n % 10_000 == 0 {
            producer.flush(BOUND).unwrap();
        }
    }
    producer.flush(BOUND).unwrap();
    drop(producer);

    let config = Config::from_toml(&toml(name), "bench.toml", repository(), &ProcessEnvironment).unwrap();
    let stop = Arc::new(Stop::default());
    let worker = Worker::start(&config, None, Arc::clone(&stop)).unwrap();
    let metrics = Arc::clone(worker.engine().metrics());
    let model = metrics.model("higgs");
    let [before, after] = MIDDLE.map(|hundredth| {
        let wanted = u64::try_from(RECORDS * hundredth / 100).unwrap();
        // The wait itself allocates nothing.
        until("the records", || model.scored.get() >= wanted);
        let committed = (metrics.commits.get(), metrics.commit_records.sum());
        let batches = (model.batch_rows.count(), model.batch_rows.sum());
        (model.scored.get(), Counted::so_far(), committed, batches)
    });
    until("the end", || model.scored.get() + metrics.failed_total() >= RECORDS as u64);
    stop.request(Duration::from_secs(20));
    let ended = worker.wait();
    let records = (after.0 - before.0) as f64;
    let counted = after.1 - before.1;
    println!(
        "{title:<28} {:>14.4} {:>12.1} {:>14.0} {:>10.0}",
        counted.allocations as f64 / records,
        counted.bytes as f64 / records,
        (after.2.1 - before.2.1) as f64 / (after.2.0 - before.2.0) as f64,
        (after.3.1 - before.3.1) as f64 / (after.3.0 - before.3.0) as f64,
    );
    let replies = kafka.read(&output, RECORDS);
    let good = replies.iter().filter(|reply| reply.text().contains("\"success\":true")).count();
    if ended.is_err() || good != RECORDS || replies.len() != RECORDS {
        println!("{title}: {good} good ones of {} replies to {RECORDS} records; {ended:?}", replies.len());
        return false;
    }
    true
}
