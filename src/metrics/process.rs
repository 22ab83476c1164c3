//! What the system says of this process, under Prometheus' own names.

use prometheus::proto::MetricFamily;
use serde::{Deserialize, Serialize};

use super::family::Family;

/// This process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStats {
    /// Processor time, user's and system's together.
    pub cpu_seconds: f64,
    /// Memory that is in use.
    pub resident_bytes: u64,
    /// Address space that is taken.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The most that may be open.
    pub max_fds: Option<u64>,
    /// When it started, in seconds since the epoch.
    pub start_time_seconds: f64,
}

impl ProcessStats {
    /// `None` where the system has no `/proc`, or hides it.
    #[must_use]
    pub fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = procfs::ticks_per_second() as f64;
        let boot = procfs::boot_time_secs().ok()?;
        let files = process.limits().ok().map(|limits| limits.max_open_files.soft_limit);
        Some(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            threads: u64::try_from(stat.num_threads).ok()?,
            open_fds: process.fd_count().ok()? as u64,
            max_fds: files.and_then(|files| match files {
                procfs::process::LimitValue::Value(files) => Some(files),
                procfs::process::LimitValue::Unlimited => None,
            }),
            start_time_seconds: boot as f64 + stat.starttime as f64 / ticks,
        })
    }

    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let gauge = |name, help, value| Family::gauge(name, help).with(value);
        let families = [
            Family::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds")
                .with(self.cpu_seconds),
            gauge("process_resident_memory_bytes", "Resident memory size in bytes", self.resident_bytes as f64),
            gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", self.virtual_bytes as f64),
            gauge("process_threads", "Number of OS threads in the process", self.threads as f64),
            gauge("process_open_fds", "Number of open file descriptors", self.open_fds as f64),
            gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                self.start_time_seconds,
            ),
        ];
        let most =
            self.max_fds.map(|most| gauge("process_max_fds", "Maximum number of open file descriptors", most as f64));
        families.into_iter().chain(most).filter_map(Family::done).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_files_and_an_age() {
        let process = ProcessStats::read().unwrap();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.threads >= 1 && process.open_fds >= 3, "{process:?}");
        let now = crate::clock::unix_ms() as f64 / 1e3;
        let age = now - process.start_time_seconds;
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
    }
}
