//! Requests of NATS clients in, answers on their reply subject out; one endpoint a model, found by NATS' own discovery
//! (ADR-32, "microservices"). At most once: who gets no answer asks again.
//!
//! ```text
//! <prefix>.<model>.predict ──► take what waits ──► decode ──► Chunk ──► engine ──► score threads
//!                              │ forebay-nats-service │                                 │ completed
//! reply subject ◄── publish ◄── encode ◄────────────── what ended ◄─────────────────────┘
//! $SRV.PING, INFO, STATS ◄──► discovery
//! ```
//! One thread does all of this beside the client's own task, so a request changes threads twice, to a score thread and back, or not
//! at all: a few rows of a small model are scored here.
//! It goes the way of a record from Kafka (decoder, queues, cache, encoder), but for the commit.
//!
//! `async_nats::service` is not used: its errors have an empty body, each of its answers takes a lock, it tells no metadata
//! with its statistics, and it ends when a publish fails.
//!
//! Invariants: a request that was taken is answered once, with scores or an error, unless the worker is killed, its drain is
//! cut short or no server takes the answer; nothing here waits for a score thread; past `in_flight_max` a request is refused
//! at once.

mod answer;
mod discovery;
mod endpoint;
mod intake;
mod outlet;
mod serve;
mod waiting;

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::admin::Health;
use crate::client::nats::{NatsError, check_settings};
use crate::clock::Stop;
use crate::config::{NatsService, NatsSettings};
use crate::engine::InferenceEngine;
use crate::record::ModelId;

/// What the service is called at `/readyz`.
const PART: &str = "service";

/// Why a service cannot start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// What is wrong with the connection's settings.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// A model that has an endpoint is not loaded.
    #[error("nats.service.models: no model {0:?} is loaded")]
    Model(String),
    /// The system refused the thread, or what it needs.
    #[error("cannot start the thread of the NATS service: {0}")]
    Thread(#[from] std::io::Error),
    /// It ended where it should go on.
    #[error("the NATS service failed: {0}")]
    Failed(String),
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    thread: JoinHandle<Result<usize, ServiceError>>,
}

/// What a service is made of.
struct Parts {
    connection: NatsSettings,
    service: NatsService,
    models: Vec<(String, ModelId)>,
    engine: Arc<InferenceEngine>,
    health: Arc<Health>,
    stop: Arc<Stop>,
}

impl Service {
    /// Starts to connect and to answer requests for models that are loaded, until `stop` is requested. Then what was asked by
    /// then is answered, within the stop's bound. A server that is away is waited for; `health` knows.
    ///
    /// # Errors
    /// [`ServiceError`] for what no waiting would mend.
    pub fn start(
        connection: &NatsSettings,
        service: &NatsService,
        engine: &Arc<InferenceEngine>,
        health: &Arc<Health>,
        stop: &Arc<Stop>,
    ) -> Result<Self, ServiceError> {
        check_settings(connection)?;
        let catalog = engine.catalog();
        let id = |name: &String| {
            let entry = catalog.by_name(name).ok_or_else(|| ServiceError::Model(name.clone()))?;
            Ok((name.clone(), entry.id))
        };
        let parts = Parts {
            connection: connection.clone(),
            service: service.clone(),
            models: service.models.iter().map(id).collect::<Result<_, ServiceError>>()?,
            engine: Arc::clone(engine),
            health: Arc::clone(health),
            stop: Arc::clone(stop),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        health.not_ready(PART, "connecting to NATS");
        let thread = Builder::new().name("forebay-nats-service".to_owned());
        Ok(Self { thread: thread.spawn(move || runtime.block_on(serve::serve(parts)))? })
    }

    /// Whether it has ended: all is answered, the stop's bound has run out, or it failed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end, and says how many requests were taken and not answered.
    ///
    /// # Errors
    /// [`ServiceError`] when it ended by itself.
    pub fn join(self) -> Result<usize, ServiceError> {
        self.thread.join().unwrap_or_else(|_| Err(ServiceError::Failed("its thread panicked".to_owned())))
    }
}
