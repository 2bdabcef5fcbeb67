//! What a guest's agent answers over plain HTTP, as answers of ours.

use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use wrenn_agent::envd_client::MESSAGE_CHARS_MAX;
use wrenn_client::types::Code;

use crate::error::ApiError;

/// Most of a refusal that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// The answer, if it is no refusal.
pub async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, ApiError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let collected = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await;
    let body = collected.map(|collected| collected.to_bytes()).unwrap_or_default();
    Err(refusal(status, &body))
}

fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
    #[derive(Deserialize)]
    struct Body {
        message: String,
    }
    let message = serde_json::from_slice(body)
        .map_or_else(|_not_json| String::from_utf8_lossy(body).into_owned(), |Body { message }| message);
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).filter(|c| !c.is_control()).collect();
    let code = match status.as_u16() {
        404 => Code::NotFound,
        409 => Code::Conflict,
        413 => Code::TooLarge,
        416 => Code::RangeNotSatisfiable,
        507 => Code::Exhausted,
        client if (400..500).contains(&client) => Code::Invalid,
        _others => Code::Failed,
    };
    let message = if message.is_empty() { format!("the guest's agent answers {status}") } else { message };
    ApiError::new(code, message)
}
