//! What a collector of traces is sent, and that nobody depends on it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::Code;
use wrenn_server::traces::Endpoint;

use crate::server::{Server, sandbox, within};

/// What the client's own trace is, and its span.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

type Spans = Arc<Mutex<Vec<Span>>>;

/// A collector, and what it has been sent.
async fn collector() -> (Endpoint, Spans) {
    async fn take(State(spans): State<Spans>, headers: HeaderMap, body: Bytes) -> (HeaderMap, Bytes) {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let resources = request.resource_spans.into_iter();
        let all = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        spans.lock().unwrap().extend(all);
        (HeaderMap::new(), Bytes::new())
    }
    let spans = Spans::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, spans)
}

async fn traced(endpoint: Endpoint) -> Server {
    Server::new(Fake::default(), |config| config.traces = Some(endpoint)).await.ready().await
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no `{name}` among {names:?}"))
}

fn is_below(span: &Span, parent: &Span) -> bool {
    span.trace_id == parent.trace_id && span.parent_span_id == parent.span_id
}

#[tokio::test]
async fn a_request_is_a_span_below_its_clients_with_the_agents_calls_below_it() {
    let (endpoint, spans) = collector().await;
    let server = traced(endpoint).await;
    let (key, theirs) = server.key(json!({"tenant": "acme"})).await;
    let create = |body: serde_json::Value| theirs.request(reqwest::Method::POST, "/v1/sandboxes").json(&body);
    let request = create(json!({})).header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    let made = theirs.answer("post", "/v1/sandboxes", request).await;
    let request_id = made.headers["x-request-id"].to_str().unwrap().to_owned();
    let id = made.ok()["sandbox"]["id"].as_str().unwrap().to_owned();
    theirs.post(&format!("/v1/sandboxes/{id}/pause"), json!({})).await.ok();
    server.fail(Code::Failed, "the disk is broken");
    assert_eq!(theirs.post(&format!("/v1/sandboxes/{id}/resume"), json!({})).await.code(), "failed");
    server.fail_no_more();
    server.finish().await;

    let spans = spans.lock().unwrap();
    let request = named(&spans, "POST /v1/sandboxes");
    assert_eq!((hex::encode(&request.trace_id), hex::encode(&request.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(request.kind, SpanKind::Server as i32);
    for (name, wanted) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/sandboxes"),
        ("http.response.status_code", "201"),
        ("wrenn.request.id", &request_id),
        ("wrenn.key.id", key["id"].as_str().unwrap()),
        ("wrenn.tenant", "acme"),
    ] {
        assert_eq!(attribute(request, name).as_deref(), Some(wanted), "{name}");
    }
    let call = named(&spans, "agent create");
    assert!(is_below(call, request), "{call:#?}");
    assert_eq!(attribute(call, "wrenn.sandbox.id").as_deref(), Some(&*id));
    for step in ["step disk", "step boot"] {
        let step = named(&spans, step);
        assert!(is_below(step, call) && step.start_time_unix_nano < step.end_time_unix_nano, "{step:#?}");
    }
    let pause = named(&spans, "POST /v1/sandboxes/{id}/pause");
    assert!(pause.parent_span_id.is_empty() && pause.trace_id != request.trace_id, "nobody traced it before");
    assert!(is_below(named(&spans, "agent pause"), pause));

    let resume = named(&spans, "POST /v1/sandboxes/{id}/resume");
    let failed = named(&spans, "agent resume");
    assert!(is_below(failed, resume));
    assert_eq!(attribute(failed, "wrenn.error.code").as_deref(), Some("failed"));
    for span in [resume, failed] {
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(SpanStatus::Error as i32), "{span:#?}");
    }
    assert!(!spans.iter().any(|span| span.name == "agent stat"), "what the server does by itself is not traced");
}

#[tokio::test]
async fn what_goes_on_by_itself_is_a_part_of_what_began_it() {
    let (endpoint, spans) = collector().await;
    let server = traced(endpoint).await;
    let begun = server.api.post("/v1/sandboxes?wait=false", json!({})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    let operation = begun.body["id"].as_str().unwrap().to_owned();
    let ended = || async { server.api.get(&format!("/v1/operations/{operation}")).await.ok()["state"] == "succeeded" };
    crate::server::until("the sandbox", ended).await;
    server.finish().await;
    let spans = spans.lock().unwrap();
    let operation = named(&spans, "operation");
    assert!(is_below(operation, named(&spans, "POST /v1/sandboxes")));
    assert!(is_below(named(&spans, "agent create"), operation));
}

#[tokio::test]
async fn a_client_that_does_not_want_to_be_traced_is_not() {
    let (endpoint, spans) = collector().await;
    let server = traced(endpoint).await;
    let request = server.api.request(reqwest::Method::GET, "/v1/sandboxes");
    let request = request.header("traceparent", format!("00-{TRACE}-{PARENT}-00"));
    server.api.answer("get", "/v1/sandboxes", request).await.ok();
    let odd = server.api.request(reqwest::Method::GET, "/v1/snapshots").header("traceparent", "nonsense");
    server.api.answer("get", "/v1/snapshots", odd).await.ok();
    server.finish().await;
    let spans = spans.lock().unwrap();
    assert!(!spans.iter().any(|span| span.name == "GET /v1/sandboxes"));
    assert!(named(&spans, "GET /v1/snapshots").parent_span_id.is_empty());
}

#[tokio::test]
async fn a_collector_that_is_gone_or_silent_keeps_nobody_waiting() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [gone, silent.local_addr().unwrap()] {
        let server = traced(format!("http://{address}").parse().unwrap()).await;
        sandbox(&server.api).await;
        let began = Instant::now();
        // More than the queue holds.
        let asking = futures::future::join_all((0..16).map(|_| async {
            for _ in 0..300 {
                server.api.get("/v1/host").await.ok();
            }
        }));
        within("all answers", asking).await;
        println!("{address}: {:?}", began.elapsed());
        let began = Instant::now();
        server.finish().await;
        assert!(began.elapsed() < Duration::from_secs(15), "it ends within its limits: {:?}", began.elapsed());
    }
}
