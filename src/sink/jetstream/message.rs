//! Replies, dead letters and checkpoints as messages of NATS.

use std::borrow::Cow;
use std::fmt::Write as _;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use super::super::ledger::{Pending, Take};
use super::super::{doubles_a_reply, drops_a_reply};
use super::Committer;
use super::batch::Outgoing;
use crate::config::Delivery;
use crate::record::{Chunk, ErrorCode, PartitionId, Reject, ReplyAddress, Ticket};

/// What a message takes besides its payload: its subject, the batch's own headers, and others.
const MESSAGE_BYTES: usize = 1024;

/// Most bytes of a message's headers, which a server takes up to 65,535 of; the batch's own come to them.
const HEADERS_BYTES_MAX: usize = 60 << 10;

/// What cannot go out.
pub(super) enum Fault {
    /// The reply, for this.
    Reply(Reject),
    /// Its dead letter, for this.
    Letter(String),
}

impl Committer {
    /// A batch: replies and dead letters, then the checkpoints that cover them, whose places are told.
    pub(super) fn messages(&self, take: &Take) -> (Vec<Outgoing>, Vec<(PartitionId, usize)>) {
        let mut messages = Vec::new();
        for (id, commit) in take {
            for (_, pending) in self.ledger.partitions[id].tracker.sent().take(commit.records) {
                messages.extend(self.letter(*id, pending));
                if pending.dropped || drops_a_reply() {
                    continue;
                }
                let reply = self.reply(pending);
                if doubles_a_reply() {
                    messages.push(reply.clone());
                }
                messages.push(reply);
            }
        }
        let mut checkpoints = Vec::with_capacity(take.len());
        for (id, commit) in take {
            if let Some((fence, checkpoint)) = self.checkpoint_of(*id, Some(&commit.map), Some(self.owner())) {
                checkpoints.push((*id, messages.len()));
                messages.push(self.fenced(fence, &checkpoint));
            }
        }
        (messages, checkpoints)
    }

    /// What says that nobody holds a partition any more.
    pub(super) fn checkpoint(&self, id: PartitionId, owner: Option<crate::commit::Owner>) -> Option<Outgoing> {
        let (fence, checkpoint) = self.checkpoint_of(id, None, owner)?;
        Some(self.fenced(fence, &checkpoint))
    }

    fn fenced(&self, fence: u64, checkpoint: &crate::commit::Checkpoint) -> Outgoing {
        let (subject, headers, payload) = self.sink.checkpoints.message(checkpoint);
        Outgoing { subject: subject.into(), headers, payload, fence: Some(fence) }
    }

    pub(super) fn reply(&self, pending: &Pending) -> Outgoing {
        Outgoing {
            subject: self.subject_of(pending).into(),
            headers: reply_headers(pending),
            payload: pending.reply.payload.clone(),
            fence: None,
        }
    }

    fn subject_of<'a>(&'a self, pending: &'a Pending) -> &'a str {
        let Ticket { chunk, .. } = &pending.reply.ticket;
        match pending.address() {
            ReplyAddress::Route => &self.ledger.routes[pending.reply.ticket.request().route as usize].topic,
            ReplyAddress::Named { topic, .. } => chunk.str(topic),
        }
    }

    /// The record of a reply as it came, where it is a dead letter.
    pub(super) fn letter(&self, id: PartitionId, pending: &Pending) -> Option<Outgoing> {
        let Ticket { chunk, .. } = &pending.reply.ticket;
        let request = pending.reply.ticket.request();
        let letter = self.ledger.routes[request.route as usize].dead_letter.as_ref().filter(|_| pending.letter)?;
        let (original, reject) = (chunk.original(request)?, pending.reply.error.as_ref()?);
        let subject = letter.topic(chunk.str(original.topic));
        let mut headers = HeaderMap::new();
        for (name, value) in &original.headers {
            let name = chunk.str(*name);
            // The server's own words (a message's id, a fence) are not the letter's.
            if !name.starts_with("Nats-") {
                append(&mut headers, name, value.map(|value| chunk.bytes(value)).unwrap_or_default());
            }
        }
        let stream = &self.ledger.partitions.get(&id)?.topic;
        for (name, value) in [
            ("forebay-original-subject", chunk.str(original.topic)),
            ("forebay-original-stream", stream),
            ("forebay-original-partition", &original.number.to_string()),
            ("forebay-original-sequence", &request.position.offset.to_string()),
            ("forebay-original-timestamp", &original.timestamp_ms.unwrap_or(-1).to_string()),
            ("forebay-group", &self.sink.limits.group),
            ("forebay-error", reject.code.as_str()),
            ("forebay-error-message", &reject.message),
        ] {
            append(&mut headers, name, value.as_bytes());
        }
        let payload = original.payload.map(|payload| chunk.bytes(payload)).unwrap_or_default();
        Some(Outgoing { subject: subject.into(), headers, payload: payload.to_vec().into(), fence: None })
    }

    // ---- what cannot go out ----

    /// Readdresses what cannot go where its request says. Returns how many those were.
    pub(super) fn readdress_wrong(&mut self, take: &Take) -> usize {
        let mut wrong = Vec::new();
        for (id, commit) in take {
            for (offset, pending) in self.ledger.partitions[id].tracker.sent().take(commit.records) {
                wrong.extend(self.fault(pending).map(|fault| (*id, offset, fault)));
            }
        }
        for (id, offset, fault) in &wrong {
            self.mend(*id, *offset, fault);
        }
        wrong.len()
    }

    /// Puts in the place of a reply what can go out.
    pub(super) fn mend(&mut self, id: PartitionId, offset: i64, fault: &Fault) {
        match fault {
            Fault::Reply(reject) => self.ledger.readdress(id, offset, reject),
            Fault::Letter(reason) => self.ledger.drop_letter(id, offset, reason),
        }
    }

    /// Why a reply cannot go out as it is.
    pub(super) fn fault(&self, pending: &Pending) -> Option<Fault> {
        if pending.dropped {
            return None;
        }
        let stream = self.sink.checkpoints.stream()?;
        let Ticket { chunk, .. } = &pending.reply.ticket;
        if let ReplyAddress::Named { topic, .. } = pending.address() {
            let subject = chunk.str(topic);
            if !is_publishable(subject) || !self.sink.checkpoints.take_reply(subject) {
                let message = format!("the reply subject {subject:?} is not one of the stream {}", stream.name);
                return Some(Fault::Reply(Reject::bad_request(message)));
            }
        }
        let max = stream.message_bytes_max;
        let headers = header_bytes(&reply_headers(pending));
        let bytes = pending.reply.payload.len() + MESSAGE_BYTES + headers;
        if bytes > max || headers > HEADERS_BYTES_MAX {
            let message = format!(
                "the reply takes {bytes} bytes, {headers} of them for headers; the stream {} takes {max} a message and \
                 {HEADERS_BYTES_MAX} for headers",
                stream.name
            );
            return Some(Fault::Reply(Reject::new(ErrorCode::TooLarge, message)));
        }
        self.letter_fault(pending, max)
    }

    /// Why a reply's dead letter cannot go out.
    fn letter_fault(&self, pending: &Pending, max: usize) -> Option<Fault> {
        let Ticket { chunk, .. } = &pending.reply.ticket;
        let request = pending.reply.ticket.request();
        let original = chunk.original(request).filter(|_| pending.letter)?;
        let letter = self.ledger.routes[request.route as usize].dead_letter.as_ref()?;
        let subject = letter.topic(chunk.str(original.topic));
        // Where replies go out by themselves, letters may go to another stream.
        let is_batch = self.sink.limits.delivery == Delivery::ExactlyOnce;
        if !is_publishable(&subject) || (is_batch && !self.sink.checkpoints.take_reply(&subject)) {
            return Some(Fault::Letter(format!("the stream of the replies does not take the subject {subject:?}")));
        }
        let payload = original.payload.map_or(0, crate::record::Span::len);
        let names = original.headers.iter();
        // A byte that is no text takes three.
        let headers: usize =
            names.map(|(name, value)| name.len() + 3 * value.map_or(0, crate::record::Span::len) + 4).sum();
        let bytes = payload + headers + 2 * MESSAGE_BYTES;
        (bytes > max || headers > HEADERS_BYTES_MAX).then(|| {
            Fault::Letter(format!(
                "it may take {bytes} bytes, {headers} of them for headers: more than its stream takes"
            ))
        })
    }
}

fn header_bytes(headers: &HeaderMap) -> usize {
    let bytes_of = |(name, values): (&HeaderName, &Vec<HeaderValue>)| -> usize {
        let name: &str = name.as_ref();
        values.iter().map(|value| name.len() + value.as_str().len() + 4).sum()
    };
    headers.iter().map(bytes_of).sum()
}

fn reply_headers(pending: &Pending) -> HeaderMap {
    let chunk: &Chunk = &pending.reply.ticket.chunk;
    let mut headers = HeaderMap::new();
    for header in chunk.echo(pending.reply.ticket.request()) {
        append(&mut headers, header.name, chunk.bytes(header.value));
    }
    if let Some(reject) = &pending.reply.error {
        // What cannot be carried over must not keep the error from its sender.
        if header_bytes(&headers) > HEADERS_BYTES_MAX {
            headers = HeaderMap::new();
        }
        append(&mut headers, "forebay-error", reject.code.as_str().as_bytes());
    }
    headers
}

/// Adds a header, if NATS takes such a name. What is no printable text is percent-encoded, as `CloudEvents` has it.
pub(crate) fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    let Ok(name) = name.parse::<HeaderName>() else { return };
    if let Ok(value) = text(value).parse::<HeaderValue>() {
        headers.append(name, value);
    }
}

fn text(value: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(value)
        && !text.chars().any(char::is_control)
    {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(3 * value.len());
    for &byte in value {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

/// Whether a sender's words are a subject that a message can be published to.
fn is_publishable(subject: &str) -> bool {
    subject.split('.').all(|token| {
        !token.is_empty() && token != "*" && token != ">" && !token.chars().any(|c| c.is_whitespace() || c.is_control())
    }) && !subject.starts_with('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_hold_text_only() {
        assert_eq!(text(b"plain 100%"), "plain 100%");
        assert_eq!(text("ä".as_bytes()), "ä");
        assert_eq!(text(b"a\r\nb%"), "a%0D%0Ab%25");
        assert_eq!(text(&[0, 255]), "%00%FF");
        let mut headers = HeaderMap::new();
        append(&mut headers, "a b", b"x");
        append(&mut headers, "a", b"1");
        append(&mut headers, "a", b"2");
        let values: Vec<&str> = headers.get_all("a").map(HeaderValue::as_str).collect();
        assert_eq!((headers.len(), values), (1, vec!["1", "2"]));
    }

    #[test]
    fn senders_words_are_not_taken_for_wildcards() {
        assert!(is_publishable("a.b-c"));
        for subject in ["", "a..b", "a.*", ">", "a b", "a\r\nPUB x 0", "$JS.API.STREAM.DELETE.A"] {
            assert!(!is_publishable(subject), "{subject}");
        }
    }
}
