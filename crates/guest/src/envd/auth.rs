//! Who may call, and as which user of the guest.
//!
//! ```text
//! GET /health                  anybody
//! /files                       a token or a signature made with it: files.rs looks
//! host calls                   a signature of the host's key: host_calls.rs looks; else they do not exist
//! everything else              X-Access-Token
//! ```
//! Until /init has set a token nothing that needs one is let in: between boot and /init a program of the guest must not
//! get to talk to a root process. Tokens are compared in constant time.
//!
//! The user comes from `Authorization: Basic` (name, no password), because that is where E2B's clients put it; it is a
//! choice, not a proof: the token already allows everything.

use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use std::sync::Arc;

use wrenn_proto::envd::TOKEN_HEADER;

use super::server::error_response;
use super::state::State;

/// What a request's `X-Access-Token` is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It is the sandbox's token.
    Granted,
    /// There is no such header.
    Missing,
    /// It is not the sandbox's token, or the sandbox has none yet.
    Wrong,
}

/// Looks at a request's `X-Access-Token`.
pub fn access(headers: &HeaderMap, token: Option<&str>) -> Access {
    let Some(given) = headers.get(TOKEN_HEADER) else { return Access::Missing };
    match token {
        Some(token) if equal(given.as_bytes(), token.as_bytes()) => Access::Granted,
        Some(_) | None => Access::Wrong,
    }
}

/// The layer in front of every guarded route: 401 without the token.
pub async fn guard(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    match access(request.headers(), state.token().as_deref()) {
        Access::Granted => next.run(request).await,
        Access::Missing | Access::Wrong => refusal(),
    }
}

/// The answer to a request without the token.
pub fn refusal() -> Response {
    error_response(StatusCode::UNAUTHORIZED, "a valid X-Access-Token header is required").into_response()
}

/// The user that a request asks for: the name in `Authorization: Basic base64("name:")`, none if there is none.
pub fn requested_user(headers: &HeaderMap) -> Option<String> {
    let (scheme, credentials) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let name = decoded.split_once(':').map_or(decoded.as_str(), |(name, _password)| name);
    (!name.is_empty()).then(|| name.to_owned())
}

/// Compares without telling by its duration where the difference is; the length is no secret.
fn equal(left: &[u8], right: &[u8]) -> bool {
    let difference = left.iter().zip(right).fold(0, |found, (a, b)| found | (a ^ b));
    left.len() == right.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = Some("abcdef");
        assert_eq!(access(&headers("x-access-token", "abcdef"), token), Access::Granted);
        for wrong in ["", "abcde", "abcdefg", "abcdeF", "bbcdef", "abcdef abcdef"] {
            assert_eq!(access(&headers("x-access-token", wrong), token), Access::Wrong, "{wrong}");
        }
        assert_eq!(access(&HeaderMap::new(), token), Access::Missing);
    }

    #[test]
    fn without_a_token_nothing_opens() {
        for given in ["", "x"] {
            assert_eq!(access(&headers("x-access-token", given), None), Access::Wrong);
        }
        assert_eq!(access(&HeaderMap::new(), None), Access::Missing);
    }

    #[test]
    fn the_user_is_the_name_of_basic_credentials() {
        for (value, user) in [
            ("Basic dXNlcjo=", Some("user")),
            ("basic cm9vdDpzZWNyZXQ=", Some("root")),
            ("Basic dXNlcg==", Some("user")),
            ("Basic Og==", None),
            ("Basic ", None),
            ("Basic !!!", None),
            ("Bearer dXNlcjo=", None),
            ("dXNlcjo=", None),
        ] {
            assert_eq!(requested_user(&headers("authorization", value)).as_deref(), user, "{value}");
        }
        assert_eq!(requested_user(&HeaderMap::new()), None);
    }
}
