//! An agent in another process, behind the same interface as one in this.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use connectrpc::client::{ClientConfig, ClientTransport, Http2Connection, ServerStream, SharedHttp2Connection};
use http::Uri;
use tokio::task::AbortHandle;
use wrenn_engine::names::SandboxId;
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::view::CreateResponseView;

use super::wire::{agent_error, changed, create_request, resume_request, timeout_request, view};
use super::{limits, tunnel};
use crate::host_agent::{
    AgentError, Bond, Changed, Code, CreateRequest, Created, HostAgent, PauseOptions, ResumeOptions, Stat, Timeout,
    Tunnel, View,
};

type Body = <SharedHttp2Connection as ClientTransport>::ResponseBody;
type Making = ServerStream<Body, CreateResponseView<'static>>;

/// The agent that listens on a socket. Cheap to clone; one connection for its calls, made again when it broke, and one for
/// each tunnel.
#[derive(Clone)]
pub struct Remote {
    socket: PathBuf,
    client: wire::HostAgentClient<SharedHttp2Connection>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Remote {
    /// Within a runtime, which drives the connection.
    pub(super) fn new(socket: &Path) -> Self {
        let authority = Uri::from_static("http://agent");
        let connection = Http2Connection::lazy_unix(socket, authority.clone()).shared(limits::STREAMS_MAX as usize);
        let config = ClientConfig::new(authority)
            .proto()
            .with_default_max_message_size(limits::MESSAGE_BYTES_MAX)
            .with_default_element_memory_limit(limits::MESSAGE_MEMORY_MAX);
        Self { socket: socket.to_owned(), client: wire::HostAgentClient::new(connection, config) }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The answer of a stream that has one, after any keepalives.
async fn created(stream: &mut Making) -> Result<Changed, AgentError> {
    loop {
        let message = stream.message::<wire::CreateResponse>().await.map_err(agent_error)?;
        let message = message.ok_or_else(|| AgentError {
            code: Code::Failed,
            message: "the agent's answer is not understood (create: no `created`); is it of another version?"
                .to_owned(),
        })?;
        match message.to_owned_message().event {
            Some(wire::create_response::Event::Created(made)) => return changed(Some(*made)),
            Some(wire::create_response::Event::Keepalive(_)) | None => {}
        }
    }
}

/// Holds the stream that holds the sandbox.
struct Hold(AbortHandle);

impl Hold {
    /// Reads on, so that keepalives do not pile up; what ends the stream ends the sandbox, which others notice.
    fn new(mut stream: Making) -> Self {
        let reading =
            tokio::spawn(async move { while let Ok(Some(_)) = stream.message::<wire::CreateResponse>().await {} });
        Self(reading.abort_handle())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[async_trait]
impl HostAgent for Remote {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        let bound = request.bound;
        let mut stream = self.client.create(create_request(request)?).await.map_err(agent_error)?;
        let changed = created(&mut stream).await?;
        Ok(Created { changed, bond: bound.then(|| Bond::new(Hold::new(stream))) })
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        let mut stream = self.client.list(wire::ListRequest {}).await.map_err(agent_error)?;
        let mut views = Vec::new();
        while let Some(message) = stream.message::<wire::ListResponse>().await.map_err(agent_error)? {
            views.push(view(message.to_owned_message().sandbox.into_option())?);
        }
        Ok(views)
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        let request = wire::GetRequest { id: id.to_string() };
        let answer = self.client.get(request).await.map_err(agent_error)?.into_owned();
        view(answer.sandbox.into_option())
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        let request = wire::PauseRequest { id: id.to_string(), disk_only: options.disk_only };
        let answer = self.client.pause(request).await.map_err(agent_error)?.into_owned();
        changed(answer.changed.into_option())
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        let answer = self.client.resume(resume_request(id, options)).await.map_err(agent_error)?.into_owned();
        changed(answer.changed.into_option())
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        let request = wire::DestroyRequest { id: id.to_string() };
        let answer = self.client.destroy(request).await.map_err(agent_error)?.into_owned();
        changed(answer.changed.into_option())
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        let answer = self.client.set_timeout(timeout_request(id, timeout)).await.map_err(agent_error)?.into_owned();
        view(answer.sandbox.into_option())
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        let request = wire::RepairRequest { id: id.to_string() };
        let answer = self.client.repair(request).await.map_err(agent_error)?.into_owned();
        changed(answer.changed.into_option())
    }

    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        let request = wire::StatRequest { id: id.to_string() };
        Ok(self.client.stat(request).await.map_err(agent_error)?.into_owned().into())
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        let request = wire::ConsoleRequest { id: id.to_string(), bytes_max };
        Ok(self.client.console(request).await.map_err(agent_error)?.into_owned().tail.to_vec())
    }

    async fn dial(&self, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
        tunnel::dial(&self.socket, id, port, limit).await
    }
}
