//! A batch's rows in one pooled buffer, in the float type of the model's own library.

use std::ops::Range;

use crate::batch::{MemoryPool, PoolStats, PooledBuffer};
use crate::model::{RowType, Rows, Values};
use crate::record::Reject;

/// Batch buffers that are kept for reuse: a score thread needs one at a time, of a few MiB at the most.
const IDLE_BYTES_MAX: usize = 64 << 20;

/// The batch buffers of both float types.
#[derive(Debug)]
pub(crate) struct Pools {
    f32: MemoryPool<f32>,
    f64: MemoryPool<f64>,
}

impl Pools {
    pub(crate) fn new() -> Self {
        Self { f32: MemoryPool::new(IDLE_BYTES_MAX), f64: MemoryPool::new(IDLE_BYTES_MAX) }
    }

    pub(crate) fn get_stats(&self) -> PoolStats {
        let (a, b) = (self.f32.get_stats(), self.f64.get_stats());
        PoolStats {
            total_buffers: a.total_buffers + b.total_buffers,
            memory_usage_mb: a.memory_usage_mb + b.memory_usage_mb,
            hits: a.hits + b.hits,
            misses: a.misses + b.misses,
        }
    }
}

/// The rows of one batch. Places that nothing was put in read as 0.
pub(super) struct Matrix {
    values: Buffer,
    width: usize,
    count: usize,
}

enum Buffer {
    F32(PooledBuffer<f32>),
    F64(PooledBuffer<f64>),
}

impl Matrix {
    pub(super) fn new(pools: &Pools, row_type: RowType, count: usize, width: usize) -> Self {
        let values = match row_type {
            RowType::F32 => Buffer::F32(pools.f32.get_buffer(count * width)),
            RowType::F64 => Buffer::F64(pools.f64.get_buffer(count * width)),
        };
        Self { values, width, count }
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Copies a request's features from its first row on. A number that only f64 can hold would be infinite for an f32
    /// model, so it is refused.
    pub(super) fn put(&mut self, first: usize, features: &[f64]) -> Result<(), Reject> {
        let places = first * self.width..first * self.width + features.len();
        match &mut self.values {
            Buffer::F64(values) => values[places].copy_from_slice(features),
            Buffer::F32(values) => {
                let values = &mut values[places];
                for (place, &feature) in values.iter_mut().zip(features) {
                    *place = narrow(feature);
                }
                if let Some(index) = values.iter().position(|value| value.is_infinite()) {
                    // The row is scored with its neighbours all the same, and must not make them fail.
                    values.fill(0.0);
                    let (column, feature) = (index % self.width, features[index]);
                    let message = format!("features[{column}]: {feature} is too large: the model takes 32-bit floats");
                    return Err(Reject::bad_request(message));
                }
            }
        }
        Ok(())
    }

    /// Some of the rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let places = rows.start * self.width..rows.end * self.width;
        let values = match &self.values {
            Buffer::F32(values) => Values::F32(&values[places]),
            Buffer::F64(values) => Values::F64(&values[places]),
        };
        Rows { values, width: self.width }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the nearest f32 is what the model's own library makes of it")]
fn narrow(feature: f64) -> f32 {
    feature as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_f32_cannot_hold_is_refused_by_its_place() {
        let pools = Pools::new();
        let mut matrix = Matrix::new(&pools, RowType::F32, 2, 2);
        assert_eq!(matrix.put(0, &[1.5, f64::NAN]), Ok(()));
        let error = matrix.put(1, &[0.0, 1e39]).unwrap_err();
        assert!(error.message.starts_with("features[1]: 1000000"), "{error}");
        let Values::F32(values) = matrix.rows(0..1).values else { panic!("f32") };
        assert_eq!((values[0].to_bits(), values[1].is_nan()), (1.5_f32.to_bits(), true));
        let mut wide = Matrix::new(&pools, RowType::F64, 1, 1);
        assert_eq!(wide.put(0, &[1e39]), Ok(()));
    }
}
