//! `/v1`: what can be asked, route by route.
//!
//! Each handler reads a request that was checked ([`crate::extract`]), asks the agent or the index, and answers in the API's types.
//! The OpenAPI document is generated from the very declarations that route requests here.

mod audit;
mod events;
mod exec;
mod files;
mod guest_http;
mod host;
mod keys;
mod observe;
mod operations;
pub mod page;
mod sandboxes;
mod snapshots;
mod socket;
mod stream;
mod templates;
mod tunnel;

use std::sync::Arc;

use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

/// What is said of the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Sandboxes in microVMs: made from a template, used, paused, resumed, forked, kept as snapshots, destroyed.\n\n\
            Every error is `{\"error\":{\"code\",\"message\",\"remedy\"}}`. Requests with fields that are not known are refused. Lists come in \
            pages: `next_cursor` of one is `cursor` of the next. Every answer has an `X-Request-Id`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    modifiers(&Security),
    security(("key" = [])),
    tags(
        (name = "sandboxes", description = "Sandboxes and their lives"),
        (name = "commands", description = "Commands and terminals in sandboxes"),
        (name = "files", description = "Files of sandboxes"),
        (name = "observe", description = "What sandboxes take, print, and what happens to them"),
        (name = "snapshots", description = "What sandboxes were, kept"),
        (name = "templates", description = "What sandboxes start from"),
        (name = "operations", description = "Long work that nobody waits for"),
        (name = "keys", description = "Keys, and the record of what was done with them"),
        (name = "host", description = "The host and the server"),
    ),
    components(schemas(
        wrenn_client::types::StreamRequest,
        wrenn_client::types::ClientMessage,
        wrenn_client::types::ServerMessage,
        wrenn_client::types::Departure,
    ))
)]
struct Document;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        openapi.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// Routes that need a key, and the document of all.
pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::get, sandboxes::destroy))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::repair))
        .routes(routes!(sandboxes::set_timeout))
        .routes(routes!(sandboxes::rollback))
        .routes(routes!(sandboxes::fork))
        .routes(routes!(exec::run, exec::list))
        .routes(routes!(exec::signal))
        .routes(routes!(stream::start))
        .routes(routes!(stream::attach))
        .routes(routes!(stream::pty))
        .routes(routes!(tunnel::open))
        .routes(routes!(files::read, files::write))
        .routes(routes!(files::list))
        .routes(routes!(files::make_dir))
        .routes(routes!(files::rename))
        .routes(routes!(files::remove))
        .routes(routes!(observe::metrics))
        .routes(routes!(observe::logs))
        .routes(routes!(events::of_sandbox))
        .routes(routes!(events::of_all))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::get, snapshots::remove))
        .routes(routes!(templates::create, templates::list))
        .routes(routes!(templates::get, templates::remove))
        .routes(routes!(templates::warm))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::whoami))
        .routes(routes!(audit::list))
        .routes(routes!(host::get))
}

/// Routes that everybody may ask.
pub fn open_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(host::health))
}
