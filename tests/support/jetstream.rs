//! Streams for a worker: records in, replies and checkpoints out, on a real NATS server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use forebay::clock;
use futures_util::StreamExt as _;

use super::checks::{Tally, number};
use super::nats::Nats;
use super::{BOUND, Higgs, Record, Worker, until};

/// A flow from `{name}-in.>` to `{name}-out`, and its worker.toml.
#[derive(Clone)]
pub struct Flow {
    pub name: String,
    pub partitions: usize,
    /// Lines of `[nats]`.
    pub nats: String,
    /// Lines of `[[route]]`.
    pub route: String,
    /// Lines of `[[model]]` and what follows it.
    pub model: String,
    pub delivery: &'static str,
}

impl Flow {
    pub fn new(name: &str, partitions: usize) -> Self {
        let text = String::new;
        Self { name: name.to_owned(), partitions, nats: text(), route: text(), model: text(), delivery: "exactly_once" }
    }

    pub fn toml(&self, nats: &Nats) -> String {
        let Self { name, nats: lines, route, model, delivery, .. } = self;
        let (path, url) = (Higgs::model(), nats.url());
        let path = path.display();
        let count = self.consumers();
        let input = if count > 1 { format!("{name}-in.{{partition}}") } else { format!("{name}-in.*") };
        format!(
            "[nats]\nservers = \"{url}\"\nping_interval = \"500ms\"\ngroup = \"{name}\"\ndelivery = \"{delivery}\"\n\
             partitions = {count}\nlease = \"2s\"\n{lines}\n[[route]]\ninput = [\"{input}\"]\nreply_topic = \"{name}-out\"\n\
             {route}\n[[model]]\nname = \"higgs\"\npath = \"{path}\"\n{model}\n"
        )
    }

    pub fn input(&self) -> String {
        self.name.to_uppercase() + "-IN"
    }

    pub fn output(&self) -> String {
        self.name.to_uppercase() + "-OUT"
    }

    pub fn input_config(&self) -> stream::Config {
        stream::Config { name: self.input(), subjects: vec![format!("{}-in.*", self.name)], ..Default::default() }
    }

    pub fn output_config(&self) -> stream::Config {
        let name = &self.name;
        stream::Config {
            name: self.output(),
            subjects: vec![format!("{name}-out"), format!("{name}-dead.>"), format!("ckpt.{name}.>")],
            allow_atomic_publish: true,
            duplicate_window: Duration::from_secs(2),
            ..Default::default()
        }
    }

    pub async fn create(&self, client: &Client) {
        let context = jetstream::new(client.clone());
        context.create_stream(self.input_config()).await.unwrap();
        context.create_stream(self.output_config()).await.unwrap();
    }

    /// The subject of record `n`.
    pub fn subject(&self, n: usize) -> String {
        format!("{}-in.{}", self.name, n % self.partitions)
    }

    /// Publishes a record, as often as it takes until the stream has it once.
    pub async fn publish(&self, client: &Client, n: usize, payload: String) {
        let context = jetstream::new(client.clone());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{n}"));
        let start = clock::now();
        loop {
            let sent = context.publish_with_headers(self.subject(n), headers.clone(), payload.clone().into()).await;
            if let Ok(ack) = sent
                && ack.await.is_ok()
            {
                return;
            }
            assert!(clock::now() - start < BOUND, "the input stream takes no record");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Rows `from..to`.
    pub async fn send(&self, client: &Client, higgs: &Higgs, rows: std::ops::Range<usize>) {
        for n in rows {
            self.publish(client, n, higgs.request_at(n, 1 + n % 3)).await;
        }
    }

    /// All messages of one subject of the replies' stream.
    pub async fn read(&self, client: &Client, subject: &str) -> Vec<Record> {
        let context = jetstream::new(client.clone());
        let stream = context.get_stream(self.output()).await.unwrap();
        let config = OrderedConfig { filter_subject: subject.to_owned(), ..Default::default() };
        let consumer = stream.create_consumer(config).await.unwrap();
        let count = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.unwrap().take(usize::try_from(count).unwrap());
        let mut records = Vec::new();
        while let Some(message) = messages.next().await {
            records.push(record(&message.unwrap()));
        }
        records
    }

    pub async fn replies(&self, client: &Client) -> Vec<Record> {
        self.read(client, &format!("{}-out", self.name)).await
    }

    /// How the replies to records `0..sent` turned out.
    pub async fn tally(&self, client: &Client, higgs: &Higgs, sent: usize) -> Tally {
        Tally::of(&self.replies(client).await, sent, |n| higgs.score_at(n))
    }

    /// How many different records have replies.
    pub async fn answered(&self, client: &Client) -> usize {
        let numbers: std::collections::BTreeSet<_> = self.replies(client).await.iter().filter_map(number).collect();
        numbers.len()
    }

    /// Waits until so many have.
    pub async fn wait_answered(&self, client: &Client, count: usize) {
        let start = clock::now();
        loop {
            let answered = self.answered(client).await;
            if answered >= count {
                return;
            }
            assert!(clock::now() - start < BOUND, "{answered} of {count} records are answered");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last checkpoint of a partition, and its sequence.
    pub async fn checkpoint(&self, client: &Client, number: usize) -> (u64, serde_json::Value) {
        let context = jetstream::new(client.clone());
        let stream = context.get_stream(self.output()).await.unwrap();
        let subject = format!("ckpt.{}.{}.{number}", self.name, self.input());
        let message = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
        (message.sequence, serde_json::from_slice(&message.payload).unwrap())
    }

    /// Partitions that the workers know of.
    fn consumers(&self) -> usize {
        if self.delivery == "exactly_once" { self.partitions } else { 1 }
    }

    /// Waits until each partition has its consumer, nothing that was delivered waits for an acknowledgement, and nothing
    /// waits for its delivery.
    pub async fn wait_acknowledged(&self, client: &Client) {
        let context = jetstream::new(client.clone());
        let start = clock::now();
        loop {
            let stream = context.get_stream(self.input()).await.unwrap();
            let (mut count, mut left) = (0, 0);
            let mut consumers = stream.consumers();
            while let Some(consumer) = consumers.next().await {
                let info = consumer.unwrap();
                count += 1;
                left += info.num_ack_pending as u64 + info.num_pending;
            }
            // Without its consumer a partition has nothing pending, whatever lies in the stream.
            if count >= self.consumers() && left == 0 {
                return;
            }
            assert!(clock::now() - start < BOUND, "{count} consumers, {left} deliveries are not acknowledged");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn record(message: &jetstream::Message) -> Record {
    let headers = message.headers.iter().flat_map(HeaderMap::iter);
    let headers = headers.flat_map(|(name, values)| {
        values.iter().map(move |value| (name.to_string(), value.as_str().as_bytes().to_vec()))
    });
    Record {
        payload: Some(message.payload.to_vec()),
        headers: headers.collect(),
        offset: i64::try_from(message.info().unwrap().stream_sequence).unwrap(),
        ..Record::default()
    }
}

/// Publishes a stream's records at a pace, from a thread of its own.
pub struct Feed {
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Feed {
    pub fn start(flow: &Flow, nats: &Nats, rate_per_s: f64, records: Vec<String>) -> Self {
        let (flow, url, sent) = (flow.clone(), nats.url(), Arc::new(AtomicUsize::new(0)));
        let progress = Arc::clone(&sent);
        let feed = move || {
            super::nats::run(async {
                let client = async_nats::ConnectOptions::new().ping_interval(Duration::from_millis(500));
                let client = client.connect(url).await.unwrap();
                let start = clock::now();
                // Several at a time: each waits for the stream's word.
                let flow = &flow;
                let mut sends = futures_util::stream::iter(records.into_iter().enumerate().map(|(n, record)| {
                    let client = client.clone();
                    async move {
                        let due = Duration::from_secs_f64(n as f64 / rate_per_s);
                        tokio::time::sleep(due.saturating_sub(clock::now() - start)).await;
                        flow.publish(&client, n, record).await;
                    }
                }))
                .buffered(64);
                while sends.next().await.is_some() {
                    progress.fetch_add(1, Ordering::Relaxed);
                }
            });
        };
        Self { sent, thread: Builder::new().name("test-feed".to_owned()).spawn(feed).unwrap() }
    }

    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn wait_sent(&self, count: usize) {
        until("the feed", || self.sent() >= count || self.thread.is_finished());
    }

    pub fn end(self) {
        until("the feed's end", || self.thread.is_finished());
        self.thread.join().unwrap();
    }
}

/// How many partitions each worker holds.
pub fn held(workers: &[Worker]) -> Vec<u64> {
    workers.iter().map(|worker| worker.metric("forebay_partitions_assigned")).collect()
}
