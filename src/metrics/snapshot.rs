//! The metrics as JSON: the seed's snapshot, and around it what the live page and `forebay top` show.
//!
//! A count never goes back, so that who polls can make rates of two answers. What is told as quantiles covers the last
//! ten seconds or so ([`Stats::window_s`]). What is not there is null.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{CacheStats, Metrics, PartitionLag, PauseStats, ProcessStats, Quantiles, QueueSight, RunnerInfo, Sights};
use crate::batch::PoolStats;
use crate::record::ErrorCode;

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

    /// A batch was scored: its model, its rows, and how long the model took.
    pub fn update_inference(&self, model: &str, rows: u32, inference: Duration) {
        let model = self.metrics.model(model);
        model.batch_rows.add(u64::from(rows));
        model.inference.add_duration(inference);
    }

    /// A request ended in an error.
    pub fn record_error(&self, model: &str, code: ErrorCode) {
        self.metrics.record_error(model, code);
    }

    /// The seed's snapshot.
    #[must_use]
    pub fn get_metrics(&self, waiting: usize, memory_pool: MemoryPoolSnapshot) -> PerformanceSnapshot {
        let (mut batches, mut rows, mut inference_ns) = (0, 0, 0.0);
        for model in self.metrics.models.read().values() {
            batches += model.batch_rows.count();
            rows += model.batch_rows.sum();
            inference_ns += model.inference.sum() as f64;
        }
        let failed = self.metrics.failed_total();
        let total_requests = self.metrics.scored_total() + failed;
        PerformanceSnapshot {
            avg_inference_time_ms: ratio(inference_ns / 1e6, batches),
            total_requests,
            failed_requests: failed,
            cache_hit_rate: ratio(self.metrics.cache.hits.get() as f64, total_requests),
            memory_pool,
            dynamic_batcher: BatcherSnapshot {
                processed_batches: batches,
                avg_batch_size: ratio(rows as f64, batches),
                waiting_requests: waiting,
            },
        }
    }
}

/// The seed's monitoring snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatcherSnapshot {
    /// Batches scored since the start.
    pub processed_batches: u64,
    /// Mean rows a batch.
    pub avg_batch_size: f64,
    /// Requests that wait in a queue now.
    pub waiting_requests: usize,
}

/// What `/stats` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The seed's snapshot; its fields stand beside those below.
    #[serde(flatten)]
    pub seed: PerformanceSnapshot,
    /// Which forebay it is.
    pub version: String,
    /// Seconds since its start, by the clock that the counts were read at.
    pub uptime_s: f64,
    /// Whether it does its work.
    pub health: HealthStats,
    /// Counts since the start, and what is on its way now.
    pub totals: Totals,
    /// How many seconds the quantiles cover.
    pub window_s: f64,
    /// Quantiles of the whole worker.
    pub recent: Recent,
    /// The models in service, with their queues.
    pub models: Vec<ModelStats>,
    /// The result cache; `None` while nothing was ever looked up.
    pub cache: Option<CacheStats>,
    /// What is in memory.
    pub memory: MemoryStats,
    /// What the system says of the process.
    pub process: Option<ProcessStats>,
    /// The input partitions that are this worker's.
    pub lag: Vec<PartitionLag>,
    /// How late threads run.
    pub pauses: PauseStats,
}

/// What `/livez` and `/readyz` answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStats {
    /// Whether it can recover by itself.
    pub live: bool,
    /// Whether all its parts do their work.
    pub ready: bool,
    /// What does not, a line each.
    pub reasons: Vec<String>,
}

/// Counts since the start, but for what is named as a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records read.
    pub records_received: u64,
    /// Tombstones.
    pub records_skipped: u64,
    /// Records that retention took.
    pub records_lost: u64,
    /// Records that were done before a restart.
    pub records_done_before: u64,
    /// State: records read and not committed.
    pub records_in_flight: i64,
    /// Requests that ended with scores.
    pub requests_scored: u64,
    /// Requests that ended in an error, by code.
    pub requests_failed: BTreeMap<String, u64>,
    /// Requests tried again.
    pub retries: u64,
    /// Replies that no topic took.
    pub replies_dropped: u64,
    /// Dead letters written.
    pub dead_letters: u64,
    /// Commits.
    pub commits: u64,
    /// Transactions aborted.
    pub transactions_aborted: u64,
    /// Producers made anew.
    pub producers_recycled: u64,
    /// Assignments and revocations.
    pub rebalances: u64,
    /// State: partitions that are this worker's.
    pub partitions_assigned: i64,
}

/// The last seconds of the whole worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// From a record's arrival to the commit of its reply.
    pub request_ms: Quantiles,
    /// Begin to end of a transaction.
    pub commit_ms: Quantiles,
    /// Records a transaction.
    pub commit_records: Quantiles,
}

/// A model in service, as `/models` tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Which load of that name it is, from 1.
    pub version: u32,
    /// The library whose format it is.
    pub kind: String,
    /// What scores it: `compiled`, `reference`, or `runtime` for models without trees.
    pub backend: String,
    /// Whether the compiled forest scores it.
    pub compiled: bool,
    /// SHA-256 of its file; empty for a model that came from none.
    pub sha256: String,
    /// Features a row, in order.
    pub features: Vec<String>,
    /// Scores a row.
    pub outputs: usize,
    /// Where its file was read; empty for a model that came from none.
    #[serde(default)]
    pub path: String,
    /// When it was put in service, as RFC 3339 has it.
    #[serde(default)]
    pub loaded_at: String,
    /// How long reading, parsing, validating and warming it up took.
    #[serde(default)]
    pub load_ms: f64,
    /// The version that a rollback brings back.
    pub previous: Option<VersionInfo>,
    /// The version that is tried beside it.
    pub candidate: Option<CandidateInfo>,
    /// Why the last change of it failed; `None` when it did not.
    pub last_error: Option<ChangeError>,
    /// The processes that score it; null where this one does.
    pub runner: Option<RunnerInfo>,
}

/// A version that is not the one in service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Which load of that name it is, from 1.
    pub version: u32,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Where its file was read.
    pub path: String,
}

/// A version on trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateInfo {
    /// The version.
    #[serde(flatten)]
    pub version: VersionInfo,
    /// `canary`: it answers its share; `shadow`: it is compared only.
    pub mode: String,
    /// Its share of the requests, 0 to 1.
    pub share: f64,
    /// What the trial came to so far.
    #[serde(flatten)]
    pub stats: TrialStats,
}

/// What a trial came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialStats {
    /// Requests that the candidate scored or failed on.
    pub requests: u64,
    /// Requests that it failed on.
    pub failed: u64,
    /// Rows that both versions scored.
    pub compared_rows: u64,
    /// Rows of which an output differs.
    pub differing_rows: u64,
    /// Rows of which the class differs: the largest of several outputs, the side of one half for a single one.
    pub changed_rows: u64,
    /// Mean over the rows of the largest difference of an output.
    pub difference_mean: f64,
    /// The largest difference of an output.
    pub difference_max: f64,
}

/// Why a change of a model failed. What was in service still is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeError {
    /// When, as RFC 3339 has it.
    pub at: String,
    /// Why, and what to do about it.
    pub message: String,
}

/// A model in service, with what it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStats {
    /// Its name.
    pub name: String,
    /// Which load of that name it is, from 1.
    pub version: u32,
    /// The library whose format it is.
    pub kind: String,
    /// What scores it.
    pub backend: String,
    /// Whether the compiled forest scores it.
    pub compiled: bool,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Features a row.
    pub features: usize,
    /// Scores a row.
    pub outputs: usize,
    /// Requests that ended with scores.
    pub scored: u64,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Batches scored.
    pub batches: u64,
    /// Rows scored.
    pub rows: u64,
    /// Time a batch.
    pub inference_ms: Quantiles,
    /// Rows a batch.
    pub batch_rows: Quantiles,
    /// Its levels, the highest first.
    pub queues: Vec<QueueStats>,
    /// The processes that score it.
    pub runner: Option<RunnerInfo>,
}

/// A level of a model's queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueStats {
    /// The level, 1 the highest.
    pub priority: usize,
    /// Requests that wait.
    pub depth: usize,
    /// How long the first of them has waited.
    pub oldest_ms: Option<f64>,
    /// How long requests waited that were taken.
    pub waited_ms: Quantiles,
}

/// What is in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// The process.
    pub resident_bytes: Option<u64>,
    /// The batch buffers.
    pub pool_bytes: u64,
}

impl Stats {
    /// What there is to tell at this moment.
    #[must_use]
    pub fn new(metrics: &Metrics, sights: &Sights, health: HealthStats, now: Instant) -> Self {
        let process = ProcessStats::read();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes, told in MiB")]
        let pool_bytes = (sights.pool.memory_usage_mb * f64::from(1 << 20)) as u64;
        Self {
            seed: PerformanceMetrics::new(metrics).get_metrics(sights.waiting, sights.pool.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_duration_since(metrics.started).as_secs_f64(),
            health,
            totals: Totals::new(metrics),
            window_s: metrics.window(now).as_secs_f64(),
            recent: Recent {
                request_ms: metrics.request_seconds.recent(),
                commit_ms: metrics.commit_seconds.recent(),
                commit_records: metrics.commit_records.recent(),
            },
            models: model_stats(metrics, sights),
            cache: metrics.cache.stats(),
            memory: MemoryStats { resident_bytes: process.map(|process| process.resident_bytes), pool_bytes },
            process,
            lag: metrics.lags.all(),
            pauses: metrics.pauses.stats(),
        }
    }
}

impl Totals {
    fn new(metrics: &Metrics) -> Self {
        let mut requests_failed = BTreeMap::new();
        for (_, code, count) in metrics.failed() {
            *requests_failed.entry(code).or_default() += count;
        }
        Self {
            records_received: metrics.records_received.get(),
            records_skipped: metrics.records_skipped.get(),
            records_lost: metrics.records_lost.get(),
            records_done_before: metrics.records_done_before.get(),
            records_in_flight: metrics.records_in_flight.get(),
            requests_scored: metrics.scored_total(),
            requests_failed,
            retries: metrics.retries.get(),
            replies_dropped: metrics.replies_dropped.get(),
            dead_letters: metrics.dead_letters.get(),
            commits: metrics.commits.get(),
            transactions_aborted: metrics.transactions_aborted.get(),
            producers_recycled: metrics.producers_recycled.get(),
            rebalances: metrics.rebalances.get(),
            partitions_assigned: metrics.partitions_assigned.get(),
        }
    }
}

fn model_stats(metrics: &Metrics, sights: &Sights) -> Vec<ModelStats> {
    let failed = metrics.failed();
    let one = |info: &ModelInfo| {
        let counted = metrics.model(&info.name);
        let queue = |sight: &QueueSight| QueueStats {
            priority: sight.priority,
            depth: sight.depth,
            oldest_ms: sight.oldest.map(|oldest| oldest.as_secs_f64() * 1e3),
            waited_ms: counted.recently_queued(sight.priority),
        };
        ModelStats {
            name: info.name.clone(),
            version: info.version,
            kind: info.kind.clone(),
            backend: info.backend.clone(),
            compiled: info.compiled,
            sha256: info.sha256.clone(),
            features: info.features.len(),
            outputs: info.outputs,
            scored: counted.scored.get(),
            failed: failed.iter().filter(|(model, ..)| *model == info.name).map(|(_, _, count)| count).sum(),
            batches: counted.batch_rows.count(),
            rows: counted.batch_rows.sum(),
            inference_ms: counted.inference.recent(),
            batch_rows: counted.batch_rows.recent(),
            queues: sights.queues.iter().filter(|sight| sight.model == info.name).map(queue).collect(),
            runner: info.runner.clone(),
        }
    };
    sights.models.iter().map(one).collect()
}

fn ratio(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}
