//! A body that is no JSON in, its id out, if one can be told for sure: the sender of a broken record should still learn
//! which one it was. `{"features": [NaN], "id": "r7"}` is such a body, and Python's own `json.dumps` writes them.

use serde_json::Deserializer;

use super::json::{Id, Scalar};

/// The value of the only `"id"` that is a key of the outermost object; `None` when there is none, or two.
pub(super) fn id_of_broken(payload: &[u8]) -> Option<Id<'_>> {
    let mut found = None;
    let mut depth = 0_usize;
    let mut last = 0;
    let mut at = 0;
    while let Some(&byte) = payload.get(at) {
        let start = at;
        at = if byte == b'"' { string_end(payload, at) } else { at + 1 };
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' if depth == 1 && matches!(last, b'{' | b',') && &payload[start..at] == b"\"id\"" => {
                let after = payload[at..].trim_ascii_start();
                if let Some(value) = after.strip_prefix(b":") {
                    let id = whole_id(value)?;
                    if found.replace(id).is_some() {
                        return None;
                    }
                }
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            last = byte;
        }
    }
    found
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
        id_of_broken(payload.as_bytes()).map(|id| match id {
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
}
