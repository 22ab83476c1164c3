//! A record's headers in, the few that forebay knows out. Names are compared as they stand (Kafka's are case-sensitive);
//! of two headers of one name the last counts, as `lastHeader` of Kafka's own client has it; one without a value counts
//! as absent.

use super::message::{bad_request, quoted_bytes};
use crate::record::{Chunk, Protocol, Reject};

/// The headers that a reply carries over, byte for byte: each convention's correlation, and the trace.
const ECHOED: [&str; 5] =
    ["kafka_correlationId", "REPLY_CORRELATION_ID", "correlation_id", "traceparent", "tracestate"];

/// What a record's headers say.
#[derive(Debug, Default)]
pub(super) struct Headers<'a> {
    /// `forebay-model`: wins over the body, like the next two.
    model: Option<&'a [u8]>,
    /// `mlserver-model`: the same for a body of the Open Inference Protocol.
    mlserver_model: Option<&'a [u8]>,
    /// `forebay-priority`, as decimal text.
    pub(super) priority: Option<&'a [u8]>,
    /// `forebay-timeout-ms`, as decimal text.
    pub(super) timeout_ms: Option<&'a [u8]>,
    /// Spring's `kafka_replyTopic`.
    pub(super) spring_topic: Option<&'a [u8]>,
    /// Spring's `kafka_replyPartition`.
    pub(super) spring_partition: Option<&'a [u8]>,
    /// `SmallRye`'s `REPLY_TOPIC`.
    pub(super) smallrye_topic: Option<&'a [u8]>,
    /// `SmallRye`'s `REPLY_PARTITION`.
    pub(super) smallrye_partition: Option<&'a [u8]>,
    /// `FastStream`'s `reply_to`.
    pub(super) faststream_topic: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    echoed: [Option<&'a [u8]>; ECHOED.len()],
}

impl<'a> Headers<'a> {
    /// Picks the known headers.
    pub(super) fn read(headers: &[(&str, Option<&'a [u8]>)]) -> Self {
        let mut known = Self::default();
        for &(name, value) in headers {
            if value.is_some()
                && let Some(place) = known.place(name)
            {
                *place = value;
            }
        }
        known
    }

    fn place(&mut self, name: &str) -> Option<&mut Option<&'a [u8]>> {
        Some(match name {
            // As NATS clients write it, and Kafka clients.
            "content-type" | "Content-Type" => &mut self.content_type,
            "forebay-model" => &mut self.model,
            "mlserver-model" => &mut self.mlserver_model,
            "forebay-priority" => &mut self.priority,
            "forebay-timeout-ms" => &mut self.timeout_ms,
            "kafka_replyTopic" => &mut self.spring_topic,
            "kafka_replyPartition" => &mut self.spring_partition,
            "REPLY_TOPIC" => &mut self.smallrye_topic,
            "REPLY_PARTITION" => &mut self.smallrye_partition,
            "reply_to" => &mut self.faststream_topic,
            _ => {
                let index = ECHOED.iter().position(|echoed| *echoed == name)?;
                &mut self.echoed[index]
            }
        })
    }

    /// The header that names the model for a body of that protocol, and what it says.
    pub(super) fn model(&self, protocol: Protocol) -> Option<(&'static str, &'a [u8])> {
        let mlserver = self.mlserver_model.filter(|_| protocol == Protocol::OpenInference);
        let own = self.model.map(|name| ("header forebay-model", name));
        own.or_else(|| mlserver.map(|name| ("header mlserver-model", name)))
    }

    /// Hands the headers that the reply carries over to the chunk.
    pub(super) fn echo(&self, chunk: &mut Chunk) {
        for (name, value) in ECHOED.into_iter().zip(self.echoed) {
            if let Some(value) = value {
                chunk.push_echo(name, value);
            }
        }
    }

    /// Rejects a body that says it is no JSON.
    pub(super) fn check_content_type(&self) -> Result<(), Reject> {
        let stated = self.content_type.unwrap_or_default();
        let kind = stated.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let json_suffix = kind.len().checked_sub(5).is_some_and(|at| kind[at..].eq_ignore_ascii_case(b"+json"));
        if kind.is_empty()
            || json_suffix
            || kind.eq_ignore_ascii_case(b"application/json")
            || kind.eq_ignore_ascii_case(b"text/json")
        {
            return Ok(());
        }
        Err(bad_request(format!(
            "header content-type: got {}, this version reads JSON only (application/json)",
            quoted_bytes(stated)
        )))
    }
}
