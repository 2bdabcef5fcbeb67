//! Templates. All tenants start from them, so only a key that may do everything makes or removes one.

use std::sync::Arc;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use sha2::{Digest as _, Sha256};
use wrenn_agent::host_agent::{Fresh, TemplateView};
use wrenn_client::types::{NewTemplate, Operation, Page, Refusal, Template, WarmRequest, Warmed};

use super::page::{Paging, page_of};
use super::sandboxes::{Waiting, ready_limit, seen_through, shape};
use crate::app::App;
use crate::auth::Caller;
use crate::convert;
use crate::error::ApiError;
use crate::extract::{Admin, Json, Query, Segment, Writer};
use crate::limits;
use crate::making::{self, Making};
use crate::operations::{self, Made, Wanted};

/// Builds a template, or makes one of a snapshot.
#[utoipa::path(
    post,
    path = "/v1/templates",
    tag = "templates",
    params(Waiting),
    request_body = NewTemplate,
    responses(
        (status = 201, description = "It is there", body = Template),
        (status = 202, description = "It is being made", body = Operation),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Admin(caller): Admin,
    Query(waiting): Query<Waiting>,
    Json(wanted): Json<NewTemplate>,
) -> Result<Response, ApiError> {
    let making = making(&app, &caller, &wanted).await?;
    let asked = Wanted {
        kind: making.kind(),
        idempotency_key: None,
        request_digest: hex::encode(Sha256::digest(serde_json::to_vec(&wanted).unwrap_or_default())),
        template: Some(making.wanted()),
    };
    let ticket = operations::begin(&app, &caller, asked).await?;
    operations::run(&app, ticket.id.clone(), making::make(Arc::clone(&app), ticket.id.clone(), making));
    if !waiting.wait {
        return super::operations::accepted(&app, &caller, &ticket.id).await;
    }
    match operations::outcome(&app, &ticket.id).await? {
        Made::Template(view) => {
            let template = convert::template(&view, &app.world.host());
            Ok((StatusCode::CREATED, Answer(template)).into_response())
        }
        Made::Sandbox(_) => Err(ApiError::invalid("this operation made a sandbox")),
    }
}

async fn making(app: &App, caller: &Caller, wanted: &NewTemplate) -> Result<Making, ApiError> {
    let named = [&wanted.build, &wanted.snapshot, &wanted.name];
    if named.into_iter().flatten().any(|text| text.len() > limits::TEMPLATE_BYTES_MAX) {
        let most = limits::TEMPLATE_BYTES_MAX;
        return Err(ApiError::invalid(format!("`build`, `snapshot` and `name` have at most {most} bytes each")));
    }
    let message = "a template is asked for by `build`, or by `snapshot` and `name`";
    match Making::of(wanted).ok_or_else(|| ApiError::invalid(message))? {
        Making::Build(build) => Ok(Making::Build(build)),
        Making::FromSnapshot { snapshot, name } => {
            let snapshot = super::snapshots::find(app, caller, &snapshot).await?.id.to_string();
            Ok(Making::FromSnapshot { snapshot, name })
        }
    }
}

/// Lists templates, by their names.
#[utoipa::path(
    get,
    path = "/v1/templates",
    tag = "templates",
    params(Paging),
    responses(
        (status = 200, description = "A page of them", body = Page<Template>),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    _caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Answer<Page<Template>>, ApiError> {
    let cut = paging.cut()?;
    let page = page_of(app.agent.templates().await?, &cut, |view| format!("{} {}", view.name, view.id));
    let host = app.world.host();
    let items = page.items.iter().map(|view| convert::template(view, &host)).collect();
    Ok(Answer(Page { items, next_cursor: page.next_cursor }))
}

async fn find(app: &App, name: &str) -> Result<TemplateView, ApiError> {
    let is_it = |view: &TemplateView| view.id == name || view.name == name;
    let found = app.agent.templates().await?.into_iter().find(is_it);
    found.ok_or_else(|| ApiError::not_found("template", name, "/v1/templates"))
}

/// Shows a template.
#[utoipa::path(
    get,
    path = "/v1/templates/{template}",
    tag = "templates",
    params(("template" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, description = "It", body = Template),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    _caller: Caller,
    Segment(name): Segment,
) -> Result<Answer<Template>, ApiError> {
    Ok(Answer(convert::template(&find(&app, &name).await?, &app.world.host())))
}

/// Removes a template with its warm images. One that sandboxes or snapshots stand on is not removed.
#[utoipa::path(
    delete,
    path = "/v1/templates/{template}",
    tag = "templates",
    params(("template" = String, Path, description = "Its name or id")),
    responses(
        (status = 200, description = "As it was", body = Template),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Admin(_caller): Admin,
    Segment(name): Segment,
) -> Result<Answer<Template>, ApiError> {
    let name = find(&app, &name).await?.id;
    let view = seen_through(&app, move |agent| async move { agent.remove_template(&name).await }).await?;
    Ok(Answer(convert::template(&view, &app.world.host())))
}

/// Keeps a template warm for sandboxes of a size: boots it once, and captures it when its guest is ready.
#[utoipa::path(
    post,
    path = "/v1/templates/{template}/warm",
    tag = "templates",
    params(("template" = String, Path, description = "Its name or id")),
    request_body = WarmRequest,
    responses(
        (status = 200, description = "It is warm", body = Warmed),
        (status = "default", description = "Refused", body = Refusal),
    )
)]
pub async fn warm(
    State(app): State<Arc<App>>,
    Writer(_caller): Writer,
    Segment(name): Segment,
    Json(request): Json<WarmRequest>,
) -> Result<Answer<Warmed>, ApiError> {
    if name.len() > limits::TEMPLATE_BYTES_MAX {
        return Err(ApiError::not_found("template", &name, "/v1/templates"));
    }
    let shape = shape(request.vcpus, request.memory_mib, request.disk_mib);
    let limit = ready_limit(request.boot_timeout_s)?;
    let fresh = Fresh { template: name, kernel: None, shape, cold: false };
    let warmed = seen_through(&app, move |agent| async move { agent.warm(fresh, limit).await }).await?;
    app.metrics.lifecycle("warm", &warmed.timings);
    let (warm, timings) = (convert::warm(&warmed.view), convert::timings(&warmed.timings));
    Ok(Answer(Warmed { warm, made: warmed.made, timings }))
}
