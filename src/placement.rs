//! Where threads and memory go: what the machine has and the container grants in, a [`Plan`] out, which the threads
//! follow as they start.
//!
//! A score thread is pinned to a core and takes its buffers from its core's NUMA node; the Kafka threads of a shard stay
//! on the node of one of the score threads. All of it is for speed only: with one node, or where the kernel refuses,
//! threads and memory go where the system puts them, which is said once.
//!
//! Invariants: no thread is planned on a CPU that this process may not use, and two share one only where
//! [`Pin::Cores`] asks for it. The mask is read before any thread is pinned, because afterwards it lists the pinned CPU
//! only.

mod bind;
mod host;
pub(crate) mod memory;
mod quota;
mod topology;

pub(crate) use self::bind::settle_score;
#[cfg(feature = "kafka")]
pub(crate) use self::bind::settle_shard;
pub use self::host::Host;
pub use self::quota::Quota;
pub use self::topology::{Core, Node, Topology};

/// How score threads are pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// One CPU each while there are enough of them: the first of every core before any second, spread over the nodes in
    /// proportion to their cores. Where threads outnumber the CPUs each is only held to a node.
    #[default]
    Auto,
    /// Where the system's scheduler puts them.
    Off,
    /// These CPUs, in turn.
    Cores(Vec<u32>),
}

/// Where the score threads and the shards will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One place a score thread.
    pub places: Vec<Place>,
    /// The nodes that threads and their memory are held to. Empty where none is: the machine has one, or pinning is off.
    pub nodes: Vec<PlanNode>,
}

/// A score thread's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The CPU that it is pinned to.
    pub cpu: Option<u32>,
    /// The node that it is held to and has its buffers on, as an index of [`Plan::nodes`].
    pub node: Option<usize>,
}

/// A node that threads are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanNode {
    /// The system's number of it.
    pub os_index: u32,
    /// Its CPUs that this process may use, at least one.
    pub cpus: Vec<u32>,
}

impl Plan {
    /// Plans `num_threads` score threads on this machine; 0 means one for each CPU that the container grants.
    ///
    /// # Errors
    /// Names a CPU of [`Pin::Cores`] that is not granted.
    pub fn new(num_threads: usize, pin: &Pin) -> Result<Self, String> {
        Self::on(&Host::read(), num_threads, pin)
    }

    /// The same for any machine.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn on(host: &Host, num_threads: usize, pin: &Pin) -> Result<Self, String> {
        let threads = if num_threads == 0 { host.parallelism() } else { num_threads };
        let nodes = host.granted_nodes();
        let cpus = match pin {
            Pin::Off => {
                return Ok(Self { places: vec![Place { cpu: None, node: None }; threads], nodes: Vec::new() });
            }
            Pin::Auto => by_rank(&nodes, threads),
            Pin::Cores(ids) => {
                if let Some(absent) = ids.iter().find(|id| !host.granted().contains(id)) {
                    let granted = host.granted();
                    return Err(format!("core {absent} is not granted to this process; it has {granted:?}"));
                }
                Some(ids.iter().copied().cycle().take(threads).collect())
            }
        };
        let node_of = |cpu: u32| nodes.iter().position(|node| node.cpus().any(|other| other == cpu));
        let places = if let Some(cpus) = cpus {
            cpus.iter().map(|&cpu| Place { cpu: Some(cpu), node: node_of(cpu) }).collect()
        } else {
            let weights: Vec<usize> = nodes.iter().map(|node| node.cpus().count()).collect();
            let held = interleaved(&shares(threads, &weights));
            let held = held.into_iter().map(Some).chain(std::iter::repeat(None)).take(threads);
            held.map(|node| Place { cpu: None, node }).collect()
        };
        Ok(Self::held(places, &nodes))
    }

    /// One node is no reason to hold anything to it.
    fn held(mut places: Vec<Place>, nodes: &[Node]) -> Self {
        if nodes.len() < 2 {
            for place in &mut places {
                place.node = None;
            }
            return Self { places, nodes: Vec::new() };
        }
        let nodes = nodes.iter().map(|node| PlanNode { os_index: node.os_index, cpus: node.cpus().collect() });
        Self { places, nodes: nodes.collect() }
    }

    /// The node that the Kafka threads of a shard are held to: that of one of the score threads, in their order, which
    /// goes around the nodes in proportion.
    #[must_use]
    pub fn shard_node(&self, shard: u32) -> Option<&PlanNode> {
        let place = self.places.get(shard as usize % self.places.len().max(1))?;
        place.node.map(|node| &self.nodes[node])
    }

    /// Says once what was planned.
    #[cfg(feature = "kafka")]
    pub(crate) fn log(&self) {
        let (threads, nodes) = (self.places.len(), self.nodes.len());
        let pinned = self.places.iter().filter(|place| place.cpu.is_some()).count();
        if nodes == 0 {
            tracing::info!(
                threads,
                pinned,
                "score threads; none is held to a NUMA node: there is one, or pinning is off"
            );
        } else {
            tracing::info!(threads, pinned, nodes, "score threads, each with its memory on its NUMA node");
        }
    }
}

/// CPUs for so many threads: first the first CPU of every core, then the second ones. A core's second CPU shares the
/// arithmetic units with its first, so it adds least. `None` when threads outnumber the CPUs.
fn by_rank(nodes: &[Node], threads: usize) -> Option<Vec<u32>> {
    let mut cpus = Vec::with_capacity(threads);
    for rank in 0.. {
        let ranked: Vec<Vec<u32>> = nodes.iter().map(|node| node.cpus_of_rank(rank)).collect();
        let weights: Vec<usize> = ranked.iter().map(Vec::len).collect();
        let total: usize = weights.iter().sum();
        let wanted = threads - cpus.len();
        if wanted == 0 || total == 0 {
            break;
        }
        let mut ranked: Vec<_> = ranked.into_iter().map(Vec::into_iter).collect();
        let turns = interleaved(&shares(wanted.min(total), &weights));
        cpus.extend(turns.into_iter().filter_map(|node| ranked[node].next()));
    }
    (cpus.len() == threads).then_some(cpus)
}

/// Deals out `count` in proportion to the weights, each share within one of exact: whole parts first, then the largest
/// remainders. Without any weight nobody gets anything.
fn shares(count: usize, weights: &[usize]) -> Vec<usize> {
    let total: usize = weights.iter().sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let mut shares: Vec<usize> = weights.iter().map(|weight| count * weight / total).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&index| std::cmp::Reverse(count * weights[index] % total));
    let left = count - shares.iter().sum::<usize>();
    for &index in by_remainder.iter().take(left) {
        shares[index] += 1;
    }
    shares
}

/// The indices in turn, each as often as its share says, and evenly: whoever looks at the first few sees all nodes.
fn interleaved(shares: &[usize]) -> Vec<usize> {
    let mut turns: Vec<(usize, usize)> =
        shares.iter().enumerate().flat_map(|(index, &share)| (0..share).map(move |turn| (index, turn))).collect();
    // The middle of turn `t` of `n`, as a fraction of the whole: (2t + 1) / 2n, compared without division.
    turns.sort_by(|&(a, turn_a), &(b, turn_b)| ((2 * turn_a + 1) * shares[b]).cmp(&((2 * turn_b + 1) * shares[a])));
    turns.into_iter().map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests;
