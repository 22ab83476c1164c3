//! The bytes of a JSON or UBJSON document in, its values out, one after the other as the caller asks for them.
//!
//! Nothing is kept but the place in the bytes, so a value costs no memory until its reader keeps it. Invariants:
//!
//! 1. Every step moves on in the bytes or ends in an error with the place, so reading ends.
//! 2. Nesting is bounded by [`DEPTH_MAX`].
//! 3. A list is reserved by the commas that stand there, or by a stated count that the bytes left can hold.

use std::borrow::Cow;

use super::{Place, ReadError};

mod json;
mod scalar;
mod ubjson;

use scalar::{Scalar, Unread};

/// Deeper than any model.
const DEPTH_MAX: u32 = 64;

/// A reader of one document.
pub(super) struct Document<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    /// UBJSON draft 12, big-endian; else JSON, with `NaN` and `Infinity` as numbers, as XGBoost writes them.
    binary: bool,
}

impl<'a> Document<'a> {
    /// Opens a file that starts with `{`: UBJSON goes on with the marker of a key's length, JSON with a quote.
    pub(super) fn open(bytes: &'a [u8]) -> Self {
        let second = bytes.iter().skip(1).find(|byte| !byte.is_ascii_whitespace());
        Self { bytes, at: 0, depth: 0, binary: second.is_some_and(u8::is_ascii_alphabetic) }
    }

    /// The place of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// An error at this place.
    pub(super) fn error(&self, reason: impl Into<String>) -> ReadError {
        ReadError { place: Place::Byte(self.at), reason: reason.into() }
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Result<(), ReadError> {
        if !self.binary {
            self.space();
        }
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.error("more bytes than the document has")) }
    }

    /// Reads an object; `member` must read or skip the value of each key.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.start(b'{', "an object")?;
        if self.binary {
            while self.peek()? != b'}' {
                let key = self.binary_text()?;
                member(self, key)?;
            }
            self.at += 1;
        } else if !self.closes(b'}')? {
            loop {
                let key = self.json_text()?;
                self.expect(b':')?;
                member(self, &key)?;
                if !self.goes_on(b'}')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a list of anything; `element` must read or skip each.
    pub(super) fn list(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.start(b'[', "a list")?;
        if self.binary {
            match self.peek()? {
                b'$' => return Err(self.error("a list of numbers, where one of other things belongs")),
                b'#' => {
                    for _ in 0..self.length(1)? {
                        element(self)?;
                    }
                }
                _ => {
                    while self.peek()? != b']' {
                        element(self)?;
                    }
                    self.at += 1;
                }
            }
        } else if !self.closes(b']')? {
            loop {
                element(self)?;
                if !self.goes_on(b']')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a list of numbers into `into`, which is emptied first.
    pub(super) fn numbers<T: Scalar>(&mut self, into: &mut Vec<T>) -> Result<(), ReadError> {
        into.clear();
        let here = self.at;
        let held = self.count_of_numbers::<T>()?;
        self.at = here;
        into.reserve_exact(held);
        self.each_number(|number| into.push(number))
    }

    /// Reads a list of numbers and gives their count.
    pub(super) fn count_numbers(&mut self) -> Result<usize, ReadError> {
        let mut count = 0;
        self.each_number(|_: Unread| count += 1)?;
        Ok(count)
    }

    /// Reads one number.
    pub(super) fn number<T: Scalar>(&mut self) -> Result<T, ReadError> {
        if self.binary {
            let marker = self.byte()?;
            self.binary_number(marker)
        } else {
            self.space();
            self.json_number()
        }
    }

    /// Reads a text.
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, ReadError> {
        if self.binary {
            match self.peek()? {
                b'S' => {
                    self.at += 1;
                    self.binary_text().map(Cow::Borrowed)
                }
                _ => Err(self.error("no text, where one belongs")),
            }
        } else {
            self.json_text()
        }
    }

    /// Passes over a value of any kind.
    pub(super) fn skip(&mut self) -> Result<(), ReadError> {
        if !self.binary {
            self.space();
        }
        match self.peek()? {
            b'{' => self.object(|document, _| document.skip()),
            b'[' if self.binary && self.bytes.get(self.at + 1) == Some(&b'$') => self.count_numbers().map(|_| ()),
            b'[' => self.list(Self::skip),
            b'S' if self.binary => self.text().map(|_| ()),
            b'T' | b'F' | b'Z' if self.binary => {
                self.at += 1;
                Ok(())
            }
            b'"' => self.text().map(|_| ()),
            _ if self.binary => self.number().map(|_: Unread| ()),
            _ => match self.token()? {
                "null" | "true" | "false" => Ok(()),
                token if Unread::from_token(token).is_some() => Ok(()),
                _ => Err(self.error("no JSON value")),
            },
        }
    }

    /// An upper bound of the numbers in the list that starts here. Moves the place.
    fn count_of_numbers<T: Scalar>(&mut self) -> Result<usize, ReadError> {
        self.start(b'[', "a list of numbers")?;
        self.depth -= 1;
        if !self.binary {
            let inside = self.bytes[self.at..].iter().take_while(|byte| !matches!(byte, b']' | b'[' | b'{' | b'"'));
            return Ok(1 + inside.filter(|byte| **byte == b',').count());
        }
        match self.peek()? {
            b'$' => {
                let marker = *self.bytes.get(self.at + 1).ok_or_else(|| self.error("the file is cut short"))?;
                self.at += 2;
                let size = self.size_of_number::<T>(marker)?;
                self.length(size)
            }
            b'#' => self.length_after_marker(),
            // Without a count it is not XGBoost's own; let it grow.
            _ => Ok(0),
        }
    }

    fn length_after_marker(&mut self) -> Result<usize, ReadError> {
        self.at += 1;
        // A number has a marker and a byte or more.
        self.length_unmarked(2)
    }

    fn each_number<T: Scalar>(&mut self, mut take: impl FnMut(T)) -> Result<(), ReadError> {
        self.start(b'[', "a list of numbers")?;
        if self.binary {
            match self.peek()? {
                b'$' => {
                    self.at += 1;
                    let marker = self.byte()?;
                    let size = self.size_of_number::<T>(marker)?;
                    for _ in 0..self.length(size)? {
                        take(self.binary_number(marker)?);
                    }
                }
                b'#' => {
                    for _ in 0..self.length_after_marker()? {
                        let marker = self.byte()?;
                        take(self.binary_number(marker)?);
                    }
                }
                _ => {
                    while self.peek()? != b']' {
                        let marker = self.byte()?;
                        take(self.binary_number(marker)?);
                    }
                    self.at += 1;
                }
            }
        } else if !self.closes(b']')? {
            loop {
                take(self.json_number()?);
                if !self.goes_on(b']')? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn start(&mut self, open: u8, what: &str) -> Result<(), ReadError> {
        if !self.binary {
            self.space();
        }
        if self.peek()? != open {
            return Err(self.error(format!("{what} belongs here")));
        }
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(self.error("nested too deeply")) } else { Ok(()) }
    }

    fn peek(&self) -> Result<u8, ReadError> {
        self.bytes.get(self.at).copied().ok_or_else(|| self.error("the file is cut short"))
    }

    fn byte(&mut self) -> Result<u8, ReadError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let bytes = self.bytes;
        let taken = bytes[self.at..].get(..count).ok_or_else(|| self.error("the file is cut short"))?;
        self.at += count;
        Ok(taken)
    }
}
