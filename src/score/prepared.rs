//! Rows that were preprocessed lately: raw rows in, what the steps made of them out, without the steps.
//!
//! A key stands for the steps (their digest, not the model's) and a request's raw rows, so that a new version, a candidate
//! or another model with equal steps finds what the first one left. What it holds never grows old; it leaves for want of
//! room. The cache holds no raw row: keys are hashes under a secret of the process.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{CacheKey, LruTtlCache, RowHasher, Secret, Tally};
use crate::clock;
use crate::metrics::Metrics;
use crate::model::Preprocessor;
use crate::record::Texts;

/// Long enough for a row that is never another.
const TIME_TO_LIVE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Preprocessed rows of all models.
pub(crate) struct FeatureCache {
    rows: LruTtlCache<Box<[f64]>>,
    secret: Secret,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for FeatureCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeatureCache").field("entries", &self.rows.len()).finish_non_exhaustive()
    }
}

impl FeatureCache {
    /// An empty cache under a secret of its own.
    pub(crate) fn new(bytes_max: NonZeroUsize, metrics: Arc<Metrics>) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        Ok(Self { rows: LruTtlCache::new(bytes_max, TIME_TO_LIVE), secret: Secret::new(secret), metrics })
    }
}

/// Lookups of one batch, for one model's steps.
pub(super) struct Lookups {
    cache: Arc<FeatureCache>,
    keys: RowHasher,
    now: Instant,
    hits: usize,
    misses: usize,
    tally: Tally,
}

impl Lookups {
    pub(super) fn new(cache: &Arc<FeatureCache>, preprocessor: &Preprocessor) -> Self {
        Self {
            keys: RowHasher::new(&cache.secret, preprocessor.digest()),
            cache: Arc::clone(cache),
            now: clock::now(),
            hits: 0,
            misses: 0,
            tally: Tally::default(),
        }
    }

    /// Puts what the steps made of these raw rows into `out`, which has that size. Gives the key under which to keep it
    /// where it is not there.
    pub(super) fn find(&mut self, features: &[f64], texts: Texts<'_>, out: &mut [f64]) -> Result<(), CacheKey> {
        let key = self.keys.key(features, texts);
        let found = self.cache.rows.get(key, self.now, &mut self.tally, |prepared| out.copy_from_slice(prepared));
        if found.is_some() {
            self.hits += 1;
            return Ok(());
        }
        self.misses += 1;
        Err(key)
    }

    /// Keeps it.
    pub(super) fn keep(&mut self, key: CacheKey, prepared: &[f64]) {
        self.cache.rows.insert(key, prepared.into(), self.now, &mut self.tally);
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        let counts = (self.hits, 0, self.misses);
        self.cache.metrics.feature_cache.add(counts, std::mem::take(&mut self.tally));
    }
}
