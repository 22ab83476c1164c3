//! Every library of `tests/models_tl2cgen.py`, loaded and scored here, against `tl2cgen.Predictor`'s numbers of the same
//! run, bit for bit; and what must not be loaded.

use std::fs;
use std::path::{Path, PathBuf};

use forebay::model::{self, LoadOptions, Model, ModelBytes, ModelType, RowType, Rows, Values};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Index {
    models: Vec<Entry>,
    refused: Vec<Refused>,
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
struct Refused {
    file: String,
    says: String,
}

fn index() -> (PathBuf, Index) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models");
    let index = fs::read(folder.join("index-tl2cgen.json"));
    let index = index.unwrap_or_else(|error| panic!("index-tl2cgen.json: {error}; tests/models_tl2cgen.py makes it"));
    let index = serde_json::from_slice(&index).expect("an index");
    (folder, index)
}

fn load(path: &Path, trusted: bool, pinned: bool) -> Result<Box<dyn Model>, String> {
    let pin: [u8; 32] = Sha256::digest(fs::read(path).expect("a library")).into();
    let file = ModelBytes::read(path, pinned.then_some(&pin)).expect("a file");
    model::load(&file, &LoadOptions { trusted, ..LoadOptions::default() }).map_err(|error| error.to_string())
}

#[test]
fn libraries_score_as_tl2cgens_own_predictor() {
    let (folder, index) = index();
    assert!(index.models.len() >= 12, "{} models", index.models.len());
    for entry in &index.models {
        let folder = folder.join(&entry.name);
        let model = load(&folder.join("model.so"), true, true).expect(&entry.name);
        let schema = model.schema();
        assert_eq!((schema.width(), schema.outputs), (entry.features, entry.outputs), "{}", entry.name);
        assert_eq!((schema.row_type == RowType::F64, schema.model_type), (entry.wide, ModelType::Treelite));
        assert!(model.runs_native_code() && !model.is_compiled());
        let rows = rows(&folder.join("rows.jsonl"));
        let expected = fs::read_to_string(folder.join("scores.hex")).expect("scores");
        let expected: Vec<u64> =
            expected.split_ascii_whitespace().map(|digits| u64::from_str_radix(digits, 16).expect("digits")).collect();
        // All at once, one by one, and on a second handle: the library keeps nothing from row to row.
        for batch in [entry.rows, 1, 7] {
            let found = score(model.as_ref(), &rows, batch * entry.features);
            let bits = |score: f64| {
                #[allow(clippy::cast_possible_truncation, reason = "the score is an f32")]
                let narrow = u64::from((score as f32).to_bits());
                if entry.wide { score.to_bits() } else { narrow }
            };
            let wrong = found.iter().zip(&expected).position(|(&score, &wanted)| bits(score) != wanted);
            assert_eq!((found.len(), wrong), (expected.len(), None), "{} in batches of {batch}", entry.name);
        }
        println!("{:32} {} scores, equal", entry.name, expected.len());
    }
}

#[test]
fn a_library_is_loaded_only_if_trusted_and_pinned() {
    let (folder, index) = index();
    let path = folder.join(&index.models[0].name).join("model.so");
    for (trusted, pinned) in [(false, false), (true, false), (false, true)] {
        let refusal = load(&path, trusted, pinned).err().expect("a refusal");
        assert!(refusal.contains("a shared library runs code of its own"), "{refusal}");
    }
}

#[test]
fn other_libraries_are_refused_by_name() {
    let (folder, index) = index();
    assert!(index.refused.len() >= 5);
    for Refused { file, says } in &index.refused {
        let refusal = load(&folder.join(file), true, true).err().expect(file);
        println!("{refusal}");
        assert!(refusal.contains(says.as_str()), "{file}: {refusal}");
    }
    let cut = tempfile::tempdir().expect("a folder");
    let path = cut.path().join("cut.so");
    let whole = fs::read(folder.join(&index.models[0].name).join("model.so")).expect("a library");
    // The loader would map what the file does not hold, and touching that ends the process.
    for length in [5, 40, 63, 70, 200, whole.len() / 3, whole.len() / 2] {
        fs::write(&path, &whole[..length]).expect("written");
        let refusal = load(&path, true, true).err().expect("a refusal");
        assert!(refusal.contains("the library is cut short"), "{length}: {refusal}");
    }
    fs::write(&path, [&whole[..18], &[0xff, 0xff], &whole[20..]].concat()).expect("written");
    let refusal = load(&path, true, true).err().expect("a refusal");
    println!("{refusal}");
    assert!(refusal.contains("cannot load it") && !refusal.contains("/proc/"), "{refusal}");
}

/// Two models of one process: each library is its own, though both come from files without a name.
#[test]
fn libraries_loaded_one_after_the_other_are_not_mixed_up() {
    let (folder, index) = index();
    let known: Vec<(&Entry, Vec<f64>)> = index
        .models
        .iter()
        .map(|entry| {
            let folder = folder.join(&entry.name);
            let model = load(&folder.join("model.so"), true, true).expect(&entry.name);
            let rows = rows(&folder.join("rows.jsonl"));
            (entry, score(model.as_ref(), &rows, rows.len()))
        })
        .collect();
    // The first round's libraries are gone, and their files' numbers free again.
    let all = known.iter().map(|(entry, _)| load(&folder.join(&entry.name).join("model.so"), true, true));
    let all: Vec<Box<dyn Model>> = all.map(|model| model.expect("it was loaded before")).collect();
    for ((entry, scores), model) in known.iter().zip(&all) {
        let rows = rows(&folder.join(&entry.name).join("rows.jsonl"));
        let again = score(model.as_ref(), &rows, rows.len());
        assert!(again.iter().zip(scores).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", entry.name);
    }
}

fn score(model: &dyn Model, rows: &[f64], chunk: usize) -> Vec<f64> {
    let width = model.schema().width();
    let mut scorer = model.scorer().expect("a scorer");
    let mut found = Vec::new();
    for rows in rows.chunks(chunk) {
        #[allow(clippy::cast_possible_truncation, reason = "the predictor narrows rows the same way")]
        let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
        let values = match model.schema().row_type {
            RowType::F32 => Values::F32(&narrow),
            RowType::F64 => Values::F64(rows),
        };
        let mut scores = vec![f64::NAN; rows.len() / width * model.schema().outputs];
        scorer.score(Rows::numbers(values, width), &mut scores).expect("scores");
        found.extend(scores);
    }
    found
}

fn rows(path: &Path) -> Vec<f64> {
    let text = fs::read_to_string(path).expect("rows");
    text.lines()
        .flat_map(|line| serde_json::from_str::<Vec<Option<f64>>>(line).expect("a row"))
        .map(|value| value.unwrap_or(f64::NAN))
        .collect()
}
