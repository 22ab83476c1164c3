//! What a readable request asks for: id, model, priority, timeout, and the limits of a record.

use super::*;

#[test]
fn ids() {
    for (id, wanted) in [
        (r#""""#, r#""""#),
        ("7", "7"),
        ("-7", "-7"),
        ("18446744073709551615", "18446744073709551615"),
        (r#""a\"b\u00e4\n""#, "\"a\\\"bä\\n\""),
    ] {
        assert_eq!(body(&format!(r#"{{"id":{id},"features":[1,2,3]}}"#)).id(), wanted);
    }
    let longest = "x".repeat(1_024);
    assert!(body(&format!(r#"{{"id":"{longest}","features":[1,2,3]}}"#)).request().work.is_ok());
    for (id, got) in [
        (format!("\"{longest}x\""), "1025 bytes, wants 1024 at most"),
        ("1.0".into(), "1.0, wants a string or an integer"),
        ("true".into(), "true, wants a string or an integer"),
        ("[1]".into(), "an array, wants a string or an integer"),
    ] {
        nameless(format!(r#"{{"id":{id},"features":[1,2,3]}}"#).as_bytes(), &format!("id: got {got}"));
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
        let one = One::decode(&route(), &Message { key, ..message(Some(text)) });
        assert_eq!(one.id(), wanted);
        assert_eq!(one.request().key.map(|key| one.0.bytes(key)), key);
    }
}

#[test]
fn models_by_header_body_and_route() {
    let text = r#"{"features":[1,2,3],"model":"people","id":"r1"}"#;
    let one = with_headers(text, &[("forebay-model", Some(b"higgs"))]);
    assert_eq!(one.error().message, "features: got 3 values, model higgs wants 28");
    let one = with_headers(text, &[("forebay-model", Some(b"peple"))]);
    let wanted = "header forebay-model: no model \"peple\" is loaded; loaded: people, higgs";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
    let one = body(r#"{"features":[1,2,3],"model":"higs"}"#);
    let wanted = "model: no model \"higs\" is loaded; loaded: higgs, people";
    assert_eq!(one.error(), &Reject::new(ErrorCode::UnknownModel, wanted));
    bad(r#"{"features":[1,2,3],"model":7,"id":"r1"}"#, "model: got 7, wants a model's name");
    assert_eq!(with_headers(r#"{"features":[1,2,3]}"#, &[("forebay-model", None)]).work().model, PEOPLE);

    let none = RouteDecoder { model: None, ..route() };
    let one = One::decode(&none, &message(Some(br#"{"features":[1,2,3]}"#)));
    let wanted = "model: missing, and the route has no default; loaded: higgs, people";
    assert_eq!(one.error(), &Reject::bad_request(wanted));
    let away = RouteDecoder { model: Some(ModelId(5)), ..route() };
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
    for priority in ["6", "9999", "-1", "1.0", "\"2\"", "true", "18446744073709551615", "256"] {
        let wanted = format!(
            "priority: got {priority}, wants a whole number from 0 to 5 (0 is the model's default, 1 the highest level)"
        );
        assert_eq!(asked(priority).error(), &Reject::bad_request(wanted));
    }
    let text = r#"{"features":[1,2,3],"priority":9999}"#;
    assert_eq!(with_headers(text, &[("forebay-priority", Some(b"4"))]).work().priority.get(), 4);
    for (value, got) in [(&b"x"[..], "\"x\""), (b"", "\"\""), (b"6", "\"6\""), (b"\xff", "\"\u{fffd}\"")] {
        let one = with_headers(text, &[("forebay-priority", Some(value))]);
        let wanted = format!(
            "header forebay-priority: got {got}, wants a whole number from 0 to 5 (0 is the model's default, 1 the highest level)"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

#[test]
fn retries_are_the_routes() {
    assert_eq!(body(r#"{"features":[1,2,3]}"#).work().retries, 2);
}

#[test]
fn timeouts_only_shorten() {
    let wait = |one: &One| one.work().deadline.map(|deadline| deadline - *ARRIVED);
    let asked = |millis: &str| body(&format!(r#"{{"features":[1,2,3],"timeout_ms":{millis}}}"#));
    for (millis, wanted_us) in
        [("50", 50_000), ("0.5", 500), ("0", 100_000), ("-0.0", 100_000), ("101", 100_000), ("1e300", 100_000)]
    {
        assert_eq!(wait(&asked(millis)), Some(Duration::from_micros(wanted_us)), "{millis}");
    }
    for (millis, got) in [("-1", "-1"), ("-0.5", "-0.5"), ("\"5\"", "\"5\""), ("true", "true")] {
        let wanted = format!("timeout_ms: got {got}, wants a number of milliseconds, 0 (none) or more");
        assert_eq!(asked(millis).error(), &Reject::bad_request(wanted));
    }
    let higgs = |millis: &str| {
        let features = vec!["1"; 28].join(",");
        body(&format!(r#"{{"features":[{features}],"model":"higgs","timeout_ms":{millis}}}"#))
    };
    assert_eq!(wait(&higgs("250")), Some(Duration::from_millis(250)));
    assert_eq!((wait(&higgs("0")), wait(&higgs("1e300"))), (None, None));

    let text = r#"{"features":[1,2,3],"timeout_ms":-7}"#;
    let one = with_headers(text, &[("forebay-timeout-ms", Some(b"20.5"))]);
    assert_eq!(wait(&one), Some(Duration::from_micros(20_500)));
    for value in ["NaN", "inf", "-1", "", "5ms"] {
        let one = with_headers(text, &[("forebay-timeout-ms", Some(value.as_bytes()))]);
        let wanted =
            format!("header forebay-timeout-ms: got \"{value}\", wants a number of milliseconds, 0 (none) or more");
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

#[test]
fn a_deadline_may_count_from_the_timestamp() {
    let route = RouteDecoder { deadline_from: DeadlineFrom::Timestamp, ..route() };
    let left_ms = |timestamp_ms| {
        let one = One::decode(&route, &Message { timestamp_ms, ..message(Some(br#"{"features":[1,2,3]}"#)) });
        let deadline = one.work().deadline.unwrap();
        match deadline.checked_duration_since(*ARRIVED) {
            Some(left) => i128::try_from(left.as_millis()).unwrap(),
            None => -i128::try_from((*ARRIVED - deadline).as_millis()).unwrap(),
        }
    };
    assert_eq!(left_ms(Some(NOW_MS - 30)), 70);
    assert_eq!(left_ms(Some(NOW_MS - 130)), -30);
    for arrival in [None, Some(-1), Some(i64::MIN), Some(NOW_MS + 5_000), Some(i64::MAX)] {
        assert_eq!(left_ms(arrival), 100);
    }
    assert!(left_ms(Some(0)) <= 0, "long past, however far the clock counts back");
}

#[test]
fn tombstones_and_large_records() {
    let one = One::decode(&route(), &message(None));
    let wanted = "the record is a tombstone (it has no value), wants a JSON object; \
                  `compacted = true` on the route skips tombstones";
    assert_eq!(one.error(), &Reject::bad_request(wanted));

    let mut chunk = Chunk::default();
    let compacted = RouteDecoder { compacted: true, ..route() };
    let headers = [("correlation_id", Some(&b"c"[..]))];
    let tombstone = Message { headers: &headers, key: Some(b"k"), ..message(None) };
    assert_eq!(compacted.decode(&tombstone, received(), &catalog(), &mut chunk), Decoded::Skipped);
    assert!(chunk.requests().is_empty() && chunk.text_mark() == 0);

    let small = RouteDecoder { record_bytes_max: 10, ..route() };
    let one = One::decode(&small, &message(Some(br#"{"id":"r1"}"#)));
    let wanted = "the payload has 11 bytes, the route's record_bytes_max is 10";
    assert_eq!(one.error(), &Reject::new(ErrorCode::TooLarge, wanted));
}

#[test]
fn many_short_objects_may_not_become_a_huge_matrix() {
    let small = RouteDecoder { record_bytes_max: 400, ..route() };
    let rows = [r#"{"f1":1}"#; 9].join(",");
    let text = format!(r#"{{"model":"higgs","features":[{rows}]}}"#);
    let one = One::decode(&small, &message(Some(text.as_bytes())));
    let wanted = "features: 9 rows of 28 values are more than the 200 that a record may hold; send fewer rows a record";
    assert_eq!(one.error(), &Reject::new(ErrorCode::TooLarge, wanted));
    let one = One::decode(&RouteDecoder { record_bytes_max: 504, ..small }, &message(Some(text.as_bytes())));
    assert_eq!(one.work().rows, 9);
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
        let message = Message { headers: &headers[..index % 2], ..message(Some(text.as_bytes())) };
        route().decode(&message, received(), &catalog(), &mut chunk);
    }
    let requests = chunk.requests();
    let rows = |index: usize| requests[index].work.as_ref().ok().map(|work| chunk.rows(work));
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
