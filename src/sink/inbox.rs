//! What the transaction thread is told, in one queue: that a partition came or went, that records were received, that
//! some ended. One queue keeps the order that the thread relies on: a partition before its records, and a record before
//! its end. A record may come after the revocation of its partition (both happened inside one poll): it is let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Subject;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::record::{AssignedPartition, Chunk, PartitionId, ScoredBatch};

/// Messages about the group itself that may wait at once, besides those about records.
const GROUP_EVENTS_MAX: usize = 1024;

/// One message to the transaction thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// Records of these partitions follow.
    Assigned(Vec<AssignedPartition>),
    /// These partitions go; `done` is told when nothing more will be committed for them.
    Revoked { partitions: Vec<PartitionId>, done: Sender<()> },
    /// These partitions are gone already.
    Lost(Vec<PartitionId>),
    /// Where the source wants to hear that these records are done, by their offsets. It comes before them.
    Acks { id: PartitionId, acks: Vec<(i64, Subject)> },
    /// Everything below this offset was received, and there is nothing above.
    Idle { id: PartitionId, position: i64 },
    /// A commit came to its end: look.
    Look,
    /// Records were received: their positions count from here on. The rejected among them have their end with it.
    Received(Arc<Chunk>),
    /// Requests ended on a score thread.
    Ended(Box<ScoredBatch>),
    /// No record follows. What is in flight may still end, until the worker's own bound.
    Drain,
}

/// Both ends' view of a shard's queue and of what is in flight.
#[derive(Debug)]
pub(crate) struct Inbox {
    sender: Sender<Event>,
    /// Rises whenever partitions were given up without the transaction thread's word.
    lost: AtomicU64,
    /// Records received and neither committed nor given up.
    in_flight: AtomicUsize,
}

impl Inbox {
    /// A queue for `in_flight_max` records, so that handing one in never blocks: each may bring two messages (received,
    /// ended), and as many again may still end whose partitions were let go meanwhile.
    pub(crate) fn new(in_flight_max: usize) -> (Arc<Self>, Receiver<Event>) {
        let (sender, receiver) = bounded(3 * in_flight_max + GROUP_EVENTS_MAX);
        (Arc::new(Self { sender, lost: AtomicU64::new(0), in_flight: AtomicUsize::new(0) }), receiver)
    }

    /// Hands in a message. A thread that has ended wants none.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.sender.send(event);
    }

    /// Hands in received records.
    pub(crate) fn received(&self, chunk: &Arc<Chunk>) {
        self.in_flight.fetch_add(chunk.requests().len(), Ordering::Relaxed);
        self.send(Event::Received(Arc::clone(chunk)));
    }

    /// Partitions go: waits until the transaction thread has let go of them. Past `bound` they count as lost, so that
    /// whatever it is doing is not committed.
    pub(crate) fn revoke(&self, partitions: &[PartitionId], bound: Duration) {
        if partitions.is_empty() {
            return;
        }
        let (done, told) = bounded(1);
        self.send(Event::Revoked { partitions: partitions.to_vec(), done });
        if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = told.recv_timeout(bound) {
            tracing::warn!(?bound, "a revocation did not wait for the open transaction; it will not be committed");
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Partitions are gone: nothing may be committed for them any more.
    pub(crate) fn lose(&self, partitions: &[PartitionId]) {
        // Counted after it was sent: who has seen the count finds the message in the queue.
        self.send(Event::Lost(partitions.to_vec()));
        self.lost.fetch_add(1, Ordering::SeqCst);
    }

    /// How often partitions were given up without the transaction thread's word.
    pub(crate) fn losses(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Records were committed or given up.
    pub(crate) fn release(&self, records: usize) {
        self.in_flight.fetch_sub(records, Ordering::Relaxed);
    }
}
