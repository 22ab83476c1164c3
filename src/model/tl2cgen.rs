//! Shared libraries that `TL2cgen` made of a Treelite model (`tl2cgen.export_lib`): their bytes in, scores out, as
//! `tl2cgen.Predictor` gives them.
//!
//! - A library runs code when it is loaded, so it needs `trusted = true` and a pinned digest.
//! - What is loaded is what was hashed: the bytes go into a sealed file in memory, and the loader gets that.
//! - Its functions must all be there, and say float32 or float64 twice; what else they do is a matter of trust.
#![allow(unsafe_code, reason = "a library's functions are called by the signatures that TL2cgen writes")]

use std::ffi::{CStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

use super::{
    FeatureKinds, InputForm, LoadOptions, Model, ModelBytes, ModelError, ModelSchema, ModelType, RowType, Rows,
    ScoreError, Scorer,
};
use crate::forest::LIMITS;

/// Whether a file is a shared library of this system.
pub(super) fn is_library(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// A loaded library.
pub(super) struct Tl2cgenModel {
    functions: Arc<Functions>,
    schema: ModelSchema,
}

impl Tl2cgenModel {
    /// Loads the library and asks it what it takes.
    pub(super) fn parse(file: &ModelBytes, options: &LoadOptions) -> Result<Self, ModelError> {
        file.require_trust("a shared library", options)?;
        let refuse = |reason: String| ModelError::refused(file.name(), reason);
        let functions = Functions::load(&file.bytes).map_err(refuse)?;
        let features = usize::try_from(functions.features).unwrap_or(0);
        let mut details = vec![("backend".to_owned(), "shared library".to_owned())];
        if functions.targets > 1 {
            details.push(("targets".to_owned(), functions.targets.to_string()));
        }
        if functions.classes > 1 {
            details.push(("classes".to_owned(), functions.classes.to_string()));
        }
        let schema = ModelSchema {
            model_type: ModelType::Treelite,
            feature_names: (0..features).map(|place| format!("f{place}")).collect(),
            kinds: FeatureKinds::default(),
            row_type: functions.predict.row_type(),
            outputs: functions.outputs(),
            details,
        };
        Ok(Self { functions: Arc::new(functions), schema })
    }
}

impl Model for Tl2cgenModel {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        let functions = Arc::clone(&self.functions);
        Ok(Box::new(Tl2cgenScorer { functions, row_f32: Vec::new(), row_f64: Vec::new(), scores_f32: Vec::new() }))
    }

    fn input_form(&self) -> InputForm {
        InputForm::Unknown
    }

    fn runs_native_code(&self) -> bool {
        true
    }
}

struct Tl2cgenScorer {
    functions: Arc<Functions>,
    /// A row's entries; the library may write into them.
    row_f32: Vec<u32>,
    row_f64: Vec<u64>,
    scores_f32: Vec<f32>,
}

impl Scorer for Tl2cgenScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let (width, outputs) = (rows.width, self.functions.outputs());
        assert_eq!(i64::try_from(width).ok(), Some(i64::from(self.functions.features)), "rows as wide as the model");
        assert_eq!(scores.len(), rows.count() * outputs, "a place for each score");
        match self.functions.predict {
            Predict::F32(predict) => {
                for (row, scores) in rows.as_f32()?.chunks_exact(width).zip(scores.chunks_exact_mut(outputs)) {
                    self.row_f32.clear();
                    self.row_f32.extend(row.iter().map(|value| if value.is_nan() { MISSING } else { value.to_bits() }));
                    self.scores_f32.clear();
                    self.scores_f32.resize(outputs, 0.0);
                    // SAFETY: the row has as many entries as the library said, the scores as many places, all of the
                    // type that it said; the library is loaded as long as `functions` lives.
                    unsafe { predict(self.row_f32.as_mut_ptr(), 0, self.scores_f32.as_mut_ptr()) };
                    scores.iter_mut().zip(&self.scores_f32).for_each(|(to, &score)| *to = f64::from(score));
                }
            }
            Predict::F64(predict) => {
                for (row, scores) in rows.as_f64()?.chunks_exact(width).zip(scores.chunks_exact_mut(outputs)) {
                    let entry = |value: &f64| if value.is_nan() { u64::from(MISSING) } else { value.to_bits() };
                    self.row_f64.clear();
                    self.row_f64.extend(row.iter().map(entry));
                    scores.fill(0.0);
                    // SAFETY: as for f32.
                    unsafe { predict(self.row_f64.as_mut_ptr(), 0, scores.as_mut_ptr()) };
                }
            }
        }
        Ok(())
    }
}

/// `union Entry { int missing; float fvalue; int qvalue; }` of a missing value: its first four bytes are -1.
const MISSING: u32 = u32::MAX;

/// `void predict(union Entry* data, int pred_margin, T* result)`, which adds to what the result holds.
enum Predict {
    F32(unsafe extern "C" fn(*mut u32, c_int, *mut f32)),
    F64(unsafe extern "C" fn(*mut u64, c_int, *mut f64)),
}

impl Predict {
    fn row_type(&self) -> RowType {
        match self {
            Self::F32(_) => RowType::F32,
            Self::F64(_) => RowType::F64,
        }
    }
}

/// What the library says of itself, and its `predict`.
struct Functions {
    features: i32,
    targets: i32,
    /// Of the target with the most.
    classes: i32,
    predict: Predict,
    // Last, so that it is dropped after all that points into it.
    _loaded: Loaded,
}

impl Functions {
    fn load(bytes: &[u8]) -> Result<Self, String> {
        let loaded = Loaded::open(bytes)?;
        // SAFETY: the signatures are those of the header that TL2cgen writes beside each model.
        let (targets, features) = unsafe {
            let targets = loaded.symbol::<unsafe extern "C" fn() -> i32>("get_num_target")?;
            let features = loaded.symbol::<unsafe extern "C" fn() -> i32>("get_num_feature")?;
            (targets(), features())
        };
        let (features_max, outputs_max) = (LIMITS.features.cast_signed(), LIMITS.outputs.cast_signed());
        if !(1..=features_max).contains(&features) || !(1..=outputs_max).contains(&targets) {
            return Err(format!("the library says {features} features and {targets} targets"));
        }
        let mut classes = vec![0_i32; targets.unsigned_abs() as usize];
        // SAFETY: as above; it fills in one number a target.
        unsafe { loaded.symbol::<unsafe extern "C" fn(*mut i32)>("get_num_class")?(classes.as_mut_ptr()) };
        let most = classes.iter().copied().max().unwrap_or(0);
        let outputs = i64::from(most) * i64::from(targets);
        if classes.iter().any(|&classes| classes < 1) || outputs > i64::from(outputs_max) {
            return Err(format!("the library says {targets} targets with at most {most} classes"));
        }
        let types = [loaded.text("get_threshold_type")?, loaded.text("get_leaf_output_type")?];
        // SAFETY: as above, by the type that the library says.
        let predict = unsafe {
            match [types[0].as_str(), types[1].as_str()] {
                ["float32", "float32"] => Predict::F32(*loaded.symbol("predict")?),
                ["float64", "float64"] => Predict::F64(*loaded.symbol("predict")?),
                [thresholds, leaves] => {
                    return Err(format!("thresholds are {thresholds:?} and leaves {leaves:?}, not float32 or float64"));
                }
            }
        };
        Ok(Self { features, targets, classes: most, predict, _loaded: loaded })
    }

    fn outputs(&self) -> usize {
        self.targets.unsigned_abs() as usize * self.classes.unsigned_abs() as usize
    }
}

/// A library, and the file in memory that it was loaded from. The loader knows a library by its path, so the file stays
/// open, and its number taken, as long as the library is loaded.
struct Loaded {
    library: Library,
    _file: File,
}

impl Loaded {
    fn open(bytes: &[u8]) -> Result<Self, String> {
        check_whole(bytes)?;
        let file = file_in_memory(bytes).map_err(|error| format!("no file in memory: {error}"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the library's start code runs; whoever pinned its digest and trusts it answers for that.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| {
            let said = error.to_string().replace(&path, "the library");
            format!("cannot load it: {said}; build it on a machine of this kind with tl2cgen.export_lib")
        })?;
        Ok(Self { library, _file: file })
    }

    /// # Safety
    /// The function must be of that type.
    unsafe fn symbol<T>(&self, name: &str) -> Result<Symbol<T>, String> {
        // SAFETY: the caller's promise.
        unsafe { self.library.get::<T>(name.as_bytes()) }.map_err(|_| {
            format!("it has no function {name}: no library that TL2cgen 1 made; make it with tl2cgen.export_lib")
        })
    }

    /// What a function without arguments says.
    fn text(&self, name: &str) -> Result<String, String> {
        // SAFETY: the signature is that of TL2cgen's header; the text is a constant of the library, which is loaded.
        let text = unsafe {
            let text = self.symbol::<unsafe extern "C" fn() -> *const c_char>(name)?();
            if text.is_null() {
                return Err(format!("{name} says nothing"));
            }
            CStr::from_ptr(text)
        };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// That the file holds all that its program headers say. The loader maps what they say, and to touch what is mapped beyond
/// the file's end ends the process.
fn check_whole(bytes: &[u8]) -> Result<(), String> {
    const LOAD: u32 = 1;
    let cut = || "the library is cut short; copy it again".to_owned();
    let part = |at: usize, size: usize| bytes.get(at..at.checked_add(size)?);
    let half = |at: usize| part(at, 2).map(|part| usize::from(u16::from_le_bytes([part[0], part[1]]))).ok_or_else(cut);
    let long = |at: usize| {
        let part = part(at, 8).and_then(|part| part.try_into().ok()).map(u64::from_le_bytes);
        part.and_then(|number| usize::try_from(number).ok()).ok_or_else(cut)
    };
    if part(4, 2).ok_or_else(cut)? != [2, 1] {
        return Err("the library is not one of a 64-bit little-endian machine".to_owned());
    }
    let (start, size, count) = (long(32)?, half(54)?, half(56)?);
    for number in 0..count {
        let at = size.checked_mul(number).and_then(|offset| offset.checked_add(start)).ok_or_else(cut)?;
        let kind = part(at, 4).and_then(|part| part.try_into().ok()).map(u32::from_le_bytes).ok_or_else(cut)?;
        let (offset, held) = (long(at + 8)?, long(at + 32)?);
        if kind == LOAD && part(offset, held).is_none() {
            return Err(cut());
        }
    }
    Ok(())
}

/// A file that no path leads to, and that nobody can change any more.
fn file_in_memory(bytes: &[u8]) -> io::Result<File> {
    // SAFETY: a plain call with a constant name.
    let number = unsafe { libc::memfd_create(c"forebay-model".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this number, and nobody else has it.
    let mut file = unsafe { File::from_raw_fd(number) };
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: a plain call on an open file.
    if unsafe { libc::fcntl(number, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
