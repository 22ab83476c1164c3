//! What a decoder must know of the loaded models: their names, slots, widths, features and queue settings.

use std::collections::HashMap;
use std::time::Duration;

use super::{FeatureKinds, ModelSchema};
use crate::record::{ModelId, Priority};

/// One model as a decoder sees it.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// Its slot in the engine.
    pub id: ModelId,
    /// The name that requests use.
    pub name: String,
    /// Features a row.
    pub width: usize,
    /// What its columns hold.
    pub kinds: FeatureKinds,
    /// How long a request may wait, for each level of its queue: level 1, the highest, first.
    pub timeouts: Vec<LevelTimeout>,
    /// The level of a request that names none.
    pub priority_default: Priority,
    feature_names: Vec<String>,
    feature_index: HashMap<String, usize>,
}

/// How long a request of one level may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelTimeout {
    /// The level's own. `None`: for ever.
    pub timeout: Option<Duration>,
    /// Whether a request's own, where it is shorter, is passed over.
    pub fixed: bool,
}

impl LevelTimeout {
    /// The timeout of a request that asks for this one.
    #[must_use]
    pub fn shortened_to(self, asked: Duration) -> Option<Duration> {
        if self.fixed { self.timeout } else { Some(self.timeout.map_or(asked, |own| own.min(asked))) }
    }
}

impl ModelEntry {
    /// An entry for a model of this schema.
    #[must_use]
    pub fn new(
        id: ModelId,
        name: &str,
        schema: &ModelSchema,
        timeouts: Vec<LevelTimeout>,
        priority_default: Priority,
    ) -> Self {
        let feature_index =
            schema.feature_names.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect();
        let (name, width, kinds) = (name.to_owned(), schema.width(), schema.kinds.clone());
        let feature_names = schema.feature_names.clone();
        Self { id, name, width, kinds, timeouts, priority_default, feature_names, feature_index }
    }

    /// Levels of its queue; a request's priority must lie in 1 to this.
    #[must_use]
    pub fn priority_levels(&self) -> u8 {
        u8::try_from(self.timeouts.len()).unwrap_or(u8::MAX)
    }

    /// How long a request of that level may wait. A level that there is not has no timeout.
    #[must_use]
    pub fn timeout(&self, level: Priority) -> LevelTimeout {
        self.timeouts.get(usize::from(level.get()) - 1).copied().unwrap_or_default()
    }

    /// The column of a feature.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.feature_index.get(name).copied()
    }

    /// The features' names, in the model's order.
    #[must_use]
    pub fn feature_names(&self) -> &[String] {
        &self.feature_names
    }
}

/// The loaded models, by slot and by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: Vec<ModelEntry>,
}

impl Catalog {
    /// Puts an entry in its slot: the next free one, or its old place when a new version was loaded.
    pub fn put(&mut self, entry: ModelEntry) {
        let slot = entry.id.0 as usize;
        if slot < self.entries.len() {
            self.entries[slot] = entry;
        } else {
            self.entries.push(entry);
        }
    }

    /// The entry of a slot.
    #[must_use]
    pub fn get(&self, id: ModelId) -> Option<&ModelEntry> {
        self.entries.get(id.0 as usize)
    }

    /// The entry of a name. Workers hold a handful of models, so this is a walk.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&ModelEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All entries, in slot order.
    #[must_use]
    pub fn entries(&self) -> &[ModelEntry] {
        &self.entries
    }
}
