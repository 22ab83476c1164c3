//! Records that end the process while a native model scores them. The process that ends is this test binary, started again
//! for one test of it, which does what a worker does that reads the same records after each start.

use std::path::Path;
use std::process::{Command, Output};

use forebay::engine::InferenceEngineConfig;
use forebay::score::{JournalFile, PartitionKey};

use crate::shard::{Echo, End, Shard};

/// The journal's file, for the process that ends.
const FILE: &str = "FOREBAY_TEST_JOURNAL";
const RECORDS: i64 = 6;
const CRASHES: i64 = 3;

fn shard(path: &Path, observe: fn(&End)) -> Shard {
    let journal = Some(JournalFile { path: path.to_owned(), batch_size_max: 64 });
    Shard::with(InferenceEngineConfig { journal, ..InferenceEngineConfig::default() }, &Echo::native(), observe)
}

/// The worker: six records in one batch; prints an end a line.
#[test]
#[ignore = "a process of the tests below"]
fn worker() {
    let _scenario = fail::FailScenario::setup();
    let shard = shard(Path::new(&std::env::var_os(FILE).unwrap()), |end| {
        let result = end.result.as_ref().map_err(ToString::to_string);
        println!("end {} in a batch of {}: {result:?}", end.offset, end.batch_size);
    });
    shard.submit(0..RECORDS, |_| {});
    shard.ends(6);
    shard.engine.shutdown();
}

fn start(journal: &Path, fail_points: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "journal::worker", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(FILE, journal).env("FAILPOINTS", fail_points).output().unwrap()
}

/// What ended before the process did, in order.
fn ends(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| Some(line.split_once("end ")?.1.to_owned())).collect()
}

#[test]
fn the_third_crash_of_a_record_is_its_last_and_its_neighbours_are_scored() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("a.journal");
    let crash = format!("score::crash_record=return(r{CRASHES})");
    let died = |ends_before: &[&str]| {
        let output = start(&journal, &crash);
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(ends(&output), ends_before);
    };
    // The first crash names the whole batch.
    died(&[]);
    // Each is alone now, up to the one that crashes.
    let alone = |n: i64| format!("{n} in a batch of 1: Ok({n}.0)");
    died(&[0, 1, 2].map(alone).each_ref().map(|line| &**line));
    // Those that were scored are suspects no more; 4 and 5 still are.
    let three = |n: i64| format!("{n} in a batch of 3: Ok({n}.0)");
    died(&[0, 1, 2].map(three).each_ref().map(|line| &**line));
    let output = start(&journal, &crash);
    assert!(output.status.success(), "{output:?}");
    let rejected = "3 in a batch of 0: Err(\"model_error: not scored: the worker ended abnormally 3 times while it scored this record\")";
    let want = [&three(0), &three(1), &three(2), rejected, &alone(4), &alone(5)];
    assert_eq!(ends(&output), want);
    assert!(journal.exists(), "it is remembered until its position is committed");
    assert_eq!(ends(&start(&journal, &crash)).len(), 6, "and not scored again meanwhile");

    let shard = shard(&journal, |_| {});
    shard.engine.committed(PartitionKey::new("group", "topic", 7), CRASHES + 1);
    shard.submit([CRASHES], |_| {});
    assert_eq!(shard.ends(1)[0].result, Ok(3.0));
    shard.engine.shutdown();
    assert!(!journal.exists(), "nothing is left to remember");
}

#[test]
fn a_worker_that_is_killed_blames_what_it_was_scoring() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("a.journal");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "journal::worker", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(FILE, &journal).env("FAILPOINTS", "score::slow_record=return(r0:60000)");
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let is_named =
        || std::fs::read(&journal).is_ok_and(|bytes| bytes.chunks(8).any(|word| word == RECORDS.to_le_bytes()));
    while !is_named() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let output = start(&journal, "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ends(&output), [0, 1, 2, 3, 4, 5].map(|n| format!("{n} in a batch of 1: Ok({n}.0)")));
    assert!(!journal.exists());
}

#[test]
fn safe_code_needs_no_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.journal");
    let journal = Some(JournalFile { path: path.clone(), batch_size_max: 64 });
    let config = InferenceEngineConfig { journal, ..InferenceEngineConfig::default() };
    let shard = Shard::with(config, &Echo::new(|_| Ok(())), |_| {});
    shard.submit([1], |_| {});
    assert_eq!(shard.ends(1)[0].result, Ok(1.0));
    assert!(!path.exists());
}

#[test]
fn a_journal_that_cannot_be_used_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let first = shard(&folder.path().join("a.journal"), |_| {});
    let second = shard(&folder.path().join("a.journal"), |_| {});
    let third = shard(&folder.path().join("no/such/folder/a.journal"), |_| {});
    assert!(folder.path().join("a.journal").exists());
    for shard in [first, second, third] {
        shard.submit([1, 2], |_| {});
        assert_eq!(shard.ends(2).len(), 2);
    }
}
