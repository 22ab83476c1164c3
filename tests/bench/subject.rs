//! What is measured: each subject is a process of its own, fed from one topic and answering to another. Here is how
//! each is started, what it promises, and what the kernel says that it used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use forebay::clock;
use serde_json::json;

use crate::clients::{CONSUMER, CONSUMER_OF_A_LOOP, MODEL, PRODUCER};
use crate::cpu::{process_cpu_us, task_cpu_us};
use crate::ledger::Answer;
use crate::stream::{Format, NO_WORK};

/// Of the latency phases, records a second, where the subject can do twice that. At the second one each record is alone.
pub(crate) const LATENCY_RATES: [f64; 2] = [1000.0, 20.0];
const LEAVE_BOUND: Duration = Duration::from_secs(25);

/// Where a subject works.
#[derive(Clone, clap::Args)]
pub(crate) struct Place {
    #[arg(long)]
    pub(crate) brokers: String,
    #[arg(long)]
    pub(crate) input: String,
    #[arg(long)]
    pub(crate) output: String,
    #[arg(long)]
    pub(crate) group: String,
    #[arg(long)]
    pub(crate) model: PathBuf,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Subject {
    PassThrough,
    ForebayNoScoring,
    RustLoop,
    Forebay,
    ForebayAtLeastOnce,
    PythonConfluentKafka,
    QuixStreams,
    Mlserver,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PassThrough => "pass-through",
            Self::RustLoop => "rust-loop",
            Self::Forebay => "forebay",
            Self::ForebayNoScoring => "forebay-no-scoring",
            Self::ForebayAtLeastOnce => "forebay-at-least-once",
            Self::PythonConfluentKafka => "python-confluent-kafka",
            Self::QuixStreams => "quix-streams",
            Self::Mlserver => "mlserver",
        }
    }

    /// As many as it takes a few seconds for.
    pub(crate) fn records(self) -> usize {
        match self {
            Self::PassThrough | Self::ForebayNoScoring => 1_000_000,
            Self::RustLoop | Self::Forebay | Self::ForebayAtLeastOnce => 300_000,
            Self::PythonConfluentKafka => 150_000,
            Self::QuixStreams => 40_000,
            Self::Mlserver => 15_000,
        }
    }

    pub(crate) fn promise(self) -> &'static str {
        match self {
            // Auto-commit does not exist without a group: what arrives while it is down is never read.
            Self::Mlserver => "at most once",
            Self::ForebayAtLeastOnce => "at least once",
            _ => "exactly once",
        }
    }

    pub(crate) fn format(self) -> Format {
        if self == Self::Mlserver { Format::V2 } else { Format::Reference }
    }

    /// What it answers with.
    pub(crate) fn answer(self) -> Answer {
        match self {
            Self::PassThrough => Answer::CopyWithHeader,
            Self::ForebayNoScoring => Answer::NoWork,
            _ => Answer::Score,
        }
    }

    /// One of this worker's rows.
    pub(crate) fn is_forebay(self) -> bool {
        matches!(self, Self::Forebay | Self::ForebayNoScoring | Self::ForebayAtLeastOnce)
    }

    /// The rates of its latency phases.
    pub(crate) fn latency_rates(self) -> &'static [f64] {
        match self {
            Self::Forebay | Self::ForebayAtLeastOnce => &LATENCY_RATES,
            _ => &LATENCY_RATES[..1],
        }
    }

    /// It reads only what arrives while it runs.
    pub(crate) fn reads_from_now(self) -> bool {
        self == Self::Mlserver
    }

    /// What must be installed for it, and how that is done; `None` when it is there.
    pub(crate) fn missing(self) -> Option<String> {
        let program = match self {
            Self::PassThrough | Self::RustLoop | Self::Forebay | Self::ForebayNoScoring | Self::ForebayAtLeastOnce => {
                return None;
            }
            Self::PythonConfluentKafka | Self::QuixStreams => ".venv/peers/bin/python",
            Self::Mlserver => ".venv/mlserver/bin/mlserver",
        };
        let why = fs::read_to_string(root().join(".venv/mlserver.failed")).unwrap_or_default();
        (!root().join(program).exists()).then(|| format!("{program} is missing (tests/setup/bench) {}", why.trim()))
    }

    fn command(self, place: &Place, folder: &Path) -> anyhow::Result<Command> {
        let program = |path: &Path| {
            // The subject dies with the bench, however that ends.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(path);
            command
        };
        let python = |script: &str| {
            let mut command = program(&root().join(".venv/peers/bin/python"));
            command.arg(root().join("tests/peers").join(script)).arg(peer_settings(place));
            command
        };
        Ok(match self {
            Self::PassThrough | Self::RustLoop => {
                let mut command = program(&std::env::current_exe()?);
                command.args(["--line", self.name(), "--brokers", &place.brokers, "--input", &place.input]);
                command.args(["--output", &place.output, "--group", &place.group, "--model"]).arg(&place.model);
                command
            }
            Self::Forebay | Self::ForebayNoScoring | Self::ForebayAtLeastOnce => {
                let config = folder.join("worker.toml");
                fs::write(&config, worker_toml(self, place, folder)?)?;
                let mut command = program(Path::new(env!("CARGO_BIN_EXE_forebay")));
                command.args(["run", "--instance", "bench", "--config"]).arg(config);
                command
            }
            Self::PythonConfluentKafka => python("python_confluent_kafka.py"),
            Self::QuixStreams => python("quix_streams.py"),
            Self::Mlserver => {
                let mut command = program(&root().join(".venv/mlserver/bin/mlserver"));
                command.arg("start").arg(mlserver_folder(place, folder)?);
                command
            }
        })
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All defaults but the clients' settings, which are the peers' too, and what makes the row.
fn worker_toml(subject: Subject, place: &Place, folder: &Path) -> anyhow::Result<String> {
    let Place { brokers, input, output, group, model } = place;
    let client: String = [CONSUMER, PRODUCER]
        .concat()
        .iter()
        // At least once has a linger of its own: replies go out one by one.
        .filter(|(key, _)| subject != Subject::ForebayAtLeastOnce || *key != "linger.ms")
        .map(|(key, value)| format!("\"{key}\" = \"{value}\""))
        .collect::<Vec<_>>()
        .join("\n");
    let (own, model) = match subject {
        // Transactions as large as the floor's, and a model that only says how wide its rows are.
        Subject::ForebayNoScoring => {
            let model = folder.join("no-work.txt");
            fs::write(&model, NO_WORK)?;
            ("commit_records_max = 10000\n", model)
        }
        Subject::ForebayAtLeastOnce => ("delivery = \"at_least_once\"\n", model.clone()),
        _ => ("", model.clone()),
    };
    let model = model.display();
    Ok(format!(
        "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n{own}\n[kafka.client]\n{client}\n[[route]]\n\
         input = [\"{input}\"]\nreply_topic = \"{output}\"\n\n[[model]]\nname = \"{MODEL}\"\npath = \"{model}\"\n\n\
         [cache]\nmode = \"off\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n"
    ))
}

fn peer_settings(place: &Place) -> String {
    let table = |settings: &[(&str, &str)]| -> BTreeMap<String, String> {
        settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let Place { brokers, input, output, group, model } = place;
    json!({
        "brokers": brokers, "input": input, "output": output, "group": group, "model": model,
        "consumer": table(CONSUMER), "consumer_of_a_loop": table(CONSUMER_OF_A_LOOP), "producer": table(PRODUCER),
    })
    .to_string()
}

/// The committed settings with this run's addresses and model.
fn mlserver_folder(place: &Place, folder: &Path) -> anyhow::Result<PathBuf> {
    let own = folder.join("mlserver");
    fs::create_dir_all(&own)?;
    let write = |name: &str, changes: &dyn Fn(&mut serde_json::Value)| -> anyhow::Result<()> {
        let mut settings = serde_json::from_slice(&fs::read(root().join("tests/peers/mlserver").join(name))?)?;
        changes(&mut settings);
        Ok(fs::write(own.join(name), settings.to_string())?)
    };
    write("settings.json", &|settings| {
        settings["kafka_servers"] = json!(place.brokers);
        settings["kafka_topic_input"] = json!(place.input);
        settings["kafka_topic_output"] = json!(place.output);
        for port in ["http_port", "grpc_port", "metrics_port"] {
            settings[port] = json!(crate::support::free_port());
        }
    })?;
    write("model-settings.json", &|settings| settings["parameters"]["uri"] = json!(place.model))?;
    Ok(own)
}

/// A running subject, killed when dropped.
pub(crate) struct Process {
    subject: Subject,
    child: Child,
    log: PathBuf,
}

/// CPU time used so far, in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct CpuUs {
    pub(crate) process: f64,
    /// Of its live threads, by name.
    pub(crate) threads: BTreeMap<String, f64>,
}

impl Process {
    pub(crate) fn start(subject: Subject, place: &Place, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{}.log", subject.name()));
        let out = File::create(&log)?;
        let mut command = subject.command(place, folder)?;
        command.current_dir(folder).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot start {}", subject.name()))?;
        Ok(Self { subject, child, log })
    }

    /// An error when it has ended, with the last lines of its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "{} ended by itself ({ended:?}):\n{}", self.subject.name(), self.log_end());
        Ok(())
    }

    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Of the process and its children.
    pub(crate) fn cpu(&self) -> CpuUs {
        let mut cpu = CpuUs::default();
        for pid in family(self.child.id()) {
            cpu.process += process_cpu_us(pid).unwrap_or(0.0);
            for task in tasks(pid) {
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                *cpu.threads.entry(name.trim().to_owned()).or_default() += task_cpu_us(&task).unwrap_or(0.0);
            }
        }
        cpu
    }

    /// The most memory that the process and its children had, in MB.
    pub(crate) fn peak_mb(&self) -> f64 {
        let peak_kib = |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        family(self.child.id()).into_iter().map(peak_kib).sum::<f64>() * 1024.0 / 1e6
    }

    /// SIGTERM. Only forebay promises an exit code.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.check()?;
        ensure!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?.success(), "kill failed");
        let start = clock::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let drained = !self.subject.is_forebay() || status.success();
                ensure!(drained, "forebay did not drain ({status}):\n{}", self.log_end());
                return Ok(());
            }
            if clock::now() - start > LEAVE_BOUND {
                ensure!(!self.subject.is_forebay(), "forebay does not leave:\n{}", self.log_end());
                return Ok(());
            }
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

/// A process and all that descend from it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    folder.map(|tasks| tasks.filter_map(|task| Some(task.ok()?.path())).collect()).unwrap_or_default()
}
