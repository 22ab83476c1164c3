//! Where replies go, and where the positions of their records are committed with them.

#[cfg(feature = "kafka")]
pub(crate) mod inbox;
#[cfg(feature = "kafka")]
pub(crate) mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
pub(crate) mod ledger;
pub mod lines;
#[cfg(feature = "kafka")]
mod producer;

/// What sends replies, on a thread of its own.
#[cfg(feature = "kafka")]
pub(crate) trait Sink: Send {
    /// Runs until it is drained. Returns how many records were left unanswered.
    fn run(self: Box<Self>, ledger: ledger::Ledger) -> Result<usize, SinkError>;
}

/// Why a sink ended before it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Another worker has this worker's name.
    #[error("another worker runs with the same `instance` ({0}); it must be unique among running workers")]
    Fenced(String),
    /// Nothing that waiting would mend.
    #[error("{0}")]
    Fatal(String),
}

/// A fail point that proves the checkers: they must see a reply that is missing.
#[cfg(feature = "kafka")]
fn drops_a_reply() -> bool {
    fail::fail_point!("sink::drop_reply", |_| true);
    false
}

/// A fail point that proves the checkers: they must see a reply that came twice.
#[cfg(feature = "kafka")]
fn doubles_a_reply() -> bool {
    fail::fail_point!("sink::double_reply", |_| true);
    false
}
