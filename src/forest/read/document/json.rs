//! The JSON part of [`Document`]: its marks, numbers and texts.

use std::borrow::Cow;

use super::Document;
use super::scalar::Scalar;
use crate::forest::read::{Place, ReadError};

impl<'a> Document<'a> {
    pub(super) fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    pub(super) fn expect(&mut self, wanted: u8) -> Result<(), ReadError> {
        self.space();
        if self.peek()? != wanted {
            return Err(self.error(format!("{:?} belongs here", char::from(wanted))));
        }
        self.at += 1;
        Ok(())
    }

    /// Whether the object or list ends at once.
    pub(super) fn closes(&mut self, close: u8) -> Result<bool, ReadError> {
        self.space();
        let closes = self.peek()? == close;
        self.at += usize::from(closes);
        Ok(closes)
    }

    /// Whether another one follows.
    pub(super) fn goes_on(&mut self, close: u8) -> Result<bool, ReadError> {
        self.space();
        let byte = self.peek()?;
        if byte != b',' && byte != close {
            return Err(self.error(format!("{:?} or ',' belongs here", char::from(close))));
        }
        self.at += 1;
        self.space();
        Ok(byte == b',')
    }

    /// What stands up to the next mark of punctuation or space.
    pub(super) fn token(&mut self) -> Result<&'a str, ReadError> {
        let rest = &self.bytes[self.at..];
        let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b':' | b'"') || byte.is_ascii_whitespace();
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        let token = std::str::from_utf8(&rest[..length]).map_err(|_| self.error("not UTF-8"))?;
        self.at += length;
        Ok(token)
    }

    pub(super) fn json_number<T: Scalar>(&mut self) -> Result<T, ReadError> {
        let here = self.at;
        let token = self.token()?;
        T::from_token(token).ok_or_else(|| {
            let shown: String = token.chars().take(40).collect();
            ReadError { place: Place::Byte(here), reason: format!("{shown:?} is not a number that belongs here") }
        })
    }

    pub(super) fn json_text(&mut self) -> Result<Cow<'a, str>, ReadError> {
        self.expect(b'"')?;
        let bytes = self.bytes;
        let rest = &bytes[self.at..];
        let stop = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
        let stop = stop.ok_or_else(|| self.error("a text that does not end"))?;
        if rest[stop] == b'"' {
            let text = std::str::from_utf8(&rest[..stop]).map_err(|_| self.error("text that is not UTF-8"))?;
            self.at += stop + 1;
            return Ok(Cow::Borrowed(text));
        }
        self.json_text_with_escapes().map(Cow::Owned)
    }

    pub(super) fn json_text_with_escapes(&mut self) -> Result<String, ReadError> {
        let mut text = Vec::new();
        loop {
            match self.byte()? {
                b'"' => break,
                b'\\' => {
                    let escape = self.byte()?;
                    let mut room = [0; 4];
                    let character = match escape {
                        b'"' | b'\\' | b'/' => char::from(escape),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => self.json_code()?,
                        _ => return Err(self.error("an escape that JSON does not have")),
                    };
                    text.extend_from_slice(character.encode_utf8(&mut room).as_bytes());
                }
                byte => text.push(byte),
            }
        }
        String::from_utf8(text).map_err(|_| self.error("text that is not UTF-8"))
    }

    pub(super) fn json_code(&mut self) -> Result<char, ReadError> {
        let high = self.json_code_unit()?;
        let code = if (0xd800..0xdc00).contains(&high) {
            if self.take(2)? != b"\\u" {
                return Err(self.error("half of a surrogate pair"));
            }
            let low = self.json_code_unit()?.wrapping_sub(0xdc00);
            0x1_0000 + (high - 0xd800) * 0x400 + low
        } else {
            high
        };
        char::from_u32(code).ok_or_else(|| self.error("an escape that is no character"))
    }

    pub(super) fn json_code_unit(&mut self) -> Result<u32, ReadError> {
        let digits = self.take(4)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        digits
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.error("an escape without its four digits"))
    }
}
