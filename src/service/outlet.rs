//! Scored batches in, answers out on their reply subjects.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio::time::timeout;

use super::answer;
use super::serve::{ANSWER_BOUND, Serve};
use crate::clock;
use crate::record::{ErrorCode, Reject, Reply};

/// How often a thread that waits for room in the client's queue looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

impl Serve {
    /// Answers the requests of the batches that have come.
    pub(super) async fn answer_batches(&mut self) {
        let level = self.parts.service.reply_metadata;
        for batch in self.batches.drain(..) {
            self.encoder.encode_batch(batch, |_| level, &mut self.replies);
        }
        self.send_replies().await;
    }

    /// Sends what is encoded.
    pub(super) async fn send_replies(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        let now = clock::now();
        let metrics = self.parts.engine.metrics();
        metrics.request_seconds.add_since(now, self.replies.iter().map(|reply| reply.ticket.request().arrived));
        let mut replies = std::mem::take(&mut self.replies);
        for reply in replies.drain(..) {
            self.answer(reply, now).await;
        }
        self.replies = replies;
    }

    async fn answer(&mut self, reply: Reply, now: Instant) {
        let request = reply.ticket.request();
        let Some(subject) = self.waiting.take(request.position, reply.ticket.index) else {
            tracing::error!(number = request.position.offset, "a request ended twice; the first end counts");
            return;
        };
        let (took, route) = (now.saturating_duration_since(request.arrived), request.route);
        let headers = answer::headers(&reply);
        let Reply { ticket, payload, mut error } = reply;
        let bytes = payload.len();
        let mut sent = self.publish(subject.clone(), headers, payload).await;
        if sent == Err(PublishErrorKind::MaxPayloadExceeded) {
            let most = self.client.max_payload();
            let message = format!("the reply has {bytes} bytes, the NATS server takes {most} (max_payload)");
            let small = self.encoder.encode_reject(ticket, &Reject::new(ErrorCode::TooLarge, message));
            let headers = answer::headers(&small);
            sent = self.publish(subject, headers, small.payload).await;
            error = small.error;
        }
        let metrics = self.parts.engine.metrics();
        metrics.records_in_flight.dec();
        if let Err(kind) = sent {
            if metrics.replies_dropped.get() == 0 {
                tracing::warn!(%kind, "an answer to a NATS request could not be sent; it and others like it are dropped");
            }
            metrics.replies_dropped.inc();
        }
        self.lane_of(route).endpoint.answered(took, error.as_deref());
    }

    /// Hands a message to the client. While that has no room, this waits: until the worker must end, or a connected server
    /// has taken nothing for so long that what it sends meanwhile must not wait any longer. Then what finds no room is given
    /// up at once, until something is taken.
    async fn publish(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), PublishErrorKind> {
        let mut publish = pin!(async {
            match headers {
                None => self.client.publish(subject, payload).await,
                Some(headers) => self.client.publish_with_headers(subject, headers, payload).await,
            }
        });
        let mut published = poll_fn(|cx| Poll::Ready(publish.as_mut().poll(cx))).await;
        loop {
            if let Poll::Ready(result) = published {
                self.full_since.set(None);
                return result.map_err(|error| error.kind());
            }
            if self.parts.stop.overdue() || self.is_stuck(clock::now()) {
                return Err(PublishErrorKind::Send);
            }
            self.look_after_connection();
            published = timeout(LOOK, publish.as_mut()).await.map_or(Poll::Pending, Poll::Ready);
        }
    }

    /// Whether the server has taken nothing for too long. One that is away sends nothing either: for that one there is time.
    fn is_stuck(&self, now: Instant) -> bool {
        let since = self.full_since.get().filter(|_| self.connection.is_connected()).unwrap_or(now);
        self.full_since.set(Some(since));
        now.saturating_duration_since(since) >= ANSWER_BOUND
    }
}
