//! Where a partition begins: at its checkpoint, held against what the stream holds, or as the config says where there is none;
//! then it is claimed, and its consumer made anew.

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{Info, RetentionPolicy, Stream};

use super::super::pull::Pull;
use super::{Claimed, Claims, Partition, Place};
use crate::client::checkpoints::{NatsFault, stream_handle};
use crate::clock;
use crate::commit::{Checkpoint, OffsetMap};
use crate::config::{OnBadPosition, StartPosition};
use crate::record::Fence;

impl Claims {
    /// Nothing when somebody else was first.
    pub(super) async fn claim(
        &self,
        partition: &Partition,
        sequence: u64,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Option<Claimed>, NatsFault> {
        let Place { stream: name, number } = &partition.place;
        let stream = stream_handle(self.checkpoints.context(), name).await?;
        let consumer = self.consumer_name(*number);
        let info = stream.cached_info();
        let created = info.created.to_string();
        let known = match checkpoint {
            Some(checkpoint) if checkpoint.created == created => Some(self.within(partition, checkpoint.map, info)?),
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
                let (raised, lost, beyond) = map.raised_to(first_of(info));
                if lost > 0 {
                    tracing::error!(
                        stream = name,
                        partition = number,
                        lost,
                        "limits removed records before they were answered"
                    );
                }
                // Sequences are those of the whole stream: whose they were, nobody can tell.
                if beyond > 0 && info.config.retention == RetentionPolicy::Limits {
                    tracing::warn!(
                        stream = name,
                        partition = number,
                        messages = beyond,
                        "limits removed messages of the stream that came while nobody read, of this partition or of others"
                    );
                }
                (raised, lost)
            }
            None => match self.first_start(&stream, info, *number).await? {
                Some(base) => (OffsetMap::empty(base), 0),
                None => return Ok(None),
            },
        };
        let fence = Fence { sequence, created, subjects: partition.filters.clone() };
        let Some(sequence) = self.checkpoints.write((name, *number), &fence, &map, true).await? else {
            return Ok(None);
        };
        let fence = Fence { sequence, ..fence };
        // Made anew, so that it sends what is open in the stream's order, and whoever held the partition gets no more.
        let _ = stream.delete_consumer(&consumer).await;
        let config = self.consumer(&consumer, &partition.filters, &map, info);
        let made = match stream.create_consumer(config).await {
            Ok(made) => made,
            Err(error) => {
                // Another worker may fare better.
                self.checkpoints.write((name, *number), &fence, &map, false).await?;
                return Err(NatsFault::Later(format!("the consumer {consumer} of {name} cannot be made: {error}")));
            }
        };
        let pull = Pull::new(self.checkpoints.client(), made.cached_info()).await?;
        tracing::info!(stream = name, partition = number, from = map.base(), "claimed");
        Ok(Some(Claimed { place: partition.place.clone(), fence, committed: map, lost, pull }))
    }

    /// Holds a position against where the stream ends.
    fn within(&self, partition: &Partition, map: OffsetMap, info: &Info) -> Result<OffsetMap, NatsFault> {
        let Place { stream, number } = &partition.place;
        // What another worker has claimed since has positions of its own: then this one's memory is too old.
        let lowest =
            partition.set_back.filter(|(_, seen)| clock::now() - *seen < 2 * self.limits.lease).map(|(end, _)| end);
        let end = sequence(lowest.unwrap_or(u64::MAX).min(info.state.last_sequence)) + 1;
        let position = map.end().max(map.base());
        if position <= end {
            return Ok(map);
        }
        let lost = format!(
            "the checkpoint of {stream}/{number} says that records up to {} are answered, and the stream ends at {}: it has lost its \
             last records",
            position - 1,
            end - 1
        );
        if self.limits.on_missing_checkpoint == OnBadPosition::Continue {
            tracing::error!("{lost}; going on behind its end, as nats.on_missing_checkpoint says");
            return Ok(OffsetMap::empty(end));
        }
        Err(NatsFault::Stopped(format!(
            "{lost}, and which of those that came since are answered is unknown. Set nats.on_missing_checkpoint = \"continue\" to go on \
             behind its end, or delete the checkpoint and the consumer {} to start as nats.start says",
            self.consumer_name(*number)
        )))
    }

    /// Where a group without a checkpoint starts. Nothing when somebody else was first.
    async fn first_start(&self, stream: &Stream<Info>, info: &Info, number: i32) -> Result<Option<i64>, NatsFault> {
        let (name, consumer) = (&info.config.name, self.consumer_name(number));
        // A consumer is made behind a checkpoint, or by workers that shared it, at least once.
        for consumer in [&consumer, &self.limits.group] {
            let acknowledged = match stream.consumer_info(consumer).await {
                Ok(info) => info.ack_floor.stream_sequence,
                Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => continue,
                Err(error) => return Err(NatsFault::later(error)),
            };
            // The checkpoint comes before its consumer: who made this one may have been another worker, just now.
            if self.checkpoints.read(name, number).await?.1.is_some() {
                return Ok(None);
            }
            if self.limits.on_missing_checkpoint == OnBadPosition::Continue {
                tracing::error!(
                    stream = name,
                    consumer,
                    acknowledged,
                    "the checkpoint is gone; going on behind what was acknowledged, as nats.on_missing_checkpoint says"
                );
                return Ok(Some(sequence(acknowledged + 1).max(first_of(info))));
            }
            return Err(NatsFault::Stopped(format!(
                "the consumer {consumer} of {name} has acknowledged records up to {acknowledged}, and its checkpoint is gone: which \
                 records above are answered is unknown. Set nats.on_missing_checkpoint = \"continue\" to go on behind them, or \
                 delete the consumer to start as nats.start says"
            )));
        }
        match self.limits.start {
            StartPosition::Earliest => Ok(Some(first_of(info))),
            StartPosition::Latest => Ok(Some(sequence(info.state.last_sequence + 1))),
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
        // A stream may bound what a consumer has open.
        let of_stream =
            info.config.consumer_limits.as_ref().map(|limits| limits.max_ack_pending).filter(|&most| most > 0);
        let ack_pending_max = i64::try_from(self.ack_pending_max).unwrap_or(i64::MAX);
        pull::Config {
            durable_name: Some(name.to_owned()),
            description: Some("forebay: its checkpoint says what is done".to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.limits.ack_wait,
            // Deliveries rise with kills; what a record's own fault is, is counted elsewhere.
            max_deliver: -1,
            filter_subjects: filters.to_vec(),
            max_ack_pending: of_stream.map_or(ack_pending_max, |most| most.min(ack_pending_max)),
            ..pull::Config::default()
        }
    }

    /// Below a position only the records of its own subjects were looked at: with others some would be lost, or come again as
    /// another partition's.
    pub(super) async fn check_subjects(&self, partition: &Partition, checkpoint: &Checkpoint) -> Result<(), NatsFault> {
        let Partition { place: Place { stream, number }, filters, .. } = partition;
        if checkpoint.subjects == *filters || checkpoint.subjects.is_empty() {
            return Ok(());
        }
        // Of a stream that was made anew nothing was looked at.
        let handle = stream_handle(self.checkpoints.context(), stream).await?;
        if handle.cached_info().created.to_string() != checkpoint.created {
            return Ok(());
        }
        Err(NatsFault::Fatal(format!(
            "the checkpoint of {stream}/{number} is for the subjects [{}], and the routes read [{}] there: which of these records \
             are answered is unknown. Give nats.group another name, which starts as nats.start says, or let the routes read the \
             same as before",
            checkpoint.subjects.join(", "),
            filters.join(", ")
        )))
    }

    /// Partitions past the last one that is read: what waits there would be answered by nobody.
    pub(super) async fn check_count(&self, stream: &Stream<Info>, name: &str) -> Result<(), NatsFault> {
        let count = i32::try_from(self.limits.partitions.get()).unwrap_or(i32::MAX);
        for number in self.checkpoints.numbers(name).await?.into_iter().filter(|&number| number >= count) {
            let consumer = self.consumer_name(number);
            let waiting = match stream.consumer_info(&consumer).await {
                Ok(info) if info.num_pending > 0 => info.num_pending,
                Ok(info) => {
                    // What was answered may have lost its acknowledgement.
                    let checkpoint = self.checkpoints.read(name, number).await?.1;
                    let delivered = sequence(info.delivered.stream_sequence);
                    let is_done = checkpoint.is_some_and(|checkpoint| checkpoint.map.base() > delivered);
                    if is_done { 0 } else { info.num_ack_pending as u64 }
                }
                Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => 0,
                Err(error) => return Err(NatsFault::later(error)),
            };
            if waiting > 0 {
                return Err(NatsFault::Fatal(format!(
                    "nats.partitions is {count}, but {waiting} records wait in partition {number} of {name}; raise it until they are \
                     answered, or delete the consumer {consumer} if nobody wants them"
                )));
            }
        }
        Ok(())
    }

    fn consumer_name(&self, number: i32) -> String {
        format!("{}-{number}", self.limits.group)
    }
}

fn first_of(info: &Info) -> i64 {
    sequence(info.state.first_sequence.max(1))
}

fn sequence(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
