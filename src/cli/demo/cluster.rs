//! The demo's place on Kafka: librdkafka's in-process mock cluster, or a broker of the user's.
#![allow(unsafe_code, reason = "the mock cluster's settings are not in rdkafka's own interface")]

mod replies;
mod requests;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use self::replies::TopicReplies;
use self::requests::TopicRequests;
use super::place::{PARTITIONS, Place, Replies, Requests};
use crate::clock;

const BOUND: Duration = Duration::from_secs(20);

/// A cluster, the demo's two topics on it and its consumer group.
pub(super) struct Cluster {
    brokers: String,
    features: String,
    scores: String,
    group: String,
    /// Asks for the group's positions and never joins it.
    asker: BaseConsumer,
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
        Self::new(brokers, "", "demo", Some(holder))
    }

    /// Two fresh topics on a real cluster.
    pub(super) fn real(brokers: &str) -> anyhow::Result<Self> {
        let run = format!("forebay-demo-{}", clock::unix_ms());
        let cluster = Self::new(brokers.to_owned(), &format!("{run}-"), &run, None)?;
        let topics = [&cluster.features, &cluster.scores];
        let topics = topics.map(|topic| NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)));
        let created = cluster.admin(async |admin, options| admin.create_topics(&topics, options).await)?;
        for created in created {
            created.map_err(|(topic, code)| anyhow::anyhow!("cannot create {topic} on {brokers}: {code}"))?;
        }
        Ok(cluster)
    }

    fn new(brokers: String, prefix: &str, group: &str, mock: Option<BaseProducer>) -> anyhow::Result<Self> {
        let mut client = client(&brokers, mock.is_some());
        client.set("group.id", group).set("enable.auto.commit", "false");
        Ok(Self {
            brokers,
            features: format!("{prefix}features"),
            scores: format!("{prefix}scores"),
            group: group.to_owned(),
            asker: client.create()?,
            mock,
        })
    }

    fn client(&self) -> ClientConfig {
        client(&self.brokers, self.mock.is_some())
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

impl Place for Cluster {
    fn head(&self, rate_per_s: u32) -> String {
        if self.mock.is_some() {
            format!(
                "broker  in process (librdkafka mock), {PARTITIONS} partitions, paced {rate_per_s}/s\n        \
                 This shows the pipeline. Exactly once needs a real broker: make demo-kafka"
            )
        } else {
            format!("broker  {}, {PARTITIONS} partitions, exactly once, two workers", self.brokers)
        }
    }

    fn toml(&self) -> String {
        let Self { brokers, features, scores, group, .. } = self;
        // The mock cluster answers a fetch that finds nothing only when its wait is over, whatever comes meanwhile.
        let fetch = if self.mock.is_some() { "\n[kafka.client]\n\"fetch.wait.max.ms\" = 5\n" } else { "" };
        format!(
            "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n{fetch}\n[[route]]\ninput = [\"{features}\"]\n\
             reply_topic = \"{scores}\"\n"
        )
    }

    fn requests(&self) -> anyhow::Result<Box<dyn Requests>> {
        Ok(Box::new(TopicRequests::new(self)?))
    }

    fn replies(&self) -> anyhow::Result<Box<dyn Replies>> {
        Ok(Box::new(TopicReplies::new(self)?))
    }

    fn is_shared_by(&self, workers: usize) -> bool {
        let groups = self.asker.fetch_group_list(Some(&self.group), BOUND);
        groups.is_ok_and(|groups| groups.groups().iter().any(|g| g.state() == "Stable" && g.members().len() == workers))
    }

    fn is_all_done(&self) -> bool {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.features, 0, PARTITIONS - 1);
        let Ok(committed) = self.asker.committed_offsets(asked, BOUND) else { return false };
        committed.elements().iter().all(|element| {
            let end = self.asker.fetch_watermarks(&self.features, element.partition(), BOUND);
            matches!((element.offset(), end), (Offset::Offset(at), Ok((_, end))) if at >= end)
        })
    }

    fn next(&self) -> Option<&'static str> {
        self.mock.is_some().then_some("make demo-kafka · forebay score --help · README \"Your own model\"")
    }

    fn clean_up(&self) {
        if self.mock.is_some() {
            return;
        }
        let topics = [self.features.as_str(), self.scores.as_str()];
        if let Err(error) = self.admin(async |admin, options| admin.delete_topics(&topics, options).await) {
            eprintln!("the demo's topics stay behind: {error}");
        }
    }
}

fn client(brokers: &str, is_mock: bool) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set_log_level(RDKafkaLogLevel::Error);
    client.set("fetch.wait.max.ms", if is_mock { "5" } else { "500" });
    client
}

fn is_away(code: rdkafka::error::RDKafkaErrorCode) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::OperationTimedOut | Code::AllBrokersDown | Code::BrokerTransportFailure | Code::RequestTimedOut
    )
}
