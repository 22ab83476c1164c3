//! A graph in, the same with weights of 8 bits out: made by ONNX Runtime's own quantizer, which is a Python package, in a
//! child process with a time limit. Nothing of the model's own runs there.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clock;
use crate::model::PythonOptions;
use crate::model::python_options::kept_environment;

const SCRIPT: &str = include_str!("quantize.py");
/// The script's exit code where a package is missing.
const PACKAGE_MISSING: i32 = 3;
/// Most bytes of what the child said last that a message repeats.
const LAST_WORDS: usize = 300;
const REMEDY: &str = "or quantize it where Python is: `forebay model compile MODEL --quantize -o int8.onnx`";

/// The graph with weights of 8 bits.
pub(super) fn to_int8(graph: &[u8], python: &PythonOptions) -> Result<Vec<u8>, String> {
    let interpreter = python.interpreter.display();
    let failed = |error: io::Error| format!("cannot be quantized: {interpreter}: {error}; {REMEDY}");
    let (mut output, mut errors) = (tempfile::tempfile().map_err(failed)?, tempfile::tempfile().map_err(failed)?);
    let child = start(graph, python, &output, &errors).map_err(|error| {
        let remedy = "install Python with onnx and onnxruntime, or set `interpreter` under [model.python]";
        format!("cannot be quantized: {interpreter} does not start: {error}; {remedy}, {REMEDY}")
    })?;
    let patience = python.start_timeout;
    match wait(child, clock::now() + patience).map_err(failed)? {
        None => Err(format!("was not quantized within `start_timeout` ({patience:?}) of [model.python]; {REMEDY}")),
        Some(status) if status.success() => read(&mut output).map_err(failed),
        Some(status) => {
            let said = read(&mut errors).map_err(failed)?;
            let said = last_words(&said);
            Err(if status.code() == Some(PACKAGE_MISSING) {
                let remedy = "`pip install onnx onnxruntime` there, or set `interpreter` under [model.python]";
                format!("cannot be quantized: {interpreter}: {said}; {remedy}, {REMEDY}")
            } else {
                format!("cannot be quantized ({status}): {said}; set `enable_model_quantization = false`")
            })
        }
    }
}

fn start(graph: &[u8], python: &PythonOptions, output: &File, errors: &File) -> io::Result<Child> {
    let mut input = tempfile::tempfile()?;
    input.write_all(graph)?;
    input.rewind()?;
    // The quantizer writes its graph into a folder for temporary files.
    let temporary = std::env::var_os("TMPDIR").map(|folder| ("TMPDIR", folder));
    let mut command = Command::new(&python.interpreter);
    command.args(["-I", "-B", "-X", "utf8", "-c", SCRIPT]).env_clear().envs(kept_environment()).envs(temporary);
    command.stdin(input).stdout(output.try_clone()?).stderr(errors.try_clone()?);
    command.spawn()
}

/// Waits for its end; ends it at the deadline, and then there is no status.
fn wait(mut child: Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        let timeout = Timespec::try_from(left.min(Duration::from_secs(3_600))).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last line, which names the error of a Python program.
fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let line = said.trim().lines().last().unwrap_or("it said nothing");
    line.chars().take(LAST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(script: &str, timeout: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("python");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let python = PythonOptions { interpreter: path, start_timeout: timeout, ..PythonOptions::default() };
        to_int8(b"graph", &python).unwrap_err()
    }

    #[test]
    fn each_failure_says_what_to_do() {
        let long = Duration::from_secs(60);
        let missing = refusal("echo 'No module named onnx' >&2; exit 3", long);
        assert!(missing.contains("python: No module named onnx; `pip install onnx onnxruntime`"), "{missing}");
        assert!(missing.contains("`interpreter`") && missing.contains("`forebay model compile"), "{missing}");
        let broken = refusal("echo Traceback >&2; echo 'ValueError: bad graph' >&2; exit 1", long);
        assert!(broken.contains("(exit status: 1): ValueError: bad graph; set `enable_model"), "{broken}");
        let killed = refusal("kill -9 $$", long);
        assert!(killed.contains("signal: 9") && killed.contains("it said nothing"), "{killed}");
        let late = refusal("exec sleep 60", Duration::from_millis(50));
        assert!(late.contains("was not quantized within `start_timeout` (50ms)"), "{late}");
        let python = PythonOptions { interpreter: "/nonexistent/python".into(), ..PythonOptions::default() };
        let absent = to_int8(b"graph", &python).unwrap_err();
        assert!(
            absent.contains("/nonexistent/python does not start: ") && absent.contains("[model.python]"),
            "{absent}"
        );
    }

    #[test]
    fn the_child_gets_the_graph_and_gives_one_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("python");
        std::fs::write(&path, "#!/bin/sh\necho chatter >&2; cat; echo ' of 8 bits'\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let python = PythonOptions { interpreter: path, ..PythonOptions::default() };
        assert_eq!(to_int8(b"graph", &python).unwrap(), b"graph of 8 bits\n");
    }
}
