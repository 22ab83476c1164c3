//! Calls that change models: `POST /reload`, and `POST /models/<name>/` with `reload`, `rollback`, `promote` or
//! `end-trial`. Each brings the token; without one in the config there are no such calls.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Map, Value, json};

use super::Admin;
use crate::config::ClientValue;
use crate::engine::{Change, RegistryError};
use crate::reload::Reloader;

/// What the calls need.
pub struct Control {
    /// What a call must bring.
    pub token: ClientValue,
    /// What they ask.
    pub reloader: Arc<Reloader>,
}

/// Why a call changes nothing.
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let answer = (self.status, Json(json!({ "error": self.message })));
        match self.status {
            StatusCode::UNAUTHORIZED => ([(header::WWW_AUTHENTICATE, "Bearer")], answer).into_response(),
            _ => answer.into_response(),
        }
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::UnknownModel { .. } => StatusCode::NOT_FOUND,
            RegistryError::NoPrevious(_) | RegistryError::NoCandidate(_) => StatusCode::CONFLICT,
            RegistryError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.to_string())
    }
}

impl Admin {
    /// What may be asked to change something, if this call may ask.
    fn admit(&self, headers: &HeaderMap) -> Result<Arc<Reloader>, Refusal> {
        let off = "calls that change something are off: set admin.token in worker.toml and restart";
        let control = self.control.as_ref().ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, off))?;
        let brought = headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        let brought = brought.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        // Hashes are compared in constant time, and tell nothing of how much of a guess was right.
        if blake3::hash(brought) == blake3::hash(control.token.expose().as_bytes()) {
            return Ok(Arc::clone(&control.reloader));
        }
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "wants the header Authorization: Bearer <admin.token>"))
    }
}

/// Loading takes its time, and this thread has other calls to answer.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|panic| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()))
}

pub(super) async fn reload_all(State(admin): State<Admin>, headers: HeaderMap) -> Result<Response, Refusal> {
    let reloader = admin.admit(&headers)?;
    let changes = aside(move || reloader.reload_all()).await?;
    let changes = changes.map_err(|error| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let failed = changes.iter().any(|(_, change)| change.is_err());
    let status = if failed { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    let models = changes.into_iter().map(|(name, change)| {
        let outcome = change.as_ref().map_or_else(|error| json!({ "error": error.to_string() }), told);
        (name, outcome)
    });
    Ok((status, Json(json!({ "models": models.collect::<Map<_, _>>() }))).into_response())
}

pub(super) async fn change(
    State(admin): State<Admin>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let reloader = admin.admit(&headers)?;
    let change = aside(move || match &*action {
        "reload" => Some(reloader.reload(&name)),
        "rollback" => Some(reloader.rollback(&name)),
        "promote" => Some(reloader.promote(&name)),
        "end-trial" => Some(reloader.end_trial(&name)),
        _ => None,
    });
    let none = "no such action; there are reload, rollback, promote and end-trial";
    let change = change.await?.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, none))?;
    Ok(Json(told(&change?)))
}

fn told(change: &Change) -> Value {
    match change {
        Change::Unchanged => json!({ "change": "none" }),
        Change::Swapped { from, to } => json!({ "change": "version", "from": from, "to": to }),
        Change::Trial => json!({ "change": "trial" }),
    }
}
