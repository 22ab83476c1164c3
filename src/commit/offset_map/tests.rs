//! Maps against the naive set; every bit flipped; the figures that the docs state.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const TOPIC: &str = "features";
const PARTITION: i32 = 3;

fn encode(map: &OffsetMap) -> String {
    map.encode(TOPIC, PARTITION)
}

fn read(text: impl AsRef<[u8]>, committed: i64) -> Reading {
    OffsetMap::read(text.as_ref(), TOPIC, PARTITION, committed)
}

/// The length of a map's text as the tracker asks for it.
fn chars(map: &OffsetMap) -> usize {
    let mut size = MapSize::new();
    map.open().iter().for_each(|offset| size.open(*offset));
    size.chars(map.end())
}

/// The map after one more offset is done; its base moves up as a committed offset does.
fn close(map: &OffsetMap, index: usize) -> OffsetMap {
    let mut open = map.open.clone();
    open.remove(index);
    OffsetMap::new(open.first().copied().unwrap_or(map.end), map.end, open)
}

/// Maps whose base is their first open offset, with something done above it.
fn committed_maps() -> impl Strategy<Value = OffsetMap> {
    let distances = prop_oneof![
        prop::collection::vec(0..4_i64, 0..600),
        prop::collection::vec(0..300_i64, 0..200),
        prop::collection::vec(prop_oneof![3 => 0..3_i64, 1 => 100..20_000_i64], 0..200),
        prop::collection::vec(prop_oneof![Just(127_i64), Just(128), Just(16_383), Just(16_384), 0..1_i64 << 40], 0..40),
    ];
    (0..1_i64 << 50, distances, 1..1_000_i64).prop_map(|(base, distances, above)| {
        let mut open = vec![base];
        for distance in distances {
            open.push(open.last().expect("one at least") + 1 + distance);
        }
        OffsetMap::new(base, open.last().expect("one at least") + 1 + above, open)
    })
}

/// Any map: its base may be done, and its last offsets open.
fn maps() -> impl Strategy<Value = OffsetMap> {
    (committed_maps(), 0..200_i64, any::<bool>()).prop_map(|(map, below, ends_open)| {
        let base = (map.base - below).max(0);
        let end = if ends_open { map.open.last().expect("one at least") + 1 } else { map.end };
        OffsetMap::new(base, end, map.open)
    })
}

proptest! {
    #[test]
    fn reads_back_what_it_wrote(map in maps()) {
        let all_open = map.open.len() as u64 == map.span();
        let wanted = if all_open { Reading::Nothing } else { Reading::Ours(map.clone()) };
        prop_assert_eq!(read(encode(&map), map.base), wanted);
    }

    #[test]
    fn knows_what_the_naive_set_knows(base in 0..1_000_i64, done in prop::collection::btree_set(0..400_i64, 1..200)) {
        let done: BTreeSet<i64> = done.iter().map(|offset| base + offset).collect();
        let end = done.last().expect("one at least") + 1;
        let map = OffsetMap::new(base, end, (base..end).filter(|offset| !done.contains(offset)).collect());
        let Reading::Ours(map) = read(encode(&map), base) else { panic!("not read") };
        for offset in 0..base + 500 {
            prop_assert_eq!(map.is_done(offset), offset < base || done.contains(&offset), "{}", offset);
        }
    }

    #[test]
    fn size_is_exact(map in committed_maps()) {
        prop_assert_eq!(chars(&map), encode(&map).len());
    }

    #[test]
    fn size_never_falls_upwards(map in committed_maps(), above in 0..1_i64 << 40) {
        let mut size = MapSize::new();
        let mut chars = 0;
        for (index, offset) in map.open().iter().enumerate() {
            size.open(*offset);
            let next = map.open().get(index + 1).copied().unwrap_or(map.end());
            for end in [offset + 1, next.min(offset + 2), next] {
                prop_assert!(size.chars(end) >= chars);
                chars = size.chars(end);
            }
        }
        prop_assert!(size.chars(map.end() + above) >= chars);
    }

    #[test]
    fn closing_an_offset_never_lengthens(map in committed_maps()) {
        let before = encode(&map).len();
        for index in 0..map.open.len() {
            let closed = close(&map, index);
            prop_assert!(encode(&closed).len() <= before, "{:?}", closed);
            // Nor where the base stays behind.
            let closed = OffsetMap::new(map.base, map.end, closed.open);
            prop_assert!(encode(&closed).len() <= before, "{:?}", closed);
        }
    }

    #[test]
    fn any_change_is_found(map in committed_maps(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut text = encode(&map).into_bytes();
        let at = at.index(text.len());
        prop_assume!(text[at] != with);
        text[at] = with;
        let reading = read(&text, map.base);
        prop_assert!(is_refused(&reading), "{:?}", reading);
    }

    #[test]
    fn any_bytes_have_a_reading(bytes in prop::collection::vec(any::<u8>(), 0..200), committed: i64) {
        for text in [bytes.clone(), [b"fbm1:", &bytes[..]].concat()] {
            let ours = matches!(read(&text, committed), Reading::Ours(_) | Reading::Stale { .. });
            prop_assert!(!ours, "{:?}", text);
        }
    }
}

fn is_refused(reading: &Reading) -> bool {
    matches!(reading, Reading::Damaged(_) | Reading::Foreign | Reading::UnknownVersion(_))
}

#[test]
fn every_flipped_bit_is_found() {
    let scattered = OffsetMap::new(40, 9_000, (0..60).map(|index| 40 + index * index).collect());
    let dense = OffsetMap::new(40, 500, (40..490).step_by(2).collect());
    let none_open = OffsetMap::new(40, 41, Vec::new());
    let huge = OffsetMap::new(0, i64::MAX, vec![0, 1, i64::MAX - 1]);
    for map in [scattered, dense, none_open, huge] {
        let text = encode(&map).into_bytes();
        assert_eq!(read(&text, map.base), Reading::Ours(map.clone()));
        for bit in 0..text.len() * 8 {
            let mut text = text.clone();
            text[bit / 8] ^= 1 << (bit % 8);
            let reading = read(&text, map.base);
            assert!(is_refused(&reading), "bit {bit}: {reading:?}");
        }
        for end in 1..text.len() {
            let reading = read(&text[..end], map.base);
            assert!(is_refused(&reading), "cut to {end}: {reading:?}");
        }
    }
}

#[test]
fn says_nothing_when_nothing_is_done_above_the_base() {
    assert_eq!(encode(&OffsetMap::empty(7)), "");
    assert_eq!(encode(&OffsetMap::new(7, 9, vec![7, 8])), "");
    assert_eq!(read("", 7), Reading::Nothing);
}

#[test]
fn an_end_without_open_offsets_survives() {
    let map = OffsetMap::new(7, 9, Vec::new());
    assert_eq!(read(encode(&map), 7), Reading::Ours(map.clone()));
    assert!(map.is_done(6) && map.is_done(7) && map.is_done(8) && !map.is_done(9));
}

#[test]
fn a_map_of_another_offset_is_stale() {
    let text = encode(&OffsetMap::new(7, 9, vec![7]));
    assert_eq!(read(text, 8), Reading::Stale { base: 7, committed: 8 });
}

#[test]
fn a_map_of_another_partition_or_topic_is_damaged() {
    let map = OffsetMap::new(7, 9, vec![7]);
    for text in [map.encode(TOPIC, PARTITION + 1), map.encode("feature", PARTITION), map.encode("", PARTITION)] {
        let Reading::Damaged(reason) = read(text, 7) else { panic!("not refused") };
        assert_eq!(reason, "the checksum is not that of a map of features [3]");
    }
}

/// The whole text, so that no change of the format goes unnoticed: what is stored must be read for ever.
#[test]
fn the_text_is_this() {
    let distances = OffsetMap::new(1_000, 2_000, vec![1_000, 1_001, 1_500]);
    let bitmap = OffsetMap::new(1_000, 1_020, (1_000..1_019).step_by(3).collect());
    assert_eq!(encode(&distances), "fbm1:AOgDAAAAAAAA6AcAAPID+5ZuvA");
    assert_eq!(encode(&bitmap), "fbm1:AegDAAAAAAAAFEmSBJMUdRg");
}

#[test]
fn another_version_is_told_from_damage() {
    for (text, wanted) in [
        ("fbm2:", Some(2)),
        ("fbm0:AAAA", Some(0)),
        ("fbm255:AAAA", Some(255)),
        ("fbm256:AAAA", None),
        ("fbm01:AAAA", None),
        ("fbm1", None),
        ("fbm1;AAAA", None),
        ("fbm1:", None),
        ("fbm1:AAA=", None),
    ] {
        match (read(text, 7), wanted) {
            (Reading::UnknownVersion(version), Some(wanted)) => assert_eq!(version, wanted, "{text}"),
            (Reading::Damaged(_), None) => {}
            (reading, _) => panic!("{text}: {reading:?}"),
        }
    }
}

#[test]
fn foreign_text_is_foreign() {
    for text in ["fbm", "fbm:1", "Fbm1:AAAA", "consumer-7", "{\"host\":\"a\"}", "1700000000000", "\u{fc}", " "] {
        assert_eq!(read(text, 7), Reading::Foreign, "{text}");
    }
    assert_eq!(read([0xff, 0xfe], 7), Reading::Foreign);
}

/// The figures in the module's docs.
#[test]
fn what_fits_into_the_limit() {
    let spread = |count: i64, distance: i64| {
        let open: Vec<i64> = (0..count).map(|index| index * distance).collect();
        OffsetMap::new(0, open.last().expect("one at least") + 2, open)
    };
    assert!(chars(&spread(3_052, 128)) <= LIMIT && chars(&spread(3_053, 128)) > LIMIT);
    // The span takes a byte more.
    assert!(chars(&spread(1_526, 16_384)) <= LIMIT && chars(&spread(1_527, 16_384)) > LIMIT);
    assert!(chars(&spread(12_208, 2)) <= LIMIT && chars(&spread(12_209, 2)) > LIMIT);
    let within = |last: i64| OffsetMap::new(0, last + 2, (0..last - 1).chain([last]).collect());
    assert!(chars(&within(24_415)) <= LIMIT && chars(&within(24_416)) > LIMIT);
}

#[test]
#[should_panic(expected = "do not rise")]
fn open_offsets_rise() {
    let _ = OffsetMap::new(0, 9, vec![3, 3]);
}

#[test]
#[should_panic(expected = "outside of 4..9")]
fn open_offsets_are_within() {
    let _ = OffsetMap::new(4, 9, vec![3]);
}

#[test]
fn retention_takes_open_records_first_and_counts_them() {
    let map = OffsetMap::new(10, 20, vec![10, 13, 18]);
    assert_eq!(map.raised_to(5), (map.clone(), 0, 0));
    assert_eq!(map.raised_to(10), (map.clone(), 0, 0));
    assert_eq!(map.raised_to(12), (OffsetMap::new(13, 20, vec![13, 18]), 1, 0));
    assert_eq!(map.raised_to(19), (OffsetMap::empty(20), 3, 0));
    assert_eq!(map.raised_to(25), (OffsetMap::empty(25), 3, 5));
    assert_eq!(OffsetMap::empty(10).raised_to(12), (OffsetMap::empty(12), 0, 2));
}
