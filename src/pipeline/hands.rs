//! What the engine and the group hand to a shard's transaction thread.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::admin::Health;
use crate::engine::InferenceEngine;
use crate::record::{AssignedPartition, PartitionId, ScoredBatch};
use crate::score::{PartitionKey, Submitter};
use crate::sink::inbox::{Event, Inbox};
use crate::source::GroupListener;

/// Most assignments whose partitions the journal can name; an earlier one's records have long ended.
const PARTITION_KEYS_MAX: usize = 1 << 16;

/// Hands ended requests to the shard's transaction thread.
pub(super) struct ShardReturns {
    pub(super) inbox: Arc<Inbox>,
    pub(super) keys: Arc<PartitionKeys>,
}

impl Submitter for ShardReturns {
    fn completed(&self, batch: ScoredBatch) {
        self.inbox.send(Event::Ended(Box::new(batch)));
    }

    fn partition_key(&self, partition: PartitionId) -> Option<PartitionKey> {
        self.keys.get(partition)
    }
}

/// What the journal knows the shard's partitions by. A partition that was let go is kept, for its records may still wait.
#[derive(Default)]
pub(super) struct PartitionKeys(ArcSwap<Vec<(PartitionId, PartitionKey)>>);

impl PartitionKeys {
    /// Ids rise with each assignment, so that these stay in order.
    fn add(&self, assigned: impl Iterator<Item = (PartitionId, PartitionKey)>) {
        let mut keys = Vec::clone(&self.0.load());
        keys.extend(assigned);
        keys.sort_unstable();
        keys.drain(..keys.len().saturating_sub(PARTITION_KEYS_MAX));
        self.0.store(Arc::new(keys));
    }

    fn get(&self, partition: PartitionId) -> Option<PartitionKey> {
        let keys = self.0.load();
        let place = keys.binary_search_by_key(&partition, |(id, _)| *id).ok()?;
        Some(keys[place].1)
    }
}

/// Hands the group's word to the shard's transaction thread.
pub(super) struct ShardGroup {
    pub(super) inbox: Arc<Inbox>,
    pub(super) engine: Arc<InferenceEngine>,
    pub(super) group: String,
    pub(super) keys: Arc<PartitionKeys>,
    pub(super) health: Arc<Health>,
    /// The group's name at `/readyz`.
    pub(super) part: String,
    pub(super) revoke_bound: Duration,
}

impl ShardGroup {
    fn stopped_part(&self, id: PartitionId) -> String {
        format!("{}: partition {}", self.part, id.0)
    }

    fn forget_stopped(&self, partitions: &[PartitionId]) {
        for &id in partitions {
            self.health.ready(&self.stopped_part(id));
        }
    }
}

impl GroupListener for ShardGroup {
    fn joined(&self) {
        self.health.ready(&self.part);
    }

    fn assigned(&self, partitions: Vec<AssignedPartition>) {
        // A stream that was made anew has other records.
        let key = |partition: &AssignedPartition| {
            let created = partition.fence.as_ref().map_or("", |fence| &fence.created);
            PartitionKey::new(&self.group, &format!("{}{created}", partition.topic), partition.number)
        };
        self.keys.add(partitions.iter().map(|partition| (partition.id, key(partition))));
        for partition in &partitions {
            self.engine.committed(key(partition), partition.committed.base());
        }
        self.inbox.send(Event::Assigned(partitions));
    }

    fn stopped(&self, id: PartitionId, reason: &str) {
        self.health.not_ready(&self.stopped_part(id), reason);
    }

    fn idle(&self, id: PartitionId, position: i64) {
        self.inbox.send(Event::Idle { id, position });
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        self.forget_stopped(partitions);
        self.inbox.revoke(partitions, self.revoke_bound);
    }

    fn lost(&self, partitions: &[PartitionId]) {
        self.forget_stopped(partitions);
        self.inbox.lose(partitions);
    }
}
