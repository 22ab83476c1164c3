//! What the runtime's own calls do not tell of a model file, read from its protobuf (onnx.proto3): opsets, producer,
//! metadata, class labels; and what must not reach the runtime: tensors kept in other files, which no digest covers,
//! and kinds of input or output that the binding cannot name. Bytes in; broken ones are an error with the position.

/// Graphs inside graphs (branches and loops) that are followed.
const DEPTH_MAX: usize = 32;
/// Words that are kept of its vocabularies.
const WORDS_MAX: usize = 256;

/// What a model file says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct GraphFile {
    /// Name and version of the program that wrote it.
    pub(super) producer: String,
    /// Operator set and its version.
    pub(super) opsets: Vec<(String, u64)>,
    /// The metadata under `feature_names`.
    pub(super) feature_names: Option<String>,
    /// The nodes of the outer graph that carry class labels.
    pub(super) labelled: Vec<Labelled>,
    /// Whether a tree ensemble is among them all.
    pub(super) has_trees: bool,
    /// Whether a row's scores hang on its neighbours: numbers are rounded by a scale that is taken from the whole batch.
    pub(super) scales_by_batch: bool,
    /// Operators that take or make numbers of 8 bits.
    pub(super) quantized_operators: usize,
    /// Words that its encoders know, the first of all.
    pub(super) words: Vec<String>,
}

/// A node that carries class labels: a classifier, or the `ZipMap` behind it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labelled {
    /// Its operator.
    pub(super) operator: String,
    /// The names of its outputs.
    pub(super) outputs: Vec<String>,
    /// In class order.
    pub(super) labels: Labels,
}

/// Class labels, in class order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Labels {
    /// `classlabels_int64s`, or `classlabels_ints` of older operators.
    Numbers(Vec<i64>),
    /// `classlabels_strings`.
    Texts(Vec<String>),
}

impl Default for Labels {
    fn default() -> Self {
        Self::Numbers(Vec::new())
    }
}

impl Labels {
    /// Number of classes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(labels) => labels.len(),
            Self::Texts(labels) => labels.len(),
        }
    }
}

impl GraphFile {
    /// Reads the whole file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut file = Self::default();
        let mut producer = [String::new(), String::new()];
        let mut graphs = 0;
        for field in Message::new(bytes) {
            match field? {
                (2, Value::Bytes(name)) => producer[0] = name.text()?,
                (3, Value::Bytes(version)) => producer[1] = version.text()?,
                (7, Value::Bytes(graph)) => {
                    graphs += 1;
                    file.outer_graph(graph)?;
                }
                (8, Value::Bytes(opset)) => file.opsets.push(read_opset(opset)?),
                (14, Value::Bytes(entry)) => {
                    let [key, value] = read_texts(entry, [1, 2])?;
                    if key == "feature_names" {
                        file.feature_names = Some(value);
                    }
                }
                (25, Value::Bytes(function)) => {
                    for node in function.messages(7) {
                        file.node(node?, 0)?;
                    }
                }
                _ => {}
            }
        }
        if graphs != 1 {
            return Err(format!(
                "{graphs} graphs in the file, not one: it is damaged or no ONNX model; export it again"
            ));
        }
        producer.join(" ").trim().clone_into(&mut file.producer);
        Ok(file)
    }

    fn outer_graph(&mut self, graph: Message<'_>) -> Result<(), String> {
        self.graph(graph, 0)?;
        for field in graph {
            match field? {
                (1, Value::Bytes(node)) => {
                    self.labelled.extend(read_labelled(node)?);
                    let [operator] = read_texts(node, [4])?;
                    self.has_trees |= operator.starts_with("TreeEnsemble");
                }
                (11, Value::Bytes(value)) => check_type(value, "input")?,
                (12, Value::Bytes(value)) => check_type(value, "output")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_opset(opset: Message<'_>) -> Result<(String, u64), String> {
    let (mut domain, mut version) = (String::new(), 0);
    for field in opset {
        match field? {
            (1, Value::Bytes(name)) => domain = name.text()?,
            (2, Value::Number(number)) => version = number,
            _ => {}
        }
    }
    Ok((if domain.is_empty() { "ai.onnx".to_owned() } else { domain }, version))
}

fn read_texts<const N: usize>(message: Message<'_>, numbers: [u64; N]) -> Result<[String; N], String> {
    let mut texts = [const { String::new() }; N];
    for field in message {
        if let (number, Value::Bytes(text)) = field?
            && let Some(place) = numbers.iter().position(|&wanted| wanted == number)
        {
            texts[place] = text.text()?;
        }
    }
    Ok(texts)
}

fn read_labelled(node: Message<'_>) -> Result<Option<Labelled>, String> {
    let (mut labelled, mut found) = (Labelled::default(), false);
    for field in node {
        match field? {
            (2, Value::Bytes(output)) => labelled.outputs.push(output.text()?),
            (4, Value::Bytes(operator)) => labelled.operator = operator.text()?,
            (5, Value::Bytes(attribute)) => {
                if let Some(labels) = read_labels(attribute)? {
                    labelled.labels = labels;
                    found = true;
                }
            }
            _ => {}
        }
    }
    Ok(found.then_some(labelled))
}

/// The class labels of an attribute that holds some.
fn read_labels(attribute: Message<'_>) -> Result<Option<Labels>, String> {
    let [name] = read_texts(attribute, [1])?;
    let mut numbers = Vec::new();
    let mut texts = Vec::new();
    for field in attribute {
        match field? {
            (8, Value::Number(number)) => numbers.push(number.cast_signed()),
            (8, Value::Bytes(packed)) => packed.varints(&mut numbers)?,
            (9, Value::Bytes(text)) => texts.push(text.text()?),
            _ => {}
        }
    }
    Ok(match name.as_str() {
        "classlabels_int64s" | "classlabels_ints" if !numbers.is_empty() => Some(Labels::Numbers(numbers)),
        "classlabels_strings" if !texts.is_empty() => Some(Labels::Texts(texts)),
        _ => None,
    })
}

// ---- all nodes, and what must not reach the runtime -------------------------------------------------------------------------------

impl GraphFile {
    fn graph(&mut self, graph: Message<'_>, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("graphs nested more than {DEPTH_MAX} deep; export it without them"));
        }
        for field in graph {
            match field? {
                (1, Value::Bytes(node)) => self.node(node, depth)?,
                (5, Value::Bytes(tensor)) => check_tensor(tensor)?,
                (15, Value::Bytes(sparse)) => check_sparse(sparse)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn node(&mut self, node: Message<'_>, depth: usize) -> Result<(), String> {
        let [operator] = read_texts(node, [4])?;
        self.scales_by_batch |= operator.starts_with("DynamicQuantize");
        let is_quantized = operator.contains("Integer")
            || operator.contains("quantize")
            || operator.contains("Quantize")
            || ["QLinear", "QGemm", "QAttention"].iter().any(|start| operator.starts_with(start));
        self.quantized_operators += usize::from(is_quantized);
        for attribute in node.messages(5) {
            let attribute = attribute?;
            self.read_words(attribute)?;
            for field in attribute {
                match field? {
                    (5 | 10, Value::Bytes(tensor)) => check_tensor(tensor)?,
                    (22 | 23, Value::Bytes(sparse)) => check_sparse(sparse)?,
                    (6 | 11, Value::Bytes(graph)) => self.graph(graph, depth + 1)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The categories of a `OneHotEncoder`, the keys of a `LabelEncoder`.
    fn read_words(&mut self, attribute: Message<'_>) -> Result<(), String> {
        let [name] = read_texts(attribute, [1])?;
        if !matches!(name.as_str(), "cats_strings" | "keys_strings") {
            return Ok(());
        }
        for word in attribute.messages(9) {
            if self.words.len() < WORDS_MAX {
                self.words.push(word?.text()?);
            }
        }
        Ok(())
    }
}

fn check_sparse(sparse: Message<'_>) -> Result<(), String> {
    for field in sparse {
        if let (1 | 2, Value::Bytes(tensor)) = field? {
            check_tensor(tensor)?;
        }
    }
    Ok(())
}

fn check_tensor(tensor: Message<'_>) -> Result<(), String> {
    let [name] = read_texts(tensor, [8])?;
    for field in tensor {
        if matches!(field?, (13, _) | (14, Value::Number(1..))) {
            let remedy = "save the model as one file, with no external data";
            return Err(format!("tensor {name:?} is kept in another file, which no digest would cover; {remedy}"));
        }
    }
    Ok(())
}

const TENSOR: u64 = 1;
const SEQUENCE: u64 = 4;
const MAP: u64 = 5;
const DENOTATION: u64 = 6;

/// Tensors, maps of tensors, and sequences of those: for other kinds the binding has no name, and it panics.
fn check_type(value: Message<'_>, what: &str) -> Result<(), String> {
    let [name] = read_texts(value, [1])?;
    for kind in value.messages(2) {
        if !is_known(kind?, &[TENSOR, SEQUENCE, MAP])? {
            return Err(format!("{what} {name:?} is neither a tensor nor a sequence of maps; export it with tensors"));
        }
    }
    Ok(())
}

fn is_known(kind: Message<'_>, allowed: &[u64]) -> Result<bool, String> {
    for field in kind {
        let (number, value) = field?;
        // What a sequence holds, and what a map's keys lead to.
        let (inner, allowed_inside): (_, &[u64]) = match number {
            DENOTATION => continue,
            _ if !allowed.contains(&number) => return Ok(false),
            SEQUENCE => (1, &[TENSOR, MAP]),
            MAP => (2, &[TENSOR]),
            _ => continue,
        };
        let Value::Bytes(value) = value else { return Ok(false) };
        for inside in value.messages(inner) {
            if !is_known(inside?, allowed_inside)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

// ---- protobuf ------------------------------------------------------------------------------------------------------

/// A message, and where in the file it stands. Iterates its fields: (number, value).
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Bytes(Message<'a>),
    /// Fixed32 or fixed64: floats, which nothing here needs.
    Fixed,
}

impl<'a> Message<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn text(self) -> Result<String, String> {
        let text = std::str::from_utf8(self.bytes);
        text.map(str::to_owned).map_err(|_| format!("byte {}: a name is not UTF-8; export the model again", self.at))
    }

    /// The messages of one field.
    fn messages(self, number: u64) -> impl Iterator<Item = Result<Message<'a>, String>> {
        self.filter_map(move |field| match field {
            Ok((found, Value::Bytes(message))) => (found == number).then_some(Ok(message)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn varints(mut self, numbers: &mut Vec<i64>) -> Result<(), String> {
        while !self.bytes.is_empty() {
            numbers.push(self.varint()?.cast_signed());
        }
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0_u64;
        for place in 0..10 {
            let byte = self.take(1)?.bytes[0];
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number of more than 10 bytes"))
    }

    fn take(&mut self, count: usize) -> Result<Message<'a>, String> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return Err(self.damaged("the file is cut short"));
        };
        let taken = Message { bytes: taken, at: self.at };
        (self.bytes, self.at) = (rest, self.at + count);
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(count)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(self.damaged("a field of no known kind")),
        };
        Ok((key >> 3, value))
    }

    fn damaged(&self, what: &str) -> String {
        format!("byte {}: {what}: it is damaged or no ONNX model; export it again", self.at)
    }
}

#[allow(clippy::copy_iterator, reason = "a message is read several times, each time from its start: two words to copy")]
impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.bytes = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A length-delimited field of less than 2^14 bytes.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        let [low, high] = [length & 0x7f | 0x80, length >> 7].map(|part| u8::try_from(part).unwrap());
        [&[number << 3 | 2, low, high], content].concat()
    }

    fn node(operator: &str, output: &str, attribute: &[u8]) -> Vec<u8> {
        field(1, &[field(2, output.as_bytes()), field(4, operator.as_bytes()), field(5, attribute)].concat())
    }

    fn model(graph: &[u8]) -> Vec<u8> {
        let opset = field(8, &[field(1, b"ai.onnx.ml"), vec![0x10, 3]].concat());
        let metadata = field(14, &[field(1, b"feature_names"), field(2, b"a,b")].concat());
        [vec![0x08, 8], field(2, b"maker"), field(3, b"1.2"), field(7, graph), opset, metadata].concat()
    }

    #[test]
    fn what_the_file_says_is_read() {
        let numbers = [field(1, b"classlabels_int64s"), vec![0x40, 3, 0x40, 0xac, 0x02]].concat();
        let packed = [field(1, b"classlabels_ints"), field(8, &[3, 0xac, 0x02])].concat();
        let texts = [field(1, b"classlabels_strings"), field(9, b"no"), field(9, b"yes")].concat();
        let graph =
            [node("ZipMap", "p", &numbers), node("LinearClassifier", "q", &packed), node("ZipMap", "r", &texts)]
                .concat();
        let file = GraphFile::read(&model(&graph)).unwrap();
        assert_eq!(file.producer, "maker 1.2");
        assert!(!file.has_trees);
        assert!(GraphFile::read(&model(&node("TreeEnsembleRegressor", "p", b""))).unwrap().has_trees);
        assert_eq!(file.opsets, [("ai.onnx.ml".to_owned(), 3)]);
        assert_eq!(file.feature_names.as_deref(), Some("a,b"));
        let labels: Vec<&Labels> = file.labelled.iter().map(|node| &node.labels).collect();
        let numbers = Labels::Numbers(vec![3, 300]);
        assert_eq!(labels, [&numbers, &numbers, &Labels::Texts(vec!["no".to_owned(), "yes".to_owned()])]);
        assert_eq!((file.labelled[0].operator.as_str(), file.labelled[0].outputs[0].as_str()), ("ZipMap", "p"));
    }

    #[test]
    fn tensors_in_other_files_are_refused_wherever_they_stand() {
        let external = [field(8, b"weights"), field(13, b""), vec![0x70, 1]].concat();
        let initializer = field(5, &external);
        let attribute = node("Constant", "c", &field(5, &external));
        let in_a_branch = node("If", "c", &field(6, &initializer));
        for graph in [initializer, attribute, in_a_branch] {
            let refusal = GraphFile::read(&model(&graph)).unwrap_err();
            assert!(refusal.contains("\"weights\" is kept in another file"), "{refusal}");
        }
        let mut deep = Vec::new();
        for _ in 0..12 {
            deep = node("If", "c", &field(6, &deep));
        }
        assert!(GraphFile::read(&model(&deep)).is_ok());
    }

    #[test]
    fn kinds_that_the_binding_cannot_name_are_refused() {
        let value = |kind: &[u8]| model(&field(12, &[field(1, b"out"), field(2, kind)].concat()));
        let tensor = field(1, b"");
        assert!(GraphFile::read(&value(&tensor)).is_ok());
        assert!(GraphFile::read(&value(&field(4, &field(1, &field(5, b""))))).is_ok());
        for bad in [field(8, b""), field(9, &field(1, &tensor)), field(4, &field(1, &field(4, b"")))] {
            assert!(GraphFile::read(&value(&bad)).unwrap_err().contains("neither a tensor"));
        }
    }

    #[test]
    fn a_file_cut_short_says_where() {
        let whole = model(&node("ZipMap", "p", &field(1, b"classlabels_int64s")));
        for end in 0..whole.len() {
            // Some cuts fall between two fields of the model; then only what follows is missing.
            if let Err(refusal) = GraphFile::read(&whole[..end]) {
                assert!(refusal.contains("export it again"), "{refusal}");
            }
        }
        assert_eq!(GraphFile::read(b"").unwrap_err().split(':').next(), Some("0 graphs in the file, not one"));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = GraphFile::read(&bytes);
            let _ = GraphFile::read(&field(7, &bytes));
        }
    }
}
