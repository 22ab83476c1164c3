//! ONNX graphs, scored by ONNX Runtime through `ort`, on rows of the graph's own float type as the runtime's Python
//! package does. Bytes in, scores out.
//!
//! - Inputs: one matrix `[N, features]` of float or double, or a column of each feature by name ([`inputs`]).
//! - Outputs: probabilities or values before labels ([`outputs`]), as the graph gives them: a binary classifier with
//!   `[N, 2]` probabilities has two scores a row.
//! - A row scores the same bits alone and in any batch ([`PAIR`]).
//! - Everything else is refused when the model is loaded, by the name of the input or output and with the remedy.
//! - The runtime's shared library is loaded when the first ONNX model is ([`runtime`]); it sees the bytes that were
//!   hashed, and no other file ([`graph`]).

mod graph;
mod inputs;
mod outputs;
mod runtime;

use std::fmt::Debug;

use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, ValueType};

use self::graph::{GraphFile, Labels};
use self::inputs::Inputs;
use self::outputs::Output;
use self::runtime::Runtime;
use super::{
    FeatureKinds, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer, Values,
};

/// Rows of the run at load that finds how many scores a row has.
const TRIAL_ROWS: usize = 2;
/// Batches are filled up to a multiple of this, by their last row again, but for tree ensembles. The runtime multiplies
/// a matrix of one row, and the odd row at the end of some, by other kernels, whose sums differ in the last bits: up to
/// 6e-7 of a probability in linear models of float, 2e-16 of double. With even batches no bit differed.
const PAIR: usize = 2;
/// Class labels that `model inspect` shows.
const LABELS_SHOWN: usize = 20;

/// A parsed ONNX model.
pub(super) struct OnnxModel {
    name: String,
    bytes: Vec<u8>,
    runtime: &'static Runtime,
    schema: ModelSchema,
}

impl OnnxModel {
    /// Reads the file, lets the runtime parse it, and runs it once.
    pub(super) fn parse(file: &ModelBytes) -> Result<Self, ModelError> {
        let name = file.name();
        let refuse = |reason: String| ModelError::refused(&name, reason);
        let graph = GraphFile::read(&file.bytes).map_err(refuse)?;
        let runtime = Runtime::get().map_err(refuse)?;
        let mut scorer = OnnxScorer::open(runtime, &file.bytes, &graph).map_err(refuse)?;
        scorer.outputs = scorer.trial().map_err(refuse)?;
        let schema = ModelSchema {
            model_type: ModelType::Onnx,
            feature_names: scorer.inputs.feature_names.clone(),
            kinds: FeatureKinds::default(),
            row_type: scorer.inputs.row_type,
            outputs: scorer.outputs,
            details: details(&graph, &mut scorer, runtime),
        };
        Ok(Self { name, bytes: file.bytes.clone(), runtime, schema })
    }
}

impl Model for OnnxModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let open = || {
            let graph = GraphFile::read(&self.bytes)?;
            let scorer = OnnxScorer::open(self.runtime, &self.bytes, &graph)?;
            Ok(OnnxScorer { outputs: self.schema.outputs, ..scorer })
        };
        open()
            .map(|scorer| Box::new(scorer) as Box<dyn Scorer>)
            .map_err(|reason: String| ModelError::refused(&self.name, reason))
    }

    fn runs_native_code(&self) -> bool {
        true
    }
}

struct OnnxScorer {
    session: Session,
    /// Asks the runtime for the scored output and no other.
    options: RunOptions<HasSelectedOutputs>,
    inputs: Inputs,
    output: Output,
    /// Scores a row, found by the trial.
    outputs: usize,
    /// Batches are filled up to a multiple of this.
    multiple: usize,
}

impl OnnxScorer {
    fn open(runtime: &Runtime, bytes: &[u8], graph: &GraphFile) -> Result<Self, String> {
        let session = runtime.session(bytes)?;
        let inputs = Inputs::new(&session, graph.feature_names.as_deref())?;
        let output = Output::choose(session.outputs(), graph)?;
        let options = RunOptions::new().map_err(|error| format!("ONNX Runtime: {error}"))?;
        let options = options.with_outputs(OutputSelector::no_default().with(&output.name));
        let multiple = if graph.has_trees { 1 } else { PAIR };
        Ok(Self { session, options, inputs, output, outputs: 0, multiple })
    }

    /// Runs rows of zeros: how many scores has each?
    fn trial(&mut self) -> Result<usize, String> {
        let count = TRIAL_ROWS * self.inputs.feature_names.len();
        match self.inputs.row_type {
            RowType::F32 => self.run(&vec![0_f32; count], Output::width),
            RowType::F64 => self.run(&vec![0_f64; count], Output::width),
        }
    }

    /// Whether a row of nothing but missing values has a score.
    fn scores_missing(&mut self) -> bool {
        let width = self.inputs.feature_names.len();
        let (narrow, wide) = (vec![f32::NAN; width], vec![f64::NAN; width]);
        let values = match self.inputs.row_type {
            RowType::F32 => Values::F32(&narrow),
            RowType::F64 => Values::F64(&wide),
        };
        let mut scores = vec![0.0; self.outputs];
        self.score(Rows::numbers(values, width), &mut scores).is_ok() && scores.iter().all(|score| score.is_finite())
    }

    /// Runs the graph, and hands the scored output and its number of rows to `read`.
    fn run<T, R>(
        &mut self,
        rows: &[T],
        read: impl FnOnce(&Output, &DynValue, usize) -> Result<R, String>,
    ) -> Result<R, String>
    where
        T: PrimitiveTensorElementType + Copy + Debug + 'static,
    {
        let width = self.inputs.feature_names.len();
        let count = rows.len() / width;
        let filled_count = count.next_multiple_of(self.multiple);
        let mut filled = Vec::new();
        let rows = if filled_count == count {
            rows
        } else {
            filled.reserve(filled_count * width);
            filled.extend_from_slice(rows);
            (count..filled_count).for_each(|_| filled.extend_from_slice(&rows[(count - 1) * width..]));
            &filled
        };
        let failed = |error: ort::Error| format!("ONNX Runtime: {error}");
        let mut columns = Vec::new();
        let tensors = self.inputs.tensors(rows, &mut columns).map_err(failed)?;
        let outputs = self.session.run_with_options(tensors, &self.options).map_err(failed)?;
        let value = outputs.get(&self.output.name).ok_or_else(|| format!("no output {:?}", self.output.name))?;
        read(&self.output, value, filled_count)
    }
}

impl Scorer for OnnxScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let count = rows.count();
        assert_eq!(rows.width, self.inputs.feature_names.len(), "rows as wide as the model");
        assert_eq!(scores.len(), count * self.outputs, "a place for each score");
        if count == 0 {
            return Ok(());
        }
        let width = self.outputs;
        let read = |output: &Output, value: &DynValue, rows: usize| output.read(value, rows, width, scores);
        let scored = match self.inputs.row_type {
            RowType::F32 => self.run(rows.as_f32()?, read),
            RowType::F64 => self.run(rows.as_f64()?, read),
        };
        scored.map_err(ScoreError::of_library)
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
fn details(graph: &GraphFile, scorer: &mut OnnxScorer, runtime: &Runtime) -> Vec<(String, String)> {
    let all = |outlets: &[Outlet]| outlets.iter().map(describe).collect::<Vec<_>>().join("; ");
    let opsets: Vec<String> = graph.opsets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    let mut details = vec![
        ("opset".to_owned(), opsets.join(", ")),
        ("producer".to_owned(), graph.producer.clone()),
        ("inputs".to_owned(), all(scorer.session.inputs())),
        ("outputs".to_owned(), all(scorer.session.outputs())),
        ("scored output".to_owned(), scorer.output.name.clone()),
    ];
    let known = scorer.output.labels().or_else(|| graph.labelled.first().map(|node| &node.labels));
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
    let missing = if scorer.scores_missing() { "scored" } else { "no score" };
    details.push(("missing values".to_owned(), missing.to_owned()));
    details.push(("runtime".to_owned(), runtime.describe()));
    details
}
