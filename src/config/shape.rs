//! Spanned TOML in, `raw` out, with every string substituted. The file is held against the JSON Schema: unknown and
//! missing keys, wrong kinds, numbers out of bounds. What is refused is said once and left out of `raw`, so that what
//! remains can still be checked and all problems are reported together.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::Input;
use super::error::Problem;
use super::names::{table_header, unknown_key};
use super::places::{Places, join, quoted};
use super::raw::{RawConfig, schema};
use super::substitute::substitute;
use super::wants::{fits, keys_of, of_key, of_type, requires, words};

/// A file whose keys and kinds are right, save for the problems.
pub(super) struct Shaped {
    pub(super) raw: RawConfig,
    pub(super) places: Places,
    pub(super) problems: Vec<Problem>,
}

/// Parses, substitutes, and holds the file against the schema.
///
/// # Errors
/// The text is not TOML; then nothing else can be said about it.
pub(super) fn shape(input: &Input<'_>) -> Result<Shaped, Vec<Problem>> {
    let places = Places::new(input.text);
    // Only the first fault of the syntax: a parser that goes on after one reports what is none.
    let document = DeTable::parse(input.text).map_err(|error| vec![syntax_problem(&error, &places)])?;
    let root = schema().to_value();
    let mut walk = Walk { input, root: &root, places, problems: Vec::new() };
    let table = walk.table("", document.get_ref(), &root);
    let Walk { places, mut problems, .. } = walk;
    match RawConfig::deserialize(toml::Value::Table(table)) {
        Ok(raw) => Ok(Shaped { raw, places, problems }),
        // The walk lets nothing through that does not fit; should the two ever part, say so rather than guess.
        Err(error) => {
            let message = format!("does not fit the schema: {}", error.message());
            problems.push(Problem { line: None, key: String::new(), message });
            Err(problems)
        }
    }
}

fn syntax_problem(error: &toml::de::Error, places: &Places) -> Problem {
    let line = error.span().map(|span| places.line_of_byte(span.start));
    Problem { line, key: String::new(), message: format!("not valid TOML: {}", error.message()) }
}

struct Walk<'a> {
    input: &'a Input<'a>,
    root: &'a Json,
    places: Places,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(self.places.problem(key, message));
    }

    fn table(&mut self, at: &str, table: &DeTable<'_>, schema: &Json) -> toml::Table {
        let mut clean = toml::Table::new();
        for (name, value) in table {
            let key = join(at, name.get_ref());
            self.places.found_at(&key, name.span().start);
            if self.option_for(&key).is_some() {
                continue;
            }
            if let Some(schema) = of_key(schema, name.get_ref()) {
                let value = self.value(&key, value, schema);
                clean.extend(value.map(|value| (name.get_ref().to_string(), value)));
            } else {
                self.refuse(&key, unknown_key(name.get_ref(), schema, self.root));
            }
        }
        for (name, inner) in keys_of(schema) {
            let key = join(at, name);
            let is_absent = !table.iter().any(|(there, _)| there.get_ref() == name);
            if let Some((option, text)) = self.option_for(&key) {
                self.places.set_by_option(&key, option);
                clean.insert(name.to_owned(), text.into());
            } else if is_absent {
                let value = self.absent(at, name, inner, requires(schema, name));
                clean.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        clean
    }

    /// The command line's value for a key, which goes before the file's.
    fn option_for(&self, key: &str) -> Option<(&'static str, String)> {
        let instance = self.input.overrides.instance.as_ref()?;
        (key == "instance").then(|| ("--instance", instance.clone()))
    }

    /// A key that the file does not have: needed, or with a default that takes substitution, or left to `raw`.
    fn absent(&mut self, at: &str, name: &str, schema: &Json, is_required: bool) -> Option<toml::Value> {
        let key = join(at, name);
        if let Some(default) = schema["default"].as_str().filter(|text| text.contains("${")) {
            return self.text(&key, default).map(toml::Value::String);
        }
        if !is_required {
            return None;
        }
        let line = match schema["type"].as_str() {
            Some("object") => {
                return Some(toml::Value::Table(self.table(&key, &DeTable::new(), schema)));
            }
            Some("array") if schema["items"]["type"] == "object" => {
                self.refuse(&key, format!("is missing; add a [[{name}]] table"));
                return None;
            }
            Some("array") => format!("{name} = [\"…\"]"),
            _ => format!("{name} = \"…\""),
        };
        self.refuse(&key, format!("is missing; add {line} under {}", table_header(at)));
        None
    }

    fn value(&mut self, key: &str, value: &Spanned<DeValue<'_>>, schema: &Json) -> Option<toml::Value> {
        match value.get_ref() {
            DeValue::Table(table) => {
                if let Some(schema) = of_type(schema, "object") {
                    return Some(toml::Value::Table(self.table(key, table, schema)));
                }
                self.refuse(key, instead_of_table(key, table, schema));
                None
            }
            DeValue::Array(list) => {
                if let Some(schema) = of_type(schema, "array") {
                    return self.list(key, list, schema);
                }
                let is_section = schema["type"] == "object" && list.iter().all(|item| item.get_ref().is_table());
                self.refuse(
                    key,
                    if is_section {
                        format!("got a list of tables; write {} with single brackets", table_header(key))
                    } else {
                        format!("got a list, wants {}", words(schema))
                    },
                );
                None
            }
            scalar => self.scalar(key, scalar, schema),
        }
    }

    fn list(&mut self, key: &str, list: &DeArray<'_>, schema: &Json) -> Option<toml::Value> {
        let items_wanted = &schema["items"];
        if list.is_empty() && schema["minItems"].as_u64().is_some_and(|min| min > 0) {
            self.refuse(key, format!("got an empty list, wants {} with at least one", words(schema)));
            return None;
        }
        let mut clean = Vec::with_capacity(list.len());
        for (index, item) in list.iter().enumerate() {
            let key = format!("{key}[{index}]");
            self.places.found_at(&key, item.span().start);
            clean.push(self.value(&key, item, items_wanted).or_else(|| {
                // An empty table keeps the numbers of those behind it; an incomplete list of names would mislead.
                (items_wanted["type"] == "object").then(|| toml::Value::Table(toml::Table::new()))
            }));
        }
        clean.into_iter().collect::<Option<Vec<_>>>().map(toml::Value::Array)
    }

    fn scalar(&mut self, key: &str, value: &DeValue<'_>, schema: &Json) -> Option<toml::Value> {
        let read = match value {
            DeValue::String(text) => Some(toml::Value::String(self.text(key, text)?)),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(toml::Value::Integer)
            }
            DeValue::Float(number) => number.as_str().parse().ok().map(toml::Value::Float),
            DeValue::Boolean(flag) => Some(toml::Value::Boolean(*flag)),
            DeValue::Datetime(date) => Some(toml::Value::Datetime(*date)),
            DeValue::Array(_) | DeValue::Table(_) => None,
        };
        if let Some(read) = read.filter(|read| fits(schema, read)) {
            return Some(read);
        }
        self.refuse(key, format!("got {}, wants {}", written(value), words(schema)));
        None
    }

    /// A text with everything filled in, or what is wrong with it.
    fn text(&mut self, key: &str, text: &str) -> Option<String> {
        let filled = match substitute(text, self.input.base_dir, self.input.env) {
            Ok(filled) => filled,
            Err(message) => {
                self.refuse(key, message);
                return None;
            }
        };
        if let Cow::Owned(_) = filled {
            self.places.was_written(key, text);
        }
        // Neither Kafka nor librdkafka nor the file system takes it, and C would cut the text there.
        if filled.contains('\0') {
            self.refuse(key, "holds a NUL character; remove it");
            return None;
        }
        Some(filled.into_owned())
    }
}

/// A value as the file has it, for a message.
fn written(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Integer(_) => "a whole number".to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// What to write where the file has a table that is not wanted.
fn instead_of_table(key: &str, table: &DeTable<'_>, schema: &Json) -> String {
    let wants_tables = of_type(schema, "array").is_some_and(|list| list["items"]["type"] == "object");
    if wants_tables {
        return format!("got one table; write [{}] with double brackets", table_header(key));
    }
    let message = format!("got a table, wants {}", words(schema));
    match (key.strip_prefix("kafka.client."), table.iter().next()) {
        // TOML reads dots as tables, and librdkafka's names are full of them.
        (Some(name), Some((inner, _))) => {
            format!("{message}; a name with dots needs quotes: \"{name}.{}\"", inner.get_ref())
        }
        _ => message,
    }
}
