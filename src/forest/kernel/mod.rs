//! Columns in, sums out. A kernel is chosen when a forest is compiled; each is tested against the plain walk of the
//! trees. New ones (for a CPU's vector instructions) are new variants of [`Kernel`], built from the same nodes.

mod node;
#[expect(unsafe_code, reason = "a bounds check at every step costs a third of the speed")]
mod scalar;

pub(super) use node::{NO_SET, NarrowNode, Set, Sets, TreeHead, WideNode};

use super::LinearLeaves;
use super::column::{Columns, Value};
use super::score::{Scratch, Sum};

/// How a compiled model is summed.
#[derive(Clone, Debug)]
pub(super) enum Kernel<S> {
    /// Trees of numbers, at most 65,535 columns: 8 bytes a node.
    Narrow(Program<NarrowNode, S>),
    /// Everything else: 16 bytes a node.
    Wide(Program<WideNode, S>),
    /// XGBoost's linear booster.
    Linear(Linear<S>),
}

/// Flat trees.
#[derive(Clone, Debug)]
pub(super) struct Program<N, S> {
    nodes: Vec<N>,
    /// A leaf's value at its node's place.
    values: LeafValues<S>,
    trees: Vec<TreeHead>,
    /// The trees by groups that one row walks together.
    bundles: Vec<scalar::Bundle>,
    /// Steps to the nearest leaf of all. The same for every tree, so that the CPU can predict the loop's end.
    shallow: u32,
    /// One a tree, or none at all when all trees have scalar leaves.
    special: Vec<Special<S>>,
    sets: Sets,
    outputs: usize,
    /// Columns, the one for leaves included.
    columns: usize,
}

/// One a node; what splits have there is not looked at.
#[derive(Clone, Debug)]
pub(super) enum LeafValues<S> {
    /// As they are.
    Full(Vec<S>),
    /// In 16 bits: a leaf adds its number times its tree's scale.
    Scaled { values: Vec<i16>, scales: Vec<S> },
}

/// What leaves add.
pub(super) struct LeafParts<S> {
    pub(super) values: LeafValues<S>,
    /// One a tree, or none at all.
    pub(super) special: Vec<Special<S>>,
    pub(super) outputs: usize,
}

/// Leaves that are more than a value.
#[derive(Clone, Debug)]
pub(super) enum Special<S> {
    /// They are none.
    Scalar,
    /// `outputs` values a leaf.
    Vector(Vec<S>),
    /// The same in 16 bits, times the scale.
    ScaledVector(Vec<i16>, S),
    /// A linear model a leaf.
    Linear { leaves: LinearLeaves, weight: S },
}

/// Weights of `features * outputs` and what each output's sum starts from.
#[derive(Clone, Debug)]
pub(super) struct Linear<S> {
    pub(super) weights: Vec<S>,
    pub(super) start: Vec<S>,
}

/// Some rows to be summed.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, V> {
    pub(super) values: &'a [V],
    pub(super) features: usize,
    pub(super) columns: &'a Columns,
}

impl<S: Sum> Kernel<S> {
    /// Rows that [`Kernel::sum`] takes at once: enough to keep a tree in the first cache while they pass.
    pub(super) const ROWS_MAX: usize = 64;

    /// Adds every tree's leaf to each row's sums. `sums` has `outputs` a row and holds the base.
    pub(super) fn sum<V: Value>(&self, rows: Rows<'_, V>, scratch: &mut Scratch, sums: &mut [S]) {
        match self {
            Self::Narrow(program) => program.sum(rows, scratch, sums),
            Self::Wide(program) => program.sum(rows, scratch, sums),
            Self::Linear(linear) => linear.sum(rows, sums),
        }
    }

    /// Whether some leaves are kept in 16 bits.
    pub(super) fn is_quantized(&self) -> bool {
        match self {
            Self::Narrow(program) => program.is_quantized(),
            Self::Wide(program) => program.is_quantized(),
            Self::Linear(_) => false,
        }
    }

    /// Whether there are no trees.
    pub(super) fn is_linear(&self) -> bool {
        matches!(self, Self::Linear(_))
    }

    /// Bytes that scoring reads.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Narrow(program) => program.bytes(),
            Self::Wide(program) => program.bytes(),
            Self::Linear(linear) => size_of_val(&linear.weights[..]),
        }
    }
}

impl<N, S> Program<N, S> {
    fn bytes(&self) -> usize {
        let values = match &self.values {
            LeafValues::Full(values) => size_of_val(&values[..]),
            LeafValues::Scaled { values, scales } => size_of_val(&values[..]) + size_of_val(&scales[..]),
        };
        let vectors = self.special.iter().map(|special| match special {
            Special::Vector(values) => size_of_val(&values[..]),
            Special::ScaledVector(values, _) => size_of_val(&values[..]),
            Special::Scalar | Special::Linear { .. } => 0,
        });
        size_of_val(&self.nodes[..]) + values + vectors.sum::<usize>() + size_of_val(&self.sets.words[..])
    }

    /// Whether some leaves are kept in 16 bits.
    fn is_quantized(&self) -> bool {
        let is_scaled = |special: &Special<S>| matches!(special, Special::ScaledVector(..));
        matches!(self.values, LeafValues::Scaled { .. }) || self.special.iter().any(is_scaled)
    }
}

impl<S: Sum> Linear<S> {
    fn sum<V: Value>(&self, rows: Rows<'_, V>, sums: &mut [S]) {
        let outputs = self.start.len();
        for (row, sums) in rows.values.chunks_exact(rows.features).zip(sums.chunks_exact_mut(outputs)) {
            sums.copy_from_slice(&self.start);
            for (&value, weights) in row.iter().zip(self.weights.chunks_exact(outputs)) {
                let value = S::from_f64(value.to_f64());
                if value.is_nan() {
                    continue;
                }
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
        }
    }
}
