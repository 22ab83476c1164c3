//! The stream that replies and checkpoints go to together: found, held against what the promise needs; its checkpoints read,
//! and partitions claimed by them.
//!
//! Invariant: a checkpoint is written only behind the sequence of the one that was read, so of two workers that claim a
//! partition one is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_nats::jetstream::context::{GetStreamByNameErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, LastRawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use serde::Deserialize;
use serde_json::json;

use crate::commit::{Checkpoint, CheckpointError, OffsetMap, Owner};
use crate::config::is_at;
use crate::record::Fence;

/// Servers before it have no atomic batches.
pub(crate) const SERVER: (u64, u64) = (2, 12);
/// How long a server may take to answer a question.
const QUESTION_BOUND: Duration = Duration::from_secs(5);
/// Least room of a message that a checkpoint may need: what its map says is done takes up to 4,096 characters.
const MESSAGE_BYTES_MIN: usize = 8 << 10;
/// "Wrong last sequence": somebody else wrote a checkpoint.
pub(crate) const WRONG_LAST_SEQUENCE: u32 = 10071;

/// Why something of a server cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NatsFault {
    /// It may pass: nobody answers, or what is asked for is not there yet.
    #[error("{0}")]
    Later(String),
    /// It stays until somebody has looked, and concerns one partition.
    #[error("{0}")]
    Stopped(String),
    /// It stays until somebody changes it.
    #[error("{0}")]
    Fatal(String),
}

impl NatsFault {
    #[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
    pub(crate) fn later(error: impl ToString) -> Self {
        Self::Later(error.to_string())
    }
}

/// What is known of the stream that replies go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplyStream {
    pub(crate) name: String,
    /// What its messages are addressed to.
    subjects: Vec<String>,
    /// Whether messages may say how long they live: checkpoints then live for ever.
    pub(crate) is_never_expiring: bool,
    /// Most bytes of a message.
    pub(crate) message_bytes_max: usize,
}

impl ReplyStream {
    /// Whether a message to this subject comes into the stream.
    pub(crate) fn takes(&self, subject: &str) -> bool {
        self.subjects.iter().any(|filter| matches(filter, subject))
    }
}

/// Where checkpoints are, and whose they are.
pub(crate) struct Checkpoints {
    client: Client,
    context: Context,
    /// The first tokens of every checkpoint's subject, whatever its group.
    root: String,
    /// Those of this group's.
    prefix: String,
    owner: Owner,
    /// Subjects that replies and dead letters go to.
    replies: Vec<String>,
    stream: ArcSwapOption<ReplyStream>,
    /// Whether it was said that superseded checkpoints stay.
    is_said: AtomicBool,
}

impl Checkpoints {
    /// `root` is the first tokens of all checkpoints' subjects; this group's, then the stream's or topic's name and the
    /// partition's number follow.
    pub(crate) fn new(client: Client, root: &str, group: &str, owner: Owner, replies: Vec<String>) -> Self {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(QUESTION_BOUND);
        let (root, prefix) = (root.to_owned(), format!("{root}.{group}"));
        Self {
            client,
            context,
            root,
            prefix,
            owner,
            replies,
            stream: ArcSwapOption::empty(),
            is_said: AtomicBool::new(false),
        }
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether replies go to NATS.
    pub(crate) fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// The stream, once it was found.
    pub(crate) fn stream(&self) -> Option<Arc<ReplyStream>> {
        self.stream.load_full()
    }

    /// Whether a reply to this subject comes into the stream, and is not taken for a checkpoint there.
    pub(crate) fn take_reply(&self, subject: &str) -> bool {
        !is_at(subject, &self.root) && self.stream().is_some_and(|stream| stream.takes(subject))
    }

    /// The subject of a partition's checkpoint. A topic of Kafka may have dots in its name.
    pub(crate) fn subject(&self, source: &str, number: i32) -> String {
        format!("{}.{}.{number}", self.prefix, source.replace('.', "_"))
    }

    /// Finds the stream and holds it against what exactly once needs.
    pub(crate) async fn look_up(&self) -> Result<Arc<ReplyStream>, NatsFault> {
        if let Some(found) = self.stream() {
            return Ok(found);
        }
        check_version(&self.client)?;
        let checkpoints = format!("{}.>", self.prefix);
        let mut found: Option<(String, &str)> = None;
        for subject in self.replies.iter().chain([&checkpoints]) {
            let name = stream_of(&self.context, subject).await?;
            match &found {
                Some((first, of)) if *first != name => {
                    return Err(NatsFault::Fatal(format!(
                        "{of} goes to the stream {first}, but {subject} to {name}: exactly once needs replies, dead letters and \
                         checkpoints in one stream; add the subject to the first, or write nats.delivery = \"at_least_once\""
                    )));
                }
                Some(_) => {}
                None => found = Some((name, subject)),
            }
        }
        let (name, _) = found.unwrap_or_default();
        let info = stream_info(&self.context, &name).await?;
        self.keep(name, &info.config)
    }

    /// Looks at the stream again. Returns whether it is another than was known.
    pub(crate) async fn look_again(&self) -> Result<bool, NatsFault> {
        let Some(known) = self.stream() else { return Ok(false) };
        let info = stream_info(&self.context, &known.name).await?;
        Ok(self.keep(known.name.clone(), &info.config)? != known)
    }

    /// Holds a stream against what exactly once needs, and remembers it.
    fn keep(&self, name: String, config: &Config) -> Result<Arc<ReplyStream>, NatsFault> {
        let checkpoints = format!("{}.>", self.prefix);
        check_stream(config, &checkpoints)?;
        let found = self.read_stream(name, config);
        if found.message_bytes_max < MESSAGE_BYTES_MIN {
            return Err(NatsFault::Fatal(format!(
                "the stream {}, which takes replies and {checkpoints}, takes {} bytes a message, and a checkpoint may need \
                 {MESSAGE_BYTES_MIN}; raise max_msg_size of the stream, or max_payload of the server",
                found.name, found.message_bytes_max
            )));
        }
        let found = Arc::new(found);
        self.stream.store(Some(Arc::clone(&found)));
        Ok(found)
    }

    /// Finds the stream of the first replies, where nothing but replies goes there.
    pub(crate) async fn look_up_shared(&self) -> Result<(), NatsFault> {
        // Replies may go elsewhere than to NATS.
        if self.replies.is_empty() {
            return if self.client.server_info().version.is_empty() {
                Err(NatsFault::Later("no NATS server is there yet".to_owned()))
            } else {
                Ok(())
            };
        }
        let mut first = None;
        for subject in &self.replies {
            let name = stream_of(&self.context, subject).await?;
            first.get_or_insert(name);
        }
        let name = first.unwrap_or_default();
        let info = stream_info(&self.context, &name).await?;
        self.stream.store(Some(Arc::new(self.read_stream(name, &info.config))));
        Ok(())
    }

    fn read_stream(&self, name: String, config: &Config) -> ReplyStream {
        let of_stream = usize::try_from(config.max_message_size).ok().filter(|&bytes| bytes > 0);
        let of_server = Some(self.client.max_payload()).filter(|&bytes| bytes > 0);
        ReplyStream {
            name,
            subjects: config.subjects.clone(),
            is_never_expiring: config.allow_message_ttl,
            message_bytes_max: of_stream.into_iter().chain(of_server).min().unwrap_or(usize::MAX),
        }
    }

    /// The last checkpoint of a partition, with its sequence; the sequence is 0 where there is none.
    pub(crate) async fn read(&self, source: &str, number: i32) -> Result<(u64, Option<Checkpoint>), NatsFault> {
        let stream = self.look_up().await?;
        let stream = self.context.get_stream_no_info(&stream.name).await.map_err(NatsFault::later)?;
        let subject = self.subject(source, number);
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => {
                let checkpoint = Checkpoint::read(&message.payload, source, number);
                let fault = |error| {
                    let sequence = message.sequence;
                    let what = format!("the checkpoint at {subject} (sequence {sequence}) is {error}");
                    match error {
                        CheckpointError::UnknownVersion(_) => NatsFault::Fatal(format!(
                            "{what}; run the forebay that wrote it, or give nats.group another name"
                        )),
                        CheckpointError::Damaged(_) | CheckpointError::Foreign(_) => NatsFault::Stopped(format!(
                            "{what}: which records are answered is unknown. To go on from the checkpoint before it, or as one that \
                             is missing, delete this message"
                        )),
                    }
                };
                Ok((message.sequence, Some(checkpoint.map_err(fault)?)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, None)),
            Err(error) => Err(NatsFault::later(error)),
        }
    }

    /// Removes all checkpoints of these partitions but the last of each. What cannot be removed stays, which is said once:
    /// it takes room, and nothing else.
    pub(crate) async fn remove_superseded(&self, places: &[(String, i32)]) {
        let Some(stream) = self.stream() else { return };
        for (source, number) in places {
            let request = json!({ "filter": self.subject(source, *number), "keep": 1 });
            let asked: Result<Answer, _> =
                self.context.request(format!("STREAM.PURGE.{}", stream.name), &request).await;
            let reason = match asked {
                Ok(Answer { error: None, .. }) => continue,
                Ok(Answer { error: Some(error), .. }) => error.description,
                Err(error) => error.to_string(),
            };
            if !self.is_said.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    stream = stream.name,
                    reason,
                    "superseded checkpoints stay in the stream; the worker needs the right to purge it of them"
                );
            }
            return;
        }
    }

    /// The message of a checkpoint.
    pub(crate) fn message(&self, checkpoint: &Checkpoint) -> (String, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        if self.stream().is_some_and(|stream| stream.is_never_expiring) {
            headers.insert("Nats-TTL", "never");
        }
        (self.subject(&checkpoint.source, checkpoint.partition), headers, checkpoint.encode().into())
    }

    /// Partitions of a stream or topic that have checkpoints.
    pub(crate) async fn numbers(&self, source: &str) -> Result<Vec<i32>, NatsFault> {
        let stream = self.look_up().await?;
        let stream = self.context.get_stream_no_info(&stream.name).await.map_err(NatsFault::later)?;
        let subject = self.subject(source, 0);
        let all = subject.rsplit_once('.').map_or("", |(all, _)| all);
        let counts = stream.info_with_subjects(format!("{all}.*")).await.map_err(NatsFault::later)?;
        let counts: Vec<(String, usize)> = counts.try_collect().await.map_err(NatsFault::later)?;
        let number = |(subject, _): &(String, usize)| subject.rsplit('.').next()?.parse().ok();
        let mut numbers: Vec<i32> = counts.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Says that this worker holds a partition from now on, or that nobody does, behind the checkpoint that was read. Returns
    /// the new one's sequence, or nothing when somebody else was first.
    pub(crate) async fn write(
        &self,
        (source, number): (&str, i32),
        fence: &Fence,
        map: &OffsetMap,
        is_held: bool,
    ) -> Result<Option<u64>, NatsFault> {
        let checkpoint = Checkpoint {
            source: source.to_owned(),
            created: fence.created.clone(),
            subjects: fence.subjects.clone(),
            partition: number,
            map: map.clone(),
            owner: is_held.then(|| self.owner.clone()),
        };
        let (subject, mut headers, payload) = self.message(&checkpoint);
        headers.insert("Nats-Expected-Last-Subject-Sequence", fence.sequence.to_string());
        let request = async_nats::Request::new().headers(headers).payload(payload).timeout(Some(QUESTION_BOUND));
        let answer = self.client.send_request(subject, request).await.map_err(NatsFault::later)?;
        let answer: Answer = serde_json::from_slice(&answer.payload).map_err(NatsFault::later)?;
        match answer.error {
            None => Ok(Some(answer.seq)),
            Some(ApiError { err_code: WRONG_LAST_SEQUENCE, .. }) => Ok(None),
            Some(ApiError { err_code, description }) => {
                Err(NatsFault::Later(format!("a checkpoint was refused: {description} ({err_code})")))
            }
        }
    }
}

/// A server's word on a message that was published.
#[derive(Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
    pub(crate) error: Option<ApiError>,
}

/// Why it was refused.
#[derive(Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

fn check_version(client: &Client) -> Result<(), NatsFault> {
    let version = client.server_info().version;
    if version.is_empty() {
        return Err(NatsFault::Later("no NATS server is there yet".to_owned()));
    }
    if has_batches(&version) {
        return Ok(());
    }
    Err(NatsFault::Fatal(format!(
        "the NATS server has version {version}, and exactly once needs the atomic batches of {}.{}; upgrade it, or write \
         nats.delivery = \"at_least_once\"",
        SERVER.0, SERVER.1
    )))
}

/// Whether a server of this version has atomic batches.
pub(crate) fn has_batches(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= SERVER
}

/// The one stream that takes a subject.
pub(crate) async fn stream_of(context: &Context, subject: &str) -> Result<String, NatsFault> {
    context.stream_by_subject(subject).await.map_err(|error| match error.kind() {
        GetStreamByNameErrorKind::NotFound => {
            NatsFault::Later(format!("no stream takes the subject {subject}; make one that does"))
        }
        _ => NatsFault::later(error),
    })
}

pub(crate) async fn stream_handle(context: &Context, name: &str) -> Result<Stream<Info>, NatsFault> {
    context.get_stream(name).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(error) => NatsFault::Later(format!("the stream {name}: {error}")),
        _ => NatsFault::later(error),
    })
}

async fn stream_info(context: &Context, name: &str) -> Result<Info, NatsFault> {
    Ok(stream_handle(context, name).await?.cached_info().clone())
}

/// Holds a stream against what checkpoints and batches need of it.
fn check_stream(config: &Config, checkpoints: &str) -> Result<(), NatsFault> {
    let name = &config.name;
    let or_else = "or write nats.delivery = \"at_least_once\"";
    let evicts = config.discard == DiscardPolicy::Old && (config.max_messages > 0 || config.max_bytes > 0);
    let problem = if !config.allow_atomic_publish {
        "has no allow_atomic; set it to true"
    } else if config.retention != RetentionPolicy::Limits {
        "has a retention other than limits, by which checkpoints would be removed; set it to limits"
    } else if evicts {
        "has max_msgs or max_bytes with discard old, by which checkpoints would be removed; remove these limits, or set \
         discard to new"
    } else if config.max_age > Duration::ZERO && !config.allow_message_ttl {
        "has max_age, by which checkpoints would be removed; set allow_msg_ttl to true, so that they may stay, or remove max_age"
    } else if config.mirror.is_some() {
        "is a mirror, which takes no messages; name subjects of another"
    } else {
        return Ok(());
    };
    Err(NatsFault::Fatal(format!("the stream {name}, which takes replies and {checkpoints}, {problem}, {or_else}")))
}

/// Whether a subject is among those of a stream's filter.
fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_must_keep_checkpoints_and_take_batches() {
        let good = Config { name: "R".to_owned(), allow_atomic_publish: true, ..Config::default() };
        let problem = |config: Config| check_stream(&config, "ckpt.g.>").map_err(|fault| fault.to_string());
        assert_eq!(problem(good.clone()), Ok(()));
        let says = |config: Config, word: &str| {
            let message = problem(config).unwrap_err();
            assert!(
                message.starts_with("the stream R, which takes replies and ckpt.g.>, ") && message.contains(word),
                "{message}"
            );
        };
        says(Config { allow_atomic_publish: false, ..good.clone() }, "allow_atomic");
        says(Config { retention: RetentionPolicy::WorkQueue, ..good.clone() }, "retention");
        says(Config { max_messages: 9, ..good.clone() }, "max_msgs");
        says(Config { max_bytes: 9, ..good.clone() }, "max_bytes");
        assert_eq!(problem(Config { max_bytes: 9, discard: DiscardPolicy::New, ..good.clone() }), Ok(()));
        let aged = Config { max_age: Duration::from_secs(1), ..good };
        says(aged.clone(), "max_age");
        assert_eq!(problem(Config { allow_message_ttl: true, ..aged }), Ok(()));
    }

    #[test]
    fn versions_with_atomic_batches() {
        assert!(["2.12.0", "2.12.0-RC.1", "2.15.2", "3.0.0"].into_iter().all(has_batches));
        assert!(!["", "2.11.9", "2.9.25-beta.1", "1.20.0"].into_iter().any(has_batches));
    }

    #[test]
    fn a_streams_subjects() {
        assert!(matches("a.*", "a.b") && matches("a.>", "a.b.c") && matches(">", "a") && matches("a", "a"));
        assert!(!matches("a.*", "a.b.c") && !matches("a.>", "a") && !matches("a.b", "a.c") && !matches("a", "a.b"));
    }
}
