//! [`PythonOptions`]: how a model's Python processes are run, and what they are asked.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RowType;

/// What a Python process takes over of this process's environment; all else could be a secret.
#[cfg(any(feature = "onnx", feature = "python"))]
const KEPT: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYENV_ROOT", "PYENV_VERSION"];

/// The environment of every process that the configured interpreter runs in.
#[cfg(any(feature = "onnx", feature = "python"))]
pub(super) fn kept_environment() -> impl Iterator<Item = (&'static str, std::ffi::OsString)> {
    KEPT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// How Python runs a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonOptions {
    /// The interpreter: a name that is looked up in `PATH`, or a path.
    pub interpreter: PathBuf,
    /// Child processes; `None` is one for each core that the container grants.
    pub processes: Option<NonZeroU32>,
    /// How long a batch may take before its process is killed.
    pub batch_timeout: Duration,
    /// How long a process may take to load the model.
    pub start_timeout: Duration,
    /// Most bytes of data a process may have.
    pub memory_max: NonZeroU64,
    /// What is called.
    pub method: Method,
    /// What it is called with.
    pub input: Input,
    /// The type of the numbers that it is called with.
    pub row_type: RowType,
    /// Names of the features, for a model that does not know them; empty leaves them to it.
    pub features: Vec<String>,
    /// The class that predicts: one of the file's, or `module:Class`, which is then given the file.
    pub class: Option<String>,
    /// Folders from which the model may import, besides the interpreter's own.
    pub import_paths: Vec<PathBuf>,
    /// Whether a process gives up rights before it loads the model.
    pub sandbox: Sandbox,
    /// Pauses of the garbage collector from here on are counted and logged.
    pub gc_pause_min: Duration,
}

impl Default for PythonOptions {
    fn default() -> Self {
        Self {
            interpreter: "python3".into(),
            processes: None,
            batch_timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(60),
            memory_max: const { NonZeroU64::new(2 << 30).expect("it is above 0") },
            method: Method::default(),
            input: Input::default(),
            row_type: RowType::F64,
            features: Vec::new(),
            class: None,
            import_paths: Vec::new(),
            sandbox: Sandbox::default(),
            gc_pause_min: Duration::from_millis(10),
        }
    }
}

impl PythonOptions {
    /// Child processes of a model.
    #[must_use]
    pub fn processes(&self) -> NonZeroU32 {
        let granted = || std::thread::available_parallelism().ok().and_then(|cores| NonZeroU32::try_from(cores).ok());
        self.processes.or_else(granted).unwrap_or(NonZeroU32::MIN)
    }
}

/// Which method of a model gives its scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// For scikit-learn classifiers `predict_proba`, or else `decision_function`; for all else `predict`.
    #[default]
    Auto,
    /// Values, or numeric labels.
    Predict,
    /// A probability for each class: two for binary models, as Python gives them.
    PredictProba,
    /// The distance from the boundary, or one for each class.
    DecisionFunction,
}

impl Method {
    /// Its name in Python.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Predict => "predict",
            Self::PredictProba => "predict_proba",
            Self::DecisionFunction => "decision_function",
        }
    }
}

/// What a model is called with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// A `DataFrame` for a model that was trained on named columns, else an array.
    #[default]
    Auto,
    /// A numpy array of rows.
    Array,
    /// A pandas `DataFrame` with the features' names.
    DataFrame,
}

impl Input {
    /// Its word in the config.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Array => "array",
            Self::DataFrame => "dataframe",
        }
    }
}

/// Whether a process gives up rights before it loads the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// As far as the kernel allows; what it does not is said.
    #[default]
    Auto,
    /// Wholly, or the model is refused.
    Required,
    /// Not at all.
    Off,
}

impl Sandbox {
    /// Its word in the config.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}
