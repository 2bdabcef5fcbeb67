//! What sandboxes take, and what they print.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use wrenn_client::types::{Bytes, Logs, Metrics, Refusal};

use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Id, Query};
use crate::limits;

/// Since when.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Since {
    /// Unix time in milliseconds; all that is kept (an hour) if nothing is said.
    since_unix_ms: u64,
}

/// What a sandbox took over time.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/metrics",
    tag = "observe",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), Since),
    responses(
        (status = 200, description = "Measurements, the oldest first", body = Metrics),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id,
    Query(since): Query<Since>,
) -> Result<Answer<Metrics>, ApiError> {
    app.sandbox(&caller, &id).await?;
    app.samples.refresh(&id, app.agent.as_ref()).await;
    Ok(Answer(Metrics { samples: app.samples.of(&id, since.since_unix_ms) }))
}

/// How much.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HowMuch {
    /// At most so many bytes, from the end; all that is kept (256 KiB) if nothing is said.
    bytes: Option<u32>,
}

/// The end of a sandbox's serial console, and the last commands that were run through this server.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/logs",
    tag = "observe",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), HowMuch),
    responses(
        (status = 200, description = "They", body = Logs),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id,
    Query(how_much): Query<HowMuch>,
) -> Result<Answer<Logs>, ApiError> {
    app.sandbox(&caller, &id).await?;
    let most = how_much.bytes.unwrap_or(limits::CONSOLE_BYTES_MAX).min(limits::CONSOLE_BYTES_MAX);
    let tail = app.agent.console(&id, most).await?;
    let truncated = tail.len() >= most as usize;
    Ok(Answer(Logs { console: Bytes::of(&tail, truncated), execs: app.execs.of(&app.db, &id).await? }))
}
