//! Bytes from the fuzzer in, as an offset and its metadata, and as a map: is either read as what it is not?

#![no_main]

mod maps;

use forebay::commit::OffsetMap;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((committed, metadata)) = bytes.split_first_chunk() else { return };
    let committed = i64::from_le_bytes(*committed);
    maps::check(metadata, committed);

    // The same bytes as distances of open offsets, for a fuzzer does not guess a checksum.
    let base = committed & (i64::MAX >> 1);
    let mut end = base;
    let mut open = Vec::new();
    for distance in metadata {
        // Short ones, and some up to 2³⁸.
        end += i64::from(*distance) << if *distance >= 0xf0 { (distance & 15) * 2 } else { 0 };
        open.push(end);
        end += 1;
    }
    maps::check_map(&OffsetMap::new(base, end + (committed & 1), open), base);
});
