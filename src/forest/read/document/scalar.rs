//! What a list of numbers may consist of, and how each kind is read from either format.

/// What a list of numbers may consist of.
pub(in crate::forest::read) trait Scalar: Sized {
    /// Lists of one UBJSON type must be floats: what is read takes more room than small integers do.
    const FLOATS_ONLY: bool = false;

    /// From a JSON token.
    fn from_token(token: &str) -> Option<Self>;
    /// From a UBJSON integer.
    fn from_integer(value: i64) -> Option<Self>;
    /// From a UBJSON float.
    fn from_float(value: f64) -> Option<Self>;
}

impl Scalar for f32 {
    const FLOATS_ONLY: bool = true;

    fn from_token(token: &str) -> Option<Self> {
        match token {
            "NaN" => Some(Self::NAN),
            "Infinity" => Some(Self::INFINITY),
            "-Infinity" => Some(Self::NEG_INFINITY),
            // Rust reads `inf`, `nan` and a leading `+` too, which no JSON writer means.
            _ if token.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => token.parse().ok(),
            _ => None,
        }
    }

    fn from_integer(value: i64) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "what is not exact is refused")]
        let narrow = value as Self;
        #[allow(clippy::cast_possible_truncation, reason = "saturates, and then differs")]
        let back = narrow as i64;
        (back == value).then_some(narrow)
    }

    fn from_float(value: f64) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation, reason = "what is not exact is refused")]
        let narrow = value as Self;
        (f64::from(narrow).to_bits() == value.to_bits() || value.is_nan()).then_some(narrow)
    }
}

impl Scalar for i32 {
    fn from_token(token: &str) -> Option<Self> {
        token.parse().ok()
    }

    fn from_integer(value: i64) -> Option<Self> {
        value.try_into().ok()
    }

    fn from_float(_: f64) -> Option<Self> {
        None
    }
}

/// 0, 1, false or true.
impl Scalar for bool {
    fn from_token(token: &str) -> Option<Self> {
        match token {
            "0" | "false" => Some(false),
            "1" | "true" => Some(true),
            _ => None,
        }
    }

    fn from_integer(value: i64) -> Option<Self> {
        match value {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn from_float(_: f64) -> Option<Self> {
        None
    }
}

/// Any number, unread: for lists that only have to be there.
pub(super) struct Unread;

impl Scalar for Unread {
    fn from_token(token: &str) -> Option<Self> {
        f32::from_token(token).map(|_| Self)
    }

    fn from_integer(_: i64) -> Option<Self> {
        Some(Self)
    }

    fn from_float(_: f64) -> Option<Self> {
        Some(Self)
    }
}
