//! Single HTTP/1.1 requests to the guest's agent: a connection each, an answer of at most 64 KiB.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{EnvdError, words};

/// Longest answer taken, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a guest has to answer `GET /health` on a connection that stands.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// Asks whether the agent is up.
pub(super) async fn get_health(stream: TcpStream) -> Result<(), EnvdError> {
    let request = Request::get("/health").header("host", "guest").body(Full::default());
    let request = request.expect("a constant request is well formed");
    exchange(stream, request, "GET /health", HEALTH_LIMIT).await
}

/// Sends one request; any 2xx is success, another status a refusal with the guest's words.
pub(super) async fn exchange(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
    call: &'static str,
    limit: Duration,
) -> Result<(), EnvdError> {
    match timeout(limit, send(stream, request, call)).await {
        Err(_elapsed) => Err(EnvdError::Deadline { call, limit }),
        Ok(Ok((status, _))) if status.is_success() => Ok(()),
        Ok(Ok((status, body))) => Err(refusal(call, status, &body)),
        Ok(Err(error)) => Err(error),
    }
}

async fn send(
    stream: TcpStream,
    request: Request<Full<Bytes>>,
    call: &'static str,
) -> Result<(StatusCode, Bytes), EnvdError> {
    let protocol = |error: &dyn std::fmt::Display| EnvdError::Protocol { call, detail: words(&error.to_string()) };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| protocol(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| protocol(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|error| protocol(&error))?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection drives the exchange; when it ends first, the exchange says how.
        _ended = connection => exchange.await,
    }
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
