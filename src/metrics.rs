//! Every metric's name, in one place. Names follow Prometheus: a unit at the end, and never an id for a label.
//!
//! [`Metrics`] is shared by all threads and costs a few atomic additions a batch; [`PerformanceMetrics`] is the seed's
//! view of it, and [`PerformanceSnapshot`] the JSON at `/stats`.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use serde::Serialize;

use crate::batch::PoolStats;
use crate::cache::Tally;
use crate::record::ErrorCode;

/// The worker's counters, gauges and histograms.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Records read from the source, whatever became of them.
    pub records_received: IntCounter,
    /// Records that ended without a reply because the config says so (tombstones of a compacted topic).
    pub records_skipped: IntCounter,
    /// Records that retention removed before they were read.
    pub records_lost: IntCounter,
    /// Records read again after a restart whose replies were committed before.
    pub records_done_before: IntCounter,
    /// Dead letters that the broker refused for their size.
    pub dead_letters_dropped: IntCounter,
    /// Dead letters written.
    pub dead_letters: IntCounter,
    /// Requests that a score thread ended with scores.
    pub requests_scored: IntCounter,
    /// Requests that ended in an error, by code.
    pub requests_failed: IntCounterVec,
    /// Requests put back to be tried again, after a transient error of their model.
    pub retries: IntCounter,
    /// Replies that the broker refused even as an error on the route's own topic.
    pub replies_dropped: IntCounter,
    /// Records read and not yet committed.
    pub records_in_flight: IntGauge,
    /// Batches scored.
    pub batches: IntCounter,
    /// Rows scored.
    pub rows: IntCounter,
    /// Rows a batch.
    pub batch_rows: Histogram,
    /// Time that the model took for a batch, by model.
    pub inference_seconds: HistogramVec,
    /// Time that the oldest request of a batch had waited.
    pub queue_seconds: Histogram,
    /// Commits: replies and positions that became visible together.
    pub commits: IntCounter,
    /// Records a commit.
    pub commit_records: Histogram,
    /// Time from the begin of a transaction to its end.
    pub commit_seconds: Histogram,
    /// Transactions that ended in an abort.
    pub transactions_aborted: IntCounter,
    /// Producers that were dropped and made anew after an uncertain end.
    pub producers_recycled: IntCounter,
    /// Times that partitions were assigned or revoked.
    pub rebalances: IntCounter,
    /// Partitions assigned now.
    pub partitions_assigned: IntGauge,
    /// 1 while no broker can be reached.
    pub broker_away: IntGauge,
    /// The result cache.
    pub cache: CacheMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh set, all zero.
    ///
    /// # Panics
    /// Never: the names below are distinct and valid, which the tests of this file run through.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let seconds = prometheus::exponential_buckets(0.000_05, 2.0, 20).expect("20 buckets, 50 us to 26 s");
        let sizes = prometheus::exponential_buckets(1.0, 2.0, 14).expect("14 buckets, 1 to 8,192");
        let make = Maker { registry: &registry };
        Self {
            records_received: make.counter("forebay_records_received_total", "Records read from the source"),
            records_skipped: make
                .counter("forebay_records_skipped_total", "Tombstones of compacted topics, which get no reply"),
            records_lost: make
                .counter("forebay_records_lost_total", "Records that retention removed before they were read"),
            records_done_before: make.counter(
                "forebay_records_done_before_total",
                "Records read again whose replies were committed before a restart, and so passed over",
            ),
            dead_letters_dropped: make
                .counter("forebay_dead_letters_dropped_total", "Dead letters that the broker refused for their size"),
            dead_letters: make.counter("forebay_dead_letters_total", "Failed records written to a dead letter topic"),
            requests_scored: make.counter("forebay_requests_scored_total", "Requests that ended with scores"),
            requests_failed: make.counters(
                "forebay_requests_failed_total",
                "Requests that ended in an error reply",
                "code",
            ),
            retries: make
                .counter("forebay_retries_total", "Requests tried again after a transient error of their model"),
            replies_dropped: make
                .counter("forebay_replies_dropped_total", "Replies refused even as an error on the route's own topic"),
            records_in_flight: make.gauge("forebay_records_in_flight", "Records read and not yet committed"),
            batches: make.counter("forebay_batches_total", "Batches scored"),
            rows: make.counter("forebay_rows_total", "Rows scored"),
            batch_rows: make.histogram("forebay_batch_rows", "Rows a batch", &sizes),
            inference_seconds: make.histograms(
                "forebay_inference_seconds",
                "Time the model took for a batch",
                "model",
                &seconds,
            ),
            queue_seconds: make.histogram(
                "forebay_queue_seconds",
                "Time the oldest request of a batch had waited",
                &seconds,
            ),
            commits: make.counter("forebay_commits_total", "Transactions committed"),
            commit_records: make.histogram("forebay_commit_records", "Records a transaction", &sizes),
            commit_seconds: make.histogram(
                "forebay_commit_seconds",
                "Time from the begin of a transaction to its end",
                &seconds,
            ),
            transactions_aborted: make
                .counter("forebay_transactions_aborted_total", "Transactions that ended in an abort"),
            producers_recycled: make
                .counter("forebay_producers_recycled_total", "Producers made anew after an uncertain end"),
            rebalances: make.counter("forebay_rebalances_total", "Times that partitions were assigned or revoked"),
            partitions_assigned: make.gauge("forebay_partitions_assigned", "Partitions assigned now"),
            broker_away: make.gauge("forebay_broker_away", "1 while no broker can be reached"),
            cache: CacheMetrics::new(&make),
            registry,
        }
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn to_text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Requests that ended in an error, all codes together.
    #[must_use]
    pub fn failed_total(&self) -> u64 {
        ErrorCode::ALL.iter().map(|code| self.requests_failed.with_label_values(&[code.as_str()]).get()).sum()
    }
}

/// What requests found in the result cache, and what it holds.
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
    fn new(make: &Maker<'_>) -> Self {
        let evicted = make.counters(
            "forebay_cache_evicted_total",
            "Results dropped for want of room (size) or when their time to live had passed (ttl)",
            "reason",
        );
        for reason in ["size", "ttl"] {
            // So that both are there, at 0, before the first.
            let _ = evicted.with_label_values(&[reason]);
        }
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

struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("a valid metric name");
        self.registry.register(Box::new(collector.clone())).expect("a name that is used once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn histograms(&self, name: &str, help: &str, label: &str, buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &[label]))
    }
}

/// The seed's recorder: what a score thread reports, and what can be asked.
#[derive(Clone, Copy, Debug)]
pub struct PerformanceMetrics<'a> {
    metrics: &'a Metrics,
}

impl<'a> PerformanceMetrics<'a> {
    /// A recorder onto the shared counters.
    #[must_use]
    pub fn new(metrics: &'a Metrics) -> Self {
        Self { metrics }
    }

    /// A batch was scored: its model, its rows, how long the model took and how long its oldest request had waited.
    pub fn update_inference(&self, model: &str, rows: u32, inference: Duration, queued: Duration) {
        self.metrics.batches.inc();
        self.metrics.rows.inc_by(u64::from(rows));
        self.metrics.batch_rows.observe(f64::from(rows));
        self.metrics.inference_seconds.with_label_values(&[model]).observe(inference.as_secs_f64());
        self.metrics.queue_seconds.observe(queued.as_secs_f64());
    }

    /// A request ended in an error.
    pub fn record_error(&self, code: ErrorCode) {
        self.metrics.requests_failed.with_label_values(&[code.as_str()]).inc();
    }

    /// The seed's snapshot.
    #[must_use]
    pub fn get_metrics(&self, waiting: usize, memory_pool: MemoryPoolSnapshot) -> PerformanceSnapshot {
        let (batches, rows) = (self.metrics.batches.get(), self.metrics.rows.get());
        let failed = self.metrics.failed_total();
        let total_requests = self.metrics.requests_scored.get() + failed;
        let inference_s: f64 = {
            use prometheus::core::Collector as _;
            let families = self.metrics.inference_seconds.collect();
            let series = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
            series.map(|metric| metric.get_histogram().get_sample_sum()).sum()
        };
        PerformanceSnapshot {
            avg_inference_time_ms: ratio(inference_s * 1e3, batches),
            total_requests,
            failed_requests: failed,
            cache_hit_rate: ratio(to_f64(self.metrics.cache.hits.get()), total_requests),
            memory_pool,
            dynamic_batcher: BatcherSnapshot {
                processed_batches: batches,
                avg_batch_size: ratio(to_f64(rows), batches),
                waiting_requests: waiting,
            },
        }
    }
}

/// The seed's monitoring snapshot, as `/stats` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerformanceSnapshot {
    /// Mean time that a model took for a batch.
    pub avg_inference_time_ms: f64,
    /// Requests that ended, with scores or an error.
    pub total_requests: u64,
    /// Requests that ended in an error.
    pub failed_requests: u64,
    /// Share of requests answered from the result cache.
    pub cache_hit_rate: f64,
    /// The batch buffers.
    pub memory_pool: MemoryPoolSnapshot,
    /// The batcher.
    pub dynamic_batcher: BatcherSnapshot,
}

/// The batch buffers' part of the snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPoolSnapshot {
    /// Buffers that exist, idle and lent.
    pub total_buffers: usize,
    /// What they hold, in MiB.
    pub memory_usage_mb: f64,
    /// Batches that an idle buffer served.
    pub hits: u64,
    /// Batches that took new memory.
    pub misses: u64,
    /// The same by NUMA node; one entry without a number where memory is held to none.
    pub nodes: Vec<NodePoolSnapshot>,
}

/// The batch buffers of one NUMA node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodePoolSnapshot {
    /// The system's number of the node.
    pub node: Option<u32>,
    /// As [`MemoryPoolSnapshot::total_buffers`].
    pub total_buffers: usize,
    /// As [`MemoryPoolSnapshot::memory_usage_mb`].
    pub memory_usage_mb: f64,
    /// As [`MemoryPoolSnapshot::hits`].
    pub hits: u64,
    /// As [`MemoryPoolSnapshot::misses`].
    pub misses: u64,
}

impl MemoryPoolSnapshot {
    /// The sum of all nodes' pools, and each of them.
    #[must_use]
    pub fn new(pools: &[(Option<u32>, PoolStats)]) -> Self {
        let PoolStats { total_buffers, memory_usage_mb, hits, misses } = pools.iter().map(|(_, stats)| *stats).sum();
        let nodes = pools.iter().map(|&(node, stats)| {
            let PoolStats { total_buffers, memory_usage_mb, hits, misses } = stats;
            NodePoolSnapshot { node, total_buffers, memory_usage_mb, hits, misses }
        });
        Self { total_buffers, memory_usage_mb, hits, misses, nodes: nodes.collect() }
    }
}

/// The batcher's part of the snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatcherSnapshot {
    /// Batches scored since the start.
    pub processed_batches: u64,
    /// Mean rows a batch.
    pub avg_batch_size: f64,
    /// Requests that wait in a queue now.
    pub waiting_requests: usize,
}

fn ratio(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / to_f64(count) }
}

#[allow(clippy::cast_precision_loss, reason = "a mean for display; 2^53 events are out of reach")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_the_seeds_fields_and_the_text_every_name() {
        let metrics = Metrics::new();
        let recorder = PerformanceMetrics::new(&metrics);
        recorder.update_inference("m", 3, Duration::from_millis(2), Duration::from_millis(1));
        recorder.update_inference("m", 1, Duration::from_millis(4), Duration::from_millis(1));
        recorder.record_error(ErrorCode::BadRequest);
        metrics.requests_scored.inc_by(4);
        let pool = PoolStats { total_buffers: 2, memory_usage_mb: 0.5, hits: 3, misses: 2 };
        let other = PoolStats { total_buffers: 1, memory_usage_mb: 0.25, hits: 1, misses: 1 };
        let pools = MemoryPoolSnapshot::new(&[(Some(0), pool), (Some(2), other)]);
        let json = serde_json::to_value(recorder.get_metrics(7, pools)).unwrap();
        let avg = json["avg_inference_time_ms"].as_f64().unwrap();
        assert!((avg - 3.0).abs() < 1e-9, "{avg}");
        assert_eq!(json["total_requests"], 5);
        let memory = &json["memory_pool"];
        assert_eq!((&memory["total_buffers"], &memory["memory_usage_mb"]), (&3.into(), &0.75.into()));
        assert_eq!((&memory["hits"], &memory["misses"]), (&4.into(), &3.into()));
        assert_eq!((&memory["nodes"][1]["node"], &memory["nodes"][1]["total_buffers"]), (&2.into(), &1.into()));
        assert_eq!(json["dynamic_batcher"]["avg_batch_size"], 2.0);
        assert_eq!(json["dynamic_batcher"]["processed_batches"], 2);
        let text = metrics.to_text();
        assert!(text.contains("forebay_requests_failed_total{code=\"bad_request\"} 1"), "{text}");
        assert!(text.contains("forebay_batch_rows_sum 4"), "{text}");
    }
}
