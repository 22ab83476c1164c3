//! The decoder against a naive reading of the same bytes as a `serde_json::Value`, on random bodies, most of them odd.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const NAMES: [&str; 3] = ["age", "wage", "height"];

/// A request as it was meant.
struct Naive {
    values: Vec<f64>,
    texts: Vec<Option<String>>,
    rows: usize,
    many: bool,
}

/// The rows of a body in the order of the model `people` (or `higgs`, or `visits`), and whether it is a list; `None` for
/// what must be rejected. Written from the wire format, with none of the decoder's own parts.
fn naive(text: &str) -> Option<Naive> {
    if doubled_key(text) {
        return None;
    }
    let Value::Object(body) = serde_json::from_str::<Value>(text).ok()? else {
        return None;
    };
    if body.keys().any(|key| !["id", "model", "features", "priority", "timeout_ms"].contains(&key.as_str())) {
        return None;
    }
    match body.get("id") {
        None | Some(Value::Null) => {}
        Some(Value::String(id)) if id.len() <= 1_024 => {}
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => {}
        _ => return None,
    }
    let names: Vec<String> = match body.get("model") {
        None | Some(Value::Null) => NAMES.map(str::to_owned).to_vec(),
        Some(Value::String(name)) if name == "people" => NAMES.map(str::to_owned).to_vec(),
        Some(Value::String(name)) if name == "higgs" => (0..28).map(|index| format!("f{index}")).collect(),
        Some(Value::String(name)) if name == "visits" => ["age", "city", "count", "plan"].map(str::to_owned).to_vec(),
        _ => return None,
    };
    let levels = [(28, 3), (3, 5), (4, 1)].into_iter().find(|(width, _)| *width == names.len()).unwrap().1;
    match body.get("priority") {
        None | Some(Value::Null) => {}
        Some(level) if level.as_u64().is_some_and(|level| level <= levels) => {}
        _ => return None,
    }
    match body.get("timeout_ms") {
        None | Some(Value::Null) => {}
        Some(millis) if millis.as_f64().is_some_and(|millis| millis >= 0.0) => {}
        _ => return None,
    }
    match body.get("features")? {
        Value::Array(items) if items.first().is_some_and(|item| item.is_array() || item.is_object()) => {
            let list = items[0].is_array();
            let (mut values, mut texts) = (Vec::new(), Vec::new());
            for item in items {
                if item.is_array() != list {
                    return None;
                }
                let row = naive_row(item, &names)?;
                values.extend(row.0);
                texts.extend(row.1);
            }
            Some(Naive { values, texts, rows: items.len(), many: true })
        }
        row => {
            let (values, texts) = naive_row(row, &names)?;
            Some(Naive { values, texts, rows: 1, many: false })
        }
    }
}

fn naive_row(row: &Value, names: &[String]) -> Option<(Vec<f64>, Vec<Option<String>>)> {
    let null = Value::Null;
    let cells: Vec<&Value> = match row {
        Value::Array(cells) if cells.len() == names.len() => cells.iter().collect(),
        Value::Object(cells) if !cells.is_empty() => {
            let mut by_name = BTreeMap::new();
            for (name, value) in cells {
                by_name.insert(names.iter().position(|known| known == name)?, value);
            }
            (0..names.len()).map(|column| by_name.get(&column).copied().unwrap_or(&null)).collect()
        }
        _ => return None,
    };
    let (mut values, mut texts) = (Vec::new(), Vec::new());
    for (name, cell) in names.iter().zip(cells) {
        match (name.as_str(), cell) {
            ("city" | "plan", Value::String(text)) => texts.push(Some(text.clone())),
            ("city" | "plan", Value::Null) => texts.push(None),
            ("city" | "plan", _) => return None,
            ("count", Value::Number(number)) => {
                let number = number.as_f64()?;
                number.to_string().parse::<i32>().ok()?;
                values.push(number);
                continue;
            }
            (_, Value::Null) => {}
            (_, other) => {
                values.push(other.as_f64()?);
                continue;
            }
        }
        values.push(f64::NAN);
    }
    Some((values, texts))
}

/// Whether any object of a JSON text has a key twice, which a `Value` does not tell. The generator writes its keys
/// without escapes, and no string that looks like one.
fn doubled_key(text: &str) -> bool {
    let mut open: Vec<Vec<&str>> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}', '"']) {
        let (found, tail) = rest[at..].split_at(1);
        rest = tail;
        match found {
            "{" => open.push(Vec::new()),
            "}" => {
                open.pop();
            }
            _ => {
                let mut end = 0;
                while !rest[end..].starts_with('"') {
                    end += if rest[end..].starts_with('\\') { 2 } else { 1 };
                    while end < rest.len() && !rest.is_char_boundary(end) {
                        end += 1;
                    }
                    if end >= rest.len() {
                        return false;
                    }
                }
                let string = &rest[..end];
                rest = &rest[end + 1..];
                if rest.trim_start().starts_with(':')
                    && let Some(keys) = open.last_mut()
                {
                    if keys.contains(&string) {
                        return true;
                    }
                    keys.push(string);
                }
            }
        }
    }
    false
}

fn pick(items: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(items).prop_map(str::to_owned)
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => any::<f64>().prop_filter("JSON", |number| number.is_finite()).prop_map(|number| format!("{number:?}")),
        4 => any::<i64>().prop_map(|number| number.to_string()),
        4 => "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?",
        4 => Just("null".to_owned()),
        1 => pick(&["-0", "1e999", "-1e-999", "NaN", "Infinity", "00", "1.", "\"abc\"", "true", "[]", "{}", "[1]", "[[[[1]]]]"]),
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => pick(&["\"\"", "\"a\"", "\"gr\\u00fcn\"", "\"a \\\"b\\\" \\n\"", "\"漢字 😀\"", "\"\\ud83d\\ude00\""]),
        2 => Just("null".to_owned()),
        1 => number(),
    ]
}

fn whole() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (-9_i64..10).prop_map(|number| number.to_string()),
        2 => pick(&["null", "1.0", "-0", "2e3", "2147483647", "-2147483648"]),
        1 => pick(&["0.5", "2147483648", "-2147483649", "1e300", "\"1\""]),
    ]
}

fn row() -> impl Strategy<Value = String> {
    let width = prop_oneof![12 => Just(3_usize), 1 => Just(28), 1 => 0_usize..5];
    let visit = (number(), string(), whole(), string()).prop_map(|(a, b, c, d)| vec![a, b, c, d]);
    let list = width.prop_flat_map(|width| prop::collection::vec(number(), width));
    let name = pick(&["age", "age", "wage", "wage", "height", "height", "f0", "", "agé"]);
    let named = prop::collection::vec((name, number()), 0..4);
    let of_visit = prop_oneof![
        (pick(&["city", "plan"]), string()),
        (Just("count".to_owned()), whole()),
        (pick(&["age", "city", "plan"]), number()),
    ];
    let named_visit = prop::collection::vec(of_visit, 0..4);
    prop_oneof![
        2 => prop_oneof![3 => list.boxed(), 1 => visit.boxed()].prop_map(|cells| format!("[{}]", cells.join(","))),
        1 => prop_oneof![2 => named.boxed(), 1 => named_visit.boxed()].prop_map(|cells| {
            let cells: Vec<_> = cells.into_iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
            format!("{{{}}}", cells.join(" ,"))
        }),
    ]
}

fn features() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => row(),
        3 => prop::collection::vec(row(), 0..4).prop_map(|rows| format!("[{}]", rows.join(", "))),
        1 => number(),
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => features().prop_map(|value| format!("\"features\":{value}")),
        3 => pick(&["\"r1\"", "\"\\u00e4 \\\" \\n\"", "7", "-1", "1.5", "null", "[]", "18446744073709551616"])
            .prop_map(|value| format!("\"id\" : {value}")),
        2 => pick(&["\"people\"", "\"people\"", "\"higgs\"", "\"visits\"", "\"visits\"", "\"p\\u0065ople\"", "\"nope\"", "null", "3"])
            .prop_map(|value| format!("\"model\":{value}")),
        2 => pick(&["0", "1", "3", "5", "6", "-1", "2.0", "null", "\"1\""]).prop_map(|value| format!("\"priority\":{value}")),
        2 => pick(&["0", "1", "0.25", "1e300", "-1", "-0.0", "null", "\"1\""]).prop_map(|value| format!("\"timeout_ms\":{value}")),
        1 => pick(&["\"feature\":[1]", "\"x\":NaN", "\"\":1", "\"id\"", "1:2", "\"x\":{\"a\":[1]}"]),
    ]
}

fn text() -> impl Strategy<Value = String> {
    // Fields after good features, so that many of the bodies are good ones.
    let fields = prop::collection::vec(field(), 0..4);
    let good = prop::option::of(features().prop_map(|value| format!("\"features\":{value}")));
    (good, fields, 0_usize..20, any::<bool>()).prop_map(|(good, fields, odd, late)| {
        let mut fields = fields;
        if let Some(good) = good {
            fields.retain(|field| !field.starts_with("\"features"));
            let at = if late { fields.len() } else { 0 };
            fields.insert(at, good);
        }
        let body = format!("{{{}}}", fields.join(",\n"));
        match odd {
            0 => body.chars().take(body.chars().count() / 2).collect(),
            1 => format!("{body}{body}"),
            2 => format!("[{body}]"),
            _ => body,
        }
    })
}

/// A neighbour before and after, to see that it stays whole.
pub(super) fn decode_between(payload: &[u8]) -> Chunk {
    let mut chunk = Chunk::default();
    let (route, catalog) = (route(), catalog_with_text());
    let neighbour = br#"{"id":"n","features":{"height":3,"age":1}}"#;
    for payload in [&neighbour[..], payload, neighbour] {
        let decoded = route.decode(&message(Some(payload)), received(), &catalog, &mut chunk);
        assert_eq!(decoded, Decoded::Request);
    }
    chunk
}

/// Every request's parts lie in the arenas, and the numbers of the readable ones fill theirs.
pub(super) fn check_arenas(mut chunk: Chunk) {
    assert_eq!(chunk.requests().len(), 3);
    let (mut numbers, mut texts) = (0, 0);
    for request in chunk.requests() {
        let id: Value = serde_json::from_slice(chunk.bytes(request.id_json)).unwrap();
        assert!(id.is_string() || id.is_number());
        match &request.work {
            Ok(work) => {
                let rows = chunk.rows(work);
                let (width, text_width) = [(28, 0), (3, 0), (4, 2)][work.model.0 as usize];
                assert_eq!(rows.len(), work.rows as usize * width);
                assert_eq!(chunk.texts(work).len(), work.rows as usize * text_width);
                numbers += rows.len();
                texts += chunk.texts(work).len();
            }
            Err(reject) => assert!((1..=300).contains(&reject.message.chars().count()), "{reject}"),
        }
    }
    for neighbour in [0, 2] {
        let work = chunk.requests()[neighbour].work.as_ref().unwrap();
        let row = chunk.rows(work);
        assert!(row[0].to_bits() == 1f64.to_bits() && row[1].is_nan() && row[2].to_bits() == 3f64.to_bits());
    }
    assert_eq!(chunk.features_mut().len(), numbers);
    assert_eq!(chunk.texts_mut().len_since(TextMark::default()), texts);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_the_naive_reading_reads(text in text()) {
        let chunk = decode_between(text.as_bytes());
        let request = &chunk.requests()[1];
        match (naive(&text), &request.work) {
            (Some(Naive { values, texts, rows, many }), Ok(work)) => {
                prop_assert_eq!((work.rows as usize, work.many), (rows, many));
                let cells: Vec<Option<String>> = chunk.texts(work).iter().map(|text| text.map(str::to_owned)).collect();
                prop_assert_eq!(cells, texts, "{}", text);
                let got: Vec<u64> = chunk.rows(work).iter().map(|value| value.to_bits()).collect();
                let wanted: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
                prop_assert_eq!(got, wanted, "{}", text);
            }
            (None, Err(_)) => {}
            (wanted, got) => prop_assert!(false, "{text}\nnaive: {:?}\ndecoded: {got:?}", wanted.map(|wanted| wanted.values)),
        }
        check_arenas(chunk);
    }

    #[test]
    fn no_bytes_make_it_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        check_arenas(decode_between(&payload));
    }

    #[test]
    fn no_damaged_body_makes_it_panic(
        text in text(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"\"\\{}[]:,1-eN"[..])], 0..3),
        cut in 0_usize..4,
    ) {
        let mut payload = text.into_bytes();
        let at = at.index(payload.len());
        let end = (at + cut).min(payload.len());
        payload.splice(at..end, bytes);
        check_arenas(decode_between(&payload));
    }

    #[test]
    fn no_header_makes_it_panic(
        headers in prop::collection::vec((
            prop::sample::select(&[
                "content-type", "forebay-model", "forebay-priority", "forebay-timeout-ms", "kafka_replyTopic",
                "kafka_replyPartition", "REPLY_TOPIC", "REPLY_PARTITION", "reply_to", "correlation_id", "traceparent",
            ][..]),
            prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..8),
                prop::sample::select(&["replies-x", "application/json", "1", "people", "9e99", "scores"][..])
                    .prop_map(|value| value.as_bytes().to_vec()),
            ]),
        ), 0..6),
    ) {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_deref())).collect();
        let message = Message { headers: &headers, ..message(Some(br#"{"features":[1,2,3]}"#)) };
        let mut chunk = Chunk::default();
        route().decode(&message, received(), &catalog(), &mut chunk);
        let request = &chunk.requests()[0];
        if let ReplyAddress::Named { topic, .. } = request.address {
            let topic = chunk.str(topic);
            prop_assert!(topic == "scores" || topic.starts_with("replies-"));
        }
        for echo in chunk.echo(request) {
            prop_assert!(headers.contains(&(echo.name, Some(chunk.bytes(echo.value)))));
        }
    }
}
