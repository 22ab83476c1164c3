//! Random forests of every feature against a plain walker, which asks each split as its library's source does, in the
//! library's float type, one row and one tree after the other.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the casts are what is compared")]

use std::num::NonZeroU32;

use proptest::prelude::*;
use proptest::sample::select;

use super::Float::{F32, F64};
use super::*;

const TINY: f64 = 1e-35_f32 as f64;

// --- the plain walker ---

fn goes_left(parts: &ForestParts, tree: &Tree, split: &Split, row: &[f64]) -> bool {
    let x = row[split.feature as usize];
    match split.test {
        Test::Number { threshold, comparison, missing } => {
            let x = if x.is_nan() && missing == Missing::Never { 0.0 } else { x };
            let is_missing = match missing {
                Missing::Never => false,
                Missing::Zero => x.is_nan() || (-TINY..=TINY).contains(&x),
                Missing::NaN => x.is_nan(),
            };
            if is_missing {
                return split.default_left;
            }
            match (parts.row_type, comparison) {
                (Float::F32, Comparison::Less) => (x as f32) < threshold as f32,
                (_, Comparison::Less) => x < threshold,
                (_, Comparison::AtMost) => x <= threshold,
            }
        }
        Test::Equal { .. } if x.is_nan() => split.default_left,
        #[allow(clippy::float_cmp, reason = "the library asks the same")]
        Test::Equal { value } => x == value,
        Test::Category { set, rule } => {
            let set = &tree.sets[set as usize];
            match rule {
                CategoryRule::XGBoost | CategoryRule::Treelite { .. } if x.is_nan() => split.default_left,
                // C++: `fvalue < 0 || fabs(fvalue) > max_representable_int` is in no set.
                CategoryRule::Treelite { holds_left } => {
                    let last = if parts.row_type == Float::F32 { 16_777_216.0 } else { f64::from(u32::MAX) };
                    let holds = !(x < 0.0 || x.abs() > last) && set.contains(x as u32);
                    holds == holds_left
                }
                CategoryRule::XGBoost if !(0.0..16_777_216.0).contains(&x) => true,
                CategoryRule::XGBoost => !set.contains(x as u32),
                // The C cast: out of range and NaN give the smallest i32.
                CategoryRule::LightGBM => {
                    let int = if x > -2_147_483_649.0 && x < 2_147_483_648.0 { x as i32 } else { i32::MIN };
                    int >= 0 && set.contains(int as u32)
                }
            }
        }
    }
}

fn leaf_of(parts: &ForestParts, tree: &Tree, row: &[f64]) -> usize {
    let mut child = if tree.splits.is_empty() { Child::Leaf(0) } else { Child::Split(0) };
    loop {
        match child {
            Child::Leaf(leaf) => return leaf as usize,
            Child::Split(index) => {
                let split = &tree.splits[index as usize];
                child = if goes_left(parts, tree, split, row) { split.left } else { split.right };
            }
        }
    }
}

fn linear_leaf(leaves: &LinearLeaves, leaf: usize, row: &[f64]) -> f64 {
    let terms: Vec<usize> = (leaves.starts[leaf] as usize..leaves.starts[leaf + 1] as usize).collect();
    let value = |&term: &usize| row[leaves.features[term] as usize];
    if terms.iter().any(|term| value(term).is_nan()) {
        return leaves.fallbacks[leaf];
    }
    terms.iter().fold(leaves.constants[leaf], |sum, term| sum + leaves.coefficients[*term] * value(term))
}

/// One row's margins. Every intermediate f32 is rounded by `round`.
fn naive(parts: &ForestParts, row: &[f64]) -> Vec<f64> {
    let round = |x: f64| if parts.sum_type == Float::F32 { f64::from(x as f32) } else { x };
    let row: Vec<f64> = row
        .iter()
        .map(|&x| if parts.row_type == Float::F32 { f64::from(x as f32) } else { x })
        .map(|x| if parts.flush_tiny && x.abs() <= TINY { 0.0 } else { x })
        .collect();
    let mut sums = if parts.base_last { vec![0.0; parts.base.len()] } else { parts.base.clone() };
    match &parts.body {
        Body::Linear { weights, bias } => {
            for (output, sum) in sums.iter_mut().enumerate() {
                *sum = round(bias[output] + *sum);
                for (feature, x) in row.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
                    *sum = round(*sum + round(x * weights[feature * parts.outputs as usize + output]));
                }
            }
        }
        Body::Trees(trees) => {
            for tree in trees {
                let leaf = leaf_of(parts, tree, &row);
                let weigh = |x: f64| round(x * tree.weight);
                let output = tree.output as usize;
                match &tree.leaves {
                    Leaves::Scalar(values) => sums[output] = round(sums[output] + weigh(values[leaf])),
                    Leaves::Linear(leaves) => sums[output] += weigh(linear_leaf(leaves, leaf, &row)),
                    Leaves::Vector(values) => {
                        for (sum, &value) in sums.iter_mut().zip(&values[leaf * parts.outputs as usize..]) {
                            *sum = round(*sum + weigh(value));
                        }
                    }
                }
            }
        }
    }
    if !parts.divisors.is_empty() {
        sums.iter_mut().zip(&parts.divisors).for_each(|(sum, count)| *sum = round(*sum / f64::from(count.get())));
    }
    if parts.base_last {
        sums.iter_mut().zip(&parts.base).for_each(|(sum, base)| *sum = round(*sum + base));
    }
    sums
}

// --- random forests and rows ---

/// Few enough values that rows meet thresholds, and every value that is special.
fn number() -> impl Strategy<Value = f64> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.1,
        0.5,
        2.0,
        1e-35,
        -1e-35,
        2e-35,
        f64::from(1e-35_f32),
        1e-40,
        -1e-40,
        5e-324,
        -5e-324,
        1e-45,
        f64::from(f32::MIN_POSITIVE),
        f64::from(f32::MAX),
        f64::from(f32::MIN),
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.300_000_011_920_928_96,
        0.3,
        3.402_823_6e38,
        1e300,
        -1e300,
        1e-300,
    ];
    prop_oneof![3 => select(special.to_vec()), 3 => (-20_i8..20).prop_map(|x| f64::from(x) / 8.0), 1 => -3.0..3.0_f64]
}

fn value() -> impl Strategy<Value = f64> {
    let category = [
        -0.5,
        -0.999,
        0.999,
        3.7,
        31.0,
        32.0,
        33.0,
        63.9,
        64.0,
        1000.0,
        5000.0,
        16_777_215.0,
        16_777_216.0,
        16_777_217.0,
        2_147_483_646.0,
        2_147_483_647.0,
        2_147_483_648.0,
        4_294_967_294.0,
        4_294_967_295.0,
        4_294_967_296.0,
        -2_147_483_648.0,
        1e10,
        -1e10,
    ];
    prop_oneof![
        4 => number(),
        2 => (0_u8..70).prop_map(f64::from),
        1 => select(category.to_vec()),
        1 => Just(f64::NAN),
    ]
}

#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "drawn independently of each other")]
struct Shape {
    /// Treelite's tests, in either float type.
    treelite: bool,
    xgboost: bool,
    features: u32,
    outputs: u32,
    categories: bool,
    vector: bool,
    linear: bool,
}

fn narrow(value: f64, xgboost: bool) -> f64 {
    if xgboost { f64::from(value as f32) } else { value }
}

fn set() -> impl Strategy<Value = CategorySet> {
    let id = prop_oneof![4 => 0_u32..70, 1 => select(vec![1000, 5000, 16_777_215, 16_777_214, 2_147_483_647, 2_147_483_646])];
    prop_oneof![
        prop::collection::vec(any::<u32>(), 0..4).prop_map(CategorySet::Bits),
        prop::collection::vec(id, 0..6).prop_map(CategorySet::from_ids),
    ]
}

fn test(shape: Shape) -> impl Strategy<Value = Test> {
    let comparison = if shape.xgboost { Comparison::Less } else { Comparison::AtMost };
    let rule = if shape.xgboost { CategoryRule::XGBoost } else { CategoryRule::LightGBM };
    let missing = if shape.xgboost { vec![Missing::NaN] } else { vec![Missing::Never, Missing::Zero, Missing::NaN] };
    if shape.treelite {
        let compared = (number(), any::<bool>(), select(missing));
        return prop_oneof![
            2 => compared.prop_map(move |(threshold, less, missing)| Test::Number {
                threshold: narrow(threshold, shape.xgboost),
                comparison: if less { Comparison::Less } else { Comparison::AtMost },
                missing,
            }),
            1 => number().prop_map(move |value| Test::Equal { value: narrow(value, shape.xgboost) }),
            u32::from(shape.categories) => (0_u32..3, any::<bool>())
                .prop_map(|(set, holds_left)| Test::Category { set, rule: CategoryRule::Treelite { holds_left } }),
        ]
        .boxed();
    }
    let number = (number(), select(missing)).prop_map(move |(threshold, missing)| Test::Number {
        threshold: narrow(threshold, shape.xgboost),
        comparison,
        missing,
    });
    if shape.categories {
        prop_oneof![2 => number, 1 => (0_u32..3).prop_map(move |set| Test::Category { set, rule })].boxed()
    } else {
        number.boxed()
    }
}

/// A tree grown by splitting one of its leaves again and again.
fn tree(shape: Shape) -> impl Strategy<Value = Tree> {
    let split = (0..shape.features, any::<bool>(), test(shape), any::<prop::sample::Index>()).boxed();
    let splits = prop_oneof![1 => 0_usize..2, 3 => 0_usize..40];
    let splits = splits.prop_flat_map(move |count| prop::collection::vec(split.clone(), count));
    let weight = prop_oneof![Just(1.0), (-2.0..2.0_f64).prop_map(|w| f64::from(w as f32))];
    (splits, 0..shape.outputs, weight, prop::collection::vec(set(), 3), any::<u64>()).prop_map(
        move |(grown, output, weight, sets, seed)| {
            let mut splits: Vec<Split> = Vec::new();
            let mut ends: Vec<(usize, bool)> = Vec::new();
            for (index, (feature, default_left, test, at)) in grown.into_iter().enumerate() {
                if !ends.is_empty() {
                    let (parent, is_left) = ends.swap_remove(at.index(ends.len()));
                    let place = if is_left { &mut splits[parent].left } else { &mut splits[parent].right };
                    *place = Child::Split(index as u32);
                }
                splits.push(Split { feature, default_left, test, left: Child::Leaf(0), right: Child::Leaf(0) });
                ends.extend([(index, true), (index, false)]);
            }
            for (leaf, &(parent, is_left)) in ends.iter().enumerate() {
                let place = if is_left { &mut splits[parent].left } else { &mut splits[parent].right };
                *place = Child::Leaf(leaf as u32);
            }
            let leaves = leaves(shape, splits.len() + 1, seed);
            let weight = if shape.linear { 1.0 } else { weight };
            Tree { output: if shape.vector { 0 } else { output }, weight, splits, leaves, sets }
        },
    )
}

fn leaves(shape: Shape, count: usize, mut seed: u64) -> Leaves {
    let mut draw = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        narrow((seed >> 11) as f64 / (1_u64 << 52) as f64 - 1.0, shape.xgboost)
    };
    let mut many = |count: usize| (0..count).map(|_| draw()).collect::<Vec<_>>();
    if shape.vector {
        return Leaves::Vector(many(count * shape.outputs as usize));
    }
    if !shape.linear {
        return Leaves::Scalar(many(count));
    }
    let terms: Vec<u32> = many(count).iter().map(|x| (x.abs() * 4.0) as u32).collect();
    let starts: Vec<u32> = std::iter::once(0)
        .chain(terms.iter().scan(0, |end, &terms| {
            *end += terms;
            Some(*end)
        }))
        .collect();
    let total = terms.iter().sum::<u32>() as usize;
    let features = many(total).iter().map(|x| (x.abs() * f64::from(shape.features)) as u32).collect();
    Leaves::Linear(Box::new(LinearLeaves {
        constants: many(count),
        fallbacks: many(count),
        starts,
        features,
        coefficients: many(total),
    }))
}

fn parts() -> impl Strategy<Value = ForestParts> {
    let outputs = prop_oneof![2 => Just(1), 1 => 2_u32..5];
    (any::<[bool; 2]>(), 1_u32..9, outputs, any::<[bool; 3]>()).prop_flat_map(
        |([xgboost, treelite], features, outputs, [categories, special, rf])| {
            let shape = Shape {
                treelite,
                xgboost,
                features,
                outputs,
                categories,
                vector: (xgboost || treelite) && special,
                linear: !xgboost && !treelite && special,
            };
            let trees = prop::collection::vec(tree(shape), 0..20).prop_map(Body::Trees);
            let number = (-100_i16..100).prop_map(|x| f64::from(x) / 64.0);
            let linear = (
                prop::collection::vec(number.clone(), (features * outputs) as usize),
                prop::collection::vec(number.clone(), outputs as usize),
            );
            let linear = linear.prop_map(|(weights, bias)| Body::Linear { weights, bias });
            let body = if xgboost && !treelite { prop_oneof![12 => trees, 1 => linear].boxed() } else { trees.boxed() };
            let base = prop::collection::vec(number, outputs as usize);
            (body, base).prop_map(move |(body, base)| ForestParts {
                features,
                outputs,
                row_type: if xgboost { Float::F32 } else { Float::F64 },
                sum_type: if xgboost { Float::F32 } else { Float::F64 },
                flush_tiny: !xgboost && !treelite,
                body,
                base,
                base_last: treelite,
                divisors: if rf && (treelite || !xgboost) {
                    (0..outputs).map(|output| NonZeroU32::MIN.saturating_add(6 + output)).collect()
                } else {
                    Vec::new()
                },
                link: Link::Identity,
                after: Vec::new(),
            })
        },
    )
}

fn scored(compiled: &Compiled, rows: Values<'_>, count: usize) -> Vec<f64> {
    let mut scratch = Scratch::default();
    match compiled.sum_type() {
        Float::F32 => {
            let mut out = vec![0.0; count * compiled.predictions()];
            compiled.predict(rows, &mut scratch, Results::F32(&mut out)).expect("fits");
            out.into_iter().map(f64::from).collect()
        }
        Float::F64 => {
            let mut out = vec![0.0; count * compiled.predictions()];
            compiled.predict(rows, &mut scratch, Results::F64(&mut out)).expect("fits");
            out
        }
    }
}

/// NaN of any kind is one.
fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() }).collect()
}

fn check_against_naive(parts: &ForestParts, rows: &[f64]) -> Result<(), TestCaseError> {
    let features = parts.features as usize;
    let count = rows.len() / features;
    let rows = &rows[..count * features];
    let narrow: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
    let widened: Vec<f64> = narrow.iter().map(|&x| f64::from(x)).collect();
    let expect = |rows: &[f64]| bits(&rows.chunks(features).flat_map(|row| naive(parts, row)).collect::<Vec<_>>());
    let (from_f64, from_f32) = (expect(rows), expect(&widened));
    let forest = parts.clone().check().expect("well formed");
    let (for_f64, for_f32) = (forest.compile(Float::F64), forest.compile(Float::F32));
    let agree = |what: &str, scored: &[f64], expected: &[u64]| {
        let outputs = parts.outputs as usize;
        let wrong = bits(scored).iter().zip(expected).position(|(a, b)| a != b);
        wrong.map_or(Ok(()), |at| {
            let row = &rows[at / outputs * features..][..features];
            let expected = f64::from_bits(expected[at]);
            Err(TestCaseError::fail(format!("{what}: {row:?} gives {}, not {expected}", scored[at])))
        })
    };
    agree("f64 rows", &scored(&for_f64, Values::F64(rows), count), &from_f64)?;
    agree("f32 rows, compiled for f64", &scored(&for_f64, Values::F32(&narrow), count), &from_f32)?;
    agree("f32 rows", &scored(&for_f32, Values::F32(&narrow), count), &from_f32)?;
    let one_by_one: Vec<f64> = rows.chunks(features).flat_map(|row| scored(&for_f64, Values::F64(row), 1)).collect();
    agree("one by one", &one_by_one, &from_f64)?;
    Ok(())
}

/// How far quantized leaves may move each margin: half a step of each tree's scale, and the rounding of sums.
fn leaf_steps(parts: &ForestParts) -> Vec<f64> {
    let mut steps = vec![0.0; parts.outputs as usize];
    let Body::Trees(trees) = &parts.body else { return steps };
    for tree in trees {
        let greatest = |values: &[f64]| values.iter().fold(0.0_f64, |max, x| max.max(x.abs())) * tree.weight.abs();
        match &tree.leaves {
            Leaves::Scalar(values) => steps[tree.output as usize] += greatest(values),
            Leaves::Vector(values) => steps.iter_mut().for_each(|step| *step += greatest(values)),
            Leaves::Linear(_) => {}
        }
    }
    let slack = if parts.sum_type == F32 { 1e-6 } else { 1e-12 };
    let base = parts.base.iter().map(|base| base.abs());
    steps.iter().zip(base).map(|(step, base)| step * (0.5 / 32_767.0 * 1.001 + slack) + base * slack).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn decides_and_sums_as_the_plain_walker(parts in parts(), rows in prop::collection::vec(value(), 8..700)) {
        check_against_naive(&parts, &rows)?;
    }

    #[test]
    fn quantized_leaves_move_a_margin_by_no_more_than_their_steps(
        parts in parts(), rows in prop::collection::vec(value(), 8..200),
    ) {
        let features = parts.features as usize;
        let count = rows.len() / features;
        let rows = Values::F64(&rows[..count * features]);
        let forest = parts.clone().check().expect("well formed");
        let (whole, quantized) = (forest.compile(F64), forest.compile_quantized(F64));
        let is_scaled = matches!(&parts.body, Body::Trees(_));
        prop_assert_eq!(quantized.is_quantized(), is_scaled);
        let steps = leaf_steps(&parts);
        let (own, moved) = (scored(&whole, rows, count), scored(&quantized, rows, count));
        for (place, (own, moved)) in own.iter().zip(&moved).enumerate() {
            let step = steps[place % steps.len()];
            let near = (own - moved).abs() <= step || own.to_bits() == moved.to_bits() || (own.is_nan() && moved.is_nan());
            prop_assert!(near, "{} {} {}", own, moved, step);
        }
    }

    #[test]
    fn hurt_trees_are_refused_not_walked(
        parts in parts(), tree in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        left in any::<bool>(), child in prop_oneof![(0_u32..50).prop_map(Child::Split), (0_u32..50).prop_map(Child::Leaf)],
    ) {
        let mut hurt = parts.clone();
        if let Body::Trees(trees) = &mut hurt.body && !trees.is_empty() {
            let tree = tree.get_mut(&mut trees[..]);
            if !tree.splits.is_empty() {
                let split = at.get_mut(&mut tree.splits[..]);
                *(if left { &mut split.left } else { &mut split.right }) = child;
            }
        }
        prop_assert_eq!(hurt.clone().check().is_ok(), hurt == parts);
    }
}

// --- by example ---

fn number_split(feature: u32, left: Child, right: Child) -> Split {
    let test = Test::Number { threshold: 0.5, comparison: Comparison::AtMost, missing: Missing::NaN };
    Split { feature, default_left: false, test, left, right }
}

fn model(trees: Vec<Tree>, outputs: u32, sum_type: Float, link: Link) -> ForestParts {
    let base = vec![0.0; outputs as usize];
    let body = Body::Trees(trees);
    ForestParts {
        features: 4,
        outputs,
        row_type: sum_type,
        sum_type,
        flush_tiny: false,
        body,
        base,
        base_last: false,
        divisors: Vec::new(),
        link,
        after: Vec::new(),
    }
}

fn scalar_tree(splits: Vec<Split>, leaves: Vec<f64>) -> Tree {
    Tree { output: 0, weight: 1.0, splits, leaves: Leaves::Scalar(leaves), sets: Vec::new() }
}

fn flaw(tree: Tree) -> String {
    let good = scalar_tree(vec![number_split(0, Child::Leaf(0), Child::Leaf(1))], vec![1.0, 2.0]);
    model(vec![good, tree], 1, Float::F64, Link::Identity).check().expect_err("a flaw").to_string()
}

#[test]
fn a_flaw_names_its_tree_and_node() {
    let (split, leaf) = (Child::Split, Child::Leaf);
    let cases = [
        (vec![number_split(4, leaf(0), leaf(1))], 2, "tree 1: split 0: feature 4, a row has 4"),
        (
            vec![number_split(0, leaf(0), leaf(1))],
            3,
            "tree 1: 3 leaves and 1 splits, expected one leaf more than splits",
        ),
        (
            vec![number_split(0, leaf(0), leaf(2))],
            2,
            "tree 1: split 0: its right child is Leaf(2), the tree has 1 splits and 2 leaves",
        ),
        (
            vec![number_split(0, split(1), leaf(0)), number_split(0, split(0), leaf(1))],
            3,
            "tree 1: split 1: its left child Split(0) was reached before: shared, or a cycle",
        ),
        (
            vec![number_split(0, leaf(0), leaf(0))],
            2,
            "tree 1: split 0: its right child Leaf(0) was reached before: shared, or a cycle",
        ),
    ];
    for (splits, leaves, message) in cases {
        assert_eq!(flaw(scalar_tree(splits, vec![0.0; leaves])), message);
    }
    let mut nan = number_split(0, leaf(0), leaf(1));
    nan.test = Test::Number { threshold: f64::NAN, comparison: Comparison::Less, missing: Missing::NaN };
    assert_eq!(flaw(scalar_tree(vec![nan], vec![0.0; 2])), "tree 1: split 0: the threshold is NaN");
    let island = vec![number_split(0, leaf(0), leaf(1)), number_split(0, split(1), leaf(2))];
    assert_eq!(flaw(scalar_tree(island, vec![0.0; 3])), "tree 1: Split(1) cannot be reached from the root");
}

/// More nodes on one level and more columns than 16 bits count.
#[test]
fn a_forest_too_wide_for_small_nodes_scores_the_same() {
    let depth = 17_u32;
    let splits = (1_u32 << depth) - 1;
    let child = |index: u32| if index < splits { Child::Split(index) } else { Child::Leaf(index - splits) };
    let split = |index: u32| {
        let threshold = f64::from(index % 97) / 97.0;
        let test = Test::Number { threshold, comparison: Comparison::AtMost, missing: Missing::NaN };
        Split {
            feature: index % 4,
            default_left: index.is_multiple_of(2),
            test,
            left: child(2 * index + 1),
            right: child(2 * index + 2),
        }
    };
    let tree = scalar_tree((0..splits).map(split).collect(), (0..=splits).map(f64::from).collect());
    let rows: Vec<f64> =
        (0..400).map(|i| if i % 13 == 0 { f64::NAN } else { f64::from(i * 37 % 101) / 101.0 }).collect();
    check_against_naive(&model(vec![tree], 1, Float::F64, Link::Identity), &rows).expect("the same");

    let tree = |feature| {
        scalar_tree(vec![number_split(feature, Child::Leaf(0), Child::Leaf(1))], vec![1.0, f64::from(feature)])
    };
    let mut wide = model((0..20_000).map(tree).collect(), 1, Float::F64, Link::Identity);
    wide.features = 20_000;
    let rows: Vec<f64> = (0..60_000).map(|i| f64::from(i * 37 % 101) / 101.0).collect();
    check_against_naive(&wide, &rows).expect("the same");
}

#[test]
fn links_follow_their_librarys_formula() {
    let leaf = |output, value| Tree { output, ..scalar_tree(Vec::new(), vec![value]) };
    let run = |sum_type, link, margins: &[f64]| {
        let trees = (0..).zip(margins).map(|(output, &margin)| leaf(output, margin)).collect();
        let forest = model(trees, margins.len() as u32, sum_type, link).check().expect("well formed");
        scored(&forest.compile(sum_type), Values::F32(&[0.0; 4]), 1)
    };
    let close = |scored: Vec<f64>, expected: &[f64], error: f64| {
        assert_eq!(scored.len(), expected.len());
        for (a, b) in scored.iter().zip(expected) {
            assert!((a - b).abs() <= error * b.abs(), "{scored:?} {expected:?}");
        }
    };
    let (e32, e64) = (2.4e-7, 4.5e-16);
    close(
        run(F32, Link::Sigmoid { slope: 1.0 }, &[-1.0, 2.0]),
        &[1.0 / (1.0 + 1_f64.exp()), 1.0 / (1.0 + (-2_f64).exp())],
        e32,
    );
    close(run(F32, Link::Sigmoid { slope: 1.0 }, &[-200.0]), &[f64::from(1.0 / (88.7_f32.exp() + 1.0))], e32);
    close(run(F64, Link::Sigmoid { slope: 0.7 }, &[-3.0]), &[1.0 / (1.0 + (0.7 * 3.0_f64).exp())], e64);
    let total = 1.0 + 1_f64.exp() + 3_f64.exp();
    let softmax = [1.0 / total, 1_f64.exp() / total, 3_f64.exp() / total];
    close(run(F64, Link::Softmax, &[0.0, 1.0, 3.0]), &softmax, 2.0 * e64);
    close(run(F32, Link::Softmax, &[0.0, 1.0, 3.0]), &softmax, 2.0 * e32);
    assert_eq!(run(F32, Link::ArgMax, &[1.0, 3.0, 3.0]), [1.0]);
    close(run(F32, Link::Exp, &[1.5]), &[1.5_f64.exp()], e32);
    close(run(F64, Link::Log1pExp, &[1.5]), &[1.5_f64.exp().ln_1p()], e64);
    assert_eq!(run(F32, Link::Hinge, &[0.5, 0.0, -1.0]), [1.0, 0.0, 0.0]);
    assert_eq!(run(F64, Link::SignedSquare, &[-3.0, 2.0]), [-9.0, 4.0]);
    assert_eq!(run(F32, Link::Ascending, &[3.0, -1.0, 2.0]), [-1.0, 2.0, 3.0]);
    let step = 0.5 + 1e-6 + 2_f64.exp().ln_1p();
    close(run(F32, Link::ExpectileSteps, &[0.5, 2.0]), &[0.5, step], e32);
}

#[test]
fn what_does_not_fit_is_refused() {
    let tree = scalar_tree(vec![number_split(0, Child::Leaf(0), Child::Leaf(1))], vec![1.0, 2.0]);
    let forest = model(vec![tree], 1, Float::F64, Link::Identity).check().expect("well formed");
    let (compiled, mut scratch, mut out) = (forest.compile(Float::F32), Scratch::default(), [0.0; 1]);
    let mut score =
        |rows: Values<'_>, room: usize| compiled.predict(rows, &mut scratch, Results::F64(&mut out[..room]));
    assert_eq!(score(Values::F32(&[0.0; 4]), 1), Ok(()));
    assert_eq!(score(Values::F32(&[0.0; 3]), 1), Err(Mismatch::Rows { values: 3, features: 4 }));
    assert_eq!(score(Values::F32(&[0.0; 4]), 0), Err(Mismatch::Room { room: 0, expected: 1 }));
    assert_eq!(score(Values::F64(&[0.0; 4]), 1), Err(Mismatch::RowType));
    assert_eq!(score(Values::F32(&[]), 0), Ok(()));
    let wrong = compiled.predict(Values::F32(&[0.0; 4]), &mut scratch, Results::F32(&mut [0.0]));
    assert_eq!(wrong, Err(Mismatch::SumType(Float::F64)));
}
