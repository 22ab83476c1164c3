//! Where replies go, and where the positions of their records are committed with them.

#[cfg(feature = "kafka")]
pub(crate) mod inbox;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
pub(crate) mod ledger;
pub mod lines;
#[cfg(feature = "kafka")]
mod producer;
