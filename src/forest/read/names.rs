//! A model's feature names, in one text: a name costs its bytes and a number.

use super::ReadError;

/// Feature names in the order of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureNames {
    text: String,
    /// Where each ends in `text`.
    ends: Vec<u32>,
}

impl FeatureNames {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().scan(0, |start, &end| {
            let name = &self.text[*start..end as usize];
            *start = end as usize;
            Some(name)
        })
    }

    pub(super) fn push(&mut self, name: &str) -> Result<(), ReadError> {
        self.text.push_str(name);
        let end = u32::try_from(self.text.len()).map_err(|_| ReadError::whole("feature names of more than 4 GiB"))?;
        self.ends.push(end);
        Ok(())
    }

    /// That there are as many as features, each another.
    pub(super) fn check(&self, features: u32) -> Result<(), ReadError> {
        if self.len() != features as usize {
            let names = self.len();
            return Err(ReadError::whole(format!(
                "{features} features with {names} names in `feature_names`: the file is damaged; save it again"
            )));
        }
        let mut sorted: Vec<&str> = self.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ReadError::whole(format!("`feature_names` has {:?} twice", pair[0]))),
            None => Ok(()),
        }
    }
}
