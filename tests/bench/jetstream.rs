//! `make bench-jetstream`: records of a filled stream answered into another, by forebay in each of its two ways of delivery
//! and by a bare loop (pull, publish, wait for the stream's word, acknowledge) that scores nothing, on one server in one run.
//!
//! Each is a process of its own. Records a second are taken over the steady middle of what the reply stream holds, CPU over
//! the same time from the process's own count. Each reply of forebay is checked.
#![allow(clippy::print_stdout, reason = "it is a program")]
#![allow(clippy::unwrap_used, reason = "in a measurement the panic is the report")]

mod cpu;
mod no_work;
#[path = "../support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::future::IntoFuture as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use forebay::clock;
use futures_util::StreamExt as _;
use futures_util::future::join_all;

use cpu::process_cpu_us;
use support::checks::Tally;
use support::jetstream::Flow;
use support::nats::{Nats, run};
use support::{Higgs, free_port};

/// Features of a row.
const FEATURES: usize = 28;
/// Records that the bare loop pulls, publishes and waits for at once.
const LOOP_BATCH: usize = 500;
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// The steady middle, as shares of all records.
const MIDDLE: (f64, f64) = (0.15, 0.85);
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Who answers.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    BareLoop,
    ExactlyOnce,
    AtLeastOnce,
    LineAlone,
}

impl Subject {
    const ALL: [Self; 4] = [Self::BareLoop, Self::LineAlone, Self::ExactlyOnce, Self::AtLeastOnce];

    fn name(self) -> &'static str {
        match self {
            Self::BareLoop => "bare-loop",
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
            Self::LineAlone => "exactly-once-no-model",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::BareLoop => "pull, publish, wait, acknowledge; no scores",
            Self::ExactlyOnce => "forebay, atomic batches and checkpoints",
            Self::AtLeastOnce => "forebay, replies by themselves, confirmed acks",
            Self::LineAlone => "the same as exactly-once with a model of one leaf",
        }
    }
}

/// What was measured.
struct Row {
    subject: Subject,
    records_per_s: f64,
    cpu_us: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [line, url, name] = &arguments[..]
        && line == "--line"
    {
        run(bare_loop(url, name));
    }
    let records = if arguments.iter().any(|argument| argument == "--quick") { 5_000 } else { 100_000 };
    let (nats, higgs) = (Nats::start(), Higgs::load());
    println!(
        "{records} records of {} bytes or so, one partition, nats-server on the same {} cores",
        higgs.request(0).len(),
        cores()
    );
    let rows: Vec<Row> = Subject::ALL.into_iter().map(|subject| measure(&nats, &higgs, subject, records)).collect();
    println!("{:24} {:>12} {:>14}   beside the bare loop", "", "records/s", "CPU us/record");
    let floor = &rows[0];
    for row in &rows {
        println!(
            "{:24} {:>12.0} {:>14.2}   {:.2}x the rate, {:.2}x the CPU   ({})",
            row.subject.name(),
            row.records_per_s,
            row.cpu_us,
            row.records_per_s / floor.records_per_s,
            row.cpu_us / floor.cpu_us,
            row.subject.what()
        );
    }
    ExitCode::SUCCESS
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn measure(nats: &Nats, higgs: &Higgs, subject: Subject, records: usize) -> Row {
    let delivery = if subject == Subject::AtLeastOnce { "at_least_once" } else { "exactly_once" };
    let flow = Flow { delivery, ..Flow::new(&format!("bench-{}", subject.name()), 1) };
    run(async {
        let client = nats.client().await;
        flow.create(&client).await;
        fill(&client, &flow, higgs, records).await;
        let folder = tempfile::tempdir().unwrap();
        let mut process = start(&flow, nats, subject, folder.path());
        let (first, last) = middle(&client, &flow, &mut process, records).await;
        let count = last.seen - first.seen;
        let row = Row {
            subject,
            records_per_s: count as f64 / (last.at - first.at).as_secs_f64(),
            cpu_us: (last.cpu_us - first.cpu_us) / count as f64,
        };
        let _ = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
        process.wait().unwrap();
        if subject != Subject::BareLoop {
            let replies = flow.replies(&client).await;
            let expected = |n| if subject == Subject::LineAlone { no_work::SCORE } else { higgs.score_at(n) };
            Tally::of(&replies, records, expected).assert_exactly_once();
        }
        let context = jetstream::new(client.clone());
        for name in [flow.input(), flow.output()] {
            context.delete_stream(name).await.unwrap();
        }
        row
    })
}

async fn fill(client: &Client, flow: &Flow, higgs: &Higgs, records: usize) {
    let context = jetstream::new(client.clone());
    for some in (0..records).collect::<Vec<_>>().chunks(LOOP_BATCH) {
        let sends = some.iter().map(|&n| {
            let context = &context;
            async move { context.publish(flow.subject(n), higgs.request_at(n, 2).into()).await.unwrap().await.unwrap() }
        });
        join_all(sends).await;
    }
}

fn start(flow: &Flow, nats: &Nats, subject: Subject, folder: &std::path::Path) -> Child {
    if subject == Subject::BareLoop {
        let program = std::env::current_exe().unwrap();
        return Command::new(program).args(["--line", &nats.url(), &flow.name]).stdin(Stdio::null()).spawn().unwrap();
    }
    let mut toml = flow.toml(nats).replace("ping_interval = \"500ms\"\n", "");
    if subject == Subject::LineAlone {
        let model = folder.join("no-work.txt");
        fs::write(&model, no_work::of_width(FEATURES)).unwrap();
        toml = toml.replace(&Higgs::model().display().to_string(), &model.display().to_string());
    }
    let _ = write!(toml, "[cache]\nmode = \"off\"\n[admin]\nlisten = \"127.0.0.1:{}\"\n", free_port());
    let (config, log) = (folder.join("worker.toml"), File::create(folder.join("log")).unwrap());
    fs::write(&config, toml).unwrap();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_forebay"));
    worker.arg("run").arg("--config").arg(config).args(["--instance", "bench"]);
    worker.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    seen: u64,
    cpu_us: f64,
}

/// The samples at both ends of the steady middle; waits for all replies.
async fn middle(client: &Client, flow: &Flow, process: &mut Child, records: usize) -> (Sample, Sample) {
    let context = jetstream::new(client.clone());
    let (mut samples, mut last_new) = (Vec::<Sample>::new(), clock::now());
    loop {
        let stream = context.get_stream(flow.output()).await.unwrap();
        let subject = format!("{}-out", flow.name);
        // The checkpoints among the messages are few, and counted apart.
        let counts = stream.info_with_subjects(subject).await.unwrap();
        let seen: u64 = counts.map(|count| count.unwrap().1 as u64).collect::<Vec<_>>().await.into_iter().sum();
        let sample = Sample { at: clock::now(), seen, cpu_us: process_cpu_us(process.id()).unwrap_or(0.0) };
        if samples.last().is_none_or(|last| seen > last.seen) {
            last_new = sample.at;
        }
        samples.push(sample);
        if seen >= records as u64 {
            break;
        }
        assert!(process.try_wait().unwrap().is_none(), "{} ended", flow.name);
        assert!(clock::now() - last_new < STUCK_AFTER, "{}: {seen} of {records}", flow.name);
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
    let at = |share: f64| *samples.iter().find(|sample| sample.seen as f64 >= share * records as f64).unwrap();
    (at(MIDDLE.0), at(MIDDLE.1))
}

/// The least that a client of `JetStream` does for each record.
async fn bare_loop(url: &str, name: &str) {
    let flow = Flow::new(name, 1);
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let input: stream::Stream = context.get_stream(flow.input()).await.unwrap();
    let config = pull::Config {
        durable_name: Some("loop".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    let consumer = input.create_consumer(config).await.unwrap();
    let mut messages =
        consumer.stream().max_messages_per_batch(2 * LOOP_BATCH).messages().await.unwrap().ready_chunks(LOOP_BATCH);
    let subject = format!("{name}-out");
    while let Some(some) = messages.next().await {
        let some: Vec<_> = some.into_iter().map(Result::unwrap).collect();
        let mut words = Vec::with_capacity(some.len());
        for message in &some {
            words.push(context.publish(subject.clone(), message.payload.clone()).await.unwrap().into_future());
        }
        for word in join_all(words).await {
            word.unwrap();
        }
        for message in &some {
            message.ack().await.unwrap();
        }
    }
}
