//! Records that cannot be scored: each gets its error reply, its neighbours their scores, and the worker goes on.

use crate::support::{Record, Worker, until};
use crate::{Shared, Toml};

/// Name, payload and headers of a bad record, and the code and a part of the message that it must get.
struct Bad {
    name: &'static str,
    record: Record,
    code: &'static str,
    message: &'static str,
}

fn bad(name: &'static str, payload: impl Into<Vec<u8>>, code: &'static str, message: &'static str) -> Bad {
    Bad { name, record: Record::new(name, payload), code, message }
}

fn bad_records(row: &str) -> Vec<Bad> {
    let replaced = |n: usize, value: &str| {
        let mut values: Vec<&str> = row.trim_matches(['[', ']']).split(',').collect();
        values[n] = value;
        format!("{{\"features\":[{}]}}", values.join(","))
    };
    let with = |field: &str| format!("{{\"features\":{row},{field}}}");
    let nested = format!("{{\"features\":{}{}}}", "[".repeat(450_000), "]".repeat(450_000));
    let mut all = vec![
        bad("not-json", "hello", "bad_request", "JSON"),
        bad("wrong-count", "{\"features\":[1,2,3]}", "bad_request", "features: got 3 values, model higgs wants 28"),
        bad("text", replaced(3, "\"abc\""), "bad_request", "features[3]: got \"abc\", wants a number or null"),
        bad("infinity", replaced(0, "Infinity"), "bad_request", "Infinity"),
        bad("too-large-a-number", replaced(0, "1e999"), "bad_request", "features[0]"),
        bad("nested", nested, "bad_request", "nested deeper than 127"),
        bad("empty", "", "bad_request", "empty"),
        bad("unknown-model", with("\"model\":\"nobody\""), "unknown_model", "nobody"),
        bad("priority", with("\"priority\":9999"), "bad_request", "priority"),
        bad("timeout", with("\"timeout_ms\":-1"), "bad_request", "timeout_ms"),
        bad("unknown-field", with("\"feature\":1"), "bad_request", "feature"),
        bad("too-large", format!("{{\"features\":{row}}}{}", " ".repeat(300_000)), "too_large", "record_bytes_max"),
        Bad {
            name: "avro",
            record: Record::new("avro", format!("{{\"features\":{row}}}")).header("content-type", "application/avro"),
            code: "bad_request",
            message: "JSON",
        },
    ];
    let tombstone = Record { payload: None, ..Record::new("tombstone", "") };
    all.push(Bad { name: "tombstone", record: tombstone, code: "bad_request", message: "tombstone" });
    all
}

pub(crate) fn each_gets_its_error(shared: &Shared) {
    let (input, output) = shared.topics("bad", 2);
    let toml = Toml { route: "record_bytes_max = \"1MiB\"", ..Toml::new("bad") };
    let limited = Toml { route: "record_bytes_max = \"256KiB\"", ..Toml::new("bad") };
    let bad = bad_records(&shared.higgs.rows[0]);
    // The nested one must be read, so the limit is below the other large one only in a second run.
    let (large, rest): (Vec<_>, Vec<_>) = bad.into_iter().partition(|bad| bad.name == "too-large");
    let mut sent = 0;
    for (toml, bad) in [(toml, rest), (limited, large)] {
        let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "bad");
        let mut records = Vec::new();
        for (number, bad) in bad.iter().enumerate() {
            let neighbour = sent + number;
            records.push(Record::new(&format!("n{neighbour}"), shared.higgs.request(neighbour)));
            records.push(bad.record.clone());
        }
        shared.kafka.send(&input, &records);
        sent += bad.len();
        let replies = shared.kafka.read(&output, 2 * sent);
        assert_eq!(replies.len(), 2 * sent, "exactly one reply for each record");
        for bad in &bad {
            let reply = replies.iter().find(|reply| reply.key_text() == bad.name).expect(bad.name);
            let json = reply.json();
            assert_eq!(json["success"], false, "{}: {json}", bad.name);
            assert_eq!(json["error"]["code"], bad.code, "{}: {json}", bad.name);
            let message = json["error"]["message"].as_str().unwrap();
            assert!(message.contains(bad.message) && message.len() <= 400, "{}: {json}", bad.name);
            assert_eq!(json["id"], bad.name, "an id defaults to the key");
            assert_eq!(reply.value_of("forebay-error"), Some(bad.code.as_bytes()), "{}", bad.name);
        }
        for neighbour in 0..sent {
            let reply = replies.iter().find(|reply| reply.key_text() == format!("n{neighbour}")).unwrap();
            assert_score(&reply.json(), shared.higgs.scores[neighbour]);
        }
        assert_eq!(worker.terminate(), Some(0));
    }
    assert_eq!(shared.kafka.committed("bad", &input, 2), shared.kafka.ends(&input, 2), "all are done");
}

pub(crate) fn assert_score(reply: &serde_json::Value, expected: f64) {
    let score = reply["prediction"][0].as_f64().unwrap_or_else(|| panic!("{reply}"));
    assert!((score - expected).abs() <= 1e-12, "{reply}: expected {expected}");
}

pub(crate) fn tombstones_are_skipped(shared: &Shared) {
    let (input, output) = shared.topics("compacted", 1);
    let toml = Toml { route: "compacted = true", ..Toml::new("compacted") };
    let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "compacted");
    let tombstone = Record { payload: None, ..Record::new("gone", "") };
    shared.kafka.send(
        &input,
        &[Record::new("a", shared.higgs.request(0)), tombstone, Record::new("b", shared.higgs.request(1))],
    );
    let replies = shared.kafka.read(&output, 2);
    assert_eq!(replies.iter().map(Record::key_text).collect::<Vec<_>>(), ["a", "b"]);
    until("the skip's count", || worker.metric("forebay_records_skipped_total") == 1);
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn a_failing_model_answers(shared: &Shared) {
    let (input, output) = shared.topics("failing", 1);
    let toml = Toml::new("failing").text(&shared.kafka.brokers());
    // The first call fails, then each request of the batch alone: one by an error, one by a panic, the others not.
    let mut worker =
        Worker::start(&toml, "failing", "score::batch=1*return(no such tree)->1*return(bad row)->1*panic(boom)");
    worker.wait_ready();
    let records: Vec<_> = (0..6).map(|row| Record::new(&format!("k{row}"), shared.higgs.request(row))).collect();
    shared.kafka.send(&input, &records);
    let replies = shared.kafka.read(&output, 6);
    let (good, failed): (Vec<_>, Vec<_>) = replies.iter().map(Record::json).partition(|reply| reply["success"] == true);
    assert_eq!(good.len() + failed.len(), 6);
    assert!((1..=3).contains(&failed.len()), "{failed:?}");
    for reply in failed {
        assert_eq!(reply["error"]["code"], "model_error", "{reply}");
    }
    for reply in good {
        let row: usize = reply["id"].as_str().unwrap()[1..].parse().unwrap();
        assert_score(&reply, shared.higgs.scores[row]);
    }
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn deadlines_are_answered(shared: &Shared) {
    let (input, output) = shared.topics("deadline", 1);
    let toml = Toml::new("deadline").text(&shared.kafka.brokers());
    let toml = format!("{toml}\n[engine]\nnum_threads = 1\n");
    // The first batch holds the only score thread; what comes meanwhile with a deadline must not wait for it.
    let mut worker = Worker::start(&toml, "deadline", "score::batch=1*sleep(1500)->off");
    worker.wait_ready();
    shared.kafka.send(&input, &[Record::new("slow", shared.higgs.request(0))]);
    until("the slow record's arrival", || worker.metric("forebay_records_received_total") == 1);
    let hurried = shared.higgs.request(1).replace('{', "{\"timeout_ms\":50,");
    shared.kafka.send(&input, &[Record::new("hurried", hurried), Record::new("patient", shared.higgs.request(2))]);
    let replies = shared.kafka.read(&output, 3);
    let of = |key: &str| replies.iter().find(|reply| reply.key_text() == key).unwrap().json();
    assert_eq!(of("hurried")["error"]["code"], "deadline_exceeded", "{}", of("hurried"));
    let waited = of("hurried")["error"]["message"].as_str().unwrap().to_owned();
    let waited: f64 = waited.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((50.0..1000.0).contains(&waited), "answered while the score thread was busy: {waited} ms");
    assert_score(&of("slow"), shared.higgs.scores[0]);
    assert_score(&of("patient"), shared.higgs.scores[2]);
    assert_eq!(worker.terminate(), Some(0));
}
