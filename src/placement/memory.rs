//! The memory of batch buffers, where it is not the heap's: mapped by itself, asked for on one NUMA node, in huge pages.
//!
//! The node is preferred, not demanded: on a full node a buffer that lies far away is better than a worker that the
//! kernel ends. Who refuses is named once; the memory then lies on the node of the thread that touches it first, which
//! is the pinned score thread that asked for it.
#![allow(
    unsafe_code,
    reason = "mapped bytes are floats; hwloc2 keeps memory binding to itself, so mbind is called directly"
)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Once;

use memmap2::{Advice, MmapMut};

use crate::batch::{Block, BlockSource, Element};

/// A huge page, of both x86-64 and 64-bit ARM with their usual pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Smaller blocks stay on the heap: they are cache-sized, and the thread that asks for one touches it first.
const MAPPED_BYTES_MIN: usize = 64 << 10;
/// Numbers of nodes that the kernel knows at most.
const NODES_MAX: usize = 1024;

/// What memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPolicy {
    /// The node, by the system's number; `None` leaves it to the first touch.
    pub(crate) node: Option<u32>,
    /// Whether blocks of a huge page and more lie in huge pages, if the kernel has them.
    pub(crate) huge_pages: bool,
}

impl MemoryPolicy {
    /// The source of a pool's memory.
    pub(crate) fn source<E: Element>(self) -> BlockSource<E> {
        if self.huge_pages {
            look_for_huge_pages();
        }
        Box::new(move |elements| {
            let bytes = elements.checked_mul(size_of::<E>())?;
            let in_huge_pages = self.huge_pages && bytes >= HUGE_PAGE_BYTES;
            let on_a_node = self.node.is_some() && bytes >= MAPPED_BYTES_MIN;
            if !in_huge_pages && !on_a_node {
                return None;
            }
            let mapped = Mapped::<E>::new(elements, if in_huge_pages { HUGE_PAGE_BYTES } else { 1 });
            let mapped = mapped.map_err(|error| say_once(&UNMAPPED, "on the heap", "map memory", &error)).ok()?;
            if in_huge_pages && let Err(error) = mapped.ask_for_huge_pages() {
                say_once(&NOT_HUGE, "in pages of the usual size", "give huge pages", &error);
            }
            if let Some(node) = self.node
                && let Err(error) = mapped.ask_for_node(node)
            {
                say_once(&UNBOUND, "where they are touched first", "bind memory to a node", &error);
            }
            Some(Box::new(mapped) as Block<E>)
        })
    }
}

static UNMAPPED: Once = Once::new();
static NOT_HUGE: Once = Once::new();
static UNBOUND: Once = Once::new();

fn say_once(once: &Once, instead: &str, refused: &str, error: &io::Error) {
    once.call_once(|| tracing::warn!("batch buffers lie {instead}: the system does not {refused}: {error}"));
}

/// A kernel whose administrator switched huge pages off takes the wish for them without a word.
fn look_for_huge_pages() {
    let file = "/sys/kernel/mm/transparent_hugepage/enabled";
    let setting = std::fs::read_to_string(file);
    let refused = match &setting {
        Ok(text) if text.contains("[never]") => io::Error::other(format!("{file} says never; madvise would do")),
        Ok(_) => return,
        Err(error) => io::Error::other(format!("{file}: {error}")),
    };
    say_once(&NOT_HUGE, "in pages of the usual size", "give huge pages", &refused);
}

/// Anonymous memory, which the kernel gives zeroed; unmapped when dropped.
struct Mapped<E> {
    map: MmapMut,
    /// Where the elements begin: at a page, or a huge page.
    start: usize,
    elements: usize,
    of: std::marker::PhantomData<E>,
}

impl<E: Element> Mapped<E> {
    /// `alignment` is a power of two. What is mapped for it beyond the elements is never touched, and so takes no memory.
    fn new(elements: usize, alignment: usize) -> io::Result<Self> {
        let bytes = elements * size_of::<E>();
        let map = MmapMut::map_anon(bytes + alignment - 1)?;
        let address = map.as_ptr() as usize;
        Ok(Self { start: address.next_multiple_of(alignment) - address, map, elements, of: std::marker::PhantomData })
    }

    fn bytes(&self) -> usize {
        self.elements * size_of::<E>()
    }

    fn ask_for_huge_pages(&self) -> io::Result<()> {
        self.map.advise_range(Advice::HugePage, self.start, self.bytes())
    }

    fn ask_for_node(&self, node: u32) -> io::Result<()> {
        const BITS: usize = libc::c_ulong::BITS as usize;
        let node = node as usize;
        if node >= NODES_MAX {
            return Err(io::Error::other(format!("node {node} is past the kernel's {NODES_MAX}")));
        }
        let mut nodes: [libc::c_ulong; NODES_MAX / BITS] = [0; NODES_MAX / BITS];
        nodes[node / BITS] = 1 << (node % BITS);
        // SAFETY: the range is inside this mapping and begins at a page; the policy changes where its pages will lie and
        // nothing that they hold. The mask is as long as is said: the kernel takes one bit less than it is told.
        let result = unsafe {
            let (policy, flags): (libc::c_int, libc::c_uint) = (libc::MPOL_PREFERRED, 0);
            let start = self.map.as_ptr().add(self.start);
            libc::syscall(libc::SYS_mbind, start, self.bytes(), policy, nodes.as_ptr(), NODES_MAX + 1, flags)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl<E: Element> Deref for Mapped<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // SAFETY: as in `deref_mut`.
        unsafe { slice::from_raw_parts(self.map.as_ptr().add(self.start).cast(), self.elements) }
    }
}

impl<E: Element> DerefMut for Mapped<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: `start` is a multiple of a page from a mapping's begin, so it is aligned; the mapping holds that many
        // elements from there on, as `new` made it, and is this value's alone; any bits are an `f32` or `f64`, which are
        // all the elements there are.
        unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start).cast(), self.elements) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::batch::MemoryPool;
    use crate::placement::Host;

    /// Says that a test could not show something, where `make test` counts it.
    fn not_shown(name: &str, why: &str) {
        eprintln!("{name}: not shown: {why}");
        if let Some(file) = std::env::var_os("FOREBAY_SKIPS") {
            let mut file = std::fs::File::options().append(true).create(true).open(file).expect("the skips' file");
            writeln!(file, "{name}: not shown: {why}").expect("written");
        }
    }

    /// The node of each page of a slice that was touched, as the kernel says.
    fn nodes_of<E>(slice: &[E]) -> io::Result<Vec<i32>> {
        let range = slice.as_ptr_range();
        let pages: Vec<usize> = (range.start as usize..range.end as usize).step_by(4096).collect();
        let mut nodes = vec![i32::MIN; pages.len()];
        // SAFETY: without a list of nodes nothing is moved: for each address the kernel writes a number into `nodes`,
        // which is as long as the list of addresses.
        let result = unsafe {
            let (myself, flags): (libc::pid_t, libc::c_int) = (0, 0);
            let (nowhere, into) = (std::ptr::null::<libc::c_int>(), nodes.as_mut_ptr());
            libc::syscall(libc::SYS_move_pages, myself, pages.len(), pages.as_ptr(), nowhere, into, flags)
        };
        if result == 0 { Ok(nodes) } else { Err(io::Error::last_os_error()) }
    }

    fn policy(node: Option<u32>, huge_pages: bool) -> MemoryPolicy {
        MemoryPolicy { node, huge_pages }
    }

    #[test]
    fn buffers_lie_on_the_node_that_was_asked_for() {
        let name = "buffers_lie_on_the_node_that_was_asked_for";
        let nodes: Vec<u32> = Host::read().topology.nodes.iter().map(|node| node.os_index).collect();
        // Whatever CPU this thread is on.
        for &node in &nodes {
            for huge_pages in [false, true] {
                let pool = MemoryPool::<f32>::with_source(0, policy(Some(node), huge_pages).source());
                let mut buffer = pool.get_buffer(1 << 20);
                buffer.fill(1.0);
                match nodes_of(&buffer) {
                    Ok(found) => {
                        assert_eq!(found.len(), 1024);
                        let node = i32::try_from(node).expect("a small number");
                        assert!(found.iter().all(|&found| found == node), "node {node}: {found:?}");
                    }
                    Err(error) => return not_shown(name, &format!("the kernel does not say where pages lie: {error}")),
                }
            }
        }
        if nodes.len() < 2 {
            not_shown(name, "one node");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_no_error() {
        for node in [1023, 1024, u32::MAX] {
            let mut block = policy(Some(node), false).source::<f64>()(1 << 14).expect("a block");
            assert!(Mapped::<f64>::new(8, 1).and_then(|mapped| mapped.ask_for_node(node)).is_err());
            block.fill(2.0);
            assert_eq!(block.len(), 1 << 14);
        }
    }

    #[test]
    fn the_heap_keeps_what_is_small_or_bound_to_nothing() {
        let mapped = |policy: MemoryPolicy, elements| policy.source::<f32>()(elements).is_some();
        let (small, medium, large) = (MAPPED_BYTES_MIN / 8, MAPPED_BYTES_MIN / 4, HUGE_PAGE_BYTES / 4);
        assert_eq!([small, medium, large].map(|elements| mapped(policy(None, false), elements)), [false, false, false]);
        assert_eq!([small, medium, large].map(|elements| mapped(policy(None, true), elements)), [false, false, true]);
        assert_eq!(
            [small, medium, large].map(|elements| mapped(policy(Some(0), false), elements)),
            [false, true, true]
        );
    }

    #[test]
    fn large_blocks_are_marked_for_huge_pages_at_their_border_and_read_as_zero() {
        let mut block = policy(None, true).source::<f64>()(1 << 19).expect("a block");
        let start = block.as_ptr() as usize;
        assert_eq!((start % HUGE_PAGE_BYTES, block.len()), (0, 1 << 19));
        assert!(block.iter().all(|value| value.to_bits() == 0));
        block.fill(3.0);
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("a Linux system");
        let (mut inside, mut flags) = (false, None);
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((from, to)) = range
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&start);
            }
            if inside && let Some(text) = line.strip_prefix("VmFlags:") {
                flags = Some(text.to_owned());
            }
        }
        let flags = flags.expect("the block is in the list");
        if std::fs::exists("/sys/kernel/mm/transparent_hugepage").expect("a file system") {
            assert!(flags.split(' ').any(|flag| flag == "hg"), "{flags}");
        } else {
            not_shown("large_blocks_are_marked_for_huge_pages", "a kernel without huge pages");
        }
    }

    #[test]
    fn recycled_blocks_are_zeroed_too() {
        let pool = MemoryPool::<f64>::with_source(1 << 30, policy(Some(0), true).source());
        let mut first = pool.get_buffer(1 << 18);
        first.fill(f64::NAN);
        let place = first.as_ptr();
        drop(first);
        let again = pool.get_buffer(1 << 18);
        assert_eq!(again.as_ptr(), place);
        assert!(again.iter().all(|value| value.to_bits() == 0));
    }
}
