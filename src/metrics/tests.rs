use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::batch::PoolStats;
use crate::cache::Tally;

const MS: Duration = Duration::from_millis(1);

fn level(level: u8) -> Priority {
    Priority::new(level).unwrap()
}

fn sights() -> Sights {
    let queue = |priority, depth, oldest| QueueSight { model: "m".to_owned(), priority, depth, oldest };
    let model = ModelInfo {
        name: "m".to_owned(),
        version: 3,
        kind: "lightgbm".to_owned(),
        backend: "compiled".to_owned(),
        compiled: true,
        sha256: "ab".to_owned(),
        features: vec!["a".to_owned(), "b".to_owned()],
        outputs: 1,
        path: "m.txt".to_owned(),
        loaded_at: "2026-11-23T21:00:00.000Z".to_owned(),
        load_ms: 12.5,
        previous: None,
        candidate: None,
        last_error: None,
        runner: None,
    };
    Sights {
        pool: MemoryPoolSnapshot::new(&[
            (Some(0), PoolStats { total_buffers: 2, memory_usage_mb: 0.5, hits: 3, misses: 2 }),
            (Some(2), PoolStats { total_buffers: 1, memory_usage_mb: 0.25, hits: 1, misses: 1 }),
        ]),
        waiting: 7,
        queues: vec![queue(1, 0, None), queue(2, 7, Some(250 * MS))],
        models: vec![model],
    }
}

/// Metrics in which everything has happened at least once.
fn busy() -> Metrics {
    let metrics = Metrics::new();
    let start = metrics.started;
    let recorder = PerformanceMetrics::new(&metrics);
    let first = [(level(1), start), (level(2), start + MS), (level(2), start + MS)];
    recorder.update_inference("m", 3, 2 * MS);
    recorder.update_inference("m", 1, 4 * MS);
    metrics.model("m").taken(start + 5 * MS, first.into_iter());
    metrics.model("m").taken(start + 9 * MS, [(level(2), start + 9 * MS)].into_iter());
    metrics.model("m").scored.inc_by(3);
    recorder.record_error("m", ErrorCode::ModelError);
    recorder.record_error("", ErrorCode::BadRequest);
    metrics.cache.add((1, 2, 1), Tally { bytes: 640, entries: 1, ..Tally::default() });
    metrics.commit_records.add(4);
    metrics.commit_seconds.add_duration(3 * MS);
    metrics.request_seconds.add_since(start + 20 * MS, [start; 4].into_iter());
    metrics.lags.assigned("in", 3, 100);
    metrics.lags.ends("in", 3, 142);
    metrics
}

#[test]
fn the_snapshot_keeps_the_seeds_fields() {
    let json = serde_json::to_value(PerformanceMetrics::new(&busy()).get_metrics(7, sights().pool)).unwrap();
    let avg = json["avg_inference_time_ms"].as_f64().unwrap();
    assert!((avg - 3.0).abs() < 1e-9, "{avg}");
    assert_eq!((&json["total_requests"], &json["failed_requests"]), (&5.into(), &2.into()));
    assert_eq!(json["cache_hit_rate"], 0.2);
    let memory = &json["memory_pool"];
    assert_eq!((&memory["total_buffers"], &memory["memory_usage_mb"]), (&3.into(), &0.75.into()));
    assert_eq!((&memory["hits"], &memory["misses"]), (&4.into(), &3.into()));
    assert_eq!((&memory["nodes"][1]["node"], &memory["nodes"][1]["total_buffers"]), (&2.into(), &1.into()));
    assert_eq!(json["dynamic_batcher"]["avg_batch_size"], 2.0);
    assert_eq!(json["dynamic_batcher"]["processed_batches"], 2);
}

#[test]
fn stats_tell_queues_by_level_and_are_read_back_as_they_were() {
    let metrics = busy();
    let health = HealthStats { live: true, ready: false, reasons: vec!["group: none".to_owned()] };
    let stats = Stats::new(&metrics, &sights(), health, metrics.started + 500 * MS);
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!((&json["uptime_s"], &json["window_s"]), (&0.5.into(), &0.5.into()));
    let queue = &json["models"][0]["queues"][1];
    assert_eq!((&queue["priority"], &queue["depth"], &queue["oldest_ms"]), (&2.into(), &7.into(), &250.0.into()));
    assert_eq!(queue["waited_ms"]["count"], 3);
    assert_eq!(json["models"][0]["queues"][0]["waited_ms"]["count"], 1);
    let waited = json["models"][0]["queues"][0]["waited_ms"]["p50"].as_f64().unwrap();
    assert!((4.0..=6.0).contains(&waited), "{waited}");
    assert_eq!(json["lag"], serde_json::json!([{"topic": "in", "partition": 3, "lag": 42}]));
    assert_eq!(json["totals"]["requests_failed"], serde_json::json!({"bad_request": 1, "model_error": 1}));
    assert_eq!((&json["models"][0]["failed"], &json["models"][0]["scored"]), (&1.into(), &3.into()));
    assert_eq!(json["cache"], serde_json::json!({"hits": 1, "joined": 2, "misses": 1, "entries": 1, "bytes": 640}));
    assert_eq!(Metrics::new().cache.stats(), None, "nothing was looked up");
    let back: Stats = serde_json::from_str(&json.to_string()).unwrap();
    assert_eq!(back, stats);
}

#[test]
fn the_text_has_a_series_for_each_model_level_and_partition() {
    let metrics = busy();
    let text = metrics.to_text(&sights());
    for line in [
        "forebay_requests_scored_total{model=\"m\"} 3",
        "forebay_requests_failed_total{code=\"model_error\",model=\"m\"} 1",
        "forebay_requests_failed_total{code=\"bad_request\",model=\"\"} 1",
        "forebay_queue_seconds_count{model=\"m\",priority=\"1\"} 1",
        "forebay_queue_seconds_bucket{model=\"m\",priority=\"2\",le=\"0.0000025\"} 1",
        "forebay_queue_seconds_bucket{model=\"m\",priority=\"2\",le=\"+Inf\"} 3",
        "forebay_queue_seconds_sum{model=\"m\",priority=\"2\"} 0.008",
        "forebay_batch_rows_sum{model=\"m\"} 4",
        "forebay_inference_seconds_count{model=\"m\"} 2",
        "forebay_request_seconds_sum 0.08",
        "forebay_queue_depth{model=\"m\",priority=\"2\"} 7",
        "forebay_queue_oldest_seconds{model=\"m\",priority=\"2\"} 0.25",
        "forebay_consumer_lag{topic=\"in\",partition=\"3\"} 42",
        "forebay_pool_bytes{node=\"0\"} 524288",
        "forebay_model_info{model=\"m\",version=\"3\",kind=\"lightgbm\",backend=\"compiled\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?} in\n{text}");
    }
    metrics.lags.gone("in", 3);
    assert!(!metrics.to_text(&sights()).contains("forebay_consumer_lag"));
}

/// The rules of `promtool check metrics`, and the house's own.
#[test]
fn names_are_those_of_prometheus_rules() {
    let text = busy().to_text(&sights());
    let mut helps = BTreeSet::new();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            assert!(helps.insert(help), "{name}: a help that another metric has: {help}");
            assert!(!help.ends_with('.'), "{name}: {help}");
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert_eq!(types.insert(name, kind), None, "{name} comes twice");
        }
    }
    assert_eq!(helps.len(), types.len());
    assert!(types.len() > 40, "{types:?}");
    for (name, kind) in types {
        let rest = name.strip_prefix("forebay_").or_else(|| name.strip_prefix("process_"));
        let rest = rest.unwrap_or_else(|| panic!("{name}: whose is it?"));
        assert!(rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        for ending in ["_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(ending), "{name} looks like a part of a histogram");
        }
        for unit in ["_ms", "_us", "_milliseconds", "_mb", "_kb", "_kib", "_mib", "_percent"] {
            assert!(!name.contains(unit), "{name}: seconds, bytes and shares are the units");
        }
        for word in ["_histogram", "_gauge", "_counter"] {
            assert!(!name.contains(word), "{name} names its type");
        }
        if kind == "histogram" {
            assert!(["_seconds", "_rows", "_records"].iter().any(|unit| name.ends_with(unit)), "{name}: no unit");
        }
    }
}

#[test]
fn a_batch_whose_levels_come_in_turn_counts_each_request_once() {
    let metrics = Metrics::new();
    let (model, start) = (metrics.model("m"), metrics.started);
    let levels = [1, 1, 2, 3, 3, 3, 1];
    model.taken(start + MS, levels.into_iter().map(|number| (level(number), start)));
    assert_eq!(levels.map(|number| model.queued(level(number)).count()), [3, 3, 1, 3, 3, 3, 3]);
}
