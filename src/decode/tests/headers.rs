//! What the headers say: content type, reply address, and what is carried over.

use super::*;

const GOOD: &str = r#"{"features":[1,2,3],"id":"r1"}"#;

#[test]
fn content_types() {
    let text = r#"{"features":[1,2,3],"id":"r1"}"#;
    for good in ["", "application/json", "Application/JSON ; charset=utf-8", "text/json", "application/vnd.x+json"] {
        let one = with_headers(text, &[("content-type", Some(good.as_bytes()))]);
        assert!(one.request().work.is_ok(), "{good}");
    }
    assert!(with_headers(text, &[("content-type", None)]).request().work.is_ok());
    for wrong in ["application/avro", "json", "application/jsonx", "ä+jso"] {
        let one = with_headers(text, &[("content-type", Some(wrong.as_bytes()))]);
        let wanted = format!("header content-type: got \"{wrong}\", this version reads JSON only (application/json)");
        assert_eq!(one.error(), &Reject::bad_request(wanted));
    }
}

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

    let faststream = [("correlation_id", Some(&b"c"[..])), ("reply_to", Some(&b"replies-c"[..]))];
    let one = with_headers(GOOD, &faststream);
    assert_eq!(one.address(), Some(("replies-c", None)));
    assert_eq!(echoed(&one), [("correlation_id", &b"c"[..])]);

    // The route's own topic is always allowed; a partition alone is one of that topic.
    assert_eq!(with_headers(GOOD, &[("reply_to", Some(b"scores"))]).address(), None);
    let one = with_headers(GOOD, &[("kafka_replyPartition", Some(&[0, 0, 0, 1]))]);
    assert_eq!(one.address(), Some(("scores", Some(1))));
    // The first convention that names a topic counts, with its own partition.
    let mixed = [("reply_to", Some(&b"replies-c"[..])), ("kafka_replyPartition", Some(&[0, 0, 0, 1][..]))];
    assert_eq!(with_headers(GOOD, &mixed).address(), Some(("replies-c", None)));
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
        let one = with_headers(GOOD, &[(header, Some(topic)), ("correlation_id", Some(b"c"))]);
        let wanted = format!(
            "header {header}: no replies may go to topic \"{shown}\"; the route's reply_topics_allowed does not list it"
        );
        assert_eq!(one.error(), &Reject::bad_request(wanted));
        assert_eq!((one.address(), one.id()), (None, "\"r1\""));
        assert_eq!(echoed(&one), [("correlation_id", &b"c"[..])]);
    }
    for (partition, got) in [(&[0, 0, 1][..], "3 bytes"), (&[], "0 bytes"), (&[0xff; 4], "-1")] {
        let headers = [("REPLY_TOPIC", Some(&b"replies-a"[..])), ("REPLY_PARTITION", Some(partition))];
        let one = with_headers(GOOD, &headers);
        let wanted = format!("header REPLY_PARTITION: got {got}, wants a 4-byte big-endian int, 0 or more");
        assert_eq!(one.error(), &Reject::bad_request(wanted));
        assert_eq!((one.address(), one.id()), (None, "\"r1\""));
    }
    // A bad body goes to the good address.
    let one = with_headers("{}", &[("reply_to", Some(b"replies-c")), ("traceparent", Some(b"00-1"))]);
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
    assert_eq!(echoed(&one), [("traceparent", &b"new"[..]), ("tracestate", &b"s"[..])]);
    assert_eq!(one.address(), None);
}

fn echoed(one: &One) -> Vec<(&'static str, &[u8])> {
    one.0.echo(one.request()).iter().map(|header| (header.name, one.0.bytes(header.value))).collect()
}
