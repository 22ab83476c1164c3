//! The machine as hwloc sees it, as plain data: NUMA nodes, their cores, the cores' CPUs (hardware threads, by the
//! system's number).

use std::collections::BTreeMap;

use hwloc2::{ObjectType, TopologyObject};

/// Nodes that have cores, by their number. A node of memory alone is not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// At least one, unless nothing can be read.
    pub nodes: Vec<Node>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The system's number of it.
    pub os_index: u32,
    /// Its memory; 0 when that is not known.
    pub memory_bytes: u64,
    /// Its cores.
    pub cores: Vec<Core>,
}

/// A core: what shares arithmetic units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// Its place among the machine's cores; the system's own number may come once a package.
    pub index: u32,
    /// Its CPUs, lowest first.
    pub cpus: Vec<u32>,
}

impl Topology {
    /// Asks hwloc; empty when it does not know.
    pub(super) fn read() -> Self {
        hwloc2::Topology::new().map(|machine| Self::from_cores(&machine)).unwrap_or_default()
    }

    fn from_cores(machine: &hwloc2::Topology) -> Self {
        // Some virtual machines show CPUs without cores: each counts as one.
        let objects = machine.objects_with_type(&ObjectType::Core).unwrap_or_default();
        let objects =
            if objects.is_empty() { machine.objects_with_type(&ObjectType::PU).unwrap_or_default() } else { objects };
        let mut nodes: BTreeMap<u32, Node> = BTreeMap::new();
        for object in objects {
            let (Some(os_index), Some(cpus)) = (node_of(object), object.cpuset()) else { continue };
            let node = nodes.entry(os_index).or_insert_with(|| {
                let memory_bytes = memory_around(object, os_index);
                Node { os_index, memory_bytes, cores: Vec::new() }
            });
            node.cores.push(Core { index: object.logical_index(), cpus: cpus.into_iter().collect() });
        }
        Self { nodes: nodes.into_values().collect() }
    }

    /// All CPUs, node by node.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.iter().flat_map(Node::cpus)
    }

    /// What is left of it when only these CPUs may be used: no core without a CPU, no node without a core.
    pub(super) fn only(&self, granted: &[u32]) -> Vec<Node> {
        let nodes = self.nodes.iter().map(|node| {
            let cores = node.cores.iter().map(|core| Core {
                index: core.index,
                cpus: core.cpus.iter().copied().filter(|cpu| granted.contains(cpu)).collect(),
            });
            let cores = cores.filter(|core| !core.cpus.is_empty()).collect();
            Node { os_index: node.os_index, memory_bytes: node.memory_bytes, cores }
        });
        nodes.filter(|node| !node.cores.is_empty()).collect()
    }
}

impl Node {
    /// Its CPUs, core by core.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        self.cores.iter().flat_map(|core| core.cpus.iter().copied())
    }

    /// A node about which nothing is known but its CPUs: each is a core.
    pub(super) fn flat(cpus: &[u32]) -> Self {
        let cores = (0..).zip(cpus).map(|(index, &cpu)| Core { index, cpus: vec![cpu] });
        Self { os_index: 0, memory_bytes: 0, cores: cores.collect() }
    }

    /// The first CPUs of its cores (rank 0), or the second ones, and so on.
    pub(super) fn cpus_of_rank(&self, rank: usize) -> Vec<u32> {
        self.cores.iter().filter_map(|core| core.cpus.get(rank).copied()).collect()
    }
}

/// `objects_with_type(NUMANode)` panics in hwloc2 2.2; a core knows its nodes. Where it has several (fast memory beside
/// the usual), the usual comes first.
fn node_of(object: &TopologyObject) -> Option<u32> {
    object.nodeset()?.into_iter().next()
}

/// A node hangs on the object that spans its CPUs, and that one counts its memory: the outermost that has no other node.
fn memory_around(core: &TopologyObject, os_index: u32) -> u64 {
    let around = std::iter::successors(Some(core), |object| object.parent());
    let own = around.take_while(|object| {
        let others = object.nodeset().is_some_and(|set| set.into_iter().any(|node| node != os_index));
        !others
    });
    own.map(TopologyObject::total_memory).max().unwrap_or(0)
}
