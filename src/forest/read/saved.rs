//! The compiled form in a file: `forebay model compile` writes it, and the next load reads it without the model's own
//! format, which for large JSON models takes most of the load.
//!
//! ```text
//! forebay forest 1 <kind>\n     the kind of the model that it was made from
//! 32 bytes                      SHA-256 of what follows
//! postcard                      Saved: names, details, the source's digest, the forest's parts
//! ```
//!
//! The parts are checked as every reader's are: what a file says is never trusted.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FeatureNames, ModelFile, Place, ReadError, checked};
use crate::forest::ForestParts;

const MARK: &[u8] = b"forebay forest 1 ";
const DIGEST_BYTES: usize = 32;
/// A kind's name is shorter.
const KIND_BYTES_MAX: usize = 32;

#[derive(Deserialize)]
struct Saved {
    source_sha256: String,
    feature_names: Vec<String>,
    best_iteration: Option<u32>,
    takes_f64: bool,
    details: Vec<(String, String)>,
    parts: ForestParts,
}

/// The same, borrowed.
#[derive(Serialize)]
struct Saving<'a> {
    source_sha256: &'a str,
    feature_names: Vec<&'a str>,
    best_iteration: Option<u32>,
    takes_f64: bool,
    details: &'a [(String, String)],
    parts: &'a ForestParts,
}

/// The file of a model that was read from another one, of the digest `source_sha256`.
///
/// # Panics
/// Never: all parts have a form in postcard.
pub fn save(kind: &str, model: &ModelFile, source_sha256: &str) -> Vec<u8> {
    let saving = Saving {
        source_sha256,
        feature_names: model.feature_names.iter().collect(),
        best_iteration: model.best_iteration,
        takes_f64: model.takes_f64,
        details: &model.details,
        parts: model.forest.parts(),
    };
    let body = postcard::to_stdvec(&saving).expect("numbers, texts and lists have a form in postcard");
    [MARK, kind.as_bytes(), b"\n", Sha256::digest(&body).as_slice(), &body].concat()
}

/// The kind that the first line names, if the file is one of these.
pub fn kind_of(head: &[u8]) -> Option<&str> {
    let rest = head.strip_prefix(MARK)?;
    let end = rest.iter().take(KIND_BYTES_MAX).position(|byte| *byte == b'\n')?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Reads such a file.
pub(super) fn read(bytes: &[u8]) -> Result<ModelFile, ReadError> {
    let at = |place, reason: &str| ReadError { place: Place::Byte(place), reason: reason.to_owned() };
    let again = "the file is damaged; write it again with `forebay model compile`";
    let kind = kind_of(bytes).ok_or_else(|| at(0, "no compiled forest of this version; write it again"))?;
    let start = MARK.len() + kind.len() + 1;
    let (digest, body) = bytes[start..].split_at_checked(DIGEST_BYTES).ok_or_else(|| at(start, again))?;
    if Sha256::digest(body).as_slice() != digest {
        return Err(at(start, again));
    }
    let (saved, rest) = postcard::take_from_bytes::<Saved>(body).map_err(|_| at(start + DIGEST_BYTES, again))?;
    if !rest.is_empty() {
        return Err(at(bytes.len() - rest.len(), again));
    }
    let Saved { source_sha256, feature_names, best_iteration, takes_f64, mut details, parts } = saved;
    let mut names = FeatureNames::default();
    for name in &feature_names {
        names.push(name)?;
    }
    if !names.is_empty() {
        names.check(parts.features)?;
    }
    details.push(("compiled from".to_owned(), source_sha256));
    Ok(ModelFile { forest: checked(parts)?, feature_names: names, best_iteration, takes_f64, details })
}

#[cfg(test)]
mod tests {
    use super::super::{Format, format_of, read};
    use super::*;

    fn higgs() -> (Vec<u8>, ModelFile) {
        let text = std::fs::read("tests/data/higgs/higgs.model.txt").unwrap();
        let model = read(Format::LightGbm, &text).unwrap();
        (save("lightgbm", &model, "ab12"), model)
    }

    #[test]
    fn what_is_saved_reads_back_the_same() {
        let (bytes, model) = higgs();
        assert_eq!((kind_of(&bytes), format_of(&bytes)), (Some("lightgbm"), Some(Format::Saved)));
        let again = read(Format::Saved, &bytes).unwrap();
        assert_eq!(again.forest, model.forest);
        assert!(again.feature_names.iter().eq(model.feature_names.iter()));
        assert!(again.details.contains(&("compiled from".to_owned(), "ab12".to_owned())));
    }

    #[test]
    fn a_body_of_somebody_elses_making_ends_in_a_forest_or_an_error() {
        let (bytes, model) = higgs();
        let start = MARK.len() + "lightgbm".len() + 1;
        // Lehmer's generator with Steele and Vigna's multiplier.
        let mut state = 0x5eed_u64 | 1;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % bound
        };
        let (mut forests, mut errors) = (0, 0);
        for _ in 0..3_000 {
            let mut body = bytes[start + DIGEST_BYTES..].to_vec();
            for _ in 0..=below(3) {
                let at = below(body.len());
                body[at] = u8::try_from(below(256)).unwrap();
            }
            // With the digest that fits it, so that the parts themselves are looked at.
            let signed = [&bytes[..start], Sha256::digest(&body).as_slice(), &body].concat();
            match read(Format::Saved, &signed) {
                Ok(other) => forests += usize::from(other.forest != model.forest),
                Err(_) => errors += 1,
            }
        }
        assert!(forests > 100 && errors > 100, "{forests} other forests, {errors} errors");
    }

    #[test]
    fn a_damaged_file_is_refused_wherever_it_is_damaged() {
        let (bytes, _) = higgs();
        for at in (0..bytes.len()).step_by(101).chain([bytes.len() - 1]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            // The name of the kind is nobody's but the caller's to check.
            let is_kind = (MARK.len()..MARK.len() + "lightgbm".len()).contains(&at);
            assert!(is_kind || read(Format::Saved, &damaged).is_err(), "byte {at}");
            assert!(read(Format::Saved, &bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
