//! `[nats]`: how a worker connects to NATS; its keys, checked, and back. What flows there is in `jetstream`.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ServerAddr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Model;
use super::check::Check;
use super::client::ClientValue;
use super::dump::{bytes, duration};
use super::jetstream::JetStream;
use super::service::{self, NatsService, RawService};
use super::substitute::literal;
use super::values::{BytesText, Delivery, DurationText, OnBadPosition, Ordering, StartPosition};

const CONNECT_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
const PING_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5 * 60);

/// `[nats]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawNats {
    /// Servers to ask first, "nats://host:port" or "tls://host:port": one, several joined by commas, or a list. The others
    /// of their cluster are learned from them. Default `nats://localhost:4222`.
    pub(super) servers: RawServers,
    /// The user to log in as, with a `password`. Of the ways to log in a worker takes one: user and password, `token`,
    /// `nkey`, `nkey_file` or `creds_file`. Default empty.
    pub(super) user: String,
    /// The user's password. Default empty.
    pub(super) password: String,
    /// The token to log in with. Default empty.
    pub(super) token: String,
    /// The seed of the user's nkey, which starts with SU. Default empty.
    pub(super) nkey: String,
    /// A file that holds such a seed, read at each connect; a relative path is taken from the folder of this config file.
    /// Default empty.
    pub(super) nkey_file: String,
    /// A file that holds the user's JWT and the seed of its nkey, as `nsc` writes it, read at each connect; a relative path
    /// is taken from the folder of this config file. Default empty.
    pub(super) creds_file: String,
    /// How long a server may take to accept a connection; then the next one is asked. Default 5 s, 100 ms to 60 s.
    pub(super) connect_timeout: DurationText,
    /// How often a server is asked whether it is there; one that owes two answers is left. Default 5 s, 100 ms to 5 min.
    pub(super) ping_interval: DurationText,
    /// The name that workers with the same routes share; consumers and checkpoints are named by it. Required where records
    /// come from NATS; 1 to 64 of the characters a-z, A-Z, 0-9, "_" and "-".
    #[schemars(with = "String")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
    /// What is promised: each reply exactly once, or at least once. Exactly once needs servers of 2.12, replies and
    /// checkpoints in one stream with `allow_atomic`, and gives a partition to one worker at a time; with at least once any
    /// number of workers share one consumer. Default `exactly_once`.
    pub(super) delivery: Delivery,
    /// Whose replies keep the order of their records: "none" or "partition". Default "none".
    pub(super) ordering: Ordering,
    /// Where a group without checkpoints starts. Default "earliest".
    pub(super) start: StartPosition,
    /// How many partitions the input subjects have, which then hold "{partition}"; workers share them out.
    /// Default 1, 1 to 1024.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) partitions: NonZeroU32,
    /// How long a worker may be silent before another takes its partitions. Default 10 s, 1 s to 5 min.
    pub(super) lease: DurationText,
    /// How long a server waits for a word on a record before it sends it again; records that wait here are spoken for in
    /// time. Default 30 s, 1 s to 60 min.
    pub(super) ack_wait: DurationText,
    /// Least time between two batches of replies. Default 0 ms, 0 to 60 s.
    pub(super) commit_interval: DurationText,
    /// Most records in one batch of replies; a server takes 1000 messages, dead letters and checkpoints included.
    /// Default 900, 1 to 999.
    #[schemars(range(min = 1, max = 999))]
    pub(super) commit_records_max: NonZeroU32,
    /// Most bytes of replies in one batch. Default 8 MiB, 1 KiB to 1 GiB.
    pub(super) commit_bytes_max: BytesText,
    /// How long a drain may take, on SIGTERM and when a partition goes to another worker. Default 20 s, 0 to 5 min.
    pub(super) drain_timeout: DurationText,
    /// The first tokens of the subjects of checkpoints, which the stream of the replies must take; group, stream and the
    /// partition's number follow as in "ckpt.fraud-scorers.FEATURES.0". Default "ckpt".
    pub(super) checkpoint_subject: String,
    /// What becomes of a partition whose checkpoint is gone, or lies past its stream's end: "stop" leaves it alone and says so;
    /// "continue" goes on from what its consumer has acknowledged, or behind the stream's end. Default "stop".
    pub(super) on_missing_checkpoint: OnBadPosition,
    /// How connections are encrypted.
    pub(super) tls: RawTls,
    /// The microservice that answers requests. Default not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RawService")]
    pub(super) service: Option<RawService>,
}

/// One server, or several.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RawServers {
    /// Joined by commas.
    Joined(String),
    /// One by one.
    List(#[schemars(length(min = 1))] Vec<String>),
}

/// `[nats.tls]`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawTls {
    /// Certificates (PEM) of those who may sign a server's certificate, a relative path from the folder of this config file;
    /// empty for those that the system trusts. Default empty.
    pub(super) ca_file: String,
    /// The worker's own certificate (PEM), for servers that ask for one, with its `key_file`. Default empty.
    pub(super) cert_file: String,
    /// The private key (PEM) of that certificate. Default empty.
    pub(super) key_file: String,
    /// Whether a connection that is not encrypted is refused; if not, the server decides. Default true where one of the keys
    /// here is set, else false.
    #[schemars(with = "bool")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) required: Option<bool>,
    /// Whether encryption begins before the server says a word, for servers with `handshake_first`. Default false.
    pub(super) first: bool,
}

impl Default for RawNats {
    fn default() -> Self {
        Self {
            servers: RawServers::Joined("nats://localhost:4222".to_owned()),
            user: String::new(),
            password: String::new(),
            token: String::new(),
            nkey: String::new(),
            nkey_file: String::new(),
            creds_file: String::new(),
            connect_timeout: DurationText("5s".to_owned()),
            ping_interval: DurationText("5s".to_owned()),
            group: None,
            delivery: Delivery::default(),
            ordering: Ordering::default(),
            start: StartPosition::default(),
            partitions: NonZeroU32::MIN,
            lease: DurationText("10s".to_owned()),
            ack_wait: DurationText("30s".to_owned()),
            commit_interval: DurationText("0ms".to_owned()),
            commit_records_max: const { NonZeroU32::new(900).expect("not 0") },
            commit_bytes_max: BytesText("8MiB".to_owned()),
            drain_timeout: DurationText("20s".to_owned()),
            checkpoint_subject: "ckpt".to_owned(),
            on_missing_checkpoint: OnBadPosition::default(),
            tls: RawTls::default(),
            service: None,
        }
    }
}

/// What is read from NATS and sent there.
#[derive(Clone, Debug, PartialEq)]
pub struct Nats {
    /// How the worker connects.
    pub connection: NatsSettings,
    /// How records flow.
    pub flow: JetStream,
    /// The requests that it answers.
    pub service: Option<NatsService>,
}

/// How the worker connects to NATS.
#[derive(Clone, Debug, PartialEq)]
pub struct NatsSettings {
    /// What the server's own lists call the connection: the worker's instance.
    pub name: String,
    /// Servers to ask first; at least one, none of them with a user or password in it.
    pub servers: Vec<ServerAddr>,
    /// How it logs in.
    pub auth: NatsAuth,
    /// How connections are encrypted.
    pub tls: NatsTls,
    /// How long a server may take to accept a connection.
    pub connect_timeout: Duration,
    /// How often a server is asked whether it is there.
    pub ping_interval: Duration,
}

/// How the worker logs in to NATS.
#[derive(Clone, Debug, PartialEq)]
pub enum NatsAuth {
    /// Not at all.
    None,
    /// By name and password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: ClientValue,
    },
    /// By a token.
    Token(ClientValue),
    /// By the key that has this seed.
    Nkey(ClientValue),
    /// By the key whose seed is in this file.
    NkeyFile(PathBuf),
    /// By the JWT in this file and the key that it was made out to.
    CredsFile(PathBuf),
}

/// How connections to NATS are encrypted. Relative paths have been taken from the config file's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsTls {
    /// Who may sign a server's certificate; `None` for those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// The worker's own certificate.
    pub client: Option<ClientCertificate>,
    /// Whether a connection that is not encrypted is refused.
    pub required: bool,
    /// Whether encryption begins before the server says a word.
    pub first: bool,
}

/// A certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the one that is trusted.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The table.
pub(super) fn nats(check: &mut Check<'_>, mut raw: RawNats, instance: &str, models: &[Model], base_dir: &Path) -> Nats {
    let service = raw.service.take().map(|raw| service::service(check, raw, models));
    let flow = super::jetstream::jetstream(check, &raw);
    let connection = NatsSettings {
        name: instance.to_owned(),
        servers: servers(check, &raw.servers),
        tls: tls(check, &raw.tls, base_dir),
        connect_timeout: check.duration("nats.connect_timeout", &raw.connect_timeout, &CONNECT_TIMEOUT),
        ping_interval: check.duration("nats.ping_interval", &raw.ping_interval, &PING_INTERVAL),
        auth: auth(check, raw, base_dir),
    };
    Nats { connection, flow, service }
}

fn servers(check: &mut Check<'_>, raw: &RawServers) -> Vec<ServerAddr> {
    let mut servers = Vec::new();
    let mut add = |key: &str, text: &str| match server(text.trim()) {
        Ok(server) => servers.push(server),
        // What may be a password is not shown.
        Err(Refused::HoldsSecret) => {
            check.refuse(key, "holds a user or password; use nats.user and nats.password, or nats.token");
        }
        Err(Refused::NoServer) => {
            let wanted = "\"nats://host:port\" or \"tls://host:port\", several joined by commas or as a list";
            check.wants(key, text, wanted);
        }
    };
    match raw {
        RawServers::Joined(text) => text.split(',').for_each(|text| add("nats.servers", text)),
        RawServers::List(texts) => {
            texts.iter().enumerate().for_each(|(at, text)| add(&format!("nats.servers[{at}]"), text));
        }
    }
    servers
}

enum Refused {
    NoServer,
    HoldsSecret,
}

fn server(text: &str) -> Result<ServerAddr, Refused> {
    if text.contains('@') {
        return Err(Refused::HoldsSecret);
    }
    let server: ServerAddr = text.parse().map_err(|_| Refused::NoServer)?;
    let url = server.as_url_str();
    let is_bare = !url.contains(['?', '#', '%', ' ']) && url.matches('/').count() == 2;
    let is_known = ["nats", "tls"].contains(&server.scheme());
    if is_known && is_bare && !server.host().is_empty() && server.port() > 0 {
        Ok(server)
    } else {
        Err(Refused::NoServer)
    }
}

fn auth(check: &mut Check<'_>, raw: RawNats, base_dir: &Path) -> NatsAuth {
    let secret = |text: String| ClientValue::Secret(text.into());
    if raw.user.is_empty() != raw.password.is_empty() {
        let (there, missing) = if raw.user.is_empty() { ("password", "user") } else { ("user", "password") };
        check.refuse(&format!("nats.{missing}"), format!("is missing, and nats.{there} is of no use without it"));
    }
    let ways = [
        ("user", &raw.user),
        ("token", &raw.token),
        ("nkey", &raw.nkey),
        ("nkey_file", &raw.nkey_file),
        ("creds_file", &raw.creds_file),
    ];
    let mut given = ways.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, _)| name);
    let first = given.next();
    for other in given {
        let first = first.unwrap_or_default();
        check.refuse(
            &format!("nats.{other}"),
            format!("there is nats.{first} too; a worker logs in one way, so keep one"),
        );
    }
    match first {
        Some("user") => NatsAuth::UserPassword { user: raw.user, password: secret(raw.password) },
        Some("token") => NatsAuth::Token(secret(raw.token)),
        Some("nkey") => NatsAuth::Nkey(secret(raw.nkey)),
        Some("nkey_file") => NatsAuth::NkeyFile(base_dir.join(raw.nkey_file)),
        Some(_) => NatsAuth::CredsFile(base_dir.join(raw.creds_file)),
        None => NatsAuth::None,
    }
}

fn tls(check: &mut Check<'_>, raw: &RawTls, base_dir: &Path) -> NatsTls {
    let path = |text: &str| Some(text).filter(|text| !text.is_empty()).map(|text| base_dir.join(text));
    let client = match (path(&raw.cert_file), path(&raw.key_file)) {
        (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
        (None, None) => None,
        (cert_file, _) => {
            let (there, missing) = if cert_file.is_some() { ("cert", "key") } else { ("key", "cert") };
            let message = format!("is missing, and nats.tls.{there}_file is of no use without it");
            check.refuse(&format!("nats.tls.{missing}_file"), message);
            None
        }
    };
    if raw.first && raw.required == Some(false) {
        check
            .refuse("nats.tls.required", "got false, but nats.tls.first encrypts every connection; remove one of them");
    }
    let ca_file = path(&raw.ca_file);
    let required = raw.required.unwrap_or(raw.first || ca_file.is_some() || client.is_some());
    NatsTls { ca_file, client, required, first: raw.first }
}

/// The table that says the same.
pub(super) fn dump(nats: &Nats) -> RawNats {
    let (settings, flow) = (&nats.connection, &nats.flow);
    let path = |path: &PathBuf| literal(&path.display().to_string());
    let secret = |value: &ClientValue| literal(&value.to_string());
    let client = settings.tls.client.as_ref();
    let mut raw = RawNats {
        servers: RawServers::List(settings.servers.iter().map(|server| literal(server.as_url_str())).collect()),
        connect_timeout: duration(settings.connect_timeout),
        ping_interval: duration(settings.ping_interval),
        group: Some(flow.group.clone()).filter(|group| !group.is_empty()),
        delivery: flow.delivery,
        ordering: flow.ordering,
        start: flow.start,
        partitions: flow.partitions,
        lease: duration(flow.lease),
        ack_wait: duration(flow.ack_wait),
        commit_interval: duration(flow.commit_interval),
        commit_records_max: flow.commit_records_max,
        commit_bytes_max: bytes(flow.commit_bytes_max.get()),
        drain_timeout: duration(flow.drain_timeout),
        checkpoint_subject: literal(&flow.checkpoint_subject),
        on_missing_checkpoint: flow.on_missing_checkpoint,
        tls: RawTls {
            ca_file: settings.tls.ca_file.as_ref().map(path).unwrap_or_default(),
            cert_file: client.map(|client| path(&client.cert_file)).unwrap_or_default(),
            key_file: client.map(|client| path(&client.key_file)).unwrap_or_default(),
            required: Some(settings.tls.required),
            first: settings.tls.first,
        },
        service: nats.service.as_ref().map(service::dump),
        ..RawNats::default()
    };
    match &settings.auth {
        NatsAuth::None => {}
        NatsAuth::UserPassword { user, password } => (raw.user, raw.password) = (literal(user), secret(password)),
        NatsAuth::Token(token) => raw.token = secret(token),
        NatsAuth::Nkey(seed) => raw.nkey = secret(seed),
        NatsAuth::NkeyFile(file) => raw.nkey_file = path(file),
        NatsAuth::CredsFile(file) => raw.creds_file = path(file),
    }
    raw
}
