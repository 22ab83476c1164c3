//! One consumer that workers share: each record goes to any of them, and comes again where its acknowledgement does not.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{Info, Stream};
use tokio::sync::mpsc::{Receiver, Sender};

use super::claims::{Claimed, News, Order, Place};
use super::pull::Pull;
use crate::client::checkpoints::{Checkpoints, NatsFault, stream_handle, stream_of};
use crate::commit::OffsetMap;
use crate::config::{JetStream, StartPosition, SubjectFilter};
use crate::record::Fence;
use crate::source::SourceError;

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Opens the consumer of each stream, and opens it anew where it went.
pub(super) struct Shared {
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) limits: JetStream,
    pub(super) inputs: Vec<SubjectFilter>,
    pub(super) news: Sender<News>,
    pub(super) orders: Receiver<Order>,
}

impl Shared {
    /// Until the source is gone.
    pub(super) async fn run(mut self) {
        let mut said = String::new();
        // Streams whose consumer is to be opened; all of them, before they are known.
        let mut missing: Option<Vec<(String, Vec<String>)>> = None;
        let mut streams = Vec::new();
        loop {
            match self.open(&mut missing, &mut streams).await {
                Ok(()) if said.is_empty() => {}
                Ok(()) => {
                    said.clear();
                    let _ = self.news.send(News::Joined).await;
                }
                Err(NatsFault::Fatal(reason) | NatsFault::Stopped(reason)) => {
                    let _ = self.news.send(News::Failed(SourceError::Fatal(reason))).await;
                    return;
                }
                Err(NatsFault::Later(reason)) => {
                    if said != reason {
                        tracing::warn!(reason, "waiting for NATS");
                        if self.news.send(News::Waiting(reason.clone())).await.is_err() {
                            return;
                        }
                        said = reason;
                    }
                }
            }
            let is_open = missing.as_ref().is_some_and(Vec::is_empty);
            let order = if is_open {
                self.orders.recv().await
            } else {
                match tokio::time::timeout(AGAIN, self.orders.recv()).await {
                    Ok(order) => order,
                    Err(_) => continue,
                }
            };
            match order {
                Some(Order::Gone(place)) => {
                    let known = streams.iter().find(|(stream, _)| *stream == place.stream).cloned();
                    missing.get_or_insert_default().extend(known);
                    // A stream that was deleted is not there at once.
                    tokio::time::sleep(AGAIN).await;
                }
                Some(Order::Leave) | None => return,
            }
        }
    }

    async fn open(
        &self,
        missing: &mut Option<Vec<(String, Vec<String>)>>,
        streams: &mut Vec<(String, Vec<String>)>,
    ) -> Result<(), NatsFault> {
        if missing.is_none() {
            self.checkpoints.look_up_shared().await?;
            *streams = self.streams().await?;
            *missing = Some(streams.clone());
            if self.checkpoints.has_replies() {
                tracing::info!(
                    "replies go out by themselves: at least once, and once within the duplicate window of their stream"
                );
            }
            let _ = self.news.send(News::Joined).await;
        }
        while let Some((stream, filters)) = missing.as_ref().and_then(|missing| missing.first()).cloned() {
            let claimed = self.consumer(&stream, filters).await?;
            let _ = self.news.send(News::Claimed(Box::new(claimed))).await;
            missing.get_or_insert_default().remove(0);
        }
        Ok(())
    }

    /// The streams of the inputs, with their filters.
    async fn streams(&self) -> Result<Vec<(String, Vec<String>)>, NatsFault> {
        let mut streams: Vec<(String, Vec<String>)> = Vec::new();
        for input in &self.inputs {
            let filter = input.as_str().replace("{partition}", "*");
            let stream = stream_of(self.checkpoints.context(), &filter).await?;
            match streams.iter_mut().find(|(name, _)| *name == stream) {
                Some((_, filters)) => filters.push(filter),
                None => streams.push((stream, vec![filter])),
            }
        }
        Ok(streams)
    }

    async fn consumer(&self, name: &str, filters: Vec<String>) -> Result<Claimed, NatsFault> {
        let stream = stream_handle(self.checkpoints.context(), name).await?;
        let consumer = &self.limits.group;
        let there = match stream.consumer_info(consumer).await {
            Ok(info) => Some(info.config),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => None,
            Err(error) => return Err(NatsFault::later(error)),
        };
        if there.as_ref().is_some_and(|config| config.ack_policy != AckPolicy::Explicit) {
            return Err(NatsFault::Fatal(format!(
                "the consumer {consumer} of {name} acknowledges otherwise than explicitly, and an acknowledgement of one record \
                 would drop others; delete it, or give nats.group another name"
            )));
        }
        if there.is_none() {
            self.check_never_exact(&stream).await?;
        }
        let deliver_policy = match (there, self.limits.start) {
            (Some(config), _) => config.deliver_policy,
            (None, StartPosition::Earliest) => DeliverPolicy::All,
            (None, StartPosition::Latest) => DeliverPolicy::New,
            (None, StartPosition::Error) => {
                return Err(NatsFault::Fatal(format!(
                    "the stream {name} has no consumer {consumer}; set nats.start to \"earliest\" or \"latest\""
                )));
            }
        };
        let config = pull::Config {
            durable_name: Some(consumer.clone()),
            description: Some("forebay: shared by the workers of its group".to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.limits.ack_wait,
            max_deliver: -1,
            filter_subjects: filters,
            // Each worker asks for what it has room for; a common bound would let one that is slow stop the others.
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        let made = stream.create_consumer(config).await.map_err(NatsFault::later)?;
        let pull = Pull::new(self.checkpoints.client(), made.cached_info()).await?;
        Ok(Claimed {
            place: Place { stream: name.to_owned(), number: 0 },
            fence: Fence { sequence: 0, created: stream.cached_info().created.to_string(), subjects: Vec::new() },
            committed: OffsetMap::empty(0),
            lost: 0,
            pull,
        })
    }

    /// Whether the group's positions are in checkpoints, which nobody reads here: all would be answered again.
    async fn check_never_exact(&self, stream: &Stream<Info>) -> Result<(), NatsFault> {
        let (group, name) = (&self.limits.group, &stream.cached_info().config.name);
        match stream.consumer_info(format!("{group}-0")).await {
            Ok(_) => Err(NatsFault::Fatal(format!(
                "the group {group} was exactly once before, and its checkpoints are not read at least once: all records of {name} would be \
                 answered again. Give nats.group another name, or delete the consumers {group}-0, … of {name} to start as nats.start says"
            ))),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(()),
            Err(error) => Err(NatsFault::later(error)),
        }
    }
}
