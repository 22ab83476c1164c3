//! Model files in, [`Forest`]s out: XGBoost's JSON, UBJSON and old binary format, LightGBM's text, Treelite's
//! checkpoints, ONNX graphs that are a tree ensemble.
//!
//! A model is read as the version that wrote it scored it; only sums go in the order of today's versions (XGBoost 1.0 to
//! 1.2 added the base score last, which rounds otherwise), and links by today's formulas. What is not known is refused by
//! name, never approximated; a broken or hostile file ends in an error with its place. Invariants:
//!
//! 1. Memory is at most ten times the file: a stated size is believed only where the file is long enough for it.
//! 2. Time is linear in the file, but for a sort.

use std::fmt;

use super::{Flaw, Forest, ForestParts};

mod document;
pub mod fuzz;
mod lightgbm;
mod names;
mod onnx;
pub mod saved;
#[cfg(test)]
mod tests;
mod treelite;
mod xgboost;

pub use names::FeatureNames;

/// A model's file, read.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// What is scored.
    pub forest: Forest,
    /// One a feature; empty when the file has none.
    pub feature_names: FeatureNames,
    /// The iteration after which validation was best, from 0, when XGBoost stopped training early. All trees are scored
    /// nevertheless, as `Booster.predict` does; `XGBModel.predict` would stop after it.
    pub best_iteration: Option<u32>,
    /// Rows are f64 and narrowed to what the forest compares, as an ONNX graph does that casts its input.
    pub takes_f64: bool,
    /// What the file says of itself, as (label, text).
    pub details: Vec<(String, String)>,
}

/// The file formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// XGBoost's JSON or UBJSON, 1.0 to 3.2, or its binary format before 3.1.
    XGBoost,
    /// `LightGBM`'s text, v2 to v4.
    LightGbm,
    /// An ONNX graph that is one tree ensemble and what exporters put around it.
    Onnx,
    /// Treelite's checkpoint, 3.9 and 4.x.
    Treelite,
    /// [`saved`]: what a model of any of these was compiled to.
    Saved,
}

/// Why a file is not a forest.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadError {
    /// Where it shows.
    pub place: Place,
    /// What is wrong, or not supported, and the remedy where there is one.
    pub reason: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// From 0.
    Byte(usize),
    /// From 1.
    Line(usize),
    /// The file as a whole.
    Whole,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Byte(at) => write!(f, "byte {at}: {}", self.reason),
            Place::Line(line) => write!(f, "line {line}: {}", self.reason),
            Place::Whole => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for ReadError {}

impl ReadError {
    fn whole(reason: impl Into<String>) -> Self {
        Self { place: Place::Whole, reason: reason.into() }
    }
}

/// Reads a file of a known format.
///
/// # Errors
/// The first thing that is broken or not supported.
pub fn read(format: Format, bytes: &[u8]) -> Result<ModelFile, ReadError> {
    match format {
        Format::XGBoost => xgboost::read(bytes),
        Format::LightGbm => lightgbm::read(bytes),
        Format::Onnx => onnx::read(bytes),
        Format::Treelite => treelite::read(bytes),
        Format::Saved => saved::read(bytes),
    }
}

/// The format that a file's first bytes show. XGBoost's binary format has no mark of its own, unless it was saved with
/// one, so there the caller must know.
pub fn format_of(bytes: &[u8]) -> Option<Format> {
    let head = &bytes[..bytes.len().min(4096)];
    if head.starts_with(b"tree\n") || head.starts_with(b"tree\r\n") {
        Some(Format::LightGbm)
    } else if head.starts_with(b"binf") || head.starts_with(b"{") && head.windows(7).any(|word| word == b"learner") {
        Some(Format::XGBoost)
    } else if saved::kind_of(head).is_some() {
        Some(Format::Saved)
    } else if treelite::is_checkpoint(head) {
        Some(Format::Treelite)
    } else if onnx::is_model(head) {
        Some(Format::Onnx)
    } else {
        None
    }
}

/// Details as readers gather them.
fn owned(details: Vec<(&'static str, String)>) -> Vec<(String, String)> {
    details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The check of the parts, with what the file adds to its message.
fn checked(parts: ForestParts) -> Result<Forest, ReadError> {
    parts.check().map_err(|flaw: Flaw| ReadError::whole(format!("{flaw}: the file is damaged; save it again")))
}
