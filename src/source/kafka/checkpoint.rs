//! Where a partition starts whose position is in a checkpoint of NATS, with the replies to its records: never at the group's
//! own position, which follows behind.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::start::{Answer, Asked};
use crate::admin::Health;
use crate::client::checkpoints::{Checkpoints, NatsFault};
use crate::client::positions::Committed;
use crate::commit::OffsetMap;
use crate::config::OnBadPosition;
use crate::record::Fence;
use crate::source::SourceError;

/// The checkpoints of the partitions, and what asks for them.
pub(crate) struct CheckpointStarts {
    pub(crate) runtime: Handle,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) on_missing: OnBadPosition,
    pub(crate) health: Arc<Health>,
    /// What this is called at `/readyz`.
    pub(crate) part: String,
    /// Why there is no answer yet, as it was said last.
    pub(crate) said: Mutex<String>,
}

/// What is known of a partition before it is claimed.
pub(super) enum Known {
    /// Its checkpoint, or that there was none ever; and the sequence behind which the next one is written.
    Map(Option<OffsetMap>, u64),
    /// The checkpoint is of a topic of the same name that is no more.
    Anew(u64),
    /// Not to be started, or not at all.
    Otherwise(Answer),
}

impl CheckpointStarts {
    /// Reads a partition's checkpoint; the topic has the id `topic_id`, if any. Nothing when the server must be asked again.
    pub(super) fn read(&self, asked: &Asked, topic_id: &str, group: &Committed) -> Option<Known> {
        let read = self.runtime.block_on(self.checkpoints.read(&asked.topic, asked.number));
        let (sequence, checkpoint) = match read {
            Ok(read) => read,
            Err(fault) => return self.fault(asked, &fault),
        };
        if let Some(checkpoint) = checkpoint {
            if !topic_id.is_empty() && !checkpoint.created.is_empty() && checkpoint.created != topic_id {
                let (topic, partition) = (&asked.topic, asked.number);
                tracing::warn!(
                    topic,
                    partition,
                    "the topic was made anew since the last checkpoint; starting at its first record"
                );
                return Some(Known::Anew(sequence));
            }
            return Some(Known::Map(Some(checkpoint.map), sequence));
        }
        // The group's position follows checkpoints: where there is one there was a checkpoint.
        match (group.position, self.on_missing) {
            (None, _) => Some(Known::Map(None, sequence)),
            (Some(position), OnBadPosition::Continue) => {
                tracing::error!(
                    topic = asked.topic,
                    partition = asked.number,
                    position,
                    "there is no checkpoint; going on at the group's position, as nats.on_missing_checkpoint says"
                );
                Some(Known::Map(Some(OffsetMap::empty(position)), sequence))
            }
            (Some(position), OnBadPosition::Stop) => Some(Known::Otherwise(Answer::Stop {
                asked: asked.clone(),
                reason: format!(
                    "{}/{} has no checkpoint, but the group has the position {position}: which records above it are answered is \
                     unknown. Set nats.on_missing_checkpoint = \"continue\" to go on there, or delete the group's position to start as \
                     kafka.start says",
                    asked.topic, asked.number
                ),
            })),
        }
    }

    /// Claims a partition that starts here. Nothing when somebody else was first, or the server must be asked again.
    pub(super) fn claim(&self, asked: &Asked, topic_id: &str, map: &OffsetMap, sequence: u64) -> Option<Fence> {
        let fence = Fence { sequence, created: topic_id.to_owned(), subjects: Vec::new() };
        let claimed = self.checkpoints.write((&asked.topic, asked.number), &fence, map, true);
        match self.runtime.block_on(claimed) {
            Ok(Some(sequence)) => {
                self.nothing_waits();
                Some(Fence { sequence, ..fence })
            }
            Ok(None) => None,
            Err(fault) => {
                self.waits(&fault.to_string());
                None
            }
        }
    }

    fn waits(&self, reason: &str) {
        let mut said = self.said.lock();
        if *said != reason {
            tracing::warn!(reason, "waiting for NATS to start an assigned partition");
            reason.clone_into(&mut said);
        }
        self.health.not_ready(&self.part, reason);
    }

    /// What was waited for is there, or wanted no more.
    pub(super) fn nothing_waits(&self) {
        let mut said = self.said.lock();
        if !said.is_empty() {
            said.clear();
            self.health.ready(&self.part);
        }
    }

    fn fault(&self, asked: &Asked, fault: &NatsFault) -> Option<Known> {
        match fault {
            NatsFault::Later(reason) => {
                self.waits(reason);
                None
            }
            NatsFault::Stopped(reason) => {
                Some(Known::Otherwise(Answer::Stop { asked: asked.clone(), reason: reason.clone() }))
            }
            NatsFault::Fatal(reason) => Some(Known::Otherwise(Answer::Fail(SourceError::Fatal(reason.clone())))),
        }
    }
}
