//! [`OnnxOptions`]: how ONNX Runtime is set up for a model, and what of its graph is scored.

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `[model.onnx]` in the config says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Threads that one operator of the graph is divided among, in each scorer.
    pub intra_threads: NonZeroU32,
    /// Operators that run at a time, in each scorer.
    pub inter_threads: NonZeroU32,
    /// How far the runtime rewrites the graph.
    pub graph_optimization: GraphOptimization,
    /// The outputs that are scored, in this order; empty for the one that looks like the scores.
    pub output: Vec<String>,
    /// The runtime's shared library; `None` looks for it. A process loads one.
    pub library: Option<PathBuf>,
}

impl Default for OnnxOptions {
    fn default() -> Self {
        Self {
            intra_threads: NonZeroU32::MIN,
            inter_threads: NonZeroU32::MIN,
            graph_optimization: GraphOptimization::default(),
            output: Vec::new(),
            library: None,
        }
    }
}

/// How far a graph is rewritten before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GraphOptimization {
    /// Not at all.
    Off,
    /// What keeps each result as it is: constants are folded, needless nodes taken out.
    Basic,
    /// Nodes are also fused.
    Extended,
    /// Layouts are also changed.
    #[default]
    All,
}
