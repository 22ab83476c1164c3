//! `forebay config`: a worker.toml checked or printed with all that is in effect; the schemas of what goes in and out.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use schemars::Schema;

use super::exit;
use crate::config::{self, Config, Overrides};
use crate::decode::{infer_request_schema, request_schema};
use crate::encode::{infer_reply_schema, reply_schema};

/// Arguments of `forebay config`.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a worker.toml: `ok`, or every problem with its line and key
    #[command(after_help = "Example:\n  forebay config check worker.toml\n\n\
        Nothing is connected to and no model is loaded; for that see `forebay model validate`.")]
    Check(FileArgs),
    /// Print a worker.toml with every default filled in and secrets as ***
    #[command(after_help = "Example:\n  forebay config dump worker.toml")]
    Dump(FileArgs),
    /// Print the JSON Schema of worker.toml, or write all schemas into a folder
    #[command(
        after_help = "Examples:\n  forebay config schema > worker.schema.json\n  forebay config schema --dir schemas"
    )]
    Schema {
        /// Write the schemas of worker.toml, of requests and of replies (oip-: of the Open Inference Protocol) into this folder, made where
        /// it is not there
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The worker.toml
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The worker's name, in place of the file's `instance`
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
}

impl FileArgs {
    fn load(&self) -> anyhow::Result<Config> {
        let overrides = Overrides { instance: self.instance.clone() };
        Ok(Config::from_file(&self.file, &overrides)?)
    }
}

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check(file) => {
            let config = file.load()?;
            #[cfg(feature = "kafka")]
            crate::client::check_settings(&config).map_err(super::Usage)?;
            writeln!(io::stdout(), "{}", summary(&config))?;
        }
        Command::Dump(file) => write!(io::stdout(), "{}", config::dump(&file.load()?))?,
        Command::Schema { dir: None } => write!(io::stdout(), "{}", text(&config::schema())?)?,
        Command::Schema { dir: Some(dir) } => write_schemas(dir)?,
    }
    Ok(exit::DONE.into())
}

fn summary(config: &Config) -> String {
    let many = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let (routes, models) = (many(config.routes.len(), "route"), many(config.models.len(), "model"));
    let brokers = config.kafka.iter().map(|kafka| kafka.brokers.clone());
    let servers = config.nats.iter().flat_map(|nats| &nats.connection.servers);
    let servers: Vec<&str> = servers.map(async_nats::ServerAddr::as_url_str).collect();
    let servers = Some(servers.join(",")).filter(|servers| !servers.is_empty());
    let places: Vec<String> = brokers.chain(servers).collect();
    let (instance, group, places) = (&config.instance, config.group(), places.join(" and "));
    format!("ok: instance {instance}, group {group} at {places}, {routes}, {models}")
}

fn write_schemas(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("--dir: cannot make the folder {}", dir.display()))?;
    let schemas = [
        ("config", config::schema()),
        ("request", request_schema()),
        ("reply", reply_schema()),
        ("oip-request", infer_request_schema()),
        ("oip-reply", infer_reply_schema()),
    ];
    for (name, schema) in schemas {
        let file = dir.join(format!("{name}.schema.json"));
        fs::write(&file, text(&schema)?).with_context(|| format!("--dir: cannot write {}", file.display()))?;
    }
    Ok(())
}

fn text(schema: &Schema) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(schema)? + "\n")
}
