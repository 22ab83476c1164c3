//! How far the group's committed positions are behind the ends of their partitions.
//!
//! The committed position is the sink's word, the end librdkafka's, once a second. A partition is known from its assignment
//! until it is let go.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The partitions that are this worker's.
#[derive(Debug, Default)]
pub struct Lags(Mutex<BTreeMap<(String, i32), Place>>);

#[derive(Debug)]
struct Place {
    committed: i64,
    /// When the end was last told: a position of now against an end of then would say too little.
    lag: Option<u64>,
}

/// How far one partition is behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionLag {
    /// Its topic.
    pub topic: String,
    /// Its number in the topic.
    pub partition: i32,
    /// Offsets from the committed position to the last stable one, a second ago at most while records are fetched; `None`
    /// until the broker has told the end.
    pub lag: Option<u64>,
}

impl Lags {
    /// The partition is this worker's, from this position on.
    pub fn assigned(&self, topic: &str, number: i32, committed: i64) {
        self.0.lock().insert((topic.to_owned(), number), Place { committed, lag: None });
    }

    /// Everything below this position is done.
    pub fn committed(&self, topic: &str, number: i32, position: i64) {
        let mut places = self.0.lock();
        // No string is made for the key: there are few partitions, and this runs with every commit.
        let place = places.iter_mut().find(|((name, place), _)| *place == number && name == topic);
        if let Some((_, place)) = place {
            place.committed = position;
        }
    }

    /// The broker's word for where the partition ends. One that is another worker's by now is passed over.
    pub fn ends(&self, topic: &str, number: i32, end: i64) {
        if let Some(place) = self.0.lock().get_mut(&(topic.to_owned(), number)) {
            place.lag = Some(u64::try_from(end - place.committed).unwrap_or(0));
        }
    }

    /// A source that counts for itself says how many records it has not handed out yet.
    pub fn pending(&self, topic: &str, number: i32, records: u64) {
        let mut places = self.0.lock();
        let place = places.iter_mut().find(|((name, place), _)| *place == number && name == topic);
        if let Some((_, place)) = place {
            place.lag = Some(records);
        }
    }

    /// The partition is another worker's.
    pub fn gone(&self, topic: &str, number: i32) {
        self.0.lock().remove(&(topic.to_owned(), number));
    }

    /// All of them, by topic and number.
    #[must_use]
    pub fn all(&self) -> Vec<PartitionLag> {
        let places = self.0.lock();
        let lag = |((topic, partition), place): (&(String, i32), &Place)| PartitionLag {
            topic: topic.clone(),
            partition: *partition,
            lag: place.lag,
        };
        places.iter().map(lag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_lags_from_its_assignment_until_it_is_let_go() {
        let lags = Lags::default();
        lags.ends("in", 0, 99);
        assert_eq!(lags.all(), []);
        lags.assigned("in", 0, 40);
        lags.assigned("in", 1, 7);
        lags.ends("in", 0, 100);
        let of = |lags: &Lags| lags.all().into_iter().map(|one| (one.partition, one.lag)).collect::<Vec<_>>();
        assert_eq!(of(&lags), [(0, Some(60)), (1, None)]);
        lags.committed("in", 0, 90);
        assert_eq!(of(&lags), [(0, Some(60)), (1, None)], "as of the last word on the end");
        lags.ends("in", 0, 130);
        assert_eq!(of(&lags)[0], (0, Some(40)));
        lags.ends("in", 0, 80);
        assert_eq!(of(&lags)[0], (0, Some(0)), "an end from before a seek");
        lags.gone("in", 0);
        lags.committed("in", 0, 130);
        assert_eq!(of(&lags), [(1, None)]);
    }
}
