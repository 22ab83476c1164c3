//! An engine with a model that can be held: a score thread that scores a row then stays in the model until it is let go.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forebay::batch::{BatchPolicy, LevelPolicy, Levels};
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec};
use forebay::model::{
    FeatureKinds, LoadOptions, Model, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};
use forebay::placement::Pin;
use forebay::record::{Chunk, ModelId, NewRequest, PartitionId, Position, Priority, ReplyAddress};
use forebay::score::{Submitter, SubmitterId};
use parking_lot::{Condvar, Mutex};

/// Score threads: as many as this machine's two cores.
pub(crate) const THREADS: usize = 2;
/// Deep enough for all that a round submits.
pub(crate) const DEPTH: u32 = 1 << 21;
const ROWS_MAX: u32 = 1_024;

/// What a held score thread does meanwhile.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Hold {
    /// As while a GPU or another process works.
    Sleeping,
    /// As a model that computes.
    Computing,
}

struct Gate {
    closed: AtomicBool,
    held: AtomicUsize,
    hold: Hold,
    lock: Mutex<()>,
    opened: Condvar,
}

/// Scores a row with its one number.
struct Held {
    schema: ModelSchema,
    gate: Arc<Gate>,
}

impl Model for Held {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(HeldScorer(Arc::clone(&self.gate))))
    }
}

struct HeldScorer(Arc<Gate>);

impl Scorer for HeldScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        for (row, score) in rows.as_f64()?.iter().zip(scores) {
            *score = if row.is_nan() { -1.0 } else { *row };
        }
        let gate = &*self.0;
        if !gate.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        gate.held.fetch_add(1, Ordering::AcqRel);
        match gate.hold {
            Hold::Computing => {
                while gate.closed.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            }
            Hold::Sleeping => {
                let mut lock = gate.lock.lock();
                gate.opened.wait_while(&mut lock, |()| gate.closed.load(Ordering::Acquire));
            }
        }
        Ok(())
    }
}

/// An engine of [`THREADS`] score threads.
pub(crate) struct Engine {
    pub(crate) engine: InferenceEngine,
    gate: Arc<Gate>,
}

impl Engine {
    pub(crate) fn new(hold: Hold) -> anyhow::Result<Self> {
        let from_one = |number| NonZeroU32::new(number).expect("from 1");
        let config = InferenceEngineConfig {
            num_threads: THREADS,
            pin: Pin::Off,
            max_concurrent_requests: from_one(DEPTH),
            // Requests of equal rows would follow each other, and what is measured is the queue.
            enable_request_deduplication: false,
            ..InferenceEngineConfig::default()
        };
        let engine = InferenceEngine::new(config)?;
        let level = LevelPolicy { queue_depth_max: from_one(DEPTH), ..LevelPolicy::default() };
        let BatchPolicy { levels, .. } = BatchPolicy::default();
        let levels = Levels::uniform(levels.count(), level);
        let spec = ModelSpec {
            name: "held".to_owned(),
            path: PathBuf::new(),
            load: LoadOptions::default(),
            sha256: None,
            batch: BatchPolicy { batch_size_max: from_one(ROWS_MAX), levels, ..BatchPolicy::default() },
            priority_default: level_2(),
        };
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: vec!["x".to_owned()],
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        let gate = Arc::new(Gate {
            closed: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            hold,
            lock: Mutex::new(()),
            opened: Condvar::new(),
        });
        engine.add_model(&spec, &Held { schema, gate: Arc::clone(&gate) }, "")?;
        Ok(Self { engine, gate })
    }

    /// Gives each score thread a request that keeps it until [`let_go`](Self::let_go).
    pub(crate) fn hold_all(&self, submitter: SubmitterId) -> anyhow::Result<()> {
        self.gate.closed.store(true, Ordering::Release);
        for held in 1..=THREADS {
            self.engine.submit(submitter, &chunk(1, |_| None), 0)?;
            while self.gate.held.load(Ordering::Acquire) < held {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    pub(crate) fn let_go(&self) {
        let lock = self.gate.lock.lock();
        self.gate.closed.store(false, Ordering::Release);
        drop(lock);
        self.gate.opened.notify_all();
    }
}

/// A chunk of so many requests of one row, with a deadline for each.
pub(crate) fn chunk(requests: usize, deadline: impl Fn(usize) -> Option<Instant>) -> Arc<Chunk> {
    let mut chunk = Chunk::default();
    let arrived = forebay::clock::now();
    for index in 0..requests {
        let mark = chunk.features_mut().len();
        chunk.features_mut().push(1.0);
        let work = Ok(chunk.work(ModelId(0), mark, 1, false, level_2(), deadline(index)));
        let id_json = chunk.push_text(b"\"id\"");
        let position = Position { partition: PartitionId(0), offset: i64::try_from(index).expect("small") };
        let address = ReplyAddress::Route;
        chunk.push(NewRequest { position, route: 0, arrived, id_json, key: None, address, work });
    }
    Arc::new(chunk)
}

fn level_2() -> Priority {
    Priority::new(2).expect("from 1")
}

/// Counts what ended, and shows each batch to `see`.
pub(crate) struct Ended<F> {
    count: Mutex<usize>,
    more: Condvar,
    see: F,
}

impl<F: Fn(&forebay::record::ScoredBatch) + Send + Sync> Ended<F> {
    pub(crate) fn new(see: F) -> Self {
        Self { count: Mutex::new(0), more: Condvar::new(), see }
    }

    /// Waits until so many have ended since the last call.
    pub(crate) fn take(&self, count: usize) -> anyhow::Result<()> {
        let mut ended = self.count.lock();
        let all = self.more.wait_while_for(&mut ended, |ended| *ended < count, Duration::from_secs(60));
        anyhow::ensure!(!all.timed_out() && *ended == count, "{} of {count} requests ended", *ended);
        *ended = 0;
        Ok(())
    }
}

impl<F: Fn(&forebay::record::ScoredBatch) + Send + Sync> Submitter for Ended<F> {
    fn completed(&self, batch: forebay::record::ScoredBatch) {
        (self.see)(&batch);
        *self.count.lock() += batch.tickets.len();
        self.more.notify_one();
    }
}
