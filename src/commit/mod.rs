//! Finished replies in, positions to commit out: what of a partition may be committed, and what must wait.
//!
//! Records finish out of partition order, but a committed offset says "everything below is done". [`Tracker`] keeps,
//! for one partition and one assignment, what was delivered and which of it has its reply, so that a transaction takes
//! replies and the offset behind them together. This module does no I/O and knows no broker: the sink asks it what to
//! write, writes, and tells it what the broker accepted.

mod offset_map;
mod tracker;

pub use offset_map::{LIMIT, MapSize, OffsetMap, Reading};
pub use tracker::{Finish, OffsetWentBack, Tracker};
