//! `make bench-python`: what the way to a Python process and back costs a row, beside the time that `predict` itself takes
//! there.
//!
//! For each model and batch size: the median of `Scorer::score`, the median of what the runner says that the model's own
//! method took of it, and the difference, which is the runner's: copying rows and scores, two messages, and Python around them.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use forebay::clock;
use forebay::model::{self, LoadOptions, ModelBytes, PythonOptions, Rows, Values};
use sha2::{Digest as _, Sha256};

const SIZES: [usize; 3] = [1, 64, 1024];
const CALLS: usize = 400;
/// Passes over all sizes: the least median counts, for other work on the machine only adds to it.
const PASSES: usize = 5;

/// Measures the Python runner.
#[derive(Parser)]
struct Arguments {
    /// The interpreter.
    #[arg(long, default_value = ".venv/test/bin/python")]
    interpreter: PathBuf,
    /// Models to score with.
    #[arg(long, default_values = [
        "target/models/python_function/model.py",
        "target/models/python_linear/model.pkl",
        "target/models/python_logistic/model.joblib",
        "target/models/python_columns/model.joblib",
        "target/models/python_hist_boosting/model.pkl",
    ])]
    model: Vec<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("microseconds a batch            whole   predict    beside    beside a row   beside / predict");
    for path in &arguments.model {
        measure(path, &arguments.interpreter)?;
    }
    Ok(())
}

fn measure(path: &Path, interpreter: &Path) -> anyhow::Result<()> {
    let pin: [u8; 32] = Sha256::digest(std::fs::read(path).with_context(|| format!("{}", path.display()))?).into();
    let file = ModelBytes::read(path, Some(&pin))?;
    let interpreter = std::path::absolute(interpreter)?;
    let python = PythonOptions { interpreter, ..PythonOptions::default() };
    let loaded = model::load(&file, &LoadOptions { trusted: true, python, ..LoadOptions::default() })?;
    let stats = loaded.runner().context("a model with processes")?;
    let (width, outputs) = (loaded.schema().width(), loaded.schema().outputs);
    let mut scorer = loaded.scorer()?;
    let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    for rows in SIZES {
        // All values differ a little, and lie where the models were trained.
        let values: Vec<f64> = (0..rows * width).map(|place| 0.5 + (place % 97) as f64 / 100.0).collect();
        let mut scores = vec![0.0; rows * outputs];
        let mut best: Option<(Duration, Duration)> = None;
        for _ in 0..PASSES {
            let (mut whole, mut predict) = (Vec::new(), Vec::new());
            for _ in 0..CALLS.min(CALLS * 64 / rows).max(40) {
                let (start, before) = (clock::now(), stats.predict_time());
                scorer.score(Rows::numbers(Values::F64(&values), width), &mut scores)?;
                whole.push(clock::now() - start);
                predict.push(stats.predict_time().saturating_sub(before));
            }
            let medians = (median(whole), median(predict));
            best = Some(best.map_or(medians, |best| if medians.0 < best.0 { medians } else { best }));
        }
        let (whole, predict) = best.context("a pass")?;
        ensure!(predict <= whole, "the method takes no longer than the call");
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let beside = us(whole) - us(predict);
        println!(
            "{name:22} x {rows:5} {:9.1} {:9.1} {beside:9.1} {:15.3} {:18.2}",
            us(whole),
            us(predict),
            beside / rows as f64,
            beside / us(predict)
        );
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
