//! The way to a collector: OTLP, protobuf over plain HTTP/1.1, a connection for each batch.
//!
//! A batch that does not get through is lost; that is said once in a while, with how many were. There is no TLS: a collector
//! elsewhere is reached through one on this host, or over a network that is trusted.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::limits;

/// Where a collector of OTLP over HTTP listens, unless something else is said.
const PORT: u16 = 4318;
/// Where it takes traces, below what it is named by.
const PATH: &str = "/v1/traces";

/// A collector, by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    /// Of all that it takes.
    path: String,
}

/// Why a text names no collector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no URL.
    #[error("it is no URL of a collector; one is http://HOST:{PORT}")]
    NoUrl,
    /// It asks for what is not there.
    #[error(
        "a collector is reached over plain http alone; have one on this host or in its network take the traces, and pass them on"
    )]
    Encrypted,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|_odd| EndpointError::NoUrl)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(EndpointError::Encrypted),
            Some(_) | None => return Err(EndpointError::NoUrl),
        }
        let authority = uri.authority().ok_or(EndpointError::NoUrl)?;
        // Nobody should think that a password in it is used.
        if authority.as_str().contains('@') || authority.host().is_empty() || uri.query().is_some() {
            return Err(EndpointError::NoUrl);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { host, port: authority.port_u16().unwrap_or(PORT), path })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, path } = self;
        match host.contains(':') {
            true => write!(f, "http://[{host}]:{port}{path}"),
            false => write!(f, "http://{host}:{port}{path}"),
        }
    }
}

/// What makes batches of spans into requests, and sends them in the current runtime.
pub(super) fn exporter(endpoint: &Endpoint) -> SpanExporter {
    let collector = Collector { endpoint: endpoint.clone(), runtime: Handle::current(), trouble: Mutex::default() };
    SpanExporter::builder()
        .with_http()
        .with_http_client(collector)
        .with_endpoint(format!("{endpoint}{PATH}"))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(limits::SPANS_SENT_WITHIN)
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .expect("an endpoint is a URL, and nothing else of this is asked for")
}

/// The exporter's client. It is asked from a thread without a runtime.
#[derive(Debug)]
struct Collector {
    endpoint: Endpoint,
    runtime: Handle,
    trouble: Mutex<Trouble>,
}

/// What went wrong since it was said.
#[derive(Debug, Default)]
struct Trouble {
    said: Option<Instant>,
    batches: u64,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let endpoint = self.endpoint.clone();
        let sending = async move { timeout(limits::SPANS_SENT_WITHIN, send(endpoint, request)).await };
        let sent = match self.runtime.spawn(sending).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(_elapsed)) => Err("it did not answer in time".into()),
            Err(_ends) => Err("the server ends".into()),
        };
        self.note(&sent);
        sent
    }
}

impl Collector {
    /// Says what goes wrong, the first time and then once in a while; and when nothing does any more.
    fn note(&self, sent: &Result<Response<Bytes>, HttpError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match sent {
            Ok(response) if response.status().is_success() => {
                if trouble.said.take().is_some() {
                    tracing::info!(collector = %self.endpoint, lost_batches = trouble.batches, "traces get through again");
                }
                trouble.batches = 0;
                return;
            }
            Ok(response) => format!("it answers with {}", response.status()),
            Err(error) => error.to_string(),
        };
        trouble.batches += 1;
        if trouble.said.is_none_or(|said| said.elapsed() >= limits::TRACES_TROUBLE_SAID_EVERY) {
            trouble.said = Some(Instant::now());
            let lost_batches = trouble.batches;
            tracing::warn!(collector = %self.endpoint, why, lost_batches, "traces do not get through and are lost; requests go on");
        }
    }
}

/// Sends one request, and reads a bounded answer.
async fn send(endpoint: Endpoint, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str())?;
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
    *request.uri_mut() = path;
    let exchange = async {
        let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, limits::COLLECTOR_ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok::<_, HttpError>(Response::from_parts(head, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // How it ended is said by the exchange that it breaks.
        _ended = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_a_url_of_plain_http() {
        for (text, shown) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
            ("http://collector", "http://collector:4318"),
            ("http://[::1]:80/", "http://[::1]:80"),
            ("http://gateway.example/otlp/", "http://gateway.example:4318/otlp"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for wrong in
            ["", "collector:4318", "/v1/traces", "ftp://x", "http://", "http://u:p@x", "http://x/?a=b", "http://x y"]
        {
            assert_eq!(wrong.parse::<Endpoint>(), Err(EndpointError::NoUrl), "{wrong}");
        }
        assert_eq!("https://collector:4318".parse::<Endpoint>(), Err(EndpointError::Encrypted));
    }
}
