//! Replies of the Open Inference Protocol (V2, JSON): `{"model_name", "model_version", "id", "outputs", "parameters"}`, and for
//! an error `{"id", "error", "parameters"}`. The standard's error object holds `error` alone; the id is there because no
//! connection tells which request it was for, and the code because a message is for people.
//!
//! `parameters` are the metadata of the native reply, but for the model's name and version, which have their own fields.

pub(super) mod schema;

use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::{Metadata, push_numbers, push_text, push_whole};
use crate::config::ReplyMetadata;
use crate::decode::OUTPUT;
use crate::record::{Reject, ScoredBatch, Ticket};

const PARAMETERS: &[u8] = b",\"parameters\":{";

/// What is the same for all replies of a batch.
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// What stands before the id of a reply with scores.
    head: Vec<u8>,
    parameters: Metadata,
}

impl Frame {
    /// The next reply is another batch's.
    pub(super) fn forget(&mut self) {
        self.parameters.level = None;
    }

    /// Renders it, unless the last reply of the same batch asked for the same.
    pub(super) fn render(&mut self, level: ReplyMetadata, batch: &ScoredBatch) {
        let Self { head, parameters } = self;
        if parameters.level.replace(level) == Some(level) {
            return;
        }
        head.clear();
        head.push(b'{');
        if let Some(model) = &batch.model {
            head.extend_from_slice(b"\"model_name\":");
            push_text(&mut *head, model.name());
            head.extend_from_slice(b",\"model_version\":\"");
            push_whole(head, model.version());
            head.extend_from_slice(b"\",");
        }
        parameters.head.clear();
        parameters.head.extend_from_slice(PARAMETERS);
        parameters.render_rest(level, batch);
    }

    /// A reply but for its last brace.
    pub(super) fn push(
        &self,
        buffer: &mut BytesMut,
        ticket: &Ticket,
        scores: &Result<&[f64], Cow<'_, Reject>>,
        queued: Duration,
    ) {
        match scores {
            Ok(scores) => {
                buffer.extend_from_slice(&self.head);
                push_outputs(buffer, ticket, scores);
                self.parameters.push(buffer, queued, Some(scores));
            }
            Err(reject) => {
                push_error(buffer, ticket, reject);
                if self.parameters.level == Some(ReplyMetadata::None) {
                    buffer.put_u8(b'}');
                } else {
                    buffer.put_u8(b',');
                    self.parameters.push_behind(PARAMETERS.len(), buffer, queued, None);
                }
            }
        }
    }
}

/// The reply of a request that never came to the queue, but for its last brace.
pub(super) fn push_reject(buffer: &mut BytesMut, ticket: &Ticket, reject: &Reject) {
    push_error(buffer, ticket, reject);
    buffer.put_u8(b'}');
}

/// The id, and the only output, row by row.
fn push_outputs(buffer: &mut BytesMut, ticket: &Ticket, scores: &[f64]) {
    let request = ticket.request();
    let rows = request.work.as_ref().map_or(1, |work| work.rows as usize);
    buffer.extend_from_slice(b"\"id\":");
    buffer.extend_from_slice(ticket.chunk.bytes(request.id_json));
    buffer.extend_from_slice(b",\"outputs\":[{\"name\":\"");
    buffer.extend_from_slice(OUTPUT.as_bytes());
    buffer.extend_from_slice(b"\",\"datatype\":\"FP64\",\"shape\":[");
    write!(buffer.writer(), "{rows},{}", scores.len() / rows.max(1)).expect("memory takes all");
    buffer.extend_from_slice(b"],\"data\":[");
    push_numbers(buffer, scores);
    buffer.extend_from_slice(b"]}]");
}

/// All up to the code, inside `parameters`.
fn push_error(buffer: &mut BytesMut, ticket: &Ticket, reject: &Reject) {
    buffer.extend_from_slice(b"{\"id\":");
    buffer.extend_from_slice(ticket.chunk.bytes(ticket.request().id_json));
    buffer.extend_from_slice(b",\"error\":");
    push_text(buffer.writer(), &reject.message);
    buffer.extend_from_slice(PARAMETERS);
    buffer.extend_from_slice(b"\"code\":\"");
    buffer.extend_from_slice(reject.code.as_str().as_bytes());
    buffer.put_u8(b'"');
}

#[cfg(test)]
mod tests;
