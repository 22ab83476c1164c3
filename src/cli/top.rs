//! `forebay top`: what a worker's live page shows, in a terminal; without one, or with `--once`, as plain text, once.
//!
//! It asks the admin port and nothing else. A worker that does not answer at first is an error; one that falls silent
//! later is said to be, and asked again.

mod screen;
mod sheet;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;

use self::sheet::Rates;
use super::{Usage, exit};
use crate::metrics::Stats;

/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(3);
/// Answers that are kept for the curves: more than a terminal is wide.
const HISTORY_MAX: usize = 512;

/// Arguments of `forebay top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  forebay top\n  forebay top --url http://10.0.0.7:9640 --interval 5s\n  \
    forebay top --once\n\nKeys: q ends, space holds the picture.")]
pub(super) struct TopArgs {
    /// The worker's admin port: admin.listen in its worker.toml
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9640")]
    url: String,
    /// How often the worker is asked, 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print the figures once, as text
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3_600);
    if allowed.contains(&interval) { Ok(interval) } else { Err("wants 100ms to 1h".to_owned()) }
}

pub(super) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let worker = Worker::new(&args.url)?;
    let mut history = History::default();
    history.push(worker.ask()?);
    if args.once || !io::stdout().is_terminal() {
        io::stdout().lock().write_all(sheet::text(&history, worker.url()).as_bytes())?;
    } else {
        screen::run(&worker, args.interval, history)?;
    }
    Ok(exit::DONE.into())
}

/// Where a worker answers.
struct Worker {
    agent: ureq::Agent,
    url: String,
}

impl Worker {
    fn new(url: &str) -> Result<Self, Usage> {
        let url = url.trim_end_matches('/');
        if url.strip_prefix("http://").is_none_or(str::is_empty) {
            return Err(Usage(format!("--url {url}: wants http://HOST:PORT; the admin port speaks no TLS")));
        }
        // A proxy of the environment has nothing to do with a port of this machine.
        let config = ureq::Agent::config_builder().timeout_global(Some(ANSWER_BOUND)).proxy(None).build();
        Ok(Self { agent: config.into(), url: url.to_owned() })
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn ask(&self) -> anyhow::Result<Stats> {
        let url = &self.url;
        let body =
            self.agent.get(format!("{url}/stats")).call().and_then(|mut answer| answer.body_mut().read_to_string());
        let body = match body {
            Err(ureq::Error::StatusCode(status)) => {
                anyhow::bail!("{url}/stats answered {status}: is that the admin port of a worker?")
            }
            body => body.with_context(|| {
                format!(
                    "no worker answers at {url}: start one (forebay run), or name its admin port with --url \
                     (admin.listen in its worker.toml)"
                )
            })?,
        };
        let other =
            || format!("what answers at {url}/stats is no worker of this version ({})", env!("CARGO_PKG_VERSION"));
        let stats: Stats = serde_json::from_str(&body).with_context(other)?;
        ensure!(stats.uptime_s.is_finite(), other());
        Ok(stats)
    }
}

/// The answers so far.
#[derive(Default)]
struct History {
    last: Option<Stats>,
    rates: Rates,
    /// Requests scored a second, and the latency's p99 in milliseconds, oldest first.
    throughput: VecDeque<f64>,
    latency: VecDeque<f64>,
}

impl History {
    fn push(&mut self, stats: Stats) {
        // A worker that was started again counts from zero.
        let before = self.last.take().filter(|before| before.uptime_s < stats.uptime_s);
        if before.is_none() {
            (self.throughput, self.latency) = Default::default();
        }
        self.rates = Rates::new(before.as_ref(), &stats);
        self.throughput.push_back(self.rates.scored);
        self.latency.push_back(sheet::latency(&stats).1.p99.unwrap_or_default());
        for curve in [&mut self.throughput, &mut self.latency] {
            while curve.len() > HISTORY_MAX {
                curve.pop_front();
            }
        }
        self.last = Some(stats);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_and_a_url_out_of_bounds_name_what_is_wanted() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("1ms"), Err("wants 100ms to 1h".to_owned()));
        assert!(interval("soon").is_err());
        for wrong in ["https://host:1", "host:1", "http://", "http:///"] {
            assert!(Worker::new(wrong).is_err_and(|error| error.0.contains("http://HOST:PORT")), "{wrong}");
        }
        assert_eq!(Worker::new("http://host:1/").unwrap().url(), "http://host:1");
    }
}
