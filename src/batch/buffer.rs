//! Matrices' memory, lent and taken back: a request for `len` elements in, a zeroed buffer of that length out.
//!
//! Invariants:
//! 1. A lent buffer reads as zero, whoever had it before, and so does the rest of its size class, which nobody can reach:
//!    new memory is zero, and what was lent is zeroed when it comes back, while it is still in the processor's cache.
//! 2. A buffer is lent to one holder at a time and comes back when that one drops it. There is no other way to hand
//!    one back, so it cannot come back twice.
//! 3. Idle buffers hold at most `idle_bytes_max`; one that would exceed this is freed instead of kept.

use std::fmt;
use std::iter::Sum;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// Lends buffers of power-of-two size classes. Clones share one pool; any thread may ask, and any may drop.
#[derive(Clone, Debug)]
pub struct MemoryPool<E: Element = f64> {
    shared: Arc<Shared<E>>,
}

/// What a pool holds and how it served, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolStats {
    /// Buffers held, idle and lent.
    pub total_buffers: usize,
    /// Their memory in MiB, whole size classes counted.
    pub memory_usage_mb: f64,
    /// Requests that an idle buffer served.
    pub hits: u64,
    /// Requests that took new memory.
    pub misses: u64,
}

impl Sum for PoolStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), |sum, one| Self {
            total_buffers: sum.total_buffers + one.total_buffers,
            memory_usage_mb: sum.memory_usage_mb + one.memory_usage_mb,
            hits: sum.hits + one.hits,
            misses: sum.misses + one.misses,
        })
    }
}

/// Memory of a whole size class that is not the heap's. It reads as zero when it is made, and frees itself when dropped.
pub type Block<E> = Box<dyn DerefMut<Target = [E]> + Send>;

/// Where a pool's memory comes from: a size class in elements in, a block of exactly that many out; `None` leaves the
/// class to the heap.
pub type BlockSource<E> = Box<dyn Fn(usize) -> Option<Block<E>> + Send + Sync>;

/// An element type that the models take: `f32` or `f64`.
pub trait Element: Copy + Default + Send + fmt::Debug + sealed::Sealed + 'static {}
impl Element for f32 {}
impl Element for f64 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The smallest size class: a cache line or more, so that tiny buffers share one shelf.
const CLASS_MIN_ELEMENTS: usize = 64;

impl<E: Element> MemoryPool<E> {
    /// An empty pool on the heap that keeps at most `idle_bytes_max` of returned buffers; 0 keeps none.
    #[must_use]
    pub fn new(idle_bytes_max: usize) -> Self {
        Self::with_source(idle_bytes_max, Box::new(|_| None))
    }

    /// The same, on memory of the caller's choice.
    #[must_use]
    pub fn with_source(idle_bytes_max: usize, source: BlockSource<E>) -> Self {
        Self { shared: Arc::new(Shared { idle_bytes_max, source, state: Mutex::default() }) }
    }

    /// A buffer of exactly `len` zeros.
    ///
    /// # Panics
    /// When `len` elements are more than an address space holds.
    #[must_use]
    pub fn get_buffer(&self, len: usize) -> PooledBuffer<E> {
        let class = Class::of(len);
        let recycled = self.shared.state.lock().lend(class);
        let memory = recycled.unwrap_or_else(|| Memory::new(class, &self.shared.source));
        PooledBuffer { memory, len, class, home: Arc::clone(&self.shared) }
    }

    /// Frees the idle buffers. Lent ones come back as ever; the counts of hits and misses go on.
    pub fn clear(&self) {
        let freed = {
            let mut state = self.shared.state.lock();
            state.idle_bytes = 0;
            state.idle_buffers = 0;
            std::mem::take(&mut state.shelves)
        };
        drop(freed);
    }

    /// The figures for metrics.
    #[must_use]
    pub fn get_stats(&self) -> PoolStats {
        let state = self.shared.state.lock();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people; exact below 2^53 bytes")]
        let memory_usage_mb = (state.idle_bytes + state.lent_bytes) as f64 / f64::from(1 << 20);
        PoolStats {
            total_buffers: state.idle_buffers + state.lent_buffers,
            memory_usage_mb,
            hits: state.hits,
            misses: state.misses,
        }
    }
}

/// A lent buffer: a slice of exactly the length asked for. It goes back to its pool when dropped.
pub struct PooledBuffer<E: Element = f64> {
    memory: Memory<E>,
    len: usize,
    class: Class,
    home: Arc<Shared<E>>,
}

impl<E: Element> Deref for PooledBuffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.memory.class()[..self.len]
    }
}

impl<E: Element> DerefMut for PooledBuffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.memory.class_mut()[..self.len]
    }
}

impl<E: Element> fmt::Debug for PooledBuffer<E> {
    /// The length only: features are a caller's data, and many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<E: Element> Drop for PooledBuffer<E> {
    fn drop(&mut self) {
        // What its holder could reach; the rest of the class is zero already.
        self.fill(E::default());
        let memory = std::mem::replace(&mut self.memory, Memory::Heap(Box::default()));
        let refused = self.home.state.lock().take_back(memory, self.class, self.home.idle_bytes_max);
        // Freed after the lock is gone.
        drop(refused);
    }
}

/// A size class's elements, all of them.
enum Memory<E> {
    Heap(Box<[E]>),
    Given(Block<E>),
}

impl<E: Element> Memory<E> {
    fn new(class: Class, source: &BlockSource<E>) -> Self {
        match source(class.elements()) {
            Some(block) => {
                assert_eq!(block.len(), class.elements(), "a block is as long as its class");
                Self::Given(block)
            }
            // Zeroed by the allocator: a page is touched first by the thread that fills it.
            None => Self::Heap(vec![E::default(); class.elements()].into_boxed_slice()),
        }
    }

    fn class(&self) -> &[E] {
        match self {
            Self::Heap(elements) => elements,
            Self::Given(block) => block,
        }
    }

    fn class_mut(&mut self) -> &mut [E] {
        match self {
            Self::Heap(elements) => elements,
            Self::Given(block) => block,
        }
    }
}

/// A size class, named by the power of two of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class(u32);

impl Class {
    fn of(len: usize) -> Self {
        let elements = len.max(CLASS_MIN_ELEMENTS).checked_next_power_of_two();
        Self(elements.expect("a buffer fits the address space").trailing_zeros())
    }

    fn elements(self) -> usize {
        1 << self.0
    }

    fn bytes<E: Element>(self) -> usize {
        self.elements() * size_of::<E>()
    }

    /// Its place among the shelves.
    fn shelf(self) -> usize {
        (self.0 - CLASS_MIN_ELEMENTS.trailing_zeros()) as usize
    }
}

struct Shared<E> {
    idle_bytes_max: usize,
    source: BlockSource<E>,
    state: Mutex<State<E>>,
}

impl<E> fmt::Debug for Shared<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("idle_bytes_max", &self.idle_bytes_max).finish_non_exhaustive()
    }
}

struct State<E> {
    /// Idle buffers by class, smallest first. The last returned is lent first: it is the likeliest to be in cache.
    shelves: Vec<Vec<Memory<E>>>,
    idle_buffers: usize,
    idle_bytes: usize,
    lent_buffers: usize,
    lent_bytes: usize,
    hits: u64,
    misses: u64,
}

impl<E> Default for State<E> {
    fn default() -> Self {
        Self { shelves: Vec::new(), idle_buffers: 0, idle_bytes: 0, lent_buffers: 0, lent_bytes: 0, hits: 0, misses: 0 }
    }
}

impl<E: Element> State<E> {
    /// Counts one buffer as lent, and gives an idle one of that class if there is one.
    fn lend(&mut self, class: Class) -> Option<Memory<E>> {
        self.lent_buffers += 1;
        self.lent_bytes += class.bytes::<E>();
        let recycled = self.shelves.get_mut(class.shelf()).and_then(Vec::pop);
        if recycled.is_some() {
            self.hits += 1;
            self.idle_buffers -= 1;
            self.idle_bytes -= class.bytes::<E>();
        } else {
            self.misses += 1;
        }
        recycled
    }

    /// Puts a buffer on its shelf, or gives it back to be freed when the pool is full.
    fn take_back(&mut self, memory: Memory<E>, class: Class, idle_bytes_max: usize) -> Option<Memory<E>> {
        let bytes = class.bytes::<E>();
        self.lent_buffers -= 1;
        self.lent_bytes -= bytes;
        if self.idle_bytes + bytes > idle_bytes_max {
            return Some(memory);
        }
        if self.shelves.len() <= class.shelf() {
            self.shelves.resize_with(class.shelf() + 1, Vec::new);
        }
        self.shelves[class.shelf()].push(memory);
        self.idle_buffers += 1;
        self.idle_bytes += bytes;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn is_zero(buffer: &[f64]) -> bool {
        buffer.iter().all(|x| x.to_bits() == 0)
    }

    #[test]
    fn a_recycled_buffer_has_the_length_asked_for_and_reads_as_zero() {
        let pool = MemoryPool::<f64>::new(64 * KIB);
        for len in [100, 128, 65, 127, 70] {
            let mut buffer = pool.get_buffer(len);
            assert_eq!(buffer.len(), len);
            assert!(is_zero(&buffer), "the last holder's data in a buffer of {len}");
            buffer.fill(f64::NAN);
        }
        let stats = pool.get_stats();
        assert_eq!((stats.total_buffers, stats.hits, stats.misses), (1, 4, 1));
    }

    #[test]
    fn the_first_holders_data_is_nowhere_in_what_the_second_gets() {
        let pool = MemoryPool::<f64>::new(64 * KIB);
        let mut first = pool.get_buffer(128);
        first.fill(4.0);
        let place = first.as_ptr();
        drop(first);
        // The shorter, the more of the class lies beyond what is lent.
        for len in [128, 100, 65] {
            let mut next = pool.get_buffer(len);
            assert_eq!((next.as_ptr(), next.memory.class().len()), (place, 128), "the same memory");
            assert!(is_zero(next.memory.class()), "old data in the class of a buffer of {len}");
            next.fill(5.0);
        }
        assert!(is_zero(pool.shared.state.lock().shelves[1][0].class()), "old data in an idle buffer");
    }

    #[test]
    fn memory_is_the_sources_where_it_gives_some() {
        let given = |class: usize| -> Option<Block<f64>> { (class >= 128).then(|| Box::new(vec![0.0; class]) as _) };
        let pool = MemoryPool::with_source(64 * KIB, Box::new(given));
        let (small, mut large) = (pool.get_buffer(64), pool.get_buffer(100));
        assert!(matches!((&small.memory, &large.memory), (Memory::Heap(_), Memory::Given(_))));
        large.fill(6.0);
        let place = large.as_ptr();
        drop(large);
        let again = pool.get_buffer(128);
        assert_eq!(again.as_ptr(), place);
        assert!(is_zero(&again));
    }

    #[test]
    fn two_live_buffers_never_alias() {
        let pool = MemoryPool::<f64>::new(64 * KIB);
        drop(pool.get_buffer(100));
        let mut a = pool.get_buffer(100);
        let mut b = pool.get_buffer(100);
        a.fill(1.0);
        b.fill(2.0);
        assert!(a.iter().all(|x| x.to_bits() == 1.0_f64.to_bits()));
        assert!(!a.as_ptr_range().contains(&b.as_ptr()) && !b.as_ptr_range().contains(&a.as_ptr()));
    }

    #[test]
    fn past_its_bound_the_pool_frees() {
        let pool = MemoryPool::<f64>::new(3 * KIB);
        let lent: Vec<_> = (0..5).map(|_| pool.get_buffer(128)).collect();
        let mib = |kib: f64| kib / 1024.0;
        assert!((pool.get_stats().memory_usage_mb - mib(5.0)).abs() < 1e-12);
        drop(lent);
        let stats = pool.get_stats();
        assert_eq!(stats.total_buffers, 3);
        assert!((stats.memory_usage_mb - mib(3.0)).abs() < 1e-12);
    }

    #[test]
    fn classes_are_powers_of_two_and_do_not_mix() {
        let elements = |len| Class::of(len).elements();
        assert_eq!([0, 1, 64, 65, 128, 129].map(elements), [64, 64, 64, 128, 128, 256]);
        let pool = MemoryPool::<f32>::new(64 * KIB);
        drop(pool.get_buffer(64));
        drop(pool.get_buffer(65));
        assert_eq!(pool.get_stats().misses, 2);
    }

    #[test]
    fn an_empty_buffer_is_served_too() {
        let pool = MemoryPool::<f64>::new(KIB);
        assert!(pool.get_buffer(0).is_empty());
        assert_eq!(pool.get_stats().total_buffers, 1);
    }

    #[test]
    fn clear_frees_the_idle_and_lent_ones_still_come_back() {
        let pool = MemoryPool::<f64>::new(64 * KIB);
        let lent = pool.get_buffer(10);
        drop(pool.get_buffer(10));
        pool.clear();
        assert_eq!(pool.get_stats().total_buffers, 1);
        drop(lent);
        assert_eq!(pool.get_stats().total_buffers, 1);
        drop(pool.get_buffer(10));
        assert_eq!(pool.get_stats().hits, 1);
    }

    #[test]
    fn a_buffer_may_outlive_the_pool() {
        let pool = MemoryPool::<f64>::new(KIB);
        let mut buffer = pool.get_buffer(3);
        drop(pool);
        buffer[2] = 1.0;
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn threads_share_a_pool_and_every_buffer_comes_back() {
        let pool = MemoryPool::<f64>::new(1 << 20);
        std::thread::scope(|scope| {
            for id in 1..=4_u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for round in 0..1_000_usize {
                        let mut buffer = pool.get_buffer(1 + round % 300);
                        assert!(is_zero(&buffer));
                        buffer.fill(f64::from(id));
                        assert!(buffer.iter().all(|x| x.to_bits() == f64::from(id).to_bits()));
                    }
                });
            }
        });
        let stats = pool.get_stats();
        assert_eq!(stats.hits + stats.misses, 4_000);
        assert_eq!(pool.shared.state.lock().lent_bytes, 0);
        assert!(stats.total_buffers as u64 <= stats.misses);
    }
}
