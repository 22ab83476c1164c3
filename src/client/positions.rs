//! Committed positions with their metadata, as the group keeps them.
#![allow(unsafe_code, reason = "rdkafka's own metadata access panics on text that is not UTF-8, and on none")]

use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

use crate::commit::{OffsetMap, Reading};

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) topic: String,
    pub(crate) number: i32,
    /// `None` when nothing was committed.
    pub(crate) position: Option<i64>,
    metadata: Vec<u8>,
}

impl Committed {
    /// What the metadata says is done above the position.
    pub(crate) fn read(&self, position: i64) -> Reading {
        OffsetMap::read(&self.metadata, &self.topic, self.number, position)
    }
}

/// Takes apart a broker's answer. It may answer as a whole and refuse some partitions: those are in the second list.
pub(crate) fn committed(list: &TopicPartitionList) -> (Vec<Committed>, Vec<KafkaError>) {
    // SAFETY: the list is alive, and so are its `cnt` elements.
    let native = unsafe {
        let native = &*list.ptr();
        if native.elems.is_null() {
            &[]
        } else {
            std::slice::from_raw_parts(native.elems, usize::try_from(native.cnt).unwrap_or(0))
        }
    };
    let mut answered = Vec::with_capacity(native.len());
    let mut refused = Vec::new();
    for (element, native) in list.elements().iter().zip(native) {
        if let Err(error) = element.error() {
            refused.push(error);
            continue;
        }
        let metadata = if native.metadata.is_null() || native.metadata_size == 0 {
            Vec::new()
        } else {
            // SAFETY: the metadata of an element has `metadata_size` bytes, which live with the list.
            unsafe { std::slice::from_raw_parts(native.metadata.cast::<u8>(), native.metadata_size) }.to_vec()
        };
        let position = match element.offset() {
            Offset::Offset(position) => Some(position),
            _ => None,
        };
        answered.push(Committed { topic: element.topic().to_owned(), number: element.partition(), position, metadata });
    }
    (answered, refused)
}

/// Adds a partition's commit to a list for the broker.
pub(crate) fn add_commit(list: &mut TopicPartitionList, topic: &str, number: i32, map: &OffsetMap) -> KafkaResult<()> {
    let mut element = list.add_partition(topic, number);
    element.set_offset(Offset::Offset(map.base()))?;
    let metadata = map.encode(topic, number);
    if !metadata.is_empty() {
        element.set_metadata(metadata);
    }
    Ok(())
}
