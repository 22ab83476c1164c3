//! [`Recipe`]: all that a process of a model is made from. Every process of a model is made from the same one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;

use super::super::python_options::kept_environment;
use super::super::{ModelBytes, PythonOptions, RowType, RunnerStats};
use super::file::FileKind;
use super::memory::sealed_file;
use super::wire::Channel;

const BOOT: &str = include_str!("boot.py");
const CONVERT: &str = include_str!("convert.py");
const LOADING: &str = include_str!("loading.py");
const RUNNER: &str = include_str!("runner.py");
const SANDBOX: &str = include_str!("sandbox.py");

/// One thread a process: the processes are the threads. The last two keep joblib from asking for more.
const SET: [(&str, &str); 9] = [
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("BLIS_NUM_THREADS", "1"),
    ("VECLIB_MAXIMUM_THREADS", "1"),
    ("NUMEXPR_NUM_THREADS", "1"),
    ("NUMBA_NUM_THREADS", "1"),
    ("LOKY_MAX_CPU_COUNT", "1"),
    ("JOBLIB_MULTIPROCESSING", "0"),
];

/// How the processes of a model are made.
#[derive(Debug)]
pub(super) struct Recipe {
    /// The model's file, which names it in errors and logs.
    pub(super) name: String,
    pub(super) options: PythonOptions,
    pub(super) stats: Arc<RunnerStats>,
    /// The runner's code and what it is to do; the model's bytes as they were hashed.
    bundle: File,
    model: File,
}

impl Recipe {
    /// `trusted`: a skops file may hold types that skops does not know.
    pub(super) fn new(file: &ModelBytes, kind: FileKind, options: &PythonOptions, trusted: bool) -> io::Result<Self> {
        let path = std::path::absolute(&file.path)?;
        // The child lives in the root folder.
        let import_paths: Vec<_> = options.import_paths.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        // A class of an installed module is given the bytes; only code of the model's own may look around in its folder.
        let folder = path.parent().filter(|_| kind == FileKind::Source);
        let spec = json!({
            "parent": std::process::id(),
            "kind": kind.as_str(),
            "trusted": trusted,
            "path": path,
            "folder": folder,
            "class": options.class,
            "import_paths": import_paths,
            "method": options.method.as_str(),
            "input": options.input.as_str(),
            "row_type": match options.row_type { RowType::F32 => "float32", RowType::F64 => "float64" },
            "features": options.features,
            "sandbox": options.sandbox.as_str(),
            "memory_max": options.memory_max,
            "gc_pause_min_ns": u64::try_from(options.gc_pause_min.as_nanos()).unwrap_or(u64::MAX),
        });
        // The runner comes last: it imports the others.
        let modules = json!({ "sandbox": SANDBOX, "loading": LOADING, "convert": CONVERT, "runner": RUNNER });
        let bundle = json!({ "modules": modules, "spec": spec });
        Ok(Self {
            name: file.name(),
            options: options.clone(),
            stats: Arc::default(),
            bundle: sealed_file("forebay-runner", bundle.to_string().as_bytes())?,
            model: sealed_file("forebay-model", &file.bytes)?,
        })
    }

    /// Starts a process, in a group of its own, that has been handed all it needs.
    pub(super) fn start(&self) -> io::Result<(Child, Channel)> {
        let (channel, other) = Channel::pair()?;
        let mut command = Command::new(&self.options.interpreter);
        command.args(["-I", "-B", "-u", "-X", "faulthandler", "-X", "utf8", "-c", BOOT]);
        command.env_clear().envs(kept_environment()).envs(SET).current_dir("/").process_group(0);
        command.stdin(OwnedFd::from(other)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        // The command holds the child's end too, and its closing is how an end of the child is seen.
        drop(command);
        channel.send_files(&[self.bundle.as_fd(), self.model.as_fd()])?;
        Ok((child, channel))
    }

    /// The file's name without its folder, for answers that leave this machine.
    pub(super) fn short_name(&self) -> String {
        Path::new(&self.name).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}
