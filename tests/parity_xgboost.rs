//! XGBoost models, made and scored by its own Python package in the same run (`tests/models_xgboost.py`), against the
//! binary: equal to the bit, from both formats, or refused by name.
#![cfg(feature = "xgboost")]
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Index {
    models: Vec<Made>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Made {
    name: String,
    features: usize,
    outputs: usize,
    rows: usize,
}

#[derive(Deserialize)]
struct Refused {
    file: String,
    says: String,
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models")
}

fn index() -> Index {
    let path = models().join("index-xgboost.json");
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}; `make test` makes the models first", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn run(args: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).arg(file).env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().expect("the binary starts")
}

#[track_caller]
fn ok(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Every row's scores are Python's, to the bit.
fn assert_scores(made: &Made, file: &str, batch_size: &str) {
    let folder = models().join(&made.name);
    let model = folder.join(file);
    let args = ["score", "--batch-size", batch_size, "--model", model.to_str().unwrap()];
    let replies = json_lines(&ok(&run(&args, &folder.join("rows.jsonl"))));
    let expected = json_lines(&fs::read_to_string(folder.join("expected.jsonl")).unwrap());
    assert_eq!((replies.len(), expected.len()), (made.rows, made.rows), "{}/{file}", made.name);
    for (row, (reply, wanted)) in replies.iter().zip(expected).enumerate() {
        let numbers = |list: &Value| -> Vec<f64> { serde_json::from_value(list.clone()).unwrap() };
        let (got, wanted) = (numbers(&reply["prediction"]), numbers(&wanted));
        let place = format!("{}/{file}, row {row}: {got:?}, Python says {wanted:?}", made.name);
        assert_eq!(wanted.len(), made.outputs, "{place}");
        assert_eq!(got.len(), made.outputs, "{place}");
        assert!(got.iter().zip(&wanted).all(|(got, wanted)| got.to_bits() == wanted.to_bits()), "{place}");
    }
}

#[test]
fn both_formats_score_what_python_says_to_the_bit() {
    let models = index().models;
    assert!(models.len() > 35, "{} models", models.len());
    for made in models {
        assert_scores(&made, "model.json", "256");
        assert_scores(&made, "model.ubj", "1");
    }
}

#[test]
fn every_model_passes_its_validation_with_the_rows_beside_it() {
    for made in index().models {
        let file = models().join(&made.name).join("model.json");
        let report: Value = serde_json::from_str(&ok(&run(&["model", "validate", "--json"], &file))).unwrap();
        assert_eq!(report["passed"], true, "{}: {report}", made.name);
        assert_eq!(report["checks"].as_array().unwrap().len(), 4, "{}: with expected outputs", made.name);
        let report: Value = serde_json::from_str(&ok(&run(&["model", "inspect", "--json"], &file))).unwrap();
        assert_eq!(report["features"].as_array().unwrap().len(), made.features, "{}", made.name);
    }
}

#[test]
fn what_xgboost_1_6_would_misread_is_refused_by_name() {
    let refused = index().refused;
    assert!(refused.len() >= 8, "{} refused", refused.len());
    for Refused { file, says } in refused {
        let output = run(&["model", "validate"], &models().join(&file));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{file}");
        assert!(stderr.contains(&says) && stderr.contains(&file), "{says:?} in: {stderr}");
        assert!(stderr.contains("the compiled forest, in a later version, will read it"), "{stderr}");
        assert_eq!(output.stdout, b"", "{file}");
    }
}
