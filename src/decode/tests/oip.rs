//! Bodies of the Open Inference Protocol: every way to write rows, and every way to get them wrong.

mod random;

use super::*;

const ONE: ModelId = ModelId(3);

/// The three models, and `one`, which has a single feature `x`.
fn models() -> Catalog {
    let mut catalog = catalog_with_text();
    let (one, level) = (schema(vec!["x".to_owned()]), Priority::new(1).unwrap());
    catalog.put(ModelEntry::new(ONE, "one", &one, vec![LevelTimeout::default()], level));
    catalog
}

/// A body with this value of `inputs`, for the model.
fn asked(model: &str, inputs: &str) -> One {
    let text = format!(r#"{{"inputs":{inputs},"model_name":"{model}","id":"r1"}}"#);
    let one = One::decode_for(&models(), &route(), &message(Some(text.as_bytes())));
    let shown = text.chars().take(1_000).collect::<String>();
    assert_eq!((one.request().protocol, one.id()), (Protocol::OpenInference, "\"r1\""), "{shown}");
    one
}

fn tensor(shape: &str, datatype: &str, data: &str) -> String {
    column("input", shape, datatype, data)
}

fn column(name: &str, shape: &str, datatype: &str, data: &str) -> String {
    format!(r#"{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":{data}}}"#)
}

fn texts(one: &One) -> Vec<Option<&str>> {
    one.0.texts(one.work()).iter().collect()
}

#[track_caller]
fn refused(model: &str, inputs: &str, wanted: &str) {
    assert_eq!(asked(model, inputs).error(), &Reject::bad_request(wanted), "{inputs}");
}

/// The whole body is refused, with an Open Inference reply.
#[track_caller]
fn refused_body(text: &str, wanted: &str) {
    let one = body(text);
    assert_eq!(one.error(), &Reject::bad_request(wanted), "{text}");
    assert_eq!((one.request().protocol, one.id()), (Protocol::OpenInference, "\"r1\""), "{text}");
}

#[test]
fn one_tensor_of_all_features() {
    for text in [
        r#"{"id":"r1","inputs":[{"name":"x","shape":[2,3],"datatype":"FP32","data":[1,-2.5,null,4,5,6]}]}"#,
        r#"{"inputs":[{"data":[[1,-2.5,null],[4,5,6]],"datatype":"FP64","shape":[2,3],"name":""}],"id":"r1"}"#,
        r#"{"id":"r1","parameters":null,"outputs":null,
            "inputs":[{"name":"x","shape":[2,3],"datatype":"FP16","parameters":null,"data":[1,-2.5,null,4,5,6]}]}"#,
    ] {
        let one = body(text);
        let work = one.work();
        assert_eq!((one.id(), one.request().protocol), ("\"r1\"", Protocol::OpenInference));
        assert_eq!((work.model, work.rows, work.many, work.retries), (PEOPLE, 2, true, 2));
        assert!(same_bits(one.rows(), &[1.0, -2.5, f64::NAN, 4.0, 5.0, 6.0]));
    }
    let native = body(r#"{"features":[1,2,3],"id":"r1"}"#);
    assert_eq!(native.request().protocol, Protocol::Native);
}

#[test]
fn a_shape_of_one_dimension_is_rows_of_one_feature() {
    for shape in ["[3]", "[3,1]"] {
        let one = asked("one", &format!("[{}]", tensor(shape, "INT8", "[1,null,-3]")));
        assert_eq!((one.work().rows, one.work().model), (3, ONE));
        assert!(same_bits(one.rows(), &[1.0, f64::NAN, -3.0]));
    }
    // A row may look like one, but rows come first in a shape.
    refused(
        "people",
        &format!("[{}]", tensor("[3]", "FP32", "[1,2,3]")),
        "inputs[0].shape: got [3], model people wants [rows, 3]",
    );
    refused(
        "higgs",
        &format!("[{}]", tensor("[2, 3]", "FP32", "[1,2,3,4,5,6]")),
        "inputs[0].shape: got [2, 3], model higgs wants [rows, 28]",
    );
}

#[test]
fn tensors_by_feature_are_joined_in_the_models_order() {
    let height = column("height", "[2]", "FP32", "[3,6]");
    let age = column("age", "[2,1]", "UINT8", "[[1],[4]]");
    let one = asked("people", &format!("[{height},{age}]"));
    assert_eq!((one.work().rows, one.work().many), (2, true));
    assert!(same_bits(one.rows(), &[1.0, f64::NAN, 3.0, 4.0, f64::NAN, 6.0]));
    // One feature is enough, as in the native form.
    let one = asked("people", &format!("[{height}]"));
    assert!(same_bits(one.rows(), &[f64::NAN, f64::NAN, 3.0, f64::NAN, f64::NAN, 6.0]));

    let agee = column("agee", "[2]", "INT8", "[1,2]");
    refused(
        "people",
        &format!("[{height},{agee}]"),
        "inputs[1].name: got \"agee\": model people has no such feature; did you mean \"age\"?",
    );
    refused("people", &format!("[{height},{age},{height}]"), "inputs[2].name: \"height\" is given twice");
    for (shape, data, got) in [("[3]", "[1,2,3]", "[3]"), ("[2, 2]", "[1,2,3,4]", "[2, 2]")] {
        refused(
            "people",
            &format!("[{height},{}]", column("age", shape, "FP32", data)),
            &format!("inputs[1].shape: got {got}, wants [2] or [2, 1]: of several tensors each is one feature"),
        );
    }
}

#[test]
fn truth_and_text() {
    let one = asked("people", &format!("[{}]", tensor("[1,3]", "BOOL", "[true,false,1]")));
    assert!(same_bits(one.rows(), &[1.0, 0.0, 1.0]));

    let city = column("city", "[2]", "BYTES", r#"["Z\u00fcrich",null]"#);
    let count = column("count", "[2]", "INT32", "[-3,7]");
    let one = asked("visits", &format!("[{count},{city}]"));
    assert!(same_bits(one.rows(), &[f64::NAN, f64::NAN, -3.0, f64::NAN, f64::NAN, f64::NAN, 7.0, f64::NAN]));
    assert_eq!(texts(&one), [Some("Zürich"), None, None, None]);

    // What the columns of a model take counts beside the datatype.
    let count = column("count", "[2]", "FP32", "[1,1.5]");
    let whole = "wants a whole number from -2147483648 to 2147483647 or null";
    refused("visits", &format!("[{city},{count}]"), &format!("inputs[1].data[1]: got 1.5, {whole}"));
    let count = column("count", "[2,1]", "FP32", "[[1],[1.5]]");
    refused("visits", &format!("[{city},{count}]"), &format!("inputs[1].data[1][0]: got 1.5, {whole}"));
    let plan = column("plan", "[2]", "FP32", "[null,2]");
    refused("visits", &format!("[{city},{plan}]"), "inputs[1].data[1]: got 2, wants a string or null");
    let words = tensor("[2,3]", "BYTES", r#"[null,null,null,null,"x",null]"#);
    refused("people", &format!("[{words}]"), "inputs[0].data[4]: got \"x\", wants a number or null");
}

#[test]
fn a_datatype_takes_what_it_can_hold() {
    for (datatype, data, wanted) in [
        ("UINT8", "[0,1,300]", "data[2]: got 300, UINT8 wants a whole number from 0 to 255 or null"),
        ("INT32", "[1.5,1,1]", "data[0]: got 1.5, INT32 wants a whole number from -2147483648 to 2147483647 or null"),
        ("UINT64", "[0,-1,0]", "data[1]: got -1, UINT64 wants a whole number from 0 to 18446744073709551615 or null"),
        ("INT8", "[[0,true,0]]", "data[0][1]: got true, INT8 wants a whole number from -128 to 127 or null"),
        ("FP32", "[0,0,1e300]", "data[2]: got 1e300, FP32 wants a number up to 3.4028235e38 either way or null"),
        ("FP16", "[70000,0,0]", "data[0]: got 70000, FP16 wants a number up to 65504 either way or null"),
        ("FP64", "[0,\"a\",\"b\"]", "data[1]: got \"a\", FP64 wants a number or null"),
        ("BOOL", "[true,2,1]", "data[1]: got 2, BOOL wants true or false, 1 or 0 or null"),
        ("BYTES", "[\"a\",1,1]", "data[1]: got 1, BYTES wants a string or null"),
        ("BYTES", "[true,1,1]", "data[0]: got true, BYTES wants a string or null"),
    ] {
        refused("people", &format!("[{}]", tensor("[1,3]", datatype, data)), &format!("inputs[0].{wanted}"));
    }
}

#[test]
fn what_is_no_tensor_is_named_by_its_place() {
    let good = tensor("[1,3]", "FP32", "[1,2,3]");
    for (inputs, wanted) in [
        ("null".to_owned(), "inputs: got null, wants a list of tensors"),
        ("{}".to_owned(), "inputs: got an object, wants a list of tensors"),
        ("[]".to_owned(), "inputs: got an empty list, wants one tensor or more"),
        (format!("[{good},5]"), "inputs[1]: got 5, wants a tensor: an object with name, shape, datatype and data"),
        ("[{}]".to_owned(), "inputs[0].name: missing, wants a string"),
        (r#"[{"name":7}]"#.to_owned(), "inputs[0].name: got 7, wants a string"),
        (r#"[{"name":"x"}]"#.to_owned(), "inputs[0].shape: missing, wants [rows, features]"),
        (
            r#"[{"name":"x","shape":[1]}]"#.to_owned(),
            "inputs[0].datatype: missing, wants the type of the values, such as FP32",
        ),
        (
            r#"[{"name":"x","shape":[1],"datatype":"FP32","data":null}]"#.to_owned(),
            "inputs[0].data: missing, wants a list of values",
        ),
        (r#"[{"name":"x","name":"x"}]"#.to_owned(), "inputs[0]: field \"name\" is given twice"),
        (
            r#"[{"name":"x","dtype":"FP32"}]"#.to_owned(),
            "inputs[0]: unknown field \"dtype\"; known fields: name, shape, datatype, parameters, data",
        ),
        (
            format!("[{}]", tensor("[1,3]", "BF16", "[1,2,3]")),
            "inputs[0].datatype: got \"BF16\", wants one of BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, \
             INT64, FP16, FP32, FP64, BYTES",
        ),
        (format!("[{}]", tensor("3", "FP32", "[1,2,3]")), "inputs[0].shape: got 3, wants [rows, features]"),
        (
            format!("[{}]", tensor("[1,-1]", "FP32", "[1,2,3]")),
            "inputs[0].shape[1]: got -1, wants a whole number, 0 or more",
        ),
        (
            format!("[{}]", tensor("[1,1,3]", "FP32", "[1,2,3]")),
            "inputs[0].shape: got 3 dimensions, wants [rows, features] or [rows]",
        ),
        (
            format!("[{}]", tensor("[]", "FP32", "[]")),
            "inputs[0].shape: got 0 dimensions, wants [rows, features] or [rows]",
        ),
        (
            format!("[{}]", tensor("[0,3]", "FP32", "[]")),
            "inputs[0].shape: got [0, 3], wants one row or more, and one value or more a row",
        ),
        (
            format!("[{}]", tensor("[2,3]", "FP32", "[1,2,3,4,5]")),
            "inputs[0].data: got 5 values, which is not the shape [2, 3]",
        ),
        (
            format!("[{}]", tensor("[4294967296,4294967296]", "FP32", "[]")),
            "inputs[0].data: got 0 values, which is not the shape [4294967296, 4294967296]",
        ),
        (
            format!("[{}]", tensor("[2,3]", "FP32", "[[1,2],[3,4],[5,6]]")),
            "inputs[0].data: got 3 lists of 2 values, which is not the shape [2, 3]",
        ),
        (
            format!("[{}]", tensor("[2,3]", "FP32", "[[1,2,3],[4,5]]")),
            "inputs[0].data[1]: got 2 values, the lists before it have 3",
        ),
        (
            format!("[{}]", tensor("[2,3]", "FP32", "[[1,2,3],4]")),
            "inputs[0].data[1]: got 4, wants a list of values, as those before it",
        ),
        (
            format!("[{}]", tensor("[2,3]", "FP32", "[1,[2,3]]")),
            "inputs[0].data[1]: got an array, wants a value, as those before it",
        ),
        (format!("[{}]", tensor("[2,3]", "FP32", "[[1,[2],3]]")), "inputs[0].data[0][1]: got an array, wants a value"),
        (format!("[{}]", tensor("[2,3]", "FP32", "[{}]")), "inputs[0].data[0]: got an object, wants a value"),
        (format!("[{}]", tensor("[2,3]", "FP32", "7")), "inputs[0].data: got 7, wants a list of values"),
    ] {
        refused("people", &inputs, wanted);
    }
}

#[test]
fn fields_of_one_protocol_do_not_go_with_the_other() {
    let inputs = format!("[{}]", tensor("[1,3]", "FP32", "[1,2,3]"));
    let both = "got both \"features\" and \"inputs\", wants one of them: the first is a native request, the second one of the \
                Open Inference Protocol";
    for text in [
        format!(r#"{{"features":[1,2,3],"inputs":{inputs},"id":"r1"}}"#),
        format!(r#"{{"id":"r1","inputs":{inputs},"features":[1,2,3]}}"#),
    ] {
        bad(&text, both);
        assert_eq!(body(&text).request().protocol, Protocol::Native);
    }
    for (field, instead) in [
        ("\"priority\":1", "parameters.priority"),
        ("\"timeout_ms\":1", "parameters.timeout, in microseconds"),
        ("\"model\":\"people\"", "model_name"),
    ] {
        let name = field.split(':').next().unwrap();
        let wanted = format!("field {name} does not go with \"inputs\": there it is {instead}");
        refused_body(&format!(r#"{{"id":"r1",{field},"inputs":{inputs}}}"#), &wanted);
    }
    refused_body(
        &format!(r#"{{"id":"r1","output":[],"inputs":{inputs}}}"#),
        "unknown field \"output\": did you mean \"outputs\"? known fields: id, model_name, inputs, outputs, parameters",
    );
    refused_body(&format!(r#"{{"id":"r1","inputs":{inputs},"inputs":[]}}"#), "field \"inputs\" is given twice");
    // Without inputs they are unknown, as they were.
    bad(
        r#"{"id":"r1","features":[1,2,3],"parameters":{}}"#,
        "unknown field \"parameters\": did you mean \"features\"? known fields: id, model, features, priority, timeout_ms",
    );
}

#[test]
fn outputs_and_extensions() {
    let body = |more: &str, input_more: &str| {
        format!(
            r#"{{"id":"r1",{more}"inputs":[{{"name":"x","shape":[1,3],"datatype":"FP32",{input_more}"data":[1,2,3]}}]}}"#
        )
    };
    for (more, input_more) in [
        (r#""outputs":[{"name":"predict"}],"#, ""),
        (r#""outputs":[],"#, r#""parameters":{"content_type":"np","anything":[1,{}]},"#),
        (r#""outputs":[{"name":"predict","parameters":{"binary_data":false}}],"#, ""),
        (r#""parameters":{"binary_data_output":false,"content_type":"np","headers":{"a":"b"}},"#, ""),
    ] {
        let text = body(more, input_more);
        assert!(One::decode(&route(), &message(Some(text.as_bytes()))).request().work.is_ok(), "{text}");
    }
    let plain = "which is not read here: values go as plain JSON, in \"data\"";
    for (more, input_more, wanted) in [
        (
            r#""outputs":[{"name":"probs"}],"#,
            "",
            "outputs[0].name: got \"probs\", the only output is \"predict\"".into(),
        ),
        (r#""outputs":[{}],"#, "", "outputs[0].name: missing, the only output is \"predict\"".into()),
        (
            r#""outputs":[{"name":"predict","x":1}],"#,
            "",
            "outputs[0]: unknown field \"x\"; known fields: name, parameters".into(),
        ),
        (
            r#""outputs":["predict"],"#,
            "",
            "outputs[0]: got \"predict\", wants an output: an object with its name".into(),
        ),
        (r#""outputs":{},"#, "", "outputs: got an object, wants a list of outputs".into()),
        (
            r#""outputs":[{"name":"predict","parameters":{"binary_data":true}}],"#,
            "",
            format!("outputs[0].parameters.binary_data: got true, {plain}"),
        ),
        (
            r#""outputs":[{"name":"predict","parameters":{"classification":3}}],"#,
            "",
            format!("outputs[0].parameters.classification: got 3, {plain}"),
        ),
        (
            r#""parameters":{"binary_data_output":true},"#,
            "",
            format!("parameters.binary_data_output: got true, {plain}"),
        ),
        (
            "",
            r#""parameters":{"binary_data_size":12},"#,
            format!("inputs[0].parameters.binary_data_size: got 12, {plain}"),
        ),
        (
            "",
            r#""parameters":{"content_type":"base64"},"#,
            format!("inputs[0].parameters.content_type: got \"base64\", {plain}"),
        ),
        ("", r#""parameters":7,"#, "inputs[0].parameters: got 7, wants an object".into()),
        (r#""parameters":[],"#, "", "parameters: got an array, wants an object".into()),
    ] {
        refused_body(&body(more, input_more), &wanted);
    }
}

#[test]
fn priority_and_timeout_are_parameters() {
    let with = |parameters: &str, headers: &[(&str, Option<&[u8]>)]| {
        let inputs = tensor("[1,3]", "FP32", "[1,2,3]");
        with_headers(&format!(r#"{{"id":"r1","inputs":[{inputs}],"parameters":{parameters}}}"#), headers)
    };
    let wait = |one: &One| one.work().deadline.map(|deadline| deadline - *ARRIVED);
    // The model has 5 levels, 1 by default, and waits 100 ms at the most.
    let one = with(r#"{"priority":3,"timeout":2500}"#, &[]);
    assert_eq!((one.work().priority.get(), wait(&one)), (3, Some(Duration::from_micros(2_500))));
    for none in ["null", "{}", r#"{"priority":0,"timeout":0}"#, r#"{"priority":null,"timeout":1e300}"#] {
        let one = with(none, &[]);
        assert_eq!((one.work().priority.get(), wait(&one)), (1, Some(Duration::from_millis(100))), "{none}");
    }
    let headers = [("forebay-priority", Some(&b"2"[..])), ("forebay-timeout-ms", Some(&b"7"[..]))];
    let one = with(r#"{"priority":"x","timeout":"y"}"#, &headers);
    assert_eq!((one.work().priority.get(), wait(&one)), (2, Some(Duration::from_millis(7))));

    for (parameters, wanted) in [
        (
            r#"{"priority":6}"#,
            "parameters.priority: got 6, wants a whole number from 0 to 5 (0 is the model's default, 1 the highest level)",
        ),
        (r#"{"timeout":-5}"#, "parameters.timeout: got -5, wants a number of microseconds, 0 (none) or more"),
        (r#"{"timeout":"5"}"#, "parameters.timeout: got \"5\", wants a number of microseconds, 0 (none) or more"),
        (r#"{"timeout":5,"timeout":6}"#, "parameters: field \"timeout\" is given twice"),
    ] {
        let one = with(parameters, &[]);
        assert_eq!((one.error(), one.request().protocol), (&Reject::bad_request(wanted), Protocol::OpenInference));
    }
}

#[test]
fn the_model_is_named_by_header_body_or_route() {
    let inputs = tensor("[1,3]", "FP32", "[1,2,3]");
    let text = format!(r#"{{"id":"r1","inputs":[{inputs}]}}"#);
    let wants = |one: &One, wanted: &str| {
        assert_eq!(one.error().message, format!("inputs[0].shape: got [1, 3], model {wanted} wants [rows, 28]"));
    };
    assert_eq!(body(&text).work().model, PEOPLE);
    let mlserver = ("mlserver-model", Some(&b"higgs"[..]));
    wants(&with_headers(&text, &[mlserver, ("mlserver-version", Some(b"v0.1.0"))]), "higgs");
    assert_eq!(with_headers(&text, &[("forebay-model", Some(b"people")), mlserver]).work().model, PEOPLE);
    let named = text.replace("\"id\"", "\"model_name\":\"higgs\",\"id\"");
    wants(&body(&named), "higgs");
    assert_eq!(with_headers(&named, &[("mlserver-model", Some(b"people"))]).work().model, PEOPLE);
    let one = with_headers(&text, &[("mlserver-model", Some(b"peple"))]);
    let wanted = "header mlserver-model: no model \"peple\" is loaded; loaded: people, higgs";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
    // It is MLServer's word, and no word of a native request.
    assert_eq!(with_headers(r#"{"features":[1,2,3]}"#, &[mlserver]).work().model, PEOPLE);
}

#[test]
fn what_is_not_json_is_answered_in_its_protocol() {
    for (data, wanted) in [
        ("[1,NaN,3]", "inputs[0].data[1]: got NaN, which is not JSON; null is the missing value"),
        ("[[1,2,NaN]]", "inputs[0].data[0][2]: got NaN, which is not JSON; null is the missing value"),
        ("[1,2,1e999]", "inputs[0].data[2]: got 1e999, which is out of range: Infinity is not accepted"),
    ] {
        let inputs = tensor("[1,3]", "FP32", data);
        refused_body(&format!(r#"{{"inputs":[{inputs}],"id":"r1"}}"#), wanted);
    }
    let open = "[".repeat(100_000);
    refused_body(
        &format!(r#"{{"id":"r1","inputs":[{{"data":{open}"#),
        "inputs[0].data[0][0]: nested deeper than 127 levels",
    );
    assert_eq!(body(r#"["inputs"]"#).request().protocol, Protocol::Native);

    let mut chunk = Chunk::default();
    let full = Reject::new(ErrorCode::QueueFull, "later");
    for (text, wanted) in [(r#"{"id":1,"inputs":[]}"#, Protocol::OpenInference), (r#"{"id":1}"#, Protocol::Native)] {
        route().refuse(&message(Some(text.as_bytes())), received(), full.clone(), &mut chunk);
        let request = chunk.requests().last().unwrap();
        assert_eq!((request.protocol, chunk.str(request.id_json)), (wanted, "1"));
    }
}

#[test]
fn messages_are_bounded_and_so_is_the_matrix() {
    let long = "\\u0001x".repeat(40_000);
    for inputs in [
        format!(r#"[{{"{long}":1}}]"#),
        format!(r#"[{{"parameters":{{"{long}":1,"binary_data":"{long}"}}}}]"#),
        format!("[{}]", tensor("[1,3]", &long, "[1]")),
        format!("[{}]", tensor("[1,3]", "FP32", &format!("[1,2,\"{long}\"]"))),
        format!("[{},{}]", column("age", "[1]", "FP32", "[1]"), column(&long, "[1]", "FP32", "[1]")),
    ] {
        let one = asked("people", &inputs);
        let message = &one.error().message;
        assert!((1..=300).contains(&message.chars().count()), "{message}");
    }
    let small = RouteDecoder { record_bytes_max: 400, ..route() };
    let inputs = column("f1", "[9]", "FP32", "[1,2,3,4,5,6,7,8,9]");
    let text = format!(r#"{{"model_name":"higgs","inputs":[{inputs}]}}"#);
    let one = One::decode(&small, &message(Some(text.as_bytes())));
    let wanted = "inputs: 9 rows of 28 values are more than the 200 that a record may hold; send fewer rows a record";
    assert_eq!(one.error(), &Reject::new(ErrorCode::TooLarge, wanted));
    let one = One::decode(&RouteDecoder { record_bytes_max: 504, ..small }, &message(Some(text.as_bytes())));
    assert_eq!(one.work().rows, 9);
}

#[test]
fn the_schema_type_reads_what_the_decoder_reads() {
    for text in [
        r#"{"id":"r1","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1.0,null,3.0]}],"outputs":[{"name":"predict"}],"parameters":{"priority":1,"timeout":50.0,"more":[1]}}"#,
        r#"{"id":7,"model_name":"people","inputs":[{"name":"age","shape":[2],"datatype":"BOOL","parameters":{"content_type":"pd"},"data":[true,null]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[2,3],"datatype":"UINT8","data":[[1.0,2.0,3.0],[4.0,null,6.0]]}]}"#,
    ] {
        assert!(body(text).request().work.is_ok(), "{text}");
        let request: InferRequestBody = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
    }
    let schema = serde_json::to_value(infer_request_schema()).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["inputs"]));
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
}
