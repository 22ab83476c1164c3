//! `forebay topology`: the machine as a tree, with the threads that a worker would have on each part of it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::{LogArgs, exit, logs};
use crate::config::{Config, Overrides};
use crate::engine::EngineError;
use crate::placement::{Host, Pin, Plan};

/// Arguments of `forebay topology`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TopologyArgs {
    /// A worker.toml, for its score threads, pins and shards; left out, their defaults
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

// A paragraph is one line: the terminal's width breaks it.
const AFTER_HELP: &str = "\
Examples:
  forebay topology --config worker.toml
  HWLOC_SYNTHETIC='numa:2 core:4 pu:2' forebay topology

A CPU here is what the system schedules on, a core's hardware thread; its number is what engine.pin takes. CPUs that \
this process may not use are not planned for. Nothing is started or pinned.";

/// What a worker asks of the machine.
struct Wishes {
    num_threads: usize,
    pin: Pin,
    shards: u32,
}

impl Wishes {
    fn of(args: &TopologyArgs) -> anyhow::Result<Self> {
        let Some(file) = &args.config else { return Ok(Self { num_threads: 0, pin: Pin::Auto, shards: 1 }) };
        // The name tells nothing of places, and a file that takes it from the environment is read without.
        let config = Config::from_file(file, &Overrides { instance: Some("topology".to_owned()) })?;
        let num_threads = config.engine.num_threads.map_or(0, |threads| threads.get() as usize);
        let shards = config.shards().get();
        Ok(Self { num_threads, pin: config.engine.pin, shards })
    }
}

pub(super) fn run(args: &TopologyArgs) -> anyhow::Result<ExitCode> {
    logs::start_plain(&args.log)?;
    let wishes = Wishes::of(args)?;
    let host = Host::read();
    let plan = Plan::on(&host, wishes.num_threads, &wishes.pin).map_err(EngineError::Placement)?;
    let machine = Machine::new(&host, &plan, &wishes);
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&machine)?)?;
    } else {
        write!(io::stdout(), "{}", machine.to_text())?;
    }
    Ok(exit::DONE.into())
}

/// The machine, and who runs where. `score_threads` and `shards` stand at the smallest part that they are held to.
#[derive(Serialize)]
struct Machine {
    is_this_system: bool,
    quota_cpus: Option<f64>,
    granted_cpus: usize,
    score_threads_total: usize,
    /// Held to nothing.
    score_threads: Vec<usize>,
    shards: Vec<u32>,
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    #[serde(rename = "node")]
    os_index: u32,
    memory_bytes: u64,
    score_threads: Vec<usize>,
    shards: Vec<u32>,
    cores: Vec<Core>,
}

#[derive(Serialize)]
struct Core {
    #[serde(rename = "core")]
    index: u32,
    cpus: Vec<Cpu>,
}

#[derive(Serialize)]
struct Cpu {
    #[serde(rename = "cpu")]
    number: u32,
    granted: bool,
    score_threads: Vec<usize>,
}

impl Machine {
    fn new(host: &Host, plan: &Plan, wishes: &Wishes) -> Self {
        let threads = |cpu: Option<u32>, node: Option<u32>| {
            let there = plan.places.iter().enumerate().filter(move |(_, place)| {
                let on_node = place.node.map(|node| plan.nodes[node].os_index);
                place.cpu == cpu && (cpu.is_some() || on_node == node)
            });
            there.map(|(thread, _)| thread).collect()
        };
        let shards = |node: Option<u32>| {
            let there = |shard: &u32| plan.shard_node(*shard).map(|node| node.os_index) == node;
            (0..wishes.shards).filter(there).collect()
        };
        let nodes = host.topology.nodes.iter().map(|node| Node {
            os_index: node.os_index,
            memory_bytes: node.memory_bytes,
            score_threads: threads(None, Some(node.os_index)),
            shards: shards(Some(node.os_index)),
            cores: (node.cores.iter())
                .map(|core| {
                    let cpus = core.cpus.iter().map(|&cpu| Cpu {
                        number: cpu,
                        granted: host.granted().contains(&cpu),
                        score_threads: threads(Some(cpu), None),
                    });
                    Core { index: core.index, cpus: cpus.collect() }
                })
                .collect(),
        });
        Self {
            is_this_system: host.is_this_system,
            quota_cpus: host.quota.map(crate::placement::Quota::cpus),
            granted_cpus: host.granted().len(),
            score_threads_total: plan.places.len(),
            score_threads: threads(None, None),
            shards: shards(None),
            nodes: nodes.collect(),
        }
    }

    fn to_text(&self) -> String {
        let mut text = self.head();
        for (at, node) in self.nodes.iter().enumerate() {
            let (branch, below) = branches(at + 1 == self.nodes.len());
            let memory = ByteSize(node.memory_bytes).display().iec();
            let held = if node.score_threads.is_empty() && node.shards.is_empty() { "" } else { ": " };
            let (number, names) = (node.os_index, names(&node.score_threads, &node.shards));
            let _ = writeln!(text, "{branch}node {number}, {memory}{held}{names}");
            for (at, core) in node.cores.iter().enumerate() {
                let (branch, _) = branches(at + 1 == node.cores.len());
                let cpus: Vec<String> = core.cpus.iter().map(Cpu::to_text).collect();
                let _ = writeln!(text, "{below}{branch}core {}: {}", core.index, cpus.join(", "));
            }
        }
        text
    }

    fn head(&self) -> String {
        let cores = self.nodes.iter().map(|node| node.cores.len()).sum();
        let cpus = self.nodes.iter().flat_map(|node| &node.cores).map(|core| core.cpus.len()).sum();
        let mut text =
            format!("machine: {}, {}, {}", count(self.nodes.len(), "node"), count(cores, "core"), count(cpus, "CPU"));
        if !self.is_this_system {
            text += " (as hwloc's environment variables say: not this machine)";
        }
        let _ = write!(text, "; {} granted", self.granted_cpus);
        if let Some(quota) = self.quota_cpus {
            let _ = write!(text, ", time of {quota:.2}");
        }
        let _ = writeln!(text, "; {}", count(self.score_threads_total, "score thread"));
        if !(self.score_threads.is_empty() && self.shards.is_empty()) {
            let _ = writeln!(text, "held to nothing: {}", names(&self.score_threads, &self.shards));
        }
        text
    }
}

impl Cpu {
    fn to_text(&self) -> String {
        let mut text = format!("CPU {}", self.number);
        if !self.granted {
            text += " (not granted)";
        } else if !self.score_threads.is_empty() {
            let _ = write!(text, " ({})", names(&self.score_threads, &[]));
        }
        text
    }
}

fn branches(is_last: bool) -> (&'static str, &'static str) {
    if is_last { ("└── ", "    ") } else { ("├── ", "│   ") }
}

/// The threads by the names that the system shows.
fn names(score_threads: &[usize], shards: &[u32]) -> String {
    let score = score_threads.iter().map(|thread| format!("forebay-score-{thread}"));
    let kafka = shards.iter().map(|shard| format!("forebay-source-{shard}, forebay-txn-{shard}"));
    score.chain(kafka).collect::<Vec<_>>().join(", ")
}

fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
