//! The usual body in, its fields out, in one pass over the bytes and without an allocation: a JSON object of the known
//! fields, each once and in any order, with `features` one flat list of numbers and nulls.
//!
//! Everything else gets `None`, be it unusual or wrong, and `json` decides: it alone has the words of an error. A case
//! that this page leaves out costs time, never an answer.
//!
//! Invariants: what this page takes, `json` takes too, with the same values bit for bit; after `None` the feature arena
//! ends where it did; nothing panics, whatever the bytes.

use std::borrow::Cow;

use super::ID_BYTES_MAX;
use super::decimal::{self, DIGITS_MAX};
use super::features::Layout;
use super::json::{Body, Id};
use super::value::Scalar;

/// Most digits of a whole number outside of `features`: each one is an `i64`.
const WHOLE_DIGITS_MAX: usize = 18;

/// Reads a usual body. Its numbers go to the end of the feature arena.
pub(super) fn read<'a>(payload: &'a [u8], values: &mut Vec<f64>) -> Option<Body<'a>> {
    let mark = values.len();
    let body = Cursor { bytes: payload, at: 0 }.body(values);
    if body.is_none() {
        values.truncate(mark);
    }
    body
}

/// A place in the payload. The methods read what begins there and leave the place behind it.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn body(mut self, values: &mut Vec<f64>) -> Option<Body<'a>> {
        let mut body = Body::default();
        self.space();
        self.word(b"{")?;
        loop {
            self.space();
            self.field(&mut body, values)?;
            self.space();
            match self.take() {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        self.space();
        (self.at == self.bytes.len()).then_some(body)
    }

    /// A field that was not there yet.
    fn field(&mut self, body: &mut Body<'a>, values: &mut Vec<f64>) -> Option<()> {
        self.word(b"\"")?;
        match self.peek() {
            b'i' if body.id.is_none() => {
                self.name(b"id\"")?;
                body.id = Some(Id::Json(self.id()?));
            }
            b'f' if body.layout.is_none() => {
                self.name(b"features\"")?;
                body.layout = Some(self.row(values)?);
            }
            b'm' if body.model.is_none() => {
                self.name(b"model\"")?;
                body.model = Some(Scalar::Text(Cow::Borrowed(self.text()?)));
            }
            b'p' if body.priority.is_none() => {
                self.name(b"priority\"")?;
                body.priority = Some(Scalar::Whole(self.whole()?.into()));
            }
            b't' if body.timeout.is_none() => {
                self.name(b"timeout_ms\"")?;
                body.timeout = Some(self.whole_or_number()?);
            }
            _ => return None,
        }
        Some(())
    }

    /// The rest of a field's name, and the colon.
    fn name<const N: usize>(&mut self, name: &[u8; N]) -> Option<()> {
        self.word(name)?;
        self.space();
        self.word(b":")?;
        self.space();
        Some(())
    }

    /// A list of numbers and nulls, one at least.
    fn row(&mut self, values: &mut Vec<f64>) -> Option<Layout> {
        let mark = values.len();
        // A copy that nobody else sees can stay in registers.
        let mut cursor = *self;
        cursor.word(b"[")?;
        loop {
            cursor.space();
            values.push(cursor.cell()?);
            if cursor.peek() != b',' {
                cursor.space();
            }
            match cursor.take() {
                b',' => {}
                b']' => break,
                _ => return None,
            }
        }
        *self = cursor;
        Some(Layout::row(values.len() - mark))
    }

    #[inline]
    fn cell(&mut self) -> Option<f64> {
        let rest = self.bytes.get(self.at..)?;
        let short = match rest.first_chunk() {
            Some(window) => decimal::short(window),
            None => short_at_end(rest),
        };
        if let Some((number, length)) = short {
            self.at += length;
            return Some(number);
        }
        let mut cursor = *self;
        let value = cursor.odd_cell();
        self.at = cursor.at;
        value
    }

    /// A null, or a number that is long or has an exponent.
    #[inline(never)]
    fn odd_cell(&mut self) -> Option<f64> {
        if self.peek() == b'n' {
            return self.word(b"null").map(|()| f64::NAN);
        }
        self.number()
    }

    /// An id in the very bytes in which a reply repeats it.
    fn id(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        if self.peek() == b'"' {
            let text = self.text()?;
            if text.len() > ID_BYTES_MAX {
                return None;
            }
        } else {
            self.whole()?;
        }
        self.bytes.get(start..self.at)
    }

    /// A string without escapes.
    fn text(&mut self) -> Option<&'a str> {
        self.word(b"\"")?;
        let start = self.at;
        while let Some(word) = self.eight()
            && string_ends(word) == 0
        {
            self.at += 8;
        }
        while !matches!(self.peek(), b'"' | b'\\' | 0..=0x1f) {
            self.at += 1;
        }
        let text = self.bytes.get(start..self.at)?;
        self.word(b"\"")?;
        std::str::from_utf8(text).ok()
    }

    /// A number without a fraction and an exponent, or its beginning. `-0` is none: it is a float to JSON readers.
    fn whole(&mut self) -> Option<i64> {
        let negative = self.sign();
        let start = self.at;
        let mut number = 0;
        while let Some(digit) = self.digit() {
            if self.at - start > WHOLE_DIGITS_MAX {
                return None;
            }
            number = number * 10 + i64::from(digit);
        }
        let zero_first = self.bytes.get(start) == Some(&b'0');
        match self.at - start {
            0 => None,
            1 if zero_first => (!negative).then_some(0),
            _ if zero_first => None,
            _ => Some(if negative { -number } else { number }),
        }
    }

    fn whole_or_number<'v>(&mut self) -> Option<Scalar<'v>> {
        let start = self.at;
        let whole = self.whole()?;
        if matches!(self.peek(), b'.' | b'e' | b'E') {
            self.at = start;
            return self.number().map(Scalar::Number);
        }
        Some(Scalar::Whole(whole.into()))
    }

    /// A number as the nearest `f64`; none for one that is too large.
    #[inline]
    fn number(&mut self) -> Option<f64> {
        let negative = self.sign();
        let whole_start = self.at;
        let zero_first = self.peek() == b'0';
        let mut mantissa = 0;
        self.digits(&mut mantissa);
        let mut digits = self.at - whole_start;
        if digits == 0 || (zero_first && digits > 1) {
            return None;
        }
        let mut places = 0;
        if self.peek() == b'.' {
            self.at += 1;
            let places_start = self.at;
            self.digits(&mut mantissa);
            places = self.at - places_start;
            if places == 0 {
                return None;
            }
            digits += places;
        }
        let size = if matches!(self.peek(), b'e' | b'E') || digits > DIGITS_MAX {
            let (size, end) = self.long_number(whole_start, mantissa, digits, places)?;
            self.at = end;
            size
        } else {
            decimal::shift_down(mantissa, places)
        };
        Some(decimal::signed(size, negative))
    }

    /// A number without its sign whose digits end here, though it may not; and its end.
    #[cold]
    fn long_number(mut self, start: usize, mantissa: u64, digits: usize, places: usize) -> Option<(f64, usize)> {
        let mut shift = -i64::try_from(places).ok()?;
        if matches!(self.peek(), b'e' | b'E') {
            shift += self.exponent()?;
        }
        let size = if digits <= DIGITS_MAX { decimal::shift(mantissa, shift) } else { None };
        let size = size.or_else(|| std::str::from_utf8(self.bytes.get(start..self.at)?).ok()?.parse().ok())?;
        size.is_finite().then_some((size, self.at))
    }

    /// The exponent of a number. One of many digits is cut to a number that is still far out of range.
    fn exponent(&mut self) -> Option<i64> {
        self.at += 1;
        let negative = self.peek() == b'-';
        if negative || self.peek() == b'+' {
            self.at += 1;
        }
        let start = self.at;
        let mut exponent = 0;
        while let Some(digit) = self.digit() {
            exponent = (exponent * 10 + i64::from(digit)).min(100_000);
        }
        (self.at > start).then_some(if negative { -exponent } else { exponent })
    }

    /// Appends digits to a mantissa, modulo 2^64.
    #[inline]
    fn digits(&mut self, mantissa: &mut u64) {
        while let Some(digit) = self.digit() {
            *mantissa = mantissa.wrapping_mul(10).wrapping_add(digit.into());
        }
    }

    #[inline]
    fn digit(&mut self) -> Option<u8> {
        let digit = self.peek().wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        self.at += 1;
        Some(digit)
    }

    #[inline]
    fn sign(&mut self) -> bool {
        let negative = self.peek() == b'-';
        self.at += usize::from(negative);
        negative
    }

    #[inline]
    fn space(&mut self) {
        while self.peek() <= b' ' && matches!(self.peek(), b' ' | b'\n' | b'\t' | b'\r') {
            self.at += 1;
        }
    }

    /// The next bytes, if they are these.
    #[inline]
    fn word<const N: usize>(&mut self, word: &[u8; N]) -> Option<()> {
        if self.bytes.get(self.at..)?.first_chunk() != Some(word) {
            return None;
        }
        self.at += N;
        Some(())
    }

    #[inline]
    fn take(&mut self) -> u8 {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    /// The next byte; 0, which is no JSON, at the end.
    #[inline]
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    /// The next eight bytes, the first in the lowest place; `None` where there are fewer.
    #[inline]
    fn eight(&self) -> Option<u64> {
        self.bytes.get(self.at..)?.first_chunk().copied().map(u64::from_le_bytes)
    }
}

/// [`decimal::short`] for a text that may end first.
#[inline(never)]
fn short_at_end(text: &[u8]) -> Option<(f64, usize)> {
    let mut window = [0; decimal::WINDOW];
    window.get_mut(..text.len())?.copy_from_slice(text);
    decimal::short(&window)
}

/// Zero when none of the eight bytes ends a plain string: a quote, a backslash, a control character.
fn string_ends(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xFF;
    // A byte below `limit`, itself below 0x80, borrows into its top bit (Bit Twiddling Hacks, "hasless").
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | is(b'"') | is(b'\\')) & (ONES << 7)
}
