//! Durations and sizes in, counts by bucket out: for Prometheus, and as quantiles of the last seconds.
//!
//! Buckets are a quarter of a power of two wide, so that a quantile is off by an eighth at most; Prometheus is shown the
//! powers of two. A bucket's bound belongs to it, as Prometheus wants.
//!
//! Invariant: what was counted is never taken away, so that the difference of two copies is what came between them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::proto;
use serde::{Deserialize, Serialize};

/// Quarters of a power of two up to 2^23 units, and all above.
const BUCKETS: usize = 89;
/// Ticks that are kept: with one a second, quantiles are those of the last ten seconds.
pub(super) const TICKS_KEPT: usize = 10;

type Counts = [u64; BUCKETS];

/// What a histogram counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Durations: bounds from 2.5 us to 21 s, shown in seconds.
    Seconds,
    /// Things: bounds from 1 to 8,192.
    Count,
}

impl Scale {
    /// The first bucket's bound, in nanoseconds or things.
    const fn unit(self) -> u64 {
        match self {
            Self::Seconds => 2_500,
            Self::Count => 1,
        }
    }

    /// The last bound that Prometheus is shown, as a power of two of the unit.
    const fn power_max(self) -> u32 {
        match self {
            Self::Seconds => 23,
            Self::Count => 13,
        }
    }

    /// What a value is for Prometheus.
    fn shown(self, value: u64) -> f64 {
        match self {
            Self::Seconds => value as f64 / 1e9,
            Self::Count => value as f64,
        }
    }

    /// What a value is for people: milliseconds, or things.
    fn told(self, value: f64) -> f64 {
        match self {
            Self::Seconds => value / 1e6,
            Self::Count => value,
        }
    }
}

/// Counts by bucket, shared by threads: two atomic additions for any number of equal values.
#[derive(Debug)]
pub struct Histogram {
    scale: Scale,
    counts: [AtomicU64; BUCKETS],
    /// Nanoseconds or things. Past 2^64 (585 years in all) it starts anew, which Prometheus takes for a restart.
    sum: AtomicU64,
    /// The counts at the last ticks, oldest first.
    ticks: Mutex<VecDeque<Box<Counts>>>,
}

impl Histogram {
    pub(super) fn new(scale: Scale) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { scale, counts, sum: AtomicU64::new(0), ticks: Mutex::default() }
    }

    /// Counts a value: nanoseconds or things.
    pub fn add(&self, value: u64) {
        self.add_many(value, 1);
    }

    /// Counts a duration.
    pub fn add_duration(&self, duration: Duration) {
        self.add_many(nanos(duration), 1);
    }

    /// Counts how long before `now` each of these moments was. Neighbours that are the same moment are counted together,
    /// which is how a poll's records come.
    pub fn add_since(&self, now: Instant, moments: impl Iterator<Item = Instant>) {
        let mut run: Option<(Instant, u64)> = None;
        for moment in moments {
            match &mut run {
                Some((same, count)) if *same == moment => *count += 1,
                _ => {
                    self.end_run(now, run);
                    run = Some((moment, 1));
                }
            }
        }
        self.end_run(now, run);
    }

    fn end_run(&self, now: Instant, run: Option<(Instant, u64)>) {
        if let Some((moment, count)) = run {
            self.add_many(nanos(now.saturating_duration_since(moment)), count);
        }
    }

    pub(super) fn add_many(&self, value: u64, times: u64) {
        self.counts[bucket_of(value, self.scale.unit())].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(value.wrapping_mul(times), Ordering::Relaxed);
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// Their sum, in nanoseconds or things.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    /// Keeps the counts of this moment, and forgets the oldest past [`TICKS_KEPT`].
    pub(super) fn tick(&self) {
        let counts = Box::new(self.counts());
        let mut ticks = self.ticks.lock();
        ticks.push_back(counts);
        while ticks.len() > TICKS_KEPT {
            ticks.pop_front();
        }
    }

    /// What was counted since the oldest tick that is kept; since the start while there are fewer.
    #[must_use]
    pub fn recent(&self) -> Quantiles {
        let oldest = {
            let ticks = self.ticks.lock();
            ticks.front().filter(|_| ticks.len() == TICKS_KEPT).cloned()
        };
        let mut counts = self.counts();
        if let Some(oldest) = oldest {
            // The copy is older, so none of its counts is larger.
            counts.iter_mut().zip(&*oldest).for_each(|(now, then)| *now -= then);
        }
        let at = |quantile| quantile_of(&counts, quantile, self.scale);
        Quantiles { count: counts.iter().sum(), p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }

    /// For Prometheus.
    pub(super) fn to_proto(&self) -> proto::Histogram {
        let counts = self.counts();
        let mut shown = proto::Histogram::default();
        let bucket = |power: u32| {
            let bound = self.scale.unit() << power;
            let below = &counts[..=bucket_of(bound, self.scale.unit())];
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(self.scale.shown(bound));
            bucket.set_cumulative_count(below.iter().sum());
            bucket
        };
        shown.set_bucket((0..=self.scale.power_max()).map(bucket).collect());
        shown.set_sample_count(counts.iter().sum());
        shown.set_sample_sum(self.scale.shown(self.sum()));
        shown
    }

    fn counts(&self) -> Counts {
        std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed))
    }
}

/// A distribution in short: milliseconds, or things. The quantiles are `None` when nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Values counted.
    pub count: u64,
    /// Half of them are no larger.
    pub p50: Option<f64>,
    /// Nine of ten.
    pub p90: Option<f64>,
    /// 99 of 100.
    pub p99: Option<f64>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The first bucket whose bound is no smaller than the value.
fn bucket_of(value: u64, unit: u64) -> usize {
    let step = value.saturating_sub(1) / unit;
    if step < 4 {
        return usize::try_from(step).unwrap_or_default();
    }
    let octave = step.ilog2();
    let quarter = (step >> (octave - 2)) & 3;
    ((octave as usize - 1) * 4 + usize::try_from(quarter).unwrap_or_default()).min(BUCKETS - 1)
}

/// A bucket's bound, in units.
fn bound_of(bucket: usize) -> u64 {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    if octave == 0 { quarter + 1 } else { (5 + quarter) << (octave - 1) }
}

fn quantile_of(counts: &Counts, quantile: f64, scale: Scale) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let rank = (quantile * total as f64).max(1.0);
    let mut below = 0;
    for (bucket, &count) in counts.iter().enumerate() {
        if count > 0 && (below + count) as f64 >= rank {
            let lower = if bucket == 0 { 0 } else { bound_of(bucket - 1) };
            let (lower, upper) = (lower as f64, bound_of(bucket) as f64);
            let value = match scale {
                _ if bucket == BUCKETS - 1 => lower,
                // Between two bounds, values are taken to lie evenly. Things are mostly one size: the fullest.
                Scale::Seconds => lower + (upper - lower) * (rank - below as f64) / count as f64,
                Scale::Count => upper,
            };
            return Some(scale.told(value * scale.unit() as f64));
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn powers_of_two_are_bounds_and_belong_to_their_bucket() {
        for scale in [Scale::Seconds, Scale::Count] {
            for power in 0..=scale.power_max() {
                let bound = scale.unit() << power;
                let bucket = bucket_of(bound, scale.unit());
                assert_eq!(bound_of(bucket) * scale.unit(), bound, "{scale:?} {power}");
                assert_eq!(bucket_of(bound + 1, scale.unit()), bucket + 1, "{scale:?} {power}");
            }
        }
        assert_eq!(bucket_of(u64::MAX, 1), BUCKETS - 1);
        assert_eq!(bucket_of(0, 2_500), 0);
    }

    #[test]
    fn prometheus_is_shown_cumulative_counts_and_the_exact_sum() {
        let histogram = Histogram::new(Scale::Count);
        for rows in [1, 2, 3, 4, 5, 64, 64, 10_000] {
            histogram.add(rows);
        }
        let shown = histogram.to_proto();
        let buckets = shown.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        let few: Vec<_> =
            buckets.filter(|(bound, _)| [1.0, 2.0, 4.0, 8.0, 32.0, 64.0, 8_192.0].contains(bound)).collect();
        assert_eq!(few, [(1.0, 1), (2.0, 2), (4.0, 4), (8.0, 5), (32.0, 5), (64.0, 7), (8_192.0, 7)]);
        assert_eq!((shown.get_sample_count(), histogram.sum()), (8, 10_143));
        assert_eq!(histogram.recent().p99, Some(10_240.0), "the bound above 10,000: 5/4 of 8,192");
    }

    #[test]
    fn neighbours_of_one_moment_are_counted_together_and_each_counts() {
        let histogram = Histogram::new(Scale::Seconds);
        let start = crate::clock::now();
        let ms = Duration::from_millis(1);
        let moments = [start, start, start + 2 * ms, start, start + 9 * ms];
        histogram.add_since(start + 4 * ms, moments.into_iter());
        assert_eq!((histogram.count(), histogram.sum()), (5, 14_000_000), "three of 4 ms, one of 2, one of none");
    }

    #[test]
    fn only_the_last_ticks_count_as_recent() {
        let histogram = Histogram::new(Scale::Count);
        histogram.add(7);
        for _ in 0..TICKS_KEPT {
            assert_eq!(histogram.recent().count, 1);
            histogram.tick();
        }
        assert_eq!(histogram.recent(), Quantiles::default());
        histogram.add(3);
        assert_eq!(histogram.recent(), Quantiles { count: 1, p50: Some(3.0), p90: Some(3.0), p99: Some(3.0) });
        assert_eq!(histogram.count(), 2);
    }

    proptest! {
        /// A value lies in its bucket, and a quantile is as near as a bucket is wide.
        #[test]
        fn a_quantile_is_near_the_value_of_that_rank(mut values in prop::collection::vec(1_u64..20_000_000_000, 1..200)) {
            let histogram = Histogram::new(Scale::Seconds);
            for &value in &values {
                histogram.add(value);
            }
            values.sort_unstable();
            let recent = histogram.recent();
            for (quantile, told) in [(0.5, recent.p50), (0.9, recent.p90), (0.99, recent.p99)] {
                let rank = (quantile * values.len() as f64).max(1.0).ceil();
                let index = values.iter().zip(1_u32..).position(|(_, place)| f64::from(place) >= rank).unwrap();
                let (exact, told) = (values[index] as f64 / 1e6, told.unwrap());
                prop_assert!((told - exact).abs() <= exact * 0.25 + 0.0025, "{quantile}: {told} for {exact}");
            }
        }
    }
}
