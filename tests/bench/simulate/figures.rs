//! What a run comes to: latencies by level, batch sizes, throughput, and how late the expired learned of it.

use serde::Serialize;

use crate::workload::{Machine, Workload};
use crate::world::{Batch, Fate, History};

/// Times are milliseconds; requests are those that came in while it was measured.
#[derive(Serialize)]
pub(crate) struct Figures {
    /// Level 1 first.
    pub(crate) levels: Vec<Level>,
    pub(crate) mean_ms: f64,
    pub(crate) rows_per_batch: f64,
    pub(crate) scored_per_s: f64,
    /// Share of the threads' time.
    pub(crate) busy: f64,
    pub(crate) expired: usize,
    pub(crate) refused: usize,
    /// How long after its deadline an expired request was answered.
    pub(crate) late: Millis,
}

#[derive(Serialize)]
pub(crate) struct Level {
    pub(crate) requests: usize,
    pub(crate) scored: usize,
    /// From the arrival to the scores.
    pub(crate) latency: Millis,
    /// From the arrival to the batch, or to the rejection of what expired.
    pub(crate) wait_max_ms: f64,
}

#[derive(Serialize)]
pub(crate) struct Millis {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Millis {
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
        let ms = |percent| at(percent).map_or(0.0, |ns| ms(*ns));
        Self { p50: ms(50), p99: ms(99), max: ms(100) }
    }
}

pub(crate) fn ms(ns: u64) -> f64 {
    // To a microsecond, which is what people read.
    (ns as f64 / 1e3).round() / 1e3
}

impl Figures {
    pub(crate) fn of(history: &History, workload: &Workload, machine: Machine) -> Self {
        let measured = &workload.measured;
        let seconds = (measured.end - measured.start) as f64 / 1e9;
        let (mut latencies, mut levels) = ([const { Vec::new() }; 3], Vec::new());
        let (mut waits, mut requests) = ([0_u64; 3], [0; 3]);
        let (mut late, mut refused, mut ended) = (Vec::new(), 0, 0_u64);
        for (arrival, fate) in workload.arrivals.iter().zip(&history.fates) {
            let level = usize::from(arrival.level) - 1;
            if let Fate::Scored { end, .. } = fate {
                ended += u64::from(measured.contains(end));
            }
            if !measured.contains(&arrival.at) {
                continue;
            }
            requests[level] += 1;
            match *fate {
                Fate::Scored { start, end } => {
                    latencies[level].push(end - arrival.at);
                    waits[level] = waits[level].max(start - arrival.at);
                }
                Fate::Expired { at } => {
                    late.push(at - arrival.at - workload.timeout.unwrap_or(0));
                    waits[level] = waits[level].max(at - arrival.at);
                }
                Fate::Refused => refused += 1,
            }
        }
        let batches: Vec<_> = history.batches.iter().filter(|batch| measured.contains(&batch.start)).collect();
        let rows: usize = batches.iter().map(|batch| batch.rows).sum();
        let overlap = |batch: &Batch| {
            let end = (batch.start + machine.cost.of(batch.rows)).min(measured.end);
            end.saturating_sub(batch.start.max(measured.start))
        };
        let busy_ns: u64 = history.batches.iter().map(overlap).sum();
        let scored: usize = latencies.iter().map(Vec::len).sum();
        let sum: u64 = latencies.iter().flatten().sum();
        for ((times, wait), requests) in latencies.into_iter().zip(waits).zip(requests) {
            let scored = times.len();
            levels.push(Level { requests, scored, latency: Millis::of(times), wait_max_ms: ms(wait) });
        }
        Self {
            levels,
            mean_ms: sum as f64 / scored.max(1) as f64 / 1e6,
            rows_per_batch: rows as f64 / batches.len().max(1) as f64,
            scored_per_s: ended as f64 / seconds,
            busy: busy_ns as f64 / 1e9 / (seconds * machine.threads as f64),
            expired: late.len(),
            refused,
            late: Millis::of(late),
        }
    }
}
