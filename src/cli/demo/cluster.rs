//! Where the demo streams: librdkafka's in-process mock cluster, or a broker of the user's.
#![allow(unsafe_code, reason = "the mock cluster's settings are not in rdkafka's own interface")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::clock;

/// Partitions of both topics.
pub(super) const PARTITIONS: i32 = 4;
const BOUND: Duration = Duration::from_secs(20);

/// A cluster, the demo's two topics on it and its consumer group.
pub(super) struct Cluster {
    pub(super) brokers: String,
    pub(super) features: String,
    pub(super) scores: String,
    pub(super) group: String,
    /// The mock cluster lives in this client.
    mock: Option<BaseProducer>,
}

impl Cluster {
    pub(super) fn mock() -> anyhow::Result<Self> {
        let mut client = ClientConfig::new();
        client.set("test.mock.num.brokers", "1").set_log_level(RDKafkaLogLevel::Error);
        let holder: BaseProducer = client.create().context("the in-process broker does not start")?;
        let mock = holder.client().mock_cluster().context("the in-process broker does not start")?;
        let brokers = mock.bootstrap_servers();
        for topic in ["features", "scores"] {
            mock.create_topic(topic, PARTITIONS, 1).context("the in-process broker refused a topic")?;
        }
        // SAFETY: the handle belongs to the client, which outlives the call. Without it the first record takes 3 s.
        unsafe {
            let handle = rdkafka_sys::rd_kafka_handle_mock_cluster(holder.client().native_ptr());
            rdkafka_sys::rd_kafka_mock_group_initial_rebalance_delay_ms(handle, 0);
        }
        drop(mock);
        let name = |name: &str| name.to_owned();
        Ok(Self {
            brokers,
            features: name("features"),
            scores: name("scores"),
            group: name("demo"),
            mock: Some(holder),
        })
    }

    /// Two fresh topics on a real cluster.
    pub(super) fn real(brokers: &str) -> anyhow::Result<Self> {
        let run = clock::unix_ms();
        let cluster = Self {
            brokers: brokers.to_owned(),
            features: format!("forebay-demo-{run}-features"),
            scores: format!("forebay-demo-{run}-scores"),
            group: format!("forebay-demo-{run}"),
            mock: None,
        };
        let topics = [&cluster.features, &cluster.scores];
        let topics = topics.map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)));
        let created = cluster.admin(async |admin, options| admin.create_topics(&topics, options).await)?;
        for created in created {
            created.map_err(|(topic, code)| anyhow::anyhow!("cannot create {topic} on {brokers}: {code}"))?;
        }
        Ok(cluster)
    }

    pub(super) fn is_mock(&self) -> bool {
        self.mock.is_some()
    }

    /// Removes what [`Cluster::real`] made.
    pub(super) fn clean_up(&self) {
        if self.is_mock() {
            return;
        }
        let topics = [self.features.as_str(), self.scores.as_str()];
        if let Err(error) = self.admin(async |admin, options| admin.delete_topics(&topics, options).await) {
            eprintln!("the demo's topics stay behind: {error}");
        }
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set_log_level(RDKafkaLogLevel::Error);
        client.set("fetch.wait.max.ms", if self.is_mock() { "5" } else { "500" });
        client
    }

    /// Whether the group has committed every record of the features topic.
    pub(super) fn all_committed(&self, asker: &BaseConsumer) -> bool {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.features, 0, PARTITIONS - 1);
        let Ok(committed) = asker.committed_offsets(asked, BOUND) else { return false };
        committed.elements().iter().all(|element| {
            let end = asker.fetch_watermarks(&self.features, element.partition(), BOUND);
            matches!((element.offset(), end), (Offset::Offset(at), Ok((_, end))) if at >= end)
        })
    }

    /// Whether the group has this many members, all with their partitions.
    pub(super) fn group_is_stable(&self, asker: &BaseConsumer, members: usize) -> bool {
        let groups = asker.fetch_group_list(Some(&self.group), BOUND);
        groups.is_ok_and(|groups| groups.groups().iter().any(|g| g.state() == "Stable" && g.members().len() == members))
    }

    /// A consumer that asks for the group's positions and never joins it.
    pub(super) fn asker(&self) -> anyhow::Result<BaseConsumer> {
        let mut client = self.client();
        client.set("group.id", &self.group).set("enable.auto.commit", "false");
        Ok(client.create()?)
    }

    fn admin<T>(
        &self,
        call: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> rdkafka::error::KafkaResult<T>,
    ) -> anyhow::Result<T> {
        let admin: AdminClient<_> = self.client().create()?;
        let options = AdminOptions::new().operation_timeout(Some(BOUND)).request_timeout(Some(BOUND));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(call(&admin, &options));
        ensure!(
            !matches!(&done, Err(error) if error.rdkafka_error_code().is_some_and(is_away)),
            "no broker answers at {}",
            self.brokers
        );
        Ok(done?)
    }
}

fn is_away(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::OperationTimedOut | Code::AllBrokersDown | Code::BrokerTransportFailure | Code::RequestTimedOut
    )
}
