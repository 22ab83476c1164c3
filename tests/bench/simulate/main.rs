//! `make bench-batch`: the batcher's rules beside others, in simulated time.
//!
//! Requests of three levels come in by a seed; two threads score batches that take a fixed time and more for each row;
//! the worker's own batcher, Triton's documented rules and two plain ones decide which. Every run of a seed gives the same
//! figures, whatever else the machine does.
//!
//! The simulation checks itself (see [`world`], and below a queue whose mean wait is known), and exits with 1 when
//! a check fails.
#![allow(clippy::print_stdout, reason = "it is a program")]

mod figures;
mod report;
mod rules;
mod scenario;
mod triton;
mod workload;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use anyhow::{Context as _, ensure};
use clap::Parser;

use figures::Figures;
use rules::Plain;
use scenario::{Rule, Scenario};
use workload::{Cost, Machine, Random, Spread, Workload, arrivals};

pub(crate) const MS: u64 = 1_000_000;

/// Compares the rules by which requests are gathered into batches, in simulated time.
#[derive(Parser)]
struct Arguments {
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Another seed gives other arrivals.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A rule tried on a scenario.
pub(crate) struct Run<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) rule: &'static str,
    pub(crate) figures: Figures,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-batch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> anyhow::Result<()> {
    check_a_known_queue(arguments.seed)?;
    let scenarios = scenario::all(arguments.seed);
    check_it_repeats(&scenarios)?;
    let runs = run_all(&scenarios)?;
    if arguments.json {
        println!("{:#}", report::json(arguments.seed, &runs));
    } else {
        report::print(arguments.seed, &runs);
    }
    Ok(())
}

/// All rules on all scenarios, on two threads.
fn run_all(scenarios: &[Scenario]) -> anyhow::Result<Vec<Run<'_>>> {
    let jobs: Vec<_> =
        scenarios.iter().flat_map(|scenario| scenario.rules.iter().map(move |rule| (scenario, *rule))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut runs = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(scenario, (name, rule))) = jobs.get(place) else { return Ok(runs) };
            runs.push((place, Run { scenario, rule: name, figures: run(scenario, rule, name)? }));
        }
    };
    let mut runs = std::thread::scope(|scope| {
        let start = |_| Builder::new().name("simulate".to_owned()).spawn_scoped(scope, work);
        let threads = (0..2).map(start).collect::<Result<Vec<_>, _>>()?;
        let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        Ok::<_, anyhow::Error>(ends.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>())
    })?;
    runs.sort_by_key(|(place, _)| *place);
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

fn run(scenario: &Scenario, rule: Rule, name: &str) -> anyhow::Result<Figures> {
    let Scenario { machine, workload, .. } = scenario;
    let place = || format!("{name}, {}, {}", machine.name, workload.name);
    let history = world::run(workload, *machine, &mut *rule.batcher(*machine, workload)).with_context(place)?;
    Ok(Figures::of(&history, workload, *machine))
}

fn check_it_repeats(scenarios: &[Scenario]) -> anyhow::Result<()> {
    let Scenario { machine, workload, rules, .. } = scenarios.first().context("there are scenarios")?;
    for (name, rule) in *rules {
        let run = || world::run(workload, *machine, &mut *rule.batcher(*machine, workload));
        ensure!(run()? == run()?, "{name}: the same arrivals, another end");
    }
    Ok(())
}

/// One thread, Poisson arrivals, one request a batch: the mean wait is S x load / 2(1 - load) (Pollaczek and Khinchine).
fn check_a_known_queue(seed: u64) -> anyhow::Result<()> {
    let machine = Machine { name: "M/D/1", threads: 1, cost: Cost { fixed_ns: MS, row_ns: 0 }, rows_max: 1 };
    for load in [0.3, 0.5, 0.8] {
        let end = 2_000_000 * MS;
        let rate_per_s = load * machine.capacity_per_s();
        let arrivals = arrivals(&mut Random::new(seed), Spread::Poisson, rate_per_s, [0.1, 0.3, 0.6], end);
        let name = format!("load {load}");
        let workload = Workload { name, arrivals, timeout: None, depth_max: u32::MAX, measured: 0..end };
        let history = world::run(&workload, machine, &mut Plain::new(1, 0, &workload))?;
        let wait_ms = Figures::of(&history, &workload, machine).mean_ms - 1.0;
        let known_ms = load / (2.0 * (1.0 - load));
        ensure!(
            (wait_ms / known_ms - 1.0).abs() < 0.03,
            "M/D/1 at {load}: waits {wait_ms} ms, by theory {known_ms} ms"
        );
    }
    Ok(())
}
