//! Words to NATS on records that wait or are done, where they are told one by one.

use std::time::{Duration, Instant};

use async_nats::{Client, Request, Subject};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::runtime::Handle;

/// How long a server may take to confirm.
const CONFIRM_BOUND: Duration = Duration::from_secs(5);
/// How often that is asked for; then the record comes again.
const TRIES: usize = 3;
/// Confirmations that are waited for at once.
const AT_ONCE: usize = 256;

/// Acknowledges records.
#[derive(Clone)]
pub(crate) struct Acks {
    runtime: Handle,
    client: Client,
    ack_wait: Duration,
    last_progress: Instant,
}

impl Acks {
    pub(crate) fn new(runtime: Handle, client: Client, ack_wait: Duration, now: Instant) -> Self {
        Self { runtime, client, ack_wait, last_progress: now }
    }

    /// Acknowledges records, and waits for the server's confirmation of each.
    pub(crate) fn acknowledge(&self, subjects: Vec<Subject>) {
        let confirms = subjects.into_iter().map(|subject| confirm(&self.client, subject));
        self.runtime.block_on(futures_util::stream::iter(confirms).buffer_unordered(AT_ONCE).for_each(|()| async {}));
    }

    /// Says of records that wait that they are alive, when it is time to.
    pub(crate) fn tell_progress<'a>(&mut self, now: Instant, waiting: impl Iterator<Item = &'a Subject>) {
        if now.saturating_duration_since(self.last_progress) < self.ack_wait / 3 {
            return;
        }
        self.last_progress = now;
        self.runtime.block_on(async {
            for subject in waiting {
                if self.client.publish(subject.clone(), Bytes::from_static(b"+WPI")).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// Acknowledges one record.
pub(crate) async fn confirm(client: &Client, subject: Subject) {
    for _ in 0..TRIES {
        let request = Request::new().payload(Bytes::from_static(b"+ACK")).timeout(Some(CONFIRM_BOUND));
        if client.send_request(subject.clone(), request).await.is_ok() {
            return;
        }
    }
}
