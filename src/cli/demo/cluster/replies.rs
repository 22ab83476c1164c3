//! Replies out of a topic of Kafka, those that are committed.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::super::place::{PARTITIONS, Replies};
use super::Cluster;

pub(super) struct TopicReplies {
    consumer: BaseConsumer,
    at_end: [bool; PARTITIONS as usize],
}

impl TopicReplies {
    pub(super) fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut client = cluster.client();
        client
            .set("group.id", format!("{}-reader", cluster.group))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer = client.create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(&cluster.scores, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        Ok(Self { consumer, at_end: [false; PARTITIONS as usize] })
    }
}

impl Replies for TopicReplies {
    fn read(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let mut wait = Duration::from_millis(20);
        while let Some(record) = self.consumer.poll(wait) {
            match record {
                Ok(record) => {
                    if let Ok(partition) = usize::try_from(record.partition()) {
                        self.at_end[partition] = false;
                    }
                    each(record.payload().unwrap_or_default());
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    if let Ok(partition) = usize::try_from(partition) {
                        self.at_end[partition] = true;
                    }
                }
                Err(error) if error.rdkafka_error_code().is_some_and(crate::client::is_connection) => {}
                Err(error) => return Err(error).context("the reply topic cannot be read"),
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn is_at_end(&self) -> anyhow::Result<bool> {
        Ok(self.at_end.iter().all(|end| *end))
    }
}
