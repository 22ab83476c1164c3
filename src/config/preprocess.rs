//! `[[model.preprocess]]`: the steps before a model; their keys, checked, and back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::Check;
use super::substitute::literal;
use crate::model::{Action, Category, Real, Step, Unknown};

/// `[[model.preprocess]]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["step", "features"]))]
pub(super) struct RawStep {
    /// What is done: "impute" (`values`), "standard" ((x - `mean`) / `std`), "minmax" ((x - `min`) / (`max` - `min`)),
    /// "clip" (`min`, `max`), "log1p" (ln(1 + x)), "categories" (`codes`), "order" (rows that come as arrays have the
    /// features in this order). Required.
    #[schemars(with = "StepName")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<StepName>,
    /// The features that it is done to, by the model's names. Required; at least one.
    #[schemars(with = "Vec<String>", length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) features: Option<Vec<String>>,
    /// "impute": what stands for a missing value; one for all features, or one for each. Default none.
    pub(super) values: Vec<f64>,
    /// "standard": the mean; one for all features, or one for each. Default none.
    pub(super) mean: Vec<f64>,
    /// "standard": the standard deviation, not 0; one for all features, or one for each. Default none.
    pub(super) std: Vec<f64>,
    /// "minmax" and "clip": the least value; one for all features, or one for each. Default none.
    pub(super) min: Vec<f64>,
    /// "minmax" and "clip": the greatest value; one for all features, or one for each. Default none.
    pub(super) max: Vec<f64>,
    /// "categories": the number of each category. Default none.
    pub(super) codes: BTreeMap<String, f64>,
    /// "categories": whether records have them as texts, or as numbers. Default "text".
    pub(super) codes_of: CodesOf,
    /// "categories": what becomes of any other: "error" refuses the record, "missing" takes it for a missing value, a number
    /// stands for it. Default "error".
    pub(super) unknown: RawUnknown,
}

/// The name of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StepName {
    /// A value in the place of a missing one.
    Impute,
    /// Mean 0, deviation 1.
    Standard,
    /// From 0 to 1.
    Minmax,
    /// Into bounds.
    Clip,
    /// The logarithm of 1 + x.
    Log1p,
    /// A category's number.
    Categories,
    /// The order of rows that come as arrays.
    Order,
}

/// What categories are in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum CodesOf {
    /// Texts.
    #[default]
    Text,
    /// Numbers.
    Number,
}

/// What becomes of an unknown category.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawUnknown {
    /// By a rule.
    Rule(UnknownRule),
    /// This number.
    Code(f64),
}

/// A rule for unknown categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnknownRule {
    /// The record is refused.
    Error,
    /// It is missing.
    Missing,
}

impl Default for RawStep {
    fn default() -> Self {
        Self {
            step: None,
            features: None,
            values: Vec::new(),
            mean: Vec::new(),
            std: Vec::new(),
            min: Vec::new(),
            max: Vec::new(),
            codes: BTreeMap::new(),
            codes_of: CodesOf::Text,
            unknown: RawUnknown::Rule(UnknownRule::Error),
        }
    }
}

/// The tables at `key`.
pub(super) fn steps(check: &mut Check<'_>, key: &str, raw: &[RawStep]) -> Vec<Step> {
    let one = |(at, raw): (usize, &RawStep)| {
        let (key, features) = (format!("{key}[{at}]"), raw.features.clone()?);
        let action = Reading { check, key: &key, raw, features: features.len() }.action(raw.step?)?;
        Some(Step { features, action })
    };
    raw.iter().enumerate().filter_map(one).collect()
}

struct Reading<'r, 'c, 'p> {
    check: &'r mut Check<'c>,
    key: &'p str,
    raw: &'p RawStep,
    features: usize,
}

impl Reading<'_, '_, '_> {
    fn refuse(&mut self, name: &str, message: String) {
        self.check.refuse(&format!("{}.{name}", self.key), message);
    }

    /// A list that the step needs: one number, or as many as features.
    fn list(&mut self, name: &str, numbers: &[f64]) -> Vec<Real> {
        if numbers.len() != 1 && numbers.len() != self.features {
            let (got, features) = (numbers.len(), self.features);
            self.refuse(name, format!("got {got} numbers, wants one, or {features}: one for each of `features`"));
        }
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            self.refuse(name, format!("got {number}, wants finite numbers"));
        }
        numbers.iter().copied().map(Real).collect()
    }

    /// Keys of other steps would do nothing.
    fn no_others(&mut self, own: &[&str]) {
        let raw = self.raw;
        let given = [
            ("values", !raw.values.is_empty()),
            ("mean", !raw.mean.is_empty()),
            ("std", !raw.std.is_empty()),
            ("min", !raw.min.is_empty()),
            ("max", !raw.max.is_empty()),
            ("codes", !raw.codes.is_empty()),
        ];
        for (name, _) in given.iter().filter(|(name, is_given)| *is_given && !own.contains(name)) {
            self.refuse(
                name,
                format!("is no key of this step{}", if own.is_empty() { "" } else { "; it has " }) + &own.join(", "),
            );
        }
    }

    fn action(&mut self, step: StepName) -> Option<Action> {
        let raw = self.raw;
        Some(match step {
            StepName::Impute => {
                self.no_others(&["values"]);
                Action::Impute(self.list("values", &raw.values))
            }
            StepName::Standard => {
                self.no_others(&["mean", "std"]);
                let (offset, divisor) = (self.list("mean", &raw.mean), self.list("std", &raw.std));
                if raw.std.contains(&0.0) {
                    self.refuse("std", "got 0, by which nothing is divided; leave a constant feature out".to_owned());
                }
                Action::Scale { offset, divisor }
            }
            StepName::Minmax => {
                self.no_others(&["min", "max"]);
                let (min, max) = (self.list("min", &raw.min), self.list("max", &raw.max));
                let at =
                    |list: &[Real], place: usize| list.get(if list.len() == 1 { 0 } else { place }).map(|real| real.0);
                let range = |place| Some(Real(at(&max, place)? - at(&min, place)?));
                let divisor: Option<Vec<Real>> = (0..min.len().max(max.len())).map(range).collect();
                let divisor = divisor?;
                if divisor.iter().any(|range| range.0 <= 0.0) {
                    self.refuse("max", "wants more than `min`; leave a constant feature out".to_owned());
                }
                Action::Scale { offset: min, divisor }
            }
            StepName::Clip => {
                self.no_others(&["min", "max"]);
                Action::Clip { min: self.list("min", &raw.min), max: self.list("max", &raw.max) }
            }
            StepName::Log1p => {
                self.no_others(&[]);
                Action::Log1p
            }
            StepName::Order => {
                self.no_others(&[]);
                Action::Order
            }
            StepName::Categories => {
                self.no_others(&["codes"]);
                self.categories()
            }
        })
    }

    fn categories(&mut self) -> Action {
        if self.raw.codes.is_empty() {
            self.refuse("codes", "is missing; add codes = { category = number, … }".to_owned());
        }
        let mut codes = BTreeMap::new();
        for (name, code) in &self.raw.codes {
            let category = match self.raw.codes_of {
                CodesOf::Text => Some(Category::Text(name.clone())),
                // Both zeros are one category.
                CodesOf::Number => name.parse().ok().map(|number: f64| Category::Number((number + 0.0).to_bits())),
            };
            match category {
                Some(category) => _ = codes.insert(category, Real(*code)),
                None => {
                    self.refuse(&format!("codes.{name}"), format!("{name:?} is no number, and codes_of is \"number\""));
                }
            }
        }
        let unknown = match self.raw.unknown {
            RawUnknown::Rule(UnknownRule::Error) => Unknown::Error,
            RawUnknown::Rule(UnknownRule::Missing) => Unknown::Missing,
            RawUnknown::Code(code) => Unknown::Code(Real(code)),
        };
        Action::Categories { codes, unknown }
    }
}

/// The tables that say the same.
pub(super) fn dump(steps: &[Step]) -> Vec<RawStep> {
    steps.iter().map(dump_step).collect()
}

fn dump_step(step: &Step) -> RawStep {
    let numbers = |list: &[Real]| list.iter().map(|real| real.0).collect::<Vec<f64>>();
    let features = Some(step.features.iter().map(|name| literal(name)).collect());
    let raw = |name| RawStep { step: Some(name), features, ..RawStep::default() };
    match &step.action {
        Action::Impute(values) => RawStep { values: numbers(values), ..raw(StepName::Impute) },
        Action::Scale { offset, divisor } => {
            RawStep { mean: numbers(offset), std: numbers(divisor), ..raw(StepName::Standard) }
        }
        Action::Clip { min, max } => RawStep { min: numbers(min), max: numbers(max), ..raw(StepName::Clip) },
        Action::Log1p => raw(StepName::Log1p),
        Action::Order => raw(StepName::Order),
        Action::Categories { codes, unknown } => {
            let is_number = codes.keys().any(|category| matches!(category, Category::Number(_)));
            let name = |category: &Category| match category {
                Category::Text(text) => text.clone(),
                Category::Number(bits) => f64::from_bits(*bits).to_string(),
            };
            RawStep {
                codes: codes.iter().map(|(category, code)| (name(category), code.0)).collect(),
                codes_of: if is_number { CodesOf::Number } else { CodesOf::Text },
                unknown: match unknown {
                    Unknown::Error => RawUnknown::Rule(UnknownRule::Error),
                    Unknown::Missing => RawUnknown::Rule(UnknownRule::Missing),
                    Unknown::Code(code) => RawUnknown::Code(code.0),
                },
                ..raw(StepName::Categories)
            }
        }
    }
}
