//! The words of an error reply: clipped, quoted, and with the nearest known name, so that no record can make a long or a
//! slow message.

use std::borrow::Cow;

use crate::record::{ErrorCode, Reject};

/// Most characters of a whole message.
pub(super) const MESSAGE_CHARS_MAX: usize = 300;
/// Most characters of an offending value or name that a message repeats.
const VALUE_CHARS_MAX: usize = 40;
/// Most characters of a name that are compared: the comparison's cost is their product.
const COMPARED_CHARS_MAX: usize = 64;

/// A rejection whose message has its bound.
pub(super) fn reject(code: ErrorCode, message: impl AsRef<str>) -> Reject {
    Reject::new(code, clip(message.as_ref(), MESSAGE_CHARS_MAX))
}

/// A record that cannot be read as a request.
pub(super) fn bad_request(message: impl AsRef<str>) -> Reject {
    reject(ErrorCode::BadRequest, message)
}

/// The text, or its beginning and an ellipsis: `chars_max` characters together.
pub(super) fn clip(text: &str, chars_max: usize) -> Cow<'_, str> {
    // A text is no longer than its bytes: the usual short one is not walked.
    if text.len() <= chars_max || text.char_indices().nth(chars_max).is_none() {
        return Cow::Borrowed(text);
    }
    let end = text.char_indices().nth(chars_max - 1).map_or(text.len(), |(index, _)| index);
    Cow::Owned(format!("{}…", &text[..end]))
}

/// The text in JSON's quotes, clipped.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(&*clip(text, VALUE_CHARS_MAX)).to_string()
}

/// Bytes that should be text, in quotes, clipped.
pub(super) fn quoted_bytes(bytes: &[u8]) -> String {
    // Four bytes a character at most: no need to convert the rest.
    let start = &bytes[..bytes.len().min(4 * (VALUE_CHARS_MAX + 1))];
    quoted(&String::from_utf8_lossy(start))
}

/// The known name that is most like the wanted one; of two equally near, the first in the alphabet.
pub(super) fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|name| (distance(wanted, name), *name))
}

/// The known names, the most alike first.
pub(super) fn nearest_first<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<_> = known.collect();
    names.sort_by_cached_key(|name| (distance(wanted, name), *name));
    names
}

fn distance(wanted: &str, name: &str) -> usize {
    strsim::levenshtein(&clip(wanted, COMPARED_CHARS_MAX), &clip(name, COMPARED_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_by_characters_not_bytes() {
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äöüß", 3), "äö…");
        assert_eq!(quoted(&"x".repeat(900_000)).chars().count(), 42);
        assert_eq!(quoted("a\"b\n"), r#""a\"b\n""#);
        assert_eq!(quoted_bytes(b"\xff1"), "\"\u{fffd}1\"");
        assert_eq!(quoted_bytes(&[b'7'; 900]).chars().count(), 42);
    }

    #[test]
    fn the_nearest_name_does_not_hang_on_the_order() {
        assert_eq!(nearest("agee", ["wage", "age"].into_iter()), Some("age"));
        assert_eq!(nearest("x", ["b", "a"].into_iter()), Some("a"));
        assert_eq!(nearest("x", std::iter::empty()), None);
        assert_eq!(nearest_first("higs", ["fraud", "higgs"].into_iter()), ["higgs", "fraud"]);
    }
}
