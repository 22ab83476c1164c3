//! A scikit-learn estimator as an ONNX graph: converted by a Python process, scored by ONNX Runtime or the compiled forest,
//! and held against the estimator's own scores before it is a model.

use super::super::validate::Asked;
use super::super::{
    Backend, InputForm, LoadOptions, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, Scorer, load,
};
use super::PythonModel;
use super::process::{Converted, NotLoaded};
use crate::clock;

/// The largest difference that counts as equal, as a share of the score, or of 1: sums of doubles in another order, or
/// graphs of floats, which trees have.
const TOLERANCE_F64: f64 = 1e-9;
const TOLERANCE_F32: f64 = 1e-5;
/// Values of a row that a message shows.
const SHOWN: usize = 64;

/// A graph that stands for an estimator.
struct ConvertedModel {
    graph: Box<dyn Model>,
    schema: ModelSchema,
}

/// A graph that scores as its estimator does.
struct Checked {
    reference: PythonModel,
    graph: Box<dyn Model>,
    bytes: Vec<u8>,
    /// What was compared.
    told: String,
}

/// The graph as a file of its own.
pub(in super::super) fn graph(file: &ModelBytes, options: &LoadOptions) -> Result<Vec<u8>, ModelError> {
    checked(file, options).map(|checked| checked.bytes)
}

/// The graph as the model.
pub(in super::super) fn convert(file: &ModelBytes, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
    let Checked { reference, graph, bytes, told } = checked(file, options)?;
    let own = graph.schema();
    let mut details = reference.schema.details.clone();
    details.push(("converted".to_owned(), format!("ONNX graph of {} bytes; {told}", bytes.len())));
    details.extend(own.details.iter().map(|(name, value)| (format!("graph: {name}"), value.clone())));
    let schema = ModelSchema { model_type: ModelType::Sklearn, details, ..own.clone() };
    Ok(Box::new(ConvertedModel { graph, schema }))
}

/// Converts and compares.
fn checked(file: &ModelBytes, options: &LoadOptions) -> Result<Checked, ModelError> {
    let refuse = |reason: String| ModelError::refused(file.name(), reason);
    let reference = PythonModel::parse(file, ModelType::Sklearn, options)?;
    let Converted { graph, rows } = ask(&reference).map_err(refuse)?;
    let source = ModelBytes { path: file.path.clone(), bytes: graph, sha256: file.sha256.clone(), pinned: file.pinned };
    let load = |quantize| {
        let (model_type, backend) = (Some(ModelType::Onnx), Backend::Compiled);
        let onnx = LoadOptions { model_type, backend, quantize, ..options.clone() };
        load::load_bare(&source, &onnx).map_err(|error| match error {
            ModelError::Refused { reason, .. } => {
                refuse(format!("as an ONNX graph: {reason}; set `compile_model = false`"))
            }
            error => error,
        })
    };
    let graph = load(false)?;
    let told = compare(&reference, graph.as_ref(), &rows).map_err(|difference| {
        refuse(format!("as an ONNX graph it scores otherwise: {difference}; set `compile_model = false`"))
    })?;
    // Compared first: quantization moves scores.
    let graph = if options.quantize { load(true)? } else { graph };
    Ok(Checked { reference, graph, bytes: source.bytes, told })
}

fn ask(reference: &PythonModel) -> Result<Converted, String> {
    let mut first = reference.first.lock();
    let process = first.as_mut().ok_or("no process converts it")?;
    let patience = reference.recipe.options.start_timeout;
    process.convert(clock::now() + patience).map_err(|error| match error {
        NotLoaded::Late => format!("it was not converted within `start_timeout` ({patience:?}) in [model.python]"),
        NotLoaded::Refused(reason) => reason,
        NotLoaded::Failed(reason) => format!("{reason}; set `compile_model = false`"),
    })
}

/// What was compared, or the largest difference.
fn compare(reference: &PythonModel, graph: &dyn Model, rows: &[f64]) -> Result<String, String> {
    let (own, wanted) = (graph.schema(), &reference.schema);
    if own.feature_names != wanted.feature_names || own.outputs != wanted.outputs {
        return Err(format!(
            "{} features and {} outputs, where Python has {} and {}, or other names",
            own.width(),
            own.outputs,
            wanted.width(),
            wanted.outputs
        ));
    }
    let score = |model: &dyn Model| {
        let mut scorer = model.scorer().map_err(|error| error.to_string())?;
        Asked { scorer: scorer.as_mut(), schema: model.schema() }.score(rows)
    };
    let (scores, wanted_scores) = (score(graph)?, score(reference)?);
    let tolerance = match (own.row_type, wanted.row_type) {
        (RowType::F64, RowType::F64) => TOLERANCE_F64,
        _ => TOLERANCE_F32,
    };
    let apart = |(own, wanted): (&f64, &f64)| (own - wanted).abs() / wanted.abs().max(1.0);
    let differences = scores.iter().zip(&wanted_scores).map(apart).enumerate();
    // A NaN difference is the worst there is, and stays so.
    let worst = differences.fold((0, 0.0_f64), |worst, (place, difference)| {
        if worst.1.is_nan() || difference <= worst.1 { worst } else { (place, difference) }
    });
    let (row, count) = (worst.0 / own.outputs, rows.len() / own.width());
    if worst.1 <= tolerance {
        return Ok(format!("{count} made-up rows compared with Python, largest difference {:e}", worst.1));
    }
    let values = &rows[row * own.width()..][..own.width().min(SHOWN)];
    let at = row * own.outputs..(row + 1) * own.outputs;
    Err(format!(
        "largest difference {:e}, row {row} of {count} made-up ones: {:?}, Python gives {:?} for {values:?}",
        worst.1,
        &scores[at.clone()],
        &wanted_scores[at]
    ))
}

impl Model for ConvertedModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        self.graph.scorer()
    }

    fn is_compiled(&self) -> bool {
        self.graph.is_compiled()
    }

    fn input_form(&self) -> InputForm {
        self.graph.input_form()
    }

    fn runs_native_code(&self) -> bool {
        self.graph.runs_native_code()
    }
}
