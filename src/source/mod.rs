//! Where records come from.

#[cfg(feature = "kafka")]
pub(crate) mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod lines;

use std::time::Duration;

use crate::record::{AssignedPartition, Message, PartitionId};

/// A stream of records, polled by one thread.
///
/// Its listener hears of a partition before the first of its records is received, and a revocation returns only when the
/// listener has let the partition go; each assignment has its own [`PartitionId`]; a record that is committed is not
/// received again.
pub trait Source {
    /// Waits up to `wait` for a record, then passes on what else is there, `most` records at most. Returns how many. Must be
    /// called while paused too: assignments are served in it.
    ///
    /// # Errors
    /// [`SourceError`] when waiting would not help.
    fn recv(&mut self, most: usize, wait: Duration, each: &mut dyn FnMut(&Message<'_>)) -> Result<usize, SourceError>;

    /// Stops or resumes the flow of records; assignments are served all the same.
    fn set_paused(&mut self, paused: bool);

    /// Called each second: a source that is idle because no server was there asks whether one is.
    fn look(&mut self) {}
}

/// Who must know which partitions are this worker's.
pub trait GroupListener: Send + Sync {
    /// The group has this worker as a member; partitions may follow.
    fn joined(&self);

    /// These partitions are now this worker's; none of their records was received yet.
    fn assigned(&self, partitions: Vec<AssignedPartition>);

    /// This partition is this worker's, but must not be read until somebody has looked.
    fn stopped(&self, id: PartitionId, reason: &str);

    /// These partitions go to another member. Returns when nothing more will be committed for them, or its bound
    /// ran out.
    fn revoked(&self, partitions: &[PartitionId]);

    /// These partitions went to another member already: nothing may be committed for them any more. Must not block.
    fn lost(&self, partitions: &[PartitionId]);

    /// Everything below this offset was received, and there is nothing above.
    fn idle(&self, id: PartitionId, position: i64);
}

/// Why the source cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Another member joined with this worker's name.
    #[error("another worker joined the group as this instance; `instance` must be unique among running workers")]
    Fenced,
    /// Nothing that waiting would mend.
    #[error("{0}")]
    Fatal(String),
}
