//! The keys of `[nats]` that say how records flow through `JetStream`, checked.

use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::check::Check;
use super::nats::RawNats;
use super::subject::is_plain_token;
use super::{Delivery, OnBadPosition, Ordering, StartPosition};

const GROUP_CHARS_MAX: usize = 64;
const COMMIT_INTERVAL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const COMMIT_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(5 * 60);
const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5 * 60);
const ACK_WAIT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// How records flow through `JetStream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JetStream {
    /// The name that workers with the same routes share.
    pub group: String,
    /// What is promised of each reply.
    pub delivery: Delivery,
    /// Whose replies keep the order of their records.
    pub ordering: Ordering,
    /// Where a group without checkpoints starts.
    pub start: StartPosition,
    /// How many partitions the input subjects have; each is one worker's at a time.
    pub partitions: NonZeroU32,
    /// How long a partition is held without a word.
    pub lease: Duration,
    /// How long the server waits for a word on a record before it sends it again.
    pub ack_wait: Duration,
    /// Least time between two batches of replies.
    pub commit_interval: Duration,
    /// Most records in one batch of replies.
    pub commit_records_max: NonZeroU32,
    /// Most bytes of replies in one batch.
    pub commit_bytes_max: NonZeroUsize,
    /// How long a drain may take.
    pub drain_timeout: Duration,
    /// The first tokens of the subjects of checkpoints.
    pub checkpoint_subject: String,
    /// What becomes of a partition whose consumer has come along and whose checkpoint is gone.
    pub on_missing_checkpoint: OnBadPosition,
}

/// The keys. A group is wanted where records come from NATS.
pub(super) fn jetstream(check: &mut Check<'_>, raw: &RawNats) -> JetStream {
    if let Some(group) = raw.group.as_deref().filter(|group| !is_plain_token(group, GROUP_CHARS_MAX)) {
        let wanted = format!(
            "1 to {GROUP_CHARS_MAX} of the characters a-z, A-Z, 0-9, \"_\" and \"-\", as it is part of consumers' names \
             and of subjects"
        );
        check.wants("nats.group", group, &wanted);
    }
    if !super::subject::is_subject(&raw.checkpoint_subject) || raw.checkpoint_subject.starts_with('$') {
        let wanted = "the first tokens of a subject, such as \"ckpt\"";
        check.wants("nats.checkpoint_subject", &raw.checkpoint_subject, wanted);
    }
    JetStream {
        group: raw.group.clone().unwrap_or_default(),
        delivery: raw.delivery,
        ordering: raw.ordering,
        start: raw.start,
        partitions: raw.partitions,
        lease: check.duration("nats.lease", &raw.lease, &LEASE),
        ack_wait: check.duration("nats.ack_wait", &raw.ack_wait, &ACK_WAIT),
        commit_interval: check.duration("nats.commit_interval", &raw.commit_interval, &COMMIT_INTERVAL),
        commit_records_max: raw.commit_records_max,
        commit_bytes_max: check.bytes("nats.commit_bytes_max", &raw.commit_bytes_max, &COMMIT_BYTES),
        drain_timeout: check.duration("nats.drain_timeout", &raw.drain_timeout, &DRAIN_TIMEOUT),
        checkpoint_subject: raw.checkpoint_subject.clone(),
        on_missing_checkpoint: raw.on_missing_checkpoint,
    }
}
