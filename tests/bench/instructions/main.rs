//! `make bench-check`: what the pure stages cost, counted instead of timed, held against a committed table.
//!
//! Counted are instructions (by callgrind, each stage in a process of its own that starts this program again with
//! `--stage`), and allocations and their bytes (by this program's allocator, in this process, outside callgrind). Counts
//! need no quiet machine: the same program and inputs give the same figures up to what a time prints as. They do depend
//! on the compiler and on the processor's instruction set, so the table names both.
//!
//! The exit code is 1 when a figure is past its tolerance, or a stage and the table do not fit.
#![allow(clippy::print_stdout, reason = "it is a program")]

#[path = "../allocator.rs"]
mod allocator;
mod callgrind;
mod inputs;
mod path;
mod probe;
mod stages;
mod table;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use probe::Probe;
use stages::STAGES;
use table::{Costs, Table};

/// Rounds before the one that counts: buffers have grown, pools are filled.
const WARM_UP_ROUNDS: usize = 3;

/// Counts what the pure stages cost and compares with tests/bench/instructions.toml.
#[derive(Parser)]
struct Arguments {
    /// Write the figures to the table instead of failing.
    #[arg(long)]
    accept: bool,
    /// Run this stage and nothing else: what callgrind starts.
    #[arg(long)]
    stage: Option<String>,
    /// Rounds of it before the one that counts.
    #[arg(long, default_value_t = WARM_UP_ROUNDS, requires = "stage")]
    warm_up: usize,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.stage {
        Some(name) => run_stage(name, arguments.warm_up).map(|_| true),
        None => run(arguments.accept),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(accept: bool) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir()?;
    let mut now = Table::new()?;
    for stage in STAGES {
        eprintln!("bench-check: {}", stage.name);
        let counted = run_stage(stage.name, WARM_UP_ROUNDS)?;
        let records = stage.records as f64;
        let costs = Costs {
            instructions: callgrind::instructions(stage, folder.path())? as f64 / records,
            allocations: counted.allocations as f64 / records,
            bytes: counted.bytes as f64 / records,
        };
        now.put(stage.name, costs);
    }
    let committed = Table::read()?;
    let faults = table::compare(committed.as_ref(), &now);
    table::print(committed.as_ref(), &now);
    if accept {
        now.write()?;
        println!("written  {}", table::PATH);
        return Ok(true);
    }
    for fault in &faults {
        println!("FAILED   {fault}");
    }
    if !faults.is_empty() {
        println!("If that is the price of something wanted: make bench-check ACCEPT=1, and commit {}", table::PATH);
    }
    Ok(faults.is_empty())
}

/// Warms a stage up and runs the round that counts.
fn run_stage(name: &str, warm_up: usize) -> anyhow::Result<allocator::Counted> {
    let stage = STAGES.iter().find(|stage| stage.name == name).with_context(|| format!("no stage {name:?}"))?;
    let mut round = (stage.prepare)()?;
    for _ in 0..warm_up {
        round(&mut Probe::warm_up())?;
    }
    let mut probe = Probe::measuring();
    round(&mut probe)?;
    probe.counted().with_context(|| format!("stage {name} measured nothing"))
}
