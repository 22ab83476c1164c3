//! A body in; a panic out if the scanner and `serde_json` read it apart. Both are asked through the one public way in.
//!
//! The scanner leaves every body with an escape to `serde_json`. So the same body with each `"features"` written
//! `"\u0066eatures"` is the reference: the meaning is the same, and the scanner plays no part in it.

use std::sync::LazyLock;
use std::time::Instant;

use forebay::clock;
use forebay::decode::{Received, RouteDecoder};
use forebay::model::{Catalog, FeatureKinds, ModelEntry, ModelSchema, ModelType, RowType};
use forebay::record::{Chunk, Message, ModelId, PartitionId, Position, Priority};

const PLAIN: &[u8] = b"\"features\"";
const ESCAPED: &[u8] = b"\"\\u0066eatures\"";
/// How many models there are, `m0` to `m32`, each as wide as its number says.
const WIDTHS: usize = 33;

static ARRIVED: LazyLock<Instant> = LazyLock::new(clock::now);
static CATALOG: LazyLock<Catalog> = LazyLock::new(catalog);

/// What became of a body, every number as its bits.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    id: Vec<u8>,
    work: Result<(Vec<u64>, String), String>,
}

/// Reads a body in both ways. Returns whether it was read as work.
pub fn compare(payload: &[u8]) -> bool {
    let got = decode(payload);
    let Some(escaped) = escape(payload) else {
        return got.work.is_ok();
    };
    let wanted = decode(&escaped);
    assert_eq!(without_place(&got), without_place(&wanted), "{}", String::from_utf8_lossy(payload));
    got.work.is_ok()
}

fn decode(payload: &[u8]) -> Outcome {
    // The model that fits the first list of the body.
    let list = payload.split(|byte| *byte == b'[').nth(1).and_then(|list| list.split(|byte| *byte == b']').next());
    let cells = 1 + list.unwrap_or_default().iter().filter(|byte| **byte == b',').count();
    let model = ModelId(u32::try_from(cells.min(WIDTHS - 1)).unwrap_or(0));
    let route = RouteDecoder::new(model, "scores");
    let message = Message {
        topic: "features",
        partition_number: 3,
        position: Position { partition: PartitionId(9), offset: 41 },
        timestamp_ms: None,
        is_append_time: false,
        key: None,
        payload: Some(payload),
        headers: &[],
    };
    let mut chunk = Chunk::default();
    route.decode(&message, Received { arrived: *ARRIVED, unix_ms: 0 }, &CATALOG, &mut chunk);
    let request = &chunk.requests()[0];
    let work = match &request.work {
        Ok(work) => Ok((chunk.rows(work).iter().map(|value| value.to_bits()).collect(), format!("{work:?}"))),
        Err(reject) => Err(format!("{reject:?}")),
    };
    Outcome { id: chunk.bytes(request.id_json).to_vec(), work }
}

/// The body that is the same to JSON readers, or none if there is nothing to write in another way.
fn escape(payload: &[u8]) -> Option<Vec<u8>> {
    let mut escaped = Vec::with_capacity(payload.len() + 16);
    let mut rest = payload;
    while let Some(at) = rest.windows(PLAIN.len()).position(|window| window == PLAIN) {
        escaped.extend_from_slice(&rest[..at]);
        escaped.extend_from_slice(ESCAPED);
        rest = &rest[at + PLAIN.len()..];
    }
    if escaped.is_empty() {
        return None;
    }
    escaped.extend_from_slice(rest);
    Some(escaped)
}

/// An outcome whose message names no byte of the payload, for the escapes move those.
fn without_place(outcome: &Outcome) -> (&[u8], Result<&(Vec<u64>, String), String>) {
    let work = outcome.work.as_ref().map_err(|message| {
        let names_place = message.contains("the payload is not");
        message.chars().filter(|char| !(names_place && char.is_ascii_digit())).collect()
    });
    (&outcome.id, work)
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    for width in 0..WIDTHS {
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: (0..width.max(1)).map(|index| format!("f{index}")).collect(),
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        let priority = Priority::new(2).expect("2 is a level");
        let model = ModelId(u32::try_from(width).expect("there are few"));
        catalog.put(ModelEntry::new(model, &format!("m{width}"), &schema, vec![forebay::model::LevelTimeout::default(); 3], priority));
    }
    catalog
}
