//! XGBoost models, made and scored by its own Python package in the same run (`tests/models_xgboost.py`), against the
//! binary. Through XGBoost's own library: equal to the bit, from both formats, or refused by name. What it refuses is
//! scored by the compiled forest, whose own parity test is `tests/parity_forest.rs`.
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

/// Every row's scores are Python's: to the bit, or within the links' 2 units in the last place.
fn assert_scores(made: &Made, file: &str, batch_size: &str, backend: &str) {
    let folder = models().join(&made.name);
    let model = folder.join(file);
    let args = ["score", "--backend", backend, "--batch-size", batch_size, "--model", model.to_str().unwrap()];
    let replies = json_lines(&ok(&run(&args, &folder.join("rows.jsonl"))));
    let expected = json_lines(&fs::read_to_string(folder.join("expected.jsonl")).unwrap());
    assert_eq!((replies.len(), expected.len()), (made.rows, made.rows), "{}/{file}", made.name);
    for (row, (reply, wanted)) in replies.iter().zip(expected).enumerate() {
        let numbers = |list: &Value| -> Vec<f64> { serde_json::from_value(list.clone()).unwrap() };
        let (got, wanted) = (numbers(&reply["prediction"]), numbers(&wanted));
        let place = format!("{}/{file}, row {row}: {got:?}, Python says {wanted:?}", made.name);
        assert_eq!(wanted.len(), made.outputs, "{place}");
        assert_eq!(got.len(), made.outputs, "{place}");
        let same = |(&got, &wanted): (&f64, &f64)| match backend {
            "reference" => got.to_bits() == wanted.to_bits(),
            _ => ulps_apart(got, wanted) <= 2,
        };
        assert!(got.iter().zip(&wanted).all(same), "{place}");
    }
}

/// Steps of an f32, in which XGBoost gives its scores.
fn ulps_apart(a: f64, b: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "they are f32s that were widened")]
    let ordered = |x: f64| {
        let magnitude = i64::from((x as f32).abs().to_bits());
        if x.is_sign_negative() { -magnitude } else { magnitude }
    };
    (ordered(a) - ordered(b)).abs()
}

#[test]
fn both_formats_score_what_python_says_to_the_bit() {
    let models = index().models;
    assert!(models.len() > 35, "{} models", models.len());
    for made in models {
        for backend in ["reference", "compiled"] {
            assert_scores(&made, "model.json", "256", backend);
            assert_scores(&made, "model.ubj", "1", backend);
        }
    }
}

#[test]
fn every_model_passes_its_validation_with_the_rows_beside_it() {
    for made in index().models {
        let file = models().join(&made.name).join("model.json");
        let report: Value = serde_json::from_str(&ok(&run(&["model", "validate", "--json"], &file))).unwrap();
        assert_eq!(report["passed"], true, "{}: {report}", made.name);
        assert_eq!(report["checks"].as_array().unwrap().len(), 5, "{}: with expected outputs", made.name);
        assert!(report["checks"][4]["detail"].as_str().unwrap().contains("ulp apart"), "{}: {report}", made.name);
        let report: Value = serde_json::from_str(&ok(&run(&["model", "inspect", "--json"], &file))).unwrap();
        assert_eq!(report["features"].as_array().unwrap().len(), made.features, "{}", made.name);
    }
}

#[test]
fn what_xgboost_1_6_would_misread_is_refused_by_name() {
    let refused = index().refused;
    assert!(refused.len() >= 8, "{} refused", refused.len());
    for Refused { file, says } in refused {
        let output = run(&["model", "validate", "--backend", "reference"], &models().join(&file));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{file}");
        assert!(stderr.contains(&says) && stderr.contains(&file), "{says:?} in: {stderr}");
        assert!(stderr.contains("the compiled forest (`compile_model = true`) reads more"), "{stderr}");
        assert_eq!(output.stdout, b"", "{file}");
        // The compiled forest reads it, and says that there is nothing to compare it with.
        let report: Value =
            serde_json::from_str(&ok(&run(&["model", "validate", "--json"], &models().join(&file)))).unwrap();
        let check = report["checks"].as_array().unwrap().last().unwrap();
        assert!(check["detail"].as_str().unwrap().starts_with("not compared: "), "{file}: {check}");
    }
}

/// Models of `tests/models_forest.py` that XGBoost's own library does not score here.
#[test]
fn what_the_library_refuses_the_compiled_forest_scores() {
    let index = fs::read_to_string(models().join("index-forest.json"));
    let index = index.unwrap_or_else(|error| panic!("index-forest.json: {error}; `make test` makes it first"));
    let index: Vec<Value> = serde_json::from_str(&index).unwrap();
    let mut scored = 0;
    for entry in index.iter().filter(|entry| entry["library"] == "xgboost") {
        let (name, width) = (entry["name"].as_str().unwrap(), entry["predictions"].as_u64().unwrap());
        let folder = models().join(name);
        let reference = run(&["model", "inspect", "--backend", "reference"], &folder.join("model.json"));
        if reference.status.code() != Some(4) {
            continue;
        }
        let bits = fs::read_to_string(folder.join("predictions.hex")).unwrap();
        let bits = bits.lines().map(|line| line.split(' ').map(|word| u32::from_str_radix(word, 16).unwrap()));
        let wanted: Vec<Vec<f64>> = bits.map(|row| row.map(|bits| f64::from(f32::from_bits(bits))).collect()).collect();
        let model = folder.join("model.ubj");
        // A row of it that holds an infinity is an error reply: JSON has none.
        let output = run(&["score", "--model", model.to_str().unwrap()], &folder.join("rows.jsonl"));
        let replies = json_lines(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(replies.len(), wanted.len(), "{name}");
        let mut rows = 0;
        for (row, (reply, wanted)) in
            replies.iter().zip(&wanted).enumerate().filter(|(_, (reply, _))| reply["success"] == true)
        {
            let got: Vec<f64> = serde_json::from_value(reply["prediction"].clone()).unwrap();
            assert_eq!(got.len() as u64, width, "{name}");
            let near = got.iter().zip(wanted).all(|(&got, &wanted)| ulps_apart(got, wanted) <= 2);
            assert!(near, "{name}, row {row}: {got:?}, Python says {wanted:?}");
            rows += 1;
        }
        assert!(rows > 30, "{name}: {rows} rows scored");
        scored += 1;
    }
    assert!(scored >= 5, "{scored} models");
}
