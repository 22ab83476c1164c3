//! A validated config back as worker.toml: every key that is in effect, secrets as `***`. Read again, it gives the same
//! config, the secrets aside.

use std::collections::BTreeMap;
use std::time::Duration;

use super::raw::{RawAdmin, RawCache, RawConfig, RawEngine, RawKafka, RawLog, RawModel, RawRoute};
use super::substitute::literal;
use super::units::{bytes_text, duration_text};
use super::values::{BytesText, DurationText, PinMode, RawClientValue, RawPin};
use super::{Config, Engine, Journal, Kafka, Model, Route, batch, candidate, nats, onnx, preprocess, python};
use crate::model::{LoadOptions, hex};
use crate::placement::Pin;

/// The effective config as TOML, with secrets as `***`.
///
/// # Panics
/// Never: every config has a form in TOML.
#[must_use]
pub fn dump(config: &Config) -> String {
    let raw = RawConfig {
        instance: literal(&config.instance),
        kafka: config.kafka.as_ref().map(kafka),
        nats: config.nats.as_ref().map(nats::dump),
        route: config.routes.iter().map(|route| self::route(route, config)).collect(),
        model: config.models.iter().map(model).collect(),
        engine: engine(&config.engine),
        cache: RawCache {
            mode: config.cache.mode,
            bytes_max: bytes(config.cache.bytes_max.get()),
            ttl: duration(config.cache.ttl),
            features: config.cache.features,
            features_bytes_max: bytes(config.cache.features_bytes_max.get()),
        },
        admin: RawAdmin {
            listen: config.admin.listen.to_string(),
            token: config.admin.token.as_ref().map(ToString::to_string).unwrap_or_default(),
        },
        log: RawLog { format: config.log.format, level: config.log.level },
    };
    toml::to_string(&raw)
        .expect("the raw types hold only what TOML has: tables with text keys, and whole numbers in i64")
}

fn kafka(kafka: &Kafka) -> RawKafka {
    let client: BTreeMap<_, _> = kafka
        .client
        .iter()
        .map(|(key, value)| (key.clone(), RawClientValue::Text(literal(&value.to_string()))))
        .collect();
    RawKafka {
        brokers: literal(&kafka.brokers),
        group: Some(literal(&kafka.group)),
        start: kafka.start,
        delivery: kafka.delivery,
        ordering: kafka.ordering,
        on_bad_position: kafka.on_bad_position,
        on_bad_offset_map: kafka.on_bad_offset_map,
        rebalance: kafka.rebalance,
        shards: kafka.shards,
        commit_interval: Some(duration(kafka.commit_interval)),
        commit_records_max: kafka.commit_records_max,
        commit_bytes_max: bytes(kafka.commit_bytes_max.get()),
        drain_timeout: duration(kafka.drain_timeout),
        client,
    }
}

fn route(route: &Route, config: &Config) -> RawRoute {
    RawRoute {
        source: Some(route.source),
        sink: Some(route.sink),
        input: Some(route.input.clone()),
        model: Some(config.model_of(route).name.clone()),
        reply_topic: Some(route.reply_topic.clone()),
        reply_topics_allowed: route.reply_topics_allowed.iter().map(ToString::to_string).collect(),
        deadline_from: route.deadline_from,
        reply_metadata: route.reply_metadata,
        dead_letter: route.dead_letter.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string),
        record_bytes_max: bytes(route.record_bytes_max.get()),
        compacted: route.compacted,
        retries: route.retries,
    }
}

fn model(model: &Model) -> RawModel {
    RawModel {
        name: Some(model.name.clone()),
        path: Some(literal(&model.path.display().to_string())),
        kind: model.load.model_type.into(),
        compile_model: model.load.backend.into(),
        sha256: model.sha256.as_ref().map(|digest| hex(digest)).unwrap_or_default(),
        trusted: model.load.trusted,
        enable_model_quantization: model.load.quantize,
        enable_quantization: model.load.quantize_inputs,
        calibration: calibration(&model.load),
        reload: model.reload,
        candidate: candidate::dump(model.candidate.as_ref()),
        preprocess: preprocess::dump(&model.load.preprocess),
        onnx: onnx::dump(&model.load.onnx),
        python: python::dump(&model.load.python),
        batch: batch::dump(&model.batch),
    }
}

pub(super) fn calibration(load: &LoadOptions) -> String {
    load.calibration.as_ref().map(|path| literal(&path.display().to_string())).unwrap_or_default()
}

fn engine(engine: &Engine) -> RawEngine {
    RawEngine {
        num_threads: engine.num_threads.map_or(0, u32::from),
        pin: match &engine.pin {
            Pin::Auto => RawPin::Mode(PinMode::Auto),
            Pin::Off => RawPin::Mode(PinMode::Off),
            Pin::Cores(cores) => RawPin::Cores(cores.clone()),
        },
        huge_pages: engine.huge_pages,
        in_flight_max: engine.in_flight_max,
        journal: match &engine.journal {
            Journal::Auto => "auto".to_owned(),
            Journal::Off => "off".to_owned(),
            Journal::At(path) => literal(&path.display().to_string()),
        },
    }
}

pub(super) fn duration(duration: Duration) -> DurationText {
    DurationText(duration_text(duration))
}

pub(super) fn bytes(bytes: usize) -> BytesText {
    BytesText(bytes_text(u64::try_from(bytes).unwrap_or(u64::MAX)))
}
