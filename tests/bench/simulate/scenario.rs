//! What is compared: machines, workloads, and the rules that are tried on each.

use forebay::batch::QueueDelay;

use crate::MS;
use crate::rules::{Forebay, Plain, Settings};
use crate::triton::Triton;
use crate::workload::{Cost, Machine, Random, Spread, Workload, arrivals};
use crate::world::Batcher;

/// A rule with its settings.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    Forebay(Settings),
    Triton { preferred: &'static [u32], delay: u64 },
    Plain { size: usize, delay: u64 },
}

impl Rule {
    pub(crate) fn batcher(self, machine: Machine, workload: &Workload) -> Box<dyn Batcher> {
        match self {
            Self::Forebay(settings) => Box::new(Forebay::new(settings, machine, workload)),
            Self::Triton { preferred, delay } => Box::new(Triton::new(preferred, delay, machine, workload)),
            Self::Plain { size, delay } => Box::new(Plain::new(size, delay, workload)),
        }
    }
}

/// What a part of the output is about.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    /// What waiting for company is worth.
    Delay,
    /// What an overload of level 1 does to the levels below.
    Starvation,
    /// What becomes of requests whose time is up.
    Expiry,
}

/// A workload on a machine, and the rules tried on it.
pub(crate) struct Scenario {
    pub(crate) part: Part,
    pub(crate) machine: Machine,
    pub(crate) workload: Workload,
    pub(crate) rules: &'static [(&'static str, Rule)],
}

const FOREST: Machine =
    Machine { name: "forest", threads: 2, cost: Cost { fixed_ns: 5_000, row_ns: 3_000 }, rows_max: 256 };
const ONNX: Machine =
    Machine { name: "ONNX", threads: 2, cost: Cost { fixed_ns: 200_000, row_ns: 15_000 }, rows_max: 256 };
const PYTHON: Machine =
    Machine { name: "Python", threads: 2, cost: Cost { fixed_ns: 2 * MS, row_ns: 50_000 }, rows_max: 256 };
const SLOW: Machine =
    Machine { name: "slow", threads: 2, cost: Cost { fixed_ns: 800 * MS, row_ns: MS }, rows_max: 256 };

const AGING: Option<u64> = Some(100 * MS);
const PREFERRED: &[u32] = &[32, 64, 128];

const fn forebay(delay: QueueDelay, delay_max: u64, preferred: &'static [u32], aging: Option<u64>) -> Rule {
    Rule::Forebay(Settings { delay, delay_max, preferred, aging })
}

/// So many of [`DELAYS`], the first, are compared once more at the end: they differ in nothing but the delay.
pub(crate) const DELAYS_COMPARED: usize = 4;

pub(crate) const DELAYS: &[(&str, Rule)] = &[
    ("forebay, no delay", forebay(QueueDelay::Fixed, 0, &[], AGING)),
    ("forebay, fixed 2 ms", forebay(QueueDelay::Fixed, 2 * MS, &[], AGING)),
    ("forebay, adaptive to 2 ms", forebay(QueueDelay::Adaptive, 2 * MS, &[], AGING)),
    ("forebay, adaptive to 20 ms", forebay(QueueDelay::Adaptive, 20 * MS, &[], AGING)),
    ("forebay, fixed 2 ms, preferred", forebay(QueueDelay::Fixed, 2 * MS, PREFERRED, AGING)),
    ("Triton, no delay", Rule::Triton { preferred: &[], delay: 0 }),
    ("Triton, 2 ms", Rule::Triton { preferred: &[], delay: 2 * MS }),
    ("Triton, 2 ms, preferred", Rule::Triton { preferred: PREFERRED, delay: 2 * MS }),
    ("batches of 64, or after 2 ms", Rule::Plain { size: 64, delay: 2 * MS }),
    ("one request a batch", Rule::Plain { size: 1, delay: 0 }),
];

const STARVED: &[(&str, Rule)] = &[
    ("forebay, aging 100 ms", forebay(QueueDelay::Fixed, 0, &[], AGING)),
    ("forebay, no aging", forebay(QueueDelay::Fixed, 0, &[], None)),
    ("Triton", Rule::Triton { preferred: &[], delay: 0 }),
    ("batches of 64, or after 2 ms", Rule::Plain { size: 64, delay: 2 * MS }),
];

const EXPIRED: &[(&str, Rule)] = &[
    ("forebay", forebay(QueueDelay::Fixed, 0, &[], AGING)),
    ("Triton", Rule::Triton { preferred: &[], delay: 0 }),
    ("batches of 64, or after 2 ms", Rule::Plain { size: 64, delay: 2 * MS }),
];

/// 10 % are of level 1, 30 % of level 2.
const MIXED: [f64; 3] = [0.1, 0.3, 0.6];

pub(crate) fn all(seed: u64) -> Vec<Scenario> {
    let mut random = Random::new(seed);
    let mut scenarios = Vec::new();
    for (machine, seconds) in [(FOREST, 3), (ONNX, 4), (PYTHON, 8)] {
        for load in [0.02, 0.1, 0.3, 0.6, 0.9] {
            let name = format!("Poisson, load {load}");
            scenarios.push(delays(machine, name, Spread::Poisson, load, seconds, &mut random));
        }
        for load in [0.1, 0.5] {
            let name = format!("bursts, load {load}");
            scenarios.push(delays(machine, name, Spread::Bursts, load, seconds, &mut random));
        }
        scenarios.push(delays(machine, "Poisson, load 2".to_owned(), Spread::Poisson, 2.0, 2, &mut random));
    }
    for machine in [ONNX, PYTHON] {
        scenarios.push(starvation(machine, &mut random));
    }
    for (machine, load) in [(PYTHON, 0.9), (PYTHON, 2.0), (SLOW, 0.3)] {
        scenarios.push(expiry(machine, load, &mut random));
    }
    scenarios
}

/// The first second is not measured: the load is learned over about so long.
fn delays(machine: Machine, name: String, spread: Spread, load: f64, seconds: u64, random: &mut Random) -> Scenario {
    let end = seconds * 1_000 * MS;
    let arrivals = arrivals(random, spread, load * machine.capacity_per_s(), MIXED, end);
    let workload = Workload { name, arrivals, timeout: None, depth_max: 4_096, measured: 1_000 * MS..end };
    Scenario { part: Part::Delay, machine, workload, rules: DELAYS }
}

/// Level 1 alone is twice what the machine can do, for five seconds; the others are 5 % of that each.
fn starvation(machine: Machine, random: &mut Random) -> Scenario {
    let (end, name) = (5_000 * MS, "level 1 alone at load 2".to_owned());
    let arrivals =
        arrivals(random, Spread::Poisson, 2.2 * machine.capacity_per_s(), [1.0 / 1.1, 0.05 / 1.1, 0.05 / 1.1], end);
    let workload = Workload { name, arrivals, timeout: None, depth_max: 1_000, measured: 0..end };
    Scenario { part: Part::Starvation, machine, workload, rules: STARVED }
}

/// Each may wait for 100 ms.
fn expiry(machine: Machine, load: f64, random: &mut Random) -> Scenario {
    let (end, name) = (5_000 * MS, format!("bursts, load {load}, timeout 100 ms"));
    let arrivals = arrivals(random, Spread::Bursts, load * machine.capacity_per_s(), MIXED, end);
    let workload = Workload { name, arrivals, timeout: Some(100 * MS), depth_max: 65_536, measured: 0..end };
    Scenario { part: Part::Expiry, machine, workload, rules: EXPIRED }
}
