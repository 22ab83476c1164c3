//! Where `tracing` goes: standard error, as text or JSON. The first call counts.

use std::io;

use tracing_subscriber::EnvFilter;

use super::{LogArgs, Usage};
#[cfg(feature = "kafka")]
use crate::config::Log;
use crate::config::LogFormat;

/// Logs as a config says. `RUST_LOG` goes before its level, for a look inside without a change of the file.
#[cfg(feature = "kafka")]
pub(super) fn start(log: &Log) {
    // What the NATS client tells of its connection stands in our own lines already.
    let default = || EnvFilter::new(format!("{},async_nats=off", log.level.as_str()));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default());
    subscribe(filter, log.format);
}

/// Logs as the command line says.
pub(super) fn start_plain(args: &LogArgs) -> Result<(), Usage> {
    let filter = EnvFilter::try_new(&args.log_level);
    let filter = filter.map_err(|error| Usage(format!("--log-level {:?}: {error}", args.log_level)))?;
    subscribe(filter, LogFormat::Text);
    Ok(())
}

fn subscribe(filter: EnvFilter, format: LogFormat) {
    // The binding tells of every batch at `info`.
    let filter = filter.add_directive("xgboost_rs=warn".parse().expect("a directive of the right form"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A library user's own subscriber stays.
    let _ = match format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
}
