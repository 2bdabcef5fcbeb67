//! `hostagent.HostAgent` on the wire: requests are read and checked, the agent is asked, its answer is written.
//!
//! Each call is a task of its own ([`Call`]), since a handler is dropped when its client hangs up, and what was begun is
//! finished.

use std::sync::Arc;

use connectrpc::{Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::TryStreamExt as _;
use tokio::sync::{Semaphore, mpsc, watch};
use wrenn_engine::limits::CONSOLE_RING_BYTES;
use wrenn_proto::hostagent as wire;

use super::limits;
use super::stream::{Call, Making, long, telling, watching};
use super::wire::{
    checked_create, checked_fork, checked_from_snapshot, checked_resume, checked_rollback, checked_snapshot,
    checked_timeout, checked_warm, fork_events, sandbox_id, snapshot_name, template_name,
};
use crate::host_agent::{AgentError, HostAgent, PauseOptions, Progress};

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
        Call::new(tokio::spawn(async move {
            let _place = places.acquire().await.map_err(|_closed| AgentError::ending())?;
            call(agent).await
        }))
    }
}

impl wire::HostAgent for Service {
    async fn create(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::CreateRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::CreateResponse> + Send + use<>>> {
        let request = checked_create(request.to_owned_message())?;
        let call = self.begin(|agent| async move { agent.create(request).await });
        Response::stream_ok(Making::new(call, self.ending.clone()).into_stream())
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

    async fn watch(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, wire::WatchRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchResponse> + Send + use<>>> {
        let changes = self.begin(|agent| async move { agent.watch().await }).answer().await?;
        Response::stream_ok(watching(changes, self.ending.clone()))
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

    async fn host<'a>(
        &'a self,
        _: RequestContext,
        _: ServiceRequest<'_, wire::HostRequest>,
    ) -> ServiceResult<impl Encodable<wire::HostResponse> + Send + use<'a>> {
        let view = self.begin(|agent| async move { agent.host().await }).answer().await?;
        Response::ok(wire::HostResponse::from(view))
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

    async fn snapshot<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::SnapshotRequest>,
    ) -> ServiceResult<impl Encodable<wire::SnapshotResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let request = checked_snapshot(request.to_owned_message())?;
        let made = self.begin(move |agent| async move { agent.snapshot(&id, request).await }).answer().await?;
        Response::ok(wire::SnapshotResponse::from(made))
    }

    async fn list_snapshots(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, wire::ListSnapshotsRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ListSnapshotsResponse> + Send + use<>>> {
        let views = self.begin(|agent| async move { agent.snapshots().await }).answer().await?;
        let answers = views
            .into_iter()
            .map(|view| Ok(wire::ListSnapshotsResponse { snapshot: wire::Snapshot::from(view).into() }));
        Response::stream_ok(futures::stream::iter(answers))
    }

    async fn remove_snapshot<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::RemoveSnapshotRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveSnapshotResponse> + Send + use<'a>> {
        let snapshot = snapshot_name(request.snapshot)?;
        let view = self.begin(|agent| async move { agent.remove_snapshot(&snapshot).await }).answer().await?;
        Response::ok(wire::RemoveSnapshotResponse { snapshot: wire::Snapshot::from(view).into() })
    }

    async fn fork(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::ForkRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ForkResponse> + Send + use<>>> {
        let id = sandbox_id(request.id)?;
        let request = checked_fork(request.to_owned_message())?;
        let call = self.begin(move |agent| async move { agent.fork(&id, request).await });
        let events = long(call, || wire::KeepAlive {}.into(), fork_events);
        Response::stream_ok(events.map_ok(|event| wire::ForkResponse { event: Some(event) }))
    }

    async fn roll_back<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::RollBackRequest>,
    ) -> ServiceResult<impl Encodable<wire::RollBackResponse> + Send + use<'a>> {
        let id = sandbox_id(request.id)?;
        let (snapshot, options) = checked_rollback(request.to_owned_message())?;
        let mut call = self.begin(move |agent| async move { agent.rollback(&id, &snapshot, options).await });
        let changed = call.answer().await?;
        Response::ok(wire::RollBackResponse { changed: wire::Changed::from(changed).into() })
    }

    async fn list_templates(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, wire::ListTemplatesRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ListTemplatesResponse> + Send + use<>>> {
        let views = self.begin(|agent| async move { agent.templates().await }).answer().await?;
        let answers = views
            .into_iter()
            .map(|view| Ok(wire::ListTemplatesResponse { template: wire::Template::from(view).into() }));
        Response::stream_ok(futures::stream::iter(answers))
    }

    async fn build_template(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::BuildTemplateRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::BuildTemplateResponse> + Send + use<>>> {
        let recipe = template_name(request.recipe)?;
        let (lines, heard) = mpsc::channel(limits::PROGRESS_LINES_MAX);
        // Nobody may hear it any more, or not as fast as it is told.
        let progress: Progress = Arc::new(move |line| drop(lines.try_send(line.to_owned())));
        let call = self.begin(move |agent| async move { agent.build_template(&recipe, progress).await });
        let built = |view| vec![wire::Template::from(view).into()];
        let events =
            telling(call, heard, wire::build_template_response::Event::Progress, || wire::KeepAlive {}.into(), built);
        Response::stream_ok(events.map_ok(|event| wire::BuildTemplateResponse { event: Some(event) }))
    }

    async fn warm(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::WarmRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WarmResponse> + Send + use<>>> {
        let (fresh, ready_limit) = checked_warm(request.to_owned_message())?;
        let call = self.begin(move |agent| async move { agent.warm(fresh, ready_limit).await });
        let warmed = |warmed| vec![wire::warm_response::Warmed::from(warmed).into()];
        let events = long(call, || wire::KeepAlive {}.into(), warmed);
        Response::stream_ok(events.map_ok(|event| wire::WarmResponse { event: Some(event) }))
    }

    async fn remove_template<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::RemoveTemplateRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveTemplateResponse> + Send + use<'a>> {
        let template = template_name(request.template)?;
        let view = self.begin(|agent| async move { agent.remove_template(&template).await }).answer().await?;
        Response::ok(wire::RemoveTemplateResponse { template: wire::Template::from(view).into() })
    }

    async fn template_from_snapshot(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, wire::TemplateFromSnapshotRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::TemplateFromSnapshotResponse> + Send + use<>>> {
        let (snapshot, name) = checked_from_snapshot(request.to_owned_message())?;
        let call = self.begin(move |agent| async move { agent.template_from_snapshot(&snapshot, &name).await });
        let made = |view| vec![wire::Template::from(view).into()];
        let events = long(call, || wire::KeepAlive {}.into(), made);
        Response::stream_ok(events.map_ok(|event| wire::TemplateFromSnapshotResponse { event: Some(event) }))
    }
}
