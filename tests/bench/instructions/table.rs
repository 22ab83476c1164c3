//! The committed figures and the new ones: read, compared, printed, written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::inputs::root;
use crate::stages::STAGES;

/// The committed table, from the repository's root.
pub(crate) const PATH: &str = "tests/bench/instructions.toml";

/// A stage may take this share more instructions, or bytes, than the table says.
const RISE_MAX: f64 = 0.05;
/// And so many more allocations a record: they are whole in number, so a new one for each record is 1.
const ALLOCATIONS_RISE_MAX: f64 = 0.01;
/// And so many more bytes whatever the share: what rounding leaves.
const BYTES_RISE_MIN: f64 = 1.0;

const HEAD: &str = "\
# What the pure stages cost, written by `make bench-check ACCEPT=1` and compared by `make bench-check`.
#
# Per record: instructions (callgrind; they depend on the compiler and the processor's instruction set), allocations and
# their bytes, after a warm-up.
#   decode    JSON body of 32 numbers of nine significant digits, chunks of 1,000
#   batch     one-row request into the queue, and out in batches of 64
#   buffer    per buffer: 64 x 28 f64 lent, zeroed, and taken back
#   score-1, score-64   tests/data/higgs/higgs.model.txt (LightGBM, 100 trees of 31 leaves), by rows a call
#   encode    reply with short metadata, batches of 64
#   track     delivered, finished, committed, 960 a commit
#   path      28 numbers a record, chunks of 1,000: decode, engine (one score thread), encode, track; all threads
";

/// What a record costs in a stage.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    pub(crate) instructions: f64,
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
}

/// Costs by stage, and what they were counted with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    compiler: String,
    stages: BTreeMap<String, Costs>,
}

impl Table {
    /// An empty one, for this compiler.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let said = Command::new("rustc").arg("--version").output().context("cannot start rustc")?;
        ensure!(said.status.success(), "rustc --version failed");
        let compiler = format!("{} on {}", String::from_utf8_lossy(&said.stdout).trim(), std::env::consts::ARCH);
        Ok(Self { compiler, stages: BTreeMap::new() })
    }

    /// The committed one, if there is one.
    pub(crate) fn read() -> anyhow::Result<Option<Self>> {
        match fs::read_to_string(root().join(PATH)) {
            Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| PATH.to_owned())?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(PATH),
        }
    }

    pub(crate) fn put(&mut self, stage: &str, costs: Costs) {
        self.stages.insert(stage.to_owned(), costs);
    }

    fn get(&self, stage: &str) -> Option<&Costs> {
        self.stages.get(stage)
    }

    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let mut text = format!("{HEAD}compiler = \"{}\"\n\n[stages]\n", self.compiler);
        for (stage, Costs { instructions, allocations, bytes }) in in_order(self) {
            let figures =
                format!("instructions = {instructions:.1}, allocations = {allocations:.4}, bytes = {bytes:.1}");
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{stage:<8} = {{ {figures} }}");
        }
        fs::write(root().join(PATH), text).context(PATH)
    }
}

fn in_order(table: &Table) -> impl Iterator<Item = (&'static str, &Costs)> {
    STAGES.iter().filter_map(|stage| Some((stage.name, table.get(stage.name)?)))
}

/// What of the new figures is past its tolerance, a sentence each.
pub(crate) fn compare(committed: Option<&Table>, now: &Table) -> Vec<String> {
    let Some(committed) = committed else { return vec![format!("{PATH} is missing")] };
    let mut faults = Vec::new();
    for stage in committed.stages.keys().filter(|stage| now.get(stage).is_none()) {
        faults.push(format!("{stage} is in the table and no stage"));
    }
    for (stage, new) in in_order(now) {
        let Some(old) = committed.get(stage) else {
            faults.push(format!("{stage} is not in the table"));
            continue;
        };
        if new.instructions > old.instructions * (1.0 + RISE_MAX) {
            let (old, new) = (old.instructions, new.instructions);
            faults.push(format!("{stage}: {new:.1} instructions a record, were {old:.1}; 5 % more are let pass"));
        }
        if new.allocations > old.allocations + ALLOCATIONS_RISE_MAX {
            let (old, new) = (old.allocations, new.allocations);
            faults.push(format!("{stage}: {new:.4} allocations a record, were {old:.4}; 0.01 more are let pass"));
        }
        if new.bytes > (old.bytes * (1.0 + RISE_MAX)).max(old.bytes + BYTES_RISE_MIN) {
            let (old, new) = (old.bytes, new.bytes);
            faults.push(format!("{stage}: {new:.1} bytes allocated a record, were {old:.1}; 5 % more are let pass"));
        }
    }
    faults
}

/// Old beside new.
pub(crate) fn print(committed: Option<&Table>, now: &Table) {
    println!("{:8} {:^32} {:^22} {:^22}", "", "instructions a record", "allocations a record", "bytes a record");
    println!(
        "{:8} {:>12} {:>10} {:>8} {:>12} {:>9} {:>12} {:>9}",
        "stage", "committed", "now", "change", "committed", "now", "committed", "now"
    );
    for (stage, new) in in_order(now) {
        let old = committed.and_then(|table| table.get(stage));
        let was = |figure: fn(&Costs) -> f64, places: usize| {
            old.map_or_else(|| "-".to_owned(), |old| format!("{:.places$}", figure(old)))
        };
        let change = old.map_or_else(
            || "-".to_owned(),
            |old| format!("{:+.1} %", (new.instructions / old.instructions - 1.0) * 100.0),
        );
        println!(
            "{stage:8} {:>12} {:>10.1} {change:>8} {:>12} {:>9.4} {:>12} {:>9.1}",
            was(|old| old.instructions, 1),
            new.instructions,
            was(|old| old.allocations, 4),
            new.allocations,
            was(|old| old.bytes, 1),
            new.bytes,
        );
    }
    if let Some(other) = committed.map(|table| &table.compiler).filter(|compiler| **compiler != now.compiler) {
        println!("The table was made with {other}, this is {}: instructions may differ for that alone.", now.compiler);
    }
}
