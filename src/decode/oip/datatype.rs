//! The datatypes of tensors: which values each takes, and the number that a model sees.

use std::fmt;

use crate::decode::kinds::text_number;
use crate::decode::message::quoted;

/// The upper half of a NaN that no JSON makes: stands among the values for `true` and `false` while the datatype, which may
/// come after them, is not known.
const TRUTH: u64 = 0x7ff8_b001;
/// The least number that becomes infinite in 16 bits.
const FP16_OVERFLOW: f64 = 65_520.0;

/// What stands among the values for a truth value.
pub(super) fn truth_cell(truth: bool) -> f64 {
    f64::from_bits(TRUTH << 32 | u64::from(truth))
}

/// A tensor's datatype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    pub(super) const ALL: [Self; 13] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// The cell that a model sees for one that was read: a number, a text's or, for a missing value, NaN. `None` where the
    /// datatype takes no such value.
    ///
    /// A number stays the f64 that the native form reads, whatever the float type: only one that the type cannot hold at all is
    /// refused.
    pub(super) fn cell(self, read: f64) -> Option<f64> {
        if text_number(read).is_some() {
            return (self == Self::Bytes).then_some(read);
        }
        if let Some(truth) = truth(read) {
            return (self == Self::Bool).then_some(f64::from(u8::from(truth)));
        }
        let fits = match self {
            _ if read.is_nan() => true,
            Self::Bytes => false,
            Self::Fp64 => true,
            #[expect(clippy::cast_possible_truncation, reason = "whether it overflows is the question")]
            Self::Fp32 => (read as f32).is_finite(),
            Self::Fp16 => read.abs() < FP16_OVERFLOW,
            _ => {
                // The bounds of 64 bits are rounded, as the number itself was when it became an f64.
                let (least, most) = self.bounds();
                read.fract() == 0.0 && (least as f64..=most as f64).contains(&read)
            }
        };
        fits.then_some(read)
    }

    /// The least and the greatest whole number of an integer type.
    const fn bounds(self) -> (i128, i128) {
        match self {
            Self::Uint8 => (0, u8::MAX as i128),
            Self::Uint16 => (0, u16::MAX as i128),
            Self::Uint32 => (0, u32::MAX as i128),
            Self::Uint64 => (0, u64::MAX as i128),
            Self::Int8 => (i8::MIN as i128, i8::MAX as i128),
            Self::Int16 => (i16::MIN as i128, i16::MAX as i128),
            Self::Int32 => (i32::MIN as i128, i32::MAX as i128),
            Self::Int64 => (i64::MIN as i128, i64::MAX as i128),
            Self::Bool | Self::Fp16 | Self::Fp32 | Self::Fp64 | Self::Bytes => (0, 1),
        }
    }
}

/// In the words of an error: what a value of this type is.
impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.as_str();
        match self {
            Self::Bool => write!(f, "{name} wants true or false, 1 or 0"),
            Self::Bytes => write!(f, "{name} wants a string"),
            Self::Fp64 => write!(f, "{name} wants a number"),
            Self::Fp32 => write!(f, "{name} wants a number up to {:?} either way", f32::MAX),
            Self::Fp16 => write!(f, "{name} wants a number up to 65504 either way"),
            _ => {
                let (least, most) = self.bounds();
                write!(f, "{name} wants a whole number from {least} to {most}")
            }
        }
    }
}

fn truth(cell: f64) -> Option<bool> {
    let bits = cell.to_bits();
    (bits >> 32 == TRUTH).then_some(bits & 1 == 1)
}

/// A cell that is no text's, as its sender may have written it.
pub(super) fn shown(cell: f64) -> String {
    match truth(cell) {
        Some(truth) => truth.to_string(),
        None if cell.is_nan() => "null".to_owned(),
        // Short where it is whole, and never hundreds of digits.
        None if cell.abs() < 1e15 => cell.to_string(),
        None => format!("{cell:?}"),
    }
}

/// A datatype that there is not.
pub(super) fn unknown(name: &str) -> String {
    let known = Datatype::ALL.map(Datatype::as_str).join(", ");
    format!("got {}, wants one of {known}", quoted(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::kinds::text_cell;

    #[test]
    fn each_takes_its_own_values_and_missing_ones() {
        let huge = 18_446_744_073_709_551_616.0;
        for (name, takes, refuses) in [
            ("BOOL", &[0.0, 1.0, -0.0][..], &[2.0, 0.5, -1.0][..]),
            ("UINT8", &[0.0, 255.0], &[256.0, -1.0, 1.5]),
            ("UINT16", &[65_535.0], &[65_536.0, -1.0]),
            ("UINT32", &[4_294_967_295.0], &[4_294_967_296.0, 0.1]),
            ("UINT64", &[huge, 9_007_199_254_740_992.0], &[huge * 2.0, -1.0]),
            ("INT8", &[-128.0, 127.0], &[-129.0, 128.0]),
            ("INT16", &[-32_768.0, 32_767.0], &[-32_769.0, 32_768.0]),
            ("INT32", &[-2_147_483_648.0, 2_147_483_647.0], &[2_147_483_648.0, 1.5]),
            ("INT64", &[-huge / 2.0, 1e15], &[huge, -huge]),
            ("FP16", &[65_504.0, -65_519.9, 0.1], &[65_520.0, -1e300]),
            ("FP32", &[3.4e38, -0.1, f64::from(f32::MAX)], &[3.5e38, -1e300]),
            ("FP64", &[f64::MAX, 5e-324, -0.0], &[]),
            ("BYTES", &[], &[0.0, 1.0]),
        ] {
            let datatype = Datatype::from_name(name).unwrap();
            for value in takes {
                assert_eq!(datatype.cell(*value).map(f64::to_bits), Some(value.to_bits()), "{name} {value}");
            }
            for value in refuses {
                assert_eq!(datatype.cell(*value), None, "{name} {value}");
            }
            assert!(datatype.cell(f64::NAN).unwrap().is_nan());
            let truths = [false, true].map(|truth| datatype.cell(truth_cell(truth)));
            assert_eq!(truths, if name == "BOOL" { [Some(0.0), Some(1.0)] } else { [None, None] });
            assert_eq!(datatype.cell(text_cell(7)).is_some(), name == "BYTES");
        }
        assert_eq!(Datatype::from_name("fp32"), None);
    }

    #[test]
    fn cells_are_shown_as_they_were_written() {
        for (cell, wanted) in [
            (truth_cell(true), "true"),
            (truth_cell(false), "false"),
            (300.0, "300"),
            (1.5, "1.5"),
            (1e300, "1e300"),
            (f64::NAN, "null"),
        ] {
            assert_eq!(shown(cell), wanted);
        }
    }
}
