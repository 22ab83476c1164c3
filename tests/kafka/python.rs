//! Python models through Kafka: equal to Python's own output of the same run; and one that misbehaves in every way, whose
//! other records are answered while the worker stays up.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Shared;
use crate::support::{Record, Worker, repository, trusted, until};

/// Folder and file: a `DataFrame`'s columns, a forest that skops knows, several classes, functions, a class with weights.
const MODELS: [&str; 5] = [
    "python_columns/model.joblib",
    "python_forest/model.skops",
    "python_logistic_texts/model.skops",
    "python_function/model.py",
    "python_class/model.py",
];

/// The first feature says what becomes of the record: 1 to 6 are misdeeds.
const MISBEHAVING: &str = r"
import ctypes, os, time
import numpy as np

n_features = 2

def misdeed(number):
    if number == 1:
        time.sleep(3600)
    if number == 2:
        os._exit(3)
    if number == 3:
        ctypes.string_at(0)
    if number == 4:
        raise ValueError('not liked')
    if number == 5:
        np.ones(1 << 30)
    if number == 6:
        for fd in range(3, 1024):
            try: os.write(fd, b'garbage ' * 20)
            except OSError: pass

def predict(rows):
    for first in rows[:, 0]:
        misdeed(first)
    print('scored', len(rows))
    return rows.sum(axis=1)
";

pub(crate) fn each_scores_as_python(shared: &Shared) {
    let mut toml = format!("[kafka]\nbrokers = \"{}\"\ngroup = \"python\"\n", shared.kafka.brokers());
    for model in MODELS {
        let (name, path) = (folder(model), models().join(model));
        toml += &tables(shared, name, &path, "");
    }
    let mut worker = Worker::ready(&toml, "python");
    for model in MODELS {
        let name = folder(model);
        let read = |file: &str| fs::read_to_string(models().join(name).join(file)).expect("`make test` makes it");
        let (rows, expected) = (read("rows.jsonl"), read("expected.jsonl"));
        let request = |(number, row): (usize, &str)| {
            Record::new(&number.to_string(), format!("{{\"id\":\"r{number}\",\"features\":{row}}}"))
        };
        let requests: Vec<_> = rows.lines().enumerate().map(request).collect();
        assert!(requests.len() >= 400, "{name}");
        shared.kafka.send(&format!("{name}-in"), &requests);
        let replies = shared.kafka.read(&format!("{name}-out"), requests.len());
        assert_eq!(replies.len(), requests.len(), "{name}");
        for reply in &replies {
            let (json, number) = (reply.json(), reply.key_text().parse::<usize>().unwrap());
            let wanted: Vec<f64> = serde_json::from_str(expected.lines().nth(number).unwrap()).unwrap();
            let got: Vec<f64> = serde_json::from_value(json["prediction"].clone()).unwrap_or_default();
            let near = |(got, wanted): (&f64, &f64)| (got - wanted).abs() <= 1e-12 * wanted.abs().max(1.0);
            assert!(got.len() == wanted.len() && got.iter().zip(&wanted).all(near), "{name}: {json}, not {wanted:?}");
        }
    }
    let (_, models) = worker.get("/models").unwrap();
    let pids = python_processes(&models);
    assert!(pids.len() >= MODELS.len(), "{models}");
    assert_eq!(worker.terminate(), Some(0));
    until("the end of all processes", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

pub(crate) fn misdeeds(shared: &Shared) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.py");
    fs::write(&path, MISBEHAVING).unwrap();
    let name = "misdeeds";
    let python = "processes = 1\nbatch_timeout = \"2s\"\nmemory_max = \"1GiB\"\n";
    let toml = format!("[kafka]\nbrokers = \"{}\"\ngroup = \"{name}\"\n", shared.kafka.brokers())
        + &tables(shared, name, &path, python);
    let mut worker = Worker::ready(&toml, name);
    // One misdeed of each kind among a hundred good records.
    let first = |number: usize| if number % 100 == 50 { 1 + number / 100 } else { 10 + number };
    let request = |number: usize| {
        Record::new(&number.to_string(), format!("{{\"id\":\"r{number}\",\"features\":[{},0.5]}}", first(number)))
    };
    let requests: Vec<_> = (0..600).map(request).collect();
    shared.kafka.send(&format!("{name}-in"), &requests);
    let replies = shared.kafka.read(&format!("{name}-out"), requests.len());
    let says = [
        "gave no answer within `batch_timeout`",
        "exit status: 3",
        "SIGSEGV",
        "ValueError: not liked (model.py:15)",
        "memory",
        "sent what is no answer",
    ];
    let mut errors = 0;
    for reply in &replies {
        let (json, number) = (reply.json(), reply.key_text().parse::<usize>().unwrap());
        if number % 100 == 50 {
            let message = json["error"]["message"].as_str().unwrap_or_default();
            assert_eq!(json["error"]["code"], "model_error", "{json}");
            assert!(message.contains(says[number / 100]), "{json}");
            errors += 1;
        } else {
            assert_eq!(json["prediction"][0], serde_json::json!(10.5 + number as f64), "{json}; {}", worker.log());
        }
    }
    assert_eq!((replies.len(), errors), (600, 6));
    let (_, models) = worker.get("/models").unwrap();
    assert_eq!(python_processes(&models).len(), 1, "{models}");
    assert!(worker.metric(&format!("forebay_python_kills_total{{model=\"{name}\",version=\"1\"}}")) >= 2);
    assert!(worker.metric(&format!("forebay_python_crashes_total{{model=\"{name}\",version=\"1\"}}")) >= 2);
    assert!(worker.log().contains("scored "), "what the model prints is in the log");
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
}

/// A route and its model, trusted and pinned.
fn tables(shared: &Shared, name: &str, path: &Path, python: &str) -> String {
    shared.kafka.create(&[&format!("{name}-in"), &format!("{name}-out")], 1);
    let trust = trusted(path);
    let (path, interpreter) = (path.display(), repository().join(".venv/test/bin/python"));
    format!(
        "[[route]]\ninput = [\"{name}-in\"]\nreply_topic = \"{name}-out\"\nmodel = \"{name}\"\n[[model]]\nname = \"{name}\"\n\
         path = \"{path}\"\n{trust}[model.python]\ninterpreter = \"{}\"\n{python}",
        interpreter.display()
    )
}

fn models() -> PathBuf {
    repository().join("target/models")
}

fn folder(model: &str) -> &str {
    model.split('/').next().unwrap()
}

/// The process ids that `/models` shows.
fn python_processes(models: &str) -> Vec<u64> {
    let models: serde_json::Value = serde_json::from_str(models).unwrap();
    let list = models.as_array().or_else(|| models["models"].as_array()).into_iter().flatten();
    let processes = list.flat_map(|model| model["runner"]["processes"].as_array().cloned().unwrap_or_default());
    processes.filter_map(|process| process["pid"].as_u64()).collect()
}
