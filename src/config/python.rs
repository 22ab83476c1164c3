//! `[model.python]`: how Python runs a model; its keys, checked, and back.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Check;
use super::dump::{bytes, duration};
use super::substitute::literal;
use super::values::{BytesText, DurationText};
use crate::model::{Input, Method, PythonOptions, RowType, Sandbox};

const BATCH_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60 * 60);
const START_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
const MEMORY: RangeInclusive<u64> = 64 << 20..=1 << 40;
const GC_PAUSE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);

/// `[model.python]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawPython {
    /// The Python that runs the model: a name that is looked up in PATH, or a path, a relative one from the folder of this
    /// config file. Its packages are the model's. Default "python3".
    pub(super) interpreter: String,
    /// Child processes, each with the model and a batch at a time; 0 for one on each core that the container grants.
    /// Default 0, 0 to 256.
    #[schemars(range(min = 0, max = 256))]
    pub(super) processes: u32,
    /// How long a batch may take; a process that takes longer is killed and replaced. Default 10 s, 1 ms to 1 h.
    pub(super) batch_timeout: DurationText,
    /// How long a process may take to load the model. Default 60 s, 1 s to 1 h.
    pub(super) start_timeout: DurationText,
    /// Most bytes of data in a process. Default 2 GiB, 64 MiB to 1 TiB.
    pub(super) memory_max: BytesText,
    /// Which method gives the scores. Default "auto".
    pub(super) method: Method,
    /// What it is called with. Default "auto".
    pub(super) input: Input,
    /// The type of the numbers that it is called with. Default "f64".
    pub(super) row_type: RowType,
    /// Names of the features, for a model that does not know them. Default none.
    pub(super) features: Vec<String>,
    /// The class that predicts: one of the file's, or "module:Class" of the interpreter's packages, which is then given the
    /// file; empty for the one that the file has. Default empty.
    pub(super) class: String,
    /// Folders from which the model may import; relative ones are taken from the folder of this config file. Default none.
    pub(super) import_paths: Vec<String>,
    /// Whether a process gives up rights before it loads the model: it then reads only Python, the system's libraries and
    /// the model's folder, writes nothing, and has no network. Default "auto".
    pub(super) sandbox: Sandbox,
    /// Pauses of the garbage collector from here on are counted and logged. Default 10 ms, 0 to 60 s.
    pub(super) gc_pause_min: DurationText,
}

impl Default for RawPython {
    fn default() -> Self {
        Self { start_timeout: DurationText("60s".to_owned()), ..dump(&PythonOptions::default()) }
    }
}

/// The table at `key`.
pub(super) fn python(check: &mut Check<'_>, key: &str, raw: &RawPython, base_dir: &Path) -> PythonOptions {
    let key = |name: &str| format!("{key}.{name}");
    if raw.interpreter.is_empty() {
        check.wants(&key("interpreter"), "", "the name or path of a Python interpreter");
    }
    // What holds a slash is a path, as in a shell.
    let is_path = raw.interpreter.contains('/');
    let interpreter = if is_path { base_dir.join(&raw.interpreter) } else { PathBuf::from(&raw.interpreter) };
    let memory_max = check.bytes(&key("memory_max"), &raw.memory_max, &MEMORY).get() as u64;
    PythonOptions {
        interpreter,
        processes: NonZeroU32::new(raw.processes),
        batch_timeout: check.duration(&key("batch_timeout"), &raw.batch_timeout, &BATCH_TIMEOUT),
        start_timeout: check.duration(&key("start_timeout"), &raw.start_timeout, &START_TIMEOUT),
        memory_max: NonZeroU64::new(memory_max).unwrap_or(NonZeroU64::MIN),
        method: raw.method,
        input: raw.input,
        row_type: raw.row_type,
        features: raw.features.clone(),
        class: Some(raw.class.clone()).filter(|class| !class.is_empty()),
        import_paths: raw.import_paths.iter().map(|path| base_dir.join(path)).collect(),
        sandbox: raw.sandbox,
        gc_pause_min: check.duration(&key("gc_pause_min"), &raw.gc_pause_min, &GC_PAUSE),
    }
}

/// The table that says the same.
pub(super) fn dump(options: &PythonOptions) -> RawPython {
    let path = |path: &PathBuf| literal(&path.display().to_string());
    RawPython {
        interpreter: path(&options.interpreter),
        processes: options.processes.map_or(0, u32::from),
        batch_timeout: duration(options.batch_timeout),
        start_timeout: duration(options.start_timeout),
        memory_max: bytes(usize::try_from(options.memory_max.get()).unwrap_or(usize::MAX)),
        method: options.method,
        input: options.input,
        row_type: options.row_type,
        features: options.features.iter().map(|name| literal(name)).collect(),
        class: options.class.as_deref().map(literal).unwrap_or_default(),
        import_paths: options.import_paths.iter().map(path).collect(),
        sandbox: options.sandbox,
        gc_pause_min: duration(options.gc_pause_min),
    }
}
