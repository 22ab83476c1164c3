//! The demo's workers: one inside this process for the mock cluster, two processes of their own for a real server, of
//! which one is killed midway and started again under its name.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::place::Place;
use crate::clock::{self, Stop};
use crate::config::{Config, Overrides};
use crate::pipeline::{Ended, Worker};

/// Processes that share a real server's partitions.
pub(super) const WORKERS: usize = 2;
/// How long a worker may take to drain and leave.
const LEAVE_BOUND: Duration = Duration::from_secs(30);

/// The config of the demo's workers, at this place.
pub(super) fn worker_toml(place: &dyn Place, model: &Path) -> String {
    // The demo has fewer rows than records, and shows scoring.
    format!(
        "instance = \"demo\"\n\n{}\n[[model]]\nname = \"higgs\"\npath = \"{}\"\n\n[cache]\nmode = \"off\"\n\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\n[log]\nlevel = \"warn\"\n",
        place.toml(),
        model.display()
    )
}

/// A worker on threads of this process.
pub(super) struct InProcess {
    pub(super) worker: Worker,
    stop: Arc<Stop>,
}

impl InProcess {
    pub(super) fn start(toml: &Path) -> anyhow::Result<Self> {
        let config = Config::from_file(toml, &Overrides::default())?;
        let stop = Arc::new(Stop::default());
        Ok(Self { worker: Worker::start(&config, None, Arc::clone(&stop))?, stop })
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.stop.request(LEAVE_BOUND);
        let ended = self.worker.wait()?;
        ensure!(ended == Ended::Drained, "the worker did not drain: {ended:?}");
        Ok(())
    }
}

/// A worker as a process of its own.
pub(super) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts `forebay run` as that instance. Only the first start of the first worker keeps the fail points that the
    /// environment sets, so that each strikes once.
    pub(super) fn start(toml: &Path, folder: &Path, name: &'static str, failpoints: bool) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(folder.join(format!("{name}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(toml).args(["--instance", name]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if !failpoints {
            command.env_remove("FAILPOINTS");
        }
        Ok(Self { name, child: command.spawn().context("cannot start a worker")? })
    }

    /// SIGKILL: no drain, no goodbye.
    pub(super) fn kill(&mut self) -> anyhow::Result<u32> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.child.id())
    }

    /// Whether it still runs; how it ended when it does not.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("worker {} ended by itself: {status}", self.name),
        }
    }

    /// SIGTERM, and exit code 0 is expected.
    pub(super) fn terminate(&mut self) -> anyhow::Result<()> {
        let id = self.child.id();
        let sent = Command::new("kill").args(["-TERM", &id.to_string()]).status()?;
        ensure!(sent.success(), "cannot signal worker {}", self.name);
        let start = clock::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "worker {} did not drain: {status}", self.name);
                return Ok(());
            }
            ensure!(clock::now() - start < LEAVE_BOUND, "worker {} does not leave", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
