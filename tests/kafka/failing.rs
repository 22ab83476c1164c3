//! Models that fail for a while, and one that takes the process with it.

use std::collections::HashMap;

use crate::bad_input::assert_score;
use crate::support::{Record, Worker, until};
use crate::{Shared, Toml};

/// A native model aborts the process at record 20, each time. It is scored alone, then no more; nobody else suffers.
pub(crate) fn crash_loop(shared: &Shared) {
    let (input, output) = shared.topics("crash", 2);
    shared.kafka.create(&["crash-in-dlt"], 2);
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("scored.journal");
    let model = "compile_model = false\n";
    let engine = format!("\n[engine]\njournal = \"{}\"\n", journal.display());
    let toml = Toml { route: "dead_letter = \"<input>-dlt\"", model, ..Toml::new("crash") };
    let toml = toml.text(&shared.kafka.brokers()) + &engine;
    let records: Vec<_> = (0..100).map(|row| Record::new(&format!("k{row}"), shared.higgs.request(row))).collect();
    shared.kafka.send(&input, &records);
    for crash in 1..=3 {
        let mut worker = Worker::start(&toml, "crash", "score::crash_record=return(r20)");
        assert_eq!(worker.wait_exit(), None, "crash {crash}: ended by a signal; {}", worker.log());
    }
    let mut worker = Worker::start(&toml, "crash", "score::crash_record=return(r20)");
    worker.wait_ready();
    let replies = shared.kafka.read(&output, records.len());
    let mut replies_of: HashMap<String, usize> = HashMap::new();
    for reply in &replies {
        let json = reply.json();
        let row: usize = reply.key_text()[1..].parse().unwrap();
        if row == 20 {
            assert_eq!((&json["success"], &json["error"]["code"]), (&false.into(), &"model_error".into()), "{json}");
        } else {
            assert_score(&json, shared.higgs.scores[row]);
        }
        *replies_of.entry(reply.key_text()).or_default() += 1;
    }
    assert!(replies_of.len() == 100 && replies_of.values().all(|&count| count == 1), "{replies_of:?}");
    let letters = shared.kafka.read("crash-in-dlt", 1);
    assert_eq!(letters.iter().map(Record::key_text).collect::<Vec<_>>(), ["k20"]);
    until("the count of dead letters", || worker.metric("forebay_dead_letters_total") == 1);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
}

/// Two transient errors, then scores: nobody waits for the one that is tried again.
pub(crate) fn retried(shared: &Shared) {
    let (input, output) = shared.topics("retried", 1);
    let toml = Toml { route: "retries = 3", ..Toml::new("retried") }.text(&shared.kafka.brokers());
    let mut worker = Worker::start(&toml, "retried", "score::transient=return(r3:2)");
    worker.wait_ready();
    let records: Vec<_> = (0..10).map(|row| Record::new(&format!("k{row}"), shared.higgs.request(row))).collect();
    shared.kafka.send(&input, &records);
    let replies = shared.kafka.read(&output, records.len());
    assert_eq!(replies.last().map(Record::key_text), Some("k3".to_owned()), "it comes last, after 300 ms");
    for reply in &replies {
        assert_score(&reply.json(), shared.higgs.scores[reply.key_text()[1..].parse::<usize>().unwrap()]);
    }
    assert_eq!(worker.metric("forebay_retries_total"), 2);
    until("the end", || shared.kafka.committed("retried", &input, 1) == [10]);
    assert_eq!(worker.terminate(), Some(0));
}
