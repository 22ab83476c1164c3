//! The rows as a table, as worker.json, and held against the goals.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::clients::{CONSUMER, PRODUCER, shown};
use crate::measure::{Latency, Measured};
use crate::subject::{LATENCY_RATES, Subject};

/// What the forest alone costs, in microseconds of CPU a row.
pub(crate) struct Forest {
    pub(crate) batch: usize,
    /// One thread on an idle machine.
    pub(crate) alone_us: f64,
    /// A thread on each core.
    pub(crate) crowded_us: f64,
}

pub(crate) fn json(rows: &[Measured], round_trips: &[Latency], forest: &[Forest], quick: bool) -> Value {
    let row = |row: &Measured| {
        json!({
            "name": row.subject.name(),
            "records_per_s": row.records_per_s.round(),
            "cpu_us_per_record": thousandths(row.cpu_us_per_record),
            "p50_ms": thousandths(row.latency().p50_ms),
            "p99_ms": thousandths(row.latency().p99_ms),
            "peak_mb": row.peak_mb.round(),
            "promise": row.subject.promise(),
            "latency_at_per_s": row.latency().rate_per_s,
            "batch_rows_mean": row.batch_rows_mean.map(thousandths),
            "threads_us_per_record": row.thread_us_per_record.iter().map(|(name, us)| (name.clone(), json!(thousandths(*us)))).collect::<serde_json::Map<_, _>>(),
        })
    };
    let latency = |(name, latency): (&str, &Latency)| {
        let (p50_ms, p99_ms) = (thousandths(latency.p50_ms), thousandths(latency.p99_ms));
        json!({ "name": name, "at_per_s": latency.rate_per_s, "p50_ms": p50_ms, "p99_ms": p99_ms })
    };
    let cost = |forest: &Forest| {
        let (alone, crowded) = (thousandths(forest.alone_us), thousandths(forest.crowded_us));
        json!({ "batch": forest.batch, "alone_us_per_row": alone, "crowded_us_per_row": crowded })
    };
    json!({
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "latencies": latencies(rows, round_trips).into_iter().map(latency).collect::<Vec<_>>(),
        "forest": forest.iter().map(cost).collect::<Vec<_>>(),
        "quick": quick,
    })
}

/// The round trip and the rows that have all rates, by rate and then by name.
fn latencies<'a>(rows: &'a [Measured], round_trips: &'a [Latency]) -> Vec<(&'a str, &'a Latency)> {
    let at = |rate: f64| move |latency: &&Latency| (latency.rate_per_s - rate).abs() < 0.5;
    let all = |rate: f64| {
        let round_trip = round_trips.iter().filter(at(rate)).map(|latency| ("round-trip", latency));
        let rows = rows.iter().filter(|row| row.latencies.len() == LATENCY_RATES.len());
        let rows = rows.flat_map(|row| row.latencies.iter().map(|latency| (row.subject.name(), latency)));
        round_trip.chain(rows.filter(move |(_, latency)| at(rate)(latency))).collect::<Vec<_>>()
    };
    LATENCY_RATES.into_iter().flat_map(all).collect()
}

fn print_latencies(rows: &[Measured], round_trips: &[Latency]) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["latency", "at/s", "p50 ms", "p99 ms", "p50 x round trip"]);
    for (name, latency) in latencies(rows, round_trips) {
        let bare = round_trips.iter().find(|bare| (bare.rate_per_s - latency.rate_per_s).abs() < 0.5);
        table.add_row([
            name.to_owned(),
            format!("{:.0}", latency.rate_per_s),
            format!("{:.2}", latency.p50_ms),
            format!("{:.2}", latency.p99_ms),
            bare.map(|bare| format!("{:.2}", latency.p50_ms / bare.p50_ms)).unwrap_or_default(),
        ]);
    }
    for number in 1..5 {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
}

fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The table, and beside it what it was measured with.
pub(crate) fn print(rows: &[Measured], round_trips: &[Latency], forest: &[Forest]) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "",
        "records/s",
        "CPU µs/record",
        "x floor",
        "p50 ms",
        "p99 ms",
        "at/s",
        "peak MB",
        "promise",
        "checked",
    ]);
    let floor = find(rows, Subject::PassThrough);
    for row in rows {
        let of_floor = floor.map(|floor| format!("{:.2}", row.cpu_us_per_record / floor.cpu_us_per_record));
        table.add_row([
            row.subject.name().to_owned(),
            format!("{:.0}", row.records_per_s),
            format!("{:.2}", row.cpu_us_per_record),
            of_floor.unwrap_or_default(),
            format!("{:.2}", row.latency().p50_ms),
            format!("{:.2}", row.latency().p99_ms),
            format!("{:.0}", row.latency().rate_per_s),
            format!("{:.0}", row.peak_mb),
            row.subject.promise().to_owned(),
            row.checked.to_string(),
        ]);
    }
    for number in [1, 2, 3, 4, 5, 6, 7, 9] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    print_latencies(rows, round_trips);
    println!("clients  {} {}", shown(CONSUMER), shown(PRODUCER));
    println!(
        "         equal for all but mlserver, whose clients are aiokafka's with its own defaults, and forebay-at-least-once,"
    );
    println!("         which has linger.ms=0");
    println!(
        "model    LightGBM 500 trees x 63 leaves, 32 features; no cache; forebay with its defaults (reply_metadata = \"short\")"
    );
    println!(
        "latency  from the feeder's hands to a read_committed reader, 10 s after a second that is not timed; 15 s at 20/s"
    );
    println!("         round-trip: the feeder to a plain reader of the same topic, nobody between them");
    println!(
        "         no-scoring: a model of one leaf, transactions of up to 10,000 as the floor's: what the line alone costs"
    );
    for row in rows.iter().filter(|row| row.subject.is_forebay()) {
        let threads = row.thread_us_per_record.iter().map(|(name, us)| format!("{name} {us:.2}"));
        println!("{}  CPU µs/record by thread: {}", row.subject.name(), threads.collect::<Vec<_>>().join(", "));
    }
    for Forest { batch, alone_us, crowded_us } in forest {
        println!(
            "forest   batch {batch}: {alone_us:.2} µs/row on one thread, {crowded_us:.2} with a thread on each core"
        );
    }
}

/// The goals, each with what was reached. `forest` is that of the batches that forebay made.
pub(crate) fn print_goals(rows: &[Measured], round_trips: &[Latency], forest: Option<&Forest>) {
    let (floor, plain) = (find(rows, Subject::PassThrough), find(rows, Subject::RustLoop));
    if let (Some(floor), Some(line)) = (floor, find(rows, Subject::ForebayNoScoring)) {
        let ratio = line.cpu_us_per_record / floor.cpu_us_per_record;
        println!("goal 1   CPU without scoring / floor <= 1.3: {ratio:.2}");
    }
    let Some(forebay) = find(rows, Subject::Forebay) else { return };
    if let (Some(floor), Some(forest)) = (floor, forest) {
        let floor = floor.cpu_us_per_record;
        let ratio = |forest_us: f64| (forebay.cpu_us_per_record - forest_us) / floor;
        println!(
            "goal 1   (worker - forest) / floor <= 2: {:.2} with the forest's cost alone, {:.2} with a thread on each core",
            ratio(forest.alone_us),
            ratio(forest.crowded_us),
        );
        let score = |name: &str| name.starts_with("forebay-score");
        let score: f64 = forebay.thread_us_per_record.iter().filter(|(name, _)| score(name)).map(|(_, us)| us).sum();
        println!("         {:.2} without the score threads, which used {score:.2} µs/record", ratio(score));
    }
    if let Some(plain) = plain {
        let ratio = forebay.records_per_s / plain.records_per_s;
        println!("goal 2   throughput / rust-loop >= 1: {ratio:.2}");
    }
    let Latency { rate_per_s, p50_ms, p99_ms } = forebay.latency();
    println!("goal 3   exactly once at {rate_per_s:.0}/s: p50 <= 6 ms: {p50_ms:.2}, p99 <= 40 ms: {p99_ms:.2}");
    if let (Some(fast), Some(bare)) = (find(rows, Subject::ForebayAtLeastOnce), round_trips.first()) {
        let Latency { rate_per_s, p50_ms, .. } = fast.latency();
        println!("         at least once at {rate_per_s:.0}/s: p50 / round trip <= 2.5: {:.2}", p50_ms / bare.p50_ms);
    }
}

pub(crate) fn find(rows: &[Measured], subject: Subject) -> Option<&Measured> {
    rows.iter().find(|row| row.subject == subject)
}
