//! The alert rules, asked of workers of each kind over two hours: of those that do well none fires, and of those that do not the
//! one that is meant. Metrics are a worker's own, moved as its kind moves them.
//!
//! Queries are answered as Prometheus does, but for two things: an increase is not stretched to the ends of its range, and what no
//! rule uses is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use forebay::metrics::{Metrics, Sights};
use forebay::record::ErrorCode;
use promql_parser::label::Matchers;
use promql_parser::parser::token::{
    T_ADD, T_DIV, T_EQLC, T_GTR, T_LAND, T_LOR, T_LSS, T_LUNLESS, T_MAX, T_MIN, T_MUL, T_SUB, T_SUM, TokenType,
};
use promql_parser::parser::{self, BinaryExpr, Call, Expr, LabelModifier, VectorSelector};
use serde_json::Value;

use crate::monitoring::{Served, alerts};
use crate::{seconds, string};

/// Seconds between two scrapes, and between two looks at the rules.
const STEP: u32 = 15;
/// How old the last value of a series may be.
const LOOKBACK: f64 = 300.0;
const END: u32 = 7200;
/// When what is to go wrong goes wrong.
const FAULT: u32 = 1800;

type Labels = BTreeMap<String, String>;
type Vector = Vec<(Labels, f64)>;

/// Series by name, each with its samples in the order of time.
#[derive(Default)]
struct History(BTreeMap<String, BTreeMap<Labels, Vec<(f64, f64)>>>);

impl History {
    /// Takes what one look at `/metrics` gave; what a series says last counts.
    fn scrape(&mut self, now: u32, text: &str) {
        let now = f64::from(now);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').expect(line).split("\",").filter(|label| !label.is_empty());
            let pairs = labels.map(|label| label.split_once("=\"").expect(line));
            let mut labels: Labels = pairs.map(|(k, v)| (k.to_owned(), v.trim_end_matches('"').to_owned())).collect();
            labels.extend([("instance", "a:9640"), ("job", "forebay")].map(|(k, v)| (k.to_owned(), v.to_owned())));
            let samples = self.0.entry(name.to_owned()).or_default().entry(labels).or_default();
            samples.retain(|(at, _)| *at < now);
            samples.push((now, value.parse().expect(line)));
        }
    }

    /// The samples of what is selected, after `from` and up to `to`.
    fn select(&self, selector: &VectorSelector, from: f64, to: f64) -> Vec<(Labels, Vec<(f64, f64)>)> {
        let Matchers { matchers, or_matchers } = &selector.matchers;
        assert!(or_matchers.is_empty() && selector.offset.is_none() && selector.at.is_none(), "{selector}");
        let fits = |labels: &Labels| {
            matchers.iter().all(|matcher| matcher.is_match(labels.get(&matcher.name).map_or("", String::as_str)))
        };
        let found = self.0.get(selector.name.as_ref().expect("a name")).into_iter().flatten();
        let within = |samples: &[(f64, f64)]| {
            let end = samples.partition_point(|(at, _)| *at <= to);
            samples[samples.partition_point(|(at, _)| *at <= from)..end].to_vec()
        };
        let found = found.filter(|(labels, _)| fits(labels));
        found.map(|(labels, samples)| (labels.clone(), within(samples))).filter(|(_, some)| !some.is_empty()).collect()
    }

    fn vector(&self, expr: &Expr, now: f64) -> Vector {
        match expr {
            Expr::Paren(paren) => self.vector(&paren.expr, now),
            Expr::VectorSelector(selector) => {
                let found = self.select(selector, now - LOOKBACK, now);
                found.into_iter().map(|(labels, samples)| (labels, samples.last().unwrap().1)).collect()
            }
            Expr::Aggregate(aggregate) => {
                let Some(LabelModifier::Include(kept)) = &aggregate.modifier else { panic!("{expr}: by what?") };
                let mut groups: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
                for (mut labels, value) in self.vector(&aggregate.expr, now) {
                    labels.retain(|name, _| kept.labels.contains(name));
                    groups.entry(labels).or_default().push(value);
                }
                let whole = |values: Vec<f64>| match aggregate.op.id() {
                    T_SUM => values.iter().sum(),
                    T_MAX => values.iter().copied().fold(f64::MIN, f64::max),
                    T_MIN => values.iter().copied().fold(f64::MAX, f64::min),
                    _ => panic!("{expr}: not known here"),
                };
                groups.into_iter().map(|(labels, values)| (labels, whole(values))).collect()
            }
            Expr::Call(call) => self.call(call, now),
            Expr::Binary(binary) => self.binary(binary, now),
            _ => panic!("{expr}: not known here"),
        }
    }

    fn call(&self, call: &Call, now: f64) -> Vector {
        let (name, args) = (call.func.name, &call.args.args);
        match (name, &*args[0]) {
            ("absent", Expr::VectorSelector(selector)) => {
                let is_there = !self.select(selector, now - LOOKBACK, now).is_empty();
                let labels = selector.matchers.matchers.iter().map(|one| (one.name.clone(), one.value.clone()));
                if is_there { Vector::new() } else { vec![(labels.collect(), 1.0)] }
            }
            ("histogram_quantile", Expr::NumberLiteral(quantile)) => {
                let mut groups: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
                for (mut labels, count) in self.vector(&args[1], now) {
                    let bound = labels.remove("le").expect("buckets").parse().unwrap();
                    groups.entry(labels).or_default().push((bound, count));
                }
                let of = |buckets: Vec<(f64, f64)>| of_buckets(quantile.val, buckets);
                groups.into_iter().map(|(labels, buckets)| (labels, of(buckets))).collect()
            }
            (_, Expr::MatrixSelector(matrix)) => {
                let range = matrix.range.as_secs_f64();
                let found = self.select(&matrix.vs, now - range, now);
                let value = |samples: &[(f64, f64)]| of_range(name, samples, range);
                found.into_iter().filter_map(|(labels, samples)| Some((labels, value(&samples)?))).collect()
            }
            _ => panic!("{name}: not known here"),
        }
    }

    fn binary(&self, binary: &BinaryExpr, now: f64) -> Vector {
        let id = binary.op.id();
        match (&*binary.lhs, &*binary.rhs) {
            (left, Expr::NumberLiteral(right)) => {
                let left = self.vector(left, now).into_iter();
                left.filter_map(|(labels, value)| Some((labels, both(binary.op, value, right.val)?))).collect()
            }
            (Expr::NumberLiteral(left), right) => {
                assert!(!binary.op.is_comparison_operator(), "{binary}: the number to the right");
                let right = self.vector(right, now).into_iter();
                right.filter_map(|(labels, value)| Some((labels, both(binary.op, left.val, value)?))).collect()
            }
            (left, right) => {
                let matching = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref());
                let key = |labels: &Labels| -> Labels {
                    let kept = |name: &String| match matching {
                        None => true,
                        Some(LabelModifier::Include(on)) => on.labels.contains(name),
                        Some(LabelModifier::Exclude(ignored)) => !ignored.labels.contains(name),
                    };
                    labels.iter().filter(|(name, _)| kept(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
                };
                let (mut left, right) = (self.vector(left, now), self.vector(right, now));
                let values: BTreeMap<Labels, f64> = right.iter().map(|(labels, value)| (key(labels), *value)).collect();
                match id {
                    T_LAND => left.retain(|(labels, _)| values.contains_key(&key(labels))),
                    T_LUNLESS => left.retain(|(labels, _)| !values.contains_key(&key(labels))),
                    T_LOR => {
                        let there: BTreeSet<Labels> = left.iter().map(|(labels, _)| key(labels)).collect();
                        left.extend(right.into_iter().filter(|(labels, _)| !there.contains(&key(labels))));
                    }
                    _ => {
                        assert_eq!(values.len(), right.len(), "{binary}: several on the right match one on the left");
                        let of = |(labels, value): (Labels, f64)| {
                            let value = both(binary.op, value, *values.get(&key(&labels))?)?;
                            Some((labels, value))
                        };
                        return left.into_iter().filter_map(of).collect();
                    }
                }
                left
            }
        }
    }
}

/// What an operator makes of two numbers; nothing where a comparison does not hold.
fn both(op: TokenType, left: f64, right: f64) -> Option<f64> {
    match op.id() {
        T_ADD => Some(left + right),
        T_SUB => Some(left - right),
        T_MUL => Some(left * right),
        T_DIV => Some(left / right),
        #[expect(clippy::float_cmp, reason = "as Prometheus does")]
        T_EQLC => (left == right).then_some(left),
        T_GTR => (left > right).then_some(left),
        T_LSS => (left < right).then_some(left),
        _ => panic!("{op}: not known here"),
    }
}

/// What a function makes of the samples of one series.
fn of_range(function: &str, samples: &[(f64, f64)], range: f64) -> Option<f64> {
    let steps = || samples.windows(2).map(|pair| (pair[0].1, pair[1].1));
    // A counter that went back began anew.
    let increase = || steps().map(|(before, after)| if after < before { after } else { after - before }).sum::<f64>();
    match function {
        "increase" => (samples.len() > 1).then(increase),
        "rate" => (samples.len() > 1).then(|| increase() / range),
        #[expect(clippy::cast_precision_loss, reason = "few samples")]
        "changes" => Some(steps().filter(|(before, after)| before.to_bits() != after.to_bits()).count() as f64),
        "max_over_time" => samples.iter().map(|(_, value)| *value).reduce(f64::max),
        "present_over_time" => Some(1.0),
        "deriv" if samples.len() > 1 => {
            let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / samples.len() as f64;
            let (time, value) = (mean(|sample| sample.0), mean(|sample| sample.1));
            let products = samples.iter().map(|(at, of)| (at - time) * (of - value)).sum::<f64>();
            Some(products / samples.iter().map(|(at, _)| (at - time).powi(2)).sum::<f64>())
        }
        "deriv" => None,
        _ => panic!("{function}: not known here"),
    }
}

/// A quantile of cumulative buckets: on the straight line through the one that it falls into.
fn of_buckets(quantile: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    let rank = quantile * total;
    let Some(found) = buckets.iter().position(|(_, count)| *count >= rank).filter(|_| total > 0.0) else {
        return f64::NAN;
    };
    let (low, below) = if found == 0 { (0.0, 0.0) } else { buckets[found - 1] };
    let (high, up_to) = buckets[found];
    if high.is_infinite() { low } else { low + (high - low) * (rank - below) / (up_to - below) }
}

/// A worker: what it does in a step, from the time and its metrics, and lines that its text has besides.
struct Kind {
    name: &'static str,
    start: fn(&Metrics),
    works: fn(&Metrics),
    /// What goes on while nothing ends.
    stands_by: fn(&Metrics),
}

fn received(metrics: &Metrics) {
    metrics.records_received.inc_by(100);
    metrics.records_in_flight.set(30);
    metrics.model("higgs").scored.inc_by(100);
}

fn answered(metrics: &Metrics) {
    for _ in 0..100 {
        metrics.request_seconds.add_duration(Duration::from_millis(20));
    }
}

fn committed(metrics: &Metrics) {
    received(metrics);
    answered(metrics);
    metrics.commits.inc_by(9);
}

fn assigned(metrics: &Metrics, partitions: i32, rebalances: u64) {
    for number in 0..partitions {
        metrics.lags.assigned("features", number, 0);
        metrics.lags.pending("features", number, 3);
    }
    metrics.partitions_assigned.set(i64::from(partitions));
    metrics.rebalances.inc_by(rebalances);
}

/// What makes the metrics move, by what the sinks, the source and the service do.
const KINDS: [Kind; 6] = [
    Kind { name: "Kafka, exactly once", start: |metrics| assigned(metrics, 4, 2), works: committed, stands_by: |_| () },
    Kind {
        name: "Kafka, at least once",
        start: |metrics| assigned(metrics, 4, 2),
        works: committed,
        stands_by: |_| (),
    },
    Kind {
        name: "JetStream, exactly once",
        // Each partition is claimed by itself.
        start: |metrics| assigned(metrics, 64, 64),
        works: committed,
        // Checkpoints that keep the lease are commits of no records.
        stands_by: |metrics| metrics.commits.inc_by(4),
    },
    Kind {
        name: "JetStream, at least once",
        start: |metrics| assigned(metrics, 1, 1),
        works: |metrics| {
            received(metrics);
            answered(metrics);
            metrics.redeliveries.inc();
            metrics.replies_deduplicated.inc();
        },
        stands_by: |_| (),
    },
    Kind { name: "JetStream to Kafka", start: |metrics| assigned(metrics, 1, 1), works: committed, stands_by: |_| () },
    Kind {
        name: "service only",
        start: |metrics| drop(metrics.endpoint("higgs")),
        works: |metrics| {
            received(metrics);
            answered(metrics);
            metrics.endpoint("higgs").0.inc_by(100);
            metrics.endpoint("higgs").1.inc();
            metrics.record_error("", ErrorCode::BadRequest);
        },
        stands_by: |_| (),
    },
];

/// A worker's time: what it does each step, and what its text has besides.
fn history(sights: &Sights, start: fn(&Metrics), mut step: impl FnMut(u32, &Metrics) -> String) -> History {
    let (metrics, mut history) = (Metrics::new(), History::default());
    metrics.ready.set(1);
    history.scrape(0, &(metrics.to_text(sights) + "up 1\n"));
    start(&metrics);
    for now in (STEP..=END).step_by(STEP as usize) {
        let besides = step(now, &metrics);
        history.scrape(now, &(metrics.to_text(sights) + "up 1\n" + &besides));
    }
    history
}

/// The alerts that fired, with when they first did.
fn fired(rules: &[Rule], history: &History) -> BTreeMap<String, u32> {
    let mut fired = BTreeMap::new();
    for rule in rules {
        let mut since: BTreeMap<Labels, u32> = BTreeMap::new();
        for now in (STEP..=END).step_by(STEP as usize) {
            let found = history.vector(&rule.expr, f64::from(now));
            let there: BTreeSet<Labels> = found.into_iter().map(|(labels, _)| labels).collect();
            since.retain(|labels, _| there.contains(labels));
            for labels in there {
                let since = *since.entry(labels).or_insert(now);
                if now - since >= rule.held {
                    fired.entry(rule.name.clone()).or_insert(now);
                }
            }
        }
    }
    fired
}

struct Rule {
    name: String,
    expr: Expr,
    held: u32,
}

fn rules() -> Vec<Rule> {
    let held = |rule: &Value| rule.get("for").map_or(0, |held| seconds(held.as_str().unwrap()).as_secs());
    let rule = |rule: Value| Rule {
        name: string(&rule, "/alert").to_owned(),
        expr: parser::parse(string(&rule, "/expr")).unwrap(),
        held: u32::try_from(held(&rule)).unwrap(),
    };
    alerts().into_iter().map(rule).collect()
}

fn names(fired: &BTreeMap<String, u32>) -> Vec<&str> {
    fired.keys().map(String::as_str).collect()
}

#[test]
fn no_alert_fires_of_a_worker_that_does_well_and_one_of_a_worker_that_stalls() {
    let (sights, rules) = (Served::start().engine.sights(), rules());
    for Kind { name, start, works, stands_by } in KINDS {
        let well = history(&sights, start, |_, metrics| {
            works(metrics);
            String::new()
        });
        assert_eq!(names(&fired(&rules, &well)), Vec::<&str>::new(), "{name}, at work");
        let idle = history(&sights, start, |_, metrics| {
            stands_by(metrics);
            String::new()
        });
        assert_eq!(names(&fired(&rules, &idle)), Vec::<&str>::new(), "{name}, with nothing to do");
        let stalls = history(&sights, start, |now, metrics| {
            if now < FAULT {
                works(metrics);
            } else {
                stands_by(metrics);
            }
            String::new()
        });
        let stalls = fired(&rules, &stalls);
        assert_eq!(names(&stalls), ["ForebayStalled"], "{name}, stalled");
        let after = stalls["ForebayStalled"] - FAULT;
        assert!((540..=660).contains(&after), "{name}: said after {after} s");
    }
}

/// What goes wrong from [`FAULT`] on, at each step: metrics moved, and lines of the text that are not of [`Metrics`] alone.
type Fault = fn(&Metrics, &mut String);

const FAULTS: [(&[&str], Fault); 27] = [
    (&["ForebayDown"], |_, text| text.push_str("up 0\n")),
    (&["ForebayRestarts"], |metrics, text| {
        let starts = (metrics.commits.get() / 9).min(u64::from(FAULT / STEP) + 2);
        writeln!(text, "process_start_time_seconds {}", 1_700_000_000 + starts).unwrap();
    }),
    (&["ForebayBrokerAway"], |metrics, _| {
        metrics.ready.set(0);
        metrics.broker_away.set(1);
    }),
    (&["ForebayNotReady"], |metrics, _| metrics.ready.set(0)),
    (&["ForebayRecordsLost"], |metrics, _| metrics.records_lost.inc()),
    (&["ForebayRepliesDropped"], |metrics, _| metrics.replies_dropped.inc()),
    (&["ForebayLagGrows"], |metrics, _| {
        metrics.lags.pending("features", 0, 20 * metrics.records_received.get());
        metrics.records_in_flight.set(4000);
    }),
    // A lag that shrinks, and one slow record: neither is for the night.
    (&[], |metrics, _| {
        metrics.lags.pending("features", 0, 1_000_000 - metrics.records_received.get());
        metrics.records_in_flight.set(4000);
    }),
    (&[], |metrics, _| metrics.lags.pending("features", 0, 20 * metrics.records_received.get())),
    (&["ForebaySlow"], |metrics, _| {
        for _ in 0..10 {
            metrics.request_seconds.add_duration(Duration::from_secs(3));
        }
    }),
    (&["ForebayQueueOld"], |_, text| {
        text.push_str("forebay_queue_oldest_seconds{model=\"higgs\",priority=\"3\"} 12\n");
    }),
    (&["ForebayErrors"], |metrics, _| {
        for _ in 0..20 {
            metrics.record_error("higgs", ErrorCode::QueueFull);
        }
    }),
    (&["ForebayModelErrors"], |metrics, _| metrics.record_error("higgs", ErrorCode::ModelError)),
    (&["ForebayServiceErrors"], |metrics, _| {
        metrics.endpoint("higgs").0.inc_by(10);
        metrics.endpoint("higgs").1.inc_by(6);
    }),
    (&[], |metrics, _| {
        metrics.endpoint("higgs").0.inc_by(10);
        metrics.endpoint("higgs").1.inc_by(4);
    }),
    (&["ForebayServiceWithoutReply"], |metrics, _| metrics.service_without_reply.inc()),
    (&["ForebayDeadLettersDropped"], |metrics, _| metrics.dead_letters_dropped.inc()),
    (&["ForebayRepliesMaybeDoubled"], |metrics, _| metrics.replies_maybe_doubled.inc()),
    (&["ForebayTransactionsAborted"], |metrics, _| metrics.transactions_aborted.inc_by(3)),
    (&["ForebayRebalances"], |metrics, _| metrics.rebalances.inc()),
    (&["ForebayIdle"], |metrics, _| metrics.partitions_assigned.set(0)),
    // It has no partition because it reaches no server, which is another matter.
    (&["ForebayNotReady"], |metrics, _| {
        metrics.partitions_assigned.set(0);
        metrics.ready.set(0);
    }),
    (&["ForebayModelChangeRefused"], |metrics, _| metrics.model_change("higgs", false)),
    (&["ForebayPythonRestarts"], |metrics, text| {
        let count = metrics.commits.get();
        writeln!(text, "forebay_python_crashes_total{{model=\"churn\",version=\"1\"}} {count}").unwrap();
    }),
    (&["ForebayPythonGone"], |_, text| {
        text.push_str("forebay_python_processes{model=\"churn\",version=\"1\"} 0\n");
    }),
    (&["ForebayStarved"], |metrics, text| {
        for (bound, share) in [("0.05", 0), ("0.1", 1), ("+Inf", 1)] {
            let count = share * metrics.commits.get();
            writeln!(text, "forebay_scheduler_pause_seconds_bucket{{le=\"{bound}\"}} {count}").unwrap();
        }
    }),
    (&["ForebayFilesRunOut"], |_, text| text.push_str("process_open_fds 900\nprocess_max_fds 1000\n")),
];

#[test]
fn each_alert_fires_for_what_it_is_meant_for_and_no_other_with_it() {
    let (sights, rules) = (Served::start().engine.sights(), rules());
    let mut seen = BTreeSet::from(["ForebayStalled", "ForebayMissing"]);
    let kafka = &KINDS[0];
    for (wanted, fault) in FAULTS {
        let history = history(&sights, kafka.start, |now, metrics| {
            let mut besides = String::new();
            (kafka.works)(metrics);
            if now >= FAULT {
                fault(metrics, &mut besides);
            }
            besides
        });
        let fired = fired(&rules, &history);
        assert_eq!(names(&fired), wanted);
        assert!(fired.values().all(|&at| at >= FAULT), "{wanted:?}: before anything was wrong: {fired:?}");
        seen.extend(wanted);
    }
    assert!(names(&fired(&rules, &History::default())).contains(&"ForebayMissing"));
    let all: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(seen, all, "an alert that nothing here makes fire");
}
