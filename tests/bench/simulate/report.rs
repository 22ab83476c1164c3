//! The figures as tables, or as JSON.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::Run;
use crate::scenario::{DELAYS, DELAYS_COMPARED, Part, Scenario};

pub(crate) fn json(seed: u64, runs: &[Run]) -> Value {
    let run = |run: &Run| {
        json!({
            "model": run.scenario.machine.name,
            "workload": run.scenario.workload.name,
            "rule": run.rule,
            "figures": run.figures,
        })
    };
    json!({ "seed": seed, "runs": runs.iter().map(run).collect::<Vec<_>>() })
}

pub(crate) fn print(seed: u64, runs: &[Run]) {
    println!(
        "Simulated, seed {seed}. Times in ms. Two threads, batches of up to 256 rows, requests of one row: 10/30/60 % of level 1/2/3."
    );
    println!(
        "A load of 1 is what the threads can do in full batches. Waking and the batcher itself cost nothing here."
    );
    let kind = |run: &Run| (run.scenario.part, run.scenario.machine.name);
    for runs in runs.chunk_by(|one, next| kind(one) == kind(next)) {
        let Scenario { part, machine, .. } = runs[0].scenario;
        let (fixed, row) = (machine.cost.fixed_ns as f64 / 1e3, machine.cost.row_ns as f64 / 1e3);
        println!("\n{} model: a batch takes {fixed} µs and {row} µs a row", machine.name);
        match part {
            Part::Delay => table(&DELAY, runs, delay),
            Part::Starvation => table(&STARVATION, runs, starvation),
            Part::Expiry => table(&EXPIRY, runs, expiry),
        }
    }
    println!("\nThe simulated deadline thread of forebay is never late; `make bench-submit` measures the real one.");
    print_delays(runs);
}

/// What waiting is worth: the mean latency and the threads' time of each delay, side by side.
fn print_delays(runs: &[Run]) {
    println!("\nforebay's delays: mean latency in ms, and the share of the threads' time");
    let mut table = Table::new();
    let delays = &DELAYS[..DELAYS_COMPARED];
    let names = delays.iter().map(|(name, _)| name.trim_start_matches("forebay, "));
    table.load_style(UTF8_FULL_CONDENSED).set_header(["model", "workload"].into_iter().chain(names));
    for runs in runs.chunk_by(|one, next| std::ptr::eq(one.scenario, next.scenario)) {
        let Scenario { part: Part::Delay, machine, workload, .. } = runs[0].scenario else { continue };
        let cells = runs.iter().take(delays.len()).map(|run| &run.figures);
        let cells = cells.map(|figures| format!("{}, {:.1} %", three(figures.mean_ms), 100.0 * figures.busy));
        table.add_row([machine.name.to_owned(), workload.name.clone()].into_iter().chain(cells));
    }
    align(&mut table, 2);
    println!("{table}");
}

const DELAY: [&str; 13] = [
    "workload",
    "rule",
    "mean",
    "1: p50",
    "1: p99",
    "2: p50",
    "2: p99",
    "3: p50",
    "3: p99",
    "rows/batch",
    "scored/s",
    "busy %",
    "refused",
];

fn delay(run: &Run) -> Vec<String> {
    let figures = &run.figures;
    let latencies = figures.levels.iter().flat_map(|level| [level.latency.p50, level.latency.p99]);
    let mut cells = vec![three(figures.mean_ms)];
    cells.extend(latencies.map(three));
    cells.extend([
        format!("{:.1}", figures.rows_per_batch),
        format!("{:.0}", figures.scored_per_s),
        format!("{:.1}", 100.0 * figures.busy),
        figures.refused.to_string(),
    ]);
    cells
}

const STARVATION: [&str; 9] = [
    "workload",
    "rule",
    "1: scored %",
    "2: scored %",
    "3: scored %",
    "1: longest wait",
    "2: longest wait",
    "3: longest wait",
    "scored/s",
];

fn starvation(run: &Run) -> Vec<String> {
    let levels = &run.figures.levels;
    let scored = levels.iter().map(|level| format!("{:.1}", 100.0 * level.scored as f64 / level.requests as f64));
    let waits = levels.iter().map(|level| three(level.wait_max_ms));
    scored.chain(waits).chain([format!("{:.0}", run.figures.scored_per_s)]).collect()
}

const EXPIRY: [&str; 9] =
    ["workload", "rule", "1: scored %", "2: scored %", "3: scored %", "expired", "late p50", "late p99", "late max"];

fn expiry(run: &Run) -> Vec<String> {
    let Run { figures, .. } = run;
    let scored =
        figures.levels.iter().map(|level| format!("{:.1}", 100.0 * level.scored as f64 / level.requests as f64));
    let late = [figures.late.p50, figures.late.p99, figures.late.max].map(three);
    scored.chain([figures.expired.to_string()]).chain(late).collect()
}

fn three(value: f64) -> String {
    format!("{value:.3}")
}

fn table(header: &[&str], runs: &[Run], cells: fn(&Run) -> Vec<String>) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    let mut last = None;
    for run in runs {
        // A workload is named once.
        let name = &run.scenario.workload.name;
        let shown = if last.replace(name) == Some(name) { String::new() } else { name.clone() };
        table.add_row([shown, run.rule.to_owned()].into_iter().chain(cells(run)));
    }
    align(&mut table, 2);
    println!("{table}");
}

/// Numbers to the right, from that column on.
fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
