//! Rows in, margins or predictions out, in the order of the rows.

use std::num::NonZeroU32;
use std::ops::{Add, AddAssign, Div, Mul};

use thiserror::Error;

use super::column::{Columns, Reads, STRIDE, Value};
use super::kernel::{Kernel, Rows};
use super::{After, Float, Forest, Link, link};

/// A model ready to score. Cheap to share between threads: each brings its own [`Scratch`].
#[derive(Clone, Debug)]
pub struct Compiled {
    features: usize,
    outputs: usize,
    predictions: usize,
    takes_f64: bool,
    columns: Columns,
    sums: Sums,
    base: Vec<f64>,
    base_last: bool,
    divisors: Vec<NonZeroU32>,
    link: Link,
    after: Vec<After>,
}

/// The kernel, by the float type that it adds in.
#[derive(Clone, Debug)]
pub(super) enum Sums {
    /// 32 bits.
    F32(Kernel<f32>),
    /// 64 bits.
    F64(Kernel<f64>),
}

/// Buffers that one thread reuses from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) groups: Vec<[f32; STRIDE]>,
    sums_f32: Vec<f32>,
    sums_f64: Vec<f64>,
}

/// Rows, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// 32 bits a value.
    F32(&'a [f32]),
    /// 64 bits a value.
    F64(&'a [f64]),
}

/// Room for results, in the float type that the model adds in: [`Compiled::sum_type`].
#[derive(Debug)]
pub enum Results<'a> {
    /// 32 bits a number.
    F32(&'a mut [f32]),
    /// 64 bits a number.
    F64(&'a mut [f64]),
}

/// Why rows cannot be scored.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    /// The values are no whole number of rows.
    #[error("{values} values are no whole number of rows of {features}")]
    Rows {
        /// Values given.
        values: usize,
        /// Values in a row.
        features: usize,
    },
    /// The place for results has another size.
    #[error("room for {room} numbers, the rows have {expected}")]
    Room {
        /// Numbers that fit.
        room: usize,
        /// Numbers that there are.
        expected: usize,
    },
    /// The model adds in the other float type.
    #[error("results are {0:?}")]
    SumType(Float),
    /// The model was compiled for f32 rows, which f64 rows would have to be rounded to.
    #[error("compiled for f32 rows")]
    RowType,
}

impl Compiled {
    pub(super) fn new(forest: &Forest, rows: Float, columns: Columns, sums: Sums) -> Self {
        let parts = forest.parts();
        Self {
            features: parts.features as usize,
            outputs: parts.outputs as usize,
            predictions: forest.predictions() as usize,
            takes_f64: parts.row_type == Float::F32 || rows == Float::F64,
            columns,
            sums,
            base: parts.base.clone(),
            base_last: parts.base_last,
            divisors: parts.divisors.clone(),
            link: parts.link,
            after: parts.after.clone(),
        }
    }

    /// Values in a row.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Margins of a row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Numbers in a row's prediction.
    pub fn predictions(&self) -> usize {
        self.predictions
    }

    /// The float type of results.
    pub fn sum_type(&self) -> Float {
        match self.sums {
            Sums::F32(_) => Float::F32,
            Sums::F64(_) => Float::F64,
        }
    }

    /// In which forms splits read the columns of a row; `None` for a linear booster, which takes the numbers themselves.
    pub fn reads(&self) -> Option<Reads> {
        (!self.is_linear()).then(|| self.columns.reads())
    }

    fn is_linear(&self) -> bool {
        match &self.sums {
            Sums::F32(kernel) => kernel.is_linear(),
            Sums::F64(kernel) => kernel.is_linear(),
        }
    }

    /// Whether leaves are kept in 16 bits: [`Forest::compile_quantized`].
    pub fn is_quantized(&self) -> bool {
        match &self.sums {
            Sums::F32(kernel) => kernel.is_quantized(),
            Sums::F64(kernel) => kernel.is_quantized(),
        }
    }

    /// Bytes of nodes, values and sets.
    pub fn bytes(&self) -> usize {
        match &self.sums {
            Sums::F32(kernel) => kernel.bytes(),
            Sums::F64(kernel) => kernel.bytes(),
        }
    }

    /// Scores rows: [`Compiled::predictions`] numbers each, the link applied.
    ///
    /// # Errors
    /// [`Mismatch`], before anything is written.
    pub fn predict(&self, rows: Values<'_>, scratch: &mut Scratch, results: Results<'_>) -> Result<(), Mismatch> {
        self.score(rows, scratch, results, Stage::Predictions)
    }

    /// Scores rows: [`Compiled::outputs`] numbers each, before the link (averaged forests: after the division, which
    /// `LightGBM`'s raw scores leave out).
    ///
    /// # Errors
    /// [`Mismatch`], before anything is written.
    pub fn margins(&self, rows: Values<'_>, scratch: &mut Scratch, results: Results<'_>) -> Result<(), Mismatch> {
        self.score(rows, scratch, results, Stage::Margins)
    }

    fn score(
        &self,
        rows: Values<'_>,
        scratch: &mut Scratch,
        results: Results<'_>,
        stage: Stage,
    ) -> Result<(), Mismatch> {
        match (&self.sums, results) {
            (Sums::F32(kernel), Results::F32(results)) => self.score_as(kernel, rows, scratch, results, stage),
            (Sums::F64(kernel), Results::F64(results)) => self.score_as(kernel, rows, scratch, results, stage),
            _ => Err(Mismatch::SumType(self.sum_type())),
        }
    }

    fn score_as<S: Sum>(
        &self,
        kernel: &Kernel<S>,
        rows: Values<'_>,
        scratch: &mut Scratch,
        results: &mut [S],
        stage: Stage,
    ) -> Result<(), Mismatch> {
        match rows {
            Values::F32(rows) => self.score_rows(kernel, rows, scratch, results, stage),
            Values::F64(_) if !self.takes_f64 => Err(Mismatch::RowType),
            Values::F64(rows) => self.score_rows(kernel, rows, scratch, results, stage),
        }
    }

    fn score_rows<V: Value, S: Sum>(
        &self,
        kernel: &Kernel<S>,
        rows: &[V],
        scratch: &mut Scratch,
        results: &mut [S],
        stage: Stage,
    ) -> Result<(), Mismatch> {
        let (features, outputs) = (self.features, self.outputs);
        if !rows.len().is_multiple_of(features) {
            return Err(Mismatch::Rows { values: rows.len(), features });
        }
        let width = if stage == Stage::Margins { outputs } else { self.predictions };
        let expected = rows.len() / features * width;
        if results.len() != expected {
            return Err(Mismatch::Room { room: results.len(), expected });
        }
        let mut sums = std::mem::take(S::buffer(scratch));
        let blocks =
            rows.chunks(Kernel::<S>::ROWS_MAX * features).zip(results.chunks_mut(Kernel::<S>::ROWS_MAX * width));
        for (rows, results) in blocks {
            sums.clear();
            let base = self.base.iter().map(|&base| S::from_f64(if self.base_last { 0.0 } else { base }));
            (0..rows.len() / features).for_each(|_| sums.extend(base.clone()));
            kernel.sum(Rows { values: rows, features, columns: &self.columns }, scratch, &mut sums);
            for (sums, results) in sums.chunks_exact_mut(outputs).zip(results.chunks_exact_mut(width)) {
                self.finish(sums);
                if stage == Stage::Margins {
                    results.copy_from_slice(sums);
                } else {
                    S::predict(self.link, &self.after, sums, results);
                }
            }
        }
        *S::buffer(scratch) = sums;
        Ok(())
    }
}

impl Compiled {
    /// What becomes of a row's sums after the last tree.
    fn finish<S: Sum>(&self, sums: &mut [S]) {
        for (sum, divisor) in sums.iter_mut().zip(&self.divisors) {
            *sum = *sum / S::from_f64(f64::from(divisor.get()));
        }
        if self.base_last {
            for (sum, base) in sums.iter_mut().zip(&self.base) {
                *sum = S::from_f64(sum.to_f64() + base);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Margins,
    Predictions,
}

/// A float type that margins are added in.
pub(super) trait Sum: Value + Add<Output = Self> + Mul<Output = Self> + Div<Output = Self> + AddAssign {
    fn from_f64(value: f64) -> Self;
    fn from_i16(value: i16) -> Self;
    fn is_nan(self) -> bool;
    /// A row's predictions, from its margins, which are overwritten.
    fn predict(link: Link, after: &[After], margins: &mut [Self], predictions: &mut [Self]);
    fn buffer(scratch: &mut Scratch) -> &mut Vec<Self>;
}

impl Sum for f32 {
    fn from_f64(value: f64) -> Self {
        value.to_f32()
    }
    fn from_i16(value: i16) -> Self {
        Self::from(value)
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
    fn predict(link: Link, after: &[After], margins: &mut [Self], predictions: &mut [Self]) {
        link::predict_f32(link, after, margins, predictions);
    }
    fn buffer(scratch: &mut Scratch) -> &mut Vec<Self> {
        &mut scratch.sums_f32
    }
}

impl Sum for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn from_i16(value: i16) -> Self {
        Self::from(value)
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
    fn predict(link: Link, after: &[After], margins: &mut [Self], predictions: &mut [Self]) {
        link::predict_f64(link, after, margins, predictions);
    }
    fn buffer(scratch: &mut Scratch) -> &mut Vec<Self> {
        &mut scratch.sums_f64
    }
}
