//! What a request says, checked: its body, its query, its path. Each refusal names the field.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use wrenn_client::types::{Code, Scope};
use wrenn_engine::names::SandboxId;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, shown};
use crate::limits;

/// A JSON body. None at all is `{}`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        read_json(request, limits::JSON_BYTES_MAX).await.map(Self)
    }
}

/// A JSON body that may bring a command's input along.
pub struct LargeJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for LargeJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        read_json(request, limits::EXEC_JSON_BYTES_MAX).await.map(Self)
    }
}

async fn read_json<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read_bytes(&parts.headers, body, most).await?;
    if bytes.is_empty() {
        return parse_json(b"{}");
    }
    if !is_json(&parts.headers) {
        let message = "the body is to be JSON, and its Content-Type does not say so";
        return Err(ApiError::new(Code::UnsupportedMediaType, message).remedy("send Content-Type: application/json"));
    }
    parse_json(&bytes)
}

/// A body that fits into memory, within a time that a slow client cannot stretch.
async fn read_bytes(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {most} bytes, which is the most this route reads");
        ApiError::new(Code::TooLarge, message)
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    match timeout(limits::JSON_TIME_MAX, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body did not arrive whole: {error}"))),
        Err(_elapsed) => {
            let seconds = limits::JSON_TIME_MAX.as_secs();
            Err(ApiError::invalid(format!("the body did not arrive within {seconds} s")))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence.to_ascii_lowercase().starts_with("application/") && essence.ends_with("+json"))
}

/// JSON text; the refusal names the field and what is wrong with it.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A struct is read from an array, too, field after field: `[]` would be a request with nothing in it.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::invalid("the JSON is not what is expected: it is to be an object, `{…}`"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let what = shown_error(&error.into_inner().to_string());
        if path == "." {
            ApiError::invalid(format!("the JSON is not what is expected: {what}"))
        } else {
            ApiError::invalid(format!("the field `{}` is not what is expected: {what}", shown(&path)))
        }
    })?;
    deserializer.end().map_err(|error| ApiError::invalid(format!("there is something after the JSON: {error}")))?;
    Ok(value)
}

/// The parser repeats what it read: bounded, and without what drives a terminal.
fn shown_error(text: &str) -> String {
    const MOST: usize = 400;
    text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A query that knows no other fields.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        parse_query(checked_query(parts)?).map(Self)
    }
}

/// The fields of a query, in their order.
pub fn fields(parts: &Parts) -> Result<Vec<(String, String)>, ApiError> {
    parse_query(checked_query(parts)?)
}

/// What these fields of a query say.
pub fn parse_fields<T: DeserializeOwned>(fields: &[(String, String)]) -> Result<T, ApiError> {
    let text = serde_html_form::to_string(fields)
        .map_err(|error| ApiError::invalid(format!("the query makes no sense: {}", shown_error(&error.to_string()))))?;
    parse_query(&text)
}

fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    serde_html_form::from_str(query).map_err(|error| {
        ApiError::invalid(format!("the query is not what is expected: {}", shown_error(&error.to_string())))
    })
}

fn checked_query(parts: &Parts) -> Result<&str, ApiError> {
    let query = parts.uri.query().unwrap_or_default();
    if query.len() > limits::QUERY_BYTES_MAX {
        return Err(ApiError::invalid(format!("the query is longer than {} bytes", limits::QUERY_BYTES_MAX)));
    }
    check_utf8(query)?;
    Ok(query)
}

/// Form decoding replaces what is no UTF-8; a path that was changed so would be another one.
fn check_utf8(query: &str) -> Result<(), ApiError> {
    match percent_encoding::percent_decode_str(query).decode_utf8() {
        Ok(_text) => Ok(()),
        Err(_not_utf8) => Err(ApiError::invalid("the query is not UTF-8")),
    }
}

/// The `{id}` of a path.
pub struct Id(pub SandboxId);

impl FromRequestParts<Arc<App>> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Segment(text) = Segment::from_request_parts(parts, app).await?;
        sandbox_id(&text).map(Self)
    }
}

/// A sandbox's id as it came in.
pub fn sandbox_id(text: &str) -> Result<SandboxId, ApiError> {
    text.parse().map_err(|_not_one| {
        ApiError::invalid(format!("`{}` is no sandbox id: one is `sb` and 18 characters of [a-z0-9]", shown(text)))
    })
}

/// The one variable part of a path.
pub struct Segment(pub String);

impl FromRequestParts<Arc<App>> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(rejected) => {
                Err(ApiError::invalid(format!("the path is not what is expected: {}", rejected.body_text())))
            }
        }
    }
}

/// The two variable parts of a path: a sandbox, and a number that belongs to it.
pub struct IdAnd<N>(pub SandboxId, pub N);

impl<N: DeserializeOwned + Send + std::str::FromStr> FromRequestParts<Arc<App>> for IdAnd<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Path((id, number)) =
            Path::<(String, String)>::from_request_parts(parts, app).await.map_err(|rejected| {
                ApiError::invalid(format!("the path is not what is expected: {}", rejected.body_text()))
            })?;
        let number = number
            .parse()
            .map_err(|_not_one| ApiError::invalid(format!("`{}` in the path is no such number", shown(&number))))?;
        Ok(Self(sandbox_id(&id)?, number))
    }
}

/// Who asks, with a key that may change things.
pub struct Writer(pub Caller);

/// Who asks, with a key that may do everything.
pub struct Admin(pub Caller);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        // The layer that authenticates refuses whoever shows no key: a route without it is a mistake of ours.
        Ok(parts.extensions.get::<Self>().expect("this route is behind the layer that authenticates").clone())
    }
}

impl FromRequestParts<Arc<App>> for Writer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.demand(Scope::Write)?;
        Ok(Self(caller))
    }
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.demand(Scope::Admin)?;
        Ok(Self(caller))
    }
}

/// The id of a request, which its answer, the log and the audit have.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Whether a request changes something, by its method.
pub fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use wrenn_client::types::CreateSandbox;

    use super::*;

    #[test]
    fn a_refusal_names_the_field() {
        let refused = |text: &str| parse_json::<CreateSandbox>(text.as_bytes()).unwrap_err().body.message;
        assert!(refused(r#"{"vcpus":"two"}"#).starts_with("the field `vcpus` is not what is expected: invalid type"));
        assert!(refused(r#"{"env":{"A":1}}"#).contains("env.A"), "{}", refused(r#"{"env":{"A":1}}"#));
        assert!(refused(r#"{"memory":1}"#).contains("unknown field `memory`"));
        assert!(refused("[]").contains("not what is expected"));
        assert!(refused("{} {}").contains("after the JSON"));
        assert!(refused("{\"template\":\"\u{1b}").chars().all(|c| !c.is_control()));
        assert!(parse_json::<CreateSandbox>(b"\xff").is_err());
    }

    #[test]
    fn json_says_that_it_is() {
        let is = |text: &str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())]));
        assert!(is("application/json") && is("application/json; charset=utf-8") && is("application/problem+json"));
        assert!(!is("text/plain") && !is("application/x-www-form-urlencoded") && !is_json(&HeaderMap::new()));
    }
}
