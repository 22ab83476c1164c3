//! What a process prints, line by line into the log: bounded in length and in rate, whatever it prints.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock;

/// A longer line is cut.
const LINE_BYTES_MAX: usize = 4096;
/// So many lines at once, and then so many a second; the rest is counted.
const LINES_AT_ONCE: u32 = 100;
const LINES_A_SECOND: u32 = 20;
/// Last lines of standard error that are kept for an error's message.
const KEPT: usize = 12;
const KEPT_CHARS: usize = 300;
/// How often the thread looks whether its process has gone: a child of the process may hold the pipes open.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// The last lines of standard error, and whether anybody still wants them.
#[derive(Debug, Default)]
pub(super) struct Printed {
    last: Mutex<VecDeque<String>>,
    over: AtomicBool,
    drained: Mutex<bool>,
    is_drained: Condvar,
}

impl Printed {
    /// The process has gone: what it printed before is read, and no more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The last lines of standard error of a process that has gone; those that are read within `patience`.
    pub(super) fn last_words(&self, patience: Duration) -> String {
        self.end();
        self.is_drained.wait_while_for(&mut self.drained.lock(), |drained| !*drained, patience);
        self.last.lock().iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    fn keep(&self, line: &str) {
        let mut last = self.last.lock();
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(line.chars().take(KEPT_CHARS).collect());
    }
}

/// Starts the thread that reads what a child prints, until it and its children have closed their ends.
pub(super) fn follow(child: &mut Child, model: &str) -> io::Result<Arc<Printed>> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = out.zip(err).ok_or_else(|| io::Error::other("the child has no pipes"))?;
    let printed = Arc::new(Printed::default());
    let follower = Follower {
        model: model.to_owned(),
        pid: child.id(),
        printed: Arc::clone(&printed),
        allowance: Allowance::new(clock::now()),
    };
    Builder::new().name("forebay-py-log".to_owned()).spawn(move || follower.run(out, err))?;
    Ok(printed)
}

struct Follower {
    model: String,
    pid: u32,
    printed: Arc<Printed>,
    allowance: Allowance,
}

impl Follower {
    fn run(mut self, out: ChildStdout, err: ChildStderr) {
        let (mut out, mut err) = (Lines::new(out), Lines::new(err));
        while out.open || err.open {
            let over = self.printed.over.load(Ordering::Relaxed);
            let wait = if over { Timespec { tv_sec: 0, tv_nsec: 0 } } else { LOOK };
            let (ready_out, ready_err) = ready(&out, &err, &wait);
            if over && !ready_out && !ready_err {
                break;
            }
            if ready_out {
                out.read(|line| self.say(line, false));
            }
            if ready_err {
                err.read(|line| self.say(line, true));
            }
        }
        out.rest(|line| self.say(line, false));
        err.rest(|line| self.say(line, true));
        self.say_dropped();
        *self.printed.drained.lock() = true;
        self.printed.is_drained.notify_all();
    }

    fn say(&mut self, line: &[u8], is_error: bool) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        if is_error {
            self.printed.keep(line);
        }
        if !self.allowance.take(clock::now()) {
            return;
        }
        self.say_dropped();
        if is_error {
            tracing::warn!(target: "forebay::python", model = self.model, pid = self.pid, "{line}");
        } else {
            tracing::info!(target: "forebay::python", model = self.model, pid = self.pid, "{line}");
        }
    }

    fn say_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.allowance.dropped);
        if dropped > 0 {
            tracing::warn!(model = self.model, pid = self.pid, dropped, "printed more lines than are logged");
        }
    }
}

fn ready<O: AsFd, E: AsFd>(out: &Lines<O>, err: &Lines<E>, wait: &Timespec) -> (bool, bool) {
    let none = PollFlags::empty();
    let wanted = |open| if open { PollFlags::IN } else { none };
    // A closed pipe is always ready: it is asked for nothing, and its place stands for the other one.
    let mut polled = [
        if out.open { PollFd::new(&out.source, wanted(true)) } else { PollFd::new(&err.source, wanted(err.open)) },
        if err.open { PollFd::new(&err.source, wanted(true)) } else { PollFd::new(&out.source, wanted(out.open)) },
    ];
    if poll(&mut polled, Some(wait)).is_err() {
        return (false, false);
    }
    let any = |place: usize| polled[place].revents() != none;
    (out.open && any(0), err.open && any(1))
}

/// Bytes in, whole lines out; the end of a line that is too long is lost.
struct Lines<S> {
    source: S,
    open: bool,
    line: Vec<u8>,
}

impl<S> Lines<S> {
    fn new(source: S) -> Self {
        Self { source, open: true, line: Vec::new() }
    }

    fn rest(&mut self, mut say: impl FnMut(&[u8])) {
        say(&std::mem::take(&mut self.line));
    }
}

impl<S: Read> Lines<S> {
    fn read(&mut self, mut say: impl FnMut(&[u8])) {
        let mut buffer = [0; 8192];
        match self.source.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(read) => {
                for piece in buffer[..read].split_inclusive(|&byte| byte == b'\n') {
                    let room = LINE_BYTES_MAX - self.line.len();
                    self.line.extend_from_slice(&piece[..piece.len().min(room)]);
                    if piece.ends_with(b"\n") {
                        say(&self.line);
                        self.line.clear();
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.open = false,
        }
    }
}

/// How many lines may still be said.
struct Allowance {
    left: u32,
    refilled: Instant,
    dropped: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: LINES_AT_ONCE, refilled: now, dropped: 0 }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.refilled);
        let more = u32::try_from(since.as_millis()).unwrap_or(u32::MAX).saturating_mul(LINES_A_SECOND) / 1000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(LINES_AT_ONCE);
            self.refilled += Duration::from_millis(u64::from(more) * 1000 / u64::from(LINES_A_SECOND));
        }
        if self.left == 0 {
            self.dropped += 1;
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_cut_where_they_are_too_long() {
        let long = [&[b'x'; LINE_BYTES_MAX + 900][..], b"\nafter\nopen"].concat();
        let mut lines = Lines::new(&long[..]);
        let mut said: Vec<Vec<u8>> = Vec::new();
        while lines.open {
            lines.read(|line| said.push(line.to_vec()));
        }
        lines.rest(|line| said.push(line.to_vec()));
        assert_eq!(said.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, 6, 4]);
        assert_eq!(said[1], b"after\n");
    }

    #[test]
    fn a_flood_is_counted_and_not_said() {
        let start = clock::now();
        let mut allowance = Allowance::new(start);
        let said = (0..1000).filter(|_| allowance.take(start)).count();
        assert_eq!((said, allowance.dropped), (100, 900));
        let later = start + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| allowance.take(later)).count(), 40);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| allowance.take(much_later)).count(), 100);
    }
}
