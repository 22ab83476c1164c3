//! Exactly once, while workers are killed at random and at each step, and come and go. The checkers are shown to fail.

use std::collections::HashMap;
use std::process::{Command, Output};

use crate::bad_input::assert_score;
use crate::support::{Record, Worker, repository, until};
use crate::{Shared, Toml};

fn demo(arguments: &[&str], failpoints: &str) -> Output {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_forebay"));
    demo.arg("demo").args(arguments).env("FAILPOINTS", failpoints).current_dir(repository()).output().unwrap()
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

/// The demo on the shared broker, with the scores that Python gave in this run: two workers, one killed midway.
pub(crate) fn one_worker_killed(shared: &Shared) {
    let brokers = shared.kafka.brokers();
    let arguments = ["--brokers", &brokers, "--records", "100000", "--expected", "target/models/higgs-scores.txt"];
    let output = demo(&arguments, "");
    let (line, text) = (last_line(&output), String::from_utf8_lossy(&output.stdout));
    println!("{line}");
    assert!(line.starts_with("demo: in=100000 replies=100000 lost=0 doubled=0 "), "{line}\n{output:?}");
    assert!(text.contains("SIGKILL to worker demo-a"), "{text}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// A reply that is missing and one that came twice are seen, on both kinds of broker.
pub(crate) fn the_checker_can_fail(shared: &Shared) {
    let failpoints = "sink::drop_reply=300*off->1*return->off;sink::double_reply=500*off->1*return->off";
    let brokers = shared.kafka.brokers();
    for arguments in [&["--records", "6000"][..], &["--records", "6000", "--brokers", &brokers]] {
        let output = demo(arguments, failpoints);
        assert!(last_line(&output).contains(" lost=1 doubled=1 "), "{arguments:?}: {output:?}");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
    // A wrong score is seen too.
    let scores = std::fs::read_to_string(repository().join("tests/data/higgs/higgs.scores.txt")).unwrap();
    let mut lines: Vec<&str> = scores.lines().collect();
    lines.swap(3, 4);
    let wrong = repository().join("target/swapped-scores.txt");
    std::fs::write(&wrong, lines.join("\n")).unwrap();
    let output = demo(&["--records", "1000", "--expected", "target/swapped-scores.txt"], "");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("wrong: expected").count(), 2, "{output:?}");
}

/// Sends rows `from..to`, keyed by their number.
pub(crate) fn send(shared: &Shared, topic: &str, rows: std::ops::Range<usize>) {
    let records: Vec<_> = rows.map(|row| Record::new(&row.to_string(), shared.higgs.request(row))).collect();
    shared.kafka.send(topic, &records);
}

/// Every row of `0..count` has exactly one reply, with its own score.
pub(crate) fn assert_exactly_once(shared: &Shared, topic: &str, count: usize) {
    let replies = shared.kafka.read(topic, count);
    let mut replies_of: HashMap<String, usize> = HashMap::new();
    for reply in &replies {
        let json = reply.json();
        let id = json["id"].as_str().unwrap().to_owned();
        assert_score(&json, shared.higgs.scores[id[1..].parse::<usize>().unwrap()]);
        *replies_of.entry(id).or_default() += 1;
    }
    let lost: Vec<usize> = (0..count).filter(|row| !replies_of.contains_key(&format!("r{row}"))).collect();
    let doubled: Vec<_> = replies_of.iter().filter(|(_, replies)| **replies > 1).collect();
    assert!(lost.is_empty() && doubled.is_empty(), "lost {lost:?}, doubled {doubled:?}");
}

pub(crate) fn killed_at_each_step(shared: &Shared) {
    let (input, output) = shared.topics("steps", 2);
    let toml = Toml::new("steps").text(&shared.kafka.brokers());
    let mut sent = 0;
    for step in ["sink::begin", "sink::produced", "sink::flushed", "sink::positions_sent", "sink::committed"] {
        // The second transaction stops at that step, and there the process is killed.
        let mut worker = Worker::start(&toml, "steps", &format!("{step}=1*off->pause"));
        worker.wait_ready();
        send(shared, &input, sent..sent + 50);
        until("a first transaction", || worker.metric("forebay_commits_total") >= 1);
        send(shared, &input, sent + 50..sent + 100);
        sent += 100;
        let hit =
            || worker.metric("forebay_records_received_total") >= 100 && worker.metric("forebay_records_in_flight") > 0;
        until("records in flight", hit);
        assert_eq!(worker.metric("forebay_commits_total"), 1, "{step} holds the second transaction");
        worker.kill();
    }
    let mut worker = Worker::ready(&toml, "steps");
    assert_exactly_once(shared, &output, sent);
    assert_eq!(worker.terminate(), Some(0));
    assert_eq!(shared.kafka.committed("steps", &input, 2), shared.kafka.ends(&input, 2));
}

pub(crate) fn a_lost_answer(shared: &Shared) {
    let (input, output) = shared.topics("answer", 2);
    let toml = Toml { kafka: "commit_records_max = 20", ..Toml::new("answer") }.text(&shared.kafka.brokers());
    // The third commit succeeds, but its answer never comes; the fifth transaction fails before its commit.
    let failpoints = "sink::committed=2*off->1*return->off;sink::positions_sent=5*off->1*return->off";
    let mut worker = Worker::start(&toml, "answer", failpoints);
    worker.wait_ready();
    for part in 0..10 {
        send(shared, &input, part * 40..(part + 1) * 40);
    }
    assert_exactly_once(shared, &output, 400);
    assert_eq!(worker.metric("forebay_producers_recycled_total"), 2, "{}", worker.log());
    assert_eq!(worker.terminate(), Some(0));
}

/// `forebay score` prints the same digits as the worker's replies.
pub(crate) fn same_as_score(shared: &Shared) {
    let (input, output) = shared.topics("same", 4);
    let toml = Toml { route: "reply_metadata = \"none\"", ..Toml::new("same") };
    let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "same");
    let rows = shared.higgs.rows.len();
    send(shared, &input, 0..rows);
    let mut replies: Vec<String> =
        shared.kafka.read(&output, rows).iter().map(|reply| prediction(&reply.text())).collect();
    assert_eq!(worker.terminate(), Some(0));

    let folder = tempfile::tempdir().unwrap();
    let requests: Vec<String> = (0..rows).map(|row| shared.higgs.request(row)).collect();
    let file = folder.path().join("rows.jsonl");
    std::fs::write(&file, requests.join("\n")).unwrap();
    let mut score = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let scored = score.args(["score", "--model"]).arg(crate::support::Higgs::model()).arg(&file).output().unwrap();
    assert!(scored.status.success(), "{scored:?}");
    let mut lines: Vec<String> = String::from_utf8(scored.stdout).unwrap().lines().map(prediction).collect();
    replies.sort();
    lines.sort();
    assert_eq!(replies.len(), lines.len());
    assert_eq!(replies, lines);
}

/// Id and prediction of a reply, as they are written.
fn prediction(reply: &str) -> String {
    let end = reply.find("],").or_else(|| reply.find("]}")).unwrap_or(reply.len());
    assert!(reply.contains("\"success\":true"), "{reply}");
    reply[..end].to_owned()
}
