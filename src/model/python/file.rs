//! Which Python model a file is, told from its bytes and its name.

use super::super::{ModelBytes, ModelType, PythonOptions};

/// How the runner loads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// A pickle, or joblib's kind of it, packed or not.
    Pickle,
    /// A skops archive.
    Skops,
    /// Python source with a `predict`.
    Source,
    /// Anything, handed to a class of an installed module.
    ForClass,
}

impl FileKind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Pickle => "pickle",
            Self::Skops => "skops",
            Self::Source => "file",
            Self::ForClass => "class",
        }
    }

    /// The kind within a model type, or what the file is not.
    pub(super) fn of(file: &ModelBytes, model_type: ModelType, options: &PythonOptions) -> Result<Self, String> {
        if file.bytes.is_empty() {
            return Err("the file is empty".to_owned());
        }
        let is_class = options.class.as_ref().is_some_and(|class| class.contains(':'));
        match model_type {
            ModelType::Python if is_class => Ok(Self::ForClass),
            ModelType::Python if std::str::from_utf8(&file.bytes).is_ok() => Ok(Self::Source),
            ModelType::Python => {
                let remedy = "name the class that reads it: `class = \"module:Class\"` in [model.python]";
                Err(format!("a `python` model is a file of Python source, and this one is not UTF-8; {remedy}"))
            }
            _ if is_skops(&file.bytes) => Ok(Self::Skops),
            _ if is_pickle(&file.bytes) || is_packed(&file.bytes) => Ok(Self::Pickle),
            _ => {
                Err("it is no pickle, joblib or skops file; save it again with joblib.dump or skops.io.dump".to_owned())
            }
        }
    }
}

/// The model type of a file whose bytes or name tell that Python scores it.
pub(in super::super) fn model_type_of(file: &ModelBytes) -> Option<ModelType> {
    let ending = file.path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    let ending = ending.as_ref().and_then(|ending| ending.to_str()).unwrap_or_default();
    let sklearn = is_pickle(&file.bytes)
        || is_skops(&file.bytes)
        || (is_packed(&file.bytes) && matches!(ending, "joblib" | "pkl" | "pickle"));
    match ending {
        _ if sklearn => Some(ModelType::Sklearn),
        "py" => Some(ModelType::Python),
        _ => None,
    }
}

/// Protocol 2 to 5 opens with a mark, and every pickle ends with a full stop. Older ones have no mark; nobody saves
/// models in them.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, .., b'.'])
}

/// What joblib packs with: zlib, gzip, bzip2, xz, lzma, lz4. Other things are packed so too.
fn is_packed(bytes: &[u8]) -> bool {
    let marks: [&[u8]; 9] = [
        &[0x78, 0x01],
        &[0x78, 0x5e],
        &[0x78, 0x9c],
        &[0x78, 0xda],
        &[0x1f, 0x8b],
        b"BZh",
        &[0xfd, b'7', b'z', b'X', b'Z'],
        &[0x5d, 0, 0],
        &[0x04, 0x22, 0x4d, 0x18],
    ];
    marks.iter().any(|mark| bytes.starts_with(mark))
}

/// A zip archive with a `schema.json`, which its directory at the end names.
fn is_skops(bytes: &[u8]) -> bool {
    const DIRECTORY_BYTES: usize = 1 << 16;
    let end = &bytes[bytes.len().saturating_sub(DIRECTORY_BYTES)..];
    bytes.starts_with(b"PK\x03\x04") && end.windows(11).any(|name| name == b"schema.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bytes: &[u8]) -> ModelBytes {
        ModelBytes { path: path.into(), bytes: bytes.to_vec(), sha256: String::new(), pinned: false }
    }

    #[test]
    fn a_kind_is_found_from_bytes_or_where_they_do_not_tell_from_the_name() {
        let kind = |path, bytes: &[u8]| model_type_of(&file(path, bytes));
        let (sklearn, python) = (Some(ModelType::Sklearn), Some(ModelType::Python));
        assert_eq!(kind("m.bin", b"\x80\x05\x95...."), sklearn);
        assert_eq!(kind("m.bin", b"\x80\x05\x95 cut short"), None);
        assert_eq!(kind("m", b"PK\x03\x04 ... schema.json ..."), sklearn);
        assert_eq!(kind("m", b"PK\x03\x04 ... word/document.xml"), None);
        assert_eq!((kind("m.joblib", b"\x78\x9c.."), kind("m.bin", b"\x78\x9c..")), (sklearn, None));
        assert_eq!((kind("m.PY", b"import numpy"), kind("m.txt", b"import numpy")), (python, None));
    }

    #[test]
    fn a_stated_type_is_held_against_the_file() {
        let of = |bytes: &[u8], model_type, class: Option<&str>| {
            let options = PythonOptions { class: class.map(str::to_owned), ..PythonOptions::default() };
            FileKind::of(&file("m", bytes), model_type, &options)
        };
        assert_eq!(of(b"def predict(rows): ...", ModelType::Python, None), Ok(FileKind::Source));
        assert_eq!(of(b"weights \xff", ModelType::Python, Some("shop.model:Fraud")), Ok(FileKind::ForClass));
        assert!(of(b"weights \xff", ModelType::Python, Some("Fraud")).unwrap_err().contains("module:Class"));
        assert!(of(b"tree", ModelType::Sklearn, None).unwrap_err().contains("joblib.dump"));
        assert_eq!(of(b"\x78\x9c", ModelType::Sklearn, None), Ok(FileKind::Pickle));
    }
}
