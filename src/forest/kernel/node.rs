//! What trees are made of once they are flat.

use crate::forest::column::{MISSING_CATEGORY, STRIDE};

/// [`WideNode::set`] of a split of numbers.
pub(in crate::forest) const NO_SET: u32 = u32::MAX;

/// A split of numbers, or a leaf.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(in crate::forest) struct NarrowNode {
    threshold: f32,
    column: u16,
    delta: u16,
}

/// Any split, or a leaf.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(in crate::forest) struct WideNode {
    /// A value at most this goes left. In a leaf, the bits of its index.
    pub(in crate::forest) threshold: f32,
    /// Where the column starts: its index times [`STRIDE`](crate::forest::column::STRIDE).
    pub(in crate::forest) column: u32,
    /// How many nodes on the left child is; the right one follows it. 0 in a leaf.
    pub(in crate::forest) delta: u32,
    /// The set of a category split, or [`NO_SET`].
    pub(in crate::forest) set: u32,
}

/// Where a tree is.
#[derive(Clone, Copy, Debug)]
pub(in crate::forest) struct TreeHead {
    pub(in crate::forest) root: u32,
    /// Steps to the deepest leaf.
    pub(in crate::forest) depth: u32,
    /// Steps to the nearest leaf.
    pub(in crate::forest) shallow: u32,
    pub(in crate::forest) output: u32,
}

/// The sets of category splits.
#[derive(Clone, Debug, Default)]
pub(in crate::forest) struct Sets {
    sets: Vec<Set>,
    pub(in crate::forest) words: Vec<u32>,
}

/// One split's set.
#[derive(Clone, Copy, Debug)]
pub(in crate::forest) struct Set {
    pub(in crate::forest) start: u32,
    pub(in crate::forest) count: u32,
    /// The words are category numbers, ascending, and not bits.
    pub(in crate::forest) is_sorted: bool,
    /// What is in the set goes left.
    pub(in crate::forest) holds_left: bool,
    pub(in crate::forest) missing_left: bool,
}

impl Sets {
    #[expect(clippy::cast_possible_truncation, reason = "one a split, fewer than 2^32")]
    pub(in crate::forest) fn push(&mut self, set: Set) -> u32 {
        self.sets.push(set);
        self.sets.len() as u32 - 1
    }

    /// Whether a category goes left.
    fn goes_left(&self, set: u32, category: u32) -> bool {
        let set = self.sets[set as usize];
        if category == MISSING_CATEGORY {
            return set.missing_left;
        }
        let words = &self.words[set.start as usize..][..set.count as usize];
        let holds = if set.is_sorted {
            words.binary_search(&category).is_ok()
        } else {
            words.get(category as usize / 32).is_some_and(|word| word >> (category % 32) & 1 == 1)
        };
        holds == set.holds_left
    }
}

/// A node of either width.
pub(in crate::forest) trait Node: Copy {
    /// Where the column that decides starts.
    fn column(self) -> usize;
    /// How many nodes on a value leads; 0 in a leaf.
    fn step(self, value: f32, sets: &Sets) -> usize;
    /// A leaf's index in its tree.
    fn leaf(self) -> usize;
    /// Whether a walk that is at this place stays among so many nodes and columns. The last column is for leaves, which
    /// find -infinity there.
    fn is_sound(self, place: usize, nodes: usize, columns: usize) -> bool;
}

impl Node for NarrowNode {
    #[inline]
    fn column(self) -> usize {
        usize::from(self.column)
    }

    #[inline]
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN goes right")]
    fn step(self, value: f32, _: &Sets) -> usize {
        usize::from(self.delta) + usize::from(!(value <= self.threshold))
    }

    fn leaf(self) -> usize {
        self.threshold.to_bits() as usize
    }

    fn is_sound(self, place: usize, nodes: usize, columns: usize) -> bool {
        let last = (columns - 1) * STRIDE;
        if self.delta == 0 {
            return self.column() == last && !self.threshold.is_nan();
        }
        self.column() < last && place + usize::from(self.delta) + 1 < nodes
    }
}

impl Node for WideNode {
    #[inline]
    fn column(self) -> usize {
        self.column as usize
    }

    #[inline]
    fn step(self, value: f32, sets: &Sets) -> usize {
        let goes_left =
            if self.set == NO_SET { value <= self.threshold } else { sets.goes_left(self.set, value.to_bits()) };
        self.delta as usize + usize::from(!goes_left)
    }

    fn leaf(self) -> usize {
        self.threshold.to_bits() as usize
    }

    fn is_sound(self, place: usize, nodes: usize, columns: usize) -> bool {
        let last = (columns - 1) * STRIDE;
        if self.delta == 0 {
            return self.column() == last && !self.threshold.is_nan() && self.set == NO_SET;
        }
        self.column() < last && place + self.delta as usize + 1 < nodes
    }
}

impl WideNode {
    /// The same in 8 bytes, if it fits.
    pub(in crate::forest) fn narrow(self) -> Option<NarrowNode> {
        let (column, delta) = (u16::try_from(self.column).ok()?, u16::try_from(self.delta).ok()?);
        (self.set == NO_SET).then_some(NarrowNode { threshold: self.threshold, column, delta })
    }
}
