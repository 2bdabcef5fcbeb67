//! What there is of a server, for everybody who answers requests.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use wrenn_agent::envd_client::EnvdClient;
use wrenn_agent::guest_link;
use wrenn_agent::host_agent::policy::{self, Verb};
use wrenn_agent::host_agent::{HostAgent, Phase, ResumeOptions, View};
use wrenn_engine::names::SandboxId;

use crate::attributes::Attributes;
use crate::audit::{self, Audit};
use crate::auth::{Caller, Keys};
use crate::config::Config;
use crate::convert::{self, Secrets};
use crate::db::Database;
use crate::error::ApiError;
use crate::exec_log::{self, ExecLog};
use crate::metrics::Metrics;
use crate::operations::{self, Operations};
use crate::proxy::Proxy;
use crate::quota::{Claim, Claims};
use crate::rate::Buckets;
use crate::samples::{self, Samples};
use crate::traces::Traces;
use crate::ways::PortWays;
use crate::world::{self, World};
use crate::{limits, record};

/// Everything that a request may need.
pub struct App {
    /// Does everything to sandboxes.
    pub agent: Arc<dyn HostAgent>,
    /// Keys, audit, operations, and why things ended.
    pub db: Database,
    /// What the agent has.
    pub world: Arc<World>,
    /// Who may ask.
    pub keys: Keys,
    /// How often a key may ask.
    pub rates: Buckets<String>,
    /// How often an address may show a wrong key.
    pub wrong_keys: Buckets<IpAddr>,
    /// What is being made for a key.
    pub claims: Claims,
    /// Work that goes on whether or not somebody waits.
    pub operations: Operations,
    /// Who did what.
    pub audit: Audit,
    /// The last commands.
    pub execs: ExecLog,
    /// What sandboxes took.
    pub samples: Arc<Samples>,
    /// For Prometheus.
    pub metrics: Metrics,
    /// For a collector of traces.
    pub traces: Traces,
    /// To the ports of sandboxes.
    pub proxy: Proxy,
    /// What this server was started with.
    pub config: Config,
}

/// An app, and the tasks that work for it; they end when this is dropped.
pub struct Running {
    /// It.
    pub app: Arc<App>,
    tasks: Vec<AbortHandle>,
    audit: JoinHandle<()>,
    execs: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.execs.abort();
    }
}

impl Running {
    /// Ends it once what is to be written down has been.
    pub async fn finish(mut self) {
        self.app.audit.close();
        self.app.execs.close();
        let written = async { tokio::join!(&mut self.audit, &mut self.execs) };
        if tokio::time::timeout(limits::END_LIMIT, written).await.is_err() {
            tracing::warn!("the last entries of audit and commands were not written: the database does not answer");
        }
        tokio::join!(self.app.db.close(), self.app.traces.finish());
    }
}

/// Brings a server up, within a runtime; the agent need not be there yet.
pub fn start(agent: Arc<dyn HostAgent>, db: Database, config: Config) -> Running {
    let traces = config.traces.as_ref().map(Traces::to).unwrap_or_default();
    let agent = traces.around(agent);
    let (record, recorded) = mpsc::unbounded_channel();
    let world = Arc::new(World::new(record));
    let (audit, entries) = Audit::new();
    let samples = Arc::new(Samples::default());
    let claims = Claims::default();
    let ways = Arc::new(PortWays::new(Arc::clone(&agent), Arc::clone(&world), db.clone(), claims.clone()));
    let app = Arc::new(App {
        keys: Keys::new(db.clone()),
        rates: Buckets::new(config.rate),
        wrong_keys: Buckets::new(limits::WRONG_KEYS_PER_S),
        claims,
        operations: Operations::default(),
        audit,
        execs: ExecLog::default(),
        samples: Arc::clone(&samples),
        metrics: Metrics::new(),
        traces,
        proxy: Proxy::new(ways),
        config,
        agent: Arc::clone(&agent),
        db: db.clone(),
        world: Arc::clone(&world),
    });
    let log = app.execs.clone();
    let execs = tokio::spawn(exec_log::write(log.clone(), db.clone(), Arc::clone(&world)));
    let audit = tokio::spawn(audit::write(entries, db.clone(), app.metrics.clone()));
    let tasks = vec![
        tokio::spawn(world::follow(Arc::clone(&world), Arc::clone(&agent))).abort_handle(),
        tokio::spawn(record::write(recorded, Arc::clone(&app))).abort_handle(),
        tokio::spawn(exec_log::sweep(log, db, Arc::clone(&world), Arc::clone(&agent))).abort_handle(),
        tokio::spawn(record::settle(Arc::clone(&app))).abort_handle(),
        tokio::spawn(samples::measure(samples, world, agent)).abort_handle(),
        tokio::spawn(operations::settle(Arc::clone(&app))).abort_handle(),
    ];
    Running { app, tasks, audit, execs }
}

impl App {
    /// The sandbox `id`, if it is there and the caller may see it: what is somebody else's looks as if it were not there.
    pub async fn sandbox(&self, caller: &Caller, id: &SandboxId) -> Result<Arc<View>, ApiError> {
        if let Some(view) = self.world.get(id)? {
            return if caller.sees_sandbox(&view) { Ok(view) } else { Err(no_sandbox(id)) };
        }
        Err(self.departed(caller, id).await?)
    }

    /// Why a sandbox is not there: when one of the caller's own ended, and how.
    async fn departed(&self, caller: &Caller, id: &SandboxId) -> Result<ApiError, ApiError> {
        let row = self.db.sandbox(id.as_str()).await?.filter(|row| caller.sees(&row.tenant));
        let Some((why, at)) = row.and_then(|row| row.ended) else { return Ok(no_sandbox(id)) };
        let mut error = no_sandbox(id);
        error.body.message = format!("the sandbox {id} is gone ({} at Unix time {} ms)", why.as_str(), at);
        Ok(error)
    }

    /// A sandbox as the caller is told of it.
    pub fn shown(&self, caller: &Caller, view: &View) -> wrenn_client::types::Sandbox {
        let secrets = if caller.is_told_secrets() { Secrets::Told } else { Secrets::Kept };
        convert::sandbox(view, &self.world.host(), secrets)
    }

    /// The guest of a sandbox that runs, or that traffic may resume.
    pub async fn guest(&self, caller: &Caller, id: &SandboxId) -> Result<EnvdClient, ApiError> {
        let view = self.sandbox(caller, id).await?;
        let view = self.awake(&view).await?;
        Ok(guest_link::guest(Arc::clone(&self.agent), &view))
    }

    /// The sandbox, running: resumed if it is paused and was created so.
    pub async fn awake(&self, view: &Arc<View>) -> Result<Arc<View>, ApiError> {
        let attributes = Attributes::read(&view.attributes);
        if view.phase == Phase::Paused && attributes.auto_resume {
            return self.resume_for_traffic(view).await;
        }
        policy::check(view.phase, Verb::Use).map_err(|denied| {
            let error = ApiError::from(wrenn_agent::host_agent::AgentError::from(denied));
            error.remedy("POST …/resume brings it back; `auto_resume` at its creation has that done by itself")
        })?;
        Ok(Arc::clone(view))
    }

    /// Holds what a sandbox takes once it runs, in the quota of the key that it counts for; nothing, if it counts for none.
    pub async fn claim_resumed(&self, view: &View) -> Result<Option<Claim>, ApiError> {
        self.claims.claim_resumed(&self.db, &self.world, view).await
    }

    /// Brings a paused sandbox back because somebody uses it; it counts for the quota of its key as if that had asked for it.
    pub async fn resume_for_traffic(&self, view: &Arc<View>) -> Result<Arc<View>, ApiError> {
        let _claim = self.claim_resumed(view).await?;
        let options =
            ResumeOptions { ready_limit: std::time::Duration::from_secs(limits::BOOT_TIMEOUT_S), timeout: None };
        match self.agent.resume(&view.id, options).await {
            Ok(changed) => {
                self.world.note_changed(&changed);
                Ok(Arc::new(changed.view))
            }
            // Somebody else was faster.
            Err(error) => match self.agent.get(&view.id).await {
                Ok(now) if now.phase == Phase::Running => Ok(Arc::new(now)),
                _otherwise => Err(error.into()),
            },
        }
    }
}

/// There is no such sandbox.
pub fn no_sandbox(id: &SandboxId) -> ApiError {
    ApiError::not_found("sandbox", id.as_str(), "/v1/sandboxes")
}
