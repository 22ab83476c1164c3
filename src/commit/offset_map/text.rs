//! An offset map in, its text out, and back; the format is drawn in the module above.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use crc::{CRC_32_ISCSI, Crc, Table};

use super::OffsetMap;
use super::size::{Kind, shorter, varint_bytes};

/// What each text of this version begins with.
pub(super) const MAGIC: &str = "fbm1:";
/// Kind, base and CRC. The span has its own length.
pub(super) const OVERHEAD_BYTES: usize = 1 + 8 + CRC_BYTES;

/// The magic without version and colon.
const NAME: &[u8] = b"fbm";
const CRC_BYTES: usize = 4;
/// CRC32C, as iSCSI and Kafka's own record batches have it.
static CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// What the first bytes of a text say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Ours, as [`decode`] reads it.
    Known,
    Unknown(u8),
    /// It has our name and a digit, but not what must follow.
    Damaged,
    Foreign,
}

pub(super) fn version(text: &[u8]) -> Version {
    let Some(rest) = text.strip_prefix(NAME) else {
        return Version::Foreign;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = str::from_utf8(&rest[..digits]).unwrap_or_default();
    match number.parse::<u8>() {
        _ if text.starts_with(MAGIC.as_bytes()) => Version::Known,
        _ if digits == 0 => Version::Foreign,
        Ok(version) if rest.get(digits) == Some(&b':') && version.to_string() == number => Version::Unknown(version),
        _ => Version::Damaged,
    }
}

/// The text of a map of which something is done above the base.
pub(super) fn encode(map: &OffsetMap, topic: &str, partition: i32) -> String {
    let last = map.open.last().map_or(0, |last| last.abs_diff(map.base));
    let (kind, open_bytes) = shorter(distances(map).map(varint_bytes).sum(), last);
    let mut bytes = Vec::with_capacity(OVERHEAD_BYTES + varint_bytes(map.span()) + open_bytes);
    bytes.push(kind as u8);
    bytes.extend(map.base.to_le_bytes());
    put_varint(&mut bytes, map.span());
    match kind {
        Kind::Distances => distances(map).for_each(|distance| put_varint(&mut bytes, distance)),
        Kind::Bitmap => {
            let start = bytes.len();
            bytes.resize(start + open_bytes, 0);
            for offset in &map.open {
                let (byte, bit) = split_bit(offset.abs_diff(map.base));
                bytes[start + byte] |= 1 << bit;
            }
        }
    }
    bytes.extend(crc(topic, partition, &bytes).to_le_bytes());
    let mut text = MAGIC.to_owned();
    STANDARD_NO_PAD.encode_string(&bytes, &mut text);
    text
}

/// The map of a text that begins with [`MAGIC`], or what is wrong with it.
pub(super) fn decode(text: &[u8], topic: &str, partition: i32) -> Result<OffsetMap, String> {
    let bytes = STANDARD_NO_PAD.decode(&text[MAGIC.len()..]).map_err(|error| format!("not base64: {error}"))?;
    let (body, stored) = bytes.split_last_chunk::<CRC_BYTES>().ok_or("cut short")?;
    if crc(topic, partition, body) != u32::from_le_bytes(*stored) {
        return Err(format!("the checksum is not that of a map of {topic} [{partition}]"));
    }
    // Intact from here on. What reads otherwise, or would be written otherwise, came from a broken writer.
    let map = parse(body).ok_or("intact, but not a map")?;
    if map.encode(topic, partition).as_bytes() != text {
        return Err("intact, but not as this version writes it".to_owned());
    }
    Ok(map)
}

fn parse(body: &[u8]) -> Option<OffsetMap> {
    let (kind, rest) = body.split_first()?;
    let (base, mut rest) = rest.split_first_chunk::<8>()?;
    let base = i64::from_le_bytes(*base);
    let span = i64::try_from(take_varint(&mut rest)?).ok()?;
    let end = base.checked_add(span)?;
    let open = match kind {
        0 => parse_distances(rest, base, end)?,
        1 => parse_bitmap(rest, base, end)?,
        _ => return None,
    };
    (base >= 0).then(|| OffsetMap::new(base, end, open))
}

/// Open offsets, rising, all in `base..end`.
fn parse_distances(mut rest: &[u8], base: i64, end: i64) -> Option<Vec<i64>> {
    let ends = rest.iter().filter(|byte| **byte < 0x80).count();
    let mut open = Vec::with_capacity(ends);
    let mut lowest = base;
    while !rest.is_empty() {
        let distance = i64::try_from(take_varint(&mut rest)?).ok()?;
        let offset = lowest.checked_add(distance).filter(|offset| *offset < end)?;
        open.push(offset);
        lowest = offset + 1;
    }
    Some(open)
}

/// Open offsets, rising, all in `base..end`.
fn parse_bitmap(bitmap: &[u8], base: i64, end: i64) -> Option<Vec<i64>> {
    let count: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
    let mut open = Vec::with_capacity(count as usize);
    for (index, byte) in (0_i64..).zip(bitmap) {
        for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
            open.push(base.checked_add(index * 8 + bit).filter(|offset| *offset < end)?);
        }
    }
    Some(open)
}

/// Of each open offset, how many offsets lie between it and the one before, or the base.
fn distances(map: &OffsetMap) -> impl Iterator<Item = u64> {
    let lowest = std::iter::once(map.base).chain(map.open.iter().map(|offset| offset + 1));
    map.open.iter().zip(lowest).map(|(offset, lowest)| offset.abs_diff(lowest))
}

fn crc(topic: &str, partition: i32, body: &[u8]) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(topic.as_bytes());
    digest.update(&[0]);
    digest.update(&partition.to_le_bytes());
    digest.update(body);
    digest.finalize()
}

/// Byte and bit of a bitmap. Only asked of a bitmap that is in memory, so the byte fits.
fn split_bit(distance: u64) -> (usize, u32) {
    let byte = usize::try_from(distance / 8).unwrap_or(usize::MAX);
    (byte, (distance % 8) as u32)
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Takes a LEB128 number off the front; none if it does not end or is past 64 bits.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        let shifted = part << shift;
        if shifted >> shift != part {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
