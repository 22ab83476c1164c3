//! Where records come from.

#[cfg(feature = "kafka")]
pub mod kafka;
pub mod lines;
