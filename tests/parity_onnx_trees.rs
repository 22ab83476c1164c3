//! Every graph of `tests/models_onnx_trees.py`, read and scored by the compiled forest, against ONNX Runtime's numbers of
//! the same run: within 2 units in the last place, and to the bit where no function of the C library is called. Graphs
//! that are more than trees are left to the runtime, with the reason.
//!
//! The script wrote to target/models, or to the folder that `FOREST_MODELS` names.

use std::fs;
use std::path::{Path, PathBuf};

use forebay::forest::read::{Format, format_of, read};
use forebay::forest::{Compiled, Float, Results, Scratch, Values};
#[cfg(feature = "onnx")]
use forebay::model::{self, LoadOptions, ModelBytes, compare};
use serde::Deserialize;

/// Units in the last place that a transform may differ by.
const ULPS_MAX: u64 = 2;

#[derive(Deserialize)]
struct Index {
    models: Vec<Entry>,
    left: Vec<Left>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    features: usize,
    outputs: usize,
    rows: usize,
    wide: bool,
}

#[derive(Deserialize)]
struct Left {
    name: String,
    says: String,
}

#[test]
fn ensembles_score_as_the_runtime_scores_them() {
    let (folder, index) = index();
    assert!(index.models.len() >= 60, "{} models", index.models.len());
    let mut wrong = Vec::new();
    for entry in &index.models {
        match compare(&folder.join(&entry.name), entry) {
            Ok((others, worst)) => {
                println!("{:32} {} scores with other bits, at most {worst} ulp", entry.name, others);
                // Nothing but sums, their average and arithmetic: the same bits.
                let powers =
                    ["logistic", "softmax", "binary", "boosting_classes", "_classes", "poisson", "steps", "zipmap"];
                if others > 0 && !powers.iter().any(|word| entry.name.contains(word)) {
                    wrong.push(format!("{}: {others} scores with other bits", entry.name));
                }
            }
            Err(reason) => wrong.push(format!("{}: {reason}", entry.name)),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What `model validate` asks: both backends take and give the same, on made-up rows of every kind.
#[cfg(feature = "onnx")]
#[test]
fn both_backends_give_the_same_for_made_up_rows() {
    let (folder, index) = index();
    for entry in &index.models {
        let file = ModelBytes::read(&folder.join(&entry.name).join("model.onnx"), None).expect("a graph");
        let model = model::load(&file, &LoadOptions::default()).expect(&entry.name);
        assert!(model.is_compiled(), "{}", entry.name);
        let check = compare::compare(&file, model.as_ref(), &[]);
        println!("{:32} {}", entry.name, check.detail);
        assert!(check.passed && !check.detail.contains("not compared"), "{}: {}", entry.name, check.detail);
    }
    for Left { name, says } in &index.left {
        let file = ModelBytes::read(&folder.join(name).join("model.onnx"), None).expect("a graph");
        let Ok(model) = model::load(&file, &LoadOptions::default()) else { continue };
        let told = model.schema().details.iter().find(|(name, _)| name == "backend").map(|(_, value)| value.as_str());
        assert!(told.is_some_and(|told| told.contains(says)), "{name}: {told:?}");
    }
}

#[test]
fn graphs_of_more_than_trees_are_left_to_the_runtime() {
    let (folder, index) = index();
    assert!(index.left.len() >= 7);
    for Left { name, says } in &index.left {
        let bytes = fs::read(folder.join(name).join("model.onnx")).expect("a graph");
        let reason = read(Format::Onnx, &bytes).expect_err(name).to_string();
        println!("{name}: {reason}");
        assert!(reason.contains(says.as_str()), "{name}: {reason}");
    }
}

fn index() -> (PathBuf, Index) {
    let named = std::env::var_os("FOREST_MODELS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models"));
    let path = folder.join("index-onnx_trees.json");
    let index = fs::read(&path);
    let index =
        index.unwrap_or_else(|error| panic!("{}: {error}; tests/models_onnx_trees.py makes it", path.display()));
    let index = serde_json::from_slice(&index).expect("an index");
    (folder, index)
}

/// Scores with other bits, and the worst difference in units in the last place.
fn compare(folder: &Path, entry: &Entry) -> Result<(usize, u64), String> {
    let bytes = fs::read(folder.join("model.onnx")).map_err(|error| error.to_string())?;
    assert_eq!(format_of(&bytes), Some(Format::Onnx), "{}", entry.name);
    let model = read(Format::Onnx, &bytes).map_err(|error| error.to_string())?;
    let takes_f64 = model.takes_f64 || model.forest.parts().row_type == Float::F64;
    if takes_f64 != entry.wide {
        return Err(format!("rows are {}f64", if takes_f64 { "" } else { "not " }));
    }
    let compiled = model.forest.compile(if takes_f64 { Float::F64 } else { Float::F32 });
    if (compiled.features(), compiled.predictions()) != (entry.features, entry.outputs) {
        return Err(format!("{} features, {} scores", compiled.features(), compiled.predictions()));
    }
    let rows = rows(&folder.join("rows.jsonl"));
    let expected = fs::read_to_string(folder.join("scores.hex")).map_err(|error| error.to_string())?;
    let expected: Vec<Number> = expected.split_ascii_whitespace().map(Number::read).collect();
    let (mut others, mut worst) = (0, 0);
    for batch in [entry.rows, 1, 7] {
        let found = score(&compiled, takes_f64, &rows, entry, batch);
        assert_eq!(found.len(), expected.len(), "{}", entry.name);
        for (place, (&found, expected)) in found.iter().zip(&expected).enumerate() {
            let apart = expected.apart(found);
            if apart > ULPS_MAX {
                let row = place / entry.outputs;
                let row = &rows[row * entry.features..][..entry.features];
                return Err(format!("{row:?}: {found}, expected {expected:?}: {apart} ulp apart"));
            }
            others += usize::from(apart > 0);
            worst = worst.max(apart);
        }
    }
    Ok((others, worst))
}

fn score(compiled: &Compiled, takes_f64: bool, rows: &[f64], entry: &Entry, batch: usize) -> Vec<f64> {
    #[allow(clippy::cast_possible_truncation, reason = "rows of a float graph are f32")]
    let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
    let mut scratch = Scratch::default();
    let mut found = Vec::new();
    for start in (0..entry.rows).step_by(batch) {
        let end = (start + batch).min(entry.rows);
        let place = start * entry.features..end * entry.features;
        let values = if takes_f64 { Values::F64(&rows[place]) } else { Values::F32(&narrow[place]) };
        let room = (end - start) * entry.outputs;
        match compiled.sum_type() {
            Float::F32 => {
                let mut scores = vec![0_f32; room];
                compiled.predict(values, &mut scratch, Results::F32(&mut scores)).expect("fits");
                found.extend(scores.into_iter().map(f64::from));
            }
            Float::F64 => {
                let mut scores = vec![0_f64; room];
                compiled.predict(values, &mut scratch, Results::F64(&mut scores)).expect("fits");
                found.extend(scores);
            }
        }
    }
    found
}

/// A score of the runtime, in its own float type.
#[derive(Debug)]
enum Number {
    F32(f32),
    F64(f64),
}

impl Number {
    fn read(digits: &str) -> Self {
        let bits = u64::from_str_radix(digits, 16).expect("hexadecimal digits");
        match u32::try_from(bits) {
            Ok(bits) if digits.len() == 8 => Self::F32(f32::from_bits(bits)),
            _ => Self::F64(f64::from_bits(bits)),
        }
    }

    /// Steps between two numbers. NaN of any kind is one.
    fn apart(&self, found: f64) -> u64 {
        match *self {
            Self::F32(wanted) if wanted.is_nan() => {
                if found.is_nan() {
                    0
                } else {
                    u64::MAX
                }
            }
            Self::F64(wanted) if wanted.is_nan() => {
                if found.is_nan() {
                    0
                } else {
                    u64::MAX
                }
            }
            Self::F32(wanted) => {
                #[allow(clippy::cast_possible_truncation, reason = "asks whether it is an f32")]
                let narrow = found as f32;
                if f64::from(narrow).to_bits() != found.to_bits() {
                    return u64::MAX;
                }
                let ordered =
                    |x: f32| if x.is_sign_negative() { -i64::from(x.abs().to_bits()) } else { i64::from(x.to_bits()) };
                ordered(narrow).abs_diff(ordered(wanted))
            }
            Self::F64(wanted) => {
                let ordered = |x: f64| {
                    if x.is_sign_negative() { -x.abs().to_bits().cast_signed() } else { x.to_bits().cast_signed() }
                };
                ordered(found).abs_diff(ordered(wanted))
            }
        }
    }
}

fn rows(path: &Path) -> Vec<f64> {
    let text = fs::read_to_string(path).expect("rows");
    let number = |value: &serde_json::Value| match value {
        serde_json::Value::Null => f64::NAN,
        serde_json::Value::String(text) => text.parse().expect("an infinity"),
        value => value.as_f64().expect("a number"),
    };
    text.lines()
        .flat_map(|line| serde_json::from_str::<Vec<serde_json::Value>>(line).expect("a row"))
        .map(|value| number(&value))
        .collect()
}
