//! XGBoost and LightGBM files, Treelite checkpoints and ONNX tree ensembles, scored by the compiled forest: a file's bytes
//! in; out, what the library's own `predict` (Treelite: `gtil.predict`) gives for the same rows with all trees, on the
//! float type that the library takes them in.

use std::sync::Arc;

use super::{
    FeatureKinds, InputForm, LoadOptions, Model, ModelBytes, ModelError, ModelSchema, ModelType, Quantization, RowType,
    Rows, ScoreError, Scorer,
};
use crate::forest::read::{self, FeatureNames, Format, ModelFile};
use crate::forest::{self, Body, Compiled, Float, ForestParts, Leaves, Mismatch, Reads, Results, Scratch, Tree};

/// A forest, compiled. All scorers share it.
pub(super) struct CompiledModel {
    forest: Arc<Compiled>,
    schema: ModelSchema,
    input_form: InputForm,
}

/// The format in which the forest engine reads models of this type; `None` where they are no forests. Of ONNX graphs it
/// reads those that are one tree ensemble.
pub(super) fn format(model_type: ModelType) -> Option<Format> {
    match model_type {
        ModelType::LightGbm => Some(Format::LightGbm),
        ModelType::XgBoost => Some(Format::XGBoost),
        ModelType::Onnx => Some(Format::Onnx),
        ModelType::Treelite => Some(Format::Treelite),
        ModelType::Python | ModelType::Sklearn => None,
    }
}

impl CompiledModel {
    /// Reads, checks and compiles the file.
    pub(super) fn parse(
        file: &ModelBytes,
        model_type: ModelType,
        format: Format,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        let read = read::read(format, &file.bytes).map_err(|error| {
            let remedy = match format {
                Format::Onnx | Format::Treelite | Format::Saved => "",
                _ => "; where its own library scores it, `compile_model = false` (--backend reference) lets it",
            };
            ModelError::refused(file.name(), format!("the compiled forest cannot read it: {error}{remedy}"))
        })?;
        Ok(Self::of(&read, model_type, options))
    }

    /// Compiles what was read; `quantize` keeps leaves in 16 bits.
    pub(super) fn of(read: &ModelFile, model_type: ModelType, options: &LoadOptions) -> Self {
        let quantize = options.quantize;
        let (float, row_type) = match read.forest.parts().row_type {
            Float::F32 if !read.takes_f64 => (Float::F32, RowType::F32),
            _ => (Float::F64, RowType::F64),
        };
        let forest = &read.forest;
        let compiled = if quantize { forest.compile_quantized(float) } else { forest.compile(float) };
        let mut details = details(read, &compiled);
        if quantize {
            let leaves =
                if compiled.is_quantized() { "16 bits, a scale a tree" } else { "as they are: no finite tree leaves" };
            details.push(("leaves kept in".to_owned(), leaves.to_owned()));
        }
        let input_form = match compiled.reads() {
            Some(reads) => {
                let told = options.quantize_inputs != Quantization::Off;
                details.extend(told.then(|| ("quantization".to_owned(), native(read.forest.parts(), reads))));
                InputForm::Native
            }
            None => InputForm::Numbers,
        };
        let schema = ModelSchema {
            model_type,
            feature_names: feature_names(&read.feature_names, compiled.features()),
            kinds: FeatureKinds::default(),
            row_type,
            outputs: compiled.predictions(),
            details,
        };
        Self { forest: Arc::new(compiled), schema, input_form }
    }
}

/// The file's own, or XGBoost's for a file without.
fn feature_names(names: &FeatureNames, features: usize) -> Vec<String> {
    if names.is_empty() {
        (0..features).map(|place| format!("f{place}")).collect()
    } else {
        names.iter().map(str::to_owned).collect()
    }
}

fn details(read: &ModelFile, compiled: &Compiled) -> Vec<(String, String)> {
    let own = |(name, value): (&str, String)| (name.to_owned(), value);
    let mut details = vec![own(("backend", "compiled".to_owned()))];
    details.extend(sizes(read.forest.parts()).into_iter().map(own));
    details.extend(read.details.iter().filter(|(name, _)| name != "trees").cloned());
    let best = read.best_iteration.map(|best| ("best iteration", format!("{best}; all trees are scored")));
    details.extend(best.map(own));
    details.push(own(("compiled bytes", compiled.bytes().to_string())));
    details
}

/// What its splits read of a row; none of it moves a score.
fn native(parts: &ForestParts, Reads { ranks, singles, others }: Reads) -> String {
    let readings = [(ranks, "rank among thresholds"), (singles, "32-bit float"), (others, "category or sameness")];
    let readings = readings.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} as {what}"));
    let readings: Vec<String> = readings.collect();
    let is_linear = |tree: &Tree| matches!(tree.leaves, Leaves::Linear(_));
    let linear = match &parts.body {
        Body::Trees(trees) if trees.iter().any(is_linear) => "; linear leaves take features as they are",
        _ => "",
    };
    format!("native: splits read {}, and no score moves{linear}", readings.join(", "))
}

/// How many trees, and leaves of the largest.
fn sizes(parts: &ForestParts) -> Vec<(&'static str, String)> {
    match &parts.body {
        Body::Linear { .. } => Vec::new(),
        Body::Trees(trees) => {
            let leaves = trees.iter().map(|tree| tree.leaves.count(parts.outputs)).max().unwrap_or(0);
            vec![("trees", trees.len().to_string()), ("leaves", leaves.to_string())]
        }
    }
}

impl Model for CompiledModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let forest = Arc::clone(&self.forest);
        let row_type = self.schema.row_type;
        Ok(Box::new(CompiledScorer { forest, row_type, scratch: Scratch::default(), singles: Vec::new() }))
    }

    fn is_compiled(&self) -> bool {
        true
    }

    fn input_form(&self) -> InputForm {
        self.input_form
    }
}

struct CompiledScorer {
    forest: Arc<Compiled>,
    row_type: RowType,
    scratch: Scratch,
    /// Scores of a model that adds in f32, before they are widened.
    singles: Vec<f32>,
}

impl Scorer for CompiledScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let values = match self.row_type {
            RowType::F32 => forest::Values::F32(rows.as_f32()?),
            RowType::F64 => forest::Values::F64(rows.as_f64()?),
        };
        let misfit = |mismatch: Mismatch| ScoreError::Failed(format!("the compiled forest: {mismatch}"));
        match self.forest.sum_type() {
            Float::F64 => self.forest.predict(values, &mut self.scratch, Results::F64(scores)).map_err(misfit),
            Float::F32 => {
                self.singles.resize(scores.len(), 0.0);
                let results = Results::F32(&mut self.singles);
                self.forest.predict(values, &mut self.scratch, results).map_err(misfit)?;
                scores.iter_mut().zip(&self.singles).for_each(|(score, &single)| *score = f64::from(single));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Values, load};
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> ModelBytes {
        ModelBytes { path: name.into(), bytes: bytes.to_vec(), sha256: String::new(), pinned: false }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_refused_with_its_place_and_the_remedy() {
        let text =
            "tree\nversion=v4\nnum_class=1\nmax_feature_idx=0\nfeature_names=a\nobjective=magic\n\nend of trees\n";
        let error = load(&file("m.txt", text.as_bytes()), &LoadOptions::default()).err().unwrap().to_string();
        assert!(error.starts_with("model m.txt: the compiled forest cannot read it: line "), "{error}");
        assert!(error.contains("magic") && error.contains("`compile_model = false`"), "{error}");
    }

    #[test]
    fn quantized_leaves_take_less_and_move_scores_a_little() {
        let bytes = std::fs::read("tests/data/higgs/higgs.model.txt").unwrap();
        let load = |quantize| {
            let options = LoadOptions { quantize, ..LoadOptions::default() };
            load(&file("higgs.model.txt", &bytes), &options).unwrap()
        };
        let (whole, quantized) = (load(false), load(true));
        let detail = |model: &dyn Model, wanted: &str| {
            model.schema().details.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
        };
        let size = |model: &dyn Model| detail(model, "compiled bytes").unwrap().parse::<u64>().unwrap();
        assert!(size(quantized.as_ref()) * 10 < size(whole.as_ref()) * 7, "16 bytes a node become 10");
        assert_eq!(detail(quantized.as_ref(), "leaves kept in").as_deref(), Some("16 bits, a scale a tree"));
        assert_eq!(detail(whole.as_ref(), "leaves kept in"), None);
        let rows: Vec<f64> = (0..28 * 300).map(|place| f64::from(place * 37 % 101) / 25.0 - 1.0).collect();
        let score = |model: &dyn Model| {
            let mut scores = vec![f64::NAN; 300];
            model.scorer().unwrap().score(Rows::numbers(Values::F64(&rows), 28), &mut scores).unwrap();
            scores
        };
        let (own, moved) = (score(whole.as_ref()), score(quantized.as_ref()));
        let most = own.iter().zip(&moved).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(most > 0.0 && most < 1e-4, "{most}");
    }

    #[test]
    fn the_shipped_model_is_described_and_scored() {
        let bytes = std::fs::read("tests/data/higgs/higgs.model.txt").unwrap();
        let model = load(&file("higgs.model.txt", &bytes), &LoadOptions::default()).unwrap();
        let schema = model.schema();
        assert!(model.is_compiled());
        assert_eq!((schema.width(), schema.outputs, schema.row_type), (28, 1, RowType::F64));
        let detail = |wanted| schema.details.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        assert_eq!((detail("backend"), detail("trees"), detail("leaves")), (Some("compiled"), Some("100"), Some("31")));
        let mut scorer = model.scorer().unwrap();
        let mut scores = [f64::NAN; 3];
        let (rows, singles) = (vec![0.5; 3 * 28], vec![0.5_f32; 28]);
        scorer.score(Rows::numbers(Values::F64(&rows), 28), &mut scores).unwrap();
        assert!(scores.iter().all(|score| (0.0..1.0).contains(score) && score.to_bits() == scores[0].to_bits()));
        let error = scorer.score(Rows::numbers(Values::F32(&singles), 28), &mut scores[..1]).unwrap_err();
        assert!(error.to_string().contains("wants f64 rows"), "{error}");
    }
}
