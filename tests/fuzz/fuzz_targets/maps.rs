//! A commit's metadata in; a panic out if it is read as a map that is none, or that does not read back.

use forebay::commit::{OffsetMap, Reading};

pub const TOPIC: &str = "features";
pub const PARTITION: i32 = 3;

/// Reads metadata that was committed with an offset. Returns whether it was a map.
pub fn check(metadata: &[u8], committed: i64) -> bool {
    match OffsetMap::read(metadata, TOPIC, PARTITION, committed) {
        Reading::Ours(map) => {
            check_map(&map, committed);
            assert_eq!(map.encode(TOPIC, PARTITION).as_bytes(), metadata);
            true
        }
        Reading::Stale { base, committed: found } => {
            assert!(found == committed && base != committed);
            assert!(matches!(OffsetMap::read(metadata, TOPIC, PARTITION, base), Reading::Ours(_)));
            true
        }
        Reading::ParallelConsumer(map) => {
            check_map(&map, committed);
            true
        }
        Reading::Nothing => {
            assert!(metadata.is_empty());
            false
        }
        Reading::Foreign | Reading::Damaged(_) | Reading::UnknownVersion(_) => false,
    }
}

/// The map keeps its promises, and reads back as it was written.
pub fn check_map(map: &OffsetMap, committed: i64) {
    assert_eq!(map.base(), committed);
    assert_eq!(*map, OffsetMap::new(map.base(), map.end(), map.open().to_vec()));
    let text = map.encode(TOPIC, PARTITION);
    let again = OffsetMap::read(text.as_bytes(), TOPIC, PARTITION, committed);
    let all_open = map.open().len() as i64 == map.end() - map.base();
    assert_eq!(again, if all_open { Reading::Nothing } else { Reading::Ours(map.clone()) });
}
