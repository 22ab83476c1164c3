//! What a batcher is told: sizes and delay of its batches, and for each priority level how many may wait and how long.
//!
//! The words and their meaning are those of Triton's dynamic batcher (`ModelDynamicBatching` and `ModelQueuePolicy` in
//! its `model_config.proto`); [`BatchPolicy::priority_aging`] and [`QueueDelay::Adaptive`] it does not have.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::Priority;

/// How entries are gathered into batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// The most rows in a batch of more than one entry. From 1.
    pub batch_size_max: NonZeroU32,
    /// Sizes in rows that the model scores best, ascending and none above `batch_size_max`. A batch is cut to the largest
    /// that the waiting rows fill; when they fill none, or the delay has ended, it takes what there is. Empty: any size.
    pub preferred_sizes: Vec<NonZeroU32>,
    /// How the wait for company is found: always the same, or by [`super::ServiceTime::delay`].
    pub queue_delay: QueueDelay,
    /// How long the oldest entry may wait for company. Zero: an idle score thread takes whatever there is.
    pub queue_delay_max: Duration,
    /// Waiting this long for each level above its own brings an entry to the front: one row in [`AGED_SHARE`] that are
    /// scored is such an entry's while any waits. `None`: never.
    pub priority_aging: Option<Duration>,
    /// The queue of each level.
    pub levels: Levels,
}

/// Of how many rows that are scored one belongs to entries that have aged, while any waits.
pub const AGED_SHARE: u32 = 8;

/// How the wait for company is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueDelay {
    /// It is always `queue_delay_max`.
    #[default]
    Fixed,
    /// It is learned: a batch's fixed cost times the share of time that all score threads are busy, and never more than
    /// `queue_delay_max`.
    Adaptive,
}

/// What becomes of an entry that finds its level full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueFull {
    /// It is given back until there is room: a stream source pauses.
    #[default]
    Pause,
    /// It is rejected.
    Reject,
}

/// What becomes of an entry whose deadline passes while it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeoutAction {
    /// It is rejected.
    #[default]
    Reject,
    /// It goes behind all entries of its level that are in time, and has no deadline any more.
    Delay,
}

/// The queue of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelPolicy {
    /// The most entries that wait in it. From 1.
    pub queue_depth_max: NonZeroU32,
    /// What becomes of one more.
    pub queue_full: QueueFull,
    /// How long an entry may wait; `None`: for ever. Whoever makes the entry turns this into its deadline.
    pub timeout: Option<Duration>,
    /// What becomes of it then.
    pub timeout_action: TimeoutAction,
    /// Whether a request may name a shorter timeout. A longer one never counts.
    pub allow_timeout_override: bool,
}

impl Default for LevelPolicy {
    /// 65,536 entries, then the source pauses; no timeout but the one that a request names.
    fn default() -> Self {
        Self {
            queue_depth_max: NonZeroU32::MIN.saturating_add(65_535),
            queue_full: QueueFull::default(),
            timeout: None,
            timeout_action: TimeoutAction::default(),
            allow_timeout_override: true,
        }
    }
}

impl Default for BatchPolicy {
    /// The worker's defaults: 1,024 rows, no delay, three levels, aging after 100 ms.
    fn default() -> Self {
        Self {
            batch_size_max: NonZeroU32::MIN.saturating_add(1_023),
            preferred_sizes: Vec::new(),
            queue_delay: QueueDelay::default(),
            queue_delay_max: Duration::ZERO,
            priority_aging: Some(Duration::from_millis(100)),
            levels: Levels::uniform(NonZeroU8::MIN.saturating_add(2), LevelPolicy::default()),
        }
    }
}

/// The policies of levels 1, the highest, to N: 1 to 255 of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels(Box<[LevelPolicy]>);

impl Levels {
    /// `count` levels of one policy.
    #[must_use]
    pub fn uniform(count: NonZeroU8, policy: LevelPolicy) -> Self {
        Self(vec![policy; usize::from(count.get())].into())
    }

    /// Gives one level a policy of its own.
    ///
    /// # Panics
    /// When there is no such level.
    pub fn set(&mut self, level: Priority, policy: LevelPolicy) {
        self.0[usize::from(level.get()) - 1] = policy;
    }

    /// The policy of a level.
    ///
    /// # Panics
    /// When there is no such level.
    #[must_use]
    pub fn of(&self, level: Priority) -> &LevelPolicy {
        &self.0[usize::from(level.get()) - 1]
    }

    /// How many there are.
    ///
    /// # Panics
    /// Never: no way to make them makes none, or more than 255.
    #[must_use]
    pub fn count(&self) -> NonZeroU8 {
        u8::try_from(self.0.len()).ok().and_then(NonZeroU8::new).expect("1 to 255 levels")
    }

    /// The policies, level 1 first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &LevelPolicy> {
        self.0.iter()
    }
}
