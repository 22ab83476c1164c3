//! Groups and topics as others leave them: positions with foreign, damaged or stale metadata, and offsets that never come.

use crate::bad_input::assert_score;
use crate::support::checks::number;
use crate::support::{Record, Worker, until};
use crate::{Shared, Toml};

/// A worker.toml for another group that reads `{name}-in` too and answers to a topic of its own.
fn other_group(shared: &Shared, name: &str, suffix: &str, partitions: i32) -> (String, String, String) {
    let (group, output) = (format!("{name}-{suffix}"), format!("{name}-{suffix}-out"));
    shared.kafka.create(&[&output], partitions);
    let toml = Toml::new(name).text(&shared.kafka.brokers());
    let toml = toml.replace(&format!("group = \"{name}\""), &format!("group = \"{group}\""));
    (toml.replace(&format!("{name}-out"), &output), group, output)
}

/// Sends records `from..to`, one to each partition in turn.
fn send(shared: &Shared, topic: &str, rows: std::ops::Range<usize>, partitions: i32) {
    let partition = |n: usize| i32::try_from(n).unwrap() % partitions;
    let record = |n: usize| Record::new(&format!("k{n}"), shared.higgs.request(n)).at_partition(partition(n));
    shared.kafka.send(topic, &rows.map(record).collect::<Vec<_>>());
}

/// The numbers of the records that were answered, ascending; each score is checked.
fn answered(shared: &Shared, topic: &str, count: usize) -> Vec<usize> {
    let check = |reply: &Record| {
        let n = number(reply).unwrap();
        assert_score(&reply.json(), shared.higgs.scores[n]);
        n
    };
    let mut numbers: Vec<usize> = shared.kafka.read(topic, count).iter().map(check).collect();
    numbers.sort_unstable();
    numbers
}

fn wait_all_committed(shared: &Shared, group: &str, topic: &str, partitions: i32) {
    let ends = shared.kafka.ends(topic, partitions);
    until("the input's end", || shared.kafka.committed(group, topic, partitions) == ends);
}

pub(crate) fn taken_over(shared: &Shared) {
    let (input, output) = shared.topics("takeover", 4);
    send(shared, &input, 0..400, 4);
    // Of an ordinary consumer, with and without a note of its own; of Kafka Streams (version 2, a time stamp); of nobody.
    let positions = [(0, 10, ""), (1, 20, "checkpointed by host-7, \"ok\" \u{2713}"), (2, 30, "AgAAAZgAAAAA")];
    shared.kafka.commit_as("takeover", &input, &positions);
    let mut worker = Worker::ready(&Toml::new("takeover").text(&shared.kafka.brokers()), "takeover");
    let start = |n: usize| [10, 20, 30, 0][n % 4];
    let expected: Vec<usize> = (0..400).filter(|n| n / 4 >= start(*n)).collect();
    assert_eq!(answered(shared, &output, expected.len()), expected);
    wait_all_committed(shared, "takeover", &input, 4);
    assert_eq!(worker.terminate(), Some(0));
}

/// Confluent's Parallel Consumer leaves a set beside its position too: these were written by its own encoders.
pub(crate) fn parallel_consumer(shared: &Shared) {
    let (input, output) = shared.topics("parallel", 2);
    send(shared, &input, 0..200, 2);
    // Open in partition 0, from offset 7 on: 0 and 40 to 49 of 50. In partition 1, from 10 on: every second one of 41.
    let positions = [(0, 7, "bAAy/v////8AAA=="), (1, 10, "bAApqqqqqqoB")];
    shared.kafka.commit_as("parallel", &input, &positions);
    let mut worker = Worker::ready(&Toml::new("parallel").text(&shared.kafka.brokers()), "parallel");
    let is_open = |n: usize| match (n % 2, n / 2) {
        (0, offset) => offset == 7 || offset >= 47,
        (_, offset) => offset >= 10 && (offset >= 51 || offset % 2 == 0 && offset < 50),
    };
    let expected: Vec<usize> = (0..200).filter(|n| is_open(*n)).collect();
    assert_eq!(answered(shared, &output, expected.len()), expected);
    wait_all_committed(shared, "parallel", &input, 2);
    assert_eq!(worker.terminate(), Some(0));
}

/// A later worker's map is not read by half: this worker refuses to start.
pub(crate) fn unknown_version(shared: &Shared) {
    let (input, output) = shared.topics("later", 1);
    send(shared, &input, 0..10, 1);
    shared.kafka.commit_as("later", &input, &[(0, 3, "fbm9:AAAA")]);
    let mut worker = Worker::start(&Toml::new("later").text(&shared.kafka.brokers()), "later", "");
    assert_ne!(worker.wait_exit(), Some(0), "{}", worker.log());
    assert!(worker.log().contains("version 9"), "{}", worker.log());
    assert!(shared.kafka.read(&output, 0).is_empty());
    assert_eq!(shared.kafka.committed("later", &input, 1), [3]);
}

/// Leaves a group `{name}` whose partition 0 has a finished set above its position, for record 20 takes for ever.
/// Of 200 records over two partitions, those that were answered; and positions and metadata of the group.
fn leave_a_map(shared: &Shared, name: &str) -> (Vec<usize>, Vec<(i64, String)>) {
    let (input, output) = shared.topics(name, 2);
    // Its neighbours in a batch must not wait with it.
    let model = "[model.batch]\nbatch_size_max = 4\n";
    let toml = Toml { model, ..Toml::new(name) }.text(&shared.kafka.brokers());
    let mut worker = Worker::start(&toml, name, "score::slow_record=return(r20:60000)");
    worker.wait_ready();
    send(shared, &input, 0..200, 2);
    // A batch has four records, so no more than three wait with the slow one.
    until("the others' replies", || shared.kafka.read(&output, 0).len() >= 196);
    worker.kill();
    let left = shared.kafka.committed_with_metadata(name, &input, 2);
    assert!(left[0].0 <= 10 && !left[0].1.is_empty(), "no map beside the position: {left:?}");
    (answered(shared, &output, 196), left)
}

/// What was finished above the position is not answered again, and what was not is.
pub(crate) fn map_is_read(shared: &Shared) {
    let (done, left) = leave_a_map(shared, "mapread");
    let (toml, group, output) = other_group(shared, "mapread", "next", 2);
    let positions = [(0, left[0].0, left[0].1.as_str()), (1, left[1].0, left[1].1.as_str())];
    shared.kafka.commit_as(&group, "mapread-in", &positions);
    let mut worker = Worker::ready(&toml, "mapread-next");
    wait_all_committed(shared, &group, "mapread-in", 2);
    let rest: Vec<usize> = (0..200).filter(|n| done.binary_search(n).is_err()).collect();
    assert!(rest.contains(&20) && rest.len() <= 4, "{rest:?}");
    assert_eq!(answered(shared, &output, rest.len()), rest);
    assert_eq!(worker.terminate(), Some(0));
}

/// Guessing would double or lose, so that partition stands still, and the log says how to go on. The other one flows.
pub(crate) fn damaged(shared: &Shared) {
    let (_, left) = leave_a_map(shared, "mapdamaged");
    // One character in the middle becomes another of the same alphabet.
    let mut text = left[0].1.clone().into_bytes();
    let middle = text.len() / 2;
    text[middle] = if text[middle] == b'A' { b'B' } else { b'A' };
    let text = String::from_utf8(text).unwrap();
    let (toml, group, output) = other_group(shared, "mapdamaged", "next", 2);
    shared.kafka.commit_as(&group, "mapdamaged-in", &[(0, left[0].0, &text), (1, 0, "")]);
    let mut worker = Worker::start(&toml, "mapdamaged-next", "");
    assert_eq!(answered(shared, &output, 100), (1..200).step_by(2).collect::<Vec<_>>(), "{}", worker.log());
    until("the reason", || worker.log().contains("damaged") && worker.log().contains("mapdamaged-in/0"));
    assert!(worker.log().contains("kafka."), "names the key that overrides it: {}", worker.log());
    assert_eq!(shared.kafka.committed(&group, "mapdamaged-in", 2)[0], left[0].0, "its position stays");
    worker.kill();
}

/// Someone reset the group: the map belongs to another position.
pub(crate) fn stale(shared: &Shared) {
    let (_, left) = leave_a_map(shared, "mapstale");
    let (toml, group, output) = other_group(shared, "mapstale", "next", 2);
    let reset = left[0].0 - 3;
    shared.kafka.commit_as(&group, "mapstale-in", &[(0, reset, &left[0].1), (1, 100, "")]);
    let mut worker = Worker::ready(&toml, "mapstale-next");
    let expected: Vec<usize> = (0..200).step_by(2).skip(usize::try_from(reset).unwrap()).collect();
    assert_eq!(answered(shared, &output, expected.len()), expected);
    wait_all_committed(shared, &group, "mapstale-in", 2);
    assert_eq!(worker.terminate(), Some(0));
}

/// Every second transaction of ten records is aborted, the last one too. The numbers of the committed ones.
fn send_transactions(shared: &Shared, input: &str) -> Vec<usize> {
    let producer = shared.kafka.transactions(input);
    let mut committed = Vec::new();
    for transaction in 0..20 {
        let rows = transaction * 10..(transaction + 1) * 10;
        let records: Vec<_> =
            rows.clone().map(|n| Record::new(&format!("k{n}"), shared.higgs.request(n)).at_partition(0)).collect();
        let commits = transaction % 2 == 0;
        producer.send(input, &records, commits);
        committed.extend(rows.filter(|_| commits));
    }
    committed
}

pub(crate) fn aborted_input(shared: &Shared) {
    let (input, output) = shared.topics("aborted", 1);
    let mut worker = Worker::ready(&Toml::new("aborted").text(&shared.kafka.brokers()), "aborted");
    let mut expected = send_transactions(shared, &input);
    assert_eq!(answered(shared, &output, expected.len()), expected);
    // What never comes holds back nothing that comes behind it.
    send(shared, &input, 200..210, 1);
    expected.extend(200..210);
    assert_eq!(answered(shared, &output, expected.len()), expected);
    wait_all_committed(shared, "aborted", &input, 1);
    assert_eq!(worker.terminate(), Some(0));
}

/// An idle worker is at the end, even where the end holds only control records and aborted ones.
pub(crate) fn idle_position(shared: &Shared) {
    let (input, output) = shared.topics("idle", 1);
    let toml = Toml::new("idle").text(&shared.kafka.brokers());
    let mut worker = Worker::ready(&toml, "idle");
    let expected = send_transactions(shared, &input);
    assert_eq!(answered(shared, &output, expected.len()), expected);
    wait_all_committed(shared, "idle", &input, 1);
    // Nothing is skipped by it: what comes next is answered, by this worker and by the next.
    send(shared, &input, 200..201, 1);
    assert_eq!(answered(shared, &output, expected.len() + 1).last(), Some(&200));
    assert_eq!(worker.terminate(), Some(0));
    send(shared, &input, 201..202, 1);
    let mut worker = Worker::ready(&toml, "idle");
    assert_eq!(answered(shared, &output, expected.len() + 2).last(), Some(&201));
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn deleted_records(shared: &Shared) {
    let (input, output) = shared.topics("deleted", 1);
    send(shared, &input, 0..100, 1);
    shared.kafka.commit_as("deleted", &input, &[(0, 10, "")]);
    shared.kafka.delete_records(&input, 0, 30);
    let mut worker = Worker::ready(&Toml::new("deleted").text(&shared.kafka.brokers()), "deleted");
    assert_eq!(answered(shared, &output, 70), (30..100).collect::<Vec<_>>());
    assert_eq!(worker.metric("forebay_records_lost_total"), 20);
    wait_all_committed(shared, "deleted", &input, 1);
    assert_eq!(worker.terminate(), Some(0));
}

pub(crate) fn compacted_input(shared: &Shared) {
    let (input, output) = ("holes-in", "holes-out");
    let settings = [("cleanup.policy", "compact"), ("segment.ms", "500"), ("min.cleanable.dirty.ratio", "0.01")];
    shared.kafka.create_with(&[input], 1, &settings);
    shared.kafka.create(&[output], 1);
    // Of each key the last record stays: keys come again at different distances, so holes are of all lengths.
    let key = |n: usize| format!("k{}", n % 7 * (n % 5));
    let record = |n: usize| Record::new(&key(n), shared.higgs.request(n)).at_partition(0);
    let mut sent = 0;
    let mut send = |count: usize| {
        shared.kafka.send(input, &(sent..sent + count).map(record).collect::<Vec<_>>());
        sent += count;
    };
    send(200);
    shared.kafka.wait_compacted(input, || send(5));
    let mut worker = Worker::ready(&Toml::new("holes").text(&shared.kafka.brokers()), "holes");
    wait_all_committed(shared, "holes", input, 1);
    let replies = answered(shared, output, 0);
    // Compaction may go on while it reads: each record that is there now was there then.
    let there: Vec<usize> = shared.kafka.read(input, 0).iter().map(|record| number(record).unwrap()).collect();
    let missing: Vec<_> = there.iter().filter(|n| replies.binary_search(n).is_err()).collect();
    let doubled = replies.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(missing.is_empty() && doubled == 0, "missing {missing:?}, doubled {doubled}: {replies:?}");
    assert!(replies.len() < sent, "there were no holes");
    assert_eq!(worker.terminate(), Some(0));
}
