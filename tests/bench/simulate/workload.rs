//! When requests come, of which level, and what scoring them costs: made from a seed, the same each time.

use crate::MS;

/// A batch of n rows takes `fixed_ns + n x row_ns`.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) fixed_ns: u64,
    pub(crate) row_ns: u64,
}

impl Cost {
    pub(crate) fn of(self, rows: usize) -> u64 {
        self.fixed_ns + self.row_ns * rows as u64
    }
}

/// Who scores.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) threads: usize,
    pub(crate) cost: Cost,
    /// The most rows of a batch.
    pub(crate) rows_max: usize,
}

impl Machine {
    /// Rows a second when every batch is full: a load of 1.
    pub(crate) fn capacity_per_s(self) -> f64 {
        (self.threads * self.rows_max) as f64 * 1e9 / self.cost.of(self.rows_max) as f64
    }
}

/// A request of one row.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) at: u64,
    /// 1, the highest, to 3.
    pub(crate) level: u8,
}

/// What comes in, and what is asked of the queue.
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) arrivals: Vec<Arrival>,
    /// How long each may wait.
    pub(crate) timeout: Option<u64>,
    /// The most that may wait in a level; one more is refused.
    pub(crate) depth_max: u32,
    /// Figures are taken from requests that come in between these two.
    pub(crate) measured: std::ops::Range<u64>,
}

/// How requests are spread over time.
#[derive(Clone, Copy)]
pub(crate) enum Spread {
    Poisson,
    /// A Poisson stream of four times the rate that is on for a quarter of the time: for 20 ms at a time in the mean.
    Bursts,
}

/// Splitmix64, by Steele, Lea and Flood.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, but not, 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }
}

/// Requests at a mean rate up to `end_ns`. `shares` are those of the three levels.
pub(crate) fn arrivals(
    random: &mut Random,
    spread: Spread,
    rate_per_s: f64,
    shares: [f64; 3],
    end_ns: u64,
) -> Vec<Arrival> {
    let (on_ns, off_ns) = ((20 * MS) as f64, (60 * MS) as f64);
    let (gap_ns, mut on_until) = match spread {
        Spread::Poisson => (1e9 / rate_per_s, f64::INFINITY),
        Spread::Bursts => (1e9 / (4.0 * rate_per_s), random.exponential(on_ns)),
    };
    let (mut at, mut arrivals) = (0.0, Vec::new());
    loop {
        at += random.exponential(gap_ns);
        // An exponential gap has no memory: what is left of it after a pause is as good as a new one.
        while at > on_until {
            at += random.exponential(off_ns);
            on_until = at + random.exponential(on_ns);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds of some seconds")]
        let whole = at as u64;
        if whole >= end_ns {
            return arrivals;
        }
        let lot = random.share();
        let level = if lot < shares[0] { 1 } else { 2 + u8::from(lot >= shares[0] + shares[1]) };
        arrivals.push(Arrival { at: whole, level });
    }
}
