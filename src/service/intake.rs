//! Messages in, a chunk of requests out, into the engine as far as it has room; what it has no room for is refused.

use std::sync::Arc;

use async_nats::HeaderMap;

use super::serve::{Lane, Serve};
use crate::clock;
use crate::decode::Received;
use crate::record::{Chunk, ErrorCode, Message, Position, Reject, Ticket};

/// Headers that say where a reply goes on Kafka. Here the message's own reply subject does.
const KAFKA_ADDRESSES: [&str; 5] =
    ["kafka_replyTopic", "kafka_replyPartition", "REPLY_TOPIC", "REPLY_PARTITION", "reply_to"];

impl Serve {
    /// Makes a chunk of what has come in, submits it, and answers what cannot be scored.
    pub(super) async fn take_requests(&mut self) {
        let metrics = Arc::clone(self.parts.engine.metrics());
        metrics.records_received.inc_by(self.incoming.len() as u64);
        let chunk = self.decode();
        let count = chunk.requests().len();
        metrics.records_in_flight.add(i64::try_from(count).unwrap_or(i64::MAX));
        self.submit(&chunk);
        for (request, index) in chunk.requests().iter().zip(0..) {
            if let Err(reject) = &request.work {
                // What could not be read never came to a model.
                let is_refused = reject.code == ErrorCode::QueueFull;
                let model = if is_refused { self.lane_of(request.route).endpoint.model.as_str() } else { "" };
                metrics.record_error(model, reject.code);
                self.replies.push(self.encoder.encode_reject(Ticket { chunk: Arc::clone(&chunk), index }, reject));
            }
        }
        self.send_replies().await;
    }

    pub(super) fn lane_of(&self, route: u32) -> &Lane {
        &self.lanes[route as usize]
    }

    fn decode(&mut self) -> Arc<Chunk> {
        let received = Received { arrived: clock::now(), unix_ms: clock::unix_ms() };
        let catalog = self.parts.engine.catalog();
        let place = self.waiting.open(self.number);
        let most = self.parts.service.in_flight_max.get() as usize;
        let mut room = most.saturating_sub(self.waiting.len());
        self.subjects.clear();
        for (number, message) in self.incoming.drain(..) {
            let Some(reply) = &message.reply else {
                let counter = &self.parts.engine.metrics().service_without_reply;
                if counter.get() == 0 {
                    let subject = message.subject.as_str();
                    tracing::warn!(
                        subject,
                        "a request names no subject for its answer; it and others like it get none"
                    );
                }
                counter.inc();
                continue;
            };
            let headers = message.headers.as_ref().map(borrowed).unwrap_or_default();
            let record = Message {
                topic: &message.subject,
                partition_number: 0,
                position: Position { partition: place, offset: self.number },
                timestamp_ms: None,
                is_append_time: false,
                key: None,
                payload: Some(&message.payload),
                headers: &headers,
            };
            let decoder = &self.lanes[number].decoder;
            if room > 0 {
                room -= 1;
                decoder.decode(&record, received, &catalog, &mut self.scratch);
            } else {
                decoder.refuse(&record, received, too_many(most), &mut self.scratch);
            }
            self.subjects.push(reply);
            self.number += 1;
        }
        self.waiting.fill(place, &self.subjects);
        Arc::new(self.scratch.take())
    }

    /// Submits what can be scored. What finds its level of the queue full gets its reply here: nobody here could wait.
    fn submit(&mut self, chunk: &Arc<Chunk>) {
        let count = chunk.requests().len();
        let mut from = 0;
        while from < count {
            let submitted = self.parts.engine.submit_here(self.submitter, chunk, from);
            let (next, refused) = match submitted {
                Ok(full) => (full + 1, full..(full + 1).min(count)),
                Err(_) => (count, from..count),
            };
            for index in refused {
                let request = &chunk.requests()[index];
                let Ok(work) = &request.work else { continue };
                let reject = match submitted {
                    Ok(_) => level_full(work.priority.get()),
                    Err(_) => Reject::new(ErrorCode::QueueFull, "the worker is ending; send it again"),
                };
                let model = &self.lane_of(request.route).endpoint.model;
                self.parts.engine.metrics().record_error(model, reject.code);
                let index = u32::try_from(index).expect("a small chunk");
                self.replies.push(self.encoder.encode_reject(Ticket { chunk: Arc::clone(chunk), index }, &reject));
            }
            from = next;
        }
    }
}

fn too_many(most: usize) -> Reject {
    let message = format!("{most} requests are in flight (nats.service.in_flight_max); send it again later");
    Reject::new(ErrorCode::QueueFull, message)
}

fn level_full(level: u8) -> Reject {
    Reject::new(ErrorCode::QueueFull, format!("as many requests of priority {level} wait as may; send it again later"))
}

/// The headers as a record has them.
fn borrowed(headers: &HeaderMap) -> Vec<(&str, Option<&[u8]>)> {
    let all = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, Some(value.as_ref())))
    });
    all.filter(|(name, _)| !KAFKA_ADDRESSES.contains(name)).collect()
}
