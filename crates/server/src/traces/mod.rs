//! Traces for an OpenTelemetry collector, if there is one; without it nothing is made, kept or sent.
//!
//! ```text
//!   request ── the client's traceparent is its parent
//!      └─ operation create          work that goes on whether or not somebody waits
//!           └─ agent create         a call to the host's agent
//!                ├─ create disk     a step of the sandbox's life, as the agent timed it
//!                └─ create boot
//! ```
//!
//! A span that has ended goes into a bounded queue, from which a thread sends batches to the collector ([`collector`]). Whoever
//! answers a request never waits for it: when the queue is full, spans are lost. What the server does by itself is not traced.
//!
//! Which span is the current one is the task's context: who starts a task for a request hands it over
//! ([`FutureExt::with_current_context`]).

mod agent;
mod collector;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};
use wrenn_agent::host_agent::HostAgent;

use crate::auth::Caller;
use crate::limits;

pub use collector::{Endpoint, EndpointError};
pub use opentelemetry::context::FutureExt;

/// Where spans go. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<On>>);

struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// To this collector, from within a runtime, which has to go on until [`Traces::finish`] has ended.
    pub fn to(endpoint: &Endpoint) -> Self {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(limits::SPANS_QUEUED_MAX)
            .with_max_export_batch_size(limits::SPANS_AT_ONCE_MAX)
            .with_scheduled_delay(limits::SPANS_SENT_EVERY)
            .build();
        let exporter = collector::exporter(endpoint);
        let resource = Resource::builder_empty()
            .with_service_name("wrenn-server")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(config).build())
            // Who traces a request decides whether it is sampled; all others are.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("wrenn-server");
        Self(Some(Arc::new(On { provider, tracer })))
    }

    /// The context that a request is answered in.
    pub fn request(&self, method: &str, headers: &HeaderMap, request_id: &str) -> Context {
        let Some(on) = &self.0 else { return Context::new() };
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let attributes = [
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("wrenn.request.id", request_id.to_owned()),
        ];
        let span = on.tracer.span_builder(method.to_owned()).with_kind(SpanKind::Server).with_attributes(attributes);
        let span = span.start_with_context(&on.tracer, &parent);
        parent.with_span(span)
    }

    /// The context of a part of what the current one does; the same one, if that is not traced.
    pub fn part(&self, name: &'static str) -> Context {
        let current = Context::current();
        match &self.0 {
            Some(on) if current.has_active_span() => {
                let span = on.tracer.span_builder(name).start_with_context(&on.tracer, &current);
                current.with_span(span)
            }
            Some(_) | None => current,
        }
    }

    /// The agent, whose calls are parts of what makes them.
    pub fn around(&self, agent: Arc<dyn HostAgent>) -> Arc<dyn HostAgent> {
        match &self.0 {
            Some(on) => Arc::new(agent::Traced { agent, tracer: on.tracer.clone() }),
            None => agent,
        }
    }

    /// Sends what is left, within a limit. It takes a while if the collector does not answer.
    pub async fn finish(&self) {
        let Some(on) = self.0.clone() else { return };
        let finish = move || on.provider.shutdown_with_timeout(limits::SPANS_SENT_WITHIN + Duration::from_secs(1));
        // A thread of its own: it waits for the one that sends, whose connections this runtime drives.
        match tokio::task::spawn_blocking(finish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the last spans are lost"),
            Err(error) => tracing::warn!(%error, "the last spans are lost"),
        }
    }
}

/// Who asks is known.
pub fn note_caller(caller: &Caller) {
    Context::current().span().set_attributes([
        KeyValue::new("wrenn.key.id", caller.key.id.clone()),
        KeyValue::new("wrenn.tenant", caller.key.tenant.clone()),
    ]);
}

/// A request is answered.
pub fn note_answer(request: &Context, method: &str, route: &str, status: http::StatusCode) {
    let span = request.span();
    span.update_name(format!("{method} {route}"));
    span.set_attributes([
        KeyValue::new("http.route", route.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
    ]);
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
}
