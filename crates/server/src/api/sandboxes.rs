//! Sandboxes and their lives.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use utoipa::IntoParams;
use wrenn_agent::host_agent::policy::{self, Verb};
use wrenn_agent::host_agent::{
    self, AgentError, CreateRequest, Fresh, PauseOptions, ResumeOptions, Shape, SnapshotView, Source, Timeout, View,
    Wishes,
};
use wrenn_client::types::{
    Changed, CreateSandbox, Fork, ForkRequest, Forked, OnTimeout, Operation, OperationKind, Page, PauseRequest,
    RepairRequest, ResumeRequest, RollbackRequest, Sandbox, TimeoutRequest, Why,
};
use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;

use super::page::{Listing, Paging, page_of, place_in_time};
use crate::app::App;
use crate::attributes::{Attributes, Traffic};
use crate::auth::Caller;
use crate::convert;
use crate::error::{ApiError, shown};
use crate::extract::{Id, Json, Query, Writer};
use crate::ids::new_secret;
use crate::limits;
use crate::operations::{self, Made, Outcome, Wanted};
use crate::quota::Amount;
use crate::time::now_unix_ms;
use crate::traces::FutureExt as _;

/// Whether somebody waits.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Waiting {
    /// Whether to answer when it is done; else at once, with an operation (202).
    pub wait: bool,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { wait: true }
    }
}

/// Makes a sandbox.
///
/// It is answered when its guest is ready. With an idempotency key the same request may be sent again, also after the connection or
/// the server was lost: there is one sandbox, and the same answer.
#[utoipa::path(
    post,
    path = "/v1/sandboxes",
    tag = "sandboxes",
    params(
        Waiting,
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 128 printable characters of ASCII", max_length = 128, min_length = 1),
    ),
    request_body = CreateSandbox,
    responses(
        (status = 201, description = "It runs", body = Changed),
        (status = 202, description = "It is being made", body = Operation),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
    Json(wanted): Json<CreateSandbox>,
) -> Result<Response, ApiError> {
    let asked = Wanted {
        kind: OperationKind::Create,
        idempotency_key: idempotency_key(&headers)?,
        request_digest: hex::encode(Sha256::digest(serde_json::to_vec(&wanted).unwrap_or_default())),
        template: None,
    };
    // A repetition is answered as the request was, also if what it was made of is gone.
    if let Some(id) = operations::known(&app, &caller, &asked).await? {
        return answered(&app, &caller, waiting, &id).await;
    }
    let attributes = Attributes {
        tenant: Some(caller.key.tenant.clone()),
        key: Some(caller.key.id.clone()),
        operation: None,
        claim: None,
        auto_resume: wanted.auto_resume,
        traffic: wanted.traffic_token.then(new_secret::<16>).transpose()?.map(Traffic::Token),
    };
    let source = source(&app, &caller, &wanted).await?;
    let amount = amount(&source);
    let request = CreateRequest { source: source.source, wishes: wishes(&wanted)? };
    if waiting.wait && asked.idempotency_key.is_none() {
        let outcome = bring_up(&app, &caller, amount, request, attributes).await;
        return created(&app, &caller, outcome);
    }
    let ticket = operations::begin(&app, &caller, asked).await?;
    if !ticket.is_known {
        let attributes = Attributes { operation: Some(ticket.id.clone()), ..attributes };
        let (work_app, work_caller) = (Arc::clone(&app), caller.clone());
        let work = async move { bring_up(&work_app, &work_caller, amount, request, attributes).await };
        operations::run(&app, ticket.id.clone(), work);
    }
    answered(&app, &caller, waiting, &ticket.id).await
}

/// The answer to who asked for an operation, now or before.
async fn answered(app: &App, caller: &Caller, waiting: Waiting, id: &str) -> Result<Response, ApiError> {
    if !waiting.wait {
        return super::operations::accepted(app, caller, id).await;
    }
    let outcome = operations::outcome(app, id).await;
    created(app, caller, outcome)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let fits = (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len());
    if !fits || text.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
        return Err(ApiError::invalid(format!("an idempotency key is 1 to {most} printable characters of ASCII")));
    }
    Ok(Some(text.to_owned()))
}

/// What a sandbox starts from, and what is known of its size.
struct Sized {
    source: Source,
    vcpus: u32,
    memory_mib: u32,
}

fn amount(sized: &Sized) -> Amount {
    Amount::of(1, sized.vcpus, sized.memory_mib)
}

async fn source(app: &App, caller: &Caller, wanted: &CreateSandbox) -> Result<Sized, ApiError> {
    match (&wanted.template, &wanted.snapshot) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("a sandbox starts from a template or from a snapshot, not from both"))
        }
        (_, Some(snapshot)) => from_snapshot(app, caller, wanted, snapshot).await,
        (template, None) => from_template(wanted, template.as_deref().unwrap_or(limits::TEMPLATE)),
    }
}

async fn from_snapshot(app: &App, caller: &Caller, wanted: &CreateSandbox, name: &str) -> Result<Sized, ApiError> {
    if wanted.vcpus.is_some() || wanted.memory_mib.is_some() || wanted.disk_mib.is_some() || wanted.cold {
        let message = "a sandbox from a snapshot has the snapshot's size and goes on from its memory";
        return Err(ApiError::invalid(message).remedy("leave vcpus, memory_mib, disk_mib and cold out"));
    }
    let SnapshotView { id, vcpus, memory, .. } = super::snapshots::find(app, caller, name).await?;
    Ok(Sized { source: Source::Snapshot(id.to_string()), vcpus, memory_mib: memory.0 })
}

fn from_template(wanted: &CreateSandbox, template: &str) -> Result<Sized, ApiError> {
    if template.is_empty() || template.len() > limits::TEMPLATE_BYTES_MAX {
        return Err(ApiError::invalid(format!("`template` is 1 to {} bytes", limits::TEMPLATE_BYTES_MAX)));
    }
    let shape = shape(wanted.vcpus, wanted.memory_mib, wanted.disk_mib);
    let (vcpus, memory_mib) = (shape.vcpus, shape.memory.0);
    let fresh = Fresh { template: template.to_owned(), kernel: None, shape, cold: wanted.cold };
    Ok(Sized { source: Source::Template(fresh), vcpus, memory_mib })
}

/// The size of a new VM; what is too small or too large the agent refuses by name.
pub fn shape(vcpus: Option<u32>, memory_mib: Option<u32>, disk_mib: Option<u32>) -> Shape {
    Shape {
        vcpus: vcpus.unwrap_or(limits::VCPUS),
        memory: Mib(memory_mib.unwrap_or(limits::MEMORY_MIB)),
        disk: disk_mib.map(Mib),
    }
}

fn wishes(wanted: &CreateSandbox) -> Result<Wishes, ApiError> {
    Ok(Wishes {
        env: wanted.env.clone(),
        metadata: wanted.metadata.clone(),
        timeout: timeout(wanted.timeout_s)?,
        on_timeout: convert::asked_on_timeout(wanted.on_timeout),
        ready_limit: ready_limit(wanted.boot_timeout_s)?,
        bound: false,
        attributes: Default::default(),
    })
}

/// How long a sandbox runs, checked.
pub fn timeout(timeout_s: Option<u64>) -> Result<Option<Duration>, ApiError> {
    match timeout_s {
        Some(seconds) if !(1..=limits::TIMEOUT_S_MAX).contains(&seconds) => {
            Err(ApiError::invalid(format!("`timeout_s` is 1 to {}, or null for no end", limits::TIMEOUT_S_MAX)))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

/// How long a guest may take, checked.
pub fn ready_limit(boot_timeout_s: Option<u64>) -> Result<Duration, ApiError> {
    let seconds = boot_timeout_s.unwrap_or(limits::BOOT_TIMEOUT_S);
    if (1..=limits::BOOT_TIMEOUT_S_MAX).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(ApiError::invalid(format!("`boot_timeout_s` is 1 to {}", limits::BOOT_TIMEOUT_S_MAX)))
}

async fn bring_up(
    app: &Arc<App>,
    caller: &Caller,
    amount: Amount,
    mut request: CreateRequest,
    attributes: Attributes,
) -> Outcome {
    let claim = claim(app, caller, amount)?;
    request.wishes.attributes = Attributes { claim: Some(claim.id().to_owned()), ..attributes }.write();
    operations::made(app, seen_through(app, move |agent| async move { agent.create(request).await }).await)
}

/// Holds a part of the caller's quota.
fn claim(app: &App, caller: &Caller, amount: Amount) -> Result<crate::quota::Claim, ApiError> {
    let views = app.world.all()?;
    app.claims.claim(&caller.key, views.iter().map(AsRef::as_ref), amount)
}

/// A call to the agent that goes on when its client hangs up: what it changes is noted here all the same.
pub async fn seen_through<T, F>(
    app: &App,
    call: impl FnOnce(Arc<dyn wrenn_agent::host_agent::HostAgent>) -> F,
) -> Result<T, AgentError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, AgentError>> + Send + 'static,
{
    let call = call(Arc::clone(&app.agent)).with_current_context();
    tokio::spawn(call).await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
}

fn created(app: &App, caller: &Caller, outcome: Outcome) -> Result<Response, ApiError> {
    match outcome? {
        Made::Sandbox(changed) => {
            app.metrics.lifecycle("create", &changed.timings);
            Ok((StatusCode::CREATED, Answer(told(app, caller, &changed))).into_response())
        }
        Made::Template(_) => Err(ApiError::invalid("this idempotency key was used for a template")),
    }
}

/// A change as the caller is told of it.
fn told(app: &App, caller: &Caller, changed: &host_agent::Changed) -> Changed {
    Changed { sandbox: app.shown(caller, &changed.view), timings: convert::timings(&changed.timings) }
}

/// Which sandboxes.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only those in one of these states, separated by commas.
    #[param(example = "running,paused")]
    state: Option<String>,
    /// Only those with this label, `KEY=VALUE`; may be repeated.
    #[param(value_type = Vec<String>)]
    metadata: Vec<String>,
}

impl Filter {
    fn checked(&self) -> Result<impl Fn(&View) -> bool + use<>, ApiError> {
        let states = self.state.as_deref().map(states).transpose()?;
        let labels = self.metadata.iter().map(|text| label(text)).collect::<Result<Vec<_>, _>>()?;
        Ok(move |view: &View| {
            let in_state = states.as_ref().is_none_or(|states| states.contains(&convert::state(view.phase)));
            in_state && labels.iter().all(|(key, value)| view.metadata.get(key) == Some(value))
        })
    }
}

fn states(text: &str) -> Result<Vec<wrenn_client::types::State>, ApiError> {
    let all = wrenn_client::types::State::ALL;
    text.split(',')
        .map(|name| {
            all.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
                let names = all.map(wrenn_client::types::State::as_str).join(", ");
                ApiError::invalid(format!("`{}` is no state", shown(name))).remedy(format!("states are {names}"))
            })
        })
        .collect()
}

fn label(text: &str) -> Result<(String, String), ApiError> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| ApiError::invalid(format!("`{}` is no label: one is KEY=VALUE", shown(text))))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Lists sandboxes, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/sandboxes",
    tag = "sandboxes",
    params(Filter, Paging),
    responses(
        (status = 200, description = "A page of them", body = Page<Sandbox>),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Listing { paging, filter }: Listing<Filter>,
) -> Result<Answer<Page<Sandbox>>, ApiError> {
    let cut = paging.cut()?;
    let wanted = filter.checked()?;
    let mut views = app.world.all()?;
    views.retain(|view| caller.sees_sandbox(view) && wanted(view));
    let Page { items, next_cursor } =
        page_of(views, &cut, |view| place_in_time(view.created_unix_ms, view.id.as_str()));
    let items = items.iter().map(|view| app.shown(&caller, view)).collect();
    Ok(Answer(Page { items, next_cursor }))
}

/// Shows a sandbox.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "It", body = Sandbox),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Id(id): Id) -> Result<Answer<Sandbox>, ApiError> {
    let view = app.sandbox(&caller, &id).await?;
    Ok(Answer(app.shown(&caller, &view)))
}

/// Destroys a sandbox, whatever it is doing.
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{id}",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "As it was", body = Changed),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn destroy(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
) -> Result<Answer<Changed>, ApiError> {
    app.sandbox(&caller, &id).await?;
    let changed = act(&app, "destroy", &id, |agent, id| async move { agent.destroy(&id).await }).await?;
    let (why, ended_unix_ms) = (Why::Requested, now_unix_ms());
    app.world.note_gone(wrenn_client::types::Departure { id: id.to_string(), why, ended_unix_ms });
    Ok(Answer(told(&app, &caller, &changed)))
}

/// One step of a sandbox's life, seen through and noted.
async fn act<F>(
    app: &App,
    op: &str,
    id: &SandboxId,
    call: impl FnOnce(Arc<dyn wrenn_agent::host_agent::HostAgent>, SandboxId) -> F,
) -> Result<host_agent::Changed, ApiError>
where
    F: Future<Output = Result<host_agent::Changed, AgentError>> + Send + 'static,
{
    let changed = seen_through(app, |agent| call(agent, id.clone())).await?;
    app.metrics.lifecycle(op, &changed.timings);
    if op != "destroy" {
        app.world.note_changed(&changed);
    }
    Ok(changed)
}

/// Puts a sandbox to rest.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/pause",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = PauseRequest,
    responses(
        (status = 200, description = "It rests", body = Changed),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn pause(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<PauseRequest>,
) -> Result<Answer<Changed>, ApiError> {
    app.sandbox(&caller, &id).await?;
    let options = PauseOptions { disk_only: request.disk_only };
    let changed = act(&app, "pause", &id, move |agent, id| async move { agent.pause(&id, options).await }).await?;
    Ok(Answer(told(&app, &caller, &changed)))
}

/// Brings a sandbox back from rest; one that stopped is booted.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/resume",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = ResumeRequest,
    responses(
        (status = 200, description = "It runs", body = Changed),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn resume(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<ResumeRequest>,
) -> Result<Answer<Changed>, ApiError> {
    let options = resume_options(request.timeout_s, request.boot_timeout_s)?;
    let view = app.sandbox(&caller, &id).await?;
    let _claim = app.claim_resumed(&view).await?;
    let changed = act(&app, "resume", &id, move |agent, id| async move { agent.resume(&id, options).await }).await?;
    Ok(Answer(told(&app, &caller, &changed)))
}

fn resume_options(timeout_s: Option<u64>, boot_timeout_s: Option<u64>) -> Result<ResumeOptions, ApiError> {
    Ok(ResumeOptions { ready_limit: ready_limit(boot_timeout_s)?, timeout: timeout(timeout_s)? })
}

/// Finishes or undoes what left a sandbox in need of it.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/repair",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = RepairRequest,
    responses(
        (status = 200, description = "It is in order", body = Changed),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn repair(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(RepairRequest {}): Json<RepairRequest>,
) -> Result<Answer<Changed>, ApiError> {
    app.sandbox(&caller, &id).await?;
    let changed = act(&app, "repair", &id, |agent, id| async move { agent.repair(&id).await }).await?;
    Ok(Answer(told(&app, &caller, &changed)))
}

/// Changes when a running sandbox's time is up.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/timeout",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = TimeoutRequest,
    responses(
        (status = 200, description = "It", body = Sandbox),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn set_timeout(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<TimeoutRequest>,
) -> Result<Answer<Sandbox>, ApiError> {
    let on_timeout: Option<OnTimeout> = request.on_timeout;
    let wanted = Timeout { after: timeout(request.timeout_s)?, on_timeout: on_timeout.map(convert::asked_on_timeout) };
    app.sandbox(&caller, &id).await?;
    let view = {
        let id = id.clone();
        seen_through(&app, move |agent| async move { agent.set_timeout(&id, wanted).await }).await?
    };
    app.world.note(&view);
    Ok(Answer(app.shown(&caller, &view)))
}

/// Takes a sandbox back to one of the snapshots that were made of it. What it did since is lost.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/rollback",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "It runs again", body = Changed),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn rollback(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<RollbackRequest>,
) -> Result<Answer<Changed>, ApiError> {
    let options = resume_options(request.timeout_s, request.boot_timeout_s)?;
    let view = app.sandbox(&caller, &id).await?;
    let snapshot = super::snapshots::find(&app, &caller, &request.snapshot).await?.id.to_string();
    // It runs afterwards, also if it rests now.
    let _claim = match policy::check(view.phase, Verb::Resume) {
        Ok(()) => app.claim_resumed(&view).await?,
        Err(_runs_already) => None,
    };
    let call = move |agent: Arc<dyn wrenn_agent::host_agent::HostAgent>, id: SandboxId| async move {
        agent.rollback(&id, &snapshot, options).await
    };
    let changed = act(&app, "rollback", &id, call).await?;
    Ok(Answer(told(&app, &caller, &changed)))
}

/// Makes sandboxes that go on from where this one is now; it goes on as before.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/fork",
    tag = "sandboxes",
    params(("id" = String, Path, description = "Its id", pattern = "^sb[a-z0-9]{18}$")),
    request_body = ForkRequest,
    responses(
        (status = 200, description = "One result for each", body = Forked),
        (status = "default", description = "Refused", body = wrenn_client::types::Refusal),
    )
)]
pub async fn fork(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<ForkRequest>,
) -> Result<Answer<Forked>, ApiError> {
    if !(1..=limits::FORKS_MAX).contains(&request.count) {
        return Err(ApiError::invalid(format!("`count` is 1 to {}", limits::FORKS_MAX)));
    }
    let view = app.sandbox(&caller, &id).await?;
    let claim = claim(&app, &caller, Amount::of(request.count, view.vcpus, view.memory.0))?;
    let parent = Attributes::read(&view.attributes);
    let attributes = Attributes {
        tenant: Some(caller.key.tenant.clone()),
        key: Some(caller.key.id.clone()),
        operation: None,
        claim: Some(claim.id().to_owned()),
        auto_resume: parent.auto_resume,
        traffic: parent.traffic.map(|_own| new_secret::<16>()).transpose()?.map(Traffic::Secret),
    };
    let wanted = host_agent::ForkRequest {
        count: request.count,
        ready_limit: ready_limit(request.boot_timeout_s)?,
        timeout: timeout(request.timeout_s)?,
        metadata: request.metadata,
        attributes: attributes.write(),
    };
    let forked = seen_through(&app, move |agent| async move { agent.fork(&id, wanted).await }).await?;
    app.metrics.lifecycle("fork", &forked.timings);
    let fork = |child: &Result<host_agent::Changed, AgentError>| match child {
        Ok(changed) => {
            app.world.note_changed(changed);
            Fork { sandbox: Some(app.shown(&caller, &changed.view)), error: None }
        }
        Err(error) => Fork { sandbox: None, error: Some(ApiError::from(error.clone()).body) },
    };
    let forks = forked.children.iter().map(fork).collect();
    Ok(Answer(Forked { forks, timings: convert::timings(&forked.timings) }))
}
