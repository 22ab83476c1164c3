//! Where a partition ends, and whether it was read to there, from librdkafka's statistics: the only place that tells an
//! offset past the control records at a topic's end, which no record stands for.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

/// A start or a pause throws fetched records away and reads them again. What the statistics say is up to a second old, so
/// nothing counts that they may have seen before.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// The end of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) offset: i64,
}

/// What the statistics say of the partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// The last stable offsets, as of the last fetch.
    pub(super) stable: Vec<End>,
    /// The partitions of which everything up to their end was fetched and passed on.
    pub(super) read: Vec<End>,
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
    #[serde(default = "untold")]
    ls_offset: i64,
    #[serde(default = "untold")]
    hi_offset: i64,
}

const fn untold() -> i64 {
    -1
}

/// Statistics that cannot be read name no partition.
pub(super) fn ends(statistics: &[u8]) -> Ends {
    let mut ends = Ends::default();
    let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return ends };
    for (topic, Topic { partitions }) in statistics.topics {
        for partition in partitions.into_values() {
            let end = |offset| End { topic: topic.clone(), number: partition.number, offset };
            // Negative: not told yet. A broker without transactions knows only the high watermark.
            let stable = [partition.ls_offset, partition.hi_offset].into_iter().find(|offset| *offset >= 0);
            ends.stable.extend(stable.map(end));
            let is_read = partition.fetch_state == "active"
                && partition.fetchq_cnt == 0
                && partition.eof_offset >= 0
                && partition.eof_offset == partition.next_offset;
            ends.read.extend(is_read.then(|| end(partition.eof_offset)));
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(partition: &str) -> Ends {
        let text = format!(r#"{{"name":"c","topics":{{"in":{{"topic":"in","partitions":{{"0":{partition}}}}}}}}}"#);
        ends(text.as_bytes())
    }

    fn end(offset: i64) -> End {
        End { topic: "in".to_owned(), number: 0, offset }
    }

    #[test]
    fn only_what_was_read_to_its_end_and_passed_on_is_idle() {
        let partition = |fetchq: i64, state: &str, next: i64, eof: i64| {
            format!(
                r#"{{"partition":0,"broker":1,"fetchq_cnt":{fetchq},"fetch_state":"{state}","next_offset":{next},"eof_offset":{eof},"hi_offset":9}}"#
            )
        };
        assert_eq!(read(&partition(0, "active", 7, 7)).read, [end(7)]);
        assert_eq!(read(&partition(1, "active", 7, 7)).read, []);
        assert_eq!(read(&partition(0, "active", 5, 7)).read, []);
        assert_eq!(read(&partition(0, "stopped", 7, 7)).read, []);
        assert_eq!(read(&partition(0, "active", -1001, -1001)).read, []);
        assert_eq!(ends(b"{}"), Ends::default());
        assert_eq!(ends(b"not json"), Ends::default());
    }

    #[test]
    fn a_partition_ends_at_its_last_stable_offset_once_that_was_told() {
        let partition = |stable: i64, high: i64| {
            let rest = r#""partition":0,"fetchq_cnt":0,"fetch_state":"active","next_offset":3,"eof_offset":-1001"#;
            format!(r#"{{{rest},"ls_offset":{stable},"hi_offset":{high}}}"#)
        };
        assert_eq!(read(&partition(90, 99)).stable, [end(90)], "an open transaction holds nine");
        assert_eq!(read(&partition(-1001, 99)).stable, [end(99)]);
        assert_eq!(read(&partition(-1001, -1001)).stable, []);
    }
}
