//! A checkpoint's tree in, a [`Tree`] out. Version 4 keeps an array for each field of a node, version 3 one array of C
//! structures; both are read in place. The tree is walked from its root, so what that does not lead to falls away.

use super::bytes::{File, View, error_at};
use super::{Leaf, Numbers};
use crate::forest::read::ReadError;
use crate::forest::{CategoryRule, CategorySet, Child, Comparison, Leaves, Missing, Split, Test, Tree};

/// Bytes of the smallest tree of each version, with one node.
pub(super) const V4_BYTES_MIN: usize = 230;
pub(super) const V3_BYTES_MIN: usize = 130;

const UNSEEN: u32 = u32::MAX;

/// A tree's fields where they are in the file, by node.
pub(super) struct Nodes<'a> {
    /// Where the tree starts.
    at: usize,
    count: usize,
    numbers: Numbers,
    /// 2 for a categorical split.
    kinds: View<'a>,
    left: View<'a>,
    right: View<'a>,
    /// The lower 31 bits.
    features: View<'a>,
    /// Set in `default_left_bits`.
    default_left: View<'a>,
    default_left_bits: u8,
    leaf_values: View<'a>,
    thresholds: View<'a>,
    operators: View<'a>,
    lists_are_right: View<'a>,
    vectors: Segments<'a>,
    categories: Segments<'a>,
}

/// Parts of one array, by node: empty, or each node's own.
struct Segments<'a> {
    what: &'static str,
    values: View<'a>,
    starts: View<'a>,
    ends: View<'a>,
}

impl Segments<'_> {
    fn of(&self, node: usize) -> Result<std::ops::Range<usize>, String> {
        let (start, end) = (self.starts.u64(node), self.ends.u64(node));
        let inside = start <= end && (start == end || end <= self.values.count as u64);
        if !inside {
            let (what, held) = (self.what, self.values.count);
            return Err(format!("its {what} is {start} to {end} of {held} numbers"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "a range that is not empty is inside the array")]
        let range = if start == end { 0..0 } else { start as usize..end as usize };
        Ok(range)
    }
}

/// Reads a tree of version 4.
pub(super) fn read_v4<'a>(file: &mut File<'a>, numbers: Numbers) -> Result<Nodes<'a>, ReadError> {
    let at = file.at();
    let count = read_count(file)?;
    let size = numbers.size();
    let nodes = Nodes {
        at,
        count,
        numbers,
        kinds: file.array_of("node_type", 1, count)?,
        left: file.array_of("cleft", 4, count)?,
        right: file.array_of("cright", 4, count)?,
        features: file.array_of("split_index", 4, count)?,
        default_left: file.array_of("default_left", 1, count)?,
        default_left_bits: 0xff,
        leaf_values: file.array_of("leaf_value", size, count)?,
        thresholds: file.array_of("threshold", size, count)?,
        operators: file.array_of("cmp", 1, count)?,
        lists_are_right: file.array_of("category_list_right_child", 1, count)?,
        vectors: Segments {
            what: "leaf vector",
            values: file.array(size)?,
            starts: file.array_of("leaf_vector_begin", 8, count)?,
            ends: file.array_of("leaf_vector_end", 8, count)?,
        },
        categories: Segments {
            what: "category list",
            values: file.array(4)?,
            starts: file.array_of("category_list_begin", 8, count)?,
            ends: file.array_of("category_list_end", 8, count)?,
        },
    };
    // Statistics of training: data_count, sum_hess and gain, each with a flag.
    for size in [8, 1, 8, 1, 8, 1] {
        file.array(size)?;
    }
    file.skip_optional("tree")?;
    file.skip_optional("node")?;
    Ok(nodes)
}

/// Reads a tree of version 3.9. Its node is `cleft, cright, sindex` (i32), `info` (a leaf's value or a threshold), three
/// statistics of 8 bytes, then six bytes, padded to 8.
pub(super) fn read_v3<'a>(file: &mut File<'a>, numbers: Numbers) -> Result<Nodes<'a>, ReadError> {
    let at = file.at();
    let count = read_count(file)?;
    let (info, flags, size) = match numbers {
        Numbers::F32 => (12, 40, 48),
        Numbers::F64 => (16, 48, 56),
    };
    let nodes = file.array_of("nodes", size, count)?;
    let vectors = Segments {
        what: "leaf vector",
        values: file.array(numbers.size())?,
        starts: file.array_of("leaf_vector_begin", 8, count)?,
        ends: file.array_of("leaf_vector_end", 8, count)?,
    };
    let lists = file.array(4)?;
    let (starts, ends) = file.array_of("category offsets", 8, count + 1)?.pairs();
    let nodes = Nodes {
        at,
        count,
        numbers,
        kinds: nodes.field(flags),
        left: nodes,
        right: nodes.field(4),
        features: nodes.field(8),
        default_left: nodes.field(11),
        default_left_bits: 0x80,
        leaf_values: nodes.field(info),
        thresholds: nodes.field(info),
        operators: nodes.field(flags + 1),
        lists_are_right: nodes.field(flags + 5),
        vectors,
        categories: Segments { what: "category list", values: lists, starts, ends },
    };
    for what in ["tree", "node"] {
        if file.i32()? != 0 {
            return Err(file.error(format!("optional fields of a {what}, which version 3 does not have")));
        }
    }
    Ok(nodes)
}

fn read_count(file: &mut File<'_>) -> Result<usize, ReadError> {
    let start = file.at();
    let count = file.i32()?;
    let _has_categorical_split = file.u8()?;
    match usize::try_from(count) {
        Ok(count @ 1..) => Ok(count),
        _ => Err(error_at(start, format!("a tree of {count} nodes"))),
    }
}

/// What the walk of a tree needs, kept from tree to tree.
#[derive(Default)]
pub(super) struct Walk {
    /// Each node's number among splits or leaves, or [`UNSEEN`].
    numbers: Vec<u32>,
    ahead: Vec<u32>,
}

impl Nodes<'_> {
    /// Makes a tree whose leaves add what `leaf` says to the outputs that it names.
    pub(super) fn tree(&self, leaf: &Leaf, walk: &mut Walk) -> Result<Tree, ReadError> {
        self.build(leaf, walk).map_err(|reason| error_at(self.at, format!("the tree that starts here: {reason}")))
    }

    fn build(&self, leaf: &Leaf, walk: &mut Walk) -> Result<Tree, String> {
        let (splits, leaves) = self.number(walk)?;
        let nowhere = Child::Leaf(0);
        let blank = Test::Equal { value: 0.0 };
        let blank = Split { feature: 0, default_left: false, test: blank, left: nowhere, right: nowhere };
        let mut tree = Tree {
            output: leaf.first,
            weight: 1.0,
            splits: vec![blank; splits],
            leaves: Leaves::Scalar(Vec::new()),
            sets: Vec::new(),
        };
        // The file has so many numbers, or the vectors overlap.
        let held = if leaf.is_vector() { self.vectors.values.count } else { leaves };
        if leaves.checked_mul(leaf.stored).is_none_or(|wanted| wanted > held) {
            return Err(format!("{held} leaf values for {leaves} leaves of {}", leaf.stored));
        }
        let mut values = vec![0.0; leaves * leaf.width];
        let mut categories = 0;
        for node in 0..self.count {
            let number = walk.numbers[node];
            if number == UNSEEN {
                continue;
            }
            let at = |reason: String| format!("node {node}: {reason}");
            if self.left.i32(node) == -1 {
                let place = number as usize * leaf.width;
                self.leaf(node, leaf, &mut values[place..place + leaf.width]).map_err(at)?;
            } else {
                let split = self.split(node, walk, &mut tree.sets, &mut categories).map_err(at)?;
                tree.splits[number as usize] = split;
            }
        }
        tree.leaves = if leaf.width > 1 { Leaves::Vector(values) } else { Leaves::Scalar(values) };
        Ok(tree)
    }

    /// Numbers the splits and the leaves that the root leads to, each from 0, the root first. Gives how many.
    fn number(&self, walk: &mut Walk) -> Result<(usize, usize), String> {
        walk.numbers.clear();
        walk.numbers.resize(self.count, UNSEEN);
        walk.ahead.clear();
        walk.ahead.push(0);
        let (mut splits, mut leaves) = (0, 0);
        while let Some(node) = walk.ahead.pop() {
            let place = node as usize;
            if walk.numbers[place] != UNSEEN {
                return Err(format!("node {node} is reached twice: the file is damaged"));
            }
            let is_leaf = self.left.i32(place) == -1;
            let next = if is_leaf { &mut leaves } else { &mut splits };
            walk.numbers[place] = *next;
            *next += 1;
            if !is_leaf {
                // Left is walked first, so that neighbours in the walk are neighbours in memory.
                for child in [self.right.i32(place), self.left.i32(place)] {
                    let inside = u32::try_from(child).ok().filter(|&child| (child as usize) < self.count);
                    let child = inside.ok_or_else(|| format!("node {node} has the child {child}, which is none"))?;
                    walk.ahead.push(child);
                }
            }
        }
        Ok((splits as usize, leaves as usize))
    }

    fn leaf(&self, node: usize, leaf: &Leaf, into: &mut [f64]) -> Result<(), String> {
        let range = self.vectors.of(node)?;
        if range.is_empty() && !leaf.is_vector() {
            into[0] = self.numbers.at(self.leaf_values, node);
            return Ok(());
        }
        if range.len() != leaf.stored {
            return Err(format!("a leaf of {} values, the model's have {}", range.len(), leaf.stored));
        }
        let values = range.map(|place| self.numbers.at(self.vectors.values, place));
        for (place, value) in values.enumerate() {
            if let Some(output) = leaf.output(place) {
                into[output] = value;
            }
        }
        Ok(())
    }

    fn split(
        &self,
        node: usize,
        walk: &Walk,
        sets: &mut Vec<CategorySet>,
        categories: &mut usize,
    ) -> Result<Split, String> {
        let child = |child: i32| {
            // In range: `number` has been there.
            let child = child.unsigned_abs() as usize;
            let number = walk.numbers[child];
            if self.left.i32(child) == -1 { Child::Leaf(number) } else { Child::Split(number) }
        };
        let (left, right) = (child(self.left.i32(node)), child(self.right.i32(node)));
        let default_left = self.default_left.u8(node) & self.default_left_bits != 0;
        let feature = self.features.u32(node) & i32::MAX.cast_unsigned();
        let split = |test| Split { feature, default_left, test, left, right };
        match self.kinds.u8(node) {
            1 => number_test(self.numbers.at(self.thresholds, node), self.operators.u8(node), split),
            2 => {
                let range = self.categories.of(node)?;
                *categories += range.len();
                if *categories > self.categories.values.count {
                    return Err("its category list is another node's too: the file is damaged".to_owned());
                }
                let set = u32::try_from(sets.len()).map_err(|_| "too many category lists")?;
                sets.push(CategorySet::from_ids(range.map(|place| self.categories.values.u32(place)).collect()));
                let holds_left = self.lists_are_right.u8(node) == 0;
                Ok(split(Test::Category { set, rule: CategoryRule::Treelite { holds_left } }))
            }
            other => Err(format!("a split of kind {other}, which is neither numerical (1) nor categorical (2)")),
        }
    }
}

/// The split of a comparison. Where the library's test is the opposite of one of ours, the sides are exchanged.
fn number_test(threshold: f64, operator: u8, split: impl Fn(Test) -> Split) -> Result<Split, String> {
    const EQUAL: u8 = 1;
    let (comparison, is_opposite) = match operator {
        2 => (Comparison::Less, false),
        EQUAL | 3 => (Comparison::AtMost, false),
        4 => (Comparison::AtMost, true),
        5 => (Comparison::Less, true),
        other => return Err(format!("the comparison {other} is none of ==, <, <=, > and >= (1 to 5)")),
    };
    if threshold.is_nan() {
        // Nothing compares with NaN, nor is below -infinity.
        let (threshold, comparison) = (f64::NEG_INFINITY, Comparison::Less);
        return Ok(split(Test::Number { threshold, comparison, missing: Missing::NaN }));
    }
    if operator == EQUAL {
        return Ok(split(Test::Equal { value: threshold }));
    }
    let split = split(Test::Number { threshold, comparison, missing: Missing::NaN });
    Ok(if is_opposite {
        Split { left: split.right, right: split.left, default_left: !split.default_left, ..split }
    } else {
        split
    })
}
