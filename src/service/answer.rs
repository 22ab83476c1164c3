//! A reply in, what its NATS message carries besides the payload out. Pure.

use async_nats::{HeaderMap, HeaderValue};

use crate::record::{ErrorCode, Reject, Reply};

/// The header of an error's words (ADR-32).
const ERROR: &str = "Nats-Service-Error";
/// The header of an error's number (ADR-32).
const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// The header of an error's code, as replies on Kafka have it.
const FOREBAY_ERROR: &str = "forebay-error";

/// The number of an error, as HTTP has it.
pub(super) const fn status(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::BadRequest => 400,
        ErrorCode::UnknownModel => 404,
        ErrorCode::TooLarge => 413,
        ErrorCode::QueueFull => 429,
        ErrorCode::ModelError => 500,
        ErrorCode::DeadlineExceeded => 504,
    }
}

/// An error as the statistics show it.
pub(super) fn error_line(reject: &Reject) -> String {
    format!("{}:{}", status(reject.code), one_line(&reject.message))
}

/// The headers of a reply; `None` where it needs none, which is cheaper for all who handle it.
pub(super) fn headers(reply: &Reply) -> Option<HeaderMap> {
    let ticket = &reply.ticket;
    let echo = ticket.chunk.echo(ticket.request());
    if echo.is_empty() && reply.error.is_none() {
        return None;
    }
    let mut headers = HeaderMap::new();
    for header in echo {
        if let Ok(value) = ticket.chunk.str(header.value).parse::<HeaderValue>() {
            headers.insert(header.name, value);
        }
    }
    if let Some(reject) = &reply.error {
        let message = one_line(&reject.message).parse().unwrap_or_else(|_| HeaderValue::new());
        headers.insert(ERROR, message);
        headers.insert(ERROR_CODE, status(reject.code).to_string());
        headers.insert(FOREBAY_ERROR, reject.code.as_str());
    }
    Some(headers)
}

/// A text that fits into a header: what a model says may have more lines.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::clock;
    use crate::record::{Chunk, NewRequest, PartitionId, Position, ReplyAddress, Ticket};

    fn reply(echo: &[(&'static str, &[u8])], error: Option<Reject>) -> Reply {
        let mut chunk = Chunk::default();
        for (name, value) in echo {
            chunk.push_echo(name, value);
        }
        let id_json = chunk.push_text(b"1");
        chunk.push(NewRequest {
            position: Position { partition: PartitionId(0), offset: 0 },
            route: 0,
            arrived: clock::now(),
            id_json,
            key: None,
            address: ReplyAddress::Route,
            work: Err(Reject::bad_request("")),
        });
        let ticket = Ticket { chunk: Arc::new(chunk), index: 0 };
        Reply { ticket, payload: Bytes::new(), error: error.map(Box::new) }
    }

    #[test]
    fn a_plain_answer_has_no_headers() {
        assert_eq!(headers(&reply(&[], None)), None);
    }

    #[test]
    fn what_is_carried_over_and_what_went_wrong() {
        let told = Reject::new(ErrorCode::ModelError, "line 1\r\nline 2 \u{e4}");
        let headers = headers(&reply(&[("traceparent", b"00-a"), ("correlation_id", b"a\nb")], Some(told))).unwrap();
        let value = |name: &str| headers.get(name).map(HeaderValue::as_str);
        assert_eq!(value("traceparent"), Some("00-a"));
        // What no header can hold is left out, and takes nothing with it.
        assert_eq!(value("correlation_id"), None);
        assert_eq!(value(ERROR), Some("line 1  line 2 \u{e4}"));
        assert_eq!((value(ERROR_CODE), value(FOREBAY_ERROR)), (Some("500"), Some("model_error")));
    }

    #[test]
    fn numbers_are_those_of_http() {
        assert_eq!(ErrorCode::ALL.map(status), [400, 404, 504, 429, 500, 413]);
    }
}
