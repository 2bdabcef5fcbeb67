//! Operations, as they are asked for.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};
use wrenn_client::types::{Operation, Page, Refusal};

use super::page::{Paging, page};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Query, Segment};
use crate::operations::unknown;

/// Lists operations, the newest first.
#[utoipa::path(
    get,
    path = "/v1/operations",
    tag = "operations",
    params(Paging),
    responses(
        (status = 200, description = "A page of them", body = Page<Operation>),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Answer<Page<Operation>>, ApiError> {
    let cut = paging.cut()?;
    let rows = app.db.operations(caller.tenant(), cut.after.as_deref(), cut.asked()).await?;
    let operations = rows.into_iter().map(|row| row.operation).collect();
    Ok(Answer(page(operations, &cut, |operation: &Operation| operation.id.clone())))
}

/// Shows how far an operation is, and what came of it.
#[utoipa::path(
    get,
    path = "/v1/operations/{id}",
    tag = "operations",
    params(("id" = String, Path, description = "Its id", pattern = "^op[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "It", body = Operation),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Answer<Operation>, ApiError> {
    find(&app, &caller, &id).await.map(Answer)
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Operation, ApiError> {
    let row = app.db.operation(id).await?.filter(|row| caller.sees(&row.tenant));
    row.map(|row| row.operation).ok_or_else(|| unknown(id))
}

/// The answer to who does not wait.
pub async fn accepted(app: &App, caller: &Caller, id: &str) -> Result<Response, ApiError> {
    let operation = find(app, caller, id).await?;
    let place = format!("/v1/operations/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Answer(operation)).into_response())
}
