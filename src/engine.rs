//! [`InferenceEngine`], the library's door: features in, predictions out. The worker's pipeline stands on the same door;
//! it submits whole chunks where a library user submits single requests.

mod door;
mod registry;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use self::door::Door;
pub use self::door::PendingPrediction;
use self::registry::Slot;
pub use self::registry::{CandidateSpec, Change, RegistryError};
use crate::batch::{BatchPolicy, BatcherStats, LevelPolicy, Levels};
use crate::cache::CachePolicy;
use crate::clock;
use crate::metrics::{Metrics, PerformanceMetrics, PerformanceSnapshot, QueueSight, Sights};
use crate::model::validate::Validation;
use crate::model::{Backend, Catalog, LoadOptions, LoadedModel, ModelEntry, ModelError, ModelType};
use crate::placement::{Pin, Plan};
use crate::record::{
    Chunk, ErrorCode, ModelId, NewRequest, PartitionId, Position, Priority, Reject, ReplyAddress, Work,
};
use crate::score::{
    Closed, FeatureCache, JournalFile, PartitionKey, Pools, ResultCache, Scheduler, Serving, Submitter, SubmitterId,
};

/// Settings of an engine. The defaults are the seed's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferenceEngineConfig {
    /// Whether requests are gathered into batches. Off: each is scored alone. Default true.
    pub enable_batching: bool,
    /// Score threads; 0 is one for each core that the container grants. Default 0.
    pub num_threads: usize,
    /// Where score threads are pinned. Default [`Pin::Auto`].
    pub pin: Pin,
    /// Whether batch buffers of 2 MiB and more ask for huge pages, which spare the processor page-table look-ups. Default
    /// false.
    pub huge_pages: bool,
    /// Most rows in a batch. Default 64.
    pub max_batch_size: NonZeroU32,
    /// Most requests between `enqueue_prediction` and their answer. Past it `enqueue_prediction` answers
    /// [`ErrorCode::QueueFull`], while `predict` and `predict_batch` wait for a place. Default 100.
    pub max_concurrent_requests: NonZeroU32,
    /// How long the oldest request may wait for company. Default 0: an idle score thread never waits.
    pub queue_delay_max: Duration,
    /// Whether requests share scores: one whose exact rows were scored lately is answered from the cache, and of those that
    /// wait or are scored at the same time one is scored. Default true.
    pub enable_request_deduplication: bool,
    /// How long and how many scores are kept for that. Default 60 s and 64 MiB, whatever scoring costs.
    pub cache: CachePolicy,
    /// Most bytes of preprocessed rows that are kept for the next request with the same raw rows; `None` keeps none.
    pub feature_cache_bytes: Option<NonZeroUsize>,
    /// Where the records that native models score are named, so that one that ends the process is known afterwards: those
    /// of submitters that know their [`PartitionKey`]s. It is opened with the first such model. Default none.
    pub journal: Option<JournalFile>,
}

impl Default for InferenceEngineConfig {
    fn default() -> Self {
        Self {
            enable_batching: true,
            num_threads: 0,
            pin: Pin::Auto,
            huge_pages: false,
            max_batch_size: NonZeroU32::MIN.saturating_add(63),
            max_concurrent_requests: NonZeroU32::MIN.saturating_add(99),
            queue_delay_max: Duration::ZERO,
            enable_request_deduplication: true,
            cache: CachePolicy::default(),
            feature_cache_bytes: None,
            journal: None,
        }
    }
}

/// A model and how its requests are queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name that requests and routes use.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// How the file becomes a model.
    pub load: LoadOptions,
    /// The SHA-256 that the file must have.
    pub sha256: Option<[u8; 32]>,
    /// When batches are formed, and how long requests may wait.
    pub batch: BatchPolicy,
    /// The level of a request that names none.
    pub priority_default: Priority,
}

/// One request at the library's door.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PredictionRequest {
    /// Comes back in the prediction.
    pub id: String,
    /// The model's name; `None` is the model that was loaded first.
    pub model: Option<String>,
    /// One or more rows, row-major. A missing value is NaN, and so is the place of a text.
    pub features: Vec<f64>,
    /// The rows' texts: a cell for each column that the model takes as text, in their order; `None` is a missing value.
    pub texts: Vec<Option<String>>,
    /// The level, 1 the highest; `None` is the model's default.
    pub priority: Option<Priority>,
    /// How long the request may wait for a score thread; `None` is the model's own timeout, which this can only shorten.
    pub timeout: Option<Duration>,
    /// How often it is tried again after a transient error of the model: 0 to [`Work::RETRIES_MAX`], the first time after
    /// 100 ms, then after twice the last.
    pub retries: u8,
}

impl PredictionRequest {
    /// A request with these features and defaults for all else.
    #[must_use]
    pub fn new(features: impl Into<Vec<f64>>) -> Self {
        Self { features: features.into(), ..Self::default() }
    }
}

/// A request's scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The request's id.
    pub id: String,
    /// Scores, row-major: [`Prediction::outputs`] a row.
    pub scores: Vec<f64>,
    /// Scores a row.
    pub outputs: usize,
    /// How they came to be.
    pub metadata: PredictionMetadata,
}

/// How a prediction came to be.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictionMetadata {
    /// The model's name.
    pub model: String,
    /// Which load of that name it was, from 1.
    pub version: u32,
    /// Rows of the batch that it was scored in. A request that was joined to another one is not counted again.
    pub batch_size: u32,
    /// How long the request waited for a score thread.
    pub queued: Duration,
    /// How long the model took for the batch.
    pub inference: Duration,
    /// Whether the scores came from the cache: then no batch was scored, and no time taken.
    pub cache_hit: bool,
}

/// Why there is no prediction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The request was refused or failed; the same code and message would go into a worker's error reply.
    #[error(transparent)]
    Rejected(#[from] Reject),
    /// The engine was shut down.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why an engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The threads cannot be placed as the config says.
    #[error("engine.pin: {0}")]
    Placement(String),
    /// The system has no random numbers for the secret of the cache's keys.
    #[error(
        "cannot make the cache's secret: {0}; enable_request_deduplication = false (cache.mode = \"off\") needs none"
    )]
    Secret(#[from] getrandom::Error),
    /// The system refused a thread.
    #[error("cannot start the score threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// Loads models, queues requests, scores them in batches on its own pinned threads.
///
/// Cheap to share: put it in an [`Arc`]. Dropped without [`InferenceEngine::shutdown`], it shuts down by itself.
pub struct InferenceEngine {
    scheduler: Arc<Scheduler>,
    catalog: ArcSwap<Catalog>,
    /// What each name stands for; locked for as long as a look takes.
    slots: Mutex<Vec<Slot>>,
    /// Held while a model is loaded or changed: one change at a time.
    changing: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    plan: Arc<Plan>,
    door: Arc<Door>,
    door_id: SubmitterId,
    metrics: Arc<Metrics>,
    config: InferenceEngineConfig,
}

impl InferenceEngine {
    /// Starts the score threads. No model is loaded yet.
    ///
    /// # Errors
    /// [`EngineError`] when the threads cannot be placed or started.
    pub fn new(config: InferenceEngineConfig) -> Result<Self, EngineError> {
        Self::with_metrics(config, Arc::new(Metrics::new()))
    }

    /// The same, counting into metrics that the caller also shows.
    ///
    /// # Errors
    /// As [`InferenceEngine::new`].
    pub fn with_metrics(config: InferenceEngineConfig, metrics: Arc<Metrics>) -> Result<Self, EngineError> {
        let plan = Arc::new(Plan::new(config.num_threads, &config.pin).map_err(EngineError::Placement)?);
        let cache = config.enable_request_deduplication.then(|| ResultCache::new(config.cache)).transpose()?;
        let features = config.feature_cache_bytes.map(|bytes| FeatureCache::new(bytes, Arc::clone(&metrics)));
        let pools = Pools::new(&plan, config.huge_pages, features.transpose()?.map(Arc::new).as_ref());
        let scheduler = Arc::new(Scheduler::new(pools, cache, Arc::clone(&metrics)));
        let door = Arc::new(Door::new(config.max_concurrent_requests.get()));
        let door_id = scheduler.register(Arc::clone(&door) as Arc<dyn Submitter>);
        let threads = Mutex::new(scheduler.start(&plan)?);
        let (catalog, slots, changing) = (ArcSwap::default(), Mutex::default(), Mutex::default());
        Ok(Self { scheduler, catalog, slots, changing, threads, plan, door, door_id, metrics, config })
    }

    /// Loads a model under the name of its file (without the ending), or puts a new version in the place of the one
    /// that has that name. `model_type`: `None` finds it from the file. `compile`: whether XGBoost and LightGBM models
    /// are scored by the compiled forest, or else by the library that they were trained with; other kinds are scored
    /// by their own runtime.
    ///
    /// # Errors
    /// [`ModelError`] when the file cannot be read, is not supported, or fails [`InferenceEngine::validate_model`].
    /// One backend never stands in for the other.
    ///
    /// # Panics
    /// As [`InferenceEngine::add_model`].
    pub fn load_model(
        &self,
        path: impl AsRef<Path>,
        model_type: Option<ModelType>,
        compile: bool,
    ) -> Result<ModelId, ModelError> {
        let path = path.as_ref();
        let name = path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let batch_size_max = if self.config.enable_batching { self.config.max_batch_size } else { NonZeroU32::MIN };
        let queue_depth_max = self.config.max_concurrent_requests;
        let default = BatchPolicy::default();
        let level = LevelPolicy { queue_depth_max, ..LevelPolicy::default() };
        self.load_spec(&ModelSpec {
            name,
            path: path.to_owned(),
            load: LoadOptions { model_type, ..LoadOptions::of_backend(Backend::new(compile)) },
            sha256: None,
            batch: BatchPolicy {
                batch_size_max,
                queue_delay_max: self.config.queue_delay_max,
                levels: Levels::uniform(default.levels.count(), level),
                ..default
            },
            priority_default: Priority::new(2).expect("2 is not 0"),
        })
    }

    /// Scores one row (or several, row-major) and waits for the answer. Not for use inside an async task: there,
    /// await [`InferenceEngine::enqueue_prediction`].
    ///
    /// # Errors
    /// [`PredictError`] as the request deserves.
    pub fn predict(&self, features: &[f64]) -> Result<Prediction, PredictError> {
        self.door.wait_for_place();
        self.enqueue_admitted(PredictionRequest::new(features))?.wait()
    }

    /// Scores many requests and waits for all answers, which come in the order of the requests. A failed one fails
    /// alone.
    pub fn predict_batch(&self, features: &[Vec<f64>]) -> Vec<Result<Prediction, PredictError>> {
        let requests = features.iter().map(|row| PredictionRequest::new(row.as_slice()));
        self.predict_all(requests)
    }

    /// The same for whole requests.
    pub fn predict_all(
        &self,
        requests: impl IntoIterator<Item = PredictionRequest>,
    ) -> Vec<Result<Prediction, PredictError>> {
        let pending = requests.into_iter().map(|request| {
            self.door.wait_for_place();
            self.enqueue_admitted(request)
        });
        let pending: Vec<_> = pending.collect();
        pending.into_iter().map(|pending| pending?.wait()).collect()
    }

    /// Queues a request. The answer is awaited, or waited for with [`PendingPrediction::wait`].
    ///
    /// # Errors
    /// [`ErrorCode::QueueFull`] past `max_concurrent_requests`; [`ErrorCode::UnknownModel`] or
    /// [`ErrorCode::BadRequest`] when the request cannot be scored.
    pub fn enqueue_prediction(&self, request: PredictionRequest) -> Result<PendingPrediction, PredictError> {
        if !self.door.try_place() {
            let most = self.config.max_concurrent_requests;
            let message =
                format!("{most} requests are in flight already; raise max_concurrent_requests, or wait for an answer");
            return Err(Reject::new(ErrorCode::QueueFull, message).into());
        }
        self.enqueue_admitted(request)
    }

    /// Asks the model that was loaded first the questions of [`mod@crate::model::validate`] again.
    ///
    /// # Errors
    /// [`ModelError::Refused`] when no model is loaded, naming the remedy.
    pub fn validate_model(&self) -> Result<Validation, ModelError> {
        let first = self.scheduler.model(ModelId(0));
        first.ok_or_else(|| ModelError::refused("engine", "no model is loaded; call load_model first"))?.validate(None)
    }

    /// The seed's snapshot.
    #[must_use]
    pub fn get_performance_metrics(&self) -> PerformanceSnapshot {
        let Sights { waiting, pool, .. } = self.sights();
        PerformanceMetrics::new(&self.metrics).get_metrics(waiting, pool)
    }

    /// What the metrics cannot count but can see: queues, buffers, models. Allocates: not for the record path.
    #[must_use]
    pub fn sights(&self) -> Sights {
        let (serving, stats, now) = (self.scheduler.all_serving(), self.scheduler.queues(), clock::now());
        let waiting = stats.iter().map(|stats| stats.waiting).sum();
        let levels = |(serving, BatcherStats { depth, oldest, .. }): (&Serving, BatcherStats)| {
            let name = serving.version.model.name().to_owned();
            depth.into_iter().zip(oldest).zip(1..).map(move |((depth, oldest), priority)| QueueSight {
                model: name.clone(),
                priority,
                depth,
                oldest: oldest.map(|arrived| now.saturating_duration_since(arrived)),
            })
        };
        Sights {
            pool: self.scheduler.pools.snapshot(),
            waiting,
            queues: serving.iter().zip(stats).flat_map(levels).collect(),
            models: self.model_infos(),
        }
    }

    /// The counters behind the snapshot.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What a decoder must know of the loaded models.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// The version that a model's slot serves now.
    #[must_use]
    pub fn model(&self, id: ModelId) -> Option<Arc<LoadedModel>> {
        self.scheduler.model(id)
    }

    /// Score threads that run.
    #[must_use]
    pub fn score_threads(&self) -> usize {
        self.plan.places.len()
    }

    /// Where the score threads run.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Registers a submitter of whole chunks.
    pub fn register(&self, submitter: Arc<dyn Submitter>) -> SubmitterId {
        self.scheduler.register(submitter)
    }

    /// Queues the readable requests of a chunk from index `from` on. Returns the index of the first that found its
    /// level full; the chunk's length when all were taken.
    ///
    /// # Errors
    /// [`Closed`] after [`InferenceEngine::shutdown`].
    pub fn submit(&self, submitter: SubmitterId, chunk: &Arc<Chunk>, from: usize) -> Result<usize, Closed> {
        self.scheduler.submit(submitter, chunk, from)
    }

    /// The same, for a submitter that would rather score a few rows of a small model itself than wait for another thread to wake:
    /// such requests are handed back before this returns, on the calling thread, where nothing else waits.
    ///
    /// # Errors
    /// [`Closed`] after [`InferenceEngine::shutdown`].
    pub fn submit_here(&self, submitter: SubmitterId, chunk: &Arc<Chunk>, from: usize) -> Result<usize, Closed> {
        self.scheduler.submit_here(submitter, chunk, from)
    }

    /// Scores what waits, then ends the threads. What comes later is refused. What waits to be tried again is tried once
    /// more at once.
    pub fn shutdown(&self) {
        self.scheduler.close();
        for thread in self.threads.lock().drain(..) {
            // A score thread catches its models' panics; one that died all the same has said so on stderr.
            let _ = thread.join();
        }
        self.close_journal();
    }

    /// The process ends by itself, whatever still hangs in a model: what is being scored is not to blame for that.
    pub fn close_journal(&self) {
        if let Some(journal) = self.scheduler.journal() {
            journal.close();
        }
    }

    /// A partition's positions below `base` are committed: the journal need not remember them.
    pub fn committed(&self, partition: PartitionKey, base: i64) {
        if let Some(journal) = self.scheduler.journal() {
            journal.committed(partition, base);
        }
    }

    /// The place was taken before; it is given back when the answer comes or the request is refused here.
    fn enqueue_admitted(&self, request: PredictionRequest) -> Result<PendingPrediction, PredictError> {
        let queued = self.queue(request);
        if queued.is_err() {
            self.door.leave();
        }
        queued
    }

    fn queue(&self, request: PredictionRequest) -> Result<PendingPrediction, PredictError> {
        let catalog = self.catalog.load();
        let entry = resolve(&catalog, request.model.as_deref())?;
        let width = entry.width;
        if request.features.is_empty() || !request.features.len().is_multiple_of(width) {
            let (values, name) = (request.features.len(), &entry.name);
            return Err(
                Reject::bad_request(format!("features: got {values} values, model {name} wants {width}")).into()
            );
        }
        if let Some(place) = request.features.iter().position(|value| value.is_infinite()) {
            return Err(Reject::bad_request(format!("features[{place}]: infinite; a missing value is NaN")).into());
        }
        check_kinds(entry, &request)?;
        let priority = request.priority.unwrap_or(entry.priority_default);
        if priority.get() > entry.priority_levels() {
            let (got, levels) = (priority.get(), entry.priority_levels());
            return Err(Reject::bad_request(format!("priority: got {got}, wants 1 to {levels}")).into());
        }
        if request.retries > Work::RETRIES_MAX {
            let (got, most) = (request.retries, Work::RETRIES_MAX);
            return Err(Reject::bad_request(format!("retries: got {got}, wants 0 to {most}")).into());
        }
        let arrived = clock::now();
        let own = entry.timeout(priority);
        let timeout = request.timeout.map_or(own.timeout, |asked| own.shortened_to(asked));
        let deadline = timeout.and_then(|timeout| arrived.checked_add(timeout));

        let mut chunk = Chunk::default();
        let rows = request.features.len() / width;
        let rows = u32::try_from(rows).map_err(|_| Reject::new(ErrorCode::TooLarge, "more than 2^32 rows"))?;
        *chunk.features_mut() = request.features;
        let mut work = chunk.work(entry.id, 0, rows, rows > 1, priority, deadline);
        work.retries = request.retries;
        let mark = chunk.texts_mut().mark();
        request.texts.iter().for_each(|text| chunk.texts_mut().push(text.as_deref()));
        chunk.attach_texts(&mut work, mark);
        let id_json = chunk.push_text(b"");
        let (number, answer) = self.door.expect_answer(request.id);
        chunk.push(NewRequest {
            position: Position { partition: PartitionId(0), offset: number },
            route: 0,
            arrived,
            id_json,
            key: None,
            address: ReplyAddress::Route,
            work: Ok(work),
        });
        match self.scheduler.submit(self.door_id, &Arc::new(chunk), 0) {
            Ok(1) => Ok(PendingPrediction { answer }),
            Ok(_) => {
                self.door.forget(number);
                Err(Reject::new(ErrorCode::QueueFull, format!("the queue of priority {} is full", priority.get()))
                    .into())
            }
            Err(closed) => {
                self.door.forget(number);
                Err(closed.into())
            }
        }
    }
}

impl Drop for InferenceEngine {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Whether the features are of the kinds that the model takes.
fn check_kinds(model: &ModelEntry, request: &PredictionRequest) -> Result<(), Reject> {
    let columns = model.kinds.text_columns();
    let (got, wanted) = (request.texts.len(), request.features.len() / model.width * columns.len());
    if got != wanted {
        let name = &model.name;
        return Err(Reject::bad_request(format!("texts: got {got} for these features, model {name} wants {wanted}")));
    }
    let stray = columns
        .iter()
        .find(|&&column| request.features.iter().skip(column).step_by(model.width).any(|value| !value.is_nan()));
    if let Some(column) = stray {
        return Err(Reject::bad_request(format!(
            "features[{column}]: got a number, wants NaN: the model takes text there"
        )));
    }
    model.kinds.check_integers(&request.features, model.width).map_err(|bad| {
        let place = bad.row * model.width + bad.column;
        Reject::bad_request(format!("features[{place}]: got {}, wants {} or NaN", bad.value, bad.kind))
    })
}

fn resolve<'a>(catalog: &'a Catalog, name: Option<&str>) -> Result<&'a ModelEntry, Reject> {
    match name {
        Some(name) => catalog.by_name(name).ok_or_else(|| {
            let loaded: Vec<&str> = catalog.entries().iter().map(|entry| entry.name.as_str()).collect();
            Reject::new(ErrorCode::UnknownModel, format!("no model {name:?}; loaded: {loaded:?}"))
        }),
        None => catalog
            .entries()
            .first()
            .ok_or_else(|| Reject::new(ErrorCode::UnknownModel, "no model is loaded; call load_model first")),
    }
}
