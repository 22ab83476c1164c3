//! Processor time, as the kernel counts it.
#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::fs;
use std::path::Path;

/// Clock ticks a second in `/proc/<pid>/stat`: part of the kernel's interface.
const TICKS_PER_S: f64 = 100.0;

/// User and system time of a process, in microseconds: of all its threads, those that ended too.
pub(crate) fn process_cpu_us(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: the state, then the fields from the fourth on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_S * 1e6)
}

/// Of one thread, in microseconds; its folder in `/proc`.
pub(crate) fn task_cpu_us(task: &Path) -> Option<f64> {
    let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
    Some(schedstat.split_whitespace().next()?.parse::<f64>().ok()? / 1e3)
}
