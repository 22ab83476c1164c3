//! Versions of a model: loaded beside the one that serves, validated, and swapped in between two batches; tried as a
//! candidate, promoted, taken back.
//!
//! Invariants:
//! 1. A change that fails changes nothing but the slot's last error.
//! 2. A slot holds three versions at the most: the one that serves, the one before it, and a candidate.
//! 3. Changes are made one at a time. Records are scored meanwhile, and no lock that they need is held for longer than
//!    it takes to exchange a pointer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::{InferenceEngine, ModelSpec};
use crate::clock;
use crate::metrics::{CandidateInfo, ChangeError, ModelInfo, VersionInfo};
use crate::model::{
    self, Calibration, Catalog, LevelTimeout, LoadOptions, LoadedModel, Model, ModelBytes, ModelEntry, ModelError,
    SampleFiles,
};
use crate::record::ModelId;
use crate::score::{Candidate, InService, Serving, Trial, TrialMode};

/// A version to be tried beside the one that serves. It must take and give what that one does.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateSpec {
    /// The file.
    pub path: PathBuf,
    /// How the file becomes a model.
    pub load: LoadOptions,
    /// The SHA-256 that the file must have.
    pub sha256: Option<[u8; 32]>,
    /// What it does, and with how much of the traffic.
    pub trial: Trial,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The files are those that are in service.
    Unchanged,
    /// Another version serves from the next batch on.
    Swapped {
        /// The version that served.
        from: u32,
        /// The version that serves.
        to: u32,
    },
    /// The serving version is the same, a candidate is tried or tried no more.
    Trial,
}

/// Why a change was not made. What served still does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No model of that name is loaded.
    #[error("no model {name:?} is loaded; loaded: {loaded}")]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        loaded: String,
    },
    /// There is nothing to go back to.
    #[error("model {0}: no version was replaced since the start, so there is none to go back to")]
    NoPrevious(String),
    /// There is nothing to promote or to end.
    #[error("model {0}: no candidate is on trial; name one in `[model.candidate]` and reload")]
    NoCandidate(String),
    /// The file must not take traffic.
    #[error(transparent)]
    Refused(#[from] ModelError),
}

/// A version with what it was made from.
pub(super) struct Release {
    spec: ModelSpec,
    version: Arc<InService>,
    loaded_at_ms: i64,
    load_time: Duration,
}

impl Release {
    fn loaded(&self) -> &LoadedModel {
        &self.version.model
    }

    /// Whether the rows that its quantized features took their ranges from still are in their file.
    fn has_its_calibration(&self) -> bool {
        self.loaded().calibration().is_none_or(Calibration::is_current)
    }

    fn info(&self) -> VersionInfo {
        VersionInfo {
            version: self.loaded().version(),
            sha256: self.loaded().sha256().to_owned(),
            path: self.spec.path.display().to_string(),
        }
    }
}

/// What a model's name stands for.
pub(super) struct Slot {
    serving: Arc<Release>,
    previous: Option<Arc<Release>>,
    candidate: Option<(Arc<Release>, Arc<Candidate>)>,
    /// Versions that were loaded so far.
    versions: u32,
    last_error: Option<ChangeError>,
}

impl Slot {
    fn serving(&self) -> Serving {
        Serving {
            version: Arc::clone(&self.serving.version),
            candidate: self.candidate.as_ref().map(|(_, candidate)| Arc::clone(candidate)),
        }
    }

    /// What `/models` tells of it.
    pub(super) fn info(&self) -> ModelInfo {
        let Release { spec, loaded_at_ms, load_time, .. } = &*self.serving;
        let candidate = self.candidate.as_ref().map(|(release, candidate)| CandidateInfo {
            version: release.info(),
            mode: match candidate.trial.mode {
                TrialMode::Canary => "canary",
                TrialMode::Shadow => "shadow",
            }
            .to_owned(),
            share: candidate.trial.share,
            stats: candidate.stats(),
        });
        ModelInfo {
            path: spec.path.display().to_string(),
            loaded_at: rfc3339(*loaded_at_ms),
            load_ms: load_time.as_secs_f64() * 1e3,
            previous: self.previous.as_ref().map(|release| release.info()),
            candidate,
            last_error: self.last_error.clone(),
            ..self.serving.loaded().info()
        }
    }
}

fn rfc3339(unix_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(unix_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

/// Changes of what a name stands for.
impl InferenceEngine {
    /// Loads a model with all its settings: reads it once, checks the pin, parses, validates, and only then lets it
    /// take requests. A name that is in service gets a new version.
    ///
    /// # Errors
    /// [`ModelError`] as for [`InferenceEngine::load_model`].
    pub fn load_spec(&self, spec: &ModelSpec) -> Result<ModelId, ModelError> {
        let _changing = self.changing.lock();
        let file = ModelBytes::read(&spec.path, spec.sha256.as_ref())?;
        self.load_file(spec, &file)
    }

    /// Puts a model of the caller's own making into service.
    ///
    /// # Errors
    /// [`ModelError::Refused`] when it fails validation, or takes or gives other things than the version that it replaces.
    ///
    /// # Panics
    /// Panics past 2^32 models.
    pub fn add_model(&self, spec: &ModelSpec, model: &dyn Model, sha256: &str) -> Result<ModelId, ModelError> {
        let _changing = self.changing.lock();
        self.put(spec, model, sha256, clock::now())
    }

    /// Reads a model's file again, and its candidate's. What is other than in service is loaded and swapped in.
    ///
    /// # Errors
    /// [`RegistryError`]; it is also the model's last error.
    pub fn reload(&self, name: &str) -> Result<Change, RegistryError> {
        let (id, spec) = self.with_slot(name, |slot| slot.serving.spec.clone())?;
        let trial = self.slots.lock()[id.0 as usize].candidate.as_ref().map(|(release, candidate)| CandidateSpec {
            path: release.spec.path.clone(),
            load: release.spec.load.clone(),
            sha256: release.spec.sha256,
            trial: candidate.trial,
        });
        self.apply(&spec, trial.as_ref())
    }

    /// Makes a loaded model what this says: loads its file if that, or how it is loaded, is other than in service; tries the
    /// candidate, or none.
    ///
    /// # Errors
    /// [`RegistryError`]; it is also the model's last error.
    pub fn apply(&self, spec: &ModelSpec, candidate: Option<&CandidateSpec>) -> Result<Change, RegistryError> {
        let _changing = self.changing.lock();
        let (id, (serving, tried)) =
            self.with_slot(&spec.name, |slot| (Arc::clone(&slot.serving), slot.candidate.clone()))?;
        let applied = self.apply_version(spec, &serving).and_then(|swapped| {
            let trial =
                self.apply_candidate(id, spec, candidate, tried.as_ref().map(|(release, own)| (&**release, &**own)))?;
            Ok(if swapped == Change::Unchanged { trial } else { swapped })
        });
        self.note(&spec.name, applied.map_err(RegistryError::from))
    }

    /// Brings back the version that served before. What it replaces can be brought back in turn.
    ///
    /// # Errors
    /// [`RegistryError::NoPrevious`] when no version was replaced.
    pub fn rollback(&self, name: &str) -> Result<Change, RegistryError> {
        let _changing = self.changing.lock();
        let (id, previous) = self.with_slot(name, |slot| slot.previous.clone())?;
        let previous = previous.ok_or_else(|| RegistryError::NoPrevious(name.to_owned()))?;
        self.note(name, Ok(self.swap(id, previous)))
    }

    /// Lets a candidate serve.
    ///
    /// # Errors
    /// [`RegistryError::NoCandidate`] when none is on trial.
    pub fn promote(&self, name: &str) -> Result<Change, RegistryError> {
        let _changing = self.changing.lock();
        let (id, candidate) = self.with_slot(name, |slot| slot.candidate.take())?;
        let (release, _) = candidate.ok_or_else(|| RegistryError::NoCandidate(name.to_owned()))?;
        self.note(name, Ok(self.swap(id, release)))
    }

    /// Ends a trial: the candidate gets no more requests.
    ///
    /// # Errors
    /// [`RegistryError::NoCandidate`] when none is on trial.
    pub fn end_trial(&self, name: &str) -> Result<Change, RegistryError> {
        let _changing = self.changing.lock();
        let (id, candidate) = self.with_slot(name, |slot| slot.candidate.take())?;
        candidate.ok_or_else(|| RegistryError::NoCandidate(name.to_owned()))?;
        self.serve(id);
        self.note(name, Ok(Change::Trial))
    }

    /// What `/models` tells.
    pub(super) fn model_infos(&self) -> Vec<ModelInfo> {
        self.slots.lock().iter().map(Slot::info).collect()
    }

    fn with_slot<R>(&self, name: &str, read: impl FnOnce(&mut Slot) -> R) -> Result<(ModelId, R), RegistryError> {
        let catalog = self.catalog.load();
        let entry = catalog.by_name(name).ok_or_else(|| {
            let loaded: Vec<&str> = catalog.entries().iter().map(|entry| entry.name.as_str()).collect();
            RegistryError::UnknownModel { name: name.to_owned(), loaded: loaded.join(", ") }
        })?;
        Ok((entry.id, read(&mut self.slots.lock()[entry.id.0 as usize])))
    }

    /// Keeps a failure for `/models`; a change that was made wipes the last one off.
    fn note(&self, name: &str, changed: Result<Change, RegistryError>) -> Result<Change, RegistryError> {
        let error = changed.as_ref().err();
        let error = error.map(|error| ChangeError { at: rfc3339(clock::unix_ms()), message: error.to_string() });
        if error.is_some() || changed.as_ref().is_ok_and(|change| *change != Change::Unchanged) {
            self.metrics.model_change(name, changed.is_ok());
        }
        self.with_slot(name, |slot| slot.last_error = error)?;
        changed
    }

    fn apply_version(&self, spec: &ModelSpec, serving: &Release) -> Result<Change, ModelError> {
        let file = ModelBytes::read(&spec.path, spec.sha256.as_ref())?;
        let is_same_load = serving.spec.load == spec.load && serving.spec.batch == spec.batch;
        if file.sha256 == serving.loaded().sha256() && is_same_load && serving.has_its_calibration() {
            return Ok(Change::Unchanged);
        }
        let id = self.load_file(spec, &file)?;
        let to = self.scheduler.model(id).map_or(0, |model| model.version());
        Ok(Change::Swapped { from: serving.loaded().version(), to })
    }

    fn apply_candidate(
        &self,
        id: ModelId,
        spec: &ModelSpec,
        wanted: Option<&CandidateSpec>,
        tried: Option<(&Release, &Candidate)>,
    ) -> Result<Change, ModelError> {
        let Some(wanted) = wanted else {
            if tried.is_none() {
                return Ok(Change::Unchanged);
            }
            self.slots.lock()[id.0 as usize].candidate = None;
            self.serve(id);
            return Ok(Change::Trial);
        };
        let file = ModelBytes::read(&wanted.path, wanted.sha256.as_ref())?;
        let is_same = tried.is_some_and(|(release, candidate)| {
            release.loaded().sha256() == file.sha256
                && release.spec.load == wanted.load
                && release.has_its_calibration()
                && candidate.trial == wanted.trial
        });
        if is_same {
            return Ok(Change::Unchanged);
        }
        let own =
            ModelSpec { path: wanted.path.clone(), load: wanted.load.clone(), sha256: wanted.sha256, ..spec.clone() };
        let from = clock::now();
        let model = model::load(&file, &own.load)?;
        let release = Arc::new(self.release(id, &own, model.as_ref(), &file.sha256, from)?);
        let candidate = Arc::new(Candidate::new(Arc::clone(&release.version), wanted.trial));
        self.slots.lock()[id.0 as usize].candidate = Some((release, candidate));
        self.serve(id);
        Ok(Change::Trial)
    }

    fn load_file(&self, spec: &ModelSpec, file: &ModelBytes) -> Result<ModelId, ModelError> {
        let from = clock::now();
        let model = model::load(file, &spec.load)?;
        self.put(spec, model.as_ref(), &file.sha256, from)
    }

    /// A new slot, or a new version in an old one.
    fn put(
        &self,
        spec: &ModelSpec,
        model: &dyn Model,
        sha256: &str,
        from: std::time::Instant,
    ) -> Result<ModelId, ModelError> {
        let known = self.catalog.load().by_name(&spec.name).map(|entry| entry.id);
        let id = known.unwrap_or_else(|| {
            let slots = self.slots.lock().len();
            ModelId(u32::try_from(slots).expect("few models"))
        });
        let release = Arc::new(self.release(id, spec, model, sha256, from)?);
        if known.is_some() {
            self.swap(id, release);
            return Ok(id);
        }
        let mut catalog = Catalog::clone(&self.catalog.load());
        catalog.put(entry(id, spec, release.loaded()));
        let slot = Slot { serving: release, previous: None, candidate: None, versions: 1, last_error: None };
        self.slots.lock().push(slot);
        self.serve(id);
        self.catalog.store(Arc::new(catalog));
        Ok(id)
    }

    /// Makes a version of a model: its scorers, its validation, its keys in the cache, and the threads that it wants.
    fn release(
        &self,
        id: ModelId,
        spec: &ModelSpec,
        model: &dyn Model,
        sha256: &str,
        from: std::time::Instant,
    ) -> Result<Release, ModelError> {
        let version = match self.slots.lock().get_mut(id.0 as usize) {
            Some(slot) => {
                fits(spec, model, &slot.serving)?;
                slot.versions += 1;
                slot.versions
            }
            None => 1,
        };
        let loaded = Arc::new(LoadedModel::new(&spec.name, version, sha256, model, self.score_threads())?);
        // Quantization moves scores; how far is for `forebay model validate` to say.
        let is_rounded = loaded.preprocessor().is_some_and(|steps| steps.quantizer().is_some());
        if let Some(files) = SampleFiles::beside(&spec.path).filter(|_| !spec.load.quantize && !is_rounded) {
            let sample = files.read(loaded.schema())?;
            let check = loaded.meets(&sample);
            if !check.passed {
                let reason = format!("refused by its sample, {}: {}", files.expected.display(), check.detail);
                return Err(ModelError::refused(&spec.name, reason));
            }
        }
        if let Some(file) = self.config.journal.as_ref().filter(|_| loaded.runs_native_code()) {
            self.scheduler.open_journal(file, self.score_threads());
        }
        let version = self.scheduler.admit(id, loaded);
        Ok(Release { spec: spec.clone(), version, loaded_at_ms: clock::unix_ms(), load_time: clock::now() - from })
    }

    fn swap(&self, id: ModelId, to: Arc<Release>) -> Change {
        let mut slots = self.slots.lock();
        let slot = &mut slots[id.0 as usize];
        let to_version = to.loaded().version();
        let from = std::mem::replace(&mut slot.serving, to);
        let change = Change::Swapped { from: from.loaded().version(), to: to_version };
        // The version before that one ends here: dropped at last, for it may have processes to end.
        let oldest = slot.previous.replace(from);
        drop(slots);
        self.serve(id);
        drop(oldest);
        change
    }

    /// Tells the scheduler what the slot serves now.
    fn serve(&self, id: ModelId) {
        let (serving, policy) = {
            let slots = self.slots.lock();
            let slot = &slots[id.0 as usize];
            (slot.serving(), slot.serving.spec.batch.clone())
        };
        let candidates = serving.candidate.iter().map(|candidate| &candidate.version);
        let own =
            [&serving.version].into_iter().chain(candidates).filter_map(|version| version.model.own_threads()).max();
        let threads = own.map_or(self.score_threads(), |own| own.get() as usize);
        self.scheduler.serve(id, serving, &policy, threads);
        if let Some(own) = own {
            match self.scheduler.crew(id, own.get() as usize) {
                Ok(threads) => self.threads.lock().extend(threads),
                Err(error) => tracing::warn!(%error, "a model has no threads of its own, and waits on a score thread"),
            }
        }
    }
}

/// What a decoder must know of a model.
fn entry(id: ModelId, spec: &ModelSpec, loaded: &LoadedModel) -> ModelEntry {
    let levels = spec.batch.levels.iter();
    let timeouts = levels.map(|level| LevelTimeout { timeout: level.timeout, fixed: !level.allow_timeout_override });
    ModelEntry::new(id, &spec.name, loaded.schema(), timeouts.collect(), spec.priority_default)
}

/// A version replaces another only if records that were decoded for the one can be scored by the other.
fn fits(spec: &ModelSpec, model: &dyn Model, serving: &Release) -> Result<(), ModelError> {
    let (old, new) = (serving.loaded().schema(), model.schema());
    let differ = if old.feature_names != new.feature_names || old.kinds != new.kinds {
        "features"
    } else if old.outputs != new.outputs {
        "outputs"
    } else if serving.spec.batch != spec.batch {
        "batch settings"
    } else {
        return Ok(());
    };
    let reason = format!(
        "its {differ} differ from those of the version in service: load it under another name, or restart the worker"
    );
    Err(ModelError::refused(&spec.name, reason))
}
