//! Members of a group that come and go, topics that grow or are made anew, several shards in a process.

use crate::exactly_once::{assert_exactly_once, send};
use crate::support::{Worker, until};
use crate::{Shared, Toml};

pub(crate) fn cooperative(shared: &Shared) {
    come_and_go(shared, "group", "rebalance = \"cooperative\"");
}

pub(crate) fn eager(shared: &Shared) {
    come_and_go(shared, "groupeager", "rebalance = \"eager\"");
}

pub(crate) fn brokers_own(shared: &Shared) {
    come_and_go(shared, "groupconsumer", "rebalance = \"consumer\"");
}

/// Without a transaction too nothing is answered twice, as long as nobody is killed. Replies take their time, so that some
/// are on their way whenever partitions go.
pub(crate) fn at_least_once(shared: &Shared) {
    come_and_go(shared, "groupleast", "delivery = \"at_least_once\"\n[kafka.client]\n\"linger.ms\" = 3000");
}

fn come_and_go(shared: &Shared, name: &str, kafka: &str) {
    let (input, output) = shared.topics(name, 6);
    let toml = Toml { kafka, ..Toml::new(name) }.text(&shared.kafka.brokers());
    let mut first = Worker::ready(&toml, &format!("{name}-first"));
    let mut sent = 0;
    let mut stream = |parts: usize| {
        for _ in 0..parts {
            send(shared, &input, sent..sent + 100);
            sent += 100;
        }
    };
    stream(5);
    let mut second = Worker::start(&toml, &format!("{name}-second"), "");
    stream(5);
    second.wait_ready();
    until("a share for the second", || second.metric("forebay_partitions_assigned") == 3);
    until("a share for the first", || first.metric("forebay_partitions_assigned") == 3);
    stream(5);
    assert_eq!(first.terminate(), Some(0), "{}", first.log());
    stream(5);
    // The name is the same, so the group hands the same partitions back without waiting for the session to end.
    let mut first = Worker::ready(&toml, &format!("{name}-first"));
    stream(5);
    assert_exactly_once(shared, &output, 2500);
    assert_eq!(second.terminate(), Some(0), "{}", second.log());
    assert_eq!(first.terminate(), Some(0), "{}", first.log());
    assert_eq!(shared.kafka.committed(name, &input, 6), shared.kafka.ends(&input, 6));
}

/// What is in a new partition before the worker hears of it is answered, although the group starts at the latest.
pub(crate) fn partitions_added(shared: &Shared) {
    let (input, output) = shared.topics("grown", 2);
    let kafka = "start = \"latest\"\n[kafka.client]\n\"topic.metadata.refresh.interval.ms\" = 3000";
    let mut worker = Worker::ready(&Toml { kafka, ..Toml::new("grown") }.text(&shared.kafka.brokers()), "grown");
    until("both partitions", || shared.kafka.committed("grown", &input, 2) == [0, 0]);
    send(shared, &input, 0..100);
    shared.kafka.grow(&input, 4);
    // The producer is new, and so knows of them at once.
    send(shared, &input, 100..300);
    until("all four", || worker.metric("forebay_partitions_assigned") == 4);
    assert_exactly_once(shared, &output, 300);
    assert_eq!(worker.terminate(), Some(0));
    assert_eq!(shared.kafka.committed("grown", &input, 4), shared.kafka.ends(&input, 4));
}

/// A topic that is deleted and made again under a running worker starts anew.
pub(crate) fn topic_recreated(shared: &Shared) {
    let (input, output) = shared.topics("again", 2);
    let kafka = "[kafka.client]\n\"topic.metadata.refresh.interval.ms\" = 1000";
    let toml = Toml { kafka, ..Toml::new("again") }.text(&shared.kafka.brokers());
    let mut worker = Worker::ready(&toml, "again");
    send(shared, &input, 0..200);
    until("the first topic's end", || shared.kafka.committed("again", &input, 2) == shared.kafka.ends(&input, 2));
    shared.kafka.delete(&input);
    until("the worker to notice", || worker.metric("forebay_partitions_assigned") == 0);
    shared.kafka.create(&[&input], 2);
    send(shared, &input, 200..300);
    assert_exactly_once(shared, &output, 300);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
    assert_eq!(shared.kafka.committed("again", &input, 2), shared.kafka.ends(&input, 2));
}

/// The same while no worker runs: what the group has committed lies past the end, and nobody guesses.
pub(crate) fn position_past_the_end(shared: &Shared) {
    let (input, output) = shared.topics("pastend", 1);
    shared.kafka.commit_as("pastend", &input, &[(0, 1000, "")]);
    send(shared, &input, 0..10);
    let mut worker = Worker::start(&Toml::new("pastend").text(&shared.kafka.brokers()), "pastend", "");
    until("the worker to say so", || {
        worker.get("/readyz").is_some_and(|(code, text)| code == 503 && text.contains("kafka.on_bad_position"))
    });
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
    assert_eq!(shared.kafka.committed("pastend", &input, 1), [1000], "it is left as it was");

    let toml = Toml { kafka: "on_bad_position = \"continue\"", ..Toml::new("pastend") }.text(&shared.kafka.brokers());
    let mut worker = Worker::ready(&toml, "pastend");
    until("the end", || shared.kafka.committed("pastend", &input, 1) == [10]);
    send(shared, &input, 10..20);
    let replies = shared.kafka.read(&output, 10);
    assert_eq!(replies.iter().map(crate::support::Record::key_text).min(), Some("10".to_owned()));
    assert_eq!(worker.terminate(), Some(0));
}

/// Two lines in a process, each a member of the group.
pub(crate) fn shards(shared: &Shared) {
    let (input, output) = shared.topics("shards", 4);
    let toml = Toml { kafka: "shards = 2", ..Toml::new("shards") }.text(&shared.kafka.brokers());
    let mut worker = Worker::ready(&toml, "shards");
    until("all partitions", || worker.metric("forebay_partitions_assigned") == 4);
    send(shared, &input, 0..1000);
    until("some commits", || worker.metric("forebay_commits_total") >= 2);
    worker.kill();
    let mut worker = Worker::ready(&toml, "shards");
    send(shared, &input, 1000..2000);
    assert_exactly_once(shared, &output, 2000);
    assert_eq!(worker.terminate(), Some(0), "{}", worker.log());
    assert_eq!(shared.kafka.committed("shards", &input, 4), shared.kafka.ends(&input, 4));
}
