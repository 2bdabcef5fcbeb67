//! The pages that the server shows: sources in `web/`, built before this crate and carried in the binary.
//!
//! They are static and need no key; what they ask the API for does. They may load nothing from elsewhere.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header;
use rust_embed::{EmbeddedFile, RustEmbed};
use wrenn_client::types::Code;

use crate::error::ApiError;

/// What `npm run build` made of `web/`. A build without it has no pages, and says so.
#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true]
struct Built;

/// What a page may do: everything comes from here, nothing is inline but styles, nobody frames it.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self' ws: wss:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// To the test page.
pub async fn index() -> Redirect {
    Redirect::temporary("/test")
}

/// The test page.
pub async fn test() -> Response {
    page("test.html")
}

/// The documentation.
pub async fn docs() -> Response {
    page("docs.html")
}

/// What the pages load.
pub async fn asset(path: Result<Path<String>, PathRejection>) -> Response {
    match path {
        Ok(Path(path)) => file(&format!("assets/{path}")),
        Err(rejected) => {
            let message = format!("the path is not what is expected: {}", rejected.body_text());
            ApiError::invalid(message).into_response()
        }
    }
}

fn page(name: &str) -> Response {
    match Built::get(name) {
        Some(found) => shown(found),
        None => ApiError::new(Code::NotFound, "this wrenn was built without its pages")
            .remedy("`cargo xtask build` builds it with them; GET /openapi.json describes the API")
            .into_response(),
    }
}

fn file(name: &str) -> Response {
    match Built::get(name) {
        Some(found) => shown(found),
        None => ApiError::new(Code::NotFound, "there is no such file").into_response(),
    }
}

fn shown(found: EmbeddedFile) -> Response {
    let kind = found.metadata.mimetype().to_owned();
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        // A new version is a new binary: what was cached of the old one is asked for again.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, found.data).into_response()
}
