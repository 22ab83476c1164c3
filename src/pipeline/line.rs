//! What a line is made of, by the systems at its ends.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::WorkerError;
use super::shard::Shard;
use crate::admin::Health;
use crate::client::acks::Acks;
use crate::client::checkpoints::Checkpoints;
use crate::client::nats::NatsConnection;
use crate::client::{BrokerWatch, ClientSettings, GroupMember};
use crate::clock;
use crate::commit::Owner;
use crate::config::{Config, Delivery, JetStream, Kafka, Nats, Ordering, SubjectFilter, System};
use crate::record::PartitionId;
use crate::sink::Sink;
use crate::sink::inbox::Inbox;
use crate::sink::jetstream::JetStreamSink;
use crate::sink::kafka::{KafkaSink, Told};
use crate::source::jetstream::{JetStreamInput, JetStreamSource};
use crate::source::kafka::KafkaSource;
use crate::source::kafka::checkpoint::CheckpointStarts;
use crate::source::{GroupListener, Source};

/// Partitions that were lost and not let go of yet: more than a worker has.
const LOSSES_MAX: usize = 65_536;

/// How long a line waits for its first connection before it begins without.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How often a line looks whether a NATS server is connected.
const LOOK: Duration = Duration::from_millis(250);

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
        (Some((System::Kafka, System::Nats)), Some(kafka), Some(nats)) => kafka_to_nats(shard, kafka, nats, listener),
        (Some((System::Nats, System::Kafka)), Some(kafka), Some(nats)) => {
            nats_to_kafka(shard, kafka, nats, listener, inbox, in_flight_max)
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
    let clients = KafkaClients::new(shard, kafka);
    let source = clients.source(shard, listener, None)?;
    let told = Told::Group(source.consumer());
    let sink = clients.sink(shard, kafka, told);
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
    let checkpoints = connect(shard, nats, &runtime)?;
    let (lose, lost) = bounded(LOSSES_MAX);
    let source = jetstream_source(shard, &nats.flow, &runtime, &checkpoints, (listener, inbox, in_flight_max, lost));
    let sink = jetstream_sink(shard, &runtime, checkpoints, nats.flow.clone(), lose);
    Ok(Line { source: Box::new(source), sink: Box::new(sink), runtime: Some(runtime) })
}

/// Kafka's group gives out the partitions; their positions are in checkpoints beside the replies.
fn kafka_to_nats(
    shard: &Shard,
    kafka: &Kafka,
    nats: &Nats,
    listener: Arc<dyn GroupListener>,
) -> Result<Line, WorkerError> {
    let runtime = runtime(shard)?;
    let checkpoints = connect(shard, nats, &runtime)?;
    let (lose, lost) = bounded(LOSSES_MAX);
    let starts = CheckpointStarts {
        runtime: runtime.handle().clone(),
        checkpoints: Arc::clone(&checkpoints),
        on_missing: nats.flow.on_missing_checkpoint,
        health: Arc::clone(&shard.health),
        part: shard.part("checkpoints"),
        said: Mutex::default(),
    };
    let mut source = KafkaClients::new(shard, kafka).source(shard, listener, Some(starts))?;
    source.hear_losses(lost);
    let group: Arc<dyn GroupMember> = source.consumer();
    let limits = JetStream { group: kafka.group.clone(), ..nats.flow.clone() };
    let sink = JetStreamSink { group: Some(group), ..jetstream_sink(shard, &runtime, checkpoints, limits, lose) };
    tracing::info!("replies and checkpoints go out together: exactly once");
    Ok(Line { source: Box::new(source), sink: Box::new(sink), runtime: Some(runtime) })
}

/// Replies go out by themselves, and each record is acknowledged when its reply has arrived.
fn nats_to_kafka(
    shard: &Shard,
    kafka: &Kafka,
    nats: &Nats,
    listener: Arc<dyn GroupListener>,
    inbox: &Arc<Inbox>,
    in_flight_max: usize,
) -> Result<Line, WorkerError> {
    let runtime = runtime(shard)?;
    let checkpoints = connect(shard, nats, &runtime)?;
    let (_, lost) = bounded(1);
    let source = jetstream_source(shard, &nats.flow, &runtime, &checkpoints, (listener, inbox, in_flight_max, lost));
    let client = checkpoints.client().clone();
    let acks = Acks::new(runtime.handle().clone(), client, nats.flow.ack_wait, clock::now());
    let kafka = Kafka { delivery: Delivery::AtLeastOnce, group: nats.flow.group.clone(), ..kafka.clone() };
    let sink = KafkaClients::new(shard, &kafka).sink(shard, &kafka, Told::Acks(acks));
    tracing::info!("replies go out by themselves: at least once; one that goes out twice is counted, not dropped");
    Ok(Line { source: Box::new(source), sink: Box::new(sink), runtime: Some(runtime) })
}

/// What both ends at Kafka share.
struct KafkaClients {
    settings: ClientSettings,
    watch: Arc<BrokerWatch>,
}

impl KafkaClients {
    fn new(shard: &Shard, kafka: &Kafka) -> Self {
        let settings = ClientSettings::new(kafka, &shard.config.instance, shard.number);
        let watch = Arc::new(BrokerWatch::new(&kafka.brokers, Arc::clone(shard.engine.metrics())));
        Self { settings, watch }
    }

    fn source(
        &self,
        shard: &Shard,
        listener: Arc<dyn GroupListener>,
        checkpoints: Option<CheckpointStarts>,
    ) -> Result<KafkaSource, WorkerError> {
        let topics: Vec<&str> = shard.config.routes.iter().flat_map(|route| &route.input).map(String::as_str).collect();
        let (watch, metrics, stop) =
            (Arc::clone(&self.watch), Arc::clone(shard.engine.metrics()), Arc::clone(&shard.stop));
        Ok(KafkaSource::join(&self.settings, &topics, listener, watch, metrics, stop, checkpoints)?)
    }

    fn sink(self, shard: &Shard, kafka: &Kafka, told: Told) -> KafkaSink {
        let (health, part, stop) = (Arc::clone(&shard.health), shard.part("producer"), Arc::clone(&shard.stop));
        KafkaSink { settings: self.settings, limits: kafka.clone(), told, watch: self.watch, health, part, stop }
    }
}

/// Connects to NATS.
fn connect(shard: &Shard, nats: &Nats, runtime: &Runtime) -> Result<Arc<Checkpoints>, WorkerError> {
    let connection = runtime.block_on(NatsConnection::open(&nats.connection));
    let connection = connection.map_err(|error| WorkerError::Client(error.to_string()))?;
    let client = connection.client().clone();
    // A server that is there is connected by then, and the first question to it finds an answer.
    let _ = runtime.block_on(async { tokio::time::timeout(FIRST_WAIT, client.flush()).await });
    runtime.spawn(tell_connection(connection, Arc::clone(&shard.health), shard.part("nats")));
    // The client's context starts a task of its own.
    let _entered = runtime.enter();
    Ok(Arc::new(checkpoints(shard, nats, client)))
}

/// Says that the worker is not ready while no server is connected: a line without records would not notice.
async fn tell_connection(connection: NatsConnection, health: Arc<Health>, part: String) {
    loop {
        if connection.is_connected() {
            health.ready(&part);
        } else {
            health.not_ready(&part, &connection.why_away());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn jetstream_sink(
    shard: &Shard,
    runtime: &Runtime,
    checkpoints: Arc<Checkpoints>,
    limits: JetStream,
    lost: Sender<PartitionId>,
) -> JetStreamSink {
    JetStreamSink {
        runtime: runtime.handle().clone(),
        checkpoints,
        limits,
        group: None,
        lost,
        health: Arc::clone(&shard.health),
        part: shard.part("producer"),
        stop: Arc::clone(&shard.stop),
    }
}

fn jetstream_source(
    shard: &Shard,
    flow: &JetStream,
    runtime: &Runtime,
    checkpoints: &Arc<Checkpoints>,
    (listener, inbox, in_flight_max, lost): (Arc<dyn GroupListener>, &Arc<Inbox>, usize, Receiver<PartitionId>),
) -> JetStreamSource {
    let (health, part) = (Arc::clone(&shard.health), shard.part("group"));
    let inputs = shard.config.routes.iter().flat_map(|route| &route.input);
    JetStreamSource::join(JetStreamInput {
        runtime: runtime.handle().clone(),
        checkpoints: Arc::clone(checkpoints),
        limits: flow.clone(),
        inputs: inputs.filter_map(|filter| SubjectFilter::new(filter)).collect(),
        in_flight_max,
        listener,
        inbox: Arc::clone(inbox),
        metrics: Arc::clone(shard.engine.metrics()),
        lost,
        waiting: Box::new(move |reason| health.not_ready(&part, reason)),
    })
}

/// What NATS' client and the tasks of a line run on.
fn runtime(shard: &Shard) -> Result<Runtime, WorkerError> {
    let name = format!("forebay-nats-{}", shard.number);
    Ok(Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?)
}

fn checkpoints(shard: &Shard, nats: &Nats, client: async_nats::Client) -> Checkpoints {
    let config = &shard.config;
    let to_nats = config.routes.iter().filter(|route| route.sink == System::Nats);
    let replies = to_nats.clone().map(|route| route.reply_topic.clone());
    let letters = to_nats.flat_map(|route| {
        let letter = route.dead_letter.as_ref();
        let any = |input: &String| input.replace("{partition}", "*");
        letter.into_iter().flat_map(move |letter| route.input.iter().map(move |input| letter.topic(&any(input))))
    });
    let run = format!("{:016x}", RandomState::new().hash_one(clock::unix_ms()));
    let owner = Owner { instance: format!("{}-{}", config.instance, shard.number), run };
    let (root, group) = (&nats.flow.checkpoint_subject, token(config.group()));
    Checkpoints::new(client, root, &group, owner, replies.chain(letters).collect())
}

/// A name as one token of a subject.
fn token(name: &str) -> String {
    name.replace(|c: char| c.is_whitespace() || ".*>".contains(c), "_")
}
