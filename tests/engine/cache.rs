//! Requests with the same rows: answered from the cache, joined while one is scored, and each ended by itself where that
//! one fails.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use forebay::batch::BatchPolicy;
use forebay::cache::CachePolicy;
use forebay::engine::{
    InferenceEngine, InferenceEngineConfig, ModelSpec, PendingPrediction, Prediction, PredictionRequest,
};
use forebay::model::{
    FeatureKinds, LoadOptions, Model, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};
use forebay::placement::Pin;
use forebay::record::Priority;
use parking_lot::Mutex;

use crate::shard::{Echo, Shard};

const MS: Duration = Duration::from_millis(1);

/// The first value of the tests' own rows; those of the validation are smaller.
const OWN: f64 = 5000.0;
/// A second value that is held at the gate.
const HELD: f64 = 1.0;

/// How the model ends a batch that was held.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Good,
    Failed,
    Transient,
    Panic,
    NotFinite,
}

/// Rows of two numbers: a mark and one of which the bits are the score. Batches of marked rows are written down, and
/// those with a held row wait for a verdict, while the gate is there.
#[derive(Clone)]
struct Watched {
    schema: ModelSchema,
    /// Added to each score: another model.
    offset: f64,
    nap: Duration,
    batches: Arc<Mutex<Vec<Vec<f64>>>>,
    gate: Arc<Mutex<Option<Gate>>>,
}

/// Tells that a batch is held, and how it ends.
struct Gate {
    held: SyncSender<()>,
    verdict: Receiver<Verdict>,
}

fn watched() -> Watched {
    let feature_names = vec!["mark".to_owned(), "x".to_owned()];
    let (model_type, row_type) = (ModelType::LightGbm, RowType::F64);
    Watched {
        schema: ModelSchema {
            model_type,
            feature_names,
            kinds: FeatureKinds::default(),
            row_type,
            outputs: 1,
            details: Vec::new(),
        },
        offset: 0.0,
        nap: Duration::ZERO,
        batches: Arc::default(),
        gate: Arc::default(),
    }
}

/// Exact for every value, and finite.
fn score_of(x: f64) -> f64 {
    let bits = x.to_bits();
    f64::from(u32::try_from((bits ^ bits >> 32) & 0xffff_ffff).unwrap())
}

impl Model for Watched {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(self.clone()))
    }
}

impl Scorer for Watched {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let rows = rows.as_f64()?.as_chunks::<2>().0;
        std::thread::sleep(self.nap * u32::try_from(rows.len()).unwrap());
        for ([_, x], score) in rows.iter().zip(&mut *scores) {
            *score = score_of(*x) + self.offset;
        }
        let own: Vec<f64> = rows.iter().filter(|row| row[0].to_bits() == OWN.to_bits()).map(|row| row[1]).collect();
        if own.is_empty() {
            return Ok(());
        }
        self.batches.lock().push(own.clone());
        let gate = if own.contains(&HELD) { self.gate.lock().take() } else { None };
        let Some(Gate { held, verdict }) = gate else { return Ok(()) };
        held.send(()).unwrap();
        match verdict.recv().unwrap() {
            Verdict::Good => Ok(()),
            Verdict::Failed => Err(ScoreError::Failed("no".to_owned())),
            Verdict::Transient => Err(ScoreError::Transient("not now".to_owned())),
            Verdict::Panic => panic!("as the test wants it"),
            Verdict::NotFinite => {
                scores.fill(f64::NAN);
                Ok(())
            }
        }
    }
}

impl Watched {
    /// The next batch with a held row waits for what is sent here.
    fn hold(&self) -> (Receiver<()>, SyncSender<Verdict>) {
        let ((held, is_held), (verdicts, verdict)) = (sync_channel(1), sync_channel(1));
        *self.gate.lock() = Some(Gate { held, verdict });
        (is_held, verdicts)
    }

    fn batches(&self) -> Vec<Vec<f64>> {
        self.batches.lock().clone()
    }

    fn rows_scored(&self) -> usize {
        self.batches().iter().map(Vec::len).sum()
    }
}

fn spec() -> ModelSpec {
    ModelSpec {
        name: "watched".to_owned(),
        path: PathBuf::new(),
        load: LoadOptions::default(),
        sha256: None,
        batch: BatchPolicy { batch_size_max: 64.try_into().unwrap(), ..BatchPolicy::default() },
        priority_default: Priority::new(2).unwrap(),
    }
}

fn engine(threads: usize, model: &Watched, change: fn(&mut InferenceEngineConfig)) -> InferenceEngine {
    let mut config = InferenceEngineConfig { num_threads: threads, pin: Pin::Off, ..InferenceEngineConfig::default() };
    change(&mut config);
    let engine = InferenceEngine::new(config).unwrap();
    engine.add_model(&spec(), model, "").unwrap();
    engine
}

fn ask(engine: &InferenceEngine, x: f64) -> PendingPrediction {
    engine.enqueue_prediction(PredictionRequest::new([OWN, x])).unwrap()
}

fn predict(engine: &InferenceEngine, x: f64) -> Prediction {
    let prediction = ask(engine, x).wait().unwrap();
    assert_eq!(prediction.outputs, 1);
    prediction
}

/// Hits, misses and joined.
fn found(engine: &InferenceEngine) -> [u64; 3] {
    let cache = &engine.metrics().cache;
    [cache.hits.get(), cache.misses.get(), cache.joined.get()]
}

pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(MS);
    }
    panic!("20 s passed, but not {what}");
}

#[test]
fn the_same_row_again_is_a_hit() {
    let model = watched();
    let engine = engine(1, &model, |_| {});
    let (first, second) = (predict(&engine, 7.0), predict(&engine, 7.0));
    assert_eq!((first.scores[0].to_bits(), &second.scores), (score_of(7.0).to_bits(), &first.scores));
    assert_eq!((first.metadata.cache_hit, first.metadata.batch_size), (false, 1));
    assert_eq!((second.metadata.cache_hit, second.metadata.batch_size), (true, 0));
    assert_eq!((second.metadata.inference, second.metadata.version), (Duration::ZERO, 1));
    assert!(!predict(&engine, 8.0).metadata.cache_hit);
    assert_eq!(model.batches(), [[7.0], [8.0]]);
    assert_eq!(found(&engine), [1, 2, 0]);
    let stats = engine.get_performance_metrics();
    assert_eq!((stats.total_requests, stats.dynamic_batcher.processed_batches), (3, 2));
    assert!((stats.cache_hit_rate - 1.0 / 3.0).abs() < 1e-12, "{}", stats.cache_hit_rate);
    let text = engine.metrics().to_text(&engine.sights());
    for line in ["cache_entries 2", "cache_hits_total 1", "cache_evicted_total{reason=\"ttl\"} 0"] {
        assert!(text.contains(&format!("\nforebay_{line}\n")), "{line} is in {text}");
    }
    assert!((200..1_000).contains(&engine.metrics().cache.bytes.get()), "{text}");
}

#[test]
fn without_it_all_is_scored() {
    let model = watched();
    let engine = engine(1, &model, |config| config.enable_request_deduplication = false);
    assert!(!predict(&engine, 7.0).metadata.cache_hit && !predict(&engine, 7.0).metadata.cache_hit);
    assert_eq!((model.rows_scored(), found(&engine)), (2, [0; 3]));
}

#[test]
fn the_same_rows_in_one_batch_are_scored_once() {
    let model = watched();
    let engine = engine(1, &model, |_| {});
    let (held, verdict) = model.hold();
    let busy = ask(&engine, HELD);
    held.recv().unwrap();
    let pending: Vec<_> = [7.0, 8.0, 7.0, 7.0, 8.0].map(|x| (x, ask(&engine, x))).into();
    verdict.send(Verdict::Good).unwrap();
    assert!(busy.wait().is_ok());
    for (x, pending) in pending {
        let prediction = pending.wait().unwrap();
        assert_eq!(prediction.scores, [score_of(x)]);
        assert_eq!((prediction.metadata.batch_size, prediction.metadata.cache_hit), (2, false));
    }
    assert_eq!(model.batches()[1], [7.0, 8.0]);
    assert_eq!(found(&engine), [0, 3, 3]);
}

#[test]
fn what_another_thread_scores_is_waited_for() {
    let model = watched();
    let engine = engine(2, &model, |_| {});
    let (held, verdict) = model.hold();
    let first = ask(&engine, HELD);
    held.recv().unwrap();
    let joined = [(); 3].map(|()| ask(&engine, HELD));
    wait_until("the three were joined", || found(&engine)[2] == 3);
    assert_eq!(predict(&engine, 8.0).scores, [score_of(8.0)], "the thread that joined them is free");
    verdict.send(Verdict::Good).unwrap();
    for pending in [first].into_iter().chain(joined) {
        assert_eq!(pending.wait().unwrap().scores, [score_of(HELD)]);
    }
    assert_eq!(model.batches(), [[HELD], [8.0]]);
    assert!(predict(&engine, HELD).metadata.cache_hit);
}

#[test]
fn who_follows_a_failing_request_gets_an_end_of_its_own() {
    let says = [
        (Verdict::Failed, "model_error: no"),
        (Verdict::Transient, "model_error: not now"),
        (Verdict::Panic, "model_error: the model panicked: as the test wants it"),
        (Verdict::NotFinite, "model_error: model watched answered NaN in output 0"),
    ];
    for closed in [false, true] {
        for (verdict, error) in says {
            let model = watched();
            let engine = engine(2, &model, |_| {});
            let (held, verdicts) = model.hold();
            let first = ask(&engine, HELD);
            held.recv().unwrap();
            let followers = [(); 3].map(|()| ask(&engine, HELD));
            wait_until("the three were joined", || found(&engine)[2] == 3);
            std::thread::scope(|scope| {
                if closed {
                    let engine = &engine;
                    let thread = std::thread::Builder::new().name("shutdown".to_owned());
                    thread.spawn_scoped(scope, || engine.shutdown()).unwrap();
                    // Each of another row, or they would follow each other.
                    let tried = AtomicU32::new(0);
                    let row = || [0.0, f64::from(tried.fetch_add(1, Ordering::Relaxed))];
                    wait_until("it is closed", || engine.enqueue_prediction(PredictionRequest::new(row())).is_err());
                }
                verdicts.send(verdict).unwrap();
                assert_eq!(first.wait().unwrap_err().to_string(), error);
                for follower in followers {
                    let prediction = follower.wait().unwrap();
                    assert_eq!((prediction.scores, prediction.metadata.cache_hit), (vec![score_of(HELD)], false));
                }
            });
            assert_eq!(found(&engine)[2], 3, "nobody follows twice");
            assert_eq!(model.rows_scored(), 1 + 3, "{verdict:?}");
            assert_eq!(engine.metrics().retries.get(), 0);
            if !closed {
                assert!(predict(&engine, HELD).metadata.cache_hit, "what succeeded then was kept");
            }
        }
    }
}

#[test]
fn a_request_that_is_tried_again_leads_again() {
    let model = watched();
    let engine = engine(1, &model, |_| {});
    let (held, verdict) = model.hold();
    let request = PredictionRequest { retries: 1, ..PredictionRequest::new([OWN, HELD]) };
    let first = engine.enqueue_prediction(request).unwrap();
    held.recv().unwrap();
    verdict.send(Verdict::Transient).unwrap();
    assert_eq!(first.wait().unwrap().scores, [score_of(HELD)]);
    assert_eq!((model.rows_scored(), found(&engine)), (2, [0, 2, 0]));
}

#[test]
fn a_new_version_knows_nothing_of_the_old_one() {
    let model = watched();
    let engine = engine(2, &model, |_| {});
    assert_eq!(predict(&engine, 7.0).scores, [score_of(7.0)]);
    // One of the old version is still being scored while the new one is put in its place.
    let (held, verdict) = model.hold();
    let old = ask(&engine, HELD);
    held.recv().unwrap();
    let new = Watched { offset: 0.5, ..watched() };
    engine.add_model(&spec(), &new, "").unwrap();
    for x in [7.0, HELD] {
        let prediction = predict(&engine, x);
        assert_eq!((prediction.scores, prediction.metadata.version), (vec![score_of(x) + 0.5], 2));
        assert!(!prediction.metadata.cache_hit);
    }
    verdict.send(Verdict::Good).unwrap();
    assert_eq!(old.wait().unwrap().scores, [score_of(HELD)]);
    assert_eq!(predict(&engine, HELD).scores, [score_of(HELD) + 0.5], "what the old one found late is not served");
    assert_eq!(found(&engine)[2], 0);
    assert_eq!((model.rows_scored(), new.rows_scored()), (2, 2));
}

#[test]
fn a_result_is_good_for_a_time() {
    let model = watched();
    let engine = engine(1, &model, |config| config.cache.ttl = MS);
    predict(&engine, 7.0);
    std::thread::sleep(2 * MS);
    assert!(!predict(&engine, 7.0).metadata.cache_hit);
    assert_eq!(model.rows_scored(), 2);
    let cache = &engine.metrics().cache;
    assert_eq!((cache.evicted.with_label_values(&["ttl"]).get(), cache.entries.get()), (1, 1));
}

#[test]
fn there_is_room_for_so_many() {
    let model = watched();
    let engine = engine(1, &model, |config| config.cache.bytes_max = NonZeroUsize::new(2_000).unwrap());
    for x in 0..100 {
        predict(&engine, f64::from(x));
    }
    let cache = &engine.metrics().cache;
    assert!((1_000..=2_000).contains(&cache.bytes.get()), "{}", cache.bytes.get());
    assert_eq!(cache.entries.get() + i64::try_from(cache.evicted.with_label_values(&["size"]).get()).unwrap(), 100);
    assert!(predict(&engine, 99.0).metadata.cache_hit && !predict(&engine, 0.0).metadata.cache_hit);
}

#[test]
fn bits_that_differ_are_rows_that_differ() {
    let model = watched();
    let engine = engine(1, &model, |_| {});
    let payload = f64::from_bits(f64::NAN.to_bits() | 1);
    let values = [0.0, -0.0, f64::NAN, -f64::NAN, payload, 0.1, f64::from(0.1_f32), 5e-324];
    for is_hit in [false, true] {
        for x in values {
            let prediction = predict(&engine, x);
            assert_eq!((prediction.scores, prediction.metadata.cache_hit), (vec![score_of(x)], is_hit), "{x:?}");
        }
    }
    assert_eq!(model.rows_scored(), values.len());
}

#[test]
fn the_rows_of_a_request_are_one_result() {
    let model = watched();
    let engine = engine(1, &model, |_| {});
    let ask = |xs: &[f64]| {
        let rows: Vec<f64> = xs.iter().flat_map(|x| [OWN, *x]).collect();
        let prediction = engine.predict(&rows).unwrap();
        assert_eq!(prediction.scores, xs.iter().map(|x| score_of(*x)).collect::<Vec<_>>());
        prediction.metadata.cache_hit
    };
    let requests: [&[f64]; 4] = [&[7.0, 8.0], &[8.0, 7.0], &[7.0], &[7.0, 8.0, 7.0]];
    for is_hit in [false, true] {
        assert_eq!(requests.map(ask), [is_hit; 4]);
    }
    assert_eq!(model.rows_scored(), 8);
    // Hits of several rows and misses, in one batch.
    let (held, verdict) = model.hold();
    let busy = engine.enqueue_prediction(PredictionRequest::new([OWN, HELD])).unwrap();
    held.recv().unwrap();
    let mixed: [&[f64]; 4] = [&[8.0, 7.0], &[9.0, 7.0], &[7.0], &[9.0, 7.0]];
    let pending = mixed.map(|xs| {
        let rows: Vec<f64> = xs.iter().flat_map(|x| [OWN, *x]).collect();
        engine.enqueue_prediction(PredictionRequest::new(rows)).unwrap()
    });
    verdict.send(Verdict::Good).unwrap();
    assert!(busy.wait().is_ok());
    let hits = pending.into_iter().zip(mixed).map(|(pending, xs)| {
        let prediction = pending.wait().unwrap();
        assert_eq!(prediction.scores, xs.iter().map(|x| score_of(*x)).collect::<Vec<_>>());
        prediction.metadata.cache_hit
    });
    assert_eq!(hits.collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!(model.batches().last().unwrap(), &[9.0, 7.0]);
}

#[test]
fn auto_looks_where_that_is_cheaper_than_scoring() {
    let auto = |config: &mut InferenceEngineConfig| config.cache = CachePolicy { auto: true, ..CachePolicy::default() };
    let quick = watched();
    let engine = engine(1, &quick, auto);
    predict(&engine, 7.0);
    assert!(!predict(&engine, 7.0).metadata.cache_hit);
    assert_eq!((quick.rows_scored(), found(&engine)), (2, [0; 3]), "two additions are cheaper than a hash");
    // The decision is the version's own.
    let slow = Watched { nap: Duration::from_micros(20), ..watched() };
    engine.add_model(&spec(), &slow, "").unwrap();
    predict(&engine, 7.0);
    assert!(predict(&engine, 7.0).metadata.cache_hit);
    assert_eq!((slow.rows_scored(), found(&engine)), (1, [1, 1, 0]));
}

#[test]
fn whatever_fails_and_whenever_it_closes_each_ends_once_with_its_own_score() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Of the tests' own batches every third fails, and of what is then scored alone.
    let model = Echo::new(|rows| match CALLS.fetch_add(1, Ordering::Relaxed) % 6 {
        2 if rows[0] >= 1000.0 => Err(ScoreError::Transient("no memory".to_owned())),
        5 if rows[0] >= 1000.0 => Err(ScoreError::Failed("no".to_owned())),
        _ => Ok(()),
    });
    for (close_after, ttl) in [(0, 60_000 * MS), (20, MS), (150, 5 * MS), (350, 60_000 * MS)] {
        let config = InferenceEngineConfig {
            num_threads: 4,
            // Room for two or three results.
            cache: CachePolicy { auto: false, bytes_max: NonZeroUsize::new(500).unwrap(), ttl },
            ..InferenceEngineConfig::default()
        };
        let shard = Shard::with(config, &model, |_| {});
        let row = |offset: i64| 1000.0 + (offset % 5) as f64;
        let terms = |work: &mut forebay::record::Work| {
            work.retries = 2;
            work.deadline = Some(forebay::clock::now() + 200 * MS);
        };
        for chunk in 0..40 {
            shard.submit_rows(1000 + chunk * 10..1010 + chunk * 10, row, terms);
        }
        std::thread::sleep(close_after * MS);
        shard.engine.shutdown();
        let ends = shard.ends(400);
        assert_eq!(ends.iter().map(|end| end.offset).collect::<Vec<_>>(), (1000..1400).collect::<Vec<_>>());
        for end in ends {
            assert!(end.result.as_ref().is_err() || end.result == Ok(row(end.offset)), "{end:?}");
        }
        shard.assert_nothing_more();
        let [hits, misses, joined] = found(&shard.engine);
        assert!(misses > 0 && hits + joined > 0, "{hits} hits, {misses} misses, {joined} joined");
    }
}
