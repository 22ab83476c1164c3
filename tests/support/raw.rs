//! Records that rdkafka's own interface cannot make.
#![allow(unsafe_code, reason = "rdkafka takes header names as text only, while Kafka takes any bytes")]

use std::ffi::{CString, c_char, c_void};

use rdkafka::producer::Producer as _;
use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_vtype_t as Kind;
use rdkafka_sys::rd_kafka_vu_s__bindgen_ty_1 as Value;

use super::{BOUND, Kafka, Record};

impl Kafka {
    /// Sends a record with one more header, whose name need not be UTF-8, and waits for its acknowledgement.
    pub fn send_with_header(&self, topic: &str, record: &Record, name: &[u8], value: &[u8]) {
        let producer = self.producer();
        let (topic, name) = (CString::new(topic).unwrap(), CString::new(name).unwrap());
        let mem = |bytes: &[u8]| Value {
            mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
                ptr: bytes.as_ptr().cast::<c_void>().cast_mut(),
                size: bytes.len(),
            },
        };
        let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
            name: name.as_ptr(),
            val: value.as_ptr().cast(),
            size: isize::try_from(value.len()).unwrap(),
        };
        let parts = [
            (Kind::RD_KAFKA_VTYPE_TOPIC, Value { cstr: topic.as_ptr().cast::<c_char>() }),
            (Kind::RD_KAFKA_VTYPE_KEY, mem(record.key.as_deref().unwrap_or_default())),
            (Kind::RD_KAFKA_VTYPE_VALUE, mem(record.payload.as_deref().unwrap_or_default())),
            (Kind::RD_KAFKA_VTYPE_MSGFLAGS, Value { i: sys::RD_KAFKA_MSG_F_COPY }),
            (Kind::RD_KAFKA_VTYPE_HEADER, Value { header }),
        ];
        let parts = parts.map(|(vtype, u)| sys::rd_kafka_vu_s { vtype, u });
        // SAFETY: the client is alive; each part's member is the one that its kind names, and what they point to lives
        // until the call is over, which copies it.
        let error = unsafe { sys::rd_kafka_produceva(producer.client().native_ptr(), parts.as_ptr(), parts.len()) };
        assert!(error.is_null(), "the record was refused");
        producer.flush(BOUND).unwrap();
    }
}
