//! One transactional producer: librdkafka's calls, each bounded, each error with its fate.
//!
//! rdkafka's own `commit_transaction` flushes in slices of 100 ms. Here delivery reports are served by a thread of the
//! producer, so librdkafka's flush and commit are called directly, which makes a cycle of 3 ms. A reply without headers
//! goes to librdkafka directly too, by its topic's handle: rdkafka would copy and look up the topic's name for each.
#![allow(unsafe_code, reason = "librdkafka's produce, flush and commit are called directly")]

mod topic;

use std::cell::RefCell;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, TopicPartitionList};
use rdkafka_sys::types::RDKafkaRespErr;

use self::topic::Topics;
use crate::client::{self, BrokerWatch, is_connection};

/// What a failed call of a transaction means for what comes next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TransactionError {
    /// Another producer has this transactional id now.
    #[error("{0}")]
    Fenced(String),
    /// Replies were refused for good, and the rest can go out without them.
    #[error("{} replies were refused", .0.len())]
    Refused(Vec<Refusal>),
    /// The connection failed, a bound ran out or the group moved on: it passes, and what became of the transaction is
    /// read back.
    #[error("{0}")]
    Connection(String),
    /// The broker takes less metadata with an offset than the offset maps need.
    #[error("an offset map is larger than the broker takes")]
    MapTooLarge,
    /// Anything else, and every error that asks for an abort.
    #[error("{0}")]
    Failed(String),
}

/// A refusal that would come again, however often the reply is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The reply's index in the transaction. `None` when the transaction as a whole was refused for one of them.
    pub(super) index: Option<usize>,
    pub(super) code: RDKafkaErrorCode,
}

/// A reply as the producer takes it.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) payload: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
    /// Its index in the transaction, for the delivery report.
    pub(super) index: usize,
}

/// A producer of replies: with a transactional id, or without one.
pub(super) struct ReplyProducer {
    /// Handles of the topics that replies went to. Declared first: they must be gone before the producer is.
    topics: RefCell<Topics>,
    producer: ThreadedProducer<DeliveryReports>,
    reports: Arc<Mutex<Reports>>,
}

/// Deliveries by index: how each failed, or `None` for those that did not.
pub(super) type Reports = Vec<(usize, Option<RDKafkaErrorCode>)>;

impl ReplyProducer {
    /// With `every`, each delivery is reported; else only those that failed.
    pub(super) fn new(settings: &ClientConfig, watch: Arc<BrokerWatch>, every: bool) -> Result<Self, String> {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let context = DeliveryReports { reports: Arc::clone(&reports), watch, every };
        let producer = ThreadedProducer::from_config_and_context(settings, context);
        let producer = producer.map_err(|error| format!("kafka.client: {error}"))?;
        Ok(Self { topics: RefCell::default(), producer, reports })
    }

    /// Fences earlier producers of this id and ends their transaction. May be called again after a failure.
    pub(super) fn init(&self, bound: Duration) -> Result<(), TransactionError> {
        self.producer.init_transactions(bound).map_err(|error| self.fate(error))
    }

    pub(super) fn begin(&self) -> Result<(), TransactionError> {
        self.reports.lock().clear();
        self.producer.begin_transaction().map_err(|error| self.fate(error))
    }

    /// Hands a reply to librdkafka. A full local queue is waited for.
    pub(super) fn send(&self, outgoing: Outgoing<'_>) -> Result<(), TransactionError> {
        let index = outgoing.index;
        let mut back = Some(outgoing);
        while let Some(outgoing) = back {
            let sent = match outgoing.headers {
                None => {
                    let sent = self.topics.borrow_mut().send(&self.producer, &outgoing);
                    sent.map_err(|error| Box::new((error, outgoing)))
                }
                Some(_) => self.send_with_headers(outgoing),
            };
            back = match sent.map_err(|back| *back) {
                Ok(()) => None,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), outgoing)) => {
                    // The queue empties by the broker's answers; librdkafka has no call that waits for just that.
                    std::thread::sleep(Duration::from_micros(200));
                    Some(outgoing)
                }
                Err((KafkaError::MessageProduction(code), _)) if is_definite(code) => {
                    return Err(TransactionError::Refused(vec![Refusal { index: Some(index), code }]));
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::State), _)) => {
                    return Err(self.why_closed());
                }
                Err((error, _)) => return Err(self.fate(error)),
            };
        }
        Ok(())
    }

    fn send_with_headers<'a>(&self, outgoing: Outgoing<'a>) -> Result<(), Box<(KafkaError, Outgoing<'a>)>> {
        let Outgoing { topic, partition, key, payload, headers, index } = outgoing;
        let timestamp = None;
        let record = BaseRecord { topic, partition, payload, key, timestamp, headers, delivery_opaque: index };
        self.producer.send(record).map_err(|(error, back)| {
            let BaseRecord { topic, partition, payload, key, headers, delivery_opaque: index, .. } = back;
            Box::new((error, Outgoing { topic, partition, key, payload, headers, index }))
        })
    }

    /// Why the open transaction takes no more replies: an earlier one was refused.
    fn why_closed(&self) -> TransactionError {
        // The reports may be a moment behind the state. The commit cannot succeed in it, but says what led there.
        let bound = Duration::from_secs(1);
        let told = self.flush(bound).and_then(|()| self.commit(bound));
        told.err().unwrap_or_else(|| TransactionError::Failed("a transaction that takes no replies".to_owned()))
    }

    /// Waits until every reply of the transaction is acknowledged, and says what was refused.
    pub(super) fn flush(&self, bound: Duration) -> Result<(), TransactionError> {
        self.deliver(bound)?;
        self.refused()
    }

    /// Waits until every reply is acknowledged or refused. The last reports may be a moment behind.
    pub(super) fn deliver(&self, bound: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive; delivery reports are served by the producer's own thread.
        let done = unsafe { rdkafka_sys::rd_kafka_flush(self.producer.client().native_ptr(), millis(bound)) };
        if done != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(TransactionError::Connection(format!("replies were not acknowledged within {bound:?}")));
        }
        Ok(())
    }

    pub(super) fn send_offsets(
        &self,
        positions: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        bound: Duration,
    ) -> Result<(), TransactionError> {
        let sent = self.producer.send_offsets_to_transaction(positions, group, bound);
        sent.map_err(|error| self.fate(error))
    }

    pub(super) fn commit(&self, bound: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive.
        let error =
            unsafe { rdkafka_sys::rd_kafka_commit_transaction(self.producer.client().native_ptr(), millis(bound)) };
        let Some(error) = NativeError::take(error) else { return Ok(()) };
        // The reports may be a moment behind.
        self.flush(Duration::from_secs(1))?;
        Err(error.fate())
    }

    /// Ends the open transaction without a trace. Its failure says nothing new: the producer is dropped after it.
    pub(super) fn abort(&self, bound: Duration) {
        if let Err(error) = self.producer.abort_transaction(bound) {
            tracing::debug!(%error, "the abort failed; the broker will end the transaction");
        }
    }

    /// How many partitions a topic has; `None` when there is no such topic.
    pub(super) fn partitions_of(&self, topic: &str, bound: Duration) -> Result<Option<i32>, TransactionError> {
        let metadata = self.producer.client().fetch_metadata(Some(topic), bound);
        let metadata = metadata.map_err(|error| TransactionError::Connection(error.to_string()))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        // Only the broker's word that there is none counts: a leader may be missing for a moment.
        match found.and_then(rdkafka::metadata::MetadataTopic::error).map(RDKafkaErrorCode::from) {
            None => {}
            Some(code) if is_definite(code) => return Ok(None),
            Some(code) => return Err(TransactionError::Connection(format!("{topic}: {code}"))),
        }
        Ok(found.map(|found| i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)).filter(|&count| count > 0))
    }

    /// What was reported since the last time.
    pub(super) fn take_reports(&self) -> Reports {
        std::mem::take(&mut *self.reports.lock())
    }

    /// Why it can send no more, if it cannot.
    pub(super) fn fatal_error(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{reason} ({code})"))
    }

    fn refused(&self) -> Result<(), TransactionError> {
        let mut reports = self.reports.lock();
        // Where every delivery is reported, the good ones are not lost with the bad.
        let failed: Vec<_> = reports.extract_if(.., |(_, code)| code.is_some()).collect();
        drop(reports);
        // After one refusal librdkafka purges what still waits and fails the other replies of its batch.
        let failed = failed.into_iter().filter_map(|(index, code)| Some((index, code?)));
        let (refused, others): (Vec<_>, Vec<_>) = failed.partition(|(_, code)| is_definite(*code));
        if let Some((_, code)) = others.iter().find(|(_, code)| !is_collateral(*code)) {
            return Err(TransactionError::Connection(format!("a reply was not delivered: {code}")));
        }
        if refused.is_empty() {
            return Ok(());
        }
        let refusal = |(index, code)| Refusal { index: Some(index), code };
        Err(TransactionError::Refused(refused.into_iter().map(refusal).collect()))
    }

    fn fate(&self, error: KafkaError) -> TransactionError {
        if let Err(refused @ TransactionError::Refused(_)) = self.refused() {
            return refused;
        }
        match error {
            KafkaError::Transaction(error) => NativeError { code: error.code(), message: error.string() }.fate(),
            error => match error.rdkafka_error_code() {
                Some(code) => NativeError { code, message: error.to_string() }.fate(),
                None => TransactionError::Failed(error.to_string()),
            },
        }
    }
}

struct NativeError {
    code: RDKafkaErrorCode,
    message: String,
}

impl NativeError {
    fn take(error: *mut rdkafka_sys::rd_kafka_error_t) -> Option<Self> {
        if error.is_null() {
            return None;
        }
        // SAFETY: the error is ours until it is destroyed, which is the last thing done with it.
        unsafe {
            let code = RDKafkaErrorCode::from(rdkafka_sys::rd_kafka_error_code(error));
            let message = CStr::from_ptr(rdkafka_sys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
            rdkafka_sys::rd_kafka_error_destroy(error);
            Some(Self { code, message })
        }
    }

    fn fate(self) -> TransactionError {
        use RDKafkaErrorCode as Code;
        let message = format!("{} ({})", self.message, self.code);
        match self.code {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::FencedInstanceId => {
                TransactionError::Fenced(message)
            }
            // The group moved on meanwhile: nothing is wrong with the producer, and nothing was committed.
            Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress => {
                TransactionError::Connection(message)
            }
            Code::OffsetMetadataTooLarge => TransactionError::MapTooLarge,
            code if is_connection(code) => TransactionError::Connection(message),
            code if is_definite(code) => TransactionError::Refused(vec![Refusal { index: None, code }]),
            _ => TransactionError::Failed(message),
        }
    }
}

/// A refusal that would come again, however often the reply is sent.
pub(super) fn is_definite(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::MessageSizeTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::MessageBatchTooLarge
            | Code::TopicAuthorizationFailed
    )
}

/// What happens to a reply because another was refused.
fn is_collateral(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord)
}

fn millis(bound: Duration) -> i32 {
    i32::try_from(bound.as_millis()).unwrap_or(i32::MAX)
}

/// Keeps the failed deliveries of the open transaction.
struct DeliveryReports {
    reports: Arc<Mutex<Reports>>,
    watch: Arc<BrokerWatch>,
    every: bool,
}

impl ClientContext for DeliveryReports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.client_error(&error, reason);
    }
}

impl ProducerContext for DeliveryReports {
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, index: usize) {
        let failed = report.as_ref().err();
        let code = failed.map(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail));
        if code.is_some() || self.every {
            self.reports.lock().push((index, code));
        }
    }
}
