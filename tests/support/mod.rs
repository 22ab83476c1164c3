//! What the tests on real brokers share: a broker, topics on it, records in and out, workers as processes.
//! Nothing sleeps for luck: every wait is for a condition, with a bound.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "it is a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

pub mod checks;
pub mod group;
pub mod jetstream;
pub mod nats;
pub mod proxy;
pub mod raw;
pub mod stream;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use forebay::clock;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use sha2::{Digest as _, Sha256};

/// Long enough for anything that works, on a busy machine of two cores.
pub const BOUND: Duration = Duration::from_secs(60);

/// Waits until the condition holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = clock::now();
    while !condition() {
        assert!(clock::now() - start < BOUND, "waited {BOUND:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a process a signal, such as "-TERM".
fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Lines of `[[model]]` for a file that runs code of its own: trusted, and pinned to what it holds.
pub fn trusted(path: &Path) -> String {
    let digits = Sha256::digest(fs::read(path).unwrap()).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    format!("trusted = true\nsha256 = \"{digits}\"\n")
}

/// A lost connection is made again by the client; any other error ends the test.
fn passes(error: &KafkaError) {
    let text = error.to_string();
    assert!(text.contains("Transport") || text.contains("Down"), "{text}");
}

/// Waits for an answer of an admin client.
fn done<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(answer)
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One Kafka broker, killed when dropped. It must be started on the main thread: it dies with the thread that started it.
pub struct Kafka {
    broker: Child,
    port: u16,
    controller: u16,
    folder: tempfile::TempDir,
}

impl Kafka {
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("kafka-").tempdir_in(repository().join("target")).unwrap();
        let (port, controller) = (free_port(), free_port());
        let broker = spawn_broker(folder.path(), port, controller);
        let kafka = Self { broker, port, controller, folder };
        kafka.wait_ready();
        kafka
    }

    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.broker.kill().unwrap();
        self.broker.wait().unwrap();
    }

    /// Starts it again on its data.
    pub fn restart(&mut self) {
        self.broker = spawn_broker(self.folder.path(), self.port, self.controller);
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let client: BaseConsumer = self.client().create().unwrap();
        until("the broker", || {
            client.fetch_metadata(None, Duration::from_secs(1)).is_ok_and(|m| !m.brokers().is_empty())
        });
    }

    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.brokers()).set_log_level(rdkafka::config::RDKafkaLogLevel::Error);
        client
    }

    /// Creates topics with this many partitions each.
    pub fn create(&self, topics: &[&str], partitions: i32) {
        self.create_with(topics, partitions, &[]);
    }

    /// A client for topics, and how long it may take.
    fn admin(&self) -> (AdminClient<DefaultClientContext>, AdminOptions) {
        (self.client().create().unwrap(), AdminOptions::new().operation_timeout(Some(BOUND)))
    }

    /// Creates topics with settings of their own.
    pub fn create_with(&self, topics: &[&str], partitions: i32, settings: &[(&str, &str)]) {
        let (admin, options) = self.admin();
        let new = |name| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
            settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        };
        let new: Vec<_> = topics.iter().map(|name| new(name)).collect();
        for created in done(admin.create_topics(&new, &options)).unwrap() {
            created.unwrap();
        }
    }

    /// It keeps the order of its records, whatever it sends again.
    pub fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        self.client().set("linger.ms", "2").set("enable.idempotence", "true").create().unwrap()
    }

    /// Sends records and waits for all acknowledgements.
    pub fn send(&self, topic: &str, records: &[Record]) {
        let producer = self.producer();
        for record in records {
            record.send(&producer, topic);
        }
        producer.flush(BOUND).unwrap();
    }

    /// A reader of a whole topic from its beginning, of committed records only, and the number of its partitions.
    pub fn reader(&self, topic: &str) -> (BaseConsumer, usize) {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), BOUND).unwrap();
        let partitions = metadata.topics()[0].partitions().len();
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(topic, i32::try_from(partition).unwrap(), Offset::Beginning).unwrap();
        }
        consumer.assign(&all).unwrap();
        (consumer, partitions)
    }

    /// Reads a topic from its beginning, committed records only, until `count` are there and the end is reached.
    pub fn read(&self, topic: &str, count: usize) -> Vec<Record> {
        let (consumer, partitions) = self.reader(topic);
        let mut at_end = vec![false; partitions];
        let mut records = Vec::new();
        let mut progressed = clock::now();
        while records.len() < count || at_end.contains(&false) {
            let quiet = clock::now() - progressed;
            assert!(quiet < BOUND, "{topic}: {} of {count} records after {quiet:?}", records.len());
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => {
                    at_end[usize::try_from(message.partition()).unwrap()] = false;
                    records.push(Record::of(&message));
                    progressed = clock::now();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => at_end[usize::try_from(partition).unwrap()] = true,
                Some(Err(error)) => passes(&error),
            }
        }
        records
    }

    /// The group's committed offsets of a topic, by partition; -1 for none.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> Vec<i64> {
        let asker: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let committed = asker.committed_offsets(asked, BOUND).unwrap();
        committed.elements().iter().map(|element| element.offset().to_raw().unwrap_or(-1)).collect()
    }

    /// The end offsets of a topic, by partition.
    pub fn ends(&self, topic: &str, partitions: i32) -> Vec<i64> {
        let asker: BaseConsumer = self.client().create().unwrap();
        (0..partitions).map(|partition| asker.fetch_watermarks(topic, partition, BOUND).unwrap().1).collect()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = self.broker.kill();
        let _ = self.broker.wait();
    }
}

fn spawn_broker(folder: &Path, port: u16, controller: u16) -> Child {
    // setpriv makes the broker die with this process, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(repository().join("tests/servers/kafka"))
        .arg(folder)
        .arg(port.to_string())
        .arg(format!("controller.port={controller}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A record to send, or as read.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub partition: Option<i32>,
    pub headers: Vec<(String, Vec<u8>)>,
    /// Where it was read.
    pub offset: i64,
}

impl Record {
    pub fn new(key: &str, payload: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.as_bytes().to_vec()), payload: Some(payload.into()), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn at_partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Hands it to a producer.
    pub fn send(&self, producer: &ThreadedProducer<DefaultProducerContext>, topic: &str) {
        let mut out = BaseRecord::<[u8], [u8]>::to(topic);
        if let Some(key) = &self.key {
            out = out.key(key);
        }
        if let Some(payload) = &self.payload {
            out = out.payload(payload);
        }
        if let Some(partition) = self.partition {
            out = out.partition(partition);
        }
        let mut headers = OwnedHeaders::new();
        for (name, value) in &self.headers {
            headers = headers.insert(Header { key: name, value: Some(value) });
        }
        producer.send(out.headers(headers)).map_err(|(error, _)| error).unwrap();
    }

    pub fn of(message: &rdkafka::message::BorrowedMessage<'_>) -> Self {
        let headers = message
            .headers()
            .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect());
        Self {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            partition: Some(message.partition()),
            headers: headers.unwrap_or_default(),
            offset: message.offset(),
        }
    }

    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.payload.as_deref().unwrap_or_default()).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn value_of(&self, header: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(name, _)| name == header).map(|(_, value)| value.as_slice())
    }
}

/// A worker as a process, killed when dropped.
pub struct Worker {
    child: Child,
    admin: u16,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl Worker {
    /// What its admin port wants of a call that changes something.
    pub const TOKEN: &str = "a token of the tests";

    /// Starts `forebay run`. `toml` is a worker.toml without `[admin]` and `[log]`; `failpoints` is the variable's value.
    /// Each record is scored, equal rows too, unless the text has a `[cache]`.
    pub fn start(toml: &str, instance: &str, failpoints: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, log, admin) = (folder.path().join("worker.toml"), folder.path().join("log"), free_port());
        fs::write(&config, whole(toml, admin)).unwrap();
        let out = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .arg("run")
            .arg("--config")
            .arg(&config)
            .args(["--instance", instance])
            .env("FAILPOINTS", failpoints)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, admin, log, folder }
    }

    /// Puts another worker.toml in the place of its own, under the same rules as at the start.
    pub fn write_config(&self, toml: &str) {
        fs::write(self.folder.path().join("worker.toml"), whole(toml, self.admin)).unwrap();
    }

    /// Starts it and waits until it is ready.
    pub fn ready(toml: &str, instance: &str) -> Self {
        let mut worker = Self::start(toml, instance, "");
        worker.wait_ready();
        worker
    }

    pub fn wait_ready(&mut self) {
        until("a ready worker", || {
            assert!(self.exit().is_none(), "the worker ended: {}", self.log());
            self.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Status and body of the admin port's answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.call(&format!("GET {path} HTTP/1.1\r\n"))
    }

    /// Whether it says that it is not ready, and these words of why.
    pub fn is_not_ready_for(&self, words: &str) -> bool {
        self.get("/readyz").is_some_and(|(status, text)| status == 503 && text.contains(words))
    }

    /// Status and body of a call that changes something, with that token or, where it is empty, none.
    pub fn post(&self, path: &str, token: &str) -> Option<(u16, String)> {
        let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        self.call(&format!("POST {path} HTTP/1.1\r\nContent-Length: 0\r\n{authorization}"))
    }

    fn call(&self, head: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        stream.set_read_timeout(Some(BOUND)).ok()?;
        write!(stream, "{head}Host: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// A metric without labels.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").unwrap_or_default();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn wait_exit(&mut self) -> Option<i32> {
        until("the worker's end", || self.exit().is_some());
        self.exit().unwrap().code()
    }

    pub fn signal(&self, signal: &str) {
        self::signal(self.pid(), signal);
    }

    /// SIGTERM; returns the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal("-TERM");
        self.wait_exit()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A worker.toml with what the tests want of each.
fn whole(toml: &str, admin: u16) -> String {
    let cache = if toml.contains("[cache]") { "" } else { "[cache]\nmode = \"off\"\n" };
    format!("{toml}\n{cache}[admin]\nlisten = \"127.0.0.1:{admin}\"\ntoken = \"{}\"\n", Worker::TOKEN)
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the worker's log\n{}", self.log());
        }
    }
}

/// The rows of the HIGGS files, as JSON arrays, and the scores that LightGBM's Python package gave in this run.
pub struct Higgs {
    pub rows: Vec<String>,
    pub scores: Vec<f64>,
}

impl Higgs {
    pub fn load() -> Self {
        let read = |name: &str| {
            fs::read_to_string(repository().join(name))
                .unwrap_or_else(|error| panic!("{name}: {error}; run `make test`"))
        };
        let data = read("tests/data/higgs/higgs.test.tsv") + &read("tests/data/higgs/higgs.train.tsv");
        let row = |line: &str| format!("[{}]", line.split('\t').skip(1).collect::<Vec<_>>().join(","));
        let scores = read("target/models/higgs-scores.txt").lines().map(|line| line.parse().unwrap()).collect();
        Self { rows: data.lines().map(row).collect(), scores }
    }

    pub fn request(&self, row: usize) -> String {
        format!("{{\"id\":\"r{row}\",\"features\":{}}}", self.rows[row])
    }

    /// Record `n` of a stream longer than the rows, which come again and again, with a priority of its own.
    pub fn request_at(&self, n: usize, priority: usize) -> String {
        let row = &self.rows[n % self.rows.len()];
        format!("{{\"id\":\"r{n}\",\"features\":{row},\"priority\":{priority}}}")
    }

    /// What record `n` of a stream must be answered with.
    pub fn score_at(&self, n: usize) -> f64 {
        self.scores[n % self.scores.len()]
    }

    pub fn model() -> PathBuf {
        repository().join("tests/data/higgs/higgs.model.txt")
    }
}
