//! Protobuf in, fields out: `onnx.proto3` as far as tree ensembles need it. Nothing is kept but the place in the bytes;
//! a list is reserved by the numbers that stand there.

use crate::forest::read::{Place, ReadError};

/// A message, and where in the file it stands. Iterates its fields: (number, value).
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A field's value.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(Message<'a>),
    Fixed32(u32),
    Fixed64(u64),
}

impl<'a> Message<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> ReadError {
        ReadError { place: Place::Byte(self.at), reason: reason.into() }
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn text(self) -> Result<&'a str, ReadError> {
        std::str::from_utf8(self.bytes).map_err(|_| self.error("a name that is not UTF-8"))
    }

    /// Appends the numbers of a packed list.
    pub(super) fn varints(mut self, into: &mut Vec<i32>) -> Result<(), ReadError> {
        into.reserve_exact(self.bytes.iter().filter(|&&byte| byte < 0x80).count());
        while !self.bytes.is_empty() {
            let number = self.varint()?;
            into.push(self.small(number)?);
        }
        Ok(())
    }

    fn small(&self, number: u64) -> Result<i32, ReadError> {
        i32::try_from(number.cast_signed()).map_err(|_| self.error("a number of more than 32 bits"))
    }

    /// How many fields of this number hold a number each, not a list.
    fn count_single(self, wanted: u64) -> usize {
        self.filter(|field| matches!(field, Ok((number, Value::Number(_) | Value::Fixed32(_))) if *number == wanted))
            .count()
    }

    /// Appends the numbers of a packed list of floats.
    pub(super) fn floats(self, into: &mut Vec<f64>) -> Result<(), ReadError> {
        let (numbers, rest) = self.bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(self.error("a list of floats that is cut short"));
        }
        into.extend(numbers.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))));
        Ok(())
    }

    /// The same of doubles.
    pub(super) fn doubles(self, into: &mut Vec<f64>) -> Result<(), ReadError> {
        let (numbers, rest) = self.bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(self.error("a list of doubles that is cut short"));
        }
        into.extend(numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)));
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, ReadError> {
        let mut number = 0_u64;
        for place in 0..10 {
            let byte = self.take(1)?.bytes[0];
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(self.error("a number of more than 10 bytes"))
    }

    fn take(&mut self, count: usize) -> Result<Message<'a>, ReadError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            return Err(self.error("the file is cut short"));
        };
        let taken = Message { bytes: taken, at: self.at };
        (self.bytes, self.at) = (rest, self.at + count);
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let taken = self.take(N)?;
        taken.bytes.try_into().map_err(|_| taken.error("the file is cut short"))
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), ReadError> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(count)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(self.error("a field of no known kind: the file is damaged or no ONNX model")),
        };
        Ok((key >> 3, value))
    }
}

#[allow(clippy::copy_iterator, reason = "a message is read several times, each time from its start: two words to copy")]
impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Value<'a>), ReadError>;

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

/// `TensorProto`'s number types.
pub(super) const FLOAT: u64 = 1;
pub(super) const UINT8: u64 = 2;
pub(super) const DOUBLE: u64 = 11;

/// A tensor's numbers.
#[derive(Default)]
pub(super) struct Tensor {
    pub(super) kind: u64,
    pub(super) dimensions: Vec<i32>,
    pub(super) values: Vec<f64>,
}

impl Tensor {
    pub(super) fn read(message: Message<'_>) -> Result<Self, ReadError> {
        let mut tensor = Self::default();
        let mut raw = None;
        tensor.dimensions.reserve_exact(message.count_single(1));
        for field in message {
            match field? {
                (1, Value::Number(size)) => tensor.dimensions.push(message.small(size)?),
                (1, Value::Bytes(packed)) => packed.varints(&mut tensor.dimensions)?,
                (2, Value::Number(kind)) => tensor.kind = kind,
                (4, Value::Bytes(packed)) => packed.floats(&mut tensor.values)?,
                (4, Value::Fixed32(bits)) => tensor.values.push(f64::from(f32::from_bits(bits))),
                (5, Value::Bytes(packed)) => {
                    let mut numbers = Vec::new();
                    packed.varints(&mut numbers)?;
                    tensor.values.extend(numbers.iter().copied().map(f64::from));
                }
                (9, Value::Bytes(bytes)) => raw = Some(bytes),
                (10, Value::Bytes(packed)) => packed.doubles(&mut tensor.values)?,
                (10, Value::Fixed64(bits)) => tensor.values.push(f64::from_bits(bits)),
                (13, _) | (14, Value::Number(1..)) => {
                    return Err(message.error("a tensor that is kept in another file"));
                }
                _ => {}
            }
        }
        match (raw, tensor.kind) {
            (None, _) => {}
            (Some(raw), FLOAT) => raw.floats(&mut tensor.values)?,
            (Some(raw), DOUBLE) => raw.doubles(&mut tensor.values)?,
            (Some(raw), UINT8) => tensor.values.extend(raw.bytes().iter().map(|&byte| f64::from(byte))),
            (Some(_), kind) => tensor.kind = kind,
        }
        Ok(tensor)
    }
}

/// A node's attribute.
#[derive(Default)]
pub(super) struct Attribute<'a> {
    pub(super) name: &'a str,
    pub(super) integer: i64,
    pub(super) text: &'a str,
    pub(super) floats: Vec<f64>,
    pub(super) integers: Vec<i32>,
    /// The texts of a list, still to be read: [`Attribute::texts`].
    message: Option<Message<'a>>,
    pub(super) tensor: Option<Tensor>,
}

impl<'a> Attribute<'a> {
    pub(super) fn read(message: Message<'a>) -> Result<Self, ReadError> {
        let mut attribute = Self { message: Some(message), ..Self::default() };
        attribute.integers.reserve_exact(message.count_single(8));
        attribute.floats.reserve_exact(message.count_single(7));
        for field in message {
            match field? {
                (1, Value::Bytes(name)) => attribute.name = name.text()?,
                (3, Value::Number(number)) => attribute.integer = number.cast_signed(),
                // Bytes of any kind; those that are looked at are text.
                (4, Value::Bytes(text)) => attribute.text = text.text().unwrap_or_default(),
                (5, Value::Bytes(tensor)) => attribute.tensor = Some(Tensor::read(tensor)?),
                (7, Value::Bytes(packed)) => packed.floats(&mut attribute.floats)?,
                (7, Value::Fixed32(bits)) => attribute.floats.push(f64::from(f32::from_bits(bits))),
                (8, Value::Bytes(packed)) => packed.varints(&mut attribute.integers)?,
                (8, Value::Number(number)) => attribute.integers.push(message.small(number)?),
                _ => {}
            }
        }
        Ok(attribute)
    }

    /// The texts of its list.
    pub(super) fn texts(&self) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.message.into_iter().flatten();
        fields.filter_map(|field| match field {
            Ok((9, Value::Bytes(text))) => Some(text.bytes()),
            _ => None,
        })
    }
}
