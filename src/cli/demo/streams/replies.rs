//! Replies out of a stream, in its order, each once.

use std::time::Duration;

use anyhow::{anyhow, bail};
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt as _;
use tokio::runtime::Handle;

use super::super::place::Replies;
use super::{Streams, last_sequence};

pub(super) struct StreamReplies {
    runtime: Handle,
    stream: Stream,
    subject: String,
    /// Begins anew by itself behind what came last, where a message is missing.
    messages: Ordered,
    /// The sequence of what came last.
    last: u64,
}

impl StreamReplies {
    pub(super) fn new(streams: &Streams) -> anyhow::Result<Self> {
        let runtime = streams.runtime.handle().clone();
        let subject = streams.score_subject();
        let (stream, messages) = runtime.block_on(async {
            let stream = streams.context.get_stream(streams.output()).await?;
            let config = OrderedConfig { filter_subject: subject.clone(), ..Default::default() };
            let messages = stream.create_consumer(config).await?.messages().await?;
            anyhow::Ok((stream, messages))
        })?;
        Ok(Self { runtime, stream, subject, messages, last: 0 })
    }

    /// What comes within `wait`.
    fn next(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
        match self.runtime.block_on(async { tokio::time::timeout(wait, self.messages.next()).await }) {
            Ok(Some(Ok(message))) => Ok(Some(message)),
            Ok(Some(Err(error))) => bail!("the stream of the replies cannot be read: {error}"),
            Ok(None) => bail!("the stream of the replies has ended"),
            Err(_) => Ok(None),
        }
    }
}

impl Replies for StreamReplies {
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let mut wait = Duration::from_millis(20);
        while let Some(message) = self.next(wait)? {
            let info = message.info().map_err(|error| anyhow!("a reply without a sequence: {error}"))?;
            self.last = info.stream_sequence;
            each(&message.payload);
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn is_at_end(&self) -> anyhow::Result<bool> {
        Ok(self.last >= self.runtime.block_on(last_sequence(&self.stream, &self.subject))?)
    }
}
