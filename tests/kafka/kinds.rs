//! Each kind of model through Kafka, against its own library's scores of the same run: XGBoost models that XGBoost 1.6
//! cannot score among them, and a graph of text and whole numbers. One worker has a route for each.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::Shared;
use crate::support::{Record, Worker, repository, trusted};

const MODELS: [&str; 12] = [
    "fx_one_hot/model.json",
    "fx_sets_softprob/model.ubj",
    "fx_vector_leaves/model.json",
    "fx_softprob_base_score/model.bin",
    "fl_sets/model.txt",
    "fl_linear/model.txt",
    "ft_sklearn_forest_classes/model.tl",
    "ft_xgboost_holes/model.v3.tl",
    "tc_xgboost_softprob_3/model.so",
    "tc_lightgbm_sets/model.so",
    "onnx_lgb_multiclass/model.onnx",
    "onnxfull_text/model.onnx",
];

pub(crate) fn each_scores_as_its_library(shared: &Shared) {
    let mut toml = format!("[kafka]\nbrokers = \"{}\"\ngroup = \"kinds\"\n", shared.kafka.brokers());
    for model in MODELS {
        let (name, path) = (name(model), file(model));
        shared.kafka.create(&[&format!("{name}-in"), &format!("{name}-out")], 1);
        // A shared library runs code of its own.
        let trust = if is_library(model) { trusted(&path) } else { String::new() };
        let path = path.display();
        let _ = write!(
            toml,
            "[[route]]\ninput = [\"{name}-in\"]\nreply_topic = \"{name}-out\"\nmodel = \"{name}\"\n\
             [[model]]\nname = \"{name}\"\npath = \"{path}\"\n{trust}"
        );
    }
    let mut worker = Worker::ready(&toml, "kinds");
    for model in MODELS {
        let name = name(model);
        let rows: Vec<(String, Vec<f64>)> = rows(model).into_iter().filter(|(row, _)| !row.contains("inf")).collect();
        let request = |(number, (row, _)): (usize, &(String, Vec<f64>))| {
            Record::new(&number.to_string(), format!("{{\"id\":\"r{number}\",\"features\":{row}}}"))
        };
        let requests: Vec<_> = rows.iter().enumerate().map(request).collect();
        assert!(requests.len() >= 20, "{name}: {} rows", requests.len());
        shared.kafka.send(&format!("{name}-in"), &requests);
        let replies = shared.kafka.read(&format!("{name}-out"), rows.len());
        assert_eq!(replies.len(), rows.len(), "{name}");
        let mut answered = BTreeSet::new();
        for reply in &replies {
            // Without an order between records, a batch may overtake another.
            let json = reply.json();
            let id = json["id"].as_str().and_then(|id| id.strip_prefix('r')).and_then(|id| id.parse::<usize>().ok());
            let (row, wanted) = &rows[id.unwrap_or_else(|| panic!("{name}: no id of ours: {json}"))];
            assert!(answered.insert(id), "{name}: answered twice: {json}");
            let got: Vec<f64> = serde_json::from_value(json["prediction"].clone()).unwrap_or_default();
            let equal = got.len() == wanted.len() && got.iter().zip(wanted).all(|(got, wanted)| near(*got, *wanted));
            assert!(equal, "{name} {row}: {json}, its library says {wanted:?}");
        }
    }
    assert_eq!(worker.terminate(), Some(0));
}

/// Within 2 units in the last place of an f32; models of f64 are held closer by the parity tests.
fn near(got: f64, wanted: f64) -> bool {
    (got - wanted).abs() <= wanted.abs() * f64::from(f32::EPSILON) * 2.0
}

fn name(model: &str) -> &str {
    model.split('/').next().unwrap()
}

fn file(model: &str) -> PathBuf {
    repository().join("target/models").join(model)
}

/// Compiled by `TL2cgen`.
fn is_library(model: &str) -> bool {
    name(model).starts_with("tc_")
}

/// Rows as JSON arrays, each with the scores that its library gave.
fn rows(model: &str) -> Vec<(String, Vec<f64>)> {
    let read = |file: &str| {
        let path = self::file(name(model)).join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make test`", path.display()))
    };
    let rows = read("rows.jsonl");
    let scores: Vec<Vec<f64>> = if name(model).starts_with("onnx") {
        read("expected.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    } else {
        let file = if is_library(model) { "scores.hex" } else { "predictions.hex" };
        read(file).lines().map(|line| line.split(' ').map(number).collect()).collect()
    };
    rows.lines().map(str::to_owned).zip(scores).collect()
}

/// 8 digits are an f32, 16 an f64.
fn number(hex: &str) -> f64 {
    let bits = u64::from_str_radix(hex, 16).unwrap();
    if hex.len() == 8 { f64::from(f32::from_bits(u32::try_from(bits).unwrap())) } else { f64::from_bits(bits) }
}
