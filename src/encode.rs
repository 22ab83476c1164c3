//! Scored batches and rejections in, JSON replies out, each in the protocol of its request. The native one's fields stand in
//! the order of the wire format: `{"id", "success", "prediction" or "error", "metadata"}`; for the Open Inference Protocol see
//! `oip`.
//!
//! The fixed parts are appended by hand, and what is the same for a whole batch is rendered once. A number is the
//! shortest text that reads back as the same f64. The payloads of a batch share one allocation, which is used again when
//! the last of them is gone.
//!
//! Invariants: one reply for each ticket, in the batch's order; every reply is JSON, so a score that is no finite number
//! becomes a `model_error` even if the engine let it through.

mod oip;
mod schema;

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::oip::schema::{
    InferErrorBody, InferErrorParameters, InferReplyBody, InferReplyOutput, InferReplyParameters, InferScores,
    infer_reply_schema,
};
pub use self::schema::{Prediction, ReplyBody, ReplyErrorBody, ReplyMetadataBody, reply_schema};
use crate::config::ReplyMetadata;
use crate::record::{ErrorCode, Protocol, Reject, Reply, Request, ScoredBatch, Ticket};

/// Least bytes of an allocation for payloads.
const BUFFER_BYTES_MIN: usize = 16 * 1024;
/// About what a reply takes beside its scores.
const REPLY_BYTES_USUAL: usize = 256;
/// About what a score takes.
const SCORE_BYTES_USUAL: usize = 20;

/// Writes replies. One per shard: it keeps its buffers between batches.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: BytesMut,
    metadata: Metadata,
    oip: oip::Frame,
}

impl Encoder {
    /// An encoder with no buffer yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the replies of a batch to `out`, in the batch's order. `metadata_of` answers for a route's index.
    ///
    /// # Panics
    /// Panics when a ticket has no outcome: a reply would be lost without a word.
    pub fn encode_batch(
        &mut self,
        batch: ScoredBatch,
        metadata_of: impl Fn(u32) -> ReplyMetadata,
        out: &mut Vec<Reply>,
    ) {
        let mut batch = batch;
        let tickets = std::mem::take(&mut batch.tickets);
        assert_eq!(tickets.len(), batch.outcomes.len(), "each ticket of a batch has an outcome");
        self.metadata.level = None;
        self.oip.forget();
        self.reserve(tickets.len() * REPLY_BYTES_USUAL + batch.scores.len() * SCORE_BYTES_USUAL);
        out.reserve(tickets.len());
        for (ticket, outcome) in tickets.into_iter().zip(&batch.outcomes) {
            let request = ticket.request();
            let level = metadata_of(request.route);
            let queued = batch.started.saturating_duration_since(request.arrived);
            let scores = scores(request, outcome, &batch);
            match request.protocol {
                Protocol::Native => {
                    self.metadata.render(level, &batch);
                    self.push_native(&ticket, &scores, queued);
                }
                Protocol::OpenInference => {
                    self.oip.render(level, &batch);
                    self.oip.push(&mut self.buffer, &ticket, &scores, queued);
                }
            }
            let error = scores.err().map(|reject| Box::new(reject.into_owned()));
            let payload = self.finish();
            out.push(Reply { ticket, payload, error });
        }
    }

    /// The reply of a request that never came to the queue: it has no metadata.
    pub fn encode_reject(&mut self, ticket: Ticket, reject: &Reject) -> Reply {
        self.reserve(REPLY_BYTES_USUAL + reject.message.len());
        match ticket.request().protocol {
            Protocol::Native => {
                push_id(&mut self.buffer, &ticket);
                push_error(&mut self.buffer, reject);
            }
            Protocol::OpenInference => oip::push_reject(&mut self.buffer, &ticket, reject),
        }
        let payload = self.finish();
        Reply { ticket, payload, error: Some(Box::new(reject.clone())) }
    }

    fn push_native(&mut self, ticket: &Ticket, scores: &Result<&[f64], Cow<'_, Reject>>, queued: Duration) {
        push_id(&mut self.buffer, ticket);
        match scores {
            Ok(scores) => {
                push_prediction(&mut self.buffer, scores, rows_of(ticket.request()));
                self.metadata.push(&mut self.buffer, queued, Some(scores));
            }
            Err(reject) => {
                push_error(&mut self.buffer, reject);
                self.metadata.push(&mut self.buffer, queued, None);
            }
        }
    }

    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() < bytes {
            self.buffer.reserve(bytes.max(BUFFER_BYTES_MIN));
        }
    }

    fn finish(&mut self) -> Bytes {
        self.buffer.put_u8(b'}');
        self.buffer.split().freeze()
    }
}

/// How many rows a request's prediction shows: `None` for one row that is no list.
fn rows_of(request: &Request) -> Option<usize> {
    request.work.as_ref().ok().filter(|work| work.many).map(|work| work.rows as usize)
}

/// The scores of a request, or why it has none.
fn scores<'b>(
    request: &Request,
    outcome: &'b Result<usize, Reject>,
    batch: &'b ScoredBatch,
) -> Result<&'b [f64], Cow<'b, Reject>> {
    let first = *outcome.as_ref().map_err(Cow::Borrowed)?;
    let rows = request.work.as_ref().map_or(0, |work| work.rows as usize);
    let scores = &batch.scores[first * batch.outputs..(first + rows) * batch.outputs];
    match scores.iter().find(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(odd) => {
            let message = format!("the model answered {odd}, which is no finite number");
            Err(Cow::Owned(Reject::new(ErrorCode::ModelError, message)))
        }
    }
}

fn push_id(buffer: &mut BytesMut, ticket: &Ticket) {
    buffer.extend_from_slice(b"{\"id\":");
    buffer.extend_from_slice(ticket.chunk.bytes(ticket.request().id_json));
}

fn push_prediction(buffer: &mut BytesMut, scores: &[f64], rows: Option<usize>) {
    buffer.extend_from_slice(b",\"success\":true,\"prediction\":[");
    match rows {
        None => push_numbers(buffer, scores),
        Some(rows) => {
            let outputs = (scores.len() / rows.max(1)).max(1);
            for (index, row) in scores.chunks_exact(outputs).enumerate() {
                buffer.extend_from_slice(if index == 0 { b"[" } else { b",[" });
                push_numbers(buffer, row);
                buffer.put_u8(b']');
            }
        }
    }
    buffer.put_u8(b']');
}

fn push_numbers(buffer: &mut BytesMut, numbers: &[f64]) {
    for (index, number) in numbers.iter().enumerate() {
        if index > 0 {
            buffer.put_u8(b',');
        }
        buffer.extend_from_slice(zmij::Buffer::new().format_finite(*number).as_bytes());
    }
}

fn push_error(buffer: &mut BytesMut, reject: &Reject) {
    buffer.extend_from_slice(b",\"success\":false,\"error\":{\"code\":\"");
    buffer.extend_from_slice(reject.code.as_str().as_bytes());
    buffer.extend_from_slice(b"\",\"message\":");
    push_text(buffer.writer(), &reject.message);
    buffer.put_u8(b'}');
}

fn push_text(writer: impl Write, text: &str) {
    serde_json::to_writer(writer, text).expect("a string is JSON, and memory takes all");
}

/// The metadata of a batch's replies: `head` and `tail` are the same for all, around each one's own `queue_ms`.
#[derive(Debug, Default)]
struct Metadata {
    /// What the parts are rendered for; `None` before the first reply of a batch.
    level: Option<ReplyMetadata>,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Metadata {
    /// Renders the parts, unless the last reply of the same batch asked for the same.
    fn render(&mut self, level: ReplyMetadata, batch: &ScoredBatch) {
        if self.level.replace(level) == Some(level) {
            return;
        }
        self.head.clear();
        self.head.extend_from_slice(b",\"metadata\":{");
        // Where no model was asked (an expired request), only the wait is known.
        if let Some(model) = &batch.model {
            self.head.extend_from_slice(b"\"model\":");
            push_text(&mut self.head, model.name());
            self.head.extend_from_slice(b",\"version\":\"");
            push_whole(&mut self.head, model.version());
            self.head.extend_from_slice(b"\",");
        }
        self.render_rest(level, batch);
    }

    /// The parts behind the model's name and version.
    fn render_rest(&mut self, level: ReplyMetadata, batch: &ScoredBatch) {
        self.tail.clear();
        if let Some(model) = &batch.model {
            if level == ReplyMetadata::Full {
                self.head.extend_from_slice(b"\"model_sha256\":\"");
                self.head.extend_from_slice(model.sha256().as_bytes());
                self.head.extend_from_slice(b"\",");
            }
            self.head.extend_from_slice(b"\"batch_size\":");
            push_whole(&mut self.head, batch.batch_size);
            self.head.push(b',');
            self.tail.extend_from_slice(b",\"inference_ms\":");
            push_millis(&mut self.tail, batch.inference);
            let cache_hit: &[u8] = if batch.cache_hit { b"true" } else { b"false" };
            self.tail.extend_from_slice(b",\"cache_hit\":");
            self.tail.extend_from_slice(cache_hit);
            if level == ReplyMetadata::Full {
                let compiled: &[u8] = if model.is_compiled() { b"true" } else { b"false" };
                self.tail.extend_from_slice(b",\"compiled\":");
                self.tail.extend_from_slice(compiled);
            }
        }
        self.head.extend_from_slice(b"\"queue_ms\":");
    }

    fn push(&self, buffer: &mut BytesMut, queued: Duration, scores: Option<&[f64]>) {
        self.push_behind(0, buffer, queued, scores);
    }

    /// The same without the first bytes.
    fn push_behind(&self, start: usize, buffer: &mut BytesMut, queued: Duration, scores: Option<&[f64]>) {
        if self.level == Some(ReplyMetadata::None) {
            return;
        }
        buffer.extend_from_slice(&self.head[start..]);
        push_millis(buffer, queued);
        buffer.extend_from_slice(&self.tail);
        if let (Some(ReplyMetadata::Full), Some(scores)) = (self.level, scores) {
            buffer.extend_from_slice(b",\"prediction_hash\":\"");
            buffer.extend_from_slice(&prediction_hash(scores));
            buffer.put_u8(b'"');
        }
        buffer.put_u8(b'}');
    }
}

fn push_whole(buffer: &mut Vec<u8>, number: u32) {
    write!(buffer, "{number}").expect("a Vec takes all");
}

/// Milliseconds, with three decimals at most: a whole number of thousandths prints so, being the shortest text.
fn push_millis(buffer: &mut impl BufMut, time: Duration) {
    let micros = u32::try_from((time.as_nanos() + 500) / 1_000).map_or_else(
        // Past an hour the microseconds are no longer worth their place.
        |_| time.as_secs_f64().round() * 1e6,
        f64::from,
    );
    buffer.put_slice(zmij::Buffer::new().format_finite(micros / 1_000.0).as_bytes());
}

/// BLAKE3 of the scores' little-endian bytes, its first 128 bits in hex: two replies can be compared without their
/// numbers.
fn prediction_hash(scores: &[f64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for score in scores {
        hasher.update(&score.to_le_bytes());
    }
    let hex = hasher.finalize().to_hex();
    let mut first = [0; 32];
    first.copy_from_slice(&hex.as_bytes()[..32]);
    first
}

#[cfg(test)]
mod tests;
