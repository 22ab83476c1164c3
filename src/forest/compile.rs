//! A [`Forest`] in, a [`Compiled`] out: columns, flat nodes and values in the layout of the kernel that fits the model.
//!
//! A tree's nodes lie level by level, a split's two children side by side, so that a node stores one distance and "no"
//! is one node further than "yes". A leaf is a node that leads to itself.

use super::column::{Columns, Planner, Question, STRIDE};
use super::kernel::{Kernel, LeafParts, LeafValues, Linear, NO_SET, Program, Set, Sets, Special, TreeHead, WideNode};
use super::score::{Compiled, Sum, Sums};
use super::{Body, CategoryRule, CategorySet, Child, Float, Forest, ForestParts, Leaves, Split, Test, Tree};

impl Forest {
    /// Lays the forest out for rows of a float type. Takes time and memory linear in the forest.
    ///
    /// A model whose library compares f64 and that is compiled for f32 rows takes no f64 rows; every other pair works.
    pub fn compile(&self, rows: Float) -> Compiled {
        self.lay_out(rows, false)
    }

    /// The same with each leaf in 16 bits: a tree's are whole multiples of its greatest leaf by 32,767. Decisions stay as they
    /// are; a tree's share of a sum moves by 1/65,534 of its greatest leaf at the most. Linear leaves, and all leaves of a
    /// model that has an infinite one, stay as they are.
    pub fn compile_quantized(&self, rows: Float) -> Compiled {
        self.lay_out(rows, true)
    }

    fn lay_out(&self, rows: Float, quantize: bool) -> Compiled {
        let parts = self.parts();
        let (columns, sums) = match parts.sum_type {
            Float::F32 => {
                let (columns, kernel) = compile_body::<f32>(parts, rows, quantize);
                (columns, Sums::F32(kernel))
            }
            Float::F64 => {
                let (columns, kernel) = compile_body::<f64>(parts, rows, quantize);
                (columns, Sums::F64(kernel))
            }
        };
        Compiled::new(self, rows, columns, sums)
    }
}

fn compile_body<S: Sum>(parts: &ForestParts, rows: Float, quantize: bool) -> (Columns, Kernel<S>) {
    match &parts.body {
        Body::Trees(trees) => compile_trees(parts, trees, rows, quantize),
        Body::Linear { weights, bias } => {
            let start =
                bias.iter().zip(&parts.base).map(|(&bias, &base)| S::from_f64(bias) + S::from_f64(base)).collect();
            let weights = weights.iter().map(|&weight| S::from_f64(weight)).collect();
            (Planner::new(parts, rows).finish(), Kernel::Linear(Linear { weights, start }))
        }
    }
}

/// A split's question, its feature resolved to a column.
enum Asked {
    Number(Question),
    Category { column: u32, set: u32 },
}

fn compile_trees<S: Sum>(parts: &ForestParts, trees: &[Tree], rows: Float, quantize: bool) -> (Columns, Kernel<S>) {
    let mut planner = Planner::new(parts, rows);
    let mut sets = Sets::default();
    let mut asked = Vec::with_capacity(trees.iter().map(|tree| tree.splits.len()).sum());
    for tree in trees {
        let places: Vec<_> = tree.sets.iter().map(|set| sets.store(set)).collect();
        asked.extend(tree.splits.iter().map(|split| ask(split, &places, &mut planner, &mut sets)));
    }
    let columns = planner.finish();
    let mut layout = Layout::new(parts, &columns, sets, (trees.len(), asked.len()));
    let mut rest = &asked[..];
    for tree in trees {
        let (own, others) = rest.split_at(tree.splits.len());
        layout.add(tree, own);
        rest = others;
    }
    let kernel = layout.finish(quantize);
    (columns, kernel)
}

fn ask(split: &Split, places: &[(u32, u32, bool)], planner: &mut Planner, sets: &mut Sets) -> Asked {
    match split.test {
        Test::Number { threshold, comparison, missing } => {
            Asked::Number(planner.number(split.feature, split.default_left, (threshold, comparison, missing)))
        }
        Test::Equal { value } => Asked::Number(planner.equal(split.feature, split.default_left, value)),
        Test::Category { set, rule } => {
            let (start, count, is_sorted) = places[set as usize];
            let holds_left = match rule {
                CategoryRule::XGBoost => false,
                CategoryRule::LightGBM => true,
                CategoryRule::Treelite { holds_left } => holds_left,
            };
            let set = sets.push(Set { start, count, is_sorted, holds_left, missing_left: split.default_left });
            Asked::Category { column: planner.category(split.feature, rule), set }
        }
    }
}

/// The nodes as they grow.
struct Layout<'a, S> {
    columns: &'a Columns,
    outputs: u32,
    nodes: Vec<WideNode>,
    values: Vec<S>,
    trees: Vec<TreeHead>,
    special: Vec<Special<S>>,
    sets: Sets,
    queue: Vec<Child>,
}

impl<'a, S: Sum> Layout<'a, S> {
    fn new(parts: &ForestParts, columns: &'a Columns, sets: Sets, (trees_count, asked_count): (usize, usize)) -> Self {
        let count = 2 * asked_count + trees_count;
        let (nodes, values, queue) = (Vec::with_capacity(count), Vec::with_capacity(count), Vec::new());
        Self { columns, outputs: parts.outputs, nodes, values, trees: Vec::new(), special: Vec::new(), sets, queue }
    }

    #[expect(clippy::cast_possible_truncation, reason = "LIMITS keeps nodes, columns and depth below 2^32")]
    fn add(&mut self, tree: &Tree, asked: &[Asked]) {
        let root = self.nodes.len() as u32;
        let leaf_column = (self.columns.count() * STRIDE) as u32;
        let weight = S::from_f64(tree.weight);
        let (mut depth, mut shallow) = (0, u32::MAX);
        self.queue.clear();
        self.queue.push(if tree.splits.is_empty() { Child::Leaf(0) } else { Child::Split(0) });
        let (mut place, mut level_end) = (0, 1);
        while let Some(&child) = self.queue.get(place) {
            if place == level_end {
                depth += 1;
                level_end = self.queue.len();
            }
            match child {
                Child::Split(split) => {
                    let delta = (self.queue.len() - place) as u32;
                    self.nodes.push(node(self.columns, &asked[split as usize], delta));
                    self.values.push(S::from_f64(0.0));
                    self.queue.extend([tree.splits[split as usize].left, tree.splits[split as usize].right]);
                }
                Child::Leaf(leaf) => {
                    shallow = shallow.min(depth);
                    // Anything but NaN will do as a threshold here, so the leaf's index goes there.
                    let threshold = f32::from_bits(leaf);
                    self.nodes.push(WideNode { threshold, column: leaf_column, delta: 0, set: NO_SET });
                    self.values.push(match &tree.leaves {
                        Leaves::Scalar(values) => S::from_f64(values[leaf as usize]) * weight,
                        Leaves::Vector(_) | Leaves::Linear(_) => S::from_f64(0.0),
                    });
                }
            }
            place += 1;
        }
        self.trees.push(TreeHead { root, depth, shallow, output: tree.output });
        self.special.push(match &tree.leaves {
            Leaves::Scalar(_) => Special::Scalar,
            Leaves::Vector(values) => {
                Special::Vector(values.iter().map(|&value| S::from_f64(value) * weight).collect())
            }
            Leaves::Linear(leaves) => Special::Linear { leaves: (**leaves).clone(), weight },
        });
    }

    fn finish(mut self, quantize: bool) -> Kernel<S> {
        let mut narrow = Vec::with_capacity(self.nodes.len());
        narrow.extend(self.nodes.iter().map_while(|&node| WideNode::narrow(node)));
        if self.special.iter().all(|special| matches!(special, Special::Scalar)) {
            self.special.clear();
        }
        let Self { columns, outputs, nodes, values, trees, special, sets, .. } = self;
        let columns = columns.count() + 1;
        let (values, special) =
            if quantize { quantized(values, special, &trees) } else { (LeafValues::Full(values), special) };
        let leaves = LeafParts { values, special, outputs: outputs as usize };
        if narrow.len() == nodes.len() {
            Kernel::Narrow(Program::new(narrow, trees, leaves, sets, columns))
        } else {
            Kernel::Wide(Program::new(nodes, trees, leaves, sets, columns))
        }
    }
}

/// Leaves in 16 bits, unless one is infinite or none.
fn quantized<S: Sum>(values: Vec<S>, special: Vec<Special<S>>, trees: &[TreeHead]) -> (LeafValues<S>, Vec<Special<S>>) {
    let is_finite = |values: &[S]| values.iter().all(|value| value.to_f64().is_finite());
    let all_finite = is_finite(&values)
        && special.iter().all(|special| !matches!(special, Special::Vector(values) if !is_finite(values)));
    if !all_finite {
        return (LeafValues::Full(values), special);
    }
    let ends = trees.iter().skip(1).map(|tree| tree.root as usize).chain([values.len()]);
    let (mut numbers, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(trees.len()));
    for (tree, end) in trees.iter().zip(ends) {
        scales.push(scaled(&values[tree.root as usize..end], &mut numbers));
    }
    let special = special.into_iter().map(|special| match special {
        Special::Vector(values) => {
            let mut numbers = Vec::with_capacity(values.len());
            let scale = scaled(&values, &mut numbers);
            Special::ScaledVector(numbers, scale)
        }
        other => other,
    });
    (LeafValues::Scaled { values: numbers, scales }, special.collect())
}

/// Appends each value as the nearest multiple of the scale, and gives that.
fn scaled<S: Sum>(values: &[S], numbers: &mut Vec<i16>) -> S {
    let greatest = values.iter().map(|value| value.to_f64().abs()).fold(0.0, f64::max);
    // In the type that sums are taken in, so that what is rounded here is what is added there.
    let scale = S::from_f64(greatest / f64::from(i16::MAX));
    let unit = if scale.to_f64() > 0.0 { scale.to_f64() } else { 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "rounded, and at most 32,767 but for the scale's own rounding")]
    let number = |value: &S| (value.to_f64() / unit).round().clamp(-32_767.0, 32_767.0) as i16;
    numbers.extend(values.iter().map(number));
    scale
}

#[expect(clippy::cast_possible_truncation, reason = "the stride is 8")]
fn node(columns: &Columns, asked: &Asked, delta: u32) -> WideNode {
    match *asked {
        Asked::Number(question) => WideNode {
            threshold: columns.threshold(question),
            column: question.column * STRIDE as u32,
            delta,
            set: NO_SET,
        },
        Asked::Category { column, set } => WideNode { threshold: 0.0, column: column * STRIDE as u32, delta, set },
    }
}

impl Sets {
    /// Keeps a set's words or numbers: where they start, how many, and whether they are numbers.
    #[expect(clippy::cast_possible_truncation, reason = "a file holds fewer than 2^32 categories")]
    fn store(&mut self, set: &CategorySet) -> (u32, u32, bool) {
        let start = self.words.len() as u32;
        let is_sorted = match set {
            CategorySet::Bits(words) => {
                self.words.extend_from_slice(words);
                false
            }
            CategorySet::Sorted(ids) => {
                let words = ids.last().map_or(0, |&id| id as usize / 32 + 1);
                // Bits answer at once, but one huge number must not cost megabytes.
                let is_sorted = words > 2 * ids.len() + 2;
                if is_sorted {
                    self.words.extend_from_slice(ids);
                } else {
                    self.words.resize(self.words.len() + words, 0);
                    for &id in ids {
                        self.words[start as usize + id as usize / 32] |= 1 << (id % 32);
                    }
                }
                is_sorted
            }
        };
        (start, self.words.len() as u32 - start, is_sorted)
    }
}
