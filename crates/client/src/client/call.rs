//! One request, and its answer.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::{Body, Method, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Client;
use crate::error::ClientError;
use crate::limits;
use crate::types::{ErrorBody, Refusal};

/// What the server's log calls a request.
const REQUEST_ID: &str = "x-request-id";
/// Where the key goes.
const API_KEY: &str = "x-api-key";

/// Whom was asked for what, for what is said of the answer.
#[derive(Clone, Debug)]
pub struct Asked {
    server: Arc<str>,
    call: String,
    request_id: Option<String>,
}

impl Asked {
    /// The answer makes no sense.
    pub fn protocol(&self, detail: impl Display) -> ClientError {
        ClientError::Protocol { server: self.server.to_string(), call: self.call.clone(), detail: detail.to_string() }
    }

    /// The connection broke.
    pub fn broke(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broke { call: self.call.clone(), source: source.into() }
    }

    /// It was refused after it had begun well, in a stream.
    pub fn refused_later(&self, error: ErrorBody) -> ClientError {
        let status = error.code.status();
        self.refused(error, status, None)
    }

    fn refused(&self, error: ErrorBody, status: u16, retry_after: Option<Duration>) -> ClientError {
        ClientError::Refused {
            call: self.call.clone(),
            error,
            status,
            request_id: self.request_id.clone(),
            retry_after,
        }
    }

    fn failed(&self, error: reqwest::Error) -> ClientError {
        // Its text is for people, and the URL is in ours.
        let error = error.without_url();
        if error.is_connect() {
            return ClientError::Unreachable { server: self.server.to_string(), source: error.into() };
        }
        self.broke(error)
    }
}

/// A request that is being made.
pub struct Call {
    client: Client,
    request: Request,
    call: String,
}

impl Call {
    /// For the path of these segments below the server's URL.
    pub fn new(client: &Client, method: Method, path: &[&str]) -> Result<Self, ClientError> {
        let mut url = client.0.base.clone();
        // A path cannot have these as names: they would be another path.
        if let Some(name) = path.iter().find(|name| matches!(**name, "" | "." | "..")) {
            return Err(ClientError::Name((*name).to_owned()));
        }
        url.path_segments_mut().expect("URLs of HTTP have paths").pop_if_empty().extend(path);
        let call = format!("{method} /{}", path.join("/"));
        let mut request = Request::new(method, url);
        if let Some(key) = &client.0.key {
            request.headers_mut().insert(HeaderName::from_static(API_KEY), key.clone());
        }
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
        Ok(Self { client: client.clone(), request, call })
    }

    /// With a parameter in the query.
    pub fn query(mut self, name: &str, value: impl Display) -> Self {
        self.request.url_mut().query_pairs_mut().append_pair(name, &value.to_string());
        self
    }

    /// With a parameter, if there is one.
    pub fn query_if(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.request.headers_mut().insert(name, value);
        self
    }

    /// With a JSON body.
    pub fn body(self, body: &impl Serialize) -> Self {
        let json = serde_json::to_vec(body).expect("requests are maps with texts as keys");
        self.stream(json.into(), HeaderValue::from_static("application/json"))
    }

    /// With a body that is sent as it comes.
    pub fn stream(mut self, body: Body, content_type: HeaderValue) -> Self {
        *self.request.body_mut() = Some(body);
        self.header(CONTENT_TYPE, content_type)
    }

    /// The answer, if it is a good one.
    pub async fn send(self) -> Result<Answer, ClientError> {
        let client = self.client.0.http.clone();
        self.send_by(&client).await
    }

    /// The same, over a connection that can become another protocol's.
    pub async fn send_upgradable(self) -> Result<Answer, ClientError> {
        let client = self.client.0.http1.clone();
        self.send_by(&client).await
    }

    async fn send_by(self, client: &reqwest::Client) -> Result<Answer, ClientError> {
        let mut call = Asked { server: Arc::clone(&self.client.0.server), call: self.call, request_id: None };
        let response = client.execute(self.request).await.map_err(|error| call.failed(error))?;
        call.request_id = text_of(response.headers(), REQUEST_ID);
        let status = response.status();
        let answer = Answer { call, response };
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(answer.refusal().await)
    }

    /// The answer's JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        self.send().await?.json().await
    }

    /// An answer that says nothing.
    pub async fn done(self) -> Result<(), ClientError> {
        self.send().await.map(drop)
    }

    /// The answer's text.
    pub async fn text(self) -> Result<String, ClientError> {
        let answer = self.send().await?;
        let call = answer.call.clone();
        String::from_utf8(answer.bytes(limits::ANSWER_BYTES_MAX).await?).map_err(|error| call.protocol(error))
    }
}

/// An answer whose body is still to be read.
pub struct Answer {
    /// To what.
    pub call: Asked,
    response: Response,
}

impl Answer {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of its body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response.chunk().await.map_err(|error| self.call.failed(error))
    }

    /// The connection, which speaks another protocol from now on.
    pub async fn upgrade(self) -> Result<(reqwest::Upgraded, Asked), ClientError> {
        let Self { call, response } = self;
        let connection = response.upgrade().await.map_err(|error| call.failed(error))?;
        Ok((connection, call))
    }

    async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let call = self.call.clone();
        let bytes = self.bytes(limits::ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|error| call.protocol(error))
    }

    async fn bytes(mut self, bytes_max: usize) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.chunk().await? {
            if bytes.len() + piece.len() > bytes_max {
                return Err(self.call.protocol(format_args!("it is larger than {bytes_max} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Why there is no good answer. One that is none of Wrenn's is a proxy's, or another program's.
    async fn refusal(self) -> ClientError {
        let (call, status) = (self.call.clone(), self.status());
        let retry_after = text_of(self.headers(), RETRY_AFTER.as_str());
        let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        if let Some(other) = text_of(self.headers(), LOCATION.as_str()).filter(|_| status.is_redirection()) {
            return call.protocol(format_args!("HTTP {status}, which points to {other}"));
        }
        let bytes = match self.bytes(limits::REFUSAL_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(Refusal { error }) => call.refused(error, status.as_u16(), retry_after),
            Err(_none_of_ours) => call.protocol(format_args!("HTTP {status}")),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("call", &self.call).field("status", &self.status()).finish_non_exhaustive()
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
