//! The UBJSON part of [`Document`]: markers, numbers and lengths, big-endian.

use super::Document;
use super::scalar::Scalar;
use crate::forest::read::{Place, ReadError};

impl<'a> Document<'a> {
    pub(super) fn binary_text(&mut self) -> Result<&'a str, ReadError> {
        let length = self.length_unmarked(1)?;
        let text = self.take(length)?;
        std::str::from_utf8(text).map_err(|_| self.error("text that is not UTF-8"))
    }

    pub(super) fn binary_number<T: Scalar>(&mut self, marker: u8) -> Result<T, ReadError> {
        let here = self.at;
        let number = match marker {
            b'd' => T::from_float(f64::from(f32::from_be_bytes(self.array()?))),
            b'D' => T::from_float(f64::from_be_bytes(self.array()?)),
            b'T' => T::from_integer(1),
            b'F' => T::from_integer(0),
            marker => T::from_integer(self.integer(marker)?),
        };
        let error = || ReadError { place: Place::Byte(here), reason: "a number that does not belong here".to_owned() };
        number.ok_or_else(error)
    }

    pub(super) fn integer(&mut self, marker: u8) -> Result<i64, ReadError> {
        Ok(match marker {
            b'i' => i8::from_be_bytes(self.array()?).into(),
            b'U' | b'C' => u8::from_be_bytes(self.array()?).into(),
            b'I' => i16::from_be_bytes(self.array()?).into(),
            b'l' => i32::from_be_bytes(self.array()?).into(),
            b'L' => i64::from_be_bytes(self.array()?),
            marker => return Err(self.error(format!("the marker {:?} is not one of a number", char::from(marker)))),
        })
    }

    /// `#` and a count of things that take `size` bytes or more each, of which the file must hold so many.
    pub(super) fn length(&mut self, size: usize) -> Result<usize, ReadError> {
        if self.byte()? != b'#' {
            return Err(self.error("the count of a list belongs here"));
        }
        self.length_unmarked(size)
    }

    pub(super) fn length_unmarked(&mut self, size: usize) -> Result<usize, ReadError> {
        let marker = self.byte()?;
        let stated = self.integer(marker)?;
        let left = self.bytes.len() - self.at;
        let held = usize::try_from(stated).ok().filter(|&count| count <= left / size);
        held.ok_or_else(|| self.error(format!("a length of {stated}, with {left} bytes left")))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.error("the file is cut short"))
    }

    /// The size of a number in a list of one type.
    pub(super) fn size_of_number<T: Scalar>(&self, marker: u8) -> Result<usize, ReadError> {
        match marker {
            b'd' => Ok(4),
            b'D' => Ok(8),
            _ if T::FLOATS_ONLY => Err(self.error("a list of integers, where one of floats belongs")),
            b'i' | b'U' | b'C' => Ok(1),
            b'I' => Ok(2),
            b'l' => Ok(4),
            b'L' => Ok(8),
            _ => Err(self.error("a list of no known numbers")),
        }
    }
}
