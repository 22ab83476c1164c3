//! The two subjects that are part of this program, each run as a process of its own: the floor and the plain loop.
//! Records in from one topic, replies out to another, positions in the same transactions; until the process is killed.
#![allow(unsafe_code, reason = "the floor calls librdkafka's flush and commit directly")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use forebay::clock;
use lightgbm3::Booster;
use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaRespErr;
use serde::{Deserialize, Serialize};

use crate::clients::{self, CONSUMER, CONSUMER_OF_A_LOOP, PRODUCER};
use crate::subject::Place;

const BOUND: Duration = Duration::from_secs(30);
const BOUND_MS: i32 = 30_000;

/// Positions behind the records of the open transaction, by partition.
type Positions = [i64; clients::PARTITIONS as usize];
const NOTHING: Positions = [-1; clients::PARTITIONS as usize];

struct Line {
    consumer: BaseConsumer,
    producer: ThreadedProducer<DefaultProducerContext>,
    place: Place,
}

impl Line {
    fn open(place: &Place) -> anyhow::Result<Self> {
        let group = [("group.id", place.group.as_str())];
        let id = [("transactional.id", place.group.as_str())];
        let consumer = clients::client(&place.brokers, &[CONSUMER, CONSUMER_OF_A_LOOP, &group]);
        let consumer: BaseConsumer = consumer.create()?;
        let producer: ThreadedProducer<_> = clients::client(&place.brokers, &[PRODUCER, &id]).create()?;
        producer.init_transactions(BOUND)?;
        consumer.subscribe(&[&place.input])?;
        Ok(Self { consumer, producer, place: place.clone() })
    }

    fn send_positions(&self, positions: Positions) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for (partition, &position) in (0..).zip(&positions).filter(|(_, position)| **position >= 0) {
            list.add_partition_offset(&self.place.input, partition, Offset::Offset(position))?;
        }
        let group = self.consumer.group_metadata().context("not in a group")?;
        Ok(self.producer.send_offsets_to_transaction(&list, &group, BOUND)?)
    }

    /// A full local queue is waited for.
    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> anyhow::Result<()> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// Flush and commit as librdkafka has them: delivery reports are served by the producer's own thread.
    fn commit_directly(&self, positions: Positions) -> anyhow::Result<()> {
        let client = self.producer.client().native_ptr();
        // SAFETY: the client is alive.
        let flushed = unsafe { rdkafka_sys::rd_kafka_flush(client, BOUND_MS) };
        ensure!(flushed == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "the flush failed: {flushed:?}");
        self.send_positions(positions)?;
        // SAFETY: as above.
        let error = unsafe { rdkafka_sys::rd_kafka_commit_transaction(client, BOUND_MS) };
        ensure!(error.is_null(), "the commit failed");
        Ok(())
    }
}

/// The floor: what a record costs that is only moved. Poll, send the same payload with one header, in transactions of
/// 10,000; fewer when the input ran dry and the first of them has waited 5 ms, as long as forebay's own interval.
pub(crate) fn pass_through(place: &Place) -> anyhow::Result<()> {
    const RECORDS: usize = 10_000;
    const WAIT: Duration = Duration::from_millis(5);
    let line = Line::open(place)?;
    loop {
        let Some(mut record) = line.consumer.poll(BOUND) else { continue };
        line.producer.begin_transaction()?;
        let (begun, mut positions) = (clock::now(), NOTHING);
        let mut count = 0;
        loop {
            let message = record?;
            positions[usize::try_from(message.partition())?] = message.offset() + 1;
            let headers =
                OwnedHeaders::new_with_capacity(1).insert(Header { key: "correlation-id", value: message.key() });
            let mut out = BaseRecord::to(&line.place.output).headers(headers);
            out.key = message.key();
            out.payload = message.payload();
            line.send(out)?;
            count += 1;
            let next = if count == RECORDS { None } else { line.consumer.poll(Duration::ZERO) };
            // The clock is read only when nothing is there.
            let next = match next {
                None if count < RECORDS => line.consumer.poll(WAIT.saturating_sub(clock::now() - begun)),
                next => next,
            };
            let Some(next) = next else { break };
            record = next;
        }
        line.commit_directly(positions)?;
    }
}

#[derive(Deserialize)]
struct Request<'a> {
    id: &'a str,
    features: Vec<f64>,
}

#[derive(Serialize)]
struct Reply<'a> {
    id: &'a str,
    prediction: [f64; 1],
}

/// The plain loop: one thread, rdkafka's own calls, `serde_json` in and out, LightGBM on what a round of polls brought (at
/// most 1,024), a transaction every 100 ms.
pub(crate) fn rust_loop(place: &Place) -> anyhow::Result<()> {
    const ROWS: usize = 1024;
    const INTERVAL: Duration = Duration::from_millis(100);
    let line = Line::open(place)?;
    let booster = Booster::from_file(&place.model.to_string_lossy())?;
    let width = booster.num_features();
    let mut open = None;
    let mut positions = NOTHING;
    let mut rows = Vec::new();
    loop {
        let mut messages = Vec::with_capacity(ROWS);
        let wait = open.map_or(BOUND, |begun| INTERVAL.saturating_sub(clock::now() - begun));
        let mut next = line.consumer.poll(wait);
        while let Some(message) = next {
            messages.push(message?);
            next = if messages.len() < ROWS { line.consumer.poll(Duration::ZERO) } else { None };
        }
        if !messages.is_empty() {
            if open.is_none() {
                line.producer.begin_transaction()?;
                open = Some(clock::now());
            }
            let mut requests = Vec::with_capacity(messages.len());
            rows.clear();
            for message in &messages {
                let request: Request<'_> = serde_json::from_slice(message.payload().unwrap_or_default())?;
                rows.extend_from_slice(&request.features);
                requests.push(request);
            }
            let scores = booster.predict_with_params(&rows, width, true, "num_threads=1")?;
            for ((message, request), score) in messages.iter().zip(&requests).zip(scores) {
                let reply = serde_json::to_vec(&Reply { id: request.id, prediction: [score] })?;
                let mut out = BaseRecord::to(&line.place.output).payload(&reply[..]);
                out.key = message.key();
                line.send(out)?;
                positions[usize::try_from(message.partition())?] = message.offset() + 1;
            }
        }
        if open.is_some_and(|begun| clock::now() - begun >= INTERVAL) {
            line.send_positions(std::mem::replace(&mut positions, NOTHING))?;
            line.producer.commit_transaction(BOUND)?;
            open = None;
        }
    }
}
