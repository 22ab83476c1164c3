//! Parts in, a well-formed [`Forest`] or the first flaw out, named by tree and node. Time and memory are linear in the
//! parts, and depth costs no stack.

use thiserror::Error;

use super::column::{MISSING_CATEGORY, NO_CATEGORY};
use super::{
    Body, CategoryRule, CategorySet, Child, Comparison, Float, Forest, ForestParts, Leaves, LinearLeaves, Link,
    OnnxLink, OnnxWidth, Test, Tree,
};

/// The largest model that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Values in a row.
    pub features: u32,
    /// Margins of a row.
    pub outputs: u32,
    /// Trees of a forest.
    pub trees: usize,
    /// Leaves of one tree.
    pub leaves: usize,
    /// Leaves of all trees together.
    pub leaves_total: usize,
}

/// What the check enforces; a reader that knows a size before its contents can refuse it there.
pub const LIMITS: Limits =
    Limits { features: 1 << 20, outputs: 1 << 16, trees: 1 << 20, leaves: 1 << 22, leaves_total: 1 << 27 };

/// Why parts are no forest.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Flaw {
    /// A model-wide size is out of bounds.
    #[error("{what} is {count}, must be 1 to {max}")]
    Size {
        /// `features`, `outputs`, ...
        what: &'static str,
        /// What the model has.
        count: usize,
        /// What is taken.
        max: usize,
    },
    /// An array has another length than its neighbours say.
    #[error("{what} has {count} values, expected {expected}")]
    Length {
        /// The array.
        what: &'static str,
        /// What it has.
        count: usize,
        /// What it must have.
        expected: usize,
    },
    /// A number is NaN or infinite where that has no meaning.
    #[error("{what} is {value}, must be finite")]
    NotFinite {
        /// The number.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A link and the model do not fit.
    #[error("link {link:?} does not fit: {why}")]
    Link {
        /// The link.
        link: Link,
        /// What it needs.
        why: &'static str,
    },
    /// A linear model starts from its base.
    #[error("a linear model's base cannot come last")]
    LinearBase,
    /// A flaw of one tree.
    #[error("tree {tree}: {flaw}")]
    Tree {
        /// Its index.
        tree: usize,
        /// What is wrong in it.
        flaw: TreeFlaw,
    },
}

/// Why a tree is none.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TreeFlaw {
    /// A tree has one leaf more than splits.
    #[error("{leaves} leaves and {splits} splits, expected one leaf more than splits")]
    LeafCount {
        /// Leaves it has.
        leaves: usize,
        /// Splits it has.
        splits: usize,
    },
    /// More leaves than [`LIMITS`] takes, in the tree or in all so far.
    #[error("{leaves} leaves, must be at most {max}")]
    TooManyLeaves {
        /// What it has.
        leaves: usize,
        /// What is taken.
        max: usize,
    },
    /// An array of the tree has another length than its neighbours say.
    #[error("{what} has {count} values, expected {expected}")]
    Length {
        /// The array.
        what: &'static str,
        /// What it has.
        count: usize,
        /// What it must have.
        expected: usize,
    },
    /// The tree adds to an output that the model does not have.
    #[error("output {output}, the model has {outputs}")]
    Output {
        /// What it names.
        output: u32,
        /// What the model has.
        outputs: u32,
    },
    /// The weight is NaN or infinite.
    #[error("weight {0}, must be finite")]
    Weight(f64),
    /// A feature that the row does not have.
    #[error("split {node}: feature {feature}, a row has {features}")]
    Feature {
        /// The split.
        node: usize,
        /// What it names.
        feature: u32,
        /// What a row has.
        features: u32,
    },
    /// A feature of a leaf's linear model that the row does not have.
    #[error("leaf {leaf}: feature {feature}, a row has {features}")]
    LeafFeature {
        /// The leaf.
        leaf: usize,
        /// What it names.
        feature: u32,
        /// What a row has.
        features: u32,
    },
    /// A leaf's terms are not an ascending part of the tree's.
    #[error("leaf {leaf}: its linear terms are {start} to {end} of {terms}")]
    LeafTerms {
        /// The leaf.
        leaf: usize,
        /// Its first term.
        start: u32,
        /// After its last.
        end: u32,
        /// Terms that the tree has.
        terms: usize,
    },
    /// Linear leaves are `LightGBM`'s, which adds in f64.
    #[error("linear leaves need f64 sums")]
    LinearSum,
    /// A threshold that no value can be compared with.
    #[error("split {0}: the threshold is NaN")]
    NanThreshold(usize),
    /// A threshold that the row's type cannot hold, where it would have to.
    #[error("split {node}: threshold {threshold} is no 32-bit float")]
    WideThreshold {
        /// The split.
        node: usize,
        /// Its threshold.
        threshold: f64,
    },
    /// A category set that the tree does not have.
    #[error("split {node}: category set {set}, the tree has {sets}")]
    Set {
        /// The split.
        node: usize,
        /// What it names.
        set: u32,
        /// What the tree has.
        sets: usize,
    },
    /// A list of categories is not strictly ascending.
    #[error("category set {0} is not in ascending order")]
    SetOrder(usize),
    /// A category that stands for something else in a column.
    #[error("split {node}: a set with category {category}, the greatest must be below 4294967294")]
    SetNumber {
        /// The split.
        node: usize,
        /// The category.
        category: u32,
    },
    /// A child that does not exist.
    #[error("split {node}: its {side} child is {child:?}, the tree has {splits} splits and {leaves} leaves")]
    Dangling {
        /// The split.
        node: usize,
        /// `left` or `right`.
        side: &'static str,
        /// What it names.
        child: Child,
        /// Splits of the tree.
        splits: usize,
        /// Leaves of the tree.
        leaves: usize,
    },
    /// A second way to a node: a shared child or a cycle.
    #[error("split {node}: its {side} child {child:?} was reached before: shared, or a cycle")]
    Reached {
        /// The split.
        node: usize,
        /// `left` or `right`.
        side: &'static str,
        /// What it names.
        child: Child,
    },
    /// A node that the root does not lead to.
    #[error("{0:?} cannot be reached from the root")]
    Unreachable(Child),
}

impl ForestParts {
    /// Checks everything that a kernel relies on. See [`LIMITS`].
    ///
    /// # Errors
    /// The first [`Flaw`], in the order of the fields.
    pub fn check(self) -> Result<Forest, Flaw> {
        check_size("features", self.features as usize, LIMITS.features as usize)?;
        check_size("outputs", self.outputs as usize, LIMITS.outputs as usize)?;
        check_length("base", self.base.len(), self.outputs as usize)?;
        if !self.divisors.is_empty() {
            check_length("divisors", self.divisors.len(), self.outputs as usize)?;
        }
        if let Some(&value) = self.base.iter().find(|base| !base.is_finite()) {
            return Err(Flaw::NotFinite { what: "base", value });
        }
        match &self.body {
            Body::Trees(trees) => check_trees(&self, trees)?,
            Body::Linear { weights, bias } => {
                check_length("weights", weights.len(), self.features as usize * self.outputs as usize)?;
                check_length("bias", bias.len(), self.outputs as usize)?;
                if self.base_last {
                    return Err(Flaw::LinearBase);
                }
            }
        }
        check_link(&self)?;
        Ok(Forest(self))
    }
}

fn check_size(what: &'static str, count: usize, max: usize) -> Result<(), Flaw> {
    if (1..=max).contains(&count) { Ok(()) } else { Err(Flaw::Size { what, count, max }) }
}

fn check_length(what: &'static str, count: usize, expected: usize) -> Result<(), Flaw> {
    if count == expected { Ok(()) } else { Err(Flaw::Length { what, count, expected }) }
}

fn check_link(parts: &ForestParts) -> Result<(), Flaw> {
    let refuse = |why| Err(Flaw::Link { link: parts.link, why });
    match parts.link {
        Link::Logistic { slope } if !slope.is_finite() => Err(Flaw::NotFinite { what: "sigmoid_alpha", value: slope }),
        Link::Exp2Ratio { ratio } if !ratio.is_finite() => Err(Flaw::NotFinite { what: "ratio_c", value: ratio }),
        Link::SoftmaxSingle { group } if group == 0 || !parts.outputs.is_multiple_of(group) => {
            refuse("the outputs are no whole number of its groups")
        }
        Link::Sigmoid { slope } if !slope.is_finite() => Err(Flaw::NotFinite { what: "sigmoid", value: slope }),
        #[expect(clippy::float_cmp, reason = "exactly 1 is what the f32 formula computes")]
        Link::Sigmoid { slope } if parts.sum_type == Float::F32 && slope != 1.0 => refuse("a slope needs f64 sums"),
        Link::Onnx(OnnxLink { width: OnnxWidth::Complement | OnnxWidth::Negation, .. }) if parts.outputs != 1 => {
            refuse("two scores come of one margin")
        }
        Link::ExpectileSteps if parts.sum_type != Float::F32 => refuse("it is defined for f32 sums"),
        _ => Ok(()),
    }
}

fn check_trees(parts: &ForestParts, trees: &[Tree]) -> Result<(), Flaw> {
    if trees.len() > LIMITS.trees {
        return Err(Flaw::Size { what: "trees", count: trees.len(), max: LIMITS.trees });
    }
    let mut reached = Reached::default();
    let mut leaves_total = 0;
    for (index, tree) in trees.iter().enumerate() {
        let at = |flaw| Flaw::Tree { tree: index, flaw };
        leaves_total += check_tree(parts, tree).map_err(at)?;
        if leaves_total > LIMITS.leaves_total {
            return Err(at(TreeFlaw::TooManyLeaves { leaves: leaves_total, max: LIMITS.leaves_total }));
        }
        reached.check(tree, parts.outputs).map_err(at)?;
    }
    Ok(())
}

/// Everything but the shape. Gives the number of leaves.
fn check_tree(parts: &ForestParts, tree: &Tree) -> Result<usize, TreeFlaw> {
    if tree.output >= parts.outputs {
        return Err(TreeFlaw::Output { output: tree.output, outputs: parts.outputs });
    }
    if !tree.weight.is_finite() {
        return Err(TreeFlaw::Weight(tree.weight));
    }
    let leaves = tree.leaves.count(parts.outputs);
    if leaves > LIMITS.leaves {
        return Err(TreeFlaw::TooManyLeaves { leaves, max: LIMITS.leaves });
    }
    if leaves != tree.splits.len() + 1 {
        return Err(TreeFlaw::LeafCount { leaves, splits: tree.splits.len() });
    }
    match &tree.leaves {
        Leaves::Scalar(_) => {}
        Leaves::Vector(values) => check_tree_length("leaf values", values.len(), leaves * parts.outputs as usize)?,
        Leaves::Linear(_) if parts.sum_type != Float::F64 => return Err(TreeFlaw::LinearSum),
        Leaves::Linear(linear) => check_linear(linear, parts.features)?,
    }
    for (index, set) in tree.sets.iter().enumerate() {
        if matches!(set, CategorySet::Sorted(ids) if !ids.is_sorted_by(|a, b| a < b)) {
            return Err(TreeFlaw::SetOrder(index));
        }
    }
    check_splits(parts, tree)?;
    Ok(leaves)
}

fn check_splits(parts: &ForestParts, tree: &Tree) -> Result<(), TreeFlaw> {
    for (node, split) in tree.splits.iter().enumerate() {
        if split.feature >= parts.features {
            return Err(TreeFlaw::Feature { node, feature: split.feature, features: parts.features });
        }
        match split.test {
            Test::Number { threshold, .. } if threshold.is_nan() => return Err(TreeFlaw::NanThreshold(node)),
            // `x < t` has an equal `x <= t'` only where t' is the next value down of the type that x has.
            Test::Number { threshold, comparison: Comparison::Less, .. }
                if parts.row_type == Float::F32 && !is_f32(threshold) =>
            {
                return Err(TreeFlaw::WideThreshold { node, threshold });
            }
            Test::Category { set, .. } if set as usize >= tree.sets.len() => {
                return Err(TreeFlaw::Set { node, set, sets: tree.sets.len() });
            }
            Test::Category { set, rule: CategoryRule::Treelite { .. } } => {
                let set = &tree.sets[set as usize];
                if let Some(category) = [MISSING_CATEGORY, NO_CATEGORY].into_iter().find(|&id| set.contains(id)) {
                    return Err(TreeFlaw::SetNumber { node, category });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::float_cmp, reason = "asks whether the conversion loses anything")]
fn is_f32(value: f64) -> bool {
    f64::from(value as f32) == value
}

fn check_tree_length(what: &'static str, count: usize, expected: usize) -> Result<(), TreeFlaw> {
    if count == expected { Ok(()) } else { Err(TreeFlaw::Length { what, count, expected }) }
}

fn check_linear(linear: &LinearLeaves, features: u32) -> Result<(), TreeFlaw> {
    let LinearLeaves { constants, fallbacks, starts, features: named, coefficients } = linear;
    check_tree_length("leaf fallbacks", fallbacks.len(), constants.len())?;
    check_tree_length("leaf term starts", starts.len(), constants.len() + 1)?;
    check_tree_length("leaf coefficients", coefficients.len(), named.len())?;
    let mut expected_start = 0;
    for (leaf, pair) in starts.windows(2).enumerate() {
        let (start, end) = (pair[0], pair[1]);
        if (leaf == 0 && start != 0) || start < expected_start || end < start || end as usize > named.len() {
            return Err(TreeFlaw::LeafTerms { leaf, start, end, terms: named.len() });
        }
        expected_start = end;
        if let Some(&feature) = named[start as usize..end as usize].iter().find(|&&feature| feature >= features) {
            return Err(TreeFlaw::LeafFeature { leaf, feature, features });
        }
    }
    check_tree_length("leaf features", named.len(), expected_start as usize)
}

/// Which nodes a walk has met; kept from tree to tree for its memory.
#[derive(Default)]
struct Reached {
    splits: Vec<bool>,
    leaves: Vec<bool>,
    waiting: Vec<u32>,
}

impl Reached {
    fn check(&mut self, tree: &Tree, outputs: u32) -> Result<(), TreeFlaw> {
        let (splits, leaves) = (tree.splits.len(), tree.leaves.count(outputs));
        if splits == 0 {
            return Ok(());
        }
        self.splits.clear();
        self.splits.resize(splits, false);
        self.leaves.clear();
        self.leaves.resize(leaves, false);
        self.splits[0] = true;
        self.waiting.push(0);
        while let Some(node) = self.waiting.pop() {
            let node = node as usize;
            for (side, child) in [("left", tree.splits[node].left), ("right", tree.splits[node].right)] {
                let (reached, index) = match child {
                    Child::Split(index) => (&mut self.splits, index),
                    Child::Leaf(index) => (&mut self.leaves, index),
                };
                match reached.get_mut(index as usize) {
                    None => {
                        self.waiting.clear();
                        return Err(TreeFlaw::Dangling { node, side, child, splits, leaves });
                    }
                    Some(true) => {
                        self.waiting.clear();
                        return Err(TreeFlaw::Reached { node, side, child });
                    }
                    Some(place) => *place = true,
                }
                if let Child::Split(index) = child {
                    self.waiting.push(index);
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a tree has at most LIMITS.leaves nodes of a kind")]
        let first_missed = |reached: &[bool]| reached.iter().position(|&reached| !reached).map(|index| index as u32);
        let missed =
            first_missed(&self.splits).map(Child::Split).or_else(|| first_missed(&self.leaves).map(Child::Leaf));
        missed.map_or(Ok(()), |child| Err(TreeFlaw::Unreachable(child)))
    }
}
