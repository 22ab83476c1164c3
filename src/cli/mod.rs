//! The command line: arguments in, an exit code out. Each subcommand is a file of its own.
//!
//! Results go to standard output; errors, logs and progress go to standard error. An error is printed once, as
//! `forebay: message` with its causes, and its kind decides the exit code ([`exit`]).

mod bench;
mod config;
#[cfg(feature = "kafka")]
mod demo;
mod load;
mod logs;
mod model;
#[cfg(feature = "kafka")]
mod run;
mod score;
mod top;
mod topology;

use std::error::Error;
use std::io;
#[cfg(feature = "kafka")]
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::model::{Backend, ModelError, ModelType};

/// The process's exit codes.
pub mod exit {
    /// Done; for `run`, drained.
    pub const DONE: u8 = 0;
    /// Failed; for `score`, some rows have an error instead of scores.
    pub const FAILED: u8 = 1;
    /// The config or the command line is wrong; the message names the key or the option.
    pub const BAD_CONFIG: u8 = 2;
    /// Another worker runs as the same instance.
    pub const FENCED: u8 = 3;
    /// A model file was refused, or failed a check.
    pub const MODEL_REFUSED: u8 = 4;
    /// A drain was cut short by its bound; what was not committed will be scored again.
    pub const CUT_SHORT: u8 = 75;
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 bad config or usage, 3 another worker runs as the same instance,
4 model refused, 75 drain cut short";

/// Scores machine-learning models on Kafka streams.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, propagate_version = true, after_help = EXIT_CODES, max_term_width = 110)]
#[command(long_about = "Scores machine-learning models on Kafka streams: feature records come in, are scored in \
    batches, and leave as replies; replies and input positions are committed together.\n\n\
    New here? `forebay score` needs a model and a file, and no broker.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a worker.toml: records in, replies and offsets committed together
    #[cfg(feature = "kafka")]
    Run(RunArgs),
    /// Score a file or stdin: JSON lines, CSV or TSV
    Score(score::ScoreArgs),
    /// Look at a model file, or check it before it takes traffic
    Model(model::ModelArgs),
    /// Measure what a model costs
    Bench(bench::BenchArgs),
    /// Cores, NUMA nodes, and where threads will be pinned
    Topology(topology::TopologyArgs),
    /// Watch a running worker: throughput, latency, queues, lag
    Top(top::TopArgs),
    /// Check a worker.toml, or print it with all defaults
    Config(config::ConfigArgs),
    /// Stream real records through an in-process broker, or through a server of yours
    #[cfg(feature = "kafka")]
    Demo(DemoArgs),
}

/// Arguments of `forebay run`.
#[cfg(feature = "kafka")]
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay run --config worker.toml --instance \"$HOSTNAME\"\n\n\
    SIGTERM and SIGINT drain: what was received is answered and committed, then the worker ends with 0. A drain \
    that its bound (kafka.drain_timeout) cuts short ends with 75, a second signal ends at once. `forebay config schema` describes every key.")]
struct RunArgs {
    /// The worker.toml
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The worker's name, in place of the file's `instance`: unique among running workers, the same over restarts
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
}

/// Arguments of `forebay demo`.
#[cfg(feature = "kafka")]
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  forebay demo\n  forebay demo --brokers localhost:9092\n  \
    forebay demo --nats nats://localhost:4222\n\n\
    The last line counts what came back: demo: in=… replies=… lost=… doubled=… records_per_s=… p50_ms=… p99_ms=…")]
struct DemoArgs {
    /// Brokers of a real cluster; left out, a broker inside this process
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// A NATS server with JetStream, 2.12 or newer, in place of a broker
    #[arg(long, value_name = "URL", conflicts_with = "brokers")]
    nats: Option<String>,
    /// Records to stream
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    records: usize,
    /// Records a second [default: 8000 in process, 5000 with --brokers or --nats]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// A model in place of the shipped one
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The score of each row in place of the shipped ones, a number a line
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,
}

#[cfg(feature = "kafka")]
impl DemoArgs {
    fn rate(&self) -> u32 {
        self.rate.unwrap_or(if self.is_in_process() { 8_000 } else { 5_000 })
    }

    fn is_in_process(&self) -> bool {
        self.brokers.is_none() && self.nats.is_none()
    }
}

/// What to log, for the subcommands that read no config.
#[derive(Debug, Args)]
struct LogArgs {
    /// What to log on stderr: off, error, warn, info, debug, trace, or directives such as lightgbm=debug
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = "warn")]
    log_level: String,
}

/// `--model-type`: `auto`, or a kind by name.
#[derive(Clone, Copy, Debug)]
struct TypeArg(Option<ModelType>);

impl std::str::FromStr for TypeArg {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" { Ok(Self(None)) } else { name.parse().map(|kind| Self(Some(kind))) }
    }
}

/// `--backend`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    /// The compiled forest for trees, a model's own library for all else
    Auto,
    /// The compiled forest; scikit-learn models are converted first
    Compiled,
    /// The library that the model was trained with
    Reference,
}

impl From<BackendArg> for Backend {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => Self::Auto,
            BackendArg::Compiled => Self::Compiled,
            BackendArg::Reference => Self::Reference,
        }
    }
}

/// The command line asks for what cannot be: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Reads the arguments of this process and does what they ask.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return show_usage(&error),
    };
    // Reads the environment variable FAILPOINTS, in a build that has fail points.
    let scenario = fail::FailScenario::setup();
    let ended = match &cli.command {
        #[cfg(feature = "kafka")]
        Command::Run(args) => run::run(args),
        Command::Score(args) => score::run(args),
        Command::Model(args) => model::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Topology(args) => topology::run(args),
        Command::Top(args) => top::run(args),
        Command::Config(args) => config::run(args),
        #[cfg(feature = "kafka")]
        Command::Demo(args) => demo::run(args),
    };
    scenario.teardown();
    ended.unwrap_or_else(|error| {
        // Who closed our output (`| head`) wants no more of it, and no word about it.
        if is_broken_pipe(&error) {
            return exit::DONE.into();
        }
        eprintln!("forebay: {error:#}");
        exit_code_of(&error).into()
    })
}

/// Help and version go to standard output; mistakes look like all other errors.
fn show_usage(error: &clap::Error) -> ExitCode {
    let help = matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    if error.use_stderr() && !help {
        let text = error.render().to_string();
        eprint!("forebay: {}", text.strip_prefix("error: ").unwrap_or(&text));
        return exit::BAD_CONFIG.into();
    }
    // A closed output changes nothing.
    let _ = error.print();
    if error.use_stderr() { exit::BAD_CONFIG.into() } else { exit::DONE.into() }
}

fn exit_code_of(error: &anyhow::Error) -> u8 {
    let is = |found: fn(&(dyn Error + 'static)) -> bool| error.chain().any(found);
    if is(<dyn Error>::is::<ModelError>) {
        exit::MODEL_REFUSED
    } else if is(<dyn Error>::is::<ConfigError>) || is(<dyn Error>::is::<EngineError>) || is(<dyn Error>::is::<Usage>) {
        exit::BAD_CONFIG
    } else {
        exit::FAILED
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_errors_kind_decides_the_exit_code() {
        let of = |error: anyhow::Error| exit_code_of(&error.context("while at it"));
        assert_eq!(of(anyhow::anyhow!("x")), exit::FAILED);
        assert_eq!(of(Usage("x".to_owned()).into()), exit::BAD_CONFIG);
        assert_eq!(of(ModelError::refused("m", "x").into()), exit::MODEL_REFUSED);
    }
}
