//! Work that goes on whether or not somebody waits for it, and whose outcome can be asked for.
//!
//! ```text
//!   begin ─► database: running ─► task: the agent does it ─► database: succeeded | failed
//!     └─ the same idempotency key again ─► the operation that has it
//! ```
//!
//! A server that is killed leaves operations that run in the database, and an agent that goes on. The next server [`settle`]s
//! them: a new sandbox has its operation's id among its attributes, so whether it was made is a fact that can be looked up, and
//! what template was wanted is in the database, so that it can be asked for again ([`making`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use wrenn_agent::host_agent::{Created, Phase, TemplateView, View};
use wrenn_client::types::{Code, NewTemplate, Operation, OperationKind};

use crate::app::App;
use crate::attributes::Attributes;
use crate::auth::Caller;
use crate::db::{Begun, NewOperation, OperationEnd, OperationRow};
use crate::error::ApiError;
use crate::ids::new_id;
use crate::limits;
use crate::making::{self, Making};
use crate::time::now_unix_ms;
use crate::traces::FutureExt as _;

/// How often a sandbox that is still being made is looked at by who settles.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// After how long an agent that was asked for a sandbox has begun with it, if it ever does: it checks images first.
const BEGUN_BY: Duration = Duration::from_secs(10);

/// Those of this process.
#[derive(Default)]
pub struct Operations {
    running: Mutex<HashMap<String, watch::Receiver<Option<Outcome>>>>,
}

/// What came of it.
pub type Outcome = Result<Made, ApiError>;

/// What an operation made.
#[derive(Clone, Debug)]
pub enum Made {
    /// A sandbox, and how long each step took.
    Sandbox(Arc<wrenn_agent::host_agent::Changed>),
    /// A template.
    Template(Arc<TemplateView>),
}

/// An operation that was asked for.
pub struct Ticket {
    /// Its id.
    pub id: String,
    /// Whether somebody had asked for the very same before.
    pub is_known: bool,
}

/// What is asked for, to be told from something else under the same idempotency key.
pub struct Wanted {
    /// What is done.
    pub kind: OperationKind,
    /// The client's key, if it gave one.
    pub idempotency_key: Option<String>,
    /// Hash of the request, in hexadecimal digits.
    pub request_digest: String,
    /// The template that is to be made, if it is one.
    pub template: Option<NewTemplate>,
}

/// Notes an operation down, unless the caller's tenant has one under the same idempotency key.
pub async fn begin(app: &App, caller: &Caller, wanted: Wanted) -> Result<Ticket, ApiError> {
    let operation = NewOperation {
        id: new_id("op")?,
        kind: wanted.kind,
        tenant: caller.key.tenant.clone(),
        key_id: caller.key.id.clone(),
        idempotency_key: wanted.idempotency_key,
        request_digest: wanted.request_digest,
        wanted: wanted.template,
        created_unix_ms: now_unix_ms(),
    };
    match app.db.begin_operation(&operation).await? {
        Begun::New => Ok(Ticket { id: operation.id, is_known: false }),
        Begun::Known(row) => {
            let id = repeated(*row, &operation.request_digest)?;
            Ok(Ticket { id, is_known: true })
        }
    }
}

/// The operation that was begun for the very same request, if it has an idempotency key and came before.
pub async fn known(app: &App, caller: &Caller, wanted: &Wanted) -> Result<Option<String>, ApiError> {
    let Some(key) = &wanted.idempotency_key else { return Ok(None) };
    let row = app.db.operation_of(&caller.key.tenant, key).await?;
    row.map(|row| repeated(row, &wanted.request_digest)).transpose()
}

fn repeated(row: OperationRow, request_digest: &str) -> Result<String, ApiError> {
    if row.request_digest == request_digest {
        return Ok(row.operation.id);
    }
    let message = "this idempotency key was used for another request";
    Err(ApiError::new(Code::Conflict, message).remedy("use a new key for each new request"))
}

/// Has `work` done in a task of its own, and its outcome noted.
pub fn run(app: &Arc<App>, id: String, work: impl Future<Output = Outcome> + Send + 'static) {
    let (told, outcome) = watch::channel(None);
    app.operations.running().insert(id.clone(), outcome);
    let app = Arc::clone(app);
    let trace = app.traces.part("operation");
    let doing = async move {
        let outcome = work.await;
        note(&app, &id, &outcome).await;
        told.send_replace(Some(outcome));
        app.operations.running().remove(&id);
    };
    tokio::spawn(doing.with_context(trace));
}

impl Operations {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Receiver<Option<Outcome>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are under way here.
    pub fn count(&self) -> usize {
        self.running().len()
    }
}

/// Waits for what comes of an operation, whoever began it. Cancel safe.
pub async fn outcome(app: &App, id: &str) -> Outcome {
    loop {
        let running = app.operations.running().get(id).cloned();
        if let Some(mut running) = running
            && let Ok(outcome) = running.wait_for(Option::is_some).await
        {
            return outcome.clone().expect("it was waited for");
        }
        let row = app.db.operation(id).await?.ok_or_else(|| unknown(id))?;
        if let Some(outcome) = past(app, row).await? {
            return outcome;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// What came of one that ended, maybe long ago; `None` if it runs.
async fn past(app: &App, row: OperationRow) -> Result<Option<Outcome>, ApiError> {
    let Operation { sandbox, template, error, .. } = row.operation;
    if let Some(body) = error {
        return Ok(Some(Err(ApiError { body, retry_after_s: None })));
    }
    if let Some(id) = sandbox.and_then(|id| id.parse().ok()) {
        let view = app.agent.get(&id).await?;
        let changed = wrenn_agent::host_agent::Changed { view, timings: Vec::new() };
        return Ok(Some(Ok(Made::Sandbox(Arc::new(changed)))));
    }
    if let Some(id) = template {
        let found = app.agent.templates().await?.into_iter().find(|view| view.id == id);
        let found = found.ok_or_else(|| ApiError::not_found("template", &id, "/v1/templates"))?;
        return Ok(Some(Ok(Made::Template(Arc::new(found)))));
    }
    Ok(None)
}

/// There is no such operation.
pub fn unknown(id: &str) -> ApiError {
    ApiError::not_found("operation", id, "/v1/operations")
}

/// Notes an outcome down, however long the database is not there: an operation ends.
async fn note(app: &App, id: &str, outcome: &Outcome) {
    let end = match outcome {
        Ok(Made::Sandbox(changed)) => {
            OperationEnd::Succeeded { sandbox: Some(changed.view.id.to_string()), template: None }
        }
        Ok(Made::Template(view)) => OperationEnd::Succeeded { sandbox: None, template: Some(view.id.clone()) },
        Err(error) => OperationEnd::Failed(error.body.clone()),
    };
    while let Err(error) = app.db.end_operation(id, &end, now_unix_ms()).await {
        tracing::warn!(operation = id, %error, "cannot note what came of an operation; trying again");
        sleep(limits::AGENT_RETRY * 5).await;
    }
}

/// Takes up what a server before this one began.
pub async fn settle(app: Arc<App>) {
    app.world.synced().await;
    let rows = loop {
        match app.db.running_operations().await {
            Ok(rows) => break rows,
            Err(error) => tracing::warn!(%error, "cannot look for operations that were begun; trying again"),
        }
        sleep(limits::AGENT_RETRY * 5).await;
    };
    let here = |row: &OperationRow| app.operations.running().contains_key(&row.operation.id);
    for row in rows.into_iter().filter(|row| !here(row)) {
        let work = take_up(Arc::clone(&app), row.clone());
        run(&app, row.operation.id, work);
    }
    let before = now_unix_ms().saturating_sub(u64::try_from(limits::OPERATIONS_KEPT.as_millis()).unwrap_or(u64::MAX));
    if let Err(error) = app.db.forget_operations(before).await {
        tracing::warn!(%error, "cannot forget old operations");
    }
}

async fn take_up(app: Arc<App>, row: OperationRow) -> Outcome {
    match row.operation.kind {
        OperationKind::Create => sandbox_of(&app, &row.operation).await,
        OperationKind::TemplateBuild | OperationKind::TemplateFromSnapshot => {
            match row.wanted.as_ref().and_then(Making::of) {
                Some(making) => making::go_on(app, row.operation, making).await,
                None => {
                    let message =
                        "the server ended while the template was being made, and what was wanted is not known";
                    Err(ApiError::new(Code::Failed, message).remedy("GET /v1/templates tells what is there"))
                }
            }
        }
    }
}

/// The sandbox that an operation made, once it has been.
async fn sandbox_of(app: &App, operation: &Operation) -> Outcome {
    let made_by = |view: &View| Attributes::read(&view.attributes).operation.as_deref() == Some(&operation.id);
    let settled_at = operation.created_unix_ms + u64::try_from(BEGUN_BY.as_millis()).unwrap_or(u64::MAX);
    loop {
        app.world.synced().await;
        // An agent that is lost just now is waited for.
        let Ok(views) = app.world.all() else { continue };
        match views.into_iter().find(|view| made_by(view)) {
            Some(view) if view.phase == Phase::Creating => sleep(LOOK_EVERY).await,
            Some(view) => {
                let changed = wrenn_agent::host_agent::Changed { view: view.as_ref().clone(), timings: Vec::new() };
                return Ok(Made::Sandbox(Arc::new(changed)));
            }
            None if now_unix_ms() < settled_at => sleep(LOOK_EVERY).await,
            None => {
                let message = "the server ended before the agent had begun with it, or it did not come to run";
                return Err(ApiError::new(Code::Failed, message).remedy("nothing is left of it; ask again"));
            }
        }
    }
}

/// What a new sandbox's creation came to.
pub fn made(app: &App, created: Result<Created, wrenn_agent::host_agent::AgentError>) -> Outcome {
    let changed = created.map_err(ApiError::from)?.changed;
    app.world.note_changed(&changed);
    Ok(Made::Sandbox(Arc::new(changed)))
}
