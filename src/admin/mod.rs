//! The admin port: `/livez`, `/readyz`, `/metrics`, `/stats`, `/models`, and the live page at `/`; and the calls that
//! change models (`control`), for who brings the token.

mod control;
mod page;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::{get, post};
use parking_lot::Mutex;

pub use self::control::Control;
use crate::clock;
use crate::engine::InferenceEngine;
use crate::metrics::{self, HealthStats, ModelInfo, Stats};

/// Whether the worker can do its work, and if not, why.
#[derive(Debug, Default)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    dead: AtomicBool,
}

impl Health {
    /// A part that is not ready yet, or no more, and why. A change is worth a look at `/readyz`, not a line in the log.
    pub fn not_ready(&self, part: &str, reason: &str) {
        self.reasons.lock().insert(part.to_owned(), reason.to_owned());
    }

    /// A part that does its work.
    pub fn ready(&self, part: &str) {
        self.reasons.lock().remove(part);
    }

    /// What is not ready, a line each; empty when all is.
    #[must_use]
    pub fn reasons(&self) -> String {
        let reasons = self.reasons.lock();
        let lines: Vec<String> = reasons.iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
        lines.concat()
    }

    /// Whether the worker can recover by itself.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    /// The worker cannot recover by itself: `/livez` fails from here on.
    pub fn died(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Admin {
    health: Arc<Health>,
    engine: Arc<InferenceEngine>,
    control: Option<Arc<Control>>,
}

impl Admin {
    /// What is not ready, a line each.
    fn reasons(&self) -> String {
        let mut reasons = self.health.reasons();
        if self.engine.metrics().broker_away.get() != 0 {
            reasons.push_str("broker: none can be reached\n");
        }
        reasons
    }
}

/// Serves until the process ends, with the calls that change models where `control` is there. Returns the address, whose port was chosen by the system if `listen` says 0.
///
/// # Errors
/// The system's own when the address cannot be listened on.
pub fn serve(
    listen: SocketAddr,
    health: Arc<Health>,
    engine: Arc<InferenceEngine>,
    control: Option<Control>,
) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().thread_name("forebay-change").build()?;
    metrics::watch(engine.metrics())?;
    let router = Router::new()
        .route("/", get(page::page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus_text))
        .route("/stats", get(stats))
        .route("/models", get(models))
        .route("/reload", post(control::reload_all))
        .route("/models/{name}/{action}", post(control::change))
        .with_state(Admin { health, engine, control: control.map(Arc::new) });
    Builder::new().name("forebay-admin".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => axum::serve(listener, router).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::error!(%error, "the admin port is closed");
            }
        });
    })?;
    Ok(address)
}

async fn livez(State(admin): State<Admin>) -> impl IntoResponse {
    let live = admin.health.is_live();
    if live { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "dead\n") }
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let reasons = admin.reasons();
    if reasons.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, reasons) }
}

async fn prometheus_text(State(admin): State<Admin>) -> impl IntoResponse {
    let metrics = admin.engine.metrics();
    metrics.ready.set(i64::from(admin.reasons().is_empty()));
    let text = metrics.to_text(&admin.engine.sights());
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text)
}

async fn stats(State(admin): State<Admin>) -> impl IntoResponse {
    let reasons: Vec<String> = admin.reasons().lines().map(str::to_owned).collect();
    let health = HealthStats { live: admin.health.is_live(), ready: reasons.is_empty(), reasons };
    let stats = Stats::new(admin.engine.metrics(), &admin.engine.sights(), health, clock::now());
    ([(header::CACHE_CONTROL, "no-store")], Json(stats))
}

async fn models(State(admin): State<Admin>) -> Json<Vec<ModelInfo>> {
    Json(admin.engine.sights().models)
}
