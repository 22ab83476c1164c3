//! What a decoder must know of the loaded models: their names, slots, widths, feature names and queue settings.

use std::collections::HashMap;
use std::time::Duration;

use super::ModelSchema;
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
    /// Levels of its queue; a request's priority must lie in 1 to this.
    pub priority_levels: u8,
    /// The level of a request that names none.
    pub priority_default: Priority,
    /// How long a request may wait, unless it asks for less. `None`: for ever.
    pub timeout: Option<Duration>,
    feature_index: HashMap<String, usize>,
}

impl ModelEntry {
    /// An entry for a model of this schema.
    #[must_use]
    pub fn new(
        id: ModelId,
        name: &str,
        schema: &ModelSchema,
        priority_levels: u8,
        priority_default: Priority,
        timeout: Option<Duration>,
    ) -> Self {
        let feature_index =
            schema.feature_names.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect();
        Self {
            id,
            name: name.to_owned(),
            width: schema.width(),
            priority_levels,
            priority_default,
            timeout,
            feature_index,
        }
    }

    /// The column of a feature.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.feature_index.get(name).copied()
    }

    /// The features' names, in no particular order.
    pub fn feature_names(&self) -> impl Iterator<Item = &str> {
        self.feature_index.keys().map(String::as_str)
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
