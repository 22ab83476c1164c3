//! A model file is read once: hashed, checked against the pin, its kind found, and parsed from those same bytes.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::compiled::{self, CompiledModel};
use super::preprocessed::PreprocessedModel;
use super::tl2cgen::{self, Tl2cgenModel};
use super::{LoadOptions, Model, ModelError, ModelType};
use crate::forest::read::{self, Format, saved};

/// A model file's bytes and their identity.
#[derive(Clone, Debug)]
pub struct ModelBytes {
    /// Where they were read from; names the model in errors.
    pub path: PathBuf,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their SHA-256, hex.
    pub sha256: String,
    /// Whether they were held against a digest that somebody pinned.
    pub pinned: bool,
}

impl ModelBytes {
    /// Reads a file and checks it against `pin`, the SHA-256 that it must have.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], or [`ModelError::WrongDigest`] when the file is not the pinned one.
    pub fn read(path: &Path, pin: Option<&[u8; 32]>) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path)
            .map_err(|error| ModelError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
        let found: [u8; 32] = Sha256::digest(&bytes).into();
        match pin {
            Some(pinned) if *pinned != found => {
                Err(ModelError::WrongDigest { path: path.to_owned(), found: hex(&found), pinned: hex(pinned) })
            }
            _ => Ok(Self { path: path.to_owned(), bytes, sha256: hex(&found), pinned: pin.is_some() }),
        }
    }

    /// Bytes that stand, or will stand, in that file.
    #[must_use]
    pub fn new(path: PathBuf, bytes: Vec<u8>) -> Self {
        let sha256 = hex(&Sha256::digest(&bytes));
        Self { path, bytes, sha256, pinned: false }
    }

    /// Refuses a file that runs code of its own, such as "a pickle", unless somebody both trusts it and pinned its digest.
    ///
    /// # Errors
    /// [`ModelError::Refused`], naming both keys.
    pub(super) fn require_trust(&self, what: &str, options: &LoadOptions) -> Result<(), ModelError> {
        let missing = match (options.trusted, self.pinned) {
            (true, true) => return Ok(()),
            (false, true) => "`trusted = true` is missing".to_owned(),
            (true, false) => "`sha256` is missing".to_owned(),
            (false, false) => "`trusted = true` and `sha256` are missing".to_owned(),
        };
        let sha256 = &self.sha256;
        let reason = format!(
            "{what} runs code of its own when it is loaded, so it needs `trusted = true` and its digest pinned, and {missing}; if \
             you trust who made it: trusted = true, sha256 = \"{sha256}\""
        );
        Err(ModelError::refused(self.name(), reason))
    }

    /// The file's name as errors show it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// The kind of model that a file holds, found from its first bytes. XGBoost's old binary format has no mark of its own
/// unless it was saved with one, so there the config must state the kind.
#[must_use]
pub fn model_type_of(bytes: &[u8]) -> Option<ModelType> {
    match read::format_of(bytes) {
        Some(Format::LightGbm) => Some(ModelType::LightGbm),
        Some(Format::XGBoost) => Some(ModelType::XgBoost),
        Some(Format::Treelite) => Some(ModelType::Treelite),
        Some(Format::Saved) => saved::kind_of(bytes).and_then(|kind| kind.parse().ok()),
        Some(Format::Onnx) => Some(ModelType::Onnx),
        None => tl2cgen::is_library(bytes).then_some(ModelType::Treelite),
    }
}

/// Parses a model. The backend that the options name is never exchanged for the other one, but for ONNX graphs that are
/// more than one tree ensemble: those are the runtime's.
///
/// # Errors
/// [`ModelError::Refused`] when the kind cannot be found, is not built in, or the file must not be scored.
pub fn load(file: &ModelBytes, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
    let model = load_bare(file, options)?;
    PreprocessedModel::wrap(&file.name(), model, options)
}

/// The model without the steps before it.
pub(super) fn load_bare(file: &ModelBytes, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
    let model_type = kind(file, options)?;
    if model_type == ModelType::Treelite && tl2cgen::is_library(&file.bytes) {
        refuse_quantized(file, options)?;
        return Ok(Box::new(Tl2cgenModel::parse(file, options)?));
    }
    // Nothing else here scores a checkpoint.
    let is_saved = read::format_of(&file.bytes) == Some(Format::Saved);
    let compiles = options.backend.compiles_trees() || model_type == ModelType::Treelite;
    if is_saved && !compiles {
        let reason =
            "it holds a compiled forest, which its own library cannot score; load the file that it was made from";
        return Err(ModelError::refused(file.name(), reason));
    }
    let format = if is_saved { Some(Format::Saved) } else { compiled::format(model_type) };
    match format.filter(|_| compiles) {
        Some(Format::Onnx) => load_onnx(file, options),
        Some(format) => Ok(Box::new(CompiledModel::parse(file, model_type, format, options)?)),
        None => load_library(file, model_type, options),
    }
}

/// What cannot be done is never passed over.
fn refuse_quantized(file: &ModelBytes, options: &LoadOptions) -> Result<(), ModelError> {
    if !options.quantize {
        return Ok(());
    }
    let reason = "what scores it here does not store numbers in fewer bits: the compiled forest and ONNX Runtime do; take \
                  `enable_model_quantization` (--quantize) out";
    Err(ModelError::refused(file.name(), reason))
}

/// A graph that is one tree ensemble is scored by the compiled forest, every other by the runtime, which tells why.
fn load_onnx(file: &ModelBytes, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
    let read = read::read(Format::Onnx, &file.bytes).map_err(|error| format!("not one tree ensemble: {error}"));
    let read = read.and_then(|read| {
        let is_scored = |wanted: &String| read.details.contains(&("scored output".to_owned(), wanted.clone()));
        match &options.onnx.output[..] {
            [] => Ok(read),
            [wanted] if is_scored(wanted) => Ok(read),
            _ => Err("other outputs are asked for".to_owned()),
        }
    });
    match read {
        Ok(read) => Ok(Box::new(CompiledModel::of(&read, ModelType::Onnx, options))),
        #[cfg(feature = "onnx")]
        Err(reason) => {
            let mut model = super::onnx::OnnxModel::parse(file, options)?;
            model.tell("backend", format!("runtime: {reason}"));
            Ok(Box::new(model))
        }
        #[cfg(not(feature = "onnx"))]
        Err(_) => load_library(file, ModelType::Onnx, options),
    }
}

/// What the options say that the file is, or what it shows.
fn kind(file: &ModelBytes, options: &LoadOptions) -> Result<ModelType, ModelError> {
    let found = model_type_of(&file.bytes);
    #[cfg(feature = "python")]
    let found = found.or_else(|| super::python::model_type_of(file));
    match (options.model_type, found) {
        // A class of Python's may be given any file.
        (Some(ModelType::Python), _) => Ok(ModelType::Python),
        (Some(stated), Some(found)) if stated != found => {
            Err(ModelError::refused(file.name(), format!("the file is {found}, the config says {stated}")))
        }
        (Some(stated), _) => Ok(stated),
        (None, Some(found)) => Ok(found),
        (None, None) => {
            let remedy = "state its `type`";
            Err(ModelError::refused(file.name(), format!("cannot tell what kind of model this is; {remedy}")))
        }
    }
}

/// The compiled form of a model, to be kept in a file: of trees [`saved`], of a scikit-learn estimator an ONNX graph, held
/// against the estimator's own scores, of another ONNX graph that is to be quantized the graph with weights of 8 bits.
///
/// # Errors
/// [`ModelError::Refused`] when the file cannot be read, or has no compiled form.
pub fn compiled_form(file: &ModelBytes, options: &LoadOptions) -> Result<Vec<u8>, ModelError> {
    let model_type = kind(file, options)?;
    #[cfg(feature = "python")]
    if model_type == ModelType::Sklearn {
        let graph = super::python::graph(file, options)?;
        if !options.quantize || is_trees(&graph) {
            return Ok(graph);
        }
        return int8_form(&ModelBytes::new(file.path.clone(), graph), options);
    }
    if model_type == ModelType::Onnx && options.quantize && !is_trees(&file.bytes) {
        return int8_form(file, options);
    }
    let Some(format) = compiled::format(model_type) else {
        let known = "XGBoost, LightGBM, Treelite and scikit-learn models have, and ONNX models of trees";
        let reason = format!("{model_type} models have no compiled form; {known}");
        return Err(ModelError::refused(file.name(), reason));
    };
    if read::format_of(&file.bytes) == Some(Format::Saved) {
        return Err(ModelError::refused(file.name(), "it is compiled already"));
    }
    let read = read::read(format, &file.bytes);
    let read = read.map_err(|error| ModelError::refused(file.name(), format!("the compiled forest: {error}")))?;
    Ok(saved::save(model_type.as_str(), &read, &file.sha256))
}

/// Whether a graph is one tree ensemble, which has no weights to store in 8 bits.
fn is_trees(graph: &[u8]) -> bool {
    read::read(Format::Onnx, graph).is_ok()
}

/// A graph with weights of 8 bits.
#[cfg(feature = "onnx")]
fn int8_form(graph: &ModelBytes, options: &LoadOptions) -> Result<Vec<u8>, ModelError> {
    super::onnx::int8(graph, options).map(|int8| int8.bytes)
}

/// This build has no ONNX Runtime, whose quantizer makes such weights.
#[cfg(not(feature = "onnx"))]
fn int8_form(graph: &ModelBytes, options: &LoadOptions) -> Result<Vec<u8>, ModelError> {
    refuse_quantized(graph, options).map(|()| graph.bytes.clone())
}

/// Through the library whose format it is.
pub(super) fn load_library(
    file: &ModelBytes,
    model_type: ModelType,
    options: &LoadOptions,
) -> Result<Box<dyn Model>, ModelError> {
    let is_converted = model_type == ModelType::Sklearn && options.backend == super::Backend::Compiled;
    if model_type != ModelType::Onnx && !is_converted {
        refuse_quantized(file, options)?;
    }
    match model_type {
        #[cfg(feature = "lightgbm")]
        ModelType::LightGbm => Ok(Box::new(super::lightgbm::LightGbmModel::parse(file)?)),
        #[cfg(feature = "onnx")]
        ModelType::Onnx => Ok(Box::new(super::onnx::OnnxModel::parse(file, options)?)),
        #[cfg(feature = "python")]
        ModelType::Sklearn if is_converted => super::python::convert(file, options),
        #[cfg(feature = "python")]
        ModelType::Python | ModelType::Sklearn => {
            Ok(Box::new(super::python::PythonModel::parse(file, model_type, options)?))
        }
        #[cfg(feature = "xgboost")]
        ModelType::XgBoost => Ok(Box::new(super::xgboost::XgBoostModel::parse(file)?)),
        ModelType::Treelite => {
            Err(ModelError::refused(file.name(), "Treelite's own library is not part of this program"))
        }
        #[cfg(not(all(feature = "lightgbm", feature = "onnx", feature = "python", feature = "xgboost")))]
        absent => {
            let compiled = if compiled::format(absent).is_some() {
                ", or let the compiled forest score it: `compile_model = true` (--backend compiled)"
            } else {
                ""
            };
            let feature = if absent == ModelType::Sklearn { ModelType::Python } else { absent };
            let reason = format!(
                "this build lacks the library for {absent} models; build with the cargo feature `{feature}`{compiled}"
            );
            Err(ModelError::refused(file.name(), reason))
        }
    }
}

/// Lower-case hex digits, as `sha256sum` prints them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_pinned_one_is_refused_with_both_digests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.txt");
        std::fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let pin: [u8; 32] = Sha256::digest(b"abc").into();
        assert_eq!(ModelBytes::read(&path, Some(&pin)).unwrap().sha256, abc);
        let error = ModelBytes::read(&path, Some(&[0; 32])).unwrap_err().to_string();
        assert!(error.contains(abc) && error.contains(&"0".repeat(64)), "{error}");
    }

    #[test]
    fn what_cannot_be_done_is_never_passed_over() {
        let bytes = std::fs::read("tests/data/higgs/higgs.model.txt").unwrap();
        let file = ModelBytes::new("m.txt".into(), bytes);
        let options = LoadOptions { quantize: true, ..LoadOptions::of_backend(super::super::Backend::Reference) };
        let error = load(&file, &options).err().unwrap().to_string();
        assert!(error.contains("enable_model_quantization"), "{error}");
    }

    #[test]
    fn an_unknown_kind_is_refused_by_name() {
        let file = ModelBytes { path: "x.bin".into(), bytes: b"???".to_vec(), sha256: String::new(), pinned: false };
        let error = load(&file, &LoadOptions::default()).err().unwrap().to_string();
        assert!(error.starts_with("model x.bin: cannot tell what kind"), "{error}");
    }
}
