//! A body that is no JSON in, its id out, if one can be told for sure: the sender of a broken record should still learn
//! which one it was, in its own protocol. `{"features": [NaN], "id": "r7"}` is such a body, and Python's own `json.dumps`
//! writes them.

use serde_json::Deserializer;

use super::json::Id;
use super::value::Scalar;
use crate::record::Protocol;

/// What can be told of a body.
pub(super) struct Salvaged<'a> {
    /// The value of the only `"id"` that is a key of the outermost object; `None` when there is none, or two.
    pub(super) id: Option<Id<'a>>,
    /// Whose fields the outermost object has.
    pub(super) protocol: Protocol,
}

/// Walks over a body.
pub(super) fn salvage(payload: &[u8]) -> Salvaged<'_> {
    let (mut ids, mut id) = (0, None);
    let (mut features, mut inputs) = (false, false);
    let mut depth = 0_usize;
    let mut last = 0;
    let mut at = 0;
    while let Some(&byte) = payload.get(at) {
        let start = at;
        at = if byte == b'"' { string_end(payload, at) } else { at + 1 };
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' if depth == 1 && matches!(last, b'{' | b',') => {
                let value = payload[at..].trim_ascii_start().strip_prefix(b":");
                match (&payload[start..at], value) {
                    (b"\"id\"", Some(value)) => {
                        ids += 1;
                        id = whole_id(value);
                    }
                    (b"\"features\"", Some(_)) => features = true,
                    (b"\"inputs\"", Some(_)) => inputs = true,
                    _ => {}
                }
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            last = byte;
        }
    }
    let protocol = if inputs && !features { Protocol::OpenInference } else { Protocol::Native };
    Salvaged { id: id.filter(|_| ids == 1), protocol }
}

/// The index after the string that starts at `start`, or the payload's end.
fn string_end(payload: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = payload.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    payload.len()
}

/// The id that a text begins with. What follows must end it: half a number is a wrong one.
fn whole_id(text: &[u8]) -> Option<Id<'_>> {
    let mut values = Deserializer::from_slice(text).into_iter::<Scalar<'_>>();
    let id = Id::from_scalar(values.next()?.ok()?).ok()?;
    let after = text[values.byte_offset()..].trim_ascii_start();
    matches!(after.first(), Some(b',' | b'}')).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salvaged(payload: &str) -> Option<String> {
        salvage(payload.as_bytes()).id.map(|id| match id {
            Id::Text(text) => text.into_owned(),
            Id::Whole(number) => number.to_string(),
            Id::Json(json) => String::from_utf8(json.to_vec()).unwrap(),
        })
    }

    #[test]
    fn finds_the_outermost_id_only() {
        assert_eq!(salvaged(r#"{"features":[NaN],"id":"r7"}"#).as_deref(), Some("r7"));
        assert_eq!(salvaged(r#"{ "id" : -7 , "features":[1,"#).as_deref(), Some("-7"));
        assert_eq!(salvaged(r#"{"a":{"id":1},"b":"\"id\":2","features":[NaN]}"#), None);
        assert_eq!(salvaged(r#"{"model":"id","features":[NaN]}"#), None);
    }

    #[test]
    fn takes_no_half_and_no_doubtful_id() {
        for payload in [
            "",
            "{",
            "\"",
            "{\"id\"",
            "{\"id\":",
            "{\"id\":12",
            "{\"id\":\"r",
            "{\"id\":1.5,",
            "]]{\"id\":[1],",
            "{\"id\":1,\"id\":2,",
            "\"\\",
        ] {
            assert_eq!(salvaged(payload), None, "{payload}");
        }
    }

    #[test]
    fn tells_the_protocol_by_the_outermost_keys() {
        for (payload, wanted) in [
            (r#"{"inputs":[NaN],"id":1}"#, Protocol::OpenInference),
            (r#"{"id":[1], "inputs" : [{"#, Protocol::OpenInference),
            (r#"{"inputs"#, Protocol::Native),
            (r#"{"a":{"inputs":1}}"#, Protocol::Native),
            (r#"{"inputs":[NaN],"features":[1]}"#, Protocol::Native),
            ("inputs", Protocol::Native),
        ] {
            assert_eq!(salvage(payload.as_bytes()).protocol, wanted, "{payload}");
        }
    }
}
