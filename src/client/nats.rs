//! The connection to NATS: settings in, a client out that connects by itself, again and again, to whichever server is
//! there; and what it tells of that on its way into our log.
//!
//! 1. What no server could mend (a file that cannot be read, a seed that is none) is found before the first connect.
//! 2. Secrets go to the server and nowhere else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Auth, AuthError, ClientError, ConnectOptions, Event, Server, ServerError};
use nkeys::{KeyPair, KeyPairType};
use parking_lot::Mutex;

use crate::config::{NatsAuth, NatsSettings, NatsTls};

/// The longest pause before the next server is tried.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);
/// The shortest, once each server has been tried.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(10);

/// A client that is connected, or about to be.
#[derive(Clone, Debug)]
pub struct NatsConnection {
    client: async_nats::Client,
    watch: Arc<Watch>,
}

impl NatsConnection {
    /// Starts to connect, on this tokio runtime, and goes on with it for as long as the client lives. Servers that are away
    /// are waited for.
    ///
    /// # Errors
    /// What is wrong with the settings' files.
    pub async fn open(settings: &NatsSettings) -> Result<Self, NatsError> {
        Self::open_with(settings, |options| options).await
    }

    /// The same with options of the caller's own besides.
    ///
    /// # Errors
    /// As [`NatsConnection::open`].
    pub async fn open_with(
        settings: &NatsSettings,
        with: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> Result<Self, NatsError> {
        check_settings(settings)?;
        let servers: Vec<&str> = settings.servers.iter().map(async_nats::ServerAddr::as_url_str).collect();
        let watch = Arc::new(Watch::new(servers.join(",")));
        let (told, asked) = (Arc::clone(&watch), Arc::clone(&watch));
        let options = with(options(settings))
            .event_callback(move |event| {
                told.take(&event);
                std::future::ready(())
            })
            // Asked before each round of tries, and the only place that says why the last one failed.
            .reconnect_to_server_callback(move |servers, _| {
                asked.round(&servers);
                std::future::ready(None)
            });
        let client = options.connect(settings.servers.as_slice()).await.map_err(NatsError::Client)?;
        Ok(Self { client, watch })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Whether a server has taken the connection and not lost it. The client's own word, for events may be passed over when
    /// there are many.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// What the servers were not connected to for, when all had been tried last; `None` while connected, and before that.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.watch.last_error.lock().clone().filter(|_| !self.is_connected())
    }

    /// What there is to say while no server is connected: the last error, or only that.
    #[must_use]
    pub fn why_away(&self) -> String {
        self.last_error().unwrap_or_else(|| "no NATS server is connected".to_owned())
    }

    /// Remembers of these subjects whether the server refuses them, from now on.
    pub fn watch_permissions(&self, subjects: impl IntoIterator<Item = String>) {
        self.watch.refused.lock().extend(subjects.into_iter().map(|subject| (subject, None)));
    }

    /// What the server said when it refused a subject to this user, to hear or to publish, since it took the connection;
    /// only of subjects that are watched.
    #[must_use]
    pub fn refused(&self, subject: &str) -> Option<String> {
        self.watch.refused.lock().get(subject).cloned().flatten()
    }

    /// Messages that the client dropped because a subscription did not take them in time; at least so many, for events may
    /// be passed over when there are many.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.watch.dropped.load(Ordering::Relaxed)
    }
}

/// Why a connection to NATS cannot be made, whatever the servers say.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A file of the settings cannot be read.
    #[error("{key}: the file {} cannot be read: {source}; check the path and who may read it", path.display())]
    Unreadable {
        /// The key of worker.toml.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or text of the settings does not hold what it should.
    #[error("{key}: {place} holds no {wanted}; {remedy}")]
    Lacks {
        /// The key of worker.toml.
        key: &'static str,
        /// Which file, or the text.
        place: String,
        /// What is not there.
        wanted: &'static str,
        /// What makes one.
        remedy: &'static str,
    },
    /// The client takes the settings for wrong.
    #[error("nats: {0}")]
    Client(async_nats::ConnectError),
}

/// Whether all that the settings name is there and can be used. Reads files and asks no server.
///
/// # Errors
/// The first thing that cannot.
pub fn check_settings(settings: &NatsSettings) -> Result<(), NatsError> {
    if let Some(keys) = Keys::of(&settings.auth) {
        keys.log_in(b"a nonce")?;
    }
    check_tls(&settings.tls)
}

fn check_tls(tls: &NatsTls) -> Result<(), NatsError> {
    // Without this a file with no certificate would mean that nobody is trusted, and nobody would say why.
    let certificates = |key, path: &PathBuf| {
        let text = read(key, path)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let good = all.is_ok_and(|all| !all.is_empty());
        if good { Ok(()) } else { Err(lacks(key, path, "certificate", "give one in PEM form")) }
    };
    if let Some(path) = &tls.ca_file {
        certificates("nats.tls.ca_file", path)?;
    }
    if let Some(client) = &tls.client {
        certificates("nats.tls.cert_file", &client.cert_file)?;
        let (key, path) = ("nats.tls.key_file", &client.key_file);
        let text = read(key, path)?;
        PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| lacks(key, path, "private key", "give one in PEM form, without a passphrase"))?;
    }
    Ok(())
}

fn options(settings: &NatsSettings) -> ConnectOptions {
    let options = match (&settings.auth, Keys::of(&settings.auth)) {
        (_, Some(keys)) => ConnectOptions::with_auth_callback(move |nonce| {
            let auth = keys.log_in(&nonce).inspect_err(|error| tracing::warn!(%error, "cannot log in to NATS"));
            std::future::ready(auth.map_err(AuthError::new))
        }),
        (NatsAuth::UserPassword { user, password }, None) => {
            ConnectOptions::with_user_and_password(user.clone(), password.expose().to_owned())
        }
        (NatsAuth::Token(token), None) => ConnectOptions::with_token(token.expose().to_owned()),
        _ => ConnectOptions::new(),
    };
    let servers = settings.servers.len();
    let mut options = options
        .name(&settings.name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempt| reconnect_delay(attempt, servers))
        .connection_timeout(settings.connect_timeout)
        .ping_interval(settings.ping_interval)
        .require_tls(settings.tls.required);
    if let Some(path) = &settings.tls.ca_file {
        options = options.add_root_certificates(path.clone());
    }
    if let Some(client) = &settings.tls.client {
        options = options.add_client_certificate(client.cert_file.clone(), client.key_file.clone());
    }
    if settings.tls.first { options.tls_first() } else { options }
}

/// Each server is tried at once, and then with pauses that double.
fn reconnect_delay(attempt: usize, servers: usize) -> Duration {
    let Some(round) = attempt.checked_sub(servers + 1) else {
        return Duration::ZERO;
    };
    let doublings = u32::try_from(round / servers.max(1)).unwrap_or(u32::MAX);
    RECONNECT_DELAY_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(RECONNECT_DELAY_MAX)
}

/// Where the key is that answers a server's nonce. Files are read at each connect: keys and JWTs are exchanged while a
/// worker runs.
#[derive(Clone, Debug)]
enum Keys {
    Seed(crate::config::ClientValue),
    SeedFile(PathBuf),
    CredsFile(PathBuf),
}

impl Keys {
    fn of(auth: &NatsAuth) -> Option<Self> {
        match auth {
            NatsAuth::Nkey(seed) => Some(Self::Seed(seed.clone())),
            NatsAuth::NkeyFile(path) => Some(Self::SeedFile(path.clone())),
            NatsAuth::CredsFile(path) => Some(Self::CredsFile(path.clone())),
            NatsAuth::None | NatsAuth::UserPassword { .. } | NatsAuth::Token(_) => None,
        }
    }

    fn log_in(&self, nonce: &[u8]) -> Result<Auth, NatsError> {
        let mut auth = Auth::new();
        let pair = match self {
            Self::Seed(seed) => key_pair(seed.expose()).ok_or_else(|| no_seed("nats.nkey", "the text".to_owned()))?,
            Self::SeedFile(path) => {
                let key = "nats.nkey_file";
                key_pair(&read(key, path)?).ok_or_else(|| no_seed(key, file(path)))?
            }
            Self::CredsFile(path) => {
                let key = "nats.creds_file";
                let text = read(key, path)?;
                let jwt = line_with(&text, "ey").ok_or_else(|| lacks(key, path, "user JWT", "nsc makes such files"))?;
                auth.jwt = Some(jwt.to_owned());
                key_pair(&text).ok_or_else(|| no_seed(key, file(path)))?
            }
        };
        // The server knows the key from the JWT, where there is one.
        auth.nkey = auth.jwt.is_none().then(|| pair.public_key());
        auth.signature = pair.sign(nonce).ok();
        Ok(auth)
    }
}

/// The first seed of a user's key in a text, which may have more around it.
fn key_pair(text: &str) -> Option<KeyPair> {
    let pair = KeyPair::from_seed(line_with(text, "SU")?).ok()?;
    (pair.key_pair_type() == KeyPairType::User).then_some(pair)
}

/// Files of keys decorate what counts; it stands in a line of its own.
fn line_with<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    text.lines().map(str::trim).find(|line| line.starts_with(start))
}

fn read(key: &'static str, path: &Path) -> Result<String, NatsError> {
    fs::read_to_string(path).map_err(|source| NatsError::Unreadable { key, path: path.to_path_buf(), source })
}

fn file(path: &Path) -> String {
    format!("the file {}", path.display())
}

fn lacks(key: &'static str, path: &Path, wanted: &'static str, remedy: &'static str) -> NatsError {
    NatsError::Lacks { key, place: file(path), wanted, remedy }
}

fn no_seed(key: &'static str, place: String) -> NatsError {
    NatsError::Lacks {
        key,
        place,
        wanted: "seed of a user's nkey, which starts with SU",
        remedy: "nk -gen user makes one",
    }
}

/// What the client tells, said once each time that it changes.
#[derive(Debug)]
struct Watch {
    servers: String,
    /// Whether a round of tries has begun since the last connection.
    is_trying: AtomicBool,
    last_error: Mutex<Option<String>>,
    dropped: AtomicU64,
    /// The subjects that are watched, each with what the server said if it refused it.
    refused: Mutex<BTreeMap<String, Option<String>>>,
}

impl Watch {
    fn new(servers: String) -> Self {
        Self {
            servers,
            is_trying: AtomicBool::new(false),
            last_error: Mutex::new(None),
            dropped: AtomicU64::new(0),
            refused: Mutex::default(),
        }
    }

    /// A round of tries begins; what the one before it failed for stands with the servers.
    fn round(&self, servers: &[Server]) {
        if !self.is_trying.swap(true, Ordering::Relaxed) {
            return;
        }
        let failed = |server: &Server| Some(format!("{server}: {}", server.last_error.as_ref()?));
        let mut errors: Vec<String> = servers.iter().filter_map(failed).collect();
        if errors.is_empty() {
            // The client keeps no error of a server whose name it could not look up.
            errors.push("the names of the servers have no address".to_owned());
        }
        errors.sort_unstable();
        let error = errors.join("; ");
        let is_new = self.last_error.lock().replace(error.clone()).is_none_or(|last| last != error);
        if is_new {
            tracing::warn!(error, "no NATS server takes the connection; trying on");
        }
    }

    fn keep_refusal(&self, words: &str) {
        let mut refused = self.refused.lock();
        if let Some(kept) = refused_subject(words).and_then(|subject| refused.get_mut(subject)) {
            *kept = Some(words.to_owned());
        }
    }

    fn take(&self, event: &Event) {
        let servers = self.servers.as_str();
        match event {
            Event::Connected => {
                self.is_trying.store(false, Ordering::Relaxed);
                *self.last_error.lock() = None;
                // The client asks again for what it had asked for.
                for words in self.refused.lock().values_mut() {
                    *words = None;
                }
                tracing::info!(servers, "connected to NATS");
            }
            Event::Disconnected => tracing::warn!(servers, "the NATS server is gone; connecting again"),
            Event::LameDuckMode => {
                tracing::info!(servers, "the NATS server is about to stop, and sends its clients elsewhere");
            }
            Event::SlowConsumer(subscription) => {
                let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                // One event a message: a line for each would make slow slower.
                if dropped.is_power_of_two() {
                    tracing::warn!(
                        subscription,
                        dropped,
                        "messages of NATS come faster than they are taken, and are dropped"
                    );
                }
            }
            Event::ServerError(error) => {
                if let ServerError::Other(words) = error {
                    self.keep_refusal(words);
                }
                tracing::warn!(servers, %error, "the NATS server reports an error");
            }
            // A round of tries has failed; the next one begins with what of.
            Event::ClientError(ClientError::Other(_)) => {}
            Event::ClientError(error) => tracing::warn!(servers, %error, "the NATS client reports an error"),
            Event::Draining | Event::Closed => tracing::debug!(servers, %event, "the connection to NATS ends"),
        }
    }
}

/// The subject that a server's error refuses to the user.
fn refused_subject(words: &str) -> Option<&str> {
    let what = words.strip_prefix("Permissions Violation for ")?;
    let quoted = what.strip_prefix("Subscription to \"").or_else(|| what.strip_prefix("Publish to \""))?;
    quoted.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_tried_before_any_pause() {
        let delays = |servers| (1..12).map(|attempt| reconnect_delay(attempt, servers).as_millis()).collect::<Vec<_>>();
        assert_eq!(delays(1), [0, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(delays(3), [0, 0, 0, 10, 10, 10, 20, 20, 20, 40, 40]);
        assert_eq!(reconnect_delay(usize::MAX, 1), RECONNECT_DELAY_MAX);
    }

    #[test]
    fn refusals_are_kept_of_watched_subjects_until_the_next_connection() {
        let watch = Watch::new(String::new());
        watch.refused.lock().extend(["a.b", "c"].map(|subject| (subject.to_owned(), None)));
        let tell = |words: &str| watch.take(&Event::ServerError(ServerError::Other(words.to_owned())));
        let refused = |subject: &str| watch.refused.lock().get(subject).cloned().flatten();
        // All that nats-server says of a subject (2.15).
        for more in ["", " using queue \"q\"", " (sid \"7\")", " using queue \"q\" (sid \"7\")"] {
            let words = format!("Permissions Violation for Subscription to \"a.b\"{more}");
            tell(&words);
            assert_eq!((refused("a.b"), refused("c")), (Some(words), None));
            watch.take(&Event::Connected);
            assert_eq!(refused("a.b"), None);
        }
        tell("Permissions Violation for Publish to \"c\"");
        tell("Permissions Violation for Subscription to \"unwatched\"");
        tell("Maximum Payload Violation");
        assert_eq!((refused("c").is_some(), refused("unwatched"), watch.refused.lock().len()), (true, None, 2));
    }

    #[test]
    fn a_seed_is_found_among_decorations() {
        let pair = KeyPair::new_user();
        let (seed, public) = (pair.seed().unwrap(), pair.public_key());
        let texts = [
            seed.clone(),
            format!("  {seed}\r\n"),
            format!(
                "-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n"
            ),
        ];
        for text in texts {
            assert_eq!(key_pair(&text).map(|pair| pair.public_key()), Some(public.clone()), "{text}");
        }
        let account = KeyPair::new_account().seed().unwrap();
        for text in ["", "SUBJECT", &public, &account, &seed[..20]] {
            assert!(key_pair(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_no_server_could_mend_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let settings = |auth, tls| NatsSettings {
            name: "w".to_owned(),
            servers: vec!["nats://localhost".parse().unwrap()],
            auth,
            tls,
            connect_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_secs(1),
        };
        let told = |auth, tls| check_settings(&settings(auth, tls)).unwrap_err().to_string();
        let (empty, gone) = (path("empty", "nothing"), folder.path().join("gone"));
        let seed = "the text holds no seed of a user's nkey, which starts with SU; nk -gen user makes one";
        let secret = crate::config::ClientValue::new("token", "SUhunter2".to_owned());
        assert_eq!(told(NatsAuth::Nkey(secret), NatsTls::default()), format!("nats.nkey: {seed}"));
        let message = told(NatsAuth::NkeyFile(gone.clone()), NatsTls::default());
        assert!(
            message.starts_with(&format!("nats.nkey_file: the file {} cannot be read: ", gone.display())),
            "{message}"
        );
        let message = told(NatsAuth::CredsFile(empty.clone()), NatsTls::default());
        assert_eq!(
            message,
            format!("nats.creds_file: the file {} holds no user JWT; nsc makes such files", empty.display())
        );
        let tls = NatsTls { ca_file: Some(empty.clone()), ..NatsTls::default() };
        let message = told(NatsAuth::None, tls);
        let want = format!("nats.tls.ca_file: the file {} holds no certificate; give one in PEM form", empty.display());
        assert_eq!(message, want);
    }
}
