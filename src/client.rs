//! Kafka clients: the settings that the promise of exactly-once stands on, librdkafka's log and errors on their way
//! into ours, and the watch on whether a broker can be reached. The client of NATS is in [`nats`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};

use crate::clock;
use crate::config::{Config, Delivery, Kafka, Rebalance};
use crate::metrics::Metrics;

pub(crate) mod acks;
pub(crate) mod checkpoints;
pub(crate) mod delivery;
pub mod nats;
pub(crate) mod positions;
pub(crate) mod topic_id;
pub(crate) mod topics;

use self::positions::Committed;

/// After this the broker aborts an open transaction by itself. Everything below waits less.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a produced reply or a request to a broker may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// How long after a broker came back it may still be said that it is away.
const STALE_WORD: Duration = Duration::from_secs(1);
/// librdkafka's own bound on a batch.
pub(crate) const BATCH_BYTES: usize = 1_000_000;
/// How long the group waits for a silent member.
const SESSION_TIMEOUT: Duration = Duration::from_secs(15);

/// The settings of one shard's clients.
#[derive(Clone, Debug)]
pub(crate) struct ClientSettings {
    kafka: Kafka,
    shard: u32,
    member: String,
    transactional_id: String,
}

impl ClientSettings {
    pub(crate) fn new(kafka: &Kafka, instance: &str, shard: u32) -> Self {
        let member = format!("{instance}-{shard}");
        let transactional_id = format!("{}-{instance}-{shard}", kafka.group);
        Self { kafka: kafka.clone(), shard, member, transactional_id }
    }

    pub(crate) fn transactional_id(&self) -> &str {
        &self.transactional_id
    }

    pub(crate) fn limits(&self) -> &Kafka {
        &self.kafka
    }

    pub(crate) fn shard(&self) -> u32 {
        self.shard
    }

    /// What both clients share; the user's own keys first, so that ours stand.
    fn base(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        for (key, value) in &self.kafka.client {
            client.set(key, value.expose());
        }
        client
            .set("bootstrap.servers", &self.kafka.brokers)
            .set("socket.timeout.ms", millis(REQUEST_TIMEOUT))
            .set_log_level(RDKafkaLogLevel::Info);
        default_to(&mut client, "client.id", &self.member);
        default_to(&mut client, "reconnect.backoff.max.ms", "1000");
        client
    }

    pub(crate) fn consumer(&self) -> ClientConfig {
        let mut client = self.base();
        client
            .set("group.id", &self.kafka.group)
            .set("group.instance.id", &self.member)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error");
        // The end of a topic past its last record is only in the statistics.
        client.set("statistics.interval.ms", "1000");
        match self.kafka.rebalance {
            Rebalance::Cooperative => client.set("partition.assignment.strategy", "cooperative-sticky"),
            Rebalance::Eager => client.set("partition.assignment.strategy", "range"),
            // The session is the broker's to bound, and so are the assignments.
            Rebalance::Consumer => client.set("group.protocol", "consumer"),
        };
        if self.kafka.rebalance != Rebalance::Consumer {
            default_to(&mut client, "session.timeout.ms", millis(SESSION_TIMEOUT));
        }
        // The default of a second stalls a consumer whose queue was full for a moment.
        default_to(&mut client, "fetch.queue.backoff.ms", "2");
        default_to(&mut client, "queued.max.messages.kbytes", "32768");
        client
    }

    /// For questions about topics.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.base()
    }

    /// Whether batches are compressed.
    pub(crate) fn compresses(&self) -> bool {
        ["compression.type", "compression.codec"]
            .iter()
            .any(|key| self.kafka.client.get(*key).is_some_and(|value| value.expose() != "none"))
    }

    /// `batch_bytes_max`: no topic that replies go to takes a larger batch.
    pub(crate) fn producer(&self, batch_bytes_max: usize) -> ClientConfig {
        let mut client = self.base();
        if self.kafka.delivery == Delivery::ExactlyOnce {
            client
                .set("transactional.id", &self.transactional_id)
                .set("transaction.timeout.ms", millis(TRANSACTION_TIMEOUT));
        }
        client.set("message.timeout.ms", millis(REQUEST_TIMEOUT)).set("enable.idempotence", "true").set("acks", "all");
        default_to(&mut client, "partitioner", "murmur2_random");
        // A transaction is flushed; what goes out by itself should not wait for company.
        default_to(&mut client, "linger.ms", if self.kafka.delivery == Delivery::ExactlyOnce { "1" } else { "0" });
        // Right after a transaction the broker asks to be asked again, until its markers are written.
        default_to(&mut client, "retry.backoff.ms", "1");
        default_to(&mut client, "retry.backoff.max.ms", "4");
        default_to(&mut client, "batch.num.messages", "10000");
        default_to(&mut client, "queue.buffering.max.messages", "1000000");
        let batch_bytes = client.get("batch.size").and_then(|text| text.parse().ok()).unwrap_or(BATCH_BYTES);
        if batch_bytes_max < batch_bytes {
            client.set("batch.size", batch_bytes_max.to_string());
        }
        client
    }
}

/// The consumer as a sink needs it: its standing in the group, and what the group has committed.
pub(crate) trait GroupMember: Send + Sync {
    /// The member's id and generation now, for a commit in a transaction.
    fn metadata(&self) -> Option<ConsumerGroupMetadata>;

    /// The group's committed positions, no transaction being open over them.
    fn committed(&self, partitions: TopicPartitionList, bound: Duration) -> KafkaResult<Vec<Committed>>;

    /// Commits positions by themselves, and waits for it.
    fn commit(&self, positions: &TopicPartitionList) -> KafkaResult<()>;

    /// The same without a wait, where nothing depends on it.
    fn commit_soon(&self, positions: &TopicPartitionList) -> KafkaResult<()>;
}

/// Whether librdkafka takes the settings, those of `[kafka.client]` among them, and whether the files that `[nats]` names
/// are there.
///
/// # Errors
/// librdkafka's own words for the first that it does not take, or what is wrong with a file.
pub(crate) fn check_settings(config: &Config) -> Result<(), String> {
    if let Some(kafka) = &config.kafka {
        let settings = ClientSettings::new(kafka, &config.instance, 0);
        for client in [settings.consumer(), settings.producer(usize::MAX)] {
            client.create_native_config().map_err(|error| format!("kafka.client: {error}"))?;
        }
    }
    let Some(nats) = &config.nats else {
        return Ok(());
    };
    nats::check_settings(&nats.connection).map_err(|error| error.to_string())
}

fn default_to(client: &mut ClientConfig, key: &str, value: impl Into<String>) {
    if client.get(key).is_none() {
        client.set(key, value);
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Whether a broker can be reached, said once when it changes.
#[derive(Debug)]
pub(crate) struct BrokerWatch {
    away: AtomicBool,
    since: Mutex<Option<Instant>>,
    back_at: Mutex<Option<Instant>>,
    brokers: String,
    metrics: Arc<Metrics>,
}

impl BrokerWatch {
    pub(crate) fn new(brokers: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            away: AtomicBool::new(false),
            since: Mutex::new(None),
            back_at: Mutex::new(None),
            brokers: brokers.to_owned(),
            metrics,
        }
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub(crate) fn gone(&self, reason: &str) {
        // Another client's word may have been under way when the broker came back.
        if self.back_at.lock().is_some_and(|back| clock::now() - back < STALE_WORD) {
            return;
        }
        if !self.away.swap(true, Ordering::Relaxed) {
            *self.since.lock() = Some(clock::now());
            self.metrics.broker_away.set(1);
            tracing::warn!(brokers = %self.brokers, reason, "no broker can be reached; waiting for one");
        }
    }

    pub(crate) fn back(&self) {
        // The plain load keeps the usual case, a broker that was never away, free of writes.
        if self.is_away() && self.away.swap(false, Ordering::Relaxed) {
            self.metrics.broker_away.set(0);
            *self.back_at.lock() = Some(clock::now());
            let away = self.since.lock().take().map(|since| clock::now() - since).unwrap_or_default();
            tracing::info!(brokers = %self.brokers, away_s = away.as_secs_f64(), "a broker is back");
        }
    }

    /// A client's own error event: a sign that no broker can be reached, or a line in the log.
    pub(crate) fn client_error(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.gone(reason),
            // One broker's connection: librdkafka mends it, and says AllBrokersDown when it cannot.
            Some(code) if is_connection(code) => tracing::debug!(target: "librdkafka", %error, reason),
            _ => tracing::warn!(target: "librdkafka", %error, reason),
        }
    }
}

/// A fault of the connection, not of what was asked: it passes by itself.
pub(crate) fn is_connection(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::MessageTimedOut
    )
}

/// librdkafka's log, in ours. Lost connections are the watch's business: they would fill the log while a broker is away.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    if facility == "FAIL" || facility == "REQTMOUT" {
        tracing::debug!(target: "librdkafka", facility, "{message}");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
    }
}
