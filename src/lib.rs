//! Scores machine-learning models on streams.

pub mod admin;
pub mod batch;
pub mod cli;
#[cfg(feature = "kafka")]
mod client;
pub mod clock;
pub mod commit;
pub mod config;
pub mod decode;
pub mod encode;
pub mod engine;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod placement;
pub mod record;
pub mod score;
pub mod sink;
pub mod source;
