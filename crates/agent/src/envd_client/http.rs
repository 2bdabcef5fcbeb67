//! Plain HTTP to a guest's agent whose bodies are streamed: `/files` is for bytes of any number.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use wrenn_proto::envd::TOKEN_HEADER;

use super::process::basic_user;
use super::{CONNECT_LIMIT, EnvdClient, EnvdError, words};

/// A body whose end is an error of whoever sends it, or its last byte.
pub type StreamedBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

impl EnvdClient {
    /// Sends `request`, with the guest's token, over a connection of its own; answers when the head of the guest's answer is
    /// there, which may be after all of the request's body. The rest of it comes as it is read. `limit` is for that head, counted
    /// from when the request is sent: `None` where the body is what takes its time.
    pub async fn http(
        &self,
        mut request: Request<StreamedBody>,
        user: Option<&str>,
        call: &'static str,
        limit: Option<Duration>,
    ) -> Result<Response<Incoming>, EnvdError> {
        let protocol = |detail: String| EnvdError::Protocol { call, detail: words(&detail) };
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("guest"));
        headers
            .insert(TOKEN_HEADER, self.access_token.parse().map_err(|_odd| protocol("its token is odd".to_owned()))?);
        if let Some(user) = user {
            headers.insert(
                AUTHORIZATION,
                basic_user(user).parse().map_err(|_odd| protocol("a user's name is odd".to_owned()))?,
            );
        }
        let stream = self.connect(CONNECT_LIMIT).await.map_err(EnvdError::Unreachable)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| protocol(error.to_string()))?;
        // Ends when both bodies have, or when nobody holds them any more; how, the body that it breaks says.
        tokio::spawn(connection);
        let answer = sender.send_request(request);
        let answer = match limit {
            Some(limit) => timeout(limit, answer).await.map_err(|_elapsed| EnvdError::Deadline { call, limit })?,
            None => answer.await,
        };
        answer.map_err(|error| protocol(with_source(&error)))
    }
}

/// What hyper says is often in the source.
fn with_source(error: &(dyn std::error::Error + 'static)) -> String {
    crate::host_agent::with_causes(error)
}
