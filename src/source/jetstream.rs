//! Records of `JetStream` in: partitions of streams are claimed by their checkpoints, each has a consumer of its own, and what
//! there is room for is pulled.
//!
//! Invariants: a partition's records come in the order of their sequences, each once for an assignment. One that comes again
//! only says anew where it is acknowledged. Where a delivery is missing (its number shows it) the partition is let go and
//! claimed anew, from its checkpoint.

mod claims;
mod members;
mod pull;
mod shared;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use crossbeam_channel::Receiver;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::claims::{Claimed, Claims, News, Order, Place};
use self::pull::{Arrived, Pull};
use self::shared::Shared;
use super::{GroupListener, Source, SourceError};
use crate::client::checkpoints::Checkpoints;
use crate::client::delivery;
use crate::clock;
use crate::commit::OffsetMap;
use crate::config::{Delivery, JetStream, SubjectFilter};
use crate::metrics::Metrics;
use crate::record::{AssignedPartition, Message, PartitionId, Position};
use crate::sink::inbox::{Event, Inbox};

/// Words between the source and its claims that may wait: far more than partitions change in a second.
const NEWS_MAX: usize = 4096;
/// Most records of a worker that are asked for and have not come.
const ASKED_MAX: usize = 4096;
/// Least of one partition.
const ASKED_MIN: usize = 64;
/// How long a worker that ends may take to say so.
const LAST_WORDS_BOUND: Duration = Duration::from_millis(500);

/// What a source is made of.
pub(crate) struct JetStreamInput {
    pub(crate) runtime: Handle,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) limits: JetStream,
    pub(crate) inputs: Vec<SubjectFilter>,
    /// Most records of a partition that are delivered and not done.
    pub(crate) in_flight_max: usize,
    pub(crate) listener: Arc<dyn GroupListener>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) metrics: Arc<Metrics>,
    /// Partitions that the sink found to be another's.
    pub(crate) lost: Receiver<PartitionId>,
    /// Says why there is nothing to do yet.
    pub(crate) waiting: Box<dyn Fn(&str) + Send>,
}

/// Partitions of streams, one or more of which are this worker's.
pub(crate) struct JetStreamSource {
    input: JetStreamInput,
    client: Client,
    news: mpsc::Receiver<News>,
    orders: mpsc::Sender<Order>,
    /// What opens consumers.
    opener: Option<JoinHandle<()>>,
    held: BTreeMap<PartitionId, Held>,
    /// What arrived and was not looked at: no more than was asked for.
    arrived: VecDeque<(PartitionId, async_nats::Message)>,
    next_id: u32,
    turn: usize,
    paused: bool,
    /// When it was said last that what arrived is alive.
    last_progress: Instant,
}

/// A partition that is this worker's.
struct Held {
    place: Place,
    committed: OffsetMap,
    pull: Pull,
    /// The number of the next delivery.
    next: u64,
    /// The highest sequence that was handed on.
    highest: i64,
    /// Where records are acknowledged that came in this round.
    acks: Vec<(i64, Subject)>,
}

impl JetStreamSource {
    /// Begins to claim. Partitions are assigned while [`Source::recv`] is called.
    pub(crate) fn join(input: JetStreamInput) -> Self {
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let (orders, ordered) = mpsc::channel(NEWS_MAX);
        let (checkpoints, limits, inputs) =
            (Arc::clone(&input.checkpoints), input.limits.clone(), input.inputs.clone());
        let opener = match limits.delivery {
            Delivery::ExactlyOnce => {
                let ack_pending_max = input.in_flight_max;
                let (said, ends) = (String::new(), BTreeMap::new());
                let claims =
                    Claims { checkpoints, limits, inputs, ack_pending_max, news: tell, orders: ordered, said, ends };
                input.runtime.spawn(claims.run())
            }
            Delivery::AtLeastOnce => {
                let shared = Shared { checkpoints, limits, inputs, news: tell, orders: ordered };
                input.runtime.spawn(shared.run())
            }
        };
        let client = input.checkpoints.client().clone();
        Self {
            input,
            client,
            news,
            orders,
            opener: Some(opener),
            held: BTreeMap::new(),
            arrived: VecDeque::new(),
            next_id: 0,
            turn: 0,
            paused: false,
            last_progress: clock::now(),
        }
    }

    fn take_news(&mut self) -> Result<(), SourceError> {
        while let Ok(id) = self.input.lost.try_recv() {
            self.drop_partition(id);
        }
        while let Ok(news) = self.news.try_recv() {
            self.take(news)?;
        }
        Ok(())
    }

    fn take(&mut self, news: News) -> Result<(), SourceError> {
        match news {
            News::Joined => self.input.listener.joined(),
            News::Waiting(reason) => (self.input.waiting)(&reason),
            News::Claimed(claimed) => self.assign(*claimed),
            News::Release(place) => {
                if let Some(id) = self.find(&place) {
                    tracing::info!(stream = place.stream, partition = place.number, "goes to another worker");
                    self.input.listener.revoked(&[id]);
                    self.drop_partition(id);
                }
            }
            News::Stopped(place, reason) => {
                tracing::error!(stream = place.stream, partition = place.number, "stopped: {reason}");
                let id = self.new_id();
                self.input.listener.stopped(id, &reason);
            }
            News::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn new_id(&mut self) -> PartitionId {
        self.next_id += 1;
        PartitionId(self.next_id)
    }

    fn find(&self, place: &Place) -> Option<PartitionId> {
        self.held.iter().find(|(_, held)| held.place == *place).map(|(id, _)| *id)
    }

    fn assign(&mut self, claimed: Claimed) {
        let id = self.new_id();
        let Claimed { place, fence, committed, lost, pull } = claimed;
        self.input.metrics.records_lost.inc_by(lost);
        self.input.listener.assigned(vec![AssignedPartition {
            id,
            topic: place.stream.clone(),
            number: place.number,
            committed: committed.clone(),
            fence: Some(fence),
        }]);
        self.held.insert(id, Held { place, committed, pull, next: 1, highest: i64::MIN, acks: Vec::new() });
    }

    /// The partition is not this worker's any more, and the sink knows.
    fn drop_partition(&mut self, id: PartitionId) {
        if let Some(held) = self.held.remove(&id) {
            let _ = self.orders.try_send(Order::Gone(held.place));
        }
    }

    /// Begins anew with a partition, from its checkpoint.
    fn start_over(&mut self, id: PartitionId, reason: &str) {
        if let Some(held) = self.held.get(&id) {
            let (stream, partition) = (&held.place.stream, held.place.number);
            tracing::warn!(stream, partition, reason, "claiming the partition anew");
            self.input.listener.lost(&[id]);
            self.drop_partition(id);
        }
    }

    /// Waits for messages or news, and takes what messages are there.
    fn wait(&mut self, most: usize, wait: Duration) -> Result<(), SourceError> {
        let runtime = self.input.runtime.clone();
        let news = runtime.block_on(self.gather(most, wait));
        match news {
            Some(news) => self.take(news),
            None => Ok(()),
        }
    }

    async fn gather(&mut self, most: usize, wait: Duration) -> Option<News> {
        let now = clock::now();
        let (paused, partitions) = (self.paused, self.held.len().max(1));
        if paused {
            self.tell_progress(now).await;
        } else {
            let room = (self.input.in_flight_max.min(ASKED_MAX) / partitions).max(ASKED_MIN);
            let connects = self.client.statistics().connects.load(Ordering::Relaxed);
            for held in self.held.values_mut() {
                if let Err(error) = held.pull.ask(room, connects, now).await {
                    tracing::debug!(%error, "asking again");
                }
            }
        }
        self.turn += 1;
        let start = self.turn % partitions;
        let (news, held, arrived) = (&mut self.news, &mut self.held, &mut self.arrived);
        let any = std::future::poll_fn(|context| {
            if let Poll::Ready(Some(news)) = news.poll_recv(context) {
                return Poll::Ready(Some(news));
            }
            // While paused too: what was asked for comes all the same, and waits here, where it is spoken for.
            let most = if paused { usize::MAX } else { most };
            let ids: Vec<PartitionId> = held.keys().copied().collect();
            for id in ids.iter().cycle().skip(start).take(ids.len()) {
                let Some(held) = held.get_mut(id) else { continue };
                while arrived.len() < most
                    && let Poll::Ready(Some(message)) = held.pull.messages.poll_next_unpin(context)
                {
                    arrived.push_back((*id, message));
                }
            }
            if paused || arrived.is_empty() { Poll::Pending } else { Poll::Ready(None) }
        });
        tokio::time::timeout(wait, any).await.ok().flatten()
    }

    /// Says of records that wait here that they are alive, when it is time to.
    async fn tell_progress(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last_progress) < self.input.limits.ack_wait / 3 {
            return;
        }
        self.last_progress = now;
        for (_, message) in &self.arrived {
            if let Some(reply) = message.reply.clone().filter(|_| message.status.is_none()) {
                let _ = self.client.publish(reply, Bytes::from_static(b"+WPI")).await;
            }
        }
    }

    /// What was delivered and not handed on goes to other workers at once, where they share a consumer.
    async fn give_back(&mut self) {
        let mut left: Vec<_> = self.arrived.drain(..).map(|(_, message)| message).collect();
        for held in self.held.values_mut() {
            while let Some(Some(message)) = held.pull.messages.next().now_or_never() {
                left.push(message);
            }
        }
        for message in left {
            if let Some(reply) = message.reply.filter(|_| message.status.is_none()) {
                let _ = self.client.publish(reply, Bytes::from_static(b"-NAK")).await;
            }
        }
    }

    /// Hands on a message that is a record and was not before. Returns whether it was.
    fn pass_on(&mut self, id: PartitionId, message: async_nats::Message, each: &mut dyn FnMut(&Message<'_>)) -> bool {
        let Some(held) = self.held.get_mut(&id) else { return false };
        let message = match held.pull.take(message, clock::now()) {
            Arrived::Record(message) => message,
            Arrived::Word => return false,
            Arrived::Gone(reason) => {
                self.start_over(id, &reason);
                return false;
            }
        };
        let Some((ack, delivery)) =
            message.reply.and_then(|reply| Some((delivery::read(&reply)?, reply))).map(|(d, r)| (r, d))
        else {
            return false;
        };
        let is_shared = self.input.limits.delivery == Delivery::AtLeastOnce;
        if !is_shared && delivery.number != held.next {
            let reason = format!("delivery {} came, and {} did not", delivery.number, held.next);
            self.start_over(id, &reason);
            return false;
        }
        held.next += 1;
        self.input.metrics.redeliveries.inc_by(u64::from(delivery.count > 1));
        held.acks.push((delivery.sequence, ack));
        if !is_shared && delivery.sequence <= held.highest {
            return false;
        }
        if !is_shared && held.committed.is_done(delivery.sequence) {
            self.input.metrics.records_done_before.inc();
            return false;
        }
        held.highest = delivery.sequence;
        self.input.metrics.lags.pending(&held.place.stream, held.place.number, delivery.pending);
        let headers = headers_of(message.headers.as_ref());
        each(&Message {
            topic: &message.subject,
            partition_number: held.place.number,
            position: Position { partition: id, offset: delivery.sequence },
            timestamp_ms: Some(delivery.timestamp_ms),
            is_append_time: true,
            key: None,
            payload: Some(&message.payload),
            headers: &headers,
        });
        true
    }
}

impl Source for JetStreamSource {
    fn recv(&mut self, most: usize, wait: Duration, each: &mut dyn FnMut(&Message<'_>)) -> Result<usize, SourceError> {
        self.take_news()?;
        self.wait(most, wait)?;
        let mut received = 0;
        let ready = if self.paused { 0 } else { most.min(self.arrived.len()) };
        for _ in 0..ready {
            if let Some((id, message)) = self.arrived.pop_front() {
                received += usize::from(self.pass_on(id, message, each));
            }
        }
        for (id, held) in &mut self.held {
            if !held.acks.is_empty() {
                self.input.inbox.send(Event::Acks { id: *id, acks: std::mem::take(&mut held.acks) });
            }
        }
        Ok(received)
    }

    fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }
}

impl Drop for JetStreamSource {
    /// The server has its last words before its client ends: then nobody waits for a lease to run out.
    fn drop(&mut self) {
        let _ = self.orders.try_send(Order::Leave);
        let (opener, is_shared) = (self.opener.take(), self.input.limits.delivery == Delivery::AtLeastOnce);
        let runtime = self.input.runtime.clone();
        let last_words = async {
            if is_shared {
                self.give_back().await;
            }
            if let Some(opener) = opener {
                let _ = opener.await;
            }
            let _ = self.client.flush().await;
        };
        let _ = runtime.block_on(async { tokio::time::timeout(LAST_WORDS_BOUND, last_words).await });
    }
}

/// The headers of a message, each of its values.
fn headers_of(headers: Option<&HeaderMap>) -> Vec<(&str, Option<&[u8]>)> {
    let all = headers.into_iter().flat_map(HeaderMap::iter);
    all.flat_map(|(name, values)| {
        values.iter().map(move |value| {
            let name: &str = name.as_ref();
            (name, Some(value.as_str().as_bytes()))
        })
    })
    .collect()
}
