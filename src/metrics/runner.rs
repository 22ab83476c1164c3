//! What is told of models that run in processes of their own.

use prometheus::proto::MetricFamily;
use serde::{Deserialize, Serialize};

use super::ModelInfo;
use super::family::Family;

/// The processes of one model version. Counts are since it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunnerInfo {
    /// Those that live.
    pub processes: Vec<RunnerProcess>,
    /// Processes started: each above the number of processes took the place of another.
    pub starts: u64,
    /// Processes that ended by themselves.
    pub crashes: u64,
    /// Processes that were killed: they hung, took too much memory or did not keep to the protocol.
    pub kills: u64,
    /// Time in the model's own method.
    pub predict_seconds: f64,
    /// Pauses of Python's garbage collector of `gc_pause_min` and more.
    pub gc_pauses: u64,
    /// How long they were together.
    pub gc_pause_seconds: f64,
    /// The longest of them.
    pub gc_pause_longest_seconds: f64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Protections that the kernel refused.
    pub sandbox_missing: Vec<String>,
}

/// One process of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerProcess {
    /// Its id.
    pub pid: u32,
    /// `starting` or `ready`.
    pub state: String,
    /// Memory that is in use.
    pub resident_bytes: Option<u64>,
}

/// Series of the models that have processes.
pub(super) fn families(models: &[ModelInfo]) -> impl Iterator<Item = MetricFamily> {
    let mut processes = Family::gauge("forebay_python_processes", "Processes of a Python model that are ready");
    let mut memory = Family::gauge("forebay_python_resident_bytes", "Memory of a Python model's processes");
    let mut starts = Family::counter("forebay_python_starts_total", "Processes started for a Python model");
    let mut crashes = Family::counter("forebay_python_crashes_total", "Processes that ended by themselves");
    let mut kills = Family::counter(
        "forebay_python_kills_total",
        "Processes that were killed: they hung, took too much memory or did not keep to the protocol",
    );
    let mut predict = Family::counter("forebay_python_predict_seconds_total", "Time in the model's own method");
    let mut pauses = Family::counter(
        "forebay_python_gc_pauses_total",
        "Pauses of Python's garbage collector of the model's gc_pause_min and more",
    );
    let mut paused = Family::counter("forebay_python_gc_pause_seconds_total", "How long those pauses were together");
    let mut longest = Family::gauge("forebay_python_gc_pause_max_seconds", "The longest of those pauses");
    for ModelInfo { name, version, runner, .. } in models {
        let Some(runner) = runner else { continue };
        // The version is a label because the counts begin again with it, and a series never goes back.
        let version = version.to_string();
        let labels = [("model", name.as_str()), ("version", &version)];
        let ready = runner.processes.iter().filter(|process| process.state == "ready").count();
        let bytes: u64 = runner.processes.iter().filter_map(|process| process.resident_bytes).sum();
        processes.put(&labels, ready as f64);
        memory.put(&labels, bytes as f64);
        starts.put(&labels, runner.starts as f64);
        crashes.put(&labels, runner.crashes as f64);
        kills.put(&labels, runner.kills as f64);
        predict.put(&labels, runner.predict_seconds);
        pauses.put(&labels, runner.gc_pauses as f64);
        paused.put(&labels, runner.gc_pause_seconds);
        longest.put(&labels, runner.gc_pause_longest_seconds);
    }
    let families = [processes, memory, starts, crashes, kills, predict, pauses, paused, longest];
    families.into_iter().filter_map(Family::done)
}
