//! ONNX graphs, scored by ONNX Runtime through `ort`, on rows of the graph's own types as the runtime's Python package
//! does. Bytes in, scores out.
//!
//! - Inputs: tensors of numbers or text, a row each in the first dimension; their columns side by side are a row ([`inputs`],
//!   [`tensors`]).
//! - Outputs: those that the config names; else probabilities or values before labels ([`outputs`]), as the graph gives
//!   them: a binary classifier with `[N, 2]` probabilities has two scores a row.
//! - A row scores the same bits alone and in any batch ([`PAIR`], [`Call`]).
//! - Everything else is refused when the model is loaded, by the name of the input or output and with the remedy.
//! - The runtime's shared library is loaded when the first ONNX model is ([`runtime`]); it sees the bytes that were
//!   hashed, and no other file ([`graph`]).

mod graph;
mod inputs;
mod outputs;
mod quantize;
mod runtime;
mod tensors;

use std::sync::Arc;

use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionOutputs};
use ort::value::{Outlet, ValueType};

use self::graph::{GraphFile, Labels};
use self::inputs::Inputs;
use self::outputs::Scored;
use self::runtime::Runtime;
use super::validate::{Asking, Repeats};
use super::{
    LoadOptions, Model, ModelBytes, ModelError, ModelSchema, ModelType, OnnxOptions, RowType, Rows, ScoreError, Scorer,
    Values,
};

/// Rows of the run at load that finds how many scores a row has.
const TRIAL_ROWS: usize = 2;
/// Batches are filled up to a multiple of this, by their last row again, but for tree ensembles. The runtime multiplies
/// a matrix of one row, and the odd row at the end of some, by other kernels, whose sums differ in the last bits: up to
/// 6e-7 of a probability in linear models of float, 2e-16 of double. With even batches no bit differed.
const PAIR: usize = 2;
/// How far a score may move with the place of its row in a call, where the graph fixes an odd number of rows.
const PLACES_DIFFER: f64 = 1e-5;
/// Class labels that `model inspect` shows.
const LABELS_SHOWN: usize = 20;

/// A parsed ONNX model.
pub(super) struct OnnxModel {
    name: String,
    bytes: Arc<[u8]>,
    options: OnnxOptions,
    runtime: &'static Runtime,
    schema: ModelSchema,
    /// Scores a row of each output.
    widths: Vec<usize>,
    scores_missing: bool,
}

impl OnnxModel {
    /// Reads the file, lets the runtime parse it, and runs it once.
    pub(super) fn parse(file: &ModelBytes, options: &LoadOptions) -> Result<Self, ModelError> {
        let name = file.name();
        let refuse = |reason: String| ModelError::refused(&name, reason);
        let quantized = if options.quantize { Some(int8(file, options)?) } else { None };
        let options = options.onnx.clone();
        let bytes: Arc<[u8]> = quantized.as_ref().map_or(&*file.bytes, |int8| &*int8.bytes).into();
        let graph = GraphFile::read(&bytes).map_err(refuse)?;
        let runtime = Runtime::get(options.library.as_deref()).map_err(refuse)?;
        let mut scorer = OnnxScorer::open(runtime, &bytes, &graph, &options).map_err(refuse)?;
        scorer.widths = scorer.find_widths().map_err(refuse)?;
        scorer.scores_missing = scorer.scores_missing();
        let mut details = details(&graph, &scorer, runtime);
        details.extend(quantized.map(|int8| ("quantized".to_owned(), int8.told)));
        let schema = ModelSchema {
            model_type: ModelType::Onnx,
            feature_names: scorer.inputs.feature_names.clone(),
            kinds: scorer.inputs.kinds.clone(),
            row_type: scorer.inputs.row_type,
            outputs: scorer.widths.iter().sum(),
            details,
        };
        let OnnxScorer { widths, scores_missing, .. } = scorer;
        Ok(Self { name, bytes, options, runtime, schema, widths, scores_missing })
    }
}

/// A graph with weights of 8 bits.
pub(super) struct Int8 {
    pub(super) bytes: Vec<u8>,
    told: String,
}

/// The file's graph with weights of 8 bits: as it is, where it has such already.
pub(super) fn int8(file: &ModelBytes, options: &LoadOptions) -> Result<Int8, ModelError> {
    let make = || {
        if GraphFile::read(&file.bytes)?.quantized_operators > 0 {
            return Ok(Int8 { bytes: file.bytes.clone(), told: "int8, in the file".to_owned() });
        }
        let bytes = quantize::to_int8(&file.bytes, &options.python)?;
        let count = GraphFile::read(&bytes)?.quantized_operators;
        if count == 0 {
            let remedy = "set `enable_model_quantization = false`";
            return Err(format!("cannot be quantized: it has no product of a float matrix with weights; {remedy}"));
        }
        let told = format!("int8: {count} operators, {} bytes of {}", bytes.len(), file.bytes.len());
        Ok(Int8 { bytes, told })
    };
    make().map_err(|reason: String| ModelError::refused(file.name(), reason))
}

impl OnnxModel {
    /// Adds to what `model inspect` shows.
    pub(super) fn tell(&mut self, name: &str, value: String) {
        self.schema.details.push((name.to_owned(), value));
    }
}

impl Model for OnnxModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let open = || {
            let graph = GraphFile::read(&self.bytes)?;
            let scorer = OnnxScorer::open(self.runtime, &self.bytes, &graph, &self.options)?;
            Ok(OnnxScorer { widths: self.widths.clone(), scores_missing: self.scores_missing, ..scorer })
        };
        open()
            .map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
            .map_err(|reason: String| ModelError::refused(&self.name, reason))
    }

    fn runs_native_code(&self) -> bool {
        true
    }
}

/// How many rows a call of the runtime has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// All, filled up to a multiple of this.
    Whole(usize),
    /// So many, the last call filled up: the graph fixes them, or its rows must not see each other.
    Of(usize),
}

struct OnnxScorer {
    session: Session,
    /// Asks the runtime for the scored outputs and no others.
    options: RunOptions<HasSelectedOutputs>,
    inputs: Inputs,
    scored: Scored,
    /// Scores a row of each output.
    widths: Vec<usize>,
    call: Call,
    scores_missing: bool,
    /// Words of the graph's encoders.
    words: Vec<String>,
}

impl OnnxScorer {
    fn open(runtime: &Runtime, bytes: &[u8], graph: &GraphFile, options: &OnnxOptions) -> Result<Self, String> {
        let session = runtime.session(bytes, options)?;
        let inputs = Inputs::new(&session, graph.feature_names.as_deref())?;
        let scored = Scored::choose(session.outputs(), graph, &options.output)?;
        let options = RunOptions::new().map_err(|error| format!("ONNX Runtime: {error}"))?;
        let wanted = scored.parts.iter().fold(OutputSelector::no_default(), |wanted, part| wanted.with(&part.name));
        let options = options.with_outputs(wanted);
        let call = match inputs.rows_fixed {
            Some(rows) => Call::Of(rows),
            None if graph.scales_by_batch => Call::Of(1),
            None => Call::Whole(if graph.has_trees { 1 } else { PAIR }),
        };
        let (words, widths) = (graph.words.clone(), Vec::new());
        Ok(Self { session, options, inputs, scored, widths, call, scores_missing: false, words })
    }

    /// How many scores a row has of each output: found by a run of zeros and empty texts, or told by the graph where it
    /// refuses those.
    fn find_widths(&mut self) -> Result<Vec<usize>, String> {
        let texts = vec![Some(self.words.first().map_or("", String::as_str)); self.inputs.kinds.text_columns().len()];
        let texts: Vec<Option<String>> = texts.into_iter().map(|text| text.map(str::to_owned)).collect();
        let found = self.ask(0.0, &texts, Scored::widths);
        match (found, self.scored.widths_told()) {
            (Err(_), Some(told)) if !self.inputs.kinds.all_numbers() => Ok(told),
            (found, _) => found.map_err(|error| error.to_string()),
        }
    }

    /// Whether a row of nothing but missing values has a score.
    fn scores_missing(&mut self) -> bool {
        let texts = vec![None; self.inputs.kinds.text_columns().len()];
        let (widths, outputs) = (self.widths.clone(), self.widths.iter().sum());
        let mut scores = vec![0.0; outputs];
        let scored =
            self.ask(f64::NAN, &texts, |scored, outputs, rows| scored.read(outputs, rows, &widths, &mut scores));
        scored.is_ok() && scores.iter().all(|score| score.is_finite())
    }

    /// Runs rows of one value and these texts.
    fn ask<R>(
        &mut self,
        value: f64,
        texts: &[Option<String>],
        read: impl FnOnce(&Scored, &SessionOutputs<'_>, usize) -> Result<R, String>,
    ) -> Result<R, ScoreError> {
        let width = self.inputs.feature_names.len();
        let rows = if let Call::Of(rows) = self.call { rows } else { TRIAL_ROWS };
        let (narrow, wide) = (vec![super::validate::narrow(value); rows * width], vec![value; rows * width]);
        let values = match self.inputs.row_type {
            RowType::F32 => Values::F32(&narrow),
            RowType::F64 => Values::F64(&wide),
        };
        let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).cycle().take(rows * texts.len()).collect();
        self.run(Rows { values, width, texts: &texts }, rows, read)
    }

    /// Runs the graph on these rows, filled up to `count`, and hands its outputs and their number of rows to `read`.
    fn run<R>(
        &mut self,
        rows: Rows<'_>,
        count: usize,
        read: impl FnOnce(&Scored, &SessionOutputs<'_>, usize) -> Result<R, String>,
    ) -> Result<R, ScoreError> {
        let tensors = self.inputs.tensors(rows, count)?;
        let ran = self.session.run_with_options(tensors, &self.options);
        let outputs = ran.map_err(|error| ScoreError::of_library(format!("ONNX Runtime: {error}")))?;
        read(&self.scored, &outputs, count).map_err(ScoreError::of_library)
    }
}

impl Scorer for OnnxScorer {
    fn asking(&self) -> Asking {
        let odd = matches!(self.call, Call::Of(rows) if rows > 1 && rows % 2 == 1);
        let repeats = if odd { Repeats::Within(PLACES_DIFFER) } else { Repeats::Bits };
        // A logarithm has no number for every row, and an encoder may refuse a word.
        Asking { missing: self.scores_missing, refuses: true, repeats, ..Asking::default() }
    }

    fn words(&self) -> &[String] {
        &self.words
    }

    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let (count, outputs) = (rows.count(), self.widths.iter().sum::<usize>());
        assert_eq!(rows.width, self.inputs.feature_names.len(), "rows as wide as the model");
        assert_eq!(scores.len(), count * outputs, "a place for each score");
        if count == 0 {
            return Ok(());
        }
        let (each, multiple) = match self.call {
            Call::Whole(multiple) => (count, multiple),
            Call::Of(rows) => (rows, rows),
        };
        let widths = self.widths.clone();
        for (number, scores) in scores.chunks_mut(each * outputs).enumerate() {
            let first = number * each;
            let part = rows.part(first..count.min(first + each));
            let filled = part.count().next_multiple_of(multiple);
            self.run(part, filled, |scored, outputs, rows| scored.read(outputs, rows, &widths, scores))?;
        }
        Ok(())
    }
}

/// An input or output as messages show it: `probabilities: float32 [_, 2]`.
fn describe(outlet: &Outlet) -> String {
    format!("{}: {}", outlet.name(), describe_type(outlet.dtype()))
}

fn describe_type(kind: &ValueType) -> String {
    match kind {
        ValueType::Tensor { ty, shape, .. } => {
            let free_or_fixed = |&size: &i64| if size < 0 { "_".to_owned() } else { size.to_string() };
            let dimensions: Vec<String> = shape.iter().map(free_or_fixed).collect();
            format!("{} [{}]", ty.to_string().to_lowercase(), dimensions.join(", "))
        }
        ValueType::Sequence(inner) => format!("sequence of {}", describe_type(inner)),
        ValueType::Map { key, value } => format!("map from {key} to {value}").to_lowercase(),
        ValueType::Optional(inner) => format!("optional {}", describe_type(inner)),
    }
}

/// What `model inspect` shows.
fn details(graph: &GraphFile, scorer: &OnnxScorer, runtime: &Runtime) -> Vec<(String, String)> {
    let all = |outlets: &[Outlet]| outlets.iter().map(describe).collect::<Vec<_>>().join("; ");
    let opsets: Vec<String> = graph.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let mut details = vec![
        ("opset".to_owned(), opsets.join(", ")),
        ("producer".to_owned(), graph.producer.clone()),
        ("inputs".to_owned(), all(scorer.session.inputs())),
        ("outputs".to_owned(), all(scorer.session.outputs())),
        ("scored output".to_owned(), scorer.scored.parts.iter().map(|part| &*part.name).collect::<Vec<_>>().join(", ")),
    ];
    if let Call::Of(rows) = scorer.call {
        details.push(("rows a call".to_owned(), rows.to_string()));
    }
    let known = scorer
        .scored
        .parts
        .iter()
        .find_map(|part| part.labels())
        .or_else(|| graph.labelled.first().map(|node| &node.labels));
    if let Some(labels) = known {
        let mut shown: Vec<String> = match labels {
            Labels::Numbers(labels) => labels.iter().take(LABELS_SHOWN).map(i64::to_string).collect(),
            Labels::Texts(labels) => labels.iter().take(LABELS_SHOWN).cloned().collect(),
        };
        if labels.len() > LABELS_SHOWN {
            shown.push(format!("and {} more", labels.len() - LABELS_SHOWN));
        }
        details.push(("classes".to_owned(), shown.join(", ")));
    }
    let missing = if scorer.scores_missing { "scored" } else { "no score" };
    details.push(("missing values".to_owned(), missing.to_owned()));
    details.push(("runtime".to_owned(), runtime.describe()));
    details
}
