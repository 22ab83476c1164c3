//! `[model.batch]`: how long a model's requests wait, and in which order; checked, and back.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Batch;
use super::check::Check;
use super::dump::duration;
use super::raw::{RawBatch, RawLevel};
use crate::batch::{BatchPolicy, LevelPolicy, Levels, QueueDelay};
use crate::record::Priority;

const QUEUE_DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10);
const TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60 * 60);
const AGING: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60 * 60);

/// The table at `key`.
pub(super) fn batch(check: &mut Check<'_>, key: &str, raw: &RawBatch) -> Batch {
    let default = raw.priority_default.map_or(raw.priority_levels.get().min(2), u8::from);
    if default > raw.priority_levels.get() {
        let (key, levels) = (format!("{key}.priority_default"), raw.priority_levels);
        check.refuse(&key, format!("got {default}, but priority_levels is {levels}; wants 1 to {levels}"));
    }
    let level_default = LevelPolicy {
        queue_depth_max: raw.queue_depth_max,
        queue_full: raw.queue_full,
        timeout: not_zero(check.duration(&format!("{key}.timeout"), &raw.timeout, &TIMEOUT)),
        timeout_action: raw.timeout_action,
        allow_timeout_override: raw.allow_timeout_override,
    };
    let queue_delay_max = check.duration(&format!("{key}.queue_delay_max"), &raw.queue_delay_max, &QUEUE_DELAY);
    if raw.queue_delay == QueueDelay::Adaptive && queue_delay_max.is_zero() {
        let message =
            "\"adaptive\" learns a delay of up to queue_delay_max, which is 0: give that a bound, such as \"2ms\"";
        check.refuse(&format!("{key}.queue_delay"), message);
    }
    Batch {
        policy: BatchPolicy {
            batch_size_max: raw.batch_size_max,
            preferred_sizes: preferred_sizes(check, key, raw),
            queue_delay: raw.queue_delay,
            queue_delay_max,
            priority_aging: not_zero(check.duration(&format!("{key}.priority_aging"), &raw.priority_aging, &AGING)),
            levels: levels(check, key, raw, level_default),
        },
        level_default,
        priority_default: Priority::new(default).expect("it comes from numbers that are not zero"),
    }
}

fn not_zero(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| !duration.is_zero())
}

fn preferred_sizes(check: &mut Check<'_>, key: &str, raw: &RawBatch) -> Vec<std::num::NonZeroU32> {
    for (at, size) in raw.preferred_sizes.iter().enumerate().filter(|(_, size)| **size > raw.batch_size_max) {
        let most = raw.batch_size_max;
        let message = format!("got {size}, but batch_size_max is {most}; wants 1 to {most}");
        check.refuse(&format!("{key}.preferred_sizes[{at}]"), message);
    }
    let mut sizes = raw.preferred_sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn levels(check: &mut Check<'_>, key: &str, raw: &RawBatch, default: LevelPolicy) -> Levels {
    let count = raw.priority_levels;
    let mut levels = Levels::uniform(count, default);
    let mut seen: Vec<u8> = Vec::new();
    for (at, own) in raw.level.iter().enumerate() {
        let key = format!("{key}.level[{at}]");
        let Some(level) = own.level.map(u8::from) else { continue };
        if level > count.get() {
            let message = format!("got {level}, but priority_levels is {count}; wants 1 to {count}");
            check.refuse(&format!("{key}.level"), message);
        } else if seen.contains(&level) {
            check.refuse(
                &format!("{key}.level"),
                format!("got {level}, which an earlier entry describes; name it once"),
            );
        } else {
            let timeout = own.timeout.as_ref();
            let timeout = timeout.map(|text| not_zero(check.duration(&format!("{key}.timeout"), text, &TIMEOUT)));
            let policy = LevelPolicy {
                queue_depth_max: own.queue_depth_max.unwrap_or(default.queue_depth_max),
                queue_full: own.queue_full.unwrap_or(default.queue_full),
                timeout: timeout.unwrap_or(default.timeout),
                timeout_action: own.timeout_action.unwrap_or(default.timeout_action),
                allow_timeout_override: own.allow_timeout_override.unwrap_or(default.allow_timeout_override),
            };
            levels.set(Priority::new(level).expect("it comes from a number that is not zero"), policy);
            seen.push(level);
        }
    }
    levels
}

/// The table that says the same. A level has an entry where it differs from the others.
pub(super) fn dump(batch: &Batch) -> RawBatch {
    let Batch { policy, level_default, priority_default } = batch;
    let levels = (1_u8..).zip(policy.levels.iter()).filter(|(_, own)| *own != level_default);
    let own = levels.map(|(level, own)| RawLevel {
        level: level.try_into().ok(),
        queue_depth_max: Some(own.queue_depth_max),
        queue_full: Some(own.queue_full),
        timeout: Some(duration(own.timeout.unwrap_or_default())),
        timeout_action: Some(own.timeout_action),
        allow_timeout_override: Some(own.allow_timeout_override),
    });
    RawBatch {
        batch_size_max: policy.batch_size_max,
        preferred_sizes: policy.preferred_sizes.clone(),
        queue_delay_max: duration(policy.queue_delay_max),
        queue_delay: policy.queue_delay,
        priority_levels: policy.levels.count(),
        priority_default: priority_default.get().try_into().ok(),
        priority_aging: duration(policy.priority_aging.unwrap_or_default()),
        queue_depth_max: level_default.queue_depth_max,
        queue_full: level_default.queue_full,
        timeout: duration(level_default.timeout.unwrap_or_default()),
        timeout_action: level_default.timeout_action,
        allow_timeout_override: level_default.allow_timeout_override,
        level: own.collect(),
    }
}
