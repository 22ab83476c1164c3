//! One JSON value in: as a [`Scalar`], whole, or to a [`Take`], which may take lists and objects apart.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::message::quoted;

/// One JSON value, its text borrowed from the payload where it has no escapes; lists and objects are read over.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Whole(i128),
    Number(f64),
    Text(Cow<'a, str>),
    List,
    Object,
}

impl Scalar<'_> {
    /// The value as an integer.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Self::Whole(number) => Some(*number),
            _ => None,
        }
    }

    /// The value as a number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "numbers are f64 by the wire format")]
            Self::Whole(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List => f.write_str("an array"),
            Self::Object => f.write_str("an object"),
        }
    }
}

impl<'a> Deserialize<'a> for Scalar<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// The value of a field; `None` for `null`.
pub(super) fn given<'a, A: MapAccess<'a>>(map: &mut A) -> Result<Option<Scalar<'a>>, A::Error> {
    Ok(Some(map.next_value()?).filter(|value| *value != Scalar::Null))
}

/// Who takes one value, whatever it is.
pub(super) trait Take<'a>: Sized {
    /// Takes a value as it is. A list or an object comes here unless it is taken apart.
    fn whole(self, got: Scalar<'a>);

    /// Takes a list apart.
    fn list<A: SeqAccess<'a>>(self, list: A) -> Result<(), A::Error> {
        let got = ScalarVisitor.visit_seq(list)?;
        self.whole(got);
        Ok(())
    }

    /// Takes an object apart.
    fn object<A: MapAccess<'a>>(self, object: A) -> Result<(), A::Error> {
        let got = ScalarVisitor.visit_map(object)?;
        self.whole(got);
        Ok(())
    }
}

/// Hands the next value to its taker.
pub(super) struct Give<T>(pub(super) T);

impl<'a, T: Take<'a>> DeserializeSeed<'a> for Give<T> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a, T: Take<'a>> Visitor<'a> for Give<T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        ScalarVisitor.visit_unit().map(|got| self.0.whole(got))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        ScalarVisitor.visit_bool(value).map(|got| self.0.whole(got))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        ScalarVisitor.visit_u64(number).map(|got| self.0.whole(got))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        ScalarVisitor.visit_i64(number).map(|got| self.0.whole(got))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        ScalarVisitor.visit_f64(number).map(|got| self.0.whole(got))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<(), E> {
        ScalarVisitor.visit_borrowed_str(text).map(|got| self.0.whole(got))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        ScalarVisitor.visit_str(text).map(|got| self.0.whole(got))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, list: A) -> Result<(), A::Error> {
        self.0.list(list)
    }

    fn visit_map<A: MapAccess<'a>>(self, object: A) -> Result<(), A::Error> {
        self.0.object(object)
    }
}

/// Reads a [`Scalar`]. Nested values count against the parser's depth limit, which `IgnoredAny` would not do.
pub(super) struct ScalarVisitor;

impl<'a> Visitor<'a> for ScalarVisitor {
    type Value = Scalar<'a>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Whole(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Whole(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Scalar<'a>, A::Error> {
        while seq.next_element::<Scalar<'a>>()?.is_some() {}
        Ok(Scalar::List)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Scalar<'a>, A::Error> {
        while map.next_entry::<Text<'a>, Scalar<'a>>()?.is_some() {}
        Ok(Scalar::Object)
    }
}

/// A string, borrowed where it has no escapes.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'a> Deserialize<'a> for Text<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'a> Visitor<'a> for TextVisitor {
            type Value = Text<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'a str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}
