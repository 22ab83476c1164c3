//! One endpoint: the model that it asks, how its requests are read, and what it has done so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;

use super::answer::error_line;
use crate::config::{DeadlineFrom, NatsService};
use crate::decode::RouteDecoder;
use crate::metrics::Metrics;
use crate::record::{ModelId, Reject};

/// An endpoint as discovery tells of it, and what it counts.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) model: String,
    pub(super) id: ModelId,
    pub(super) subject: String,
    /// Requests answered, with scores or an error: what Prometheus shows, too.
    requests: IntCounter,
    errors: IntCounter,
    /// From arrival to answer, of all requests together.
    nanos: AtomicU64,
    last_error: Mutex<String>,
}

/// What an endpoint has done so far.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) nanos: u64,
    pub(super) last_error: String,
}

impl Endpoint {
    pub(super) fn new(service: &NatsService, model: &str, id: ModelId, metrics: &Metrics) -> Arc<Self> {
        let (requests, errors) = metrics.endpoint(model);
        Arc::new(Self {
            model: model.to_owned(),
            id,
            subject: service.subject(model),
            requests,
            errors,
            nanos: AtomicU64::new(0),
            last_error: Mutex::default(),
        })
    }

    /// How requests that come in here are read. The subject names the model, and who may ask which is decided by subjects:
    /// so a request cannot name another.
    pub(super) fn decoder(&self, route: u32, service: &NatsService) -> RouteDecoder {
        RouteDecoder {
            route,
            deadline_from: DeadlineFrom::Arrival,
            record_bytes_max: service.record_bytes_max.get(),
            retries: service.retries,
            any_model: false,
            ..RouteDecoder::new(self.id, "")
        }
    }

    /// A request was answered.
    pub(super) fn answered(&self, took: Duration, error: Option<&Reject>) {
        self.requests.inc();
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(reject) = error {
            self.errors.inc();
            *self.last_error.lock() = error_line(reject);
        }
    }

    pub(super) fn done(&self) -> Done {
        Done {
            requests: self.requests.get(),
            errors: self.errors.get(),
            nanos: self.nanos.load(Ordering::Relaxed),
            last_error: self.last_error.lock().clone(),
        }
    }
}
