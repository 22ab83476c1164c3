//! A topic's id, which it has from when it is created: one of the same name that was made anew has another.
#![allow(unsafe_code, reason = "rdkafka describes no topics; librdkafka's own call is used directly")]

use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka_sys::types::RDKafkaRespErr;
use rdkafka_sys::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_request_timeout,
    rd_kafka_DescribeTopics, rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy,
    rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_topic_id,
    rd_kafka_Uuid_base64str, rd_kafka_admin_op_t, rd_kafka_error_code, rd_kafka_event_DescribeTopics_result,
    rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
};

/// What brokers before Kafka 2.8 say: 16 zero bytes.
const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// Something of librdkafka's that is given back when it is dropped.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: it was handed out to be destroyed by this function, and is so once.
            unsafe { (self.1)(self.0) };
        }
    }
}

/// Asks for a topic's id. Empty where the broker has none.
pub(crate) fn topic_id<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> KafkaResult<String> {
    let name = CString::new(topic).map_err(|_| KafkaError::MetadataFetch(RDKafkaErrorCode::InvalidTopic))?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = client.native_ptr();
    // SAFETY: the client is borrowed, so it is alive, and so are the name and each of the handles until the end of the block;
    // every pointer that is read is one of the event's own.
    unsafe {
        let queue = Owned(rd_kafka_queue_new(client), rd_kafka_queue_destroy);
        let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Owned(rd_kafka_AdminOptions_new(client, operation), rd_kafka_AdminOptions_destroy);
        rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, ptr::null_mut(), 0);
        let mut names = [name.as_ptr()];
        let topics = rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let topics = Owned(topics, rd_kafka_TopicCollection_destroy);
        rd_kafka_DescribeTopics(client, topics.0, options.0, queue.0);
        // A little past its own time-out, which ends in an event too.
        let event = Owned(rd_kafka_queue_poll(queue.0, timeout_ms.saturating_add(1000)), rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        }
        check(rd_kafka_event_error(event.0))?;
        let mut count = 0;
        let result = rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BadMessage));
        }
        let described = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count != 1 || described.is_null() {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic));
        }
        let described = *described;
        check(rd_kafka_error_code(rd_kafka_TopicDescription_error(described)))?;
        let id = rd_kafka_TopicDescription_topic_id(described);
        let text = if id.is_null() { ptr::null() } else { rd_kafka_Uuid_base64str(id) };
        let text = if text.is_null() { "" } else { CStr::from_ptr(text).to_str().unwrap_or_default() };
        Ok(if text == NONE { String::new() } else { text.to_owned() })
    }
}

fn check(error: RDKafkaRespErr) -> KafkaResult<()> {
    match error {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(KafkaError::MetadataFetch(error.into())),
    }
}
