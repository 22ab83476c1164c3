//! scikit-learn and custom Python models, scored by Python in child processes: a crash, a leak or the interpreter's lock
//! never reaches this process. Bytes in, scores out.
//!
//! # What is a model
//!
//! - A scikit-learn estimator: a pickle or joblib file (`.pkl`, `.joblib`), or a skops archive (`.skops`).
//! - A file of Python source with a function `predict(rows)`, and perhaps `load(path)`, which is called first; or with one
//!   class that has a method `predict(rows)`. The class is made by its class method `load(path)`, if it has one, else
//!   without arguments; a plain method `load(path)` is called on it then. `path` is the file's own: what else the model
//!   needs lies in its folder, which it may read.
//! - Any file, with `class = "module:Class"`: the class is imported from the interpreter's packages and made in the same
//!   way. `path` then leads to the bytes that were hashed, whatever is on the disk by now.
//!
//! `rows` is a numpy array `[rows, features]`, or a pandas `DataFrame`; it lies in memory that the next batch uses again, so a
//! model copies what it keeps. The answer is an array (or list, or series) of a number, or as many numbers, a row:
//! floats, whole numbers or booleans. A binary classifier's `predict_proba` gives two scores a row, as in Python.
//!
//! # How it runs
//!
//! Each [`Scorer`] has one process of its own ([`scorer`]). Rows and scores lie in shared memory ([`memory`]), a socket says whose
//! turn it is ([`wire`]), and what the model prints goes to the log ([`logs`]). The bytes that were hashed are those
//! that are loaded: they are handed over in a sealed file in memory. Before that the process gives up its rights
//! (`sandbox.py`).
//!
//! With `compile_model = true` a scikit-learn estimator is converted instead ([`convert`](mod@convert)): Python is then needed when it is
//! loaded, and not when it is scored.

mod convert;
mod file;
mod keeper;
mod logs;
mod memory;
mod process;
mod recipe;
mod scorer;
mod wire;

use std::num::NonZeroU32;
use std::sync::Arc;

use parking_lot::Mutex;

pub(super) use self::convert::{convert, graph};
use self::file::FileKind;
pub(super) use self::file::model_type_of;
use self::process::{Loaded, NotLoaded, Process};
use self::recipe::Recipe;
use self::scorer::PythonScorer;
use super::FeatureKinds;
use super::validate::{Asking, Repeats};
use super::{
    LoadOptions, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, RunnerStats, Sandbox, Scorer,
};
use crate::clock;

/// Rows that a validation makes up: calls of Python models are slow.
const ROWS_ASKED: usize = 17;
/// Sums that numpy takes in another order in another batch differ by so much.
const REPEATS_F64: f64 = 1e-9;
const REPEATS_F32: f64 = 1e-5;

/// What a model's processes are asked, and must say of themselves.
struct Ask {
    features: Vec<String>,
    outputs: usize,
    asking: Asking,
}

impl Ask {
    fn is_met_by(&self, loaded: &Loaded) -> bool {
        self.features == loaded.features && self.outputs == loaded.outputs
    }
}

/// A model that Python has loaded once.
pub(super) struct PythonModel {
    name: String,
    recipe: Arc<Recipe>,
    ask: Arc<Ask>,
    schema: ModelSchema,
    /// The process that loaded it first, for the first scorer.
    first: Mutex<Option<Process>>,
}

impl PythonModel {
    /// Starts a process that loads the model, and asks what it takes and gives.
    pub(super) fn parse(file: &ModelBytes, model_type: ModelType, options: &LoadOptions) -> Result<Self, ModelError> {
        let name = file.name();
        let refuse = |reason: String| ModelError::refused(&name, reason);
        let kind = FileKind::of(file, model_type, &options.python).map_err(refuse)?;
        match kind {
            FileKind::Pickle => file.require_trust("a pickle", options)?,
            FileKind::Source => file.require_trust("a Python file", options)?,
            FileKind::ForClass => file.require_trust("a class of Python's", options)?,
            FileKind::Skops => {}
        }
        let recipe = Recipe::new(file, kind, &options.python, options.trusted && file.pinned);
        let recipe = Arc::new(recipe.map_err(|error| refuse(format!("cannot hand the file to Python: {error}")))?);
        let (process, loaded) = start(&recipe).map_err(refuse)?;
        say(&recipe, &loaded);
        let row_type = options.python.row_type;
        let schema = ModelSchema {
            model_type,
            feature_names: loaded.features.clone(),
            kinds: FeatureKinds::default(),
            row_type,
            outputs: loaded.outputs,
            details: details(&recipe, &loaded),
        };
        let repeats = match row_type {
            RowType::F32 => REPEATS_F32,
            RowType::F64 => REPEATS_F64,
        };
        let asking =
            Asking { rows: ROWS_ASKED, missing: loaded.missing, refuses: true, repeats: Repeats::Within(repeats) };
        let ask = Arc::new(Ask { features: loaded.features, outputs: loaded.outputs, asking });
        Ok(Self { name, recipe, ask, schema, first: Mutex::new(Some(process)) })
    }
}

impl Model for PythonModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let first = self.first.lock().take();
        let scorer = PythonScorer::new(&self.recipe, &self.ask, first);
        let scorer =
            scorer.map_err(|error| ModelError::refused(&self.name, format!("cannot start Python: {error}")))?;
        Ok(Box::new(scorer))
    }

    fn own_threads(&self) -> Option<NonZeroU32> {
        Some(self.recipe.options.processes())
    }

    fn runner(&self) -> Option<Arc<RunnerStats>> {
        Some(Arc::clone(&self.recipe.stats))
    }
}

/// The first process, with the model loaded.
fn start(recipe: &Arc<Recipe>) -> Result<(Process, Loaded), String> {
    let options = &recipe.options;
    let interpreter = options.interpreter.display();
    let remedy = "name another `interpreter` in [model.python]";
    let spawned = keeper::start(recipe, clock::now()).map_err(|error| format!("cannot start Python: {error}"))?;
    let spawned = spawned.recv().map_err(|error| format!("cannot start Python: {error}"))?;
    let mut process =
        spawned.map_err(|error| format!("cannot start the interpreter {interpreter}: {error}; {remedy}"))?;
    match process.wait_loaded(clock::now() + options.start_timeout) {
        Ok(loaded) => Ok((process, loaded)),
        Err(NotLoaded::Refused(reason)) => Err(reason),
        Err(NotLoaded::Failed(reason)) => Err(format!("{reason}; {remedy} if this one cannot run it")),
        Err(NotLoaded::Late) => Err(format!(
            "Python did not load it within `start_timeout` ({:?}) in [model.python]; raise it if the model takes longer",
            options.start_timeout
        )),
    }
}

/// What is said once, when the model is loaded.
fn say(recipe: &Recipe, loaded: &Loaded) {
    let model = &recipe.name;
    recipe.stats.sandboxed(loaded.sandbox_missing.clone());
    if !loaded.sandbox_missing.is_empty() {
        let missing = loaded.sandbox_missing.join("; ");
        tracing::warn!(model, "this kernel does not give all protection from the model's code: {missing}");
    }
    for warning in &loaded.warnings {
        tracing::warn!(model, "Python warned while it loaded the model: {warning}");
    }
}

/// What `model inspect` shows.
fn details(recipe: &Recipe, loaded: &Loaded) -> Vec<(String, String)> {
    let sandbox = match recipe.options.sandbox {
        Sandbox::Off => "off".to_owned(),
        _ if loaded.sandbox_missing.is_empty() => "whole".to_owned(),
        _ => format!("without {}", loaded.sandbox_missing.join("; ")),
    };
    let missing = if loaded.missing { "scored" } else { "no score" };
    let mut details = loaded.details.clone();
    details.push(("missing values".to_owned(), missing.to_owned()));
    details.push(("sandbox".to_owned(), sandbox));
    details.extend(loaded.warnings.iter().map(|warning| ("warning".to_owned(), warning.clone())));
    details
}
