//! One tensor of `inputs` in, a [`Tensor`] out whose values are as many as its shape says and fit its datatype.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{MapAccess, SeqAccess};

use super::datatype::{self, Datatype, shown, truth_cell};
use super::{Fields, Inputs, TakeParameters};
use crate::decode::kinds::{text_cell, text_number};
use crate::decode::message::quoted;
use crate::decode::value::{Give, Scalar, Take, Text, given};
use crate::record::{Chunk, TextMark};

/// A good tensor, its values in the feature arena.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) shape: Shape,
    /// Values of one row that is a list of its own; `None` where all are one list.
    nested: Option<usize>,
    pub(super) values: Range<usize>,
}

/// `[rows]` or `[rows, columns]`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    dimensions: usize,
    pub(super) rows: usize,
    columns: usize,
}

impl Shape {
    /// Values a row.
    pub(super) fn width(self) -> usize {
        if self.dimensions == 1 { 1 } else { self.columns }
    }

    pub(super) fn shown(self) -> String {
        if self.dimensions == 1 { format!("[{}]", self.rows) } else { format!("[{}, {}]", self.rows, self.columns) }
    }
}

impl Tensor<'_> {
    /// A cell as messages show it.
    pub(super) fn place(&self, tensor: usize, cell: usize) -> String {
        match self.nested {
            Some(width) => format!("inputs[{tensor}].data[{}][{}]", cell / width.max(1), cell % width.max(1)),
            None => format!("inputs[{tensor}].data[{cell}]"),
        }
    }

    /// Holds the values against the datatype and makes cells of them.
    fn settle(&self, number: usize, datatype: Datatype, chunk: &mut Chunk, texts: TextMark) -> Result<(), String> {
        let (values, texts_arena) = chunk.features_and_texts_mut();
        for (index, value) in values[self.values.clone()].iter_mut().enumerate() {
            *value = datatype.cell(*value).ok_or_else(|| {
                let place = self.place(number, index);
                let got = match text_number(*value) {
                    Some(text) => quoted(texts_arena.get(texts, text as usize).unwrap_or_default()),
                    None => shown(*value),
                };
                format!("{place}: got {got}, {datatype} or null")
            })?;
        }
        Ok(())
    }
}

/// What is known of a tensor while it is read.
#[derive(Default)]
struct Draft<'a> {
    name: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    datatype: Option<Datatype>,
    data: Option<Data>,
}

/// The values of a tensor, in the order of the arena.
#[derive(Clone, Debug, Default)]
struct Data {
    values: Range<usize>,
    /// Lists within the list; `None` where there are values only.
    lists: Option<Lists>,
}

#[derive(Clone, Copy, Debug)]
struct Lists {
    count: usize,
    width: usize,
}

/// Takes a tensor and puts it to the others.
pub(super) struct TakeTensor<'r, 'a> {
    pub(super) inputs: &'r mut Inputs<'a>,
    pub(super) chunk: &'r mut Chunk,
    /// Where the strings of the record begin.
    pub(super) texts: TextMark,
}

impl<'a> Take<'a> for TakeTensor<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.inputs.fault_here(|| format!("got {got}, wants a tensor: an object with name, shape, datatype and data"));
    }

    fn object<A: MapAccess<'a>>(mut self, mut object: A) -> Result<(), A::Error> {
        let mut draft = Draft::default();
        let mut fields = Fields::new(&["name", "shape", "datatype", "parameters", "data"]);
        while let Some(Text(name)) = object.next_key()? {
            let field = fields.open(&name);
            self.inputs.at.field = field.as_ref().ok().copied();
            match field {
                Ok("name") => draft.name = self.name(given(&mut object)?),
                Ok("datatype") => draft.datatype = self.datatype(given(&mut object)?),
                Ok("shape") => object.next_value_seed(Give(TakeShape(self.inputs, &mut draft.shape)))?,
                Ok("data") => {
                    let Self { inputs, chunk, texts } = &mut self;
                    object.next_value_seed(Give(TakeData { inputs, chunk, texts: *texts, data: &mut draft.data }))?;
                }
                Ok(_) => object.next_value_seed(Give(TakeParameters(self.inputs)))?,
                Err(message) => {
                    self.inputs.fault_here(|| message);
                    drop(object.next_value::<Scalar<'_>>()?);
                }
            }
            self.inputs.at.field = None;
        }
        self.end(draft);
        Ok(())
    }
}

impl<'a> TakeTensor<'_, 'a> {
    fn name(&mut self, value: Option<Scalar<'a>>) -> Option<Cow<'a, str>> {
        match value {
            Some(Scalar::Text(name)) => return Some(name),
            Some(got) => self.inputs.fault_here(|| format!("got {got}, wants a string")),
            None => {}
        }
        None
    }

    fn datatype(&mut self, value: Option<Scalar<'a>>) -> Option<Datatype> {
        let name = self.name(value)?;
        let datatype = Datatype::from_name(&name);
        if datatype.is_none() {
            self.inputs.fault_here(|| datatype::unknown(&name));
        }
        datatype
    }

    /// Puts a tensor that is whole and right to the others.
    fn end(self, draft: Draft<'a>) {
        let Self { inputs, chunk, texts } = self;
        let (name, shape, datatype, data) = match draft {
            Draft { name: Some(name), shape: Some(shape), datatype: Some(datatype), data: Some(data) } => {
                (name, shape, datatype, data)
            }
            Draft { name, shape, datatype, .. } => {
                let (field, wants) = match (name, shape, datatype) {
                    (None, ..) => ("name", "a string"),
                    (_, None, _) => ("shape", "[rows, features]"),
                    (.., None) => ("datatype", "the type of the values, such as FP32"),
                    _ => ("data", "a list of values"),
                };
                inputs.at.field = Some(field);
                return inputs.fault_here(|| format!("missing, wants {wants}"));
            }
        };
        if inputs.fault.is_some() {
            return;
        }
        let nested = data.lists.map(|lists| lists.width);
        let tensor = Tensor { name, shape, nested, values: data.values.clone() };
        let number = inputs.tensors.len();
        let checked = data.check(number, shape).and_then(|()| tensor.settle(number, datatype, chunk, texts));
        match checked {
            Ok(()) => inputs.tensors.push(tensor),
            Err(message) => inputs.fault = Some(message),
        }
    }
}

impl Data {
    /// Whether there are as many values as the shape says, and lists as it says.
    fn check(&self, tensor: usize, shape: Shape) -> Result<(), String> {
        let (got, place) = (self.values.len(), format!("inputs[{tensor}]"));
        if shape.rows == 0 || shape.width() == 0 {
            return Err(format!(
                "{place}.shape: got {}, wants one row or more, and one value or more a row",
                shape.shown()
            ));
        }
        match self.lists {
            Some(Lists { count, width }) if shape.dimensions == 1 || (count, width) != (shape.rows, shape.columns) => {
                let shape = shape.shown();
                Err(format!("{place}.data: got {count} lists of {width} values, which is not the shape {shape}"))
            }
            _ if shape.rows.checked_mul(shape.width()) == Some(got) => Ok(()),
            _ => Err(format!("{place}.data: got {got} values, which is not the shape {}", shape.shown())),
        }
    }
}

/// Takes a tensor's shape.
struct TakeShape<'r, 'a>(&'r mut Inputs<'a>, &'r mut Option<Shape>);

impl<'a> Take<'a> for TakeShape<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        if got != Scalar::Null {
            self.0.fault_here(|| format!("got {got}, wants [rows, features]"));
        }
    }

    fn list<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        let Self(inputs, place) = self;
        let mut shape = Shape::default();
        while let Some(got) = list.next_element::<Scalar<'_>>()? {
            inputs.at.item = Some(shape.dimensions);
            let size = got.whole().and_then(|size| usize::try_from(size).ok());
            if size.is_none() {
                inputs.fault_here(|| format!("got {got}, wants a whole number, 0 or more"));
            }
            match shape.dimensions {
                0 => shape.rows = size.unwrap_or_default(),
                _ => shape.columns = size.unwrap_or_default(),
            }
            shape.dimensions += 1;
        }
        inputs.at.item = None;
        if !matches!(shape.dimensions, 1 | 2) {
            inputs.fault_here(|| format!("got {} dimensions, wants [rows, features] or [rows]", shape.dimensions));
        }
        *place = Some(shape);
        Ok(())
    }
}

/// Takes a tensor's data: values, or lists of values.
struct TakeData<'r, 'a> {
    inputs: &'r mut Inputs<'a>,
    chunk: &'r mut Chunk,
    texts: TextMark,
    data: &'r mut Option<Data>,
}

impl<'a> Take<'a> for TakeData<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        if got != Scalar::Null {
            self.inputs.fault_here(|| format!("got {got}, wants a list of values"));
        }
    }

    fn list<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { inputs, chunk, texts, data } = self;
        let start = chunk.features_mut().len();
        let mut lists = None;
        let mut items = 0;
        loop {
            inputs.at.item = Some(items);
            let item = TakeItem { inputs, chunk, texts, lists: &mut lists, is_first: items == 0 };
            if list.next_element_seed(Give(item))?.is_none() {
                break;
            }
            items += 1;
        }
        inputs.at.item = None;
        *data = Some(Data { values: start..chunk.features_mut().len(), lists });
        Ok(())
    }
}

struct TakeItem<'r, 'a> {
    inputs: &'r mut Inputs<'a>,
    chunk: &'r mut Chunk,
    texts: TextMark,
    lists: &'r mut Option<Lists>,
    is_first: bool,
}

impl<'a> Take<'a> for TakeItem<'_, 'a> {
    fn whole(mut self, got: Scalar<'a>) {
        if self.lists.is_some() {
            return self.inputs.fault_here(|| format!("got {got}, wants a list of values, as those before it"));
        }
        self.push(&got);
    }

    fn list<A: SeqAccess<'a>>(mut self, mut list: A) -> Result<(), A::Error> {
        if self.lists.is_none() && !self.is_first {
            self.inputs.fault_here(|| "got an array, wants a value, as those before it".to_owned());
        }
        let mut width = 0;
        loop {
            self.inputs.at.cell = Some(width);
            let Some(got) = list.next_element::<Scalar<'_>>()? else { break };
            self.push(&got);
            width += 1;
        }
        self.inputs.at.cell = None;
        let lists = self.lists.get_or_insert(Lists { count: 0, width });
        lists.count += 1;
        if lists.width != width {
            let before = lists.width;
            self.inputs.fault_here(|| format!("got {width} values, the lists before it have {before}"));
        }
        Ok(())
    }
}

impl TakeItem<'_, '_> {
    fn push(&mut self, got: &Scalar<'_>) {
        let cell = match got {
            Scalar::Null => f64::NAN,
            Scalar::Bool(truth) => truth_cell(*truth),
            Scalar::Text(text) => {
                let texts = self.chunk.texts_mut();
                let cell = text_cell(texts.len_since(self.texts));
                texts.push(Some(text));
                cell
            }
            other => match other.number() {
                Some(number) => number,
                None => return self.inputs.fault_here(|| format!("got {got}, wants a value")),
            },
        };
        self.chunk.features_mut().push(cell);
    }
}
