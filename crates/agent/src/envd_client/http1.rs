//! HTTP/1.1 requests to the guest's agent, one after the other; answers of at most 64 KiB.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Fuse};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{EnvdError, words};
use crate::host_agent::Tunnel;

/// Longest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a guest has to answer `GET /health` on a connection that stands.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// Asks whether the agent is up.
pub(super) async fn get_health(stream: Tunnel) -> Result<(), EnvdError> {
    let request = Request::get("/health").header("host", "guest").body(Full::default());
    let request = request.expect("a constant request is well formed");
    exchange(stream, request, "GET /health", HEALTH_LIMIT).await.map(drop)
}

/// Sends the only request of a connection.
pub(super) async fn exchange(
    stream: Tunnel,
    request: Request<Full<Bytes>>,
    call: &'static str,
    limit: Duration,
) -> Result<Bytes, EnvdError> {
    Line::open(stream, call).await?.ask(request, call, limit).await
}

/// A connection for several requests.
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// Drives the exchanges; how it ends is said by the exchange that it breaks.
    connection: Fuse<BoxFuture<'static, hyper::Result<()>>>,
}

impl Line {
    /// Over a fresh stream; nothing is sent yet.
    pub(super) async fn open(stream: Tunnel, call: &'static str) -> Result<Self, EnvdError> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| protocol(call, &error))?;
        Ok(Self { sender, connection: connection.boxed().fuse() })
    }

    /// Sends a request; any 2xx is success, another status a refusal with the guest's words. After an error the line is
    /// of no use any more.
    pub(super) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
        call: &'static str,
        limit: Duration,
    ) -> Result<Bytes, EnvdError> {
        match timeout(limit, self.send(request, call)).await {
            Err(_elapsed) => Err(EnvdError::Deadline { call, limit }),
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            Ok(Ok((status, body))) => Err(refusal(call, status, &body)),
            Ok(Err(error)) => Err(error),
        }
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        call: &'static str,
    ) -> Result<(StatusCode, Bytes), EnvdError> {
        let Self { sender, connection } = self;
        let exchange = async {
            sender.ready().await.map_err(|error| protocol(call, &error))?;
            let answer = sender.send_request(request).await.map_err(|error| protocol(call, &error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(|error| protocol(call, &error))?.to_bytes();
            Ok((status, body))
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            _ended = connection => exchange.await,
        }
    }
}

fn protocol(call: &'static str, error: &dyn std::fmt::Display) -> EnvdError {
    EnvdError::Protocol { call, detail: words(&error.to_string()) }
}

fn refusal(call: &'static str, status: StatusCode, body: &[u8]) -> EnvdError {
    #[derive(serde::Deserialize)]
    struct Body {
        message: String,
    }
    let message = serde_json::from_slice(body)
        .map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |Body { message }| message);
    EnvdError::Refused { call, code: status.as_u16().to_string(), message: words(&message) }
}
