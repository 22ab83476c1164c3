//! A worker's answer as texts: headings, figures with their units, rows of tables. The screen and the plain text show the
//! same.

use std::collections::HashMap;

use comfy_table::{CellAlignment, Table};

use super::History;
use crate::metrics::{CacheStats, ModelStats, Quantiles, Stats};

/// What a count per second needs two answers for. With one, the rates are those of the worker's own last seconds.
#[derive(Default)]
pub(super) struct Rates {
    pub(super) scored: f64,
    failed: Option<f64>,
    cores: Option<f64>,
    models: HashMap<String, f64>,
}

impl Rates {
    pub(super) fn new(before: Option<&Stats>, now: &Stats) -> Self {
        let Some(before) = before else {
            // Whoever was taken from a queue in these seconds was scored, but for the few that failed.
            let taken = |model: &ModelStats| model.queues.iter().map(|queue| queue.waited_ms.count).sum::<u64>();
            let rate = |model: &ModelStats| (model.name.clone(), taken(model) as f64 / now.window_s.max(1e-3));
            let models: HashMap<_, _> = now.models.iter().map(rate).collect();
            return Self { scored: models.values().sum(), failed: None, cores: None, models };
        };
        let seconds = (now.uptime_s - before.uptime_s).max(1e-3);
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let failed = |stats: &Stats| stats.totals.requests_failed.values().sum();
        let cpu = now.process.zip(before.process);
        let models = now.models.iter().filter_map(|model| {
            let then = before.models.iter().find(|then| then.name == model.name)?;
            Some((model.name.clone(), rate(then.scored, model.scored)))
        });
        Self {
            scored: rate(before.totals.requests_scored, now.totals.requests_scored),
            failed: Some(rate(failed(before), failed(now))),
            cores: cpu.map(|(now, before)| (now.cpu_seconds - before.cpu_seconds) / seconds),
            models: models.collect(),
        }
    }
}

/// A table: heads and rows. All columns but the first stand to the right.
pub(super) struct Sheet {
    pub(super) title: &'static str,
    pub(super) heads: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
}

/// The latency that there is: to the commit, or where nothing is committed the wait in the slowest queue.
pub(super) fn latency(stats: &Stats) -> (&'static str, Quantiles) {
    if stats.recent.request_ms.count > 0 {
        return ("latency", stats.recent.request_ms);
    }
    let queues = stats.models.iter().flat_map(|model| &model.queues).map(|queue| queue.waited_ms);
    let slowest = queues.max_by(|a, b| a.p99.unwrap_or_default().total_cmp(&b.p99.unwrap_or_default()));
    ("queue wait", slowest.unwrap_or_default())
}

/// Who answers and how it is.
pub(super) fn heading(stats: &Stats, url: &str) -> String {
    let state = state(stats);
    format!("forebay {} · {state} · up {} · {url}", stats.version, age(stats.uptime_s))
}

pub(super) fn state(stats: &Stats) -> &'static str {
    match (stats.health.live, stats.health.ready) {
        (false, _) => "dead",
        (true, false) => "not ready",
        (true, true) => "ready",
    }
}

/// The figures at the top: names and values.
pub(super) fn figures(stats: &Stats, rates: &Rates) -> Vec<(&'static str, String)> {
    let (name, Quantiles { p50, p90, p99, .. }) = latency(stats);
    let known: Vec<u64> = stats.lag.iter().filter_map(|one| one.lag).collect();
    let lag = if known.is_empty() { NONE.to_owned() } else { whole(known.iter().sum()) };
    let commit = stats.recent.commit_ms;
    vec![
        ("scored", format!("{}/s", rate(rates.scored))),
        ("failed", rates.failed.map_or_else(|| failed_total(stats), |failed| format!("{}/s", rate(failed)))),
        (name, format!("p50 {}  p90 {}  p99 {}", ms(p50), ms(p90), ms(p99))),
        ("commit", format!("p50 {}  p99 {}", ms(commit.p50), ms(commit.p99))),
        ("waiting", whole(stats.seed.dynamic_batcher.waiting_requests as u64)),
        ("in flight", whole(u64::try_from(stats.totals.records_in_flight).unwrap_or(0))),
        ("lag", lag),
        ("cache", stats.cache.as_ref().map_or_else(|| NONE.to_owned(), cache)),
        ("memory", stats.memory.resident_bytes.map_or_else(|| NONE.to_owned(), bytes)),
        ("cores busy", rates.cores.map_or_else(|| NONE.to_owned(), |cores| format!("{cores:.2}"))),
    ]
}

fn cache(cache: &CacheStats) -> String {
    let asked = cache.hits + cache.joined + cache.misses;
    format!("{:.1} % hits", 100.0 * cache.hits as f64 / asked.max(1) as f64)
}

fn failed_total(stats: &Stats) -> String {
    format!("{} in all", whole(stats.totals.requests_failed.values().sum()))
}

pub(super) fn sheets(stats: &Stats, rates: &Rates) -> Vec<Sheet> {
    let model = |model: &ModelStats| {
        vec![
            model.name.clone(),
            format!("{} {}", model.kind, model.backend),
            model.version.to_string(),
            rates.models.get(&model.name).map_or_else(|| NONE.to_owned(), |scored| format!("{}/s", rate(*scored))),
            whole(model.failed),
            things(model.batch_rows.p50),
            things(model.batch_rows.p99),
            ms(model.inference_ms.p50),
            ms(model.inference_ms.p99),
        ]
    };
    let queues = stats.models.iter().flat_map(|model| {
        model.queues.iter().map(|queue| {
            let (waited, oldest) = (queue.waited_ms, queue.oldest_ms);
            let level = queue.priority.to_string();
            vec![model.name.clone(), level, whole(queue.depth as u64), ms(oldest), ms(waited.p50), ms(waited.p99)]
        })
    });
    let mut lag = stats.lag.clone();
    lag.sort_by_key(|one| std::cmp::Reverse(one.lag));
    let lag = lag
        .iter()
        .map(|one| vec![format!("{}/{}", one.topic, one.partition), one.lag.map_or_else(|| NONE.to_owned(), whole)]);
    let sheets = [
        Sheet {
            title: "models",
            heads: &["model", "kind", "version", "scored", "failed", "rows p50", "rows p99", "model p50", "model p99"],
            rows: stats.models.iter().map(model).collect(),
        },
        Sheet {
            title: "queues",
            heads: &["queue", "level", "waiting", "oldest", "waited p50", "waited p99"],
            rows: queues.collect(),
        },
        Sheet { title: "lag", heads: &["partition", "behind"], rows: lag.collect() },
    ];
    sheets.into_iter().filter(|sheet| !sheet.rows.is_empty()).collect()
}

/// All of it as plain text.
pub(super) fn text(history: &History, url: &str) -> String {
    let Some(stats) = &history.last else { return String::new() };
    let mut lines = vec![heading(stats, url)];
    lines.extend(stats.health.reasons.iter().map(|reason| format!("! {reason}")));
    lines.push(String::new());
    lines.extend(figures(stats, &history.rates).into_iter().map(|(name, value)| format!("{name:<12}{value}")));
    for Sheet { heads, rows, .. } in sheets(stats, &history.rates) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(heads).add_rows(rows);
        for column in 1..heads.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        lines.push(String::new());
        lines.extend(table.lines().map(|line| line.trim_end().to_owned()));
    }
    lines.push(String::new());
    lines.push(format!("Quantiles and rates of the last {:.0} s.", stats.window_s));
    lines.join("\n") + "\n"
}

const NONE: &str = "-";

fn three(value: f64) -> String {
    let places = if value >= 100.0 { 0 } else { usize::from(value < 10.0) + 1 };
    format!("{value:.places$}")
}

pub(super) fn ms(value: Option<f64>) -> String {
    match value {
        None => NONE.to_owned(),
        Some(ms) if ms >= 1e3 => format!("{} s", three(ms / 1e3)),
        Some(ms) if ms < 0.1 => format!("{} us", three(ms * 1e3)),
        Some(ms) => format!("{} ms", three(ms)),
    }
}

fn things(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| format!("{value:.0}"))
}

pub(super) fn rate(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive, and small")]
    if value >= 100.0 { whole(value.round() as u64) } else { format!("{value:.1}") }
}

/// With a comma between thousands.
fn whole(count: u64) -> String {
    let digits = count.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        text.push(',');
        text.extend(group.iter().map(|&digit| char::from(digit)));
    }
    text
}

fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec().to_string()
}

fn age(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a worker is not that old")]
    let seconds = std::time::Duration::from_secs(seconds as u64);
    humantime::format_duration(seconds).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(whole), ["0", "999", "1,000", "1,234,567"]);
        let told = [Some(0.0123), Some(0.5), Some(12.34), Some(250.4), Some(2_500.0), None].map(ms);
        assert_eq!(told, ["12.3 us", "0.50 ms", "12.3 ms", "250 ms", "2.50 s", "-"]);
        assert_eq!([0.0, 12.34, 6_074.2].map(rate), ["0.0", "12.3", "6,074"]);
    }
}
