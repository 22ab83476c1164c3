//! What lies in deploy/, held against the worker and against itself: every file parses, every query asks for what `/metrics` shows,
//! and what two files say of one thing (ports, paths, versions, time limits) is the same.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

#[path = "deploy/compose.rs"]
mod compose;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/kubernetes.rs"]
mod kubernetes;
#[path = "deploy/monitoring.rs"]
mod monitoring;
#[path = "deploy/queries.rs"]
mod queries;
#[path = "deploy/rules.rs"]
mod rules;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use forebay::config::{Config, Environment, Kafka};
use serde_json::Value;

/// What librdkafka may take to close, past `drain_timeout`.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file of one YAML document.
fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a JSON pointer leads to.
#[track_caller]
fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer} of {value:#}"))
}

#[track_caller]
fn string<'v>(value: &'v Value, pointer: &str) -> &'v str {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("no text at {pointer} of {value:#}"))
}

#[track_caller]
fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    at(value, pointer).as_array().unwrap_or_else(|| panic!("no list at {pointer} of {value:#}"))
}

/// All files under a folder of the repository, as paths from its root.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn has_extension(path: &str, extensions: &[&str]) -> bool {
    Path::new(path).extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
}

/// A pod's: nothing but its name.
struct Pod;

impl Environment for Pod {
    fn var(&self, name: &str) -> Option<String> {
        (name == "HOSTNAME").then(|| "forebay-7".to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        Err(io::Error::other(format!("no file {}", path.display())))
    }

    fn host_name(&self) -> Option<String> {
        None
    }
}

fn config(path: &str) -> Config {
    let folder = PathBuf::from("/etc/forebay");
    Config::from_toml(&text(path), path, &folder, &Pod).unwrap_or_else(|error| panic!("{error}"))
}

fn kafka_of(config: &Config) -> &Kafka {
    config.kafka.as_ref().expect("a [kafka] table")
}

/// `host:port`'s port.
fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_else(|| panic!("no port: {address}"))
}

/// Says of which version an image is, and from nowhere but the default registry.
#[track_caller]
fn check_image(image: &str) {
    let (name, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} has no tag"));
    assert_ne!(tag, "latest", "{image}: a version, or nobody knows what runs");
    let host = name.split_once('/').map_or("", |(first, _)| first);
    assert!(!host.contains(['.', ':']), "{image} names a registry's host");
}

fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    if let Some(path) = std::env::var_os("FOREBAY_SKIPS") {
        let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{name}: {why}").unwrap();
    }
}

/// As compose and Prometheus write them.
fn seconds(text: &str) -> Duration {
    text.parse::<humantime::Duration>().unwrap_or_else(|error| panic!("{text}: {error}")).into()
}

#[test]
fn every_file_is_yaml_json_or_toml_that_parses() {
    let (mut parsed, mut configs) = (0, 0);
    for path in files("deploy") {
        if has_extension(&path, &["yaml", "yml"]) {
            assert!(yaml(&path).is_object(), "{path}");
            parsed += 1;
        } else if has_extension(&path, &["json"]) {
            let _: Value = serde_json::from_str(&text(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            parsed += 1;
        } else if has_extension(&path, &["toml"]) {
            assert_eq!(config(&path).instance, "forebay-7", "{path}: the container's or pod's name is the worker's");
            configs += 1;
        }
    }
    assert!(parsed >= 12 && configs >= 2, "{parsed} files and {configs} configs in deploy/");
}

#[test]
fn the_binary_takes_every_worker_toml() {
    for path in files("deploy").iter().filter(|path| has_extension(path, &["toml"])) {
        let mut check = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let ran =
            check.args(["config", "check", path]).current_dir(root()).env("HOSTNAME", "forebay-7").output().unwrap();
        let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success() && said.starts_with("ok: instance forebay-7"), "{path}: {said}{complained}");
    }
}
