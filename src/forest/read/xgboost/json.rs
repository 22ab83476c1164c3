//! XGBoost's JSON or UBJSON in, [`Stated`] out. Keys come in any order, so what belongs together is held against each
//! other only when all is read. A key that stands twice, which two readers may take for two things, is refused.

use super::tree::{Categories, Nodes};
use super::{Booster, Stated, Version};
use crate::forest::read::document::Document;
use crate::forest::read::{FeatureNames, ReadError};
use crate::forest::{LIMITS, Tree};

pub(super) fn read(bytes: &[u8]) -> Result<Stated, ReadError> {
    let mut document = Document::open(bytes);
    let (mut version, mut learner) = (None, None);
    document.object(|document, key| match key {
        "version" => once(document, &mut version, key, |document| read_version(document)),
        "learner" => once(document, &mut learner, key, Learner::read),
        // An R raw vector or a Python pickle's state has the model one level further in.
        "Model" => Err(document.error("a serialised state of XGBoost, not a model; save it with Booster.save_model")),
        _ => document.skip(),
    })?;
    document.end()?;
    let version = version.ok_or_else(|| missing("version"))?;
    let learner = learner.ok_or_else(|| missing("learner"))?;
    let read = learner.booster.ok_or_else(|| missing("gradient_booster"))?;
    let sizes = learner.sizes.ok_or_else(|| missing("learner_model_param"))?;
    read.categories.check(version)?;
    Ok(Stated {
        version,
        objective: learner.objective.ok_or_else(|| missing("objective"))?,
        objective_classes: learner.objective_classes,
        features: sizes.features.ok_or_else(|| missing("num_feature"))?,
        classes: sizes.classes.ok_or_else(|| missing("num_class"))?,
        targets: sizes.targets.unwrap_or(1),
        base_scores: sizes.base_scores.ok_or_else(|| missing("base_score"))?,
        boost_from_average: sizes.boost_from_average.unwrap_or(0) != 0,
        booster: read.booster,
        feature_names: learner.feature_names.unwrap_or_default(),
        best_iteration: learner.best_iteration,
    })
}

/// Reads a key's value, if it is the first.
fn once<'a, T>(
    document: &mut Document<'a>,
    slot: &mut Option<T>,
    key: &str,
    read: impl FnOnce(&mut Document<'a>) -> Result<T, ReadError>,
) -> Result<(), ReadError> {
    if slot.is_some() {
        return Err(document.error(format!("`{key}` stands twice")));
    }
    *slot = Some(read(document)?);
    Ok(())
}

fn missing(key: &str) -> ReadError {
    ReadError::whole(format!("`{key}` is missing: the file is damaged, or not one of an XGBoost model"))
}

/// XGBoost writes counts as texts.
fn count(document: &mut Document<'_>) -> Result<u32, ReadError> {
    let text = document.text()?;
    text.parse().map_err(|_| document.error(format!("{:?} is not a count", clip(&text))))
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

fn read_version(document: &mut Document<'_>) -> Result<Version, ReadError> {
    let mut numbers = Vec::new();
    document.numbers::<i32>(&mut numbers)?;
    let numbers: Vec<u32> = numbers.into_iter().filter_map(|number| number.try_into().ok()).collect();
    let [major, minor, patch] = numbers[..] else {
        return Err(document.error("`version` is not three numbers"));
    };
    let version = Version { major, minor, patch };
    if major == 0 {
        return Err(document.error("no version of XGBoost before 1.0 wrote JSON"));
    }
    version.check().map(|()| version)
}

#[derive(Default)]
struct Learner {
    objective: Option<String>,
    objective_classes: Option<u32>,
    sizes: Option<Sizes>,
    booster: Option<BoosterRead>,
    feature_names: Option<FeatureNames>,
    best_iteration: Option<u32>,
    attributes: Option<()>,
}

impl Learner {
    fn read(document: &mut Document<'_>) -> Result<Self, ReadError> {
        let mut learner = Self::default();
        document.object(|document, key| match key {
            "objective" => learner.read_objective(document),
            "learner_model_param" => once(document, &mut learner.sizes, key, Sizes::read),
            "gradient_booster" => once(document, &mut learner.booster, key, BoosterRead::read),
            "feature_names" => once(document, &mut learner.feature_names, key, read_names),
            "attributes" => {
                let best = &mut learner.best_iteration;
                once(document, &mut learner.attributes, key, |document| read_attributes(document, best))
            }
            _ => document.skip(),
        })?;
        Ok(learner)
    }

    fn read_objective(&mut self, document: &mut Document<'_>) -> Result<(), ReadError> {
        document.object(|document, key| match key {
            "name" => once(document, &mut self.objective, key, |document| Ok(clip(&document.text()?))),
            "softmax_multiclass_param" => document.object(|document, key| match key {
                "num_class" => once(document, &mut self.objective_classes, key, count),
                _ => document.skip(),
            }),
            _ => document.skip(),
        })
    }
}

fn read_names(document: &mut Document<'_>) -> Result<FeatureNames, ReadError> {
    let mut names = FeatureNames::default();
    document.list(|document| names.push(&document.text()?))?;
    Ok(names)
}

fn read_attributes(document: &mut Document<'_>, best_iteration: &mut Option<u32>) -> Result<(), ReadError> {
    document.object(|document, key| match key {
        "best_iteration" => {
            *best_iteration = document.text()?.parse().ok();
            Ok(())
        }
        _ => document.skip(),
    })
}

#[derive(Default)]
struct Sizes {
    features: Option<u32>,
    classes: Option<u32>,
    targets: Option<u32>,
    base_scores: Option<Vec<f32>>,
    boost_from_average: Option<u32>,
}

impl Sizes {
    fn read(document: &mut Document<'_>) -> Result<Self, ReadError> {
        let mut sizes = Self::default();
        document.object(|document, key| match key {
            "num_feature" => once(document, &mut sizes.features, key, count),
            "num_class" => once(document, &mut sizes.classes, key, count),
            "num_target" => once(document, &mut sizes.targets, key, count),
            "boost_from_average" => once(document, &mut sizes.boost_from_average, key, count),
            "base_score" => once(document, &mut sizes.base_scores, key, read_base_scores),
            _ => document.skip(),
        })?;
        Ok(sizes)
    }
}

/// A number in a text, `5E-1`; since 3.1 a list of them in a text, `[5E-1,2.5E-1]`.
fn read_base_scores(document: &mut Document<'_>) -> Result<Vec<f32>, ReadError> {
    let text = document.text()?;
    let text = text.trim();
    let list = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'));
    let scores = list.map(|list| {
        let count = list.bytes().filter(|&byte| byte == b',').count() + 1;
        let mut scores = Vec::with_capacity(count);
        list.split(',').try_for_each(|one| one.trim().parse().map(|score| scores.push(score))).map(|()| scores)
    });
    match scores {
        Some(Ok(scores)) => Ok(scores),
        _ => Err(document.error(format!("`base_score` {:?} is not a number, nor a list of numbers", clip(text)))),
    }
}

struct BoosterRead {
    booster: Booster,
    categories: CategoriesSeen,
}

/// Which kinds of categorical splits the trees have.
#[derive(Clone, Copy, Default)]
struct CategoriesSeen {
    any: bool,
    /// One whose default side is the right.
    right_by_default: bool,
}

impl CategoriesSeen {
    fn note(&mut self, nodes: &Nodes) {
        for (&kind, &left) in nodes.kinds.iter().zip(&nodes.default_left) {
            self.any |= kind == 1;
            self.right_by_default |= kind == 1 && !left;
        }
    }

    /// A value that is no known category goes left since 1.7.3. It went the default way in 1.6, and before that a
    /// negative fraction was category 0.
    fn check(self, version: Version) -> Result<(), ReadError> {
        let Version { major, minor, patch } = version;
        let differs = match (major, minor, patch) {
            (1, ..6, _) => self.any,
            (1, 6, _) | (1, 7, ..3) => self.right_by_default,
            _ => false,
        };
        if differs {
            return Err(ReadError::whole(format!(
                "categorical splits of XGBoost {major}.{minor}.{patch}, which sends unknown categories another way than \
                 later versions; save the model again with XGBoost 2.0 to 3.2"
            )));
        }
        Ok(())
    }
}

impl BoosterRead {
    fn read(document: &mut Document<'_>) -> Result<Self, ReadError> {
        let (mut name, mut model, mut inner, mut weights) = (None, None, None, None);
        document.object(|document, key| match key {
            "name" => once(document, &mut name, key, |document| Ok(clip(&document.text()?))),
            "model" => once(document, &mut model, key, Model::read),
            "gbtree" => once(document, &mut inner, key, |document| {
                let mut model = None;
                document.object(|document, key| match key {
                    "model" => once(document, &mut model, key, Model::read),
                    _ => document.skip(),
                })?;
                Ok(model)
            }),
            "weight_drop" => once(document, &mut weights, key, |document| {
                let mut weights = Vec::new();
                document.numbers::<f32>(&mut weights).map(|()| weights)
            }),
            _ => document.skip(),
        })?;
        match name.as_deref() {
            Some("gbtree") => model.ok_or_else(|| missing("model"))?.trees(None),
            Some("dart") => {
                let weights = weights.ok_or_else(|| missing("weight_drop"))?;
                inner.flatten().ok_or_else(|| missing("gbtree"))?.trees(Some(weights))
            }
            Some("gblinear") => {
                let model = model.ok_or_else(|| missing("model"))?;
                let weights = model.weights.ok_or_else(|| missing("weights"))?;
                let booster = Booster::Linear { weights, rounds: model.rounds };
                Ok(Self { booster, categories: CategoriesSeen::default() })
            }
            Some(other) => Err(ReadError::whole(format!("the booster {other:?} is not gbtree, dart or gblinear"))),
            None => Err(missing("name")),
        }
    }
}

/// Trees or weights.
#[derive(Default)]
struct Model {
    tree_count: Option<u32>,
    trees: Option<Trees>,
    groups: Option<Vec<i32>>,
    layers: Option<Vec<i32>>,
    weights: Option<Vec<f32>>,
    rounds: Option<i32>,
    sizes: Option<()>,
}

impl Model {
    fn read(document: &mut Document<'_>) -> Result<Self, ReadError> {
        let mut model = Self::default();
        let numbers = |document: &mut Document<'_>| {
            let mut numbers = Vec::new();
            document.numbers::<i32>(&mut numbers).map(|()| numbers)
        };
        document.object(|document, key| match key {
            "gbtree_model_param" => {
                let tree_count = &mut model.tree_count;
                once(document, &mut model.sizes, key, |document| {
                    document.object(|document, key| match key {
                        "num_trees" => once(document, tree_count, key, count),
                        _ => document.skip(),
                    })
                })
            }
            "trees" => once(document, &mut model.trees, key, Trees::read),
            "tree_info" => once(document, &mut model.groups, key, numbers),
            "iteration_indptr" => once(document, &mut model.layers, key, numbers),
            "weights" => once(document, &mut model.weights, key, |document| {
                let mut weights = Vec::new();
                document.numbers::<f32>(&mut weights).map(|()| weights)
            }),
            "boosted_rounds" => once(document, &mut model.rounds, key, Document::number),
            _ => document.skip(),
        })?;
        Ok(model)
    }

    fn trees(self, weights: Option<Vec<f32>>) -> Result<BoosterRead, ReadError> {
        let Trees { all: trees, leaf_size, categories } = self.trees.ok_or_else(|| missing("trees"))?;
        let stated = self.tree_count.ok_or_else(|| missing("num_trees"))?;
        if stated as usize != trees.len() {
            let held = trees.len();
            return Err(ReadError::whole(format!("`num_trees` is {stated}, and the file holds {held} trees")));
        }
        if let Some(layers) = &self.layers {
            // What it scores by default is all iterations, so these bounds must be those of all trees.
            let whole = layers.first() == Some(&0) && layers.last().map(|&last| i64::from(last)) == Some(stated.into());
            if !whole || !layers.windows(2).all(|pair| pair[0] <= pair[1]) {
                return Err(ReadError::whole("`iteration_indptr` does not cover the trees: the file is damaged"));
            }
        }
        let groups = self.groups.ok_or_else(|| missing("tree_info"))?;
        let booster = Booster::Trees { trees, groups, leaf_size: leaf_size.unwrap_or(1), weights };
        Ok(BoosterRead { booster, categories })
    }
}

#[derive(Default)]
struct Trees {
    all: Vec<Tree>,
    leaf_size: Option<u32>,
    categories: CategoriesSeen,
}

impl Trees {
    fn read(document: &mut Document<'_>) -> Result<Self, ReadError> {
        let mut read = Self::default();
        let mut nodes = Nodes::default();
        document.list(|document| {
            let start = document.at();
            let place = read.all.len();
            let leaf_size = read_tree(document, &mut nodes, place)?;
            if *read.leaf_size.get_or_insert(leaf_size) != leaf_size {
                return Err(document.error("`size_leaf_vector` is not the same in all trees"));
            }
            // The version, which may come last, says what that means.
            read.categories.note(&nodes);
            let tree = nodes.tree().map_err(|reason| {
                let reason = format!("the tree {place} that starts here: {reason}");
                ReadError { place: crate::forest::read::Place::Byte(start), reason }
            })?;
            read.all.push(tree);
            if read.all.len() > LIMITS.trees { Err(document.error("too many trees")) } else { Ok(()) }
        })?;
        Ok(read)
    }
}

/// Reads a tree's arrays, and gives the size of its leaves.
fn read_tree(document: &mut Document<'_>, nodes: &mut Nodes, place: usize) -> Result<u32, ReadError> {
    let (mut sizes, mut id, mut seen) = (None, None, Seen::default());
    nodes.leaf_values.clear();
    nodes.kinds.clear();
    nodes.categories = Categories::default();
    nodes.leaves_are_numbered = false;
    let mut node_values = Vec::new();
    let mut node_value_count = 0;
    document.object(|document, key| {
        seen.note(document, key)?;
        match key {
            "tree_param" => once(document, &mut sizes, key, read_tree_sizes),
            "id" => once(document, &mut id, key, Document::number::<i32>),
            "left_children" => document.numbers(&mut nodes.left),
            "right_children" => document.numbers(&mut nodes.right),
            "split_indices" => document.numbers(&mut nodes.features),
            "split_conditions" => document.numbers(&mut nodes.conditions),
            "default_left" => document.numbers(&mut nodes.default_left),
            "split_type" => document.numbers(&mut nodes.kinds),
            "categories" => document.numbers(&mut nodes.categories.values),
            "categories_nodes" => document.numbers(&mut nodes.categories.nodes),
            "categories_segments" => document.numbers(&mut nodes.categories.starts),
            "categories_sizes" => document.numbers(&mut nodes.categories.sizes),
            "leaf_weights" => {
                nodes.leaves_are_numbered = true;
                document.numbers(&mut nodes.leaf_values)
            }
            "base_weights" => {
                document.numbers(&mut node_values)?;
                node_value_count = node_values.len();
                Ok(())
            }
            _ => document.skip(),
        }
    })?;
    if let Some(key) = seen.missing() {
        return Err(document.error(format!("the tree {place} that ends here has no `{key}`")));
    }
    if id.is_none_or(|id| usize::try_from(id) != Ok(place)) {
        return Err(document.error(format!("the `id` of the tree that ends here is not its place, {place}")));
    }
    let (count, leaf_size) = sizes.unwrap_or_default();
    nodes.count = count as usize;
    nodes.leaf_size = leaf_size.max(1) as usize;
    if leaf_size > 1 && !nodes.leaves_are_numbered {
        // Before 3.2 a leaf's values were those of its node.
        nodes.leaf_values = node_values;
    }
    Ok(leaf_size.max(1))
}

fn read_tree_sizes(document: &mut Document<'_>) -> Result<(u32, u32), ReadError> {
    let (mut nodes, mut leaf_size) = (None, None);
    document.object(|document, key| match key {
        "num_nodes" => once(document, &mut nodes, key, count),
        "size_leaf_vector" => once(document, &mut leaf_size, key, count),
        _ => document.skip(),
    })?;
    let nodes = nodes.ok_or_else(|| document.error("`num_nodes` is missing in the tree that ends here"))?;
    Ok((nodes, leaf_size.unwrap_or(0)))
}

/// Which of a tree's keys were there.
#[derive(Default)]
struct Seen(u32);

/// The first six must be there.
const TREE_KEYS: [&str; 13] = [
    "tree_param",
    "left_children",
    "right_children",
    "split_indices",
    "split_conditions",
    "default_left",
    "split_type",
    "categories",
    "categories_nodes",
    "categories_segments",
    "categories_sizes",
    "leaf_weights",
    "base_weights",
];
const TREE_KEYS_NEEDED: usize = 6;

impl Seen {
    fn note(&mut self, document: &Document<'_>, key: &str) -> Result<(), ReadError> {
        let Some(place) = TREE_KEYS.iter().position(|known| *known == key) else { return Ok(()) };
        if self.0 >> place & 1 == 1 {
            return Err(document.error(format!("`{key}` stands twice")));
        }
        self.0 |= 1 << place;
        Ok(())
    }

    fn missing(&self) -> Option<&'static str> {
        TREE_KEYS[..TREE_KEYS_NEEDED]
            .iter()
            .enumerate()
            .find(|(place, _)| self.0 >> place & 1 == 0)
            .map(|(_, key)| *key)
    }
}
