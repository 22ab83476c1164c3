//! One hostile sender among good ones: whatever it sends, every good record is answered right, each of its own ends once,
//! and the worker neither restarts nor spends its time on new producers.

use std::collections::HashMap;

use crate::bad_input::assert_score;
use crate::support::stream::Feed;
use crate::support::{Record, Worker, until};
use crate::{Shared, Toml};

const GOOD: usize = 5000;
/// One of so many records is bad.
const EVERY: usize = 25;
const RATE_PER_S: f64 = 2000.0;
const PARTITIONS: i32 = 4;

/// Ways of being bad that are found out before a transaction begins.
const EARLY: &[&str] = &[
    "partition",
    "negative-partition",
    "missing-topic",
    "no-topic-name",
    "forbidden-topic",
    "topic-not-utf8",
    "id-too-large",
    "not-json",
    "not-text",
];
/// Those of them that cannot be scored.
const UNREADABLE: &[&str] = &["id-too-large", "not-json", "not-text"];
/// The broker refuses the reply for its size, unless the topic's limit is known beforehand.
const TOO_LARGE: &[&str] = &["reply-too-large", "echo-too-large"];

/// How record `n` is bad, if it is: in these ways, in turn.
fn badness(ways: &[&'static str], n: usize) -> Option<&'static str> {
    (n % EVERY == EVERY / 2).then(|| ways[n / EVERY % ways.len()])
}

/// Record `n` with a good body, made bad.
fn spoil(bad: &str, name: &str, n: usize, body: &str) -> Record {
    let long_id = |bytes: usize| body.replacen("\"r", &format!("\"{}r", "x".repeat(bytes)), 1);
    let record = |body: &str| Record::new(&format!("k{n}"), body);
    let to = |topic: &str| record(body).header("kafka_replyTopic", format!("{name}-{topic}"));
    let partition = |partition: i32| to("replies").header("kafka_replyPartition", partition.to_be_bytes());
    match bad {
        "partition" => partition(99),
        "negative-partition" => partition(-7),
        "missing-topic" => to(&format!("replies-{n}")),
        "no-topic-name" => to("replies of mine!"),
        "forbidden-topic" => to("in"),
        "topic-not-utf8" => record(body).header("kafka_replyTopic", [0xc3, 0x28, 0xff]),
        "reply-too-large" => record(&long_id(900)).header("kafka_replyTopic", format!("{name}-replies-small")),
        "id-too-large" => record(&long_id(90_000)),
        "echo-too-large" => record(body).header("kafka_correlationId", vec![b'c'; 200_000]),
        "not-json" => record(&body[..body.len() / 2]),
        "not-text" => Record { payload: Some(vec![0xff, 0x00, 0xc3, 0x28]), ..record("") },
        _ => unreachable!("{bad}"),
    }
}

/// Sends it all, waits until all of it is committed, and holds the good ones' replies against the scores. Returns the
/// bad requests by key, and the replies to them.
fn run(shared: &Shared, name: &str, ways: &[&'static str], route: &str) -> (HashMap<String, Bad>, Vec<Record>) {
    let (kafka, higgs) = (&shared.kafka, &shared.higgs);
    let (input, output) = (format!("{name}-in"), format!("{name}-out"));
    let (replies, small) = (format!("{name}-replies"), format!("{name}-replies-small"));
    kafka.create(&[&input, &replies], PARTITIONS);
    kafka.create_with(&[&output], PARTITIONS, &[("max.message.bytes", "100000")]);
    kafka.create_with(&[&small], 1, &[("max.message.bytes", "900")]);
    let route = format!("reply_topics_allowed = [\"{replies}*\"]\n{route}");
    let mut worker = Worker::ready(&Toml { route: &route, ..Toml::new(name) }.text(&kafka.brokers()), name);

    let request = |n: usize| {
        let body = higgs.request_at(n, 1 + n % 3);
        match badness(ways, n) {
            Some(bad) => spoil(bad, name, n, &body),
            None if n.is_multiple_of(10) => {
                Record::new(&format!("k{n}"), body).header("kafka_replyTopic", replies.as_str())
            }
            None => Record::new(&format!("k{n}"), body),
        }
    };
    let count = GOOD * EVERY / (EVERY - 1);
    let requests: Vec<Record> = (0..count).map(request).collect();
    let sent = requests.clone();
    Feed::start(kafka, &input, RATE_PER_S, count, move |n| sent[n].clone()).end();
    // A header whose name is no text is none that the worker knows, and the record a good one.
    let last = Record::new(&format!("k{count}"), higgs.request_at(count, 1));
    kafka.send_with_header(&input, &last, b"\xff\xfe name", b"\xff");
    until("the input's end", || {
        assert!(worker.exit().is_none(), "the worker ended: {}", worker.log());
        kafka.committed(name, &input, PARTITIONS) == kafka.ends(&input, PARTITIONS)
    });

    let n_of = |reply: &Record| reply.key_text()[1..].parse::<usize>().unwrap();
    let (mut replies_of, mut bad) = (vec![0; count + 1], Vec::new());
    for topic in [&output, &replies, &small] {
        for reply in kafka.read(topic, 0) {
            let n = n_of(&reply);
            if badness(ways, n).is_some() {
                assert_eq!(topic, &output, "r{n}: an error goes to the route's own topic");
                bad.push(reply);
            } else {
                assert_eq!(*topic == replies, n.is_multiple_of(10) && n < count, "r{n} in {topic}");
                assert_score(&reply.json(), higgs.score_at(n));
                replies_of[n] += 1;
            }
        }
    }
    let wrong: Vec<_> = (0..=count).filter(|n| replies_of[*n] != usize::from(badness(ways, *n).is_none())).collect();
    assert!(wrong.is_empty(), "lost or doubled: {wrong:?}");

    let bad_request = |(n, record): (usize, Record)| Some((record.key_text(), Bad { way: badness(ways, n)?, record }));
    let requests: HashMap<_, _> = requests.into_iter().enumerate().filter_map(bad_request).collect();
    let too_large = requests.values().filter(|bad| TOO_LARGE.contains(&bad.way)).count() as u64;
    let recycled = worker.metric("forebay_producers_recycled_total");
    println!("{name}: {} bad of {count}, {too_large} too large; {recycled} producers recycled", requests.len());
    assert!(recycled <= 2 * too_large, "{recycled} producers recycled for {too_large} replies that are too large");
    assert_eq!(worker.terminate(), Some(0));
    (requests, bad)
}

struct Bad {
    way: &'static str,
    record: Record,
}

fn count_by_key(records: &[Record]) -> HashMap<String, usize> {
    records.iter().fold(HashMap::new(), |mut counts, record| {
        *counts.entry(record.key_text()).or_default() += 1;
        counts
    })
}

/// Each gets one error reply.
pub(crate) fn errors(shared: &Shared) {
    let (requests, replies) = run(shared, "hostile", EARLY, "");
    assert_one_error_each(&requests, &replies);
}

/// So does each whose reply no topic takes, and that costs no more than a transaction or two.
pub(crate) fn too_large(shared: &Shared) {
    let (requests, replies) = run(shared, "hostilelarge", TOO_LARGE, "");
    assert_one_error_each(&requests, &replies);
}

fn assert_one_error_each(requests: &HashMap<String, Bad>, replies: &[Record]) {
    for reply in replies {
        let json = reply.json();
        let code = json["error"]["code"].as_str().unwrap_or_default();
        assert!(json["success"] == false && ["bad_request", "too_large"].contains(&code), "{json}");
    }
    let replies = count_by_key(replies);
    for (key, Bad { way, .. }) in requests {
        let count = replies.get(key).copied().unwrap_or(0);
        // An echo that no topic takes leaves nothing that could be said: it is counted.
        assert!(count == 1 || *way == "echo-too-large" && count == 0, "{way} {key}: {count} error replies");
    }
}

/// What cannot be scored ends among the dead letters too, as it was sent. What can, but not be answered where it says,
/// has its error reply.
pub(crate) fn dead_letters(shared: &Shared) {
    shared.kafka.create(&["hostiledlt-in-dlt"], PARTITIONS);
    let (requests, replies) = run(shared, "hostiledlt", EARLY, "dead_letter = \"<input>-dlt\"");
    let letters = shared.kafka.read("hostiledlt-in-dlt", 0);
    for letter in &letters {
        let key = letter.key_text();
        let Bad { record, .. } = requests.get(&key).unwrap_or_else(|| panic!("{key} is a good one, and not dead"));
        assert_eq!(letter.payload, record.payload, "{key}");
        for (name, value) in &record.headers {
            assert_eq!(letter.value_of(name), Some(value.as_slice()), "{key}: {name}");
        }
        assert_eq!(letter.value_of("kafka_dlt-original-topic"), Some(&b"hostiledlt-in"[..]), "{key}");
    }
    let (replies, letters) = (count_by_key(&replies), count_by_key(&letters));
    for (key, Bad { way, .. }) in &requests {
        let count = |of: &HashMap<String, usize>| of.get(key).copied().unwrap_or(0);
        let (replies, letters) = (count(&replies), count(&letters));
        assert!(replies <= 1 && letters <= 1 && replies + letters > 0, "{way} {key}: {replies} errors, {letters} dead");
        assert!(letters == 1 || !UNREADABLE.contains(way), "{way} {key} is no dead letter");
    }
}
