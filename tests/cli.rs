//! The binary as a user runs it: what each subcommand prints, what it says when something is wrong, and its exit code.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

#[path = "cli/oip.rs"]
mod oip;
#[path = "cli/topology.rs"]
mod topology;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use forebay::admin::{self, Health};
use forebay::engine::{InferenceEngine, InferenceEngineConfig};
use forebay::placement::Pin;
use serde_json::Value;
use tempfile::TempDir;

/// From Python's own scores: this far, relative and absolute together, `|a - b| <= TOLERANCE * (1 + |b|)`.
const TOLERANCE: f64 = 1e-12;
const TEST_ROWS: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn higgs(name: &str) -> PathBuf {
    root().join("tests/data/higgs").join(name)
}

fn forebay<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).env_remove("RUST_LOG").env("COLUMNS", "200");
    command
}

/// What a run printed.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Ended in an error that was printed once, and holds all of these.
    #[track_caller]
    fn expect_error(self, code: i32, parts: &[&str]) -> Self {
        let ran = self.expect(code);
        assert!(ran.stderr.starts_with("forebay: "), "{}", ran.stderr);
        assert_eq!(ran.stderr.matches("forebay: ").count(), 1, "printed once: {}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{part:?} in: {}", ran.stderr);
        }
        ran
    }

    fn json_lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }
}

fn run(command: &mut Command) -> Ran {
    Ran::of(command.stdin(Stdio::null()).output().expect("the binary starts"))
}

fn run_with(command: &mut Command, input: &str) -> Ran {
    let (stdin, output) = (Stdio::piped(), Stdio::piped());
    let mut child = command.stdin(stdin).stdout(output).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    // Its own thread: the child may fill its output before it has read its input.
    let feeding = std::thread::Builder::new().name("feed".to_owned()).spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("the child ends");
    let _ = feeding.unwrap().join();
    Ran::of(output)
}

/// Every LightGBM model is scored by both.
const BACKENDS: [&str; 2] = ["compiled", "reference"];

fn score(args: &[&str]) -> Command {
    let model = higgs("higgs.model.txt");
    let mut command = forebay(["score", "--model", model.to_str().unwrap()]);
    command.args(args);
    command
}

// ---- the scores themselves ----------------------------------------------------------------------------------------

fn expected_scores() -> Vec<f64> {
    let text = fs::read_to_string(higgs("higgs.scores.txt")).unwrap();
    text.lines().take(TEST_ROWS).map(|line| line.parse().unwrap()).collect()
}

fn feature_names() -> Vec<String> {
    let model = fs::read_to_string(higgs("higgs.model.txt")).unwrap();
    let names = model.lines().find_map(|line| line.strip_prefix("feature_names=")).unwrap();
    names.split(' ').map(str::to_owned).collect()
}

/// The test rows as texts, without the label.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(higgs("higgs.test.tsv")).unwrap();
    text.lines().map(|line| line.split('\t').skip(1).map(str::to_owned).collect()).collect()
}

#[track_caller]
fn assert_bits(got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (row, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert_eq!(got.to_bits(), wanted.to_bits(), "row {row}: {got:?}, Python says {wanted:?}");
    }
}

/// Also that replies come in the order of the input, by their ids.
fn predictions(ran: &Ran, first_line: usize) -> Vec<f64> {
    let replies = ran.json_lines();
    let one = |(index, reply): (usize, &Value)| {
        assert_eq!(reply["id"], format!("line/{}", index + first_line));
        assert_eq!(reply["success"], true, "{reply}");
        reply["prediction"][0].as_f64().unwrap()
    };
    replies.iter().enumerate().map(one).collect()
}

#[test]
fn a_tsv_scores_as_python_does_to_the_bit() {
    for backend in BACKENDS {
        let options = ["--no-header", "--skip-columns", "1", "--backend", backend];
        let ran = run(score(&options).arg(higgs("higgs.test.tsv"))).expect(0);
        assert_bits(&predictions(&ran, 1), &expected_scores());
        assert!(ran.stderr.starts_with("forebay: 500 rows, 0 failed, "), "{}", ran.stderr);
    }
}

#[test]
fn a_csv_with_shuffled_columns_does_too() {
    let (names, rows) = (feature_names(), rows());
    // Every fifth column, and one that is no feature: 5 and 28 have no common divisor.
    let order: Vec<usize> = (0..names.len()).map(|place| place * 5 % names.len()).collect();
    let mut text = String::from("\"who, and why\"");
    for &column in &order {
        write!(text, ",{}", names[column]).unwrap();
    }
    for (number, row) in rows.iter().enumerate() {
        write!(text, "\r\n\"no \"\"{number}\"\"\"").unwrap();
        for &column in &order {
            write!(text, ",{}", row[column]).unwrap();
        }
    }
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("rows.csv"), folder.path().join("scores.csv"));
    fs::write(&input, text).unwrap();
    let ran = run(score(&["--output", "csv", "--batch-size", "7", "-o"]).arg(&output).arg(&input)).expect(0);
    assert_eq!(ran.stdout, "");
    let table = fs::read_to_string(output).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("prediction,error"));
    let scores: Vec<f64> = lines.map(|line| line.strip_suffix(',').unwrap().parse().unwrap()).collect();
    assert_bits(&scores, &expected_scores());
}

#[test]
fn json_lines_through_stdin_do_too_as_arrays_and_as_objects() {
    let (names, rows) = (feature_names(), rows());
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        match number % 3 {
            0 => writeln!(text, "[{}]", row.join(",")).unwrap(),
            1 => writeln!(text, "{{\"features\": [{}]}}", row.join(", ")).unwrap(),
            _ => {
                let cells = names.iter().zip(row).rev().map(|(name, cell)| format!("\"{name}\":{cell}"));
                writeln!(text, "{{\"features\":{{{}}}}}", cells.collect::<Vec<_>>().join(",")).unwrap();
            }
        }
    }
    for threads in ["0", "1", "3"] {
        let ran = run_with(&mut score(&["--threads", threads, "--batch-size", "3"]), &text).expect(0);
        assert_bits(&predictions(&ran, 1), &expected_scores());
    }
}

// ---- every model of tests/models.py against Python -----------------------------------------------------------------

/// The folders of target/models, by name.
fn models() -> Vec<(String, PathBuf)> {
    let folder = root().join("target/models");
    let index = fs::read_to_string(folder.join("index.json"));
    let index =
        index.unwrap_or_else(|error| panic!("{}: {error}; `make test` makes the models first", folder.display()));
    let index: Vec<Value> = serde_json::from_str(&index).unwrap();
    let name = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
    index.iter().map(|entry| (name(entry), folder.join(name(entry)))).collect()
}

#[test]
fn every_model_scores_what_python_says() {
    let models = models();
    assert!(models.len() > 20, "{} models", models.len());
    for ((name, folder), backend) in
        models.into_iter().flat_map(|model| BACKENDS.map(|backend| (model.clone(), backend)))
    {
        let (model, name) = (folder.join("model.txt"), format!("{name}, {backend}"));
        let rows = folder.join("rows.jsonl");
        let ran = run(forebay(["score", "--backend", backend, "--model"]).arg(&model).arg(rows)).expect(0);
        let expected = fs::read_to_string(folder.join("expected.jsonl")).unwrap();
        let expected: Vec<Vec<f64>> = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let replies = ran.json_lines();
        assert_eq!(replies.len(), expected.len(), "{name}");
        for (row, (reply, wanted)) in replies.iter().zip(&expected).enumerate() {
            let got: Vec<f64> = serde_json::from_value(reply["prediction"].clone()).unwrap();
            assert_eq!(got.len(), wanted.len(), "{name}, row {row}");
            let near = |(got, wanted): (&f64, &f64)| (got - wanted).abs() <= TOLERANCE * (1.0 + wanted.abs());
            assert!(got.iter().zip(wanted).all(near), "{name}, row {row}: {got:?}, Python says {wanted:?}");
        }
    }
}

#[test]
fn every_model_passes_its_validation_with_the_rows_beside_it() {
    for ((name, folder), (backend, checks)) in
        models().into_iter().flat_map(|model| [("compiled", 5), ("reference", 4)].map(|asked| (model.clone(), asked)))
    {
        let validate = ["model", "validate", "--json", "--backend", backend];
        let ran = run(forebay(validate).arg(folder.join("model.txt"))).expect(0);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["passed"], true, "{name}: {report}");
        assert_eq!(report["checks"].as_array().unwrap().len(), checks, "{name}: with expected outputs");
        assert_eq!(report["sample"]["data"], folder.join("rows.jsonl").to_str().unwrap());
        if backend == "compiled" && cfg!(feature = "lightgbm") {
            let check = &report["checks"][4];
            assert_eq!(check["name"], "compiled = reference");
            assert!(check["detail"].as_str().unwrap().contains("ulp apart"), "{name}: {check}");
        }
    }
}

// ---- score: what goes wrong ------------------------------------------------------------------------------------------

#[test]
fn a_bad_line_gets_its_error_reply_and_its_neighbours_their_scores() {
    let row = rows()[0].join(",");
    let bad = "not JSON\n[1,2]\n{\"features\":{\"nope\":1}}\n{\"id\":7,\"model\":\"x\",\"features\":[1]}\n\n[Infinity]\n{\"features\":[\"abc\"]}";
    let text = format!("[{row}]\n{bad}\n[{row}]\n");
    let ran = run_with(&mut score(&[]), &text).expect(1);
    let replies = ran.json_lines();
    assert_eq!(replies.len(), 9);
    let wanted = expected_scores()[0];
    for (index, reply) in replies.iter().enumerate() {
        let good = index == 0 || index == 8;
        assert_eq!(reply["success"], good, "{reply}");
        assert_eq!(reply["id"], if index == 4 { Value::from(7) } else { format!("line/{}", index + 1).into() });
        if good {
            assert_eq!(reply["prediction"][0].as_f64().unwrap().to_bits(), wanted.to_bits());
        } else {
            assert_eq!(reply["error"]["code"], if index == 4 { "unknown_model" } else { "bad_request" });
        }
    }
    assert!(ran.stderr.starts_with("forebay: 9 rows, 7 failed, "), "{}", ran.stderr);
}

#[test]
fn a_bad_cell_names_its_row_and_column_in_the_table_of_scores() {
    let (names, rows) = (feature_names().join("\t"), rows());
    let mut second = rows[1].clone();
    second[2] = "abc \"x\"".to_owned();
    let (first, second, short) = (rows[0].join("\t"), second.join("\t"), rows[1][1..].join("\t"));
    let text = format!("{names}\n{first}\n{second}\n{short}\n{first}\n");
    let ran = run_with(&mut score(&["--format", "auto", "--output", "csv"]), &text).expect(1);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let score = format!("{:?},", expected_scores()[0]);
    assert_eq!((lines.len(), lines[0], lines[1], lines[4]), (5, "prediction,error", score.as_str(), score.as_str()));
    assert!(
        lines[2].starts_with(",\"line 3, column 3 (lepton_phi): got \"\"abc \\\"\"x\\\"\"\"\", wants"),
        "{}",
        lines[2]
    );
    assert!(lines[3].starts_with(",\"line 4: got 27 columns, wants 28 (without m_wwbb)"), "{}", lines[3]);
    assert!(ran.stderr.starts_with("forebay: 4 rows, 2 failed, "), "{}", ran.stderr);
}

#[test]
fn multi_class_and_lists_of_rows_have_a_column_and_a_line_each() {
    let (_, folder) = models().into_iter().find(|(name, _)| name == "multiclass").unwrap();
    let rows = fs::read_to_string(folder.join("rows.jsonl")).unwrap();
    let two: Vec<&str> = rows.lines().take(2).collect();
    let text = format!("[{}]\n[1]\n", two.join(","));
    let mut command = forebay(["score", "--output", "csv", "--model"]);
    let ran = run_with(command.arg(folder.join("model.txt")), &text).expect(1);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "prediction_0,prediction_1,prediction_2,error");
    assert_eq!(lines.len(), 4);
    assert!(lines[1..3].iter().all(|line| line.split(',').count() == 4 && line.ends_with(',')), "{lines:?}");
    assert!(lines[3].starts_with(",,,\"features: "), "{}", lines[3]);
}

#[test]
fn a_header_that_does_not_fit_and_a_wrong_use_end_with_2() {
    let tsv = higgs("higgs.test.tsv");
    let tsv = tsv.to_str().unwrap();
    run(&mut score(&[tsv])).expect_error(2, &["higgs.test.tsv", "--no-header"]);
    run(&mut score(&[tsv, "--columns", "a,b"])).expect_error(2, &["names 2 columns, the model has 28 features"]);
    run(&mut score(&[tsv, "--columns", "1", "--skip-columns", "1"])).expect_error(2, &["cannot be used with"]);
    run(&mut score(&[tsv, "--format", "jsonl", "--no-header"])).expect_error(2, &["--format tsv"]);
    run(&mut score(&[tsv, "--model-type", "abacus"])).expect_error(2, &["--model-type", "lightgbm, onnx, python"]);
    run(&mut score(&[tsv, "--batch-size", "0"])).expect_error(2, &["--batch-size"]);
    run(&mut score(&[root().join("tests").to_str().unwrap()])).expect_error(2, &["is a folder"]);
    run(&mut score(&["--log-level", "a=b=c"])).expect_error(2, &["--log-level"]);
    run(&mut score(&["nowhere.csv"])).expect_error(1, &["cannot read nowhere.csv", "No such file"]);
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("rows.jsonl");
    fs::write(&input, "[1]\n").unwrap();
    run(score(&["-o"]).arg(&input).arg(&input)).expect_error(2, &["is the input"]);
    assert_eq!(fs::read_to_string(&input).unwrap(), "[1]\n");
}

#[test]
fn an_empty_input_gives_an_empty_output() {
    let ran = run(&mut score(&[])).expect(0);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.starts_with("forebay: 0 rows, 0 failed, "), "{}", ran.stderr);
}

#[test]
fn an_output_that_cannot_be_written_is_told_and_one_that_was_closed_is_not() {
    let row = format!("[{}]\n", rows()[0].join(","));
    let text = row.repeat(20_000);
    run_with(&mut score(&["-o", "/dev/full"]), &text).expect_error(1, &["cannot write the scores", "No space left"]);

    let mut child = score(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    // The child stops reading when it finds nobody there.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let ran = Ran::of(child.wait_with_output().unwrap()).expect(0);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_line_through_a_pipe_is_answered_before_the_next_is_sent() {
    let row = format!("[{}]\n", rows()[0].join(","));
    let mut child = score(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut replies = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 1..=3 {
        stdin.write_all(row.as_bytes()).unwrap();
        let reply = replies.next().unwrap().unwrap();
        assert!(reply.starts_with(&format!("{{\"id\":\"line/{number}\",\"success\":true")), "{reply}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn metadata_is_printed_when_asked_for() {
    let row = format!("[{}]", rows()[0].join(","));
    let reply = |level: &str| {
        let ran = run_with(&mut score(&["--metadata", level, "--name", "fraud"]), &row).expect(0);
        ran.json_lines().remove(0)
    };
    assert!(reply("none").get("metadata").is_none());
    assert_eq!(reply("short")["metadata"]["model"], "fraud");
    assert!(reply("full")["metadata"]["prediction_hash"].is_string());
    assert_eq!(reply("full")["metadata"]["compiled"], true);
}

// ---- model -------------------------------------------------------------------------------------------------------------

#[test]
fn inspect_shows_what_a_model_file_holds() {
    let model = higgs("higgs.model.txt");
    let ran = run(forebay(["model", "inspect"]).arg(&model)).expect(0);
    for part in ["lightgbm", "28: lepton_pT, ", "… (all with --json)", "trees", "100", "347700", "compiled"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let ran = run(forebay(["model", "inspect", "--json"]).arg(&model)).expect(0);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["features"].as_array().unwrap().len(), 28);
    assert_eq!((&json["outputs"], &json["bytes"]), (&1.into(), &347_700.into()));
    assert_eq!((json["type"].as_str(), json["details"]["trees"].as_str()), (Some("lightgbm"), Some("100")));
}

#[test]
fn a_compiled_form_scores_the_same_and_loads_like_any_model() {
    let folder = tempfile::tempdir().unwrap();
    let (form, toml) = (folder.path().join("higgs.compiled"), folder.path().join("worker.toml"));
    let model = higgs("higgs.model.txt");
    let (form_text, model_text) = (form.to_str().unwrap(), model.to_str().unwrap());
    let compiled = run(&mut forebay(["model", "compile", model_text, "-o", form_text, "--json"])).expect(0);
    let report: Value = serde_json::from_str(&compiled.stdout).unwrap();
    assert_eq!((&report["check"]["passed"], &report["output"]), (&Value::Bool(true), &Value::from(form_text)));
    let inspected = run(&mut forebay(["model", "inspect", form_text, "--json"])).expect(0);
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!((&inspected["type"], &inspected["sha256"]), (&Value::from("lightgbm"), &report["output_sha256"]));
    assert_eq!(inspected["details"]["compiled from"], report["sha256"]);
    let rows = higgs("higgs.test.tsv");
    let table = ["--no-header", "--skip-columns", "1", rows.to_str().unwrap()];
    let scored = run(forebay(["score", "--model", form_text]).args(table)).expect(0);
    assert_bits(&predictions(&scored, 1), &expected_scores());

    // The same through a config: its pin counts, and so does its name.
    let sha256 = report["output_sha256"].as_str().unwrap();
    let config = |sha256: &str| {
        let text = format!(
            "[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"a\"]\nreply_topic = \"b\"\n\
             [[model]]\nname = \"fraud\"\npath = \"higgs.compiled\"\nsha256 = \"{sha256}\"\n"
        );
        fs::write(&toml, text).unwrap();
    };
    let validate = |name: &str| run(&mut forebay(["model", "validate", name, "--config", toml.to_str().unwrap()]));
    config(sha256);
    validate("fraud").expect(0);
    validate("frauds").expect_error(2, &["no [[model]] has the name", "there is fraud"]);
    config(&sha256.replace(|digit: char| digit != '0', "0"));
    validate("fraud").expect_error(4, &["SHA-256 is", "the config pins 0000"]);

    let again = ["model", "compile", form_text, "-o", form_text];
    run(&mut forebay(again)).expect_error(4, &["compiled already"]);
    let mut bytes = fs::read(&form).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&form, bytes).unwrap();
    run(&mut forebay(["model", "inspect", form_text])).expect_error(4, &["damaged", "forebay model compile"]);
    run(&mut forebay(["model", "inspect", model_text, "--trusted"])).expect(2);
}

#[test]
fn an_estimator_is_compiled_to_a_graph_that_needs_no_python() {
    let folder = tempfile::tempdir().unwrap();
    let (graph, toml) = (folder.path().join("m.onnx"), folder.path().join("worker.toml"));
    let source = root().join("target/models/python_forest");
    let (path, python) = (source.join("model.skops"), root().join(".venv/test/bin/python"));
    // Trees are among what skops does not trust.
    let sha256 = digest(&path);
    let text = format!(
        "[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"a\"]\nreply_topic = \"b\"\n\
         [[model]]\nname = \"m\"\npath = \"{}\"\ntrusted = true\nsha256 = \"{sha256}\"\n\
         [model.python]\ninterpreter = \"{}\"\n",
        path.display(),
        python.display()
    );
    fs::write(&toml, text).unwrap();
    let (graph_text, toml_text) = (graph.to_str().unwrap(), toml.to_str().unwrap());
    run(&mut forebay(["model", "compile", "m", "--config", toml_text, "-o", graph_text])).expect(0);
    let rows = source.join("rows.jsonl");
    let scored = run(&mut forebay(["score", "--model", graph_text, rows.to_str().unwrap()])).expect(0);
    let expected = fs::read_to_string(source.join("expected.jsonl")).unwrap();
    let mut count = 0;
    for (reply, wanted) in scored.json_lines().iter().zip(expected.lines()) {
        let wanted: Vec<f64> = serde_json::from_str(wanted).unwrap();
        let got: Vec<f64> = serde_json::from_value(reply["prediction"].clone()).unwrap_or_else(|_| panic!("{reply}"));
        assert_eq!(got.len(), wanted.len());
        // A graph's leaves are floats.
        assert!(got.iter().zip(&wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-6), "{reply}: {wanted:?}");
        count += 1;
    }
    assert_eq!(count, expected.lines().count());
}

#[test]
fn steps_before_a_model_give_what_scikit_learns_transformers_give() {
    let folder = tempfile::tempdir().unwrap();
    let toml = folder.path().join("worker.toml");
    for name in ["preprocess_standard", "preprocess_minmax"] {
        let source = root().join("target/models").join(name);
        let steps = fs::read_to_string(source.join("steps.toml")).unwrap_or_else(|_| panic!("{name}: run `make test`"));
        let config = |steps: &str| {
            let path = source.join("model.txt");
            let text = format!(
                "[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"a\"]\nreply_topic = \"b\"\n\
                 [[model]]\nname = \"m\"\npath = \"{}\"\n{steps}",
                path.display()
            );
            fs::write(&toml, text).unwrap();
        };
        let validate = || run(&mut forebay(["model", "validate", "m", "--config", toml.to_str().unwrap()]));
        config(&steps);
        let told = validate().expect(0).stdout;
        assert!(told.contains("expected outputs") && told.contains("500 rows"), "{told}");
        config(&steps.replace("max = [2.5]", "max = [0.5]"));
        let told = validate().expect(4).stdout;
        assert!(told.contains("FAILED  expected outputs"), "{told}");
        config(&steps.replace("\"n1\"", "\"n9\""));
        validate().expect_error(4, &["preprocess[0]", "\"n9\"", "did you mean"]);
        // A record that the steps cannot take is refused by name, and its neighbours are scored.
        config(&steps.replace("unknown = -1", "unknown = \"error\""));
        let rows = "[1, null, 2, 3, \"red\", 10]\n[1, 1, 2, 3, \"blue\", 10]\n[1, 1, 2, 3, \"red\", 11]\n";
        let scored = run_with(&mut forebay(["score", "-m", "m", "--config", toml.to_str().unwrap(), "-"]), rows);
        let replies = scored.expect(1).json_lines();
        let code = |reply: &Value| reply["error"]["code"].as_str().map(str::to_owned);
        let codes: Vec<_> = replies.iter().map(code).collect();
        assert_eq!(codes, [None, Some("bad_request".to_owned()), Some("bad_request".to_owned())]);
        let message = replies[1]["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("features[4]: colour: got \"blue\", an unknown category"), "{message}");
    }
}

fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_is_no_model_ends_with_4_and_its_reason() {
    let folder = TempDir::new().unwrap();
    let broken = folder.path().join("broken.txt");
    let whole = fs::read_to_string(higgs("higgs.model.txt")).unwrap();
    fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    for command in [&["model", "inspect"][..], &["model", "validate"], &["score", "--model"]] {
        for backend in BACKENDS {
            run(forebay(command).arg(&broken).args(["--backend", backend]))
                .expect_error(4, &["broken.txt", "cut short"]);
        }
        run(forebay(command).arg(root().join("Cargo.toml"))).expect_error(4, &["Cargo.toml", "cannot tell what kind"]);
        run(forebay(command).arg("nowhere.txt")).expect_error(4, &["nowhere.txt", "cannot read the file"]);
    }
}

#[test]
fn validate_takes_a_sample_and_fails_when_it_is_not_met() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("fraud.txt");
    fs::copy(higgs("higgs.model.txt"), &model).unwrap();
    let expected = folder.path().join("out.jsonl");
    let scores = expected_scores();
    let write = |path: &Path, scores: &[f64]| {
        let lines = scores.iter().enumerate();
        let text: String = lines
            .map(|(row, score)| if row % 2 == 0 { format!("{score:?}\n") } else { format!("[{score:?}]\n") })
            .collect();
        fs::write(path, text).unwrap();
    };
    write(&expected, &scores);
    let validate = |tolerance: &str| {
        let data = higgs("higgs.test.tsv");
        let mut command =
            forebay(["model", "validate", "--no-header", "--skip-columns", "1", "--tolerance", tolerance]);
        run(command.arg(&model).arg("--data").arg(data).arg("--expected").arg(&expected))
    };
    let ran = validate("0").expect(0);
    assert!(ran.stdout.contains("500 rows, largest difference 0e0") && ran.stdout.contains("valid"), "{}", ran.stdout);

    let mut off = scores.clone();
    off[3] += 1e-6;
    write(&expected, &off);
    let ran = validate("1e-12").expect(4);
    assert!(ran.stdout.contains("FAILED") && ran.stdout.contains("(row 3)"), "{}", ran.stdout);
    validate("1e-5").expect(0);
    write(&expected, &off[1..]);
    validate("1e-5").expect_error(1, &["499 lines of outputs", "500 rows"]);
    validate("-1").expect(2);

    // Beside the model, by its name.
    let row = format!("[{}]\n", rows()[0].join(","));
    fs::write(folder.path().join("fraud.rows.jsonl"), &row).unwrap();
    write(&folder.path().join("fraud.expected.jsonl"), &[0.0]);
    let ran = run(forebay(["model", "validate"]).arg(&model)).expect(4);
    assert!(ran.stdout.contains("found") && ran.stdout.contains("fraud.rows.jsonl"), "{}", ran.stdout);
    write(&folder.path().join("fraud.expected.jsonl"), &scores[..1]);
    run(forebay(["model", "validate"]).arg(&model)).expect(0);
}

// ---- bench -------------------------------------------------------------------------------------------------------------

#[test]
fn bench_kernel_gives_a_figure_for_each_backend_and_batch() {
    let (model, data) = (higgs("higgs.model.txt"), higgs("higgs.test.tsv"));
    let bench = |more: &[&str]| {
        let mut command = forebay(["bench", "kernel", "--no-header", "--skip-columns", "1", "--batch", "1,700"]);
        run(command.arg("--model").arg(&model).arg("--data").arg(&data).args(more))
    };
    let report: Value = serde_json::from_str(&bench(&["--json"]).expect(0).stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let cell = |row: &Value| (row["backend"].as_str().unwrap().to_owned(), row["batch"].as_u64().unwrap());
    let wanted = [("forebay", 1), ("lightgbm", 1), ("forebay", 700), ("lightgbm", 700)];
    assert_eq!(rows.iter().map(cell).collect::<Vec<_>>(), wanted.map(|(name, batch)| (name.to_owned(), batch)));
    assert!(rows.iter().all(|row| row["us_per_row"].as_f64().unwrap() > 0.0 && row["model"] == "higgs.model"));
    let ran = bench(&[]).expect(0);
    for part in ["microseconds per row", "forebay", "lightgbm", "700", "500 rows"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    bench(&["--batch", "0"]).expect_error(2, &["--batch"]);
}

// ---- config -------------------------------------------------------------------------------------------------------------

const WORKER: &str = "instance = \"w1\"\n[kafka]\ngroup = \"g\"\n[[route]]\ninput = [\"features\"]\nreply_topic = \"scores\"\n\
                      [[model]]\nname = \"higgs\"\npath = \"higgs.txt\"\n";

#[test]
fn config_check_says_ok_or_every_problem() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, WORKER).unwrap();
    let ran = run(forebay(["config", "check"]).arg(&file)).expect(0);
    assert_eq!(ran.stdout, "ok: instance w1, group g at localhost:9092, 1 route, 1 model\n");
    let ran = run(forebay(["config", "check", "--instance", "w2"]).arg(&file)).expect(0);
    assert!(ran.stdout.contains("instance w2"), "{}", ran.stdout);

    fs::write(&file, WORKER.replace("group", "gruop").replace("reply_topic", "replies")).unwrap();
    for command in ["check", "dump"] {
        let ran = run(forebay(["config", command]).arg(&file));
        ran.expect_error(2, &["worker.toml:3: kafka.gruop", "group", "worker.toml:6: route[0].replies"]);
    }
    run(&mut forebay(["config", "check", "nowhere.toml"])).expect_error(2, &["nowhere.toml", "cannot be read"]);

    // The files of a connection are looked into, where connections are built in.
    if cfg!(feature = "kafka") {
        fs::write(&file, format!("{WORKER}[nats]\ncreds_file = \"gone.creds\"\n")).unwrap();
        run(forebay(["config", "check"]).arg(&file)).expect_error(2, &["nats.creds_file", "gone.creds cannot be read"]);
    }
}

#[test]
fn config_dump_shows_what_is_in_effect_and_reads_back_the_same() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, WORKER).unwrap();
    let dump = run(forebay(["config", "dump"]).arg(&file)).expect(0).stdout;
    assert!(dump.contains("batch_size_max = 1024") && dump.contains("instance = \"w1\""), "{dump}");
    fs::write(&file, &dump).unwrap();
    assert_eq!(run(forebay(["config", "dump"]).arg(&file)).expect(0).stdout, dump);
}

#[test]
fn config_schema_prints_one_schema_or_writes_all() {
    let printed = run(&mut forebay(["config", "schema"])).expect(0).stdout;
    let schema: Value = serde_json::from_str(&printed).unwrap();
    assert!(schema["properties"]["kafka"].is_object());
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("new/schemas");
    run(forebay(["config", "schema", "--dir"]).arg(&dir)).expect(0);
    let read = |name: &str| fs::read_to_string(dir.join(format!("{name}.schema.json"))).unwrap();
    assert_eq!(read("config"), printed);
    for name in ["config", "request", "reply", "oip-request", "oip-reply"] {
        let text = read(name);
        assert!(text.ends_with("}\n") && !text.ends_with("\n\n"), "{name}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["$schema"].is_string());
    }
    run(&mut forebay(["config", "schema", "--dir", "/dev/null/x"])).expect_error(1, &["--dir", "/dev/null/x"]);
}

// ---- the command line itself ---------------------------------------------------------------------------------------------

#[test]
fn help_and_version_are_for_newcomers() {
    assert_eq!(run(&mut forebay(["--version"])).expect(0).stdout, format!("forebay {}\n", env!("CARGO_PKG_VERSION")));
    let help = run(&mut forebay(["--help"])).expect(0).stdout;
    for part in ["score", "model", "config", "Exit codes: 0 done", "75 drain cut short"] {
        assert!(help.contains(part), "{part}: {help}");
    }
    let leaves =
        ["score", "model validate", "model inspect", "bench kernel", "config check", "config dump", "config schema"];
    let kafka = if cfg!(feature = "kafka") { &["run", "demo"][..] } else { &[] };
    for leaf in leaves.iter().chain(kafka) {
        let help = run(&mut forebay(leaf.split(' ').chain(["--help"]))).expect(0).stdout;
        assert!(help.contains("Example") && help.contains(&format!("\n  forebay {leaf}")), "{leaf}: {help}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_the_nearest_right_one() {
    run(&mut forebay(["scor"])).expect_error(2, &["scor", "'score'"]);
    run(&mut forebay(["score", "--modle", "x"])).expect_error(2, &["--modle", "--model"]);
    run(&mut forebay(["score"])).expect_error(2, &["--model"]);
    let ran = run(&mut forebay([""; 0])).expect(2);
    assert!(ran.stderr.contains("Usage: forebay <COMMAND>"), "{}", ran.stderr);
}

#[cfg(feature = "kafka")]
#[test]
fn run_names_what_is_wrong_with_its_config() {
    run(&mut forebay(["run", "--config", "nowhere.toml"])).expect_error(2, &["nowhere.toml", "cannot be read"]);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("worker.toml");
    fs::write(&file, WORKER.replace("higgs.txt", "nowhere.txt")).unwrap();
    run(forebay(["run", "--config"]).arg(&file)).expect_error(4, &["nowhere.txt", "cannot read the file"]);
}

// ---- top ----------------------------------------------------------------------------------------------------------

#[test]
fn top_prints_a_running_workers_figures_once() {
    let config = InferenceEngineConfig { num_threads: 1, pin: Pin::Off, ..InferenceEngineConfig::default() };
    let engine = Arc::new(InferenceEngine::new(config).unwrap());
    engine.load_model(higgs("higgs.model.txt"), None, true).unwrap();
    let health = Arc::new(Health::default());
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let address = admin::serve(any, Arc::clone(&health), Arc::clone(&engine), None).unwrap();
    let features = vec![vec![0.5; 28]; 1_234];
    assert!(engine.predict_batch(&features).iter().all(Result::is_ok));
    health.not_ready("group", "draining");

    let url = format!("http://{address}/");
    // Not a terminal: no --once is needed.
    for args in [vec!["top", "--url", &url], vec!["top", "--url", &url, "--once"]] {
        let ran = run(&mut forebay(args)).expect(0);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        assert!(lines[0].starts_with("forebay 0.1.0 · not ready · up "), "{}", ran.stdout);
        assert_eq!(lines[1], "! group: draining");
        let model = lines.iter().find(|line| line.trim_start().starts_with("higgs.model  lightgbm compiled"));
        let cells: Vec<&str> = model.expect("a line of the model").split_whitespace().collect();
        assert_eq!((cells[3], cells[5]), ("1", "0"), "version, failed: {}", ran.stdout);
        let scored: f64 = cells[4].trim_end_matches("/s").replace(',', "").parse().unwrap();
        assert!(scored > 0.0, "{}", ran.stdout);
        let queue = lines.iter().find(|line| line.split_whitespace().take(3).eq(["higgs.model", "2", "0"]));
        assert!(queue.is_some_and(|line| line.contains("ms") || line.contains("us")), "{}", ran.stdout);
        assert!(!ran.stdout.contains('\u{1b}'), "plain text");
    }
    let stats = run(&mut forebay(["top", "--url", &format!("{url}livez")]));
    stats.expect_error(1, &["answered 404", "is that the admin port of a worker?"]);
}

#[test]
fn top_names_a_worker_that_does_not_answer_and_the_remedy() {
    // A port that was free a moment ago.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let ran = run(&mut forebay(["top", "--once", "--url", &url]));
    ran.expect_error(1, &[&url, "no worker answers", "--url", "admin.listen"]);
    let ran = run(&mut forebay(["top", "--url", "https://127.0.0.1:1"]));
    ran.expect_error(2, &["--url https://127.0.0.1:1", "http://HOST:PORT"]);
    run(&mut forebay(["top", "--interval", "1ms"])).expect_error(2, &["100ms to 1h"]);
}
