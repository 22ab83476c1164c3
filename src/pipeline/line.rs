//! What a line is made of, by the systems at its ends.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use crossbeam_channel::bounded;
use tokio::runtime::{Builder, Runtime};

use super::WorkerError;
use super::shard::Shard;
use crate::client::checkpoints::Checkpoints;
use crate::client::nats::NatsConnection;
use crate::client::{BrokerWatch, ClientSettings, GroupMember};
use crate::clock;
use crate::commit::Owner;
use crate::config::{Config, Kafka, Nats, Ordering, SubjectFilter, System};
use crate::sink::Sink;
use crate::sink::inbox::Inbox;
use crate::sink::jetstream::JetStreamSink;
use crate::sink::kafka::KafkaSink;
use crate::source::jetstream::{JetStreamInput, JetStreamSource};
use crate::source::kafka::KafkaSource;
use crate::source::{GroupListener, Source};

/// Partitions that were lost and not let go of yet: more than a worker has.
const LOSSES_MAX: usize = 65_536;

/// Both ends.
pub(super) struct Line {
    pub(super) source: Box<dyn Source>,
    pub(super) sink: Box<dyn Sink>,
    /// What NATS' client runs on, where there is one. It ends after both.
    pub(super) runtime: Option<Runtime>,
}

/// Connects both ends. Servers that are away are waited for, by each end.
pub(super) fn open(
    shard: &Shard,
    listener: Arc<dyn GroupListener>,
    inbox: &Arc<Inbox>,
    in_flight_max: usize,
) -> Result<Line, WorkerError> {
    let config = &shard.config;
    let route = config.routes.first().map(|route| (route.source, route.sink));
    match (route, &config.kafka, &config.nats) {
        (Some((System::Kafka, System::Kafka)), Some(kafka), _) => kafka_to_kafka(shard, kafka, listener),
        (Some((System::Nats, System::Nats)), _, Some(nats)) => {
            nats_to_nats(shard, nats, listener, inbox, in_flight_max)
        }
        _ => Err(WorkerError::Client("route[0]: no line leads from this source to this sink".to_owned())),
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
    Ok(Line { source: Box::new(source), sink: Box::new(sink), runtime: None })
}

fn nats_to_nats(
    shard: &Shard,
    nats: &Nats,
    listener: Arc<dyn GroupListener>,
    inbox: &Arc<Inbox>,
    in_flight_max: usize,
) -> Result<Line, WorkerError> {
    let runtime = runtime(shard)?;
    let handle = runtime.handle().clone();
    let connection = handle.block_on(NatsConnection::open(&nats.connection));
    let client = connection.map_err(|error| WorkerError::Client(error.to_string()))?.client().clone();
    // The client's context starts a task of its own.
    let entered = handle.enter();
    let checkpoints = Arc::new(checkpoints(&shard.config, nats, client));
    drop(entered);
    let (lose, lost) = bounded(LOSSES_MAX);
    let (health, part) = (Arc::clone(&shard.health), shard.part("group"));
    let source = JetStreamSource::join(JetStreamInput {
        runtime: handle.clone(),
        checkpoints: Arc::clone(&checkpoints),
        limits: nats.flow.clone(),
        inputs: inputs(&shard.config),
        in_flight_max,
        listener,
        inbox: Arc::clone(inbox),
        metrics: Arc::clone(shard.engine.metrics()),
        lost,
        waiting: Box::new(move |reason| health.not_ready(&part, reason)),
    });
    let sink = JetStreamSink {
        runtime: handle,
        checkpoints,
        limits: nats.flow.clone(),
        lost: lose,
        health: Arc::clone(&shard.health),
        part: shard.part("producer"),
        stop: Arc::clone(&shard.stop),
    };
    Ok(Line { source: Box::new(source), sink: Box::new(sink), runtime: Some(runtime) })
}

/// What NATS' client and the tasks of a line run on.
fn runtime(shard: &Shard) -> Result<Runtime, WorkerError> {
    let name = format!("forebay-nats-{}", shard.number);
    Ok(Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?)
}

fn inputs(config: &Config) -> Vec<SubjectFilter> {
    config.routes.iter().flat_map(|route| &route.input).filter_map(|filter| SubjectFilter::new(filter)).collect()
}

fn checkpoints(config: &Config, nats: &Nats, client: async_nats::Client) -> Checkpoints {
    let replies = config.routes.iter().map(|route| route.reply_topic.clone());
    let letters = config.routes.iter().flat_map(|route| {
        let letter = route.dead_letter.as_ref();
        let any = |input: &String| input.replace("{partition}", "*");
        letter.into_iter().flat_map(move |letter| route.input.iter().map(move |input| letter.topic(&any(input))))
    });
    let prefix = format!("{}.{}", nats.flow.checkpoint_subject, token(config.group()));
    let run = format!("{:016x}", RandomState::new().hash_one(clock::unix_ms()));
    let owner = Owner { instance: config.instance.clone(), run };
    Checkpoints::new(client, prefix, owner, replies.chain(letters).collect())
}

/// A name as one token of a subject.
fn token(name: &str) -> String {
    name.replace(|c: char| c.is_whitespace() || ".*>".contains(c), "_")
}
