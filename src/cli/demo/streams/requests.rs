//! Requests into a stream.
//!
//! Invariant: each is in the stream once. One that the stream does not confirm is sent again under its id.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::ensure;
use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use tokio::runtime::Handle;

use super::super::place::{PARTITIONS, Requests};
use super::{Streams, connect};
use crate::clock;

/// Most requests that are sent and not confirmed.
const OPEN_MAX: usize = 512;
/// How long the stream may take nothing.
const TAKEN_BOUND: Duration = Duration::from_secs(30);
/// How soon what was not taken is sent again.
const AGAIN: Duration = Duration::from_millis(100);

pub(super) struct StreamRequests {
    runtime: Handle,
    context: Context,
    /// The subject of each partition.
    subjects: Vec<String>,
    open: VecDeque<Open>,
}

/// A request whose confirmation is awaited.
struct Open {
    record: usize,
    body: Bytes,
    ack: PublishAckFuture,
}

impl StreamRequests {
    /// Over a connection of its own, as a producer has.
    pub(super) fn new(streams: &Streams) -> anyhow::Result<Self> {
        let runtime = streams.runtime.handle().clone();
        let client = runtime.block_on(connect(&streams.url))?;
        let _entered = runtime.enter();
        let subjects = (0..PARTITIONS).map(|partition| streams.feature_subject(&partition.to_string())).collect();
        Ok(Self { context: jetstream::new(client), runtime: runtime.clone(), subjects, open: VecDeque::new() })
    }

    fn publish(&self, record: usize, body: Bytes) -> anyhow::Result<PublishAckFuture> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", record.to_string());
        let subject = self.subjects[record % self.subjects.len()].clone();
        Ok(self.runtime.block_on(self.context.publish_with_headers(subject, headers, body))?)
    }

    /// Waits until the stream has the oldest request that it has not confirmed.
    fn settle(&mut self) -> anyhow::Result<()> {
        let Some(Open { record, body, mut ack }) = self.open.pop_front() else { return Ok(()) };
        let since = clock::now();
        while let Err(error) = self.runtime.block_on(ack.into_future()) {
            ensure!(
                clock::now() - since < TAKEN_BOUND,
                "the stream of the features does not take record {record}: {error}"
            );
            std::thread::sleep(AGAIN);
            ack = self.publish(record, body.clone())?;
        }
        Ok(())
    }
}

impl Requests for StreamRequests {
    fn send(&mut self, record: usize, body: String) -> anyhow::Result<()> {
        let body = Bytes::from(body);
        let ack = self.publish(record, body.clone())?;
        self.open.push_back(Open { record, body, ack });
        if self.open.len() > OPEN_MAX { self.settle() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        while !self.open.is_empty() {
            self.settle()?;
        }
        Ok(())
    }
}
