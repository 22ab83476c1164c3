//! The only place that reads the time. Everything else takes `now`, so that it can be tested without waiting.
#![allow(clippy::disallowed_methods, reason = "this is the place that the ban points to")]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch, as Kafka stamps its records.
#[must_use]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The worker's end: whether it was asked for, and when waiting for it stops.
#[derive(Debug, Default)]
pub struct Stop {
    until: OnceLock<Instant>,
}

impl Stop {
    /// Asks for the end: what is in flight may take `bound` longer. Only the first call counts.
    pub fn request(&self, bound: Duration) {
        let now = now();
        let _ = self.until.set(now.checked_add(bound).unwrap_or(now));
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.until.get().is_some()
    }

    /// Whether the end was asked for and its bound has run out.
    #[must_use]
    pub fn overdue(&self) -> bool {
        self.until.get().is_some_and(|until| now() >= *until)
    }
}
