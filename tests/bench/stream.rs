//! The reference stream: 20,000 rows and the score that the library which trained the model gave for each; requests
//! made from them, replies held against them. Record `n` has the id `rn` and the row `n` modulo the number of rows.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// Scores are equal up to this: the same sums in the same order leave nothing to round.
const TOLERANCE: f64 = 1e-12;

/// A LightGBM model of the stream's width that has nothing to do: one tree of one leaf. What it costs is the line alone.
pub(crate) const NO_WORK: &str = include_str!("no_work.txt");
/// Its score for any row.
pub(crate) const NO_WORK_SCORE: f64 = 0.25;

/// What a record looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `{"id": "r123", "features": [...]}`.
    Reference,
    /// An inference request of the V2 protocol, which `MLServer` reads.
    V2,
}

/// Rows, their JSON text, and the expected scores.
pub(crate) struct Stream {
    pub(crate) width: usize,
    /// Row-major, as a reader of the JSON text gets them.
    pub(crate) values: Vec<f64>,
    pub(crate) model: PathBuf,
    texts: Vec<String>,
    scores: Vec<f64>,
}

impl Stream {
    /// Reads what `reference_models.py` wrote.
    pub(crate) fn load(folder: &Path) -> anyhow::Result<Self> {
        let (shape, rows) =
            npy(&folder.join("X.npy"), "<f4", |four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))?;
        let (_, scores) = npy(&folder.join("lightgbm_500x63.npy"), "<f8", |eight| {
            f64::from_le_bytes(std::array::from_fn(|index| eight[index]))
        })?;
        let [count, width] = shape[..] else { bail!("X.npy: wants rows and columns, has {shape:?}") };
        ensure!(scores.len() == count, "{count} rows, but {} scores", scores.len());
        let texts: Vec<String> = rows.chunks(width).map(row_text).collect();
        let values = texts.iter().flat_map(|text| text.split(',').map(str::parse)).collect::<Result<_, _>>()?;
        Ok(Self { width, values, model: folder.join("lightgbm_500x63.txt"), texts, scores })
    }

    pub(crate) fn rows(&self) -> usize {
        self.texts.len()
    }

    /// The body of a record.
    pub(crate) fn request(&self, record: usize, format: Format) -> String {
        let (row, width) = (&self.texts[record % self.rows()], self.width);
        match format {
            Format::Reference => format!("{{\"id\": \"r{record}\", \"features\": [{row}]}}"),
            Format::V2 => format!(
                "{{\"id\": \"r{record}\", \"inputs\": [{{\"name\": \"rows\", \"shape\": [1, {width}], \
                 \"datatype\": \"FP64\", \"data\": [{row}]}}]}}"
            ),
        }
    }

    /// The score that a record must get.
    pub(crate) fn score(&self, record: usize) -> f64 {
        self.scores[record % self.rows()]
    }

    /// Whether this is the right score of a record.
    pub(crate) fn is_score(&self, record: usize, score: f64) -> bool {
        (score - self.score(record)).abs() <= TOLERANCE
    }
}

/// Numbers as the shortest text that reads back as the same `f32`. No threshold lies between that text read as `f64`
/// and the `f32` itself: thresholds stand halfway between two values of the training data.
fn row_text(row: &[f32]) -> String {
    let mut text = String::new();
    for (index, value) in row.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{value:?}");
    }
    text
}

/// A reply of any subject.
#[derive(Deserialize)]
pub(crate) struct Reply<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(default)]
    prediction: Vec<f64>,
    /// `MLServer`'s.
    #[serde(default)]
    outputs: Vec<Output>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Output {
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Metadata {
    batch_size: u64,
}

impl Reply<'_> {
    /// The record's number; `None` for one that the bench numbered otherwise.
    pub(crate) fn record(&self) -> Option<usize> {
        self.id.strip_prefix('r')?.parse().ok()
    }

    pub(crate) fn score(&self) -> Option<f64> {
        match (&self.prediction[..], &self.outputs[..]) {
            (&[score], []) => Some(score),
            ([], [output]) if output.data.len() == 1 => Some(output.data[0]),
            _ => None,
        }
    }

    /// Rows of the batch that it was scored in, where the subject tells.
    pub(crate) fn batch_rows(&self) -> Option<u64> {
        self.metadata.as_ref().map(|metadata| metadata.batch_size)
    }
}

/// `NumPy`'s file format, version 1: a magic word, the header's length, the header, the numbers in C order.
fn npy<T>(path: &Path, kind: &str, number: impl Fn(&[u8]) -> T) -> anyhow::Result<(Vec<usize>, Vec<T>)> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let whole = |start: &[u8]| start == b"\x93NUMPY\x01\x00";
    ensure!(bytes.len() > 10 && whole(&bytes[..8]), "{}: not an .npy file of version 1", path.display());
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    ensure!(bytes.len() >= data, "{}: cut short", path.display());
    let header = String::from_utf8_lossy(&bytes[10..data]);
    ensure!(header.contains(kind) && header.contains("'fortran_order': False"), "{}: {header}", path.display());
    let shape = header.split_once('(').and_then(|(_, rest)| rest.split_once(')')).context("no shape")?.0;
    let shape = shape.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    let size = if kind.ends_with('4') { 4 } else { 8 };
    Ok((shape, bytes[data..].chunks_exact(size).map(number).collect()))
}
