//! Python models against Python: every model of `tests/models_python.py` scores what Python said about the same rows in the
//! same run of `make test`, or is refused by name.
#![cfg(feature = "python")]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use forebay::model::{
    self, Backend, Input, LoadOptions, LoadedModel, Method, Model, ModelBytes, ModelType, PythonOptions, RowType, Rows,
    Values,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The largest relative difference that counts as equal.
const TOLERANCE: f64 = 1e-12;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models")
}

fn index(part: &str) -> Vec<Value> {
    let index = fs::read_to_string(models().join("index-python.json"));
    let index = index.unwrap_or_else(|error| panic!("{error}; `make test` makes the models first"));
    let index: Value = serde_json::from_str(&index).unwrap();
    index[part].as_array().unwrap().clone()
}

fn python() -> PythonOptions {
    let interpreter = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/test/bin/python");
    PythonOptions { interpreter, processes: std::num::NonZeroU32::new(1), ..PythonOptions::default() }
}

/// The options of an entry, in the config's words.
fn options(entry: &Value) -> PythonOptions {
    let texts = |key: &str| -> Vec<String> {
        let list = entry["options"][key].as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    PythonOptions {
        method: match entry["options"]["method"].as_str() {
            None => Method::Auto,
            Some("predict") => Method::Predict,
            Some("predict_proba") => Method::PredictProba,
            Some(other) => panic!("{other}"),
        },
        input: match entry["options"]["input"].as_str() {
            None => Input::Auto,
            Some("dataframe") => Input::DataFrame,
            Some(other) => panic!("{other}"),
        },
        row_type: if entry["row_type"] == "f32" { RowType::F32 } else { RowType::F64 },
        features: texts("features"),
        class: entry["options"]["class"].as_str().map(str::to_owned),
        import_paths: texts("import_paths").into_iter().map(PathBuf::from).collect(),
        ..python()
    }
}

/// Reads a file, pinned to what it holds now.
fn pinned(path: &Path) -> ModelBytes {
    let pin: [u8; 32] = Sha256::digest(fs::read(path).unwrap()).into();
    ModelBytes::read(path, Some(&pin)).unwrap()
}

fn load(path: &Path, trusted: bool, python: PythonOptions) -> Result<Box<dyn Model>, String> {
    let file = if trusted { pinned(path) } else { ModelBytes::read(path, None).unwrap() };
    // The type of what is no estimator and no source must be stated, as in a config.
    let model_type = python.class.as_ref().map(|_| ModelType::Python);
    let options = LoadOptions { model_type, trusted, python, ..LoadOptions::default() };
    model::load(&file, &options).map_err(|error| error.to_string())
}

/// Lines of JSON arrays; null is NaN.
fn table(path: &Path) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let row = |line: &str| serde_json::from_str::<Vec<Value>>(line).unwrap().iter().map(number).collect();
    fs::read_to_string(path).unwrap().lines().flat_map(|line| -> Vec<f64> { row(line) }).collect()
}

#[test]
fn every_model_scores_what_python_says() {
    let models_listed = index("models");
    assert!(models_listed.len() >= 14);
    for entry in models_listed {
        let name = entry["name"].as_str().unwrap();
        let path = models().join(entry["file"].as_str().unwrap());
        let model = load(&path, entry["trusted"] == true, options(&entry)).unwrap();
        let schema = model.schema();
        println!("{name}: {:?}", schema.details);
        let (rows, expected) =
            (table(&models().join(name).join("rows.jsonl")), table(&models().join(name).join("expected.jsonl")));
        let width = schema.width();
        assert_eq!(schema.model_type.as_str(), entry["type"], "{name}");
        assert_eq!(width as u64, entry["features"].as_u64().unwrap(), "{name}");
        assert_eq!(schema.outputs as u64, entry["outputs"].as_u64().unwrap(), "{name}");
        let missing =
            schema.details.iter().find(|(key, _)| key == "missing values").map(|(_, value)| value == "scored");
        if entry["type"] == "sklearn" {
            assert_eq!(missing.unwrap(), entry["missing"] == true || name.contains("forest"), "{name}");
        }
        #[allow(clippy::cast_possible_truncation, reason = "the nearest f32, as numpy's astype gives it")]
        let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
        let values = match schema.row_type {
            RowType::F32 => Values::F32(&narrow),
            RowType::F64 => Values::F64(&rows),
        };
        // It passes its validation, with its own notion of equality.
        let loaded = LoadedModel::new(name, 1, "", model.as_ref(), 1).unwrap();
        let mut scores = vec![f64::NAN; expected.len()];
        loaded.scorer(0).score(Rows::numbers(values, width), &mut scores).unwrap();
        let apart = |(own, expected): (&f64, &f64)| (own - expected).abs() / expected.abs().max(1.0);
        let worst = scores.iter().zip(&expected).map(apart).fold(0.0_f64, |a, b| if b <= a { a } else { b });
        let other_bits = scores.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        println!("{name}: {} scores, {other_bits} with other bits, worst difference {worst:e}", scores.len());
        assert!(worst <= TOLERANCE, "{name}: differs by {worst:e}");
    }
}

#[test]
fn what_cannot_be_scored_is_refused_by_name() {
    let refused = index("refused");
    assert!(refused.len() >= 20);
    for entry in refused {
        let path = models().join(entry["file"].as_str().unwrap());
        let is_skops = path.extension().is_some_and(|ending| ending == "skops");
        let refusal = load(&path, !is_skops, options(&entry)).err();
        let refusal = refusal.unwrap_or_else(|| panic!("{} was not refused", path.display()));
        println!("{refusal}");
        assert!(refusal.starts_with(&format!("model {}: ", path.display())), "{refusal}");
        for words in entry["says"].as_array().unwrap() {
            assert!(refusal.contains(words.as_str().unwrap()), "{refusal}: does not say {words}");
        }
    }
}

#[test]
fn what_runs_code_needs_trust_and_a_pin() {
    for file in ["python_linear/model.pkl", "python_logistic/model.joblib", "python_function/model.py"] {
        let path = models().join(file);
        let read = |pin: bool| if pin { pinned(&path) } else { ModelBytes::read(&path, None).unwrap() };
        for (trusted, pin, says) in [
            (false, false, "`trusted = true` and `sha256` are missing"),
            (true, false, "`sha256` is missing"),
            (false, true, "`trusted = true` is missing"),
        ] {
            let options = LoadOptions { trusted, python: python(), ..LoadOptions::default() };
            let refusal = model::load(&read(pin), &options).err().unwrap().to_string();
            assert!(refusal.contains(says) && refusal.contains(&read(true).sha256), "{refusal}");
        }
    }
}

#[test]
fn the_bytes_that_were_hashed_are_those_that_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.py");
    let source = |score: u32| format!("n_features = 1\ndef predict(rows): return rows[:, 0] * 0 + {score}\n");
    fs::write(&path, source(1)).unwrap();
    let file = pinned(&path);
    fs::write(&path, source(2)).unwrap();
    let options = LoadOptions { trusted: true, python: python(), ..LoadOptions::default() };
    let model = model::load(&file, &options).unwrap();
    let mut score = [0.0];
    // The second scorer has a process that was started later.
    for _ in 0..2 {
        model.scorer().unwrap().score(Rows::numbers(Values::F64(&[0.0]), 1), &mut score).unwrap();
        assert_eq!(score.map(|score| score.to_string()), ["1"]);
    }
}

#[test]
fn an_interpreter_that_cannot_run_the_model_is_an_error_with_its_remedy() {
    let path = models().join("python_linear/model.pkl");
    for (interpreter, says) in [("/nonexistent/python3", "No such file"), ("/bin/false", "exit status: 1")] {
        let options = PythonOptions { interpreter: interpreter.into(), ..PythonOptions::default() };
        let refusal = load(&path, true, options).err().unwrap();
        println!("{refusal}");
        for words in [interpreter, says, "name another `interpreter` in [model.python]"] {
            assert!(refusal.contains(words), "{refusal}: does not say {words}");
        }
    }
}

#[test]
fn another_version_of_scikit_learn_is_a_warning_that_inspect_shows() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(models().join("python_linear/model.pkl")).unwrap();
    let versions = b"_sklearn_version";
    let at = bytes.windows(versions.len()).position(|part| part == versions).unwrap() + versions.len();
    // The version follows as text with its length before it: another one of the same length.
    let digit = at + bytes[at..].iter().position(|&byte| byte == b'.').unwrap() + 1;
    let mut other = bytes;
    other[digit] = if other[digit] == b'1' { b'2' } else { b'1' };
    let path = folder.path().join("model.pkl");
    fs::write(&path, other).unwrap();
    let model = load(&path, true, python()).unwrap();
    let details = &model.schema().details;
    let warned = |(key, value): &(String, String)| key == "warning" && value.contains("InconsistentVersionWarning");
    assert!(details.iter().any(warned), "{details:?}");
}

/// How far a converted estimator may be from Python on held-out rows: what ONNX holds as floats.
const CONVERTED: f64 = 1e-6;

#[test]
fn a_converted_estimator_scores_what_python_says_or_is_refused() {
    let mut converted = 0;
    for entry in index("models").iter().filter(|entry| entry["type"] == "sklearn") {
        let name = entry["name"].as_str().unwrap();
        let file = pinned(&models().join(entry["file"].as_str().unwrap()));
        let options =
            LoadOptions { trusted: true, python: options(entry), ..LoadOptions::of_backend(Backend::Compiled) };
        let model = match model::load(&file, &options) {
            Ok(model) => model,
            Err(refusal) => {
                let refusal = refusal.to_string();
                println!("{refusal}");
                assert!(refusal.contains("`compile_model = false`"), "{refusal}");
                // A transformer of somebody's own has no ONNX form.
                assert!(["python_columns", "python_hist_boosting", "python_svc"].contains(&name), "{refusal}");
                continue;
            }
        };
        converted += 1;
        let schema = model.schema();
        println!("{name}: {:?}", schema.details);
        assert_eq!(
            (schema.model_type, schema.outputs as u64),
            (ModelType::Sklearn, entry["outputs"].as_u64().unwrap())
        );
        assert!(model.runner().is_none(), "{name}: no process scores it");
        let (rows, expected) =
            (table(&models().join(name).join("rows.jsonl")), table(&models().join(name).join("expected.jsonl")));
        #[allow(clippy::cast_possible_truncation, reason = "the nearest f32, as the engine makes it")]
        let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
        let values = match schema.row_type {
            RowType::F32 => Values::F32(&narrow),
            RowType::F64 => Values::F64(&rows),
        };
        let mut scores = vec![f64::NAN; expected.len()];
        model.scorer().unwrap().score(Rows::numbers(values, schema.width()), &mut scores).unwrap();
        let apart = |(own, expected): (&f64, &f64)| (own - expected).abs() / expected.abs().max(1.0);
        let worst = scores.iter().zip(&expected).map(apart).fold(0.0_f64, |a, b| if b <= a { a } else { b });
        println!("{name}: converted, worst difference {worst:e}, compiled {}", model.is_compiled());
        assert!(worst <= CONVERTED, "{name}: differs by {worst:e}");
    }
    assert!(converted >= 8, "{converted} were converted");
}

/// An estimator whose `predict` is not what its parameters say: the graph is made of those.
#[test]
fn a_graph_that_scores_otherwise_is_refused_with_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pkl");
    let script = "import pickle, sys, types, numpy as np\n\
                  from sklearn.linear_model import LinearRegression\n\
                  m = LinearRegression().fit(np.arange(12.0).reshape(6, 2) ** 2, np.arange(6.0))\n\
                  import functools\n\
                  m.predict = functools.partial(np.dot, b=np.array([7.0, 8.0]))\n\
                  open(sys.argv[1], 'wb').write(pickle.dumps(m))\n";
    let made = std::process::Command::new(python().interpreter).args(["-c", script]).arg(&path).status().unwrap();
    assert!(made.success());
    let options = LoadOptions { trusted: true, python: python(), ..LoadOptions::of_backend(Backend::Compiled) };
    let refusal = model::load(&pinned(&path), &options).err().unwrap().to_string();
    println!("{refusal}");
    for words in
        ["as an ONNX graph it scores otherwise", "largest difference", "Python gives", "`compile_model = false`"]
    {
        assert!(refusal.contains(words), "{refusal}: does not say {words}");
    }
}
