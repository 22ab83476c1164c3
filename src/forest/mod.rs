//! Tree models of any library in one neutral form, checked once, compiled into a layout for the CPU, scored exactly.
//!
//! In come a reader's [`ForestParts`]; [`ForestParts::check`] turns them into a [`Forest`], [`Forest::compile`] into a
//! [`Compiled`], which scores row-major slices of f32 or f64. Invariants:
//!
//! 1. A `Forest` is well formed: every split and every leaf of a tree is reached from the root exactly once, every
//!    index is in range, no threshold is NaN. Nothing after the check looks again.
//! 2. A decision is the original library's own for every input: NaN, +/-0, infinities, subnormals, categories out of
//!    range. A margin is bit for bit its sum, in its order and float type.
//! 3. A row's score does not depend on its neighbours: batch 1 equals batch n to the bit.
//!
//! Numbers are kept as f64, which holds every f32 exactly; [`ForestParts::sum_type`] says in which type they are added.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

mod check;
mod column;
mod compile;
mod kernel;
mod link;
pub mod read;
mod score;
#[cfg(test)]
mod tests;

pub use check::{Flaw, LIMITS, Limits, TreeFlaw};
pub use column::Reads;
pub use score::{Compiled, Mismatch, Results, Scratch, Values};

/// A model as a reader builds it, not yet checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForestParts {
    /// Values in a row.
    pub features: u32,
    /// Margins of a row: classes, targets or quantiles; 1 for most models.
    pub outputs: u32,
    /// The float type that the library compares a row in. A row given in the other type is converted with `as`.
    pub row_type: Float,
    /// The float type that margins are added and links computed in.
    pub sum_type: Float,
    /// Read |x| <= 1e-35 as +0, as `LightGBM`'s dense rows are. `LightGBM` true, the others false.
    pub flush_tiny: bool,
    /// Trees, or the weights of a linear booster.
    pub body: Body,
    /// What each margin's sum starts from, as a margin (XGBoost: `base_score` through the inverse link; `LightGBM`: 0).
    /// As many as outputs.
    pub base: Vec<f64>,
    /// The sum starts from 0, and the base is added last, in f64: Treelite, ONNX Runtime. Trees only.
    pub base_last: bool,
    /// A finished sum is divided by its output's, before a base that comes last: the number of iterations of `LightGBM`'s
    /// random-forest mode, the trees of an averaged output. As many as outputs, or none.
    pub divisors: Vec<NonZeroU32>,
    /// From margins to predictions.
    pub link: Link,
    /// What is done to each prediction then, in order, in its own float type: nodes of an ONNX graph. Empty elsewhere.
    pub after: Vec<After>,
}

/// A float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

/// What is summed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Boosted or averaged trees, in the order in which the library adds them.
    Trees(Vec<Tree>),
    /// XGBoost's `gblinear`: (bias + base) + x0 * w0 + x1 * w1 + ..., NaN left out.
    Linear {
        /// `features * outputs`, a feature's outputs side by side (the library's own order).
        weights: Vec<f64>,
        /// One an output.
        bias: Vec<f64>,
    },
}

/// One tree. The root is split 0, or leaf 0 when there is no split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// The output that scalar and linear leaves are added to; 0 with vector leaves, which are added to all.
    pub output: u32,
    /// Multiplies the leaf before it is added, in the sum's float type (XGBoost's `weight_drop`). 1 elsewhere.
    pub weight: f64,
    /// In any order, the root first. One fewer than leaves.
    pub splits: Vec<Split>,
    /// What the splits end in.
    pub leaves: Leaves,
    /// The categories that [`Test::Category`] names by index.
    pub sets: Vec<CategorySet>,
}

/// One question to a row and its two answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Which value of the row.
    pub feature: u32,
    /// Where a missing value goes, by the test's own meaning of missing.
    pub default_left: bool,
    /// The question; yes is left, unless the test says otherwise.
    pub test: Test,
    /// Next on yes.
    pub left: Child,
    /// Next on no.
    pub right: Child,
}

/// Index of a split or leaf of the same tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Child {
    /// Another question.
    Split(u32),
    /// The end.
    Leaf(u32),
}

/// A split's question.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Test {
    /// A value against a threshold, yes is left.
    Number {
        /// Not NaN; infinities are allowed.
        threshold: f64,
        /// `<` or `<=`.
        comparison: Comparison,
        /// What counts as missing.
        missing: Missing,
    },
    /// A value against another, yes is left; NaN takes the default side. Treelite, ONNX.
    Equal {
        /// NaN equals nothing.
        value: f64,
    },
    /// A category against a set.
    Category {
        /// Index in [`Tree::sets`].
        set: u32,
        /// Which side is in the set, and what becomes of values that are no category.
        rule: CategoryRule,
    },
}

/// How a value is compared with a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// `x < threshold` goes left: XGBoost.
    Less,
    /// `x <= threshold` goes left: `LightGBM`.
    AtMost,
}

/// Which values take a number split's default side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Missing {
    /// None: NaN is read as 0 (`LightGBM`'s `None`).
    Never,
    /// NaN and |x| <= 1e-35 (`LightGBM`'s `Zero`).
    Zero,
    /// NaN (XGBoost; `LightGBM`'s `NaN`).
    NaN,
}

/// What a category split makes of a value. All cut the fraction off towards 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CategoryRule {
    /// In the set goes RIGHT (one-hot: a set of one). NaN takes the default side; negative, 2^24 and more, and not in
    /// the set go left.
    XGBoost,
    /// In the set goes LEFT, everything else right: NaN, -1 and less, 2^31 and more. (-1, 0) is category 0. The default
    /// side is not looked at.
    LightGBM,
    /// NaN takes the default side. Negative, and above 2^24 (rows of f32) or 2^32 - 1 (of f64) is in no set.
    Treelite {
        /// In the set goes left, everything else right; else the other way round.
        holds_left: bool,
    },
}

/// A set of categories.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CategorySet {
    /// Category c is bit c % 32 (from the lowest) of word c / 32.
    Bits(Vec<u32>),
    /// Ascending, none twice: [`CategorySet::from_ids`]. A huge category costs no more than a small one.
    Sorted(Vec<u32>),
}

impl CategorySet {
    /// The set of some categories in any order.
    pub fn from_ids(mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Self::Sorted(ids)
    }

    /// Whether the set holds a category.
    pub fn contains(&self, category: u32) -> bool {
        match self {
            Self::Bits(words) => words.get(category as usize / 32).is_some_and(|word| word >> (category % 32) & 1 == 1),
            Self::Sorted(ids) => ids.binary_search(&category).is_ok(),
        }
    }
}

/// A tree's leaves, by index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Leaves {
    /// One value each, added to [`Tree::output`].
    Scalar(Vec<f64>),
    /// `outputs` values each, side by side, leaf by leaf (XGBoost's `multi_output_tree`).
    Vector(Vec<f64>),
    /// `LightGBM`'s linear trees.
    Linear(Box<LinearLeaves>),
}

impl Leaves {
    /// How many leaves, in a model of so many outputs.
    pub fn count(&self, outputs: u32) -> usize {
        match self {
            Self::Scalar(values) => values.len(),
            Self::Vector(values) => values.len() / outputs.max(1) as usize,
            Self::Linear(leaves) => leaves.constants.len(),
        }
    }
}

/// Leaves that are linear models: constant + coefficient * feature + ... in order, in f64.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinearLeaves {
    /// `leaf_const`, one a leaf.
    pub constants: Vec<f64>,
    /// `leaf_value`, one a leaf: the leaf's value when a feature of its model is NaN.
    pub fallbacks: Vec<f64>,
    /// Leaf i's terms are `starts[i]..starts[i + 1]` of the two below: one more than leaves, from 0, ascending.
    pub starts: Vec<u32>,
    /// `leaf_features`.
    pub features: Vec<u32>,
    /// `leaf_coeff`.
    pub coefficients: Vec<f64>,
}

/// From margins to predictions, in the sum's float type and by its library's own formula. One number an output, but for
/// [`Link::ArgMax`] and [`OnnxWidth`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Link {
    /// The margins themselves: reg:squarederror, binary:logitraw, rank:*, regression, huber, quantile, lambdarank, ...
    Identity,
    /// 1 / (1 + e^(-slope * x)) of each output: binary:logistic, reg:logistic, binary, multiclassova, `cross_entropy`.
    /// In f32 the slope must be 1 and the exponent is cut at 88.7, as XGBoost does.
    Sigmoid {
        /// `LightGBM`'s `sigmoid` parameter, else 1.
        slope: f64,
    },
    /// 1 / (1 + e^(-slope * x)) of each output, with nothing cut: Treelite's `sigmoid` and `multiclass_ova`.
    Logistic {
        /// `sigmoid_alpha`, an f32.
        slope: f64,
    },
    /// e^(x - max) / sum: multi:softprob, multiclass.
    Softmax,
    /// The same of each `group` of outputs, through f32 in f64 too: Treelite's `softmax`.
    SoftmaxSingle {
        /// Classes of a target.
        group: u32,
    },
    /// The index of the largest margin, the first of equals: multi:softmax. One number a row.
    ArgMax,
    /// 2^(-x / ratio): Treelite's `exponential_standard_ratio`, of isolation forests.
    Exp2Ratio {
        /// `ratio_c`, an f32.
        ratio: f64,
    },
    /// e^x: count:poisson, reg:gamma, reg:tweedie, survival:cox, survival:aft, poisson, gamma, tweedie.
    Exp,
    /// ln(1 + e^x): `cross_entropy_lambda`.
    Log1pExp,
    /// 1 where x > 0, else 0: binary:hinge.
    Hinge,
    /// sign(x) * x * x: `LightGBM`'s regression with `reg_sqrt`.
    SignedSquare,
    /// x0, then each the one before + 1e-6 + ln(1 + e^x): reg:expectileerror of XGBoost 3.3 and later with several alphas.
    ExpectileSteps,
    /// ONNX Runtime's.
    Onnx(OnnxLink),
    /// The margins in ascending order: reg:quantileerror of XGBoost 3.4 and later with several alphas.
    Ascending,
}

/// The finish of ONNX Runtime's tree ensembles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnnxLink {
    /// `post_transform`, computed in f32.
    pub transform: OnnxTransform,
    /// How many scores come of the margins.
    pub width: OnnxWidth,
    /// Scores are rounded to f32 where margins are f64.
    pub results_are_f32: bool,
}

/// `post_transform`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnnxTransform {
    /// The margins.
    None,
    /// 1 / (1 + e^-|x|) for x >= 0, else 1 less that.
    Logistic,
    /// e^(x - max) / sum.
    Softmax,
    /// The same, but for margins of about 0, which become 0.
    SoftmaxZero,
}

/// Scores of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnnxWidth {
    /// As many as margins.
    Same,
    /// Two of one margin: 1 - x and x.
    Complement,
    /// Two of one margin, each transformed: -x and x.
    Negation,
}

/// A step after the link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum After {
    /// e^x.
    Exp,
    /// x + number.
    Add(f64),
    /// x * number.
    Multiply(f64),
    /// x / number.
    Divide(f64),
}

/// A checked model. See the invariants of this module.
#[derive(Clone, Debug, PartialEq)]
pub struct Forest(ForestParts);

impl Forest {
    /// What the model consists of.
    pub fn parts(&self) -> &ForestParts {
        &self.0
    }

    /// Numbers that a row's prediction has.
    pub fn predictions(&self) -> u32 {
        match self.0.link {
            Link::ArgMax => 1,
            Link::Onnx(OnnxLink { width: OnnxWidth::Complement | OnnxWidth::Negation, .. }) => 2,
            _ => self.0.outputs,
        }
    }
}
