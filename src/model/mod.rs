//! Model files in, scorers out. A model knows nothing of brokers, queues or threads: it gets a matrix of rows and
//! fills a matrix of scores.
//!
//! - [`Model`] is a parsed file; [`Scorer`] is one thread's handle on it.
//! - [`load`] reads a file once, hashes it, checks the pin, finds the kind and parses those same bytes.
//! - [`Backend`] is what scores a tree model: the compiled forest, or the library that it was trained with.
//! - [`LoadedModel`] is a version in service: schema, digest, and a scorer for each score thread.
//! - [`Preprocessor`] and [`Quantizer`] are what is done to features before a model sees them.
//! - [`Catalog`] is what a decoder must know of the loaded models.
//! - [`validate`] asks a model the questions that a wrong binding would answer wrongly, [`drift`] how far quantization moves
//!   its scores, [`compare`] whether both backends
//!   give the same scores.

mod calibration;
mod catalog;
pub mod compare;
mod compiled;
mod cost;
pub mod drift;
mod features;
#[cfg(feature = "lightgbm")]
mod lightgbm;
mod load;
mod made_up;
#[cfg(feature = "onnx")]
mod onnx;
mod onnx_options;
mod options;
mod preprocess;
mod preprocessed;
mod quantize;
mod tl2cgen;
mod sample;
#[cfg(feature = "python")]
mod python;
mod python_options;
#[cfg_attr(not(feature = "python"), expect(dead_code, reason = "nothing else has processes of its own"))]
mod runner;
pub mod validate;
#[cfg(feature = "xgboost")]
mod xgboost;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::catalog::{Catalog, LevelTimeout, ModelEntry};
pub use self::features::{FeatureKind, FeatureKinds, NotWhole};
pub(crate) use self::load::hex;
pub use self::load::{ModelBytes, compiled_form, load, model_type_of};
pub use self::onnx_options::{GraphOptimization, OnnxOptions};
pub use self::options::LoadOptions;
pub use self::preprocess::{Action, Category, Preprocessor, Real, Step, Unfit, Unknown};
pub use self::python_options::{Input, Method, PythonOptions, Sandbox};
pub use self::quantize::{Calibration, FeatureRange, InputForm, Quantization, Quantizer};
pub use self::runner::RunnerStats;
pub use self::sample::SampleFiles;
use self::validate::{Asked, Asking, Check, Sample, Validation};
use crate::metrics::ModelInfo;

/// The kinds of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelType {
    /// LightGBM's text format, as `Booster.save_model` writes it.
    LightGbm,
    /// An ONNX graph.
    Onnx,
    /// A Python file or `module:Class` with a `predict` of its own.
    Python,
    /// A scikit-learn estimator: a pickle, a joblib or a skops file.
    Sklearn,
    /// A Treelite checkpoint, or a shared library that `TL2cgen` made of one.
    Treelite,
    /// XGBoost's JSON, UBJSON or old binary format.
    XgBoost,
}

impl ModelType {
    /// Every kind, by name.
    pub const ALL: [Self; 6] = [Self::LightGbm, Self::Onnx, Self::Python, Self::Sklearn, Self::Treelite, Self::XgBoost];

    /// The kind's name in the config and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LightGbm => "lightgbm",
            Self::Onnx => "onnx",
            Self::Python => "python",
            Self::Sklearn => "sklearn",
            Self::Treelite => "treelite",
            Self::XgBoost => "xgboost",
        }
    }
}

impl fmt::Display for ModelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ModelType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("no model type {name:?}: known types are {known}")
        })
    }
}

/// What scores a model that more than one thing can score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The compiled form where it is read from the file itself and gives the same scores: trees. All else is scored by its
    /// own library.
    #[default]
    Auto,
    /// The compiled form: [`crate::forest`] for trees, which is faster and reads every model of the known versions;
    /// scikit-learn estimators are converted first. What has no trees is scored by its own runtime.
    Compiled,
    /// The library that the model was trained with, where this build has it and it scores the file right.
    Reference,
}

impl Backend {
    /// What `compile_model` in the config means.
    #[must_use]
    pub const fn new(compile_model: bool) -> Self {
        if compile_model { Self::Compiled } else { Self::Reference }
    }

    /// Whether trees are scored by the compiled forest.
    #[must_use]
    pub const fn compiles_trees(self) -> bool {
        !matches!(self, Self::Reference)
    }
}

/// Why a model does not take traffic. Every message names the file (or the model), what is wrong and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("model {}: cannot read the file: {reason}; check `path`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        reason: String,
    },
    /// The file is not what the config pinned.
    #[error("model {}: SHA-256 is {found}, the config pins {pinned}; put the pinned file back or change `sha256`", path.display())]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// The digest of its bytes, hex.
        found: String,
        /// The digest that was asked for, hex.
        pinned: String,
    },
    /// The file was read, but must not be scored: not the stated kind, damaged, or not supported.
    #[error("model {name}: {reason}")]
    Refused {
        /// The model's file or name.
        name: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
}

impl ModelError {
    /// A model that must not be scored.
    pub fn refused(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { name: name.into(), reason: reason.into() }
    }
}

/// Why the model could not score this batch. The engine then scores its requests one by one, and those that fail
/// transiently again later, as often as they may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// The rows or the model: asked again, it would fail again.
    #[error("{0}")]
    Failed(String),
    /// What may be over the next time: memory ran out, what scores is being started.
    #[error("{0}")]
    Transient(String),
}

impl ScoreError {
    /// What a native library said. It is transient where the library found no memory, which all of them tell in
    /// words only.
    pub fn of_library(message: impl Into<String>) -> Self {
        let message = message.into();
        // C++'s own word for it, Microsoft's, and ONNX Runtime's.
        let no_memory = ["bad_alloc", "bad allocation", "Failed to allocate memory"];
        let transient = no_memory.iter().any(|words| message.contains(words));
        if transient { Self::Transient(message) } else { Self::Failed(message) }
    }

    /// Whether it may succeed the next time.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// What a model takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSchema {
    /// The library whose format it is.
    pub model_type: ModelType,
    /// Features a row, in the model's order.
    pub feature_names: Vec<String>,
    /// What its columns hold.
    pub kinds: FeatureKinds,
    /// The float type that its rows are scored in: its own library's.
    pub row_type: RowType,
    /// Scores a row: 1 for regression and binary, one per class for multi-class.
    pub outputs: usize,
    /// What `model inspect` shows besides: name and value, in order.
    pub details: Vec<(String, String)>,
}

impl ModelSchema {
    /// Features a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.feature_names.len()
    }
}

/// The float type that a model's own library scores rows in. The same row through the other type can take another way
/// through a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RowType {
    /// XGBoost, and ONNX graphs with float inputs.
    F32,
    /// LightGBM, scikit-learn, and ONNX graphs with double inputs.
    F64,
}

/// Values in the model's own float type.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// For a model of [`RowType::F32`].
    F32(&'a [f32]),
    /// For a model of [`RowType::F64`].
    F64(&'a [f64]),
}

/// Rows to score: row-major, all of one width. A missing value is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `count * width` values; NaN in text columns.
    pub values: Values<'a>,
    /// Features a row.
    pub width: usize,
    /// `count` times a cell for each text column of the model, in the order of its columns; `None` is a missing value.
    pub texts: &'a [Option<&'a str>],
}

impl<'a> Rows<'a> {
    /// Rows of a model without text columns.
    #[must_use]
    pub fn numbers(values: Values<'a>, width: usize) -> Self {
        Self { values, width, texts: &[] }
    }

    /// Some of the rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let text_width = self.texts.len().checked_div(self.count()).unwrap_or(0);
        let of = |width: usize| rows.start * width..rows.end * width;
        let values = match self.values {
            Values::F32(values) => Values::F32(&values[of(self.width)]),
            Values::F64(values) => Values::F64(&values[of(self.width)]),
        };
        Self { values, width: self.width, texts: &self.texts[of(text_width)] }
    }

    /// Number of rows.
    #[must_use]
    pub fn count(&self) -> usize {
        let values = match self.values {
            Values::F32(values) => values.len(),
            Values::F64(values) => values.len(),
        };
        values.checked_div(self.width).unwrap_or(0)
    }

    /// The values of a model of [`RowType::F64`].
    ///
    /// # Errors
    /// [`ScoreError`] when they are of the other type, which the engine never hands to such a model.
    pub fn as_f64(&self) -> Result<&'a [f64], ScoreError> {
        match self.values {
            Values::F64(values) => Ok(values),
            Values::F32(_) => Err(ScoreError::Failed("the model wants f64 rows, got f32".to_owned())),
        }
    }

    /// The values of a model of [`RowType::F32`].
    ///
    /// # Errors
    /// As [`Rows::as_f64`].
    pub fn as_f32(&self) -> Result<&'a [f32], ScoreError> {
        match self.values {
            Values::F32(values) => Ok(values),
            Values::F64(_) => Err(ScoreError::Failed("the model wants f32 rows, got f64".to_owned())),
        }
    }
}

/// A parsed model.
pub trait Model: Send + Sync {
    /// What it takes and gives.
    fn schema(&self) -> &ModelSchema;

    /// A handle for one score thread.
    ///
    /// # Errors
    /// [`ModelError::Refused`] when the library that scores it cannot make one.
    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError>;

    /// Whether the compiled forest scores it.
    fn is_compiled(&self) -> bool {
        false
    }

    /// Whether C or C++ code in this process scores it, which can end the process. The records that it is given are then
    /// named in the journal.
    fn runs_native_code(&self) -> bool {
        false
    }

    /// How many threads of its own it wants, because scoring waits for another process: one a scorer, and pinned to no
    /// core. `None` lets the score threads score it.
    fn own_threads(&self) -> Option<NonZeroU32> {
        None
    }

    /// What its processes have gone through, if it has some.
    fn runner(&self) -> Option<Arc<RunnerStats>> {
        None
    }

    /// What it makes of features that are to be quantized.
    fn input_form(&self) -> InputForm {
        InputForm::Numbers
    }

    /// The steps that are before it. They are part of its scorers; a record that they cannot take is refused by them first.
    fn preprocessor(&self) -> Option<Arc<Preprocessor>> {
        None
    }
}

/// One thread's handle on a model.
pub trait Scorer: Send {
    /// How it may be asked about made-up rows.
    fn asking(&self) -> Asking {
        Asking::default()
    }

    /// Words that its text columns may know, for made-up rows.
    fn words(&self) -> &[String] {
        &[]
    }

    /// Scores rows that have been through the model's [`Model::preprocessor`] already.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    fn score_prepared(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        self.score(rows, scores)
    }

    /// Scores every row: `scores` has `rows.count() * schema.outputs` places, row-major, and all are written.
    ///
    /// # Errors
    /// [`ScoreError`] when the model cannot score this batch; `scores` is then worth nothing.
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError>;
}

/// A model version in service.
pub struct LoadedModel {
    name: String,
    version: u32,
    sha256: String,
    schema: ModelSchema,
    compiled: bool,
    native: bool,
    own_threads: Option<NonZeroU32>,
    runner: Option<Arc<RunnerStats>>,
    preprocessor: Option<Arc<Preprocessor>>,
    scorers: Vec<Mutex<Box<dyn Scorer>>>,
    /// One more, so that a validation disturbs no score thread. A model with threads of its own has none: there a scorer is
    /// a process, and a thread that waits for a validation starves nobody else.
    spare: Option<Mutex<Box<dyn Scorer>>>,
}

impl LoadedModel {
    /// No score thread's number.
    pub const SPARE: usize = usize::MAX;

    /// Makes a scorer for each of `threads` score threads, or of the model's own, and validates the model.
    ///
    /// # Errors
    /// [`ModelError::Refused`] when the model's library cannot make one, or the model fails its validation.
    pub fn new(name: &str, version: u32, sha256: &str, model: &dyn Model, threads: usize) -> Result<Self, ModelError> {
        let own_threads = model.own_threads();
        let threads = own_threads.map_or(threads, |own| own.get() as usize);
        let scorers = (0..threads).map(|_| model.scorer().map(Mutex::new)).collect::<Result<_, _>>()?;
        let needs_spare = model.own_threads().is_none() || threads == 0;
        let spare = needs_spare.then(|| model.scorer().map(Mutex::new)).transpose()?;
        let loaded = Self {
            name: name.to_owned(),
            version,
            sha256: sha256.to_owned(),
            schema: model.schema().clone(),
            compiled: model.is_compiled(),
            native: model.runs_native_code(),
            own_threads,
            runner: model.runner(),
            preprocessor: model.preprocessor(),
            scorers,
            spare,
        };
        match loaded.validate(None)?.failure() {
            None => Ok(loaded),
            Some(failure) => Err(ModelError::refused(name, format!("refused by its validation: {failure}"))),
        }
    }

    fn asked(&self) -> MutexGuard<'_, Box<dyn Scorer>> {
        self.spare.as_ref().unwrap_or_else(|| &self.scorers[0]).lock()
    }

    /// Asks the model the questions of [`mod@validate`], without disturbing the score threads. A model with threads of its own
    /// has one less meanwhile.
    ///
    /// # Errors
    /// [`ModelError::Refused`] when the sample does not fit the model.
    pub fn validate(&self, sample: Option<&Sample>) -> Result<Validation, ModelError> {
        validate::validate(&self.name, &self.schema, self.asked().as_mut(), sample)
    }

    /// Whether it gives what the original library gave for a sample that was read for its schema.
    #[must_use]
    pub fn meets(&self, sample: &Sample) -> Check {
        validate::meets(&mut Asked { scorer: self.asked().as_mut(), schema: &self.schema }, sample)
    }

    /// What scoring a row costs, in nanoseconds, when `batch` rows are scored at a time: 257 at the most. Timed without
    /// disturbing the score threads.
    pub(crate) fn nanos_a_row(&self, batch: usize) -> Result<f64, ScoreError> {
        cost::nanos_a_row(&self.schema, self.asked().as_mut(), batch)
    }

    /// The steps that are before it, if there are some.
    #[must_use]
    pub fn preprocessor(&self) -> Option<&Arc<Preprocessor>> {
        self.preprocessor.as_ref()
    }

    /// The rows that the ranges of its quantized features were taken from, if they were.
    #[must_use]
    pub fn calibration(&self) -> Option<&Calibration> {
        self.preprocessor.as_ref()?.quantizer()?.calibration()
    }

    /// The name that requests and routes use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which load of this name it is, from 1.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// SHA-256 of the file's bytes, hex; empty for a model that came from no file.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// What it takes and gives.
    #[must_use]
    pub fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    /// Whether the compiled forest scores it.
    #[must_use]
    pub fn is_compiled(&self) -> bool {
        self.compiled
    }

    /// Whether C or C++ code in this process scores it.
    #[must_use]
    pub fn runs_native_code(&self) -> bool {
        self.native
    }

    /// What `/models` tells of it.
    #[must_use]
    pub fn info(&self) -> ModelInfo {
        let kind = self.schema.model_type;
        let backend = match kind {
            _ if self.compiled => "compiled",
            ModelType::LightGbm | ModelType::XgBoost | ModelType::Treelite => "reference",
            ModelType::Onnx => "runtime",
            // A converted estimator is scored in this process.
            ModelType::Sklearn if self.runner.is_none() => "runtime",
            ModelType::Python | ModelType::Sklearn => "python",
        };
        ModelInfo {
            name: self.name.clone(),
            version: self.version,
            kind: kind.as_str().to_owned(),
            backend: backend.to_owned(),
            compiled: self.compiled,
            sha256: self.sha256.clone(),
            features: self.schema.feature_names.clone(),
            outputs: self.schema.outputs,
            path: String::new(),
            loaded_at: String::new(),
            load_ms: 0.0,
            previous: None,
            candidate: None,
            last_error: None,
            runner: self.runner.as_ref().map(|runner| runner.info()),
        }
    }

    /// How many threads of its own score it; `None`: the score threads do.
    #[must_use]
    pub fn own_threads(&self) -> Option<NonZeroU32> {
        self.own_threads
    }

    /// The scorer of one thread. Each uses its own, so the lock is never waited for, but where a slot's versions are made for
    /// different numbers of threads. [`LoadedModel::SPARE`] asks for the one that is no thread's.
    pub fn scorer(&self, thread: usize) -> MutexGuard<'_, Box<dyn Scorer>> {
        if let Some(spare) = self.spare.as_ref().filter(|_| thread == Self::SPARE) {
            return spare.lock();
        }
        self.scorers[thread % self.scorers.len()].lock()
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_memory_may_be_asked_again() {
        let transient = |message: &str| ScoreError::of_library(message).is_transient();
        assert!(transient("LightGBM: std::bad_alloc"));
        assert!(transient("ONNX Runtime: Non-zero status: Failed to allocate memory for requested buffer of size 9"));
        assert!(!transient("XGBoost: Check failed: feature names mismatch"));
    }
}
