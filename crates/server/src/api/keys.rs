//! Keys: made, listed, revoked.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use http::StatusCode;
use wrenn_client::types::{Key, NewKey, NewKeyRequest, Page, Refusal};

use super::page::{Paging, page};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Admin, Json, Query, Segment};
use crate::new_key;
use crate::time::now_unix_ms;

/// Makes a key. Its secret is told this once.
#[utoipa::path(
    post,
    path = "/v1/keys",
    tag = "keys",
    request_body = NewKeyRequest,
    responses(
        (status = 201, description = "It, with its secret", body = NewKey),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Admin(_caller): Admin,
    Json(request): Json<NewKeyRequest>,
) -> Result<(StatusCode, Answer<NewKey>), ApiError> {
    Ok((StatusCode::CREATED, Answer(new_key::make(&app.db, request).await?)))
}

/// Lists keys, the oldest first, without their secrets.
#[utoipa::path(
    get,
    path = "/v1/keys",
    tag = "keys",
    params(Paging),
    responses(
        (status = 200, description = "A page of them", body = Page<Key>),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Admin(_caller): Admin,
    Query(paging): Query<Paging>,
) -> Result<Answer<Page<Key>>, ApiError> {
    let cut = paging.cut()?;
    let keys = app.db.keys(cut.after.as_deref(), cut.asked()).await?;
    Ok(Answer(page(keys, &cut, |key: &Key| key.id.clone())))
}

/// Revokes a key: it is valid no more, also in streams that are open.
#[utoipa::path(
    delete,
    path = "/v1/keys/{id}",
    tag = "keys",
    params(("id" = String, Path, description = "Its id", pattern = "^ky[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "It, revoked", body = Key),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    Admin(_caller): Admin,
    Segment(id): Segment,
) -> Result<Answer<Key>, ApiError> {
    let revoked = app.db.revoke_key(&id, now_unix_ms()).await;
    // Also where the database did not answer in time: it may have done it.
    app.keys.forget();
    revoked?.map(Answer).ok_or_else(|| ApiError::not_found("key", &id, "/v1/keys"))
}

/// Shows the key that asks.
#[utoipa::path(
    get,
    path = "/v1/whoami",
    tag = "keys",
    responses(
        (status = 200, description = "It", body = Key),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn whoami(caller: Caller) -> Answer<Key> {
    Answer(caller.key.as_ref().clone())
}
