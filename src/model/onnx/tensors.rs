//! Rows in, the tensors of a call out. The one float matrix of the usual graph is lent to the runtime where it lies; all
//! else is copied into a tensor for each input.

use half::{bf16, f16};
use ort::value::{PrimitiveTensorElementType, Tensor, TensorElementType, TensorRef};

use super::inputs::{Input, Inputs};
use crate::model::validate::narrow;
use crate::model::{Rows, ScoreError, Values};

/// Input tensors by name.
pub(super) type Named<'a> = Vec<(&'a str, ort::session::SessionInputValue<'a>)>;

impl Inputs {
    /// The tensors of a call of `count` rows: these, and the last of them again for those that are missing.
    ///
    /// # Errors
    /// [`ScoreError`] when a value does not fit its input: one that is missing where the input has no such value, or a number
    /// beyond the input's type.
    pub(super) fn tensors<'a>(&'a self, rows: Rows<'a>, count: usize) -> Result<Named<'a>, ScoreError> {
        self.list.iter().map(|input| Ok((input.name.as_str(), self.tensor(input, rows, count)?))).collect()
    }

    fn tensor<'a>(
        &self,
        input: &Input,
        rows: Rows<'a>,
        count: usize,
    ) -> Result<ort::session::SessionInputValue<'a>, ScoreError> {
        let shape: Vec<usize> = [count].into_iter().chain(input.inner.iter().copied()).collect();
        let lent = input.width == rows.width && count == rows.count();
        let failed = |error: ort::Error| ScoreError::of_library(format!("ONNX Runtime: {error}"));
        match (input.element, rows.values) {
            (TensorElementType::Float32, Values::F32(values)) if lent => {
                return Ok(TensorRef::from_array_view((shape, values)).map_err(failed)?.into());
            }
            (TensorElementType::Float64, Values::F64(values)) if lent => {
                return Ok(TensorRef::from_array_view((shape, values)).map_err(failed)?.into());
            }
            (TensorElementType::String, _) => {
                let texts = self.texts(input, rows, count)?;
                return Ok(Tensor::from_string_array((shape, &*texts)).map_err(failed)?.into());
            }
            _ => {}
        }
        let cells = Cells { inputs: self, input, rows, count };
        let made = match input.element {
            TensorElementType::Float32 => cells.tensor(shape, finite(narrow, f32::is_infinite)),
            TensorElementType::Float16 => {
                cells.tensor(shape, finite(|value| f16::from_f32(to_odd(value)), f16::is_infinite))
            }
            TensorElementType::Bfloat16 => {
                cells.tensor(shape, finite(|value| bf16::from_f32(to_odd(value)), bf16::is_infinite))
            }
            TensorElementType::Bool => {
                cells.tensor(shape, |value| whole::<u8>(value).filter(|&value| value < 2).map(|value| value == 1))
            }
            TensorElementType::Int8 => cells.tensor(shape, whole::<i8>),
            TensorElementType::Int16 => cells.tensor(shape, whole::<i16>),
            TensorElementType::Int32 => cells.tensor(shape, whole::<i32>),
            TensorElementType::Int64 => cells.tensor(shape, whole::<i64>),
            TensorElementType::Uint8 => cells.tensor(shape, whole::<u8>),
            TensorElementType::Uint16 => cells.tensor(shape, whole::<u16>),
            TensorElementType::Uint32 => cells.tensor(shape, whole::<u32>),
            TensorElementType::Uint64 => cells.tensor(shape, whole::<u64>),
            _ => cells.tensor(shape, Some),
        };
        made?.map_err(failed)
    }

    fn texts(&self, input: &Input, rows: Rows<'_>, count: usize) -> Result<Vec<String>, ScoreError> {
        let width = self.kinds.text_columns().len();
        let last = rows.count() - 1;
        let mut texts = Vec::with_capacity(count * input.width);
        for row in 0..count {
            let first = row.min(last) * width + input.first;
            for (place, text) in rows.texts[first..first + input.width].iter().enumerate() {
                let missing = || self.misfit(self.kinds.text_columns()[input.first + place], f64::NAN);
                // The binding takes no strings that live shorter than the program.
                texts.push(text.ok_or_else(missing)?.to_owned());
            }
        }
        Ok(texts)
    }

    /// Why a value cannot go into its input.
    fn misfit(&self, column: usize, value: f64) -> ScoreError {
        let (name, kind) = (&self.feature_names[column], self.kinds.of(column));
        ScoreError::Failed(if value.is_nan() {
            format!("feature {name:?} is missing, and the model takes {kind} there, with no missing value")
        } else {
            format!("feature {name:?}: {value} does not fit the type of the model's input")
        })
    }
}

/// The cells of one input in some rows.
struct Cells<'a> {
    inputs: &'a Inputs,
    input: &'a Input,
    rows: Rows<'a>,
    count: usize,
}

impl Cells<'_> {
    fn tensor<'v, T>(
        &self,
        shape: Vec<usize>,
        convert: impl Fn(f64) -> Option<T>,
    ) -> Result<ort::Result<ort::session::SessionInputValue<'v>>, ScoreError>
    where
        T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
    {
        let values = match self.rows.values {
            Values::F32(values) => self.gather(values, convert),
            Values::F64(values) => self.gather(values, convert),
        };
        Ok(Tensor::from_array((shape, values?)).map(Into::into))
    }

    fn gather<S: Copy + Into<f64>, T>(
        &self,
        values: &[S],
        convert: impl Fn(f64) -> Option<T>,
    ) -> Result<Vec<T>, ScoreError> {
        let (width, last) = (self.rows.width, self.rows.count() - 1);
        let mut gathered = Vec::with_capacity(self.count * self.input.width);
        for row in 0..self.count {
            let first = row.min(last) * width + self.input.first;
            for (place, &value) in values[first..first + self.input.width].iter().enumerate() {
                let value = value.into();
                gathered.push(convert(value).ok_or_else(|| self.inputs.misfit(self.input.first + place, value))?);
            }
        }
        Ok(gathered)
    }
}

/// The nearest number of a smaller float type, if it has one.
fn finite<T: Copy>(narrow: fn(f64) -> T, is_infinite: fn(T) -> bool) -> impl Fn(f64) -> Option<T> {
    move |value| Some(narrow(value)).filter(|&narrowed| !is_infinite(narrowed))
}

/// An f32 that rounds to a smaller float as the number itself does: where it is not the number, its last bit is 1, so that
/// it never lies in the middle of two (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved
/// algorithms using rounding to odd").
fn to_odd(value: f64) -> f32 {
    let nearest = narrow(value);
    let back = f64::from(nearest);
    if back.is_nan() || back.is_infinite() || back.to_bits() == value.to_bits() {
        return nearest;
    }
    let below = if back.abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(below | 1)
}

/// The same number as an integer, if it is one.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a whole number beyond an i64 becomes its bound, beyond every feature's"
)]
fn whole<T: TryFrom<i64>>(value: f64) -> Option<T> {
    if value.fract() == 0.0 { T::try_from(value as i64).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_type_or_are_refused() {
        assert_eq!((whole::<u8>(255.0), whole::<u8>(256.0), whole::<u8>(-1.0)), (Some(255), None, None));
        assert_eq!((whole::<i64>(-0.0), whole::<i64>(0.5), whole::<i64>(f64::NAN)), (Some(0), None, None));
        assert_eq!(whole::<i64>(f64::INFINITY), None);
        let half = finite(|value| f16::from_f32(to_odd(value)), f16::is_infinite);
        assert_eq!((half(65_504.0), half(70_000.0)), (Some(f16::MAX), None));
        assert!(half(f64::NAN).is_some_and(f16::is_nan));
        // Just above the middle between 1 and the next f16: through an f32 it would be the middle, which rounds down.
        assert_eq!(half(1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40)), Some(f16::from_bits(0x3c01)));
        assert_eq!((half(1.0 + f64::powi(2.0, -11)), half(-1e-300)), (Some(f16::ONE), Some(f16::from_f32(-0.0))));
        assert_eq!(half(0.1), Some(f16::from_bits(0x2e66)));
    }
}
