//! `[[model.candidate]]`: a version that is tried beside the one that serves; checked, and back.

use std::path::Path;

use super::check::{Check, parse_sha256};
use super::dump::calibration;
use super::raw::RawCandidate;
use super::substitute::literal;
use crate::engine::CandidateSpec;
use crate::model::{LoadOptions, hex};
use crate::score::Trial;

/// The tables at `key`, one at the most. What they leave out of how the file is loaded is the model's own.
pub(super) fn candidate(
    check: &mut Check<'_>,
    key: &str,
    raw: &[RawCandidate],
    model: &LoadOptions,
    base_dir: &Path,
) -> Option<CandidateSpec> {
    if raw.len() > 1 {
        check.refuse(&format!("{key}[1]"), "a model has one candidate at a time; remove the others");
    }
    let raw = raw.first()?;
    let key = format!("{key}[0]");
    if raw.path.as_deref() == Some("") {
        check.wants(&format!("{key}.path"), "", "the path of a model file");
    }
    if !(0.0..=1.0).contains(&raw.share) {
        check.refuse(&format!("{key}.share"), format!("got {}, wants a number from 0 to 1", raw.share));
    }
    let mut load = model.clone();
    load.model_type = Option::from(raw.kind).or(model.model_type);
    load.backend = raw.compile_model.as_ref().map_or(model.backend, Into::into);
    load.trusted = raw.trusted;
    load.quantize = raw.enable_model_quantization.unwrap_or(model.quantize);
    load.quantize_inputs = raw.enable_quantization.unwrap_or(model.quantize_inputs);
    if !raw.calibration.is_empty() {
        load.calibration = Some(base_dir.join(&raw.calibration));
    }
    // What it takes over from its model is the model's problem.
    if load.quantize_inputs != model.quantize_inputs {
        check.calibration(&key, &load);
    }
    let sha256 = if raw.sha256.is_empty() { None } else { parse_sha256(&raw.sha256) };
    if sha256.is_none() && !raw.sha256.is_empty() {
        let wanted = "64 hex digits, as sha256sum prints them, or \"\" for any file";
        check.wants(&format!("{key}.sha256"), &raw.sha256, wanted);
    }
    Some(CandidateSpec {
        path: base_dir.join(raw.path.as_deref().unwrap_or_default()),
        load,
        sha256,
        trial: Trial { mode: raw.mode, share: raw.share },
    })
}

/// The tables that say the same.
pub(super) fn dump(candidate: Option<&CandidateSpec>) -> Vec<RawCandidate> {
    let raw = candidate.map(|candidate| RawCandidate {
        path: Some(literal(&candidate.path.display().to_string())),
        mode: candidate.trial.mode,
        share: candidate.trial.share,
        kind: candidate.load.model_type.into(),
        compile_model: Some(candidate.load.backend.into()),
        sha256: candidate.sha256.as_ref().map(|digest| hex(digest)).unwrap_or_default(),
        trusted: candidate.load.trusted,
        enable_model_quantization: Some(candidate.load.quantize),
        enable_quantization: Some(candidate.load.quantize_inputs),
        calibration: calibration(&candidate.load),
    });
    raw.into_iter().collect()
}
