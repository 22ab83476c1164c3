//! The kernel for any CPU. One walk waits for memory at every step, so eight go abreast: eight rows through one tree, or,
//! when there are too few rows, one row through eight trees. Either way a row's leaves are added tree by tree.
//!
//! A walk that has reached its leaf steps on the spot, which spares a branch that no CPU can predict.

use super::node::{Node, Sets};
use super::{LeafParts, LeafValues, Program, Rows, Special, TreeHead};
use crate::forest::column::{STRIDE, Value};
use crate::forest::score::{Scratch, Sum};

/// Walks that go abreast.
const LANES: usize = STRIDE;

/// From so many rows on, a group that is not full is filled up with copies of its last row. Fewer go one by one.
const GROUP_MIN: usize = 7;

/// Neighbouring trees that one row walks together. The last bundle is filled up with its last tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundle {
    roots: [u32; LANES],
    depth: u32,
}

impl Bundle {
    fn new(trees: &[TreeHead]) -> Self {
        Self {
            roots: std::array::from_fn(|lane| trees[lane.min(trees.len() - 1)].root),
            depth: trees.iter().map(|tree| tree.depth).max().unwrap_or(0),
        }
    }
}

impl<N: Node, S: Sum> Program<N, S> {
    /// # Panics
    /// If a walk could leave the nodes or the columns, which would be a bug of the compile step.
    pub(in crate::forest) fn new(
        nodes: Vec<N>,
        trees: Vec<TreeHead>,
        leaves: LeafParts<S>,
        sets: Sets,
        columns: usize,
    ) -> Self {
        let LeafParts { values, special, outputs } = leaves;
        let is_sound = |(place, node): (usize, &N)| node.is_sound(place, nodes.len(), columns);
        assert!(nodes.iter().enumerate().all(is_sound), "a node leads out of the forest");
        assert!(trees.iter().all(|tree| (tree.root as usize) < nodes.len()), "a root is out of the forest");
        let bundles = trees.chunks(LANES).map(Bundle::new).collect();
        let shallow = trees.iter().map(|tree| tree.shallow).min().unwrap_or(0);
        Self { nodes, values, trees, bundles, shallow, special, sets, outputs, columns }
    }

    pub(super) fn sum<V: Value>(&self, rows: Rows<'_, V>, scratch: &mut Scratch, sums: &mut [S]) {
        let count = rows.values.len() / rows.features;
        let stride = self.columns;
        assert_eq!(stride, rows.columns.count() + 1, "columns of another forest");
        let grouped = if count % LANES < GROUP_MIN { count - count % LANES } else { count };
        let groups = &mut scratch.groups;
        groups.resize(grouped.div_ceil(LANES).max(1) * stride, [0.0; STRIDE]);
        let (grouped_sums, single_sums) = sums.split_at_mut(grouped * self.outputs);
        if grouped > 0 {
            let parts = rows.values[..grouped * rows.features].chunks(LANES * rows.features);
            for (values, group) in parts.zip(groups.chunks_exact_mut(stride)) {
                rows.columns.prepare::<V, LANES>(values, rows.features, group);
            }
            self.sum_groups(rows, groups, stride, grouped_sums);
        }
        let single = &mut groups[..stride];
        let singles = rows.values[grouped * rows.features..].chunks_exact(rows.features);
        for (values, sums) in singles.zip(single_sums.chunks_exact_mut(self.outputs)) {
            rows.columns.prepare::<V, 1>(values, rows.features, single);
            self.sum_single(Rows { values, ..rows }, single, sums);
        }
    }

    /// Tree by tree, each group of rows through it.
    fn sum_groups<V: Value>(&self, rows: Rows<'_, V>, groups: &[[f32; STRIDE]], stride: usize, sums: &mut [S]) {
        for (index, tree) in self.trees.iter().enumerate() {
            let starts = [tree.root as usize; LANES];
            for (group, (columns, sums)) in
                groups.chunks_exact(stride).zip(sums.chunks_mut(LANES * self.outputs)).enumerate()
            {
                let columns = columns.as_flattened();
                // SAFETY: roots are places, and a group has `self.columns` columns of `LANES`, the last all -infinity.
                let ends = unsafe { self.walk(starts, tree.depth, columns, |lane| lane) };
                if self.special.is_empty() && self.outputs == 1 {
                    match &self.values {
                        LeafValues::Full(values) => {
                            sums.iter_mut().zip(ends).for_each(|(sum, end)| *sum += values[end]);
                        }
                        LeafValues::Scaled { values, scales } => {
                            let scale = scales[index];
                            sums.iter_mut().zip(ends).for_each(|(sum, end)| *sum += S::from_i16(values[end]) * scale);
                        }
                    }
                    continue;
                }
                for ((lane, end), sums) in ends.into_iter().enumerate().zip(sums.chunks_exact_mut(self.outputs)) {
                    let first = (group * LANES + lane) * rows.features;
                    let row = &rows.values[first..first + rows.features];
                    self.add(index, end, Rows { values: row, ..rows }, sums);
                }
            }
        }
    }

    /// One row, bundle by bundle.
    fn sum_single<V: Value>(&self, row: Rows<'_, V>, columns: &[[f32; STRIDE]], sums: &mut [S]) {
        let columns = columns.as_flattened();
        let trees = self.trees.chunks(LANES);
        for (index, (bundle, trees)) in self.bundles.iter().zip(trees).enumerate() {
            let starts = bundle.roots.map(|root| root as usize);
            // SAFETY: as for a group; every lane reads the first row.
            let ends = unsafe { self.walk(starts, bundle.depth, columns, |_| 0) };
            if self.special.is_empty() {
                match &self.values {
                    LeafValues::Full(values) => {
                        for (tree, end) in trees.iter().zip(ends) {
                            sums[tree.output as usize] += values[end];
                        }
                    }
                    LeafValues::Scaled { values, scales } => {
                        for ((tree, end), &scale) in trees.iter().zip(ends).zip(&scales[index * LANES..]) {
                            sums[tree.output as usize] += S::from_i16(values[end]) * scale;
                        }
                    }
                }
                continue;
            }
            for (lane, end) in ends.into_iter().enumerate().take(trees.len()) {
                self.add(index * LANES + lane, end, row, sums);
            }
        }
    }

    /// Eight walks from their starts to their leaves.
    ///
    /// # Safety
    /// Starts are places of nodes. `values` has `self.columns * STRIDE` of them, the last `STRIDE` being -infinity.
    /// `row_of` gives less than `STRIDE`.
    #[expect(clippy::inline_always, reason = "two callers, each with its own `row_of` folded in")]
    #[inline(always)]
    unsafe fn walk(
        &self,
        starts: [usize; LANES],
        depth: u32,
        values: &[f32],
        row_of: impl Fn(usize) -> usize,
    ) -> [usize; LANES] {
        debug_assert_eq!(values.len(), self.columns * STRIDE);
        let mut places = starts;
        let step = |places: &mut [usize; LANES]| {
            let mut moved = 0;
            for (lane, place) in places.iter_mut().enumerate() {
                // SAFETY: the first place is a node's by this function's contract. `Program::new` asserted that each
                // node leads to a node: a split to one of two that exist, a leaf to itself, because its threshold is no
                // NaN and its column -infinity.
                let node = unsafe { *self.nodes.get_unchecked(*place) };
                // SAFETY: `Program::new` asserted that the column is one of `self.columns`, all `STRIDE` wide.
                let value = unsafe { *values.get_unchecked(node.column() + row_of(lane)) };
                let delta = node.step(value, &self.sets);
                moved |= delta;
                *place += delta;
            }
            moved
        };
        for _ in 0..self.shallow {
            step(&mut places);
        }
        // Whether all have arrived is asked every second step: asking costs about as much as a step.
        for _ in 0..depth.saturating_sub(self.shallow).div_ceil(2) {
            step(&mut places);
            if step(&mut places) == 0 {
                break;
            }
        }
        places
    }

    /// Adds a tree's leaf to a row's sums.
    fn add<V: Value>(&self, tree: usize, end: usize, row: Rows<'_, V>, sums: &mut [S]) {
        let output = self.trees[tree].output as usize;
        let leaf = self.nodes[end].leaf();
        match self.special.get(tree) {
            None | Some(Special::Scalar) => {
                sums[output] += match &self.values {
                    LeafValues::Full(values) => values[end],
                    LeafValues::Scaled { values, scales } => S::from_i16(values[end]) * scales[tree],
                };
            }
            Some(Special::ScaledVector(values, scale)) => {
                let values = &values[leaf * self.outputs..][..self.outputs];
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += S::from_i16(value) * *scale);
            }
            Some(Special::Vector(values)) => {
                let values = &values[leaf * self.outputs..][..self.outputs];
                sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
            }
            Some(Special::Linear { leaves, weight }) => {
                let read = |feature: usize| row.columns.read(row.values[feature]);
                sums[output] += S::from_f64(leaves.value(leaf, read)) * *weight;
            }
        }
    }
}

impl crate::forest::LinearLeaves {
    /// A leaf's value at a row.
    fn value(&self, leaf: usize, read: impl Fn(usize) -> f64) -> f64 {
        let terms = self.starts[leaf] as usize..self.starts[leaf + 1] as usize;
        let mut sum = self.constants[leaf];
        for (&feature, coefficient) in self.features[terms.clone()].iter().zip(&self.coefficients[terms]) {
            let value = read(feature as usize);
            if value.is_nan() {
                return self.fallbacks[leaf];
            }
            sum += coefficient * value;
        }
        sum
    }
}
