//! The native JSON request as a type: what schemas/ is made from, and what tests read requests with. The worker itself
//! reads straight into its arenas (`json`, `features`).

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

/// A request: the value of a record on an input topic. The headers `forebay-model`, `forebay-priority` and
/// `forebay-timeout-ms` win over the fields of the same meaning. A field that is not listed here is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "forebay request")]
pub struct RequestBody {
    /// Comes back in the reply. Default: the record's key if it is text, else `topic/partition/offset`. A string of at
    /// most 1,024 bytes, or an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
    /// Name of the model that scores it. Default: the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// One row of features, or several rows that are scored together and answered in one reply.
    pub features: RequestFeatures,
    /// Level in the queue: 1 is the highest, the model's `priority_levels` the lowest. Default 0: the model's own
    /// `priority_default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How long the request may wait, in milliseconds, 0 or more; it may only shorten the model's own `timeout`.
    /// Default 0: no timeout but the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub timeout_ms: Option<f64>,
}

/// A request's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RequestId {
    /// Text, of 1,024 bytes at most.
    Text(#[schemars(length(max = 1024))] String),
    /// An integer; the reply repeats it as one.
    Integer(i64),
}

/// The value of one feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FeatureValue {
    /// A finite number; a whole one where the model takes integers.
    Number(f64),
    /// For the features that the model takes as text, and for no other.
    Text(String),
}

/// Features of one row or of several. `null` is a missing value; Infinity is not accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RequestFeatures {
    /// One row: as many values as the model has features, in its order.
    Row(Vec<Option<FeatureValue>>),
    /// Several rows, each as `Row`; the prediction is then a list of lists.
    Rows(Vec<Vec<Option<FeatureValue>>>),
    /// One row by feature name, in any order; a name that is left out is a missing value, an unknown one is an error.
    Named(BTreeMap<String, Option<FeatureValue>>),
    /// Several rows by feature name.
    NamedRows(Vec<BTreeMap<String, Option<FeatureValue>>>),
}

/// The JSON Schema of a request.
#[must_use]
pub fn request_schema() -> Schema {
    schema_for!(RequestBody)
}
