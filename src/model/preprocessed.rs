//! A model behind its preprocessing: what records say in, the model's own scores out. All rows are f64 and texts, as
//! records have them; the model gets its own float type.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::runner::RunnerStats;
use super::validate::{Asking, narrow};
use super::{Model, ModelError, ModelSchema, Preprocessor, RowType, Rows, ScoreError, Scorer, Step, Values};

/// A model and its steps.
pub(super) struct PreprocessedModel {
    inner: Box<dyn Model>,
    steps: Arc<Preprocessor>,
    schema: ModelSchema,
}

impl PreprocessedModel {
    /// Puts the steps before the model.
    pub(super) fn new(name: &str, inner: Box<dyn Model>, steps: &[Step]) -> Result<Self, ModelError> {
        let own = inner.schema();
        let compiled = Preprocessor::new(steps, own).map_err(|reason| ModelError::refused(name, reason))?;
        let mut details = own.details.clone();
        details.push(("preprocessing".to_owned(), format!("{} steps", steps.len())));
        let schema = ModelSchema {
            feature_names: compiled.feature_names().to_vec(),
            kinds: compiled.kinds().clone(),
            row_type: RowType::F64,
            details,
            ..own.clone()
        };
        Ok(Self { inner, steps: Arc::new(compiled), schema })
    }
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
