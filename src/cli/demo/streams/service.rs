//! Request and reply: the workers' service is found as any NATS client finds one, and asked.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{Client, HeaderMap, Request};
use futures_util::StreamExt as _;
use serde::Deserialize;

use super::super::check::Check;
use super::super::data::{BAD_RECORD, Data};
use super::super::feed::Sent;
use super::super::shortened;
use super::super::workers::WORKERS;
use crate::clock;

/// Requests of the show.
const REQUESTS: usize = 2_000;
/// Requests that wait for their answers at once.
const AT_ONCE: usize = 16;
/// A caller's patience.
const ANSWER_BOUND: Duration = Duration::from_secs(2);
/// How long the workers may take to be found.
const FOUND_BOUND: Duration = Duration::from_secs(20);
/// How long they have to answer before they are asked again.
const FOUND_WAIT: Duration = Duration::from_millis(250);
/// Requests whose answers are shown; the last one gets an error.
const SHOWN: [usize; 2] = [0, BAD_RECORD];
/// The headers of an error, by NATS' own convention.
const ERROR_HEADERS: [&str; 2] = ["Nats-Service-Error-Code", "Nats-Service-Error"];

/// What a worker says of its service.
#[derive(Deserialize)]
struct Info {
    id: String,
    metadata: BTreeMap<String, String>,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    subject: String,
    metadata: BTreeMap<String, String>,
}

/// Finds the service of this name, asks it, and prints what came of that. Returns what was wrong.
pub(super) async fn show(client: &Client, name: &str, data: &Arc<Data>) -> anyhow::Result<Vec<String>> {
    let found = discover(client, name).await?;
    let endpoint = found.first().and_then(|info| info.endpoints.first()).context("the service has no endpoint")?;
    let workers: Vec<&str> = found.iter().map(|info| told(&info.metadata, "instance")).collect();
    let [model, version, features] = ["model", "model_version", "features"].map(|key| told(&endpoint.metadata, key));
    let mut out = io::stdout().lock();
    writeln!(out, "service {} answer at $SRV.INFO.{name}", workers.join(", "))?;
    writeln!(out, "        {}: model {model}, version {version}, {features} features\n", endpoint.subject)?;

    let sent = Arc::new(Sent::new(REQUESTS));
    let mut check = Check::new(Arc::clone(data), Arc::clone(&sent), &SHOWN)?;
    let start = clock::now();
    let headers = ask(client, &endpoint.subject, data, &sent, &mut check).await;
    let took = clock::now() - start;

    check.shown.sort();
    for (record, reply) in &check.shown {
        writeln!(out, "request   {}  {}", endpoint.subject, shortened(&data.request(*record)))?;
        if *record == BAD_RECORD {
            let errors = ERROR_HEADERS.map(|header| format!("{header}: {}", value(headers.as_ref(), header)));
            writeln!(out, "headers   {}", errors.join(" · "))?;
        }
        writeln!(out, "reply     {reply}\n")?;
    }
    if value(headers.as_ref(), ERROR_HEADERS[0]) != "400" {
        check.wrong.push(format!("the answer to request {BAD_RECORD} has no {}: 400", ERROR_HEADERS[0]));
    }
    let ms = |quantile| check.latency_us.value_at_quantile(quantile) as f64 / 1e3;
    writeln!(
        out,
        "requests  {} of {REQUESTS} answered, {AT_ONCE} at a time: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms\n",
        check.answered(),
        check.answered() as f64 / took.as_secs_f64(),
        ms(0.5),
        ms(0.99)
    )?;
    Ok(check.counts().wrong)
}

/// Asks all that are there what they are, until as many as there should be have answered.
async fn discover(client: &Client, name: &str) -> anyhow::Result<Vec<Info>> {
    let (subject, inbox) = (format!("$SRV.INFO.{name}"), client.new_inbox());
    let mut answers = client.subscribe(inbox.clone()).await?;
    let mut found: BTreeMap<String, Info> = BTreeMap::new();
    let since = clock::now();
    while found.len() < WORKERS {
        ensure!(clock::now() - since < FOUND_BOUND, "{} of {WORKERS} workers answer at {subject}", found.len());
        client.publish_with_reply(subject.clone(), inbox.clone(), "".into()).await?;
        while found.len() < WORKERS
            && let Ok(Some(answer)) = tokio::time::timeout(FOUND_WAIT, answers.next()).await
        {
            // The server's own word is that nobody listens yet.
            if answer.status.is_none() {
                let info: Info = serde_json::from_slice(&answer.payload).context("an answer of NATS' discovery")?;
                found.insert(info.id.clone(), info);
            }
        }
    }
    let mut found: Vec<Info> = found.into_values().collect();
    found.sort_by(|one, other| one.metadata.cmp(&other.metadata));
    Ok(found)
}

/// Asks for the score of each record, and counts the answers. Returns the headers of the one that is an error.
async fn ask(client: &Client, subject: &str, data: &Data, sent: &Sent, check: &mut Check) -> Option<HeaderMap> {
    let mut headers = None;
    let asked = futures_util::stream::iter(0..REQUESTS).map(|record| async move {
        let request = Request::new().payload(data.request(record).into()).timeout(Some(ANSWER_BOUND));
        sent.stamp(record);
        (record, client.send_request(subject.to_owned(), request).await)
    });
    let mut answers = asked.buffer_unordered(AT_ONCE);
    while let Some((record, answer)) = answers.next().await {
        match answer {
            Ok(answer) => {
                check.count(&answer.payload);
                headers = answer.headers.filter(|_| record == BAD_RECORD).or(headers);
            }
            Err(error) => check.wrong.push(format!("request {record} has no answer: {error}")),
        }
    }
    headers
}

fn told<'m>(metadata: &'m BTreeMap<String, String>, key: &str) -> &'m str {
    metadata.get(key).map_or("?", String::as_str)
}

fn value(headers: Option<&HeaderMap>, name: &str) -> String {
    headers.and_then(|headers| headers.get(name)).map(ToString::to_string).unwrap_or_default()
}
