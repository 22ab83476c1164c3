//! `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` in, what the service is and has done out (ADR-32).
//!
//! Invariant: metadata never changes, as ADR-32 has it. What another version of a model changes is told with the statistics,
//! as it is at that moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt as _;
use futures_util::stream::{SelectAll, select_all};
use serde::Serialize;

use super::endpoint::{Done, Endpoint};
use crate::clock;
use crate::config::NatsService;
use crate::engine::InferenceEngine;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }

    /// What a subject asks. Only those of this service come in.
    fn of(subject: &str) -> Option<Self> {
        let verb = subject.strip_prefix("$SRV.")?.split('.').next()?;
        Self::ALL.into_iter().find(|one| one.as_str() == verb)
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Ping => "io.nats.micro.v1.ping_response",
            Self::Info => "io.nats.micro.v1.info_response",
            Self::Stats => "io.nats.micro.v1.stats_response",
        }
    }
}

/// What answers.
pub(super) struct Discovery {
    id: String,
    started: String,
    metadata: BTreeMap<&'static str, String>,
    service: NatsService,
    endpoints: Vec<Arc<Endpoint>>,
    engine: Arc<InferenceEngine>,
}

impl Discovery {
    /// `id` tells this service from others of its name.
    pub(super) fn new(
        id: String,
        instance: &str,
        service: &NatsService,
        endpoints: Vec<Arc<Endpoint>>,
        engine: &Arc<InferenceEngine>,
    ) -> Self {
        let since = Duration::from_millis(u64::try_from(clock::unix_ms()).unwrap_or(0));
        let metadata = [("instance", instance.to_owned()), ("forebay", env!("CARGO_PKG_VERSION").to_owned())];
        Self {
            id,
            started: humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string(),
            metadata: metadata.into(),
            service: service.clone(),
            endpoints,
            engine: Arc::clone(engine),
        }
    }

    /// Subscribes to what may be asked: of all services, of all with this name, of this one.
    pub(super) async fn subscribe(&self, client: &Client) -> Result<SelectAll<Subscriber>, async_nats::SubscribeError> {
        let mut asked = Vec::new();
        for verb in Verb::ALL {
            let (verb, name, id) = (verb.as_str(), &self.service.name, &self.id);
            for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{name}"), format!("$SRV.{verb}.{name}.{id}")] {
                asked.push(client.subscribe(subject).await?);
            }
        }
        Ok(select_all(asked))
    }

    /// Answers until nothing is asked any more.
    pub(super) async fn run(self, client: Client, mut asked: SelectAll<Subscriber>) {
        while let Some(Message { subject, reply, .. }) = asked.next().await {
            let (Some(verb), Some(reply)) = (Verb::of(&subject), reply) else { continue };
            if let Err(error) = client.publish(reply, self.answer(verb).into()).await {
                tracing::debug!(%error, "a question of NATS' discovery was not answered");
            }
        }
    }

    fn answer(&self, verb: Verb) -> Vec<u8> {
        let endpoints = match verb {
            Verb::Ping => None,
            Verb::Info => Some(self.endpoints.iter().map(|endpoint| self.told(endpoint, true)).collect()),
            Verb::Stats => Some(self.endpoints.iter().map(|endpoint| self.told(endpoint, false)).collect()),
        };
        let answer = Answer {
            kind: verb.kind(),
            name: &self.service.name,
            id: &self.id,
            version: &self.service.version,
            metadata: &self.metadata,
            description: (verb == Verb::Info).then_some(&self.service.description),
            started: (verb == Verb::Stats).then_some(&self.started),
            endpoints,
        };
        serde_json::to_vec(&answer).expect("texts and numbers are JSON")
    }

    fn told<'e>(&'e self, endpoint: &'e Endpoint, info: bool) -> Told<'e> {
        Told {
            name: NatsService::endpoint_name(&endpoint.model),
            subject: &endpoint.subject,
            queue_group: &self.service.queue_group,
            metadata: info.then(|| self.metadata_of(endpoint)),
            stats: (!info).then(|| Stats::new(endpoint.done(), self.data_of(endpoint))),
        }
    }

    /// What all versions of a model have in common: no other takes its place.
    fn metadata_of(&self, endpoint: &Endpoint) -> BTreeMap<&'static str, String> {
        let mut metadata = BTreeMap::from([("model", endpoint.model.clone())]);
        if let Some(loaded) = self.engine.model(endpoint.id) {
            let schema = loaded.schema();
            metadata.extend([("features", schema.width().to_string()), ("outputs", schema.outputs.to_string())]);
        }
        metadata
    }

    /// Which version answers at the moment.
    fn data_of(&self, endpoint: &Endpoint) -> BTreeMap<&'static str, String> {
        let mut data = BTreeMap::from([("model", endpoint.model.clone())]);
        if let Some(loaded) = self.engine.model(endpoint.id) {
            data.extend([
                ("model_version", loaded.version().to_string()),
                ("sha256", loaded.sha256().to_owned()),
                ("kind", loaded.schema().model_type.to_string()),
                ("compiled", loaded.is_compiled().to_string()),
            ]);
        }
        data
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    id: &'a str,
    version: &'a str,
    metadata: &'a BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<Told<'a>>>,
}

#[derive(Serialize)]
struct Told<'a> {
    name: String,
    subject: &'a str,
    queue_group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'static str, String>>,
    #[serde(flatten)]
    stats: Option<Stats>,
}

/// Times in nanoseconds.
#[derive(Serialize)]
struct Stats {
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    processing_time: u64,
    average_processing_time: u64,
    data: BTreeMap<&'static str, String>,
}

impl Stats {
    fn new(done: Done, data: BTreeMap<&'static str, String>) -> Self {
        let Done { requests, errors, nanos, last_error } = done;
        let average = nanos.checked_div(requests).unwrap_or(0);
        Self {
            num_requests: requests,
            num_errors: errors,
            last_error,
            processing_time: nanos,
            average_processing_time: average,
            data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_of_a_subject() {
        assert_eq!(Verb::of("$SRV.PING"), Some(Verb::Ping));
        assert_eq!(Verb::of("$SRV.INFO.forebay"), Some(Verb::Info));
        assert_eq!(Verb::of("$SRV.STATS.forebay.id"), Some(Verb::Stats));
        assert_eq!((Verb::of("$SRV.SCHEMA"), Verb::of("SRV.PING"), Verb::of("$SRV")), (None, None, None));
    }
}
