//! [`LoadOptions`]: all that decides how a file's bytes become a model, besides the bytes. Each kind's own settings are
//! one field.

use std::path::PathBuf;

use super::{Backend, ModelType, OnnxOptions, PythonOptions, Quantization, Step};

/// How a file becomes a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// What the file is; `None` finds it from the bytes.
    pub model_type: Option<ModelType>,
    /// What scores it.
    pub backend: Backend,
    /// Whether the file may run code of its own when it is loaded: pickles, Python files and shared libraries do. They
    /// also need a pinned digest.
    pub trusted: bool,
    /// Whether the model's own numbers are stored in fewer bits, which moves its scores.
    pub quantize: bool,
    /// What is done to a record's features before the model sees them, in order.
    pub preprocess: Vec<Step>,
    /// What the features are rounded to behind those steps, which moves scores.
    pub quantize_inputs: Quantization,
    /// Rows of records, from which [`Quantization::U8`] takes each feature's range.
    pub calibration: Option<PathBuf>,
    /// How ONNX Runtime scores it.
    pub onnx: OnnxOptions,
    /// scikit-learn and Python models: how Python runs them.
    pub python: PythonOptions,
}

impl LoadOptions {
    /// Of any kind, scored by `backend`, with defaults for all else.
    #[must_use]
    pub fn of_backend(backend: Backend) -> Self {
        Self { backend, ..Self::default() }
    }

    /// The calibration file, where it is read.
    #[must_use]
    pub fn rows_read(&self) -> Option<&PathBuf> {
        self.calibration.as_ref().filter(|_| self.quantize_inputs == Quantization::U8)
    }
}
