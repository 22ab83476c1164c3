//! A native JSON body in, its fields out: `{"id", "model", "features", "priority", "timeout_ms"}`, in any order.
//!
//! The first fault is kept and the reading goes on, so that the id is found wherever it stands. Only what is no JSON ends
//! the reading; `salvage` then looks for the id. `null` for a field other than `features` is as if it were absent.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::features::{FeatureReader, Layout};
use super::message::{clip, nearest, quoted};
use super::{ID_BYTES_MAX, salvage};
use crate::record::Chunk;

/// What a body says. Names of features and their values are in the chunk's arenas, where `layout` says how they lie.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    /// The id, if it is one.
    pub(super) id: Option<Id<'a>>,
    /// The model's name, if it is one.
    pub(super) model: Option<Scalar<'a>>,
    /// The level, if it is one.
    pub(super) priority: Option<Scalar<'a>>,
    /// The timeout, if it is one.
    pub(super) timeout_ms: Option<Scalar<'a>>,
    /// How the features lie; `None` when the body has none.
    pub(super) layout: Option<Layout>,
    /// The first thing that was wrong.
    pub(super) fault: Option<Fault>,
}

/// What was wrong.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// The message.
    Said(String),
    /// Where in `features` what was found; what is wanted there hangs on the model.
    Cell(String),
}

impl Fault {
    /// The message, for a model that takes text or not.
    pub(super) fn message(self, takes_text: impl FnOnce() -> bool) -> String {
        match self {
            Self::Said(message) => message,
            Self::Cell(got) if takes_text() => format!("{got}, wants a number, a string or null"),
            Self::Cell(got) => format!("{got}, wants a number or null"),
        }
    }
}

/// A request's id.
#[derive(Debug, PartialEq)]
pub(super) enum Id<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// An integer, as wide as JSON readers take them.
    Whole(i128),
    /// One of these as JSON text, in the bytes that it would be written in.
    Json(&'a [u8]),
}

/// The fields of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Model,
    Features,
    Priority,
    TimeoutMs,
}

impl Field {
    const ALL: [Self; 5] = [Self::Id, Self::Model, Self::Features, Self::Priority, Self::TimeoutMs];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Model => "model",
            Self::Features => "features",
            Self::Priority => "priority",
            Self::TimeoutMs => "timeout_ms",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == name)
    }
}

/// Reads a body. Values and names go to the end of the chunk's arenas, whether or not the body is good.
pub(super) fn read<'a>(payload: &'a [u8], chunk: &mut Chunk) -> Body<'a> {
    let mut reader = BodyReader {
        body: Body::default(),
        seen: [false; Field::ALL.len()],
        field: None,
        features: FeatureReader::new(chunk),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let read = deserializer.deserialize_any(&mut reader).and_then(|()| deserializer.end());
    let place = reader.place();
    let mut body = reader.body;
    if let Err(error) = read {
        body.fault = Some(Fault::Said(not_json(&error, payload, &place)));
        body.id = id_of(payload);
    }
    body
}

struct BodyReader<'c, 'a> {
    body: Body<'a>,
    seen: [bool; Field::ALL.len()],
    /// The field that is being read, for the place of an error.
    field: Option<Field>,
    features: FeatureReader<'c>,
}

impl<'a> BodyReader<'_, 'a> {
    fn fault(&mut self, message: impl FnOnce() -> String) {
        if self.body.fault.is_none() {
            self.body.fault = Some(Fault::Said(message()));
        }
    }

    /// Where the reading stands, in the words of a message.
    fn place(&self) -> String {
        match self.field {
            Some(Field::Features) => self.features.place(),
            Some(field) => field.as_str().to_owned(),
            None => "the payload".to_owned(),
        }
    }

    fn not_an_object(&mut self, got: &Scalar<'_>) {
        self.fault(|| format!("the payload: got {got}, wants a JSON object with \"features\""));
    }

    /// The field of a name that is read for the first time. A field twice is a fault: neither is taken for the right one.
    fn open(&mut self, name: &str) -> Option<Field> {
        let Some(field) = Field::from_name(name) else {
            self.fault(|| {
                let known = Field::ALL.map(Field::as_str);
                let nearest = nearest(name, known.into_iter()).unwrap_or_default();
                let (name, known) = (quoted(name), known.join(", "));
                format!("unknown field {name}: did you mean \"{nearest}\"? known fields: {known}")
            });
            return None;
        };
        if std::mem::replace(&mut self.seen[field as usize], true) {
            self.fault(|| format!("field \"{}\" is given twice", field.as_str()));
            if field == Field::Id {
                self.body.id = None;
            }
            return None;
        }
        Some(field)
    }

    fn take_id(&mut self, value: Option<Scalar<'a>>) {
        match value.map(|value| Id::from_scalar(value).and_then(usable_id)) {
            Some(Ok(id)) => self.body.id = Some(id),
            Some(Err(message)) => self.fault(|| message),
            None => {}
        }
    }

    fn take_features(&mut self) {
        self.body.layout = Some(self.features.layout());
        let fault = self.features.take_fault();
        self.body.fault = self.body.fault.take().or(fault);
    }
}

/// The value of a field; `None` for `null`.
fn given<'a, A: MapAccess<'a>>(map: &mut A) -> Result<Option<Scalar<'a>>, A::Error> {
    Ok(Some(map.next_value()?).filter(|value| *value != Scalar::Null))
}

impl<'a> Visitor<'a> for &mut BodyReader<'_, 'a> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            self.field = self.open(&name);
            match self.field {
                Some(Field::Features) => {
                    map.next_value_seed(&mut self.features)?;
                    self.take_features();
                }
                Some(Field::Id) => {
                    let id = given(&mut map)?;
                    self.take_id(id);
                }
                Some(Field::Model) => self.body.model = given(&mut map)?,
                Some(Field::Priority) => self.body.priority = given(&mut map)?,
                Some(Field::TimeoutMs) => self.body.timeout_ms = given(&mut map)?,
                None => drop(map.next_value::<Scalar<'_>>()?),
            }
            self.field = None;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, seq: A) -> Result<(), A::Error> {
        self.not_an_object(&ScalarVisitor.visit_seq(seq)?);
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.not_an_object(&Scalar::Text(text.into()));
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.not_an_object(&Scalar::Null);
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.not_an_object(&Scalar::Bool(value));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.not_an_object(&Scalar::Whole(number.into()));
        Ok(())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.not_an_object(&Scalar::Whole(number.into()));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.not_an_object(&Scalar::Number(number));
        Ok(())
    }
}

impl<'a> Id<'a> {
    /// The value as an id, or what is wrong with it.
    pub(super) fn from_scalar(value: Scalar<'a>) -> Result<Self, String> {
        match value {
            Scalar::Text(text) => Ok(Self::Text(text)),
            Scalar::Whole(number) => Ok(Self::Whole(number)),
            other => Err(format!("id: got {other}, wants a string or an integer")),
        }
    }
}

/// The id of a body, whatever else is in it; `None` when there is none, or two.
pub(super) fn id_of(payload: &[u8]) -> Option<Id<'_>> {
    salvage::id_of_broken(payload).and_then(|id| usable_id(id).ok())
}

fn usable_id(id: Id<'_>) -> Result<Id<'_>, String> {
    match &id {
        Id::Text(text) if text.len() > ID_BYTES_MAX => {
            Err(format!("id: got {} bytes, wants {ID_BYTES_MAX} at most", text.len()))
        }
        _ => Ok(id),
    }
}

/// One JSON value, its text borrowed from the payload where it has no escapes; lists and objects are read over.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Whole(i128),
    Number(f64),
    Text(Cow<'a, str>),
    List,
    Object,
}

impl Scalar<'_> {
    /// The value as an integer.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Self::Whole(number) => Some(*number),
            _ => None,
        }
    }

    /// The value as a number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "numbers are f64 by the wire format")]
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List => f.write_str("an array"),
            Self::Object => f.write_str("an object"),
        }
    }
}

impl<'a> Deserialize<'a> for Scalar<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// Reads a [`Scalar`]. Nested values count against the parser's depth limit, which `IgnoredAny` would not do.
pub(super) struct ScalarVisitor;

impl<'a> Visitor<'a> for ScalarVisitor {
    type Value = Scalar<'a>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Whole(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Whole(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Scalar<'a>, A::Error> {
        while seq.next_element::<Scalar<'a>>()?.is_some() {}
        Ok(Scalar::List)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Scalar<'a>, A::Error> {
        while map.next_entry::<Text<'a>, Scalar<'a>>()?.is_some() {}
        Ok(Scalar::Object)
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'a> Deserialize<'a> for Text<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'a> Visitor<'a> for TextVisitor {
            type Value = Text<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Why a payload is no JSON, in words that help the sender more than the parser's own where that is possible.
fn not_json(error: &serde_json::Error, payload: &[u8], place: &str) -> String {
    if payload.trim_ascii().is_empty() {
        return "the payload is empty, wants a JSON object".to_owned();
    }
    if let Err(error) = std::str::from_utf8(payload) {
        return format!("the payload is not UTF-8 at byte {}", error.valid_up_to());
    }
    let reason = error.to_string();
    if reason.starts_with("recursion limit exceeded") {
        return format!("{place}: nested deeper than 127 levels");
    }
    let token = token_at(payload, error.line(), error.column());
    let shown = clip(token, 40);
    if reason.starts_with("number out of range") {
        return format!("{place}: got {shown}, which is out of range: Infinity is not accepted");
    }
    let name = token.trim_start_matches(['-', '+']);
    if name.eq_ignore_ascii_case("nan") {
        return format!("{place}: got {shown}, which is not JSON; null is the missing value");
    }
    if name.eq_ignore_ascii_case("infinity") || name.eq_ignore_ascii_case("inf") {
        return format!("{place}: got {shown}, which is not JSON: Infinity is not accepted, null is the missing value");
    }
    format!("the payload is not JSON: {reason}")
}

/// The number or word around the byte where the parser stopped (line and column count from 1).
fn token_at(payload: &[u8], line: usize, column: usize) -> &str {
    let line = payload.split(|byte| *byte == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let (before, after) = line.split_at(column.saturating_sub(1).min(line.len()));
    let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let start = before.iter().rposition(|byte| !in_token(byte)).map_or(0, |last| last + 1);
    let end = before.len() + after.iter().position(|byte| !in_token(byte)).unwrap_or(after.len());
    std::str::from_utf8(&line[start..end]).unwrap_or_default()
}
