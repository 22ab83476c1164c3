//! What a model's batches cost, learned from those that were scored: a fixed part, a part a row, and the load.
//!
//! A straight line through (rows, time) by least squares, in which each new batch counts [`FORGET`] times more than the
//! one before; so a change of model or machine is learned within some hundred batches.

use std::time::{Duration, Instant};

/// What the weight of the past is multiplied with for each batch: about the last 50 count.
const FORGET: f64 = 0.98;
/// Over which time the load is averaged.
const LOAD_WINDOW_S: f64 = 1.0;

/// The service time of one model's batches.
#[derive(Clone, Debug, Default)]
pub struct ServiceTime {
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
    /// Seconds of scoring within about the last [`LOAD_WINDOW_S`], as of `at`.
    busy_s: f64,
    at: Option<Instant>,
}

impl ServiceTime {
    /// A batch of so many rows was scored in `took`, and ended at `now`.
    pub fn record(&mut self, now: Instant, rows: u64, took: Duration) {
        let (rows, seconds) = (rows as f64, took.as_secs_f64());
        self.weight = self.weight * FORGET + 1.0;
        self.rows = self.rows * FORGET + rows;
        self.seconds = self.seconds * FORGET + seconds;
        self.rows_rows = self.rows_rows * FORGET + rows * rows;
        self.rows_seconds = self.rows_seconds * FORGET + rows * seconds;
        self.busy_s = self.busy_s(now) + seconds;
        // Ends of several threads may come a little out of order.
        self.at = self.at.into_iter().chain([now]).max();
    }

    /// The part of a batch's time that does not grow with its rows. Zero while all batches had one size: then nothing
    /// tells the two parts apart.
    #[must_use]
    pub fn fixed(&self) -> Duration {
        if self.weight <= 0.0 {
            return Duration::ZERO;
        }
        let (rows, seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let variance = self.rows_rows / self.weight - rows * rows;
        // What rounding leaves of equal sizes is no spread.
        if variance <= 1e-6 * rows * rows {
            return Duration::ZERO;
        }
        let a_row = ((self.rows_seconds / self.weight - rows * seconds) / variance).max(0.0);
        Duration::from_secs_f64((seconds - a_row * rows).clamp(0.0, 3_600.0))
    }

    /// Which share of `threads` was busy with these batches of late: 0 to 1.
    #[must_use]
    pub fn load(&self, now: Instant, threads: u32) -> f64 {
        (self.busy_s(now) / (LOAD_WINDOW_S * f64::from(threads.max(1)))).clamp(0.0, 1.0)
    }

    /// How long the oldest request of an idle thread should wait for company: the fixed cost, as far as all threads are busy.
    ///
    /// With n requests waiting and one more expected every 1/λ, waiting for it costs n/λ of their time. It spares a later
    /// batch its fixed cost a, which others wait for only while all of the N threads are busy: about ρ^N of the time. That is
    /// worth it up to n = a·ρ^N·λ, the number that comes within a·ρ^N. So nobody waits while there are threads to spare, and
    /// never longer than a batch's fixed cost. `make bench-batch` holds the rule against others.
    #[must_use]
    pub fn delay(&self, now: Instant, threads: u32) -> Duration {
        let all_busy = self.load(now, threads).powi(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
        self.fixed().mul_f64(all_busy)
    }

    fn busy_s(&self, now: Instant) -> f64 {
        let past = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.busy_s * (-past.as_secs_f64() / LOAD_WINDOW_S).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::tests::start;

    const MS: Duration = Duration::from_millis(1);

    /// Batches of these sizes, one every 10 ms, of a model that takes `fixed` and `a_row` more for each row.
    fn learned(sizes: impl IntoIterator<Item = u64>, fixed: Duration, a_row: Duration) -> (ServiceTime, Instant) {
        let (mut service, mut now) = (ServiceTime::default(), start());
        for rows in sizes {
            now += 10 * MS;
            service.record(now, rows, fixed + a_row * u32::try_from(rows).expect("small"));
        }
        (service, now)
    }

    #[test]
    fn nothing_is_known_before_the_first_batch_or_of_one_size() {
        let t = start();
        let none = ServiceTime::default();
        assert_eq!((none.fixed(), none.delay(t, 2)), (Duration::ZERO, Duration::ZERO));
        let (one_size, _) = learned([7; 500], MS, MS);
        assert_eq!(one_size.fixed(), Duration::ZERO);
    }

    #[test]
    fn the_load_is_the_busy_share_and_fades() {
        // 5 of every 10 ms.
        let (service, now) = learned([1; 1_000], 5 * MS, Duration::ZERO);
        assert!((service.load(now, 1) - 0.5).abs() < 0.01, "{}", service.load(now, 1));
        assert!((service.load(now, 2) - 0.25).abs() < 0.01);
        assert!(service.load(now + Duration::from_secs(10), 1) < 0.001);
    }

    #[test]
    fn a_new_cost_is_learned() {
        let sizes = || (0..300).map(|i| 1 + i % 40);
        let (mut service, mut now) = learned(sizes(), 8 * MS, MS / 100);
        for rows in sizes() {
            now += 10 * MS;
            service.record(now, rows, MS + MS / 100 * u32::try_from(rows).expect("small"));
        }
        assert!(service.fixed() < MS * 11 / 10, "{:?}", service.fixed());
    }

    proptest! {
        #[test]
        fn the_fixed_part_is_found(fixed_us in 0..5_000_u64, row_us in 0..50_u64, seed in 1..1_000_u64) {
            let sizes = (0..200).map(|i| 1 + (i * seed) % 61);
            let (fixed, a_row) = (Duration::from_micros(fixed_us), Duration::from_micros(row_us));
            prop_assume!(seed % 61 != 0);
            let (service, now) = learned(sizes, fixed, a_row);
            let found = service.fixed().as_secs_f64();
            prop_assert!((found - fixed.as_secs_f64()).abs() < 2e-6, "{found} for {fixed:?}");
            prop_assert!(service.delay(now, 1) <= service.fixed());
        }
    }
}
