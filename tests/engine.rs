//! The library's door, as a user of the crate meets it: no broker, a model, features in, predictions out.
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

#[path = "engine/again.rs"]
mod again;
#[path = "engine/cache.rs"]
mod cache;
#[path = "engine/here.rs"]
mod here;
#[cfg(feature = "failpoints")]
#[path = "engine/journal.rs"]
mod journal;
#[path = "engine/registry.rs"]
mod registry;
#[path = "engine/shard.rs"]
mod shard;

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use forebay::batch::{BatchPolicy, LevelPolicy, Levels};
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec, PredictError, PredictionRequest};
use forebay::model::{
    FeatureKinds, LoadOptions, Model, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};
use forebay::placement::Pin;
use forebay::record::{ErrorCode, Priority};

const HIGGS: &str = "tests/data/higgs/higgs.model.txt";

fn higgs_rows(count: usize) -> Vec<(Vec<f64>, f64)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = fs::read_to_string(root.join("tests/data/higgs/higgs.test.tsv")).unwrap();
    // Made by LightGBM's Python package in this run of `make test`, from the same model file.
    let scores = fs::read_to_string(root.join("target/models/higgs-scores.txt")).expect("run `make test`");
    let row = |line: &str| line.split('\t').skip(1).map(|value| value.parse().unwrap()).collect();
    data.lines().map(row).zip(scores.lines().map(|score| score.parse().unwrap())).take(count).collect()
}

fn code(error: PredictError) -> ErrorCode {
    match error {
        PredictError::Rejected(reject) => reject.code,
        PredictError::Closed(_) => panic!("closed"),
    }
}

#[test]
fn predictions_are_those_of_lightgbms_python_package() {
    // So that the second asking is scored, too.
    let config = InferenceEngineConfig { enable_request_deduplication: false, ..InferenceEngineConfig::default() };
    let engine = InferenceEngine::new(config).unwrap();
    engine.load_model(HIGGS, Some(ModelType::LightGbm), false).unwrap();
    let rows = higgs_rows(500);
    let features: Vec<Vec<f64>> = rows.iter().map(|(row, _)| row.clone()).collect();
    for (batched, (row, expected)) in engine.predict_batch(&features).into_iter().zip(&rows) {
        let batched = batched.unwrap();
        assert!((batched.scores[0] - expected).abs() <= 1e-12);
        let alone = engine.predict(row).unwrap();
        assert_eq!(alone.scores[0].to_bits(), batched.scores[0].to_bits(), "batch 1 = batch n");
        assert_eq!((alone.outputs, alone.metadata.model.as_str(), alone.metadata.version), (1, "higgs.model", 1));
    }
    let stats = engine.get_performance_metrics();
    assert_eq!((stats.total_requests, stats.failed_requests), (1000, 0));
    assert!(engine.validate_model().unwrap().passed());
    engine.shutdown();
    assert!(matches!(engine.predict(&features[0]), Err(PredictError::Closed(_))));
}

#[tokio::test]
async fn a_pending_prediction_is_a_future() {
    let engine = InferenceEngine::new(InferenceEngineConfig::default()).unwrap();
    engine.load_model(HIGGS, None, false).unwrap();
    let (row, expected) = higgs_rows(1).remove(0);
    let request = PredictionRequest { id: "r7".to_owned(), ..PredictionRequest::new(row) };
    let prediction = engine.enqueue_prediction(request).unwrap().await.unwrap();
    assert_eq!(prediction.id, "r7");
    assert!((prediction.scores[0] - expected).abs() <= 1e-12);
}

#[test]
fn several_rows_are_one_request() {
    let engine = InferenceEngine::new(InferenceEngineConfig::default()).unwrap();
    engine.load_model(HIGGS, None, false).unwrap();
    let rows = higgs_rows(3);
    let flat: Vec<f64> = rows.iter().flat_map(|(row, _)| row.clone()).collect();
    let prediction = engine.predict(&flat).unwrap();
    assert_eq!(prediction.scores.len(), 3);
    for (score, (_, expected)) in prediction.scores.iter().zip(&rows) {
        assert!((score - expected).abs() <= 1e-12);
    }
}

#[test]
fn what_cannot_be_scored_says_why() {
    let engine = InferenceEngine::new(InferenceEngineConfig::default()).unwrap();
    assert_eq!(code(engine.predict(&[1.0]).unwrap_err()), ErrorCode::UnknownModel);
    assert!(matches!(engine.validate_model(), Err(ModelError::Refused { .. })));
    engine.load_model(HIGGS, None, false).unwrap();
    let error = engine.predict(&[1.0]).unwrap_err();
    assert_eq!(error.to_string(), "bad_request: features: got 1 values, model higgs.model wants 28");
    let mut infinite = vec![0.0; 28];
    infinite[3] = f64::INFINITY;
    assert!(engine.predict(&infinite).unwrap_err().to_string().contains("features[3]: infinite"));
    let ask = |change: fn(&mut PredictionRequest)| {
        let mut request = PredictionRequest::new(vec![0.0; 28]);
        change(&mut request);
        code(engine.enqueue_prediction(request).map(|_| ()).unwrap_err())
    };
    assert_eq!(ask(|request| request.model = Some("nobody".to_owned())), ErrorCode::UnknownModel);
    assert_eq!(ask(|request| request.priority = Priority::new(99)), ErrorCode::BadRequest);
    // A refused request gives its place back.
    for _ in 0..1000 {
        assert!(engine.enqueue_prediction(PredictionRequest::new(vec![0.0])).is_err());
    }
    assert!(engine.predict(&[0.0; 28]).is_ok());
}

#[test]
fn models_that_must_not_be_scored_are_refused() {
    let engine = InferenceEngine::new(InferenceEngineConfig::default()).unwrap();
    let refusal = |path: &str, compile| engine.load_model(path, None, compile).unwrap_err().to_string();
    for compile in [true, false] {
        assert!(refusal("no/such/file.txt", compile).contains("no/such/file.txt"));
        assert!(refusal("tests/data/higgs/higgs.test.tsv", compile).contains("cannot tell what kind"));
    }
}

/// A model that tells when it starts a batch and waits until it may end it.
struct Gate {
    schema: ModelSchema,
    started: SyncSender<Vec<f64>>,
    may_end: Arc<parking_lot::Mutex<Receiver<()>>>,
}

struct GateScorer {
    started: SyncSender<Vec<f64>>,
    may_end: Arc<parking_lot::Mutex<Receiver<()>>>,
}

impl Model for Gate {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(GateScorer { started: self.started.clone(), may_end: Arc::clone(&self.may_end) }))
    }
}

impl Scorer for GateScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        // Made-up rows of the validation pass through; those of the tests are whole numbers from 1,000.
        let values = rows.as_f64()?;
        for (row, score) in values.iter().zip(scores) {
            *score = if row.is_nan() { -1.0 } else { *row };
        }
        if values.iter().all(|value| *value >= 1000.0) {
            self.started.send(values.to_vec()).unwrap();
            let _ = self.may_end.lock().recv();
        }
        if values.contains(&1666.0) {
            return Err(ScoreError::Failed("1666 is not liked".to_owned()));
        }
        Ok(())
    }
}

struct Gated {
    engine: InferenceEngine,
    started: Receiver<Vec<f64>>,
    end: SyncSender<()>,
}

/// An engine of one score thread whose model waits at the gate.
fn gated(batch_size_max: u32) -> Gated {
    let (started_in, started) = sync_channel(100);
    let (end, may_end) = sync_channel(100);
    let config = InferenceEngineConfig { num_threads: 1, pin: Pin::Off, ..InferenceEngineConfig::default() };
    let engine = InferenceEngine::new(config).unwrap();
    let feature_names = vec!["x".to_owned()];
    let schema = ModelSchema {
        model_type: ModelType::LightGbm,
        feature_names,
        kinds: FeatureKinds::default(),
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    };
    let gate = Gate { schema, started: started_in, may_end: Arc::new(parking_lot::Mutex::new(may_end)) };
    let spec = ModelSpec {
        name: "gate".to_owned(),
        path: PathBuf::new(),
        load: LoadOptions::default(),
        sha256: None,
        batch: BatchPolicy {
            batch_size_max: NonZeroU32::new(batch_size_max).unwrap(),
            levels: Levels::uniform(
                3.try_into().unwrap(),
                LevelPolicy { queue_depth_max: NonZeroU32::new(100).unwrap(), ..LevelPolicy::default() },
            ),
            ..BatchPolicy::default()
        },
        priority_default: Priority::new(2).unwrap(),
    };
    engine.add_model(&spec, &gate, "").unwrap();
    Gated { engine, started, end }
}

fn request(value: f64, priority: u8) -> PredictionRequest {
    PredictionRequest { priority: Priority::new(priority), ..PredictionRequest::new([value]) }
}

#[test]
fn what_waits_is_batched_by_priority() {
    let Gated { engine, started, end } = gated(3);
    let mut pending = vec![engine.enqueue_prediction(request(1000.0, 2)).unwrap()];
    assert_eq!(started.recv().unwrap(), [1000.0], "an idle thread never waits for company");
    for (value, priority) in [(1001.0, 3), (1002.0, 2), (1003.0, 1), (1004.0, 1)] {
        pending.push(engine.enqueue_prediction(request(value, priority)).unwrap());
    }
    end.send(()).unwrap();
    assert_eq!(started.recv().unwrap(), [1003.0, 1004.0, 1002.0]);
    end.send(()).unwrap();
    assert_eq!(started.recv().unwrap(), [1001.0]);
    end.send(()).unwrap();
    let scores: Vec<f64> = pending.into_iter().map(|pending| pending.wait().unwrap().scores[0]).collect();
    assert_eq!(scores, [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]);
}

#[test]
fn a_failing_request_fails_alone() {
    let Gated { engine, started, end } = gated(8);
    let first = engine.enqueue_prediction(request(1000.0, 2)).unwrap();
    started.recv().unwrap();
    let values = [1001.0, 1666.0, 1002.0];
    let pending: Vec<_> = values.iter().map(|&value| engine.enqueue_prediction(request(value, 2)).unwrap()).collect();
    // The first batch, the failing one, and its three requests again, each alone.
    for _ in 0..5 {
        end.send(()).unwrap();
    }
    assert!(first.wait().is_ok());
    let ended: Vec<_> = pending.into_iter().map(|pending| pending.wait().map(|p| p.scores[0])).collect();
    assert_eq!(ended[0], Ok(1001.0));
    assert_eq!(ended[1].clone().unwrap_err().to_string(), "model_error: 1666 is not liked");
    assert_eq!(ended[2], Ok(1002.0));
    assert_eq!(engine.get_performance_metrics().failed_requests, 1);
}

#[test]
fn deadlines_hold_while_the_score_thread_is_busy() {
    let Gated { engine, started, end } = gated(8);
    let busy = engine.enqueue_prediction(request(1000.0, 2)).unwrap();
    started.recv().unwrap();
    let hurried = PredictionRequest { timeout: Some(Duration::from_millis(20)), ..request(1001.0, 2) };
    let hurried = engine.enqueue_prediction(hurried).unwrap();
    // Nothing lets the busy one end: the answer comes from the thread that keeps deadlines.
    assert_eq!(code(hurried.wait().unwrap_err()), ErrorCode::DeadlineExceeded);
    end.send(()).unwrap();
    assert!(busy.wait().is_ok());
}

#[test]
fn past_the_most_in_flight_a_request_is_told_so() {
    let Gated { engine, started, end } = gated(1000);
    let mut pending = vec![engine.enqueue_prediction(request(1000.0, 2)).unwrap()];
    started.recv().unwrap();
    for _ in 1..100 {
        pending.push(engine.enqueue_prediction(request(1001.0, 2)).unwrap());
    }
    let error = engine.enqueue_prediction(request(1002.0, 2)).map(|_| ()).unwrap_err();
    assert_eq!(code(error), ErrorCode::QueueFull);
    end.send(()).unwrap();
    end.send(()).unwrap();
    assert!(pending.into_iter().all(|pending| pending.wait().is_ok()));
    end.send(()).unwrap();
    assert!(engine.enqueue_prediction(request(1002.0, 2)).unwrap().wait().is_ok(), "the places are free again");
}

#[test]
fn a_new_version_takes_the_place_of_the_old_one() {
    let engine = InferenceEngine::new(InferenceEngineConfig::default()).unwrap();
    // Of another backend, too.
    let first = engine.load_model(HIGGS, None, false).unwrap();
    assert!(!engine.model(first).unwrap().is_compiled());
    let second = engine.load_model(HIGGS, None, true).unwrap();
    assert!(engine.model(second).unwrap().is_compiled());
    assert_eq!(first, second);
    assert_eq!(engine.predict(&[0.5; 28]).unwrap().metadata.version, 2);
}
