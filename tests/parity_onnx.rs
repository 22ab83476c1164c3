//! ONNX models against ONNX Runtime's Python package: every graph of `tests/models_onnx.py` scores what Python said about
//! the same rows in the same run of `make test`, or is refused by name.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay::model::{self, Backend, LoadOptions, Model, ModelBytes, ModelType, RowType, Rows, Scorer, Values};
use serde_json::Value;

/// The largest difference that counts as equal.
const TOLERANCE: f64 = 1e-6;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models")
}

fn index(part: &str) -> Vec<Value> {
    let index = fs::read_to_string(models().join("index-onnx.json"));
    let index = index.unwrap_or_else(|error| panic!("{error}; `make test` makes the models first"));
    let index: Value = serde_json::from_str(&index).unwrap();
    index[part].as_array().unwrap().clone()
}

fn load(path: &Path) -> Result<Box<dyn Model>, String> {
    let file = ModelBytes::read(path, None).unwrap();
    // The compiled forest's own tests hold it against the runtime.
    model::load(&file, &LoadOptions::of_backend(Backend::Reference)).map_err(|error| error.to_string())
}

/// Lines of JSON arrays; null is NaN.
fn table(path: &Path) -> Vec<Vec<f64>> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let row = |line: &str| serde_json::from_str::<Vec<Value>>(line).unwrap().iter().map(number).collect();
    fs::read_to_string(path).unwrap().lines().map(row).collect()
}

fn score(model: &dyn Model, scorer: &mut dyn Scorer, rows: &[Vec<f64>]) -> Vec<f64> {
    let width = model.schema().width();
    let wide: Vec<f64> = rows.iter().flatten().copied().collect();
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a float graph takes the nearest f32, as numpy's astype gives it"
    )]
    let narrow: Vec<f32> = wide.iter().map(|&value| value as f32).collect();
    let values = match model.schema().row_type {
        RowType::F32 => Values::F32(&narrow),
        RowType::F64 => Values::F64(&wide),
    };
    let mut scores = vec![f64::NAN; rows.len() * model.schema().outputs];
    scorer.score(Rows::numbers(values, width), &mut scores).unwrap();
    scores
}

#[test]
fn every_graph_scores_what_python_says() {
    let models_listed = index("models");
    assert!(models_listed.len() >= 14);
    for entry in models_listed {
        let name = entry["name"].as_str().unwrap();
        let folder = models().join(name);
        let model = load(&folder.join("model.onnx")).unwrap();
        let schema = model.schema();
        assert_eq!(schema.model_type, ModelType::Onnx);
        let (rows, expected) = (table(&folder.join("rows.jsonl")), table(&folder.join("expected.jsonl")));
        assert_eq!(rows.len() as u64, entry["rows"].as_u64().unwrap(), "{name}");
        assert_eq!(schema.width() as u64, entry["features"].as_u64().unwrap(), "{name}");
        assert_eq!(schema.outputs as u64, entry["outputs"].as_u64().unwrap(), "{name}");
        assert_eq!(schema.row_type == RowType::F64, entry["type"] == "f64", "{name}");
        let expected: Vec<f64> = expected.into_iter().flatten().collect();
        let mut scorer = model.scorer().unwrap();
        let scores = score(model.as_ref(), scorer.as_mut(), &rows);
        let differences = scores.iter().zip(&expected).map(|(score, expected)| (score - expected).abs());
        let worst = differences.fold(0.0_f64, |worst, difference| if difference <= worst { worst } else { difference });
        let other_bits = scores.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        println!("{name}: {} scores, {other_bits} with other bits, worst difference {worst:e}", scores.len());
        assert!(worst <= TOLERANCE, "{name}: differs by {worst:e}");
    }
}

#[test]
fn a_row_scores_the_same_alone_and_in_any_batch_bit_for_bit() {
    for entry in index("models") {
        let name = entry["name"].as_str().unwrap();
        let model = load(&models().join(name).join("model.onnx")).unwrap();
        let mut rows = table(&models().join(name).join("rows.jsonl"));
        rows.truncate(389);
        let mut scorer = model.scorer().unwrap();
        let whole = score(model.as_ref(), scorer.as_mut(), &rows);
        let bits = |scores: &[f64]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
        for size in [1, 2, 3, 7, 64] {
            let parts: Vec<f64> =
                rows.chunks(size).flat_map(|part| score(model.as_ref(), scorer.as_mut(), part)).collect();
            assert!(bits(&parts) == bits(&whole), "{name}: in batches of {size}");
        }
        rows.reverse();
        let backwards: Vec<f64> = score(model.as_ref(), scorer.as_mut(), &rows)
            .chunks(model.schema().outputs)
            .rev()
            .flatten()
            .copied()
            .collect();
        assert!(bits(&backwards) == bits(&whole), "{name}: backwards");
    }
}

#[test]
fn what_cannot_be_scored_is_refused_by_name() {
    let refused = index("refused");
    assert!(refused.len() >= 9);
    for entry in refused {
        let file = models().join(entry["file"].as_str().unwrap());
        let refusal = load(&file).err().unwrap_or_else(|| panic!("{} was not refused", file.display()));
        println!("{refusal}");
        assert!(refusal.starts_with(&format!("model {}: ", file.display())), "{refusal}");
        for words in entry["says"].as_array().unwrap() {
            assert!(refusal.contains(words.as_str().unwrap()), "{refusal}: does not say {words}");
        }
    }
}

#[test]
fn features_classes_and_runtime_are_told() {
    let model = |name: &str| load(&models().join(name).join("model.onnx")).unwrap();
    let detail = |model: &dyn Model, name: &str| {
        model.schema().details.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap()
    };
    let regression = model("onnx_lgb_regression");
    assert_eq!(regression.schema().feature_names[0], "lepton_pT");
    assert!(detail(regression.as_ref(), "producer").starts_with("OnnxMLTools "));
    assert!(detail(regression.as_ref(), "opset").contains("ai.onnx.ml "));
    assert_eq!(detail(regression.as_ref(), "inputs"), "input: f32 [_, 28]");
    println!("{:?}", regression.schema().details);
    assert!(detail(regression.as_ref(), "runtime").contains("1.32.0"));
    assert_eq!(model("onnx_mlp").schema().feature_names[27], "f27");
    let columns = model("onnx_columns_double");
    assert_eq!(columns.schema().feature_names, ["age", "income", "debt", "tenure"]);
    let text = model("onnx_logistic_zipmap_text");
    assert_eq!(detail(text.as_ref(), "classes"), "high, low, mid");
    println!("{:?}", text.schema().details);
    assert_eq!(detail(text.as_ref(), "missing values"), "no score");
    assert_eq!(detail(regression.as_ref(), "missing values"), "scored");
}

fn inspect(library: &str, folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["model", "inspect"]).arg(models().join("onnx_mlp/model.onnx")).current_dir(folder);
    command.env("ORT_DYLIB_PATH", library).output().unwrap()
}

#[test]
fn a_runtime_that_is_not_there_is_an_error_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let not_a_library = folder.path().join("libonnxruntime.so");
    fs::write(&not_a_library, "no library").unwrap();
    for library in ["/nonexistent", not_a_library.to_str().unwrap()] {
        let ran = inspect(library, folder.path());
        let said = String::from_utf8(ran.stderr).unwrap();
        println!("{said}");
        assert!(said.contains("no ONNX Runtime: "), "{said}");
        assert!(!ran.status.success() && said.contains(library), "{said}");
        for remedy in ["make setup", "pip install onnxruntime", "ORT_DYLIB_PATH"] {
            assert!(said.contains(remedy), "{said}: does not say {remedy}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
    // Found above the executable, wherever it is run.
    assert!(inspect("", folder.path()).status.success());
}
