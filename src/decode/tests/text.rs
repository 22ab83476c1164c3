//! Models that take text and whole numbers: every shape of features, and what a column of another kind says.

use super::*;

fn visits(features: &str) -> One {
    let text = format!(r#"{{"features":{features},"id":"r1","model":"visits"}}"#);
    One::decode_for(&catalog_with_text(), &route(), &message(Some(text.as_bytes())))
}

fn texts(one: &One) -> Vec<Option<&str>> {
    one.0.texts(one.work()).iter().collect()
}

#[track_caller]
fn refused(features: &str, wanted: &str) {
    let one = visits(features);
    assert_eq!((one.error(), one.id()), (&Reject::bad_request(wanted), "\"r1\""), "{features}");
}

#[test]
fn texts_are_taken_in_all_four_shapes() {
    let row = visits(r#"[41.5,"Z\u00fcrich",-3,"gold"]"#);
    assert!(same_bits(row.rows(), &[41.5, f64::NAN, -3.0, f64::NAN]));
    assert_eq!(texts(&row), [Some("Zürich"), Some("gold")]);

    let rows = visits(r#"[[1,"a",2,null],[null,"",null,"b"]]"#);
    assert!(same_bits(rows.rows(), &[1.0, f64::NAN, 2.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN, f64::NAN]));
    assert_eq!((texts(&rows), rows.work().many), (vec![Some("a"), None, Some(""), Some("b")], true));

    let named = visits(r#"{"plan":"gold","age":1,"city":"Bern"}"#);
    assert!(same_bits(named.rows(), &[1.0, f64::NAN, f64::NAN, f64::NAN]));
    assert_eq!(texts(&named), [Some("Bern"), Some("gold")]);

    let many = visits(r#"[{"plan":"p"},{"count":7,"city":"c"},{"age":null}]"#);
    assert_eq!(texts(&many), [None, Some("p"), Some("c"), None, None, None]);
    assert_eq!(many.rows()[6].to_bits(), 7_f64.to_bits());
}

#[test]
fn a_row_without_a_string_is_a_row_of_missing_texts() {
    let one = visits("[1,null,2,null]");
    assert_eq!(texts(&one), [None, None]);
    assert!(same_bits(one.rows(), &[1.0, f64::NAN, 2.0, f64::NAN]));
}

#[test]
fn each_column_says_what_it_takes() {
    let number = "wants a number or null";
    refused(r#"["x","a",1,"b"]"#, &format!("features[0]: got \"x\", {number}"));
    refused(r#"[1,2,3,"b"]"#, "features[1]: got 2, wants a string or null");
    refused(r#"[[1,"a",1,"b"],[1,"a",1,2.5]]"#, "features[1][3]: got 2.5, wants a string or null");
    refused(r#"{"city":"a","age":"x"}"#, &format!("features[\"age\"]: got \"x\", {number}"));
    refused(r#"[{"city":"a"},{"plan":0}]"#, "features[1][\"plan\"]: got 0, wants a string or null");
    let whole = "wants a whole number from -2147483648 to 2147483647 or null";
    refused(r#"[1,"a",1.5,"b"]"#, &format!("features[2]: got 1.5, {whole}"));
    refused(r#"{"count":2147483648}"#, &format!("features[\"count\"]: got 2147483648, {whole}"));
    refused(r#"[1,"a","7","b"]"#, &format!("features[2]: got \"7\", {whole}"));
    refused(r#"[1,true,1,"b"]"#, "features[1]: got true, wants a number, a string or null");
    refused(r#"[1,"a",[],"b"]"#, "features[2]: got an array, wants a number, a string or null");
    refused(r#"["a","b"]"#, "features: got 2 values, model visits wants 4");
    refused(r#"[["a"],"b"]"#, "features[1]: got \"b\", wants a row of numbers, as the rows before it");
    refused(r#""a""#, "features: got \"a\", wants a row of numbers, rows, or an object by feature name");
    refused(r#"{"city":"a","city":"b"}"#, "features[\"city\"]: the name is given twice");
}

#[test]
fn a_model_of_numbers_takes_no_text_wherever_its_name_stands() {
    bad(r#"{"id":"r1","features":[[1,2,3],[4,"x",6]]}"#, "features[1][1]: got \"x\", wants a number or null");
    bad(
        r#"{"id":"r1","features":[{"age":1},{"wage":"x"}]}"#,
        "features[1][\"wage\"]: got \"x\", wants a number or null",
    );
    bad(r#"{"features":["x"],"model":"higgs","id":"r1"}"#, "features[0]: got \"x\", wants a number or null");
    let late = body(r#"{"features":["x",1,2,3]}"#);
    assert_eq!(late.error().message, "features[0]: got \"x\", wants a number or null");
}

#[test]
fn neighbours_keep_their_texts() {
    let mut chunk = Chunk::default();
    let catalog = catalog_with_text();
    for text in [
        r#"{"model":"visits","features":{"plan":"first"}}"#,
        r#"{"model":"visits","features":[1,"lost",0.5,"lost"]}"#,
        r#"{"features":[1,2,"lost"]}"#,
        r#"{"features":[1,2,3]}"#,
        r#"{"model":"visits","features":[1,"last",2,null]}"#,
    ] {
        route().decode(&message(Some(text.as_bytes())), received(), &catalog, &mut chunk);
    }
    let chunk = chunk.take();
    let texts = |index: usize| {
        let work = chunk.requests()[index].work.as_ref().ok()?;
        Some(chunk.texts(work).iter().collect::<Vec<_>>())
    };
    assert_eq!(texts(0), Some(vec![None, Some("first")]));
    assert_eq!((texts(1), texts(2), texts(3)), (None, None, Some(vec![])));
    assert_eq!(texts(4), Some(vec![Some("last"), None]));
}
