//! `forebay model compile`: a model file in, its compiled form out, held against the original before it is written.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;

use super::{FileArgs, plain_table};
use crate::cli::{exit, logs};
use crate::clock;
use crate::model::{self, Backend, LoadOptions, ModelBytes};

pub(super) const HELP: &str = "\
Examples:
  forebay model compile fraud.json -o fraud.forebay
  forebay model compile fraud.json -o fraud.forebay --json

Trees are written as the forest that they are compiled to. The file is loaded like any other model, without the parser of \
the original format; its SHA-256 is checked when it is loaded, and it scores the same bits: that is tried on made-up \
rows before it is written. A scikit-learn estimator is written as an ONNX graph, held against its own scores: where it \
is served, no Python is needed. Any other ONNX graph is written with weights of 8 bits, by --quantize and the Python that \
ONNX Runtime's quantizer needs.";

#[derive(Debug, Args)]
pub(super) struct CompileArgs {
    #[command(flatten)]
    model: FileArgs,
    /// Where the compiled form goes
    #[arg(short = 'o', long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(args: &CompileArgs) -> anyhow::Result<ExitCode> {
    logs::start_plain(&args.model.log)?;
    let output = args.output.display();
    let asked = args.model.load.asked(&args.model.file)?;
    let options = LoadOptions { backend: Backend::Compiled, ..asked.options };
    let file = ModelBytes::read(&asked.path, asked.sha256.as_ref())?;
    let started = clock::now();
    let (original, load_time) = (model::load(&file, &options)?, clock::now() - started);
    let bytes = model::compiled_form(&file, &options)?;
    let compiled = ModelBytes::new(args.output.clone(), bytes);
    let started = clock::now();
    // The form's own kind: an estimator becomes an ONNX graph.
    let options = LoadOptions { model_type: None, ..options };
    let (model, compiled_load_time) = (model::load(&compiled, &options)?, clock::now() - started);
    let same = model::compare::same_bits(&file, original.as_ref(), model.as_ref());
    ensure!(same.passed, "{output}: not written: it does not score as {}: {}", file.name(), same.detail);
    std::fs::write(&args.output, &compiled.bytes).with_context(|| format!("cannot write {output}"))?;
    let ms = |time: std::time::Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    let text = if args.model.json {
        serde_json::to_string_pretty(&json!({
            "file": file.name(),
            "sha256": file.sha256,
            "bytes": file.bytes.len(),
            "load_ms": load_time.as_secs_f64() * 1e3,
            "output": compiled.name(),
            "output_sha256": compiled.sha256,
            "output_bytes": compiled.bytes.len(),
            "output_load_ms": compiled_load_time.as_secs_f64() * 1e3,
            "check": same,
        }))?
    } else {
        let mut table = plain_table();
        table.add_row(["", "bytes", "load ms", "sha256"]);
        table.add_row([&file.name(), &file.bytes.len().to_string(), &ms(load_time), &file.sha256]);
        let size = compiled.bytes.len().to_string();
        table.add_row([&compiled.name(), &size, &ms(compiled_load_time), &compiled.sha256]);
        format!("{}\n{}: {}", table.trim_fmt(), same.name, same.detail)
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(exit::DONE.into())
}
