//! Keeps models in service what worker.toml and their files say: reads both again when it is asked to (SIGHUP, the admin
//! port), and files that are watched when they have changed.
//!
//! Of the config only the models' files, how they are loaded, pins and candidates are taken over; what else has changed
//! there is said, and waits for a restart. Every outcome is logged here, and a failure is the model's last error.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::clock::Stop;
use crate::config::{Config, ConfigError, Model, Overrides, Reload};
use crate::engine::{Change, InferenceEngine, ModelSpec, RegistryError};

/// How often watched files are looked at. Asking for their metadata sees what inotify does not: files behind links that
/// are exchanged, as Kubernetes mounts them, and on network file systems.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the config came from.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    /// The file.
    pub path: PathBuf,
    /// What goes before the file's values.
    pub overrides: Overrides,
}

/// Reads models and config again.
pub struct Reloader {
    engine: Arc<InferenceEngine>,
    source: Option<ConfigSource>,
    /// As the models are in service, or should be.
    config: Mutex<Config>,
}

/// What became of a model.
pub type Outcome = Result<Change, RegistryError>;

impl Reloader {
    /// For the models of that config, which the engine has loaded.
    #[must_use]
    pub fn new(config: &Config, source: Option<ConfigSource>, engine: Arc<InferenceEngine>) -> Self {
        Self { engine, source, config: Mutex::new(config.clone()) }
    }

    /// Reads the config again, and each model's files.
    ///
    /// # Errors
    /// [`ConfigError`] when the config cannot be read or has problems; then nothing was changed.
    pub fn reload_all(&self) -> Result<Vec<(String, Outcome)>, ConfigError> {
        let config = self.read_config().inspect_err(|error| {
            tracing::error!(%error, "not reloaded: the config has problems, and what is in service stays");
        })?;
        let models = config.models.iter().map(|model| (model.name.clone(), self.apply(model)));
        Ok(models.collect())
    }

    /// Reads a model's files again.
    ///
    /// # Errors
    /// [`RegistryError`]: what is in service stays.
    pub fn reload(&self, name: &str) -> Outcome {
        let known = self.config.lock().models.iter().find(|model| model.name == name).cloned();
        match known {
            Some(model) => self.apply(&model),
            None => logged(name, self.engine.reload(name)),
        }
    }

    /// As [`InferenceEngine::rollback`].
    ///
    /// # Errors
    /// [`RegistryError`]: what is in service stays.
    pub fn rollback(&self, name: &str) -> Outcome {
        logged(name, self.engine.rollback(name))
    }

    /// As [`InferenceEngine::promote`].
    ///
    /// # Errors
    /// [`RegistryError`]: what is in service stays.
    pub fn promote(&self, name: &str) -> Outcome {
        let outcome = logged(name, self.engine.promote(name));
        if outcome.is_ok() {
            self.in_service(name, |model| {
                let Some(candidate) = model.candidate.take() else { return };
                (model.path, model.load, model.sha256) = (candidate.path, candidate.load, candidate.sha256);
                tracing::warn!(model = name, path = %model.path.display(), "promoted: write its path into the config, or the next reload of that goes back");
            });
        }
        outcome
    }

    /// As [`InferenceEngine::end_trial`].
    ///
    /// # Errors
    /// [`RegistryError`]: what is in service stays.
    pub fn end_trial(&self, name: &str) -> Outcome {
        let outcome = logged(name, self.engine.end_trial(name));
        if outcome.is_ok() {
            self.in_service(name, |model| model.candidate = None);
        }
        outcome
    }

    fn in_service(&self, name: &str, change: impl FnOnce(&mut Model)) {
        if let Some(model) = self.config.lock().models.iter_mut().find(|model| model.name == name) {
            change(model);
        }
    }

    /// Watches the files of models that want it, until the stop.
    ///
    /// # Errors
    /// The system's own when it refuses the thread.
    pub fn watch(self: &Arc<Self>, stop: &Arc<Stop>) -> std::io::Result<()> {
        let models = self.config.lock().models.clone();
        let mut watched: Vec<Watched> =
            models.iter().filter(|model| model.reload == Reload::Watch).map(Watched::new).collect();
        if watched.is_empty() {
            return Ok(());
        }
        let (reloader, stop) = (Arc::clone(self), Arc::clone(stop));
        Builder::new().name("forebay-reload".to_owned()).spawn(move || {
            while !stop.requested() {
                std::thread::sleep(LOOK_EVERY);
                for model in watched.iter_mut().filter_map(Watched::look) {
                    let _ = reloader.reload(&model);
                }
            }
        })?;
        Ok(())
    }

    fn read_config(&self) -> Result<Config, ConfigError> {
        let mut known = self.config.lock();
        let Some(source) = &self.source else { return Ok(known.clone()) };
        let config = Config::from_file(&source.path, &source.overrides)?;
        if let Some(what) = waits_for_restart(&known, &config) {
            tracing::warn!("{what} in the config: takes effect at the next start");
        }
        let models = known.models.iter_mut().filter_map(|model| {
            let new = config.models.iter().find(|new| new.name == model.name)?;
            model.path.clone_from(&new.path);
            model.load.clone_from(&new.load);
            model.candidate.clone_from(&new.candidate);
            model.sha256 = new.sha256;
            Some(())
        });
        models.for_each(drop);
        Ok(known.clone())
    }

    fn apply(&self, model: &Model) -> Outcome {
        logged(&model.name, self.engine.apply(&spec(model), model.candidate.as_ref()))
    }
}

/// How the engine is asked for a model of the config.
pub(crate) fn spec(model: &Model) -> ModelSpec {
    ModelSpec {
        name: model.name.clone(),
        path: model.path.clone(),
        load: model.load.clone(),
        sha256: model.sha256,
        batch: model.batch.policy.clone(),
        priority_default: model.batch.priority_default,
    }
}

fn logged(name: &str, outcome: Outcome) -> Outcome {
    match &outcome {
        Ok(Change::Unchanged) => tracing::info!(model = name, "reloaded: nothing has changed"),
        Ok(Change::Swapped { from, to }) => tracing::info!(model = name, from, to, "another version is in service"),
        Ok(Change::Trial) => tracing::info!(model = name, "the candidate has changed"),
        Err(error) => tracing::error!(model = name, %error, "not changed: what is in service stays"),
    }
    outcome
}

/// What a reload does not take over.
fn waits_for_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let names = |config: &Config| config.models.iter().map(|model| model.name.clone()).collect::<Vec<_>>();
    if names(old) != names(new) {
        return Some("other models");
    }
    let fixed = |model: &Model| (model.reload, model.batch.clone());
    if old.models.iter().map(fixed).ne(new.models.iter().map(fixed)) {
        return Some("other batching or watching of a model");
    }
    let rest = |config: &Config| Config { models: Vec::new(), ..config.clone() };
    (rest(old) != rest(new)).then_some("settings of other tables than [[model]]")
}

/// A file, as far as its metadata tells it from another.
type Fingerprint = Option<(SystemTime, u64, u64, u64)>;

fn fingerprint(path: &Path) -> Fingerprint {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.dev(), metadata.ino()))
}

/// A model's files, and how they looked.
struct Watched {
    name: String,
    paths: Vec<PathBuf>,
    /// When they were last reloaded.
    loaded: Vec<Fingerprint>,
    /// At the last look.
    seen: Vec<Fingerprint>,
}

impl Watched {
    fn new(model: &Model) -> Self {
        let candidate = model.candidate.iter().map(|candidate| (&candidate.path, &candidate.load));
        let files = [(&model.path, &model.load)].into_iter().chain(candidate);
        let paths: Vec<PathBuf> =
            files.flat_map(|(path, load)| [Some(path), load.rows_read()]).flatten().cloned().collect();
        let loaded: Vec<Fingerprint> = paths.iter().map(|path| fingerprint(path)).collect();
        Self { name: model.name.clone(), paths, seen: loaded.clone(), loaded }
    }

    /// The model's name when its files have changed and look the same for the second time: nobody is writing them any
    /// more. A file that is away is waited for.
    fn look(&mut self) -> Option<String> {
        let now: Vec<Fingerprint> = self.paths.iter().map(|path| fingerprint(path)).collect();
        let settled = now == self.seen && now != self.loaded && now.iter().all(Option::is_some);
        self.seen.clone_from(&now);
        if !settled {
            return None;
        }
        self.loaded = now;
        Some(self.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(path: &Path) -> Watched {
        let paths = vec![path.to_owned()];
        let loaded = vec![fingerprint(path)];
        Watched { name: "m".to_owned(), paths, seen: loaded.clone(), loaded }
    }

    #[test]
    fn a_file_is_reloaded_once_and_only_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        std::fs::write(&path, "a").unwrap();
        let mut model = watched(&path);
        assert_eq!((model.look(), model.look()), (None, None));
        std::fs::write(&path, "half of").unwrap();
        assert_eq!(model.look(), None);
        std::fs::write(&path, "half of it, and the other").unwrap();
        assert_eq!((model.look(), model.look(), model.look()), (None, Some("m".to_owned()), None));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((model.look(), model.look()), (None, None));
        std::fs::write(&path, "b").unwrap();
        assert_eq!((model.look(), model.look()), (None, Some("m".to_owned())));
    }

    #[test]
    fn a_link_that_is_exchanged_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let link = |to: &str| std::os::unix::fs::symlink(file(to), file("next")).unwrap();
        std::fs::write(file("1"), "same").unwrap();
        std::fs::write(file("2"), "same").unwrap();
        link("1");
        std::fs::rename(file("next"), file("model")).unwrap();
        let mut model = watched(&file("model"));
        link("2");
        std::fs::rename(file("next"), file("model")).unwrap();
        assert_eq!((model.look(), model.look()), (None, Some("m".to_owned())));
    }
}
