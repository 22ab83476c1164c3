//! A JSON or UBJSON file in, its parts out. Text stays in the file's own bytes, so that a part can be replaced there;
//! a list of numbers is kept as numbers.
//!
//! Hostile bytes end in an error: nesting is bounded, nothing is reserved on a stated length that the file is too
//! short for, and a key that stands twice, which two readers may take for two things, is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Deeper than any model, and than what `serde_json` follows.
const DEPTH_MAX: usize = 100;

/// A part of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node<'a> {
    Null,
    /// A truth value is 0 or 1, as newer files write it.
    Number(f64),
    Text(Cow<'a, str>),
    /// A list of numbers only; an empty list too.
    Numbers(Vec<f64>),
    List(Vec<Node<'a>>),
    Object(BTreeMap<String, Node<'a>>),
}

impl<'a> Node<'a> {
    /// Reads a whole file. XGBoost's UBJSON goes on with the marker of a length where JSON has a quote or a space.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.starts_with(b"{L") {
            let mut reader = Ubjson { bytes, at: 0 };
            let node = reader.node(DEPTH_MAX).map_err(|reason| format!("not UBJSON: byte {}: {reason}", reader.at))?;
            if reader.at != bytes.len() {
                return Err(format!("not UBJSON: byte {}: more bytes than the document has", reader.at));
            }
            Ok(node)
        } else {
            serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node<'a>> {
        match self {
            Self::Object(parts) => parts.get(key),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn numbers(&self) -> Option<&[f64]> {
        match self {
            Self::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// A list of anything but numbers.
    pub(super) fn list(&self) -> Option<&[Node<'a>]> {
        match self {
            Self::List(nodes) => Some(nodes),
            Self::Numbers(numbers) if numbers.is_empty() => Some(&[]),
            _ => None,
        }
    }
}

/// Gathers a list: as numbers until something else comes.
#[derive(Default)]
struct Gathered<'a> {
    numbers: Vec<f64>,
    nodes: Vec<Node<'a>>,
}

impl<'a> Gathered<'a> {
    fn push(&mut self, node: Node<'a>) {
        match node {
            Node::Number(number) if self.nodes.is_empty() => self.numbers.push(number),
            node => {
                self.nodes.extend(self.numbers.drain(..).map(Node::Number));
                self.nodes.push(node);
            }
        }
    }

    fn node(self) -> Node<'a> {
        if self.nodes.is_empty() { Node::Numbers(self.numbers) } else { Node::List(self.nodes) }
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Number(f64::from(u8::from(value))))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node<'de>, A::Error> {
        let mut gathered = Gathered::default();
        while let Some(node) = list.next_element()? {
            gathered.push(node);
        }
        Ok(gathered.node())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let mut parts = BTreeMap::new();
        while let Some((key, node)) = map.next_entry::<String, Node<'de>>()? {
            if let Some(key) = insert(&mut parts, key, node) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice")));
            }
        }
        Ok(Node::Object(parts))
    }
}

/// Gives the key back when it stands there already.
fn insert<'a>(parts: &mut BTreeMap<String, Node<'a>>, key: String, node: Node<'a>) -> Option<String> {
    if parts.contains_key(&key) {
        return Some(key);
    }
    parts.insert(key, node);
    None
}

/// UBJSON draft 12, in the part that XGBoost writes: big-endian numbers, each length an `L`.
struct Ubjson<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Ubjson<'a> {
    fn node(&mut self, depth: usize) -> Result<Node<'a>, String> {
        let depth = depth.checked_sub(1).ok_or("nested too deeply")?;
        match self.byte()? {
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'S' => Ok(Node::Text(Cow::Borrowed(self.text()?))),
            b'Z' => Ok(Node::Null),
            b'T' => Ok(Node::Number(1.0)),
            // `F`, false, is left out: XGBoost 1.6 reads it as true.
            marker => self.number(marker).map(Node::Number),
        }
    }

    fn number(&mut self, marker: u8) -> Result<f64, String> {
        Ok(match marker {
            b'i' => f64::from(i8::from_be_bytes(self.array()?)),
            b'U' => f64::from(u8::from_be_bytes(self.array()?)),
            b'I' => f64::from(i16::from_be_bytes(self.array()?)),
            b'l' => f64::from(i32::from_be_bytes(self.array()?)),
            b'L' => i64::from_be_bytes(self.array()?) as f64,
            b'd' => f64::from(f32::from_be_bytes(self.array()?)),
            marker => return Err(format!("the marker {:?} is not one that XGBoost writes", char::from(marker))),
        })
    }

    fn object(&mut self, depth: usize) -> Result<Node<'a>, String> {
        let mut parts = BTreeMap::new();
        while self.peek()? != b'}' {
            let key = self.text()?.to_owned();
            let node = self.node(depth)?;
            if let Some(key) = insert(&mut parts, key, node) {
                return Err(format!("the key {key:?} stands twice"));
            }
        }
        self.at += 1;
        Ok(Node::Object(parts))
    }

    fn list(&mut self, depth: usize) -> Result<Node<'a>, String> {
        match self.peek()? {
            b'$' => {
                self.at += 1;
                let marker = self.byte()?;
                self.expect(b'#')?;
                let count = self.length(if marker == b'U' { 1 } else { 4 })?;
                let numbers = (0..count).map(|_| match marker {
                    b'd' | b'U' | b'l' | b'L' => self.number(marker),
                    marker => Err(format!("a list of {:?} is not one that XGBoost writes", char::from(marker))),
                });
                numbers.collect::<Result<_, _>>().map(Node::Numbers)
            }
            b'#' => {
                self.at += 1;
                let count = self.length(1)?;
                let mut gathered = Gathered::default();
                for _ in 0..count {
                    gathered.push(self.node(depth)?);
                }
                Ok(gathered.node())
            }
            _ => {
                let mut gathered = Gathered::default();
                while self.peek()? != b']' {
                    gathered.push(self.node(depth)?);
                }
                self.at += 1;
                Ok(gathered.node())
            }
        }
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.length(1)?;
        let text = self.take(length)?;
        std::str::from_utf8(text).map_err(|_| "text that is not UTF-8".to_owned())
    }

    /// A count of things that take `size` bytes or more each, of which the file must hold so many.
    fn length(&mut self, size: usize) -> Result<usize, String> {
        self.expect(b'L')?;
        let stated = i64::from_be_bytes(self.array()?);
        let left = self.bytes.len() - self.at;
        let held = usize::try_from(stated).ok().filter(|&count| count <= left / size);
        held.ok_or_else(|| format!("a length of {stated}, with {left} bytes left"))
    }

    fn expect(&mut self, marker: u8) -> Result<(), String> {
        let found = self.byte()?;
        let (wanted, got) = (char::from(marker), char::from(found));
        if found == marker { Ok(()) } else { Err(format!("{got:?} where {wanted:?} belongs")) }
    }

    fn peek(&self) -> Result<u8, String> {
        self.bytes.get(self.at).copied().ok_or_else(|| "the file is cut short".to_owned())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "the file is cut short".to_owned())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or("the file is cut short")?;
        self.at += count;
        Ok(taken)
    }
}

/// The file with some of its texts replaced. Each must be one that [`Node::read`] borrowed from these bytes.
pub(super) fn replace_texts(bytes: &[u8], replacements: &[(&str, &str)]) -> Vec<u8> {
    let mut places: Vec<(usize, &str, &str)> =
        replacements.iter().map(|(old, new)| (old.as_ptr() as usize - bytes.as_ptr() as usize, *old, *new)).collect();
    places.sort_unstable_by_key(|(start, ..)| *start);
    let (mut replaced, mut copied) = (Vec::with_capacity(bytes.len() + 64), 0);
    for (start, old, new) in places {
        if bytes.starts_with(b"{L") {
            // Its length stands before it.
            replaced.extend_from_slice(&bytes[copied..start - size_of::<u64>()]);
            replaced.extend_from_slice(&(new.len() as u64).to_be_bytes());
        } else {
            replaced.extend_from_slice(&bytes[copied..start]);
        }
        replaced.extend_from_slice(new.as_bytes());
        copied = start + old.len();
    }
    replaced.extend_from_slice(&bytes[copied..]);
    replaced
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As XGBoost writes it; lists of numbers as typed lists of f32.
    fn ubjson(node: &Node<'_>, out: &mut Vec<u8>) {
        let length = |count: usize, out: &mut Vec<u8>| {
            out.push(b'L');
            out.extend_from_slice(&(count as u64).to_be_bytes());
        };
        match node {
            Node::Null => out.push(b'Z'),
            Node::Number(number) => {
                out.push(b'd');
                out.extend_from_slice(&narrow(*number).to_be_bytes());
            }
            Node::Text(text) => {
                out.push(b'S');
                length(text.len(), out);
                out.extend_from_slice(text.as_bytes());
            }
            Node::Numbers(numbers) => {
                out.extend_from_slice(b"[$d#");
                length(numbers.len(), out);
                for number in numbers {
                    out.extend_from_slice(&narrow(*number).to_be_bytes());
                }
            }
            Node::List(nodes) => {
                out.extend_from_slice(b"[#");
                length(nodes.len(), out);
                for node in nodes {
                    ubjson(node, out);
                }
            }
            Node::Object(parts) => {
                out.push(b'{');
                for (key, node) in parts {
                    length(key.len(), out);
                    out.extend_from_slice(key.as_bytes());
                    ubjson(node, out);
                }
                out.push(b'}');
            }
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are f32")]
    fn narrow(number: f64) -> f32 {
        number as f32
    }

    const JSON: &str = r#"{"a": "[5.0E0]", "b": [1.5, 2, true], "c": [{"d": []}, 3], "name": "x"}"#;

    #[test]
    fn both_formats_read_alike_and_texts_are_replaced_in_place() {
        let json = Node::read(JSON.as_bytes()).unwrap();
        assert_eq!(json.get("b").unwrap().numbers(), Some(&[1.5, 2.0, 1.0][..]));
        let mut bytes = Vec::new();
        ubjson(&json, &mut bytes);
        assert_eq!(Node::read(&bytes).unwrap(), json);
        for bytes in [JSON.as_bytes(), &bytes] {
            let node = Node::read(bytes).unwrap();
            let Node::Text(Cow::Borrowed(old)) = node.get("a").unwrap() else { panic!("not borrowed") };
            let Node::Text(Cow::Borrowed(name)) = node.get("name").unwrap() else { panic!("not borrowed") };
            let replaced = replace_texts(bytes, &[(name, "longer"), (old, "5.0E0")]);
            let again = Node::read(&replaced).unwrap();
            assert_eq!(again.get("a").unwrap().text().unwrap(), "5.0E0");
            assert_eq!(again.get("name").unwrap().text().unwrap(), "longer");
            assert_eq!(again.get("c"), json.get("c"));
        }
    }

    #[test]
    fn hostile_files_end_in_an_error() {
        let error = |bytes: &[u8]| Node::read(bytes).unwrap_err();
        let one = |rest: &[u8]| [b"{L\0\0\0\0\0\0\0\x01a".as_slice(), rest].concat();
        assert!(error(br#"{"a":1,"a":2}"#).contains("\"a\" stands twice"));
        assert!(error("{\"a\":".as_bytes()).contains("not JSON"));
        assert!(error(&[b"{\"a\":".as_slice(), &vec![b'['; 100_000]].concat()).contains("recursion"));
        assert!(error(&one(&vec![b'['; 100_000])).contains("nested too deeply"));
        assert!(error(&one(b"[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff")).contains("a length of 9223372036854775807"));
        assert!(error(&one(b"SL\xff\xff\xff\xff\xff\xff\xff\xff")).contains("a length of -1"));
        assert!(error(&one(b"[#L\0\0\0\0\0\0\0\x02Z")).contains("a length of 2, with 1 bytes left"));
        assert!(error(&one(b"F}")).contains("'F'"));
        assert!(error(&one(b"ZL\0\0\0\0\0\0\0\x01aZ}")).contains("stands twice"));
        assert!(error(&one(b"Z}}")).contains("more bytes"));
        assert!(error(&one(b"Z")).contains("cut short"));
        assert!(error(&one(b"[$Z#L\0\0\0\0\0\0\0\x01ZZZZ")).contains("a list of 'Z'"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Node::read(&bytes);
        }

        #[test]
        fn a_damaged_file_never_panics(place in 0..200_usize, byte in any::<u8>(), end in 0..200_usize) {
            let mut bytes = Vec::new();
            ubjson(&Node::read(JSON.as_bytes()).unwrap(), &mut bytes);
            let length = bytes.len();
            bytes[place % length] = byte;
            let _ = Node::read(&bytes[..end.min(length)]);
            let _ = Node::read(&bytes);
        }
    }
}
