//! Which core each score thread runs on. The cores are those that the container grants: the mask is read before any
//! thread is pinned, because afterwards it lists the pinned core only.

use core_affinity::CoreId;

/// How score threads are pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// One core each, in order, while there are enough of them; none when threads outnumber cores.
    #[default]
    Auto,
    /// Where the system's scheduler puts them.
    Off,
    /// These cores, in turn.
    Cores(Vec<u32>),
}

/// Where the score threads will run: a core each, or `None` for one that is not pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One place a score thread.
    pub cores: Vec<Option<CoreId>>,
}

impl Plan {
    /// Plans `num_threads` score threads; 0 means one for each granted core.
    ///
    /// # Errors
    /// Names a core of [`Pin::Cores`] that is not granted.
    pub fn new(num_threads: usize, pin: &Pin) -> Result<Self, String> {
        Self::on(num_threads, pin, &granted_cores())
    }

    fn on(num_threads: usize, pin: &Pin, granted: &[CoreId]) -> Result<Self, String> {
        let threads = if num_threads == 0 { granted_parallelism(granted.len()) } else { num_threads };
        let cores = match pin {
            Pin::Off => vec![None; threads],
            Pin::Auto if threads > granted.len() => vec![None; threads],
            Pin::Auto => granted.iter().take(threads).copied().map(Some).collect(),
            Pin::Cores(ids) => {
                let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
                if let Some(absent) = ids.iter().find(|&&id| !granted.iter().any(|core| core.id == id)) {
                    let ids: Vec<usize> = granted.iter().map(|core| core.id).collect();
                    return Err(format!("core {absent} is not granted to this process; it has {ids:?}"));
                }
                ids.iter().cycle().take(threads).map(|&id| Some(CoreId { id })).collect()
            }
        };
        Ok(Self { cores })
    }
}

/// Pins the calling thread. A refusal is no error: the thread then runs where the scheduler puts it.
pub(crate) fn pin_current(core: Option<CoreId>) {
    if let Some(core) = core
        && !core_affinity::set_for_current(core)
    {
        tracing::warn!(core = core.id, "could not pin a score thread; it runs where the scheduler puts it");
    }
}

/// The cores that this process may run on.
#[must_use]
pub fn granted_cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().unwrap_or_default()
}

/// NUMA nodes of the machine; 1 when the topology cannot be read.
#[must_use]
pub fn numa_nodes() -> usize {
    let Some(topology) = hwloc2::Topology::new() else { return 1 };
    // `objects_with_type(NUMANode)` panics in hwloc2 2.2; a core knows its nodes.
    let cores = topology.objects_with_type(&hwloc2::ObjectType::Core).unwrap_or_default();
    let mut nodes = Vec::new();
    for core in cores {
        let set = core.nodeset().map(|set| set.to_string()).unwrap_or_default();
        if !nodes.contains(&set) {
            nodes.push(set);
        }
    }
    nodes.len().max(1)
}

/// A container's CPU quota may grant less than its mask shows.
fn granted_parallelism(cores: usize) -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(cores.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(ids: &[usize]) -> Vec<CoreId> {
        ids.iter().map(|&id| CoreId { id }).collect()
    }

    #[test]
    fn auto_pins_one_thread_a_core_while_there_are_enough() {
        let plan = |threads, pin: &Pin| Plan::on(threads, pin, &cores(&[2, 5, 7])).unwrap().cores;
        assert_eq!(plan(2, &Pin::Auto), [Some(CoreId { id: 2 }), Some(CoreId { id: 5 })]);
        assert_eq!(plan(4, &Pin::Auto), [None; 4]);
        assert_eq!(plan(2, &Pin::Off), [None; 2]);
        assert_eq!(plan(3, &Pin::Cores(vec![7, 2])).iter().map(|core| core.unwrap().id).collect::<Vec<_>>(), [7, 2, 7]);
    }

    #[test]
    fn a_core_that_is_not_granted_is_named() {
        let error = Plan::on(1, &Pin::Cores(vec![3]), &cores(&[0, 1])).unwrap_err();
        assert_eq!(error, "core 3 is not granted to this process; it has [0, 1]");
    }
}
