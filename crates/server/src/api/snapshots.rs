//! Snapshots. A tenant sees its own alone, and names are its own; who sees others' asks for them by their ids.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use wrenn_agent::host_agent::{self, SnapshotView};
use wrenn_client::types::{NewSnapshot, Page, Refusal, Snapshot, SnapshotRequest};

use super::page::{Listing, Paging, page_of, place_in_time};
use super::sandboxes::seen_through;
use crate::app::App;
use crate::attributes::Attributes;
use crate::auth::Caller;
use crate::convert;
use crate::error::ApiError;
use crate::extract::{Json, Segment, Writer, sandbox_id};
use crate::snapshot_names;

/// Keeps what a sandbox is now; it goes on.
#[utoipa::path(
    post,
    path = "/v1/snapshots",
    tag = "snapshots",
    request_body = SnapshotRequest,
    responses(
        (status = 201, description = "It is kept", body = NewSnapshot),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Json(request): Json<SnapshotRequest>,
) -> Result<(StatusCode, Answer<NewSnapshot>), ApiError> {
    let id = sandbox_id(&request.sandbox)?;
    app.sandbox(&caller, &id).await?;
    let attributes = Attributes {
        tenant: Some(caller.key.tenant.clone()),
        key: Some(caller.key.id.clone()),
        ..Attributes::default()
    };
    let tenant = &caller.key.tenant;
    let name = request.name.as_deref().map(|name| snapshot_names::at_agent(tenant, name)).transpose()?;
    let wanted = host_agent::SnapshotRequest { name, attributes: attributes.write() };
    let kept = seen_through(&app, move |agent| async move { agent.snapshot(&id, wanted).await }).await;
    let kept = kept.map_err(|error| snapshot_names::in_own_words(error, tenant, request.name.as_deref()))?;
    app.metrics.lifecycle("snapshot", &kept.timings);
    let snapshot = convert::snapshot(&kept.view, &app.world.host());
    Ok((StatusCode::CREATED, Answer(NewSnapshot { snapshot, timings: convert::timings(&kept.timings) })))
}

/// Which snapshots.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only those of this sandbox.
    #[param(pattern = "^sb[a-z0-9]{18}$")]
    sandbox: Option<String>,
}

/// Lists snapshots, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/snapshots",
    tag = "snapshots",
    params(Filter, Paging),
    responses(
        (status = 200, description = "A page of them", body = Page<Snapshot>),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Listing { paging, filter }: Listing<Filter>,
) -> Result<Answer<Page<Snapshot>>, ApiError> {
    let cut = paging.cut()?;
    let only = filter.sandbox.as_deref().map(sandbox_id).transpose()?;
    let mut views = visible(&app, &caller).await?;
    views.retain(|view| only.as_ref().is_none_or(|only| view.sandbox == *only));
    let page = page_of(views, &cut, |view| place_in_time(view.created_unix_ms, view.id.as_str()));
    let host = app.world.host();
    let items = page.items.iter().map(|view| convert::snapshot(view, &host)).collect();
    Ok(Answer(Page { items, next_cursor: page.next_cursor }))
}

async fn visible(app: &App, caller: &Caller) -> Result<Vec<SnapshotView>, ApiError> {
    let mut views = app.agent.snapshots().await?;
    views.retain(|view| caller.sees(Attributes::read(&view.attributes).owner()));
    Ok(views)
}

/// The snapshot of this id, if the caller may see it, or the one that its tenant gave this name.
pub async fn find(app: &App, caller: &Caller, name: &str) -> Result<SnapshotView, ApiError> {
    let is_it =
        |view: &SnapshotView| view.id.as_str() == name || snapshot_names::is_called(view, &caller.key.tenant, name);
    let found = visible(app, caller).await?.into_iter().find(is_it);
    found.ok_or_else(|| ApiError::not_found("snapshot", name, "/v1/snapshots"))
}

/// Shows a snapshot.
#[utoipa::path(
    get,
    path = "/v1/snapshots/{snapshot}",
    tag = "snapshots",
    params(("snapshot" = String, Path, description = "Its id, or the name that the key's tenant gave it")),
    responses(
        (status = 200, description = "It", body = Snapshot),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Segment(name): Segment,
) -> Result<Answer<Snapshot>, ApiError> {
    let view = find(&app, &caller, &name).await?;
    Ok(Answer(convert::snapshot(&view, &app.world.host())))
}

/// Removes a snapshot. What others need of it stays with them.
#[utoipa::path(
    delete,
    path = "/v1/snapshots/{snapshot}",
    tag = "snapshots",
    params(("snapshot" = String, Path, description = "Its id, or the name that the key's tenant gave it")),
    responses(
        (status = 200, description = "As it was", body = Snapshot),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Segment(name): Segment,
) -> Result<Answer<Snapshot>, ApiError> {
    let id = find(&app, &caller, &name).await?.id.to_string();
    let view = seen_through(&app, move |agent| async move { agent.remove_snapshot(&id).await }).await?;
    Ok(Answer(convert::snapshot(&view, &app.world.host())))
}
