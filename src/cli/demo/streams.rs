//! The demo's place on NATS: a stream for requests, one for replies and checkpoints, and the name of a service; all of
//! them begin with the name of this run.

mod replies;
mod requests;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use async_nats::jetstream::context::{DeleteStreamError, DeleteStreamErrorKind};
use async_nats::jetstream::stream::{self, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectOptions};
use tokio::runtime::{Builder, Runtime};

use self::replies::StreamReplies;
use self::requests::StreamRequests;
use super::super::Usage;
use super::data::Data;
use super::place::{PARTITIONS, Place, Replies, Requests};
use crate::client::checkpoints::{Checkpoints, SERVER, has_batches};
use crate::clock;
use crate::commit::{Checkpoint, Owner};

/// How long the server may take to accept a connection.
const CONNECT_BOUND: Duration = Duration::from_secs(5);

/// A server, and this run's streams on it.
pub(super) struct Streams {
    url: String,
    /// What all names of this run begin with.
    run: String,
    version: String,
    runtime: Runtime,
    client: Client,
    context: Context,
    checkpoints: Checkpoints,
}

impl Streams {
    /// Two fresh streams on a server that can hold the promise.
    pub(super) fn create(url: &str) -> anyhow::Result<Self> {
        if url.contains('@') {
            return Err(Usage("--nats: holds a user or password; the demo logs in nowhere".to_owned()).into());
        }
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("demo-nats").enable_all().build()?;
        let client = runtime.block_on(connect(url))?;
        let version = client.server_info().version;
        ensure!(
            has_batches(&version),
            "the NATS server at {url} has version {version}, and exactly once needs {}.{} or newer",
            SERVER.0,
            SERVER.1
        );
        // The client's context starts a task of its own.
        let entered = runtime.enter();
        let context = jetstream::new(client.clone());
        let run = format!("forebay-demo-{}", clock::unix_ms());
        let checkpoints = Checkpoints::new(
            client.clone(),
            &format!("{run}.ckpt"),
            &run,
            // Read only: it claims nothing.
            Owner { instance: String::new(), run: String::new() },
            vec![format!("{run}.scores")],
        );
        drop(entered);
        let account = runtime.block_on(context.query_account());
        account.map_err(|error| anyhow!("the NATS server at {url} has no JetStream (nats-server -js has): {error}"))?;
        let streams = Self { url: url.to_owned(), run, version, runtime, client, context, checkpoints };
        let made = streams.runtime.block_on(streams.make());
        if made.is_err() {
            streams.clean_up();
        }
        made.map(|()| streams)
    }

    async fn make(&self) -> anyhow::Result<()> {
        let input =
            stream::Config { name: self.input(), subjects: vec![self.feature_subject("*")], ..Default::default() };
        let output = stream::Config {
            name: self.output(),
            subjects: vec![self.score_subject(), format!("{}.ckpt.>", self.run)],
            allow_atomic_publish: true,
            ..Default::default()
        };
        for config in [input, output] {
            let name = config.name.clone();
            let made = self.context.create_stream(config).await;
            made.map_err(|error| anyhow!("cannot create the stream {name} at {}: {error}", self.url))?;
        }
        Ok(())
    }

    fn input(&self) -> String {
        format!("{}-features", self.run)
    }

    fn output(&self) -> String {
        format!("{}-scores", self.run)
    }

    fn feature_subject(&self, partition: &str) -> String {
        format!("{}.features.{partition}", self.run)
    }

    fn score_subject(&self) -> String {
        format!("{}.scores", self.run)
    }

    async fn checkpoint(&self, partition: i32) -> Option<Checkpoint> {
        self.checkpoints.read(&self.input(), partition).await.ok()?.1
    }

    /// Whether the checkpoint of each partition is past its last record.
    async fn are_checkpoints_at_end(&self) -> anyhow::Result<bool> {
        let input = self.context.get_stream(self.input()).await?;
        for partition in 0..PARTITIONS {
            let last = last_sequence(&input, &self.feature_subject(&partition.to_string())).await?;
            let done = self.checkpoint(partition).await.map_or(0, |checkpoint| checkpoint.map.base());
            if u64::try_from(done).unwrap_or(0) <= last {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Place for Streams {
    fn head(&self, _: u32) -> String {
        format!(
            "server  {}, nats-server {}, {PARTITIONS} partitions, exactly once, two workers",
            self.url, self.version
        )
    }

    fn toml(&self) -> String {
        let Self { url, run, .. } = self;
        let (input, output) = (self.feature_subject("{partition}"), self.score_subject());
        // Another demo, or a service of the user's, may be on the server: all names are this run's own.
        format!(
            "[nats]\nservers = \"{url}\"\ngroup = \"{run}\"\npartitions = {PARTITIONS}\nlease = \"3s\"\n\
             checkpoint_subject = \"{run}.ckpt\"\n\n[nats.service]\nname = \"{run}\"\nprefix = \"{run}\"\n\n\
             [[route]]\ninput = [\"{input}\"]\nreply_topic = \"{output}\"\n"
        )
    }

    fn requests(&self) -> anyhow::Result<Box<dyn Requests>> {
        Ok(Box::new(StreamRequests::new(self)?))
    }

    fn replies(&self) -> anyhow::Result<Box<dyn Replies>> {
        Ok(Box::new(StreamReplies::new(self)?))
    }

    fn is_shared_by(&self, workers: usize) -> bool {
        self.runtime.block_on(async {
            let mut held: BTreeMap<String, i32> = BTreeMap::new();
            for partition in 0..PARTITIONS {
                if let Some(owner) = self.checkpoint(partition).await.and_then(|checkpoint| checkpoint.owner) {
                    *held.entry(owner.instance).or_default() += 1;
                }
            }
            held.len() == workers && held.values().sum::<i32>() == PARTITIONS
        })
    }

    fn is_all_done(&self) -> bool {
        // A server that does not answer is asked again.
        self.runtime.block_on(self.are_checkpoints_at_end()).unwrap_or(false)
    }

    fn show_service(&self, data: &Arc<Data>) -> anyhow::Result<Vec<String>> {
        self.runtime.block_on(service::show(&self.client, &self.run, data))
    }

    fn next(&self) -> Option<&'static str> {
        Some("README \"JetStream\" · README \"NATS microservice\" · forebay config schema")
    }

    fn clean_up(&self) {
        for stream in [self.input(), self.output()] {
            match self.runtime.block_on(self.context.delete_stream(&stream)) {
                Err(error) if !is_missing(&error) => eprintln!("the demo's stream {stream} stays behind: {error}"),
                _ => {}
            }
        }
    }
}

/// Whether there is no such stream.
fn is_missing(error: &DeleteStreamError) -> bool {
    matches!(error.kind(), DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let options = ConnectOptions::new().name("forebay-demo").connection_timeout(CONNECT_BOUND);
    // The client's errors tell their causes themselves.
    options.connect(url).await.map_err(|error| anyhow!("no NATS server answers at {url}: {error}"))
}

/// The sequence of the last message of a subject; 0 where there is none.
async fn last_sequence(stream: &Stream, subject: &str) -> anyhow::Result<u64> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(message.sequence),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}
