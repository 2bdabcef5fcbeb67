//! An agent in another process, behind the same interface as one in this.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use connectrpc::client::{ClientConfig, ClientTransport, Http2Connection, ServerStream, SharedHttp2Connection};
use futures::StreamExt as _;
use http::Uri;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;
use wrenn_engine::names::SandboxId;
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::view::{CreateResponseView, WatchResponseView};
use wrenn_proto::hostagent::{HasMessageView, MessageView};

use super::link::Carries;
use super::tls::{ClientTls, TlsAddress};
use super::way::Way;
use super::wire::{
    Forks, agent_error, change, changed, create_request, fork_request, host_view, resume_request, rollback_request,
    snapshot_request, snapshot_view, snapshotted, template_view, timeout_request, view, warm_request, warmed,
};
use super::{limits, tunnel};
use crate::host_agent::{
    AgentError, Bond, Change, Changed, Changes, Code, CreateRequest, Created, ForkRequest, Forked, Fresh, HostAgent,
    HostView, PauseOptions, Progress, ResumeOptions, SnapshotRequest, SnapshotView, Snapshotted, Stat, TemplateView,
    Timeout, Tunnel, View, Warmed,
};

type Body = <SharedHttp2Connection as ClientTransport>::ResponseBody;
type Client = wire::HostAgentClient<SharedHttp2Connection>;

/// The agent that listens on a socket, or somewhere over TLS. Cheap to clone; one connection for its calls, made again when it broke, and one for
/// each tunnel and each watch.
#[derive(Clone)]
pub struct Remote {
    way: Way,
    client: Client,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("way", &format_args!("{}", self.way)).finish_non_exhaustive()
    }
}

impl Remote {
    /// The agent that listens, or will listen, on `socket`; nobody is asked yet. Within a runtime, which drives the connection.
    pub fn at(socket: &Path) -> Self {
        Self::new(Way::Socket(socket.to_owned()))
    }

    /// As [`Remote::at`], for the agent that listens at `address`, or will; its certificate must be of that host.
    pub fn over_tls(address: TlsAddress, tls: ClientTls) -> Self {
        Self::new(Way::Tls(address, tls))
    }

    pub(super) fn new(way: Way) -> Self {
        Self { client: client(&way), way }
    }
}

/// A connection of its own, which is made with the first call.
fn client(way: &Way) -> Client {
    let way = way.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let way = way.clone();
        async move { way.connect(Carries::Calls).await.map(TokioIo::new) }
    });
    let authority = Uri::from_static("http://agent");
    let connection =
        Http2Connection::lazy_with_connector(connector, authority.clone()).shared(limits::STREAMS_MAX as usize);
    let config = ClientConfig::new(authority)
        .proto()
        .with_default_max_message_size(limits::MESSAGE_BYTES_MAX)
        .with_default_element_memory_limit(limits::MESSAGE_MEMORY_MAX);
    wire::HostAgentClient::new(connection, config)
}

/// The next message of a stream.
async fn next<V, M>(stream: &mut ServerStream<Body, V>) -> Result<Option<M>, AgentError>
where
    V: MessageView<'static, Owned = M> + Send + 'static,
    M: HasMessageView<View<'static> = V> + DeserializeOwned,
{
    let message = stream.message::<M>().await.map_err(agent_error)?;
    Ok(message.map(|message| message.to_owned_message()))
}

/// The answer to `call`, of a stream that has one after any keepalives.
async fn answer<V, M, T>(
    call: &str,
    stream: &mut ServerStream<Body, V>,
    answer: impl Fn(M) -> Option<T>,
) -> Result<T, AgentError>
where
    V: MessageView<'static, Owned = M> + Send + 'static,
    M: HasMessageView<View<'static> = V> + DeserializeOwned,
{
    while let Some(message) = next(stream).await? {
        if let Some(answer) = answer(message) {
            return Ok(answer);
        }
    }
    let message = format!("the agent's answer is not understood ({call}: there is none); is it of another version?");
    Err(AgentError { code: Code::Failed, message })
}

fn created(message: wire::CreateResponse) -> Option<wire::Changed> {
    match message.event? {
        wire::create_response::Event::Created(created) => Some(*created),
        wire::create_response::Event::Keepalive(_) => None,
    }
}

fn warm(message: wire::WarmResponse) -> Option<wire::warm_response::Warmed> {
    match message.event? {
        wire::warm_response::Event::Warmed(warmed) => Some(*warmed),
        wire::warm_response::Event::Keepalive(_) => None,
    }
}

fn new_template(message: wire::TemplateFromSnapshotResponse) -> Option<wire::Template> {
    match message.event? {
        wire::template_from_snapshot_response::Event::Template(template) => Some(*template),
        wire::template_from_snapshot_response::Event::Keepalive(_) => None,
    }
}

/// What happens next. A watch never ends without an error.
async fn next_change(stream: &mut ServerStream<Body, WatchResponseView<'static>>) -> Result<Change, AgentError> {
    while let Some(message) = next::<_, wire::WatchResponse>(stream).await? {
        if let Some(change) = message.event.map_or(Ok(None), change)? {
            return Ok(change);
        }
    }
    Err(AgentError { code: Code::Unavailable, message: "the agent has ended the watch".to_owned() })
}

/// The template, if it is built; else it is heard how the build goes on.
fn built(message: wire::BuildTemplateResponse, progress: &Progress) -> Option<wire::Template> {
    match message.event? {
        wire::build_template_response::Event::Template(template) => Some(*template),
        wire::build_template_response::Event::Progress(line) => {
            progress(&line);
            None
        }
        wire::build_template_response::Event::Keepalive(_) => None,
    }
}

/// Holds the stream that holds the sandbox.
struct Hold(AbortHandle);

impl Hold {
    /// Reads on, so that keepalives do not pile up; what ends the stream ends the sandbox, which others notice.
    fn new(mut stream: ServerStream<Body, CreateResponseView<'static>>) -> Self {
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
        let bound = request.wishes.bound;
        let mut stream = self.client.create(create_request(request)?).await.map_err(agent_error)?;
        let changed = changed(Some(answer("create", &mut stream, created).await?))?;
        Ok(Created { changed, bond: bound.then(|| Bond::new(Hold::new(stream))) })
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        let mut stream = self.client.list(wire::ListRequest {}).await.map_err(agent_error)?;
        let mut views = Vec::new();
        while let Some(message) = next::<_, wire::ListResponse>(&mut stream).await? {
            views.push(view(message.sandbox.into_option())?);
        }
        Ok(views)
    }

    /// Over a connection of its own: what who watches has not read yet must not keep calls from being answered.
    async fn watch(&self) -> Result<Changes, AgentError> {
        let client = client(&self.way);
        let mut stream = client.watch(wire::WatchRequest {}).await.map_err(agent_error)?;
        // The first is told at once; where the agent refuses, that is told in its place.
        let first = next_change(&mut stream).await?;
        let later = futures::stream::unfold(Some((client, stream)), |watched| async move {
            let (client, mut stream) = watched?;
            match next_change(&mut stream).await {
                Ok(change) => Some((Ok(change), Some((client, stream)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(futures::stream::iter([Ok(first)]).chain(later).boxed())
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

    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        snapshotted(self.client.snapshot(snapshot_request(id, request)).await.map_err(agent_error)?.into_owned())
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError> {
        let mut stream = self.client.list_snapshots(wire::ListSnapshotsRequest {}).await.map_err(agent_error)?;
        let mut views = Vec::new();
        while let Some(message) = next::<_, wire::ListSnapshotsResponse>(&mut stream).await? {
            views.push(snapshot_view(message.snapshot.into_option())?);
        }
        Ok(views)
    }

    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        let request = wire::RemoveSnapshotRequest { snapshot: snapshot.to_owned() };
        let answer = self.client.remove_snapshot(request).await.map_err(agent_error)?.into_owned();
        snapshot_view(answer.snapshot.into_option())
    }

    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        let count = request.count;
        let mut stream = self.client.fork(fork_request(id, request)).await.map_err(agent_error)?;
        let mut forks = Forks::default();
        while let Some(message) = next::<_, wire::ForkResponse>(&mut stream).await? {
            message.event.map_or(Ok(()), |event| forks.take(event))?;
        }
        forks.finish(count)
    }

    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError> {
        let request = rollback_request(id, snapshot, options);
        let answer = self.client.roll_back(request).await.map_err(agent_error)?.into_owned();
        changed(answer.changed.into_option())
    }

    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        let mut stream = self.client.list_templates(wire::ListTemplatesRequest {}).await.map_err(agent_error)?;
        let mut views = Vec::new();
        while let Some(message) = next::<_, wire::ListTemplatesResponse>(&mut stream).await? {
            views.push(template_view(message.template.into_option())?);
        }
        Ok(views)
    }

    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        let request = wire::BuildTemplateRequest { recipe: recipe.to_owned() };
        let mut stream = self.client.build_template(request).await.map_err(agent_error)?;
        let built = answer("build template", &mut stream, |message| built(message, &progress)).await?;
        template_view(Some(built))
    }

    async fn warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError> {
        let mut stream = self.client.warm(warm_request(fresh, ready_limit)?).await.map_err(agent_error)?;
        warmed(answer("warm", &mut stream, warm).await?)
    }

    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError> {
        let request = wire::RemoveTemplateRequest { template: template.to_owned() };
        let answer = self.client.remove_template(request).await.map_err(agent_error)?.into_owned();
        template_view(answer.template.into_option())
    }

    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        let request = wire::TemplateFromSnapshotRequest { snapshot: snapshot.to_owned(), name: name.to_owned() };
        let mut stream = self.client.template_from_snapshot(request).await.map_err(agent_error)?;
        template_view(Some(answer("template from snapshot", &mut stream, new_template).await?))
    }

    async fn host(&self) -> Result<HostView, AgentError> {
        host_view(self.client.host(wire::HostRequest {}).await.map_err(agent_error)?.into_owned())
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
        tunnel::dial(&self.way, id, port, limit).await
    }
}
