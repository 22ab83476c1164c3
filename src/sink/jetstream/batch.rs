//! One atomic batch (ADR-50): messages that become visible together or not at all, the checkpoints last, each behind its
//! fence.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Request, Subject};
use bytes::Bytes;

use crate::client::checkpoints::{Answer, ApiError, WRONG_LAST_SEQUENCE};

/// Most messages of a batch, checkpoints included; the server refuses more (error 10199).
pub(super) const MESSAGES_MAX: usize = 1000;
/// One message of a batch.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) subject: Subject,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
    /// The sequence that must be the last of its subject; 0 for none yet.
    pub(super) fence: Option<u64>,
}

/// Why a batch did not go through, or may not have.
#[derive(Debug, thiserror::Error)]
pub(super) enum BatchError {
    /// A fence is stale: somebody else wrote a checkpoint. Nothing of the batch is visible.
    #[error("a checkpoint was written by another process ({0})")]
    Fenced(String),
    /// For one of its messages, or for itself; nobody says which. Nothing of it is visible.
    #[error("the server refused a batch: {0}")]
    Refused(String),
    /// Nobody knows.
    #[error("no answer to a batch: {0}")]
    Unknown(String),
}

/// Publishes a batch and waits for the word on it. Returns the sequence of its last message; the others have the sequences
/// below it, without a gap.
pub(super) async fn publish(
    client: &Client,
    id: &str,
    messages: Vec<Outgoing>,
    bound: Duration,
) -> Result<u64, BatchError> {
    let count = messages.len();
    let unknown = |error: &dyn std::fmt::Display| BatchError::Unknown(error.to_string());
    for (message, number) in messages.into_iter().zip(1_usize..) {
        let Outgoing { subject, mut headers, payload, fence } = message;
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", number.to_string());
        if let Some(fence) = fence.filter(|_| !is_unfenced()) {
            headers.insert("Nats-Expected-Last-Subject-Sequence", fence.to_string());
        }
        if number < count {
            client.publish_with_headers(subject, headers, payload).await.map_err(|error| unknown(&error))?;
            continue;
        }
        fail::fail_point!("sink::produced");
        headers.insert("Nats-Batch-Commit", "1");
        let request = Request::new().headers(headers).payload(payload).timeout(Some(bound));
        let answer = client.send_request(subject, request).await.map_err(|error| unknown(&error))?;
        return read(&answer.payload);
    }
    Err(BatchError::Refused("it holds no message".to_owned()))
}

/// A fail point that takes the guard away: the tests must see it missing.
fn is_unfenced() -> bool {
    fail::fail_point!("sink::unfenced", |_| true);
    false
}

fn read(answer: &[u8]) -> Result<u64, BatchError> {
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|error| BatchError::Unknown(format!("{error}: {}", String::from_utf8_lossy(answer))))?;
    match answer.error {
        None if answer.seq > 0 => Ok(answer.seq),
        None => Err(BatchError::Unknown("an answer without a sequence".to_owned())),
        Some(ApiError { err_code: WRONG_LAST_SEQUENCE, description }) => Err(BatchError::Fenced(description)),
        Some(ApiError { err_code, description }) => Err(BatchError::Refused(format!("{description} ({err_code})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words() {
        let read = |text: &str| read(text.as_bytes());
        assert_eq!(read(r#"{"stream":"EOS","seq":64,"batch":"b1","count":64}"#).unwrap(), 64);
        let stale =
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 64"},"stream":"EOS","seq":0}"#;
        assert!(matches!(read(stale), Err(BatchError::Fenced(_))));
        let large = r#"{"error":{"code":400,"err_code":10199,"description":"atomic publish batch is too large"}}"#;
        let refused = "the server refused a batch: atomic publish batch is too large (10199)";
        assert_eq!(read(large).unwrap_err().to_string(), refused);
        assert!(matches!(read("{}"), Err(BatchError::Unknown(_))));
        assert!(matches!(read(""), Err(BatchError::Unknown(_))));
    }
}
