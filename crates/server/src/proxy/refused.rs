//! What the proxy itself answers, told apart from the guest's answers by a header.

use axum::Json;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use wrenn_agent::host_agent::{self, AgentError};
use wrenn_client::types::{Code, ErrorBody, Refusal};

use super::limits;
use super::target::{Malformed, Target};

/// Says that an answer is the proxy's own, and why. A guest's header of this name is removed.
pub const PROXY_ERROR_HEADER: HeaderName = HeaderName::from_static("x-wrenn-proxy-error");

/// Why a request did not come back with a guest's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status: not always the code's own, because a guest's failures are 502 and 504.
    pub status: StatusCode,
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
    /// What helps, where something is known to.
    pub remedy: Option<String>,
    /// When it may be tried again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Refused {
    /// With the status that the code comes with.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status()).expect("codes have statuses");
        Self { status, code, message: message.into(), remedy: None, retry_after_s: None }
    }

    /// The same, with what helps.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// A name that lies with the proxy and names nothing.
    pub fn malformed(malformed: Malformed) -> Self {
        Self::new(Code::Invalid, format!("this name leads to no port of a sandbox: {malformed}"))
            .with_remedy("ask for PORT-SANDBOX.DOMAIN or /proxy/PORT-SANDBOX/…, such as 8080-sb0123456789abcdefgh")
    }

    /// An agent that did not connect to the guest, in the proxy's words.
    pub fn dial(target: &Target, error: &AgentError) -> Self {
        let Target { id, port } = target;
        let message = format!("cannot reach port {port} of sandbox {id}: {error}");
        match error.code {
            host_agent::Code::Failed => Self::nothing_answers(target, error),
            host_agent::Code::NotFound => Self::new(Code::NotFound, message),
            host_agent::Code::Destroyed => Self::new(Code::Destroyed, message),
            host_agent::Code::Denied => {
                Self::new(Code::Conflict, message).with_remedy("resume the sandbox, or create it with auto_resume")
            }
            host_agent::Code::NeedsRepair => Self::new(Code::NeedsRepair, message).with_remedy("repair the sandbox"),
            host_agent::Code::Invalid => Self::new(Code::Invalid, message),
            host_agent::Code::Exhausted => Self::full(message),
            host_agent::Code::Unavailable => Self::new(Code::Unavailable, message),
        }
    }

    fn nothing_answers(Target { id, port }: &Target, error: &AgentError) -> Self {
        Self::bad_gateway(format!("nothing answers on port {port} of sandbox {id}: {error}")).with_remedy(format!(
            "start a program in the sandbox that listens on port {port} of all its addresses (0.0.0.0), or ask again when \
             it is up"
        ))
    }

    /// The guest failed as a server.
    pub(super) fn bad_gateway(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, ..Self::new(Code::Unavailable, message) }
    }

    /// The guest took too long.
    pub(super) fn gateway_timeout(message: impl Into<String>) -> Self {
        Self { status: StatusCode::GATEWAY_TIMEOUT, ..Self::new(Code::Unavailable, message) }
    }

    /// There is no place for one more.
    pub(super) fn full(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(limits::RETRY_AFTER_S), ..Self::new(Code::Exhausted, message) }
    }

    /// As an answer.
    pub fn into_response(self) -> Response<Body> {
        let Self { status, code, message, remedy, retry_after_s } = self;
        let body = Json(Refusal { error: ErrorBody { code, message, remedy } });
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(PROXY_ERROR_HEADER, HeaderValue::from_static(code.as_str()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
