//! Requests that are tried again after a transient error of their model.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use forebay::engine::{InferenceEngineConfig, PendingPrediction, PredictionRequest};
use forebay::model::ScoreError;
use forebay::record::ErrorCode;

use crate::shard::{Echo, Shard};

const MS: Duration = Duration::from_millis(1);

fn fail_if(fails: bool) -> Result<(), ScoreError> {
    if fails { Err(ScoreError::Transient("no memory".to_owned())) } else { Ok(()) }
}

/// A model that has no memory whenever 13 is among the rows.
fn thirteen() -> Echo {
    Echo::new(|rows| fail_if(rows.contains(&13.0)))
}

#[test]
fn it_waits_for_its_back_off_and_its_neighbours_do_not() {
    // Fails twice as one of a batch and alone each time: the first time, and after 100 ms.
    static FAILURES: AtomicU32 = AtomicU32::new(0);
    let model = Echo::new(|rows| fail_if(rows.contains(&13.0) && FAILURES.fetch_add(1, Ordering::Relaxed) < 3));
    let shard = Shard::new(&model);
    let submitted = shard.submit([12, 13, 14], |work| work.retries = 3);
    let first = shard.ends(2);
    assert_eq!(
        first.iter().map(|end| (end.offset, end.result.clone())).collect::<Vec<_>>(),
        [(12, Ok(12.0)), (14, Ok(14.0))]
    );
    shard.submit([15], |_| {});
    let second = shard.ends(1);
    let third = shard.ends(1);
    assert_eq!((second[0].offset, third[0].offset), (15, 13), "what comes meanwhile goes first");
    assert_eq!(third[0].result, Ok(13.0));
    let waited = third[0].at - submitted;
    assert!(waited >= 300 * MS, "100 ms and 200 ms: {waited:?}");
    shard.assert_nothing_more();
    assert_eq!(shard.engine.metrics().retries.get(), 2);
    assert_eq!(shard.engine.metrics().scored_total(), 4);
}

#[test]
fn when_the_tries_run_out_the_error_says_how_many() {
    let shard = Shard::new(&thirteen());
    shard.submit([12, 13], |work| work.retries = 1);
    let ends = shard.ends(2);
    assert_eq!(ends[0].result, Ok(12.0));
    assert_eq!(ends[1].result.as_ref().unwrap_err().to_string(), "model_error: no memory; tried 2 times");
    shard.submit([13], |_| {});
    let ends = shard.ends(1);
    assert_eq!(ends[0].result.as_ref().unwrap_err().to_string(), "model_error: no memory", "none allowed");
    let metrics = shard.engine.metrics();
    assert_eq!((metrics.retries.get(), metrics.failed_total()), (1, 2));
}

#[test]
fn an_error_that_would_come_again_is_not_tried_again() {
    let refuse = |rows: &[f64]| match rows {
        [13.0] => Err(ScoreError::Failed("never".to_owned())),
        _ => Ok(()),
    };
    let shard = Shard::new(&Echo::new(refuse));
    shard.submit([13], |work| work.retries = 10);
    assert_eq!(shard.ends(1)[0].result.as_ref().unwrap_err().to_string(), "model_error: never");
    assert_eq!(shard.engine.metrics().retries.get(), 0);
}

#[test]
fn its_deadline_holds_while_it_waits() {
    let shard = Shard::new(&thirteen());
    let submitted = shard.submit([13], |work| {
        work.retries = 10;
        work.deadline = Some(forebay::clock::now() + 130 * MS);
    });
    let ends = shard.ends(1);
    assert_eq!(ends[0].result.as_ref().unwrap_err().code, ErrorCode::DeadlineExceeded);
    let waited = ends[0].at - submitted;
    // The second back-off ends at 300 ms.
    assert!((130 * MS..290 * MS).contains(&waited), "{waited:?}");
    shard.assert_nothing_more();
}

#[test]
fn a_shutdown_waits_for_no_back_off_and_each_ends_once() {
    let shard = Shard::new(&thirteen());
    let submitted = shard.submit([12, 13], |work| work.retries = 10);
    assert_eq!(shard.ends(1)[0].offset, 12);
    while shard.engine.metrics().retries.get() < 3 {
        std::thread::sleep(MS);
    }
    // The next back-off is 800 ms.
    shard.engine.shutdown();
    let ends = shard.ends(1);
    assert_eq!(ends[0].result.as_ref().unwrap_err().to_string(), "model_error: no memory; tried 4 times");
    let waited = ends[0].at - submitted;
    assert!(waited < 700 * MS + 700 * MS, "{waited:?}");
    shard.assert_nothing_more();
}

#[test]
fn whatever_fails_and_whenever_it_closes_each_ends_once() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Every third batch fails, and every third request that is then scored alone.
    let model = Echo::new(|rows| fail_if(rows[0] >= 1000.0 && CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(3)));
    for close_after in [0, 50, 150, 350] {
        let shard = Shard::with(InferenceEngineConfig { num_threads: 4, ..Default::default() }, &model, |_| {});
        let first_deadline = forebay::clock::now();
        for chunk in 0..40 {
            shard.submit(1000 + chunk * 10..1010 + chunk * 10, |work| {
                work.retries = 2;
                work.deadline = Some(first_deadline + u32::try_from(chunk).unwrap() * 10 * MS);
            });
        }
        std::thread::sleep(close_after * MS);
        shard.engine.shutdown();
        let offsets: Vec<i64> = shard.ends(400).iter().map(|end| end.offset).collect();
        assert_eq!(offsets, (1000..1400).collect::<Vec<_>>());
        shard.assert_nothing_more();
    }
}

#[test]
fn the_librarys_door_has_retries_too() {
    let shard = Shard::new(&thirteen());
    let ask = |retries| {
        let request = PredictionRequest { retries, ..PredictionRequest::new([13.0]) };
        shard.engine.enqueue_prediction(request).and_then(PendingPrediction::wait).unwrap_err().to_string()
    };
    assert_eq!(ask(1), "model_error: no memory; tried 2 times");
    assert_eq!(ask(11), "bad_request: retries: got 11, wants 0 to 10");
}

/// Both fail points of one record, its id with and without quotes.
#[cfg(feature = "failpoints")]
#[test]
fn fail_points_meet_the_record_that_they_name() {
    let _scenario = fail::FailScenario::setup();
    fail::cfg("score::transient", "return(r21:2)").unwrap();
    fail::cfg("score::slow_record", "return(\"r22\":80)").unwrap();
    let shard = Shard::new(&thirteen());
    let submitted = shard.submit([20, 21], |work| work.retries = 2);
    let ends = shard.ends(2);
    assert_eq!((ends[0].result.clone(), ends[1].result.clone()), (Ok(20.0), Ok(21.0)));
    assert!(ends[0].at - submitted < 80 * MS && ends[1].at - submitted >= 300 * MS, "{ends:?}");
    let submitted = shard.submit([22], |_| {});
    assert!(shard.ends(1)[0].at - submitted >= 80 * MS);
    assert_eq!(shard.engine.metrics().retries.get(), 2);
}
