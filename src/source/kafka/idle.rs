//! Where a partition was read to its end, from librdkafka's statistics: the only place that tells an offset past the
//! control records at a topic's end, which no record stands for.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

/// A start or a pause throws fetched records away and reads them again. What the statistics say is up to a second old, so
/// nothing counts that they may have seen before.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// The end of a partition that was read up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) offset: i64,
}

#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    topics: HashMap<String, Topic>,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: HashMap<String, Partition>,
}

/// librdkafka's names: STATISTICS.md.
#[derive(Deserialize)]
struct Partition {
    #[serde(rename = "partition")]
    number: i32,
    /// Records fetched and not passed on.
    fetchq_cnt: i64,
    fetch_state: String,
    next_offset: i64,
    eof_offset: i64,
}

/// The partitions of which everything up to their end was fetched and passed on. Statistics that cannot be read name
/// none.
pub(super) fn ends(statistics: &[u8]) -> Vec<End> {
    let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return Vec::new() };
    let partitions = statistics.topics.into_iter().flat_map(|(topic, Topic { partitions })| {
        partitions.into_values().map(move |partition| (topic.clone(), partition))
    });
    let at_end = partitions.filter(|(_, partition)| {
        partition.fetch_state == "active"
            && partition.fetchq_cnt == 0
            && partition.eof_offset >= 0
            && partition.eof_offset == partition.next_offset
    });
    let end =
        |(topic, partition): (String, Partition)| End { topic, number: partition.number, offset: partition.eof_offset };
    at_end.map(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_read_to_its_end_and_passed_on_is_idle() {
        let partition = |fetchq: i64, state: &str, next: i64, eof: i64| {
            format!(
                r#"{{"partition":0,"broker":1,"fetchq_cnt":{fetchq},"fetch_state":"{state}","next_offset":{next},"eof_offset":{eof},"hi_offset":9}}"#
            )
        };
        let read = |partition: String| {
            let text = format!(r#"{{"name":"c","topics":{{"in":{{"topic":"in","partitions":{{"0":{partition}}}}}}}}}"#);
            ends(text.as_bytes())
        };
        let end = End { topic: "in".to_owned(), number: 0, offset: 7 };
        assert_eq!(read(partition(0, "active", 7, 7)), [end]);
        assert_eq!(read(partition(1, "active", 7, 7)), []);
        assert_eq!(read(partition(0, "active", 5, 7)), []);
        assert_eq!(read(partition(0, "stopped", 7, 7)), []);
        assert_eq!(read(partition(0, "active", -1001, -1001)), []);
        assert_eq!(ends(b"{}"), []);
        assert_eq!(ends(b"not json"), []);
    }
}
