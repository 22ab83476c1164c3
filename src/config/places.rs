//! Where each key stands in the file, and how its text was written there, so that whatever is found wrong with a value
//! later can still be shown by its line and without what `${…}` put into it.

use std::collections::BTreeMap;

use super::error::Problem;

/// Longer texts are cut in messages.
const SHOWN_CHARS_MAX: usize = 60;

/// The keys of one file, by their dotted path.
pub(super) struct Places {
    line_starts: Vec<usize>,
    keys: BTreeMap<String, Place>,
}

#[derive(Default)]
struct Place {
    line: Option<usize>,
    /// The text before substitution, where that changed it.
    written: Option<String>,
    /// The option that the value came from instead of the file.
    option: Option<&'static str>,
}

impl Places {
    pub(super) fn new(text: &str) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        Self { line_starts: std::iter::once(0).chain(after_newlines).collect(), keys: BTreeMap::new() }
    }

    /// The line, from 1, that holds this byte of the file.
    pub(super) fn line_of_byte(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset)
    }

    /// Notes that a key starts at this byte of the file.
    pub(super) fn found_at(&mut self, key: &str, offset: usize) {
        let line = Some(self.line_of_byte(offset));
        self.keys.entry(key.to_owned()).or_default().line = line;
    }

    /// Notes that substitution changed this text.
    pub(super) fn was_written(&mut self, key: &str, written: &str) {
        self.keys.entry(key.to_owned()).or_default().written = Some(written.to_owned());
    }

    /// Notes that the value came from the command line.
    pub(super) fn set_by_option(&mut self, key: &str, option: &'static str) {
        self.keys.insert(key.to_owned(), Place { option: Some(option), ..Place::default() });
    }

    /// A problem with the value of a key; it stands on the key's line, or for a key that is not there its table's.
    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let option = self.keys.get(key).and_then(|place| place.option);
        let line = if option.is_some() { None } else { self.line(key) };
        Problem { line, key: option.unwrap_or(key).to_owned(), message: message.into() }
    }

    /// A text for a message, in quotes: as the file has it, for what was put in may be a secret.
    pub(super) fn quoted(&self, key: &str, text: &str) -> String {
        quoted(self.keys.get(key).and_then(|place| place.written.as_deref()).unwrap_or(text))
    }

    fn line(&self, key: &str) -> Option<usize> {
        if let Some(place) = self.keys.get(key) {
            return place.line;
        }
        key.rfind(['.', '[']).and_then(|end| self.line(&key[..end]))
    }
}

/// A text in quotes, cut where it is long.
pub(super) fn quoted(text: &str) -> String {
    let end = text.char_indices().nth(SHOWN_CHARS_MAX).map_or(text.len(), |(at, _)| at);
    let more = if end < text.len() { "…" } else { "" };
    format!("{:?}", format!("{}{more}", &text[..end]))
}

/// The dotted path of a key in a table; quoted where TOML needs it.
pub(super) fn join(table: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    let key = if bare { key.to_owned() } else { quoted(key) };
    if table.is_empty() { key } else { format!("{table}.{key}") }
}
