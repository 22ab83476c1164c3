//! `forebay bench kernel`: what a row costs, by batch size, on one thread: the compiled forest beside the library that
//! the model was trained with, in one run.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use comfy_table::CellAlignment;
use serde::Serialize;
use serde_json::json;

use super::model::{plain_table, read_rows};
use super::score::{InputArgs, TableArgs};
use super::{LogArgs, TypeArg, exit, logs};
use crate::clock;
use crate::model::{
    self, Backend, LoadOptions, Model, ModelBytes, ModelError, ModelSchema, RowType, Rows, Scorer, Values,
};

/// A pass scores whole batches for so long; the best of so many counts, after one that only warms up.
const PASS: Duration = Duration::from_millis(60);
const PASSES: usize = 7;
/// Calls between two looks at the clock take at least so many rows, so that looking costs nothing.
const ROWS_PER_LOOK: usize = 512;

/// Arguments of `forebay bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Microseconds per row of a model, by batch size, on one thread
    #[command(after_help = KERNEL_HELP)]
    Kernel(KernelArgs),
}

// A paragraph is one line: the terminal's width breaks it.
const KERNEL_HELP: &str = "\
Examples:
  forebay bench kernel --model fraud.txt --data rows.jsonl
  forebay bench kernel --model higgs.txt --data higgs.tsv --no-header --skip-columns 1 --batch 1,8,64,1024 --json

The rows are read first, so the figures are of scoring alone. XGBoost and LightGBM models are scored by the compiled \
forest (forebay) and by their own library where it scores the file right, others by their own runtime. Passes of all \
take turns, and the best of each counts; the machine should have nothing else to do.";

#[derive(Debug, Args)]
struct KernelArgs {
    /// The model file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// What the model file is
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    model_type: TypeArg,
    /// Rows to score, in any format of `forebay score`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rows a call
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64,1024",
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let Command::Kernel(args) = &args.command;
    logs::start_plain(&args.log)?;
    let file = ModelBytes::read(&args.model, None)?;
    let (mut subjects, absent) = subjects(&file, args)?;
    let schema = subjects[0].schema.clone();
    let sample = read_rows(&InputArgs::of_file(&args.data, &args.table), &schema)?;
    ensure!(!sample.rows.is_empty(), "{}: holds no rows", args.data.display());
    let count = sample.rows.len() / schema.width();
    let texts: Vec<Option<&str>> = sample.texts.iter().map(Option::as_deref).collect();
    let mut figures = Vec::new();
    for &batch in &args.batch {
        let stream = Stream::new(&sample.rows, &texts, &schema, batch as usize);
        measure(&mut subjects, &stream, batch, &mut figures)?;
    }
    let text = if args.json {
        let model = args.model.file_stem().unwrap_or_default().to_string_lossy();
        let rows: Vec<_> = figures.iter().map(|figure| figure.json(&model)).collect();
        let report = json!({
            "file": file.name(), "sha256": file.sha256, "data_rows": count, "rows": rows, "not_measured": absent,
        });
        serde_json::to_string_pretty(&report)?
    } else {
        describe(&file, &schema, count, &figures, absent.as_deref())
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(exit::DONE.into())
}

/// A model as one backend has it.
struct Subject {
    backend: &'static str,
    schema: ModelSchema,
    scorer: Box<dyn Scorer>,
}

impl Subject {
    fn new(model: &dyn Model) -> Result<Self, ModelError> {
        let schema = model.schema().clone();
        let backend = if model.is_compiled() { "forebay" } else { schema.model_type.as_str() };
        Ok(Self { backend, schema, scorer: model.scorer()? })
    }
}

/// All that can score the file, and why one cannot.
fn subjects(file: &ModelBytes, args: &KernelArgs) -> anyhow::Result<(Vec<Subject>, Option<String>)> {
    let load = |backend| {
        let model =
            model::load(file, &LoadOptions { model_type: args.model_type.0, ..LoadOptions::of_backend(backend) })?;
        Ok((model.is_compiled(), Subject::new(model.as_ref())?))
    };
    let compiled: Result<(bool, Subject), ModelError> = load(Backend::Compiled);
    // Where the compiled forest was asked for and is not what came, the same model would come again.
    if let Ok((false, _)) = compiled {
        return Ok((compiled.into_iter().map(|(_, subject)| subject).collect(), None));
    }
    match (compiled, load(Backend::Reference)) {
        (Ok((_, own)), Ok((_, library))) => Ok((vec![own, library], None)),
        (Ok((_, subject)), Err(absent)) | (Err(absent), Ok((_, subject))) => {
            Ok((vec![subject], Some(absent.to_string())))
        }
        (Err(error), Err(_)) => Err(error.into()),
    }
}

/// The rows in the model's own float type, as often as a batch needs them.
struct Stream<'t> {
    singles: Vec<f32>,
    doubles: Vec<f64>,
    texts: Vec<Option<&'t str>>,
    /// Text columns.
    text_width: usize,
    row_type: RowType,
    width: usize,
    batch: usize,
    /// Whole batches.
    batches: usize,
}

impl<'t> Stream<'t> {
    fn new(rows: &[f64], texts: &[Option<&'t str>], schema: &ModelSchema, batch: usize) -> Self {
        let (width, row_type) = (schema.width(), schema.row_type);
        let batches = (rows.len() / width / batch).max(1);
        let values = rows.iter().copied().cycle().take(batches * batch * width);
        let (mut singles, mut doubles) = (Vec::new(), Vec::new());
        match row_type {
            #[allow(clippy::cast_possible_truncation, reason = "the nearest f32 is what the library makes of it")]
            RowType::F32 => singles.extend(values.map(|value| value as f32)),
            RowType::F64 => doubles.extend(values),
        }
        let text_width = schema.kinds.text_columns().len();
        let texts = texts.iter().copied().cycle().take(batches * batch * text_width).collect();
        Self { singles, doubles, texts, text_width, row_type, width, batch, batches }
    }

    fn batch(&self, number: usize) -> Rows<'_> {
        let places = |width: usize| {
            let size = self.batch * width;
            number % self.batches * size..(number % self.batches + 1) * size
        };
        let place = places(self.width);
        let values = match self.row_type {
            RowType::F32 => Values::F32(&self.singles[place]),
            RowType::F64 => Values::F64(&self.doubles[place]),
        };
        Rows { values, width: self.width, texts: &self.texts[places(self.text_width)] }
    }
}

/// What one backend takes for a row.
#[derive(Serialize)]
struct Figure {
    backend: &'static str,
    batch: u32,
    us_per_row: f64,
}

impl Figure {
    fn json(&self, model: &str) -> serde_json::Value {
        json!({ "model": model, "backend": self.backend, "batch": self.batch, "us_per_row": self.us_per_row })
    }
}

/// Adds a figure for each subject, in order. They take turns, so that a slow moment hits all.
fn measure(subjects: &mut [Subject], stream: &Stream<'_>, batch: u32, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let mut best = vec![f64::INFINITY; subjects.len()];
    for pass in 0..=PASSES {
        for (subject, best) in subjects.iter_mut().zip(&mut best) {
            let us = pass_us(subject, stream).with_context(|| subject.backend)?;
            if pass > 0 {
                *best = best.min(us);
            }
        }
    }
    let new = subjects.iter().zip(best);
    figures.extend(new.map(|(subject, us_per_row)| Figure { backend: subject.backend, batch, us_per_row }));
    Ok(())
}

fn pass_us(subject: &mut Subject, stream: &Stream<'_>) -> anyhow::Result<f64> {
    let mut scores = vec![0.0; stream.batch * subject.schema.outputs];
    let looks = ROWS_PER_LOOK.div_ceil(stream.batch);
    let (start, mut calls) = (clock::now(), 0);
    loop {
        for call in calls..calls + looks {
            subject.scorer.score(stream.batch(call), &mut scores)?;
            std::hint::black_box(&mut scores);
        }
        calls += looks;
        let took = clock::now() - start;
        if took >= PASS {
            return Ok(took.as_secs_f64() * 1e6 / (calls * stream.batch) as f64);
        }
    }
}

/// A line for each batch size, a column for each backend.
fn describe(file: &ModelBytes, schema: &ModelSchema, count: usize, figures: &[Figure], absent: Option<&str>) -> String {
    let mut table = plain_table();
    let mut batches: Vec<u32> = figures.iter().map(|figure| figure.batch).collect();
    batches.dedup();
    let backends: Vec<&str> =
        figures.iter().take_while(|figure| figure.batch == batches[0]).map(|f| f.backend).collect();
    table.set_header(["batch"].iter().chain(&backends));
    for line in figures.chunks(backends.len()) {
        let cells = line.iter().map(|figure| format!("{:.3}", figure.us_per_row));
        table.add_row([line[0].batch.to_string()].into_iter().chain(cells));
    }
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let mut text = format!(
        "{}: {}, {} features, {} outputs, {count} rows, one thread\nmicroseconds per row\n{}",
        file.name(),
        schema.model_type,
        schema.width(),
        schema.outputs,
        table.trim_fmt()
    );
    if let Some(absent) = absent {
        let _ = write!(text, "\nnot measured: {absent}");
    }
    text
}
