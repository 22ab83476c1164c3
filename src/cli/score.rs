//! `forebay score`: a file or stdin in, a line for each line out. The straight line of the worker without a broker:
//! lines source -> decode -> engine -> encode -> lines sink.
//!
//! Two threads besides the score threads: this one reads, decodes and submits; `forebay-write` encodes, puts back in
//! order and writes. A chunk takes one of [`places`] before it is read, and gives it back when its last line
//! is written: that bounds everything in between, and a writer that is gone stops the reader.

mod input;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::Builder;

use anyhow::{Context as _, anyhow, ensure};
use clap::{Args, ValueEnum};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use indicatif::ProgressBar;

pub(super) use self::input::InputArgs;
use self::input::Opened;
use super::load::LoadArgs;
use super::{LogArgs, Usage, exit, logs};
use crate::batch::{BatchPolicy, LevelPolicy, Levels};
use crate::clock;
use crate::config::ReplyMetadata;
use crate::encode::Encoder;
use crate::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec};
use crate::model::LoadedModel;
use crate::record::{Chunk, ModelId, Priority, Reply, ScoredBatch, Ticket};
use crate::score::Submitter;
use crate::sink::lines::{LinesSink, table_error, table_header, table_rows};
use crate::source::lines::{LinesSource, route_decoder};

pub(super) use self::input::{TableArgs, open as open_input, source as open_source};

// A paragraph is one line: the terminal's width breaks it.
const EXAMPLES: &str = "\
Examples:
  forebay score --model fraud.txt requests.jsonl
  forebay score --model fraud.txt people.csv --output csv -o scores.csv
  forebay score --model higgs.txt higgs.tsv --no-header --skip-columns 1
  tail -f requests.jsonl | forebay score --model fraud.txt

JSON lines: a line is a request, {\"id\": \"r1\", \"features\": [0.1, null, 3]} or {\"features\": {\"age\": 41}}, a \
bare array, [0.1, null, 3], or a request of the Open Inference Protocol, {\"inputs\": [...]}. A line without an id gets line/<number>. A timeout_ms counts from when the line is read.

CSV, TSV: columns are found by the model's feature names where the header has them all, in any order, else by \
position. An empty cell, NA, NaN and null are a missing value; where the model takes text, only an empty cell is. Blank \
lines are passed over.

Each line has one reply, in the order of the input. One that cannot be scored gets an error reply, and the exit code \
is 1 in the end.";

/// Arguments of `forebay score`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ScoreArgs {
    /// The model file, or with --config its name there
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// The model's name in requests and replies [default: the file's name without its ending]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    input: InputArgs,
    /// Where the scores go; - is standard output
    #[arg(short = 'o', long = "output-file", value_name = "OUTPUT", default_value = "-")]
    output_file: PathBuf,
    /// What is written: replies as JSON lines, or a table of scores with an error column
    #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
    output: OutputFormat,
    /// How much a JSON reply tells about its scoring; only `none` is the same in every run
    #[arg(long, value_name = "LEVEL", default_value = "none")]
    metadata: MetadataArg,
    /// Most rows that are scored together
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch_size: u32,
    /// Score threads; 0 is one for each core that the container grants
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024))]
    threads: u32,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    Jsonl,
    Csv,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MetadataArg {
    None,
    Short,
    Full,
}

pub(super) fn run(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    logs::start_plain(&args.log)?;
    let mut input = open_input(&args.input)?;
    refuse_same_file(args.input.path(), &args.output_file)?;
    let (engine, model) = load(args)?;
    let started = clock::now();
    let bar = progress_bar(input.bytes, &args.output_file);
    input.bar = bar.clone();
    let name = args.input.name();
    let source = open_source(input, &args.input, &engine.catalog().entries()[0], args.batch_size as usize)?;
    let line = Line { args, engine: &engine, outputs: model.schema().outputs, bar: &bar };
    let ended = line.score(source, open_output(&args.output_file)?).with_context(|| format!("cannot score {name}"));
    bar.finish_and_clear();
    let totals = ended?;
    let seconds = (clock::now() - started).as_secs_f64();
    let Totals { rows, failed } = totals;
    let rate = rows as f64 / seconds.max(1e-9);
    eprintln!("forebay: {rows} rows, {failed} failed, {seconds:.3} s, {rate:.0} rows/s");
    Ok(if failed == 0 { exit::DONE } else { exit::FAILED }.into())
}

/// Rows that ended; a line that could not be read counts as one.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    rows: u64,
    failed: u64,
}

/// Starts an engine with one model.
fn load(args: &ScoreArgs) -> anyhow::Result<(InferenceEngine, Arc<LoadedModel>)> {
    let config = InferenceEngineConfig {
        num_threads: args.threads as usize,
        // The rows of a file seldom come again, and a small model is quicker than a lookup.
        enable_request_deduplication: false,
        ..InferenceEngineConfig::default()
    };
    let engine = InferenceEngine::new(config)?;
    let asked = args.load.asked(&args.model)?;
    let stem = || args.model.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let depth = u32::try_from(places(&engine))?.saturating_mul(args.batch_size);
    let default = BatchPolicy::default();
    // Whatever is in flight may wait in one level.
    let queue_depth_max = NonZeroU32::new(depth).unwrap_or(NonZeroU32::MIN);
    let level = LevelPolicy { queue_depth_max, ..LevelPolicy::default() };
    let id = engine.load_spec(&ModelSpec {
        name: args.name.clone().unwrap_or_else(stem),
        path: asked.path,
        load: asked.options,
        sha256: asked.sha256,
        batch: BatchPolicy {
            batch_size_max: NonZeroU32::new(args.batch_size).unwrap_or(NonZeroU32::MIN),
            levels: Levels::uniform(default.levels.count(), level),
            ..default
        },
        priority_default: Priority::new(2).expect("2 is not 0"),
    })?;
    let model = engine.model(id).context("the model is in no slot")?;
    Ok((engine, model))
}

/// Chunks in flight: for each score thread the one that it scores and the one that it takes next, one that is being
/// read and one that is being written.
fn places(engine: &InferenceEngine) -> usize {
    2 * engine.score_threads() + 2
}

/// What the writer is told, in one queue: that a chunk was read, and then that its requests ended.
enum Event {
    Read(Arc<Chunk>),
    Ended(Box<ScoredBatch>),
    /// Nothing more is read.
    End,
}

struct Ends(Sender<Event>);

impl Submitter for Ends {
    fn completed(&self, batch: ScoredBatch) {
        // A writer that is gone wants nothing any more.
        let _ = self.0.send(Event::Ended(Box::new(batch)));
    }
}

/// What the line from source to sink is made of.
struct Line<'a> {
    args: &'a ScoreArgs,
    engine: &'a InferenceEngine,
    outputs: usize,
    bar: &'a ProgressBar,
}

impl Line<'_> {
    fn score(&self, source: LinesSource<Opened>, output: Box<dyn Write + Send>) -> anyhow::Result<Totals> {
        let places = places(self.engine);
        // Each place holds one chunk, which is one `Read` and at most one `Ended` a request; and one `End`.
        let (events, inbox) = bounded(places * (self.args.batch_size as usize + 1) + 1);
        let (taken, places) = bounded(places);
        let writer = Writer {
            inbox,
            places,
            sink: LinesSink::new(BufWriter::with_capacity(1 << 16, output)),
            encoder: Encoder::new(),
            layout: Layout::new(self.args, self.outputs),
            bar: self.bar.clone(),
            totals: Totals::default(),
        };
        std::thread::scope(|scope| {
            let writing = Builder::new().name("forebay-write".to_owned()).spawn_scoped(scope, || writer.run());
            let writing = writing.context("cannot start a thread")?;
            let read = self.read(source, &taken, &events);
            // What was read is written, even if the rest cannot be read. A writer that is gone needs no word.
            let _ = events.send(Event::End);
            let written = writing.join().map_err(|_| anyhow!("the writing thread panicked"))?;
            read.and(written)
        })
    }

    /// Reads, decodes and submits, until the input ends or the writer is gone.
    fn read(&self, mut source: LinesSource<Opened>, places: &Sender<()>, events: &Sender<Event>) -> anyhow::Result<()> {
        let submitter = self.engine.register(Arc::new(Ends(events.clone())));
        let (decoder, catalog) = (route_decoder(ModelId(0)), self.engine.catalog());
        while places.send(()).is_ok() {
            let chunk = source.recv(|message, received, chunk| {
                decoder.decode(message, received, &catalog, chunk);
            });
            let Some(chunk) = chunk.context("cannot read it")? else { break };
            let chunk = Arc::new(chunk);
            if events.send(Event::Read(Arc::clone(&chunk))).is_err() {
                break;
            }
            let queued = self.engine.submit(submitter, &chunk, 0)?;
            ensure!(queued == chunk.requests().len(), "the queue has room for all that is in flight");
        }
        Ok(())
    }
}

/// What a line of the output is.
enum Layout {
    Replies(ReplyMetadata),
    Table { outputs: usize },
}

impl Layout {
    fn new(args: &ScoreArgs, outputs: usize) -> Self {
        match (args.output, args.metadata) {
            (OutputFormat::Csv, _) => Self::Table { outputs },
            (OutputFormat::Jsonl, MetadataArg::None) => Self::Replies(ReplyMetadata::None),
            (OutputFormat::Jsonl, MetadataArg::Short) => Self::Replies(ReplyMetadata::Short),
            (OutputFormat::Jsonl, MetadataArg::Full) => Self::Replies(ReplyMetadata::Full),
        }
    }
}

struct Writer<W: Write> {
    inbox: Receiver<Event>,
    places: Receiver<()>,
    sink: LinesSink<W>,
    encoder: Encoder,
    layout: Layout,
    bar: ProgressBar,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Returns when all is written. Its places go with it, which stops the reader.
    fn run(mut self) -> anyhow::Result<Totals> {
        self.write().context("cannot write the scores")?;
        Ok(self.totals)
    }

    fn write(&mut self) -> io::Result<()> {
        if let Layout::Table { outputs } = self.layout {
            self.sink.write_header(&table_header(outputs))?;
        }
        let mut end = false;
        while !end || !self.sink.is_empty() {
            let event = match self.inbox.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Empty) => {
                    // Whoever reads along gets what is ready before we wait.
                    self.sink.flush()?;
                    let Ok(event) = self.inbox.recv() else { break };
                    event
                }
                Err(TryRecvError::Disconnected) => break,
            };
            match event {
                Event::Read(chunk) => self.expect(&chunk),
                Event::Ended(batch) => self.finish(*batch),
                Event::End => end = true,
            }
            for _ in 0..self.sink.write_ready()? {
                let _ = self.places.try_recv();
            }
            self.show_progress();
        }
        self.sink.flush()
    }

    /// Notes a chunk's requests; the rejected among them have their end with it.
    fn expect(&mut self, chunk: &Arc<Chunk>) {
        self.sink.expect(chunk);
        for (index, request) in chunk.requests().iter().enumerate() {
            let Err(reject) = &request.work else { continue };
            self.count(1, false);
            let line = match self.layout {
                Layout::Table { outputs } => table_error(&reject.message, outputs),
                Layout::Replies(_) => {
                    let index = u32::try_from(index).expect("a chunk holds at most 65,536 requests");
                    self.encoder.encode_reject(Ticket { chunk: Arc::clone(chunk), index }, reject).payload
                }
            };
            self.sink.finish(request.position, line);
        }
    }

    fn finish(&mut self, batch: ScoredBatch) {
        match self.layout {
            Layout::Table { .. } => self.finish_table(&batch),
            Layout::Replies(metadata) => {
                let mut replies = Vec::new();
                self.encoder.encode_batch(batch, |_route| metadata, &mut replies);
                for Reply { ticket, payload, error } in replies {
                    self.count(rows_of(&ticket), error.is_none());
                    self.sink.finish(ticket.request().position, payload);
                }
            }
        }
    }

    fn finish_table(&mut self, batch: &ScoredBatch) {
        for (index, ticket) in batch.tickets.iter().enumerate() {
            let scores = batch.scores_of(index);
            self.count(rows_of(ticket), scores.is_ok());
            let line = match (scores, &self.layout) {
                (Ok(scores), _) => table_rows(scores, batch.outputs),
                (Err(reject), Layout::Table { outputs }) => table_error(&reject.message, *outputs),
                (Err(reject), Layout::Replies(_)) => table_error(&reject.message, batch.outputs),
            };
            self.sink.finish(ticket.request().position, line);
        }
    }

    fn count(&mut self, rows: u64, scored: bool) {
        self.totals.rows += rows;
        self.totals.failed += if scored { 0 } else { rows };
    }

    fn show_progress(&self) {
        if !self.bar.is_hidden() {
            let Totals { rows, failed } = self.totals;
            self.bar.set_message(format!("{rows} rows, {failed} failed"));
        }
    }
}

fn rows_of(ticket: &Ticket) -> u64 {
    ticket.request().work.as_ref().map_or(1, |work| u64::from(work.rows))
}

/// A bar over a file's bytes, a spinner where the input has no length, and nothing where nobody looks.
fn progress_bar(bytes: Option<u64>, output: &Path) -> ProgressBar {
    let on_screen = output == Path::new("-") && io::stdout().is_terminal();
    if !io::stderr().is_terminal() || on_screen {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:24} {percent:>3}%  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    let style = indicatif::ProgressStyle::with_template(template);
    bar.with_style(style.expect("a template of known parts"))
}

fn open_output(path: &Path) -> anyhow::Result<Box<dyn Write + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).with_context(|| format!("--output-file: cannot write {}", path.display()))?;
    Ok(Box::new(file))
}

/// Opening the output would empty the input.
fn refuse_same_file(input: Option<&Path>, output: &Path) -> anyhow::Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if let Some(input) = input
        && output != Path::new("-")
        && let (Some(from), Some(to)) = (real(input), real(output))
        && from == to
    {
        return Err(Usage(format!("--output-file {}: is the input", output.display())).into());
    }
    Ok(())
}
