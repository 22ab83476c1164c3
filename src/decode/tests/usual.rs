//! The scanner against `json`, which reads everything: what the scanner takes, `json` takes with the same values.

use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Whether the scanner takes a payload. If so, `json` must give the same; if not, no number may stay behind.
fn taken(payload: &[u8]) -> Result<bool, TestCaseError> {
    let mut scanned = Chunk::default();
    scanned.features_mut().push(7.0);
    let Some(body) = scan::read(payload, scanned.features_mut()) else {
        prop_assert_eq!(scanned.features_mut().as_slice(), &[7.0]);
        return Ok(false);
    };
    let mut read = Chunk::default();
    read.features_mut().push(7.0);
    let wanted = json::read(payload, &mut read);
    prop_assert_eq!(&wanted.fault, &None);
    prop_assert!(body.fault.is_none() && scanned.text_mut().is_empty());
    prop_assert!(same_bits(scanned.features_mut(), read.features_mut()));
    // In words, because -0.0 equals 0.0.
    let rest = |body: &Body<'_>| format!("{:?}", (&body.model, &body.priority, &body.timeout, &body.layout));
    prop_assert_eq!(rest(&body), rest(&wanted));
    let mut written = |id: Option<Id<'_>>| id.map(|id| id.write(&mut read)).map(|span| read.bytes(span).to_vec());
    prop_assert_eq!(written(body.id), written(wanted.id));
    Ok(true)
}

#[track_caller]
fn takes(payload: &str) -> bool {
    taken(payload.as_bytes()).unwrap()
}

#[test]
fn takes_the_usual_and_leaves_the_rest() {
    for usual in [
        r#"{"id":"r1","features":[1,-2.5,null]}"#,
        " {\r\n\t\"features\" : [ 1e5 , 0 ] , \"id\" : -12 } \n",
        r#"{"timeout_ms":2.5e1,"priority":0,"model":"m","features":[-0,0.0,-0.0e-9]}"#,
        r#"{"features":[0.1000000000000000055511151231257827,5e-324,2e-999,0e99999999999,1e22,1e23]}"#,
        r#"{"features":[18446744073709551615,18446744073709551616,9999999999999999999,9007199254740993]}"#,
        r#"{"id":"näher als 8 Bytes 😀","features":[1]}"#,
        r#"{"id":999999999999999999}"#,
        "{\"id\":\"\u{7f}\"}",
    ] {
        assert!(takes(usual), "{usual}");
    }
    for rest in [
        "",
        "{",
        "{}",
        "[]",
        r#"{"features":[]}"#,
        r#"{"features":[[1]]}"#,
        r#"{"features":{"age":1}}"#,
        r#"{"features":[1],"features":[1]}"#,
        r#"{"features":[1],"id":null}"#,
        r#"{"features":[1],"id":"a\u0062"}"#,
        r#"{"features":[1],"id":1000000000000000000}"#,
        r#"{"features":[1],"id":-0}"#,
        r#"{"features":[1],"id":1.0}"#,
        r#"{"features":[1],"priority":1.0}"#,
        r#"{"features":[1],"timeout_ms":"1"}"#,
        r#"{"features":[1],"x":1}"#,
        r#"{"\u0069d":1}"#,
        r#"{"features":[1]}x"#,
        r#"{"features":[1],}"#,
        r#"{"features":[1,]}"#,
        r#"{"features":[nul]}"#,
        "{\"id\":\"a\nb\"}",
        "{\"id\":\"12345678\u{1}\"}",
        "{\"features\":[1]}\0",
        "\u{feff}{\"features\":[1]}",
    ] {
        assert!(!takes(rest), "{rest}");
    }
    for number in
        ["01", "-01", "+1", ".5", "1.", "-", "1e", "1e+", "1.e1", "0x1", "1e999", "-1e999", "1_0", "NaN", "--1"]
    {
        assert!(!takes(&format!(r#"{{"features":[{number}]}}"#)), "{number}");
    }
    assert!(!taken(b"{\"id\":\"\xff\",\"features\":[1]}").unwrap());
    assert!(takes(&format!(r#"{{"id":"{}"}}"#, "x".repeat(1_024))));
    assert!(!takes(&format!(r#"{{"id":"{}"}}"#, "x".repeat(1_025))));
}

fn number() -> impl Strategy<Value = String> {
    let finite = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |number| number.is_finite());
    let near = (-40_000_i32..40_000, 1_u32..6, -3_i64..4).prop_map(|(number, places, ulps)| {
        let number = f64::from(number) / f64::from(10_u32.pow(places));
        f64::from_bits(number.to_bits().saturating_add_signed(ulps))
    });
    let halfway = ((1_u64 << 52)..(1 << 53), 1_u32..4).prop_map(|(odd, power)| {
        let mut text = (5_u64.pow(power) * (2 * odd + 1)).to_string();
        text.insert(text.len() - power as usize, '.');
        text
    });
    prop_oneof![
        4 => (-9.0..9.0_f64, 0_usize..9).prop_map(|(number, places)| format!("{number:.places$}")),
        2 => Just("null".to_owned()),
        2 => any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(|number| format!("{number:?}")),
        2 => (-5.0..5.0_f64).prop_map(|number| format!("{number:?}")),
        1 => finite.clone().prop_map(|number| format!("{number:?}")),
        1 => finite.prop_map(|number| format!("{number:E}")),
        1 => (0_u64..1 << 53).prop_map(|bits| format!("{:e}", f64::from_bits(bits))),
        1 => near.clone().prop_map(|number| format!("{number:?}")),
        1 => (near, 15_usize..40).prop_map(|(number, places)| format!("{number:.places$}")),
        1 => halfway,
        1 => any::<u64>().prop_map(|number| number.to_string()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        3 => "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?"
            .prop_filter("finite", |text| text.parse::<f64>().is_ok_and(f64::is_finite)),
    ]
}

fn space() -> impl Strategy<Value = &'static str> {
    select(&["", "", "", "", " ", "\n  ", "\t\r"][..])
}

/// A body that the scanner takes.
fn usual() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![
        "[ -!#-\\[\\]-~\u{7f}äß漢😀]{0,20}".prop_map(|text| format!("\"{text}\"")),
        (-999_999_999_999_999_999..1_000_000_000_000_000_000_i64).prop_map(|number| number.to_string()),
    ];
    let timeout = prop_oneof![
        (0..10_000_u32).prop_map(|millis| millis.to_string()),
        (0.0..1e4_f64).prop_map(|millis| format!("{millis:?}")),
        (0..100_000_000_000_000_000_u64, 0..30_i32).prop_map(|(digits, places)| format!("{digits}e-{places}")),
    ];
    let features = vec((number(), space(), space()), 1..12);
    let given = any::<[bool; 4]>();
    let fields = (id, "[a-z0-9_-]{0,12}", -3_i64..300, timeout, features, given);
    let fields = fields.prop_map(|(id, model, priority, timeout, features, given)| {
        let cells: Vec<_> = features.iter().map(|(number, before, after)| format!("{before}{number}{after}")).collect();
        let optional = [
            ("id", id),
            ("model", format!("\"{model}\"")),
            ("priority", priority.to_string()),
            ("timeout_ms", timeout),
        ];
        let mut fields: Vec<_> =
            optional.into_iter().zip(given).filter(|(_, given)| *given).map(|(field, _)| field).collect();
        fields.push(("features", format!("[{}]", cells.join(","))));
        fields
    });
    (fields.prop_shuffle(), vec(space(), 22)).prop_map(|(fields, spaces)| {
        let mut spaces = spaces.into_iter();
        let mut space = || spaces.next().unwrap();
        let mut text = format!("{}{{", space());
        for (index, (name, value)) in fields.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{}\"{name}\"{}:{}{value}{}", space(), space(), space(), space());
        }
        (text + "}" + space()).into_bytes()
    })
}

/// One edit: where, what to do there, and a byte to do it with.
fn edit() -> impl Strategy<Value = (Index, u8, u8)> {
    let byte = prop_oneof![
        4 => select(&b"{}[]\",:.-+eE019 \n\\nuldfipmt_\0\x1f\x7f\x80\xc3\xff"[..]),
        1 => any::<u8>(),
    ];
    (any::<Index>(), 0_u8..6, byte)
}

fn apply(payload: &mut Vec<u8>, (place, kind, byte): (Index, u8, u8)) {
    if payload.is_empty() {
        return;
    }
    let at = place.index(payload.len());
    match kind {
        0 | 1 => payload[at] = byte,
        2 => payload.insert(at, byte),
        3 => drop(payload.remove(at)),
        4 => {
            let again = payload[at..payload.len().min(at + usize::from(byte))].to_vec();
            payload.splice(at..at, again);
        }
        _ => drop(payload.drain(at..payload.len().min(at + usize::from(byte)))),
    }
}

proptest! {
    #[test]
    fn a_usual_body_is_taken_with_every_bit(payload in usual()) {
        prop_assert!(taken(&payload)?, "{}", String::from_utf8_lossy(&payload));
    }

    #[test]
    fn whatever_is_taken_json_takes_too(payload in usual(), edits in vec(edit(), 1..4)) {
        let mut payload = payload;
        for edit in edits {
            apply(&mut payload, edit);
        }
        taken(&payload)?;
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        payload in vec(any::<u8>(), 0..64),
        text in "(\\{\"(id|features|model|timeout_ms)\":)?[\\[\\]{}\",:.eE+0-9 nul-]{0,40}",
    ) {
        taken(&payload)?;
        taken(text.as_bytes())?;
    }
}
