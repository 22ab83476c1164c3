//! One case each, with the exact message. The models: `higgs` (28 features, 3 levels, no timeout) and `people` (`age`,
//! `wage`, `height`; 5 levels, 100 ms).

use std::sync::LazyLock;

use super::*;
use crate::model::{ModelSchema, ModelType};
use crate::record::{PartitionId, Position, Request};

const HIGGS: ModelId = ModelId(0);
const PEOPLE: ModelId = ModelId(1);
const NOW_MS: i64 = 1_700_000_000_000;

static ARRIVED: LazyLock<Instant> = LazyLock::new(crate::clock::now);

pub(super) fn catalog() -> Catalog {
    let schema = |names: Vec<String>| ModelSchema {
        model_type: ModelType::LightGbm,
        feature_names: names,
        outputs: 1,
        details: Vec::new(),
    };
    let level = |level| Priority::new(level).unwrap();
    let higgs = schema((0..28).map(|index| format!("f{index}")).collect());
    let people = schema(["age", "wage", "height"].map(str::to_owned).to_vec());
    let mut catalog = Catalog::default();
    catalog.put(ModelEntry::new(HIGGS, "higgs", &higgs, 3, level(2), None));
    let timeout = Some(Duration::from_millis(100));
    catalog.put(ModelEntry::new(
        PEOPLE,
        "people",
        &people,
        5,
        level(1),
        timeout,
    ));
    catalog
}

pub(super) fn route() -> RouteDecoder {
    RouteDecoder {
        route: 7,
        model: Some(PEOPLE),
        reply_topics_allowed: vec![TopicPattern::new("replies-*").unwrap()],
        reply_topic: "scores".to_owned(),
        deadline_from: DeadlineFrom::Arrival,
        record_bytes_max: 1 << 20,
        compacted: false,
    }
}

pub(super) fn message(payload: Option<&[u8]>) -> Message<'_> {
    Message {
        topic: "features",
        partition_number: 3,
        position: Position {
            partition: PartitionId(9),
            offset: 41,
        },
        timestamp_ms: None,
        key: None,
        payload,
        headers: &[],
    }
}

pub(super) fn received() -> Received {
    Received {
        arrived: *ARRIVED,
        unix_ms: NOW_MS,
    }
}

/// A chunk that holds one request.
struct One(Chunk);

impl One {
    fn decode(route: &RouteDecoder, message: &Message<'_>) -> Self {
        let mut chunk = Chunk::default();
        assert_eq!(
            route.decode(message, received(), &catalog(), &mut chunk),
            Decoded::Request
        );
        assert_eq!(chunk.requests().len(), 1);
        if chunk.requests()[0].work.is_err() {
            assert!(
                chunk.features_mut().is_empty(),
                "a rejected record leaves no numbers"
            );
        }
        Self(chunk)
    }

    fn request(&self) -> &Request {
        &self.0.requests()[0]
    }

    fn id(&self) -> &str {
        self.0.str(self.request().id_json)
    }

    fn work(&self) -> &Work {
        self.request().work.as_ref().unwrap()
    }

    fn rows(&self) -> &[f64] {
        self.0.rows(self.work())
    }

    fn error(&self) -> &Reject {
        self.request().work.as_ref().unwrap_err()
    }

    fn address(&self) -> Option<(&str, Option<i32>)> {
        match self.request().address {
            ReplyAddress::Route => None,
            ReplyAddress::Named { topic, partition } => Some((self.0.str(topic), partition)),
        }
    }
}

fn body(text: &str) -> One {
    One::decode(&route(), &message(Some(text.as_bytes())))
}

fn with_headers(text: &str, headers: &[(&str, Option<&[u8]>)]) -> One {
    One::decode(
        &route(),
        &Message {
            headers,
            ..message(Some(text.as_bytes()))
        },
    )
}

/// The body is a bad request with this message, and its id is still `"r1"`.
#[track_caller]
fn bad(text: &str, wanted: &str) {
    let one = body(text);
    assert_eq!(one.error(), &Reject::bad_request(wanted), "{text}");
    assert_eq!(one.id(), "\"r1\"", "{text}");
}

/// The same without an id.
#[track_caller]
fn nameless(payload: &[u8], wanted: &str) {
    let one = One::decode(&route(), &message(Some(payload)));
    assert_eq!(one.error(), &Reject::bad_request(wanted));
    assert_eq!(one.id(), "\"features/3/41\"");
}

fn same_bits(got: &[f64], wanted: &[f64]) -> bool {
    let bits = |numbers: &[f64]| {
        numbers
            .iter()
            .map(|number| number.to_bits())
            .collect::<Vec<_>>()
    };
    bits(got) == bits(wanted)
}

#[test]
fn one_row_in_any_key_order() {
    for text in [
        r#"{"id":"r1","model":"people","features":[1,-2.5,null],"priority":3,"timeout_ms":50}"#,
        r#"{"timeout_ms":50,"priority":3,"features":[1,-2.5,null],"model":"people","id":"r1"}"#,
    ] {
        let one = body(text);
        let work = one.work();
        assert_eq!(
            (one.id(), work.model, work.rows, work.many),
            ("\"r1\"", PEOPLE, 1, false)
        );
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
    let one =
        body(r#"{"features":[18446744073709551616,-9007199254740993,1.7976931348623157e308]}"#);
    assert!(same_bits(
        one.rows(),
        &[
            18_446_744_073_709_551_616.0,
            -9_007_199_254_740_992.0,
            f64::MAX
        ]
    ));
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
    assert!(same_bits(
        one.rows(),
        &[f64::NAN, 2.0, f64::NAN, 1.0, f64::NAN, 3.0]
    ));
}

#[test]
fn the_model_may_come_after_the_names() {
    let one = body(r#"{"features":{"f27":27,"f0":0},"model":"higgs"}"#);
    assert_eq!((one.work().model, one.rows().len()), (HIGGS, 28));
    assert_eq!(
        (one.rows()[0].to_bits(), one.rows()[27].to_bits()),
        (0, 27f64.to_bits())
    );
}

#[test]
fn a_wrong_value_is_named_by_its_place() {
    bad(
        r#"{"features":[1,2,3,"abc"],"id":"r1"}"#,
        r#"features[3]: got "abc", wants a number or null"#,
    );
    bad(
        r#"{"features":[[1],[1,2,3,"abc"]],"id":"r1"}"#,
        r#"features[1][3]: got "abc", wants a number or null"#,
    );
    bad(
        r#"{"features":{"age":"x"},"id":"r1"}"#,
        r#"features["age"]: got "x", wants a number or null"#,
    );
    bad(
        r#"{"features":[{},{"age":[]}],"id":"r1"}"#,
        "features[0]: got an empty object, wants one feature or more",
    );
    bad(
        r#"{"features":[{"age":1},{"age":[]}],"id":"r1"}"#,
        r#"features[1]["age"]: got an array, wants a number or null"#,
    );
    bad(
        r#"{"features":[true,"abc"],"id":"r1"}"#,
        "features[0]: got true, wants a number or null",
    );
    bad(
        r#"{"features":[1,[2]],"id":"r1"}"#,
        "features[1]: got an array, wants a number or null",
    );
    bad(
        r#"{"features":[1,{"age":2}],"id":"r1"}"#,
        "features[1]: got an object, wants a number or null",
    );
    bad(
        r#"{"features":[[1],2],"id":"r1"}"#,
        "features[1]: got 2, wants a row of numbers, as the rows before it",
    );
    bad(
        r#"{"features":[[1],null],"id":"r1"}"#,
        "features[1]: got null, wants a row of numbers, as the rows before it",
    );
    bad(
        r#"{"features":[{"age":1},[1]],"id":"r1"}"#,
        "features[1]: got an array, wants an object by feature name, as the rows before it",
    );
    bad(
        r#"{"features":[[[1]]],"id":"r1"}"#,
        "features[0][0]: got an array, wants a number or null",
    );
    for (value, got) in [
        ("null", "null"),
        ("3", "3"),
        ("3.5", "3.5"),
        ("\"a\"", "\"a\""),
        ("false", "false"),
    ] {
        bad(
            &format!(r#"{{"features":{value},"id":"r1"}}"#),
            &format!(
                "features: got {got}, wants a row of numbers, rows, or an object by feature name"
            ),
        );
    }
    bad(
        r#"{"id":"r1"}"#,
        "features: missing, wants a row of numbers, rows, or an object by feature name",
    );
}

#[test]
fn a_wrong_width_names_the_model() {
    let numbers = |count: usize| vec!["1"; count].join(",");
    let text = format!(
        r#"{{"id":"r1","model":"higgs","features":[{}]}}"#,
        numbers(27)
    );
    bad(&text, "features: got 27 values, model higgs wants 28");
    let (full, short) = (numbers(28), numbers(27));
    let text =
        format!(r#"{{"id":"r1","model":"higgs","features":[[{full}],[{full}],[{short}],[]]}}"#);
    bad(&text, "features[2]: got 27 values, model higgs wants 28");
    bad(
        r#"{"id":"r1","features":[[1,2],[1,2,3]]}"#,
        "features[0]: got 2 values, model people wants 3",
    );
    bad(
        r#"{"id":"r1","features":[]}"#,
        "features: got 0 values, model people wants 3",
    );
    bad(
        r#"{"id":"r1","features":[[]]}"#,
        "features[0]: got 0 values, model people wants 3",
    );
    bad(
        r#"{"id":"r1","features":{}}"#,
        "features: got an empty object, wants one feature or more",
    );
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
    bad(
        r#"{"id":"r1","features":{"age":null,"age":1}}"#,
        r#"features["age"]: is there twice"#,
    );
    bad(
        r#"{"id":"r1","features":[1,2,3],"features":[1,2,3]}"#,
        "field \"features\" is there twice",
    );
    bad(
        r#"{"id":"r1","model":"higgs","model":null,"features":[1]}"#,
        "field \"model\" is there twice",
    );
    nameless(
        br#"{"id":"a","id":"b","features":[1,2,3]}"#,
        "field \"id\" is there twice",
    );
    bad(
        r#"{"feature":[1],"id":"r1"}"#,
        "unknown field \"feature\": did you mean \"features\"? known fields: id, model, features, priority, timeout_ms",
    );
}

#[test]
fn what_is_not_json_still_finds_its_id() {
    bad(
        r#"{"features":[1,NaN],"id":"r1"}"#,
        "features[1]: got NaN, which is not JSON; null is the missing value",
    );
    bad(
        r#"{"features":[nan],"id":"r1"}"#,
        "features[0]: got nan, which is not JSON; null is the missing value",
    );
    for name in ["Infinity", "-Infinity", "inf", "-inf"] {
        bad(
            &format!("{{\"features\":\n[[1],[2,{name}]],\"id\":\"r1\"}}"),
            &format!(
                "features[1][1]: got {name}, which is not JSON: Infinity is not accepted, null is the missing value"
            ),
        );
    }
    for number in [
        "1e999",
        "-1E+999",
        "1e99999999999",
        "123456789012345678901234567890.5e999",
    ] {
        bad(
            &format!(r#"{{"features":{{"age":{number}}},"id":"r1"}}"#),
            &format!(
                "features[\"age\"]: got {number}, which is out of range: Infinity is not accepted"
            ),
        );
    }
    let huge = "9".repeat(400);
    bad(
        &format!(r#"{{"features":[{huge}],"id":"r1"}}"#),
        &format!(
            "features[0]: got {}…, which is out of range: Infinity is not accepted",
            "9".repeat(39)
        ),
    );
    bad(
        r#"{"timeout_ms":1e999,"id":"r1"}"#,
        "timeout_ms: got 1e999, which is out of range: Infinity is not accepted",
    );
    bad(
        r#"{"id":"r1","features":[1,2,3]} x"#,
        "the payload is not JSON: trailing characters at line 1 column 32",
    );
    bad(
        r#"{"id":"r1","features":[1,2"#,
        "the payload is not JSON: EOF while parsing a list at line 1 column 26",
    );
    nameless(
        b"hello",
        "the payload is not JSON: expected value at line 1 column 1",
    );
    nameless(b"", "the payload is empty, wants a JSON object");
    nameless(b" \n", "the payload is empty, wants a JSON object");
    nameless(
        b"{\"id\":\"\xff\",\"features\":[1,2,3]}",
        "the payload is not UTF-8 at byte 7",
    );
    nameless(
        b"{\"features\":{\"\xe4\":1}}",
        "the payload is not UTF-8 at byte 14",
    );
    for (text, got) in [
        ("[1,2,3]", "an array"),
        ("7", "7"),
        ("null", "null"),
        ("\"a\"", "\"a\""),
        ("true", "true"),
    ] {
        let wanted = format!("the payload: got {got}, wants a JSON object with \"features\"");
        nameless(text.as_bytes(), &wanted);
    }
}

#[test]
fn nesting_is_bounded_and_so_is_the_message() {
    let open = "[".repeat(450_000);
    let close = "]".repeat(450_000);
    bad(
        &format!(r#"{{"features":{open}{close},"id":"r1"}}"#),
        "features[0][0]: nested deeper than 127 levels",
    );
    nameless(
        format!("{open}{close}").as_bytes(),
        "the payload: nested deeper than 127 levels",
    );
    nameless(
        open.as_bytes(),
        "the payload: nested deeper than 127 levels",
    );
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
        assert!(
            one.error().message.chars().count() <= 300,
            "{}",
            one.error()
        );
    }
    let wanted = format!(
        "features[0]: got \"{}…\", wants a number or null",
        "y".repeat(39)
    );
    bad(
        &format!(r#"{{"features":["{}"],"id":"r1"}}"#, "y".repeat(500)),
        &wanted,
    );
}

#[test]
fn ids() {
    for (id, wanted) in [
        (r#""""#, r#""""#),
        ("7", "7"),
        ("-7", "-7"),
        ("18446744073709551615", "18446744073709551615"),
        (r#""a\"b\u00e4\n""#, "\"a\\\"bä\\n\""),
    ] {
        assert_eq!(
            body(&format!(r#"{{"id":{id},"features":[1,2,3]}}"#)).id(),
            wanted
        );
    }
    let longest = "x".repeat(1_024);
    assert!(
        body(&format!(r#"{{"id":"{longest}","features":[1,2,3]}}"#))
            .request()
            .work
            .is_ok()
    );
    for (id, got) in [
        (format!("\"{longest}x\""), "1025 bytes, wants 1024 at most"),
        ("1.0".into(), "1.0, wants a string or an integer"),
        ("true".into(), "true, wants a string or an integer"),
        ("[1]".into(), "an array, wants a string or an integer"),
    ] {
        nameless(
            format!(r#"{{"id":{id},"features":[1,2,3]}}"#).as_bytes(),
            &format!("id: got {got}"),
        );
    }
}

#[test]
fn the_id_defaults_to_the_key_then_to_the_place() {
    let text = br#"{"id":null,"features":[1,2,3]}"#;
    let long = vec![b'k'; 1_025];
    for (key, wanted) in [
        (Some(&b"k\"1"[..]), r#""k\"1""#),
        (Some(b""), "\"features/3/41\""),
        (Some(b"\xff"), "\"features/3/41\""),
        (Some(&long), "\"features/3/41\""),
        (None, "\"features/3/41\""),
    ] {
        let one = One::decode(
            &route(),
            &Message {
                key,
                ..message(Some(text))
            },
        );
        assert_eq!(one.id(), wanted);
        assert_eq!(one.request().key.map(|key| one.0.bytes(key)), key);
    }
}

#[test]
fn models_by_header_body_and_route() {
    let text = r#"{"features":[1,2,3],"model":"people","id":"r1"}"#;
    let one = with_headers(text, &[("forebay-model", Some(b"higgs"))]);
    assert_eq!(
        one.error().message,
        "features: got 3 values, model higgs wants 28"
    );
    let one = with_headers(text, &[("forebay-model", Some(b"peple"))]);
    let wanted = "header forebay-model: no model \"peple\" is loaded; loaded: people, higgs";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
    let one = body(r#"{"features":[1,2,3],"model":"higs"}"#);
    let wanted = "model: no model \"higs\" is loaded; loaded: higgs, people";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
    bad(
        r#"{"features":[1,2,3],"model":7,"id":"r1"}"#,
        "model: got 7, wants a model's name",
    );
    assert_eq!(
        with_headers(r#"{"features":[1,2,3]}"#, &[("forebay-model", None)])
            .work()
            .model,
        PEOPLE
    );

    let none = RouteDecoder {
        model: None,
        ..route()
    };
    let one = One::decode(&none, &message(Some(br#"{"features":[1,2,3]}"#)));
    let wanted = "model: missing, and the route has no default; loaded: higgs, people";
    assert_eq!(one.error(), &Reject::bad_request(wanted));
    let away = RouteDecoder {
        model: Some(ModelId(5)),
        ..route()
    };
    let one = One::decode(&away, &message(Some(br#"{"features":[1,2,3]}"#)));
    let wanted = "model: the route's model is not loaded; loaded: higgs, people";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
}

#[test]
fn priorities() {
    let asked = |priority: &str| body(&format!(r#"{{"features":[1,2,3],"priority":{priority}}}"#));
    for (priority, wanted) in [("0", 1), ("1", 1), ("5", 5), ("null", 1)] {
        assert_eq!(asked(priority).work().priority.get(), wanted);
    }
    for priority in [
        "6",
        "9999",
        "-1",
        "1.0",
        "\"2\"",
        "true",
        "18446744073709551615",
        "256",
    ] {
        let wanted = format!(
            "priority: got {priority}, wants a whole number from 0 to 5 (0 is the model's default, 1 the highest level)"
        );
        assert_eq!(asked(priority).error(), &Reject::bad_request(wanted));
    }
    let text = r#"{"features":[1,2,3],"priority":9999}"#;
    assert_eq!(
        with_headers(text, &[("forebay-priority", Some(b"4"))])
            .work()
            .priority
            .get(),
        4
    );
    for (value, got) in [
        (&b"x"[..], "\"x\""),
        (b"", "\"\""),
        (b"6", "\"6\""),
        (b"\xff", "\"\u{fffd}\""),
    ] {
        let one = with_headers(text, &[("forebay-priority", Some(value))]);
        let wanted = format!(
            "header forebay-priority: got {got}, wants a whole number from 0 to 5 (0 is the model's default, 1 the highest level)"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

#[test]
fn timeouts_only_shorten() {
    let wait = |one: &One| one.work().deadline.map(|deadline| deadline - *ARRIVED);
    let asked = |millis: &str| body(&format!(r#"{{"features":[1,2,3],"timeout_ms":{millis}}}"#));
    for (millis, wanted_us) in [
        ("50", 50_000),
        ("0.5", 500),
        ("0", 100_000),
        ("-0.0", 100_000),
        ("101", 100_000),
        ("1e300", 100_000),
    ] {
        assert_eq!(
            wait(&asked(millis)),
            Some(Duration::from_micros(wanted_us)),
            "{millis}"
        );
    }
    for (millis, got) in [
        ("-1", "-1"),
        ("-0.5", "-0.5"),
        ("\"5\"", "\"5\""),
        ("true", "true"),
    ] {
        let wanted =
            format!("timeout_ms: got {got}, wants a number of milliseconds, 0 (none) or more");
        assert_eq!(asked(millis).error(), &Reject::bad_request(wanted));
    }
    let higgs = |millis: &str| {
        let features = vec!["1"; 28].join(",");
        body(&format!(
            r#"{{"features":[{features}],"model":"higgs","timeout_ms":{millis}}}"#
        ))
    };
    assert_eq!(wait(&higgs("250")), Some(Duration::from_millis(250)));
    assert_eq!((wait(&higgs("0")), wait(&higgs("1e300"))), (None, None));

    let text = r#"{"features":[1,2,3],"timeout_ms":-7}"#;
    let one = with_headers(text, &[("forebay-timeout-ms", Some(b"20.5"))]);
    assert_eq!(wait(&one), Some(Duration::from_micros(20_500)));
    for value in ["NaN", "inf", "-1", "", "5ms"] {
        let one = with_headers(text, &[("forebay-timeout-ms", Some(value.as_bytes()))]);
        let wanted = format!(
            "header forebay-timeout-ms: got \"{value}\", wants a number of milliseconds, 0 (none) or more"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

#[test]
fn a_deadline_may_count_from_the_timestamp() {
    let route = RouteDecoder {
        deadline_from: DeadlineFrom::Timestamp,
        ..route()
    };
    let left_ms = |timestamp_ms| {
        let one = One::decode(
            &route,
            &Message {
                timestamp_ms,
                ..message(Some(br#"{"features":[1,2,3]}"#))
            },
        );
        let deadline = one.work().deadline.unwrap();
        match deadline.checked_duration_since(*ARRIVED) {
            Some(left) => i128::try_from(left.as_millis()).unwrap(),
            None => -i128::try_from((*ARRIVED - deadline).as_millis()).unwrap(),
        }
    };
    assert_eq!(left_ms(Some(NOW_MS - 30)), 70);
    assert_eq!(left_ms(Some(NOW_MS - 130)), -30);
    for arrival in [
        None,
        Some(-1),
        Some(i64::MIN),
        Some(NOW_MS + 5_000),
        Some(i64::MAX),
    ] {
        assert_eq!(left_ms(arrival), 100);
    }
    assert!(
        left_ms(Some(0)) <= 0,
        "long past, however far the clock counts back"
    );
}

#[test]
fn content_types() {
    let text = r#"{"features":[1,2,3],"id":"r1"}"#;
    for good in [
        "",
        "application/json",
        "Application/JSON ; charset=utf-8",
        "text/json",
        "application/vnd.x+json",
    ] {
        let one = with_headers(text, &[("content-type", Some(good.as_bytes()))]);
        assert!(one.request().work.is_ok(), "{good}");
    }
    assert!(
        with_headers(text, &[("content-type", None)])
            .request()
            .work
            .is_ok()
    );
    for wrong in ["application/avro", "json", "application/jsonx", "ä+jso"] {
        let one = with_headers(text, &[("content-type", Some(wrong.as_bytes()))]);
        let wanted = format!(
            "header content-type: got \"{wrong}\", this version reads JSON only (application/json)"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

#[test]
fn tombstones_and_large_records() {
    let one = One::decode(&route(), &message(None));
    let wanted = "the record is a tombstone (it has no value), wants a JSON object; \
                  `compacted = true` on the route skips tombstones";
    assert_eq!(one.error(), &Reject::bad_request(wanted));

    let mut chunk = Chunk::default();
    let compacted = RouteDecoder {
        compacted: true,
        ..route()
    };
    let headers = [("correlation_id", Some(&b"c"[..]))];
    let tombstone = Message {
        headers: &headers,
        key: Some(b"k"),
        ..message(None)
    };
    assert_eq!(
        compacted.decode(&tombstone, received(), &catalog(), &mut chunk),
        Decoded::Skipped
    );
    assert!(chunk.requests().is_empty() && chunk.text_mark() == 0);

    let small = RouteDecoder {
        record_bytes_max: 10,
        ..route()
    };
    let one = One::decode(&small, &message(Some(br#"{"id":"r1"}"#)));
    let wanted = "the payload has 11 bytes, the route's record_bytes_max is 10";
    assert_eq!(one.error(), &Reject::new(ErrorCode::TooLarge, wanted));
}

#[test]
fn many_short_objects_may_not_become_a_huge_matrix() {
    let small = RouteDecoder {
        record_bytes_max: 400,
        ..route()
    };
    let rows = [r#"{"f1":1}"#; 9].join(",");
    let text = format!(r#"{{"model":"higgs","features":[{rows}]}}"#);
    let one = One::decode(&small, &message(Some(text.as_bytes())));
    let wanted = "features: 9 rows of 28 values are more than the 200 that a record may hold; send fewer rows a record";
    assert_eq!(one.error(), &Reject::new(ErrorCode::TooLarge, wanted));
    let one = One::decode(
        &RouteDecoder {
            record_bytes_max: 504,
            ..small
        },
        &message(Some(text.as_bytes())),
    );
    assert_eq!(one.work().rows, 9);
}

const GOOD: &str = r#"{"features":[1,2,3],"id":"r1"}"#;

#[test]
fn reply_addresses_of_three_conventions() {
    let spring = [
        ("kafka_replyTopic", Some(&b"replies-a"[..])),
        ("kafka_replyPartition", Some(&[0, 0, 1, 2][..])),
        ("kafka_correlationId", Some(&[0, 0xff][..])),
    ];
    let one = with_headers(GOOD, &spring);
    assert_eq!(one.address(), Some(("replies-a", Some(258))));
    assert_eq!(echoed(&one), [("kafka_correlationId", &[0, 0xff][..])]);

    let quarkus = [
        ("REPLY_TOPIC", Some(&b"replies-b"[..])),
        ("REPLY_PARTITION", Some(&[0, 0, 0, 5][..])),
        ("REPLY_CORRELATION_ID", Some(&b"c"[..])),
    ];
    let one = with_headers(GOOD, &quarkus);
    assert_eq!(one.address(), Some(("replies-b", Some(5))));
    assert_eq!(echoed(&one), [("REPLY_CORRELATION_ID", &b"c"[..])]);

    let faststream = [
        ("correlation_id", Some(&b"c"[..])),
        ("reply_to", Some(&b"replies-c"[..])),
    ];
    let one = with_headers(GOOD, &faststream);
    assert_eq!(one.address(), Some(("replies-c", None)));
    assert_eq!(echoed(&one), [("correlation_id", &b"c"[..])]);

    // The route's own topic is always allowed; a partition alone is one of that topic.
    assert_eq!(
        with_headers(GOOD, &[("reply_to", Some(b"scores"))]).address(),
        None
    );
    let one = with_headers(GOOD, &[("kafka_replyPartition", Some(&[0, 0, 0, 1]))]);
    assert_eq!(one.address(), Some(("scores", Some(1))));
    // The first convention that names a topic counts, with its own partition.
    let mixed = [
        ("reply_to", Some(&b"replies-c"[..])),
        ("kafka_replyPartition", Some(&[0, 0, 0, 1][..])),
    ];
    assert_eq!(
        with_headers(GOOD, &mixed).address(),
        Some(("replies-c", None))
    );
}

fn echoed(one: &One) -> Vec<(&'static str, &[u8])> {
    one.0
        .echo(one.request())
        .iter()
        .map(|header| (header.name, one.0.bytes(header.value)))
        .collect()
}

#[test]
fn a_bad_address_is_rejected_to_the_routes_topic() {
    for (header, topic, shown) in [
        ("kafka_replyTopic", &b"secrets"[..], "secrets"),
        ("REPLY_TOPIC", b"secrets", "secrets"),
        ("reply_to", b"", ""),
        ("reply_to", b"\xff", "\u{fffd}"),
        ("reply_to", b"replies-a b", "replies-a b"),
    ] {
        let one = with_headers(
            GOOD,
            &[(header, Some(topic)), ("correlation_id", Some(b"c"))],
        );
        let wanted = format!(
            "header {header}: no replies may go to topic \"{shown}\"; the route's reply_topics_allowed does not list it"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
        assert_eq!((one.address(), one.id()), (None, "\"r1\""));
        assert_eq!(echoed(&one), [("correlation_id", &b"c"[..])]);
    }
    for (partition, got) in [
        (&[0, 0, 1][..], "3 bytes"),
        (&[], "0 bytes"),
        (&[0xff; 4], "-1"),
    ] {
        let headers = [
            ("REPLY_TOPIC", Some(&b"replies-a"[..])),
            ("REPLY_PARTITION", Some(partition)),
        ];
        let one = with_headers(GOOD, &headers);
        let wanted =
            format!("header REPLY_PARTITION: got {got}, wants a 4-byte big-endian int, 0 or more");
        assert_eq!(one.error(), &Reject::bad_request(wanted));
        assert_eq!((one.address(), one.id()), (None, "\"r1\""));
    }
    // A bad body goes to the good address.
    let one = with_headers(
        "{}",
        &[
            ("reply_to", Some(b"replies-c")),
            ("traceparent", Some(b"00-1")),
        ],
    );
    assert!(one.request().work.is_err());
    assert_eq!(one.address(), Some(("replies-c", None)));
    assert_eq!(echoed(&one), [("traceparent", &b"00-1"[..])]);
}

#[test]
fn headers_last_counts_and_others_are_dropped() {
    let headers = [
        ("tracestate", Some(&b"s"[..])),
        ("traceparent", Some(&b"old"[..])),
        ("traceparent", Some(&b"new"[..])),
        ("traceparent", None),
        ("Correlation_Id", Some(&b"x"[..])),
        ("anything", Some(&b"x"[..])),
        ("REPLY_TOPIC", None),
    ];
    let one = with_headers(GOOD, &headers);
    assert_eq!(
        echoed(&one),
        [("traceparent", &b"new"[..]), ("tracestate", &b"s"[..])]
    );
    assert_eq!(one.address(), None);
}

#[test]
fn neighbours_in_a_chunk_do_not_touch() {
    let mut chunk = Chunk::default();
    let texts = [
        r#"{"id":1,"features":[1,2,3]}"#,
        r#"{"id":2,"features":[1,2,"x"]}"#,
        r#"{"id":3,"features":{"height":6,"wage":5,"age":4}}"#,
        r#"{"id":4,"features":{"height":6,"nope":5}}"#,
        r#"{"id":5,"features":[[7,8,9]]}"#,
    ];
    for (index, text) in texts.iter().enumerate() {
        let value = [u8::try_from(index).unwrap()];
        let headers = [("correlation_id", Some(&value[..]))];
        let message = Message {
            headers: &headers[..index % 2],
            ..message(Some(text.as_bytes()))
        };
        route().decode(&message, received(), &catalog(), &mut chunk);
    }
    let requests = chunk.requests();
    let rows = |index: usize| {
        requests[index]
            .work
            .as_ref()
            .ok()
            .map(|work| chunk.rows(work))
    };
    assert_eq!(rows(0), Some(&[1.0, 2.0, 3.0][..]));
    assert_eq!(rows(1), None);
    assert_eq!(rows(2), Some(&[4.0, 5.0, 6.0][..]));
    assert_eq!(rows(3), None);
    assert_eq!(rows(4), Some(&[7.0, 8.0, 9.0][..]));
    for (index, request) in requests.iter().enumerate() {
        assert_eq!(chunk.str(request.id_json), (index + 1).to_string());
        assert_eq!(chunk.echo(request).len(), index % 2);
    }
    assert_eq!(chunk.features_mut().len(), 9);
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
    assert!(serde_json::from_str::<RequestBody>(r#"{"features":[1],"prio":1}"#).is_err());
    let schema = serde_json::to_value(request_schema()).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["features"]));
    assert_eq!(schema["additionalProperties"], serde_json::json!(false));
    assert_eq!(
        schema["properties"]["timeout_ms"]["minimum"],
        serde_json::json!(0)
    );
}
