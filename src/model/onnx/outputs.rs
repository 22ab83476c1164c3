//! Output tensors in, scores out. Of a graph's outputs one is scored: probabilities before labels.
//!
//! 1. A float or double tensor: the only one, or the one with a name that converters give to scores ([`SCORES`]).
//! 2. The maps of a `ZipMap` (class label to probability, a map each row), put in the order of its class labels.
//! 3. Integer labels, as numbers.

use std::fmt::Debug;
use std::hash::Hash;

use ort::value::{
    DynMapValueType, DynValue, IntoTensorElementType, Outlet, PrimitiveTensorElementType, TensorElementType, ValueType,
};

use super::describe;
use super::graph::{GraphFile, Labels};

/// What skl2onnx, onnxmltools, hummingbird and `PyTorch` call the output that holds scores, the likeliest first.
const SCORES: [&str; 7] =
    ["probabilities", "output_probability", "probability", "variable", "scores", "score", "output"];

/// The output that is scored, and how it is read.
#[derive(Debug, PartialEq)]
pub(super) struct Output {
    /// Its name in the graph.
    pub(super) name: String,
    form: Form,
}

#[derive(Debug, PartialEq)]
enum Form {
    Tensor(TensorElementType),
    Maps {
        labels: Labels,
        /// The place in class order of each entry of a map: the runtime keeps maps sorted by label.
        places: Vec<usize>,
    },
}

impl Output {
    /// Chooses the output that is scored.
    pub(super) fn choose(outlets: &[Outlet], file: &GraphFile) -> Result<Self, String> {
        let of_type = |wanted: &[TensorElementType]| -> Vec<&Outlet> {
            let fits = |outlet: &&Outlet| outlet.dtype().tensor_type().is_some_and(|found| wanted.contains(&found));
            outlets.iter().filter(fits).collect()
        };
        let floats = of_type(&[TensorElementType::Float32, TensorElementType::Float64]);
        let named = SCORES.iter().find_map(|name| floats.iter().find(|outlet| outlet.name() == *name));
        if let Some(outlet) = named.or(floats.first().filter(|_| floats.len() == 1)) {
            return Ok(Self::tensor(outlet));
        }
        if !floats.is_empty() {
            let shown: Vec<String> = floats.iter().map(|outlet| describe(outlet)).collect();
            let remedy = "keep one of them, or name the one to score `probabilities`";
            return Err(format!("{} outputs could be the scores ({}); {remedy}", shown.len(), shown.join("; ")));
        }
        if let Some(maps) = outlets.iter().find(|outlet| outlet.dtype().is_sequence()) {
            return Self::maps(maps, file);
        }
        let labels = of_type(&[TensorElementType::Int64, TensorElementType::Int32]);
        if let [label] = labels[..] {
            return Ok(Self::tensor(label));
        }
        let shown: Vec<String> = outlets.iter().map(describe).collect();
        let remedy = "export it with probabilities as float tensor (zipmap = False)";
        Err(format!("no output holds numbers to score ({}); {remedy}", shown.join("; ")))
    }

    fn tensor(outlet: &Outlet) -> Self {
        let kind = outlet.dtype().tensor_type().unwrap_or(TensorElementType::Undefined);
        Self { name: outlet.name().to_owned(), form: Form::Tensor(kind) }
    }

    fn maps(outlet: &Outlet, file: &GraphFile) -> Result<Self, String> {
        let name = outlet.name();
        let refuse = |what: &str| {
            let shown = describe(outlet);
            format!("output {shown} {what}; export it with probabilities as float tensor (zipmap = False)")
        };
        let maps = |key| ValueType::Sequence(Box::new(ValueType::Map { key, value: TensorElementType::Float32 }));
        let made_by =
            |node: &&super::graph::Labelled| node.operator == "ZipMap" && node.outputs.iter().any(|made| made == name);
        let zip_map = file.labelled.iter().find(made_by).ok_or_else(|| refuse("is made by no ZipMap"))?;
        let labels = zip_map.labels.clone();
        let mut places: Vec<usize> = (0..labels.len()).collect();
        let key = match &labels {
            Labels::Numbers(labels) => {
                places.sort_by_key(|&place| labels[place]);
                TensorElementType::Int64
            }
            Labels::Texts(labels) => {
                places.sort_by_key(|&place| &labels[place]);
                TensorElementType::String
            }
        };
        if *outlet.dtype() != maps(key) {
            return Err(refuse("holds no maps from label to float"));
        }
        Ok(Self { name: name.to_owned(), form: Form::Maps { labels, places } })
    }

    /// The class labels of its columns, where the output itself knows them.
    pub(super) fn labels(&self) -> Option<&Labels> {
        match &self.form {
            Form::Maps { labels, .. } => Some(labels),
            Form::Tensor(_) => None,
        }
    }

    /// Scores a row in the output of `rows` rows.
    pub(super) fn width(&self, value: &DynValue, rows: usize) -> Result<usize, String> {
        match &self.form {
            Form::Maps { labels, .. } => Ok(labels.len()),
            Form::Tensor(_) => {
                let shape = value.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
                let width = match shape[..] {
                    [_] => Some(1),
                    [_, width] => usize::try_from(width).ok().filter(|&width| width > 0),
                    _ => None,
                };
                let fits = shape.first().is_some_and(|&first| usize::try_from(first) == Ok(rows));
                let refusal =
                    || format!("output {:?} is of shape {shape:?} for {rows} rows, not [rows, scores]", self.name);
                width.filter(|_| fits).ok_or_else(refusal)
            }
        }
    }

    /// Reads the output of `rows` rows, of `width` scores each, into `scores`; which may be of fewer rows, the first.
    pub(super) fn read(&self, value: &DynValue, rows: usize, width: usize, scores: &mut [f64]) -> Result<(), String> {
        let found = self.width(value, rows)?;
        if found != width {
            return Err(format!("output {:?} gave {found} scores a row, not {width} as at the start", self.name));
        }
        let read = match &self.form {
            Form::Tensor(TensorElementType::Float32) => copy::<f32>(value, scores, |score| f64::from(*score)),
            Form::Tensor(TensorElementType::Float64) => copy::<f64>(value, scores, |score| *score),
            Form::Tensor(TensorElementType::Int32) => copy::<i32>(value, scores, |label| f64::from(*label)),
            Form::Tensor(_) => copy::<i64>(value, scores, |label| *label as f64),
            Form::Maps { labels: Labels::Numbers(labels), places } => unzip(value, labels, places, rows, scores),
            Form::Maps { labels: Labels::Texts(labels), places } => unzip(value, labels, places, rows, scores),
        };
        read.map_err(|error| format!("output {:?}: {error}", self.name))
    }
}

fn copy<T: PrimitiveTensorElementType>(
    value: &DynValue,
    scores: &mut [f64],
    number: fn(&T) -> f64,
) -> Result<(), String> {
    let (_, values) = value.try_extract_tensor::<T>().map_err(|error| error.to_string())?;
    if values.len() < scores.len() {
        return Err(format!("{} values, not {}", values.len(), scores.len()));
    }
    for (score, value) in scores.iter_mut().zip(values) {
        *score = number(value);
    }
    Ok(())
}

fn unzip<K>(value: &DynValue, labels: &[K], places: &[usize], rows: usize, scores: &mut [f64]) -> Result<(), String>
where
    K: IntoTensorElementType + Clone + Debug + Eq + Hash,
{
    let maps = value.try_extract_sequence::<DynMapValueType>().map_err(|error| error.to_string())?;
    if maps.len() != rows {
        return Err(format!("{} maps for {rows} rows", maps.len()));
    }
    for (map, scores) in maps.iter().zip(scores.chunks_mut(labels.len())) {
        let entries = map.try_extract_key_values::<K, f32>().map_err(|error| error.to_string())?;
        let fits =
            entries.len() == places.len() && entries.iter().zip(places).all(|(entry, &place)| entry.0 == labels[place]);
        if !fits {
            return Err(format!("a map of other labels than {labels:?}"));
        }
        for (entry, &place) in entries.iter().zip(places) {
            scores[place] = f64::from(entry.1);
        }
    }
    Ok(())
}
