//! What a graph takes: its inputs in, and the columns of a row out. Every input is a tensor of rows; its columns follow
//! those of the inputs before it, in the graph's order.

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::describe;
use crate::model::{FeatureKind, FeatureKinds, RowType};

/// The inputs of a graph.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inputs {
    /// In the graph's order.
    pub(super) list: Vec<Input>,
    /// In the order of a row.
    pub(super) feature_names: Vec<String>,
    /// In the order of a row.
    pub(super) kinds: FeatureKinds,
    /// The float type that holds every input's numbers.
    pub(super) row_type: RowType,
    /// Rows that every call must have; `None` for any number.
    pub(super) rows_fixed: Option<usize>,
}

/// One input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Input {
    /// Its name in the graph.
    pub(super) name: String,
    /// What it holds.
    pub(super) element: TensorElementType,
    /// Its dimensions but the first.
    pub(super) inner: Vec<usize>,
    /// Its columns of a row.
    pub(super) width: usize,
    /// Its first column; of the text columns, where it holds text.
    pub(super) first: usize,
}

impl Inputs {
    /// Checks what the graph takes. `names` is the file's metadata under `feature_names`.
    pub(super) fn new(session: &Session, names: Option<&str>) -> Result<Self, String> {
        let outlets = session.inputs();
        if outlets.is_empty() {
            return Err("the graph takes no input; export it with its features as input".to_owned());
        }
        let (mut list, mut kinds, mut texts) = (Vec::with_capacity(outlets.len()), Vec::new(), 0);
        let mut rows_fixed: Option<(usize, &Outlet)> = None;
        for outlet in outlets {
            let Shape { element, kind, rows, inner } = Shape::of(outlet)?;
            if let Some(rows) = rows {
                match rows_fixed {
                    Some((other, first)) if other != rows => {
                        let (a, b) = (describe(first), describe(outlet));
                        let remedy = "export it with a free first dimension: [None, features]";
                        return Err(format!("its inputs are fixed to different numbers of rows ({a}; {b}); {remedy}"));
                    }
                    _ => rows_fixed = Some((rows, outlet)),
                }
            }
            let width = inner.iter().product();
            let first = if kind == FeatureKind::Text { texts } else { kinds.len() };
            texts += if kind == FeatureKind::Text { width } else { 0 };
            kinds.extend(std::iter::repeat_n(kind, width));
            list.push(Input { name: outlet.name().to_owned(), element, inner, width, first });
        }
        let row_type = if list.iter().any(|input| needs_f64(input.element)) { RowType::F64 } else { RowType::F32 };
        let feature_names = feature_names(names, &list)?;
        let rows_fixed = rows_fixed.map(|(rows, _)| rows);
        Ok(Self { list, feature_names, kinds: FeatureKinds::new(kinds), row_type, rows_fixed })
    }
}

/// Whether an f32 on the way would change what arrives. A small float is rounded once, not twice.
fn needs_f64(element: TensorElementType) -> bool {
    !matches!(
        element,
        TensorElementType::Float32
            | TensorElementType::String
            | TensorElementType::Bool
            | TensorElementType::Int8
            | TensorElementType::Uint8
            | TensorElementType::Int16
            | TensorElementType::Uint16
    )
}

/// What one input takes.
struct Shape {
    element: TensorElementType,
    kind: FeatureKind,
    /// The first dimension, where it is fixed.
    rows: Option<usize>,
    inner: Vec<usize>,
}

impl Shape {
    fn of(outlet: &Outlet) -> Result<Self, String> {
        let shown = describe(outlet);
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            return Err(format!("input {shown} is no tensor; export it with tensors as inputs"));
        };
        let kind = match ty {
            TensorElementType::Float32
            | TensorElementType::Float64
            | TensorElementType::Float16
            | TensorElementType::Bfloat16 => FeatureKind::Number,
            TensorElementType::Int64 => FeatureKind::INT64,
            TensorElementType::Int32 => FeatureKind::INT32,
            TensorElementType::Int16 => FeatureKind::INT16,
            TensorElementType::Int8 => FeatureKind::INT8,
            TensorElementType::Uint64 => FeatureKind::UINT64,
            TensorElementType::Uint32 => FeatureKind::UINT32,
            TensorElementType::Uint16 => FeatureKind::UINT16,
            TensorElementType::Uint8 => FeatureKind::UINT8,
            TensorElementType::Bool => FeatureKind::BOOL,
            TensorElementType::String => FeatureKind::Text,
            _ => return Err(format!("input {shown} takes no numbers and no text; export it with float inputs")),
        };
        let Some((&rows, inner)) = shape.split_first() else {
            return Err(format!("input {shown} has no dimension for rows; export it with the shape [None, features]"));
        };
        let size = |&size: &i64| usize::try_from(size).ok().filter(|&size| size > 0);
        let open = || {
            let remedy = "export it with the number: FloatTensorType([None, 28]) for 28 features";
            format!("input {shown} leaves the number of features open; {remedy}")
        };
        let inner = inner.iter().map(size).collect::<Option<Vec<_>>>().ok_or_else(open)?;
        if rows == 0 {
            return Err(format!("input {shown} takes no rows; export it with the shape [None, features]"));
        }
        Ok(Self { element: *ty, kind, rows: usize::try_from(rows).ok(), inner })
    }
}

/// The names in the metadata, a JSON array or with commas between. Else the name of an input of one column, and f0, f1
/// and so on for the columns of the only input; where there are several, age[0], age[1] and so on for those of `age`.
fn feature_names(metadata: Option<&str>, inputs: &[Input]) -> Result<Vec<String>, String> {
    let width: usize = inputs.iter().map(|input| input.width).sum();
    let one_input = inputs.len() == 1;
    let own = |input: &Input| -> Vec<String> {
        match input.width {
            1 => vec![input.name.clone()],
            width if one_input => (0..width).map(|number| format!("f{number}")).collect(),
            width => (0..width).map(|number| format!("{}[{number}]", input.name)).collect(),
        }
    };
    let (names, remedy): (Vec<String>, _) = match metadata {
        None => {
            let remedy = "name the features in the metadata `feature_names`";
            (inputs.iter().flat_map(own).collect(), remedy)
        }
        Some(text) => {
            let split = || text.split(',').map(|name| name.trim().to_owned()).collect();
            (serde_json::from_str(text).unwrap_or_else(|_| split()), "correct or drop it")
        }
    };
    let named: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    if names.len() != width || named.len() != width || named.contains("") {
        let found = names.len();
        return Err(format!(
            "its metadata `feature_names` must name each of the {width} features once, and gives {found} names; {remedy}"
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, width: usize) -> Input {
        let element = TensorElementType::Float32;
        Input { name: name.to_owned(), element, inner: vec![width], width, first: 0 }
    }

    #[test]
    fn feature_names_come_from_the_metadata_and_must_fit() {
        let matrix = [input("x", 2)];
        assert_eq!(feature_names(None, &matrix).unwrap(), ["f0", "f1"]);
        assert_eq!(feature_names(Some(r#"["a, b", "c"]"#), &matrix).unwrap(), ["a, b", "c"]);
        assert_eq!(feature_names(Some("a, b"), &matrix).unwrap(), ["a", "b"]);
        for bad in ["a", "a,a", "a,", "[1, 2, 3]"] {
            assert!(feature_names(Some(bad), &matrix).unwrap_err().contains("feature_names"), "{bad}");
        }
    }

    #[test]
    fn features_of_several_inputs_are_named_by_them() {
        let mixed = [input("age", 1), input("x", 2), input("city", 1)];
        assert_eq!(feature_names(None, &mixed).unwrap(), ["age", "x[0]", "x[1]", "city"]);
        assert_eq!(feature_names(Some("a,b,c,d"), &mixed).unwrap(), ["a", "b", "c", "d"]);
        let clash = [input("x", 2), input("x[0]", 1)];
        assert!(feature_names(None, &clash).unwrap_err().contains("name the features in the metadata"));
    }
}
