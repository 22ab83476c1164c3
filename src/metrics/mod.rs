//! Every metric's name, in one place. Names follow Prometheus: a unit at the end, and never an id for a label.
//!
//! [`Metrics`] is shared by all threads and costs a few atomic additions a batch. What enters are counts and histograms,
//! as things happen; what leaves is Prometheus' text ([`Metrics::to_text`]) and the JSON at `/stats` ([`Stats`]). What
//! only has a value when somebody looks (queues, buffers, the process) is asked for then ([`Sights`]).
//!
//! Invariants: a counter never goes back; a queue, a partition or a model that is gone leaves no series of gauges behind.

mod cache;
mod family;
mod histogram;
mod lag;
mod pauses;
mod process;
mod runner;
mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

pub use self::cache::{CacheMetrics, CacheStats};
use self::family::Family;
use self::histogram::TICKS_KEPT;
pub use self::histogram::{Histogram, Quantiles, Scale};
pub use self::lag::{Lags, PartitionLag};
pub use self::pauses::{PauseStats, Pauses, watch};
pub use self::process::ProcessStats;
pub use self::runner::{RunnerInfo, RunnerProcess};
pub use self::snapshot::{
    BatcherSnapshot, CandidateInfo, ChangeError, HealthStats, MemoryPoolSnapshot, MemoryStats, ModelInfo, ModelStats,
    NodePoolSnapshot, PerformanceMetrics, PerformanceSnapshot, QueueStats, Recent, Stats, Totals, TrialStats,
    VersionInfo,
};
use crate::clock;
use crate::record::{ErrorCode, Priority};

/// What may come of a change of a model's version.
const CHANGE_OUTCOMES: [&str; 2] = ["changed", "refused"];

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
    /// Deliveries of records by NATS that were not their first.
    pub redeliveries: IntCounter,
    /// Replies that a stream of NATS had already, by their ids.
    pub replies_deduplicated: IntCounter,
    /// Replies to records that came again, which the stream did not know any more: some of them may be doubled.
    pub replies_maybe_doubled: IntCounter,
    /// Records read again after a restart whose replies were committed before.
    pub records_done_before: IntCounter,
    /// Dead letters that the broker refused for their size.
    pub dead_letters_dropped: IntCounter,
    /// Dead letters written.
    pub dead_letters: IntCounter,
    requests_scored: IntCounterVec,
    requests_failed: IntCounterVec,
    /// Requests put back to be tried again, after a transient error of their model.
    pub retries: IntCounter,
    /// Replies that the broker refused even as an error on the route's own topic.
    pub replies_dropped: IntCounter,
    /// Records read and not yet committed.
    pub records_in_flight: IntGauge,
    /// Commits: replies and positions that became visible together.
    pub commits: IntCounter,
    /// Records a commit.
    pub commit_records: Histogram,
    /// Time from the begin of a transaction to its end.
    pub commit_seconds: Histogram,
    /// Time from a record's arrival to the commit of its reply; at least once, to the reply's arrival at the broker.
    pub request_seconds: Histogram,
    /// Transactions that ended in an abort.
    pub transactions_aborted: IntCounter,
    /// Producers that were dropped and made anew after an uncertain end.
    pub producers_recycled: IntCounter,
    /// Times that partitions were assigned or revoked.
    pub rebalances: IntCounter,
    /// Partitions assigned now.
    pub partitions_assigned: IntGauge,
    /// 1 while no Kafka broker can be reached.
    pub broker_away: IntGauge,
    /// 1 while the worker is ready, as of the last look at `/metrics`.
    pub ready: IntGauge,
    service_requests: IntCounterVec,
    service_errors: IntCounterVec,
    /// Requests that named no subject for their answer, and so got none.
    pub service_without_reply: IntCounter,
    /// Messages to the NATS service that came faster than it took them, and were dropped unread.
    pub service_dropped: IntCounter,
    model_changes: IntCounterVec,
    /// The result cache.
    pub cache: CacheMetrics,
    /// The feature cache.
    pub feature_cache: CacheMetrics,
    /// How far the partitions are behind.
    pub lags: Lags,
    /// How late a thread runs that should.
    pub pauses: Pauses,
    models: RwLock<BTreeMap<String, Arc<ModelMetrics>>>,
    started: Instant,
    /// When the recent past was kept.
    ticks: Mutex<VecDeque<Instant>>,
}

/// What is counted for one model, all its versions together.
#[derive(Debug)]
pub struct ModelMetrics {
    /// Requests that a score thread ended with scores.
    pub scored: IntCounter,
    /// Time that the model took for a batch.
    pub inference: Histogram,
    /// Rows a batch.
    pub batch_rows: Histogram,
    /// How long requests waited for a score thread, by level; level 1 is at index 1.
    queued: Box<[OnceLock<Histogram>]>,
}

impl ModelMetrics {
    fn new(scored: IntCounter) -> Self {
        let queued = (0..=usize::from(u8::MAX)).map(|_| OnceLock::new()).collect();
        let (inference, batch_rows) = (Histogram::new(Scale::Seconds), Histogram::new(Scale::Count));
        Self { scored, inference, batch_rows, queued }
    }

    /// How long the requests of a level waited.
    pub fn queued(&self, priority: Priority) -> &Histogram {
        self.queued[usize::from(priority.get())].get_or_init(|| Histogram::new(Scale::Seconds))
    }

    /// The same for a level that may have had no request yet.
    fn recently_queued(&self, priority: usize) -> Quantiles {
        self.queued.get(priority).and_then(OnceLock::get).map_or_else(Quantiles::default, Histogram::recent)
    }

    /// The levels that had requests.
    fn levels(&self) -> impl Iterator<Item = (usize, &Histogram)> {
        self.queued.iter().enumerate().filter_map(|(level, queued)| Some((level, queued.get()?)))
    }

    /// The requests of a batch were taken from their queue: their levels, and when they had arrived. Neighbours of one level
    /// that came together are counted together.
    pub(crate) fn taken(&self, now: Instant, mut requests: impl Iterator<Item = (Priority, Instant)>) {
        let mut next = requests.next();
        while let Some((level, first)) = next {
            let mut arrived = Some(first);
            let level_only = std::iter::from_fn(|| {
                let current = arrived.take()?;
                next = requests.next();
                arrived = next.filter(|(other, _)| *other == level).map(|(_, arrived)| arrived);
                Some(current)
            });
            self.queued(level).add_since(now, level_only);
        }
    }
}

/// One level of a model's queue, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSight {
    /// The model's name.
    pub model: String,
    /// The level, 1 the highest.
    pub priority: usize,
    /// Requests that wait.
    pub depth: usize,
    /// How long the first of them has waited.
    pub oldest: Option<Duration>,
}

/// What has a value only when somebody looks.
#[derive(Clone, Debug)]
pub struct Sights {
    /// The batch buffers.
    pub pool: MemoryPoolSnapshot,
    /// Requests that wait, those among them whose back-off has not ended.
    pub waiting: usize,
    /// The queues, all levels of all models.
    pub queues: Vec<QueueSight>,
    /// The models in service.
    pub models: Vec<ModelInfo>,
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
        let make = Maker { registry: &registry };
        Self {
            records_received: make.counter("forebay_records_received_total", "Records read from the source"),
            records_skipped: make
                .counter("forebay_records_skipped_total", "Tombstones of compacted topics, which get no reply"),
            records_lost: make
                .counter("forebay_records_lost_total", "Records that retention removed before they were read"),
            redeliveries: make
                .counter("forebay_redeliveries_total", "Deliveries of records by NATS that were not their first"),
            replies_deduplicated: make
                .counter("forebay_replies_deduplicated_total", "Replies that a stream of NATS had already, by their ids"),
            replies_maybe_doubled: make.counter(
                "forebay_replies_maybe_doubled_total",
                "Replies to records that came again, which the stream did not know any more",
            ),
            records_done_before: make.counter(
                "forebay_records_done_before_total",
                "Records read again whose replies were committed before a restart, and so passed over",
            ),
            dead_letters_dropped: make
                .counter("forebay_dead_letters_dropped_total", "Dead letters that the broker refused for their size"),
            dead_letters: make.counter("forebay_dead_letters_total", "Failed records written to a dead letter topic"),
            requests_scored: make.counters(
                "forebay_requests_scored_total",
                "Requests that ended with scores",
                &["model"],
            ),
            requests_failed: make.counters(
                "forebay_requests_failed_total",
                "Requests that ended in an error reply; the model is empty for those that never came to one",
                &["model", "code"],
            ),
            retries: make
                .counter("forebay_retries_total", "Requests tried again after a transient error of their model"),
            replies_dropped: make
                .counter("forebay_replies_dropped_total", "Replies refused even as an error on the route's own topic"),
            records_in_flight: make.gauge("forebay_records_in_flight", "Records read and not yet committed"),
            commits: make.counter("forebay_commits_total", "Transactions committed"),
            commit_records: Histogram::new(Scale::Count),
            commit_seconds: Histogram::new(Scale::Seconds),
            request_seconds: Histogram::new(Scale::Seconds),
            transactions_aborted: make
                .counter("forebay_transactions_aborted_total", "Transactions that ended in an abort"),
            producers_recycled: make
                .counter("forebay_producers_recycled_total", "Producers made anew after an uncertain end"),
            rebalances: make.counter("forebay_rebalances_total", "Times that partitions were assigned or revoked"),
            partitions_assigned: make.gauge("forebay_partitions_assigned", "Partitions assigned now"),
            broker_away: make.gauge("forebay_broker_away", "1 while no Kafka broker can be reached"),
            ready: make.gauge("forebay_ready", "1 while /readyz answers that the worker is ready"),
            service_requests: make.counters(
                "forebay_service_requests_total",
                "Requests of NATS clients that were answered, with scores or an error",
                &["model"],
            ),
            service_errors: make.counters(
                "forebay_service_errors_total",
                "Requests of NATS clients that were answered with an error",
                &["model"],
            ),
            service_without_reply: make.counter(
                "forebay_service_without_reply_total",
                "Requests of NATS clients that named no subject for their answer, and so got none",
            ),
            service_dropped: make.counter(
                "forebay_service_dropped_total",
                "Requests of NATS clients that were dropped unread because they came too fast, at least so many",
            ),
            model_changes: make.counters(
                "forebay_model_changes_total",
                "Reloads, promotions and rollbacks that another version or candidate came of, and those that were refused",
                &["model", "outcome"],
            ),
            cache: CacheMetrics::new(&make),
            feature_cache: CacheMetrics::of_features(&make),
            lags: Lags::default(),
            pauses: Pauses::new(),
            models: RwLock::default(),
            started: clock::now(),
            ticks: Mutex::default(),
            registry,
        }
    }

    /// What is counted for the model of that name.
    #[must_use]
    pub fn model(&self, name: &str) -> Arc<ModelMetrics> {
        if let Some(model) = self.models.read().get(name) {
            return Arc::clone(model);
        }
        let new = || {
            // So that both are there, at 0, before the first: an alert on an increase sees none where there was nothing.
            for outcome in CHANGE_OUTCOMES {
                let _ = self.model_changes.with_label_values(&[name, outcome]);
            }
            Arc::new(ModelMetrics::new(self.requests_scored.with_label_values(&[name])))
        };
        Arc::clone(self.models.write().entry(name.to_owned()).or_insert_with(new))
    }

    /// The requests that a model's endpoint of the NATS service answered, and those of them that it answered with an error.
    #[must_use]
    pub fn endpoint(&self, model: &str) -> (IntCounter, IntCounter) {
        (self.service_requests.with_label_values(&[model]), self.service_errors.with_label_values(&[model]))
    }

    /// A model's version was changed, or should have been.
    pub fn model_change(&self, model: &str, changed: bool) {
        self.model_changes.with_label_values(&[model, CHANGE_OUTCOMES[usize::from(!changed)]]).inc();
    }

    /// A request ended in an error. The model's name is empty when it never came to one.
    pub fn record_error(&self, model: &str, code: ErrorCode) {
        self.requests_failed.with_label_values(&[model, code.as_str()]).inc();
    }

    /// Requests that ended in an error, by model and code.
    #[must_use]
    pub fn failed(&self) -> Vec<(String, String, u64)> {
        let families = self.requests_failed.collect();
        let series = families.iter().flat_map(MetricFamily::get_metric);
        let failed = series.map(|metric| {
            let label = |name| metric.get_label().iter().find(|label| label.name() == name);
            let label = |name| label(name).map_or_else(String::new, |label| label.value().to_owned());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, which was a u64")]
            let count = metric.get_counter().get_value() as u64;
            (label("model"), label("code"), count)
        });
        failed.collect()
    }

    /// Requests that ended with scores, all models together.
    #[must_use]
    pub fn scored_total(&self) -> u64 {
        self.models.read().values().map(|model| model.scored.get()).sum()
    }

    /// Requests that ended in an error, all together.
    #[must_use]
    pub fn failed_total(&self) -> u64 {
        self.failed().iter().map(|(_, _, count)| count).sum()
    }

    /// Keeps the counts of this moment, so that the last seconds can be told from the time before. Called each second.
    fn tick(&self, now: Instant) {
        for histogram in [&self.commit_records, &self.commit_seconds, &self.request_seconds, &self.pauses.late] {
            histogram.tick();
        }
        for model in self.models.read().values() {
            model.inference.tick();
            model.batch_rows.tick();
            model.levels().for_each(|(_, queued)| queued.tick());
        }
        let mut ticks = self.ticks.lock();
        ticks.push_back(now);
        while ticks.len() > TICKS_KEPT {
            ticks.pop_front();
        }
    }

    /// How much time the recent counts cover.
    fn window(&self, now: Instant) -> Duration {
        let ticks = self.ticks.lock();
        let oldest = ticks.front().filter(|_| ticks.len() == TICKS_KEPT).copied();
        now.saturating_duration_since(oldest.unwrap_or(self.started))
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn to_text(&self, sights: &Sights) -> String {
        let mut families = self.registry.gather();
        families.extend(self.histogram_families());
        families.extend(sights.families());
        families.extend(self.lag_family());
        families.extend(self.pause_families());
        families.extend(ProcessStats::read().iter().flat_map(ProcessStats::families));
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    fn histogram_families(&self) -> Vec<MetricFamily> {
        let mut rows = Family::histogram("forebay_batch_rows", "Rows a batch");
        let mut inference = Family::histogram("forebay_inference_seconds", "Time the model took for a batch");
        let mut queued = Family::histogram(
            "forebay_queue_seconds",
            "Time a request waited for a score thread, from its arrival; one that is tried again counts again",
        );
        for (name, model) in &*self.models.read() {
            rows.put_histogram(&[("model", name)], &model.batch_rows);
            inference.put_histogram(&[("model", name)], &model.inference);
            for (level, histogram) in model.levels() {
                queued.put_histogram(&[("model", name), ("priority", &level.to_string())], histogram);
            }
        }
        let families = [
            rows,
            inference,
            queued,
            Family::histogram("forebay_commit_records", "Records a transaction").with_histogram(&self.commit_records),
            Family::histogram("forebay_commit_seconds", "Time from the begin of a transaction to its end")
                .with_histogram(&self.commit_seconds),
            Family::histogram(
                "forebay_request_seconds",
                "Time from a record's arrival to the commit of its reply, or to its delivery if that is at least once",
            )
            .with_histogram(&self.request_seconds),
        ];
        families.into_iter().filter_map(Family::done).collect()
    }

    fn lag_family(&self) -> Option<MetricFamily> {
        let mut family = Family::gauge(
            "forebay_consumer_lag",
            "Offsets from the committed position to the last stable one, by input partition",
        );
        for PartitionLag { topic, partition, lag } in self.lags.all() {
            if let Some(lag) = lag {
                family.put(&[("topic", &topic), ("partition", &partition.to_string())], lag as f64);
            }
        }
        family.done()
    }

    fn pause_families(&self) -> Vec<MetricFamily> {
        let late = "How late a thread woke that sleeps 10 ms at a time: what stops it stops the score threads too";
        let families = [
            Family::histogram("forebay_scheduler_pause_seconds", late).with_histogram(&self.pauses.late),
            Family::counter("forebay_scheduler_pauses_total", "Wake-ups that came more than 5 ms late")
                .with(self.pauses.count() as f64),
            Family::gauge("forebay_scheduler_pause_max_seconds", "The latest wake-up since the last scrape")
                .with(self.pauses.take_longest().as_secs_f64()),
        ];
        families.into_iter().filter_map(Family::done).collect()
    }
}

impl Sights {
    fn families(&self) -> Vec<MetricFamily> {
        let mut depth = Family::gauge("forebay_queue_depth", "Requests that wait for a score thread");
        let mut oldest = Family::gauge(
            "forebay_queue_oldest_seconds",
            "How long the first request of a queue has waited; 0 for an empty one",
        );
        for queue in &self.queues {
            let priority = queue.priority.to_string();
            let labels = [("model", queue.model.as_str()), ("priority", &priority)];
            depth.put(&labels, queue.depth as f64);
            oldest.put(&labels, queue.oldest.unwrap_or_default().as_secs_f64());
        }
        let mut info = Family::gauge("forebay_model_info", "1 for each model in service");
        for ModelInfo { name, version, kind, backend, .. } in &self.models {
            let version = version.to_string();
            info.put(&[("model", name), ("version", &version), ("kind", kind), ("backend", backend)], 1.0);
        }
        let mut build = Family::gauge("forebay_build_info", "1, and which forebay this is");
        build.put(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let families =
            [depth, oldest, info, build].into_iter().chain(self.pool_families()).chain(self.trial_families());
        families.filter_map(Family::done).chain(runner::families(&self.models)).collect()
    }

    /// What the candidates have done so far; a series ends with its trial.
    fn trial_families(&self) -> [Family; 6] {
        let counter = |name, help| Family::counter(name, help);
        let mut requests = counter("forebay_candidate_requests_total", "Requests that a candidate scored or failed on");
        let mut failed = counter("forebay_candidate_failed_total", "Requests that a candidate failed on");
        let mut compared = counter("forebay_candidate_compared_rows_total", "Rows that a shadow scored too");
        let mut differing = counter("forebay_candidate_differing_rows_total", "Rows that a shadow scored otherwise");
        let mut changed = counter("forebay_candidate_changed_rows_total", "Rows that a shadow put in another class");
        let mut furthest = Family::gauge("forebay_candidate_difference_max", "The largest difference of an output");
        for model in &self.models {
            let Some(CandidateInfo { version, mode, stats, .. }) = &model.candidate else { continue };
            let version = version.version.to_string();
            let labels = [("model", model.name.as_str()), ("version", &version), ("mode", mode)];
            requests.put(&labels, stats.requests as f64);
            failed.put(&labels, stats.failed as f64);
            if mode == "shadow" {
                compared.put(&labels, stats.compared_rows as f64);
                differing.put(&labels, stats.differing_rows as f64);
                changed.put(&labels, stats.changed_rows as f64);
                furthest.put(&labels, stats.difference_max);
            }
        }
        [requests, failed, compared, differing, changed, furthest]
    }

    /// By NUMA node; without a label where memory is held to none.
    fn pool_families(&self) -> [Family; 4] {
        let mut buffers = Family::gauge("forebay_pool_buffers", "Batch buffers, idle and lent");
        let mut bytes = Family::gauge("forebay_pool_bytes", "Memory of the batch buffers");
        let mut hits = Family::counter("forebay_pool_hits_total", "Batches that an idle buffer served");
        let mut misses = Family::counter("forebay_pool_misses_total", "Batches that took new memory");
        for pool in &self.pool.nodes {
            let node = pool.node.map(|node| node.to_string());
            let labels: Vec<(&str, &str)> = node.iter().map(|node| ("node", node.as_str())).collect();
            buffers.put(&labels, pool.total_buffers as f64);
            bytes.put(&labels, pool.memory_usage_mb * f64::from(1 << 20));
            hits.put(&labels, pool.hits as f64);
            misses.put(&labels, pool.misses as f64);
        }
        [buffers, bytes, hits, misses]
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

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
}

#[cfg(test)]
mod tests;
