//! Scores machine-learning models on streams.

pub mod cli;
pub mod clock;
pub mod config;
pub mod pipeline;
pub mod record;
pub mod source;
pub mod decode;
pub mod engine;
pub mod batch;
pub mod score;
pub mod placement;
pub mod model;
pub mod encode;
pub mod commit;
pub mod sink;
#[cfg(feature = "kafka")]
mod client;
pub mod metrics;
pub mod admin;
