//! Where replies go: the route's topic, or the one that a request's headers name, if the route allows it.

use crate::bad_input::assert_score;
use crate::support::{Record, Worker};
use crate::{Shared, Toml};

pub(crate) fn reply_headers(shared: &Shared) {
    let (input, output) = shared.topics("addr", 3);
    shared.kafka.create(&["addr-replies-spring", "addr-replies-quarkus", "addr-replies-faststream"], 3);
    let toml = Toml { route: "reply_topics_allowed = [\"addr-replies-*\"]", ..Toml::new("addr") };
    let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "addr");
    let correlation = [0_u8, 255, 7, 128];
    let request = |row| Record::new(&format!("k{row}"), shared.higgs.request(row)).header("traceparent", "00-aa-bb-01");
    let spring = request(0)
        .header("kafka_replyTopic", "addr-replies-spring")
        .header("kafka_replyPartition", 2_i32.to_be_bytes())
        .header("kafka_correlationId", correlation);
    let quarkus = request(1)
        .header("REPLY_TOPIC", "addr-replies-quarkus")
        .header("REPLY_PARTITION", 1_i32.to_be_bytes())
        .header("REPLY_CORRELATION_ID", correlation);
    let faststream = request(2).header("reply_to", "addr-replies-faststream").header("correlation_id", "c1");
    shared.kafka.send(&input, &[spring, quarkus, faststream, request(3)]);

    let one = |topic: &str| shared.kafka.read(topic, 1).remove(0);
    let reply = one("addr-replies-spring");
    assert_eq!(reply.partition, Some(2));
    assert_eq!(reply.value_of("kafka_correlationId"), Some(&correlation[..]));
    assert_eq!(reply.value_of("traceparent"), Some(&b"00-aa-bb-01"[..]));
    assert_score(&reply.json(), shared.higgs.scores[0]);
    let reply = one("addr-replies-quarkus");
    assert_eq!(reply.partition, Some(1));
    assert_eq!(reply.value_of("REPLY_CORRELATION_ID"), Some(&correlation[..]));
    assert_eq!(reply.value_of("REPLY_TOPIC"), None, "a client would take the reply for a request");
    let reply = one("addr-replies-faststream");
    assert_eq!(reply.value_of("correlation_id"), Some(&b"c1"[..]));
    let reply = one(&output);
    assert_eq!(reply.key_text(), "k3");
    assert_eq!(reply.headers.len(), 1, "no header that was not asked for: {:?}", reply.headers);
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn bad_addresses(shared: &Shared) {
    let (input, output) = shared.topics("badaddr", 2);
    shared.kafka.create(&["badaddr-replies"], 2);
    let toml = Toml { route: "reply_topics_allowed = [\"badaddr-replies*\"]", ..Toml::new("badaddr") };
    let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "badaddr");
    let request = |key: &str| Record::new(key, shared.higgs.request(0));
    let to = |key: &str, topic: &str| request(key).header("kafka_replyTopic", topic).header("kafka_correlationId", "c");
    let mut records = Vec::new();
    for n in 0..20 {
        records.push(request(&format!("good{n}")));
        match n % 4 {
            0 => records.push(to(&format!("bad{n}-forbidden"), "elsewhere")),
            1 => records.push(to(&format!("bad{n}-missing"), "badaddr-replies-missing")),
            2 => records.push(
                to(&format!("bad{n}-partition"), "badaddr-replies")
                    .header("kafka_replyPartition", 99_i32.to_be_bytes()),
            ),
            _ => records.push(to(&format!("bad{n}-malformed"), "badaddr-replies").header("kafka_replyPartition", "1")),
        }
    }
    shared.kafka.send(&input, &records);
    let replies = shared.kafka.read(&output, 40);
    assert_eq!(replies.len(), 40, "all come back on the route's own topic");
    for reply in &replies {
        let (key, json) = (reply.key_text(), reply.json());
        if key.starts_with("good") {
            assert_score(&json, shared.higgs.scores[0]);
        } else {
            assert_eq!(json["error"]["code"], "bad_request", "{key}: {json}");
            assert_eq!(reply.value_of("kafka_correlationId"), Some(&b"c"[..]), "{key}");
            let message = json["error"]["message"].as_str().unwrap();
            let names = match key.rsplit('-').next().unwrap() {
                "forbidden" => "reply_topics_allowed",
                "missing" => "badaddr-replies-missing",
                "partition" => "99",
                _ => "kafka_replyPartition",
            };
            assert!(message.contains(names), "{key}: {message}");
        }
    }
    assert_eq!(worker.metric("forebay_transactions_aborted_total"), 0, "found out before any transaction began");
    assert_eq!(worker.terminate(), Some(0));
}

/// Replies that are good one by one, and too large together for the topic's own limit.
pub(crate) fn small_batches(shared: &Shared) {
    let (input, output) = ("smallbatch-in", "smallbatch-out");
    shared.kafka.create(&[input], 1);
    shared.kafka.create_with(&[output], 1, &[("max.message.bytes", "20000")]);
    let records: Vec<_> =
        (0..3000).map(|row| Record::new(&format!("k{row}"), shared.higgs.request(row % 100))).collect();
    shared.kafka.send(input, &records);
    // All at once, so that replies do come in large batches.
    let toml = Toml::new("smallbatch");
    // The worker does not know what the topic takes.
    let mut worker = Worker::start(&toml.text(&shared.kafka.brokers()), "smallbatch", "client::topic_settings=return");
    worker.wait_ready();
    let replies = shared.kafka.read(output, records.len());
    assert_eq!(replies.len(), records.len());
    for (row, reply) in replies.iter().enumerate() {
        assert_eq!(reply.key_text(), format!("k{row}"));
        assert_score(&reply.json(), shared.higgs.scores[row % 100]);
    }
    assert!(worker.metric("forebay_transactions_aborted_total") > 0, "no batch was ever refused: nothing was shown");
    assert_eq!(worker.terminate(), Some(0));
}

/// A compacted topic takes no reply without a key. What is sent with it fails too, and must go out all the same.
pub(crate) fn compacted_topics(shared: &Shared) {
    let (input, output) = ("keyless-in", "keyless-out");
    shared.kafka.create(&[input], 1);
    shared.kafka.create_with(&[output, "keyless-replies"], 1, &[("cleanup.policy", "compact")]);
    let toml = Toml { route: "reply_topics_allowed = [\"keyless-replies\"]", ..Toml::new("keyless") };
    let records: Vec<_> = (0..400)
        .map(|row| {
            let record = Record::new(&format!("k{row}"), shared.higgs.request(row % 100));
            let record = if row % 2 == 0 { record } else { record.header("kafka_replyTopic", "keyless-replies") };
            // One to each topic that cannot be answered there.
            if row == 150 || row == 251 { Record { key: None, ..record } } else { record }
        })
        .collect();
    shared.kafka.send(input, &records);
    let mut worker = Worker::ready(&toml.text(&shared.kafka.brokers()), "keyless");
    for (topic, odd) in [(output, 0), ("keyless-replies", 1)] {
        let replies = shared.kafka.read(topic, 199);
        let mut wanted = (odd..400).step_by(2).filter(|row| *row != 150 && *row != 251);
        assert_eq!(replies.len(), 199);
        for reply in &replies {
            let row = wanted.next().unwrap();
            assert_eq!(reply.key_text(), format!("k{row}"), "{topic}");
            assert_score(&reply.json(), shared.higgs.scores[row % 100]);
        }
    }
    // Neither can the errors about them be written, on a compacted route: they are counted.
    assert_eq!(worker.metric("forebay_replies_dropped_total"), 2);
    assert_eq!(worker.terminate(), Some(0));
}
