//! Every model of `tests/models_forest.py` and `tests/models_treelite.py`, read and scored here, against its own
//! library's numbers of the same run: margins bit for bit, predictions within 2 units in the last place, in one batch
//! and row by row.
//!
//! The scripts wrote to target/models, or to the folder that `FOREST_MODELS` names.

use std::fs;
use std::path::{Path, PathBuf};

use forebay::forest::read::{Format, read};
use forebay::forest::{Compiled, Float, Results, Scratch, Values};
use serde::Deserialize;

/// Units in the last place that a link may differ by.
const LINK_ULPS_MAX: u64 = 2;

#[derive(Deserialize)]
struct Entry {
    name: String,
    library: String,
    /// `f32` or `f64`; XGBoost's are f32, `LightGBM`'s f64.
    numbers: Option<String>,
    files: Vec<String>,
    features: usize,
    outputs: usize,
    predictions: usize,
    rows: usize,
    trees: usize,
    leaves: usize,
}

#[test]
fn models_score_as_their_own_libraries() {
    check("forest", 40);
}

#[test]
fn checkpoints_score_as_treelite_scores_them() {
    check("treelite", 70);
}

fn check(script: &str, count_min: usize) {
    let folder = models();
    let path = folder.join(format!("index-{script}.json"));
    let index = fs::read(&path);
    let index = index.unwrap_or_else(|error| panic!("{}: {error}; tests/models_{script}.py makes it", path.display()));
    let index: Vec<Entry> = serde_json::from_slice(&index).expect("a list of models");
    assert!(index.len() >= count_min, "{} models", index.len());
    let mut wrong = Vec::new();
    println!(
        "{:32} {:>6} {:>6} {:>8} {:>7}  margins  worst link, ulp",
        "model", "trees", "leaves", "features", "outputs"
    );
    for entry in &index {
        for file in &entry.files {
            match compare(&folder.join(&entry.name), entry, file) {
                Ok(worst) => println!(
                    "{:32} {:6} {:6} {:8} {:7}  equal    {worst}",
                    format!("{}.{}", entry.name, file.trim_start_matches("model.")),
                    entry.trees,
                    entry.leaves,
                    entry.features,
                    entry.outputs
                ),
                Err(reason) => wrong.push(format!("{} {file}: {reason}", entry.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Where `tests/models_forest.py` wrote: `FOREST_MODELS`, or target/models.
fn models() -> PathBuf {
    let named = std::env::var_os("FOREST_MODELS").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models"))
}

/// The worst difference of a prediction, in units in the last place.
fn compare(folder: &Path, entry: &Entry, file: &str) -> Result<u64, String> {
    let bytes = fs::read(folder.join(file)).map_err(|error| error.to_string())?;
    let format = match entry.library.as_str() {
        "xgboost" => Format::XGBoost,
        "treelite" => Format::Treelite,
        _ => Format::LightGbm,
    };
    let model = read(format, &bytes).map_err(|error| error.to_string())?;
    let rows = rows(&folder.join("rows.jsonl"));
    if rows.len() != entry.rows * entry.features {
        return Err("rows of another size".to_owned());
    }
    let (margins, predictions) = (numbers(&folder.join("margins.hex")), numbers(&folder.join("predictions.hex")));
    let mut worst = 0;
    for row_type in [Float::F32, Float::F64] {
        if row_type == Float::F32 && model.forest.parts().row_type == Float::F64 {
            continue;
        }
        let compiled = model.forest.compile(row_type);
        for batch in [entry.rows, 1, 7] {
            let found = score(&compiled, row_type, &rows, entry, batch)?;
            let same = |bits: (&u64, &u64)| bits.0 == bits.1 || (is_nan(*bits.0, entry) && is_nan(*bits.1, entry));
            if let Some(place) = found.0.iter().zip(&margins).position(|bits| !same(bits)) {
                let (row, found, wanted) = (place / entry.outputs, found.0[place], margins[place]);
                return Err(format!("batch {batch}: row {row}: margin {found:x}, expected {wanted:x}"));
            }
            if found.0.len() != margins.len() || found.1.len() != predictions.len() {
                return Err("a result of another size".to_owned());
            }
            for (place, (&found, &wanted)) in found.1.iter().zip(&predictions).enumerate() {
                let apart =
                    if same((&found, &wanted)) { 0 } else { ordered(found, entry).abs_diff(ordered(wanted, entry)) };
                if apart > LINK_ULPS_MAX {
                    let row = place / entry.predictions;
                    return Err(format!("row {row}: prediction {found:x}, expected {wanted:x}: {apart} ulp apart"));
                }
                worst = worst.max(apart);
            }
        }
    }
    Ok(worst)
}

/// Margins and predictions as bits.
fn score(
    compiled: &Compiled,
    row_type: Float,
    rows: &[f64],
    entry: &Entry,
    batch: usize,
) -> Result<(Vec<u64>, Vec<u64>), String> {
    #[allow(clippy::cast_possible_truncation, reason = "the library narrows rows the same way")]
    let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
    let mut scratch = Scratch::default();
    let mut found = (Vec::new(), Vec::new());
    for start in (0..entry.rows).step_by(batch) {
        let end = (start + batch).min(entry.rows);
        let place = start * entry.features..end * entry.features;
        let values = match row_type {
            Float::F32 => Values::F32(&narrow[place]),
            Float::F64 => Values::F64(&rows[place]),
        };
        let room = ((end - start) * entry.outputs, (end - start) * entry.predictions);
        let error = |mismatch| format!("{mismatch}");
        match compiled.sum_type() {
            Float::F32 => {
                let (mut margins, mut predictions) = (vec![0_f32; room.0], vec![0_f32; room.1]);
                compiled.margins(values, &mut scratch, Results::F32(&mut margins)).map_err(error)?;
                compiled.predict(values, &mut scratch, Results::F32(&mut predictions)).map_err(error)?;
                found.0.extend(margins.iter().map(|number| u64::from(number.to_bits())));
                found.1.extend(predictions.iter().map(|number| u64::from(number.to_bits())));
            }
            Float::F64 => {
                let (mut margins, mut predictions) = (vec![0_f64; room.0], vec![0_f64; room.1]);
                compiled.margins(values, &mut scratch, Results::F64(&mut margins)).map_err(error)?;
                compiled.predict(values, &mut scratch, Results::F64(&mut predictions)).map_err(error)?;
                found.0.extend(margins.iter().map(|number| number.to_bits()));
                found.1.extend(predictions.iter().map(|number| number.to_bits()));
            }
        }
    }
    Ok(found)
}

fn is_single(entry: &Entry) -> bool {
    entry.numbers.as_ref().map_or(entry.library == "xgboost", |numbers| numbers == "f32")
}

fn is_nan(bits: u64, entry: &Entry) -> bool {
    if is_single(entry) {
        u32::try_from(bits).is_ok_and(|bits| f32::from_bits(bits).is_nan())
    } else {
        f64::from_bits(bits).is_nan()
    }
}

/// A float's bits as a number that grows by 1 from each float to the next.
fn ordered(bits: u64, entry: &Entry) -> i64 {
    let sign = if is_single(entry) { 1 << 31 } else { 1 << 63 };
    let size = (bits & (sign - 1)).cast_signed();
    if bits & sign == 0 { size } else { -size }
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

fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).expect("numbers");
    text.split_ascii_whitespace().map(|word| u64::from_str_radix(word, 16).expect("hexadecimal digits")).collect()
}
