//! A checkpoint's bytes in, its scalars, texts and arrays out, one after the other. Little-endian, as Treelite writes
//! them on every machine that this runs on.
//!
//! An array stays where it is in the file: a [`View`] reads one number at a time.

use crate::forest::read::{Place, ReadError};

/// The bytes, and how far they have been read.
pub(super) struct File<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> File<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The place of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> ReadError {
        error_at(self.at, reason)
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let bytes = self.bytes;
        let taken = bytes[self.at..].get(..count).ok_or_else(|| self.error("the file is cut short"))?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ReadError> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn i32(&mut self) -> Result<i32, ReadError> {
        self.take(4).map(|bytes| View::of(bytes, 4).i32(0))
    }

    pub(super) fn u64(&mut self) -> Result<u64, ReadError> {
        self.take(8).map(|bytes| View::of(bytes, 8).u64(0))
    }

    pub(super) fn f32(&mut self) -> Result<f32, ReadError> {
        self.take(4).map(|bytes| View::of(bytes, 4).f32(0))
    }

    /// An array: its length, and as many elements of `size` bytes.
    pub(super) fn array(&mut self, size: usize) -> Result<View<'a>, ReadError> {
        let start = self.at;
        let stated = self.u64()?;
        let held = usize::try_from(stated).ok().filter(|&count| count <= self.left() / size);
        let count =
            held.ok_or_else(|| error_at(start, format!("a length of {stated}, with {} bytes left", self.left())))?;
        self.take(count * size).map(|bytes| View::of(bytes, size))
    }

    /// An array that must have so many elements.
    pub(super) fn array_of(&mut self, what: &str, size: usize, expected: usize) -> Result<View<'a>, ReadError> {
        let start = self.at;
        let view = self.array(size)?;
        if view.count == expected {
            Ok(view)
        } else {
            Err(error_at(start, format!("`{what}` has {} elements, expected {expected}", view.count)))
        }
    }

    pub(super) fn text(&mut self) -> Result<&'a str, ReadError> {
        let start = self.at;
        let view = self.array(1)?;
        std::str::from_utf8(view.bytes).map_err(|_| error_at(start, "text that is not UTF-8"))
    }

    /// Passes over fields of versions to come, each with its name: how many, then name, element size and elements.
    pub(super) fn skip_optional(&mut self, what: &str) -> Result<(), ReadError> {
        let start = self.at;
        let count = self.i32()?;
        if count < 0 {
            return Err(error_at(start, format!("{count} optional fields of a {what}")));
        }
        for _ in 0..count {
            let here = self.at;
            self.text()?;
            let (size, count) = (self.u64()?, self.u64()?);
            let bytes = size.checked_mul(count).and_then(|bytes| usize::try_from(bytes).ok());
            self.take(bytes.filter(|&bytes| bytes <= self.left()).ok_or_else(|| {
                error_at(here, format!("an optional field of {count} elements of {size} bytes does not fit"))
            })?)?;
        }
        Ok(())
    }
}

pub(super) fn error_at(at: usize, reason: impl Into<String>) -> ReadError {
    ReadError { place: Place::Byte(at), reason: reason.into() }
}

/// Elements of one size and distance in the file. The index must be below `count`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    bytes: &'a [u8],
    stride: usize,
    pub(super) count: usize,
}

impl<'a> View<'a> {
    /// Elements side by side.
    pub(super) fn of(bytes: &'a [u8], size: usize) -> Self {
        Self { bytes, stride: size, count: bytes.len() / size }
    }

    /// The field of each element that starts `offset` bytes into it.
    pub(super) fn field(self, offset: usize) -> Self {
        Self { bytes: self.bytes.get(offset..).unwrap_or_default(), ..self }
    }

    /// All but the first element, and all but the last.
    pub(super) fn pairs(self) -> (Self, Self) {
        let count = self.count.saturating_sub(1);
        (Self { count, ..self }, Self { count, ..self.field(self.stride) })
    }

    fn get<const N: usize>(self, index: usize) -> [u8; N] {
        let start = index * self.stride;
        self.bytes[start..start + N].try_into().expect("N bytes")
    }

    pub(super) fn u8(self, index: usize) -> u8 {
        self.get::<1>(index)[0]
    }

    pub(super) fn u32(self, index: usize) -> u32 {
        u32::from_le_bytes(self.get(index))
    }

    pub(super) fn i32(self, index: usize) -> i32 {
        i32::from_le_bytes(self.get(index))
    }

    pub(super) fn u64(self, index: usize) -> u64 {
        u64::from_le_bytes(self.get(index))
    }

    pub(super) fn f32(self, index: usize) -> f32 {
        f32::from_le_bytes(self.get(index))
    }

    pub(super) fn f64(self, index: usize) -> f64 {
        f64::from_le_bytes(self.get(index))
    }

    pub(super) fn i32s(self) -> impl Iterator<Item = i32> + 'a {
        (0..self.count).map(move |index| self.i32(index))
    }

    pub(super) fn f64s(self) -> impl Iterator<Item = f64> + 'a {
        (0..self.count).map(move |index| self.f64(index))
    }
}
