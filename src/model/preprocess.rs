//! [`Preprocessor`]: what records say in, what the model was trained on out; steps that the config declares, column by
//! column. Pure: numbers and texts in, numbers out.
//!
//! A missing value stays missing through every step but `impute`, and `categories` may make one. All is computed in f64,
//! step by step in the order of the config, as scikit-learn's transformers do.

use std::collections::BTreeMap;
use std::fmt;

use super::{FeatureKind, FeatureKinds, ModelSchema, Quantizer, RowType};

/// A number of a step. Equal where its bits are.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

/// What is done to some features, one number of each list for one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The features, by the model's names.
    pub features: Vec<String>,
    /// What is done.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Puts a value in the place of a missing one.
    Impute(Vec<Real>),
    /// (x - offset) / divisor: standard (mean, standard deviation) and min-max (minimum, range).
    Scale {
        /// Subtracted first.
        offset: Vec<Real>,
        /// Not 0.
        divisor: Vec<Real>,
    },
    /// Into these bounds.
    Clip {
        /// The least.
        min: Vec<Real>,
        /// The greatest.
        max: Vec<Real>,
    },
    /// ln(1 + x); a record with -1 or less is refused.
    Log1p,
    /// A text's, or a number's, own number.
    Categories {
        /// By category.
        codes: BTreeMap<Category, Real>,
        /// What becomes of any other.
        unknown: Unknown,
    },
    /// Rows that come as arrays have the features in this order; it is the first step, and names all of them.
    Order,
}

/// A category: all of a step are of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// As text.
    Text(String),
    /// As a number, by its bits.
    Number(u64),
}

/// What becomes of a category that a step does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The record is refused.
    Error,
    /// It counts as missing.
    Missing,
    /// It has this number.
    Code(Real),
}

/// One feature's way through the steps.
#[derive(Clone, Debug)]
enum Op {
    Impute(f64),
    Scale(f64, f64),
    Clip(f64, f64),
    Log1p,
    Texts(BTreeMap<String, f64>, Unknown),
    Numbers(BTreeMap<u64, f64>, Unknown),
}

/// Why a record cannot be preprocessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The feature's place in the record's order.
    pub column: usize,
    /// Its value, and what it may be.
    pub reason: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "features[{}]: {}", self.column, self.reason)
    }
}

/// The steps of one model.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    /// By the record's column.
    ops: Vec<Vec<Op>>,
    names: Vec<String>,
    kinds: FeatureKinds,
    /// The model's column of each of the record's.
    target: Vec<usize>,
    /// Columns whose text the model itself takes.
    passed_texts: Vec<usize>,
    inner_text_columns: Vec<usize>,
    inner_is_f32: bool,
    words: Vec<String>,
    /// Without any, rows come out as they went in.
    has_steps: bool,
    /// Comes after the steps.
    quantizer: Option<Quantizer>,
    digest: [u8; 32],
}

impl Preprocessor {
    /// The steps for a model of that schema.
    ///
    /// # Errors
    /// Which step does not fit it, and how.
    pub fn new(steps: &[Step], schema: &ModelSchema) -> Result<Self, String> {
        let own = &schema.feature_names;
        let names = match steps.first() {
            Some(Step { features, action: Action::Order }) => {
                let (mut sorted, mut wanted) = (features.clone(), own.clone());
                sorted.sort_unstable();
                wanted.sort_unstable();
                if sorted != wanted {
                    return Err(format!(
                        "preprocess[0]: \"order\" names all features of the model, each once: {}",
                        own.join(", ")
                    ));
                }
                features.clone()
            }
            _ => own.clone(),
        };
        let place = |at: usize, name: &String| {
            names.iter().position(|known| known == name).ok_or_else(|| {
                let near =
                    names.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
                format!(
                    "preprocess[{at}]: the model has no feature {name:?}; did you mean {near:?}?",
                    near = near.map_or("", |near| near)
                )
            })
        };
        let mut ops: Vec<Vec<Op>> = vec![Vec::new(); names.len()];
        let mut words = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            for (number, name) in step.features.iter().enumerate() {
                let column = place(at, name)?;
                let one = |list: &Vec<Real>| list[if list.len() == 1 { 0 } else { number }].0;
                ops[column].push(match &step.action {
                    Action::Impute(values) => Op::Impute(one(values)),
                    Action::Scale { offset, divisor } => Op::Scale(one(offset), one(divisor)),
                    Action::Clip { min, max } => Op::Clip(one(min), one(max)),
                    Action::Log1p => Op::Log1p,
                    Action::Categories { codes, unknown } => categories(codes, *unknown),
                    Action::Order if at == 0 => continue,
                    Action::Order => return Err(format!("preprocess[{at}]: \"order\" is the first step or none")),
                });
                if let Some(Op::Texts(codes, _)) = ops[column].last() {
                    words.extend(codes.keys().cloned());
                    if ops[column].len() > 1 {
                        return Err(format!(
                            "preprocess[{at}]: {name}: categories of text come before every other step"
                        ));
                    }
                }
            }
        }
        let target: Vec<usize> =
            names.iter().map(|name| own.iter().position(|known| known == name).unwrap_or_default()).collect();
        let kind = |column: usize| match ops[column].first() {
            Some(Op::Texts(..)) => FeatureKind::Text,
            Some(_) => FeatureKind::Number,
            None => schema.kinds.of(target[column]),
        };
        let kinds: Vec<FeatureKind> = (0..names.len()).map(kind).collect();
        let inner_text_columns = schema.kinds.text_columns().to_vec();
        if let Some(column) =
            (0..names.len()).find(|&column| !ops[column].is_empty() && inner_text_columns.contains(&target[column]))
        {
            return Err(format!("preprocess: {}: the model takes it as text, so no step can change it", names[column]));
        }
        let kinds = FeatureKinds::new(kinds);
        let passed_texts = inner_text_columns.iter().filter_map(|inner| {
            let column = target.iter().position(|target| target == inner)?;
            kinds.text_columns().iter().position(|text| *text == column)
        });
        let passed_texts = passed_texts.collect();
        let inner_is_f32 = schema.row_type == RowType::F32;
        let subject = format!("{steps:?} {own:?} {:?} {:?}", schema.kinds, schema.row_type);
        let digest = *blake3::hash(subject.as_bytes()).as_bytes();
        let has_steps = ops.iter().any(|ops| !ops.is_empty()) || !target.is_sorted();
        Ok(Self {
            ops,
            names,
            kinds,
            target,
            passed_texts,
            inner_text_columns,
            inner_is_f32,
            words,
            has_steps,
            quantizer: None,
            digest,
        })
    }

    /// The same steps, and a rounding of what they give.
    #[must_use]
    pub fn with_quantizer(self, quantizer: Quantizer) -> Self {
        let mut digest = blake3::Hasher::new();
        digest.update(&self.digest).update(quantizer.digest());
        Self { quantizer: Some(quantizer), digest: *digest.finalize().as_bytes(), ..self }
    }

    /// What rounds the steps' results.
    #[must_use]
    pub fn quantizer(&self) -> Option<&Quantizer> {
        self.quantizer.as_ref()
    }

    /// Whether there are steps; without any, rows come out as they went in, but for the rounding.
    #[must_use]
    pub fn has_steps(&self) -> bool {
        self.has_steps
    }

    /// The model's columns that hold the numbers of categories.
    #[must_use]
    pub fn coded(&self) -> Vec<bool> {
        let mut coded = vec![false; self.names.len()];
        for (ops, target) in self.ops.iter().zip(&self.target) {
            coded[*target] = ops.iter().any(|op| matches!(op, Op::Texts(..) | Op::Numbers(..)));
        }
        coded
    }

    /// The features of a record, in its order.
    #[must_use]
    pub fn feature_names(&self) -> &[String] {
        &self.names
    }

    /// What each of them is.
    #[must_use]
    pub fn kinds(&self) -> &FeatureKinds {
        &self.kinds
    }

    /// Texts that some feature knows.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The float type that the model takes.
    #[must_use]
    pub fn row_type(&self) -> RowType {
        if self.inner_is_f32 { RowType::F32 } else { RowType::F64 }
    }

    /// Texts of a row that the model itself takes.
    #[must_use]
    pub fn text_width(&self) -> usize {
        self.inner_text_columns.len()
    }

    /// Stands for the steps and the features that they are done to: where it is equal, so are results.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The texts of rows that the model itself takes.
    pub fn pass_texts<'t>(&self, texts: &[Option<&'t str>], out: &mut Vec<Option<&'t str>>) {
        out.clear();
        let text_width = self.kinds.text_columns().len();
        for own in texts.chunks_exact(text_width.max(1)) {
            out.extend(self.passed_texts.iter().map(|&place| own[place]));
        }
    }

    /// Whether a record's rows can be preprocessed. `texts` has a cell for each text column of each row.
    ///
    /// # Errors
    /// The first value that cannot.
    pub fn check(&self, values: &[f64], texts: &[Option<&str>]) -> Result<(), Unfit> {
        if !self.has_steps && !self.inner_is_f32 {
            return Ok(());
        }
        let text_width = self.kinds.text_columns().len();
        for (row, values) in values.chunks_exact(self.names.len()).enumerate() {
            let mut texts = texts[row * text_width..].iter();
            for (column, (value, ops)) in values.iter().zip(&self.ops).enumerate() {
                let text = self.is_text(column).then(|| texts.next().copied().flatten()).flatten();
                let unfit = |reason| Unfit { column, reason: format!("{}: {reason}", self.names[column]) };
                let result = run(ops, *value, text).map_err(unfit)?;
                if self.inner_is_f32 && result.is_finite() && super::validate::narrow(result).is_infinite() {
                    return Err(unfit(format!("becomes {result}, too large: the model takes 32-bit floats")));
                }
            }
        }
        Ok(())
    }

    fn is_text(&self, column: usize) -> bool {
        self.kinds.of(column) == FeatureKind::Text
    }

    /// Preprocesses rows, into the model's order, and rounds them if there is a quantizer. Values that
    /// [`Preprocessor::check`] refuses become NaN.
    pub fn apply<'t>(
        &self,
        values: &[f64],
        texts: &[Option<&'t str>],
        out: &mut Vec<f64>,
        out_texts: &mut Vec<Option<&'t str>>,
    ) {
        self.run_steps(values, texts, out, out_texts);
        if let Some(quantizer) = &self.quantizer {
            quantizer.apply(out);
        }
    }

    /// How many values the steps give that are beyond what the quantizer's form holds.
    #[must_use]
    pub fn out_of_range(&self, values: &[f64], texts: &[Option<&str>]) -> usize {
        let Some(quantizer) = &self.quantizer else { return 0 };
        let mut out = Vec::new();
        self.run_steps(values, texts, &mut out, &mut Vec::new());
        quantizer.out_of_range(&out)
    }

    fn run_steps<'t>(
        &self,
        values: &[f64],
        texts: &[Option<&'t str>],
        out: &mut Vec<f64>,
        out_texts: &mut Vec<Option<&'t str>>,
    ) {
        let (width, text_width) = (self.names.len(), self.kinds.text_columns().len());
        out.clear();
        self.pass_texts(texts, out_texts);
        if !self.has_steps {
            out.extend_from_slice(values);
            return;
        }
        out.resize(values.len(), f64::NAN);
        for (row, (values, out)) in values.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let own_texts = &texts[row * text_width..(row + 1) * text_width];
            let mut next_text = own_texts.iter();
            for (column, (value, ops)) in values.iter().zip(&self.ops).enumerate() {
                let text = self.is_text(column).then(|| next_text.next().copied().flatten()).flatten();
                out[self.target[column]] = run(ops, *value, text).unwrap_or(f64::NAN);
            }
        }
        debug_assert_eq!(out_texts.len(), self.inner_text_columns.len() * values.len() / width.max(1));
    }
}

fn categories(codes: &BTreeMap<Category, Real>, unknown: Unknown) -> Op {
    let is_text = codes.keys().all(|category| matches!(category, Category::Text(_)));
    if is_text {
        let text = |(category, code): (&Category, &Real)| match category {
            Category::Text(text) => Some((text.clone(), code.0)),
            Category::Number(_) => None,
        };
        Op::Texts(codes.iter().filter_map(text).collect(), unknown)
    } else {
        let number = |(category, code): (&Category, &Real)| match category {
            Category::Number(bits) => Some((*bits, code.0)),
            Category::Text(_) => None,
        };
        Op::Numbers(codes.iter().filter_map(number).collect(), unknown)
    }
}

/// One value through its steps. `text`: what is in the cell of a text column.
fn run(ops: &[Op], value: f64, text: Option<&str>) -> Result<f64, String> {
    ops.iter().try_fold(value, |value, op| match op {
        Op::Impute(fill) => Ok(if value.is_nan() { *fill } else { value }),
        Op::Scale(offset, divisor) => Ok((value - offset) / divisor),
        // Not `f64::clamp`, which panics on bounds that the config may hold; NaN stays.
        Op::Clip(min, max) => Ok(if value < *min {
            *min
        } else if value > *max {
            *max
        } else {
            value
        }),
        Op::Log1p if value <= -1.0 => Err(format!("got {value}, wants more than -1: its logarithm is taken")),
        Op::Log1p => Ok(value.ln_1p()),
        Op::Texts(codes, unknown) => match text {
            None => Ok(f64::NAN),
            Some(text) => known(codes.get(text), *unknown, || format!("got {:?}", clipped(text)), codes.keys()),
        },
        Op::Numbers(..) if value.is_nan() => Ok(value),
        Op::Numbers(codes, unknown) => {
            // Both zeros are one category.
            let bits = (value + 0.0).to_bits();
            let names = codes.keys().map(|bits| f64::from_bits(*bits));
            known(codes.get(&bits), *unknown, || format!("got {value}"), names)
        }
    })
}

fn known<N: fmt::Debug>(
    code: Option<&f64>,
    unknown: Unknown,
    got: impl FnOnce() -> String,
    names: impl Iterator<Item = N>,
) -> Result<f64, String> {
    match (code, unknown) {
        (Some(code), _) => Ok(*code),
        (None, Unknown::Missing) => Ok(f64::NAN),
        (None, Unknown::Code(code)) => Ok(code.0),
        (None, Unknown::Error) => {
            let names: Vec<String> = names.take(10).map(|name| format!("{name:?}")).collect();
            Err(format!("{}, an unknown category; known are {}", got(), names.join(", ")))
        }
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
