//! The body: features in their four shapes, and every way to get them or the JSON wrong.

use super::*;

#[test]
fn one_row_in_any_key_order() {
    for text in [
        r#"{"id":"r1","model":"people","features":[1,-2.5,null],"priority":3,"timeout_ms":50}"#,
        r#"{"timeout_ms":50,"priority":3,"features":[1,-2.5,null],"model":"people","id":"r1"}"#,
    ] {
        let one = body(text);
        let work = one.work();
        assert_eq!((one.id(), work.model, work.rows, work.many), ("\"r1\"", PEOPLE, 1, false));
        assert_eq!(work.priority.get(), 3);
        assert_eq!(work.deadline, Some(*ARRIVED + Duration::from_millis(50)));
        assert!(same_bits(one.rows(), &[1.0, -2.5, f64::NAN]));
        assert_eq!(one.request().route, 7);
        assert_eq!(one.request().position.offset, 41);
        assert!(one.request().key.is_none() && one.address().is_none());
    }
}

#[test]
fn numbers_keep_every_bit() {
    let one = body(r#"{"features":[0.1e0,5e-324,-0]}"#);
    assert!(same_bits(one.rows(), &[0.1, 5e-324, -0.0]));
    let one = body(r#"{"features":[18446744073709551616,-9007199254740993,1.7976931348623157e308]}"#);
    assert!(same_bits(one.rows(), &[18_446_744_073_709_551_616.0, -9_007_199_254_740_992.0, f64::MAX]));
}

#[test]
fn rows_and_a_list_of_one_row() {
    let one = body(r#"{"features":[[1,2,3],[4,null,6]]}"#);
    assert_eq!((one.work().rows, one.work().many), (2, true));
    assert!(same_bits(one.rows(), &[1.0, 2.0, 3.0, 4.0, f64::NAN, 6.0]));
    let one = body(r#"{"features":[[1,2,3]]}"#);
    assert_eq!((one.work().rows, one.work().many), (1, true));
}

#[test]
fn names_are_put_in_the_models_order() {
    let one = body(r#"{"features":{"height":3,"age":1}}"#);
    assert_eq!((one.work().rows, one.work().many), (1, false));
    assert!(same_bits(one.rows(), &[1.0, f64::NAN, 3.0]));
    let one = body(r#"{"features":{"wage":null}}"#);
    assert!(same_bits(one.rows(), &[f64::NAN; 3]));
    let one = body(r#"{"features":[{"wage":2},{"h\u0065ight":3,"age":1}],"model":"people"}"#);
    assert_eq!((one.work().rows, one.work().many), (2, true));
    assert!(same_bits(one.rows(), &[f64::NAN, 2.0, f64::NAN, 1.0, f64::NAN, 3.0]));
}

#[test]
fn the_model_may_come_after_the_names() {
    let one = body(r#"{"features":{"f27":27,"f0":0},"model":"higgs"}"#);
    assert_eq!((one.work().model, one.rows().len()), (HIGGS, 28));
    assert_eq!((one.rows()[0].to_bits(), one.rows()[27].to_bits()), (0, 27f64.to_bits()));
}

#[test]
fn a_wrong_value_is_named_by_its_place() {
    bad(r#"{"features":[1,2,3,"abc"],"id":"r1"}"#, r#"features[3]: got "abc", wants a number or null"#);
    bad(r#"{"features":[[1],[1,2,3,"abc"]],"id":"r1"}"#, r#"features[1][3]: got "abc", wants a number or null"#);
    bad(r#"{"features":{"age":"x"},"id":"r1"}"#, r#"features["age"]: got "x", wants a number or null"#);
    bad(r#"{"features":[{},{"age":[]}],"id":"r1"}"#, "features[0]: got an empty object, wants one feature or more");
    bad(
        r#"{"features":[{"age":1},{"age":[]}],"id":"r1"}"#,
        r#"features[1]["age"]: got an array, wants a number or null"#,
    );
    bad(r#"{"features":[true,"abc"],"id":"r1"}"#, "features[0]: got true, wants a number or null");
    bad(r#"{"features":[1,[2]],"id":"r1"}"#, "features[1]: got an array, wants a number or null");
    bad(r#"{"features":[1,{"age":2}],"id":"r1"}"#, "features[1]: got an object, wants a number or null");
    bad(r#"{"features":[[1],2],"id":"r1"}"#, "features[1]: got 2, wants a row of numbers, as the rows before it");
    bad(r#"{"features":[[1],null],"id":"r1"}"#, "features[1]: got null, wants a row of numbers, as the rows before it");
    bad(
        r#"{"features":[{"age":1},[1]],"id":"r1"}"#,
        "features[1]: got an array, wants an object by feature name, as the rows before it",
    );
    bad(r#"{"features":[[[1]]],"id":"r1"}"#, "features[0][0]: got an array, wants a number or null");
    for (value, got) in [("null", "null"), ("3", "3"), ("3.5", "3.5"), ("\"a\"", "\"a\""), ("false", "false")] {
        bad(
            &format!(r#"{{"features":{value},"id":"r1"}}"#),
            &format!("features: got {got}, wants a row of numbers, rows, or an object by feature name"),
        );
    }
    bad(r#"{"id":"r1"}"#, "features: missing, wants a row of numbers, rows, or an object by feature name");
}

#[test]
fn a_wrong_width_names_the_model() {
    let numbers = |count: usize| vec!["1"; count].join(",");
    let text = format!(r#"{{"id":"r1","model":"higgs","features":[{}]}}"#, numbers(27));
    bad(&text, "features: got 27 values, model higgs wants 28");
    let (full, short) = (numbers(28), numbers(27));
    let text = format!(r#"{{"id":"r1","model":"higgs","features":[[{full}],[{full}],[{short}],[]]}}"#);
    bad(&text, "features[2]: got 27 values, model higgs wants 28");
    bad(r#"{"id":"r1","features":[[1,2],[1,2,3]]}"#, "features[0]: got 2 values, model people wants 3");
    bad(r#"{"id":"r1","features":[]}"#, "features: got 0 values, model people wants 3");
    bad(r#"{"id":"r1","features":[[]]}"#, "features[0]: got 0 values, model people wants 3");
    bad(r#"{"id":"r1","features":{}}"#, "features: got an empty object, wants one feature or more");
}

#[test]
fn an_unknown_or_doubled_name() {
    bad(
        r#"{"id":"r1","features":{"agee":1,"height":2}}"#,
        r#"features["agee"]: model people has no such feature; did you mean "age"?"#,
    );
    bad(
        r#"{"id":"r1","features":[{"age":1},{"":1}]}"#,
        r#"features[1][""]: model people has no such feature; did you mean "age"?"#,
    );
    bad(r#"{"id":"r1","features":{"age":null,"age":1}}"#, r#"features["age"]: the name is given twice"#);
    bad(r#"{"id":"r1","features":[1,2,3],"features":[1,2,3]}"#, "field \"features\" is given twice");
    bad(r#"{"id":"r1","model":"higgs","model":null,"features":[1]}"#, "field \"model\" is given twice");
    nameless(br#"{"id":"a","id":"b","features":[1,2,3]}"#, "field \"id\" is given twice");
    bad(
        r#"{"feature":[1],"id":"r1"}"#,
        "unknown field \"feature\": did you mean \"features\"? known fields: id, model, features, priority, timeout_ms",
    );
}

#[test]
fn what_is_not_json_still_finds_its_id() {
    bad(r#"{"features":[1,NaN],"id":"r1"}"#, "features[1]: got NaN, which is not JSON; null is the missing value");
    bad(r#"{"features":[nan],"id":"r1"}"#, "features[0]: got nan, which is not JSON; null is the missing value");
    for name in ["Infinity", "-Infinity", "inf", "-inf"] {
        bad(
            &format!("{{\"features\":\n[[1],[2,{name}]],\"id\":\"r1\"}}"),
            &format!(
                "features[1][1]: got {name}, which is not JSON: Infinity is not accepted, null is the missing value"
            ),
        );
    }
    for number in ["1e999", "-1E+999", "1e99999999999", "123456789012345678901234567890.5e999"] {
        bad(
            &format!(r#"{{"features":{{"age":{number}}},"id":"r1"}}"#),
            &format!("features[\"age\"]: got {number}, which is out of range: Infinity is not accepted"),
        );
    }
    let huge = "9".repeat(400);
    bad(
        &format!(r#"{{"features":[{huge}],"id":"r1"}}"#),
        &format!("features[0]: got {}…, which is out of range: Infinity is not accepted", "9".repeat(39)),
    );
    bad(r#"{"timeout_ms":1e999,"id":"r1"}"#, "timeout_ms: got 1e999, which is out of range: Infinity is not accepted");
    bad(r#"{"id":"r1","features":[1,2,3]} x"#, "the payload is not JSON: trailing characters at line 1 column 32");
    bad(r#"{"id":"r1","features":[1,2"#, "the payload is not JSON: EOF while parsing a list at line 1 column 26");
    nameless(b"hello", "the payload is not JSON: expected value at line 1 column 1");
    nameless(b"", "the payload is empty, wants a JSON object");
    nameless(b" \n", "the payload is empty, wants a JSON object");
    nameless(b"{\"id\":\"\xff\",\"features\":[1,2,3]}", "the payload is not UTF-8 at byte 7");
    nameless(b"{\"features\":{\"\xe4\":1}}", "the payload is not UTF-8 at byte 14");
    for (text, got) in [("[1,2,3]", "an array"), ("7", "7"), ("null", "null"), ("\"a\"", "\"a\""), ("true", "true")] {
        let wanted = format!("the payload: got {got}, wants a JSON object with \"features\"");
        nameless(text.as_bytes(), &wanted);
    }
}

#[test]
fn nesting_is_bounded_and_so_is_the_message() {
    let open = "[".repeat(450_000);
    let close = "]".repeat(450_000);
    bad(&format!(r#"{{"features":{open}{close},"id":"r1"}}"#), "features[0][0]: nested deeper than 127 levels");
    nameless(format!("{open}{close}").as_bytes(), "the payload: nested deeper than 127 levels");
    nameless(open.as_bytes(), "the payload: nested deeper than 127 levels");
    let text = format!(r#"{{"id":"r1","x":{}}}"#, "{\"a\":".repeat(1_000));
    bad(&text, "the payload: nested deeper than 127 levels");

    let long = "\\u0001x".repeat(100_000);
    for text in [
        format!(r#"{{"features":["{long}"],"id":"r1"}}"#),
        format!(r#"{{"features":{{"{long}":1}},"id":"r1"}}"#),
        format!(r#"{{"features":{{"{long}":NaN}},"id":"r1"}}"#),
        format!(r#"{{"{long}":1,"id":"r1"}}"#),
        format!(r#"{{"features":[1],"model":"{long}","id":"r1"}}"#),
        format!(r#"{{"features":[1],"priority":"{long}","id":"r1"}}"#),
    ] {
        let one = body(&text);
        assert_eq!(one.id(), "\"r1\"");
        assert!(one.error().message.chars().count() <= 300, "{}", one.error());
    }
    let wanted = format!("features[0]: got \"{}…\", wants a number or null", "y".repeat(39));
    bad(&format!(r#"{{"features":["{}"],"id":"r1"}}"#, "y".repeat(500)), &wanted);
}

#[test]
fn the_schema_type_reads_what_the_decoder_reads() {
    for text in [
        r#"{"id":"r1","model":"people","features":[1.0,null,3.0],"priority":1,"timeout_ms":50.0}"#,
        r#"{"id":7,"features":[[1.0,2.0,3.0],[4.0,null,6.0]]}"#,
        r#"{"features":{"age":41.0,"wage":null}}"#,
        r#"{"features":[{"age":41.0},{"wage":1.5}]}"#,
    ] {
        assert!(body(text).request().work.is_ok(), "{text}");
        let request: RequestBody = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
    }
    let text = r#"{"model":"visits","features":[{"city":"Bern","count":3.0},{"city":null}]}"#;
    let one = One::decode_for(&catalog_with_text(), &route(), &message(Some(text.as_bytes())));
    assert!(one.request().work.is_ok());
    assert_eq!(serde_json::to_string(&serde_json::from_str::<RequestBody>(text).unwrap()).unwrap(), text);
    assert!(serde_json::from_str::<RequestBody>(r#"{"features":[1],"prio":1}"#).is_err());
    let schema = serde_json::to_value(request_schema()).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["features"]));
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
    assert_eq!(schema["properties"]["timeout_ms"]["minimum"], serde_json::json!(0));
}
