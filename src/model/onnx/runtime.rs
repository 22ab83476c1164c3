//! ONNX Runtime itself: its shared library found and loaded once a process, when the first ONNX model is, and sessions
//! made from a model's bytes. A failure is told and not remembered: the next model tries again.

use std::env;
use std::error::Error as _;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use parking_lot::Mutex;

use crate::model::{GraphOptimization, OnnxOptions};

/// Where `make setup` unpacks the library.
const UNPACKED: &str = ".venv/onnxruntime";
/// What the system's loader is asked for.
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so.1", "libonnxruntime.so"];
const REMEDY: &str = "`make setup` unpacks it into .venv/onnxruntime; or `pip install onnxruntime`, and set `library` \
    under [model.onnx], or ORT_DYLIB_PATH, to the file onnxruntime/capi/libonnxruntime.so.* of that package";

/// The loaded library.
pub(super) struct Runtime {
    environment: Environment,
    /// The file, or the name that the system's loader knew.
    library: PathBuf,
}

impl Runtime {
    /// Loads the library, or gives the one that is loaded. `library` names its file; a process has one.
    pub(super) fn get(library: Option<&Path>) -> Result<&'static Self, String> {
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());
        let _loading = LOADING.lock();
        if let Some(runtime) = RUNTIME.get() {
            return match library {
                Some(library) if !is_same_file(library, &runtime.library) => {
                    let (loaded, wanted) = (runtime.library.display(), library.display());
                    Err(format!(
                        "ONNX Runtime is loaded from {loaded} already, and a process has one; `library` wants {wanted}"
                    ))
                }
                _ => Ok(runtime),
            };
        }
        let runtime = Self::load(library)?;
        Ok(RUNTIME.get_or_init(|| runtime))
    }

    fn load(library: Option<&Path>) -> Result<Self, String> {
        let mut failures = Vec::new();
        let named = library.map(|path| path.as_os_str().to_owned()).or_else(|| env::var_os("ORT_DYLIB_PATH"));
        for library in candidates(named.as_deref()) {
            match ort::init_from(&library) {
                Ok(builder) => {
                    let environment = builder.with_name("forebay").with_telemetry(false).with_logger(logger()).build();
                    let environment = environment.map_err(|error| format!("ONNX Runtime does not start: {error}"))?;
                    environment.set_log_level(LogLevel::Error);
                    return Ok(Self { environment, library });
                }
                Err(error) => failures.push(failure(&error)),
            }
        }
        Err(format!("no ONNX Runtime: {}; {REMEDY}", failures.join("; ")))
    }

    /// A session on a model. One for each scorer: the binding lends a session to one run at a time, because parts of
    /// the runtime behind it are not safe to share.
    pub(super) fn session(&self, model: &[u8], options: &OnnxOptions) -> Result<Session, String> {
        let inter_threads = options.inter_threads.get() as usize;
        let open = || -> ort::Result<Session> {
            Session::builder(&self.environment)?
                .with_intra_threads(options.intra_threads.get() as usize)?
                .with_inter_threads(inter_threads)?
                .with_parallel_execution(inter_threads > 1)?
                // The score threads are ours, and what spins beside them takes their cores.
                .with_intra_op_spinning(false)?
                .with_inter_op_spinning(false)?
                .with_optimization_level(level(options.graph_optimization))?
                // Graphs made from LightGBM models warn on every batch of more than one row.
                .with_log_level(LogLevel::Error)?
                .commit_from_memory(model)
        };
        open().map_err(|error| format!("ONNX Runtime cannot read it: {error}"))
    }

    /// The library's file, whose name ends in its version, and the commit that it was built from.
    pub(super) fn describe(&self) -> String {
        let commit = ort::info().split_once("git-commit-id=").and_then(|(_, rest)| rest.split([',', ' ']).next());
        let library = self.library.canonicalize();
        format!("{} (commit {})", library.as_ref().unwrap_or(&self.library).display(), commit.unwrap_or("unknown"))
    }
}

fn level(optimization: GraphOptimization) -> GraphOptimizationLevel {
    match optimization {
        GraphOptimization::Off => GraphOptimizationLevel::Disable,
        GraphOptimization::Basic => GraphOptimizationLevel::Level1,
        GraphOptimization::Extended => GraphOptimizationLevel::Level2,
        GraphOptimization::All => GraphOptimizationLevel::All,
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical(a) == canonical(b)
}

/// Why a file does not load, in the system's own words.
fn failure(error: &LoadDynamicError) -> String {
    match error {
        LoadDynamicError::Dlopen { error, path } => {
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            if reason.contains(&*path.to_string_lossy()) { reason } else { format!("{}: {reason}", path.display()) }
        }
        other => other.to_string(),
    }
}

/// The library's log, which goes to standard error by default. What matters comes back as an error too.
fn logger() -> ort::logging::LoggerFunction {
    Arc::new(|_, category, _, code, message| tracing::debug!(target: "onnxruntime", category, code, "{message}"))
}

/// Where the library is looked for: the one that is named and no other; else beside the executable, then where `make
/// setup` puts it, then where the system's loader looks.
fn candidates(named: Option<&OsStr>) -> Vec<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        // An absolute path, because the binding would look beside the executable first.
        return vec![std::path::absolute(named).unwrap_or_else(|_| PathBuf::from(named))];
    }
    let executable = env::current_exe().and_then(|path| path.canonicalize()).ok();
    let beside = executable.as_deref().and_then(Path::parent);
    let current = env::current_dir().ok();
    let roots = current.iter().map(PathBuf::as_path).chain(beside.into_iter().flat_map(Path::ancestors));
    let unpacked = roots.map(|root| root.join(UNPACKED));
    let folders = beside.map(Path::to_owned).into_iter().chain(unpacked);
    let mut found: Vec<PathBuf> = folders.filter_map(|folder| library_in(&folder)).collect();
    found.dedup();
    if found.is_empty() {
        found.extend(SYSTEM_NAMES.map(PathBuf::from));
    }
    found
}

/// The library in a folder: of several versions, the last by name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    entries.filter(|path| path.file_name().and_then(OsStr::to_str).is_some_and(is_library)).max()
}

fn is_library(name: &str) -> bool {
    let extension = |wanted| Path::new(name).extension() == Some(OsStr::new(wanted));
    name.starts_with("libonnxruntime.so") || (name.starts_with("libonnxruntime.") && extension("dylib"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_library_is_the_only_candidate() {
        assert_eq!(candidates(Some(OsStr::new("/no/such/lib.so"))), [PathBuf::from("/no/such/lib.so")]);
        assert!(candidates(Some(OsStr::new("lib.so")))[0].is_absolute());
        assert!(!candidates(Some(OsStr::new(""))).is_empty());
    }

    #[test]
    fn of_several_versions_in_a_folder_the_last_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library_in(folder.path()), None);
        for name in ["libonnxruntime.so.1.31.0", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(library_in(folder.path()), Some(folder.path().join("libonnxruntime.so.1.32.0")));
        assert_eq!(library_in(&folder.path().join("nowhere")), None);
    }
}
