//! Claims partitions: reads the checkpoints of those that it does not hold, takes over what is free, and gives up what is
//! more than its part. A task of the connection's runtime, because each step waits for the server.
//!
//! Invariant: a partition is held by who wrote its last checkpoint. One that is free, or whose checkpoint was not renewed for
//! a lease, is claimed by writing the next; of two that try one is refused.

mod begin;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::RetentionPolicy;
use async_nats::{HeaderMap, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::mpsc::{Receiver, Sender};

use super::members::{Members, Word};
use super::pull::Pull;
use crate::client::checkpoints::{Checkpoints, NatsFault, stream_handle, stream_of};
use crate::clock;
use crate::commit::OffsetMap;
use crate::config::{JetStream, SubjectFilter};
use crate::record::Fence;
use crate::source::SourceError;

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest pause, which it doubles to.
const AGAIN_MAX: Duration = Duration::from_secs(8);
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
    /// The lowest end that its stream was set back to, and when that was seen, until it was claimed since.
    set_back: Option<(u64, Instant)>,
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

pub(super) struct Claims {
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) limits: JetStream,
    /// What the routes read.
    pub(super) inputs: Vec<SubjectFilter>,
    /// Most records of a partition that were delivered and are not done.
    pub(super) ack_pending_max: usize,
    pub(super) news: Sender<News>,
    pub(super) orders: Receiver<Order>,
    /// What was said last to be in the way.
    pub(super) said: String,
    /// When each stream was created, and how far it went when that was looked at last.
    pub(super) ends: BTreeMap<String, (String, u64)>,
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
        let mut pause = AGAIN;
        // After a look that met with trouble no word brings the next one nearer.
        let mut not_before = due;
        loop {
            let now = clock::now();
            if words.is_none() {
                words = self.checkpoints.client().subscribe(subject.clone()).await.ok();
            }
            if now >= due {
                let trouble = self.look(&mut partitions, &mut members).await;
                let is_well = trouble.is_none();
                due = clock::now() + if is_well { self.limits.lease / 3 } else { pause };
                not_before = if is_well { clock::now() } else { due };
                pause = if is_well { AGAIN } else { (2 * pause).min(AGAIN_MAX).min(self.limits.lease / 3) };
                if self.tell_trouble(trouble).await.is_none() {
                    return;
                }
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
                        due = due.min((clock::now() + SOON).max(not_before));
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
                        if members.heard(&word, now) && is_other && self.wants(&partitions, &mut members, now) {
                            due = due.min((now + SOON).max(not_before));
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
        loop {
            match self.partitions().await {
                Ok(partitions) => {
                    self.said.clear();
                    self.tell(News::Joined).await?;
                    return Some(partitions);
                }
                Err(NatsFault::Fatal(reason) | NatsFault::Stopped(reason)) => {
                    self.tell(News::Failed(SourceError::Fatal(reason))).await;
                    return None;
                }
                Err(NatsFault::Later(reason)) => {
                    if self.said != reason {
                        tracing::warn!(reason, "waiting for NATS");
                        self.tell(News::Waiting(reason.clone())).await?;
                        self.said = reason;
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
                        set_back: None,
                        state: State::Seen(None),
                    }),
                }
            }
        }
        for partition in &mut partitions {
            partition.filters.sort();
        }
        let mut streams: Vec<&str> = partitions.iter().map(|partition| &*partition.place.stream).collect();
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            let handle = stream_handle(context, stream).await?;
            if handle.cached_info().config.retention == RetentionPolicy::Interest {
                return Err(NatsFault::Fatal(format!(
                    "the input stream {stream} has interest retention, and drops records while a partition goes from one worker \
                     to another; set its retention to limits or workqueue"
                )));
            }
            self.check_count(&handle, stream).await?;
        }
        tracing::info!(replies, partitions = partitions.len(), "replies and checkpoints go out together: exactly once");
        Ok(partitions)
    }

    /// Says what is in the way, once, and when nothing is any more. Nothing when the source is gone.
    async fn tell_trouble(&mut self, trouble: Option<String>) -> Option<()> {
        let trouble = trouble.unwrap_or_default();
        if trouble == self.said {
            return Some(());
        }
        self.said.clone_from(&trouble);
        if trouble.is_empty() {
            return self.tell(News::Joined).await;
        }
        tracing::warn!(reason = trouble, "claiming again");
        self.tell(News::Waiting(trouble)).await
    }

    /// Whether a look is worth its questions: something is to be given up, or to be had.
    fn wants(&self, partitions: &[Partition], members: &mut Members, now: Instant) -> bool {
        let held = held(partitions);
        let part = members.part(&self.checkpoints.owner().run, partitions.len(), self.limits.lease, now);
        held > part || (held < part && held < partitions.len())
    }

    /// Partitions of streams that end earlier than they did: what they lost may have been answered, and what comes there now
    /// has the sequences of other records. They are let go, to be claimed by what their checkpoints say.
    async fn look_at_ends(&mut self, partitions: &mut [Partition]) -> Result<(), NatsFault> {
        let mut streams: Vec<String> = partitions.iter().map(|partition| partition.place.stream.clone()).collect();
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            let handle = stream_handle(self.checkpoints.context(), &stream).await?;
            let info = handle.cached_info();
            let (created, last) = (info.created.to_string(), info.state.last_sequence);
            let before = self.ends.insert(stream.clone(), (created.clone(), last));
            let Some((_, end)) = before.filter(|(of, end)| *of == created && *end > last) else { continue };
            tracing::error!(stream, last, before = end, "the stream has lost its last records");
            for partition in partitions.iter_mut().filter(|one| one.place.stream == stream) {
                // It may have grown again by the time that it is claimed.
                let lowest = partition.set_back.map_or(last, |(lowest, _)| lowest.min(last));
                partition.set_back = Some((lowest, clock::now()));
                if matches!(partition.state, State::Held) {
                    partition.state = State::Releasing;
                    let _ = self.tell(News::Release(partition.place.clone())).await;
                }
            }
        }
        Ok(())
    }

    /// One round: what is free is claimed, what is too much is asked back. Returns what was in the way.
    async fn look(&mut self, partitions: &mut [Partition], members: &mut Members) -> Option<String> {
        let mut trouble = self.look_at_ends(partitions).await.err().map(|fault| fault.to_string());
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
                return trouble;
            }
        }
        for partition in partitions.iter_mut() {
            let State::Seen(seen) = &partition.state else { continue };
            let seen = *seen;
            match self.look_at(partition, seen, count < part).await {
                Ok((state, claimed)) => {
                    partition.state = state;
                    if let Some(claimed) = claimed {
                        partition.set_back = None;
                        count += 1;
                        if self.tell(News::Claimed(claimed)).await.is_none() {
                            return trouble;
                        }
                    }
                }
                Err(NatsFault::Later(reason)) => {
                    trouble.get_or_insert(reason);
                }
                Err(NatsFault::Stopped(reason)) => {
                    partition.state = State::Stopped;
                    if self.tell(News::Stopped(partition.place.clone(), reason)).await.is_none() {
                        return trouble;
                    }
                }
                Err(NatsFault::Fatal(reason)) => {
                    self.tell(News::Failed(SourceError::Fatal(reason))).await;
                    return trouble;
                }
            }
        }
        trouble
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
            self.check_subjects(partition, checkpoint).await?;
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
        // Nothing: somebody else was first.
        let claimed = self.claim(partition, sequence, checkpoint).await?;
        let state = if claimed.is_some() { State::Held } else { State::Seen(None) };
        Ok((state, claimed.map(Box::new)))
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

fn held(partitions: &[Partition]) -> usize {
    partitions.iter().filter(|partition| matches!(partition.state, State::Held)).count()
}
