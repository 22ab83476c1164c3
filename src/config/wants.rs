//! What the JSON Schema wants at one place: whether a value fits, and the words that say what would.

use serde_json::Value as Json;

/// The plain schemas that a schema allows one of.
pub(super) fn alternatives(schema: &Json) -> Vec<&Json> {
    let nested = ["anyOf", "oneOf"].iter().find_map(|word| schema[word].as_array());
    nested.map_or_else(|| vec![schema], |list| list.iter().flat_map(alternatives).collect())
}

/// The alternative of this `type`, if there is one.
pub(super) fn of_type<'s>(schema: &'s Json, kind: &str) -> Option<&'s Json> {
    alternatives(schema).into_iter().find(|schema| schema["type"] == kind)
}

/// The schema of a key in a table.
pub(super) fn of_key<'s>(table: &'s Json, key: &str) -> Option<&'s Json> {
    table["properties"].get(key).or_else(|| table.get("additionalProperties").filter(|schema| schema.is_object()))
}

/// The keys that a table names, with their schemas.
pub(super) fn keys_of(table: &Json) -> impl Iterator<Item = (&str, &Json)> {
    table["properties"].as_object().into_iter().flatten().map(|(key, schema)| (key.as_str(), schema))
}

/// Whether a table must have this key.
pub(super) fn requires(table: &Json, key: &str) -> bool {
    table["required"].as_array().is_some_and(|required| required.iter().any(|name| name == key))
}

/// Whether a value that is neither list nor table fits.
pub(super) fn fits(schema: &Json, value: &toml::Value) -> bool {
    alternatives(schema).into_iter().any(|schema| fits_plain(schema, value))
}

fn fits_plain(schema: &Json, value: &toml::Value) -> bool {
    match (schema["type"].as_str(), value) {
        (Some("string"), toml::Value::String(text)) => schema.get("const").is_none_or(|only| only == text.as_str()),
        (Some("integer"), toml::Value::Integer(number)) => {
            schema["minimum"].as_i64().is_none_or(|min| *number >= min)
                && schema["maximum"].as_i64().is_none_or(|max| *number <= max)
        }
        (Some("number"), toml::Value::Float(_) | toml::Value::Integer(_))
        | (Some("boolean"), toml::Value::Boolean(_)) => true,
        _ => false,
    }
}

/// What would fit, as the end of a sentence: `"auto" or "off"`, `a whole number from 1 to 255`.
pub(super) fn words(schema: &Json) -> String {
    let pieces: Vec<String> = alternatives(schema).into_iter().map(words_plain).collect();
    listed(&pieces, "or")
}

fn words_plain(schema: &Json) -> String {
    if let Some(only) = schema["const"].as_str() {
        return format!("{only:?}");
    }
    if let Some(title) = schema["title"].as_str() {
        let examples: Vec<String> = schema["examples"].as_array().into_iter().flatten().map(Json::to_string).collect();
        return format!("a {title} with its unit, such as {}", listed(&examples, "or"));
    }
    match schema["type"].as_str() {
        Some("string") => "a text in quotes".to_owned(),
        Some("integer") => format!("a whole number{}", bounds(schema)),
        Some("number") => "a number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("array") => match schema["items"]["type"].as_str() {
            Some("integer") => format!("a list of whole numbers{}", bounds(&schema["items"])),
            Some("string") => "a list of texts in quotes".to_owned(),
            _ => "a list of tables".to_owned(),
        },
        _ => "a table".to_owned(),
    }
}

fn bounds(schema: &Json) -> String {
    match (&schema["minimum"], &schema["maximum"]) {
        (Json::Number(min), Json::Number(max)) => format!(" from {min} to {max}"),
        _ => String::new(),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn listed(words: &[String], last: &str) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}
