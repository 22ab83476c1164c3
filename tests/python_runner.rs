//! Python models that misbehave, each in its own way: what becomes of their requests, of those beside them, and of the
//! processes. And what a model may do on this machine.
#![cfg(feature = "python")]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::batch::BatchPolicy;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec, PredictionRequest};
use forebay::model::{
    self, LoadOptions, Model, ModelBytes, PythonOptions, Rows, RunnerStats, Sandbox, ScoreError, Scorer, Values,
};
use forebay::placement::Pin;
use forebay::record::Priority;
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// One test at a time: they count this process's children and files.
static ALONE: Mutex<()> = Mutex::new(());
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What sets a model off, in the first feature.
const BAD: f64 = 666.0;

fn python() -> PythonOptions {
    let interpreter = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/test/bin/python");
    let processes = NonZeroU32::new(1);
    // A busy machine may take long for anything.
    PythonOptions { interpreter, processes, batch_timeout: PATIENCE, ..PythonOptions::default() }
}

/// A model of two features that sums them, and does something else where the first is [`BAD`].
fn source(bad: &str) -> String {
    let mut source = "import ctypes, gc, os, subprocess, sys, threading, time\nimport numpy as np\n\nn_features = 2\nkept = []\n\n\n\
                      def predict(rows):\n    if (rows[:, 0] == 666).any():\n"
        .to_owned();
    for line in bad.lines() {
        source.extend(["        ", line, "\n"]);
    }
    source + "    return rows.sum(axis=1)\n"
}

struct Lab {
    folder: TempDir,
    python: PythonOptions,
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    fn new(source: &str, python: PythonOptions) -> Self {
        let alone = ALONE.lock();
        until("the processes of the test before", || children().is_empty());
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.py"), source).unwrap();
        Self { folder, python, _alone: alone }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.py")
    }

    fn pin(&self) -> [u8; 32] {
        Sha256::digest(fs::read(self.path()).unwrap()).into()
    }

    fn options(&self) -> LoadOptions {
        LoadOptions { trusted: true, python: self.python.clone(), ..LoadOptions::default() }
    }

    fn try_model(&self) -> Result<Box<dyn Model>, String> {
        let file = ModelBytes::read(&self.path(), Some(&self.pin())).unwrap();
        model::load(&file, &self.options()).map_err(|error| error.to_string())
    }

    fn scorer(&self) -> (Box<dyn Scorer>, Arc<RunnerStats>) {
        let model = self.try_model().unwrap();
        (model.scorer().unwrap(), model.runner().unwrap())
    }

    fn engine(&self) -> InferenceEngine {
        let config = InferenceEngineConfig {
            num_threads: 1,
            pin: Pin::Off,
            enable_request_deduplication: false,
            ..InferenceEngineConfig::default()
        };
        let engine = InferenceEngine::new(config).unwrap();
        let spec = ModelSpec {
            name: "m".to_owned(),
            path: self.path(),
            load: self.options(),
            sha256: Some(self.pin()),
            batch: BatchPolicy { queue_delay_max: Duration::from_millis(50), ..BatchPolicy::default() },
            priority_default: Priority::new(2).unwrap(),
        };
        engine.load_spec(&spec).unwrap();
        engine
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    #[allow(clippy::disallowed_methods, reason = "a test's own bound")]
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Children of this process, zombies too.
fn children() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap();
    let processes = procfs::process::all_processes().unwrap().filter_map(|process| process.ok()?.stat().ok());
    processes.filter(|stat| stat.ppid == own).map(|stat| stat.pid).collect()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn one(scorer: &mut dyn Scorer, row: [f64; 2]) -> Result<f64, ScoreError> {
    let mut score = [f64::NAN];
    scorer.score(Rows::numbers(Values::F64(&row), 2), &mut score)?;
    Ok(score[0])
}

/// What a model does, and the words of the error that the guilty request gets; empty if it is answered.
const MISBEHAVIOUR: &[(&str, &[&str])] = &[
    ("time.sleep(3600)", &["gave no answer within `batch_timeout` (2s)", "is replaced"]),
    ("while True: pass", &["gave no answer within `batch_timeout` (2s)"]),
    ("os._exit(3)", &["ended while it scored (exit status: 3)", "is replaced"]),
    ("ctypes.string_at(0)", &["ended while it scored (signal: 11 (SIGSEGV))"]),
    ("sys.exit(2)", &["SystemExit: 2 (model.py:10)"]),
    ("raise ValueError('not\\nliked')", &["model model.py: ValueError: not liked (model.py:10)"]),
    ("return rows.sum(axis=1)[1:]", &["predict returned ndarray of float64, shape [0] for 1 rows"]),
    ("return rows", &["predict returned 2 numbers a row, and 1 when it was loaded"]),
    ("return ['high'] * len(rows)", &["predict returned list of <U4, shape [1] ('high'), no numbers"]),
    ("return np.where(rows[:, 0] == 666, np.nan, rows.sum(axis=1))", &["answered NaN in output 0"]),
    ("os.closerange(0, 1024)", &["ended while it scored"]),
    (
        "for fd in range(3, 1024):\n    try: os.write(fd, b'garbage ' * 20)\n    except OSError: pass",
        &["sent what is no answer and is replaced"],
    ),
    (
        "for n in range(20000): print('printed', n)\nos.write(1, b'\\xff\\x00' * 100000)\nos.write(2, b'no end of line')",
        &[],
    ),
];

#[test]
fn whatever_a_model_does_only_the_guilty_request_fails() {
    for &(bad, says) in MISBEHAVIOUR {
        let hangs = says.iter().any(|words| words.contains("batch_timeout"));
        let batch_timeout = if hangs { Duration::from_secs(2) } else { PATIENCE };
        let lab = Lab::new(&source(bad), PythonOptions { batch_timeout, ..python() });
        let engine = lab.engine();
        for _ in 0..2 {
            let requests = (0..8).map(|number| {
                let first = if number == 3 { BAD } else { f64::from(number) };
                PredictionRequest::new([first, 1.0])
            });
            let answers = engine.predict_all(requests);
            for (number, answer) in (0..8).zip(&answers) {
                match answer {
                    Ok(prediction) if number != 3 => {
                        assert_eq!(prediction.scores, [f64::from(number) + 1.0], "{bad}");
                    }
                    Ok(_) => assert!(says.is_empty() || bad.contains("nan"), "{bad}: {answer:?}"),
                    Err(error) => {
                        assert!(number == 3, "{bad}: request {number}: {error}");
                        let error = error.to_string();
                        assert!(says.iter().all(|words| error.contains(words)), "{bad}: {error}");
                    }
                }
            }
            println!("{bad:?}: {:?}", answers[3].as_ref().map_err(ToString::to_string));
            assert_eq!(answers[3].is_ok(), says.is_empty(), "{bad}");
        }
        assert_eq!(engine.predict(&[1.0, 2.0]).unwrap().scores, [3.0], "{bad}");
        // One process, however many there were; those that were killed are no zombies.
        until("the last process", || children().len() == 1);
        drop(engine);
        until("the end of all processes", || children().is_empty());
    }
}

#[test]
fn no_file_and_no_process_is_left_behind() {
    let lab = Lab::new(&source("os._exit(1)"), python());
    let files = open_files();
    for _ in 0..3 {
        let (mut scorer, stats) = lab.scorer();
        for _ in 0..4 {
            assert!(matches!(one(scorer.as_mut(), [BAD, 0.0]), Err(ScoreError::Failed(_))));
            assert_eq!(one(scorer.as_mut(), [4.0, 5.0]), Ok(9.0));
        }
        let info = stats.info();
        assert_eq!((info.starts, info.crashes, info.kills, info.processes.len()), (5, 4, 0, 1));
        assert!(info.last_error.unwrap().contains("exit status: 1") && info.predict_seconds > 0.0);
        assert!(info.processes[0].resident_bytes.unwrap() > 1 << 20);
        drop(scorer);
        until("the end of all processes", || children().is_empty());
        assert!(stats.info().processes.is_empty());
    }
    until("closed files", || open_files() <= files);
}

#[test]
fn a_process_that_needs_too_much_memory_is_replaced_and_its_batch_may_come_again() {
    let memory_max = NonZeroU64::new(1 << 30).unwrap();
    let lab = Lab::new(&source("kept.append(np.ones(80 << 20))"), PythonOptions { memory_max, ..python() });
    let (mut scorer, stats) = lab.scorer();
    // 640 MiB are leaked each time.
    assert_eq!(one(scorer.as_mut(), [BAD, 1.0]), Ok(667.0));
    let error = one(scorer.as_mut(), [BAD, 1.0]).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("`memory_max` (1073741824 bytes)"), "{error}");
    assert_eq!(one(scorer.as_mut(), [BAD, 1.0]), Ok(667.0), "a fresh process has its memory again");
    assert_eq!((stats.info().kills, stats.info().starts), (1, 2));
}

#[test]
fn a_model_that_never_works_is_started_less_and_less_often() {
    let lab = Lab::new(&source("os._exit(1)"), python());
    let (mut scorer, stats) = lab.scorer();
    #[allow(clippy::disallowed_methods, reason = "a test's own bound")]
    let start = Instant::now();
    let mut failed = 0;
    let refusal = loop {
        assert!(start.elapsed() < PATIENCE && failed < 20);
        match one(scorer.as_mut(), [BAD, 1.0]).unwrap_err() {
            ScoreError::Failed(_) => failed += 1,
            ScoreError::Transient(refusal) => break refusal,
        }
    };
    println!("{failed} failures in {:?}, then: {refusal}", start.elapsed());
    assert!((5..10).contains(&failed), "{failed}");
    assert!(refusal.contains("starts again in") && refusal.contains("exit status: 1"), "{refusal}");
    // While it waits, nobody waits with it.
    #[allow(clippy::disallowed_methods, reason = "a test's own bound")]
    let start = Instant::now();
    (0..100).for_each(|_| assert!(one(scorer.as_mut(), [1.0, 1.0]).unwrap_err().is_transient()));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(stats.info().processes.is_empty());
}

#[test]
fn a_process_that_ends_between_two_batches_costs_no_request() {
    let lab = Lab::new(&source("threading.Timer(0.05, lambda: os._exit(0)).start()"), python());
    let (mut scorer, stats) = lab.scorer();
    assert_eq!(one(scorer.as_mut(), [BAD, 1.0]), Ok(667.0));
    let pid = i32::try_from(stats.info().processes[0].pid).unwrap();
    let has_ended = || procfs::process::Process::new(pid).and_then(|p| p.stat()).is_ok_and(|stat| stat.state == 'Z');
    until("its end", has_ended);
    assert_eq!(one(scorer.as_mut(), [2.0, 3.0]), Ok(5.0));
    assert_eq!((stats.info().crashes, stats.info().starts), (1, 2));
}

#[test]
fn batches_of_any_size_are_scored() {
    let lab = Lab::new(&source("pass"), python());
    let (mut scorer, _) = lab.scorer();
    for rows in [1_u32, 64, 65, 3, 20_000, 1] {
        let values: Vec<f64> = (0..rows).flat_map(|row| [f64::from(row), 0.5]).collect();
        let mut scores = vec![f64::NAN; rows as usize];
        scorer.score(Rows::numbers(Values::F64(&values), 2), &mut scores).unwrap();
        assert!(
            scores.iter().zip(0..rows).all(|(&score, row)| score.to_bits() == (f64::from(row) + 0.5).to_bits()),
            "{rows} rows"
        );
    }
}

#[test]
fn pauses_of_the_collector_are_counted() {
    let bad = "loop = []\nloop.append(loop)\ndel loop\ngc.collect()";
    let count = |gc_pause_min| {
        let lab = Lab::new(&source(bad), PythonOptions { gc_pause_min, ..python() });
        let (mut scorer, stats) = lab.scorer();
        one(scorer.as_mut(), [BAD, 1.0]).unwrap();
        stats.info()
    };
    let all = count(Duration::ZERO);
    assert!(all.gc_pauses >= 1 && all.gc_pause_seconds >= all.gc_pause_longest_seconds);
    assert!(all.gc_pause_longest_seconds > 0.0);
    assert_eq!(count(Duration::from_secs(30)).gc_pauses, 0);
}

fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    if let Some(path) = std::env::var_os("FOREBAY_SKIPS") {
        let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{name}: {why}").unwrap();
    }
}

/// What a model tries, whether it may, and whether it may without a sandbox.
const ACTS: &[(&str, bool, bool)] = &[
    ("socket.socket(socket.AF_INET)", false, true),
    ("socket.socket(socket.AF_INET6)", false, true),
    ("socket.socket(socket.AF_UNIX)", false, true),
    ("open(FOLDER + '/written', 'w')", false, true),
    ("open('/dev/shm/forebay-test-written', 'w'), os.remove('/dev/shm/forebay-test-written')", false, true),
    ("open(SECRET).read()", false, true),
    ("open('/etc/passwd').read()", false, true),
    ("open('/etc/shadow').read()", false, true),
    ("open(f'/proc/{os.getppid()}/environ').read()", false, true),
    ("os.kill(os.getppid(), 0)", false, true),
    ("os.waitpid(os.fork() or os._exit(0), 0)", false, true),
    ("subprocess.run(['/bin/true'], check=True)", false, true),
    ("np.zeros(4 << 27)", false, true),
    ("mmap.mmap(-1, 8 << 30)", false, true),
    ("ctypes.CDLL(None).prctl(1, 0) and os.kill(1 << 30, 0)", false, true),
    ("open(FOLDER + '/model.py').read()", true, true),
    ("[t := threading.Thread(target=int), t.start(), t.join()]", true, true),
    ("os.environ['CARGO_MANIFEST_DIR']", false, false),
];

#[test]
fn a_model_may_do_nothing_but_score() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("secret"), "hunter2").unwrap();
    let mut code =
        "import ctypes, mmap, os, socket, subprocess, threading\nimport numpy as np\nn_features = 1\nACTS = ["
            .to_owned();
    for &(act, ..) in ACTS {
        code.extend([&format!("{act:?}"), ", "]);
    }
    code.extend([format!(
        "]\nFOLDER = os.path.dirname(__file__)\nSECRET = {:?}\n\n\
         def act(number):\n    try:\n        eval(ACTS[int(number) - 1], globals())\n        return 1\n    \
         except (OSError, MemoryError, KeyError) as error:\n        print(ACTS[int(number) - 1], repr(error))\n        return 2\n\n\
         def predict(rows):\n    return [act(row[0]) if row[0] >= 1 else 0 for row in rows]\n",
        secret.path().join("secret").display().to_string()
    )]);
    assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok(), "this process has what the child must not see");
    for sandbox in [Sandbox::Required, Sandbox::Off] {
        let lab = Lab::new(&code, PythonOptions { sandbox, ..python() });
        let model = match lab.try_model() {
            Ok(model) => model,
            Err(refusal) if refusal.contains("this kernel refuses") => {
                return skip("a_model_may_do_nothing_but_score", &refusal);
            }
            Err(refusal) => panic!("{refusal}"),
        };
        println!("{:?}", model.schema().details);
        let mut scorer = model.scorer().unwrap();
        for (number, &(act, confined, free)) in (1_u32..).zip(ACTS) {
            let (row, mut score) = ([f64::from(number)], [f64::NAN]);
            scorer.score(Rows::numbers(Values::F64(&row), 1), &mut score).unwrap();
            let may = if sandbox == Sandbox::Off { free } else { confined };
            println!("{sandbox:?}: {act}: {score:?}");
            assert_eq!(
                score.map(f64::to_bits),
                [if may { 1.0_f64 } else { 2.0 }].map(f64::to_bits),
                "{sandbox:?}: {act}"
            );
        }
    }
}

/// Not a test of its own: the process that the next one kills.
#[test]
fn holder() {
    let Ok(path) = std::env::var("FOREBAY_TEST_HOLD") else { return };
    let lab = Lab::new(&fs::read_to_string(path).unwrap(), python());
    let (mut scorer, stats) = lab.scorer();
    println!("holds {}", stats.info().processes[0].pid);
    let _ = one(scorer.as_mut(), [BAD, 0.0]);
}

#[test]
fn the_processes_of_a_killed_worker_end_with_it() {
    for bad in ["time.sleep(3600)", "os.closerange(3, 1024)\nwhile True: pass"] {
        let lab = Lab::new(&source(bad), python());
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder", "--nocapture"])
            .env("FOREBAY_TEST_HOLD", lab.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find_map(|line| line.split_once("holds ").map(|(_, pid)| pid.to_owned())).unwrap();
        let process = || procfs::process::Process::new(line.parse().unwrap());
        assert!(process().is_ok());
        worker.kill().unwrap();
        worker.wait().unwrap();
        until("the end of a killed worker's process", || process().and_then(|p| p.stat()).is_err());
    }
}
