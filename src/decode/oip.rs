//! What an Open Inference body (V2, JSON) has beside an id: `inputs`, `outputs`, `parameters`. Tensors in, their values in the
//! chunk's arenas, and [`Inputs`] out, which makes rows of them once the model is known (`rows`).
//!
//! The standard is [open-inference-protocol](https://github.com/kserve/open-inference-protocol), "HTTP/REST"; what `priority`
//! and `timeout` mean is Triton's extension "schedule policy". A tensor's fields may come in any order, so its values are read
//! as they are, and held against datatype and shape at its end: `true` and a string stand among the numbers in NaNs that JSON
//! cannot make (`datatype::truth_cell`, `kinds::text_cell`).
//!
//! The first fault is kept and the reading goes on. After a fault there may be values of no tensor in the arenas: the record is
//! rejected, and they go with it.

mod datatype;
mod rows;
pub(super) mod schema;
mod tensor;

use serde::de::{MapAccess, SeqAccess};

use self::tensor::{TakeTensor, Tensor};
use super::message::quoted;
use super::value::{Give, Scalar, Take, Text, given};
use crate::record::Chunk;

/// The name of the only output that there is.
pub(crate) const OUTPUT: &str = "predict";

/// Parameters of extensions that this is no part of: binary tensors, shared memory, labels instead of scores.
const REFUSED: [&str; 7] = [
    "binary_data",
    "binary_data_output",
    "binary_data_size",
    "classification",
    "shared_memory_byte_size",
    "shared_memory_offset",
    "shared_memory_region",
];

/// What a body asks for, but for its id.
#[derive(Debug, Default)]
pub(super) struct Inputs<'a> {
    tensors: Vec<Tensor<'a>>,
    priority: Option<Scalar<'a>>,
    timeout: Option<Scalar<'a>>,
    fault: Option<String>,
    at: Place,
}

/// Where the reading stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The body's field, and the index in its list.
    root: &'static str,
    index: Option<usize>,
    /// The field there, and the index in its list, and in a list there.
    field: Option<&'static str>,
    item: Option<usize>,
    cell: Option<usize>,
}

impl<'a> Inputs<'a> {
    /// The first fault.
    pub(super) fn take_fault(&mut self) -> Option<String> {
        self.fault.take()
    }

    /// The level and the timeout in microseconds, if they are such.
    pub(super) fn take_terms(&mut self) -> (Option<Scalar<'a>>, Option<Scalar<'a>>) {
        (self.priority.take(), self.timeout.take())
    }

    /// Where the reading stands: `inputs[0].data[3]`.
    pub(super) fn place(&self) -> String {
        let Place { root, index, field, item, cell } = self.at;
        let shown = |index: Option<usize>| index.map_or_else(String::new, |index| format!("[{index}]"));
        let field = field.map_or_else(String::new, |field| format!(".{field}"));
        format!("{root}{}{field}{}{}", shown(index), shown(item), shown(cell))
    }

    /// A fault where the reading stands.
    fn fault_here(&mut self, message: impl FnOnce() -> String) {
        if self.fault.is_none() {
            self.fault = Some(format!("{}: {}", self.place(), message()));
        }
    }
}

/// The fields of an object, each of which may be given once.
struct Fields {
    known: &'static [&'static str],
    seen: u8,
}

impl Fields {
    const fn new(known: &'static [&'static str]) -> Self {
        Self { known, seen: 0 }
    }

    /// The field of a name that is read for the first time, or what is wrong with it.
    fn open(&mut self, name: &str) -> Result<&'static str, String> {
        let Some(index) = self.known.iter().position(|known| *known == name) else {
            return Err(format!("unknown field {}; known fields: {}", quoted(name), self.known.join(", ")));
        };
        let bit = 1 << index;
        if self.seen & bit != 0 {
            return Err(format!("field \"{name}\" is given twice"));
        }
        self.seen |= bit;
        Ok(self.known[index])
    }
}

/// Takes the value of `inputs`.
pub(super) struct TakeInputs<'r, 'a> {
    pub(super) inputs: &'r mut Inputs<'a>,
    pub(super) chunk: &'r mut Chunk,
}

impl<'a> Take<'a> for TakeInputs<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.inputs.at = Place { root: "inputs", ..Place::default() };
        self.inputs.fault_here(|| format!("got {got}, wants a list of tensors"));
    }

    fn list<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { inputs, chunk } = self;
        let texts = chunk.texts_mut().mark();
        let mut count = 0;
        loop {
            inputs.at = Place { root: "inputs", index: Some(count), ..Place::default() };
            if list.next_element_seed(Give(TakeTensor { inputs, chunk, texts }))?.is_none() {
                break;
            }
            count += 1;
        }
        inputs.at.index = None;
        if count == 0 {
            inputs.fault_here(|| "got an empty list, wants one tensor or more".to_owned());
        }
        Ok(())
    }
}

/// Takes the value of `outputs`.
pub(super) struct TakeOutputs<'r, 'a>(pub(super) &'r mut Inputs<'a>);

impl<'a> Take<'a> for TakeOutputs<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.0.at = Place { root: "outputs", ..Place::default() };
        if got != Scalar::Null {
            self.0.fault_here(|| format!("got {got}, wants a list of outputs"));
        }
    }

    fn list<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        let mut count = 0;
        loop {
            self.0.at = Place { root: "outputs", index: Some(count), ..Place::default() };
            if list.next_element_seed(Give(TakeOutput(self.0)))?.is_none() {
                return Ok(());
            }
            count += 1;
        }
    }
}

/// Takes an output that is asked for: there is only one.
struct TakeOutput<'r, 'a>(&'r mut Inputs<'a>);

impl<'a> Take<'a> for TakeOutput<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.0.fault_here(|| format!("got {got}, wants an output: an object with its name"));
    }

    fn object<A: MapAccess<'a>>(self, mut object: A) -> Result<(), A::Error> {
        let Self(inputs) = self;
        let mut fields = Fields::new(&["name", "parameters"]);
        let mut is_named = false;
        while let Some(Text(name)) = object.next_key()? {
            match fields.open(&name) {
                Ok("name") => {
                    inputs.at.field = Some("name");
                    is_named = true;
                    let got = object.next_value::<Scalar<'_>>()?;
                    if got != Scalar::Text(OUTPUT.into()) {
                        inputs.fault_here(|| format!("got {got}, the only output is \"{OUTPUT}\""));
                    }
                }
                Ok(field) => {
                    inputs.at.field = Some(field);
                    object.next_value_seed(Give(TakeParameters(inputs)))?;
                }
                Err(message) => {
                    inputs.fault_here(|| message);
                    drop(object.next_value::<Scalar<'_>>()?);
                }
            }
            inputs.at.field = None;
        }
        if !is_named {
            inputs.at.field = Some("name");
            inputs.fault_here(|| format!("missing, the only output is \"{OUTPUT}\""));
        }
        Ok(())
    }
}

/// Takes the value of the body's own `parameters`.
pub(super) struct TakeTerms<'r, 'a>(pub(super) &'r mut Inputs<'a>);

impl<'a> Take<'a> for TakeTerms<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        self.0.at = Place { root: "parameters", ..Place::default() };
        TakeParameters(self.0).whole(got);
    }

    fn object<A: MapAccess<'a>>(self, mut object: A) -> Result<(), A::Error> {
        let Self(inputs) = self;
        inputs.at = Place { root: "parameters", ..Place::default() };
        let mut fields = Fields::new(&["priority", "timeout"]);
        while let Some(Text(name)) = object.next_key()? {
            if !fields.known.contains(&&*name) {
                inputs.refuse_extension(&name, &object.next_value()?);
                continue;
            }
            match fields.open(&name) {
                Ok("priority") => inputs.priority = given(&mut object)?,
                Ok(_) => inputs.timeout = given(&mut object)?,
                Err(message) => {
                    inputs.fault_here(|| message);
                    drop(object.next_value::<Scalar<'_>>()?);
                }
            }
        }
        Ok(())
    }
}

/// Takes the parameters of a tensor or an output. Those that nobody here knows mean nothing.
struct TakeParameters<'r, 'a>(&'r mut Inputs<'a>);

impl<'a> Take<'a> for TakeParameters<'_, 'a> {
    fn whole(self, got: Scalar<'a>) {
        if got != Scalar::Null {
            self.0.fault_here(|| format!("got {got}, wants an object"));
        }
    }

    fn object<A: MapAccess<'a>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(Text(name)) = object.next_key()? {
            self.0.refuse_extension(&name, &object.next_value()?);
        }
        Ok(())
    }
}

impl Inputs<'_> {
    /// Refuses a parameter that asks for what is not done here, and would get something else.
    fn refuse_extension(&mut self, name: &str, value: &Scalar<'_>) {
        let is_asked = match value {
            Scalar::Null | Scalar::Bool(false) => false,
            // `MLServer`'s mark of encoded bytes: they would be taken for the text itself.
            Scalar::Text(text) if name == "content_type" => text == "base64",
            _ => REFUSED.contains(&name),
        };
        if is_asked {
            let place = self.place();
            self.fault.get_or_insert_with(|| {
                format!("{place}.{name}: got {value}, which is not read here: values go as plain JSON, in \"data\"")
            });
        }
    }
}
