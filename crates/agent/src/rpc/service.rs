//! `hostagent.HostAgent` on the wire: requests are read and checked, the agent is asked, its answer is written.
//!
//! Each call is a task of its own, since a handler is dropped when its client hangs up, and what was begun is finished.
//! A bound sandbox's [`Bond`] lies in the stream of the call that made it, and so goes with its client:
//!
//! ```text
//!   Making ── created ──► Held ── the client or the agent goes ──► dropped: the sandbox is destroyed
//!     └── the client goes ──► the task goes on, and drops what it made
//! ```

use std::sync::Arc;

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::Stream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wrenn_engine::limits::CONSOLE_RING_BYTES;
use wrenn_proto::hostagent as wire;

use super::limits;
use super::wire::{checked_create, checked_resume, checked_timeout, sandbox_id};
use crate::host_agent::{AgentError, Bond, Code, Created, HostAgent, PauseOptions};

/// The service over one agent.
pub(super) struct Service {
    agent: Arc<dyn HostAgent>,
    /// A place for each call that is carried out; all of them are taken when the agent ends.
    places: Arc<Semaphore>,
    /// Becomes true when the agent ends.
    ending: watch::Receiver<bool>,
}

impl Service {
    pub fn new(agent: Arc<dyn HostAgent>, places: Arc<Semaphore>, ending: watch::Receiver<bool>) -> Self {
        Self { agent, places, ending }
    }

    /// Begins `call` in a task of its own.
    fn begin<T, F>(&self, call: impl FnOnce(Arc<dyn HostAgent>) -> F + Send + 'static) -> Call<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, AgentError>> + Send + 'static,
    {
        let (agent, places) = (Arc::clone(&self.agent), Arc::clone(&self.places));
        Call(tokio::spawn(async move {
            let _place = places.acquire().await.map_err(|_closed| ending())?;
            call(agent).await
        }))
    }
}

/// The agent ends, and takes no more.
fn ending() -> AgentError {
    AgentError { code: Code::Unavailable, message: "the agent is ending".to_owned() }
}

/// A call that is under way, and goes on when this is dropped.
struct Call<T>(JoinHandle<Result<T, AgentError>>);

impl<T> Call<T> {
    /// Its answer. Cancel safe.
    async fn answer(&mut self) -> Result<T, AgentError> {
        (&mut self.0).await.unwrap_or_else(|error| {
            let message = format!("the agent made a mistake, which its log tells more of: {error}");
            Err(AgentError { code: Code::Failed, message })
        })
    }
}

/// The stream of one Create.
struct Making {
    stage: Stage,
    ending: watch::Receiver<bool>,
}

enum Stage {
    Making(Call<Created>),
    /// The bond is never looked at; it is held.
    Held(#[expect(dead_code, reason = "held for its drop")] Bond),
    Over,
}

impl Making {
    fn into_stream(self) -> impl Stream<Item = Result<wire::CreateResponse, ConnectError>> + Send {
        futures::stream::unfold(self, |mut making| async move { making.next().await.map(|event| (event, making)) })
    }

    async fn next(&mut self) -> Option<Result<wire::CreateResponse, ConnectError>> {
        match &mut self.stage {
            Stage::Over => None,
            Stage::Making(call) => match timeout(limits::KEEPALIVE_EVERY, call.answer()).await {
                Err(_elapsed) => Some(Ok(keepalive())),
                Ok(Err(error)) => {
                    self.stage = Stage::Over;
                    Some(Err(error.into()))
                }
                Ok(Ok(Created { changed, bond })) => {
                    self.stage = bond.map_or(Stage::Over, Stage::Held);
                    Some(Ok(created(changed.into())))
                }
            },
            Stage::Held(_) => match timeout(limits::KEEPALIVE_EVERY, super::ends(&mut self.ending)).await {
                Err(_elapsed) => Some(Ok(keepalive())),
                Ok(()) => {
                    self.stage = Stage::Over;
                    Some(Err(ending().into()))
                }
            },
        }
    }
}

fn keepalive() -> wire::CreateResponse {
    wire::CreateResponse { event: Some(wire::create_response::KeepAlive {}.into()) }
}

fn created(changed: wire::Changed) -> wire::CreateResponse {
    wire::CreateResponse { event: Some(changed.into()) }
}

impl wire::HostAgent for Service {
    async fn create(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::CreateRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::CreateResponse> + Send + use<>>> {
        let request = checked_create(request.to_owned_message())?;
        let call = self.begin(|agent| async move { agent.create(request).await });
        let making = Making { stage: Stage::Making(call), ending: self.ending.clone() };
        Response::stream_ok(making.into_stream())
    }

    async fn list(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ListResponse> + Send + use<>>> {
        let views = self.begin(|agent| async move { agent.list().await }).answer().await?;
        let answers =
            views.into_iter().map(|view| Ok(wire::ListResponse { sandbox: wire::Sandbox::from(view).into() }));
        Response::stream_ok(futures::stream::iter(answers))
    }

    async fn get<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::GetRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let view = self.begin(|agent| async move { agent.get(&id).await }).answer().await?;
        Response::ok(wire::GetResponse { sandbox: wire::Sandbox::from(view).into() })
    }

    async fn pause<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::PauseRequest>,
    ) -> ServiceResult<impl Encodable<wire::PauseResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let options = PauseOptions { disk_only: request.disk_only };
        let changed = self.begin(move |agent| async move { agent.pause(&id, options).await }).answer().await?;
        Response::ok(wire::PauseResponse { changed: wire::Changed::from(changed).into() })
    }

    async fn resume<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::ResumeRequest>,
    ) -> ServiceResult<impl Encodable<wire::ResumeResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let options = checked_resume(&request.to_owned_message())?;
        let changed = self.begin(move |agent| async move { agent.resume(&id, options).await }).answer().await?;
        Response::ok(wire::ResumeResponse { changed: wire::Changed::from(changed).into() })
    }

    async fn destroy<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::DestroyRequest>,
    ) -> ServiceResult<impl Encodable<wire::DestroyResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let changed = self.begin(|agent| async move { agent.destroy(&id).await }).answer().await?;
        Response::ok(wire::DestroyResponse { changed: wire::Changed::from(changed).into() })
    }

    async fn set_timeout<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::SetTimeoutRequest>,
    ) -> ServiceResult<impl Encodable<wire::SetTimeoutResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let timeout = checked_timeout(&request.to_owned_message())?;
        let view = self.begin(move |agent| async move { agent.set_timeout(&id, timeout).await }).answer().await?;
        Response::ok(wire::SetTimeoutResponse { sandbox: wire::Sandbox::from(view).into() })
    }

    async fn repair<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::RepairRequest>,
    ) -> ServiceResult<impl Encodable<wire::RepairResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let changed = self.begin(|agent| async move { agent.repair(&id).await }).answer().await?;
        Response::ok(wire::RepairResponse { changed: wire::Changed::from(changed).into() })
    }

    async fn stat<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<impl Encodable<wire::StatResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let stat = self.begin(|agent| async move { agent.stat(&id).await }).answer().await?;
        Response::ok(wire::StatResponse::from(stat))
    }

    async fn console<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::ConsoleRequest>,
    ) -> ServiceResult<impl Encodable<wire::ConsoleResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let most = request.bytes_max.min(CONSOLE_RING_BYTES as u32);
        let tail = self.begin(move |agent| async move { agent.console(&id, most).await }).answer().await?;
        Response::ok(wire::ConsoleResponse { tail: tail.into() })
    }
}
