//! One case each, with the exact message, and the decoder against a naive reading. The models: `higgs` (28 features, 3
//! levels, no timeout) and `people` (`age`, `wage`, `height`; 5 levels, 100 ms); and where texts are tested, `visits` (`age`,
//! `city` as text, `count` as a 32-bit integer, `plan` as text; 1 level).

mod body;
mod headers;
mod naive;
mod oip;
mod terms;
mod text;
mod usual;

use std::sync::LazyLock;

use super::*;
use crate::model::{FeatureKind, FeatureKinds, LevelTimeout, ModelSchema, ModelType, RowType};
use crate::record::{PartitionId, Position, Request, TextMark};

const HIGGS: ModelId = ModelId(0);
const PEOPLE: ModelId = ModelId(1);
const VISITS: ModelId = ModelId(2);
const NOW_MS: i64 = 1_700_000_000_000;

static ARRIVED: LazyLock<Instant> = LazyLock::new(crate::clock::now);

fn schema(names: Vec<String>) -> ModelSchema {
    ModelSchema {
        model_type: ModelType::LightGbm,
        feature_names: names,
        kinds: FeatureKinds::default(),
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    }
}

/// The two models of numbers, and `visits`.
fn catalog_with_text() -> Catalog {
    let names = ["age", "city", "count", "plan"].map(str::to_owned).to_vec();
    let kinds = vec![FeatureKind::Number, FeatureKind::Text, FeatureKind::INT32, FeatureKind::Text];
    let visits = ModelSchema { kinds: FeatureKinds::new(kinds), ..schema(names) };
    let mut catalog = catalog();
    let level = Priority::new(1).unwrap();
    catalog.put(ModelEntry::new(VISITS, "visits", &visits, vec![LevelTimeout::default()], level));
    catalog
}

fn catalog() -> Catalog {
    let level = |level| Priority::new(level).unwrap();
    let higgs = schema((0..28).map(|index| format!("f{index}")).collect());
    let people = schema(["age", "wage", "height"].map(str::to_owned).to_vec());
    let mut catalog = Catalog::default();
    catalog.put(ModelEntry::new(HIGGS, "higgs", &higgs, vec![LevelTimeout::default(); 3], level(2)));
    let timeouts = vec![LevelTimeout { timeout: Some(Duration::from_millis(100)), fixed: false }; 5];
    catalog.put(ModelEntry::new(PEOPLE, "people", &people, timeouts, level(1)));
    catalog
}

fn route() -> RouteDecoder {
    RouteDecoder {
        route: 7,
        reply_topics_allowed: vec![TopicPattern::new("replies-*").unwrap()],
        retries: 2,
        ..RouteDecoder::new(PEOPLE, "scores")
    }
}

fn message(payload: Option<&[u8]>) -> Message<'_> {
    Message {
        topic: "features",
        partition_number: 3,
        position: Position { partition: PartitionId(9), offset: 41 },
        timestamp_ms: None,
        is_append_time: false,
        key: None,
        payload,
        headers: &[],
    }
}

fn received() -> Received {
    Received { arrived: *ARRIVED, unix_ms: NOW_MS }
}

/// A chunk that holds one request.
struct One(Chunk);

impl One {
    fn decode(route: &RouteDecoder, message: &Message<'_>) -> Self {
        Self::decode_for(&catalog(), route, message)
    }

    fn decode_for(catalog: &Catalog, route: &RouteDecoder, message: &Message<'_>) -> Self {
        let mut chunk = Chunk::default();
        assert_eq!(route.decode(message, received(), catalog, &mut chunk), Decoded::Request);
        assert_eq!(chunk.requests().len(), 1);
        if chunk.requests()[0].work.is_err() {
            assert!(chunk.features_mut().is_empty(), "a rejected record leaves no numbers");
            assert_eq!(chunk.texts_mut().len_since(TextMark::default()), 0, "and no texts");
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
    One::decode(&route(), &Message { headers, ..message(Some(text.as_bytes())) })
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
    let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    bits(got) == bits(wanted)
}
