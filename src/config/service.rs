//! `[nats.service]`: requests of NATS clients, answered on their reply subject; its keys, checked, and back.

use std::num::{NonZeroU32, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Model;
use super::check::Check;
use super::dump::bytes;
use super::places::join;
use super::route::RECORD_BYTES;
use super::subject::is_plain_token;
use super::substitute::literal;
use super::topic::is_name;
use super::values::{BytesText, ReplyMetadata};
use super::wants::listed;

const NAME_CHARS_MAX: usize = 128;
const PREFIX_CHARS_MAX: usize = 200;
const DESCRIPTION_CHARS_MAX: usize = 1_000;

/// `[nats.service]`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RawService {
    /// What `nats micro list` calls the service; workers with the same models share it. Default "forebay"; 1 to 128 of the
    /// characters a-z, A-Z, 0-9, "_" and "-".
    pub(super) name: String,
    /// What the subjects begin with: requests for a model go to `<prefix>.<model>.predict`. Default "forebay"; 1 to 200 of
    /// the characters a-z, A-Z, 0-9, "_" and "-", in parts that are joined by ".".
    pub(super) prefix: String,
    /// The service's version, as discovery tells it: three numbers and what semantic versioning allows after them. Default
    /// forebay's own.
    pub(super) version: String,
    /// What the service is for, as discovery tells it; 1000 characters at most. Default empty.
    pub(super) description: String,
    /// The queue group, in which each request goes to one of the workers. Default "q"; 1 to 128 of the characters a-z, A-Z,
    /// 0-9, ".", "_" and "-".
    pub(super) queue_group: String,
    /// The names of the models that have an endpoint. Default none, which stands for all.
    pub(super) models: Vec<String>,
    /// Most requests that wait or are scored; what comes past it is answered with `queue_full` at once.
    /// Default 16384, 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) in_flight_max: NonZeroU32,
    /// How much a reply tells about its scoring. Default "short".
    pub(super) reply_metadata: ReplyMetadata,
    /// Larger requests get an error reply. Default 1 MiB, 1 B to 1 GiB.
    pub(super) record_bytes_max: BytesText,
    /// Tries again after a transient error of the model, at most this often; back-off 100 ms, doubling.
    /// Default 0, 0 to 10.
    #[schemars(range(min = 0, max = 10))]
    pub(super) retries: u8,
}

impl Default for RawService {
    fn default() -> Self {
        Self {
            name: "forebay".to_owned(),
            prefix: "forebay".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            description: String::new(),
            queue_group: "q".to_owned(),
            models: Vec::new(),
            in_flight_max: NonZeroU32::MIN.saturating_add((1 << 14) - 1),
            reply_metadata: ReplyMetadata::Short,
            record_bytes_max: BytesText("1MiB".to_owned()),
            retries: 0,
        }
    }
}

/// The NATS microservice of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsService {
    /// Its name in discovery.
    pub name: String,
    /// What its version is, as semantic versioning writes it.
    pub version: String,
    /// What it is for.
    pub description: String,
    /// What its subjects begin with: whole tokens, joined by dots.
    pub prefix: String,
    /// The queue group of its endpoints.
    pub queue_group: String,
    /// The names of the models that have an endpoint, each once; at least one, and each makes a subject.
    pub models: Vec<String>,
    /// Most requests that wait or are scored.
    pub in_flight_max: NonZeroU32,
    /// How much a reply tells about its scoring.
    pub reply_metadata: ReplyMetadata,
    /// Larger requests get an error reply.
    pub record_bytes_max: NonZeroUsize,
    /// How often a request is tried again after a transient error of its model.
    pub retries: u8,
}

impl NatsService {
    /// Where requests for a model go.
    #[must_use]
    pub fn subject(&self, model: &str) -> String {
        format!("{}.{model}.predict", self.prefix)
    }

    /// What discovery calls the endpoint of a model: names there hold no dots.
    #[must_use]
    pub fn endpoint_name(model: &str) -> String {
        model.replace('.', "_")
    }
}

/// The table.
pub(super) fn service(check: &mut Check<'_>, raw: RawService, models: &[Model]) -> NatsService {
    let key = |name: &str| join("nats.service", name);
    if !is_plain_token(&raw.name, NAME_CHARS_MAX) {
        check.wants(&key("name"), &raw.name, "1 to 128 of the characters a-z, A-Z, 0-9, \"_\" and \"-\"");
    }
    if !is_name(&raw.prefix, PREFIX_CHARS_MAX) || !is_tokens(&raw.prefix) {
        let wanted = "1 to 200 of the characters a-z, A-Z, 0-9, \"_\" and \"-\", in parts that are joined by \".\"";
        check.wants(&key("prefix"), &raw.prefix, wanted);
    }
    if !is_semver(&raw.version) {
        check.wants(&key("version"), &raw.version, "a version such as \"1.2.3\" or \"1.2.3-rc.1\"");
    }
    if raw.description.chars().count() > DESCRIPTION_CHARS_MAX || raw.description.contains(char::is_control) {
        check.wants(&key("description"), &raw.description, "1000 characters at most, no control characters among them");
    }
    if !is_name(&raw.queue_group, NAME_CHARS_MAX) {
        check.wants(
            &key("queue_group"),
            &raw.queue_group,
            "1 to 128 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"",
        );
    }
    let record_bytes_max = check.bytes(&key("record_bytes_max"), &raw.record_bytes_max, &RECORD_BYTES);
    let models = chosen(check, &raw.models, models);
    NatsService {
        name: raw.name,
        version: raw.version,
        description: raw.description,
        prefix: raw.prefix,
        queue_group: raw.queue_group,
        models,
        in_flight_max: raw.in_flight_max,
        reply_metadata: raw.reply_metadata,
        record_bytes_max,
        retries: raw.retries,
    }
}

/// The models that get an endpoint. A name that makes no subject is told where it stands.
fn chosen(check: &mut Check<'_>, names: &[String], models: &[Model]) -> Vec<String> {
    let mut chosen: Vec<(String, &String)> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let key = format!("nats.service.models[{at}]");
        if !models.iter().any(|model| model.name == *name) {
            let known: Vec<String> = models.iter().map(|model| format!("{:?}", model.name)).collect();
            check.wants(&key, name, &format!("the name of a [[model]]: {}", listed(&known, "or")));
        } else if chosen.iter().any(|(_, there)| *there == name) {
            check.refuse(&key, "is in this list twice; name it once");
        } else {
            chosen.push((key, name));
        }
    }
    if names.is_empty() {
        // A model without a name has been reported.
        let all = models.iter().enumerate().filter(|(_, model)| !model.name.is_empty());
        chosen = all.map(|(at, model)| (format!("model[{at}].name"), &model.name)).collect();
    }
    for (at, (key, name)) in chosen.iter().enumerate() {
        let endpoint = NatsService::endpoint_name(name);
        let is_same = |(_, other): &(String, &String)| other != name && NatsService::endpoint_name(other) == endpoint;
        let remedy = "rename the model, or name in nats.service.models those that shall have an endpoint";
        if !is_tokens(name) {
            let wanted = "no \".\" at its ends and no \"..\" in it, for a NATS subject is made of it";
            check.wants(key, name, &format!("{wanted}; {remedy}"));
        } else if chosen[..at].iter().any(is_same) {
            let message = "names the same endpoint as another model does: there \".\" becomes \"_\"";
            check.refuse(key, format!("{message}; {remedy}"));
        }
    }
    chosen.into_iter().map(|(_, name)| name.clone()).collect()
}

/// Whether a name is whole tokens of a subject, joined by dots.
fn is_tokens(name: &str) -> bool {
    name.split('.').all(|token| !token.is_empty())
}

/// Three numbers, and perhaps `-` or `+` and words, as semantic versioning has them.
fn is_semver(text: &str) -> bool {
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, early) = text.split_once('-').map_or((text, None), |(core, early)| (core, Some(early)));
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_digits = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |word: &str| is_digits(word) && (word == "0" || !word.starts_with('0'));
    let words = |text: &str, good: &dyn Fn(&str) -> bool| text.split('.').all(good);
    core.split('.').count() == 3
        && words(core, &is_number)
        && early.is_none_or(|early| words(early, &|word| is_word(word) && (!is_digits(word) || is_number(word))))
        && build.is_none_or(|build| words(build, &is_word))
}

/// The table that says the same.
pub(super) fn dump(service: &NatsService) -> RawService {
    RawService {
        name: literal(&service.name),
        prefix: literal(&service.prefix),
        version: literal(&service.version),
        description: literal(&service.description),
        queue_group: literal(&service.queue_group),
        models: service.models.clone(),
        in_flight_max: service.in_flight_max,
        reply_metadata: service.reply_metadata,
        record_bytes_max: bytes(service.record_bytes_max.get()),
        retries: service.retries,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["0.1.0", "1.2.3", "10.20.30", "1.0.0-alpha.1", "1.0.0-0a", "1.0.0+20130313", "1.0.0-x-y.z+a.01"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in
            ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.x", "v1.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "1.2.3-a..b"]
        {
            assert!(!is_semver(bad), "{bad}");
        }
    }
}
