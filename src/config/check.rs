//! `raw` in, `Config` out: units parsed, bounds held, names that Kafka takes, and keys that fit each other. What
//! several routes or models must agree on is in `cross`.
//!
//! A key that is missing or of the wrong kind has been reported by `shape` and is `None` or its default here: nothing is
//! said about it again. Where a value is refused a stand-in goes on in its place; a config with problems is thrown away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::client::{ClientValue, refusal};
use super::cross;
use super::error::Problem;
use super::places::{Places, join};
use super::raw::{RawAdmin, RawCache, RawConfig, RawEngine, RawKafka, RawModel};
use super::topic::is_name;
use super::units::{bytes_words, duration_words, parse_bytes, parse_duration};
use super::values::{BytesText, DurationText, PinMode, RawClientValue, RawPin};
use super::{Admin, Cache, Config, Delivery, Engine, Journal, Kafka, Log, Model};
use crate::model::{LoadOptions, Quantization};
use crate::placement::Pin;

/// `{group}-{instance}-{shard}` and `{instance}-{shard}` stay inside Kafka's 249 characters.
const INSTANCE_CHARS_MAX: usize = 200;
const GROUP_CHARS_MAX: usize = 249;
const MODEL_NAME_CHARS_MAX: usize = 128;

// Each range is also in its key's description; a test holds the two together.
const COMMIT_INTERVAL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const COMMIT_INTERVAL_EXACTLY_ONCE: Duration = Duration::from_millis(5);
const COMMIT_INTERVAL_AT_LEAST_ONCE: Duration = Duration::from_millis(50);
const COMMIT_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 30;
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(5 * 60);
const CACHE_BYTES: RangeInclusive<u64> = 1 << 10..=64 << 30;
const CACHE_TTL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 60 * 60);

/// The config, and what is wrong with it; it is worth something only where nothing is.
pub(super) fn check(raw: RawConfig, places: &Places, base_dir: &Path) -> (Config, Vec<Problem>) {
    let mut check = Check { places, problems: Vec::new() };
    let models: Vec<Model> = raw.model.iter().enumerate().map(|(at, model)| check.model(at, model, base_dir)).collect();
    let instance = check.instance(raw.instance);
    let kafka = raw.kafka.map(|kafka| check.kafka(kafka));
    let nats = raw.nats.map(|nats| super::nats::nats(&mut check, nats, &instance, &models, base_dir));
    let routes = super::route::routes(&mut check, &raw.route, &models, kafka.is_some(), nats.as_ref());
    let between = cross::check(&routes, &models, places);
    check.problems.extend(between);
    let config = Config {
        kafka,
        nats,
        instance,
        routes,
        models,
        engine: check.engine(raw.engine, base_dir),
        cache: check.cache(&raw.cache),
        admin: check.admin(raw.admin),
        log: Log { format: raw.log.format, level: raw.log.level },
    };
    (config, check.problems)
}

pub(super) struct Check<'a> {
    pub(super) places: &'a Places,
    problems: Vec<Problem>,
}

/// Values by themselves.
impl Check<'_> {
    pub(super) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(self.places.problem(key, message));
    }

    /// Refuses a text for what it is not.
    pub(super) fn wants(&mut self, key: &str, text: &str, wanted: &str) {
        let got = self.places.quoted(key, text);
        self.refuse(key, format!("got {got}, wants {wanted}"));
    }

    pub(super) fn duration(&mut self, key: &str, text: &DurationText, bounds: &RangeInclusive<Duration>) -> Duration {
        match parse_duration(&text.0) {
            Some(duration) if bounds.contains(&duration) => duration,
            _ => {
                let (min, max) = (duration_words(*bounds.start()), duration_words(*bounds.end()));
                let form = "with its unit, such as \"5ms\", \"20s\" or \"1m30s\"";
                self.wants(key, &text.0, &format!("a duration from {min} to {max} {form}"));
                *bounds.start()
            }
        }
    }

    pub(super) fn bytes(&mut self, key: &str, text: &BytesText, bounds: &RangeInclusive<u64>) -> NonZeroUsize {
        let bytes = parse_bytes(&text.0).filter(|bytes| bounds.contains(bytes));
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).and_then(NonZeroUsize::new).unwrap_or_else(|| {
            let (min, max) = (bytes_words(*bounds.start()), bytes_words(*bounds.end()));
            let form = "with its unit, such as \"512B\", \"64KiB\" or \"8MiB\"";
            self.wants(key, &text.0, &format!("a size from {min} to {max} {form}"));
            NonZeroUsize::MIN
        })
    }

    fn instance(&mut self, name: String) -> String {
        if !is_name(&name, INSTANCE_CHARS_MAX) {
            let wanted = format!(
                "1 to {INSTANCE_CHARS_MAX} of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"; the name comes from \
                 --instance, else from instance in the file, else from HOSTNAME"
            );
            self.wants("instance", &name, &wanted);
        }
        name
    }

    fn admin(&mut self, raw: RawAdmin) -> Admin {
        // Kept by its key: a token is a secret.
        let token = Some(raw.token).filter(|token| !token.is_empty()).map(|token| ClientValue::new("token", token));
        Admin { listen: self.listen(&raw.listen), token }
    }

    fn listen(&mut self, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.wants("admin.listen", text, "an IP address and a port, such as \"127.0.0.1:9640\" or \"[::1]:9640\"");
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
        })
    }
}

/// Tables.
impl Check<'_> {
    fn kafka(&mut self, raw: RawKafka) -> Kafka {
        if !raw.brokers.split(',').all(is_broker) {
            self.wants("kafka.brokers", &raw.brokers, "\"host:port\", several joined by commas");
        }
        let group = raw.group.unwrap_or_else(|| "group".to_owned());
        let group_chars = group.chars().count();
        if group_chars == 0 || group_chars > GROUP_CHARS_MAX || group.contains(char::is_control) {
            let wanted = format!("1 to {GROUP_CHARS_MAX} characters, no control characters among them");
            self.wants("kafka.group", &group, &wanted);
        }
        Kafka {
            brokers: raw.brokers,
            group,
            delivery: raw.delivery,
            ordering: raw.ordering,
            start: raw.start,
            on_bad_position: raw.on_bad_position,
            on_bad_offset_map: raw.on_bad_offset_map,
            rebalance: raw.rebalance,
            shards: raw.shards,
            commit_interval: match &raw.commit_interval {
                Some(text) => self.duration("kafka.commit_interval", text, &COMMIT_INTERVAL),
                None if raw.delivery == Delivery::AtLeastOnce => COMMIT_INTERVAL_AT_LEAST_ONCE,
                None => COMMIT_INTERVAL_EXACTLY_ONCE,
            },
            commit_records_max: raw.commit_records_max,
            commit_bytes_max: self.bytes("kafka.commit_bytes_max", &raw.commit_bytes_max, &COMMIT_BYTES),
            drain_timeout: self.duration("kafka.drain_timeout", &raw.drain_timeout, &DRAIN_TIMEOUT),
            client: self.client(raw.client),
        }
    }

    fn client(&mut self, raw: BTreeMap<String, RawClientValue>) -> BTreeMap<String, ClientValue> {
        let mut client = BTreeMap::new();
        for (name, value) in raw {
            if let Some(reason) = refusal(&name) {
                self.refuse(&join("kafka.client", &name), format!("may not be set here: {reason}"));
            }
            let text = match value {
                RawClientValue::Text(text) => text,
                RawClientValue::Whole(number) => number.to_string(),
                RawClientValue::Real(number) => number.to_string(),
                RawClientValue::Flag(flag) => flag.to_string(),
            };
            let value = ClientValue::new(&name, text);
            client.insert(name, value);
        }
        client
    }

    fn model(&mut self, at: usize, raw: &RawModel, base_dir: &Path) -> Model {
        let key = |name: &str| format!("model[{at}].{name}");
        if let Some(name) = raw.name.as_deref().filter(|name| !is_name(name, MODEL_NAME_CHARS_MAX)) {
            let wanted = format!("1 to {MODEL_NAME_CHARS_MAX} of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"");
            self.wants(&key("name"), name, &wanted);
        }
        if raw.path.as_deref() == Some("") {
            self.wants(&key("path"), "", "the path of a model file");
        }
        let sha256 = if raw.sha256.is_empty() { None } else { parse_sha256(&raw.sha256) };
        if sha256.is_none() && !raw.sha256.is_empty() {
            self.wants(&key("sha256"), &raw.sha256, "64 hex digits, as sha256sum prints them, or \"\" for any file");
        }
        let load = LoadOptions {
            model_type: raw.kind.into(),
            backend: (&raw.compile_model).into(),
            trusted: raw.trusted,
            quantize: raw.enable_model_quantization,
            quantize_inputs: raw.enable_quantization,
            calibration: Some(&raw.calibration).filter(|path| !path.is_empty()).map(|path| base_dir.join(path)),
            preprocess: super::preprocess::steps(self, &key("preprocess"), &raw.preprocess),
            onnx: super::onnx::onnx(self, &key("onnx"), &raw.onnx, base_dir),
            python: super::python::python(self, &key("python"), &raw.python, base_dir),
        };
        self.calibration(&format!("model[{at}]"), &load);
        Model {
            name: raw.name.clone().unwrap_or_default(),
            path: base_dir.join(raw.path.as_deref().unwrap_or_default()),
            candidate: super::candidate::candidate(self, &key("candidate"), &raw.candidate, &load, base_dir),
            load,
            sha256,
            reload: raw.reload,
            batch: super::batch::batch(self, &key("batch"), &raw.batch),
        }
    }

    /// Whether there is a file of rows where one is needed.
    pub(super) fn calibration(&mut self, table: &str, load: &LoadOptions) {
        if load.quantize_inputs == Quantization::U8 && load.calibration.is_none() {
            let message = "is missing, and `enable_quantization = \"u8\"` takes each feature's range from it; name a file of \
                           rows (JSON lines, CSV or TSV), or take \"f16\"";
            self.refuse(&format!("{table}.calibration"), message);
        }
    }

    fn cache(&mut self, raw: &RawCache) -> Cache {
        Cache {
            mode: raw.mode,
            bytes_max: self.bytes("cache.bytes_max", &raw.bytes_max, &CACHE_BYTES),
            ttl: self.duration("cache.ttl", &raw.ttl, &CACHE_TTL),
            features: raw.features,
            features_bytes_max: self.bytes("cache.features_bytes_max", &raw.features_bytes_max, &CACHE_BYTES),
        }
    }

    fn engine(&mut self, raw: RawEngine, base_dir: &Path) -> Engine {
        let num_threads = NonZeroU32::new(raw.num_threads);
        let pin = match raw.pin {
            RawPin::Mode(PinMode::Auto) => Pin::Auto,
            RawPin::Mode(PinMode::Off) => Pin::Off,
            RawPin::Cores(cores) => {
                let distinct: BTreeSet<u32> = cores.iter().copied().collect();
                if distinct.len() < cores.len() {
                    self.refuse("engine.pin", "names a core twice; name each core once");
                } else if cores.len() < raw.num_threads as usize {
                    let message = format!(
                        "lists {} of the {} cores that engine.num_threads asks for; name more, or ask for fewer threads",
                        cores.len(),
                        raw.num_threads
                    );
                    self.refuse("engine.pin", message);
                }
                Pin::Cores(cores)
            }
        };
        let journal = match &*raw.journal {
            "auto" => Journal::Auto,
            "off" => Journal::Off,
            path => {
                if path.is_empty() {
                    self.wants("engine.journal", "", "\"auto\", \"off\" or the path of a file");
                }
                Journal::At(base_dir.join(path))
            }
        };
        Engine { num_threads, pin, huge_pages: raw.huge_pages, in_flight_max: raw.in_flight_max, journal }
    }
}

/// `host`, `host:port`, `[v6]:port`, each also as `protocol://…`, which librdkafka takes.
fn is_broker(text: &str) -> bool {
    let text = text.trim();
    let address = text.split_once("://").map_or(text, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (address, None),
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/');
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

pub(crate) fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}
