//! One child process: loads the model, then scores batches, one at a time. Dropped, it is killed; the keeper buries it.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;

use std::os::fd::AsFd as _;

use super::super::{Rows, Values};
use super::keeper;
use super::logs::{Printed, follow};
use super::memory::BatchMemory;
use super::recipe::Recipe;
use super::wire::{Channel, Frame, FrameKind, NoFrame};

/// The least room of a batch's memory, in rows.
const ROWS_LEAST: usize = 64;
/// How long the end of a process that closed its socket is waited for, to say how it ended; and what it printed last.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why a batch has no scores.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The model said so, and its process is as well as before.
    Said(String),
    /// The process has no memory left.
    NoMemory,
    /// It did not answer in time.
    Late,
    /// It has ended: how.
    Ended(String),
    /// What it sent is no answer.
    Garbage,
}

/// What a process tells of the model that it loaded.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Loaded {
    pub(super) features: Vec<String>,
    pub(super) outputs: usize,
    /// Whether a row of missing values has scores.
    pub(super) missing: bool,
    /// Protections that the kernel refused.
    pub(super) sandbox_missing: Vec<String>,
    /// What Python warned of meanwhile.
    pub(super) warnings: Vec<String>,
    pub(super) details: Vec<(String, String)>,
}

/// An ONNX graph, and rows as the estimator may have seen them.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) graph: Vec<u8>,
    pub(super) rows: Vec<f64>,
}

/// Why a process cannot score.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotLoaded {
    /// Not yet.
    Late,
    /// The model must not be scored, and would not be another time.
    Refused(String),
    /// The process failed.
    Failed(String),
}

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    /// Taken when it is buried.
    child: Option<Child>,
    channel: Channel,
    recipe: Arc<Recipe>,
    printed: Arc<Printed>,
    memory: Option<BatchMemory>,
    /// Batches that it was given.
    number: u64,
    /// Whether it ever answered.
    pub(super) has_answered: bool,
}

impl Process {
    /// Starts it. Only the keeper's thread may: the child ends with the thread that started it.
    pub(super) fn start(recipe: &Arc<Recipe>) -> io::Result<Self> {
        let (mut child, channel) = recipe.start()?;
        recipe.stats.started(child.id());
        let followed = follow(&mut child, &recipe.name);
        let printed = followed.as_ref().map_or_else(|_| Arc::default(), Arc::clone);
        let recipe = Arc::clone(recipe);
        let process =
            Self { child: Some(child), channel, recipe, printed, memory: None, number: 0, has_answered: false };
        followed.map(|_| process)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Waits until the model is loaded.
    pub(super) fn wait_loaded(&mut self, deadline: Instant) -> Result<Loaded, NotLoaded> {
        let failed = |reason: &str| NotLoaded::Failed(format!("its Python process {reason}"));
        match self.channel.receive(deadline) {
            Err(NoFrame::Late) => Err(NotLoaded::Late),
            Err(NoFrame::Garbage) => Err(failed("does not keep to the protocol")),
            Err(NoFrame::Closed) => {
                let (how, last_words) = (self.how_it_ended(), self.printed.last_words(PATIENCE));
                let interpreter = self.recipe.options.interpreter.display();
                Err(failed(&format!("ended while it loaded the model ({how}); {interpreter} said: {last_words:?}")))
            }
            Ok(frame) => match frame.kind {
                FrameKind::Ready => {
                    let loaded = serde_json::from_slice(&frame.body);
                    let loaded = loaded.map_err(|error| failed(&format!("describes the model wrongly: {error}")))?;
                    self.recipe.stats.serves(self.pid());
                    Ok(loaded)
                }
                FrameKind::Refused => Err(NotLoaded::Refused(String::from_utf8_lossy(&frame.body).into_owned())),
                _ => Err(failed("does not keep to the protocol")),
            },
        }
    }

    /// An ONNX graph of the model, and rows to compare the two on.
    pub(super) fn convert(&mut self, deadline: Instant) -> Result<Converted, NotLoaded> {
        let failed = |reason: &str| NotLoaded::Failed(format!("its Python process {reason}"));
        self.number += 1;
        let asked = self.channel.send(&Frame::new(FrameKind::Convert, self.number));
        asked.map_err(|error| failed(&format!("cannot be asked: {error}")))?;
        match self.channel.receive(deadline) {
            Err(NoFrame::Late) => Err(NotLoaded::Late),
            Err(NoFrame::Closed) => {
                Err(failed(&format!("ended while it converted the model ({})", self.how_it_ended())))
            }
            Ok(frame) if frame.kind == FrameKind::Refused => {
                Err(NotLoaded::Refused(String::from_utf8_lossy(&frame.body).into_owned()))
            }
            Ok(mut frame) if frame.kind == FrameKind::Converted => {
                let graph = usize::try_from(frame.nanos).ok().filter(|&bytes| bytes <= frame.body.len());
                let rows = frame.body.split_off(graph.ok_or_else(|| failed("does not keep to the protocol"))?);
                let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                Ok(Converted { graph: frame.body, rows: rows.chunks_exact(8).map(number).collect() })
            }
            _ => Err(failed("does not keep to the protocol")),
        }
    }

    /// Whether it is there and silent, as it must be between batches.
    pub(super) fn is_quiet(&self) -> bool {
        self.channel.is_quiet()
    }

    /// Scores a batch; `scores` are written whole, or worth nothing.
    pub(super) fn score(&mut self, rows: Rows<'_>, scores: &mut [f64], deadline: Instant) -> Result<(), Fault> {
        let count = rows.count();
        self.hand_over(rows, scores.len() / count).map_err(|error| self.ended(&error.to_string()))?;
        let frame = match self.channel.receive(deadline) {
            Ok(frame) if frame.number == self.number => frame,
            Ok(_) | Err(NoFrame::Garbage) => return Err(Fault::Garbage),
            Err(NoFrame::Late) => return Err(Fault::Late),
            Err(NoFrame::Closed) => return Err(self.ended("it closed its socket")),
        };
        match (frame.kind, frame.code) {
            (FrameKind::Scored, _) => {
                self.memory.as_ref().ok_or(Fault::Garbage)?.take(scores);
                self.note(&frame);
                self.has_answered = true;
                Ok(())
            }
            (FrameKind::Failed, NO_MEMORY) => Err(Fault::NoMemory),
            (FrameKind::Failed, _) => {
                self.has_answered = true;
                Err(Fault::Said(String::from_utf8_lossy(&frame.body).into_owned()))
            }
            _ => Err(Fault::Garbage),
        }
    }

    /// Puts the rows in the shared memory and says so.
    fn hand_over(&mut self, rows: Rows<'_>, outputs: usize) -> io::Result<()> {
        let count = rows.count();
        let memory = match self.memory.take().filter(|memory| memory.rows_max() >= count) {
            Some(memory) => memory,
            None => self.renew(rows, outputs)?,
        };
        memory.put(rows.values);
        self.memory = Some(memory);
        self.number += 1;
        let count = u32::try_from(count).map_err(io::Error::other)?;
        self.channel.send(&Frame { count, ..Frame::new(FrameKind::Score, self.number) })
    }

    fn renew(&mut self, rows: Rows<'_>, outputs: usize) -> io::Result<BatchMemory> {
        let value_bytes = match rows.values {
            Values::F32(_) => size_of::<f32>(),
            Values::F64(_) => size_of::<f64>(),
        };
        let rows_max = rows.count().next_power_of_two().max(ROWS_LEAST);
        let memory = BatchMemory::new(rows_max, rows.width * value_bytes, outputs)?;
        let body = memory.sizes().iter().flat_map(|size| size.to_le_bytes()).collect();
        self.channel.send(&Frame { body, ..Frame::new(FrameKind::Memory, 0) })?;
        self.channel.send_files(&[memory.file().as_fd()])?;
        Ok(memory)
    }

    /// Counts what an answer tells besides scores.
    fn note(&self, frame: &Frame) {
        let stats = &self.recipe.stats;
        stats.predicted(frame.nanos);
        for pause in frame.body.chunks_exact(16) {
            let number = |at: usize| u64::from_le_bytes(pause[at..at + 8].try_into().expect("8 bytes"));
            let (generation, nanos) = (number(0), number(8));
            stats.paused(nanos);
            let (model, ms) = (&self.recipe.name, nanos as f64 / 1e6);
            tracing::info!(model, pid = self.pid(), generation, ms, "Python's garbage collector paused a model");
        }
    }

    fn ended(&mut self, otherwise: &str) -> Fault {
        let how = self.how_it_ended();
        Fault::Ended(if how.is_empty() { otherwise.to_owned() } else { how })
    }

    /// In the system's words; empty if it has not ended yet.
    fn how_it_ended(&mut self) -> String {
        let status = self.child.as_mut().and_then(|child| wait_for(child, PATIENCE));
        status.map_or_else(String::new, |status| status.to_string())
    }

    /// Kills it, and gives the remains to who buries them.
    pub(super) fn into_remains(mut self) -> Option<Child> {
        self.kill()
    }

    fn kill(&mut self) -> Option<Child> {
        let mut child = self.child.take()?;
        self.printed.end();
        self.recipe.stats.gone(child.id());
        // The whole group: without a sandbox it may have children of its own. A process that was buried is no group's.
        if child.try_wait().is_ok_and(|status| status.is_none())
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = child.kill();
        Some(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = self.kill() {
            keeper::bury(child);
        }
    }
}

/// `runner.py` has the other codes; only this one is told apart here.
const NO_MEMORY: u32 = 2;

/// How a child ended, if it does within `patience`.
fn wait_for(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw)?;
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let patience = Timespec::try_from(patience).ok()?;
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience));
    }
    child.try_wait().ok().flatten()
}
