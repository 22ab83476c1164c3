//! Versions of a model in service: swapped under load, refused, taken back, tried as canary and as shadow. And models
//! with threads of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use forebay::batch::BatchPolicy;
use forebay::engine::{
    CandidateSpec, Change, InferenceEngine, InferenceEngineConfig, ModelSpec, PredictionRequest, RegistryError,
};
use forebay::metrics::ModelInfo;
use forebay::model::{
    FeatureKinds, LoadOptions, Model, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};
use forebay::placement::Pin;
use forebay::record::Priority;
use forebay::score::{Trial, TrialMode};

/// A LightGBM model of one tree: `below` for x <= 0, `above` for more.
fn stump(below: f64, above: f64) -> String {
    let tree = format!(
        "Tree=0\nnum_leaves=2\nnum_cat=0\nsplit_feature=0\nsplit_gain=1\nthreshold=0\ndecision_type=2\n\
         left_child=-1\nright_child=-2\nleaf_value={below} {above}\nleaf_weight=1 1\nleaf_count=1 1\n\
         internal_value=0\ninternal_weight=2\ninternal_count=2\nis_linear=0\nshrinkage=1\n\n\n"
    );
    format!(
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=0\n\
         objective=regression\nfeature_names=x\nfeature_infos=[-1:1]\ntree_sizes={}\n\n{tree}end of trees\n",
        tree.len()
    )
}

struct Served {
    engine: Arc<InferenceEngine>,
    spec: ModelSpec,
    folder: tempfile::TempDir,
}

impl Served {
    /// An engine of two threads that serves the stump.
    fn new(below: f64, above: f64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = InferenceEngineConfig {
            num_threads: 2,
            pin: Pin::Off,
            enable_request_deduplication: false,
            ..InferenceEngineConfig::default()
        };
        let spec = spec("m", folder.path().join("m.txt"));
        let served = Self { engine: Arc::new(InferenceEngine::new(config).unwrap()), spec, folder };
        served.write("m.txt", &stump(below, above));
        served.engine.load_spec(&served.spec).unwrap();
        served
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The version and the score that answer x = 1.
    fn answer(&self) -> (u32, f64) {
        let prediction = self.engine.predict(&[1.0]).unwrap();
        (prediction.metadata.version, prediction.scores[0])
    }

    fn candidate(&self, above: f64, mode: TrialMode, share: f64) -> CandidateSpec {
        let path = self.write("candidate.txt", &stump(0.0, above));
        CandidateSpec { path, load: LoadOptions::default(), sha256: None, trial: Trial { mode, share } }
    }

    fn info(&self) -> ModelInfo {
        self.engine.sights().models.remove(0)
    }
}

fn spec(name: &str, path: PathBuf) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        path,
        load: LoadOptions::default(),
        sha256: None,
        batch: BatchPolicy { batch_size_max: 64.try_into().unwrap(), ..BatchPolicy::default() },
        priority_default: Priority::new(2).unwrap(),
    }
}

#[test]
fn every_request_is_scored_by_one_version_while_five_hundred_are_swapped_in() {
    let served = Served::new(-1.0, 1.0);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let feeder = |_| {
        let (engine, stop, answered) = (Arc::clone(&served.engine), Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::Builder::new().name("feeder".to_owned());
        let feed = move || {
            while !stop.load(Ordering::Relaxed) {
                // Three rows a request: scored by two versions, they would not fit together.
                let prediction = engine.predict(&[1.0, -1.0, 2.0]).unwrap();
                let version = f64::from(prediction.metadata.version);
                assert_eq!(prediction.scores, [version, -version, version]);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread.spawn(feed).unwrap()
    };
    let feeders: Vec<_> = (0..2).map(feeder).collect();
    for version in 2..=501 {
        served.write("m.txt", &stump(-f64::from(version), f64::from(version)));
        // Some requests at least are answered by each version.
        let before = answered.load(Ordering::Relaxed);
        let change = served.engine.reload("m").unwrap();
        assert_eq!(change, Change::Swapped { from: version - 1, to: version });
        assert_eq!(served.answer(), (version, f64::from(version)), "a reload that has returned is in service");
        super::cache::wait_until("requests are answered", || answered.load(Ordering::Relaxed) > before);
    }
    stop.store(true, Ordering::Relaxed);
    for feeder in feeders {
        feeder.join().unwrap();
    }
    assert_eq!(served.engine.get_performance_metrics().failed_requests, 0);
}

#[test]
fn what_is_refused_changes_nothing_and_is_told() {
    let served = Served::new(-1.0, 1.0);
    assert_eq!(served.engine.reload("m").unwrap(), Change::Unchanged);
    let good = std::fs::read_to_string(&served.spec.path).unwrap();
    let other_features = good.replace("feature_names=x", "feature_names=y");
    for (bad, reason) in [("tree\nbroken", "cannot read it"), (other_features.as_str(), "its features differ")] {
        served.write("m.txt", bad);
        let error = served.engine.reload("m").unwrap_err();
        assert!(matches!(error, RegistryError::Refused(_)) && error.to_string().contains(reason), "{error}");
        assert_eq!(served.answer(), (1, 1.0));
        assert_eq!(served.info().last_error.map(|error| error.message), Some(error.to_string()));
    }
    served.write("m.txt", &good);
    assert_eq!(served.engine.reload("m").unwrap(), Change::Unchanged);
    assert_eq!(served.info().last_error, None);
    let error = served.engine.reload("n").unwrap_err();
    assert_eq!(error.to_string(), "no model \"n\" is loaded; loaded: m");
}

#[test]
fn a_rollback_brings_the_version_before_back_and_can_itself_be_taken_back() {
    let served = Served::new(-1.0, 1.0);
    assert!(matches!(served.engine.rollback("m"), Err(RegistryError::NoPrevious(_))));
    served.write("m.txt", &stump(0.0, 5.0));
    served.engine.reload("m").unwrap();
    assert_eq!(served.answer(), (2, 5.0));
    assert_eq!(served.engine.rollback("m").unwrap(), Change::Swapped { from: 2, to: 1 });
    assert_eq!(served.answer(), (1, 1.0));
    assert_eq!(served.info().previous.map(|previous| previous.version), Some(2));
    assert_eq!(served.engine.rollback("m").unwrap(), Change::Swapped { from: 1, to: 2 });
    assert_eq!(served.answer(), (2, 5.0));
    served.write("m.txt", &stump(0.0, 6.0));
    assert_eq!(served.engine.reload("m").unwrap(), Change::Swapped { from: 2, to: 3 });
}

#[test]
fn a_canary_answers_its_share_until_it_is_promoted() {
    let served = Served::new(-1.0, 1.0);
    let candidate = served.candidate(2.0, TrialMode::Canary, 0.3);
    assert_eq!(served.engine.apply(&served.spec, Some(&candidate)).unwrap(), Change::Trial);
    assert_eq!(served.engine.apply(&served.spec, Some(&candidate)).unwrap(), Change::Unchanged);
    let requests = (0..2_000).map(|_| PredictionRequest::new([1.0]));
    let predictions: Vec<_> = served.engine.predict_all(requests).into_iter().map(Result::unwrap).collect();
    let fits = |version: u32, score: f64| [(1, 1.0), (2, 2.0)].contains(&(version, score));
    assert!(predictions.iter().all(|own| fits(own.metadata.version, own.scores[0])));
    let canary = predictions.iter().filter(|own| own.metadata.version == 2).count();
    // 600 are expected, with a deviation of 20.
    assert!((480..720).contains(&canary), "{canary} of 2000");
    let info = served.info().candidate.unwrap();
    assert_eq!((info.mode.as_str(), info.version.version), ("canary", 2));
    assert_eq!((info.stats.requests, info.stats.failed, info.stats.compared_rows), (canary as u64, 0, 0));
    assert_eq!(served.engine.promote("m").unwrap(), Change::Swapped { from: 1, to: 2 });
    assert_eq!((served.answer(), served.info().candidate), ((2, 2.0), None));
    assert!(matches!(served.engine.promote("m"), Err(RegistryError::NoCandidate(_))));
    served.engine.rollback("m").unwrap();
    assert_eq!(served.answer(), (1, 1.0));
}

#[test]
fn a_shadow_is_compared_and_answers_nothing() {
    let served = Served::new(0.0, 1.0);
    let candidate = served.candidate(0.25, TrialMode::Shadow, 1.0);
    served.engine.apply(&served.spec, Some(&candidate)).unwrap();
    let requests = (0..100).map(|place| PredictionRequest::new([f64::from(place % 4), -1.0]));
    for prediction in served.engine.predict_all(requests) {
        let prediction = prediction.unwrap();
        assert_eq!((prediction.metadata.version, prediction.scores[1]), (1, 0.0));
    }
    let stats = || served.info().candidate.unwrap().stats;
    super::cache::wait_until("all was compared", || stats().compared_rows == 200);
    // Of 200 rows 75 are above 0: 1 by the one, 0.25 by the other.
    let stats = stats();
    assert_eq!((stats.requests, stats.failed, stats.differing_rows, stats.changed_rows), (100, 0, 75, 75));
    assert!((stats.difference_max - 0.75).abs() < 1e-12 && (stats.difference_mean - 0.75 * 75.0 / 200.0).abs() < 1e-12);
    let metrics = served.engine.metrics().to_text(&served.engine.sights());
    let line = "forebay_candidate_changed_rows_total{model=\"m\",version=\"2\",mode=\"shadow\"} 75";
    assert!(metrics.contains(line), "{metrics}");
    assert_eq!(served.engine.end_trial("m").unwrap(), Change::Trial);
    assert!(!served.engine.metrics().to_text(&served.engine.sights()).contains("forebay_candidate_"));
    assert_eq!(served.info().candidate, None);
    assert_eq!(served.answer(), (1, 1.0));
}

/// A model with a thread of its own, on which it waits to be told.
struct Remote {
    schema: ModelSchema,
    may_end: Arc<parking_lot::Mutex<Receiver<()>>>,
}

impl Model for Remote {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(RemoteScorer(Arc::clone(&self.may_end))))
    }

    fn own_threads(&self) -> Option<std::num::NonZeroU32> {
        std::num::NonZeroU32::new(1)
    }
}

struct RemoteScorer(Arc<parking_lot::Mutex<Receiver<()>>>);

impl Scorer for RemoteScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let values = rows.as_f64()?;
        if values[0] > 1e6 {
            self.0.lock().recv().unwrap();
        }
        scores.copy_from_slice(&vec![7.0; scores.len()]);
        Ok(())
    }
}

#[test]
fn a_model_that_waits_on_its_own_thread_keeps_no_other_waiting() {
    let served = Served::new(-1.0, 1.0);
    let (end, may_end) = sync_channel(1);
    let schema = ModelSchema {
        model_type: ModelType::Python,
        feature_names: vec!["x".to_owned()],
        kinds: FeatureKinds::default(),
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    };
    let remote = Remote { schema, may_end: Arc::new(parking_lot::Mutex::new(may_end)) };
    served.engine.add_model(&spec("remote", Path::new("").to_owned()), &remote, "").unwrap();
    let ask = |x| {
        let request = PredictionRequest { model: Some("remote".to_owned()), ..PredictionRequest::new([x]) };
        served.engine.enqueue_prediction(request).unwrap()
    };
    // More of them than there are score threads.
    let (hanging, behind): (_, Vec<_>) = (ask(1e9), (0..5).map(|_| ask(1.0)).collect());
    for _ in 0..100 {
        assert_eq!(served.answer(), (1, 1.0));
    }
    end.send(()).unwrap();
    assert_eq!(hanging.wait().unwrap().scores, [7.0]);
    assert!(behind.into_iter().all(|pending| pending.wait().unwrap().scores == [7.0]));
    // What waits when the engine is shut down is scored first, there too.
    let last = ask(2.0);
    served.engine.shutdown();
    assert_eq!(last.wait().unwrap().scores, [7.0]);
}

#[test]
fn a_version_that_does_not_meet_the_sample_beside_it_is_refused() {
    let served = Served::new(-1.0, 1.0);
    served.write("m.rows.jsonl", "[1.0]\n{\"x\": null}\n");
    served.write("m.expected.jsonl", "[2.0]\n-1\n");
    served.write("m.txt", &stump(-1.0, 2.5));
    let error = served.engine.reload("m").unwrap_err().to_string();
    let told = ["refused by its sample", "m.expected.jsonl", "largest difference 2.5e-1 (row 0)"];
    assert!(told.iter().all(|part| error.contains(part)), "{error}");
    assert_eq!(served.answer(), (1, 1.0));
    served.write("m.txt", &stump(-1.0, 2.0));
    served.engine.reload("m").unwrap();
    assert_eq!(served.answer(), (3, 2.0));
}
