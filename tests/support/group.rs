//! Groups and topics as other clients leave them: positions with metadata, aborted transactions, deleted records.

use std::time::Duration;

use forebay::clock;
use rdkafka::admin::NewPartitions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::{BOUND, Kafka, Record, done, until};

impl Kafka {
    /// The group's committed offsets of a topic and what is written beside them, by partition.
    pub fn committed_with_metadata(&self, group: &str, topic: &str, partitions: i32) -> Vec<(i64, String)> {
        let asker: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let committed = asker.committed_offsets(asked, BOUND).unwrap();
        let each = committed.elements();
        each.iter().map(|element| (element.offset().to_raw().unwrap_or(-1), element.metadata().to_owned())).collect()
    }

    /// Commits for a group from outside of it, as an admin client does. The group must have no members; while one that
    /// was killed still counts as such, it is tried again.
    pub fn commit_as(&self, group: &str, topic: &str, positions: &[(i32, i64, &str)]) {
        let outsider: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        for (partition, offset, metadata) in positions {
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(*offset)).unwrap();
            element.set_metadata(metadata);
        }
        until("an empty group", || outsider.commit(&list, CommitMode::Sync).is_ok());
    }

    /// The end offsets of a topic, those of open transactions too.
    pub fn high_ends(&self, topic: &str, partitions: i32) -> Vec<i64> {
        let asker: BaseConsumer = self.client().set("isolation.level", "read_uncommitted").create().unwrap();
        (0..partitions).map(|partition| asker.fetch_watermarks(topic, partition, BOUND).unwrap().1).collect()
    }

    /// Removes the records of a partition before this offset.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let (admin, options) = self.admin();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        let deleted = done(admin.delete_records(&list, &options)).unwrap();
        deleted.elements().iter().for_each(|element| element.error().unwrap());
    }

    /// Makes a topic one of `count` partitions.
    pub fn grow(&self, topic: &str, count: usize) {
        let (admin, options) = self.admin();
        let grown = done(admin.create_partitions(&[NewPartitions::new(topic, count)], &options)).unwrap();
        for topic in grown {
            topic.unwrap();
        }
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &str) {
        let (admin, options) = self.admin();
        let deleted = done(admin.delete_topics(&[topic], &options)).unwrap();
        for topic in deleted {
            topic.unwrap();
        }
    }

    /// A producer that sends in transactions.
    pub fn transactions(&self, id: &str) -> Transactions {
        let producer: ThreadedProducer<_> = self.client().set("transactional.id", id).create().unwrap();
        producer.init_transactions(BOUND).unwrap();
        Transactions(producer)
    }

    /// Waits until compaction has left holes in a partition: fewer records than offsets. Each call of `more` appends
    /// something, for only what is no longer written to is compacted.
    pub fn wait_compacted(&self, topic: &str, mut more: impl FnMut()) {
        let mut appended = clock::now();
        until("a compacted topic", || {
            if clock::now() - appended > Duration::from_secs(2) {
                more();
                appended = clock::now();
            }
            let records = self.read(topic, 0);
            records.windows(2).any(|pair| pair[1].offset > pair[0].offset + 1)
        });
    }
}

/// Sends in transactions, some of which it aborts.
pub struct Transactions(ThreadedProducer<DefaultProducerContext>);

impl Transactions {
    /// One transaction.
    pub fn send(&self, topic: &str, records: &[Record], commits: bool) {
        self.0.begin_transaction().unwrap();
        for record in records {
            record.send(&self.0, topic);
        }
        self.0.flush(BOUND).unwrap();
        if commits { self.0.commit_transaction(BOUND) } else { self.0.abort_transaction(BOUND) }.unwrap();
    }
}
