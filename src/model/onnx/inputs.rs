//! Rows in, input tensors out. A graph takes either one matrix of features, or a column of each feature by name; one
//! float type throughout, which is the model's row type.

use std::fmt::Debug;

use ort::session::Session;
use ort::value::{Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};

use super::{RowType, describe};

/// How rows become the graph's inputs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inputs {
    form: Form,
    /// In the order of a row.
    pub(super) feature_names: Vec<String>,
    /// The float type of every input.
    pub(super) row_type: RowType,
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// One input of all features: `[N, features]`.
    Matrix(String),
    /// One input a feature, each `[N, 1]` or `[N]`.
    Columns(Vec<Column>),
}

#[derive(Debug, PartialEq, Eq)]
struct Column {
    name: String,
    /// 1: `[N]`; 2: `[N, 1]`.
    rank: usize,
}

/// Input tensors by name.
pub(super) type Named<'a, T> = Vec<(&'a str, TensorRef<'a, T>)>;

impl Inputs {
    /// Checks what the graph takes. `names` is the file's metadata under `feature_names`.
    pub(super) fn new(session: &Session, names: Option<&str>) -> Result<Self, String> {
        let outlets = session.inputs();
        let first = outlets.first().ok_or("the graph takes no input; export it with its features as input")?;
        let shapes = outlets.iter().map(Shape::of).collect::<Result<Vec<_>, _>>()?;
        let row_type = shapes[0].row_type;
        if let Some(other) = (0..shapes.len()).find(|&place| shapes[place].row_type != row_type) {
            let (a, b) = (describe(first), describe(&outlets[other]));
            return Err(format!("its inputs are of two float types ({a}; {b}); export it with one"));
        }
        if let ([outlet], [Shape { features: Some(features), .. }]) = (outlets, &shapes[..])
            && *features > 1
        {
            let feature_names = feature_names(names, *features)?;
            return Ok(Self { form: Form::Matrix(outlet.name().to_owned()), feature_names, row_type });
        }
        let mut columns = Vec::with_capacity(outlets.len());
        for (outlet, shape) in outlets.iter().zip(&shapes) {
            if shape.features.is_some_and(|features| features > 1) {
                let shown = describe(outlet);
                let remedy = "export it with one matrix of all features, or with one column a feature";
                return Err(format!("input {shown} is one matrix of several inputs; {remedy}"));
            }
            let rank = if shape.features.is_some() { 2 } else { 1 };
            columns.push(Column { name: outlet.name().to_owned(), rank });
        }
        let feature_names = columns.iter().map(|column| column.name.clone()).collect();
        Ok(Self { form: Form::Columns(columns), feature_names, row_type })
    }

    /// The input tensors of some rows. `columns` is the room in which columns are gathered.
    pub(super) fn tensors<'a, T>(&'a self, rows: &'a [T], columns: &'a mut Vec<T>) -> ort::Result<Named<'a, T>>
    where
        T: PrimitiveTensorElementType + Copy + Debug + 'static,
    {
        let width = self.feature_names.len();
        let count = rows.len() / width;
        match &self.form {
            Form::Matrix(name) => Ok(vec![(name, TensorRef::from_array_view(([count, width], rows))?)]),
            Form::Columns(inputs) => {
                columns.clear();
                columns.extend((0..width).flat_map(|column| rows.iter().skip(column).step_by(width)));
                let tensor = |(input, column): (&'a Column, &'a [T])| {
                    let tensor = match input.rank {
                        1 => TensorRef::from_array_view(([count], column))?,
                        _ => TensorRef::from_array_view(([count, 1], column))?,
                    };
                    Ok((input.name.as_str(), tensor))
                };
                inputs.iter().zip(columns.chunks(count)).map(tensor).collect()
            }
        }
    }
}

/// What one input takes.
struct Shape {
    row_type: RowType,
    /// `None`: one number a row, with no dimension for it.
    features: Option<usize>,
}

impl Shape {
    fn of(outlet: &Outlet) -> Result<Self, String> {
        let shown = describe(outlet);
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            return Err(format!("input {shown} is no tensor; export it with float or double tensors"));
        };
        let row_type = match ty {
            TensorElementType::Float32 => RowType::F32,
            TensorElementType::Float64 => RowType::F64,
            TensorElementType::String => {
                let remedy = "this version feeds float and double; encode categories before the graph";
                return Err(format!("input {shown} takes text; {remedy}"));
            }
            _ => return Err(format!("input {shown} takes no floats; export it with float or double inputs")),
        };
        let (rows, features) = match **shape {
            [rows] => (rows, None),
            [rows, features] => (rows, Some(features)),
            _ => return Err(format!("input {shown} is no matrix of rows; export it with the shape [None, features]")),
        };
        if rows >= 0 {
            let remedy = "export it with a free first dimension: [None, features]";
            return Err(format!("input {shown} is fixed to {rows} rows a call; {remedy}"));
        }
        let features = match features.map(usize::try_from) {
            None => None,
            Some(Ok(features)) if features > 0 => Some(features),
            Some(_) => {
                let remedy = "export it with the number: FloatTensorType([None, 28]) for 28 features";
                return Err(format!("input {shown} leaves the number of features open; {remedy}"));
            }
        };
        Ok(Self { row_type, features })
    }
}

/// The names in the metadata, a JSON array or with commas between; else f0, f1 and so on.
fn feature_names(metadata: Option<&str>, features: usize) -> Result<Vec<String>, String> {
    let Some(text) = metadata else {
        return Ok((0..features).map(|number| format!("f{number}")).collect());
    };
    let names: Vec<String> =
        serde_json::from_str(text).unwrap_or_else(|_| text.split(',').map(|name| name.trim().to_owned()).collect());
    let named: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    if names.len() != features || named.len() != features || named.contains("") {
        let found = names.len();
        return Err(format!(
            "its metadata `feature_names` must name each of the {features} features once, and gives {found} names; \
             correct or drop it"
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_names_come_from_the_metadata_and_must_fit() {
        assert_eq!(feature_names(None, 2).unwrap(), ["f0", "f1"]);
        assert_eq!(feature_names(Some(r#"["a, b", "c"]"#), 2).unwrap(), ["a, b", "c"]);
        assert_eq!(feature_names(Some("a, b"), 2).unwrap(), ["a", "b"]);
        for bad in ["a", "a,a", "a,", "[1, 2, 3]"] {
            assert!(feature_names(Some(bad), 2).unwrap_err().contains("feature_names"), "{bad}");
        }
    }
}
