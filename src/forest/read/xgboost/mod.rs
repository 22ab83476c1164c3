//! XGBoost's files in, forests out. [`json`] and [`binary`] read what a file states, [`tree`] makes trees of node
//! arrays, and here the statements become a forest.
//!
//! A file is read as the version that wrote it scored it: where versions differ in what a base score means, or in what
//! becomes of a category that a split does not know, the file's own version decides.

use super::{FeatureNames, ModelFile, ReadError, checked, owned};
use crate::forest::{Body, Float, ForestParts, LIMITS, Link, Tree};

mod binary;
mod json;
mod objective;
mod tree;

/// The versions whose files were looked at: a newer one may mean something else by the same keys, as 3.1 did.
const VERSION_LAST: (u32, u32) = (3, 2);

pub(super) fn read(bytes: &[u8]) -> Result<ModelFile, ReadError> {
    let stated = if bytes.starts_with(b"{") { json::read(bytes)? } else { binary::read(bytes)? };
    stated.model()
}

/// What a file states, not yet held against each other.
struct Stated {
    version: Version,
    objective: String,
    /// `num_class` of the objective's own parameters; `None` where they have none.
    objective_classes: Option<u32>,
    features: u32,
    classes: u32,
    targets: u32,
    base_scores: Vec<f32>,
    /// The base score was to be estimated in training.
    boost_from_average: bool,
    booster: Booster,
    feature_names: FeatureNames,
    best_iteration: Option<u32>,
}

/// The version that wrote a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    fn is_before(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) < (major, minor)
    }

    fn check(self) -> Result<(), ReadError> {
        if (self.major, self.minor) > VERSION_LAST {
            let Self { major, minor, patch } = self;
            let (last_major, last_minor) = VERSION_LAST;
            return Err(ReadError::whole(format!(
                "written by XGBoost {major}.{minor}.{patch}; files up to {last_major}.{last_minor} are known"
            )));
        }
        Ok(())
    }
}

enum Booster {
    /// `gbtree`, and `dart` with its weights.
    Trees {
        trees: Vec<Tree>,
        /// The output of each tree.
        groups: Vec<i32>,
        /// Numbers in a leaf.
        leaf_size: u32,
        weights: Option<Vec<f32>>,
    },
    /// `gblinear`: a feature's weights for each output, then each output's bias.
    Linear {
        weights: Vec<f32>,
        /// `boosted_rounds`, where the file has it.
        rounds: Option<i32>,
    },
}

impl Booster {
    fn name(&self) -> &'static str {
        match self {
            Self::Trees { weights: None, .. } => "gbtree",
            Self::Trees { .. } => "dart",
            Self::Linear { .. } => "gblinear",
        }
    }
}

impl Stated {
    fn model(self) -> Result<ModelFile, ReadError> {
        let outputs = self.outputs()?;
        let link = objective::link(&self.objective).ok_or_else(|| {
            ReadError::whole(format!("the objective {:?} is not one of XGBoost's up to 3.2", self.objective))
        })?;
        if matches!(link, Link::Softmax | Link::ArgMax) && self.objective_classes != Some(outputs) {
            return Err(ReadError::whole("`num_class` has two values: the file is damaged; save it again"));
        }
        if !self.feature_names.is_empty() {
            self.feature_names.check(self.features)?;
        }
        let base = self.base(outputs)?;
        let details = self.details();
        let body = body(self.booster, self.features, outputs)?;
        let parts = ForestParts {
            features: self.features,
            outputs,
            row_type: Float::F32,
            sum_type: Float::F32,
            flush_tiny: false,
            body,
            base,
            base_last: false,
            divisors: Vec::new(),
            link,
            after: Vec::new(),
        };
        let (feature_names, best_iteration) = (self.feature_names, self.best_iteration);
        Ok(ModelFile {
            forest: checked(parts)?,
            feature_names,
            best_iteration,
            takes_f64: false,
            details: owned(details),
        })
    }

    /// Margins of a row, of which the file holds enough for each.
    fn outputs(&self) -> Result<u32, ReadError> {
        if self.features == 0 || self.features > LIMITS.features {
            let most = LIMITS.features;
            return Err(ReadError::whole(format!("`num_feature` is {}, must be 1 to {most}", self.features)));
        }
        if self.classes > 1 && self.targets > 1 {
            return Err(ReadError::whole("both classes and targets: XGBoost itself does not take that"));
        }
        let outputs = self.classes.max(self.targets).max(1);
        let held = match &self.booster {
            Booster::Trees { trees, .. } if trees.is_empty() => {
                return Err(ReadError::whole("the model has no trees: it is not trained"));
            }
            Booster::Trees { leaf_size: 0 | 1, trees, .. } => trees.len(),
            Booster::Trees { leaf_size, .. } => *leaf_size as usize,
            Booster::Linear { weights, .. } => weights.len(),
        };
        if outputs as usize > held {
            return Err(ReadError::whole(format!(
                "{outputs} outputs, for which the file has too few trees or weights"
            )));
        }
        Ok(outputs)
    }

    /// What each output's sum starts from.
    fn base(&self, outputs: u32) -> Result<Vec<f64>, ReadError> {
        let stated = &self.base_scores;
        if stated.len() != 1 && stated.len() != outputs as usize {
            let count = stated.len();
            return Err(ReadError::whole(format!("`base_score` has {count} numbers for {outputs} outputs")));
        }
        if matches!(self.booster, Booster::Linear { rounds: Some(0), .. }) && self.boost_from_average {
            return Err(ReadError::whole("the linear model has had no round of boosting: it is not trained"));
        }
        let margin = |&score: &f32| {
            if !score.is_finite() {
                return Err(ReadError::whole(format!("`base_score` is {score}, must be finite")));
            }
            let margin = objective::margin(&self.objective, self.version, score);
            if margin.is_finite() {
                Ok(f64::from(margin))
            } else {
                Err(ReadError::whole(format!("`base_score` {score} is not one of {}", self.objective)))
            }
        };
        let mut margins: Vec<f64> = stated.iter().map(margin).collect::<Result<_, _>>()?;
        if matches!(self.booster, Booster::Linear { .. }) {
            // The library starts all outputs of a linear model from the first one's base score, in training too.
            margins.truncate(1);
        }
        Ok(if margins.len() == 1 { margins.repeat(outputs as usize) } else { margins })
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let Version { major, minor, patch } = self.version;
        let mut details = vec![
            ("version", if major == 0 { "before 1.0".to_owned() } else { format!("{major}.{minor}.{patch}") }),
            ("booster", self.booster.name().to_owned()),
            ("objective", self.objective.clone()),
        ];
        let shown: Vec<String> = self.base_scores.iter().take(20).map(ToString::to_string).collect();
        details.push(("base score", shown.join(", ")));
        if let Booster::Trees { trees, .. } = &self.booster {
            details.push(("trees", trees.len().to_string()));
        }
        details
    }
}

fn body(booster: Booster, features: u32, outputs: u32) -> Result<Body, ReadError> {
    match booster {
        Booster::Linear { weights, .. } => {
            let expected = (u64::from(features) + 1) * u64::from(outputs);
            if weights.len() as u64 != expected {
                let count = weights.len();
                return Err(ReadError::whole(format!("`weights` has {count} numbers, expected {expected}")));
            }
            let (weights, bias) = weights.split_at(features as usize * outputs as usize);
            let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect();
            Ok(Body::Linear { weights: wide(weights), bias: wide(bias) })
        }
        Booster::Trees { mut trees, groups, weights, .. } => {
            let count = trees.len();
            let counts = [("tree_info", Some(groups.len())), ("weight_drop", weights.as_ref().map(Vec::len))];
            for (key, held) in counts {
                if held.is_some_and(|held| held != count) {
                    return Err(ReadError::whole(format!("`{key}` has another length than {count} trees")));
                }
            }
            for (tree, &group) in trees.iter_mut().zip(&groups) {
                tree.output = u32::try_from(group).map_err(|_| ReadError::whole("a negative output in `tree_info`"))?;
            }
            for (tree, &weight) in trees.iter_mut().zip(weights.iter().flatten()) {
                tree.weight = f64::from(weight);
            }
            Ok(Body::Trees(trees))
        }
    }
}
