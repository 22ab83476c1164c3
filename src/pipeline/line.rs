//! What a line is made of, by the systems at its ends.

use std::sync::Arc;

use super::WorkerError;
use super::shard::Shard;
use crate::client::{BrokerWatch, ClientSettings, GroupMember};
use crate::config::{Config, Kafka, Ordering, System};
use crate::sink::Sink;
use crate::sink::inbox::Inbox;
use crate::sink::kafka::KafkaSink;
use crate::source::kafka::KafkaSource;
use crate::source::{GroupListener, Source};

/// Both ends.
pub(super) struct Line {
    pub(super) source: Box<dyn Source>,
    pub(super) sink: Box<dyn Sink>,
}

/// Connects both ends. Servers that are away are waited for, by each end.
pub(super) fn open(shard: &Shard, listener: Arc<dyn GroupListener>, _inbox: &Arc<Inbox>) -> Result<Line, WorkerError> {
    let config = &shard.config;
    let route = config.routes.first();
    match (route.map(|route| (route.source, route.sink)), &config.kafka) {
        (Some((System::Kafka, System::Kafka)), Some(kafka)) => kafka_to_kafka(shard, kafka, listener),
        _ => Err(WorkerError::Client("nats: routes of NATS are not served yet".to_owned())),
    }
}

/// Whose replies keep the order of their records: the source's own word.
pub(super) fn ordering(config: &Config) -> Ordering {
    let source = config.routes.first().map(|route| route.source);
    match (source, &config.kafka, &config.nats) {
        (Some(System::Nats), _, Some(nats)) => nats.flow.ordering,
        (_, Some(kafka), _) => kafka.ordering,
        _ => Ordering::None,
    }
}

fn kafka_to_kafka(shard: &Shard, kafka: &Kafka, listener: Arc<dyn GroupListener>) -> Result<Line, WorkerError> {
    let settings = ClientSettings::new(kafka, &shard.config.instance, shard.number);
    let watch = Arc::new(BrokerWatch::new(&kafka.brokers, Arc::clone(shard.engine.metrics())));
    let (metrics, stop) = (Arc::clone(shard.engine.metrics()), Arc::clone(&shard.stop));
    let topics: Vec<&str> = shard.config.routes.iter().flat_map(|route| &route.input).map(String::as_str).collect();
    let source = KafkaSource::join(&settings, &topics, listener, Arc::clone(&watch), metrics, Arc::clone(&stop))?;
    let group: Arc<dyn GroupMember> = source.consumer();
    let (limits, health, part) = (kafka.clone(), Arc::clone(&shard.health), shard.part("producer"));
    let sink = KafkaSink { settings, limits, group, watch, health, part, stop };
    Ok(Line { source: Box::new(source), sink: Box::new(sink) })
}
