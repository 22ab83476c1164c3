//! Where a reply goes: the topic and partition that a request's headers name, if the route allows that topic.
//!
//! Three conventions are understood, and the first that names a topic counts: Spring Kafka (`kafka_replyTopic`,
//! `kafka_replyPartition`), `SmallRye` for Quarkus (`REPLY_TOPIC`, `REPLY_PARTITION`), `FastStream` (`reply_to`). A partition
//! without a topic is one of the route's own reply topic, as Spring has it.

use super::RouteDecoder;
use super::headers::Headers;
use super::message::{bad_request, quoted_bytes};
use crate::record::{Chunk, Reject, ReplyAddress};

/// An address as one convention writes it: each value with its header's name.
#[derive(Clone, Copy)]
struct Stated<'a> {
    topic: (&'static str, Option<&'a [u8]>),
    partition: (&'static str, Option<&'a [u8]>),
}

impl RouteDecoder {
    /// The reply's address. On an error the rejection goes to the route's own topic.
    pub(super) fn address(&self, headers: &Headers<'_>, chunk: &mut Chunk) -> Result<ReplyAddress, Reject> {
        let Some(stated) = stated(headers) else {
            return Ok(ReplyAddress::Route);
        };
        let topic = match stated.topic {
            (header, Some(topic)) => self.allowed(header, topic)?,
            (_, None) => &self.reply_topic,
        };
        let partition = match stated.partition {
            (header, Some(bytes)) => Some(partition_number(header, bytes)?),
            (_, None) => None,
        };
        if partition.is_none() && topic == self.reply_topic {
            return Ok(ReplyAddress::Route);
        }
        Ok(ReplyAddress::Named { topic: chunk.push_text(topic.as_bytes()), partition })
    }

    fn allowed<'a>(&self, header: &str, topic: &'a [u8]) -> Result<&'a str, Reject> {
        let listed = |topic: &str| {
            let mut patterns = self.reply_topics_allowed.iter();
            patterns.any(|pattern| pattern.matches(topic))
        };
        let allowed = |topic: &&str| *topic == self.reply_topic || (is_topic_name(topic) && listed(topic));
        std::str::from_utf8(topic).ok().filter(allowed).ok_or_else(|| {
            let topic = quoted_bytes(topic);
            bad_request(format!(
                "header {header}: no replies may go to topic {topic}; the route's reply_topics_allowed does not list it"
            ))
        })
    }
}

/// What the headers say, in the first convention that names a topic, or else a partition.
fn stated<'a>(headers: &Headers<'a>) -> Option<Stated<'a>> {
    let conventions = [
        Stated {
            topic: ("kafka_replyTopic", headers.spring_topic),
            partition: ("kafka_replyPartition", headers.spring_partition),
        },
        Stated {
            topic: ("REPLY_TOPIC", headers.smallrye_topic),
            partition: ("REPLY_PARTITION", headers.smallrye_partition),
        },
        Stated { topic: ("reply_to", headers.faststream_topic), partition: ("", None) },
    ];
    let with_topic = conventions.iter().find(|stated| stated.topic.1.is_some());
    with_topic.or_else(|| conventions.iter().find(|stated| stated.partition.1.is_some())).copied()
}

/// Whether Kafka takes the name. A pattern's `*` matches more, and a name that the broker refuses would fail a whole
/// transaction with its neighbours.
fn is_topic_name(name: &str) -> bool {
    let takes = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(takes)
}

fn partition_number(header: &str, bytes: &[u8]) -> Result<i32, Reject> {
    let wants = "wants a 4-byte big-endian int, 0 or more";
    match <[u8; 4]>::try_from(bytes).map(i32::from_be_bytes) {
        Ok(partition) if partition >= 0 => Ok(partition),
        Ok(negative) => Err(bad_request(format!("header {header}: got {negative}, {wants}"))),
        Err(_) => Err(bad_request(format!("header {header}: got {} bytes, {wants}", bytes.len()))),
    }
}
