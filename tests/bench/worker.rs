//! `make bench`: the worker beside its floor, a plain loop and its peers, on one broker, in one run.
//!
//! Every subject is a process of its own with equal client settings, reads the reference stream and scores it with the
//! reference model; every score that is timed is checked. Out come a table, `target/bench/worker.json` and `worker.svg`.
//! The exit code is 1 when a score was wrong or missing, or something could not be measured.
#![allow(clippy::print_stdout, reason = "it is a program")]

mod clients;
mod cpu;
mod forest;
mod ledger;
mod lines;
mod measure;
mod plot;
mod progress;
mod report;
mod stream;
mod subject;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;

use measure::Bench;
use progress::Progress;
use report::Forest;
use stream::Stream;
use subject::{Place, Subject};

/// Rows of a batch for which the forest's own cost is shown, besides forebay's mean batch.
const BATCHES: [usize; 3] = [1, 64, 1024];

/// Measures a forebay worker beside its floor and its peers.
#[derive(Parser)]
struct Arguments {
    /// A twentieth of the records and a fifth of the latency phase: shows that it runs, and measures nothing.
    #[arg(long)]
    quick: bool,
    /// Only these, by name, comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Subject>,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Is a subject instead of measuring it.
#[derive(Parser)]
struct Line {
    #[arg(long)]
    line: Subject,
    #[command(flatten)]
    place: Place,
}

fn main() -> ExitCode {
    let is_line = std::env::args().nth(1).is_some_and(|first| first == "--line");
    let done = if is_line { run_line(&Line::parse()).map(|()| true) } else { run(&Arguments::parse()) };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_line(Line { line, place }: &Line) -> anyhow::Result<()> {
    if *line == Subject::RustLoop { lines::rust_loop(place) } else { lines::pass_through(place) }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let folder = subject::root().join("target/bench");
    let stream = Stream::load(&folder.join("models")).context("the reference models are missing; run `make bench`")?;
    let stream = Arc::new(stream);
    let progress = Progress::new()?;
    progress.stage("the broker starts", 1);
    let kafka = support::Kafka::start();
    let bench = Bench {
        kafka: &kafka,
        stream: Arc::clone(&stream),
        folder: &folder,
        progress: &progress,
        quick: arguments.quick,
    };
    let (rows, mut all_right) = measure_all(&bench, &arguments.only)?;
    let round_trips = bench.round_trips().unwrap_or_else(|error| {
        progress.say(&format!("round-trip failed: {error:#}"));
        all_right = false;
        Vec::new()
    });
    drop(kafka);
    let forest = forest_costs(&stream, &rows, &progress)?;
    progress.end();

    report::print(&rows, &round_trips, &forest);
    report::print_goals(&rows, &round_trips, forest.last());
    fs::write(
        folder.join("worker.json"),
        format!("{:#}\n", report::json(&rows, &round_trips, &forest, arguments.quick)),
    )?;
    fs::write(folder.join("worker.svg"), plot::svg(&rows))?;
    println!("written  target/bench/worker.json, target/bench/worker.svg");
    if arguments.quick {
        println!("--quick: these figures measure nothing");
    }
    Ok(all_right)
}

/// The rows, and whether each subject that is there could be measured and was right. One that fails stops no other.
fn measure_all(bench: &Bench<'_>, only: &[Subject]) -> anyhow::Result<(Vec<measure::Measured>, bool)> {
    use clap::ValueEnum as _;
    bench.progress.stage("the broker warms up", 1);
    bench.warm_up()?;
    let (mut rows, mut all_right) = (Vec::new(), true);
    for &subject in Subject::value_variants() {
        if !only.is_empty() && !only.contains(&subject) {
            continue;
        }
        if let Some(missing) = subject.missing() {
            bench.progress.say(&format!("{} is left out: {missing}", subject.name()));
            continue;
        }
        match bench.measure(subject) {
            Ok(measured) => rows.push(measured),
            Err(error) => {
                bench.progress.say(&format!("{} failed: {error:#}", subject.name()));
                all_right = false;
            }
        }
    }
    Ok((rows, all_right))
}

/// Last the batch that forebay made.
fn forest_costs(stream: &Stream, rows: &[measure::Measured], progress: &Progress) -> anyhow::Result<Vec<Forest>> {
    let mean = report::find(rows, Subject::Forebay).and_then(|forebay| forebay.batch_rows_mean);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of 1 to 65,536 rows")]
    let own = mean.map(|mean| mean.round() as usize);
    let cores = std::thread::available_parallelism()?.get();
    let batches: Vec<usize> = BATCHES.into_iter().chain(own).collect();
    progress.stage("the forest alone", batches.len());
    let cost = |(done, batch): (usize, usize)| {
        progress.at(done);
        let alone_us = forest::us_per_row(stream, batch, 1)?;
        Ok(Forest { batch, alone_us, crowded_us: forest::us_per_row(stream, batch, cores)? })
    };
    batches.into_iter().enumerate().map(cost).collect()
}
