//! `[model.onnx]`: how ONNX Runtime scores a model; its keys, checked, and back.

use std::num::NonZeroU32;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Model;
use super::check::Check;
use super::error::Problem;
use super::places::Places;
use super::substitute::literal;
use crate::model::{GraphOptimization, OnnxOptions};

/// `[model.onnx]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawOnnx {
    /// Threads that one operator of the graph is divided among, for each score thread. Default 1, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub(super) intra_threads: NonZeroU32,
    /// Operators of the graph that run at a time, for each score thread. Default 1, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub(super) inter_threads: NonZeroU32,
    /// How far ONNX Runtime rewrites the graph when it is loaded. Default "all".
    pub(super) graph_optimization: GraphOptimization,
    /// The output that is scored, or several, whose scores are joined in this order; "" for the one that looks like
    /// probabilities or values. Default "".
    pub(super) output: RawOutput,
    /// ONNX Runtime's shared library, a relative path from the folder of this config file; "" to look for it. A worker loads
    /// one, so that no two models may name different ones. Default "".
    pub(super) library: String,
}

/// One output, or several.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawOutput {
    /// Its name.
    One(String),
    /// Their names.
    Several(#[schemars(length(min = 1))] Vec<String>),
}

impl Default for RawOnnx {
    fn default() -> Self {
        dump(&OnnxOptions::default())
    }
}

/// The table at `key`.
pub(super) fn onnx(check: &mut Check<'_>, key: &str, raw: &RawOnnx, base_dir: &Path) -> OnnxOptions {
    let output = match &raw.output {
        RawOutput::One(name) if name.is_empty() => Vec::new(),
        RawOutput::One(name) => vec![name.clone()],
        RawOutput::Several(names) => {
            for (at, name) in
                names.iter().enumerate().filter(|(at, name)| name.is_empty() || names[..*at].contains(name))
            {
                let wanted = "the name of an output of the graph, each once";
                check.wants(&format!("{key}.output[{at}]"), name, wanted);
            }
            names.clone()
        }
    };
    OnnxOptions {
        intra_threads: raw.intra_threads,
        inter_threads: raw.inter_threads,
        graph_optimization: raw.graph_optimization,
        output,
        library: Some(&raw.library).filter(|path| !path.is_empty()).map(|path| base_dir.join(path)),
    }
}

/// Libraries that models name, and that are not the first one's.
pub(super) fn other_libraries(models: &[Model], places: &Places) -> Vec<Problem> {
    let library = |model: &Model| model.load.onnx.library.clone();
    let Some((first, wanted)) = models.iter().enumerate().find_map(|(at, model)| Some((at, library(model)?))) else {
        return Vec::new();
    };
    let others = models.iter().enumerate().filter(|(_, model)| library(model).is_some_and(|other| other != wanted));
    let problem = |(at, _)| {
        let key = format!("model[{at}].onnx.library");
        let message = format!("it is not the one of model[{first}], and a worker loads one; name the same, or none");
        places.problem(&key, message)
    };
    others.map(problem).collect()
}

/// The table that says the same.
pub(super) fn dump(options: &OnnxOptions) -> RawOnnx {
    let names = || options.output.iter().map(|name| literal(name));
    RawOnnx {
        intra_threads: options.intra_threads,
        inter_threads: options.inter_threads,
        graph_optimization: options.graph_optimization,
        output: match options.output.len() {
            0 | 1 => RawOutput::One(names().collect()),
            _ => RawOutput::Several(names().collect()),
        },
        library: options.library.as_ref().map(|path| literal(&path.display().to_string())).unwrap_or_default(),
    }
}
