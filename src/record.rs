//! What travels along the line, in the order in which a record becomes each of them: [`Message`] (as received),
//! [`Request`] in a [`Chunk`] (decoded), [`ScoredBatch`] (as a score thread hands it back), [`Reply`] (encoded).
//!
//! Nothing here does I/O or reads a clock. A chunk owns the bytes of all its requests in two arenas (numbers and
//! text), so that a request costs no allocation of its own; it is built by one thread, then shared and never changed.

mod texts;

use std::fmt;
use std::num::NonZeroU8;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::texts::{TextArena, TextMark, Texts};
use crate::commit::OffsetMap;
use crate::model::LoadedModel;

/// How urgent a request is: 1 is the highest level, larger numbers wait longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(NonZeroU8);

impl Priority {
    /// The level as a priority; `None` for 0, which stands for "the model's default" on the wire.
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        match NonZeroU8::new(level) {
            Some(level) => Some(Self(level)),
            None => None,
        }
    }

    /// The level, 1 or more.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

/// One assignment of one input partition to this worker. The same partition assigned again is a new `PartitionId`, so
/// that what was read under an earlier assignment can never be mistaken for the present one (the assignment epoch).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

/// Where a record stands in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The partition, under its present assignment.
    pub partition: PartitionId,
    /// The record's offset (Kafka) or line number (files).
    pub offset: i64,
}

/// A partition that was assigned to this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedPartition {
    /// Its id under this assignment.
    pub id: PartitionId,
    /// Its topic.
    pub topic: String,
    /// Its number in the topic.
    pub number: i32,
    /// The committed position, and what is done above it.
    pub committed: OffsetMap,
    /// The checkpoint that says so, where that is a message of its own.
    pub fence: Option<Fence>,
}

/// The checkpoint by which this worker holds a partition: the next one is refused unless this is the last of its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its sequence.
    pub sequence: u64,
    /// When the stream of the records was created; empty for a topic of Kafka.
    pub created: String,
    /// The subjects of the records, sorted; none for a topic of Kafka.
    pub subjects: Vec<String>,
}

/// A record as received, borrowed from the source's own memory.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The topic it was read from.
    pub topic: &'a str,
    /// The partition's number in that topic.
    pub partition_number: i32,
    /// Where it stands, for the commit.
    pub position: Position,
    /// The record's own timestamp, in milliseconds since the epoch; `None` when it has none.
    pub timestamp_ms: Option<i64>,
    /// Whether the broker set the timestamp when it appended the record.
    pub is_append_time: bool,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The record's value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The headers, in the order of the record. A header may be there without a value.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// A model as the engine numbers it: its slot, which stays the same when a new version is swapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u32);

/// A piece of a chunk's text arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty span is as good as any")]
    pub const fn len(self) -> usize {
        self.len as usize
    }
}

/// Why a record gets an error reply instead of scores. The names on the wire are those of [`ErrorCode::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The record cannot be read as a request: not JSON, a wrong field, a wrong width.
    BadRequest,
    /// No model of that name is loaded.
    UnknownModel,
    /// The deadline passed before a score thread took the request.
    DeadlineExceeded,
    /// The queue of the request's level was full (library door; a stream source is paused instead).
    QueueFull,
    /// The model failed on this record, or answered something that is no finite number.
    ModelError,
    /// The record, or its reply, is larger than the limit.
    TooLarge,
}

impl ErrorCode {
    /// Every code, in the order of their documentation.
    pub const ALL: [Self; 6] = [
        Self::BadRequest,
        Self::UnknownModel,
        Self::DeadlineExceeded,
        Self::QueueFull,
        Self::ModelError,
        Self::TooLarge,
    ];

    /// The code's name on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownModel => "unknown_model",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::QueueFull => "queue_full",
            Self::ModelError => "model_error",
            Self::TooLarge => "too_large",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record's end without scores: it gets this as its error reply, and its position is done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Reject {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What was wrong, where, and what to do about it; goes to the sender.
    pub message: String,
}

impl Reject {
    /// A rejection with its message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A record that cannot be read as a request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }
}

/// Where the reply goes. Rejections go there too, unless the address itself was the fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyAddress {
    /// To the route's own reply topic, partitioned by the key.
    #[default]
    Route,
    /// To the topic (and partition, where given) that the request's headers named and the route allows.
    Named {
        /// The topic's name in the chunk's text.
        topic: Span,
        /// The partition that the sender waits on.
        partition: Option<i32>,
    },
}

/// The scoring that a readable request asks for.
#[derive(Clone, Debug)]
pub struct Work {
    /// The model that scores it.
    pub model: ModelId,
    /// Number of rows, 1 or more.
    pub rows: u32,
    /// Whether the request held a list of rows: its prediction is then a list of lists, even for one row.
    pub many: bool,
    /// Its level in the queue.
    pub priority: Priority,
    /// When it stops being worth scoring.
    pub deadline: Option<Instant>,
    /// How often it is tried again after a transient error of the model, at most [`Work::RETRIES_MAX`].
    pub retries: u8,
    features: Range<usize>,
    texts: Range<u32>,
}

impl Work {
    /// The most that [`Work::retries`] may be: the back-offs of ten tries add up to 102 seconds.
    pub const RETRIES_MAX: u8 = 10;
}

/// The form of a request's body, in which its reply is written, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// forebay's own: `features` in, `prediction` out.
    #[default]
    Native,
    /// The Open Inference Protocol (V2, JSON): `inputs` in, `outputs` out.
    OpenInference,
}

/// One decoded record: who asked, where the answer goes, and what is to be scored or why not.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the record stands in its source.
    pub position: Position,
    /// The route (by its index in the config) that the record came in by.
    pub route: u32,
    /// When the worker received it.
    pub arrived: Instant,
    /// The request's id as JSON text, quotes included; printed into the reply as it stands.
    pub id_json: Span,
    /// The record's key; the reply carries the same.
    pub key: Option<Span>,
    /// Where the reply goes.
    pub address: ReplyAddress,
    /// What is to be scored, or the rejection that is its reply.
    pub work: Result<Work, Reject>,
    /// The form of its reply.
    pub protocol: Protocol,
    echo: Range<u32>,
    original: Option<u32>,
}

/// A header that the reply carries over from the request, byte for byte.
#[derive(Clone, Copy, Debug)]
pub struct EchoHeader {
    /// The header's name in the reply.
    pub name: &'static str,
    /// Its value in the chunk's text.
    pub value: Span,
}

/// A record as it came. Its key and offset are the request's.
#[derive(Clone, Debug)]
pub struct Original {
    /// The topic's name in the chunk's text.
    pub topic: Span,
    /// The partition's number.
    pub number: i32,
    /// Milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// Whether the broker set it when it appended the record.
    pub is_append_time: bool,
    /// The value; `None` for a tombstone.
    pub payload: Option<Span>,
    /// Names and values. A header whose name is not UTF-8 was passed over.
    pub headers: Vec<(Span, Option<Span>)>,
}

/// What one poll of a source brought, decoded: requests, and the arenas that hold their numbers and texts.
///
/// Invariant: every span and range of a request lies in this chunk's arenas.
#[derive(Debug, Default)]
pub struct Chunk {
    requests: Vec<Request>,
    features: Vec<f64>,
    texts: TextArena,
    text: Vec<u8>,
    echo: Vec<EchoHeader>,
    originals: Vec<Original>,
}

impl Chunk {
    /// The requests, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// A request's feature rows, row-major, `work.rows` rows of equal width. A missing value is NaN, and so is a text.
    #[must_use]
    pub fn rows(&self, work: &Work) -> &[f64] {
        &self.features[work.features.clone()]
    }

    /// A request's text features; none for a model without text columns.
    #[must_use]
    pub fn texts(&self, work: &Work) -> Texts<'_> {
        self.texts.texts(&work.texts)
    }

    /// The bytes of a span.
    #[must_use]
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        &self.text[start..start + span.len as usize]
    }

    /// The bytes of a span that was written as text.
    #[must_use]
    pub fn str(&self, span: Span) -> &str {
        std::str::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// The headers that a request's reply carries over.
    #[must_use]
    pub fn echo(&self, request: &Request) -> &[EchoHeader] {
        &self.echo[request.echo.start as usize..request.echo.end as usize]
    }

    /// A request's record as it came, where it was kept.
    #[must_use]
    pub fn original(&self, request: &Request) -> Option<&Original> {
        request.original.map(|index| &self.originals[index as usize])
    }

    // ---- building: one thread, before the chunk is shared ----

    /// Moves what is in it to a chunk of just that size, and keeps the room for the next one: nothing grows step by step, and
    /// a chunk that waits holds no more memory than it needs.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let taken = Self {
            requests: self.requests.drain(..).collect(),
            features: self.features.as_slice().to_vec(),
            texts: self.texts.take(),
            text: self.text.as_slice().to_vec(),
            echo: self.echo.as_slice().to_vec(),
            originals: self.originals.drain(..).collect(),
        };
        self.features.clear();
        self.text.clear();
        self.echo.clear();
        taken
    }

    /// The feature arena, to append rows to. A decoder notes `len()` before and calls [`Chunk::work`] after.
    pub fn features_mut(&mut self) -> &mut Vec<f64> {
        &mut self.features
    }

    /// The text features, to append cells to. A decoder notes their `mark()` before and calls [`Chunk::attach_texts`] after.
    pub fn texts_mut(&mut self) -> &mut TextArena {
        &mut self.texts
    }

    /// Both arenas of features.
    pub fn features_and_texts_mut(&mut self) -> (&mut Vec<f64>, &mut TextArena) {
        (&mut self.features, &mut self.texts)
    }

    /// The text arena's length, to give to [`Chunk::span_from`] after bytes were appended through [`Chunk::text_mut`].
    #[must_use]
    pub fn text_mark(&self) -> usize {
        self.text.len()
    }

    /// The text arena, to append to.
    pub fn text_mut(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// The span of everything appended since `mark`.
    ///
    /// # Panics
    /// Panics when the arena passes 4 GiB; the source bounds a chunk far below that.
    #[must_use]
    pub fn span_from(&self, mark: usize) -> Span {
        let small = |n: usize| u32::try_from(n).expect("a chunk's text stays below 4 GiB");
        Span { start: small(mark), len: small(self.text.len() - mark) }
    }

    /// Copies bytes into the text arena.
    pub fn push_text(&mut self, bytes: &[u8]) -> Span {
        let mark = self.text_mark();
        self.text.extend_from_slice(bytes);
        self.span_from(mark)
    }

    /// Adds a header for the reply of the request that is pushed next.
    pub fn push_echo(&mut self, name: &'static str, value: &[u8]) {
        let value = self.push_text(value);
        self.echo.push(EchoHeader { name, value });
    }

    /// The work of `rows` rows whose values are everything appended to the feature arena since `mark`, with no text
    /// features and no retries.
    ///
    /// # Panics
    /// Panics when the values do not divide into `rows` rows.
    #[must_use]
    pub fn work(
        &self,
        model: ModelId,
        mark: usize,
        rows: u32,
        many: bool,
        priority: Priority,
        deadline: Option<Instant>,
    ) -> Work {
        let features = mark..self.features.len();
        assert!(rows > 0 && features.len().is_multiple_of(rows as usize), "rows of equal width");
        Work { model, rows, many, priority, deadline, retries: 0, features, texts: 0..0 }
    }

    /// Gives work the text features that were pushed since `mark`.
    pub fn attach_texts(&self, work: &mut Work, mark: TextMark) {
        work.texts = self.texts.range_since(mark);
    }

    /// Adds a request. The headers pushed since the last request are its own.
    ///
    /// # Panics
    /// Panics past 2^32 headers; the source bounds a chunk far below that.
    pub fn push(&mut self, request: NewRequest) {
        let start = self.requests.last().map_or(0, |last| last.echo.end);
        let end = u32::try_from(self.echo.len()).expect("a chunk holds far fewer headers than 2^32");
        let NewRequest { position, route, arrived, id_json, key, address, work } = request;
        self.requests.push(Request {
            position,
            route,
            arrived,
            id_json,
            key,
            address,
            work,
            protocol: Protocol::Native,
            echo: start..end,
            original: None,
        });
    }

    /// Gives the request that was pushed last its protocol, where that is not the native one.
    ///
    /// # Panics
    /// When no request was pushed.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.requests.last_mut().expect("a request was pushed").protocol = protocol;
    }

    /// Keeps the record of the request that was pushed last as it came, for a dead letter.
    ///
    /// # Panics
    /// When no request was pushed.
    pub fn keep_original(&mut self, message: &Message<'_>) {
        let topic = self.push_text(message.topic.as_bytes());
        let payload = message.payload.map(|payload| self.push_text(payload));
        let headers = message.headers.iter();
        let headers = headers
            .map(|(name, value)| {
                let name = self.push_text(name.as_bytes());
                (name, value.map(|value| self.push_text(value)))
            })
            .collect();
        let Message { partition_number: number, timestamp_ms, is_append_time, .. } = *message;
        self.originals.push(Original { topic, number, timestamp_ms, is_append_time, payload, headers });
        let index = u32::try_from(self.originals.len() - 1).expect("a chunk holds far fewer records than 2^32");
        self.requests.last_mut().expect("a request was pushed").original = Some(index);
    }
}

/// A request as a decoder hands it to [`Chunk::push`].
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// See [`Request::position`].
    pub position: Position,
    /// See [`Request::route`].
    pub route: u32,
    /// See [`Request::arrived`].
    pub arrived: Instant,
    /// See [`Request::id_json`].
    pub id_json: Span,
    /// See [`Request::key`].
    pub key: Option<Span>,
    /// See [`Request::address`].
    pub address: ReplyAddress,
    /// See [`Request::work`].
    pub work: Result<Work, Reject>,
}

/// A request in its shared chunk: what the queue holds and what a scored batch refers to.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The chunk.
    pub chunk: Arc<Chunk>,
    /// The request's index in it.
    pub index: u32,
}

impl Ticket {
    /// The request itself.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.chunk.requests[self.index as usize]
    }
}

/// A batch as a score thread hands it back to the shard that submitted its requests.
#[derive(Debug)]
pub struct ScoredBatch {
    /// The requests, in batch order.
    pub tickets: Vec<Ticket>,
    /// For each ticket its first row in `scores`, or why it has none.
    pub outcomes: Vec<Result<usize, Reject>>,
    /// Scores, row-major: `outputs` numbers a row.
    pub scores: Vec<f64>,
    /// Numbers a row.
    pub outputs: usize,
    /// The model version that scored it; `None` when no model was asked (expired requests).
    pub model: Option<Arc<LoadedModel>>,
    /// Rows that were scored together: those of other shards too, and of requests that shared one's scores only once.
    /// 0 where the scores came from the cache.
    pub batch_size: u32,
    /// When a score thread took the batch.
    pub started: Instant,
    /// How long the model took.
    pub inference: Duration,
    /// Whether the scores, all of them, came from the result cache.
    pub cache_hit: bool,
}

impl ScoredBatch {
    /// The scores of a ticket, or its rejection.
    ///
    /// # Errors
    /// The rejection that is the ticket's reply.
    pub fn scores_of(&self, ticket: usize) -> Result<&[f64], &Reject> {
        let first = *self.outcomes[ticket].as_ref()?;
        let rows = self.tickets[ticket].request().work.as_ref().map_or(0, |work| work.rows as usize);
        Ok(&self.scores[first * self.outputs..(first + rows) * self.outputs])
    }
}

/// An encoded reply. Its key, headers and address are read from the request when it is produced.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request it answers.
    pub ticket: Ticket,
    /// The reply's value.
    pub payload: Bytes,
    /// Why it is an error reply, when it is one.
    pub error: Option<Box<Reject>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_whole_and_the_room_stays() {
        let mut scratch = Chunk::default();
        for round in [1.0, 2.0] {
            scratch.features_mut().extend([round; 3]);
            let work = scratch.work(ModelId(0), 0, 1, false, Priority::new(1).expect("1 is not 0"), None);
            let id_json = scratch.push_text(b"\"r\"");
            scratch.push_echo("traceparent", b"t");
            let position = Position { partition: PartitionId(0), offset: 0 };
            let arrived = crate::clock::now();
            let address = ReplyAddress::Route;
            scratch.push(NewRequest { position, route: 0, arrived, id_json, key: None, address, work: Ok(work) });
            let taken = scratch.take();
            let request = &taken.requests()[0];
            assert_eq!(taken.rows(request.work.as_ref().expect("readable")), [round; 3]);
            assert_eq!((taken.str(request.id_json), taken.echo(request).len()), ("\"r\"", 1));
            assert_eq!((taken.features.capacity(), taken.text.capacity()), (3, 4));
            assert!(scratch.requests().is_empty() && scratch.features.capacity() >= 3);
        }
    }
}
