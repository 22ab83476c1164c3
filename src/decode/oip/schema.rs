//! The Open Inference request as a type: what schemas/ is made from, and what tests read requests with.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::decode::RequestId;

/// A request of the Open Inference Protocol (V2): the value of a record on an input topic. The headers `forebay-model`,
/// `mlserver-model`, `forebay-priority` and `forebay-timeout-ms` win over the fields of the same meaning. A field that is not
/// listed here is an error; a parameter that is not is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "forebay request, Open Inference Protocol")]
pub struct InferRequestBody {
    /// Comes back in the reply. Default: the record's key if it is text, else `topic/partition/offset`. A string of at
    /// most 1,024 bytes, or an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
    /// Name of the model that scores it. Default: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// One tensor of all features, `[rows, features]`; or tensors of one feature each, `[rows]` or `[rows, 1]`, under the
    /// features' names.
    #[schemars(length(min = 1))]
    pub inputs: Vec<InferRequestInput>,
    /// The outputs that are wanted. Default: all, which is `predict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Vec<InferRequestOutput>>,
    /// Of these `priority` and `timeout` count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<InferRequestParameters>,
}

/// Parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InferRequestParameters {
    /// Level in the queue: 1 is the highest, the model's `priority_levels` the lowest. Default 0: the model's own
    /// `priority_default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How long the request may wait, in microseconds, 0 or more; it may only shorten the model's own `timeout`.
    /// Default 0: no timeout but the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub timeout: Option<f64>,
    /// Whatever else there is.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A tensor. Values of the whole batch, row by row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InferRequestInput {
    /// The feature's name, where there is a tensor for each feature; else any.
    pub name: String,
    /// `[rows, features]`, or `[rows]` for one feature.
    #[schemars(length(min = 1, max = 2))]
    pub shape: Vec<u64>,
    /// What the values are. A value that the type cannot hold is an error.
    pub datatype: TensorDatatype,
    /// Not read, but for extensions that are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BTreeMap<String, Value>>,
    /// The values, as many as the shape says.
    pub data: TensorData,
}

/// An output that is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InferRequestOutput {
    /// `predict`: there is no other.
    pub name: String,
    /// Not read, but for extensions that are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BTreeMap<String, Value>>,
}

/// What the values of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the standard's own names")]
pub enum TensorDatatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

/// The values of a tensor. `null` is a missing value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TensorData {
    /// One list, row by row.
    Flat(Vec<Option<TensorValue>>),
    /// A list for each row.
    Rows(Vec<Vec<Option<TensorValue>>>),
}

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TensorValue {
    /// BOOL.
    Truth(bool),
    /// A number; for BOOL 0 or 1.
    Number(f64),
    /// BYTES: for the features that the model takes as text, and for no other.
    Text(String),
}

/// The JSON Schema of a request of the Open Inference Protocol.
#[must_use]
pub fn infer_request_schema() -> Schema {
    schema_for!(InferRequestBody)
}
