//! Pull requests to one consumer: so many messages are asked for as there is room, and never more.
//!
//! Invariant: `asked` is never less than what the server may still send, so that there is room for it.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::Info;
use async_nats::{Client, Message, Subject, Subscriber};
use bytes::Bytes;
use serde_json::json;

use crate::client::checkpoints::NatsFault;

/// How long a request waits at the server for messages.
const EXPIRES: Duration = Duration::from_secs(30);
/// After that, and this, without a word the server has forgotten it.
const GRACE: Duration = Duration::from_secs(5);
/// How long a consumer that refuses requests is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What a message on the requests' inbox is.
pub(super) enum Arrived {
    /// A record.
    Record(Message),
    /// The server's word on a request: more can be asked for.
    Word,
    /// The consumer is gone: it must be made again.
    Gone(String),
}

/// The requests to one consumer.
pub(super) struct Pull {
    client: Client,
    subject: Subject,
    inbox: Subject,
    pub(super) messages: Subscriber,
    /// Most messages that one request may ask for, and the longest that it may wait.
    batch_max: usize,
    expires: Duration,
    asked: usize,
    until: Option<Instant>,
    /// It is asked nothing until then.
    refused_until: Option<Instant>,
    is_said: bool,
    /// How often the client had connected when it asked last: a server forgets requests with their connection.
    connects: u64,
}

impl Pull {
    /// Nothing is asked for yet.
    pub(super) async fn new(client: &Client, consumer: &Info) -> Result<Self, NatsFault> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(NatsFault::later)?;
        let Info { stream_name, name, config, .. } = consumer;
        // A server may have limits of its own, which it writes into what it makes.
        let batch_max = usize::try_from(config.max_batch).ok().filter(|&most| most > 0).unwrap_or(usize::MAX);
        let longest = Some(config.max_expires).filter(|longest| !longest.is_zero());
        Ok(Self {
            client: client.clone(),
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream_name}.{name}").into(),
            inbox: inbox.into(),
            messages,
            batch_max,
            expires: longest.map_or(EXPIRES, |longest| longest.min(EXPIRES)),
            asked: 0,
            until: None,
            refused_until: None,
            is_said: false,
            connects: 0,
        })
    }

    /// Asks for more where less than half of `room` is asked for.
    pub(super) async fn ask(&mut self, room: usize, connects: u64, now: Instant) -> Result<(), NatsFault> {
        if self.refused_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        if self.connects != connects || self.until.is_some_and(|until| now > until) {
            self.asked = 0;
        }
        if self.asked > room / 2 {
            return Ok(());
        }
        let batch = (room - self.asked).min(self.batch_max);
        let expires = u64::try_from(self.expires.as_nanos()).unwrap_or(u64::MAX);
        let request = json!({ "batch": batch, "expires": expires }).to_string();
        let sent = self.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), Bytes::from(request));
        sent.await.map_err(NatsFault::later)?;
        self.asked += batch;
        (self.until, self.connects) = (Some(now + self.expires + GRACE), connects);
        Ok(())
    }

    /// Tells records from the server's words on requests.
    pub(super) fn take(&mut self, message: Message, now: Instant) -> Arrived {
        let Some(status) = message.status else {
            self.asked = self.asked.saturating_sub(1);
            return Arrived::Record(message);
        };
        let words = message.description.unwrap_or_default();
        match status.as_u16() {
            // Heartbeats end nothing.
            100 => Arrived::Word,
            503 => Arrived::Gone("no server has the consumer".to_owned()),
            409 if is_gone(&words) => Arrived::Gone(words),
            code => {
                let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
                let left = left.and_then(|left| left.as_str().parse::<usize>().ok());
                self.asked = left.map_or(0, |left| self.asked.saturating_sub(left));
                // A request that was served ends with a count, and one that found nothing with 404 or 408.
                if left.is_none() && !matches!(code, 404 | 408) {
                    self.refused_until = Some(now + REFUSED_PAUSE);
                    if !std::mem::replace(&mut self.is_said, true) {
                        tracing::warn!(consumer = %self.subject, code, words, "the consumer refuses requests; asking every second");
                    }
                }
                Arrived::Word
            }
        }
    }
}

/// Whether a consumer's last words are that it is not there, or not as it was made.
fn is_gone(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("deleted") || words.contains("push based")
}
