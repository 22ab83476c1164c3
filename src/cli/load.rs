//! What commands that load a model are told of it: by options, or by the `[[model]]` of a worker.toml.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{BackendArg, TypeArg, Usage};
use crate::config::{Config, Overrides, parse_sha256};
use crate::model::{self, LoadOptions, Model, ModelBytes, Quantization};

/// The options.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// What the model file is
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    model_type: TypeArg,
    /// What scores a model that more than one thing can score
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendArg,
    /// The file may run code of its own when it is loaded, as pickles, Python files and shared libraries do
    #[arg(long, requires = "sha256")]
    trusted: bool,
    /// The SHA-256 that the file must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Store the model's own numbers in fewer bits: weights of ONNX graphs as int8, leaves of trees as 16 bits
    #[arg(long)]
    quantize: bool,
    /// Round numeric features: to floats of 16 bits (f16), or to 256 levels of the range in the rows of --calibration (u8)
    #[arg(long, value_name = "FORM", default_value = "off")]
    quantize_inputs: QuantizationArg,
    /// Rows that features rounded to u8 take their ranges from: JSON lines, CSV or TSV
    #[arg(long, value_name = "FILE", required_if_eq("quantize_inputs", "u8"))]
    calibration: Option<PathBuf>,
    /// Take the model from this worker.toml, with all that stands there of it: the model is then given by its name
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "model_type", "backend", "trusted", "sha256", "quantize", "quantize_inputs", "calibration",
    ])]
    config: Option<PathBuf>,
}

/// [`Quantization`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantizationArg {
    Off,
    F16,
    U8,
}

impl From<QuantizationArg> for Quantization {
    fn from(arg: QuantizationArg) -> Self {
        match arg {
            QuantizationArg::Off => Self::Off,
            QuantizationArg::F16 => Self::F16,
            QuantizationArg::U8 => Self::U8,
        }
    }
}

/// A model as the command line means it.
pub(super) struct Asked {
    pub(super) path: PathBuf,
    pub(super) options: LoadOptions,
    pub(super) sha256: Option<[u8; 32]>,
}

impl LoadArgs {
    /// The model that is given: a file, or a name in the config.
    pub(super) fn asked(&self, given: &Path) -> anyhow::Result<Asked> {
        if let Some(file) = &self.config {
            return named(file, given);
        }
        let pin = |text: &String| {
            let wanted = "wants 64 hex digits, as sha256sum prints them";
            parse_sha256(text).ok_or_else(|| Usage(format!("--sha256: got {text:?}, {wanted}")))
        };
        let options = LoadOptions {
            model_type: self.model_type.0,
            trusted: self.trusted,
            quantize: self.quantize,
            quantize_inputs: self.quantize_inputs.into(),
            calibration: self.calibration.clone(),
            ..LoadOptions::of_backend(self.backend.into())
        };
        Ok(Asked { path: given.to_owned(), options, sha256: self.sha256.as_ref().map(pin).transpose()? })
    }

    /// Reads and parses it.
    pub(super) fn load(&self, given: &Path) -> anyhow::Result<(ModelBytes, Box<dyn Model>, LoadOptions)> {
        let Asked { path, options, sha256 } = self.asked(given)?;
        let file = ModelBytes::read(&path, sha256.as_ref())?;
        let model = model::load(&file, &options)?;
        Ok((file, model, options))
    }
}

fn named(file: &Path, name: &Path) -> anyhow::Result<Asked> {
    // The instance is nobody's business here, and may come from a variable that is not set.
    let config = Config::from_file(file, &Overrides { instance: Some("forebay".to_owned()) })?;
    let name = name.to_string_lossy();
    let names: Vec<String> = config.models.iter().map(|model| model.name.clone()).collect();
    let model = config.models.into_iter().find(|model| model.name == name).ok_or_else(|| {
        let file = file.display();
        Usage(format!("{file}: no [[model]] has the name {name:?}; there is {}", names.join(", ")))
    })?;
    Ok(Asked { path: model.path, options: model.load, sha256: model.sha256 })
}
