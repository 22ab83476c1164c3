//! A starting thread goes to its place. A refusal is no error: the thread then runs where the scheduler puts it.
#![allow(unsafe_code, reason = "a thread is held to a node's CPUs through the C library")]

use std::io;
use std::sync::Once;

use core_affinity::CoreId;

use super::{Place, Plan};

/// Pins the calling thread, or holds it to its node.
pub(crate) fn settle_score(plan: &Plan, place: Place) {
    match (place.cpu, place.node) {
        (Some(cpu), _) if is_in_set(cpu) => {
            if !core_affinity::set_for_current(CoreId { id: cpu as usize }) {
                say_refused(&io::Error::last_os_error());
            }
        }
        (_, Some(node)) => hold_to(&plan.nodes[node].cpus),
        (_, None) => {}
    }
}

/// Holds the calling thread to its shard's node. What it starts afterwards, librdkafka's threads too, inherits that.
#[cfg(any(feature = "kafka", test))]
pub(crate) fn settle_shard(plan: &Plan, shard: u32) {
    if let Some(node) = plan.shard_node(shard) {
        hold_to(&node.cpus);
    }
}

fn hold_to(cpus: &[u32]) {
    // SAFETY: a set of CPUs is an array of integers, for which all zeros are a value: the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| is_in_set(cpu)) {
        // SAFETY: the number is inside the set, as was just looked at.
        unsafe { libc::CPU_SET(cpu as usize, &mut set) };
    }
    // SAFETY: the set is as large as is said, and is only read; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result != 0 {
        say_refused(&io::Error::last_os_error());
    }
}

/// The C library's set ends at 1,024 CPUs.
fn is_in_set(cpu: u32) -> bool {
    i64::from(cpu) < i64::from(libc::CPU_SETSIZE)
}

fn say_refused(error: &io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!("threads run where the scheduler puts them: the system does not pin them: {error}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::PlanNode;

    fn mask() -> Vec<u32> {
        let ids = core_affinity::get_core_ids().unwrap_or_default();
        ids.iter().filter_map(|core| u32::try_from(core.id).ok()).collect()
    }

    /// The mask of a thread after it did this, and of a thread that it started then.
    fn masks_after(settle: impl FnOnce() + Send) -> [Vec<u32>; 2] {
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| {
                settle();
                [mask(), std::thread::scope(|scope| scope.spawn(mask).join().unwrap())]
            });
            settled.join().unwrap()
        })
    }

    #[test]
    fn a_thread_is_pinned_or_held_and_what_it_starts_inherits_that() {
        let granted = mask();
        let last = *granted.last().expect("a CPU");
        let node = |cpus: &[u32]| PlanNode { os_index: 0, cpus: cpus.to_vec() };
        let place = |cpu, node| Place { cpu, node: Some(node) };
        let places = vec![place(Some(last), 0), place(None, 0), place(None, 1)];
        let plan = Plan { places: places.clone(), nodes: vec![node(&granted), node(&[last])] };
        assert_eq!(masks_after(|| settle_score(&plan, places[0])), [vec![last], vec![last]]);
        assert_eq!(masks_after(|| settle_score(&plan, places[1])), [granted.clone(), granted.clone()]);
        assert_eq!(masks_after(|| settle_score(&plan, places[2])), [vec![last], vec![last]]);
        // Shards go by the places in turn.
        assert_eq!(masks_after(|| settle_shard(&plan, 1)), [granted.clone(), granted.clone()]);
        assert_eq!(masks_after(|| settle_shard(&plan, 5)), [vec![last], vec![last]]);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_no_error() {
        let granted = mask();
        let places = vec![Place { cpu: Some(1023), node: None }, Place { cpu: Some(4000), node: None }];
        let plan = Plan { places: places.clone(), nodes: vec![PlanNode { os_index: 9, cpus: vec![1022, 5000] }] };
        if granted.contains(&1023) || granted.contains(&1022) {
            return;
        }
        for place in places {
            assert_eq!(masks_after(|| settle_score(&plan, place))[0], granted);
        }
        assert_eq!(masks_after(|| hold_to(&plan.nodes[0].cpus))[0], granted);
    }
}
