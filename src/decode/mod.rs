//! Messages in, requests out: [`RouteDecoder::decode`] pushes exactly one request on the chunk for each message, readable
//! or rejected, or skips it (a tombstone of a compacted topic).
//!
//! The way through the files: `headers` collects what the record's headers say, `address` finds where the reply goes,
//! `scan` reads the usual body and `json` every other, `features` reads its numbers and strings into the chunk's arenas and
//! orders them for the model (`oip` does so with the tensors of the Open Inference Protocol), `kinds` holds them against what its
//! columns take, and this page puts them together. `decimal` turns the scanner's digits into numbers, `value` is one JSON value;
//! `salvage` finds the id of a body that is no JSON, so that its error reply carries it.
//!
//! Invariants: no I/O and no clock; nothing panics, whatever the bytes; a rejected record leaves no number and no
//! string in the chunk's feature arenas; a message to a sender holds at most 300 characters.

mod address;
mod decimal;
mod features;
mod headers;
mod json;
mod kinds;
mod message;
mod oip;
mod salvage;
mod scan;
mod schema;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use self::features::Marks;
use self::headers::Headers;
use self::json::{Body, Id};
use self::message::{bad_request, clip, nearest_first, quoted, quoted_bytes, reject};
pub(crate) use self::oip::OUTPUT;
pub use self::oip::schema::{
    InferRequestBody, InferRequestInput, InferRequestOutput, InferRequestParameters, TensorData, TensorDatatype,
    TensorValue, infer_request_schema,
};
pub use self::schema::{FeatureValue, RequestBody, RequestFeatures, RequestId, request_schema};
use self::value::Scalar;
use crate::config::{DeadlineFrom, TopicPattern};
use crate::model::{Catalog, LevelTimeout, ModelEntry};
use crate::record::{
    Chunk, ErrorCode, Message, ModelId, NewRequest, Priority, Protocol, Reject, ReplyAddress, Span, Work,
};

/// Most bytes of an id, before escaping: every reply repeats it.
const ID_BYTES_MAX: usize = 1_024;
/// A longer timeout than this (100 years) is none: an `Instant` that far away need not exist.
const TIMEOUT_MS_MAX: f64 = 100.0 * 365.0 * 86_400_000.0;

/// How the records of one route are read.
#[derive(Clone, Debug)]
pub struct RouteDecoder {
    /// The route, by its index in the config.
    pub route: u32,
    /// The model of records that name none.
    pub model: Option<ModelId>,
    /// Reply topics that requests may name.
    pub reply_topics_allowed: Vec<TopicPattern>,
    /// The route's own reply topic, which requests may always name.
    pub reply_topic: String,
    /// What a request's deadline counts from.
    pub deadline_from: DeadlineFrom,
    /// Most bytes of a payload; a larger one is rejected unread.
    pub record_bytes_max: usize,
    /// Whether the topic is compacted: its tombstones are then skipped.
    pub compacted: bool,
    /// Whether records are kept as they came, for dead letters.
    pub keep_original: bool,
    /// How often a request is tried again after a transient error of its model.
    pub retries: u8,
    /// Whether a request may name another model than the route's.
    pub any_model: bool,
}

/// When a message came in, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The monotonic time.
    pub arrived: Instant,
    /// Milliseconds since the epoch, to compare with a record's timestamp.
    pub unix_ms: i64,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A request was pushed on the chunk, readable or rejected.
    Request,
    /// Nothing was pushed: a tombstone of a compacted topic. Its position is done.
    Skipped,
}

impl RouteDecoder {
    /// The first route, with the config's defaults for all else.
    pub fn new(model: ModelId, reply_topic: impl Into<String>) -> Self {
        Self {
            route: 0,
            model: Some(model),
            reply_topics_allowed: Vec::new(),
            reply_topic: reply_topic.into(),
            deadline_from: DeadlineFrom::Arrival,
            record_bytes_max: 1 << 20,
            compacted: false,
            keep_original: false,
            retries: 0,
            any_model: true,
        }
    }

    /// Reads a message and pushes its request on the chunk.
    pub fn decode(&self, message: &Message<'_>, received: Received, catalog: &Catalog, chunk: &mut Chunk) -> Decoded {
        if message.payload.is_none() && self.compacted {
            return Decoded::Skipped;
        }
        let headers = Headers::read(message.headers);
        headers.echo(chunk);
        let (address, address_fault) = match self.address(&headers, chunk) {
            Ok(address) => (address, Ok(())),
            Err(reject) => (ReplyAddress::Route, Err(reject)),
        };

        let marks = Marks::new(chunk);
        let mut protocol = Protocol::Native;
        let (id, work) = match self.body(message, &headers, chunk) {
            Ok(mut body) => {
                let id = body.id.take();
                protocol = body.protocol;
                let reading = Reading { route: self, message, received, headers: &headers };
                let work = address_fault.and_then(|()| reading.work(body, catalog, chunk, marks));
                (id, work)
            }
            Err(reject) => (None, address_fault.and(Err(reject))),
        };
        if work.is_err() {
            marks.take_features_back(chunk);
        }
        chunk.text_mut().truncate(marks.names);

        let id_json = match id {
            Some(id) => id.write(chunk),
            None => default_id(message, chunk),
        };
        let key = message.key.map(|key| chunk.push_text(key));
        chunk.push(NewRequest {
            position: message.position,
            route: self.route,
            arrived: received.arrived,
            id_json,
            key,
            address,
            work,
        });
        chunk.set_protocol(protocol);
        if self.keep_original {
            chunk.keep_original(message);
        }
        Decoded::Request
    }

    /// Pushes a message's request on the chunk without reading more of it than its id: it is refused, whatever it asks for.
    pub fn refuse(&self, message: &Message<'_>, received: Received, reject: Reject, chunk: &mut Chunk) {
        Headers::read(message.headers).echo(chunk);
        let (id, protocol) = message.payload.map(json::glance).unwrap_or_default();
        let id_json = match id {
            Some(id) => id.write(chunk),
            None => default_id(message, chunk),
        };
        let key = message.key.map(|key| chunk.push_text(key));
        chunk.push(NewRequest {
            position: message.position,
            route: self.route,
            arrived: received.arrived,
            id_json,
            key,
            address: ReplyAddress::Route,
            work: Err(reject),
        });
        chunk.set_protocol(protocol);
    }

    /// The body, if the record may be read at all.
    fn body<'a>(&self, message: &Message<'a>, headers: &Headers<'_>, chunk: &mut Chunk) -> Result<Body<'a>, Reject> {
        let Some(payload) = message.payload else {
            return Err(bad_request(
                "the record is a tombstone (it has no value), wants a JSON object; \
                 `compacted = true` on the route skips tombstones",
            ));
        };
        if payload.len() > self.record_bytes_max {
            return Err(reject(
                ErrorCode::TooLarge,
                format!(
                    "the payload has {} bytes, the route's record_bytes_max is {}",
                    payload.len(),
                    self.record_bytes_max
                ),
            ));
        }
        headers.check_content_type()?;
        Ok(scan::read(payload, chunk.features_mut()).unwrap_or_else(|| json::read(payload, chunk)))
    }
}

/// A message on its way to being work: what all of the questions below are asked about.
struct Reading<'r, 'm> {
    route: &'r RouteDecoder,
    message: &'r Message<'m>,
    received: Received,
    headers: &'r Headers<'m>,
}

impl Reading<'_, '_> {
    /// The work of a body, its rows ordered for the model and left in the chunk's feature arena from the mark on.
    fn work(&self, body: Body<'_>, catalog: &Catalog, chunk: &mut Chunk, marks: Marks) -> Result<Work, Reject> {
        let asks = Asks::of(body.protocol);
        let model = || self.model(asks, body.model.as_ref(), catalog);
        if let Some(fault) = body.fault {
            let takes_text = || model().is_ok_and(|model| model.kinds.has_text());
            return Err(bad_request(fault.message(body.protocol, takes_text)));
        }
        if body.layout.is_none() && body.inputs.is_none() {
            return Err(bad_request("features: missing, wants a row of numbers, rows, or an object by feature name"));
        }
        let model = model()?;
        let priority = self.priority(asks, body.priority.as_ref(), model)?;
        let deadline = self.deadline(self.timeout(asks, body.timeout.as_ref(), model.timeout(priority))?);
        let values_max = self.route.record_bytes_max / 2;
        let layout = body.layout.unwrap_or_default();
        let (rows, many) = match body.inputs {
            None => (layout.rows_for(model, values_max, chunk, marks)?, layout.many()),
            Some(inputs) => (inputs.rows_for(model, values_max, chunk, marks)?, true),
        };
        let mut work = chunk.work(model.id, marks.features, rows, many, priority, deadline);
        work.retries = self.route.retries;
        if model.kinds.has_text() {
            chunk.attach_texts(&mut work, marks.texts);
        }
        Ok(work)
    }

    /// The model that the header names, else the body, else the route.
    fn model<'c>(
        &self,
        asks: &Asks,
        body: Option<&Scalar<'_>>,
        catalog: &'c Catalog,
    ) -> Result<&'c ModelEntry, Reject> {
        let (place, name) = match (self.headers.model(asks.protocol), body) {
            (Some((header, name)), _) => (header, String::from_utf8_lossy(name)),
            (None, Some(Scalar::Text(name))) => (asks.model, Cow::Borrowed(&**name)),
            (None, Some(other)) => {
                return Err(bad_request(format!("{}: got {other}, wants a model's name", asks.model)));
            }
            (None, None) => return self.route_model(catalog),
        };
        let own = self.route.model.filter(|_| !self.route.any_model).and_then(|own| catalog.get(own));
        match (catalog.by_name(&name), own) {
            (Some(model), None) => Ok(model),
            (Some(model), Some(own)) if model.id == own.id => Ok(model),
            (_, Some(own)) => {
                let (wanted, own) = (quoted(&name), clip(&own.name, 60));
                let message = format!("{place}: got {wanted}, but requests that come in here are for {own} only");
                Err(reject(ErrorCode::UnknownModel, message))
            }
            (None, None) => {
                let wanted = quoted(&name);
                let loaded = loaded_names(&name, catalog);
                Err(reject(ErrorCode::UnknownModel, format!("{place}: no model {wanted} is loaded; loaded: {loaded}")))
            }
        }
    }

    fn route_model<'c>(&self, catalog: &'c Catalog) -> Result<&'c ModelEntry, Reject> {
        let loaded = || loaded_names("", catalog);
        let Some(model) = self.route.model else {
            return Err(bad_request(format!("model: missing, and the route has no default; loaded: {}", loaded())));
        };
        catalog.get(model).ok_or_else(|| {
            reject(ErrorCode::UnknownModel, format!("model: the route's model is not loaded; loaded: {}", loaded()))
        })
    }

    /// The level that the header names, else the body, else the model's own.
    fn priority(&self, asks: &Asks, body: Option<&Scalar<'_>>, model: &ModelEntry) -> Result<Priority, Reject> {
        let (place, level, got) = match (self.headers.priority, body) {
            (Some(value), _) => {
                let level = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                ("header forebay-priority", level, quoted_bytes(value))
            }
            (None, Some(value)) => (asks.priority, value.whole(), value.to_string()),
            (None, None) => return Ok(model.priority_default),
        };
        match level.map(u8::try_from) {
            Some(Ok(0)) => Ok(model.priority_default),
            Some(Ok(level)) if level <= model.priority_levels() => {
                Ok(Priority::new(level).unwrap_or(model.priority_default))
            }
            _ => Err(bad_request(format!(
                "{place}: got {got}, wants a whole number from 0 to {} (0 is the model's default, 1 the highest level)",
                model.priority_levels()
            ))),
        }
    }

    /// The level's timeout, shortened by the one that the header names, or else the body.
    fn timeout(&self, asks: &Asks, body: Option<&Scalar<'_>>, level: LevelTimeout) -> Result<Option<Duration>, Reject> {
        let (Asks { timeout: (place, unit, in_a_ms), .. }, native) = (asks, &Asks::NATIVE);
        let (place, unit, millis, got) = match (self.headers.timeout_ms, body) {
            (Some(value), _) => {
                let millis = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                ("header forebay-timeout-ms", native.timeout.1, millis, quoted_bytes(value))
            }
            (None, Some(value)) => (*place, *unit, value.number().map(|number| number / in_a_ms), value.to_string()),
            (None, None) => return Ok(level.timeout),
        };
        let Some(millis) = millis.filter(|millis: &f64| millis.is_finite() && *millis >= 0.0) else {
            return Err(bad_request(format!("{place}: got {got}, wants a number of {unit}, 0 (none) or more")));
        };
        if millis == 0.0 || millis > TIMEOUT_MS_MAX {
            return Ok(level.timeout);
        }
        Ok(level.shortened_to(Duration::from_secs_f64(millis / 1_000.0)))
    }

    /// When the request stops being worth scoring. It may have passed already: the queue answers that.
    fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        let Received { arrived, unix_ms } = self.received;
        let timeout = timeout?;
        let age_ms = match (self.route.deadline_from, self.message.timestamp_ms) {
            (DeadlineFrom::Timestamp, Some(sent_ms)) if sent_ms >= 0 => {
                // A timestamp in the future counts as arrival: a sender's fast clock must not buy time.
                u64::try_from(unix_ms.saturating_sub(sent_ms)).unwrap_or(0)
            }
            _ => 0,
        };
        let age = Duration::from_millis(age_ms);
        match timeout.checked_sub(age) {
            Some(left) => arrived.checked_add(left),
            // Passed before arrival. Where the clock cannot count back that far, arrival is past enough.
            None => Some(arrived.checked_sub(age.saturating_sub(timeout)).unwrap_or(arrived)),
        }
    }
}

/// Where a body of a protocol says what it asks for.
struct Asks {
    protocol: Protocol,
    model: &'static str,
    priority: &'static str,
    /// The field, its unit, and how many of those are a millisecond.
    timeout: (&'static str, &'static str, f64),
}

impl Asks {
    const NATIVE: Self = Self {
        protocol: Protocol::Native,
        model: "model",
        priority: "priority",
        timeout: ("timeout_ms", "milliseconds", 1.0),
    };
    /// As Triton's extension "schedule policy" has them.
    const OPEN_INFERENCE: Self = Self {
        protocol: Protocol::OpenInference,
        model: "model_name",
        priority: "parameters.priority",
        timeout: ("parameters.timeout", "microseconds", 1_000.0),
    };

    const fn of(protocol: Protocol) -> &'static Self {
        match protocol {
            Protocol::Native => &Self::NATIVE,
            Protocol::OpenInference => &Self::OPEN_INFERENCE,
        }
    }
}

impl Id<'_> {
    /// Writes the id as JSON text.
    fn write(&self, chunk: &mut Chunk) -> Span {
        let mark = chunk.text_mark();
        match self {
            Self::Text(text) => push_json(text, chunk),
            Self::Whole(number) => chunk.text_mut().extend_from_slice(number.to_string().as_bytes()),
            Self::Json(json) => chunk.text_mut().extend_from_slice(json),
        }
        chunk.span_from(mark)
    }
}

/// The id of a request that names none: the record's key, or else its place, which nothing else has.
fn default_id(message: &Message<'_>, chunk: &mut Chunk) -> Span {
    let mark = chunk.text_mark();
    let key = message.key.filter(|key| !key.is_empty() && key.len() <= ID_BYTES_MAX);
    if let Some(key) = key.and_then(|key| std::str::from_utf8(key).ok()) {
        push_json(key, chunk);
    } else {
        let Message { topic, partition_number, position, .. } = message;
        push_json(&format!("{topic}/{partition_number}/{}", position.offset), chunk);
    }
    chunk.span_from(mark)
}

fn push_json(text: &str, chunk: &mut Chunk) {
    serde_json::to_writer(chunk.text_mut(), text).expect("a string is JSON, and a Vec takes all");
}

/// The names of the loaded models for a message, the nearest first.
fn loaded_names(wanted: &str, catalog: &Catalog) -> String {
    let names = nearest_first(wanted, catalog.entries().iter().map(|entry| entry.name.as_str()));
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| clip(name, 60)).collect::<Vec<_>>().join(", ")
}
