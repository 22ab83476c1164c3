//! The Open Inference replies as types: what schemas/ is made from, and what tests read replies with.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use crate::decode::{RequestId, TensorDatatype};

/// A reply of the Open Inference Protocol (V2): with the scores, or with what went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "forebay reply, Open Inference Protocol")]
pub enum InferReplyBody {
    /// The request was scored.
    Scored(InferScores),
    /// It was not.
    Failed(InferErrorBody),
}

/// The scores of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferScores {
    /// The model that scored it.
    pub model_name: String,
    /// Which load of that model: "1", "2", and so on.
    pub model_version: String,
    /// The request's id; of a request without one its key, or `topic/partition/offset`.
    pub id: RequestId,
    /// The only output.
    pub outputs: [InferReplyOutput; 1],
    /// How it was scored, as far as the route's `reply_metadata` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<InferReplyParameters>,
}

/// The scores as a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferReplyOutput {
    /// `predict`.
    pub name: String,
    /// FP64.
    pub datatype: TensorDatatype,
    /// Rows of the request, and outputs of the model.
    pub shape: [u64; 2],
    /// The scores, row by row. Each is the shortest text that reads back as the same f64.
    pub data: Vec<f64>,
}

/// Why a request has no scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferErrorBody {
    /// The request's id; of a request without one its key, or `topic/partition/offset`.
    pub id: RequestId,
    /// What was wrong and where, for a person to read.
    pub error: String,
    /// The error's code, and how far the request came.
    pub parameters: InferErrorParameters,
}

/// What else is told of an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferErrorParameters {
    /// One of `bad_request`, `unknown_model`, `deadline_exceeded`, `queue_full`, `model_error`, `too_large`.
    pub code: String,
    /// As of a request that was scored.
    #[serde(flatten)]
    pub others: InferReplyParameters,
}

/// How a request was scored. Where no model was asked (its deadline had passed), only `queue_ms` is there, and of a request that
/// could not be read nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferReplyParameters {
    /// SHA-256 of the model file, hex (`full` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// Rows that were scored together with this request's, its own included; 0 where they came from the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// From the record's arrival until a score thread took it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
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

/// The JSON Schema of a reply of the Open Inference Protocol.
#[must_use]
pub fn infer_reply_schema() -> Schema {
    schema_for!(InferReplyBody)
}
