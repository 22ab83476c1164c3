//! How long a thread that is ready to run does not: a thread that only sleeps, and looks how much later it woke.
//!
//! What makes it late makes the score threads late as well: a busy machine, a container out of its share of the
//! processor, a stopped virtual machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Metrics;
use super::histogram::{Histogram, Quantiles, Scale};
use crate::clock;

/// How long the thread sleeps each time.
const STEP: Duration = Duration::from_millis(10);
/// A wake-up that is later than this is counted as a pause.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// How often the recent past is kept.
const TICK: Duration = Duration::from_secs(1);

/// What the thread has seen.
#[derive(Debug)]
pub struct Pauses {
    pub(super) late: Histogram,
    count: AtomicU64,
    /// The longest since it was last asked for.
    longest: Mutex<Duration>,
}

/// The pauses in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseStats {
    /// Wake-ups that came more than 5 ms late, since the start.
    pub pauses: u64,
    /// How late wake-ups came in the last seconds.
    pub late_ms: Quantiles,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { late: Histogram::new(Scale::Seconds), count: AtomicU64::new(0), longest: Mutex::default() }
    }

    fn woke(&self, late: Duration) {
        self.late.add_duration(late);
        if late > PAUSE_MIN {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        let mut longest = self.longest.lock();
        *longest = late.max(*longest);
    }

    /// Wake-ups that came more than 5 ms late.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The longest since this was last asked.
    pub(super) fn take_longest(&self) -> Duration {
        std::mem::take(&mut self.longest.lock())
    }

    /// In short.
    #[must_use]
    pub fn stats(&self) -> PauseStats {
        PauseStats { pauses: self.count(), late_ms: self.late.recent() }
    }
}

/// When the thread was to wake, and when the recent past is kept next.
struct Sleeper {
    due: Instant,
    tick_due: Instant,
}

impl Sleeper {
    fn new(now: Instant) -> Self {
        Self { due: now + STEP, tick_due: now + TICK }
    }

    /// How late it woke, and whether a tick is due. What was slept through is not made up for.
    fn wake(&mut self, now: Instant) -> (Duration, bool) {
        let late = now.saturating_duration_since(self.due);
        self.due = now + STEP;
        let ticks = now >= self.tick_due;
        if ticks {
            let next = self.tick_due + TICK;
            self.tick_due = if next > now { next } else { now + TICK };
        }
        (late, ticks)
    }
}

/// Starts the thread, which ends when nobody else has the metrics any more.
///
/// # Errors
/// The system's own when it refuses a thread.
pub fn watch(metrics: &Arc<Metrics>) -> std::io::Result<()> {
    let metrics = Arc::downgrade(metrics);
    Builder::new().name("forebay-pauses".to_owned()).spawn(move || {
        let mut sleeper = Sleeper::new(clock::now());
        loop {
            std::thread::sleep(STEP);
            let Some(metrics) = metrics.upgrade() else { return };
            let now = clock::now();
            let (late, ticks) = sleeper.wake(now);
            metrics.pauses.woke(late);
            if ticks {
                metrics.tick(now);
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_wake_up_is_counted_once_and_the_longest_is_kept_until_asked_for() {
        let (pauses, start) = (Pauses::new(), clock::now());
        let ms = Duration::from_millis;
        let mut sleeper = Sleeper::new(start);
        for at in [10, 21, 131, 141, 1_151] {
            let (late, _) = sleeper.wake(start + ms(at));
            pauses.woke(late);
        }
        assert_eq!(pauses.count(), 2);
        assert_eq!(pauses.late.count(), 5);
        assert_eq!(pauses.late.sum(), 1_101_000_000);
        assert_eq!((pauses.take_longest(), pauses.take_longest()), (ms(1_000), Duration::ZERO));
    }

    #[test]
    fn a_tick_comes_each_second_and_a_long_pause_brings_one() {
        let (start, ms) = (clock::now(), Duration::from_millis);
        let mut sleeper = Sleeper::new(start);
        let mut tick = |at| sleeper.wake(start + ms(at)).1;
        let ticks = [990, 1_000, 1_010, 2_003, 9_000, 9_010, 10_000].map(&mut tick);
        assert_eq!(ticks, [false, true, false, true, true, false, true]);
    }
}
