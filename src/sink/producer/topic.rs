//! librdkafka's handles of reply topics, and replies produced by them: no name is copied, checked or looked up again.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};

use rdkafka::error::{IsError as _, KafkaError};
use rdkafka::producer::{Producer as _, ThreadedProducer};
use rdkafka_sys as rdsys;

use super::{DeliveryReports, Outgoing};

/// `RD_KAFKA_PARTITION_UA`: librdkafka's partitioner chooses.
const PARTITION_BY_KEY: i32 = -1;

/// The handles of one producer's topics, by name. They must be dropped before the producer.
#[derive(Default)]
pub(super) struct Topics(HashMap<String, Handle>);

struct Handle(NonNull<rdsys::rd_kafka_topic_t>);

// SAFETY: librdkafka's topic objects are counted references with locks of their own; any thread may use and release one.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and given back once.
        unsafe { rdsys::rd_kafka_topic_destroy(self.0.as_ptr()) };
    }
}

impl Topics {
    /// Hands a reply to librdkafka, which copies it. Its headers are not looked at.
    pub(super) fn send(
        &mut self,
        producer: &ThreadedProducer<DeliveryReports>,
        outgoing: &Outgoing<'_>,
    ) -> Result<(), KafkaError> {
        let client = producer.client().native_ptr();
        let topic = match self.0.get(outgoing.topic) {
            Some(Handle(topic)) => *topic,
            None => self.open(client, outgoing.topic)?,
        };
        let bytes = |bytes: Option<&[u8]>| bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
        let ((payload, payload_bytes), (key, key_bytes)) = (bytes(outgoing.payload), bytes(outgoing.key));
        // The delivery report gets the number back as it is, as rdkafka's own `usize` opaques are given.
        let index = ptr::without_provenance_mut::<c_void>(outgoing.index);
        // SAFETY: client and topic are alive; the list ends as it must, each tag with arguments of its types; F_COPY lets
        // librdkafka keep nothing of what it is given.
        let code = unsafe {
            rdsys::rd_kafka_producev(
                client,
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
                topic.as_ptr(),
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
                outgoing.partition.unwrap_or(PARTITION_BY_KEY),
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                rdsys::RD_KAFKA_MSG_F_COPY,
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                payload,
                payload_bytes,
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                key,
                key_bytes,
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
                index,
                rdsys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            )
        };
        if code.is_error() { Err(KafkaError::MessageProduction(code.into())) } else { Ok(()) }
    }

    fn open(
        &mut self,
        client: *mut rdsys::rd_kafka_t,
        name: &str,
    ) -> Result<NonNull<rdsys::rd_kafka_topic_t>, KafkaError> {
        let text = CString::new(name)?;
        // SAFETY: the client is alive; without a configuration of its own the topic has the client's.
        let topic = unsafe { rdsys::rd_kafka_topic_new(client, text.as_ptr(), ptr::null_mut()) };
        let Some(topic) = NonNull::new(topic) else {
            // SAFETY: asked on the thread whose call failed.
            let code = unsafe { rdsys::rd_kafka_last_error() };
            return Err(KafkaError::MessageProduction(code.into()));
        };
        self.0.insert(name.to_owned(), Handle(topic));
        Ok(topic)
    }
}
