//! An agent whose calls are spans, with a span below them for each step that it timed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;
use wrenn_agent::host_agent::{
    AgentError, Changed, Changes, CreateRequest, Created, ForkRequest, Forked, Fresh, HostAgent, HostView,
    PauseOptions, Progress, ResumeOptions, SnapshotRequest, SnapshotView, Snapshotted, Stat, TemplateView, Timeout,
    Timing, Tunnel, View, Warmed,
};
use wrenn_engine::names::SandboxId;

/// It. Calls outside of any span are passed on as they are.
pub(super) struct Traced {
    pub(super) agent: Arc<dyn HostAgent>,
    pub(super) tracer: SdkTracer,
}

/// A call that is under way; its span ends with it.
struct Call<'a> {
    tracer: &'a SdkTracer,
    /// None: it is not traced.
    context: Option<Context>,
    began: SystemTime,
}

impl Traced {
    fn begin(&self, name: &'static str, id: Option<&SandboxId>) -> Call<'_> {
        let current = Context::current();
        let context = current.has_active_span().then(|| {
            let span = self.tracer.span_builder(name).with_kind(SpanKind::Client);
            let span = span.with_attributes(id.map(|id| KeyValue::new("wrenn.sandbox.id", id.to_string())));
            current.with_span(span.start_with_context(&self.tracer, &current))
        });
        Call { tracer: &self.tracer, context, began: SystemTime::now() }
    }
}

impl Call<'_> {
    /// Its answer, of which there is no more to be told.
    async fn passes<T>(self, answer: impl Future<Output = Result<T, AgentError>>) -> Result<T, AgentError> {
        self.answer(answer).await
    }

    /// Its answer, with the steps that it took.
    async fn ends<T: Timed>(self, answer: impl Future<Output = Result<T, AgentError>>) -> Result<T, AgentError> {
        let answer = self.answer(answer).await?;
        self.tell(answer.made(), answer.timings());
        Ok(answer)
    }

    async fn answer<T>(&self, answer: impl Future<Output = Result<T, AgentError>>) -> Result<T, AgentError> {
        let Some(context) = &self.context else { return answer.await };
        let answer = answer.with_context(context.clone()).await;
        if let Err(error) = &answer {
            context.span().set_attribute(KeyValue::new("wrenn.error.code", error.code.as_str()));
            context.span().set_status(Status::error(error.message.clone()));
        }
        answer
    }

    fn tell(&self, made: Option<&SandboxId>, timings: &[Timing]) {
        let Some(context) = &self.context else { return };
        if let Some(id) = made {
            context.span().set_attribute(KeyValue::new("wrenn.sandbox.id", id.to_string()));
        }
        for (timing, after) in timings.iter().zip(starts(timings)) {
            let (start, end) = (self.began + after, self.began + after + timing.took);
            let span = self.tracer.span_builder(format!("step {}", timing.phase)).with_start_time(start);
            span.start_with_context(self.tracer, context).end_with_timestamp(end);
        }
    }
}

/// An answer that says how long each step took.
trait Timed {
    fn timings(&self) -> &[Timing];

    /// The sandbox that was made.
    fn made(&self) -> Option<&SandboxId> {
        None
    }
}

impl Timed for Created {
    fn timings(&self) -> &[Timing] {
        &self.changed.timings
    }

    fn made(&self) -> Option<&SandboxId> {
        Some(&self.changed.view.id)
    }
}

impl Timed for Changed {
    fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

impl Timed for Snapshotted {
    fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

impl Timed for Forked {
    fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

impl Timed for Warmed {
    fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

/// When each step began, after the first: one follows the other.
fn starts(timings: &[Timing]) -> impl Iterator<Item = Duration> {
    timings.iter().scan(Duration::ZERO, |at, timing| {
        let start = *at;
        *at += timing.took;
        Some(start)
    })
}

#[async_trait]
impl HostAgent for Traced {
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError> {
        self.begin("agent create", None).ends(self.agent.create(request)).await
    }

    async fn list(&self) -> Result<Vec<View>, AgentError> {
        self.begin("agent list", None).passes(self.agent.list()).await
    }

    async fn get(&self, id: &SandboxId) -> Result<View, AgentError> {
        self.begin("agent get", Some(id)).passes(self.agent.get(id)).await
    }

    async fn watch(&self) -> Result<Changes, AgentError> {
        self.agent.watch().await
    }

    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError> {
        self.begin("agent pause", Some(id)).ends(self.agent.pause(id, options)).await
    }

    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.begin("agent resume", Some(id)).ends(self.agent.resume(id, options)).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        self.begin("agent destroy", Some(id)).ends(self.agent.destroy(id)).await
    }

    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError> {
        self.begin("agent set_timeout", Some(id)).passes(self.agent.set_timeout(id, timeout)).await
    }

    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError> {
        self.begin("agent repair", Some(id)).ends(self.agent.repair(id)).await
    }

    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        self.begin("agent snapshot", Some(id)).ends(self.agent.snapshot(id, request)).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError> {
        self.begin("agent snapshots", None).passes(self.agent.snapshots()).await
    }

    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        self.begin("agent remove_snapshot", None).passes(self.agent.remove_snapshot(snapshot)).await
    }

    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        self.begin("agent fork", Some(id)).ends(self.agent.fork(id, request)).await
    }

    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError> {
        self.begin("agent rollback", Some(id)).ends(self.agent.rollback(id, snapshot, options)).await
    }

    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError> {
        self.begin("agent templates", None).passes(self.agent.templates()).await
    }

    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError> {
        self.begin("agent build_template", None).passes(self.agent.build_template(recipe, progress)).await
    }

    async fn warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError> {
        self.begin("agent warm", None).ends(self.agent.warm(fresh, ready_limit)).await
    }

    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError> {
        self.begin("agent remove_template", None).passes(self.agent.remove_template(template)).await
    }

    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError> {
        let call = self.begin("agent template_from_snapshot", None);
        call.passes(self.agent.template_from_snapshot(snapshot, name)).await
    }

    async fn host(&self) -> Result<HostView, AgentError> {
        self.begin("agent host", None).passes(self.agent.host()).await
    }

    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError> {
        self.begin("agent stat", Some(id)).passes(self.agent.stat(id)).await
    }

    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError> {
        self.begin("agent console", Some(id)).passes(self.agent.console(id, bytes_max)).await
    }

    async fn dial(&self, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError> {
        self.begin("agent dial", Some(id)).passes(self.agent.dial(id, port, limit)).await
    }
}
