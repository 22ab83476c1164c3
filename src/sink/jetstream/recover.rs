//! What follows a batch that did not go through: the checkpoints are read back, and say what truly went out.

use std::time::Duration;

use super::super::ledger::Take;
use super::batch::BatchError;
use super::{Committer, REFUSED_PAUSE, SinkError};
use crate::client::checkpoints::NatsFault;
use crate::clock;
use crate::commit::Checkpoint;
use crate::record::PartitionId;

/// How long a server that is away is left alone before it is asked again.
const READ_PAUSE: Duration = Duration::from_millis(100);

impl Committer {
    pub(super) fn after_error(&mut self, error: &BatchError, take: &Take) -> Result<(), SinkError> {
        match error {
            BatchError::Fenced(reason) => {
                tracing::warn!(reason, "a batch was refused; reading the checkpoints back");
                self.read_back(take)
            }
            BatchError::Unknown(reason) => {
                tracing::warn!(reason, "a batch has no answer; reading the checkpoints back");
                self.sink.health.not_ready(&self.sink.part, &format!("no answer to a batch: {reason}"));
                self.read_back(take)
            }
            BatchError::Refused(reason) => {
                self.refused(reason, take);
                Ok(())
            }
        }
    }

    /// A message of a batch is refused, or the stream takes none at present, and nobody says which. The stream is looked at
    /// again: where it is another than was known, the next look at the replies says which of them it does not take. Else less is
    /// tried at once, in case it has room for some, and in the end it is left alone for a while: no record is at fault.
    fn refused(&mut self, reason: &str, take: &Take) {
        let records: usize = take.iter().map(|(_, commit)| commit.records).sum();
        self.ledger.untake();
        self.records_max = records.div_ceil(2).max(1);
        let fault = match self.sink.runtime.block_on(self.sink.checkpoints.look_again()) {
            Ok(true) => {
                tracing::warn!(reason, "a batch is refused, and the stream of the replies is not as it was");
                return;
            }
            Ok(false) if records > 1 => {
                tracing::debug!(reason, records, "a batch is refused; trying half of it");
                return;
            }
            Ok(false) => None,
            Err(fault) => Some(fault.to_string()),
        };
        let reason = fault.as_deref().unwrap_or(reason);
        if self.refused != reason {
            tracing::error!(reason, "the stream of the replies refuses batches; trying again every second");
            reason.clone_into(&mut self.refused);
        }
        self.sink.health.not_ready(&self.sink.part, reason);
        self.paused_until = Some(clock::now() + REFUSED_PAUSE);
    }

    /// Reads the checkpoints of a batch until the server has told them all.
    fn read_back(&mut self, take: &Take) -> Result<(), SinkError> {
        fail::fail_point!("sink::read_back", |_| {
            self.ledger.untake();
            Ok(())
        });
        for (id, _) in take {
            while !self.read_one(*id)? {
                if self.sink.stop.overdue() {
                    return Ok(());
                }
                std::thread::sleep(READ_PAUSE);
            }
        }
        // What was on its way and is not done is sent again.
        self.ledger.untake();
        self.ledger.is_news = true;
        self.acknowledge();
        Ok(())
    }

    /// Returns whether the server has told it.
    fn read_one(&mut self, id: PartitionId) -> Result<bool, SinkError> {
        let Some(partition) = self.ledger.partitions.get(&id) else { return Ok(true) };
        let Some(claim) = &partition.claim else { return Ok(true) };
        let (source, number, fence) = (partition.topic.clone(), partition.number, claim.fence.sequence);
        let read = self.sink.runtime.block_on(self.sink.checkpoints.read(&source, number));
        let (sequence, checkpoint) = match read {
            Ok(read) => read,
            Err(NatsFault::Fatal(reason)) => return Err(SinkError::Fatal(reason)),
            Err(NatsFault::Stopped(reason)) => {
                tracing::error!(stream = source, partition = number, "letting go of the partition: {reason}");
                self.give_up(id);
                return Ok(true);
            }
            Err(NatsFault::Later(reason)) => {
                tracing::debug!(reason, "reading a checkpoint again");
                self.sink.health.not_ready(&self.sink.part, &format!("cannot read a checkpoint: {reason}"));
                return Ok(false);
            }
        };
        let mine = self.sink.checkpoints.owner();
        let owner = checkpoint.as_ref().and_then(|checkpoint| checkpoint.owner.as_ref());
        match checkpoint {
            Some(_) if sequence == fence => Ok(true),
            Some(checkpoint) if owner == Some(mine) && sequence > fence => self.went_out(id, sequence, &checkpoint),
            _ if owner.is_some_and(|owner| owner.instance == mine.instance && owner.run != mine.run) => {
                Err(SinkError::Fenced(format!("it has written the checkpoint of {source}/{number}")))
            }
            _ => {
                let owner = owner.map_or("nobody", |owner| owner.instance.as_str());
                tracing::warn!(
                    stream = source,
                    partition = number,
                    owner,
                    "the partition is held by another; letting go of it"
                );
                self.give_up(id);
                Ok(true)
            }
        }
    }

    /// The batch went through after all.
    fn went_out(&mut self, id: PartitionId, sequence: u64, checkpoint: &Checkpoint) -> Result<bool, SinkError> {
        let Some(partition) = self.ledger.partitions.get_mut(&id) else { return Ok(true) };
        let done = partition.tracker.committed_to(&checkpoint.map);
        let done =
            done.map_err(|error| SinkError::Fatal(format!("{}/{}: {error}", partition.topic, partition.number)))?;
        if let Some(claim) = &mut partition.claim {
            (claim.fence.sequence, claim.map, claim.written) = (sequence, checkpoint.map.clone(), clock::now());
        }
        self.ledger.metrics.lags.committed(&partition.topic, partition.number, checkpoint.map.base());
        self.ledger.release(done);
        Ok(true)
    }

    /// Another process has the partition: nothing of it is sent or acknowledged any more.
    fn give_up(&mut self, id: PartitionId) {
        self.ledger.forget(&[id]);
        // A source that has ended wants to hear nothing.
        let _ = self.sink.lost.send(id);
    }
}
