//! Durations and sizes: the text of the file in, `Duration` and bytes out, and back. A unit is always written, so that
//! nobody has to guess whether 5 means milliseconds or seconds.

use std::time::Duration;

use bytesize::ByteSize;

const SIZE_UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// "5ms", "20s", "1m30s"; "0" needs no unit.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// "8MiB" (2^20 bytes), "8MB" (10^6 bytes), "512B".
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let has_unit = text.trim_end().ends_with(|last: char| last.is_ascii_alphabetic());
    let size: ByteSize = text.parse().ok()?;
    has_unit.then(|| size.as_u64())
}

/// The text that [`parse_duration`] reads back as the same duration.
pub(super) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// The text that [`parse_bytes`] reads back as the same size.
pub(super) fn bytes_text(bytes: u64) -> String {
    let (count, unit) = in_unit(bytes);
    format!("{count}{unit}")
}

/// A duration for a sentence: `0`, `5 ms`, `60 s`, `5 min`.
pub(super) fn duration_words(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match (ms, s) {
        (0, _) => "0".to_owned(),
        _ if !ms.is_multiple_of(1000) => format!("{ms} ms"),
        _ if s.is_multiple_of(3600) => format!("{} h", s / 3600),
        _ if s.is_multiple_of(60) && s > 60 => format!("{} min", s / 60),
        _ => format!("{s} s"),
    }
}

/// A size for a sentence: `8 MiB`.
pub(super) fn bytes_words(bytes: u64) -> String {
    let (count, unit) = in_unit(bytes);
    format!("{count} {unit}")
}

fn in_unit(bytes: u64) -> (u64, &'static str) {
    let whole = |&&(unit, _): &&(u64, &str)| bytes > 0 && bytes.is_multiple_of(unit);
    SIZE_UNITS.iter().find(whole).map_or((bytes, "B"), |&(unit, name)| (bytes / unit, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_needed() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("0ms"), Some(Duration::ZERO));
        assert_eq!(parse_duration("5"), None);
        assert_eq!(parse_duration("-5ms"), None);
        assert_eq!(parse_duration(""), None);
        assert_eq!(parse_bytes("8MiB"), Some(8 << 20));
        assert_eq!(parse_bytes("8MB"), Some(8_000_000));
        assert_eq!(parse_bytes("512"), None);
        assert_eq!(parse_bytes("MiB"), None);
        assert_eq!(parse_bytes("-1MiB"), None);
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 1 << 20, 3 << 20, (1 << 20) + 1, 1 << 30] {
            assert_eq!(parse_bytes(&bytes_text(bytes)), Some(bytes));
        }
        for us in [0, 1, 999, 1000, 5_000, 61_000_000, 5_400_000_000] {
            let duration = Duration::from_micros(us);
            assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }
    }

    #[test]
    fn words_take_the_largest_whole_unit() {
        let words = [0, 5, 10_000, 60_000, 300_000, 3_600_000].map(|ms| duration_words(Duration::from_millis(ms)));
        assert_eq!(words, ["0", "5 ms", "10 s", "60 s", "5 min", "1 h"]);
        assert_eq!(bytes_words(8 << 20), "8 MiB");
    }
}
