//! A JSON body in, its fields out, in any order: `{"id", "model", "features", "priority", "timeout_ms"}`, or where there are
//! `inputs` the fields of the Open Inference Protocol (`oip`).
//!
//! The first fault is kept and the reading goes on, so that the id is found wherever it stands. Only what is no JSON ends
//! the reading; `salvage` then looks for the id. `null` for a field other than `features` and `inputs` is as if it were
//! absent.

use std::borrow::Cow;

use serde::Deserializer as _;
use serde::de::MapAccess;

use super::ID_BYTES_MAX;
use super::features::{FeatureReader, Layout};
use super::message::{clip, nearest, quoted};
use super::oip::{Inputs, TakeInputs, TakeOutputs, TakeTerms};
use super::salvage::{Salvaged, salvage};
use super::value::{Give, Scalar, Take, Text, given};
use crate::record::{Chunk, Protocol};

/// Most characters of an unknown field's name that are kept for the message.
const NAME_CHARS_MAX: usize = 64;

/// What a body says. Names of features and their values are in the chunk's arenas, where `layout` says how they lie.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    /// Whose fields it has.
    pub(super) protocol: Protocol,
    /// The id, if it is one.
    pub(super) id: Option<Id<'a>>,
    /// The model's name, if it is one.
    pub(super) model: Option<Scalar<'a>>,
    /// The level, if it is one.
    pub(super) priority: Option<Scalar<'a>>,
    /// The timeout, if it is one, in the protocol's unit.
    pub(super) timeout: Option<Scalar<'a>>,
    /// How the features lie; `None` when the body has none.
    pub(super) layout: Option<Layout>,
    /// The tensors of an Open Inference body.
    pub(super) inputs: Option<Box<Inputs<'a>>>,
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
    /// The name of a field that there is not; which there are hangs on the protocol.
    Unknown(String),
}

impl Fault {
    /// The message, for a model that takes text or not.
    pub(super) fn message(self, protocol: Protocol, takes_text: impl FnOnce() -> bool) -> String {
        match self {
            Self::Said(message) => message,
            Self::Unknown(name) => unknown_field(&name, Field::of(protocol)),
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
    ModelName,
    Inputs,
    Outputs,
    Parameters,
}

impl Field {
    const ALL: [Self; 9] = [
        Self::Id,
        Self::Model,
        Self::Features,
        Self::Priority,
        Self::TimeoutMs,
        Self::ModelName,
        Self::Inputs,
        Self::Outputs,
        Self::Parameters,
    ];
    const NATIVE: [Self; 5] = [Self::Id, Self::Model, Self::Features, Self::Priority, Self::TimeoutMs];
    /// `model_name` is no field of the standard, but clients of `KServe` send it.
    const OPEN_INFERENCE: [Self; 5] = [Self::Id, Self::ModelName, Self::Inputs, Self::Outputs, Self::Parameters];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Model => "model",
            Self::Features => "features",
            Self::Priority => "priority",
            Self::TimeoutMs => "timeout_ms",
            Self::ModelName => "model_name",
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
            Self::Parameters => "parameters",
        }
    }

    const fn of(protocol: Protocol) -> &'static [Self] {
        match protocol {
            Protocol::Native => &Self::NATIVE,
            Protocol::OpenInference => &Self::OPEN_INFERENCE,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == name)
    }
}

fn unknown_field(name: &str, known: &[Field]) -> String {
    let known: Vec<&str> = known.iter().map(|field| field.as_str()).collect();
    let nearest = nearest(name, known.iter().copied()).unwrap_or_default();
    format!("unknown field {}: did you mean \"{nearest}\"? known fields: {}", quoted(name), known.join(", "))
}

/// Reads a body. Values and names go to the end of the chunk's arenas, whether or not the body is good.
pub(super) fn read<'a>(payload: &'a [u8], chunk: &mut Chunk) -> Body<'a> {
    let mut reader = BodyReader {
        body: Body::default(),
        seen: [false; Field::ALL.len()],
        field: None,
        features: FeatureReader::new(chunk),
        inputs: Inputs::default(),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let read = deserializer.deserialize_any(Give(&mut reader)).and_then(|()| deserializer.end());
    let place = reader.place();
    let mut body = reader.finish();
    if let Err(error) = read {
        body.fault = Some(Fault::Said(not_json(&error, payload, &place)));
        (body.id, body.protocol) = glance(payload);
    }
    body
}

struct BodyReader<'c, 'a> {
    body: Body<'a>,
    seen: [bool; Field::ALL.len()],
    /// The field that is being read, for the place of an error.
    field: Option<Field>,
    features: FeatureReader<'c>,
    inputs: Inputs<'a>,
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
            Some(Field::Inputs | Field::Outputs | Field::Parameters) => self.inputs.place(),
            Some(field) => field.as_str().to_owned(),
            None => "the payload".to_owned(),
        }
    }

    /// The field of a name that is read for the first time. A field twice is a fault: neither is taken for the right one.
    fn open(&mut self, name: &str) -> Option<Field> {
        let Some(field) = Field::from_name(name) else {
            if self.body.fault.is_none() {
                self.body.fault = Some(Fault::Unknown(clip(name, NAME_CHARS_MAX).into_owned()));
            }
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

    /// The body, once it is known whose fields it has.
    fn finish(mut self) -> Body<'a> {
        let seen = |field: Field| self.seen[field as usize];
        if seen(Field::Inputs) && !seen(Field::Features) {
            self.body.protocol = Protocol::OpenInference;
        }
        let known = Field::of(self.body.protocol);
        if let Some(other) = Field::ALL.into_iter().find(|field| seen(*field) && !known.contains(field)) {
            self.body.fault = Some(match (self.body.protocol, other) {
                (Protocol::Native, _) if seen(Field::Inputs) => {
                    let message = "got both \"features\" and \"inputs\", wants one of them: the first is a native request, the \
                                   second one of the Open Inference Protocol";
                    Fault::Said(message.to_owned())
                }
                (Protocol::Native, other) => Fault::Unknown(other.as_str().to_owned()),
                (Protocol::OpenInference, Field::Priority) => elsewhere(other, "parameters.priority"),
                (Protocol::OpenInference, Field::TimeoutMs) => elsewhere(other, "parameters.timeout, in microseconds"),
                (Protocol::OpenInference, _) => elsewhere(other, "model_name"),
            });
        }
        if self.body.protocol == Protocol::OpenInference {
            (self.body.priority, self.body.timeout) = self.inputs.take_terms();
            self.body.inputs = Some(Box::new(self.inputs));
        }
        self.body
    }
}

/// A native field beside `inputs`, and what stands for it there.
fn elsewhere(field: Field, place: &str) -> Fault {
    Fault::Said(format!("field \"{}\" does not go with \"inputs\": there it is {place}", field.as_str()))
}

impl<'a> Take<'a> for &mut BodyReader<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.fault(|| format!("the payload: got {got}, wants a JSON object with \"features\""));
    }

    fn object<A: MapAccess<'a>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = object.next_key()? {
            self.field = self.open(&name);
            match self.field {
                Some(Field::Features) => {
                    object.next_value_seed(&mut self.features)?;
                    self.take_features();
                }
                Some(Field::Id) => {
                    let id = given(&mut object)?;
                    self.take_id(id);
                }
                Some(Field::Model | Field::ModelName) => self.body.model = given(&mut object)?,
                Some(Field::Priority) => self.body.priority = given(&mut object)?,
                Some(Field::TimeoutMs) => self.body.timeout = given(&mut object)?,
                Some(Field::Inputs) => {
                    let (inputs, chunk) = (&mut self.inputs, self.features.chunk());
                    object.next_value_seed(Give(TakeInputs { inputs, chunk }))?;
                }
                Some(Field::Outputs) => object.next_value_seed(Give(TakeOutputs(&mut self.inputs)))?,
                Some(Field::Parameters) => object.next_value_seed(Give(TakeTerms(&mut self.inputs)))?,
                None => drop(object.next_value::<Scalar<'_>>()?),
            }
            if let Some(message) = self.inputs.take_fault() {
                self.fault(|| message);
            }
            self.field = None;
        }
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

/// The id of a body and whose fields it has, whatever else is in it. No id when there is none, or two.
pub(super) fn glance(payload: &[u8]) -> (Option<Id<'_>>, Protocol) {
    let Salvaged { id, protocol } = salvage(payload);
    (id.and_then(|id| usable_id(id).ok()), protocol)
}

fn usable_id(id: Id<'_>) -> Result<Id<'_>, String> {
    match &id {
        Id::Text(text) if text.len() > ID_BYTES_MAX => {
            Err(format!("id: got {} bytes, wants {ID_BYTES_MAX} at most", text.len()))
        }
        _ => Ok(id),
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
