//! The metadata of Confluent's Parallel Consumer in, an offset map out, so that a group can be taken over from it.
//!
//! ```text
//! base64( magic u8 │ data )          padded; numbers are big-endian
//!   'l'  BitSet        n i16 │ bit per offset, lowest bit first, 1 = done │ 0
//!   'o'  BitSetV2      n i32 │ the same
//!   'n'  RunLength     i16 for each run: open, done, open, …
//!   'e'  RunLengthV2   i32, the same
//!   'a' 's' 'J' 'p'    the four above in this order, the data a zstd frame
//! ```
//!
//! The first offset is the committed one. All four, plain and packed, are what its releases 0.1 to 0.5.3 write, the
//! shortest for each commit; `BitSet` has one zero byte at its end (in 0.1 and 0.2 only where `n` is a multiple of 8).
//! There is no checksum and the magic is one byte. So a plain form counts as Parallel Consumer's only when all of it is
//! as its encoder would have written it, and is foreign otherwise; a packed one has the magic of zstd too and is
//! damaged otherwise. What remains: about one in 4,096 texts of 12 base64 characters that somebody else wrote reads as
//! run lengths, and longer ones more seldom.
//!
//! Source: `OffsetEncoding`, `BitSetEncoder`, `RunLengthEncoder`, `EncodedOffsetPair` in confluentinc/parallel-consumer.
//! Its `ByteArray` and `ByteArrayCompressed` are written by tests only and its own reader refuses them, as this one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::OffsetMap;

/// The most that packed data may become: 8 million offsets of a bit set. A commit holds some 3,000 bytes, of which
/// zstd would make 100 MB.
const UNPACKED_BYTES_MAX: usize = 1 << 20;
/// The most open offsets below the last done one. Run lengths could claim 2³¹ in four bytes.
const OPEN_MAX: usize = 1 << 20;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Clone, Copy, Debug)]
enum Form {
    BitSet,
    BitSetV2,
    RunLength,
    RunLengthV2,
    ByteArray,
}

/// The map of Parallel Consumer's metadata, none if it is not surely its own, or why the map can't be read.
pub(super) fn read(metadata: &[u8], committed: i64) -> Result<Option<OffsetMap>, String> {
    let bytes = STANDARD.decode(metadata).unwrap_or_default();
    let Some((magic, data)) = bytes.split_first() else {
        return Ok(None);
    };
    let (form, packed) = match magic {
        b'l' => (Form::BitSet, false),
        b'a' => (Form::BitSet, true),
        b'o' => (Form::BitSetV2, false),
        b's' => (Form::BitSetV2, true),
        b'n' => (Form::RunLength, false),
        b'J' => (Form::RunLength, true),
        b'e' => (Form::RunLengthV2, false),
        b'p' => (Form::RunLengthV2, true),
        0xee => (Form::ByteArray, true),
        _ => return Ok(None),
    };
    if !packed {
        return Ok(parse(form, data, committed));
    }
    if !data.starts_with(&ZSTD_MAGIC) {
        return Ok(None);
    }
    let damaged = |reason: &str| format!("Parallel Consumer's {form:?}, packed, but {reason}");
    let data = zstd::bulk::decompress(data, UNPACKED_BYTES_MAX).map_err(|error| damaged(&error.to_string()))?;
    parse(form, &data, committed).map(Some).ok_or_else(|| damaged("its content is not of that form"))
}

/// The map of unpacked data if all of it is as the encoder would have written it.
fn parse(form: Form, data: &[u8], base: i64) -> Option<OffsetMap> {
    if base < 0 {
        return None;
    }
    match form {
        Form::BitSet => {
            let (n, bits) = data.split_first_chunk()?;
            let n = usize::try_from(i16::from_be_bytes(*n)).ok()?;
            let as_of_0_2 = bits.len() == n / 8 + 1;
            let fits = bits.len() == n.div_ceil(8) + 1 || as_of_0_2;
            fits.then(|| parse_bits(n, bits, base))?
        }
        Form::BitSetV2 => {
            let (n, bits) = data.split_first_chunk()?;
            let n = usize::try_from(i32::from_be_bytes(*n)).ok()?;
            let fits = bits.len() == n.div_ceil(8) + 1;
            fits.then(|| parse_bits(n, bits, base))?
        }
        Form::RunLength => {
            let (runs, []) = data.as_chunks() else { return None };
            parse_runs(runs.iter().map(|run| i16::from_be_bytes(*run).into()), base)
        }
        Form::RunLengthV2 => {
            let (runs, []) = data.as_chunks() else { return None };
            parse_runs(runs.iter().map(|run| i32::from_be_bytes(*run)), base)
        }
        Form::ByteArray => None,
    }
}

/// `bits` has room for `n`, and those past it must be 0.
fn parse_bits(n: usize, bits: &[u8], base: i64) -> Option<OffsetMap> {
    let is_done = |index: usize| bits[index / 8] >> (index % 8) & 1 == 1;
    let last_done = bits.iter().rposition(|byte| *byte != 0).map(|byte| byte * 8 + bits[byte].ilog2() as usize);
    let Some(last_done) = last_done else {
        return Some(OffsetMap::empty(base));
    };
    let done: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
    if last_done >= n || last_done + 1 - done as usize > OPEN_MAX {
        return None;
    }
    let end = base.checked_add(i64::try_from(last_done).ok()?)?.checked_add(1)?;
    let open = (base..end).zip(0..).filter(|(_, index)| !is_done(*index)).map(|(offset, _)| offset).collect();
    Some(OffsetMap::new(base, end, open))
}

/// Runs of open and done offsets in turn. Only the first may be empty.
fn parse_runs(runs: impl Iterator<Item = i32>, base: i64) -> Option<OffsetMap> {
    let mut open = Vec::new();
    // Past the last run, and past the last done one.
    let (mut at, mut end) = (base, base);
    let mut count = 0;
    for run in runs {
        if run < 0 || run == 0 && count > 0 {
            return None;
        }
        let from = at;
        at = at.checked_add(run.into())?;
        if count % 2 == 1 {
            open_below(&mut open, end, from)?;
            end = at;
        }
        count += 1;
    }
    (count > 0).then(|| OffsetMap::new(base, end, open))
}

fn open_below(open: &mut Vec<i64>, from: i64, to: i64) -> Option<()> {
    let count = usize::try_from(to - from).ok()?;
    if open.len() + count > OPEN_MAX {
        return None;
    }
    open.extend(from..to);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Reading;

    /// See the README beside them.
    const VECTORS: &str = include_str!("../../../tests/data/offset_maps/parallel_consumer.tsv");
    const STREAMS: &str = include_str!("../../../tests/data/offset_maps/kafka_streams.txt");

    fn read(metadata: &str, committed: i64) -> Reading {
        OffsetMap::read(metadata.as_bytes(), "features", 3, committed)
    }

    /// Base64 of a magic and data.
    fn text(magic: u8, data: &[u8]) -> String {
        STANDARD.encode([&[magic], data].concat())
    }

    fn packed(magic: u8, data: &[u8]) -> String {
        text(magic, &zstd::bulk::compress(data, 3).expect("memory"))
    }

    /// `0,13-22` from `base`.
    fn open_offsets(base: i64, ranges: &str) -> Vec<i64> {
        let number = |text: &str| text.parse::<i64>().expect("a number");
        let ranges = ranges.split(',').filter(|range| !range.is_empty());
        ranges
            .flat_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                base + number(first)..=base + number(last)
            })
            .collect()
    }

    #[test]
    fn reads_what_its_own_encoders_wrote() {
        let mut encodings = std::collections::BTreeSet::new();
        for line in VECTORS.lines() {
            let [release, case, encoding, base, end, open, metadata] =
                line.split('\t').collect::<Vec<_>>().try_into().expect("seven columns");
            let (base, mut end): (i64, i64) = (base.parse().expect("base"), end.parse().expect("end"));
            let mut open = open_offsets(base, open);
            // What is open at the end says nothing, and is left off.
            while open.pop_if(|last| *last == end - 1).is_some() {
                end -= 1;
            }
            let wanted = Reading::ParallelConsumer(OffsetMap::new(base, end, open));
            assert_eq!(read(metadata, base), wanted, "{release} {case} {encoding}");
            encodings.insert(encoding);
        }
        assert_eq!(encodings.len(), 8, "{encodings:?}");
    }

    #[test]
    fn kafka_streams_is_foreign() {
        assert!(STREAMS.lines().count() > 0);
        for metadata in STREAMS.lines().chain(["AQAAAYvP5WgA"]) {
            assert_eq!(read(metadata, 7), Reading::Foreign, "{metadata}");
        }
    }

    #[test]
    fn plain_data_that_its_encoder_would_not_write_is_foreign() {
        let cases: [(u8, &[u8]); 17] = [
            (b'l', &[]),
            (b'l', &[0]),
            (b'l', &[0, 9, 0xff]),
            (b'l', &[0, 9, 0xff, 1, 0, 0]),
            // A bit past the last offset, a length below 0.
            (b'l', &[0, 9, 0xff, 2, 0]),
            (b'l', &[0xff, 0xf8, 0]),
            (b'o', &[0, 0, 0, 9, 0xff, 1]),
            (b'o', &[0, 0, 0, 9, 0xff, 1, 0, 0]),
            (b'o', &[0xff, 0xff, 0xff, 0xff, 0]),
            (b'n', &[]),
            (b'n', &[0, 1, 0]),
            (b'n', &[0, 1, 0, 0]),
            (b'n', &[0, 1, 0xff, 0xff]),
            (b'e', &[0, 0, 0, 1, 0, 0]),
            // 2³¹ - 1 open offsets.
            (b'e', &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1]),
            (b'L', &[1, 0]),
            (b'a', &[0, 9, 0xff, 1, 0]),
        ];
        for (magic, data) in cases {
            assert_eq!(read(&text(magic, data), 7), Reading::Foreign, "{} {data:?}", char::from(magic));
        }
        // Without its padding; with more after it.
        for metadata in ["bAACAg", "bAACAg==\n", "bAACAg==bAACAg=="] {
            assert_eq!(read(metadata, 7), Reading::Foreign);
        }
    }

    #[test]
    fn packed_data_that_can_not_be_read_is_damaged() {
        let bits = vec![0xaa_u8; 4_000];
        let good = [&32_000_i32.to_be_bytes()[..], &bits, &[0]].concat();
        assert!(matches!(read(&packed(b's', &good), 7), Reading::ParallelConsumer(_)));
        let mut cut = STANDARD.decode(packed(b's', &good)).expect("base64");
        cut.pop();
        let cases = [
            (packed(b's', &good[1..]), "BitSetV2, packed, but its content is not of that form"),
            (packed(b'a', &good), "BitSet, packed, but its content is not of that form"),
            (packed(0xee, &[0, 1, 0]), "ByteArray, packed, but its content is not of that form"),
            (packed(b's', &vec![0; UNPACKED_BYTES_MAX + 1]), "BitSetV2, packed, but Destination buffer is too small"),
            (STANDARD.encode(cut), "BitSetV2, packed, but Src size is incorrect"),
        ];
        for (metadata, wanted) in cases {
            let Reading::Damaged(reason) = read(&metadata, 7) else { panic!("{wanted}: not refused") };
            assert!(reason.contains(wanted), "{reason}");
        }
    }

    #[test]
    fn offsets_stay_within_i64() {
        let two = text(b'n', &[0, 1, 0, 1]);
        assert_eq!(read(&two, i64::MAX - 1), Reading::Foreign);
        let map = OffsetMap::new(i64::MAX - 2, i64::MAX, vec![i64::MAX - 2]);
        assert_eq!(read(&two, i64::MAX - 2), Reading::ParallelConsumer(map));
        for committed in [-1, i64::MIN] {
            assert_eq!(read(&two, committed), Reading::Foreign);
        }
    }

    #[test]
    fn too_many_open_offsets_are_refused() {
        let runs = |open: usize| {
            let open = i32::try_from(open).expect("few enough");
            text(b'e', &[open.to_be_bytes(), 1_i32.to_be_bytes()].concat())
        };
        assert!(matches!(read(&runs(OPEN_MAX), 0), Reading::ParallelConsumer(map) if map.open().len() == OPEN_MAX));
        assert_eq!(read(&runs(OPEN_MAX + 1), 0), Reading::Foreign);
    }
}
