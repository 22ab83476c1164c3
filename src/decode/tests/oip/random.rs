//! Random tensors against the native form of the same rows, and whatever may stand in a body's fields.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::naive::{check_arenas, decode_between};
use super::*;

fn number() -> impl Strategy<Value = String> {
    let finite = any::<f64>().prop_filter("JSON", |number| number.is_finite());
    prop_oneof![
        4 => finite.prop_map(|number| format!("{number:?}")),
        2 => any::<i64>().prop_map(|number| number.to_string()),
        1 => Just("null".to_owned()),
    ]
}

fn whole() -> impl Strategy<Value = String> {
    prop_oneof![4 => any::<i32>().prop_map(|number| number.to_string()), 1 => Just("null".to_owned())]
}

fn string() -> impl Strategy<Value = String> {
    select(&["\"\"", "\"a\"", "\"gr\\u00fcn\"", "\"漢字 😀\"", "null"][..]).prop_map(str::to_owned)
}

/// What a decoded body asks for, numbers as their bits.
fn meaning(one: &One) -> (ModelId, u32, Vec<u64>, Vec<Option<&str>>) {
    let work = one.work();
    (work.model, work.rows, one.rows().iter().map(|value| value.to_bits()).collect(), texts(one))
}

/// Any JSON of the protocol's words, most of it wrong.
fn any_value() -> impl Strategy<Value = String> {
    let word = select(
        &[
            "id",
            "inputs",
            "outputs",
            "parameters",
            "name",
            "shape",
            "datatype",
            "data",
            "priority",
            "timeout",
            "binary_data",
            "age",
            "city",
            "features",
            "model_name",
        ][..],
    );
    let leaf = prop_oneof![
        number(),
        string(),
        word.clone().prop_map(|word| format!("\"{word}\"")),
        select(
            &["true", "false", "0", "1", "2", "3", "\"FP32\"", "\"BYTES\"", "\"BOOL\"", "\"UINT8\"", "\"predict\""][..]
        )
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 40, 5, move |value| {
        prop_oneof![
            vec(value.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(","))),
            vec((word.clone(), value), 0..5).prop_map(|fields| {
                let fields: Vec<_> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

/// A tensor that may be one: each field right more often than not.
fn any_tensor() -> impl Strategy<Value = String> {
    let or_any = |right: BoxedStrategy<String>| prop_oneof![12 => right, 1 => any_value()];
    let name = or_any(select(&["\"age\"", "\"height\"", "\"city\"", "\"x\""][..]).prop_map(str::to_owned).boxed());
    let shape = or_any((0..4_u8, 0..5_u8).prop_map(|(rows, columns)| format!("[{rows},{columns}]")).boxed());
    let datatype =
        or_any(select(&["\"FP64\"", "\"BYTES\"", "\"BOOL\"", "\"INT64\""][..]).prop_map(str::to_owned).boxed());
    let cell = prop_oneof![8 => number(), 2 => string(), 1 => Just("true".to_owned()), 1 => any_value()];
    let data = or_any(vec(cell, 0..12).prop_map(|cells| format!("[{}]", cells.join(","))).boxed());
    let fields = (name, shape, datatype, data).prop_map(|(name, shape, datatype, data)| {
        vec![
            format!("\"name\":{name}"),
            format!("\"shape\":{shape}"),
            format!("\"datatype\":{datatype}"),
            format!("\"data\":{data}"),
        ]
    });
    fields.prop_shuffle().prop_map(|fields| format!("{{{}}}", fields.join(",")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_tensor_is_the_native_rows(cells in vec(number(), 1..8), nested in any::<bool>(), order in Just([0, 1, 2, 3]).prop_shuffle()) {
        let rows: Vec<String> = cells.iter().map(|cell| format!("[{cell},7,{cell}]")).collect();
        let flat = rows.iter().map(|row| row.trim_matches(['[', ']'])).collect::<Vec<_>>().join(",");
        let data = if nested { rows.join(",") } else { flat };
        let fields = [
            "\"name\":\"x\"".to_owned(), format!("\"shape\":[{},3]", rows.len()), "\"datatype\":\"FP64\"".to_owned(),
            format!("\"data\":[{data}]"),
        ];
        let fields: Vec<&str> = order.iter().map(|index| fields[*index].as_str()).collect();
        let native = body(&format!(r#"{{"features":[{}]}}"#, rows.join(",")));
        let oip = body(&format!(r#"{{"inputs":[{{{}}}]}}"#, fields.join(",")));
        prop_assert_eq!(meaning(&oip), meaning(&native));
        prop_assert!(oip.work().many && native.work().many);
    }

    #[test]
    fn tensors_by_name_are_the_native_objects(
        rows in vec((number(), string(), whole(), string()), 1..6),
        columns in Just([("age", "FP64"), ("city", "BYTES"), ("count", "INT32"), ("plan", "BYTES")]).prop_shuffle(),
        given in 1..5_usize,
    ) {
        let cell = |row: &(String, String, String, String), name: &str| match name {
            "age" => row.0.clone(),
            "city" => row.1.clone(),
            "count" => row.2.clone(),
            _ => row.3.clone(),
        };
        let columns = &columns[..given];
        let objects: Vec<String> = rows.iter().map(|row| {
            let fields: Vec<_> = columns.iter().map(|(name, _)| format!("\"{name}\":{}", cell(row, name))).collect();
            format!("{{{}}}", fields.join(","))
        }).collect();
        let tensors: Vec<String> = columns.iter().map(|(name, datatype)| {
            let data: Vec<_> = rows.iter().map(|row| cell(row, name)).collect();
            column(name, &format!("[{}]", rows.len()), datatype, &format!("[{}]", data.join(",")))
        }).collect();
        let native = format!(r#"{{"model":"visits","features":[{}]}}"#, objects.join(","));
        let native = One::decode_for(&models(), &route(), &message(Some(native.as_bytes())));
        let oip = asked("visits", &format!("[{}]", tensors.join(",")));
        prop_assert_eq!(meaning(&oip), meaning(&native));
    }

    #[test]
    fn any_body_with_inputs_is_read_without_a_trace(
        tensors in vec(any_tensor(), 0..3),
        other in any_value(),
        root in any_value(),
        model in select(&["people", "visits"][..]),
        cut in any::<prop::sample::Index>(),
    ) {
        let text = format!(
            r#"{{"id":"x","model_name":"{model}","inputs":[{}],"parameters":{other},"outputs":{root}}}"#,
            tensors.join(","),
        );
        let plain = format!(r#"{{"id":"x","model_name":"{model}","inputs":[{}]}}"#, tensors.join(","));
        let part = &text.as_bytes()[..cut.index(text.len())];
        let odd = format!(r#"{{"inputs":{root}}}"#);
        for payload in [text.as_bytes(), plain.as_bytes(), part, odd.as_bytes()] {
            check_arenas(decode_between(payload));
        }
    }
}
