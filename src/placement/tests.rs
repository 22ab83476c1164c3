//! The planner on machines that are not here.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A machine by nodes: cores of each, and CPUs a core. CPUs are numbered as Linux does: the first of all cores, then the
/// second.
fn machine(nodes: &[usize], smt: usize) -> Topology {
    let total: usize = nodes.iter().sum();
    let mut core = 0;
    let nodes = (0..).zip(nodes).map(|(os_index, &cores)| {
        let cores = (core..core + cores).map(|index| Core {
            index: u32::try_from(index).unwrap(),
            cpus: (0..smt).map(|rank| u32::try_from(rank * total + index).unwrap()).collect(),
        });
        let node = Node { os_index, memory_bytes: 1 << 30, cores: cores.collect() };
        core += node.cores.len();
        node
    });
    Topology { nodes: nodes.collect() }
}

fn plan(nodes: &[usize], smt: usize, threads: usize) -> Plan {
    Plan::on(&Host::whole(machine(nodes, smt)), threads, &Pin::Auto).expect("a plan")
}

fn cpus(plan: &Plan) -> Vec<u32> {
    plan.places.iter().filter_map(|place| place.cpu).collect()
}

fn nodes(plan: &Plan) -> Vec<usize> {
    plan.places.iter().filter_map(|place| place.node).collect()
}

#[test]
fn one_node_takes_cores_first_and_holds_nothing() {
    let plan = |threads| plan(&[4], 2, threads);
    assert_eq!(cpus(&plan(3)), [0, 1, 2]);
    assert_eq!(cpus(&plan(6)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(cpus(&plan(0)), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(plan(9).places, [Place { cpu: None, node: None }; 9], "more threads than CPUs");
    assert_eq!((nodes(&plan(3)), plan(3).nodes, plan(3).shard_node(0)), (vec![], vec![], None));
}

#[test]
fn two_nodes_take_turns_and_shards_go_with_the_threads() {
    let plan = plan(&[4, 4], 2, 5);
    assert_eq!(cpus(&plan), [0, 4, 1, 5, 2]);
    assert_eq!(nodes(&plan), [0, 1, 0, 1, 0]);
    assert_eq!(plan.nodes[1], PlanNode { os_index: 1, cpus: vec![4, 12, 5, 13, 6, 14, 7, 15] });
    let shards: Vec<u32> = (0..6).filter_map(|shard| Some(plan.shard_node(shard)?.os_index)).collect();
    assert_eq!(shards, [0, 1, 0, 1, 0, 0]);
}

#[test]
fn four_nodes_of_unequal_size_share_in_proportion() {
    let plan = plan(&[8, 4, 2, 2], 1, 8);
    assert_eq!(nodes(&plan), [0, 1, 0, 2, 3, 0, 1, 0]);
}

#[test]
fn threads_beyond_the_cpus_are_held_to_nodes_only() {
    let plan = plan(&[2, 1], 1, 6);
    assert_eq!((cpus(&plan), nodes(&plan)), (vec![], vec![0, 1, 0, 0, 1, 0]));
}

#[test]
fn off_and_a_list() {
    let host = Host::whole(machine(&[2, 2], 1));
    let off = Plan::on(&host, 3, &Pin::Off).unwrap();
    assert_eq!(off, Plan { places: vec![Place { cpu: None, node: None }; 3], nodes: vec![] });
    let list = Plan::on(&host, 3, &Pin::Cores(vec![3, 0])).unwrap();
    assert_eq!((cpus(&list), nodes(&list)), (vec![3, 0, 3], vec![1, 0, 1]));
    let limited = host.limited(&[0, 1], None);
    let error = Plan::on(&limited, 1, &Pin::Cores(vec![3])).unwrap_err();
    assert_eq!(error, "core 3 is not granted to this process; it has [0, 1]");
}

#[test]
fn a_quota_bounds_the_default_only() {
    let host = Host::whole(machine(&[4], 1)).limited(&[0, 1, 2, 3], Quota::new(150_000, 100_000));
    let cpus = |threads| cpus(&Plan::on(&host, threads, &Pin::Auto).unwrap());
    assert_eq!(cpus(0), [0, 1]);
    assert_eq!(cpus(3), [0, 1, 2]);
}

#[test]
fn a_mask_that_hwloc_knows_nothing_of_is_one_node() {
    let host = Host::whole(machine(&[4], 1));
    let unknown = host.seen_as(Topology::default());
    let plan = Plan::on(&unknown, 2, &Pin::Auto).unwrap();
    assert_eq!((cpus(&plan), plan.nodes.len()), (vec![0, 1], 0));
}

/// Machines of one to four nodes, each core with one to three CPUs, and which of the CPUs are granted.
fn hosts() -> impl Strategy<Value = Host> {
    let node = prop::collection::vec(1..4_usize, 1..6);
    (prop::collection::vec(node, 1..5), any::<u64>(), any::<bool>()).prop_map(|(shape, mask, whole)| {
        let mut cpu = 0;
        let mut core = 0;
        let nodes = (0..).zip(shape).map(|(os_index, cores)| {
            let cores = cores.into_iter().map(|count| {
                let cpus: Vec<u32> = (cpu..).take(count).collect();
                (cpu, core) = (cpu + u32::try_from(count).unwrap(), core + 1);
                Core { index: core - 1, cpus }
            });
            Node { os_index: os_index * 3, memory_bytes: 0, cores: cores.collect() }
        });
        let host = Host::whole(Topology { nodes: nodes.collect() });
        let granted: Vec<u32> =
            host.granted().iter().copied().filter(|cpu| whole || mask >> (cpu % 64) & 1 == 1).collect();
        if granted.is_empty() { host } else { host.limited(&granted, None) }
    })
}

/// A granted CPU's node, its core, and its rank among the core's granted CPUs.
fn seats(host: &Host) -> BTreeMap<u32, (u32, u32, usize)> {
    let mut seats = BTreeMap::new();
    for node in &host.topology.nodes {
        for core in &node.cores {
            let granted = core.cpus.iter().filter(|cpu| host.granted().contains(cpu));
            seats.extend(granted.enumerate().map(|(rank, &cpu)| (cpu, (node.os_index, core.index, rank))));
        }
    }
    seats
}

/// Every node's count is within one of its exact share of `count`.
fn assert_proportional(of: &BTreeMap<u32, usize>, weights: &BTreeMap<u32, usize>, count: usize) {
    let total: usize = weights.values().sum();
    for (node, weight) in weights {
        let exact = count as f64 * *weight as f64 / total as f64;
        let got = of.get(node).copied().unwrap_or(0) as f64;
        assert!((got - exact).abs() < 1.0, "node {node}: {got} of {count}, exactly {exact}; {of:?} for {weights:?}");
    }
}

fn counts(keys: impl Iterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    keys.for_each(|key| *counts.entry(key).or_default() += 1);
    counts
}

proptest! {
    #[test]
    fn every_thread_has_the_best_place_that_is_left(host in hosts(), threads in 1..80_usize) {
        let plan = Plan::on(&host, threads, &Pin::Auto).expect("a plan");
        let seats = seats(&host);
        prop_assert_eq!(plan.places.len(), threads);
        let populated = counts(seats.values().map(|seat| seat.0));
        prop_assert_eq!(plan.nodes.len(), if populated.len() < 2 { 0 } else { populated.len() });
        prop_assert!(plan.nodes.iter().all(|node| node.cpus.iter().all(|cpu| seats[cpu].0 == node.os_index)));

        let cpus = cpus(&plan);
        if threads > seats.len() {
            prop_assert_eq!(cpus.len(), 0, "no CPU for two threads");
            if populated.len() > 1 {
                let held = counts(nodes(&plan).into_iter().map(|node| plan.nodes[node].os_index));
                assert_proportional(&held, &populated, threads);
            }
            return Ok(());
        }
        prop_assert_eq!(cpus.len(), threads);
        prop_assert!(cpus.iter().all(|cpu| host.granted().contains(cpu)), "outside the mask");
        prop_assert_eq!(counts(cpus.iter().copied()).len(), threads, "a CPU twice while others are free");
        for place in &plan.places {
            let node = place.node.map(|node| plan.nodes[node].os_index);
            let real = place.cpu.map(|cpu| seats[&cpu].0).filter(|_| populated.len() > 1);
            prop_assert_eq!(node, real, "a thread's node is its CPU's");
        }
        // Rank by rank: nobody gets a second CPU of a core while a core is free; each rank is shared in proportion.
        let ranks: Vec<usize> = cpus.iter().map(|cpu| seats[cpu].2).collect();
        prop_assert!(ranks.is_sorted(), "{:?}", ranks);
        for rank in 0..=*ranks.last().expect("a thread") {
            let all = counts(seats.values().filter(|seat| seat.2 == rank).map(|seat| seat.0));
            let used = counts(cpus.iter().filter(|cpu| seats[*cpu].2 == rank).map(|cpu| seats[cpu].0));
            let count = used.values().sum();
            prop_assert!(rank == *ranks.last().expect("a thread") || used == all, "rank {} has room", rank);
            assert_proportional(&used, &all, count);
        }
    }

    #[test]
    fn turns_are_even(shares in prop::collection::vec(0..9_usize, 1..6)) {
        let turns = interleaved(&shares);
        let got = (0..shares.len()).map(|index| turns.iter().filter(|turn| **turn == index).count());
        prop_assert_eq!(got.collect::<Vec<_>>(), shares.clone());
        for (index, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0) {
            let first = turns.iter().position(|turn| *turn == index).expect("it has a turn");
            // All that have turns in a fraction of the whole before this one's first.
            let before: usize = shares.iter().map(|other| (other + share) / (2 * share) + 1).sum();
            prop_assert!(first <= before, "{} first at {} of {:?}", index, first, shares);
        }
    }
}
