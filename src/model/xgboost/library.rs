//! XGBoost 1.6.2 through xgboost-rs: a model's bytes in, a booster out; rows in, scores out. One thread each.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};

use xgboost_rs::{DMatrix, XGBError};

unsafe extern "C" {
    /// Of the OpenMP runtime that XGBoost is linked with.
    fn omp_set_num_threads(threads: c_int);
}

/// A loaded model.
pub(super) struct Booster {
    inner: xgboost_rs::Booster,
    /// Where the rows of a batch begin, and the feature of each of its cells. Both only ever grow: they are the same
    /// for every batch.
    row_starts: Vec<usize>,
    features: Vec<usize>,
}

impl Booster {
    /// Parses a model.
    pub(super) fn load(bytes: &[u8]) -> Result<Self, String> {
        prepare_thread();
        let inner = xgboost_rs::Booster::load_buffer(bytes).map_err(|error| reason(&error))?;
        Ok(Self { inner, row_starts: Vec::new(), features: Vec::new() })
    }

    /// What the library took for the model's base score: it keeps its default, silently, where it cannot read one.
    pub(super) fn base_score(&self) -> Result<f32, String> {
        let config: serde_json::Value =
            serde_json::from_str(&self.inner.save_config()).map_err(|error| error.to_string())?;
        let base_score = config["learner"]["learner_model_param"]["base_score"].as_str();
        base_score.and_then(|text| text.parse().ok()).ok_or_else(|| "the library names no base score".to_owned())
    }

    /// Scores row-major rows, of which NaN is missing, and gives the scores, row-major too. `margins` is empty, or
    /// holds what each group's sum of each row starts from.
    pub(super) fn predict(&mut self, values: &[f32], width: usize, margins: &[f32]) -> Result<Vec<f32>, String> {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole rows");
        prepare_thread();
        let rows = values.len() / width;
        self.row_starts.extend((self.row_starts.len()..=rows).map(|row| row * width));
        self.features.extend((self.features.len()..values.len()).map(|cell| cell % width));
        // With every cell present: `from_dense` takes 0.0 for missing.
        let (row_starts, features) = (&self.row_starts[..=rows], &self.features[..values.len()]);
        let matrix = DMatrix::from_csr(row_starts, features, values, Some(width));
        let mut matrix = matrix.map_err(|error| reason(&error))?;
        if !margins.is_empty() {
            matrix.set_base_margin(margins).map_err(|error| reason(&error))?;
        }
        // All trees, whatever the best iteration was, and no tree dropped: as Booster.predict in Python.
        self.inner.predict(&matrix).map_err(|error| reason(&error))
    }
}

/// OpenMP's thread count and XGBoost's log are settings of the calling thread. Without the first, each thread that
/// scores starts a team as large as the machine; without the second, warnings go to standard error.
fn prepare_thread() {
    thread_local! {
        static PREPARED: Cell<bool> = const { Cell::new(false) };
    }
    extern "C" fn log(message: *const c_char) {
        // SAFETY: the library passes a NUL-terminated string that lives for the call.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        tracing::debug!(target: "xgboost", "{}", message.trim());
    }
    if !PREPARED.replace(true) {
        // SAFETY: sets a number that belongs to this thread.
        unsafe { omp_set_num_threads(1) };
        // SAFETY: the callback is a plain function that lives for ever.
        unsafe { xgboost_rs_sys::XGBRegisterLogCallback(Some(log)) };
    }
}

/// The library's message is `[time] file:line: reason`, then a stack trace.
fn reason(error: &XGBError) -> String {
    let message = error.to_string();
    let message = message.strip_prefix("XGBoost error: ").unwrap_or(&message);
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    let line = line.split_once("] ").map_or(line, |(_, rest)| rest);
    let line = if line.starts_with('/') { line.split_once(": ").map_or(line, |(_, rest)| rest) } else { line };
    line.trim_end_matches(['\r', ' ', ':']).to_owned()
}
