//! `forebay model`: what a model file holds, whether it scores as it must, and its compiled form.

mod compile;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::json;

use super::load::LoadArgs;
use super::score::{InputArgs, TableArgs, open_input, open_source};
use super::{LogArgs, Usage, exit, logs};
use crate::model::compare::compare;
use crate::model::drift::{Drift, drift};
use crate::model::validate::{Check, Sample, Validation, validate};
use crate::model::{self, LoadOptions, Model, ModelBytes, ModelSchema, Quantization};
use crate::source::lines::{RowsError, each_row, entry_of};

/// Names that a table for people shows.
const NAMES_SHOWN: usize = 10;
/// Rows that are read at once; a sample is held in memory whole.
const CHUNK_ROWS: usize = 1024;
/// How far a score may be from what is expected, unless the command line says otherwise.
const TOLERANCE: &str = "1e-12";

/// Arguments of `forebay model`.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check that a model scores as it must, before it takes traffic
    #[command(after_help = VALIDATE_HELP)]
    Validate(ValidateArgs),
    /// Show what a model file holds: kind, features, outputs, digest
    #[command(after_help = "Examples:\n  forebay model inspect fraud.txt\n  forebay model inspect fraud.txt --json")]
    Inspect(FileArgs),
    /// Write the compiled form of a model, for a faster load
    #[command(after_help = compile::HELP)]
    Compile(compile::CompileArgs),
}

// A paragraph is one line: the terminal's width breaks it.
const VALIDATE_HELP: &str = "\
Examples:
  forebay model validate fraud.txt
  forebay model validate fraud.txt --data rows.jsonl --expected expected.jsonl

Made-up rows show whether all scores are finite, and whether a row scores the same alone, in a batch and in another \
order. With rows and the outputs that the original library gave for them, those must be met too: an array of outputs, \
or a number, a line. Without --data, <model>.rows.jsonl and <model>.expected.jsonl (fraud.rows.jsonl for fraud.txt) are \
taken where they exist, else rows.jsonl and expected.jsonl in the model's folder.

A compiled forest is also held against the library that the model was trained with, where this build has it and it \
scores the file right: on those rows, and on made-up ones with NaN, both zeros, infinities, subnormals, values on and \
beside the model's thresholds, and categories that it does not know.

With --quantize or --quantize-inputs (enable_model_quantization, enable_quantization in the --config) it says how far \
scores move from those of the original.

A model that is refused, or fails a check, ends with exit code 4.";

#[derive(Debug, Args)]
struct FileArgs {
    /// The model file, or with --config its name there
    #[arg(value_name = "MODEL")]
    file: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
struct ValidateArgs {
    #[command(flatten)]
    model: FileArgs,
    /// Rows to score, in any format of `forebay score`
    #[arg(long, value_name = "FILE", requires = "expected")]
    data: Option<PathBuf>,
    /// Their outputs: an array, or a number, a line
    #[arg(long, value_name = "FILE", requires = "data")]
    expected: Option<PathBuf>,
    /// The largest difference from an expected output; the share, where that is above 1
    #[arg(long, value_name = "X", default_value = TOLERANCE)]
    tolerance: f64,
    #[command(flatten)]
    table: TableArgs,
}

pub(super) fn run(args: &ModelArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Inspect(args) => inspect(args),
        Command::Validate(args) => run_validate(args),
        Command::Compile(args) => compile::run(args),
    }
}

fn load(args: &FileArgs) -> anyhow::Result<(ModelBytes, Box<dyn Model>, LoadOptions)> {
    logs::start_plain(&args.log)?;
    args.load.load(&args.file)
}

fn inspect(args: &FileArgs) -> anyhow::Result<ExitCode> {
    let (file, model, _) = load(args)?;
    let text = if args.json { describe_json(&file, model.schema())? } else { describe(&file, model.schema()) };
    writeln!(io::stdout(), "{text}")?;
    Ok(exit::DONE.into())
}

fn describe(file: &ModelBytes, schema: &ModelSchema) -> String {
    let names = &schema.feature_names;
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    let more = if names.len() > NAMES_SHOWN { ", … (all with --json)" } else { "" };
    let mut table = plain_table();
    table.add_row(["file", &file.name()]);
    table.add_row(["bytes", &file.bytes.len().to_string()]);
    table.add_row(["sha256", &file.sha256]);
    table.add_row(["type", schema.model_type.as_str()]);
    table.add_row(["features", &format!("{}: {shown}{more}", names.len())]);
    for (kind, names) in by_kind(schema) {
        table.add_row([kind, &names.join(", ")]);
    }
    table.add_row(["outputs", &schema.outputs.to_string()]);
    for (name, value) in &schema.details {
        table.add_row([name, value]);
    }
    table.trim_fmt()
}

/// The features that are no plain numbers, kind by kind.
fn by_kind(schema: &ModelSchema) -> Vec<(&'static str, Vec<&str>)> {
    let name = |column: usize| schema.feature_names[column].as_str();
    let texts = schema.kinds.text_columns().iter().map(|&column| name(column)).collect();
    let integers = schema.kinds.integers().iter().map(|&(column, ..)| name(column)).collect();
    let kinds: [(_, Vec<&str>); 2] = [("text features", texts), ("integer features", integers)];
    kinds.into_iter().filter(|(_, names)| !names.is_empty()).collect()
}

fn describe_json(file: &ModelBytes, schema: &ModelSchema) -> anyhow::Result<String> {
    let details: serde_json::Map<_, _> =
        schema.details.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let description = json!({
        "file": file.name(),
        "bytes": file.bytes.len(),
        "sha256": file.sha256,
        "type": schema.model_type.as_str(),
        "features": schema.feature_names,
        "feature_kinds": (0..schema.width()).map(|column| schema.kinds.of(column).name()).collect::<Vec<_>>(),
        "outputs": schema.outputs,
        "details": details,
    });
    Ok(serde_json::to_string_pretty(&description)?)
}

pub(super) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn run_validate(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    ensure_tolerance(args.tolerance)?;
    let (file, model, options) = load(&args.model)?;
    let files = sample_files(args, &file.path);
    let sample = files.as_ref().map(|files| read_sample(files, args, model.schema())).transpose()?;
    let mut scorer = model.scorer()?;
    let mut validation = validate(&file.name(), model.schema(), scorer.as_mut(), sample.as_ref())?;
    if model.is_compiled() {
        // Its library knows nothing of the steps before it, nor of the sample's rows then; nor of leaves in fewer bits.
        let own = sample.as_ref().filter(|_| model.preprocessor().is_none());
        let rows = own.map_or(&[][..], |sample| &sample.rows);
        let check = if model.preprocessor().is_some() || options.quantize {
            let quantize_inputs = Quantization::Off;
            let bare = LoadOptions { preprocess: Vec::new(), quantize: false, quantize_inputs, ..options.clone() };
            compare(&file, model::load(&file, &bare)?.as_ref(), rows)
        } else {
            compare(&file, model.as_ref(), rows)
        };
        validation.checks.push(check);
    }
    let drifts = Drifts::of(&file, model.as_ref(), &options, sample.as_ref())?;
    validation.checks.extend(drifts.checks(model.schema()));
    let text = if args.model.json {
        let sample = files.as_ref().map(|files| json!({ "data": files.data, "expected": files.expected }));
        let report = json!({
            "file": file.name(),
            "sha256": file.sha256,
            "passed": validation.passed(),
            "sample": sample,
            "checks": validation.checks,
            "drift": drifts.weights,
            "input_drift": drifts.inputs,
            "inputs_out_of_range": drifts.out_of_range,
        });
        serde_json::to_string_pretty(&report)?
    } else {
        report(&file, files.as_ref(), args.tolerance, &validation)
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(if validation.passed() { exit::DONE } else { exit::MODEL_REFUSED }.into())
}

/// How far quantization moves scores, of either kind that is asked for.
struct Drifts {
    weights: Option<Drift>,
    /// `None` also where features need no rounding.
    inputs: Option<Drift>,
    /// Values of the sample that are beyond what the rounded form holds.
    out_of_range: Option<usize>,
    quantizes_inputs: bool,
}

impl Drifts {
    fn of(
        file: &ModelBytes,
        model: &dyn Model,
        options: &LoadOptions,
        sample: Option<&Sample>,
    ) -> anyhow::Result<Self> {
        let weights = if options.quantize {
            let original = model::load(file, &LoadOptions { quantize: false, ..options.clone() })?;
            Some(drift(&file.name(), original.as_ref(), model, sample, None)?)
        } else {
            None
        };
        let steps = model.preprocessor();
        let inputs = if let Some(quantizer) = steps.as_ref().and_then(|steps| steps.quantizer()) {
            let quantize_inputs = Quantization::Off;
            let original = model::load(file, &LoadOptions { quantize_inputs, ..options.clone() })?;
            let rows = quantizer.calibration().map(|calibration| {
                read_rows(&InputArgs::of_file(&calibration.path, &TableArgs::default()), model.schema())
            });
            Some(drift(&file.name(), original.as_ref(), model, sample, rows.transpose()?.as_ref())?)
        } else {
            None
        };
        let out_of_range = sample.zip(steps.filter(|_| inputs.is_some())).map(|(sample, steps)| {
            let texts: Vec<Option<&str>> = sample.texts.iter().map(Option::as_deref).collect();
            steps.out_of_range(&sample.rows, &texts)
        });
        let quantizes_inputs = options.quantize_inputs != Quantization::Off;
        Ok(Self { weights, inputs, out_of_range, quantizes_inputs })
    }

    fn checks(&self, schema: &ModelSchema) -> Vec<Check> {
        let weights = self.weights.as_ref().map(|drift| drift.check("quantized scores move"));
        let name = "rounded features move scores";
        let inputs = match &self.inputs {
            Some(drift) => {
                let mut check = drift.check(name);
                if let Some(count) = self.out_of_range {
                    let _ = write!(check.detail, "; {count} values of the sample are out of range");
                }
                Some(check)
            }
            None => self.quantizes_inputs.then(|| {
                let told = schema.details.iter().find(|(name, _)| name.ends_with("quantization"));
                let detail = told.map(|(_, told)| told.clone()).unwrap_or_default();
                Check { name, passed: true, detail }
            }),
        };
        weights.into_iter().chain(inputs).collect()
    }
}

fn ensure_tolerance(tolerance: f64) -> Result<(), Usage> {
    if tolerance >= 0.0 { Ok(()) } else { Err(Usage(format!("--tolerance: got {tolerance}, wants 0 or more"))) }
}

fn report(file: &ModelBytes, files: Option<&SampleFiles>, tolerance: f64, validation: &Validation) -> String {
    let mut table = plain_table();
    for check in &validation.checks {
        table.add_row([if check.passed { "ok" } else { "FAILED" }, check.name, &check.detail]);
    }
    let sample = files.map_or_else(
        || "no rows with expected outputs: see --data".to_owned(),
        |files| {
            let found = if files.found { "found " } else { "" };
            format!("{found}{} and {}, tolerance {tolerance:e}", files.data.display(), files.expected.display())
        },
    );
    let ended = if validation.passed() { "valid" } else { "REFUSED" };
    format!("{}\nsample: {sample}\n{}: {ended}", table.trim_fmt(), file.name())
}

/// Rows and what they must score.
struct SampleFiles {
    data: PathBuf,
    expected: PathBuf,
    /// Whether they were found beside the model.
    found: bool,
}

/// The files that were named, or else those beside the model.
fn sample_files(args: &ValidateArgs, model: &Path) -> Option<SampleFiles> {
    if let (Some(data), Some(expected)) = (&args.data, &args.expected) {
        return Some(SampleFiles { data: data.clone(), expected: expected.clone(), found: false });
    }
    let files = model::SampleFiles::beside(model)?;
    Some(SampleFiles { data: files.rows, expected: files.expected, found: true })
}

fn read_sample(files: &SampleFiles, args: &ValidateArgs, schema: &ModelSchema) -> anyhow::Result<Sample> {
    let mut sample = read_rows(&InputArgs::of_file(&files.data, &args.table), schema)?;
    let expected = read_expected(&files.expected, schema.outputs)?;
    let (got, wanted) = (expected.len() / schema.outputs, sample.rows.len() / schema.width());
    ensure!(
        got == wanted,
        "{}: {got} lines of outputs, but {} has {wanted} rows",
        files.expected.display(),
        files.data.display()
    );
    (sample.expected, sample.tolerance) = (expected, args.tolerance);
    Ok(sample)
}

/// All rows of a file, as the worker would read them, with no outputs yet. A row that cannot be read is an error.
pub(super) fn read_rows(input: &InputArgs, schema: &ModelSchema) -> anyhow::Result<Sample> {
    let (name, entry) = (input.name(), entry_of(schema));
    let mut source = open_source(open_input(input)?, input, &entry, CHUNK_ROWS)?;
    let mut sample = Sample::default();
    let read = each_row(&mut source, &entry, |values, texts| {
        sample.rows.extend_from_slice(values);
        sample.texts.extend(texts.iter().map(|text| text.map(str::to_owned)));
        Ok(())
    });
    match read {
        Ok(()) => Ok(sample),
        Err(RowsError::Io(error)) => Err(anyhow::Error::new(error).context(format!("cannot read {name}"))),
        Err(error @ RowsError::Line { .. }) => Err(anyhow!("{name}: {error}")),
    }
}

/// A line is an array of `outputs` numbers, or a number where that is one.
fn read_expected(path: &Path, outputs: usize) -> anyhow::Result<Vec<f64>> {
    let name = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut expected = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {name}"))?;
        let before = expected.len();
        match serde_json::from_str(&line) {
            Ok(Expected::One(output)) => expected.push(output),
            Ok(Expected::All(mut all)) => expected.append(&mut all),
            Err(_) => {}
        }
        let number = index + 1;
        ensure!(
            expected.len() - before == outputs,
            "{name}: line {number}: wants an array of {outputs} numbers{}",
            if outputs == 1 { ", or a number" } else { "" }
        );
    }
    Ok(expected)
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Expected {
    One(f64),
    All(Vec<f64>),
}
