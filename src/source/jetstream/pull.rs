//! Pull requests to one consumer: so many messages are asked for as there is room, and never more.
//!
//! Invariant: `asked` is never less than what the server may still send, so that there is room for it.

use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subject, Subscriber};
use bytes::Bytes;
use serde_json::json;

use crate::client::checkpoints::NatsFault;

/// How long a request waits at the server for messages.
const EXPIRES: Duration = Duration::from_secs(30);
/// After that, and this, without a word the server has forgotten it.
const GRACE: Duration = Duration::from_secs(5);

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
    asked: usize,
    until: Option<Instant>,
    /// How often the client had connected when it asked last: a server forgets requests with their connection.
    connects: u64,
}

impl Pull {
    /// Nothing is asked for yet.
    pub(super) async fn new(client: &Client, stream: &str, consumer: &str) -> Result<Self, NatsFault> {
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await.map_err(NatsFault::later)?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}").into();
        Ok(Self { client: client.clone(), subject, inbox: inbox.into(), messages, asked: 0, until: None, connects: 0 })
    }

    /// Asks for more where less than half of `room` is asked for.
    pub(super) async fn ask(&mut self, room: usize, connects: u64, now: Instant) -> Result<(), NatsFault> {
        if self.connects != connects || self.until.is_some_and(|until| now > until) {
            self.asked = 0;
        }
        if self.asked > room / 2 {
            return Ok(());
        }
        let batch = room - self.asked;
        let expires = u64::try_from(EXPIRES.as_nanos()).unwrap_or(u64::MAX);
        let request = json!({ "batch": batch, "expires": expires }).to_string();
        let sent = self.client.publish_with_reply(self.subject.clone(), self.inbox.clone(), Bytes::from(request));
        sent.await.map_err(NatsFault::later)?;
        self.asked += batch;
        (self.until, self.connects) = (Some(now + EXPIRES + GRACE), connects);
        Ok(())
    }

    /// Tells records from the server's words on requests.
    pub(super) fn take(&mut self, message: Message) -> Arrived {
        let Some(status) = message.status else {
            self.asked = self.asked.saturating_sub(1);
            return Arrived::Record(message);
        };
        let words = message.description.unwrap_or_default();
        match status.as_u16() {
            // Heartbeats end nothing.
            100 => Arrived::Word,
            503 => Arrived::Gone("no server has the consumer".to_owned()),
            409 if words.contains("Deleted") || words.contains("Push Based") => Arrived::Gone(words),
            _ => {
                let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
                let left = left.and_then(|left| left.as_str().parse::<usize>().ok());
                self.asked = left.map_or(0, |left| self.asked.saturating_sub(left));
                Arrived::Word
            }
        }
    }
}
