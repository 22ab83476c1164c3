//! A tree ensemble's node in, its trees and their finish out, as ONNX Runtime scores them with one thread: sums tree by
//! tree in the type of the input, then the average, then the base values.
//!
//! `TreeEnsembleRegressor` and `TreeEnsembleClassifier` name nodes by (tree, node); `TreeEnsemble` by their place.

use super::proto::{Attribute, DOUBLE, Message, Tensor, Value};
use crate::forest::read::ReadError;
use crate::forest::{Child, Comparison, Leaves, Missing, OnnxLink, OnnxTransform, OnnxWidth, Split, Test, Tree};

/// How many times the weights of a tree may grow where its leaves name some of the outputs only.
const GROWTH_MAX: usize = 4;

/// What a node holds.
#[derive(Default)]
pub(super) struct Ensemble {
    operator: Operator,
    average: bool,
    transform: Option<OnnxTransform>,
    /// Targets, or class labels.
    pub(super) outputs: usize,
    base: Vec<f64>,
    modes: Vec<u8>,
    features: Vec<i32>,
    values: Vec<f64>,
    on_true: Vec<i32>,
    on_false: Vec<i32>,
    missing_is_true: Vec<i32>,
    /// Each node's tree and name in it.
    tree_ids: Vec<i32>,
    node_ids: Vec<i32>,
    weights: Weights,
    /// Of `TreeEnsemble`.
    roots: Vec<i32>,
    true_is_leaf: Vec<i32>,
    false_is_leaf: Vec<i32>,
    /// A tensor of doubles is among its numbers.
    pub(super) has_doubles: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Operator {
    #[default]
    Regressor,
    Classifier,
    /// `TreeEnsemble`.
    New,
}

/// What leaves add.
#[derive(Default)]
struct Weights {
    tree_ids: Vec<i32>,
    node_ids: Vec<i32>,
    outputs: Vec<i32>,
    values: Vec<f64>,
}

/// Trees, and what becomes of their sums.
pub(super) struct Scored {
    pub(super) trees: Vec<Tree>,
    pub(super) outputs: u32,
    pub(super) base: Vec<f64>,
    pub(super) average: bool,
    pub(super) link: OnnxLink,
}

const LEAF: u8 = 255;
/// In the numbers of `TreeEnsemble`, as the other operators spell them.
const MODES: [&[u8]; 6] = [b"BRANCH_LEQ", b"BRANCH_LT", b"BRANCH_GTE", b"BRANCH_GT", b"BRANCH_EQ", b"BRANCH_NEQ"];

impl Ensemble {
    pub(super) fn read(operator: &str, node: Message<'_>) -> Result<Self, ReadError> {
        let mut ensemble = Self {
            operator: match operator {
                "TreeEnsembleClassifier" => Operator::Classifier,
                "TreeEnsemble" => Operator::New,
                _ => Operator::Regressor,
            },
            transform: Some(OnnxTransform::None),
            ..Self::default()
        };
        for field in node {
            if let (5, Value::Bytes(attribute)) = field? {
                ensemble.take(Attribute::read(attribute)?, attribute)?;
            }
        }
        Ok(ensemble)
    }

    fn is_classifier(&self) -> bool {
        self.operator == Operator::Classifier
    }

    fn is_new(&self) -> bool {
        self.operator == Operator::New
    }

    fn take(&mut self, attribute: Attribute<'_>, at: Message<'_>) -> Result<(), ReadError> {
        let into = match attribute.name {
            "aggregate_function" if self.is_new() => {
                return self.aggregate(attribute.integer == 0, attribute.integer == 1, at);
            }
            "aggregate_function" => return self.aggregate(attribute.text == "AVERAGE", attribute.text == "SUM", at),
            "post_transform" => {
                self.transform = transform(&attribute, self.is_new());
                return if self.transform.is_some() { Ok(()) } else { Err(at.error("the post transform PROBIT")) };
            }
            "n_targets" => {
                self.outputs = usize::try_from(attribute.integer).unwrap_or(0);
                return Ok(());
            }
            "classlabels_int64s" | "classlabels_strings" => {
                self.outputs = attribute.integers.len().max(attribute.texts().count());
                return Ok(());
            }
            "nodes_modes" => return self.take_modes(&attribute, at),
            "membership_values" if attribute.tensor.as_ref().is_some_and(|tensor| !tensor.values.is_empty()) => {
                return Err(at.error("splits on membership"));
            }
            "base_values" | "base_values_as_tensor" => &mut self.base,
            "nodes_values" | "nodes_values_as_tensor" | "nodes_splits" => &mut self.values,
            "target_weights"
            | "target_weights_as_tensor"
            | "class_weights"
            | "class_weights_as_tensor"
            | "leaf_weights" => &mut self.weights.values,
            _ => {
                self.take_integers(attribute);
                return Ok(());
            }
        };
        let (numbers, is_double) = match attribute.tensor {
            Some(Tensor { kind, values, .. }) => (values, kind == DOUBLE),
            None => (attribute.floats, false),
        };
        self.has_doubles |= is_double;
        if !numbers.is_empty() {
            *into = numbers;
        }
        Ok(())
    }

    fn take_integers(&mut self, attribute: Attribute<'_>) {
        let into = match attribute.name {
            "nodes_featureids" => &mut self.features,
            "nodes_truenodeids" => &mut self.on_true,
            "nodes_falsenodeids" => &mut self.on_false,
            "nodes_missing_value_tracks_true" => &mut self.missing_is_true,
            "nodes_treeids" => &mut self.tree_ids,
            "nodes_nodeids" => &mut self.node_ids,
            "target_treeids" | "class_treeids" => &mut self.weights.tree_ids,
            "target_nodeids" | "class_nodeids" => &mut self.weights.node_ids,
            "target_ids" | "class_ids" | "leaf_targetids" => &mut self.weights.outputs,
            "tree_roots" => &mut self.roots,
            "nodes_trueleafs" => &mut self.true_is_leaf,
            "nodes_falseleafs" => &mut self.false_is_leaf,
            _ => return,
        };
        *into = attribute.integers;
    }

    fn aggregate(&mut self, is_average: bool, is_sum: bool, at: Message<'_>) -> Result<(), ReadError> {
        self.average = is_average;
        if is_average || is_sum { Ok(()) } else { Err(at.error("an aggregate function other than SUM and AVERAGE")) }
    }

    fn take_modes(&mut self, attribute: &Attribute<'_>, at: Message<'_>) -> Result<(), ReadError> {
        let unknown = || at.error("a split that is no comparison");
        if let Some(tensor) = &attribute.tensor {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range of MODES")]
            let mode = |&mode: &f64| (0.0..MODES.len() as f64).contains(&mode).then_some(mode as u8);
            self.modes = tensor.values.iter().map(mode).collect::<Option<_>>().ok_or_else(unknown)?;
            return Ok(());
        }
        #[expect(clippy::cast_possible_truncation, reason = "below MODES.len()")]
        let mode = |text: &[u8]| match MODES.iter().position(|&known| known == text) {
            Some(mode) => Some(mode as u8),
            None => (text == b"LEAF").then_some(LEAF),
        };
        self.modes.reserve_exact(attribute.texts().count());
        for text in attribute.texts() {
            self.modes.push(mode(text).ok_or_else(unknown)?);
        }
        Ok(())
    }

    /// Everything in the form of this engine. `is_double`: the input is of doubles, so the runtime adds in double.
    pub(super) fn score(&self, is_double: bool) -> Result<Scored, String> {
        if self.has_doubles && !is_double {
            return Err("numbers of double with an input of float".to_owned());
        }
        let (outputs, mut link) = self.finish(is_double)?;
        let trees = if self.is_new() { self.new_trees(outputs)? } else { self.old_trees(outputs)? };
        if trees.is_empty() {
            return Err("an ensemble without trees".to_owned());
        }
        let mut base = vec![0.0; outputs];
        match self.base.len() {
            0 => {}
            count if count == outputs => base.copy_from_slice(&self.base),
            1 if self.outputs == 2 && self.is_classifier() && outputs == 1 => base.copy_from_slice(&self.base),
            count => return Err(format!("{count} base values for {outputs} outputs")),
        }
        if self.is_classifier() && self.outputs == 2 && outputs == 2 && !self.base.is_empty() {
            return Err("base values of two classes, which the runtime mixes".to_owned());
        }
        link.results_are_f32 = is_double && !self.is_new();
        let outputs = u32::try_from(outputs).map_err(|_| "too many outputs")?;
        Ok(Scored { trees, outputs, base, average: self.average, link })
    }

    /// Sums of a row, and what becomes of them.
    fn finish(&self, is_double: bool) -> Result<(usize, OnnxLink), String> {
        let transform = self.transform.unwrap_or(OnnxTransform::None);
        let link = |transform, width| OnnxLink { transform, width, results_are_f32: is_double };
        if self.is_classifier() && self.average {
            return Err("a classifier that averages".to_owned());
        }
        match (self.is_classifier(), self.outputs) {
            (_, 0) => Err("an ensemble of no outputs".to_owned()),
            (true, 1) => Err("a classifier of one class".to_owned()),
            // A single target is transformed by PROBIT alone.
            (false, 1) => Ok((1, link(OnnxTransform::None, OnnxWidth::Same))),
            (true, 2) => {
                let ids = &self.weights.outputs;
                if ids.iter().all(|&id| id == 0) {
                    let positive = !self.weights.values.iter().any(|&weight| weight < 0.0);
                    let (transform, width) = match (transform, positive) {
                        (OnnxTransform::Logistic, _) => (transform, OnnxWidth::Negation),
                        (_, true) => (OnnxTransform::None, OnnxWidth::Complement),
                        (_, false) => (OnnxTransform::None, OnnxWidth::Negation),
                    };
                    return Ok((1, link(transform, width)));
                }
                if self.every_leaf_of_a_tree_names(1) {
                    return Ok((2, link(transform, OnnxWidth::Same)));
                }
                Err("a second class that not every row has a score of".to_owned())
            }
            (_, outputs) => Ok((outputs, link(transform, OnnxWidth::Same))),
        }
    }

    /// Whether the first tree's leaves all add to an output, so that each row has a score of it.
    fn every_leaf_of_a_tree_names(&self, output: i32) -> bool {
        let Some(&tree) = self.tree_ids.first() else { return false };
        let leaves = self.tree_ids.iter().zip(&self.modes).filter(|&(&id, &mode)| id == tree && mode == LEAF).count();
        let named = self.weights.tree_ids.iter().zip(&self.weights.outputs);
        leaves > 0 && named.filter(|&(&id, &named)| id == tree && named == output).count() == leaves
    }

    fn check_lengths(&self, count: usize, lengths: &[(&str, usize)]) -> Result<(), String> {
        match lengths.iter().find(|(_, length)| *length != count) {
            Some((what, length)) => Err(format!("`{what}` has {length} numbers, expected {count}")),
            None if matches!(self.missing_is_true.len(), 0) || self.missing_is_true.len() == count => Ok(()),
            None => Err(format!("`nodes_missing_value_tracks_true` has another length than {count} nodes")),
        }
    }

    // ---- TreeEnsembleRegressor and TreeEnsembleClassifier ----------------------------------------------------------

    fn old_trees(&self, outputs: usize) -> Result<Vec<Tree>, String> {
        let count = self.modes.len();
        self.check_lengths(
            count,
            &[
                ("nodes_treeids", self.tree_ids.len()),
                ("nodes_nodeids", self.node_ids.len()),
                ("nodes_featureids", self.features.len()),
                ("nodes_values", self.values.len()),
                ("nodes_truenodeids", self.on_true.len()),
                ("nodes_falsenodeids", self.on_false.len()),
            ],
        )?;
        let weights = &self.weights;
        let counts = [weights.tree_ids.len(), weights.node_ids.len(), weights.outputs.len(), weights.values.len()];
        if counts.iter().any(|&count| count != counts[0]) {
            return Err("weights whose lists differ in length".to_owned());
        }
        // Nodes by tree and name; weights by the node that they belong to.
        let mut nodes: Vec<u32> = (0..u32::try_from(count).map_err(|_| "too many nodes")?).collect();
        let id = |node: u32| (self.tree_ids[node as usize], self.node_ids[node as usize]);
        nodes.sort_unstable_by_key(|&node| id(node));
        if nodes.windows(2).any(|pair| id(pair[0]) == id(pair[1])) {
            return Err("two nodes of one name".to_owned());
        }
        let mut places: Vec<u32> = (0..u32::try_from(counts[0]).map_err(|_| "too many weights")?).collect();
        let owner = |place: u32| (weights.tree_ids[place as usize], weights.node_ids[place as usize]);
        places.sort_unstable_by_key(|&place| (owner(place), place));
        let mut grower = Grower::new(count);
        let runs = self.tree_ids.windows(2).filter(|pair| pair[0] != pair[1]).count() + usize::from(count > 0);
        let mut trees = Vec::with_capacity(runs);
        let mut previous = None;
        for node in 0..count {
            if previous == Some(self.tree_ids[node]) {
                continue;
            }
            // The first node of a run is the root.
            let tree = self.tree_ids[node];
            previous = Some(tree);
            let named = |name: i32| nodes.binary_search_by_key(&(tree, name), |&node| id(node)).ok();
            let next = |node: usize| {
                if self.modes[node] == LEAF {
                    return Ok(None);
                }
                let child = |name: i32| {
                    let place = named(name).ok_or_else(|| format!("node {node} has the child {name}, which is none"));
                    place.map(|place| nodes[place] as usize)
                };
                Ok(Some((child(self.on_true[node])?, child(self.on_false[node])?)))
            };
            grower.walk(node, next)?;
            let leaf = |node: usize| {
                let start = places.partition_point(|&place| owner(place) < id_of(self, node));
                let own = places[start..].iter().take_while(move |&&place| owner(place) == id_of(self, node));
                own.map(|&place| (weights.outputs[place as usize], weights.values[place as usize]))
            };
            trees.push(grower.tree(outputs, |node| self.split(node), leaf)?);
        }
        Ok(trees)
    }

    // ---- TreeEnsemble ----------------------------------------------------------------------------------------------

    /// Splits by their place; a leaf is numbered after them here.
    fn new_trees(&self, outputs: usize) -> Result<Vec<Tree>, String> {
        let count = self.modes.len();
        self.check_lengths(
            count,
            &[
                ("nodes_featureids", self.features.len()),
                ("nodes_splits", self.values.len()),
                ("nodes_truenodeids", self.on_true.len()),
                ("nodes_falsenodeids", self.on_false.len()),
                ("nodes_trueleafs", self.true_is_leaf.len()),
                ("nodes_falseleafs", self.false_is_leaf.len()),
            ],
        )?;
        let leaves = self.weights.outputs.len();
        if self.weights.values.len() != leaves {
            return Err("`leaf_weights` and `leaf_targetids` differ in length".to_owned());
        }
        let mut grower = Grower::new(count + leaves);
        let mut trees = Vec::with_capacity(self.roots.len().min(count));
        for &root in &self.roots {
            let root = usize::try_from(root).ok().filter(|&root| root < count).ok_or("a root that is no node")?;
            if self.on_true[root] == self.on_false[root] {
                return Err("a tree whose root has one child twice".to_owned());
            }
            let child = |id: i32, is_leaf: i32| {
                let (first, held) = if is_leaf == 0 { (0, count) } else { (count, leaves) };
                let inside = usize::try_from(id).ok().filter(|&id| id < held);
                inside.map(|id| first + id).ok_or_else(|| format!("a child {id}, which is none"))
            };
            let next = |node: usize| {
                if node >= count {
                    return Ok(None);
                }
                let on_true = child(self.on_true[node], self.true_is_leaf[node])?;
                Ok(Some((on_true, child(self.on_false[node], self.false_is_leaf[node])?)))
            };
            grower.walk(root, next)?;
            let leaf =
                |node: usize| std::iter::once((self.weights.outputs[node - count], self.weights.values[node - count]));
            trees.push(grower.tree(outputs, |node| self.split(node), leaf)?);
        }
        Ok(trees)
    }

    /// A node's question; its children are set later. NaN is not comparable, so it is as if the answer were no, or yes
    /// where missing values go there.
    fn split(&self, node: usize) -> Result<(Split, bool), String> {
        let feature = u32::try_from(self.features[node]).map_err(|_| format!("node {node} splits on no feature"))?;
        let missing_is_true = self.missing_is_true.get(node).is_some_and(|&tracks| tracks == 1);
        let threshold = self.values[node];
        let (comparison, is_opposite) = match self.modes[node] {
            0 | 4 => (Comparison::AtMost, false),
            1 => (Comparison::Less, false),
            2 => (Comparison::Less, true),
            _ => (Comparison::AtMost, true),
        };
        let is_equality = self.modes[node] >= 4;
        // `x != t` holds for NaN, whatever tracks say.
        let missing_is_true = missing_is_true || (is_equality && is_opposite);
        let default_left = missing_is_true != is_opposite;
        let missing = Missing::NaN;
        let test = match (is_equality, threshold.is_nan()) {
            // Nothing compares with NaN, nor is below -infinity; but everything is unequal.
            (false, true) if is_opposite => {
                Test::Number { threshold: f64::INFINITY, comparison: Comparison::AtMost, missing }
            }
            (_, true) => Test::Number { threshold: f64::NEG_INFINITY, comparison: Comparison::Less, missing },
            (true, false) => Test::Equal { value: threshold },
            (false, false) => Test::Number { threshold, comparison, missing },
        };
        let nowhere = Child::Leaf(0);
        Ok((Split { feature, default_left, test, left: nowhere, right: nowhere }, is_opposite))
    }
}

fn id_of(ensemble: &Ensemble, node: usize) -> (i32, i32) {
    (ensemble.tree_ids[node], ensemble.node_ids[node])
}

fn transform(attribute: &Attribute<'_>, is_new: bool) -> Option<OnnxTransform> {
    Some(match (is_new, attribute.integer, attribute.text) {
        (true, 0, _) | (false, _, "NONE") => OnnxTransform::None,
        // The runtime numbers them in its own order; the operator's text has these two the other way round.
        (true, 2, _) | (false, _, "SOFTMAX") => OnnxTransform::Softmax,
        (true, 1, _) | (false, _, "LOGISTIC") => OnnxTransform::Logistic,
        (true, 3, _) | (false, _, "SOFTMAX_ZERO") => OnnxTransform::SoftmaxZero,
        _ => return None,
    })
}

/// Walks one tree after the other from their roots.
struct Grower {
    /// Each node's number among the splits or leaves of the tree at hand.
    numbers: Vec<u32>,
    /// Whether a tree has had it.
    seen: Vec<bool>,
    /// The tree's splits with their children, and its leaves.
    splits: Vec<(u32, u32, u32)>,
    leaves: Vec<u32>,
    ahead: Vec<u32>,
}

impl Grower {
    fn new(count: usize) -> Self {
        Self {
            numbers: vec![0; count],
            seen: vec![false; count],
            splits: Vec::new(),
            leaves: Vec::new(),
            ahead: Vec::new(),
        }
    }

    /// `next` gives a split's children, true first; `None` for a leaf.
    #[expect(clippy::cast_possible_truncation, reason = "the caller has fewer than 2^32 nodes")]
    fn walk(
        &mut self,
        root: usize,
        next: impl Fn(usize) -> Result<Option<(usize, usize)>, String>,
    ) -> Result<(), String> {
        self.splits.clear();
        self.leaves.clear();
        self.ahead.clear();
        self.ahead.push(root as u32);
        while let Some(node) = self.ahead.pop() {
            let place = node as usize;
            if std::mem::replace(&mut self.seen[place], true) {
                return Err(format!("node {node} is reached twice"));
            }
            match next(place)? {
                None => {
                    self.numbers[place] = self.leaves.len() as u32;
                    self.leaves.push(node);
                }
                Some((on_true, on_false)) => {
                    self.numbers[place] = self.splits.len() as u32;
                    self.splits.push((node, on_true as u32, on_false as u32));
                    self.ahead.extend([on_false as u32, on_true as u32]);
                }
            }
        }
        Ok(())
    }

    /// The tree that was walked. `split` says whether yes is right; `leaf` gives what a leaf adds: (output, weight).
    fn tree<W: Iterator<Item = (i32, f64)>>(
        &self,
        outputs: usize,
        split: impl Fn(usize) -> Result<(Split, bool), String>,
        leaf: impl Fn(usize) -> W,
    ) -> Result<Tree, String> {
        let mut splits = Vec::with_capacity(self.splits.len());
        for &(node, on_true, on_false) in &self.splits {
            let (mut made, is_opposite) = split(node as usize)?;
            let (left, right) = if is_opposite { (on_false, on_true) } else { (on_true, on_false) };
            (made.left, made.right) = (self.child(left), self.child(right));
            splits.push(made);
        }
        let (mut weights, mut first, mut same) = (0, None, true);
        for &node in &self.leaves {
            let mut own = 0;
            for (output, _) in leaf(node as usize) {
                let inside = usize::try_from(output).is_ok_and(|output| output < outputs);
                if !inside {
                    return Err(format!("a weight of output {output}, of {outputs}"));
                }
                own += 1;
                same &= *first.get_or_insert(output) == output;
            }
            same &= own == 1;
            weights += own;
            if own == 0 {
                return Err(format!("leaf {node} has no weight"));
            }
        }
        let single = same.then_some(first).flatten().and_then(|output| u32::try_from(output).ok());
        let width = if single.is_some() { 1 } else { outputs };
        if self.leaves.len().saturating_mul(width) > weights * GROWTH_MAX {
            return Err(format!("{weights} weights of {} leaves for {outputs} outputs", self.leaves.len()));
        }
        let mut values = vec![0.0; self.leaves.len() * width];
        let mut named = vec![false; width];
        for (number, &node) in self.leaves.iter().enumerate() {
            named.fill(false);
            for (output, weight) in leaf(node as usize) {
                let place = if width == 1 { 0 } else { usize::try_from(output).unwrap_or(0) };
                if std::mem::replace(&mut named[place], true) {
                    return Err(format!("leaf {node} adds twice to output {output}"));
                }
                values[number * width + place] = weight;
            }
        }
        let leaves = if single.is_some() { Leaves::Scalar(values) } else { Leaves::Vector(values) };
        Ok(Tree { output: single.unwrap_or(0), weight: 1.0, splits, leaves, sets: Vec::new() })
    }

    fn child(&self, node: u32) -> Child {
        let number = self.numbers[node as usize];
        let is_leaf = self.leaves.get(number as usize) == Some(&node);
        if is_leaf { Child::Leaf(number) } else { Child::Split(number) }
    }
}
