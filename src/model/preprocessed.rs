//! A model behind its preprocessing and quantization: what records say in, the model's own scores out. All rows are f64
//! and texts, as records have them; the model gets its own float type.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::runner::RunnerStats;
use super::validate::{Asking, narrow};
use super::{
    Calibration, FeatureKind, InputForm, LoadOptions, Model, ModelError, ModelSchema, Preprocessor, Quantization,
    Quantizer, RowType, Rows, ScoreError, Scorer, Values, calibration,
};

/// Why the library that a tree model was trained with gets no rounded features.
const LIBRARY_OF_TREES: &str = "its library may read a feature as a category, which rounded would be another one, so \
                                `enable_quantization` (--quantize-inputs) is not for it; the compiled forest, \
                                `compile_model = true` (--backend compiled), needs none: it reads no more of a feature than the \
                                model's thresholds tell apart";

/// A model and its steps.
pub(super) struct PreprocessedModel {
    inner: Box<dyn Model>,
    steps: Arc<Preprocessor>,
    schema: ModelSchema,
}

impl PreprocessedModel {
    /// Puts steps and quantization before the model, if there are any.
    pub(super) fn wrap(name: &str, inner: Box<dyn Model>, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
        let refuse = |reason| ModelError::refused(name, reason);
        if options.preprocess.is_empty() && options.quantize_inputs == Quantization::Off {
            return Ok(inner);
        }
        let own = inner.schema();
        let steps = Preprocessor::new(&options.preprocess, own).map_err(refuse)?;
        let mut schema = ModelSchema {
            feature_names: steps.feature_names().to_vec(),
            kinds: steps.kinds().clone(),
            row_type: RowType::F64,
            ..own.clone()
        };
        if !options.preprocess.is_empty() {
            schema.details.push(("preprocessing".to_owned(), format!("{} steps", options.preprocess.len())));
        }
        let quantizer = match (options.quantize_inputs, inner.input_form()) {
            // Of a native form the model's own details tell.
            (Quantization::Off, _) | (_, InputForm::Native) => None,
            (_, InputForm::Unknown) => return Err(refuse(LIBRARY_OF_TREES.to_owned())),
            (Quantization::F16, InputForm::Numbers) => Some(Quantizer::half(&rounds(&steps, own))),
            (Quantization::U8, InputForm::Numbers) => Some(levels(options, &steps, (&schema, own)).map_err(refuse)?),
        };
        let steps = match quantizer {
            None if options.preprocess.is_empty() => return Ok(inner),
            None => steps,
            Some(quantizer) => {
                schema.details.extend(told(&quantizer, own.width()));
                steps.with_quantizer(quantizer)
            }
        };
        Ok(Box::new(Self { inner, steps: Arc::new(steps), schema }))
    }
}

/// The model's columns that may be rounded.
fn rounds(steps: &Preprocessor, own: &ModelSchema) -> Vec<bool> {
    let coded = steps.coded();
    (0..own.width()).map(|column| own.kinds.of(column) == FeatureKind::Number && !coded[column]).collect()
}

fn levels(
    options: &LoadOptions,
    steps: &Preprocessor,
    (schema, own): (&ModelSchema, &ModelSchema),
) -> Result<Quantizer, String> {
    let path = options.calibration.as_deref().ok_or(
        "`enable_quantization = \"u8\"` needs `calibration` (--calibration): a file of rows that each feature's range is taken from",
    )?;
    let (ranges, calibration) = calibration::ranges(path, steps, schema)?;
    let rounds = rounds(steps, own);
    let empty = (0..own.width()).find(|&column| rounds[column] && ranges[column].is_empty());
    if let Some(column) = empty {
        let (path, name) = (path.display(), &own.feature_names[column]);
        return Err(format!("calibration {path}: {name} has no value in any row; give rows in which it has some"));
    }
    let ranges: Vec<_> = ranges.into_iter().zip(rounds).map(|(range, rounds)| rounds.then_some(range)).collect();
    Ok(Quantizer::levels(&ranges, calibration))
}

fn told(quantizer: &Quantizer, width: usize) -> Vec<(String, String)> {
    let form = quantizer.quantization().as_str();
    let rounded = format!("{form}: {} of {width} features are rounded", quantizer.rounded());
    let mut details = vec![("quantization".to_owned(), rounded)];
    details.extend(quantizer.calibration().map(|Calibration { path, sha256, rows }| {
        ("calibration".to_owned(), format!("{}: {rows} rows, SHA-256 {sha256}", path.display()))
    }));
    details
}

impl Model for PreprocessedModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let (inner, row_type) = (self.inner.scorer()?, self.inner.schema().row_type);
        let steps = Arc::clone(&self.steps);
        Ok(Box::new(PreprocessedScorer { inner, row_type, steps, values: Vec::new(), narrowed: Vec::new() }))
    }

    fn is_compiled(&self) -> bool {
        self.inner.is_compiled()
    }

    fn runs_native_code(&self) -> bool {
        self.inner.runs_native_code()
    }

    fn own_threads(&self) -> Option<NonZeroU32> {
        self.inner.own_threads()
    }

    fn runner(&self) -> Option<Arc<RunnerStats>> {
        self.inner.runner()
    }

    fn preprocessor(&self) -> Option<Arc<Preprocessor>> {
        Some(Arc::clone(&self.steps))
    }
}

struct PreprocessedScorer {
    inner: Box<dyn Scorer>,
    /// Of the model itself.
    row_type: RowType,
    steps: Arc<Preprocessor>,
    values: Vec<f64>,
    narrowed: Vec<f32>,
}

impl Scorer for PreprocessedScorer {
    /// Steps may make a missing value of a made-up one, and a model may be right to refuse that.
    fn asking(&self) -> Asking {
        Asking { refuses: true, ..self.inner.asking() }
    }

    fn words(&self) -> &[String] {
        self.steps.words()
    }

    fn score_prepared(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        self.inner.score(rows, scores)
    }

    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let mut texts = Vec::new();
        self.steps.apply(rows.as_f64()?, rows.texts, &mut self.values, &mut texts);
        let values = match self.row_type {
            RowType::F64 => Values::F64(&self.values),
            RowType::F32 => {
                self.narrowed.clear();
                self.narrowed.extend(self.values.iter().map(|&value| narrow(value)));
                Values::F32(&self.narrowed)
            }
        };
        self.inner.score(Rows { values, width: rows.width, texts: &texts }, scores)
    }
}
