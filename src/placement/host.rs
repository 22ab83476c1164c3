//! What this process has of the machine: its topology, the CPUs that its mask grants, the CPU time that its container
//! does.

use std::env;
use std::path::Path;

use super::quota::{self, Quota};
use super::topology::{Node, Topology};

/// What this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The machine.
    pub topology: Topology,
    /// The container's bound on CPU time.
    pub quota: Option<Quota>,
    /// Whether the topology is that of the machine that this process runs on: hwloc's own environment variables may put
    /// another in its place.
    pub is_this_system: bool,
    /// CPUs of the mask, lowest first.
    granted: Vec<u32>,
}

impl Host {
    /// Reads what the calling thread may use.
    #[must_use]
    pub fn read() -> Self {
        let topology = Topology::read();
        if !is_this_system(|name| env::var(name).ok()) {
            return Self::whole(topology);
        }
        let mask = core_affinity::get_core_ids().unwrap_or_default();
        let granted = mask.iter().filter_map(|core| u32::try_from(core.id).ok()).collect();
        Self { topology, quota: quota::read(Path::new("/")), is_this_system: true, granted }
    }

    /// Another machine, all of which may be used.
    #[must_use]
    pub fn whole(topology: Topology) -> Self {
        let mut granted: Vec<u32> = topology.cpus().collect();
        granted.sort_unstable();
        Self { topology, quota: None, is_this_system: false, granted }
    }

    /// The same machine with no more than these CPUs and this quota.
    #[must_use]
    pub fn limited(mut self, granted: &[u32], quota: Option<Quota>) -> Self {
        self.granted.retain(|cpu| granted.contains(cpu));
        Self { quota, ..self }
    }

    #[cfg(test)]
    pub(super) fn seen_as(self, topology: Topology) -> Self {
        Self { topology, ..self }
    }

    /// The CPUs that the mask grants.
    #[must_use]
    pub fn granted(&self) -> &[u32] {
        &self.granted
    }

    /// How many threads can run at once: the granted CPUs, or the quota if that is less. At least 1.
    #[must_use]
    pub fn parallelism(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, Quota::threads);
        self.granted.len().min(quota).max(1)
    }

    /// Nodes with the granted CPUs only.
    pub(super) fn granted_nodes(&self) -> Vec<Node> {
        let nodes = self.topology.only(&self.granted);
        if nodes.is_empty() && !self.granted.is_empty() {
            // hwloc says nothing that fits the mask: one node of cores with one CPU each.
            return vec![Node::flat(&self.granted)];
        }
        nodes
    }
}

/// hwloc takes a topology from these variables; `HWLOC_THISSYSTEM=1` says that it is true all the same.
fn is_this_system(variable: impl Fn(&str) -> Option<String>) -> bool {
    let replaced = ["HWLOC_SYNTHETIC", "HWLOC_XMLFILE", "HWLOC_FSROOT"].iter().any(|name| variable(name).is_some());
    match variable("HWLOC_THISSYSTEM").as_deref() {
        Some("0") => false,
        Some(_) => true,
        None => !replaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hwlocs_variables_say_whose_topology_it_is() {
        let with = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            is_this_system(find)
        };
        assert!(with(&[]));
        assert!(!with(&[("HWLOC_SYNTHETIC", "numa:2 pu:1")]));
        assert!(!with(&[("HWLOC_THISSYSTEM", "0")]));
        assert!(with(&[("HWLOC_XMLFILE", "machine.xml"), ("HWLOC_THISSYSTEM", "1")]));
    }

    #[test]
    fn this_machine_grants_what_its_mask_says() {
        let host = Host::read();
        assert!(!host.granted().is_empty() && host.is_this_system);
        let planned: Vec<u32> = host.granted_nodes().iter().flat_map(|node| node.cpus().collect::<Vec<_>>()).collect();
        assert!(planned.iter().all(|cpu| host.granted().contains(cpu)), "{host:?}");
        assert_eq!(planned.len(), host.granted().len(), "{host:?}");
        assert!((1..=host.granted().len()).contains(&host.parallelism()));
    }

    #[test]
    fn a_quota_is_rounded_up_to_threads_and_the_mask_bounds_it() {
        let host = Host::whole(Topology { nodes: vec![Node::flat(&[0, 1, 2, 3])] });
        let parallelism = |granted: &[u32], quota_us| {
            let quota = Quota::new(quota_us, 100_000);
            assert!(quota.is_some());
            host.clone().limited(granted, quota).parallelism()
        };
        assert_eq!(host.parallelism(), 4);
        assert_eq!(parallelism(&[0, 1, 2, 3], 150_000), 2);
        assert_eq!(parallelism(&[0, 1, 2, 3], 20_000), 1);
        assert_eq!(parallelism(&[3], 150_000), 1);
        assert_eq!(parallelism(&[], 150_000), 1);
    }
}
