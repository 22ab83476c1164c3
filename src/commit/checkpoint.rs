//! What a checkpoint message says: how far the records of one partition are done, and who holds the partition; and back.
//!
//! Where positions cannot be committed with replies by the system itself, as Kafka does, a checkpoint goes out in one
//! atomic batch with the replies that it covers. Its subject is the partition's own, and the batch is refused unless the
//! last message there is the one that its writer knows: so of two that believe to hold a partition, one is refused.
//!
//! ```json
//! {"forebay":1,"source":"FEATURES","created":"2026-11-24T00:00:00Z","subjects":["features.0"],"partition":0,
//!  "next":1042,"done":"fbm1:…","owner":"worker-0","run":"9f…"}
//! ```
//!
//! `next` is the lowest sequence that is not done, `done` the text of an [`OffsetMap`] for what is done above it (empty for
//! nothing). `owner` is the instance that holds the partition, empty when it let go; `run` tells two processes of one
//! instance apart.

use serde::{Deserialize, Serialize};

use super::offset_map::{OffsetMap, Reading};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// How far a partition is done, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The stream or topic that the records come from.
    pub source: String,
    /// When that stream was created: one of the same name that was made anew has other records. Empty for a topic of Kafka.
    pub created: String,
    /// The subjects whose records are meant, sorted: below the position no others were looked at. None for a topic of Kafka.
    pub subjects: Vec<String>,
    /// The partition's number.
    pub partition: i32,
    /// What is done.
    pub map: OffsetMap,
    /// Who holds the partition; `None` when nobody does.
    pub owner: Option<Owner>,
}

/// A process that holds a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The worker's name.
    pub instance: String,
    /// The process's own.
    pub run: String,
}

/// Why a message is no checkpoint that can be gone on from. To go on without it would repeat records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not one of ours, or damaged.
    #[error("not a checkpoint: {0}")]
    Damaged(String),
    /// Of a later forebay.
    #[error("a checkpoint of version {0}, which this worker does not know")]
    UnknownVersion(u32),
    /// It belongs to another partition.
    #[error("a checkpoint of {0}")]
    Foreign(String),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    forebay: u32,
    source: String,
    created: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subjects: Vec<String>,
    partition: i32,
    next: i64,
    #[serde(default)]
    done: String,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    run: String,
}

impl Checkpoint {
    /// The message.
    ///
    /// # Panics
    /// Never: texts and whole numbers always have a form in JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let owner = self.owner.clone().unwrap_or_else(|| Owner { instance: String::new(), run: String::new() });
        let wire = Wire {
            forebay: VERSION,
            source: self.source.clone(),
            created: self.created.clone(),
            subjects: self.subjects.clone(),
            partition: self.partition,
            next: self.map.base(),
            done: self.map.encode(&self.source, self.partition),
            owner: owner.instance,
            run: owner.run,
        };
        serde_json::to_vec(&wire).expect("texts and whole numbers")
    }

    /// Reads the checkpoint of `source`'s `partition`.
    ///
    /// # Errors
    /// [`CheckpointError`] for everything that was not written for it.
    pub fn read(message: &[u8], source: &str, partition: i32) -> Result<Self, CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged(reason);
        // The version first: a later one may look otherwise.
        let json: serde_json::Value = serde_json::from_slice(message).map_err(|error| damaged(error.to_string()))?;
        match json["forebay"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => return Err(CheckpointError::UnknownVersion(u32::try_from(version).unwrap_or(u32::MAX))),
            None => return Err(damaged("no version in it".to_owned())),
        }
        let wire: Wire = serde_json::from_value(json).map_err(|error| damaged(error.to_string()))?;
        if wire.source != source || wire.partition != partition {
            return Err(CheckpointError::Foreign(format!("{}/{}", wire.source, wire.partition)));
        }
        if wire.next < 0 {
            return Err(damaged(format!("next is {}", wire.next)));
        }
        let map = match OffsetMap::read(wire.done.as_bytes(), source, partition, wire.next) {
            Reading::Nothing => OffsetMap::empty(wire.next),
            Reading::Ours(map) => map,
            Reading::UnknownVersion(version) => return Err(CheckpointError::UnknownVersion(version.into())),
            other => return Err(damaged(format!("what is done above {} cannot be read: {other:?}", wire.next))),
        };
        let owner = Some(wire.owner).filter(|owner| !owner.is_empty());
        let owner = owner.map(|instance| Owner { instance, run: wire.run });
        let Wire { source, created, subjects, .. } = wire;
        Ok(Self { source, created, subjects, partition, map, owner })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checkpoint(base: i64, open: Vec<i64>, owner: Option<&str>) -> Checkpoint {
        let end = open.last().map_or(base, |last| last + 5);
        Checkpoint {
            source: "FEATURES".to_owned(),
            created: "2026-11-24T00:00:00Z".to_owned(),
            subjects: vec!["features.3".to_owned()],
            partition: 3,
            map: OffsetMap::new(base, end, open),
            owner: owner.map(|instance| Owner { instance: instance.to_owned(), run: "r1".to_owned() }),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            base in 0_i64..1 << 40,
            gaps in prop::collection::vec(1_i64..300, 0..200),
            owner in prop::option::of("[a-z0-9-]{1,20}"),
        ) {
            let mut at = base;
            let mut open = Vec::new();
            for gap in gaps {
                open.push(at);
                at += gap;
            }
            let written = checkpoint(base, open, owner.as_deref());
            let read = Checkpoint::read(&written.encode(), "FEATURES", 3).unwrap();
            prop_assert!((base..at + 10).all(|offset| read.map.is_done(offset) == written.map.is_done(offset)));
            prop_assert_eq!(read.owner, written.owner);
            prop_assert_eq!((read.created, read.subjects, read.map.base()), (written.created, written.subjects, base));
        }

        #[test]
        fn any_bytes_have_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(Checkpoint::read(&bytes, "FEATURES", 3).is_err());
        }

        #[test]
        fn a_changed_map_is_not_read_as_one(at in 0_usize..200, to in any::<u8>()) {
            let mut message = checkpoint(10, vec![10, 12, 40], Some("w")).encode();
            let start = message.windows(5).position(|text| text == b"fbm1:").unwrap();
            let end = start + message[start..].iter().position(|&byte| byte == b'"').unwrap();
            let at = start + at % (end - start);
            prop_assume!(message[at] != to);
            message[at] = to;
            prop_assert!(Checkpoint::read(&message, "FEATURES", 3).is_err());
        }
    }

    #[test]
    fn what_belongs_elsewhere_is_told_from_what_is_damaged() {
        let message = checkpoint(10, vec![10, 12], Some("w")).encode();
        let error = |message: &[u8], source, number| Checkpoint::read(message, source, number).unwrap_err().to_string();
        assert_eq!(error(&message, "OTHER", 3), "a checkpoint of FEATURES/3");
        assert_eq!(error(&message, "FEATURES", 4), "a checkpoint of FEATURES/3");
        assert_eq!(
            error(br#"{"forebay":2}"#, "FEATURES", 3),
            "a checkpoint of version 2, which this worker does not know"
        );
        assert_eq!(error(br#"{"next":2}"#, "FEATURES", 3), "not a checkpoint: no version in it");
        let text = String::from_utf8(message).unwrap();
        let moved = text.replace("\"next\":10", "\"next\":11");
        assert!(
            error(moved.as_bytes(), "FEATURES", 3).starts_with("not a checkpoint: what is done above 11"),
            "{moved}"
        );
    }
}
