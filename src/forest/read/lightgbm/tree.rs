//! A tree's lines in, a [`Tree`] out.

use super::lines::{Fields, Lines};
use crate::forest::read::ReadError;
use crate::forest::{
    CategoryRule, CategorySet, Child, Comparison, LIMITS, Leaves, LinearLeaves, Missing, Split, Test, Tree,
};

/// The keys that matter here.
const KEYS: [&str; 15] = [
    "num_leaves",
    "num_cat",
    "leaf_value",
    "is_linear",
    "left_child",
    "right_child",
    "split_feature",
    "threshold",
    "decision_type",
    "cat_boundaries",
    "cat_threshold",
    "leaf_const",
    "num_features",
    "leaf_features",
    "leaf_coeff",
];

/// The shortest text of a tree: its mark, `num_leaves`, `num_cat`, `leaf_value` and an empty line.
const TREE_BYTES_MIN: usize = 43;

/// Reads the trees and the line `end of trees`.
pub(super) fn read_all(lines: &mut Lines<'_>, features: u32) -> Result<Vec<Tree>, ReadError> {
    // Counted first: a tree costs more than ten times its shortest text when the list grows by doubling.
    let rest = lines.rest();
    let marked = rest.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"Tree=")).count();
    let most = marked.min(rest.len() / TREE_BYTES_MIN);
    if most > LIMITS.trees {
        return Err(lines.error(format!("{most} trees; at most {} are read", LIMITS.trees)));
    }
    let mut trees = Vec::with_capacity(most);
    let (mut fields, mut arrays) = (Fields::new(&KEYS), Arrays::default());
    loop {
        match lines.next_line() {
            Some(b"") => {}
            Some(b"end of trees") => return Ok(trees),
            Some(line) if line.starts_with(b"Tree=") => {
                fields.clear();
                read_lines(lines, &mut fields)?;
                let tree = arrays.tree(&fields, lines, features)?;
                trees.push(tree);
            }
            Some(_) => return Err(lines.error("neither a tree nor `end of trees`")),
            None => return Err(lines.error("the line `end of trees` is missing: the file is cut short; save it again")),
        }
    }
}

fn read_lines<'a>(lines: &mut Lines<'a>, fields: &mut Fields<'a, '_>) -> Result<(), ReadError> {
    loop {
        match lines.next_line() {
            None => return Err(lines.error("the file is cut short in a tree")),
            Some(b"") => return Ok(()),
            Some(line) if line.contains(&b'=') => fields.add(line, lines)?,
            Some(_) => return Err(lines.error("a line of a tree without `=`")),
        }
    }
}

/// The lists of one tree, kept from tree to tree.
#[derive(Default)]
struct Arrays {
    left: Vec<i32>,
    right: Vec<i32>,
    features: Vec<u32>,
    thresholds: Vec<f64>,
    decisions: Vec<i8>,
    boundaries: Vec<u32>,
    words: Vec<u32>,
    counts: Vec<u32>,
}

impl Arrays {
    fn tree(&mut self, fields: &Fields<'_, '_>, lines: &Lines<'_>, features: u32) -> Result<Tree, ReadError> {
        let leaves: usize = fields.number("num_leaves", lines)?;
        let sets: usize = fields.number("num_cat", lines)?;
        if leaves == 0 || leaves > LIMITS.leaves {
            return Err(lines.error(format!("`num_leaves` is {leaves}, must be 1 to {}", LIMITS.leaves)));
        }
        let mut values = Vec::new();
        fields.numbers("leaf_value", leaves, lines, &mut values)?;
        let linear = fields.has("is_linear") && fields.number::<i32>("is_linear", lines)? != 0;
        let leaves = if linear {
            Leaves::Linear(Box::new(self.linear(values, fields, lines, features)?))
        } else {
            Leaves::Scalar(values)
        };
        let splits = leaves.count(1) - 1;
        let mut tree = Tree { output: 0, weight: 1.0, splits: Vec::new(), leaves, sets: Vec::new() };
        // A set of its own for each categorical split: empty ones cost more than their text.
        if sets > splits {
            return Err(lines.error(format!("`num_cat` is {sets}, for {splits} splits")));
        }
        if splits > 0 {
            tree.sets = self.sets(sets, fields, lines)?;
            tree.splits = self.splits(splits, sets, fields, lines)?;
        }
        Ok(tree)
    }

    fn splits(
        &mut self,
        count: usize,
        sets: usize,
        fields: &Fields<'_, '_>,
        lines: &Lines<'_>,
    ) -> Result<Vec<Split>, ReadError> {
        fields.numbers("left_child", count, lines, &mut self.left)?;
        fields.numbers("right_child", count, lines, &mut self.right)?;
        fields.numbers("split_feature", count, lines, &mut self.features)?;
        fields.numbers("threshold", count, lines, &mut self.thresholds)?;
        fields.numbers("decision_type", count, lines, &mut self.decisions)?;
        let mut splits = Vec::with_capacity(count);
        for place in 0..count {
            let decision = self.decisions[place].cast_unsigned();
            let threshold = self.thresholds[place];
            let missing = match decision >> 2 & 3 {
                0 => Missing::Never,
                1 => Missing::Zero,
                2 => Missing::NaN,
                _ => return Err(lines.error(format!("`decision_type` {decision} of a split is not known"))),
            };
            let test = if decision & 1 == 0 {
                Test::Number { threshold, comparison: Comparison::AtMost, missing }
            } else {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "checked to be a whole index"
                )]
                let set = (threshold.fract() == 0.0 && threshold >= 0.0 && threshold < sets as f64)
                    .then_some(threshold as u32);
                let set =
                    set.ok_or_else(|| lines.error(format!("a split on the category set {threshold}, of {sets}")))?;
                Test::Category { set, rule: CategoryRule::LightGBM }
            };
            splits.push(Split {
                feature: self.features[place],
                default_left: decision & 2 != 0,
                test,
                left: child(self.left[place]),
                right: child(self.right[place]),
            });
        }
        Ok(splits)
    }

    fn sets(
        &mut self,
        count: usize,
        fields: &Fields<'_, '_>,
        lines: &Lines<'_>,
    ) -> Result<Vec<CategorySet>, ReadError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        fields.numbers("cat_boundaries", count.saturating_add(1), lines, &mut self.boundaries)?;
        let ascending = self.boundaries.windows(2).all(|pair| pair[0] <= pair[1]);
        let last = self.boundaries.last().copied().unwrap_or(0) as usize;
        if !ascending || self.boundaries.first() != Some(&0) {
            return Err(lines.error("`cat_boundaries` do not ascend from 0"));
        }
        fields.numbers("cat_threshold", last, lines, &mut self.words)?;
        let set = |pair: &[u32]| CategorySet::Bits(self.words[pair[0] as usize..pair[1] as usize].to_vec());
        Ok(self.boundaries.windows(2).map(set).collect())
    }

    fn linear(
        &mut self,
        fallbacks: Vec<f64>,
        fields: &Fields<'_, '_>,
        lines: &Lines<'_>,
        features: u32,
    ) -> Result<LinearLeaves, ReadError> {
        let count = fallbacks.len();
        let mut leaves = LinearLeaves { fallbacks, ..LinearLeaves::default() };
        fields.numbers("leaf_const", count, lines, &mut leaves.constants)?;
        fields.numbers("num_features", count, lines, &mut self.counts)?;
        leaves.starts.reserve_exact(count + 1);
        leaves.starts.push(0);
        let mut total: u32 = 0;
        for &terms in &self.counts {
            total = total.checked_add(terms).ok_or_else(|| lines.error("`num_features` are too many"))?;
            leaves.starts.push(total);
        }
        fields.numbers("leaf_features", total as usize, lines, &mut leaves.features)?;
        fields.numbers("leaf_coeff", total as usize, lines, &mut leaves.coefficients)?;
        match leaves.features.iter().find(|&&feature| feature >= features) {
            Some(feature) => Err(lines.error(format!("`leaf_features` has {feature}, of {features} features"))),
            None => Ok(leaves),
        }
    }
}

/// `LightGBM` numbers leaf i as the complement of i.
fn child(child: i32) -> Child {
    if child < 0 { Child::Leaf((!child).cast_unsigned()) } else { Child::Split(child.cast_unsigned()) }
}
