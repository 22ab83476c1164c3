//! ONNX graphs in, forests out, where a graph is one tree ensemble and what exporters put around it: the output named to
//! be scored is followed back to the ensemble, and the ensemble's input to the graph's. Scores are those of ONNX Runtime
//! with one thread.
//!
//! - Before the ensemble: `Identity`, `Cast` of doubles to floats, `Concat` of a column a feature.
//! - After it: `Identity`, `ZipMap`, `Cast` to float, `Exp`, and `Add`, `Sub`, `Mul`, `Div` with one number.
//!
//! Anything else is an error that names it: the runtime scores such a graph.

use super::{FeatureNames, ModelFile, ReadError, checked, owned};
use crate::forest::{After, Body, Float, ForestParts, LIMITS, Link};

mod ensemble;
mod proto;

use ensemble::{Ensemble, Scored};
use proto::{Attribute, DOUBLE, FLOAT, Message, Tensor, Value};

/// What skl2onnx, onnxmltools and others call the output that holds scores, the likeliest first.
const SCORES: [&str; 7] =
    ["probabilities", "output_probability", "probability", "variable", "scores", "score", "output"];
/// Longer chains than any exporter writes.
const STEPS_MAX: usize = 32;
/// Graphs of more nodes or constants are no ensemble with a few steps around it.
const NODES_MAX: usize = 256;
/// Operator sets that are shown.
const OPSETS_SHOWN: usize = 8;

pub(super) fn read(bytes: &[u8]) -> Result<ModelFile, ReadError> {
    let graph = Graph::read(Message::new(bytes))?;
    let traced = graph.trace()?;
    let input = graph.input(traced.input)?;
    let ensemble = Ensemble::read(traced.operator, traced.node)?;
    let scored = ensemble.score(input.ensemble_type == Float::F64).map_err(|reason| traced.node.error(reason))?;
    graph.model(traced, input, ensemble.outputs, scored)
}

/// A JSON array of names, or names with commas between.
fn listed_names(text: &str) -> Result<FeatureNames, ReadError> {
    if let Ok(Names(names)) = serde_json::from_str(text) {
        return Ok(names);
    }
    let mut names = FeatureNames::default();
    text.split(',').try_for_each(|name| names.push(name.trim()))?;
    Ok(names)
}

/// Names go into their one text as they are read.
struct Names(FeatureNames);

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> serde::de::Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of names")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
        let mut names = FeatureNames::default();
        while let Some(name) = list.next_element::<std::borrow::Cow<'de, str>>()? {
            names.push(&name).map_err(serde::de::Error::custom)?;
        }
        Ok(Names(names))
    }
}

/// Whether a file starts as a `ModelProto` does: its IR version, a small number, then another of its fields.
pub(super) fn is_model(head: &[u8]) -> bool {
    matches!(head, [0x08, 1..=31, 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..])
}

/// What the file says, as far as it matters here.
#[derive(Default)]
struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    constants: Vec<(&'a str, Message<'a>)>,
    inputs: Vec<Outlet<'a>>,
    outputs: Vec<Outlet<'a>>,
    feature_names: Option<&'a str>,
    producer: [&'a str; 2],
    opsets: Vec<String>,
}

/// Its inputs and outputs stay in the file: fields 1 and 2.
struct Node<'a> {
    message: Message<'a>,
    operator: &'a str,
}

/// An input or output of the graph.
struct Outlet<'a> {
    name: &'a str,
    /// The number type of a tensor; 0 for maps and others.
    kind: u64,
    /// `None`: free.
    dimensions: [Option<i64>; 2],
    /// How many it has.
    rank: usize,
}

/// An ensemble, and the way from it to the scored output.
struct Traced<'a> {
    output: &'a str,
    node: Message<'a>,
    operator: &'a str,
    input: &'a str,
    after: Vec<After>,
    /// Labels of a `ZipMap` on the way.
    labels: Option<usize>,
}

/// The graph's features as the ensemble gets them.
struct Input {
    row_type: Float,
    /// What the ensemble is given: doubles may be cast to floats before.
    ensemble_type: Float,
    names: FeatureNames,
    count: u32,
    /// The row's place of each feature of the ensemble, where a `Concat` puts them in another order.
    order: Option<Vec<u32>>,
}

impl<'a> Graph<'a> {
    fn read(file: Message<'a>) -> Result<Self, ReadError> {
        let mut graph = Self::default();
        let mut graphs = 0;
        for field in file {
            match field? {
                (2, Value::Bytes(name)) => graph.producer[0] = name.text()?,
                (3, Value::Bytes(version)) => graph.producer[1] = version.text()?,
                (7, Value::Bytes(inner)) => {
                    graphs += 1;
                    graph.read_graph(inner)?;
                }
                (8, Value::Bytes(opset)) if graph.opsets.len() < OPSETS_SHOWN => graph.opsets.push(read_opset(opset)?),
                (14, Value::Bytes(entry)) => {
                    if let ("feature_names", names) = read_entry(entry)? {
                        graph.feature_names = Some(names);
                    }
                }
                _ => {}
            }
        }
        if graphs != 1 {
            return Err(ReadError::whole(format!("{graphs} graphs in the file, not one")));
        }
        Ok(graph)
    }

    fn read_graph(&mut self, graph: Message<'a>) -> Result<(), ReadError> {
        for field in graph {
            match field? {
                (1, Value::Bytes(node)) => self.nodes.push(Node::read(node)?),
                (5, Value::Bytes(tensor)) => {
                    let name = tensor.into_iter().find_map(|field| match field {
                        Ok((8, Value::Bytes(name))) => Some(name.text()),
                        _ => None,
                    });
                    self.constants.push((name.transpose()?.unwrap_or_default(), tensor));
                }
                (11, Value::Bytes(outlet)) => {
                    let input = Outlet::read(outlet)?;
                    if input.name.is_empty() || input.rank > 2 {
                        return Err(outlet.error("an input that is no matrix"));
                    }
                    self.inputs.push(input);
                }
                (12, Value::Bytes(outlet)) => self.outputs.push(Outlet::read(outlet)?),
                _ => {}
            }
            if self.nodes.len().max(self.constants.len()).max(self.outputs.len()) > NODES_MAX {
                return Err(graph.error("a graph of many nodes"));
            }
        }
        // Old files list constants among the inputs, too.
        let constants = &self.constants;
        self.inputs.retain(|input| constants.iter().all(|(name, _)| *name != input.name));
        Ok(())
    }

    fn maker(&self, name: &str) -> Option<&Node<'a>> {
        self.nodes.iter().find(|node| node.outputs().any(|made| made == name))
    }

    /// The output that is scored: by name, or the only one of floats; else the maps of a `ZipMap`.
    fn scored(&self) -> Result<&'a str, ReadError> {
        let floats: Vec<&Outlet<'a>> =
            self.outputs.iter().filter(|output| matches!(output.kind, FLOAT | DOUBLE)).collect();
        let named = SCORES.iter().find_map(|name| floats.iter().find(|output| output.name == *name));
        if let Some(output) = named.or(floats.first().filter(|_| floats.len() == 1)) {
            return Ok(output.name);
        }
        let maps = self.outputs.iter().find(|output| output.kind == 0).filter(|_| floats.is_empty());
        maps.map(|output| output.name).ok_or_else(|| ReadError::whole("no output that holds scores"))
    }

    fn trace(&self) -> Result<Traced<'a>, ReadError> {
        let output = self.scored()?;
        let (mut name, mut after, mut labels) = (output, Vec::new(), None);
        for _ in 0..STEPS_MAX {
            let node = self.maker(name).ok_or_else(|| ReadError::whole(format!("nothing makes {name:?}")))?;
            let input =
                |place: usize| node.inputs().nth(place).ok_or_else(|| node.message.error("a node without its input"));
            if let "TreeEnsembleRegressor" | "TreeEnsembleClassifier" | "TreeEnsemble" = node.operator {
                let scores = usize::from(node.operator == "TreeEnsembleClassifier");
                if node.outputs().nth(scores) != Some(name) {
                    return Err(node.message.error("its labels are scored, not its probabilities"));
                }
                after.reverse();
                let (operator, node_message) = (node.operator, node.message);
                return Ok(Traced { output, node: node_message, operator, input: input(0)?, after, labels });
            }
            match node.operator {
                "Identity" => {}
                "Cast" if node.attribute("to")?.is_some_and(|to| to.integer.cast_unsigned() == FLOAT) => {}
                "ZipMap" => {
                    let count = |attribute: Attribute<'_>| attribute.integers.len().max(attribute.texts().count());
                    let numbers = node.attribute("classlabels_int64s")?.map_or(0, count);
                    labels = Some(numbers.max(node.attribute("classlabels_strings")?.map_or(0, count)));
                }
                "Exp" => after.push(After::Exp),
                "Add" => after.push(After::Add(self.number(node)?)),
                "Sub" => after.push(After::Add(-self.number(node)?)),
                "Mul" => after.push(After::Multiply(self.number(node)?)),
                "Div" => after.push(After::Divide(self.number(node)?)),
                other => return Err(node.message.error(format!("{other} between the trees and the output"))),
            }
            name = input(0)?;
        }
        Err(ReadError::whole("no tree ensemble leads to the output"))
    }

    /// The one number that is a node's second input.
    fn number(&self, node: &Node<'a>) -> Result<f64, ReadError> {
        let name = node.inputs().nth(1).unwrap_or_default();
        let refuse = || node.message.error(format!("{} with more than one number", node.operator));
        let constant = self.constants.iter().find(|(known, _)| *known == name).map(|(_, tensor)| Tensor::read(*tensor));
        let made = || -> Option<Result<Tensor, ReadError>> {
            let maker = self.maker(name).filter(|maker| maker.operator == "Constant")?;
            maker.attribute("value").map(|value| value.and_then(|value| value.tensor)).transpose()
        };
        let tensor = constant.or_else(made).ok_or_else(refuse)??;
        match (tensor.kind, &tensor.dimensions[..], &tensor.values[..]) {
            (FLOAT, [] | [1], [number]) => Ok(*number),
            _ => Err(refuse()),
        }
    }

    /// What the ensemble is given, followed back to the graph's inputs.
    fn input(&self, name: &'a str) -> Result<Input, ReadError> {
        let (mut name, mut casts) = (name, false);
        for _ in 0..STEPS_MAX {
            if let Some(place) = self.inputs.iter().position(|input| input.name == name) {
                if self.inputs.len() > 1 {
                    return Err(ReadError::whole("the trees take one of several inputs"));
                }
                return self.matrix(&self.inputs[place], casts);
            }
            let node = self.maker(name).ok_or_else(|| ReadError::whole(format!("nothing makes {name:?}")))?;
            match node.operator {
                "Identity" => {}
                "Cast" if node.attribute("to")?.is_some_and(|to| to.integer.cast_unsigned() == FLOAT) => casts = true,
                "Concat" if node.attribute("axis")?.is_some_and(|axis| matches!(axis.integer, 1 | -1)) => {
                    return self.columns(node, casts);
                }
                other => return Err(node.message.error(format!("{other} before the trees"))),
            }
            name = node.inputs().next().ok_or_else(|| node.message.error("a node without its input"))?;
        }
        Err(ReadError::whole("no input leads to the trees"))
    }

    fn matrix(&self, outlet: &Outlet<'a>, casts: bool) -> Result<Input, ReadError> {
        let row_type = outlet.float()?;
        let count = outlet.width()?;
        let mut names = FeatureNames::default();
        if count == 1 {
            names.push(outlet.name)?;
        } else if let Some(text) = self.feature_names {
            names = listed_names(text)?;
            names.check(count)?;
        }
        let ensemble_type = if casts { Float::F32 } else { row_type };
        Ok(Input { row_type, ensemble_type, names, count, order: None })
    }

    /// A column a feature, put side by side.
    fn columns(&self, concat: &Node<'a>, casts: bool) -> Result<Input, ReadError> {
        let mut names = FeatureNames::default();
        let mut row_type = None;
        for input in &self.inputs {
            let float = input.float()?;
            if input.width()? != 1 || row_type.is_some_and(|known| known != float) {
                return Err(ReadError::whole("inputs of several columns or float types"));
            }
            row_type = Some(float);
            names.push(input.name)?;
        }
        let row_type = row_type.ok_or_else(|| ReadError::whole("no inputs"))?;
        let place = |name: &str| self.inputs.iter().position(|input| input.name == name);
        let order = concat.inputs().map(|name| place(name).and_then(|place| u32::try_from(place).ok()));
        let order: Option<Vec<u32>> = order.collect();
        let order = order.filter(|order| order.len() == self.inputs.len());
        let order = order.ok_or_else(|| concat.message.error("a Concat of other things than the inputs"))?;
        #[expect(clippy::cast_possible_truncation, reason = "as many as `order`, whose numbers are u32")]
        let count = order.len() as u32;
        let ensemble_type = if casts { Float::F32 } else { row_type };
        Ok(Input { row_type, ensemble_type, names, count, order: Some(order) })
    }

    fn model(&self, traced: Traced<'a>, input: Input, classes: usize, scored: Scored) -> Result<ModelFile, ReadError> {
        let Scored { mut trees, outputs, base, average, link } = scored;
        if traced.labels.is_some_and(|labels| labels != classes) {
            return Err(ReadError::whole("a ZipMap of other labels than the classes"));
        }
        if let Some(order) = &input.order {
            for split in trees.iter_mut().flat_map(|tree| &mut tree.splits) {
                let place = order.get(split.feature as usize);
                split.feature = *place.ok_or_else(|| traced.node.error("a split on a feature that is not there"))?;
            }
        }
        let count = u32::try_from(trees.len()).ok().and_then(std::num::NonZeroU32::new);
        let divisors = count.filter(|_| average).map_or(Vec::new(), |count| vec![count; outputs as usize]);
        let details = vec![
            ("operator", traced.operator.to_owned()),
            ("opset", self.opsets.join(", ")),
            ("producer", self.producer.join(" ").trim().to_owned()),
            ("scored output", traced.output.to_owned()),
            ("transform", format!("{:?}", link.transform).to_lowercase()),
        ];
        let parts = ForestParts {
            features: input.count,
            outputs,
            row_type: input.ensemble_type,
            sum_type: input.ensemble_type,
            flush_tiny: false,
            body: Body::Trees(trees),
            base,
            base_last: true,
            divisors,
            link: Link::Onnx(link),
            after: traced.after,
        };
        let takes_f64 = input.row_type == Float::F64;
        let feature_names = input.names;
        Ok(ModelFile {
            forest: checked(parts)?,
            feature_names,
            best_iteration: None,
            details: owned(details),
            takes_f64,
        })
    }
}

impl<'a> Node<'a> {
    fn read(message: Message<'a>) -> Result<Self, ReadError> {
        let mut operator = "";
        for field in message {
            if let (4, Value::Bytes(name)) = field? {
                operator = name.text()?;
            }
        }
        if operator.is_empty() {
            Err(message.error("a node without an operator"))
        } else {
            Ok(Self { message, operator })
        }
    }

    /// Inputs (1) or outputs (2), in order.
    fn names(&self, wanted: u64) -> impl Iterator<Item = &'a str> {
        self.message.filter_map(move |field| match field {
            Ok((number, Value::Bytes(name))) if number == wanted => name.text().ok(),
            _ => None,
        })
    }

    fn inputs(&self) -> impl Iterator<Item = &'a str> {
        self.names(1)
    }

    fn outputs(&self) -> impl Iterator<Item = &'a str> {
        self.names(2)
    }

    fn attribute(&self, name: &str) -> Result<Option<Attribute<'a>>, ReadError> {
        for field in self.message {
            if let (5, Value::Bytes(attribute)) = field? {
                let attribute = Attribute::read(attribute)?;
                if attribute.name == name {
                    return Ok(Some(attribute));
                }
            }
        }
        Ok(None)
    }
}

impl<'a> Outlet<'a> {
    fn read(outlet: Message<'a>) -> Result<Self, ReadError> {
        let mut read = Self { name: "", kind: 0, dimensions: [None; 2], rank: 0 };
        for field in outlet {
            match field? {
                (1, Value::Bytes(name)) => read.name = name.text()?,
                (2, Value::Bytes(kind)) => read.read_type(kind)?,
                _ => {}
            }
        }
        Ok(read)
    }

    fn read_type(&mut self, kind: Message<'a>) -> Result<(), ReadError> {
        for field in kind {
            let (1, Value::Bytes(tensor)) = field? else { continue };
            for field in tensor {
                match field? {
                    (1, Value::Number(kind)) => self.kind = kind,
                    (2, Value::Bytes(shape)) => {
                        for dimension in shape {
                            let (1, Value::Bytes(dimension)) = dimension? else { continue };
                            let size = dimension.into_iter().find_map(|field| match field {
                                Ok((1, Value::Number(size))) => Some(size.cast_signed()),
                                _ => None,
                            });
                            if let Some(place) = self.dimensions.get_mut(self.rank) {
                                *place = size;
                            }
                            self.rank += 1;
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn float(&self) -> Result<Float, ReadError> {
        match self.kind {
            FLOAT => Ok(Float::F32),
            DOUBLE => Ok(Float::F64),
            _ => Err(ReadError::whole(format!("the input {:?} is of neither floats nor doubles", self.name))),
        }
    }

    /// Columns of a matrix whose rows are free.
    fn width(&self) -> Result<u32, ReadError> {
        match (self.rank, self.dimensions) {
            (2, [None | Some(..=-1), Some(width)]) => {
                u32::try_from(width).ok().filter(|width| (1..=LIMITS.features).contains(width))
            }
            _ => None,
        }
        .ok_or_else(|| ReadError::whole(format!("the input {:?} is no matrix of free rows", self.name)))
    }
}

fn read_opset(opset: Message<'_>) -> Result<String, ReadError> {
    let (mut domain, mut version) = ("", 0);
    for field in opset {
        match field? {
            (1, Value::Bytes(name)) => domain = name.text()?,
            (2, Value::Number(number)) => version = number,
            _ => {}
        }
    }
    Ok(format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain }))
}

fn read_entry(entry: Message<'_>) -> Result<(&str, &str), ReadError> {
    let (mut key, mut text) = ("", "");
    for field in entry {
        match field? {
            (1, Value::Bytes(name)) => key = name.text()?,
            (2, Value::Bytes(value)) => text = value.text()?,
            _ => {}
        }
    }
    Ok((key, text))
}
