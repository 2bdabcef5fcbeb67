//! The HTTP server: connections, routes, and what every answer has in common.
//!
//! HTTP/1.1 and HTTP/2 without TLS on one port. Connections, heads, bodies and buffers are bounded (`limits.rs`). Answers
//! may be read from any web page (CORS), because the token is what protects them. A handler that panics answers 500 and
//! harms nobody else. Repeated slashes at a path's beginning, as E2B's Python client sends them, count as one.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any_service, get};
use connectrpc::{Limits, Router as ConnectRouter};
use futures::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::arrivals::Arrival;
use super::filesystem::FilesystemService;
use super::process::service::Service as ProcessService;
use super::state::State;
use super::{auth, files, host_calls, metrics};
use crate::limits;

/// Serves connections until the end of the process.
pub async fn serve(listener: TcpListener, state: Arc<State>) -> Infallible {
    let processes = Arc::clone(&state.processes);
    tokio::spawn(async move { processes.sweep().await });
    let router = router(Arc::clone(&state));
    let builder = Arc::new(builder());
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        // Waiting here leaves further clients in the kernel's queue. The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let arrival = state.arrivals.arrive();
                let connection = connection(stream, arrival, Arc::clone(&builder), router.clone());
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = state.arrivals.over(arrival) => {}
                    }
                    drop(place);
                });
            }
            Err(error) => rest_after(&error).await,
        }
    }
}

/// A client that gave up costs nothing; a lack of descriptors or memory does not pass in no time.
async fn rest_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        eprintln!("envd: cannot accept a connection: {error}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::REQUEST_HEAD_TIME_MAX)
        .max_buf_size(limits::CONNECTION_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::HTTP2_STREAMS_MAX)
        .initial_stream_window_size(limits::HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(limits::HTTP2_WINDOW_BYTES * 4)
        .max_send_buf_size(limits::CONNECTION_BUFFER_BYTES);
    builder
}

async fn connection(stream: TcpStream, arrival: Arrival, builder: Arc<Builder<TokioExecutor>>, router: Router) {
    if let Err(error) = prepare(&stream) {
        eprintln!("envd: cannot prepare a connection: {error}");
        return;
    }
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(arrival);
        let router = router.clone();
        async move { router.oneshot(collapse_slashes(request)).await }
    });
    // How a connection ends is its client's business.
    builder.serve_connection(TokioIo::new(stream), service).await.ok();
}

/// Small answers go out at once, and a peer that is gone without a word is noticed, whether or not we have something to
/// say to it: after a resume the host knows nothing of older connections.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, limits::SILENCE_BEFORE_PROBE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, limits::PROBE_INTERVAL)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let patience = u32::try_from(limits::UNACKNOWLEDGED_TIME_MAX.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, patience)?)
}

fn collapse_slashes<B>(mut request: hyper::Request<B>) -> hyper::Request<B> {
    let path = request.uri().path_and_query().map(|path| path.as_str()).unwrap_or_default();
    if path.starts_with("//") {
        let path = format!("/{}", path.trim_start_matches('/'));
        // A path that was one stays one.
        if let Ok(uri) = Uri::try_from(path) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Every route there is.
pub fn router(state: Arc<State>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(get_metrics))
        .route("/envs", get(get_envs))
        .with_state(Arc::clone(&state))
        .merge(connect_routes(&state))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&state), auth::guard));
    Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .merge(guarded)
        .merge(files::routes(Arc::clone(&state)))
        .merge(host_calls::routes(state))
        .fallback(async || not_found())
        .layer(middleware::from_fn(catch_panic))
        .layer(middleware::from_fn(allow_any_origin))
}

fn connect_routes(state: &Arc<State>) -> Router {
    let small = message_limits(limits::MESSAGE_BYTES_MAX);
    let input = message_limits(limits::INPUT_MESSAGE_BYTES_MAX);
    let rpc = ConnectRouter::new()
        .add_service(Arc::new(ProcessService::new(Arc::clone(state))))
        .add_service(Arc::new(FilesystemService::new(Arc::clone(state))))
        .with_route_limits("/process.Process/SendInput", input)
        .with_route_limits("/process.Process/StreamInput", input)
        .into_axum_service()
        .with_limits(small);
    Router::new()
        .route("/process.Process/{method}", any_service(rpc.clone()))
        .route("/filesystem.Filesystem/{method}", any_service(rpc))
}

fn message_limits(bytes: usize) -> Limits {
    Limits::default()
        .with_max_message_size(bytes)
        .with_max_request_body_size(bytes)
        .with_element_memory_limit(bytes * 2)
}

async fn get_metrics(Shared(state): Shared<Arc<State>>) -> Response {
    match metrics::read(&state.cpu) {
        Ok(metrics) => json_response(StatusCode::OK, &metrics),
        Err(error) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &files::with_causes(&error)),
    }
}

async fn get_envs(Shared(state): Shared<Arc<State>>) -> Response {
    json_response(StatusCode::OK, &state.settings().env)
}

/// An error as every plain route says it: `{"code": 404, "message": "..."}`.
pub fn error_response(status: StatusCode, message: &str) -> Response {
    json_response(status, &serde_json::json!({"code": status.as_u16(), "message": message}))
}

/// An answer in JSON.
pub fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], text).into_response(),
        // Maps with text keys, numbers and texts always have a JSON form; if not, nothing of it can be told.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What is answered where nothing is, and where nobody is to know that something is.
pub fn not_found() -> Response {
    error_response(StatusCode::NOT_FOUND, "there is nothing here")
}

async fn catch_panic(request: Request, next: Next) -> Response {
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|_told_on_stderr| {
        error_response(StatusCode::INTERNAL_SERVER_ERROR, "envd made a mistake; it says more on the console")
    })
}

async fn allow_any_origin(request: Request, next: Next) -> Response {
    const ANY: HeaderValue = HeaderValue::from_static("*");
    let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let is_preflight = asks && request.method() == Method::OPTIONS;
    let mut response = if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, ANY);
        // Authorization is the one header that `*` does not cover.
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, Authorization"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use connectrpc::client::{ClientConfig, HttpClient};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use wrenn_proto::envd::TOKEN_HEADER;
    use wrenn_proto::envd::process::{ProcessClient, ProcessConfig, StartRequest};

    use super::*;
    use crate::envd::host_calls::Verifier;
    use crate::envd::state::Machine;

    const ASK: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Whether the connection answers, or is at its end.
    async fn answers(stream: &mut TcpStream) -> bool {
        // A peer that is gone may be noticed here or there.
        stream.write_all(ASK).await.ok();
        let mut answer = [0; 1024];
        stream.read(&mut answer).await.is_ok_and(|read| answer[..read].starts_with(b"HTTP/1.1 204"))
    }

    /// A served envd without a cgroup.
    async fn served() -> (Arc<State>, SocketAddr) {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let verifier = Verifier::new("sb1", key).unwrap();
        let state = Arc::new(State::new("sb1", verifier, None, Machine::Other));
        state.change_settings(|settings| settings.token = Some("token".into()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::clone(&state)));
        (state, address)
    }

    #[tokio::test]
    async fn connections_of_another_time_are_ended_and_later_ones_are_not() {
        let (state, address) = served().await;
        let mut old = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        for stream in &mut old {
            assert!(answers(stream).await);
        }
        state.arrivals.end_all_but(state.arrivals.arrive());
        let mut new = TcpStream::connect(address).await.unwrap();
        assert!(answers(&mut new).await);
        for stream in &mut old {
            assert!(!answers(stream).await);
        }
        assert!(answers(&mut new).await, "also the second time");
    }

    #[tokio::test]
    async fn a_reader_goes_with_its_connection() {
        let (state, address) = served().await;
        for http in [HttpClient::plaintext_http2_only(), HttpClient::plaintext()] {
            let config = ClientConfig::new(format!("http://{address}").parse().unwrap()).proto();
            let client = ProcessClient::new(http, config.with_default_header(TOKEN_HEADER, "token"));
            let process = ProcessConfig {
                cmd: "head".into(),
                args: vec!["-c50000000".into(), "/dev/zero".into()],
                ..Default::default()
            };
            let request = StartRequest { process: process.into(), stdin: Some(false), ..Default::default() };
            let unread = client.start(request).await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(state.processes.running().len(), 1, "it waits for its reader");
            state.arrivals.end_all_but(state.arrivals.arrive());
            let begun = Instant::now();
            while !state.processes.running().is_empty() {
                assert!(begun.elapsed() < Duration::from_secs(10), "it still waits");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(unread);
        }
    }
}
