//! Finished replies in, what to commit out: which of a partition's replies may go, and what the commit says of the rest.
//!
//! Records finish out of partition order, but a committed offset says "everything below is done". [`Tracker`] keeps,
//! for one partition and one assignment, what was delivered and which of it has its reply, so that a transaction takes
//! replies and the commit that covers them together. [`OffsetMap`] is what such a commit says besides its offset: which
//! offsets above it are done, and [`Checkpoint`] both where they travel as a message. This module does no I/O and knows no broker: the sink asks it what to write, writes, and
//! tells it what the broker accepted.

mod checkpoint;
mod offset_map;
mod tracker;

pub use checkpoint::{Checkpoint, CheckpointError, Owner};
pub use offset_map::{LIMIT, MapSize, OffsetMap, Reading};
pub use tracker::{Budget, Commit, Finish, Tracker, WentBack};
