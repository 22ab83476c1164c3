//! The steps, one by one and against a naive model.

use proptest::prelude::*;

use super::super::{ModelType, Quantizer};
use super::*;

fn schema(names: &[&str]) -> ModelSchema {
    ModelSchema {
        model_type: ModelType::LightGbm,
        feature_names: names.iter().map(|name| (*name).to_owned()).collect(),
        kinds: FeatureKinds::default(),
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    }
}

fn step(features: &[&str], action: Action) -> Step {
    Step { features: features.iter().map(|name| (*name).to_owned()).collect(), action }
}

fn apply(steps: &[Step], names: &[&str], values: &[f64], texts: &[Option<&str>]) -> Vec<f64> {
    let preprocessor = Preprocessor::new(steps, &schema(names)).unwrap();
    let (mut out, mut out_texts) = (Vec::new(), Vec::new());
    preprocessor.apply(values, texts, &mut out, &mut out_texts);
    assert!(out_texts.is_empty());
    out
}

#[test]
fn each_step_does_what_it_says_in_order() {
    let steps = [
        step(&["b", "a", "c"], Action::Order),
        step(&["a", "b"], Action::Impute(vec![Real(10.0), Real(20.0)])),
        step(&["a"], Action::Scale { offset: vec![Real(4.0)], divisor: vec![Real(2.0)] }),
        step(&["b"], Action::Clip { min: vec![Real(-1.0)], max: vec![Real(5.0)] }),
        step(&["c"], Action::Log1p),
    ];
    // Records come as b, a, c; the model takes a, b, c.
    let out = apply(&steps, &["a", "b", "c"], &[7.0, f64::NAN, 1.0, -3.0, 8.0, f64::NAN], &[]);
    assert_eq!(out[..5], [3.0, 5.0, 1.0_f64.ln_1p(), 2.0, -1.0]);
    assert!(out[5].is_nan(), "missing stays missing");
}

#[test]
fn categories_have_their_numbers_and_strangers_what_the_config_says() {
    let codes = |unknown| Action::Categories {
        codes: [("red", 0.0), ("green", 1.0)].map(|(name, code)| (Category::Text(name.to_owned()), Real(code))).into(),
        unknown,
    };
    let texts = [Some("green"), None, Some("blue")];
    let of = |unknown| apply(&[step(&["x"], codes(unknown))], &["x"], &[f64::NAN; 3], &texts);
    let told = of(Unknown::Code(Real(9.0)));
    assert!(told[1].is_nan(), "{told:?}");
    assert_eq!((told[0], told[2]), (1.0, 9.0));
    assert!(of(Unknown::Missing)[2].is_nan());
    let strict = Preprocessor::new(&[step(&["x"], codes(Unknown::Error))], &schema(&["x"])).unwrap();
    assert_eq!(strict.check(&[f64::NAN], &[Some("red")]), Ok(()));
    let unfit = strict.check(&[f64::NAN], &[Some("blue")]).unwrap_err().to_string();
    assert_eq!(unfit, "features[0]: x: got \"blue\", an unknown category; known are \"green\", \"red\"");
    let numbers = Action::Categories {
        codes: [(3.0, 0.5), (0.0, 0.25)]
            .map(|(name, code): (f64, f64)| (Category::Number(name.to_bits()), Real(code)))
            .into(),
        unknown: Unknown::Error,
    };
    assert_eq!(apply(&[step(&["x"], numbers)], &["x"], &[3.0, -0.0], &[]), [0.5, 0.25]);
}

#[test]
fn what_is_rounded_comes_behind_the_steps() {
    let steps = [
        step(&["b", "a", "c"], Action::Order),
        step(&["a"], Action::Scale { offset: vec![Real(0.0)], divisor: vec![Real(4.0)] }),
        step(
            &["c"],
            Action::Categories {
                codes: [(Category::Number(3.0_f64.to_bits()), Real(0.1))].into(),
                unknown: Unknown::Missing,
            },
        ),
    ];
    let preprocessor = Preprocessor::new(&steps, &schema(&["a", "b", "c"])).unwrap();
    assert!(preprocessor.has_steps());
    assert_eq!(preprocessor.coded(), [false, false, true]);
    let rounding = preprocessor.clone().with_quantizer(Quantizer::half(&[true, true, false]));
    assert_ne!(rounding.digest(), preprocessor.digest());
    let mut out = Vec::new();
    // Records come as b, a, c. A half has a step of 2^-10 at 1.
    rounding.apply(&[1.0 + 1e-4, 4.0 - 1e-6, 3.0], &[], &mut out, &mut Vec::new());
    assert_eq!(out[..], [1.0, 1.0, 0.1]);
    // 70000, but not a quarter of it, is more than 16 bits hold; the code is not rounded.
    assert_eq!(rounding.out_of_range(&[7e4, 7e4, 3.0, 1.0, 1e6, 3.0], &[]), 2);
    assert_eq!(preprocessor.out_of_range(&[7e4, 7e4, 3.0], &[]), 0);
    let other = |steps: &[Step]| Preprocessor::new(steps, &schema(&["a", "b"])).unwrap();
    assert!(!other(&[]).has_steps() && !other(&[step(&["a", "b"], Action::Order)]).has_steps());
    assert!(other(&[step(&["b", "a"], Action::Order)]).has_steps());
}

#[test]
fn what_cannot_be_is_refused_with_its_place() {
    let log = Preprocessor::new(&[step(&["b"], Action::Log1p)], &schema(&["a", "b"])).unwrap();
    let unfit = log.check(&[0.0, 1.0, 0.0, -1.0], &[]).unwrap_err();
    assert!(unfit.column == 1 && unfit.reason.starts_with("b: got -1, wants more than -1"), "{unfit}");
    let wrong = |steps: &[Step]| Preprocessor::new(steps, &schema(&["age", "income"])).unwrap_err();
    assert!(wrong(&[step(&["incom"], Action::Log1p)]).contains("did you mean \"income\"?"));
    assert!(wrong(&[step(&["age"], Action::Order)]).contains("names all features"));
    assert!(wrong(&[step(&["age"], Action::Log1p), step(&["age", "income"], Action::Order)]).contains("first step"));
    let single = ModelSchema { row_type: RowType::F32, ..schema(&["a"]) };
    let wide = Preprocessor::new(
        &[step(&["a"], Action::Scale { offset: vec![Real(0.0)], divisor: vec![Real(1e-30)] })],
        &single,
    )
    .unwrap();
    assert!(wide.check(&[1e30], &[]).unwrap_err().reason.contains("32-bit floats"));
}

/// The steps one after the other, over whole columns; what a step refuses is NaN at the end.
fn naive(steps: &[Step], names: &[&str], rows: &[f64]) -> Vec<f64> {
    let mut rows = rows.to_vec();
    let mut refused = vec![false; rows.len()];
    for step in steps {
        for name in &step.features {
            let column = names.iter().position(|known| known == name).unwrap();
            for (place, x) in rows.iter_mut().enumerate().filter(|(place, _)| place % names.len() == column) {
                match &step.action {
                    Action::Impute(values) if x.is_nan() => *x = values[0].0,
                    Action::Scale { offset, divisor } => *x = (*x - offset[0].0) / divisor[0].0,
                    Action::Clip { min, max } if !x.is_nan() => *x = x.max(min[0].0).min(max[0].0),
                    Action::Log1p => {
                        refused[place] |= *x <= -1.0;
                        *x = x.ln_1p();
                    }
                    _ => {}
                }
            }
        }
    }
    rows.iter().zip(refused).map(|(&x, refused)| if refused { f64::NAN } else { x }).collect()
}

fn action() -> impl Strategy<Value = Action> {
    let real = || (-5.0..5.0_f64).prop_map(Real);
    prop_oneof![
        real().prop_map(|value| Action::Impute(vec![value])),
        (real(), 0.1..3.0_f64)
            .prop_map(|(offset, divisor)| Action::Scale { offset: vec![offset], divisor: vec![Real(divisor)] }),
        (-5.0..0.0_f64, 0.0..5.0_f64)
            .prop_map(|(min, max)| Action::Clip { min: vec![Real(min)], max: vec![Real(max)] }),
        Just(Action::Log1p),
    ]
}

proptest! {
    #[test]
    fn it_is_the_steps_one_after_the_other(
        steps in prop::collection::vec((prop::collection::btree_set(0..3_usize, 1..4), action()), 0..6),
        rows in prop::collection::vec(prop_oneof![4 => -10.0..10.0_f64, 1 => Just(f64::NAN)], 3..=12),
    ) {
        let names = ["a", "b", "c"];
        let rows = &rows[..rows.len() / 3 * 3];
        let steps: Vec<Step> = steps.into_iter()
            .map(|(columns, action)| step(&columns.into_iter().map(|column| names[column]).collect::<Vec<_>>(), action))
            .collect();
        let (own, wanted) = (apply(&steps, &names, rows, &[]), naive(&steps, &names, rows));
        prop_assert!(own.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()), "{own:?} {wanted:?}");
    }
}
