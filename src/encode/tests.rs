//! Replies to the byte, their types read back, and their numbers bit for bit.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::decode::{Received, RequestId, RouteDecoder};
use crate::model::{
    Catalog, FeatureKinds, LoadedModel, Model, ModelEntry, ModelError, ModelSchema, ModelType, RowType, Rows,
    ScoreError, Scorer,
};
use crate::record::{Chunk, Message, ModelId, PartitionId, Position, Priority};

/// A model of which only the name counts: every row scores 0.
struct Named(ModelSchema);
struct Zeros;

impl Scorer for Zeros {
    fn score(&mut self, _: Rows<'_>, scores: &mut [f64]) -> Result<(), ScoreError> {
        scores.fill(0.0);
        Ok(())
    }
}

impl Model for Named {
    fn schema(&self) -> &ModelSchema {
        &self.0
    }

    fn scorer(&self) -> Result<Box<dyn Scorer>, ModelError> {
        Ok(Box::new(Zeros))
    }
}

fn schema() -> ModelSchema {
    ModelSchema {
        model_type: ModelType::LightGbm,
        feature_names: vec!["a".to_owned(), "b".to_owned()],
        kinds: FeatureKinds::default(),
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    }
}

fn loaded(name: &str) -> Arc<LoadedModel> {
    Arc::new(LoadedModel::new(name, 3, "5c1e", &Named(schema()), 0).unwrap())
}

/// One chunk of these bodies, on route 0, 1, 2 and so on.
pub(super) fn tickets(bodies: &[&str]) -> Vec<Ticket> {
    let mut catalog = Catalog::default();
    let level = Priority::new(1).unwrap();
    catalog.put(ModelEntry::new(ModelId(0), "higgs", &schema(), vec![crate::model::LevelTimeout::default(); 3], level));
    let mut chunk = Chunk::default();
    let received = Received { arrived: crate::clock::now(), unix_ms: 0 };
    for (route, body) in (0..).zip(bodies) {
        let route = RouteDecoder { route, ..RouteDecoder::new(ModelId(0), "scores") };
        let message = Message {
            topic: "t",
            partition_number: 0,
            position: Position { partition: PartitionId(0), offset: 5 },
            timestamp_ms: None,
            is_append_time: false,
            key: None,
            payload: Some(body.as_bytes()),
            headers: &[],
        };
        route.decode(&message, received, &catalog, &mut chunk);
    }
    let (chunk, count) = (Arc::new(chunk), u32::try_from(bodies.len()).unwrap());
    (0..count).map(|index| Ticket { chunk: Arc::clone(&chunk), index }).collect()
}

/// A batch of these tickets with one row each, or as many as they ask for, in order.
pub(super) fn batch(tickets: Vec<Ticket>, scores: Vec<f64>, outputs: usize) -> ScoredBatch {
    let mut first = 0;
    let outcomes = tickets
        .iter()
        .map(|ticket| {
            let row = first;
            first += ticket.request().work.as_ref().unwrap().rows as usize;
            Ok(row)
        })
        .collect();
    let started = tickets[0].request().arrived + Duration::from_nanos(400_499);
    ScoredBatch {
        tickets,
        outcomes,
        scores,
        outputs,
        model: Some(loaded("higgs")),
        batch_size: 64,
        started,
        inference: Duration::from_millis(12),
        cache_hit: false,
    }
}

pub(super) fn encode(batch: ScoredBatch, metadata: ReplyMetadata) -> Vec<Reply> {
    let mut replies = Vec::new();
    Encoder::new().encode_batch(batch, |_| metadata, &mut replies);
    replies
}

/// The payload, read as the reply's type and found to say the same.
fn text(reply: &Reply) -> &str {
    let text = std::str::from_utf8(&reply.payload).unwrap();
    let body: ReplyBody = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&body).unwrap(), text);
    assert_eq!(body.success, reply.error.is_none());
    assert_eq!(body.error.map(|error| error.code), reply.error.as_ref().map(|reject| reject.code.to_string()));
    text
}

const ROW: &str = r#"{"id":"r\"1","features":[1,2]}"#;

#[test]
fn three_levels_of_metadata() {
    let of = |level| {
        let replies = encode(batch(tickets(&[ROW]), vec![0.973], 1), level);
        text(&replies[0]).to_owned()
    };
    assert_eq!(of(ReplyMetadata::None), r#"{"id":"r\"1","success":true,"prediction":[0.973]}"#);
    assert_eq!(
        of(ReplyMetadata::Short),
        r#"{"id":"r\"1","success":true,"prediction":[0.973],"metadata":{"model":"higgs","version":"3","batch_size":64,"queue_ms":0.4,"inference_ms":12.0,"cache_hit":false}}"#
    );
    let bytes = 0.973_f64.to_le_bytes();
    let hash = &blake3::hash(&bytes).to_hex()[..32];
    assert_eq!(
        of(ReplyMetadata::Full),
        format!(
            r#"{{"id":"r\"1","success":true,"prediction":[0.973],"metadata":{{"model":"higgs","version":"3","model_sha256":"5c1e","batch_size":64,"queue_ms":0.4,"inference_ms":12.0,"cache_hit":false,"compiled":false,"prediction_hash":"{hash}"}}}}"#
        )
    );
}

#[test]
fn what_the_cache_held_says_so() {
    let hit = ScoredBatch {
        cache_hit: true,
        batch_size: 0,
        inference: Duration::ZERO,
        ..batch(tickets(&[ROW]), vec![0.973], 1)
    };
    let replies = encode(hit, ReplyMetadata::Short);
    let metadata = r#""metadata":{"model":"higgs","version":"3","batch_size":0,"queue_ms":0.4,"inference_ms":0.0,"cache_hit":true}}"#;
    assert!(text(&replies[0]).ends_with(metadata), "{}", text(&replies[0]));
}

/// The hash as any other BLAKE3 would have it: of the bytes in one piece, from a table of known values.
#[test]
fn the_prediction_hash_is_plain_blake3() {
    assert_eq!(&prediction_hash(&[]), b"af1349b9f5f9a1a6a0404dea36dcc949");
    let scores = [1.0, -0.0, 0.25];
    let bytes: Vec<u8> = scores.iter().flat_map(|score: &f64| score.to_le_bytes()).collect();
    assert_eq!(prediction_hash(&scores), blake3::hash(&bytes).to_hex().as_bytes()[..32]);
}

#[test]
fn rows_outputs_and_ids() {
    let bodies = [ROW, r#"{"id":7,"features":[[1,2],[3,4]]}"#, r#"{"features":[[1,2]]}"#];
    let scores = vec![1.0, 2.0, 3.0, 4.5, 5.0, 6.0, 1e300, -5e-324];
    let replies = encode(batch(tickets(&bodies), scores, 2), ReplyMetadata::None);
    let texts: Vec<_> = replies.iter().map(text).collect();
    assert_eq!(
        texts,
        [
            r#"{"id":"r\"1","success":true,"prediction":[1.0,2.0]}"#,
            r#"{"id":7,"success":true,"prediction":[[3.0,4.5],[5.0,6.0]]}"#,
            r#"{"id":"t/0/5","success":true,"prediction":[[1e+300,-5e-324]]}"#,
        ]
    );
    let indexes: Vec<_> = replies.iter().map(|reply| reply.ticket.index).collect();
    assert_eq!(indexes, [0, 1, 2]);
}

#[test]
fn routes_of_a_batch_ask_for_what_they_want() {
    let mut replies = Vec::new();
    let levels = [ReplyMetadata::Short, ReplyMetadata::None, ReplyMetadata::Full, ReplyMetadata::Short];
    let level_of = |route: u32| levels[route as usize];
    let mut encoder = Encoder::new();
    for name in ["a\"b", "second"] {
        let mut batch = batch(tickets(&[ROW; 4]), vec![1.0; 4], 1);
        batch.model = Some(loaded(name));
        replies.clear();
        encoder.encode_batch(batch, level_of, &mut replies);
        for (reply, level) in replies.iter().zip(levels) {
            let body: ReplyBody = serde_json::from_str(text(reply)).unwrap();
            let metadata = body.metadata;
            assert_eq!(metadata.is_some(), level != ReplyMetadata::None);
            if let Some(metadata) = metadata {
                assert_eq!(metadata.model.as_deref(), Some(name));
                assert_eq!(metadata.prediction_hash.is_some(), level == ReplyMetadata::Full);
            }
        }
    }
}

#[test]
fn failures_within_a_batch() {
    let mut failed = batch(tickets(&[ROW, ROW, ROW]), vec![1.0, f64::NAN, 2.0], 1);
    failed.outcomes[0] = Err(Reject::new(ErrorCode::ModelError, "no \"way\"\n"));
    let replies = encode(failed, ReplyMetadata::Full);
    let metadata = r#""metadata":{"model":"higgs","version":"3","model_sha256":"5c1e","batch_size":64,"queue_ms":0.4,"inference_ms":12.0,"cache_hit":false,"compiled":false}"#;
    assert_eq!(
        text(&replies[0]),
        format!(
            r#"{{"id":"r\"1","success":false,"error":{{"code":"model_error","message":"no \"way\"\n"}},{metadata}}}"#
        )
    );
    assert_eq!(
        text(&replies[1]),
        format!(
            r#"{{"id":"r\"1","success":false,"error":{{"code":"model_error","message":"the model answered NaN, which is no finite number"}},{metadata}}}"#
        )
    );
    assert_eq!(replies[2].error, None);
}

#[test]
fn an_expired_request_tells_its_wait_only() {
    let mut expired = batch(tickets(&[ROW]), Vec::new(), 0);
    expired.model = None;
    expired.outcomes[0] = Err(Reject::new(ErrorCode::DeadlineExceeded, "waited 50 ms"));
    let replies = encode(expired, ReplyMetadata::Full);
    assert_eq!(
        text(&replies[0]),
        r#"{"id":"r\"1","success":false,"error":{"code":"deadline_exceeded","message":"waited 50 ms"},"metadata":{"queue_ms":0.4}}"#
    );
}

#[test]
fn a_reject_before_the_queue_has_no_metadata() {
    let ticket = tickets(&[r#"{"features":[1,"abc"],"id":"r1"}"#]).remove(0);
    let reject = ticket.request().work.clone().unwrap_err();
    let reply = Encoder::new().encode_reject(ticket, &reject);
    assert_eq!(reply.error.as_ref().map(|reject| reject.code), Some(ErrorCode::BadRequest));
    assert_eq!(
        text(&reply),
        r#"{"id":"r1","success":false,"error":{"code":"bad_request","message":"features[1]: got \"abc\", wants a number or null"}}"#
    );
}

#[test]
#[should_panic(expected = "each ticket of a batch has an outcome")]
fn a_ticket_without_an_outcome_is_no_silence() {
    let mut short = batch(tickets(&[ROW, ROW]), vec![1.0, 2.0], 1);
    short.outcomes.pop();
    encode(short, ReplyMetadata::None);
}

#[test]
fn millis() {
    for (nanos, wanted) in [
        (0, "0.0"),
        (499, "0.0"),
        (500, "0.001"),
        (1_234_567, "1.235"),
        (1_000_000, "1.0"),
        (4_294_967_294_000, "4294967.294"),
        (86_400_000_000_000, "86400000.0"),
    ] {
        let mut buffer = Vec::new();
        push_millis(&mut buffer, Duration::from_nanos(nanos));
        assert_eq!(std::str::from_utf8(&buffer), Ok(wanted));
    }
}

#[test]
fn the_payloads_of_a_batch_share_an_allocation() {
    let mut encoder = Encoder::new();
    let mut replies = Vec::new();
    let mut first = None;
    for _ in 0..3 {
        replies.clear();
        let batch = batch(tickets(&[ROW; 60]), vec![0.1; 60], 1);
        encoder.encode_batch(batch, |_| ReplyMetadata::Short, &mut replies);
        for pair in replies.windows(2) {
            let [one, next] = pair else { unreachable!("windows of two") };
            assert_eq!(one.payload.as_ptr_range().end, next.payload.as_ptr_range().start);
        }
        let start = replies[0].payload.as_ptr();
        assert_eq!(*first.get_or_insert(start), start, "used again when the last payload is gone");
    }
}

#[test]
fn the_schema_names_the_fields() {
    let schema = serde_json::to_value(reply_schema()).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["id", "success"]));
    assert!(schema["properties"]["prediction"]["description"].is_string());
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("a score", |score| score.is_finite())
}

proptest! {
    #[test]
    fn scores_read_back_bit_for_bit(
        shapes in prop::collection::vec(prop_oneof![Just(0_usize), 1_usize..4], 1..5),
        outputs in 1_usize..4,
        pool in prop::collection::vec(finite(), 60),
    ) {
        // Shape 0 is a plain row, n a list of n rows.
        let rows = |shape: usize| shape.max(1);
        let bodies: Vec<String> = shapes
            .iter()
            .map(|shape| match shape {
                0 => r#"{"id":"x","features":[1,2]}"#.to_owned(),
                n => format!(r#"{{"id":3,"features":[{}]}}"#, vec!["[1,2]"; *n].join(",")),
            })
            .collect();
        let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
        let total: usize = shapes.iter().map(|shape| rows(*shape)).sum();
        let scores = pool[..total * outputs].to_vec();
        let replies = encode(batch(tickets(&bodies), scores.clone(), outputs), ReplyMetadata::Full);
        prop_assert_eq!(replies.len(), shapes.len());
        let mut left = &scores[..];
        for (reply, shape) in replies.iter().zip(shapes) {
            let body: ReplyBody = serde_json::from_slice(&reply.payload).unwrap();
            let (own, rest) = left.split_at(rows(shape) * outputs);
            left = rest;
            let read = match body.prediction.unwrap() {
                Prediction::Row(row) => {
                    prop_assert_eq!(shape, 0);
                    row
                }
                Prediction::Rows(list) => {
                    prop_assert_eq!(list.len(), shape);
                    prop_assert!(list.iter().all(|row| row.len() == outputs));
                    list.concat()
                }
            };
            let bits = |numbers: &[f64]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read), bits(own));
            prop_assert!(matches!(body.id, RequestId::Text(_)) == (shape == 0));
        }
    }
}
