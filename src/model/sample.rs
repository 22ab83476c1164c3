//! Rows with the outputs that the original library gave for them, in files beside a model: `fraud.rows.jsonl` and
//! `fraud.expected.jsonl` for `fraud.txt`, else `rows.jsonl` and `expected.jsonl` in its folder. A version that does not
//! meet them takes no traffic.
//!
//! A line of rows is an array in the model's order or an object by feature name; null is a missing value. A line of
//! outputs is an array, or a number where there is one.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::validate::Sample;
use super::{FeatureKind, ModelError, ModelSchema};

/// How far a score may be from what is expected when a model is loaded: a float's own precision, and some sums of it.
const TOLERANCE: f64 = 1e-6;

/// The files of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleFiles {
    /// The rows.
    pub rows: PathBuf,
    /// Their outputs, line by line.
    pub expected: PathBuf,
}

impl SampleFiles {
    /// Those beside a model, if there are any.
    #[must_use]
    pub fn beside(model: &Path) -> Option<Self> {
        let own = Self { rows: model.with_extension("rows.jsonl"), expected: model.with_extension("expected.jsonl") };
        let folder =
            Self { rows: model.with_file_name("rows.jsonl"), expected: model.with_file_name("expected.jsonl") };
        [own, folder].into_iter().find(|files| files.rows.is_file() && files.expected.is_file())
    }

    /// Reads them for a model of that schema.
    ///
    /// # Errors
    /// [`ModelError`] with file and line where they cannot be read, or do not fit the model.
    pub fn read(&self, schema: &ModelSchema) -> Result<Sample, ModelError> {
        let mut sample = Sample { tolerance: TOLERANCE, ..Sample::default() };
        let rows = each_line(&self.rows, |value| push_row(value, schema, &mut sample))?;
        let expected = each_line(&self.expected, |value| push_outputs(value, schema.outputs, &mut sample.expected))?;
        if rows != expected {
            let (rows_file, expected_file) = (self.rows.display(), self.expected.display());
            let reason = format!("{expected} lines of outputs, but {rows_file} has {rows} rows");
            return Err(ModelError::refused(expected_file.to_string(), reason));
        }
        Ok(sample)
    }
}

/// Reads a file line by line, and counts them.
fn each_line(path: &Path, mut take: impl FnMut(Value) -> Result<(), String>) -> Result<usize, ModelError> {
    let unreadable =
        |error: std::io::Error| ModelError::Unreadable { path: path.to_owned(), reason: error.to_string() };
    let mut count = 0;
    for line in BufReader::new(File::open(path).map_err(unreadable)?).lines() {
        let line = line.map_err(unreadable)?;
        count += 1;
        let taken = serde_json::from_str(&line).map_err(|error| error.to_string()).and_then(&mut take);
        taken.map_err(|reason| ModelError::refused(path.display().to_string(), format!("line {count}: {reason}")))?;
    }
    Ok(count)
}

fn push_row(value: Value, schema: &ModelSchema, sample: &mut Sample) -> Result<(), String> {
    let width = schema.width();
    let cells = match value {
        Value::Array(cells) if cells.len() == width => cells,
        Value::Array(cells) => return Err(format!("{} features, the model wants {width}", cells.len())),
        Value::Object(mut by_name) => {
            let cells = schema.feature_names.iter().map(|name| by_name.remove(name).ok_or(name));
            let cells: Result<Vec<Value>, _> = cells.collect();
            let cells = cells.map_err(|name| format!("no feature {name:?}"))?;
            if let Some((name, _)) = by_name.iter().next() {
                return Err(format!("the model has no feature {name:?}"));
            }
            cells
        }
        other => return Err(format!("got {other}, wants a row: an array, or an object by feature name")),
    };
    for (place, cell) in cells.into_iter().enumerate() {
        let is_text = schema.kinds.of(place) == FeatureKind::Text;
        match cell {
            Value::Null => sample.rows.push(f64::NAN),
            Value::Number(number) if !is_text => sample.rows.push(number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) if is_text => {
                sample.rows.push(f64::NAN);
                sample.texts.push(Some(text));
                continue;
            }
            other => {
                let wanted = if is_text { "a string" } else { "a number" };
                return Err(format!("{}: got {other}, wants {wanted} or null", schema.feature_names[place]));
            }
        }
        if is_text {
            sample.texts.push(None);
        }
    }
    Ok(())
}

fn push_outputs(value: Value, outputs: usize, expected: &mut Vec<f64>) -> Result<(), String> {
    let wanted = || format!("wants an array of {outputs} numbers{}", if outputs == 1 { ", or a number" } else { "" });
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    if values.len() != outputs {
        return Err(wanted());
    }
    for value in values {
        expected.push(value.as_f64().ok_or_else(wanted)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{FeatureKinds, ModelType, RowType};
    use super::*;

    fn schema() -> ModelSchema {
        ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: vec!["a".to_owned(), "b".to_owned()],
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        }
    }

    fn read(rows: &str, expected: &str) -> Result<Sample, String> {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.txt");
        std::fs::write(folder.path().join("m.rows.jsonl"), rows).unwrap();
        std::fs::write(folder.path().join("m.expected.jsonl"), expected).unwrap();
        let files = SampleFiles::beside(&model).expect("both are there");
        files.read(&schema()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_come_as_arrays_and_as_objects() {
        let sample = read("[1, null]\n{\"b\": 4.5, \"a\": 3}\n", "[0.25]\n0.5\n").unwrap();
        assert!(sample.rows[1].is_nan());
        assert_eq!((sample.rows[0], &sample.rows[2..], &sample.expected[..]), (1.0, &[3.0, 4.5][..], &[0.25, 0.5][..]));
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_line() {
        let refusal = |rows: &str, expected: &str| read(rows, expected).unwrap_err();
        assert!(refusal("[1,2]\n[1]", "1\n2").contains("m.rows.jsonl: line 2: 1 features, the model wants 2"));
        assert!(refusal("{\"a\":1}", "1").contains("line 1: no feature \"b\""));
        assert!(refusal("{\"a\":1,\"b\":2,\"c\":3}", "1").contains("the model has no feature \"c\""));
        assert!(refusal("[1,\"x\"]", "1").contains("b: got \"x\", wants a number or null"));
        assert!(
            refusal("[1,2]", "[1,2]").contains("m.expected.jsonl: line 1: wants an array of 1 numbers, or a number")
        );
        assert!(refusal("[1,2]", "1\n2").contains("2 lines of outputs, but"));
        assert!(refusal("[1,2", "1").contains("line 1: EOF"));
    }
}
