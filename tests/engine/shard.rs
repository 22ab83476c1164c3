//! A submitter of whole chunks, as a shard of the worker is one, and a model that scores what the tests want.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use forebay::batch::BatchPolicy;
use forebay::clock;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, ModelSpec};
use forebay::model::{
    FeatureKinds, LoadOptions, Model, ModelError, ModelSchema, ModelType, RowType, Rows, ScoreError, Scorer,
};
use forebay::placement::Pin;
use forebay::record::{
    Chunk, ModelId, NewRequest, PartitionId, Position, Priority, Reject, ReplyAddress, ScoredBatch, Work,
};
use forebay::score::{PartitionKey, Submitter, SubmitterId};

/// Rows of one number, which is their score.
pub(crate) struct Echo {
    schema: ModelSchema,
    /// Asked before each batch of the tests' own rows, which are not negative; those of the validation may be.
    before: fn(&[f64]) -> Result<(), ScoreError>,
    native: bool,
    compiled: bool,
}

impl Echo {
    pub(crate) fn new(before: fn(&[f64]) -> Result<(), ScoreError>) -> Self {
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: vec!["x".to_owned()],
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        Self { schema, before, native: false, compiled: false }
    }

    /// The same, as if the compiled forest scored it.
    pub(crate) fn compiled(before: fn(&[f64]) -> Result<(), ScoreError>) -> Self {
        Self { compiled: true, ..Self::new(before) }
    }

    /// The same, as if C code scored it.
    #[cfg(feature = "failpoints")]
    pub(crate) fn native() -> Self {
        Self { native: true, ..Self::new(|_| Ok(())) }
    }
}

impl Model for Echo {
    fn schema(&self) -> &ModelSchema {
        &self.schema
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(EchoScorer(self.before)))
    }

    fn runs_native_code(&self) -> bool {
        self.native
    }

    fn is_compiled(&self) -> bool {
        self.compiled
    }
}

struct EchoScorer(fn(&[f64]) -> Result<(), ScoreError>);

impl Scorer for EchoScorer {
    fn score(&mut self, rows: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        let values = rows.as_f64()?;
        for (row, score) in values.iter().zip(scores) {
            *score = if row.is_nan() { -1.0 } else { *row };
        }
        (self.0)(values)
    }
}

/// A request that ended: its offset, its score or rejection, the rows of its batch, and when that was.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) offset: i64,
    pub(crate) result: Result<f64, Reject>,
    pub(crate) batch_size: u32,
    pub(crate) at: Instant,
    /// The thread that it was handed back on.
    pub(crate) thread: ThreadId,
}

struct Ends {
    sender: SyncSender<End>,
    /// Sees each end on the score thread, before anything else is scored.
    observe: fn(&End),
}

impl Submitter for Ends {
    fn completed(&self, batch: ScoredBatch) {
        for (place, ticket) in batch.tickets.iter().enumerate() {
            let result = batch.scores_of(place).map(|scores| scores[0]).map_err(Reject::clone);
            let offset = ticket.request().position.offset;
            let end =
                End { offset, result, batch_size: batch.batch_size, at: clock::now(), thread: thread::current().id() };
            (self.observe)(&end);
            let _ = self.sender.send(end);
        }
    }

    fn partition_key(&self, partition: PartitionId) -> Option<PartitionKey> {
        (partition == PartitionId(4)).then(|| PartitionKey::new("group", "topic", 7))
    }
}

/// An engine of one score thread, unless the config asks for more, with an [`Echo`] on it, and what ended there.
pub(crate) struct Shard {
    pub(crate) engine: InferenceEngine,
    pub(crate) ends: Receiver<End>,
    id: SubmitterId,
}

impl Shard {
    pub(crate) fn new(model: &Echo) -> Self {
        Self::with(InferenceEngineConfig::default(), model, |_| {})
    }

    pub(crate) fn with(config: InferenceEngineConfig, model: &Echo, observe: fn(&End)) -> Self {
        let config = InferenceEngineConfig { num_threads: config.num_threads.max(1), pin: Pin::Off, ..config };
        let engine = InferenceEngine::new(config).unwrap();
        engine.add_model(&spec(), model, "").unwrap();
        let (sender, ends) = sync_channel(1000);
        let id = engine.register(Arc::new(Ends { sender, observe }));
        Self { engine, ends, id }
    }

    /// Submits a chunk: each request's row is its offset, and its id `r<offset>`.
    pub(crate) fn submit(&self, offsets: impl IntoIterator<Item = i64>, terms: impl Fn(&mut Work)) -> Instant {
        self.submit_rows(offsets, |offset| offset as f64, terms)
    }

    /// The same with other rows.
    pub(crate) fn submit_rows(
        &self,
        offsets: impl IntoIterator<Item = i64>,
        row: impl Fn(i64) -> f64,
        terms: impl Fn(&mut Work),
    ) -> Instant {
        let (chunk, arrived) = Self::chunk(offsets, row, terms);
        let count = chunk.requests().len();
        assert_eq!(self.engine.submit(self.id, &Arc::new(chunk), 0), Ok(count));
        arrived
    }

    /// As [`Shard::submit`], by a submitter that scores itself where that is sooner done.
    pub(crate) fn submit_here(&self, offsets: impl IntoIterator<Item = i64>, terms: impl Fn(&mut Work)) {
        let (chunk, _) = Self::chunk(offsets, |offset| offset as f64, terms);
        let count = chunk.requests().len();
        assert_eq!(self.engine.submit_here(self.id, &Arc::new(chunk), 0), Ok(count));
    }

    fn chunk(
        offsets: impl IntoIterator<Item = i64>,
        row: impl Fn(i64) -> f64,
        terms: impl Fn(&mut Work),
    ) -> (Chunk, Instant) {
        let mut chunk = Chunk::default();
        let arrived = clock::now();
        for offset in offsets {
            let mark = chunk.features_mut().len();
            chunk.features_mut().push(row(offset));
            let mut work = chunk.work(ModelId(0), mark, 1, false, Priority::new(2).unwrap(), None);
            terms(&mut work);
            let id_json = chunk.push_text(format!("\"r{offset}\"").as_bytes());
            let position = Position { partition: PartitionId(4), offset };
            let address = ReplyAddress::Route;
            chunk.push(NewRequest { position, route: 0, arrived, id_json, key: None, address, work: Ok(work) });
        }
        (chunk, arrived)
    }

    /// The next `count` ends, in the order of their offsets. Nothing may follow within a moment.
    pub(crate) fn ends(&self, count: usize) -> Vec<End> {
        let end = |_| self.ends.recv_timeout(Duration::from_secs(20)).expect("each request ends");
        let mut ends: Vec<End> = (0..count).map(end).collect();
        ends.sort_by_key(|end| end.offset);
        ends
    }

    pub(crate) fn assert_nothing_more(&self) {
        assert!(self.ends.recv_timeout(Duration::from_millis(50)).is_err(), "each request ends once");
    }
}

fn spec() -> ModelSpec {
    ModelSpec {
        name: "echo".to_owned(),
        path: PathBuf::new(),
        load: LoadOptions::default(),
        sha256: None,
        batch: BatchPolicy { batch_size_max: NonZeroU32::new(64).unwrap(), ..BatchPolicy::default() },
        priority_default: Priority::new(2).unwrap(),
    }
}
