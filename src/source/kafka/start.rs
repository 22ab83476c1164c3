//! Where an assigned partition starts, asked on a thread of its own: a transaction that a killed worker left open hides
//! the committed positions for as long as it may last, and meanwhile the partitions that are here already go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::checkpoint::{CheckpointStarts, Known};
use super::{GroupConsumer, SourceError, not_authorised};
use crate::client::positions::{self, Committed};
use crate::client::topic_id::topic_id;
use crate::clock::Stop;
use crate::commit::{OffsetMap, Reading};
use crate::config::{Kafka, OnBadPosition, StartPosition};
use crate::record::{Fence, PartitionId};

/// How long one question to the broker may take; it is asked again until answered.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for one partition, when all together found no answer: one that must wait holds back no other.
const SINGLE_TIMEOUT: Duration = Duration::from_millis(250);
/// A question that is refused at once must not be a busy loop.
const AGAIN: Duration = Duration::from_millis(50);

/// An assigned partition whose start is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: PartitionId,
    pub(super) topic: String,
    pub(super) number: i32,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// It starts here.
    Start { asked: Asked, committed: OffsetMap, lost: u64, fence: Option<Fence> },
    /// It must not be read until somebody has looked.
    Stop { asked: Asked, reason: String },
    /// The worker cannot go on.
    Fail(SourceError),
}

/// The thread's state.
pub(super) struct Starter {
    pub(super) consumer: Arc<GroupConsumer>,
    pub(super) limits: Kafka,
    /// Where positions are not the group's own.
    pub(super) checkpoints: Option<CheckpointStarts>,
    pub(super) stop: Arc<Stop>,
    pub(super) answers: Sender<Answer>,
    /// Partitions of each topic when it was first seen: those beyond were added while this worker ran.
    pub(super) first_counts: HashMap<String, i32>,
}

impl Starter {
    /// Until nobody asks any more.
    pub(super) fn run(mut self, asked: &Receiver<Vec<Asked>>) {
        let mut pending: Vec<Asked> = Vec::new();
        let mut said = false;
        loop {
            if pending.is_empty() {
                said = false;
                self.checkpoints.iter().for_each(CheckpointStarts::nothing_waits);
                match asked.recv() {
                    Ok(more) => pending.extend(more),
                    Err(_) => return,
                }
            }
            loop {
                match asked.try_recv() {
                    Ok(more) => pending.extend(more),
                    Err(crossbeam_channel::TryRecvError::Empty) => break,
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return,
                }
            }
            pending.retain(|asked| self.consumer.context().is_wanted(asked.id));
            if pending.is_empty() {
                continue;
            }
            if let Err(error) = self.answer(&mut pending, QUESTION_TIMEOUT) {
                if self.is_fatal(&error) {
                    return;
                }
                if !said && !self.consumer.context().watch.is_away() {
                    let partitions: Vec<_> = pending.iter().map(|p| format!("{}/{}", p.topic, p.number)).collect();
                    tracing::info!(%error, ?partitions, "waiting for the committed positions");
                    said = true;
                }
                let mut left = Vec::new();
                for one in std::mem::take(&mut pending) {
                    let mut one = vec![one];
                    if self.answer(&mut one, SINGLE_TIMEOUT).is_err_and(|error| self.is_fatal(&error)) {
                        return;
                    }
                    left.append(&mut one);
                }
                pending = left;
            }
            if self.stop.requested() {
                return;
            }
            if !pending.is_empty() {
                std::thread::sleep(AGAIN);
            }
        }
    }

    fn is_fatal(&self, error: &KafkaError) -> bool {
        use RDKafkaErrorCode as Code;
        let failure = match error.rdkafka_error_code() {
            Some(Code::FencedInstanceId) => SourceError::Fenced,
            Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => not_authorised(error),
            _ => return false,
        };
        self.tell(Answer::Fail(failure));
        true
    }

    fn tell(&self, answer: Answer) {
        // Who asked may have gone.
        let _ = self.answers.send(answer);
    }

    /// Answers those that can be answered and leaves the others in the list.
    fn answer(&mut self, pending: &mut Vec<Asked>, timeout: Duration) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for Asked { topic, number, .. } in pending.iter() {
            list.add_partition(topic, *number);
        }
        let (committed, refused) = positions::committed(&self.consumer.committed_offsets(list, timeout)?);
        self.consumer.context().watch.back();
        for committed in committed {
            let is = |asked: &Asked| asked.topic == committed.topic && asked.number == committed.number;
            let Some(index) = pending.iter().position(is) else { continue };
            let bounds = self.consumer.fetch_watermarks(&committed.topic, committed.number, timeout)?;
            let Some(answer) = self.answer_one(pending[index].clone(), &committed, bounds)? else { continue };
            if let Answer::Start { asked, committed: map, .. } = &answer
                && Some(map.base()) != committed.position
                && self.checkpoints.is_none()
            {
                // Else a crash before the first commit would start a "latest" group at a later end, past unread records.
                let mut first = TopicPartitionList::new();
                positions::add_commit(&mut first, &asked.topic, asked.number, map)?;
                self.consumer.commit(&first, CommitMode::Sync)?;
            }
            self.tell(answer);
            pending.swap_remove(index);
        }
        refused.into_iter().next().map_or(Ok(()), Err)
    }

    /// Nothing when it must be asked again.
    fn answer_one(&mut self, asked: Asked, committed: &Committed, bounds: (i64, i64)) -> KafkaResult<Option<Answer>> {
        let Some(checkpoints) = &self.checkpoints else {
            return self.start(asked, committed, bounds).map(Some);
        };
        let topic_id = topic_id(self.consumer.client(), &asked.topic, QUESTION_TIMEOUT)?;
        let (answer, sequence) = match checkpoints.read(&asked, &topic_id, committed) {
            None => return Ok(None),
            Some(Known::Otherwise(answer)) => return Ok(Some(answer)),
            Some(Known::Map(Some(map), sequence)) => (self.within(asked, &map, bounds), sequence),
            Some(Known::Map(None, sequence)) => (self.first_start(asked, bounds)?, sequence),
            Some(Known::Anew(sequence)) => {
                let committed = OffsetMap::empty(bounds.0);
                (Answer::Start { asked, committed, lost: 0, fence: None }, sequence)
            }
        };
        let Answer::Start { asked, committed, lost, .. } = answer else { return Ok(Some(answer)) };
        let fence = self.checkpoints.as_ref().and_then(|starts| starts.claim(&asked, &topic_id, &committed, sequence));
        Ok(fence.map(|fence| Answer::Start { asked, committed, lost, fence: Some(fence) }))
    }

    /// Where a partition without a position starts.
    fn first_start(&mut self, asked: Asked, (low, high): (i64, i64)) -> KafkaResult<Answer> {
        let Asked { topic, number, .. } = &asked;
        let added = *number >= self.first_count(topic)?;
        let start = match self.limits.start {
            // What was written to it before this worker knew of it is new to the group too.
            _ if added => low,
            StartPosition::Earliest => low,
            StartPosition::Latest => high,
            StartPosition::Error => {
                return Ok(Answer::Fail(SourceError::Fatal(format!(
                    "the group has no committed position for {topic}/{number}; set kafka.start to \"earliest\" or \"latest\""
                ))));
            }
        };
        Ok(Answer::Start { asked, committed: OffsetMap::empty(start), lost: 0, fence: None })
    }

    fn start(&mut self, asked: Asked, committed: &Committed, bounds: (i64, i64)) -> KafkaResult<Answer> {
        let Asked { topic, number, .. } = &asked;
        let place = format!("{topic}/{number}");
        let Some(position) = committed.position else {
            return self.first_start(asked, bounds);
        };
        let map = match committed.read(position) {
            Reading::Nothing => OffsetMap::empty(position),
            Reading::Ours(map) => map,
            Reading::Foreign => {
                tracing::info!(topic, partition = number, position, "taking over from another kind of consumer");
                OffsetMap::empty(position)
            }
            Reading::ParallelConsumer(map) => {
                let open = map.open().len();
                tracing::info!(topic, partition = number, position, open, "taking over from a Parallel Consumer");
                map
            }
            Reading::Stale { base, .. } => {
                tracing::warn!(
                    topic,
                    partition = number,
                    position,
                    base,
                    "the group was reset: its offset map is of another position and ignored"
                );
                OffsetMap::empty(position)
            }
            Reading::Damaged(reason) if self.limits.on_bad_offset_map == OnBadPosition::Continue => {
                tracing::error!(
                    topic,
                    partition = number,
                    reason,
                    "the offset map is damaged and ignored, as kafka.on_bad_offset_map says: records may be answered twice"
                );
                OffsetMap::empty(position)
            }
            Reading::Damaged(reason) => {
                let reason = format!(
                    "the offset map of {place} at {position} is damaged ({reason}): which records above it are answered is unknown. Set \
                     kafka.on_bad_offset_map = \"continue\" to score them all again, or reset the group's offsets"
                );
                return Ok(Answer::Stop { asked, reason });
            }
            Reading::UnknownVersion(version) => {
                return Ok(Answer::Fail(SourceError::Fatal(format!(
                    "the offset map of {place} has version {version}, which a newer forebay wrote; run that one, or reset the group's offsets"
                ))));
            }
        };
        Ok(self.within(asked, &map, bounds))
    }

    /// Holds a position against what the topic has.
    fn within(&self, asked: Asked, map: &OffsetMap, (low, high): (i64, i64)) -> Answer {
        let Asked { topic, number, .. } = &asked;
        let (place, position) = (format!("{topic}/{number}"), map.base());
        if map.end().max(position) > high {
            if self.limits.on_bad_position == OnBadPosition::Continue {
                tracing::error!(
                    topic,
                    partition = number,
                    position,
                    end = high,
                    "the position lies past the topic's end; going on at the end, as kafka.on_bad_position says"
                );
                return Answer::Start { asked, committed: OffsetMap::empty(high), lost: 0, fence: None };
            }
            let (whose, or_else) = match &self.checkpoints {
                None => ("group's", "reset the group's offsets"),
                Some(_) => ("checkpoint's", "delete the checkpoint and the group's position"),
            };
            let reason = format!(
                "the {whose} position {position} in {place} lies past its end {high}: the topic was truncated or recreated. Set \
                 kafka.on_bad_position = \"continue\" to go on at the end, or {or_else}"
            );
            return Answer::Stop { asked, reason };
        }
        let (committed, gone, beyond) = map.raised_to(low);
        let lost = gone + beyond;
        if lost > 0 {
            tracing::error!(topic, partition = number, lost, "retention removed records before they were read");
        }
        Answer::Start { asked, committed, lost, fence: None }
    }

    fn first_count(&mut self, topic: &str) -> KafkaResult<i32> {
        if let Some(count) = self.first_counts.get(topic) {
            return Ok(*count);
        }
        let metadata = self.consumer.fetch_metadata(Some(topic), QUESTION_TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let count = found.map_or(0, |found| i32::try_from(found.partitions().len()).unwrap_or(i32::MAX));
        self.first_counts.insert(topic.to_owned(), count);
        Ok(count)
    }
}
