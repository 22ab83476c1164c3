//! Requests that their submitter scores itself: few rows of a small model, where nothing else waits.

use std::thread;
use std::time::Duration;

use forebay::clock;

use crate::shard::{Echo, Shard};

/// Whether each of these requests was handed back on this thread, with its own score.
fn were_here(shard: &Shard, offsets: std::ops::Range<i64>) -> Vec<bool> {
    let count = offsets.clone().count();
    shard.submit_here(offsets.clone(), |_| {});
    let ends = shard.ends(count);
    assert!(ends.iter().map(|end| end.offset).eq(offsets), "{ends:?}");
    assert!(ends.iter().all(|end| end.result == Ok(end.offset as f64)), "{ends:?}");
    ends.iter().map(|end| end.thread == thread::current().id()).collect()
}

#[test]
fn a_few_rows_of_a_small_model_are_scored_by_who_asks() {
    let shard = Shard::new(&Echo::compiled(|_| Ok(())));
    assert_eq!(were_here(&shard, 0..1), [false], "nobody knows yet how long a row takes");
    // A score thread that was held up on its first row makes it look slow; each further row is forgotten by an eighth.
    let quick = (1..200).any(|offset| were_here(&shard, offset..offset + 1) == [true]);
    assert!(quick, "no row was scored here");
    assert_eq!(were_here(&shard, 500..508), [true; 8]);
    assert_eq!(were_here(&shard, 600..609), [false; 9], "many rows are shared out");
    shard.assert_nothing_more();
}

#[test]
fn what_takes_its_time_or_is_not_safe_code_is_left_to_the_score_threads() {
    let slow = Shard::new(&Echo::compiled(|_| {
        thread::sleep(Duration::from_micros(200));
        Ok(())
    }));
    assert!((0..20).all(|offset| were_here(&slow, offset..offset + 1) == [false]));
    let plain = Shard::new(&Echo::new(|_| Ok(())));
    assert!((0..20).all(|offset| were_here(&plain, offset..offset + 1) == [false]));
}

#[test]
fn what_has_expired_is_not_scored_here_either() {
    let shard = Shard::new(&Echo::compiled(|_| Ok(())));
    assert!((0..200).any(|offset| were_here(&shard, offset..offset + 1) == [true]));
    let now = clock::now();
    shard.submit_here(300..302, |work| work.deadline = Some(now));
    let ends = shard.ends(2);
    assert!(
        ends.iter().all(|end| end.result.as_ref().is_err_and(|reject| reject.code.as_str() == "deadline_exceeded"))
    );
    shard.assert_nothing_more();
}
