//! A tree's node arrays in, a [`Tree`] out. XGBoost numbers splits and leaves together, and leaves what pruning cut off
//! in the arrays; here the tree is walked from its root, so what is not part of it falls away.

use crate::forest::{CategoryRule, CategorySet, Child, Comparison, Leaves, Missing, Split, Test, Tree};

/// The arrays of one tree, kept from tree to tree.
#[derive(Default)]
pub(super) struct Nodes {
    /// `num_nodes`: what each array must have.
    pub(super) count: usize,
    /// Numbers in a leaf; more than 1 for vector leaves.
    pub(super) leaf_size: usize,
    pub(super) left: Vec<i32>,
    pub(super) right: Vec<i32>,
    pub(super) features: Vec<i32>,
    /// A split's threshold or a leaf's value.
    pub(super) conditions: Vec<f32>,
    pub(super) default_left: Vec<bool>,
    /// A vector leaf's values: of leaf number `right[node]` if `leaves_are_numbered`, else of the node.
    pub(super) leaf_values: Vec<f32>,
    pub(super) leaves_are_numbered: bool,
    /// 1 for a split on a category; empty when there is none.
    pub(super) kinds: Vec<i32>,
    pub(super) categories: Categories,
    /// Each node's new number, or [`UNSEEN`].
    numbers: Vec<u32>,
    /// Nodes still to be walked.
    ahead: Vec<u32>,
}

/// The sets of a tree's categorical splits.
#[derive(Default)]
pub(super) struct Categories {
    /// The nodes that have one, ascending.
    pub(super) nodes: Vec<i32>,
    /// Where each set starts in `values`.
    pub(super) starts: Vec<i32>,
    pub(super) sizes: Vec<i32>,
    pub(super) values: Vec<i32>,
}

const UNSEEN: u32 = u32::MAX;

impl Nodes {
    /// Checks the arrays and makes a tree of them.
    pub(super) fn tree(&mut self) -> Result<Tree, String> {
        self.check_lengths()?;
        self.number()?;
        let splits = self.numbers.iter().zip(&self.left).filter(|&(&number, &left)| number != UNSEEN && left != -1);
        let splits = splits.count();
        let seen = self.numbers.iter().filter(|&&number| number != UNSEEN).count();
        let mut tree = Tree {
            output: 0,
            weight: 1.0,
            splits: Vec::with_capacity(splits),
            leaves: Leaves::Scalar(Vec::new()),
            sets: self.categories.sets()?,
        };
        let nowhere = Child::Leaf(0);
        let blank = Test::Number { threshold: 0.0, comparison: Comparison::Less, missing: Missing::NaN };
        let blank = Split { feature: 0, default_left: false, test: blank, left: nowhere, right: nowhere };
        tree.splits.resize(splits, blank);
        let leaves = seen - splits;
        // Each leaf has values of its own: a stated size alone is not believed.
        if self.leaf_size > 1 && leaves.checked_mul(self.leaf_size).is_none_or(|count| count > self.leaf_values.len()) {
            let held = self.leaf_values.len();
            return Err(format!("{held} leaf values for {leaves} leaves of {}: the file is damaged", self.leaf_size));
        }
        let mut values = vec![0.0; leaves * self.leaf_size];
        for node in 0..self.count {
            let number = self.numbers[node];
            if number == UNSEEN {
                continue;
            }
            if self.left[node] == -1 {
                let place = number as usize * self.leaf_size;
                self.leaf(node, &mut values[place..place + self.leaf_size])?;
            } else {
                tree.splits[number as usize] = self.split(node)?;
            }
        }
        tree.leaves = if self.leaf_size > 1 { Leaves::Vector(values) } else { Leaves::Scalar(values) };
        Ok(tree)
    }

    fn check_lengths(&self) -> Result<(), String> {
        let lengths = [
            ("left_children", self.left.len()),
            ("right_children", self.right.len()),
            ("split_indices", self.features.len()),
            ("split_conditions", self.conditions.len()),
            ("default_left", self.default_left.len()),
            ("split_type", if self.kinds.is_empty() { self.count } else { self.kinds.len() }),
        ];
        let expected = self.count;
        if expected == 0 {
            return Err("`num_nodes` is 0: the file is damaged".to_owned());
        }
        match lengths.iter().find(|(_, length)| *length != expected) {
            Some((key, length)) => Err(format!("`{key}` has {length} numbers, expected {expected}")),
            None => Ok(()),
        }
    }

    /// Numbers the splits and the leaves that the root leads to, each from 0, the root first.
    fn number(&mut self) -> Result<(), String> {
        self.numbers.clear();
        self.numbers.resize(self.count, UNSEEN);
        self.ahead.clear();
        self.ahead.push(0);
        let (mut splits, mut leaves) = (0, 0);
        while let Some(node) = self.ahead.pop() {
            let place = node as usize;
            if self.numbers[place] != UNSEEN {
                return Err(format!("node {node} is reached twice: the file is damaged"));
            }
            let next = if self.left[place] == -1 { &mut leaves } else { &mut splits };
            self.numbers[place] = *next;
            *next += 1;
            if self.left[place] != -1 {
                // Left is walked first, so that neighbours in the walk are neighbours in memory.
                for child in [self.right[place], self.left[place]] {
                    let inside = u32::try_from(child).ok().filter(|&child| (child as usize) < self.count);
                    let child = inside.ok_or_else(|| format!("node {node} has the child {child}, which is none"))?;
                    self.ahead.push(child);
                }
            }
        }
        Ok(())
    }

    fn leaf(&self, node: usize, into: &mut [f64]) -> Result<(), String> {
        if self.leaf_size == 1 {
            into[0] = f64::from(self.conditions[node]);
            return Ok(());
        }
        let place = if self.leaves_are_numbered { usize::try_from(self.right[node]).ok() } else { Some(node) };
        let start = place.and_then(|place| place.checked_mul(self.leaf_size));
        let end = start.and_then(|start| start.checked_add(self.leaf_size));
        let values = start.zip(end).and_then(|(start, end)| self.leaf_values.get(start..end));
        let values = values.ok_or_else(|| format!("leaf {node} has no values"))?;
        into.iter_mut().zip(values).for_each(|(into, &value)| *into = f64::from(value));
        Ok(())
    }

    fn split(&self, node: usize) -> Result<Split, String> {
        let feature = u32::try_from(self.features[node]).map_err(|_| format!("node {node} splits on no feature"))?;
        let child = |child: i32| {
            // In range: `number` has been there.
            let child = child.unsigned_abs() as usize;
            let number = self.numbers[child];
            if self.left[child] == -1 { Child::Leaf(number) } else { Child::Split(number) }
        };
        let default_left = self.default_left[node];
        let test = match self.kinds.get(node) {
            None | Some(0) => Test::Number {
                threshold: f64::from(self.conditions[node]),
                comparison: Comparison::Less,
                missing: Missing::NaN,
            },
            Some(1) => {
                let set = self.categories.nodes.binary_search(&i32::try_from(node).unwrap_or(-1));
                let set = set.ok().and_then(|set| u32::try_from(set).ok());
                let set = set.ok_or_else(|| format!("node {node} splits on a category, and has no set of them"))?;
                Test::Category { set, rule: CategoryRule::XGBoost }
            }
            Some(other) => return Err(format!("`split_type` {other} of node {node} is not known")),
        };
        Ok(Split { feature, default_left, test, left: child(self.left[node]), right: child(self.right[node]) })
    }
}

impl Categories {
    /// The sets, each in its own memory. They must lie one behind the other, as XGBoost writes them: else a small file
    /// could ask for much memory.
    fn sets(&self) -> Result<Vec<CategorySet>, String> {
        if self.starts.len() != self.nodes.len() || self.sizes.len() != self.nodes.len() {
            return Err("`categories_nodes`, `categories_segments` and `categories_sizes` differ in length".to_owned());
        }
        if !self.nodes.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err("`categories_nodes` is not in ascending order".to_owned());
        }
        let mut sets = Vec::with_capacity(self.nodes.len());
        let mut next = 0;
        for (&start, &size) in self.starts.iter().zip(&self.sizes) {
            let (start, size) = (usize::try_from(start).ok(), usize::try_from(size).unwrap_or(0));
            let values = start.filter(|&start| start == next && size > 0);
            let values = values.and_then(|start| self.values.get(start..start.checked_add(size)?));
            let values = values.ok_or("`categories_segments` and `categories_sizes` do not follow each other")?;
            next += size;
            let ids = values.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>();
            sets.push(CategorySet::from_ids(ids.map_err(|_| "a category below 0")?));
        }
        Ok(sets)
    }
}
