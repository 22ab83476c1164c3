//! Scores machine-learning models on Kafka streams: feature records come in, wait as short as they can in a priority
//! batcher, are scored in batches by pinned threads, and leave as replies; the replies and the input's positions are
//! committed in one transaction.
//!
//! The program `forebay` is a thin shell around this library. The engine in the middle can be used without any broker:
//!
//! ```
//! use forebay::engine::{InferenceEngine, InferenceEngineConfig, PredictionRequest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = InferenceEngine::new(InferenceEngineConfig::default())?;
//! engine.load_model("tests/data/higgs/higgs.model.txt", None, true)?;
//! assert!(engine.validate_model()?.passed());
//!
//! let row = [0.5; 28]; // as wide as the model; a missing value is NaN
//! let prediction = engine.predict(&row)?;
//! let pending = engine.enqueue_prediction(PredictionRequest::new(row))?; // a future; `wait` blocks instead
//! assert_eq!(pending.wait()?.scores, prediction.scores);
//!
//! assert_eq!(engine.get_performance_metrics().total_requests, 2);
//! engine.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! Cargo features, all but the last on by default: `kafka` is the Kafka source and sink through librdkafka, and with them
//! the worker and the demo; `lightgbm`, `onnx` and `xgboost` score models through their own libraries (XGBoost and
//! LightGBM models are scored by the compiled [`forest`] without them, and models of your own making by
//! [`InferenceEngine::add_model`](engine::InferenceEngine::add_model)); `failpoints`
//! builds in the places where tests make a step fail, and is never on in a shipped binary.
//!
//! # Where to go next
//!
//! - [`engine`]: the library's door, with its settings and errors.
//! - [`pipeline`]: the whole line of a worker, front to back. Read it first to understand the code.
//! - [`architecture`]: the map of the house: rooms, threads, queues, and what happens on a bad day.
//! - [`config`]: every key of worker.toml; `forebay config schema` prints them as a JSON Schema.

#[doc = include_str!("ARCHITECTURE.md")]
pub mod architecture {}

#[cfg(feature = "kafka")]
pub mod pipeline;

pub mod cli;
pub mod clock;
pub mod config;

// The rooms, in the order in which a record meets them.
pub mod record;
pub mod source;
pub mod decode;
pub mod engine;
pub mod reload;
pub mod batch;
pub mod cache;
pub mod score;
pub mod placement;
pub mod model;
pub mod forest;
pub mod encode;
pub mod commit;
pub mod sink;
#[cfg(feature = "kafka")]
pub mod service;

pub mod admin;
#[cfg(feature = "kafka")]
pub mod client;
pub mod metrics;
