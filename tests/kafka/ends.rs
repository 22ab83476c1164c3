//! How a worker begins and ends: drains, bounds, exit codes, brokers that are away, the admin port.

use std::time::Duration;

use crate::bad_input::assert_score;
use crate::support::{Kafka, Record, Worker, until};
use crate::{Shared, Toml};

pub(crate) fn sigterm_drains(shared: &Shared) {
    let (input, output) = shared.topics("drain", 2);
    let toml = Toml::new("drain").text(&shared.kafka.brokers());
    let mut worker = Worker::start(&toml, "drain", "score::batch=sleep(100)");
    worker.wait_ready();
    let records: Vec<_> = (0..5000).map(|row| Record::new(&row.to_string(), shared.higgs.request(row))).collect();
    shared.kafka.send(&input, &records);
    until("records in flight", || worker.metric("forebay_records_in_flight") > 0);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
    let committed: i64 = shared.kafka.committed("drain", &input, 2).iter().sum();
    let answered = shared.kafka.read(&output, usize::try_from(committed).unwrap());
    assert_eq!(answered.len(), usize::try_from(committed).unwrap(), "answered if and only if committed");
}

pub(crate) fn cut_short(shared: &Shared) {
    let (input, output) = shared.topics("short", 1);
    let toml = Toml { kafka: "drain_timeout = \"1s\"", ..Toml::new("short") }.text(&shared.kafka.brokers());
    let mut worker = Worker::start(&toml, "short", "score::batch=1*off->sleep(30000)");
    worker.wait_ready();
    shared.kafka.send(&input, &[Record::new("a", shared.higgs.request(0))]);
    assert_eq!(shared.kafka.read(&output, 1).len(), 1);
    shared.kafka.send(&input, &[Record::new("b", shared.higgs.request(1))]);
    until("the slow record's arrival", || worker.metric("forebay_records_received_total") == 2);
    assert_eq!(worker.terminate(), Some(75), "{}", worker.log());
    assert_eq!(shared.kafka.committed("short", &input, 1), [1], "the rest is not committed");
    let mut next = Worker::ready(&toml, "short");
    let replies = shared.kafka.read(&output, 2);
    assert_eq!(replies.len(), 2);
    assert_score(&replies[1].json(), shared.higgs.scores[1]);
    assert_eq!(next.terminate(), Some(0));
}

pub(crate) fn fenced(shared: &Shared) {
    let (input, output) = shared.topics("fenced", 2);
    let toml = Toml::new("fenced").text(&shared.kafka.brokers());
    let mut first = Worker::ready(&toml, "same-name");
    let mut second = Worker::start(&toml, "same-name", "");
    // The first notices by its next heartbeat or transaction.
    shared.kafka.send(&input, &[Record::new("a", shared.higgs.request(0))]);
    assert_eq!(first.wait_exit(), Some(3), "{}", first.log());
    assert!(first.log().contains("`instance`"), "names the key: {}", first.log());
    second.wait_ready();
    shared.kafka.send(&input, &[Record::new("b", shared.higgs.request(1))]);
    assert_eq!(shared.kafka.read(&output, 2).len(), 2);
    assert_eq!(second.terminate(), Some(0));
}

pub(crate) fn start(shared: &Shared) {
    let (input, output) = shared.topics("start", 1);
    shared.kafka.send(&input, &[Record::new("before", shared.higgs.request(0))]);
    let brokers = shared.kafka.brokers();
    let toml = |kafka| Toml { kafka, ..Toml::new("start") }.text(&brokers);
    let mut refuses = Worker::start(&toml("start = \"error\""), "start", "");
    assert_eq!(refuses.wait_exit(), Some(1));
    assert!(refuses.log().contains("kafka.start"), "{}", refuses.log());
    let mut latest = Worker::ready(&toml("start = \"latest\""), "start");
    assert_eq!(shared.kafka.committed("start", &input, 1), [1], "committed before the first record");
    latest.kill();
    shared.kafka.send(&input, &[Record::new("between", shared.higgs.request(1))]);
    // The group has a position now, so what came between the two is read, whatever `start` says.
    let mut again = Worker::ready(&toml("start = \"latest\""), "start");
    let replies = shared.kafka.read(&output, 1);
    assert_eq!(replies.iter().map(Record::key_text).collect::<Vec<_>>(), ["between"]);
    assert_eq!(again.terminate(), Some(0));
}

/// On a broker of its own, which is killed and started again.
pub(crate) fn broker_away(shared: &Shared) {
    let toml_of = |brokers: &str| Toml::new("away").text(brokers);
    let nobody = format!("127.0.0.1:{}", crate::support::free_port());
    let mut worker = Worker::start(&toml_of(&nobody), "away", "");
    until("the line that says so", || worker.log().contains("no broker can be reached"));
    // Several rounds of failed connections later it is still one line.
    let since = forebay::clock::now();
    until("three seconds", || forebay::clock::now() - since > Duration::from_secs(3));
    assert_eq!(worker.log().matches("no broker can be reached").count(), 1, "{}", worker.log());
    assert!(worker.log().lines().count() < 10, "{}", worker.log());
    assert_eq!(worker.get("/readyz").unwrap().0, 503);
    assert_eq!(worker.get("/livez").unwrap().0, 200);
    assert_eq!(worker.terminate(), Some(0), "nothing was in flight: {}", worker.log());

    let mut kafka = Kafka::start();
    kafka.create(&["away-in", "away-out"], 2);
    let mut worker = Worker::ready(&toml_of(&kafka.brokers()), "away");
    kafka.send("away-in", &[Record::new("a", shared.higgs.request(0))]);
    assert_eq!(kafka.read("away-out", 1).len(), 1);
    kafka.kill();
    until("the worker to notice", || worker.metric("forebay_broker_away") == 1);
    kafka.restart();
    kafka.send("away-in", &[Record::new("b", shared.higgs.request(1))]);
    assert_eq!(kafka.read("away-out", 2).len(), 2);
    until("the worker to notice", || worker.metric("forebay_broker_away") == 0);
    assert_eq!(worker.log().matches("no broker can be reached").count(), 1, "{}", worker.log());
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
}

pub(crate) fn missing_reply_topic(shared: &Shared) {
    shared.kafka.create(&["noreply-in"], 1);
    shared.kafka.send("noreply-in", &[Record::new("a", shared.higgs.request(0))]);
    let toml = Toml::new("noreply").text(&shared.kafka.brokers());
    let mut worker = Worker::start(&toml, "noreply", "");
    until("the reason", || {
        worker.get("/readyz").is_some_and(|(status, body)| status == 503 && body.contains("noreply-out"))
    });
    assert!(worker.log().contains("noreply-out"), "{}", worker.log());
    shared.kafka.create(&["noreply-out"], 1);
    worker.wait_ready();
    assert_eq!(shared.kafka.read("noreply-out", 1).len(), 1);
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn admin(shared: &Shared) {
    let (input, output) = shared.topics("admin", 1);
    let mut worker = Worker::ready(&Toml::new("admin").text(&shared.kafka.brokers()), "admin");
    let records = [Record::new("a", shared.higgs.request(0)), Record::new("b", "no JSON")];
    shared.kafka.send(&input, &records);
    assert_eq!(shared.kafka.read(&output, 2).len(), 2);
    assert_eq!(worker.get("/livez"), Some((200, "ok\n".to_owned())));
    until("the commit's count", || worker.metric("forebay_commit_records_sum") == 2);
    let (status, stats) = worker.get("/stats").unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(status, 200);
    assert_eq!((&stats["total_requests"], &stats["failed_requests"]), (&2.into(), &1.into()), "{stats}");
    assert_eq!(stats["dynamic_batcher"]["processed_batches"], 1, "{stats}");
    assert!(stats["avg_inference_time_ms"].as_f64().unwrap() > 0.0, "{stats}");
    assert_eq!(stats["memory_pool"]["total_buffers"], 1, "{stats}");
    assert_eq!(stats["cache_hit_rate"], 0.0);
    assert_eq!(worker.get("/nothing").unwrap().0, 404);
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn exit_codes(shared: &Shared) {
    let good = Toml::new("codes").text(&shared.kafka.brokers());
    let ends = |toml: &str, code: i32, says: &str| {
        let mut worker = Worker::start(toml, "codes", "");
        assert_eq!(worker.wait_exit(), Some(code), "{}", worker.log());
        assert!(worker.log().contains(says), "{says}: {}", worker.log());
    };
    ends(&good.replace("reply_topic", "reply_topik"), 2, "reply_topic");
    ends(&good.replace("higgs.model.txt", "higgs.test.tsv"), 4, "higgs.test.tsv");
    ends(&good.replace("higgs.model.txt", "nothing.txt"), 4, "nothing.txt");
    let pinned = format!("sha256 = \"{}\"", "0".repeat(64));
    ends(&Toml { model: &pinned, ..Toml::new("codes") }.text(&shared.kafka.brokers()), 4, "SHA-256");
    ends(&format!("{good}\n[engine]\npin = [4000]\n"), 2, "4000");
    ends(&good.replace("[kafka]", "[kafka]\nclient = { \"no.such.key\" = 1 }"), 2, "no.such.key");
    ends(&good.replace("[kafka]", "[kafka]\nclient = { \"enable.auto.commit\" = true }"), 2, "enable.auto.commit");
}
