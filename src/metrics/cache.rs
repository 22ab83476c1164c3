//! What requests found in the result cache, and what it holds.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use serde::{Deserialize, Serialize};

use super::Maker;
use crate::cache::Tally;

/// A cache, counted: that of results, or that of preprocessed rows.
#[derive(Debug)]
pub struct CacheMetrics {
    /// Requests answered from it.
    pub hits: IntCounter,
    /// Requests that were looked up and scored.
    pub misses: IntCounter,
    /// Requests that shared the scores of one with the same rows, which was being scored.
    pub joined: IntCounter,
    /// Results that left before they were replaced, by reason: `size` or `ttl`.
    pub evicted: IntCounterVec,
    /// Bytes that it takes.
    pub bytes: IntGauge,
    /// Results that it holds.
    pub entries: IntGauge,
}

impl CacheMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        let help = "Results dropped for want of room (size) or when their time to live had passed (ttl)";
        let evicted = evictions(make, "forebay_cache_evicted_total", help);
        Self {
            hits: make.counter("forebay_cache_hits_total", "Requests answered from the result cache"),
            misses: make.counter("forebay_cache_misses_total", "Requests looked up in the result cache and scored"),
            joined: make.counter(
                "forebay_cache_joined_total",
                "Requests that shared the scores of one with the same rows while it was scored",
            ),
            evicted,
            bytes: make.gauge("forebay_cache_bytes", "Bytes that the result cache takes"),
            entries: make.gauge("forebay_cache_entries", "Results in the cache"),
        }
    }

    /// The same of the feature cache, in which nothing is joined.
    pub(super) fn of_features(make: &Maker<'_>) -> Self {
        let (name, help) = ("forebay_feature_cache_evicted_total", "Preprocessed rows dropped for want of room (size)");
        let none = IntCounter::new("forebay_feature_cache_joined_total", "Never shown").expect("a name");
        Self {
            hits: make
                .counter("forebay_feature_cache_hits_total", "Requests whose preprocessed rows were in the cache"),
            misses: make.counter("forebay_feature_cache_misses_total", "Requests looked up there and preprocessed"),
            joined: none,
            evicted: evictions(make, name, help),
            bytes: make.gauge("forebay_feature_cache_bytes", "Bytes that the feature cache takes"),
            entries: make.gauge("forebay_feature_cache_entries", "Requests whose preprocessed rows it holds"),
        }
    }

    /// In short; `None` while nothing was ever looked up.
    #[must_use]
    pub fn stats(&self) -> Option<CacheStats> {
        let (hits, joined, misses) = (self.hits.get(), self.joined.get(), self.misses.get());
        let state = |gauge: &IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        let stats = CacheStats { hits, joined, misses, entries: state(&self.entries), bytes: state(&self.bytes) };
        Some(stats).filter(|_| hits + joined + misses > 0)
    }

    /// Adds what a batch's lookups came to: hits, joined and misses, and what they changed.
    pub(crate) fn add(&self, (hits, joined, misses): (usize, usize, usize), tally: Tally) {
        for (counter, count) in [(&self.hits, hits), (&self.joined, joined), (&self.misses, misses)] {
            counter.inc_by(count as u64);
        }
        self.bytes.add(tally.bytes);
        self.entries.add(tally.entries);
        for (reason, count) in [("size", tally.evicted_size), ("ttl", tally.evicted_ttl)] {
            if count > 0 {
                self.evicted.with_label_values(&[reason]).inc_by(count);
            }
        }
    }
}

fn evictions(make: &Maker<'_>, name: &str, help: &str) -> IntCounterVec {
    let evicted = make.counters(name, help, &["reason"]);
    for reason in ["size", "ttl"] {
        // So that both are there, at 0, before the first.
        let _ = evicted.with_label_values(&[reason]);
    }
    evicted
}

/// A cache in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Requests answered from it.
    pub hits: u64,
    /// Requests that shared the scores of one that was being scored.
    pub joined: u64,
    /// Requests that were looked up and scored.
    pub misses: u64,
    /// Results that it holds.
    pub entries: u64,
    /// Their memory.
    pub bytes: u64,
}
