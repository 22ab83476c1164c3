//! What a topic takes: asked by an admin client of its own, which is made when it is first needed.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};

/// Asks for the settings of topics.
pub(crate) struct TopicSettings {
    client: ClientConfig,
    admin: Option<(AdminClient<Quiet>, tokio::runtime::Runtime)>,
}

impl TopicSettings {
    pub(crate) fn new(client: ClientConfig) -> Self {
        Self { client, admin: None }
    }

    /// A topic's `max.message.bytes`. `None` when the broker does not say, for which it may have its reasons (the right
    /// `DESCRIBE_CONFIGS` is not one that a worker must have).
    pub(crate) fn message_bytes_max(&mut self, topic: &str, bound: Duration) -> Option<usize> {
        fail::fail_point!("client::topic_settings", |_| None);
        let asked = self.ask(topic, bound);
        asked.inspect_err(|error| tracing::debug!(%error, topic, "the topic's settings are not known")).ok().flatten()
    }

    fn ask(&mut self, topic: &str, bound: Duration) -> KafkaResult<Option<usize>> {
        let (admin, runtime) = match &mut self.admin {
            Some(both) => both,
            none => {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                let runtime = runtime.map_err(|error| KafkaError::AdminOpCreation(error.to_string()))?;
                let admin = AdminClient::from_config_and_context(&self.client, Quiet)?;
                none.insert((admin, runtime))
            }
        };
        let options = AdminOptions::new().request_timeout(Some(bound)).operation_timeout(Some(bound));
        let answers = runtime.block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options))?;
        let setting = answers.into_iter().filter_map(Result::ok).find_map(|answer| {
            let value = answer.get("max.message.bytes")?.value.clone()?;
            value.parse().ok()
        });
        Ok(setting)
    }
}

/// Its connections are of no interest: the producer's say the same.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}
