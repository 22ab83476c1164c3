//! LightGBM text models, scored by LightGBM itself through `lightgbm3`, on f64 rows as the library's own Python
//! package does. The file's header is read here, for the schema and to refuse what the library would misread.
#![allow(unsafe_code, reason = "a booster crosses threads, and the library's log goes through a C callback")]

use std::ffi::{CStr, c_char};
use std::sync::Once;

use lightgbm3::Booster;

use super::{
    FeatureKinds, InputForm, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};

/// Parameters of every call: the score threads are ours, so the library is to start none of its own.
const PREDICT_PARAMS: &str = "num_threads=1 verbosity=-1";

/// A parsed LightGBM model.
pub(super) struct LightGbmModel {
    name: String,
    text: String,
    schema: ModelSchema,
}

impl LightGbmModel {
    /// Reads and checks the header, and lets the library parse the whole file once.
    pub(super) fn parse(file: &ModelBytes) -> Result<Self, ModelError> {
        route_library_log();
        let name = file.name();
        let refuse = |reason: &str| ModelError::refused(&name, reason);
        let text = String::from_utf8(file.bytes.clone())
            .map_err(|_| refuse("not UTF-8 text; save it again with Booster.save_model"))?;
        if text.contains('\0') {
            return Err(refuse("the text holds a NUL byte: the file is damaged; save it again"));
        }
        if !text.lines().any(|line| line == "end of trees") {
            return Err(refuse("the line `end of trees` is missing: the file is cut short; save it again"));
        }
        let header = Header::read(&text).map_err(|reason| refuse(&reason))?;
        let booster = SharedBooster::parse(&name, &text)?;
        let (features, outputs) = (booster.0.num_features(), booster.0.num_classes());
        if usize::try_from(features) != Ok(header.feature_names.len()) {
            let names = header.feature_names.len();
            return Err(refuse(&format!("the header names {names} features, LightGBM reads {features}")));
        }
        let outputs = usize::try_from(outputs).ok().filter(|&n| n > 0).ok_or_else(|| refuse("no outputs"))?;
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: header.feature_names,
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs,
            details: header.details,
        };
        Ok(Self { name, text, schema })
    }
}

impl Model for LightGbmModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let mut booster = SharedBooster::parse(&self.name, &self.text)?;
        let params = serde_json::json!({ "num_threads": 1, "verbosity": -1 });
        let init = booster.0.single_row_fast_init::<f64>(Some(&params));
        init.map_err(|error| ModelError::refused(&self.name, error.to_string()))?;
        Ok(Box::new(LightGbmScorer { booster, outputs: self.schema.outputs, width: self.schema.width() }))
    }

    fn input_form(&self) -> InputForm {
        InputForm::Unknown
    }

    fn runs_native_code(&self) -> bool {
        true
    }
}

struct SharedBooster(Booster);

// SAFETY: a booster is a heap object of the C++ library without thread-local state (built without OpenMP); each one
// belongs to one scorer, which is used by one thread at a time.
unsafe impl Send for SharedBooster {}

impl SharedBooster {
    fn parse(name: &str, text: &str) -> Result<Self, ModelError> {
        let parsed = Booster::from_string(text);
        parsed.map(Self).map_err(|error| ModelError::refused(name, format!("LightGBM cannot read it: {error}")))
    }
}

struct LightGbmScorer {
    booster: SharedBooster,
    outputs: usize,
    width: usize,
}

impl Scorer for LightGbmScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let values = rows.as_f64()?;
        // The library's own calls read as many numbers as the model is wide, whatever the slice holds.
        assert_eq!(rows.width, self.width, "rows as wide as the model");
        assert_eq!(values.len(), rows.count() * rows.width, "whole rows");
        assert_eq!(scores.len(), rows.count() * self.outputs, "a place for each score");
        let width = i32::try_from(rows.width).map_err(|_| ScoreError::Failed("more than 2^31 features".to_owned()))?;
        let booster = &self.booster.0;
        let scored = if rows.count() == 1 {
            booster.predict_single_row_fast(values)
        } else {
            booster.predict_with_params(values, width, true, PREDICT_PARAMS)
        };
        let scored = scored.map_err(|error| ScoreError::of_library(format!("LightGBM: {error}")))?;
        if scored.len() != scores.len() {
            return Err(ScoreError::Failed(format!("LightGBM gave {} scores, not {}", scored.len(), scores.len())));
        }
        scores.copy_from_slice(&scored);
        Ok(())
    }
}

struct Header {
    feature_names: Vec<String>,
    details: Vec<(String, String)>,
}

impl Header {
    /// The `key=value` lines before the first tree.
    fn read(text: &str) -> Result<Self, String> {
        let lines = text.lines().take_while(|line| !line.starts_with("Tree="));
        let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once('=')).collect();
        let field = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let feature_names: Vec<String> = field("feature_names")
            .ok_or("the header has no `feature_names`; save the model again with LightGBM 2.3 or newer")?
            .split(' ')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let named = field("max_feature_idx").and_then(|value| value.parse::<usize>().ok()).map(|last| last + 1);
        if named != Some(feature_names.len()) {
            let names = feature_names.len();
            return Err(format!(
                "`max_feature_idx` and the {names} names in `feature_names` disagree: the file is damaged"
            ));
        }
        let trees = text.lines().filter(|line| line.starts_with("Tree=")).count();
        let leaves = text.lines().filter_map(|line| line.strip_prefix("num_leaves=")?.parse::<u32>().ok());
        let mut details = vec![("trees".to_owned(), trees.to_string())];
        details.extend(leaves.max().map(|most| ("leaves".to_owned(), most.to_string())));
        for (key, shown) in [("version", "format"), ("objective", "objective"), ("num_class", "classes")] {
            details.extend(field(key).map(|value| (shown.to_owned(), value.to_owned())));
        }
        Ok(Self { feature_names, details })
    }
}

/// The library prints to standard output by default, where `forebay score` writes its scores.
fn route_library_log() {
    static ROUTED: Once = Once::new();
    extern "C" fn log(message: *const c_char) {
        // SAFETY: the library passes a NUL-terminated string that lives for the call.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        let message = message.trim();
        if !message.is_empty() {
            tracing::debug!(target: "lightgbm", "{message}");
        }
    }
    ROUTED.call_once(|| {
        // SAFETY: the callback is a plain function that lives for ever.
        unsafe { lightgbm3_sys::LGBM_RegisterLogCallback(Some(log)) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> ModelBytes {
        ModelBytes { path: "m.txt".into(), bytes: text.as_bytes().to_vec(), sha256: String::new(), pinned: false }
    }

    fn refusal(text: &str) -> String {
        LightGbmModel::parse(&file(text)).err().expect("refused").to_string()
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        assert!(refusal("tree\nversion=v4\n").contains("cut short"));
        assert!(refusal("tree\n\0end of trees\n").contains("NUL"));
        let two_names = "tree\nmax_feature_idx=2\nfeature_names=a b\n\nTree=0\n\nend of trees\n";
        assert!(refusal(two_names).contains("disagree"));
        let no_trees = "tree\nmax_feature_idx=1\nfeature_names=a b\n\nend of trees\n";
        assert!(refusal(no_trees).contains("LightGBM cannot read it"), "{}", refusal(no_trees));
    }
}
