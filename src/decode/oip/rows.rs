//! Tensors in, rows in the model's order out: one tensor of all features, or one for each feature, joined by their names.
//!
//! As in the native form by name, a feature without a tensor is missing, and an unknown name or one that is given twice is an
//! error.

use std::mem;

use super::Inputs;
use super::tensor::Tensor;
use crate::decode::features::{Marks, too_many, unknown_feature};
use crate::decode::kinds;
use crate::decode::message::{bad_request, clip, quoted};
use crate::model::ModelEntry;
use crate::record::{Chunk, Reject};

impl Inputs<'_> {
    /// Makes rows of the model's width, order and kinds of everything in the arenas since the marks; their number. A record may
    /// hold `values_max` numbers, or one row where that is more.
    pub(in crate::decode) fn rows_for(
        &self,
        model: &ModelEntry,
        values_max: usize,
        chunk: &mut Chunk,
        marks: Marks,
    ) -> Result<u32, Reject> {
        let columns = self.columns(model).map_err(bad_request)?;
        let rows = self.tensors.first().map_or(0, |tensor| tensor.shape.rows);
        if let Some(columns) = &columns {
            if rows > 1 && rows.saturating_mul(model.width) > values_max {
                return Err(too_many("inputs", rows, model, values_max));
            }
            self.join(columns, rows, model.width, chunk.features_mut(), marks);
        }
        let (values, texts) = chunk.features_and_texts_mut();
        if !model.kinds.all_numbers() || texts.len_since(marks.texts) > 0 {
            let settled = kinds::settle(&model.kinds, &mut values[marks.features..], model.width, texts, marks.texts);
            settled.map_err(|misfit| {
                let place = self.cell(columns.as_deref(), misfit.row, misfit.column, model.width);
                bad_request(misfit.message(&place))
            })?;
        }
        u32::try_from(rows).map_err(|_| too_many("inputs", rows, model, values_max))
    }

    /// The column of each tensor; `None` where one tensor has all of them, in the model's order.
    fn columns(&self, model: &ModelEntry) -> Result<Option<Vec<usize>>, String> {
        if let [tensor] = &self.tensors[..] {
            if tensor.shape.width() == model.width {
                return Ok(None);
            }
            if tensor.shape.width() > 1 || model.feature(&tensor.name).is_none() {
                let (got, name, wants) = (tensor.shape.shown(), clip(&model.name, 60), model.width);
                return Err(format!("inputs[0].shape: got {got}, model {name} wants [rows, {wants}]"));
            }
        }
        let rows = self.tensors.first().map_or(0, |tensor| tensor.shape.rows);
        let mut is_taken = vec![false; model.width];
        let column = |(number, tensor): (usize, &Tensor<'_>)| {
            let (name, shape) = (&tensor.name, tensor.shape);
            if shape.width() != 1 || shape.rows != rows {
                let (got, wants) = (shape.shown(), format!("[{rows}] or [{rows}, 1]"));
                return Err(format!(
                    "inputs[{number}].shape: got {got}, wants {wants}: of several tensors each is one feature"
                ));
            }
            let place = format!("inputs[{number}].name");
            let column = model.feature(name).ok_or_else(|| {
                let place = format!("{place}: got {}", quoted(name));
                unknown_feature(&place, name, model)
            })?;
            if mem::replace(&mut is_taken[column], true) {
                return Err(format!("{place}: {} is given twice", quoted(name)));
            }
            Ok(column)
        };
        self.tensors.iter().enumerate().map(column).collect::<Result<_, _>>().map(Some)
    }

    /// Replaces the values from the mark on, tensor after tensor, by whole rows.
    fn join(&self, columns: &[usize], rows: usize, width: usize, values: &mut Vec<f64>, marks: Marks) {
        let read_end = values.len();
        values.resize(read_end + rows * width, f64::NAN);
        let (read, joined) = values.split_at_mut(read_end);
        for (tensor, column) in self.tensors.iter().zip(columns) {
            for (value, row) in read[tensor.values.clone()].iter().zip(joined.chunks_exact_mut(width)) {
                row[*column] = *value;
            }
        }
        values.drain(marks.features..read_end);
    }

    /// A cell of the rows, as its sender wrote it.
    fn cell(&self, columns: Option<&[usize]>, row: usize, column: usize, width: usize) -> String {
        let (number, cell) = match columns {
            None => (0, row * width + column),
            Some(columns) => (columns.iter().position(|one| *one == column).unwrap_or_default(), row),
        };
        self.tensors.get(number).map_or_else(String::new, |tensor| tensor.place(number, cell))
    }
}
