//! Values under keys, within a bound on bytes and for a time: [`LruTtlCache`]. The keys of feature rows are made by
//! [`RowHasher`], and whether looking pays is decided by [`LookPolicy`].
//!
//! Nothing here does I/O or reads a clock. Invariants:
//! 1. The entries together never take more than `bytes_max`, counted with what list, table and allocator add to each.
//! 2. A value is never read once its time to live has passed since it was put in.
//! 3. What leaves for want of room is what was read or put in longest ago, in its shard.
//! 4. No key holds a feature: it is a hash under a secret that ends with the process.

mod key;
mod policy;

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

pub use self::key::{RowHasher, Secret};
pub use self::policy::{Look, LookPolicy, Observed};

/// Most bytes that an allocation takes beside its content: glibc adds 8, rounds up to 16, and gives no less than 32.
const ALLOCATION_BYTES: usize = 24;
/// A place in the table at its emptiest: a pointer to the key, one to the node and a control byte, 16 places for 7.
const TABLE_BYTES: usize = 40;
/// Shards hold at least so many bytes: a value must fit into one.
const SHARD_BYTES_MIN: usize = 256 << 10;
const SHARDS_MAX: usize = 16;

/// How the results of models are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePolicy {
    /// Whether a model is looked up only as long as that is cheaper than scoring, as measured; or else always.
    pub auto: bool,
    /// Most bytes that the cache takes.
    pub bytes_max: NonZeroUsize,
    /// How long a result is good for.
    pub ttl: Duration,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self { auto: false, bytes_max: NonZeroUsize::MIN.saturating_add((64 << 20) - 1), ttl: Duration::from_secs(60) }
    }
}

/// What stands for a request in the cache: 128 bits of a keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheKey(u128);

impl CacheKey {
    /// A key of these bits, which must look random: shard and place in the table are taken from them as they are.
    #[must_use]
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// From the higher half; the place in the table is taken from the lower one.
    pub(crate) fn shard(self, shards: usize) -> usize {
        debug_assert!(shards.is_power_of_two());
        low_word(self.0 >> 64) & (shards - 1)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the lower bits are what is wanted")]
fn low_word(bits: u128) -> usize {
    bits as usize
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.0);
    }
}

/// Takes a [`CacheKey`] as its own hash.
#[derive(Default)]
pub(crate) struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    #[allow(clippy::cast_possible_truncation, reason = "the lower half is as random as the whole")]
    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a cache key is written as one u128");
    }
}

/// A value that knows how much it holds.
pub trait HeapBytes {
    /// Bytes that it holds outside of itself, without what their allocation adds.
    fn heap_bytes(&self) -> usize;
}

/// The scores of a request.
impl HeapBytes for Box<[f64]> {
    fn heap_bytes(&self) -> usize {
        size_of_val(&**self)
    }
}

/// What calls changed, summed up for the caller's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes that came in, less those that left.
    pub bytes: i64,
    /// Entries that came in, less those that left.
    pub entries: i64,
    /// Entries that left for want of room while they were still good.
    pub evicted_size: u64,
    /// Entries that left because their time to live had passed.
    pub evicted_ttl: u64,
}

/// Values by key. Each shard has a lock and a part of the bytes of its own.
pub struct LruTtlCache<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    shard_bytes_max: usize,
    ttl: Duration,
}

struct Shard<V> {
    entries: LruCache<CacheKey, Timed<V>, BuildHasherDefault<KeyIsHash>>,
    bytes: usize,
}

struct Timed<V> {
    value: V,
    since: Instant,
}

impl<V: HeapBytes> LruTtlCache<V> {
    /// What an entry takes beside what its value holds on the heap.
    pub const ENTRY_BYTES: usize = size_of::<(CacheKey, Timed<V>, [usize; 2])>() + ALLOCATION_BYTES + TABLE_BYTES;

    /// An empty cache. Up to 16 shards, as many as `bytes_max` fills with 256 KiB each.
    #[must_use]
    pub fn new(bytes_max: NonZeroUsize, ttl: Duration) -> Self {
        let most = (bytes_max.get() / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let count = 1 << most.ilog2();
        let shard = || Mutex::new(Shard { entries: LruCache::unbounded_with_hasher(<_>::default()), bytes: 0 });
        let shards = std::iter::repeat_with(shard).take(count).collect();
        Self { shards, shard_bytes_max: bytes_max.get() / count, ttl }
    }

    /// Reads a value under its shard's lock, and makes it the one that was used last. One whose time has passed is
    /// taken out.
    pub fn get<R>(&self, key: CacheKey, now: Instant, tally: &mut Tally, read: impl FnOnce(&V) -> R) -> Option<R> {
        let mut shard = self.shard(key).lock();
        let timed = shard.entries.get(&key)?;
        if !self.has_expired(timed, now) {
            return Some(read(&timed.value));
        }
        let timed = shard.entries.pop(&key)?;
        shard.count_out(&timed, tally);
        tally.evicted_ttl += 1;
        None
    }

    /// Puts a value in, in the place of an older one under the same key, and makes room for it. One that alone is more
    /// than a shard's part of the bytes is not kept.
    pub fn insert(&self, key: CacheKey, value: V, now: Instant, tally: &mut Tally) {
        let timed = Timed { value, since: now };
        let bytes = timed.bytes();
        if bytes > self.shard_bytes_max {
            return;
        }
        let mut shard = self.shard(key).lock();
        if let Some(old) = shard.entries.pop(&key) {
            shard.count_out(&old, tally);
        }
        while shard.bytes + bytes > self.shard_bytes_max {
            let Some((_, oldest)) = shard.entries.pop_lru() else { break };
            shard.count_out(&oldest, tally);
            let counter = if self.has_expired(&oldest, now) { &mut tally.evicted_ttl } else { &mut tally.evicted_size };
            *counter += 1;
        }
        shard.entries.put(key, timed);
        shard.bytes += bytes;
        tally.bytes += signed(bytes);
        tally.entries += 1;
    }

    /// Entries that it holds, those that have expired unread included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that its entries take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().bytes).sum()
    }

    fn shard(&self, key: CacheKey) -> &Mutex<Shard<V>> {
        &self.shards[key.shard(self.shards.len())]
    }

    fn has_expired(&self, timed: &Timed<V>, now: Instant) -> bool {
        now.saturating_duration_since(timed.since) >= self.ttl
    }
}

impl<V: HeapBytes> Shard<V> {
    fn count_out(&mut self, timed: &Timed<V>, tally: &mut Tally) {
        self.bytes -= timed.bytes();
        tally.bytes -= signed(timed.bytes());
        tally.entries -= 1;
    }
}

impl<V: HeapBytes> Timed<V> {
    fn bytes(&self) -> usize {
        let heap = self.value.heap_bytes();
        LruTtlCache::<V>::ENTRY_BYTES + if heap == 0 { 0 } else { heap + ALLOCATION_BYTES }
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
