//! Output tensors in, scores out. Of a graph's outputs those are scored that the config names, joined in its order; else
//! one, probabilities before labels:
//!
//! 1. A float tensor: the only one, or the one with a name that converters give to scores ([`SCORES`]).
//! 2. The maps of a `ZipMap` (class label to probability, a map each row), put in the order of its class labels.
//! 3. Integer or boolean labels, as numbers.
//!
//! A tensor has its rows in the first dimension; the others are laid out flat, the last running fastest.

use std::fmt::Debug;
use std::hash::Hash;

use half::{bf16, f16};
use ort::session::SessionOutputs;
use ort::value::{
    DynMapValueType, DynValue, IntoTensorElementType, Outlet, PrimitiveTensorElementType, TensorElementType, ValueType,
};

use super::describe;
use super::graph::{GraphFile, Labelled, Labels};

/// What skl2onnx, onnxmltools, hummingbird and `PyTorch` call the output that holds scores, the likeliest first.
const SCORES: [&str; 7] =
    ["probabilities", "output_probability", "probability", "variable", "scores", "score", "output"];
const FLOATS: [TensorElementType; 4] =
    [TensorElementType::Float32, TensorElementType::Float64, TensorElementType::Float16, TensorElementType::Bfloat16];

/// The outputs that are scored, in the order of a row's scores.
#[derive(Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) parts: Vec<Output>,
}

/// An output that is scored, and how it is read.
#[derive(Debug, PartialEq)]
pub(super) struct Output {
    /// Its name in the graph.
    pub(super) name: String,
    form: Form,
    /// Scores a row, where the graph tells.
    width_told: Option<usize>,
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

impl Scored {
    /// Chooses the outputs that are scored: the wanted ones, if any are named.
    pub(super) fn choose(outlets: &[Outlet], file: &GraphFile, wanted: &[String]) -> Result<Self, String> {
        if wanted.is_empty() {
            return Ok(Self { parts: vec![Output::likeliest(outlets, file)?] });
        }
        let part = |name: &String| {
            let outlet = outlets.iter().find(|outlet| outlet.name() == name).ok_or_else(|| {
                let shown: Vec<String> = outlets.iter().map(describe).collect();
                format!("it has no output {name:?}, as `output` under [model.onnx] wants; it has {}", shown.join("; "))
            })?;
            Output::of(outlet, file)
        };
        Ok(Self { parts: wanted.iter().map(part).collect::<Result<_, _>>()? })
    }

    /// Scores a row of each output, as the graph itself tells; `None` where it leaves one open.
    pub(super) fn widths_told(&self) -> Option<Vec<usize>> {
        self.parts.iter().map(|part| part.width_told).collect()
    }

    /// Scores a row of each output in a call of `rows` rows.
    pub(super) fn widths(&self, outputs: &SessionOutputs<'_>, rows: usize) -> Result<Vec<usize>, String> {
        self.parts.iter().map(|part| part.width(part.value(outputs)?, rows)).collect()
    }

    /// Reads the outputs of a call of `rows` rows into `scores`, a row's side by side; which may be of fewer rows, the first.
    pub(super) fn read(
        &self,
        outputs: &SessionOutputs<'_>,
        rows: usize,
        widths: &[usize],
        scores: &mut [f64],
    ) -> Result<(), String> {
        let (stride, mut first) = (widths.iter().sum(), 0);
        for (part, &width) in self.parts.iter().zip(widths) {
            part.read(part.value(outputs)?, rows, Place { stride, first, width }, scores)?;
            first += width;
        }
        Ok(())
    }
}

/// Where a row's scores of one output stand among all.
#[derive(Clone, Copy)]
struct Place {
    /// Scores a row of all outputs.
    stride: usize,
    first: usize,
    width: usize,
}

impl Place {
    /// The places of each row.
    fn rows(self, scores: &mut [f64]) -> impl Iterator<Item = &mut [f64]> {
        scores.chunks_mut(self.stride).map(move |row| &mut row[self.first..self.first + self.width])
    }
}

impl Output {
    fn likeliest(outlets: &[Outlet], file: &GraphFile) -> Result<Self, String> {
        let of_type = |wanted: &[TensorElementType]| -> Vec<&Outlet> {
            let fits = |outlet: &&Outlet| outlet.dtype().tensor_type().is_some_and(|found| wanted.contains(&found));
            outlets.iter().filter(fits).collect()
        };
        let floats = of_type(&FLOATS);
        let named = SCORES.iter().find_map(|name| floats.iter().find(|outlet| outlet.name() == *name));
        if let Some(outlet) = named.or(floats.first().filter(|_| floats.len() == 1)) {
            return Self::of(outlet, file);
        }
        if !floats.is_empty() {
            let shown: Vec<String> = floats.iter().map(|outlet| describe(outlet)).collect();
            let remedy = "name the one to score, or several, as `output` under [model.onnx]";
            return Err(format!("{} outputs could be the scores ({}); {remedy}", shown.len(), shown.join("; ")));
        }
        if let Some(maps) = outlets.iter().find(|outlet| outlet.dtype().is_sequence()) {
            return Self::of(maps, file);
        }
        let labels = outlets.iter().filter(|outlet| outlet.dtype().tensor_type().is_some_and(is_whole));
        if let [label] = labels.collect::<Vec<_>>()[..] {
            return Self::of(label, file);
        }
        let shown: Vec<String> = outlets.iter().map(describe).collect();
        let remedy = "export it with probabilities as float tensor (zipmap = False)";
        Err(format!("no output holds numbers to score ({}); {remedy}", shown.join("; ")))
    }

    fn of(outlet: &Outlet, file: &GraphFile) -> Result<Self, String> {
        match outlet.dtype() {
            ValueType::Sequence(_) => Self::maps(outlet, file),
            ValueType::Tensor { ty, shape, .. } if FLOATS.contains(ty) || is_whole(*ty) => {
                let inner = shape.get(1..).unwrap_or_default().iter();
                let width: Option<usize> =
                    inner.map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).product();
                let width_told = width.filter(|_| !shape.is_empty());
                Ok(Self { name: outlet.name().to_owned(), form: Form::Tensor(*ty), width_told })
            }
            _ => {
                let remedy = "score its probabilities, as a float tensor (zipmap = False)";
                Err(format!("output {} holds no numbers; {remedy}", describe(outlet)))
            }
        }
    }

    fn maps(outlet: &Outlet, file: &GraphFile) -> Result<Self, String> {
        let name = outlet.name();
        let refuse = |what: &str| {
            let shown = describe(outlet);
            format!("output {shown} {what}; export it with probabilities as float tensor (zipmap = False)")
        };
        let maps = |key| ValueType::Sequence(Box::new(ValueType::Map { key, value: TensorElementType::Float32 }));
        let made_by = |node: &&Labelled| node.operator == "ZipMap" && node.outputs.iter().any(|made| made == name);
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
        let width_told = Some(labels.len());
        Ok(Self { name: name.to_owned(), form: Form::Maps { labels, places }, width_told })
    }

    /// The class labels of its columns, where the output itself knows them.
    pub(super) fn labels(&self) -> Option<&Labels> {
        match &self.form {
            Form::Maps { labels, .. } => Some(labels),
            Form::Tensor(_) => None,
        }
    }

    fn value<'o>(&self, outputs: &'o SessionOutputs<'_>) -> Result<&'o DynValue, String> {
        outputs.get(&self.name).ok_or_else(|| format!("no output {:?}", self.name))
    }

    fn width(&self, value: &DynValue, rows: usize) -> Result<usize, String> {
        match &self.form {
            Form::Maps { labels, .. } => Ok(labels.len()),
            Form::Tensor(_) => {
                let shape = value.dtype().tensor_shape().map(|shape| shape.to_vec()).unwrap_or_default();
                let refusal =
                    || format!("output {:?} is of shape {shape:?} for {rows} rows, not [rows, scores]", self.name);
                let (first, inner) = shape.split_first().ok_or_else(refusal)?;
                let width: Option<usize> = inner.iter().map(|&size| usize::try_from(size).ok()).product();
                let fits = usize::try_from(*first) == Ok(rows);
                width.filter(|&width| fits && width > 0).ok_or_else(refusal)
            }
        }
    }

    fn read(&self, value: &DynValue, rows: usize, place: Place, scores: &mut [f64]) -> Result<(), String> {
        let found = self.width(value, rows)?;
        if found != place.width {
            return Err(format!(
                "output {:?} gave {found} scores a row, not {} as at the start",
                self.name, place.width
            ));
        }
        let read = match &self.form {
            Form::Tensor(kind) => read_tensor(*kind, value, place, scores),
            Form::Maps { labels: Labels::Numbers(labels), places } => {
                unzip(value, (labels, places), rows, place, scores)
            }
            Form::Maps { labels: Labels::Texts(labels), places } => unzip(value, (labels, places), rows, place, scores),
        };
        read.map_err(|error| format!("output {:?}: {error}", self.name))
    }
}

/// Whether labels of this type are numbers.
fn is_whole(kind: TensorElementType) -> bool {
    use TensorElementType::{Bool, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(kind, Bool | Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64)
}

fn read_tensor(kind: TensorElementType, value: &DynValue, place: Place, scores: &mut [f64]) -> Result<(), String> {
    match kind {
        TensorElementType::Float32 => copy(value, place, scores, |score: &f32| f64::from(*score)),
        TensorElementType::Float64 => copy(value, place, scores, |score: &f64| *score),
        TensorElementType::Float16 => copy(value, place, scores, |score: &f16| f64::from(*score)),
        TensorElementType::Bfloat16 => copy(value, place, scores, |score: &bf16| f64::from(*score)),
        TensorElementType::Bool => copy(value, place, scores, |label: &bool| f64::from(u8::from(*label))),
        TensorElementType::Int8 => copy(value, place, scores, |label: &i8| f64::from(*label)),
        TensorElementType::Int16 => copy(value, place, scores, |label: &i16| f64::from(*label)),
        TensorElementType::Int32 => copy(value, place, scores, |label: &i32| f64::from(*label)),
        TensorElementType::Uint8 => copy(value, place, scores, |label: &u8| f64::from(*label)),
        TensorElementType::Uint16 => copy(value, place, scores, |label: &u16| f64::from(*label)),
        TensorElementType::Uint32 => copy(value, place, scores, |label: &u32| f64::from(*label)),
        TensorElementType::Uint64 => copy(value, place, scores, |label: &u64| *label as f64),
        _ => copy(value, place, scores, |label: &i64| *label as f64),
    }
}

fn copy<T: PrimitiveTensorElementType>(
    value: &DynValue,
    place: Place,
    scores: &mut [f64],
    number: fn(&T) -> f64,
) -> Result<(), String> {
    let (_, values) = value.try_extract_tensor::<T>().map_err(|error| error.to_string())?;
    let wanted = scores.len() / place.stride * place.width;
    if values.len() < wanted {
        return Err(format!("{} values, not {wanted}", values.len()));
    }
    for (scores, values) in place.rows(scores).zip(values.chunks(place.width)) {
        for (score, value) in scores.iter_mut().zip(values) {
            *score = number(value);
        }
    }
    Ok(())
}

fn unzip<K>(
    value: &DynValue,
    (labels, places): (&[K], &[usize]),
    rows: usize,
    place: Place,
    scores: &mut [f64],
) -> Result<(), String>
where
    K: IntoTensorElementType + Clone + Debug + Eq + Hash,
{
    let maps = value.try_extract_sequence::<DynMapValueType>().map_err(|error| error.to_string())?;
    if maps.len() != rows {
        return Err(format!("{} maps for {rows} rows", maps.len()));
    }
    for (map, scores) in maps.iter().zip(place.rows(scores)) {
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
