//! The records of the demo: 7,500 collisions of the HIGGS data set, the model, and the scores that LightGBM's own Python
//! package gave for each of them.

use std::path::Path;

use anyhow::{Context as _, ensure};

const TEST: &str = include_str!("../../../tests/data/higgs/higgs.test.tsv");
const TRAIN: &str = include_str!("../../../tests/data/higgs/higgs.train.tsv");
const SCORES: &str = include_str!("../../../tests/data/higgs/higgs.scores.txt");
pub(super) const MODEL: &str = include_str!("../../../tests/data/higgs/higgs.model.txt");

/// The record whose fourth feature is a word: it must get an error reply, and its neighbours their scores.
pub(super) const BAD_RECORD: usize = 41;

/// Feature rows as JSON arrays, and the score that each must get.
pub(super) struct Data {
    rows: Vec<String>,
    scores: Vec<f64>,
}

impl Data {
    /// The shipped rows with the shipped scores, or those of a file with a score a line.
    pub(super) fn load(scores: Option<&Path>) -> anyhow::Result<Self> {
        let rows: Vec<String> = TEST.lines().chain(TRAIN.lines()).map(row).collect();
        let scores = match scores {
            None => SCORES.to_owned(),
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("--expected {}", path.display()))?,
        };
        let scores: Vec<f64> = scores.lines().map(str::parse).collect::<Result<_, _>>().context("a score a line")?;
        ensure!(rows.len() == scores.len(), "{} rows, but {} expected scores", rows.len(), scores.len());
        Ok(Self { rows, scores })
    }

    /// The body of a record's request.
    pub(super) fn request(&self, record: usize) -> String {
        let mut features = self.rows[record % self.rows.len()].clone();
        if record == BAD_RECORD {
            features = nth_replaced(&features, 3, "\"abc\"");
        }
        format!("{{\"id\":\"r{record}\",\"features\":{features}}}")
    }

    /// The score that a record must get; `None` for the one that must get an error.
    pub(super) fn score(&self, record: usize) -> Option<f64> {
        (record != BAD_RECORD).then(|| self.scores[record % self.scores.len()])
    }
}

/// A line of the file is the label, then the features. Their text is JSON as it stands, but for `.5` and the like,
/// which the file does not hold.
fn row(line: &str) -> String {
    let features: Vec<&str> = line.split('\t').skip(1).collect();
    format!("[{}]", features.join(","))
}

fn nth_replaced(array: &str, n: usize, value: &str) -> String {
    let inner = array.trim_start_matches('[').trim_end_matches(']');
    let mut values: Vec<&str> = inner.split(',').collect();
    values[n] = value;
    format!("[{}]", values.join(","))
}
