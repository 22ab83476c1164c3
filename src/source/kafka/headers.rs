//! A record's headers, as librdkafka holds them.
#![allow(unsafe_code, reason = "rdkafka's own header access panics on names that are not UTF-8")]

use std::ffi::{CStr, c_void};

use rdkafka::message::BorrowedMessage;
use rdkafka_sys::types::RDKafkaRespErr;

/// The headers of a record. A name that is not UTF-8 is none that we read, so it is passed over.
pub(super) fn headers_of<'a>(record: &'a BorrowedMessage<'_>) -> Vec<(&'a str, Option<&'a [u8]>)> {
    // Most records have none, and an empty vector allocates nothing.
    let mut headers = Vec::new();
    let mut native = std::ptr::null_mut();
    // SAFETY: the message is alive for 'a; the headers belong to it and live as long.
    let found = unsafe { rdkafka_sys::rd_kafka_message_headers(record.ptr(), &raw mut native) };
    if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return headers;
    }
    for index in 0.. {
        let mut name = std::ptr::null();
        let mut value: *const c_void = std::ptr::null();
        let mut size = 0;
        // SAFETY: as above; past the last index the call answers NOENT and writes nothing.
        let found = unsafe {
            rdkafka_sys::rd_kafka_header_get_all(native, index, &raw mut name, &raw mut value, &raw mut size)
        };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            break;
        }
        // SAFETY: a header's name is NUL-terminated and lives with the message.
        let name: &'a CStr = unsafe { CStr::from_ptr(name) };
        // SAFETY: a value that is there has `size` bytes, which live with the message.
        let value = (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) });
        if let Ok(name) = name.to_str() {
            headers.push((name, value));
        }
    }
    headers
}
