//! The native JSON reply as a type: what schemas/ is made from, and what tests read replies with. The worker itself
//! appends bytes.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use crate::decode::RequestId;

/// A reply: the value of a record on a reply topic. It holds a `prediction` when `success` is true, else an `error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "forebay reply")]
pub struct ReplyBody {
    /// The request's id; of a request without one its key, or `topic/partition/offset`.
    pub id: RequestId,
    /// Whether the request was scored.
    pub success: bool,
    /// The scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Why there are no scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyErrorBody>,
    /// How it was scored, as far as the route's `reply_metadata` asks for it; never there for a request that could not
    /// be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ReplyMetadataBody>,
}

/// Scores, as many a row as the model has outputs. Each is the shortest text that reads back as the same f64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prediction {
    /// Of a request with one row.
    Row(Vec<f64>),
    /// Of a request with a list of rows, in their order.
    Rows(Vec<Vec<f64>>),
}

/// Why a request has no scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyErrorBody {
    /// One of `bad_request`, `unknown_model`, `deadline_exceeded`, `queue_full`, `model_error`, `too_large`.
    pub code: String,
    /// What was wrong and where, for a person to read.
    pub message: String,
}

/// How a request was scored. Where no model was asked (its deadline had passed), only `queue_ms` is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyMetadataBody {
    /// The model that scored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which load of that model: "1", "2", and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// SHA-256 of the model file, hex (`full` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// Rows that were scored together with this request's, its own included; 0 where they came from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// From the record's arrival until a score thread took it, in milliseconds.
    pub queue_ms: f64,
    /// How long the model took for the whole batch, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_ms: Option<f64>,
    /// Whether the scores came from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_hit: Option<bool>,
    /// Whether the compiled form of the model scored it (`full` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiled: Option<bool>,
    /// BLAKE3 of the scores' little-endian bytes, 128 bits, hex (`full` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_hash: Option<String>,
}

/// The JSON Schema of a reply.
#[must_use]
pub fn reply_schema() -> Schema {
    schema_for!(ReplyBody)
}
