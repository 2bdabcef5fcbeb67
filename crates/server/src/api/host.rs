//! The host, and how the server is.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use http::StatusCode;
use tokio::time::timeout;
use wrenn_client::types::{Health, HealthStatus, Host, Refusal};

use crate::app::App;
use crate::auth::Caller;
use crate::convert;
use crate::error::ApiError;
use crate::limits;

/// Shows what the host has and how much of it is taken.
#[utoipa::path(
    get,
    path = "/v1/host",
    tag = "host",
    responses(
        (status = 200, description = "It", body = Host),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller) -> Result<Answer<Host>, ApiError> {
    let view = app.agent.host().await?;
    let mut sandboxes = BTreeMap::new();
    for sandbox in app.world.all()?.iter().filter(|view| caller.sees_sandbox(view)) {
        *sandboxes.entry(convert::state(sandbox.phase).as_str().to_owned()).or_default() += 1;
    }
    Ok(Answer(Host {
        host: view.host,
        version: view.version,
        cpus: view.cpus,
        memory_mib: view.memory.0,
        memory_taken_mib: view.memory_taken.0,
        disk_free_bytes: view.disk_free_bytes,
        disk_total_bytes: view.disk_total_bytes,
        vmm: convert::vmm(&view.vmm),
        storage: view.storage.to_string(),
        sandboxes,
    }))
}

/// Whether all that the server needs is there. Needs no key.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "host",
    security(()),
    responses(
        (status = 200, description = "It is", body = Health),
        (status = 503, description = "It is not", body = Health),
    )
)]
pub async fn health(State(app): State<Arc<App>>) -> (StatusCode, Answer<Health>) {
    let database = timeout(limits::HEALTH_LIMIT, app.db.is_alive()).await.unwrap_or(false);
    let agent = app.world.is_synced();
    let (status, code) = if agent && database {
        (HealthStatus::Ok, StatusCode::OK)
    } else {
        (HealthStatus::Degraded, StatusCode::SERVICE_UNAVAILABLE)
    };
    (code, Answer(Health { status, agent, database }))
}
