//! XGBoost models, scored by XGBoost 1.6.2 on f32 rows, where it scores them as the version that wrote them does.
//! [`mod@header`] reads the file first: what 1.6.2 would misread is put in its words where that is sound, and refused
//! where it is not, since the library itself gives wrong scores without an error.
#![allow(unsafe_code, reason = "the library's C functions")]

mod document;
mod header;
mod library;

use self::header::Header;
use self::library::Booster;
use super::{
    FeatureKinds, InputForm, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};

/// A parsed XGBoost model.
pub(super) struct XgBoostModel {
    name: String,
    bytes: Vec<u8>,
    base_score: f32,
    margins: Vec<f32>,
    schema: ModelSchema,
}

impl XgBoostModel {
    /// Reads and checks the file, and lets the library parse it once.
    pub(super) fn parse(file: &ModelBytes) -> Result<Self, ModelError> {
        let name = file.name();
        let header = read(&file.bytes).map_err(|reason| ModelError::refused(&name, reason))?;
        let schema = ModelSchema {
            model_type: ModelType::XgBoost,
            feature_names: header.feature_names,
            kinds: FeatureKinds::default(),
            row_type: RowType::F32,
            outputs: header.outputs,
            details: header.details,
        };
        let model = Self { name, bytes: header.bytes, base_score: header.base_score, margins: header.margins, schema };
        model.booster()?;
        Ok(model)
    }

    fn booster(&self) -> Result<Booster, ModelError> {
        let refuse = |reason: String| ModelError::refused(&self.name, format!("XGBoost cannot read it: {reason}"));
        let booster = Booster::load(&self.bytes).map_err(refuse)?;
        let understood = booster.base_score().map_err(refuse)?;
        if understood.to_bits() == self.base_score.to_bits() {
            Ok(booster)
        } else {
            Err(refuse(format!("it takes the base score for {understood}, the file says {}", self.base_score)))
        }
    }
}

fn read(bytes: &[u8]) -> Result<Header, String> {
    if !bytes.starts_with(b"{") {
        let remedy = "save it again with Booster.save_model(\"model.json\") in XGBoost 1.0 to 3.0";
        return Err(format!("neither JSON nor UBJSON: the old binary format is not read; {remedy}"));
    }
    // 1.6.2 finds the format by the second byte, so space there is closed up.
    let inner = bytes[1..].trim_ascii_start();
    if inner.len() + 1 == bytes.len() { Header::read(bytes) } else { Header::read(&[b"{", inner].concat()) }
}

impl Model for XgBoostModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let (outputs, width) = (self.schema.outputs, self.schema.width());
        let booster = self.booster()?;
        Ok(Box::new(XgBoostScorer { booster, outputs, width, margins: self.margins.clone(), repeated: Vec::new() }))
    }

    fn input_form(&self) -> InputForm {
        InputForm::Unknown
    }

    fn runs_native_code(&self) -> bool {
        true
    }
}

struct XgBoostScorer {
    booster: Booster,
    outputs: usize,
    width: usize,
    /// What each group's sum starts from; empty where the library has it from the file.
    margins: Vec<f32>,
    /// The margins of a batch: those of a row, as often as there are rows.
    repeated: Vec<f32>,
}

impl Scorer for XgBoostScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let values = rows.as_f32()?;
        assert_eq!(rows.width, self.width, "rows as wide as the model");
        assert_eq!(values.len(), rows.count() * rows.width, "whole rows");
        assert_eq!(scores.len(), rows.count() * self.outputs, "a place for each score");
        if scores.is_empty() {
            return Ok(());
        }
        let wanted = self.margins.len() * rows.count();
        if self.repeated.len() < wanted {
            self.repeated = self.margins.repeat(rows.count());
        }
        let margins = &self.repeated[..wanted];
        let predicted = self.booster.predict(values, rows.width, margins);
        let predicted = predicted.map_err(|reason| ScoreError::of_library(format!("XGBoost: {reason}")))?;
        if predicted.len() != scores.len() {
            return Err(ScoreError::Failed(format!("XGBoost gave {} scores, not {}", predicted.len(), scores.len())));
        }
        scores.iter_mut().zip(predicted).for_each(|(score, predicted)| *score = f64::from(predicted));
        Ok(())
    }
}
