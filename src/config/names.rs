//! An unknown key in, the sentence that helps out: the nearest key at that place, the place where the key belongs, or
//! else the keys that are known there. All of them come from the JSON Schema.

use serde_json::Value as Json;

use super::wants::{keys_of, listed, of_type};

/// What to say about a key that `table` does not have.
pub(super) fn unknown_key(key: &str, table: &Json, root: &Json) -> String {
    let known: Vec<&str> = keys_of(table).map(|(name, _)| name).collect();
    let near = nearest(key, &known);
    let homes = homes(key, root, "");
    let mut parts = vec!["unknown key".to_owned()];
    parts.extend(near.map(|name| format!("did you mean {name}?")));
    if !homes.is_empty() {
        parts.push(format!("{key} belongs {}", listed(&homes, "or")));
    }
    if parts.len() == 1 {
        parts.push(format!("known here: {}", known.join(", ")));
    }
    parts.join("; ")
}

/// A table's name as the file writes it: `[kafka]`, `[[route]]`, `[model.batch]`.
pub(super) fn table_header(table: &str) -> String {
    let is_list = table.ends_with(']');
    let name: String = table.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
    if is_list { format!("[[{name}]]") } else { format!("[{name}]") }
}

fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let key = key.to_lowercase().replace('-', "_");
    // Two of five characters may differ; or one name is the other with its unit or bound left off.
    let is_near = |name: &str, edits: usize| {
        let is_part = key.len() >= 4 && (name.contains(&key) || key.contains(name));
        is_part || edits * 5 <= 2 * name.len().max(key.len())
    };
    let edits = known.iter().map(|&name| (strsim::damerau_levenshtein(&key, name), name));
    edits.filter(|&(edits, name)| is_near(name, edits)).min_by_key(|&(edits, _)| edits).map(|(_, name)| name)
}

/// All the places that have a key of this name.
fn homes(key: &str, table: &Json, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (name, schema) in keys_of(table) {
        let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let list = of_type(schema, "array").map(|list| &list["items"]).filter(|items| items["type"] == "object");
        if name == key {
            found.push(match (path, list) {
                ("", None) => "at the top, before the first table".to_owned(),
                ("", Some(_)) => format!("at the top, as [[{name}]]"),
                (path, _) => format!("in {}", table_header(path)),
            });
        }
        match list {
            Some(items) => found.extend(homes(key, items, &format!("{inner}[]"))),
            None => found.extend(homes(key, schema, &inner)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name() {
        let known = ["batch_size_max", "queue_delay_max", "timeout", "num_threads"];
        assert_eq!(nearest("batch_size", &known), Some("batch_size_max"));
        assert_eq!(nearest("queue-delay-max", &known), Some("queue_delay_max"));
        assert_eq!(nearest("tiemout", &known), Some("timeout"));
        assert_eq!(nearest("threads", &known), Some("num_threads"));
        assert_eq!(nearest("colour", &known), None);
    }

    #[test]
    fn headers() {
        let headers = ["kafka", "route[0]", "model[12].batch"].map(table_header);
        assert_eq!(headers, ["[kafka]", "[[route]]", "[model.batch]"]);
    }
}
