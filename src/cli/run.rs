//! `forebay run`: a worker.toml in, a worker until SIGTERM or SIGINT.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::Builder;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{RunArgs, exit, logs};
use crate::clock::Stop;
use crate::config::{Config, Overrides};
use crate::pipeline::{Ended, Worker, WorkerError};
use crate::reload::{ConfigSource, Reloader};

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { instance: args.instance.clone() };
    let config = match Config::from_file(&args.config, &overrides) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("forebay: {error}");
            return Ok(exit::BAD_CONFIG.into());
        }
    };
    logs::start(&config.log);
    let stop = Arc::new(Stop::default());
    stop_on_signals(&stop, config.drain_timeout()).context("cannot listen for signals")?;
    let source = ConfigSource { path: args.config.clone(), overrides };
    let ended = Worker::start(&config, Some(source), stop).and_then(|worker| {
        reload_on_hangup(worker.reloader())?;
        worker.wait()
    });
    Ok(match ended {
        Ok(Ended::Drained) => {
            tracing::info!("drained: all that was received is answered and committed");
            exit::DONE
        }
        Ok(Ended::CutShort { unanswered }) => {
            tracing::warn!(unanswered, "the drain was cut short; what was not committed will be scored again");
            exit::CUT_SHORT
        }
        Err(error) => {
            eprintln!("forebay: {error}");
            exit_code_of(&error)
        }
    }
    .into())
}

fn exit_code_of(error: &WorkerError) -> u8 {
    match error {
        WorkerError::Fenced(_) => exit::FENCED,
        WorkerError::Model(_) | WorkerError::Candidate(_) => exit::MODEL_REFUSED,
        WorkerError::Engine(_) | WorkerError::Admin(..) | WorkerError::Client(_) => exit::BAD_CONFIG,
        WorkerError::Thread(_) | WorkerError::Failed(_) => exit::FAILED,
    }
}

/// The first signal asks for a drain; a second one ends the process at once.
fn stop_on_signals(stop: &Arc<Stop>, bound: std::time::Duration) -> std::io::Result<()> {
    let stop = Arc::clone(stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    Builder::new().name("forebay-signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for first in [true, false] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if first {
                    tracing::info!(?bound, "draining; a second signal ends at once");
                    stop.request(bound);
                }
            }
            std::process::exit(exit::CUT_SHORT.into());
        });
    })?;
    Ok(())
}

/// SIGHUP reads config and models again.
fn reload_on_hangup(reloader: &Arc<Reloader>) -> std::io::Result<()> {
    let reloader = Arc::clone(reloader);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut hangup = {
        let _inside = runtime.enter();
        signal(SignalKind::hangup())?
    };
    Builder::new().name("forebay-hangup".to_owned()).spawn(move || {
        runtime.block_on(async move {
            while hangup.recv().await.is_some() {
                // Each outcome is in the log.
                let _ = reloader.reload_all();
            }
        });
    })?;
    Ok(())
}
