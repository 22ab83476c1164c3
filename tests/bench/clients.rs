//! The Kafka clients: the settings that every subject runs with, in one place, and the bench's own feeder and reader.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::stream::{Format, Stream};

/// Partitions of every topic.
pub(crate) const PARTITIONS: i32 = 4;

/// Of every subject on librdkafka: how much is fetched ahead, and how soon again after a full queue.
pub(crate) const CONSUMER: &[(&str, &str)] =
    &[("fetch.min.bytes", "1"), ("fetch.queue.backoff.ms", "2"), ("queued.max.messages.kbytes", "32768")];

/// Of every subject on librdkafka: how long a record waits for company, and how much waits.
pub(crate) const PRODUCER: &[(&str, &str)] = &[
    ("linger.ms", "1"),
    ("batch.num.messages", "10000"),
    ("queue.buffering.max.messages", "1000000"),
    ("retry.backoff.ms", "1"),
    ("retry.backoff.max.ms", "4"),
];

/// What makes a consumer one of an exactly-once loop. forebay and Quix Streams set these themselves.
pub(crate) const CONSUMER_OF_A_LOOP: &[(&str, &str)] =
    &[("isolation.level", "read_committed"), ("enable.auto.commit", "false"), ("auto.offset.reset", "earliest")];

/// The model's name, in worker.toml, in `MLServer`'s settings and in the header that `MLServer` wants.
pub(crate) const MODEL: &str = "reference";

const BOUND: Duration = Duration::from_secs(30);

pub(crate) fn client(brokers: &str, settings: &[&[(&str, &str)]]) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set_log_level(RDKafkaLogLevel::Error);
    for (key, value) in settings.concat() {
        client.set(key, value);
    }
    client
}

/// For people: `key=value` joined by spaces.
pub(crate) fn shown(settings: &[(&str, &str)]) -> String {
    settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// Sends records of the stream.
pub(crate) struct Feeder {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    format: Format,
}

impl Feeder {
    /// Five requests in flight at most: a slow broker then gets larger batches, not a longer queue of small ones.
    pub(crate) fn new(brokers: &str, topic: &str, format: Format, linger_ms: u32) -> anyhow::Result<Self> {
        let linger_ms = linger_ms.to_string();
        let own = [("enable.idempotence", "true"), ("linger.ms", linger_ms.as_str()), ("batch.num.messages", "10000")];
        let producer: ThreadedProducer<_> = client(brokers, &[&own]).create()?;
        // The producer knows its brokers before a clock starts.
        producer.client().fetch_metadata(Some(topic), BOUND)?;
        Ok(Self { producer, topic: topic.to_owned(), format })
    }

    /// Sends a record; partitions take turns. A full local queue is waited for.
    pub(crate) fn send(&self, stream: &Stream, record: usize) -> anyhow::Result<()> {
        self.send_as(&format!("r{record}"), record, &stream.request(record, self.format))
    }

    /// Sends a record whose reply counts for nothing.
    pub(crate) fn probe(&self, stream: &Stream, number: usize) -> anyhow::Result<()> {
        let body = stream.request(number, self.format).replacen("\"r", "\"probe", 1);
        self.send_as("probe", number, &body)
    }

    fn send_as(&self, key: &str, number: usize, body: &str) -> anyhow::Result<()> {
        let partition = i32::try_from(number % PARTITIONS.unsigned_abs() as usize)?;
        let mut out = BaseRecord::to(&self.topic).partition(partition).key(key).payload(body);
        if self.format == Format::V2 {
            let model = Header { key: "mlserver-model", value: Some(MODEL) };
            out = out.headers(OwnedHeaders::new_with_capacity(1).insert(model));
        }
        loop {
            match self.producer.send(out) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    out = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error).context("the feeder cannot send"),
            }
        }
    }

    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        self.producer.flush(BOUND).context("the records were not acknowledged")
    }
}

/// A reader of a whole topic from its beginning, of committed records only.
pub(crate) fn reader(brokers: &str, topic: &str) -> anyhow::Result<BaseConsumer> {
    let own = [("group.id", "bench-reader"), ("enable.partition.eof", "true")];
    let consumer: BaseConsumer = client(brokers, &[CONSUMER, CONSUMER_OF_A_LOOP, &own]).create()?;
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    Ok(consumer)
}

/// The end of what a reader can see, by partition.
pub(crate) fn visible_ends(asker: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<i64>> {
    let end = |partition| Ok(asker.fetch_watermarks(topic, partition, BOUND)?.1);
    (0..PARTITIONS).map(end).collect()
}
