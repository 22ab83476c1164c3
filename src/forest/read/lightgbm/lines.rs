//! Lines of a text and the `key=value` fields in them, as slices of the file.

use std::str::FromStr;

use crate::forest::read::{Place, ReadError};

/// The lines of a text, ended by `\n` or `\r\n`.
pub(super) struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Lines taken.
    count: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, count: 0 }
    }

    /// Where the next line starts.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn peek_line(&self) -> Option<&'a [u8]> {
        self.split().map(|(line, _)| line)
    }

    pub(super) fn next_line(&mut self) -> Option<&'a [u8]> {
        let (line, next) = self.split()?;
        self.at = next;
        self.count += 1;
        Some(line)
    }

    /// An error in the line that was taken last.
    pub(super) fn error(&self, reason: impl Into<String>) -> ReadError {
        ReadError { place: Place::Line(self.count), reason: reason.into() }
    }

    fn split(&self) -> Option<(&'a [u8], usize)> {
        let rest = self.rest();
        if rest.is_empty() {
            return None;
        }
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = &rest[..length.unwrap_or(rest.len())];
        let next = self.at + length.map_or(rest.len(), |length| length + 1);
        Some((line.strip_suffix(b"\r").unwrap_or(line), next))
    }
}

/// The values of some keys.
pub(super) struct Fields<'a, 'k> {
    keys: &'k [&'static str],
    values: Vec<Option<&'a [u8]>>,
}

impl<'a, 'k> Fields<'a, 'k> {
    pub(super) fn new(keys: &'k [&'static str]) -> Self {
        Self { keys, values: vec![None; keys.len()] }
    }

    pub(super) fn clear(&mut self) {
        self.values.fill(None);
    }

    /// Takes a line in. Keys that do not matter are passed over; one that stands twice is refused.
    pub(super) fn add(&mut self, line: &'a [u8], lines: &Lines<'_>) -> Result<(), ReadError> {
        let end = line.iter().position(|&byte| byte == b'=');
        let (key, value) = end.map_or((line, &line[line.len()..]), |end| (&line[..end], &line[end + 1..]));
        if let Some(place) = self.keys.iter().position(|known| known.as_bytes() == key) {
            if self.values[place].is_some() {
                return Err(lines.error(format!("`{}` stands twice", self.keys[place])));
            }
            self.values[place] = Some(value);
        }
        Ok(())
    }

    pub(super) fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        let place = self.keys.iter().position(|known| *known == key)?;
        self.values[place]
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.bytes(key).is_some()
    }

    pub(super) fn text(&self, key: &str, lines: &Lines<'_>) -> Result<&'a str, ReadError> {
        let value = self.bytes(key).ok_or_else(|| lines.error(format!("`{key}` is missing before this line")))?;
        std::str::from_utf8(value).map_err(|_| lines.error(format!("`{key}` is not UTF-8")))
    }

    pub(super) fn number<T: FromStr>(&self, key: &str, lines: &Lines<'_>) -> Result<T, ReadError> {
        let text = self.text(key, lines)?;
        text.trim().parse().map_err(|_| lines.error(format!("`{key}` is {:?}, not a number", clip(text))))
    }

    /// As many numbers as wanted, which the line must be long enough for before they are reserved.
    pub(super) fn numbers<T: FromStr>(
        &self,
        key: &str,
        wanted: usize,
        lines: &Lines<'_>,
        into: &mut Vec<T>,
    ) -> Result<(), ReadError> {
        into.clear();
        let text = self.text(key, lines)?;
        let wrong = |count| lines.error(format!("`{key}` has {count} numbers, expected {wanted}, before this line"));
        let most = text.len().div_ceil(2);
        if wanted > most {
            return Err(wrong(text.split_ascii_whitespace().count()));
        }
        into.reserve_exact(wanted);
        for word in text.split_ascii_whitespace() {
            if into.len() == wanted {
                return Err(wrong(text.split_ascii_whitespace().count()));
            }
            let number = word.parse();
            into.push(number.map_err(|_| lines.error(format!("{:?} in `{key}` is no number there", clip(word))))?);
        }
        if into.len() == wanted { Ok(()) } else { Err(wrong(into.len())) }
    }
}

/// The words between spaces.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A text as messages show it.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}
