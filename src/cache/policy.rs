//! Whether looking in the cache pays: what lookups cost and what they spared go in, which requests to look up comes out.
//!
//! Where they spare less than they cost, only the requests of a sample are looked up, a 64th of all *rows* and not of
//! all batches: a row is always or never in the sample, so its repetitions are seen there as often as among all
//! (spatial sampling, Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015). Of batches, a repetition
//! would have to fall into two of a 64th, and few would. Now and then the sample moves on, for the one row that makes
//! most of the traffic may be outside of it.

use std::time::Duration;

use crate::record::Texts;

/// Lookups after which it is decided anew.
const WINDOW: u64 = 8_192;
/// The same at the start and after a sample: the cache holds none, or few, of the rows that come again, and has to fill
/// first. Looking them up takes a tenth of a second in all.
const TRIAL: u64 = 262_144;
/// The same while only a sample is looked up: one of 65,536 requests.
const SAMPLE_WINDOW: u64 = 1_024;
/// One row in so many is in the sample.
const SAMPLE_OF: u64 = 64;
/// Windows until the sample moves: long enough to see rows that come again after a million others.
const WINDOWS_A_SAMPLE: u64 = 16;
/// A sample must promise so much more than lookups cost, or chance would switch back and forth.
const MARGIN: f64 = 1.25;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which requests are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All.
    All,
    /// Those whose rows are in this sample; the others are scored as if there were no cache.
    Sample(u64),
}

impl Look {
    /// Whether a request with these rows is looked up. Much cheaper than a key, and no secret: who chooses rows for it
    /// gains nothing.
    #[must_use]
    pub fn includes(self, values: &[f64], texts: Texts<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Sample(sample) => (fold(values) ^ fold_texts(texts)) % SAMPLE_OF == sample,
        }
    }
}

/// 0 for none.
fn fold_texts(texts: Texts<'_>) -> u64 {
    let mut all = 0_u64;
    for text in texts.iter() {
        let text = text.map_or(&b"\xff"[..], str::as_bytes);
        all = text
            .iter()
            .fold(all.rotate_left(5) ^ text.len() as u64, |all, &byte| (all ^ u64::from(byte)).wrapping_mul(ODD));
    }
    (all ^ all >> 32).wrapping_mul(ODD) >> 32
}

/// Four lanes of multiply and xor, so that the processor need not wait for one after the other.
fn fold(values: &[f64]) -> u64 {
    let mut lanes = [1, 2, 3, 4_u64];
    for values in values.chunks(4) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = (*lane ^ value.to_bits()).wrapping_mul(ODD);
        }
    }
    let [a, b, c, d] = lanes;
    let all = a ^ b.rotate_left(16) ^ c.rotate_left(32) ^ d.rotate_left(48);
    // Whole numbers differ in their higher bits only, and a product carries upwards only.
    (all ^ all >> 32).wrapping_mul(ODD) >> 32
}

/// What a batch came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed {
    /// Requests that were looked up.
    pub lookups: u64,
    /// Rows that need not be scored: they were in the cache, or the same were being scored.
    pub spared_rows: u64,
    /// What looking, and putting in what was not there, took.
    pub lookup_time: Duration,
    /// Rows that the model scored.
    pub scored_rows: u64,
    /// How long that took.
    pub scoring_time: Duration,
}

/// Decides for one model version.
#[derive(Clone, Debug)]
pub struct LookPolicy {
    look: Look,
    window: Observed,
    /// Since the last change.
    windows: u64,
    /// As of the last window that had some.
    score_ns: f64,
    lookup_ns: f64,
}

impl LookPolicy {
    /// Looks up all at first. `score_ns` is what a row costs, until it is known better.
    #[must_use]
    pub fn new(score_ns: f64) -> Self {
        Self { look: Look::All, window: Observed::default(), windows: 0, score_ns, lookup_ns: 0.0 }
    }

    /// Which requests to look up now.
    #[must_use]
    pub fn look(&self) -> Look {
        self.look
    }

    /// Takes a batch into account. Returns whether all are looked up from now on, when that has changed.
    pub fn observe(&mut self, batch: &Observed) -> Option<bool> {
        let window = &mut self.window;
        window.lookups += batch.lookups;
        window.spared_rows += batch.spared_rows;
        window.lookup_time += batch.lookup_time;
        window.scored_rows += batch.scored_rows;
        window.scoring_time += batch.scoring_time;
        let length = match self.look {
            Look::All if self.windows == 0 => TRIAL,
            Look::All => WINDOW,
            Look::Sample(_) => SAMPLE_WINDOW,
        };
        if window.lookups < length {
            return None;
        }
        let window = std::mem::take(window);
        self.decide(&window)
    }

    fn decide(&mut self, window: &Observed) -> Option<bool> {
        if window.scored_rows > 0 {
            self.score_ns = nanos(window.scoring_time) / window.scored_rows as f64;
        }
        let spared_ns = window.spared_rows as f64 * self.score_ns;
        self.windows += 1;
        match self.look {
            Look::All => {
                self.lookup_ns = nanos(window.lookup_time) / window.lookups as f64;
                if spared_ns >= nanos(window.lookup_time) {
                    return None;
                }
                self.windows = 0;
                self.look = Look::Sample(0);
                Some(false)
            }
            Look::Sample(sample) => {
                // The window's own time is that of telling who is in the sample, for the most part.
                if spared_ns > MARGIN * self.lookup_ns * window.lookups as f64 {
                    self.look = Look::All;
                    self.windows = 0;
                    return Some(true);
                }
                if self.windows.is_multiple_of(WINDOWS_A_SAMPLE) {
                    self.look = Look::Sample((sample + 1) % SAMPLE_OF);
                }
                None
            }
        }
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: Duration = Duration::from_nanos(1);
    const NONE: [bool; 0] = [];

    /// A batch of 64 lookups of 400 ns, of which `spared` spare a row of 4 us.
    fn batch(spared: u64) -> Observed {
        let scored_rows = 64 - spared;
        let count = |rows: u64| u32::try_from(rows).unwrap();
        Observed {
            lookups: 64,
            spared_rows: spared,
            lookup_time: 64 * 400 * NS,
            scored_rows,
            scoring_time: count(scored_rows) * 4_000 * NS,
        }
    }

    fn changes(policy: &mut LookPolicy, batches: u64, spared: u64) -> Vec<bool> {
        (0..batches).filter_map(|_| policy.observe(&batch(spared))).collect()
    }

    #[test]
    fn it_looks_as_long_as_that_pays() {
        let mut policy = LookPolicy::new(1.0);
        // A tenth of 4 us is what a lookup costs: 7 of 64 spare more, 6 less.
        assert_eq!(changes(&mut policy, 4_096 + 100 * 128, 7), NONE);
        assert_eq!(policy.look(), Look::All);
        assert_eq!(changes(&mut policy, 127, 6), NONE, "before the window's end");
        assert_eq!(changes(&mut policy, 1, 6), [false]);
        assert_eq!(policy.look(), Look::Sample(0));
        // 7 and 8 of 64 are more than it costs, but not by a margin; 9 of 64 are.
        assert_eq!(changes(&mut policy, 63 * 16, 8), NONE);
        assert_eq!(changes(&mut policy, 16, 9), [true]);
        assert_eq!(policy.look(), Look::All);
    }

    #[test]
    fn a_cold_cache_has_time_to_fill() {
        let mut policy = LookPolicy::new(1.0);
        // 192,000 rows that come again and again.
        let round = |policy: &mut LookPolicy, batches, spared| assert_eq!(changes(policy, batches, spared), NONE);
        round(&mut policy, 3_000, 0);
        round(&mut policy, 10_000, 64);
        // Other ones, unique, and then again such that come again: the cache holds a 64th of them.
        assert_eq!(changes(&mut policy, 200, 0), [false]);
        assert_eq!(changes(&mut policy, 32, 32), [true]);
        round(&mut policy, 3_000, 1);
        round(&mut policy, 10_000, 64);
    }

    #[test]
    fn where_all_is_spared_the_price_of_scoring_is_remembered() {
        let mut policy = LookPolicy::new(1_000.0);
        assert_eq!(changes(&mut policy, 9_000, 64), NONE, "400 ns of looking against the 1 us that it began with");
        let mut policy = LookPolicy::new(100.0);
        assert_eq!(changes(&mut policy, 4_096, 64), [false]);
    }

    #[test]
    fn the_sample_moves_in_a_circle() {
        let mut policy = LookPolicy::new(1.0);
        changes(&mut policy, 4_096, 0);
        let mut samples = Vec::new();
        for _ in 0..65 {
            samples.push(policy.look());
            // 16 windows of 16 batches.
            assert_eq!(changes(&mut policy, 256, 0), NONE);
        }
        let expected: Vec<Look> = (0..65).map(|sample| Look::Sample(sample % 64)).collect();
        assert_eq!(samples, expected);
    }

    #[test]
    fn a_sample_is_a_64th_of_the_rows_and_the_same_ones_each_time() {
        let rows: Vec<[f64; 5]> = (0..64_000).map(|row| [1.0, 0.0, f64::from(row), -0.0, f64::NAN]).collect();
        let mut in_samples = 0;
        for sample in 0..64 {
            let included = rows.iter().filter(|row| Look::Sample(sample).includes(*row, Texts::NONE)).count();
            assert!((700..1_300).contains(&included), "sample {sample}: {included}");
            in_samples += included;
        }
        assert_eq!(in_samples, rows.len(), "each row is in one");
        assert!(rows.iter().all(|row| Look::All.includes(row, Texts::NONE)));
        // Whatever the column, and where the mantissa is short.
        for column in 0..5 {
            let row = |value: i32| {
                let mut row = [1.0; 5];
                row[column] = f64::from(value);
                row
            };
            let included = (0..6_400).filter(|&value| Look::Sample(3).includes(&row(value), Texts::NONE)).count();
            assert!((50..150).contains(&included), "column {column}: {included}");
        }
    }
}
