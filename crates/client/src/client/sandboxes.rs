//! Sandboxes, and commands in them.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};

use super::call::Call;
use super::{Client, ListQuery, pages};
use crate::error::ClientError;
use crate::events::Events;
use crate::types::{
    Changed, CreateSandbox, Exec, ExecRequest, ForkRequest, Forked, Logs, Metrics, Operation, Page, PauseRequest,
    ProcessList, RepairRequest, ResumeRequest, RollbackRequest, Sandbox, SignalRequest, State, TimeoutRequest,
};

/// What makes a creation that is asked for twice one.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Which sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxQuery {
    /// In one of these states; in any if there are none.
    pub states: Vec<State>,
    /// With all of these labels.
    pub metadata: BTreeMap<String, String>,
    /// Which part of the list.
    pub list: ListQuery,
}

impl Client {
    /// A new sandbox; answers when its guest is ready. Asked again with the same idempotency key (1 to 128 printable ASCII
    /// characters) it is the same sandbox.
    pub async fn create(&self, new: &CreateSandbox, idempotency_key: Option<&str>) -> Result<Changed, ClientError> {
        self.creation(new, idempotency_key)?.json().await
    }

    /// The same without waiting for it.
    pub async fn begin_create(
        &self,
        new: &CreateSandbox,
        idempotency_key: Option<&str>,
    ) -> Result<Operation, ClientError> {
        self.creation(new, idempotency_key)?.query("wait", false).json().await
    }

    fn creation(&self, new: &CreateSandbox, idempotency_key: Option<&str>) -> Result<Call, ClientError> {
        let call = self.post(&["v1", "sandboxes"])?.body(new);
        let Some(key) = idempotency_key else { return Ok(call) };
        let value = HeaderValue::from_str(key).map_err(|_not_a_header| ClientError::Name(key.to_owned()))?;
        Ok(call.header(HeaderName::from_static(IDEMPOTENCY_KEY), value))
    }

    /// Some sandboxes, the oldest first.
    pub async fn sandboxes(&self, query: &SandboxQuery) -> Result<Page<Sandbox>, ClientError> {
        let mut call = self.get(&["v1", "sandboxes"])?;
        if !query.states.is_empty() {
            let states: Vec<_> = query.states.iter().map(|state| state.as_str()).collect();
            call = call.query("state", states.join(","));
        }
        for (key, value) in &query.metadata {
            call = call.query("metadata", format_args!("{key}={value}"));
        }
        query.list.of(call).json().await
    }

    /// All of them that `query` is about, whatever part it names.
    pub async fn all_sandboxes(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, ClientError> {
        pages::all(|list| {
            let query = SandboxQuery { list, ..query.clone() };
            async move { self.sandboxes(&query).await }
        })
        .await
    }

    /// One sandbox.
    pub async fn sandbox(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.get(&["v1", "sandboxes", id])?.json().await
    }

    /// Ends a sandbox and all that there is of it.
    pub async fn destroy(&self, id: &str) -> Result<Changed, ClientError> {
        self.delete(&["v1", "sandboxes", id])?.json().await
    }

    /// Puts a running sandbox to rest.
    pub async fn pause(&self, id: &str, request: &PauseRequest) -> Result<Changed, ClientError> {
        self.verb(id, "pause")?.body(request).json().await
    }

    /// Brings a sandbox back from rest.
    pub async fn resume(&self, id: &str, request: &ResumeRequest) -> Result<Changed, ClientError> {
        self.verb(id, "resume")?.body(request).json().await
    }

    /// Finishes or undoes what left a sandbox in need of it.
    pub async fn repair(&self, id: &str) -> Result<Changed, ClientError> {
        self.verb(id, "repair")?.body(&RepairRequest::default()).json().await
    }

    /// Changes when a running sandbox's time is up.
    pub async fn set_timeout(&self, id: &str, request: &TimeoutRequest) -> Result<Sandbox, ClientError> {
        self.verb(id, "timeout")?.body(request).json().await
    }

    /// Takes a sandbox back to one of its snapshots.
    pub async fn rollback(&self, id: &str, request: &RollbackRequest) -> Result<Changed, ClientError> {
        self.verb(id, "rollback")?.body(request).json().await
    }

    /// New sandboxes that go on from where this one is now.
    pub async fn fork(&self, id: &str, request: &ForkRequest) -> Result<Forked, ClientError> {
        self.verb(id, "fork")?.body(request).json().await
    }

    /// Runs a command, and answers when it has ended.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Exec, ClientError> {
        self.verb(id, "exec")?.body(request).json().await
    }

    /// The commands that run.
    pub async fn processes(&self, id: &str) -> Result<ProcessList, ClientError> {
        self.get(&["v1", "sandboxes", id, "exec"])?.json().await
    }

    /// Sends a signal to a command and all that it started.
    pub async fn signal(&self, id: &str, pid: u32, signal: u32) -> Result<(), ClientError> {
        let path = ["v1", "sandboxes", id, "exec", &pid.to_string(), "signal"];
        self.post(&path)?.body(&SignalRequest { signal }).done().await
    }

    /// What a sandbox took of its host over time; all that is kept, or what is newer than `since_unix_ms`.
    pub async fn metrics(&self, id: &str, since_unix_ms: Option<u64>) -> Result<Metrics, ClientError> {
        self.get(&["v1", "sandboxes", id, "metrics"])?.query_if("since_unix_ms", since_unix_ms).json().await
    }

    /// The end of its console, at most so many bytes of it, and the last commands.
    pub async fn logs(&self, id: &str, bytes: Option<u32>) -> Result<Logs, ClientError> {
        self.get(&["v1", "sandboxes", id, "logs"])?.query_if("bytes", bytes).json().await
    }

    /// What happens to one sandbox.
    pub async fn events(&self, id: &str) -> Result<Events, ClientError> {
        Ok(Events::new(self.get(&["v1", "sandboxes", id, "events"])?.send().await?))
    }

    /// What happens to all sandboxes.
    pub async fn all_events(&self) -> Result<Events, ClientError> {
        Ok(Events::new(self.get(&["v1", "events"])?.send().await?))
    }

    fn verb(&self, id: &str, verb: &str) -> Result<Call, ClientError> {
        self.post(&["v1", "sandboxes", id, verb])
    }
}
