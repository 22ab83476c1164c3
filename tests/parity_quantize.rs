//! Rounded features: models of `tests/models_quantize.py` score rows as Python scores those that `NumPy` rounded in the same
//! run of `make test`; forests are left alone; equal rounded rows share a result.
#![cfg(all(feature = "onnx", feature = "python"))]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forebay::batch::BatchPolicy;
use forebay::engine::{Change, InferenceEngine, InferenceEngineConfig, ModelSpec, PredictionRequest};
use forebay::model::{
    self, Backend, LoadOptions, Model, ModelBytes, PythonOptions, Quantization, RowType, Rows, Values,
};
use forebay::placement::Pin;
use forebay::record::Priority;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn models() -> PathBuf {
    root().join("target/models")
}

fn index() -> Vec<Value> {
    let index = fs::read_to_string(models().join("index-quantize.json"));
    let index = index.unwrap_or_else(|error| panic!("{error}; `make test` makes the models first"));
    serde_json::from_str(&index).unwrap()
}

fn options(quantize_inputs: Quantization, calibration: Option<PathBuf>) -> LoadOptions {
    let interpreter = root().join(".venv/test/bin/python");
    let python = PythonOptions { interpreter, processes: NonZeroU32::new(1), ..PythonOptions::default() };
    LoadOptions { quantize_inputs, calibration, python, ..LoadOptions::default() }
}

fn load(path: &Path, options: &LoadOptions) -> Result<Box<dyn Model>, String> {
    let file = ModelBytes::read(path, None).unwrap();
    model::load(&file, options).map_err(|error| error.to_string())
}

fn detail(model: &dyn Model, wanted: &str) -> Option<String> {
    model.schema().details.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
}

/// Lines of JSON arrays; null is NaN.
fn table(path: &Path) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let row =
        |line: &str| -> Vec<f64> { serde_json::from_str::<Vec<Value>>(line).unwrap().iter().map(number).collect() };
    fs::read_to_string(path).unwrap().lines().flat_map(row).collect()
}

fn score(model: &dyn Model, rows: &[f64]) -> Vec<f64> {
    let (width, row_type) = (model.schema().width(), model.schema().row_type);
    #[allow(clippy::cast_possible_truncation, reason = "the nearest f32, as numpy's astype gives it")]
    let narrow: Vec<f32> = rows.iter().map(|&value| value as f32).collect();
    let values = if row_type == RowType::F32 { Values::F32(&narrow) } else { Values::F64(rows) };
    let mut scores = vec![f64::NAN; rows.len() / width * model.schema().outputs];
    model.scorer().unwrap().score(Rows::numbers(values, width), &mut scores).unwrap();
    scores
}

/// The largest difference; of a score above 1 the share.
fn apart(own: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(own.len(), wanted.len());
    let difference = |(own, wanted): (&f64, &f64)| (own - wanted).abs() / wanted.abs().max(1.0);
    own.iter()
        .zip(wanted)
        .map(difference)
        .fold(0.0, |worst, difference| if difference <= worst { worst } else { difference })
}

#[test]
fn scores_are_pythons_of_rows_that_numpy_rounded() {
    let entries = index();
    assert_eq!(entries.len(), 3);
    for entry in entries {
        let (name, tolerance) = (entry["name"].as_str().unwrap(), entry["tolerance"].as_f64().unwrap());
        let folder = models().join(name);
        let (rows, exact) = (table(&folder.join("rows.jsonl")), table(&folder.join("expected_off.jsonl")));
        for (form, told) in [
            (Quantization::Off, None),
            (Quantization::F16, Some("f16: 28 of 28 features are rounded")),
            (Quantization::U8, Some("u8: 27 of 28 features are rounded")),
        ] {
            let calibration = folder.join(entry["calibration"].as_str().unwrap());
            let calibration = Some(calibration).filter(|_| form == Quantization::U8);
            let model = load(&folder.join(entry["file"].as_str().unwrap()), &options(form, calibration)).unwrap();
            assert_eq!(detail(model.as_ref(), "quantization").as_deref(), told, "{name}");
            let calibration = detail(model.as_ref(), "calibration").unwrap_or_default();
            assert_eq!(calibration.contains(": 7000 rows, SHA-256 "), form == Quantization::U8, "{calibration}");
            let expected = table(&folder.join(format!("expected_{}.jsonl", form.as_str())));
            let scores = score(model.as_ref(), &rows);
            let (worst, moved) = (apart(&scores, &expected), apart(&exact, &expected));
            println!("{name} {}: worst difference {worst:e}, rounding moved scores by up to {moved:e}", form.as_str());
            assert!(worst <= tolerance, "{name} {}: differs by {worst:e}", form.as_str());
            assert!(form == Quantization::Off || moved > 100.0 * tolerance, "{name}: nothing was rounded");
            if form == Quantization::Off {
                continue;
            }
            // What is rounded already scores to the same bits.
            let steps = model.preprocessor().unwrap();
            let mut rounded = rows.clone();
            steps.quantizer().unwrap().apply(&mut rounded);
            assert_ne!(rounded, rows);
            let bits = |scores: &[f64]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&score(model.as_ref(), &rounded)), bits(&scores), "{name}");
        }
    }
}

/// Through the worker's own way of a batch: `forebay score`.
#[test]
fn rows_are_rounded_behind_the_steps_and_codes_stay() {
    let folder = models().join("quantize_steps");
    let temp = tempfile::tempdir().unwrap();
    let steps = fs::read_to_string(folder.join("steps.toml")).unwrap();
    let exact = table(&folder.join("expected_off.jsonl"));
    for form in ["off", "f16", "u8"] {
        let toml = temp.path().join("worker.toml");
        let text = format!(
            "[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"a\"]\nreply_topic = \"b\"\n[[model]]\nname = \"m\"\n\
             path = \"{0}/model.skops\"\nenable_quantization = \"{form}\"\ncalibration = \"{0}/calibration.jsonl\"\n{steps}\
             [model.python]\nprocesses = 1\ninterpreter = \"{1}/.venv/test/bin/python\"\n",
            folder.display(),
            root().display()
        );
        fs::write(&toml, text).unwrap();
        let rows = folder.join("rows.jsonl");
        let output = forebay(&["score", "-m", "m", "--config", toml.to_str().unwrap(), rows.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let score = |line: &str| serde_json::from_str::<Value>(line).unwrap()["prediction"][0].as_f64().unwrap();
        let scores: Vec<f64> = String::from_utf8(output.stdout).unwrap().lines().map(score).collect();
        let expected = table(&folder.join(format!("expected_{form}.jsonl")));
        let (worst, moved) = (apart(&scores, &expected), apart(&exact, &expected));
        assert!(worst <= 1e-9, "{form}: differs by {worst:e}");
        assert!(form == "off" || moved > 1e-5, "{form}: nothing was rounded");
    }
}

#[test]
fn trees_are_left_as_they_are_and_a_linear_booster_is_rounded() {
    let higgs = root().join("tests/data/higgs/higgs.model.txt");
    // Nobody reads the rows: there is no such file.
    let rounded = options(Quantization::U8, Some("/nowhere.csv".into()));
    let (plain, native) = (load(&higgs, &LoadOptions::default()).unwrap(), load(&higgs, &rounded).unwrap());
    let told = detail(native.as_ref(), "quantization").unwrap();
    assert_eq!(told, "native: splits read 28 as rank among thresholds, and no score moves");
    assert!(native.preprocessor().is_none() && detail(plain.as_ref(), "quantization").is_none());
    let rows = table(&models().join("quantize_linear/rows.jsonl"));
    assert_eq!(score(plain.as_ref(), &rows), score(native.as_ref(), &rows));
    let library = LoadOptions { backend: Backend::Reference, ..rounded };
    let refusal = load(&higgs, &library).err().unwrap();
    assert!(refusal.contains("`enable_quantization`") && refusal.contains("`compile_model = true`"), "{refusal}");
    // XGBoost compares floats of 32 bits, whatever the model.
    let floats = load(&model_in("fx_squared"), &options(Quantization::F16, None)).unwrap();
    let told = detail(floats.as_ref(), "quantization").unwrap();
    assert!(told.starts_with("native: splits read ") && told.contains("as 32-bit float"), "{told}");
    let linear = load(&model_in("fx_gblinear"), &options(Quantization::F16, None)).unwrap();
    assert!(detail(linear.as_ref(), "quantization").unwrap().starts_with("f16: "));
    let rows = table(&model_in("fx_gblinear").with_file_name("rows.jsonl"));
    let original = load(&model_in("fx_gblinear"), &LoadOptions::default()).unwrap();
    assert_ne!(score(linear.as_ref(), &rows), score(original.as_ref(), &rows));
}

/// The model of a folder of the tests' models, in the first of its formats.
fn model_in(name: &str) -> PathBuf {
    let files = fs::read_dir(models().join(name)).unwrap_or_else(|error| panic!("{name}: {error}; run `make test`"));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.file_stem().is_some_and(|stem| stem == "model"));
    files.sort();
    files.swap_remove(0)
}

#[test]
fn a_calibration_that_will_not_do_is_refused_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let model = models().join("quantize_logistic/model.onnx");
    let path = folder.path().join("rows.jsonl");
    let refusal = |calibration: Option<PathBuf>| {
        let error = load(&model, &options(Quantization::U8, calibration)).err().unwrap();
        assert!(error.starts_with(&format!("model {}: ", model.display())), "{error}");
        error
    };
    assert!(refusal(None).contains("needs `calibration` (--calibration)"));
    let of_file = format!("calibration {}: ", path.display());
    let error = refusal(Some(path.clone()));
    assert!(
        error.contains(&of_file) && error.contains("cannot read the file") && error.contains("name a file"),
        "{error}"
    );
    let row = |first: &str| format!("[{first}{}]\n", ", 0.5".repeat(27));
    for (text, says) in [
        (row("1").repeat(99), "99 rows; give at least 100"),
        (String::new(), "0 rows; give at least 100"),
        (row("1").repeat(50) + "[1, 2]\n", "line 51: "),
        (row("null").repeat(100), "f0 has no value in any row"),
    ] {
        fs::write(&path, text).unwrap();
        let error = refusal(Some(path.clone()));
        assert!(error.contains(&of_file) && error.contains(says), "{error}");
    }
    fs::write(&path, row("1").repeat(99) + &row("2")).unwrap();
    let model = load(&model, &options(Quantization::U8, Some(path))).unwrap();
    assert_eq!(detail(model.as_ref(), "quantization").unwrap(), "u8: 1 of 28 features are rounded", "27 are constant");
}

fn spec(load: LoadOptions) -> ModelSpec {
    ModelSpec {
        name: "m".to_owned(),
        path: models().join("quantize_logistic/model.onnx"),
        load,
        sha256: None,
        batch: BatchPolicy::default(),
        priority_default: Priority::new(2).unwrap(),
    }
}

fn engine(load: LoadOptions) -> InferenceEngine {
    let config = InferenceEngineConfig { num_threads: 1, pin: Pin::Off, ..InferenceEngineConfig::default() };
    let engine = InferenceEngine::new(config).unwrap();
    engine.load_spec(&spec(load)).unwrap();
    engine
}

#[test]
fn rows_that_are_equal_when_rounded_share_a_result() {
    let row = vec![1.0; 28];
    // A half's step at 1 is 2^-10.
    let near: Vec<f64> = row.iter().map(|value| value + 1e-4).collect();
    let far: Vec<f64> = row.iter().map(|value| value + 1e-3).collect();
    let hits = |load: LoadOptions| {
        let engine = engine(load);
        let ask = |row: &[f64]| engine.enqueue_prediction(PredictionRequest::new(row)).unwrap().wait().unwrap();
        let asked = [&row, &near, &far, &row].map(|row| ask(row));
        assert_eq!(asked[0].scores, asked[3].scores);
        let same = asked[0].scores == asked[1].scores;
        (asked.map(|prediction| prediction.metadata.cache_hit), same)
    };
    assert_eq!(hits(options(Quantization::F16, None)), ([false, true, false, true], true));
    assert_eq!(hits(LoadOptions::default()), ([false, false, false, true], false));
    let model = load(&spec(LoadOptions::default()).path, &options(Quantization::F16, None)).unwrap();
    let scores = score(model.as_ref(), &[row, near].concat());
    assert_eq!(scores[..2], scores[2..], "the model itself says so, too");
}

#[test]
fn other_rows_in_the_calibration_are_another_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let write = |most: u32| {
        let row = |place: u32| format!("{:?}\n", vec![f64::from(place.min(most)); 28]);
        fs::write(&path, (0..100).map(row).collect::<String>()).unwrap();
    };
    write(99);
    let engine = engine(options(Quantization::U8, Some(path.clone())));
    assert_eq!(engine.reload("m"), Ok(Change::Unchanged));
    write(50);
    assert_eq!(engine.reload("m"), Ok(Change::Swapped { from: 1, to: 2 }));
    assert_eq!(engine.reload("m"), Ok(Change::Unchanged));
    fs::remove_file(&path).unwrap();
    assert!(engine.reload("m").unwrap_err().to_string().contains("cannot read the file"));
}

fn forebay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(args)
        .env_remove("RUST_LOG")
        .env("COLUMNS", "300")
        .output()
        .unwrap()
}

#[test]
fn the_command_line_rounds_and_says_how_far_scores_move() {
    let folder = models().join("quantize_mlp");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (graph, calibration, rows) = (file("model.onnx"), file("calibration.csv"), file("rows.jsonl"));
    let rounding = ["--quantize-inputs", "u8", "--calibration", &calibration];
    let validate = |expected: &str, extra: &[&str]| {
        let data = ["--data", &rows, "--expected", expected, "--tolerance", "1e-6"];
        let output = forebay(&[&["model", "validate", &graph][..], &rounding, &data, extra].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told, errors) = validate(&file("expected_u8.jsonl"), &[]);
    assert_eq!(code, Some(0), "{told}{errors}");
    for part in [
        "rounded features move scores",
        "500 sample rows: max ",
        "7000 calibration rows: max ",
        "classes changed",
        "values of the sample are out of range",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let (code, told, _) = validate(&file("expected_off.jsonl"), &["--json"]);
    assert_eq!(code, Some(4), "{told}");
    let report: Value = serde_json::from_str(&told).unwrap();
    let drift = &report["input_drift"];
    // At least the rows that the script pushes out.
    assert!(report["inputs_out_of_range"].as_u64().unwrap() >= 500 / 7 * 2, "{told}");
    assert!(drift["sample"]["max"].as_f64().unwrap() > drift["calibration"]["max"].as_f64().unwrap(), "{told}");
    assert_eq!((drift["calibration"]["rows"].as_u64(), &report["drift"]), (Some(7000), &Value::Null));
    let output = forebay(&["model", "inspect", &graph, "--quantize-inputs", "u8"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--calibration"));
    let higgs = root().join("tests/data/higgs/higgs.model.txt");
    let output = forebay(&["model", "validate", higgs.to_str().unwrap(), "--quantize-inputs", "f16"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.contains("native: splits read 28 as rank among thresholds"), "{told}");
}
