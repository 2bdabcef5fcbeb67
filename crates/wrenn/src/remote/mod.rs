//! A server as an agent: everything that speaks to an agent speaks to a server as well.
//!
//! ```text
//!   wrenn sandbox … ─► dyn HostAgent ─┬─► rpc::Remote ── Unix socket ──► agent
//!                                     └─► RestAgent ──── REST, WebSockets ──► server ─► agent
//! ```
//!
//! What the server has no way for is an error that says so: kernels by their path, and sandboxes that go with who asked for
//! them. Commands in guests go through a tunnel to the guest's own agent, as they do on the host.

mod answers;
mod requests;

use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};
use wrenn_agent::host_agent::{
    AgentError, Changed, Changes, Code, CreateRequest, Created, ForkRequest, Forked, Fresh, HostAgent, HostView,
    PauseOptions, Progress, ResumeOptions, SnapshotRequest, SnapshotView, Snapshotted, Stat, TemplateView, Timeout,
    Tunnel, View, Warmed,
};
use wrenn_client::types::{self, NewTemplate, OperationState};
use wrenn_client::{Client, ClientError, SandboxQuery, SnapshotQuery};
use wrenn_engine::names::SandboxId;

use crate::words::printable_line;

use answers::{agent_error, changed, forked, snapshot_view, snapshotted, stat, template_view, view, warmed};

/// A server, behind the interface of an agent.
#[derive(Clone, Debug)]
pub struct RestAgent(Client);

impl RestAgent {
    /// The agent behind the server that `client` speaks to.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

/// How often it is asked how far a build is.
const ASK_EVERY: Duration = Duration::from_millis(500);

fn refused<T>(answer: Result<T, ClientError>) -> Result<T, AgentError> {
    answer.map_err(|error| agent_error(&error))
}

#[async_trait]
impl HostAgent for RestAgent {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        let made = refused(self.0.create(&requests::create(request)?, None).await)?;
        Ok(Created { changed: changed(made)?, bond: None })
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        let all = refused(self.0.all_sandboxes(&SandboxQuery::default()).await)?;
        all.into_iter().map(view).collect()
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        view(refused(self.0.sandbox(id.as_str()).await)?)
    }

    async fn watch(&self) -> Result<Changes, AgentError> {
        let events = refused(self.0.all_events().await)?;
        let ended = AgentError { code: Code::Unavailable, message: "the server tells no more; watch again".to_owned() };
        let told = events.map(|event| refused(event).and_then(answers::change)).chain(stream::iter([Err(ended)]));
        // Nothing comes after an error.
        let until_error = told.scan(false, |has_failed, change| {
            let is_over = std::mem::replace(has_failed, change.is_err() || *has_failed);
            std::future::ready((!is_over).then_some(change))
        });
        Ok(until_error.boxed())
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        let request = types::PauseRequest { disk_only: options.disk_only };
        changed(refused(self.0.pause(id.as_str(), &request).await)?)
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        changed(refused(self.0.resume(id.as_str(), &requests::resume(options)).await)?)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        changed(refused(self.0.destroy(id.as_str()).await)?)
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        view(refused(self.0.set_timeout(id.as_str(), &requests::timeout(timeout)).await)?)
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        changed(refused(self.0.repair(id.as_str()).await)?)
    }

    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        let request = types::SnapshotRequest { sandbox: id.to_string(), name: request.name };
        snapshotted(refused(self.0.create_snapshot(&request).await)?)
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError> {
        let all = refused(self.0.all_snapshots(&SnapshotQuery::default()).await)?;
        all.into_iter().map(snapshot_view).collect()
    }

    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        snapshot_view(refused(self.0.remove_snapshot(snapshot).await)?)
    }

    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        forked(refused(self.0.fork(id.as_str(), &requests::fork(request)).await)?)
    }

    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError> {
        changed(refused(self.0.rollback(id.as_str(), &requests::rollback(snapshot, options)).await)?)
    }

    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        refused(self.0.all_templates().await)?.into_iter().map(template_view).collect()
    }

    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        let new = NewTemplate { build: Some(recipe.to_owned()), ..NewTemplate::default() };
        let mut operation = refused(self.0.begin_create_template(&new).await)?;
        let mut told = 0;
        loop {
            for line in operation.progress.iter().skip(told) {
                progress(&printable_line(line));
            }
            told = told.max(operation.progress.len());
            match operation.state {
                OperationState::Running => sleep(ASK_EVERY).await,
                OperationState::Failed => return Err(answers::failed(operation)),
                OperationState::Succeeded => break,
            }
            operation = refused(self.0.operation(&operation.id).await)?;
        }
        let made = operation.template.ok_or_else(|| answers::senseless("a build made nothing"))?;
        template_view(refused(self.0.template(&made).await)?)
    }

    async fn warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError> {
        let (template, request) = requests::warm(fresh, ready_limit)?;
        warmed(refused(self.0.warm(&template, &request).await)?)
    }

    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError> {
        template_view(refused(self.0.remove_template(template).await)?)
    }

    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        let new = NewTemplate { build: None, snapshot: Some(snapshot.to_owned()), name: Some(name.to_owned()) };
        template_view(refused(self.0.create_template(&new).await)?)
    }

    /// The last sample that the server has.
    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        stat(id, refused(self.0.metrics(id.as_str(), None).await)?)
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        let logs = refused(self.0.logs(id.as_str(), Some(bytes_max)).await)?;
        logs.console.decode().ok_or_else(|| answers::senseless("the console is no base64"))
    }

    async fn host(&self) -> Result<HostView, AgentError> {
        answers::host_view(refused(self.0.host().await)?)
    }

    async fn dial(&self, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
        match timeout(limit, self.0.tunnel(id.as_str(), port)).await {
            Ok(tunnel) => Ok(Box::new(refused(tunnel)?)),
            Err(_elapsed) => Err(AgentError {
                code: Code::Unavailable,
                message: format!("the server did not open a connection to the guest within {} ms", limit.as_millis()),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
