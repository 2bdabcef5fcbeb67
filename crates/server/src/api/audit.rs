//! Who did what.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use wrenn_client::types::{AuditEntry, Page, Refusal};

use super::page::{Paging, page};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::Query;

/// Lists what was done, the newest first: of the key's own tenant, or of all for a key that may do everything.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "keys",
    params(Paging),
    responses(
        (status = 200, description = "A page of it", body = Page<AuditEntry>),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Answer<Page<AuditEntry>>, ApiError> {
    let cut = paging.cut()?;
    let before = cut.after.as_deref().map(str::parse::<u64>).transpose();
    let before = before.map_err(|_no_number| ApiError::invalid("`cursor` is not one of this list"))?;
    let entries = app.db.audit(caller.tenant(), before, cut.asked()).await?;
    Ok(Answer(page(entries, &cut, |entry: &AuditEntry| entry.id.to_string())))
}
