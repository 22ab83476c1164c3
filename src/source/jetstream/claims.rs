//! Claims partitions: reads the checkpoints of those that it does not hold, takes over what is free, and gives up what is
//! more than its part. A task of the connection's runtime, because each step waits for the server.
//!
//! Invariant: a partition is held by who wrote its last checkpoint. One that is free, or whose checkpoint was not renewed for
//! a lease, is claimed by writing the next; of two that try one is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{Info, RetentionPolicy, Stream};
use async_nats::{HeaderMap, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::{Receiver, Sender};

use super::members::{Members, Word};
use super::pull::Pull;
use crate::client::checkpoints::{Checkpoints, NatsFault, stream_handle, stream_of};
use crate::clock;
use crate::commit::{Checkpoint, OffsetMap};
use crate::config::{JetStream, OnBadPosition, StartPosition, SubjectFilter};
use crate::record::Fence;
use crate::source::SourceError;

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long after a word that changes something it is looked at, so that several words make one look.
const SOON: Duration = Duration::from_millis(50);

/// What the source is told.
pub(super) enum News {
    /// The streams are there and fit.
    Joined,
    /// Not yet, or not any more; why.
    Waiting(String),
    /// A partition is this worker's.
    Claimed(Box<Claimed>),
    /// A partition is another's part now: let it go.
    Release(Place),
    /// A partition must not be read until somebody has looked.
    Stopped(Place, String),
    /// Waiting would not help.
    Failed(SourceError),
}

/// A partition of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream: String,
    pub(super) number: i32,
}

/// A partition that was claimed.
pub(super) struct Claimed {
    pub(super) place: Place,
    pub(super) fence: Fence,
    pub(super) committed: OffsetMap,
    /// Records that the stream removed before they were read.
    pub(super) lost: u64,
    pub(super) pull: Pull,
}

/// What the source tells.
pub(super) enum Order {
    /// The partition is not this worker's any more.
    Gone(Place),
    /// The worker ends.
    Leave,
}

/// What this task knows of a partition.
struct Partition {
    place: Place,
    /// The subjects of its records.
    filters: Vec<String>,
    state: State,
}

enum State {
    /// Another's, or nobody's: the sequence of the checkpoint that was seen last, and since when.
    Seen(Option<(u64, Instant)>),
    Held,
    /// It was asked back.
    Releasing,
    Stopped,
}

/// What became of a try.
enum Tried {
    Claimed(Box<Claimed>),
    /// Somebody else was first, or holds it.
    Others,
    Stopped(String),
}

pub(super) struct Claims {
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) limits: JetStream,
    /// What the routes read.
    pub(super) inputs: Vec<SubjectFilter>,
    /// Most records of a partition that were delivered and are not done.
    pub(super) ack_pending_max: usize,
    pub(super) news: Sender<News>,
    pub(super) orders: Receiver<Order>,
}

impl Claims {
    /// Until the source is gone.
    pub(super) async fn run(mut self) {
        let Some(mut partitions) = self.start().await else { return };
        let mut members = Members::default();
        let subject = format!("forebay.members.{}", self.limits.group);
        let mut words: Option<Subscriber> = None;
        // Where somebody was heard of, a look comes sooner.
        let mut due = clock::now();
        loop {
            let now = clock::now();
            if words.is_none() {
                words = self.checkpoints.client().subscribe(subject.clone()).await.ok();
            }
            if now >= due {
                due = now + if self.look(&mut partitions, &mut members).await { self.limits.lease / 3 } else { AGAIN };
                self.say(&subject, &partitions, false).await;
            }
            let next = async {
                match &mut words {
                    Some(words) => words.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Gone(place)) => {
                        if let Some(partition) = partitions.iter_mut().find(|partition| partition.place == place) {
                            partition.state = State::Seen(None);
                        }
                        self.say(&subject, &partitions, false).await;
                        due = due.min(clock::now() + SOON);
                    }
                    Some(Order::Leave) => {
                        for partition in &mut partitions {
                            partition.state = State::Stopped;
                        }
                        self.say(&subject, &partitions, true).await;
                        return;
                    }
                    None => return,
                },
                message = next => match message.map(|message| serde_json::from_slice::<Word>(&message.payload)) {
                    Some(Ok(word)) => {
                        let now = clock::now();
                        let is_other = word.run != self.checkpoints.owner().run;
                        if members.heard(&word, now) || (is_other && self.wants(&partitions, &mut members, now)) {
                            due = due.min(now + SOON);
                        }
                    }
                    Some(Err(_)) => {}
                    None => words = None,
                },
                () = tokio::time::sleep(due.saturating_duration_since(clock::now())) => {}
            }
        }
    }

    /// Finds the streams, as often as it takes. Nothing when the source is gone.
    async fn start(&mut self) -> Option<Vec<Partition>> {
        let mut said = String::new();
        loop {
            match self.partitions().await {
                Ok(partitions) => {
                    self.tell(News::Joined).await?;
                    return Some(partitions);
                }
                Err(NatsFault::Fatal(reason)) => {
                    self.tell(News::Failed(SourceError::Fatal(reason))).await;
                    return None;
                }
                Err(NatsFault::Later(reason)) => {
                    if said != reason {
                        tracing::warn!(reason, "waiting for NATS");
                        self.tell(News::Waiting(reason.clone())).await?;
                        said = reason;
                    }
                }
            }
            tokio::select! {
                order = self.orders.recv() => if !matches!(order, Some(Order::Gone(_))) { return None },
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    async fn partitions(&self) -> Result<Vec<Partition>, NatsFault> {
        let replies = self.checkpoints.look_up().await?.name.clone();
        let context = self.checkpoints.context();
        let mut partitions: Vec<Partition> = Vec::new();
        for input in &self.inputs {
            for number in 0..i32::try_from(self.limits.partitions.get()).unwrap_or(i32::MAX) {
                let filter = input.of_partition(number);
                let stream = stream_of(context, filter.as_str()).await?;
                let place = Place { stream, number };
                match partitions.iter_mut().find(|partition| partition.place == place) {
                    Some(partition) => partition.filters.push(filter.as_str().to_owned()),
                    None => partitions.push(Partition {
                        place,
                        filters: vec![filter.as_str().to_owned()],
                        state: State::Seen(None),
                    }),
                }
            }
        }
        partitions.iter_mut().for_each(|partition| partition.filters.sort());
        let mut streams: Vec<&str> = partitions.iter().map(|partition| &*partition.place.stream).collect();
        streams.dedup();
        for stream in streams {
            let handle = stream_handle(context, stream).await?;
            if handle.cached_info().config.retention == RetentionPolicy::Interest {
                return Err(NatsFault::Fatal(format!(
                    "the input stream {stream} has interest retention, and drops records while a partition goes from one worker \
                     to another; set its retention to limits or workqueue"
                )));
            }
        }
        tracing::info!(replies, partitions = partitions.len(), "replies and checkpoints go out together: exactly once");
        Ok(partitions)
    }

    /// Whether a look is worth its questions: something is to be given up, or to be had.
    fn wants(&self, partitions: &[Partition], members: &mut Members, now: Instant) -> bool {
        let held = held(partitions);
        let part = members.part(&self.checkpoints.owner().run, partitions.len(), self.limits.lease, now);
        held > part || (held < part && held < partitions.len())
    }

    /// One round: what is free is claimed, what is too much is asked back. Returns whether all questions had an answer.
    async fn look(&self, partitions: &mut [Partition], members: &mut Members) -> bool {
        let now = clock::now();
        let run = &self.checkpoints.owner().run;
        let part = members.part(run, partitions.len(), self.limits.lease, now);
        let mut count = held(partitions);
        for partition in partitions.iter_mut().rev().filter(|partition| matches!(partition.state, State::Held)) {
            if count <= part {
                break;
            }
            partition.state = State::Releasing;
            count -= 1;
            if self.tell(News::Release(partition.place.clone())).await.is_none() {
                return true;
            }
        }
        let mut is_answered = true;
        for partition in partitions.iter_mut() {
            let State::Seen(seen) = &partition.state else { continue };
            let seen = *seen;
            match self.look_at(partition, seen, count < part).await {
                Ok((state, claimed)) => {
                    partition.state = state;
                    if let Some(claimed) = claimed {
                        count += 1;
                        if self.tell(News::Claimed(claimed)).await.is_none() {
                            return true;
                        }
                    }
                }
                Err(NatsFault::Later(reason)) => {
                    let place = &partition.place;
                    tracing::debug!(stream = place.stream, partition = place.number, reason, "claiming again");
                    is_answered = false;
                }
                Err(NatsFault::Fatal(reason)) => {
                    self.tell(News::Failed(SourceError::Fatal(reason))).await;
                    return true;
                }
            }
        }
        is_answered
    }

    async fn look_at(
        &self,
        partition: &Partition,
        seen: Option<(u64, Instant)>,
        is_wanted: bool,
    ) -> Result<(State, Option<Box<Claimed>>), NatsFault> {
        let Place { stream, number } = &partition.place;
        let (sequence, checkpoint) = self.checkpoints.read(stream, *number).await?;
        if let Some(checkpoint) = &checkpoint {
            same_subjects(partition, &checkpoint.subjects)?;
        }
        let now = clock::now();
        let since = seen.filter(|(last, _)| *last == sequence).map_or(now, |(_, since)| since);
        let waited = now.saturating_duration_since(since);
        let owner = checkpoint.as_ref().and_then(|checkpoint| checkpoint.owner.as_ref());
        let is_free = match owner {
            None => true,
            // This worker's name is its own: what wrote it was the process before this one.
            Some(owner) if owner.instance == self.checkpoints.owner().instance => true,
            Some(_) => waited >= self.limits.lease,
        };
        // What nobody takes though it is free is taken by anybody.
        let is_left = owner.is_none() && waited >= self.limits.lease;
        if !is_free || !(is_wanted || is_left) {
            return Ok((State::Seen(Some((sequence, since))), None));
        }
        match self.claim(partition, sequence, checkpoint).await? {
            Tried::Claimed(claimed) => Ok((State::Held, Some(claimed))),
            Tried::Others => Ok((State::Seen(None), None)),
            Tried::Stopped(reason) => {
                self.tell(News::Stopped(partition.place.clone(), reason)).await;
                Ok((State::Stopped, None))
            }
        }
    }

    async fn claim(
        &self,
        partition: &Partition,
        sequence: u64,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Tried, NatsFault> {
        let Place { stream: name, number } = &partition.place;
        let stream = stream_handle(self.checkpoints.context(), name).await?;
        let consumer = format!("{}-{number}", self.limits.group);
        let info = stream.cached_info();
        let created = info.created.to_string();
        let known = match checkpoint {
            Some(checkpoint) if checkpoint.created == created => Some(checkpoint.map),
            Some(_) => {
                tracing::warn!(
                    stream = name,
                    "the stream was made anew since the last checkpoint; starting at its first record"
                );
                Some(OffsetMap::empty(first_of(info)))
            }
            None => None,
        };
        let (map, lost) = match known {
            Some(map) => {
                let (raised, gone, beyond) = map.raised_to(first_of(info));
                // Elsewhere what is gone was acknowledged.
                let beyond = if info.config.retention == RetentionPolicy::Limits { beyond } else { 0 };
                let lost = gone + beyond;
                if lost > 0 {
                    tracing::error!(
                        stream = name,
                        partition = number,
                        lost,
                        "limits removed records before they were read"
                    );
                }
                (raised, lost)
            }
            None => match self.first_start(&stream, info, &consumer).await? {
                Ok(base) => (OffsetMap::empty(base), 0),
                Err(stopped) => return Ok(stopped),
            },
        };
        let fence = Fence { sequence, created, subjects: partition.filters.clone() };
        let Some(sequence) = self.checkpoints.claim((name, *number), &fence, &map).await? else {
            return Ok(Tried::Others);
        };
        // Made anew, so that it sends what is open in the stream's order, and whoever held the partition gets no more.
        let _ = stream.delete_consumer(&consumer).await;
        let config = self.consumer(&consumer, &partition.filters, &map, info);
        stream.create_consumer(config).await.map_err(NatsFault::later)?;
        let pull = Pull::new(self.checkpoints.client(), name, &consumer).await?;
        tracing::info!(stream = name, partition = number, from = map.base(), "claimed");
        Ok(Tried::Claimed(Box::new(Claimed {
            place: partition.place.clone(),
            fence: Fence { sequence, ..fence },
            committed: map,
            lost,
            pull,
        })))
    }

    /// Where a group without a checkpoint starts.
    async fn first_start(
        &self,
        stream: &Stream<Info>,
        info: &Info,
        consumer: &str,
    ) -> Result<Result<i64, Tried>, NatsFault> {
        let acknowledged = match stream.consumer_info(consumer).await {
            Ok(info) => info.ack_floor.stream_sequence,
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => 0,
            Err(error) => return Err(NatsFault::later(error)),
        };
        let name = &info.config.name;
        if acknowledged > 0 {
            if self.limits.on_missing_checkpoint == OnBadPosition::Continue {
                tracing::error!(
                    stream = name,
                    consumer,
                    acknowledged,
                    "the checkpoint is gone; going on behind what was acknowledged, as nats.on_missing_checkpoint says"
                );
                return Ok(Ok(sequence(acknowledged + 1)));
            }
            return Ok(Err(Tried::Stopped(format!(
                "the consumer {consumer} of {name} has acknowledged records up to {acknowledged}, and its checkpoint is gone: which \
                 records above are answered is unknown. Set nats.on_missing_checkpoint = \"continue\" to go on behind them, or \
                 delete the consumer to start as nats.start says"
            ))));
        }
        match self.limits.start {
            StartPosition::Earliest => Ok(Ok(first_of(info))),
            StartPosition::Latest => Ok(Ok(sequence(info.state.last_sequence + 1))),
            StartPosition::Error => Err(NatsFault::Fatal(format!(
                "the group {} has no checkpoint for {name}; set nats.start to \"earliest\" or \"latest\"",
                self.limits.group
            ))),
        }
    }

    fn consumer(&self, name: &str, filters: &[String], map: &OffsetMap, info: &Info) -> pull::Config {
        // Others are refused where each record is one consumer's, and those that are done are gone there.
        let deliver_policy = if info.config.retention == RetentionPolicy::WorkQueue {
            DeliverPolicy::All
        } else {
            DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(map.base()).unwrap_or(1).max(1) }
        };
        pull::Config {
            durable_name: Some(name.to_owned()),
            description: Some("forebay: its checkpoint says what is done".to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.limits.ack_wait,
            // Deliveries rise with kills; what a record's own fault is, is counted elsewhere.
            max_deliver: -1,
            filter_subjects: filters.to_vec(),
            max_ack_pending: i64::try_from(self.ack_pending_max).unwrap_or(i64::MAX),
            ..pull::Config::default()
        }
    }

    /// Says who this worker is, to those who share. What is not heard is said again.
    async fn say(&self, subject: &str, partitions: &[Partition], is_leaving: bool) {
        let owner = self.checkpoints.owner();
        let (instance, run, held) = (owner.instance.clone(), owner.run.clone(), held(partitions));
        let word = Word { instance, run, held, is_leaving };
        let payload = serde_json::to_vec(&word).unwrap_or_default();
        let _ =
            self.checkpoints.client().publish_with_headers(subject.to_owned(), HeaderMap::new(), payload.into()).await;
    }

    /// Nothing when the source is gone.
    async fn tell(&self, news: News) -> Option<()> {
        self.news.send(news).await.ok()
    }
}

/// Below a position only the records of its own subjects were looked at: with others some would be lost, or come again as
/// another partition's.
fn same_subjects(partition: &Partition, of_checkpoint: &[String]) -> Result<(), NatsFault> {
    let Partition { place: Place { stream, number }, filters, .. } = partition;
    if of_checkpoint == filters {
        return Ok(());
    }
    Err(NatsFault::Fatal(format!(
        "the checkpoint of {stream}/{number} is for the subjects [{}], and the routes read [{}] there: which of these records are \
         answered is unknown. Give nats.group another name, which starts as nats.start says, or let the routes read the same as before",
        of_checkpoint.join(", "),
        filters.join(", ")
    )))
}

fn held(partitions: &[Partition]) -> usize {
    partitions.iter().filter(|partition| matches!(partition.state, State::Held)).count()
}

fn first_of(info: &Info) -> i64 {
    sequence(info.state.first_sequence.max(1))
}

fn sequence(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
