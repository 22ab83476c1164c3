//! What the processes of a model have gone through: counted by who runs them, told to who asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::metrics::{RunnerInfo, RunnerProcess};

/// Counts of one model version's processes, and how each is.
#[derive(Debug, Default)]
pub struct RunnerStats {
    starts: AtomicU64,
    crashes: AtomicU64,
    kills: AtomicU64,
    predict_ns: AtomicU64,
    gc_pauses: AtomicU64,
    gc_pause_ns: AtomicU64,
    gc_pause_longest_ns: AtomicU64,
    last_error: Mutex<Option<String>>,
    /// By process id, what it is doing.
    processes: Mutex<BTreeMap<u32, &'static str>>,
    sandbox_missing: Mutex<Vec<String>>,
}

impl RunnerStats {
    pub(super) fn started(&self, pid: u32) {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.processes.lock().insert(pid, "starting");
    }

    pub(super) fn serves(&self, pid: u32) {
        self.processes.lock().insert(pid, "ready");
    }

    pub(super) fn gone(&self, pid: u32) {
        self.processes.lock().remove(&pid);
    }

    /// A process ended that nobody had ended.
    pub(super) fn crashed(&self) {
        self.crashes.fetch_add(1, Ordering::Relaxed);
    }

    /// A process was ended that hung, grew too large or said what makes no sense.
    pub(super) fn killed(&self) {
        self.kills.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: &str) {
        *self.last_error.lock() = Some(error.to_owned());
    }

    pub(super) fn predicted(&self, nanos: u64) {
        self.predict_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn paused(&self, nanos: u64) {
        self.gc_pauses.fetch_add(1, Ordering::Relaxed);
        self.gc_pause_ns.fetch_add(nanos, Ordering::Relaxed);
        self.gc_pause_longest_ns.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(super) fn sandboxed(&self, missing: Vec<String>) {
        *self.sandbox_missing.lock() = missing;
    }

    /// How long the model's own method took in all, without what surrounds it.
    #[must_use]
    pub fn predict_time(&self) -> Duration {
        Duration::from_nanos(self.predict_ns.load(Ordering::Relaxed))
    }

    /// As it is now.
    #[must_use]
    pub fn info(&self) -> RunnerInfo {
        let seconds = |count: &AtomicU64| Duration::from_nanos(count.load(Ordering::Relaxed)).as_secs_f64();
        let processes = self.processes.lock().clone();
        let process = |(pid, state): (u32, &str)| RunnerProcess {
            pid,
            state: state.to_owned(),
            resident_bytes: resident_bytes(pid),
        };
        RunnerInfo {
            processes: processes.into_iter().map(process).collect(),
            starts: self.starts.load(Ordering::Relaxed),
            crashes: self.crashes.load(Ordering::Relaxed),
            kills: self.kills.load(Ordering::Relaxed),
            predict_seconds: seconds(&self.predict_ns),
            gc_pauses: self.gc_pauses.load(Ordering::Relaxed),
            gc_pause_seconds: seconds(&self.gc_pause_ns),
            gc_pause_longest_seconds: seconds(&self.gc_pause_longest_ns),
            last_error: self.last_error.lock().clone(),
            sandbox_missing: self.sandbox_missing.lock().clone(),
        }
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
    Some(process.statm().ok()?.resident * procfs::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_listed_while_it_lives() {
        let stats = RunnerStats::default();
        let own = std::process::id();
        stats.started(own);
        assert_eq!(stats.info().processes[0].state, "starting");
        stats.serves(own);
        let info = stats.info();
        assert_eq!((info.starts, info.processes.len(), &*info.processes[0].state), (1, 1, "ready"));
        assert!(info.processes[0].resident_bytes.unwrap() > 0);
        stats.gone(own);
        assert!(stats.info().processes.is_empty());
    }

    #[test]
    fn pauses_are_summed_and_the_longest_is_kept() {
        let stats = RunnerStats::default();
        for nanos in [20_000_000, 50_000_000, 10_000_000] {
            stats.paused(nanos);
        }
        let info = stats.info();
        let told = format!("{} {} {}", info.gc_pauses, info.gc_pause_seconds, info.gc_pause_longest_seconds);
        assert_eq!(told, "3 0.08 0.05");
    }
}
