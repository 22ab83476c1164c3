//! Requests into a topic of Kafka.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use super::super::place::Requests;
use super::Cluster;

pub(super) struct TopicRequests {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl TopicRequests {
    pub(super) fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut client = cluster.client();
        // Five requests in flight at most: a slow broker then gets larger batches, not a longer queue of small ones.
        client.set("linger.ms", "5").set("queue.buffering.max.messages", "1000000").set("enable.idempotence", "true");
        let producer: ThreadedProducer<DefaultProducerContext> = client.create()?;
        let topic = cluster.features.clone();
        // The producer knows its brokers before the clock starts.
        producer.client().fetch_metadata(Some(&topic), Duration::from_secs(10))?;
        Ok(Self { producer, topic })
    }
}

impl Requests for TopicRequests {
    fn send(&mut self, record: usize, body: String) -> anyhow::Result<()> {
        let key = record.to_string();
        self.producer.send(BaseRecord::to(&self.topic).key(&key).payload(&body)).map_err(|(error, _)| error)?;
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.producer.flush(Duration::from_secs(30)).context("the features were not acknowledged")
    }
}
