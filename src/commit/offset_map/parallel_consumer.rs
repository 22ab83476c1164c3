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
