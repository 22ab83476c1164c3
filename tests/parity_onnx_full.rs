//! ONNX graphs of several inputs, of text, whole numbers and small floats against ONNX Runtime's Python package: every
//! graph of `tests/models_onnx_full.py` scores what Python said about the same rows in the same run of `make test`, through
//! the scorer and through the engine, where a row without a score takes no other with it.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Command;

use forebay::batch::BatchPolicy;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec, PredictError, PredictionRequest};
use forebay::model::drift::drift;
use forebay::model::validate::Sample;
use forebay::model::{
    self, FeatureKind, LoadOptions, Model, ModelBytes, ModelSchema, OnnxOptions, PythonOptions, RowType, Rows, Scorer,
    Values,
};
use forebay::record::{ErrorCode, Priority};
use serde_json::Value;

/// The largest difference that counts as equal.
const TOLERANCE: f64 = 1e-6;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models")
}

fn index(part: &str) -> Vec<Value> {
    let index = fs::read_to_string(models().join("index-onnx_full.json"));
    let index = index.unwrap_or_else(|error| panic!("{error}; `make test` makes the models first"));
    let index: Value = serde_json::from_str(&index).unwrap();
    index[part].as_array().unwrap().clone()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn options(output: Vec<String>) -> LoadOptions {
    LoadOptions { onnx: OnnxOptions { output, ..OnnxOptions::default() }, ..LoadOptions::default() }
}

fn path_of(name: &str) -> PathBuf {
    models().join(name).join("model.onnx")
}

fn load(name: &str, options: &LoadOptions) -> Result<Box<dyn Model>, String> {
    let file = ModelBytes::read(&path_of(name), None).unwrap();
    model::load(&file, options).map_err(|error| error.to_string())
}

/// Rows of a model, their texts apart.
#[derive(Clone, Default)]
struct Table {
    values: Vec<f64>,
    texts: Vec<Option<String>>,
}

impl Table {
    fn push(&mut self, row: &Value, schema: &ModelSchema) {
        for (column, cell) in row.as_array().unwrap().iter().enumerate() {
            self.values.push(cell.as_f64().unwrap_or(f64::NAN));
            if schema.kinds.of(column) == FeatureKind::Text {
                self.texts.push(cell.as_str().map(str::to_owned));
            }
        }
    }

    fn read(path: &Path, schema: &ModelSchema) -> Self {
        let mut table = Self::default();
        for line in fs::read_to_string(path).unwrap().lines() {
            table.push(&serde_json::from_str(line).unwrap(), schema);
        }
        table
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a float graph takes the nearest f32, as numpy's astype gives it")]
fn score(schema: &ModelSchema, scorer: &mut dyn Scorer, table: &Table) -> Vec<f64> {
    let narrow: Vec<f32> = table.values.iter().map(|&value| value as f32).collect();
    let values = match schema.row_type {
        RowType::F32 => Values::F32(&narrow),
        RowType::F64 => Values::F64(&table.values),
    };
    let texts: Vec<Option<&str>> = table.texts.iter().map(Option::as_deref).collect();
    let rows = Rows { values, width: schema.width(), texts: &texts };
    let mut scores = vec![f64::NAN; rows.count() * schema.outputs];
    let (whole, each) = (rows.count(), rows.count().div_ceil(3));
    // In three parts: `part` must keep texts with their rows.
    for (first, scores) in (0..whole).step_by(each).zip(scores.chunks_mut(each * schema.outputs)) {
        scorer.score(rows.part(first..whole.min(first + each)), scores).unwrap();
    }
    scores
}

fn expected(name: &str, file: &str) -> Vec<f64> {
    let text = fs::read_to_string(models().join(name).join(file)).unwrap();
    text.lines().flat_map(|line| serde_json::from_str::<Vec<f64>>(line).unwrap()).collect()
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, difference| if difference <= worst { worst } else { difference })
}

#[test]
fn every_graph_scores_what_python_says() {
    let index = index("models");
    assert!(index.len() >= 13);
    for entry in index {
        let name = entry["name"].as_str().unwrap();
        let model = load(name, &options(names(&entry["output"]))).unwrap();
        let schema = model.schema();
        assert_eq!(schema.feature_names, names(&entry["features"]), "{name}");
        let kinds: Vec<_> = (0..schema.width()).map(|column| schema.kinds.of(column).name().to_owned()).collect();
        assert_eq!(kinds, names(&entry["kinds"]), "{name}");
        assert_eq!(schema.outputs as u64, entry["outputs"].as_u64().unwrap(), "{name}");
        assert_eq!(schema.row_type == RowType::F64, entry["type"] == "f64", "{name}");
        let detail = |wanted| schema.details.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
        assert_eq!(
            detail("rows a call"),
            entry["rows_a_call"].as_u64().map(|rows| rows.to_string()).as_deref(),
            "{name}"
        );
        if let Some(missing) = entry["missing"].as_bool() {
            assert_eq!(detail("missing values"), Some(if missing { "scored" } else { "no score" }), "{name}");
        }
        let table = Table::read(&models().join(name).join("rows.jsonl"), schema);
        let scores = score(schema, model.scorer().unwrap().as_mut(), &table);
        let worst = worst(&scores, &expected(name, "expected.jsonl"));
        println!("{name}: {} scores, worst difference {worst:e}", scores.len());
        assert!(worst <= TOLERANCE, "{name}: differs by {worst:e}");
    }
}

fn spec(name: &str, load: LoadOptions) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        path: path_of(name),
        load,
        sha256: None,
        batch: BatchPolicy { batch_size_max: NonZeroU32::new(64).unwrap(), ..BatchPolicy::default() },
        priority_default: Priority::new(2).unwrap(),
    }
}

/// Every graph is valid, and scores requests one by one and in batches as Python does; a row that it has no score for ends
/// alone.
#[test]
fn the_engine_scores_them_and_a_row_without_a_score_ends_alone() {
    let config = InferenceEngineConfig {
        num_threads: 2,
        max_concurrent_requests: NonZeroU32::new(1_000).unwrap(),
        ..InferenceEngineConfig::default()
    };
    let engine = InferenceEngine::new(config).unwrap();
    for entry in index("models") {
        let name = entry["name"].as_str().unwrap();
        let load = options(names(&entry["output"]));
        let id = engine.load_spec(&spec(name, load)).unwrap_or_else(|error| panic!("{error}"));
        let model = engine.model(id).unwrap();
        let (schema, expected) = (model.schema(), expected(name, "expected.jsonl"));
        let mut rows: Vec<Value> = fs::read_to_string(models().join(name).join("rows.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let bad = entry["bad"].as_array().map(|bad| Value::from(bad.clone()));
        let bad_place = rows.len() / 2;
        if let Some(bad) = &bad {
            rows.insert(bad_place, bad.clone());
        }
        let requests = rows.iter().map(|row| {
            let mut table = Table::default();
            table.push(row, schema);
            let model = Some(name.to_owned());
            PredictionRequest { model, texts: table.texts, ..PredictionRequest::new(table.values) }
        });
        let mut answers = engine.predict_all(requests);
        if bad.is_some() {
            match answers.remove(bad_place) {
                Err(PredictError::Rejected(reject)) => {
                    println!("{name}: {reject}");
                    assert_eq!(reject.code, ErrorCode::ModelError, "{name}: {reject}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        let scores: Vec<f64> = answers.into_iter().flat_map(|answer| answer.unwrap().scores).collect();
        assert!(worst(&scores, &expected) <= TOLERANCE, "{name}");
    }
}

#[test]
fn a_wrong_choice_of_outputs_is_refused_with_those_that_there_are() {
    let refusal = |name: &str, output: &[&str]| {
        load(name, &options(output.iter().map(|&name| name.to_owned()).collect())).err().unwrap()
    };
    let none = refusal("onnxfull_embeddings", &["nope"]);
    assert!(none.contains("no output \"nope\"") && none.contains("gates: f32 [_, 2, 6]"), "{none}");
    let open = refusal("onnxfull_embeddings", &[]);
    assert!(open.contains("3 outputs could be the scores") && open.contains("[model.onnx]"), "{open}");
    let classes = load("onnxfull_text", &options(vec!["label".to_owned(), "probabilities".to_owned()])).unwrap();
    assert_eq!(classes.schema().outputs, 3);
}

#[test]
fn what_cannot_be_scored_is_refused_by_name() {
    let refused = index("refused");
    assert!(refused.len() >= 5);
    for entry in refused {
        let file = ModelBytes::read(&models().join(entry["file"].as_str().unwrap()), None).unwrap();
        let refusal = model::load(&file, &LoadOptions::default()).err().unwrap().to_string();
        println!("{refusal}");
        for words in names(&entry["says"]) {
            assert!(refusal.contains(&words), "{refusal}: does not say {words}");
        }
    }
}

#[test]
fn a_process_has_one_runtime() {
    drop(load("onnxfull_linear", &LoadOptions::default()).unwrap());
    let mut other = options(Vec::new());
    other.onnx.library = Some("/nonexistent/libonnxruntime.so".into());
    let refusal = load("onnxfull_linear", &other).err().unwrap();
    assert!(refusal.contains("is loaded from ") && refusal.contains("/nonexistent/libonnxruntime.so"), "{refusal}");
}

fn interpreter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/test/bin/python")
}

fn quantized() -> LoadOptions {
    let python = PythonOptions { interpreter: interpreter(), ..PythonOptions::default() };
    LoadOptions { quantize: true, python, ..options(Vec::new()) }
}

/// The quantizer's own graph, run a row a call: a row's scores do not hang on its neighbours, which share a scale with it
/// where they share a call.
#[test]
fn weights_of_8_bits_score_as_python_says_and_the_drift_is_told() {
    let name = "onnxfull_mlp";
    let (original, model) = (load(name, &options(Vec::new())).unwrap(), load(name, &quantized()).unwrap());
    let schema = model.schema();
    let detail = |wanted| schema.details.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
    assert!(detail("quantized").unwrap().starts_with("int8: "), "{:?}", schema.details);
    assert_eq!(detail("rows a call"), Some("1"));
    let table = Table::read(&models().join(name).join("rows.jsonl"), schema);
    let scores = score(schema, model.scorer().unwrap().as_mut(), &table);
    let worst = worst(&scores, &expected(name, "expected_int8.jsonl"));
    println!("{name}: {} scores, worst difference {worst:e}", scores.len());
    assert!(worst <= TOLERANCE, "{worst:e}");

    let sample = Sample { rows: table.values, expected: expected(name, "expected.jsonl"), ..Sample::default() };
    let drift = drift(name, original.as_ref(), model.as_ref(), Some(&sample), None).unwrap();
    println!("{drift:?}");
    let differences: Vec<f64> = scores.iter().zip(&sample.expected).map(|(a, b)| (a - b).abs()).collect();
    let moved = drift.sample.unwrap();
    let max = differences.iter().copied().fold(0.0, f64::max);
    assert_eq!((moved.rows, moved.max.to_bits()), (200, max.to_bits()));
    assert!((moved.mean - differences.iter().sum::<f64>() / differences.len() as f64).abs() < 1e-12);
    assert!(max > 1e-4 && max < 0.1 && moved.classes_changed.unwrap() < 0.1, "{moved:?}");
    assert!(drift.made_up.rows > 100 && drift.made_up.max > 0.0);
}

#[test]
fn a_graph_with_nothing_to_quantize_is_refused_and_one_that_is_quantized_is_taken() {
    let refusal = load("onnxfull_logarithm", &quantized()).err().unwrap();
    assert!(refusal.contains("no product of a float matrix with weights"), "{refusal}");
    // No Python is asked.
    let mut options = quantized();
    options.python.interpreter = "/nonexistent/python".into();
    let model = load("onnxfull_quantized", &options).unwrap();
    assert!(model.schema().details.contains(&("quantized".to_owned(), "int8, in the file".to_owned())));
    let refusal = load("onnxfull_mlp", &options).err().unwrap();
    assert!(refusal.contains("/nonexistent/python does not start") && refusal.contains("model compile"), "{refusal}");
    // Its packages are not there.
    options.python.interpreter = "/usr/bin/python3".into();
    let refusal = load("onnxfull_mlp", &options).err().unwrap();
    assert!(refusal.contains("No module named") && refusal.contains("pip install onnx onnxruntime"), "{refusal}");
}

#[test]
fn the_command_line_quantizes_validates_and_writes_the_graph() {
    let folder = tempfile::tempdir().unwrap();
    let int8 = folder.path().join("int8.onnx");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let path = interpreter().parent().unwrap().to_owned();
        let ran = command.args(arguments).env("PATH", path).output().unwrap();
        let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        assert!(ran.status.success(), "{said}");
        said
    };
    let graph = path_of("onnxfull_mlp");
    let said = run(&["model", "compile", graph.to_str().unwrap(), "--quantize", "-o", int8.to_str().unwrap()]);
    println!("{said}");
    assert!(int8.metadata().unwrap().len() < graph.metadata().unwrap().len());
    let said = run(&["model", "validate", graph.to_str().unwrap(), "--quantize", "--tolerance", "0.1"]);
    println!("{said}");
    assert!(said.contains("quantized scores move") && said.contains("of classes changed"), "{said}");
    let said = run(&["model", "validate", graph.to_str().unwrap(), "--quantize", "--tolerance", "0.1", "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert!(report["drift"]["sample"]["max"].as_f64().unwrap() > 1e-4, "{report}");
}

/// Threads and the graph's rewriting change no score by more than the rounding of a sum.
#[test]
fn the_runtimes_settings_are_taken() {
    let mut settings = options(vec!["shares".to_owned()]);
    let model = load("onnxfull_embeddings", &settings).unwrap();
    let table = Table::read(&models().join("onnxfull_embeddings/rows.jsonl"), model.schema());
    let wanted = score(model.schema(), model.scorer().unwrap().as_mut(), &table);
    settings.onnx.intra_threads = NonZeroU32::new(2).unwrap();
    settings.onnx.inter_threads = NonZeroU32::new(2).unwrap();
    for optimization in ["off", "basic", "extended", "all"] {
        settings.onnx.graph_optimization = serde_json::from_value(optimization.into()).unwrap();
        let model = load("onnxfull_embeddings", &settings).unwrap();
        let scores = score(model.schema(), model.scorer().unwrap().as_mut(), &table);
        assert!(worst(&scores, &wanted) <= TOLERANCE, "{optimization}");
    }
}
