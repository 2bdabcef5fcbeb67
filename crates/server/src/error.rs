//! What a refusal looks like, and the one place where the agent's and the database's errors become one.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use wrenn_agent::envd_client::EnvdError;
use wrenn_agent::host_agent::{self, AgentError};
use wrenn_client::types::{Code, ErrorBody, Refusal};

use crate::db::DbError;
use crate::ids::NoRandom;

/// Why a request does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What the client is told.
    pub body: ErrorBody,
    /// When it may come again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// An error without a remedy.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { body: ErrorBody { code, message: message.into(), remedy: None }, retry_after_s: None }
    }

    /// With what helps.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.body.remedy = Some(remedy.into());
        self
    }

    /// With the time after which it may work.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    /// Something that is not there, or is somebody else's: these two look the same.
    pub fn not_found(what: &str, name: &str, list: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no {what} {}", shown(name)))
            .remedy(format!("GET {list} lists them"))
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.body.code.status()).expect("codes have statuses that exist")
    }
}

/// A client's own words as an error may repeat them: bounded, and without what drives a terminal.
pub fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 100;
    let kept: String = text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(SHOWN_MAX).is_some() { format!("{kept}…") } else { kept }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = (self.status(), self.body.code);
        let mut response = (status, Json(Refusal { error: self.body })).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(code);
        response
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let code = match error.code {
            host_agent::Code::NotFound => Code::NotFound,
            host_agent::Code::Denied => Code::Conflict,
            host_agent::Code::Invalid => Code::Invalid,
            host_agent::Code::Exhausted => Code::Exhausted,
            host_agent::Code::Failed => Code::Failed,
            host_agent::Code::NeedsRepair => Code::NeedsRepair,
            host_agent::Code::Unavailable => Code::Unavailable,
            host_agent::Code::Destroyed => Code::Destroyed,
        };
        let refused = Self::new(code, error.message);
        match code {
            Code::Unavailable => refused.remedy("the host's agent ends or starts; try again").retry_after(1),
            Code::Exhausted => refused.remedy("destroy or pause what is not needed, or ask for less").retry_after(10),
            Code::NeedsRepair => refused.remedy("POST …/repair finishes or undoes what was begun"),
            Code::Invalid
            | Code::Unauthenticated
            | Code::Forbidden
            | Code::NotFound
            | Code::MethodNotAllowed
            | Code::Conflict
            | Code::Destroyed
            | Code::TooLarge
            | Code::UnsupportedMediaType
            | Code::RangeNotSatisfiable
            | Code::QuotaExceeded
            | Code::RateLimited
            | Code::Failed => refused,
        }
    }
}

impl From<EnvdError> for ApiError {
    fn from(error: EnvdError) -> Self {
        let code = match &error {
            EnvdError::Refused { code, .. } => refused_by_guest(code),
            EnvdError::Unreachable(_) => Code::Unavailable,
            EnvdError::NotReady { .. }
            | EnvdError::Deadline { .. }
            | EnvdError::Protocol { .. }
            | EnvdError::ClockOff { .. } => Code::Failed,
        };
        Self::new(code, host_agent::with_causes(&error))
    }
}

/// What a guest's refusal means here: its words for the same things.
fn refused_by_guest(code: &str) -> Code {
    match code {
        "not_found" | "404" => Code::NotFound,
        "invalid_argument" | "unauthenticated" | "400" | "401" | "406" => Code::Invalid,
        "already_exists" | "failed_precondition" | "permission_denied" | "409" => Code::Conflict,
        "resource_exhausted" | "507" => Code::Exhausted,
        "416" => Code::RangeNotSatisfiable,
        _others => Code::Failed,
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        let text = host_agent::with_causes(&error);
        if error.is_unavailable() {
            let remedy = "no sandbox is touched by this; try again, and see the server's log if it lasts";
            return Self::new(Code::Unavailable, text).remedy(remedy).retry_after(1);
        }
        Self::new(Code::Failed, text)
    }
}

impl From<NoRandom> for ApiError {
    fn from(error: NoRandom) -> Self {
        Self::new(Code::Failed, format!("the kernel gives no random bytes: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_said_is_repeated_harmlessly() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), 101);
    }

    #[test]
    fn each_agent_error_has_its_code() {
        let error = AgentError { code: host_agent::Code::Denied, message: "it is paused".to_owned() };
        let refused = ApiError::from(error);
        assert_eq!((refused.status().as_u16(), refused.body.message.as_str()), (409, "it is paused"));
    }
}
