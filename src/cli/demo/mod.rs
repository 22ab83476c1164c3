//! `forebay demo`: real records through a whole worker, counted where their replies go. Without a server it runs on
//! librdkafka's in-process mock cluster; with `--brokers` on a real one, with `--nats` on streams of JetStream, each
//! exactly once, with a worker killed midway.

mod check;
mod cluster;
mod data;
mod feed;
mod place;
mod streams;
mod workers;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use comfy_table::Table;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::check::{Check, Counts};
use self::cluster::Cluster;
use self::data::{BAD_RECORD, Data};
use self::feed::{Feed, Sent};
use self::place::{Place, Replies};
use self::streams::Streams;
use self::workers::{InProcess, Process, WORKERS};
use super::{DemoArgs, exit};
use crate::clock;
use crate::placement::Host;

/// Nothing new for so long means that something is stuck.
const STALL_BOUND: Duration = Duration::from_secs(60);
/// Records whose request and reply are shown; the last one gets an error.
const SHOWN: [usize; 3] = [0, 7, BAD_RECORD];

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.records > BAD_RECORD, "--records: at least {}", BAD_RECORD + 1);
    let folder = tempfile::Builder::new().prefix("forebay-demo-").tempdir()?;
    let model = model_file(args.model.as_deref(), folder.path())?;
    let data = Arc::new(Data::load(args.expected.as_deref())?);
    let place: Box<dyn Place> = match (&args.nats, &args.brokers) {
        (Some(url), _) => Box::new(Streams::create(url)?),
        (None, Some(brokers)) => Box::new(Cluster::real(brokers)?),
        (None, None) => Box::new(Cluster::mock()?),
    };
    let toml = folder.path().join("worker.toml");
    std::fs::write(&toml, workers::worker_toml(&*place, &model))?;
    let told = Story { args, data, place: &*place, toml: &toml, folder: folder.path(), model: &model }.tell();
    place.clean_up();
    if told.is_err() {
        show_logs(folder.path());
    }
    let counts = told?;
    let right = counts.lost == 0 && counts.doubled == 0 && counts.wrong.is_empty();
    Ok(if right { exit::DONE } else { exit::FAILED }.into())
}

fn model_file(given: Option<&Path>, folder: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return path.canonicalize().with_context(|| format!("--model {}", path.display()));
    }
    let path = folder.join("higgs.txt");
    std::fs::write(&path, data::MODEL)?;
    Ok(path)
}

fn show_logs(folder: &Path) {
    for name in ["demo-a", "demo-b"] {
        if let Ok(log) = std::fs::read_to_string(folder.join(format!("{name}.log"))) {
            eprintln!("---- log of worker {name}\n{log}");
        }
    }
}

struct Story<'a> {
    args: &'a DemoArgs,
    data: Arc<Data>,
    place: &'a dyn Place,
    toml: &'a Path,
    folder: &'a Path,
    model: &'a Path,
}

/// Records under way.
struct Flow {
    sent: Arc<Sent>,
    replies: Box<dyn Replies>,
    check: Check,
}

impl Flow {
    fn read(&mut self) -> anyhow::Result<()> {
        self.replies.read(&mut |payload| self.check.count(payload))
    }

    /// Reads what is left when the workers are gone: what came last is there now, and a reply that came twice may still
    /// lie behind the others.
    fn read_to_end(&mut self) -> anyhow::Result<()> {
        let since = clock::now();
        while !self.replies.is_at_end()? {
            ensure!(clock::now() - since < STALL_BOUND, "the end of the replies does not come");
            self.read()?;
        }
        Ok(())
    }
}

impl Story<'_> {
    fn tell(&self) -> anyhow::Result<Counts> {
        let replies = self.place.replies()?;
        let mut workers = self.start_workers()?;
        self.print_head(&workers)?;
        self.wait_until_ready(&mut workers)?;
        let faults = self.place.show_service(&self.data)?;
        let requests = self.place.requests()?;
        let sent = Arc::new(Sent::new(self.args.records));
        let mut check = Check::new(Arc::clone(&self.data), Arc::clone(&sent), &SHOWN)?;
        check.wrong.extend(faults);
        let start = clock::now();
        let feed = feed::start(requests, Arc::clone(&self.data), Arc::clone(&sent), self.args.rate())?;
        let mut flow = Flow { sent, replies, check };
        let bar = progress(self.args.records);
        let followed = self.follow(&mut flow, &feed, &mut workers, &bar);
        bar.finish();
        followed?;
        let took = clock::now() - start;
        match feed.join() {
            Ok(fed) => fed?,
            Err(_) => bail!("the producer panicked"),
        }
        workers.stop()?;
        flow.read_to_end()?;
        self.print_tail(flow.check, took)
    }

    fn start_workers(&self) -> anyhow::Result<Workers> {
        if self.args.is_in_process() {
            let worker = InProcess::start(self.toml)?;
            return Ok(Workers::Inside(Box::new(worker)));
        }
        let first = Process::start(self.toml, self.folder, "demo-a", true)?;
        let second = Process::start(self.toml, self.folder, "demo-b", false)?;
        Ok(Workers::Outside { first, second, killed: false })
    }

    /// What is measured is the line, not its start.
    fn wait_until_ready(&self, workers: &mut Workers) -> anyhow::Result<()> {
        let since = clock::now();
        loop {
            let waits_for = match workers {
                Workers::Inside(inside) => inside.worker.not_ready(),
                Workers::Outside { first, second, .. } => {
                    first.check()?;
                    second.check()?;
                    let ready = self.place.is_shared_by(WORKERS);
                    if ready { String::new() } else { "the workers do not share the partitions yet".to_owned() }
                }
            };
            if waits_for.is_empty() {
                return Ok(());
            }
            ensure!(clock::now() - since < STALL_BOUND, "the workers do not get ready: {waits_for}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Reads until every record is answered, or all of the input is done (then what has no reply is lost).
    fn follow(&self, flow: &mut Flow, feed: &Feed, workers: &mut Workers, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut progressed: (usize, Instant) = (0, clock::now());
        let records = self.args.records;
        loop {
            flow.read()?;
            let answered = flow.check.answered();
            bar.set_position(answered as u64);
            let waiting = flow.sent.count() - answered;
            bar.set_message(format!("waiting {waiting}   batch {:.0}", flow.check.batch_rows.mean()));
            if answered == records {
                return Ok(());
            }
            workers.follow(self, answered, bar)?;
            let now = clock::now();
            if answered > progressed.0 {
                progressed = (answered, now);
            } else if now - progressed.1 > Duration::from_secs(2) {
                if feed.is_finished() && flow.replies.is_at_end()? && workers.have_answered(self) {
                    // A reply that became visible with that commit is read before the end is believed.
                    return flow.read();
                }
                ensure!(
                    now - progressed.1 < STALL_BOUND,
                    "no reply for {STALL_BOUND:?}: {answered} of {records} are answered"
                );
            }
        }
    }

    fn print_head(&self, workers: &Workers) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let host = Host::read();
        let (cores, nodes) = (host.granted().len(), host.topology.nodes.len().max(1));
        let admin = match workers {
            Workers::Inside(inside) => format!(" · admin http://{}", inside.worker.admin()),
            Workers::Outside { .. } => String::new(),
        };
        writeln!(
            out,
            "forebay {} · {cores} cores, {} · {}{admin}",
            env!("CARGO_PKG_VERSION"),
            count(nodes, "NUMA node"),
            simd()
        )?;
        let file = crate::model::ModelBytes::read(self.model, None)?;
        let model = crate::model::load(&file, &crate::model::LoadOptions::default())?;
        let schema = model.schema();
        let detail = |wanted| schema.details.iter().find(|(name, _)| name == wanted).map_or("?", |(_, value)| value);
        let shape = format!("{} trees x {} leaves", detail("trees"), detail("leaves"));
        let name = self.model.file_name().unwrap_or_default().to_string_lossy();
        writeln!(
            out,
            "model   {name}  {}, {shape}, {} features, sha256 {}…  validated",
            schema.model_type,
            schema.width(),
            &file.sha256[..8]
        )?;
        writeln!(out, "{}", self.place.head(self.args.rate()))?;
        writeln!(out)?;
        Ok(())
    }

    fn print_tail(&self, mut check: Check, took: Duration) -> anyhow::Result<Counts> {
        let mut out = io::stdout().lock();
        writeln!(out)?;
        check.shown.sort();
        check.shown.dedup_by_key(|(record, _)| *record);
        for (record, reply) in &check.shown {
            writeln!(out, "request   key={record}  {}", shortened(&self.data.request(*record)))?;
            writeln!(out, "reply     key={record}  {reply}\n")?;
        }
        writeln!(out, "{}", table(&check.latency_us, &check.batch_rows))?;
        if let Some(next) = self.place.next() {
            writeln!(out, "next: {next}")?;
        }
        let (p50, p99) = (check.latency_us.value_at_quantile(0.5), check.latency_us.value_at_quantile(0.99));
        let counts = check.counts();
        for wrong in counts.wrong.iter().take(5) {
            writeln!(out, "wrong: {wrong}")?;
        }
        if counts.wrong.len() > 5 {
            writeln!(out, "wrong: {} more", counts.wrong.len() - 5)?;
        }
        let Counts { replies, lost, doubled, .. } = &counts;
        writeln!(
            out,
            "demo: in={} replies={replies} lost={lost} doubled={doubled} records_per_s={:.0} p50_ms={:.1} p99_ms={:.1}",
            self.args.records,
            *replies as f64 / took.as_secs_f64(),
            p50 as f64 / 1e3,
            p99 as f64 / 1e3,
        )?;
        Ok(counts)
    }
}

enum Workers {
    Inside(Box<InProcess>),
    Outside { first: Process, second: Process, killed: bool },
}

impl Workers {
    /// Kills the first worker midway and starts it again under its name.
    fn follow(&mut self, story: &Story<'_>, answered: usize, bar: &ProgressBar) -> anyhow::Result<()> {
        let Self::Outside { first, second, killed } = self else { return Ok(()) };
        first.check()?;
        second.check()?;
        if !*killed && answered >= story.args.records / 2 {
            let id = first.kill()?;
            let text = format!("  SIGKILL to worker demo-a (process {id}) after {answered} replies; started again");
            if bar.is_hidden() {
                println!("{text}");
            } else {
                bar.println(text);
            }
            *first = Process::start(story.toml, story.folder, "demo-a", false)?;
            *killed = true;
        }
        Ok(())
    }

    /// Whether all of the input is done. The mock cluster forgets what a transaction commits, so there the worker
    /// is asked; it only ends the wait, the replies are counted from the topic all the same.
    fn have_answered(&self, story: &Story<'_>) -> bool {
        match self {
            Self::Outside { .. } => story.place.is_all_done(),
            Self::Inside(inside) => {
                let metrics = inside.worker.engine().metrics();
                let received = metrics.records_received.get() >= story.args.records as u64;
                received && metrics.records_in_flight.get() == 0
            }
        }
    }

    fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Inside(inside) => inside.stop(),
            Self::Outside { mut first, mut second, killed } => {
                ensure!(killed, "all records were answered before a worker could be killed: ask for more --records");
                first.terminate()?;
                second.terminate()
            }
        }
    }
}

fn progress(records: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(records as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("  {pos}/{len} {bar:40} {percent}%   {per_sec}   {msg}") {
        bar.set_style(style.progress_chars("━━ "));
    }
    bar
}

fn table(latency_us: &Histogram<u64>, batch_rows: &Histogram<u64>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["", "p50", "p90", "p99", "max", ""]);
    let quantiles = |histogram: &Histogram<u64>| {
        let at = |quantile| histogram.value_at_quantile(quantile);
        [at(0.5), at(0.9), at(0.99), histogram.max()]
    };
    let [p50, p90, p99, max] = quantiles(latency_us).map(|us| format!("{:.1} ms", us as f64 / 1e3));
    table.add_row(["latency".to_owned(), p50, p90, p99, max, "producer to reply reader".to_owned()]);
    let [p50, p90, p99, max] = quantiles(batch_rows).map(|rows| rows.to_string());
    table.add_row(["batch size".to_owned(), p50, p90, p99, max, "rows scored at once".to_owned()]);
    table
}

/// A request of many features, so that it fits on a line.
fn shortened(request: &str) -> String {
    let values: Vec<&str> = request.split(',').collect();
    if values.len() < 8 {
        return request.to_owned();
    }
    format!("{}, … {} features]}}", values[..6].join(","), values.len() - 1)
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512bw") {
            return "AVX-512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "AVX2";
        }
    }
    std::env::consts::ARCH
}
