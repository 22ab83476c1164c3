//! Keys that are being scored, each with who waits for its scores.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use parking_lot::{Mutex, MutexGuard};

use crate::cache::{CacheKey, KeyIsHash};

/// Locks, so that score threads seldom meet at one.
const SHARDS: usize = 16;

type Flights<T> = HashMap<CacheKey, Vec<T>, BuildHasherDefault<KeyIsHash>>;

/// As many keys as requests are being scored, and who follows them.
pub(super) struct InFlight<T> {
    shards: Box<[Mutex<Flights<T>>]>,
}

impl<T> InFlight<T> {
    pub(super) fn new() -> Self {
        Self { shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect() }
    }

    /// The keys beside this one, and it, if it is in flight.
    pub(super) fn lock(&self, key: CacheKey) -> MutexGuard<'_, Flights<T>> {
        self.shards[key.shard(SHARDS)].lock()
    }

    /// The key is in flight no more. Returns who followed.
    pub(super) fn end(&self, key: CacheKey) -> Vec<T> {
        self.lock(key).remove(&key).unwrap_or_default()
    }
}
