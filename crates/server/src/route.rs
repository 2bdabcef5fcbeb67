//! Where a request goes, and what happens to every one of them on its way.
//!
//! ```text
//!   by host name <port>-<id>.<domain> ─► proxy
//!   by path /proxy/<port>-<id>/…      ─► proxy
//!   /v1/…, /metrics                   ─► key ─► rate ─► handler ─► audit
//!   /healthz, /openapi.json, /docs, /test, /assets ─► for everybody
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;
use wrenn_client::types::Code;

use crate::app::App;
use crate::auth::{Caller, shown_secret, wrong_key};
use crate::db::NewAuditEntry;
use crate::error::ApiError;
use crate::extract::{RequestId, changes};
use crate::ids::new_id;
use crate::proxy::target::{HostMatch, PathMatch, Target, parse_host, parse_path};
use crate::time::now_unix_ms;
use crate::traces::{self, FutureExt as _};
use crate::{api, limits, metrics, ui};

/// The header with a request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The API's document, generated from its routes.
pub fn openapi() -> OpenApi {
    let mut document = api::routes().into_openapi();
    document.merge(api::open_routes().into_openapi());
    document
}

/// All routes.
pub fn router(app: &Arc<App>) -> Router {
    let document: Arc<str> = openapi().to_json().expect("the document is JSON").into();
    let guarded = Router::from(api::routes())
        .route("/metrics", get(prometheus))
        .layer(from_fn_with_state(Arc::clone(app), authenticate));
    let open = Router::from(api::open_routes())
        .route("/openapi.json", get(async move || ([(header::CONTENT_TYPE, "application/json")], document.to_string())))
        .route("/", get(ui::index))
        .route("/test", get(ui::test))
        .route("/docs", get(ui::docs))
        .route("/assets/{*path}", get(ui::asset));
    guarded
        .merge(open)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(Arc::clone(app))
        .layer(from_fn_with_state(Arc::clone(app), to_port))
        .layer(from_fn_with_state(Arc::clone(app), observe))
}

async fn unknown_path(request: Request) -> ApiError {
    let message = format!("there is nothing at {}", crate::error::shown(request.uri().path()));
    ApiError::new(Code::NotFound, message).remedy("GET /docs shows what there is")
}

async fn unknown_method(method: Method, request: Request) -> ApiError {
    let path = crate::error::shown(request.uri().path());
    ApiError::new(
        Code::MethodNotAllowed,
        format!("{path} does not know the method {}", crate::error::shown(method.as_str())),
    )
}

/// Gives a request its id and its span, and its log and measurement when it is answered.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let Ok(id) = new_id("rq") else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let (began, method) = (Instant::now(), request.method().clone());
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", id, %method, path = request.uri().path());
    let trace = app.traces.request(metrics::known(method.as_str()), request.headers(), &id);
    let mut response = next.run(request).instrument(span.clone()).with_context(trace.clone()).await;
    let route = response.extensions().get::<Route>().map_or("other", |route| route.as_str()).to_owned();
    app.metrics.request(method.as_str(), &route, response.status().as_u16(), began.elapsed());
    traces::note_answer(&trace, metrics::known(method.as_str()), &route, response.status());
    let (status, took) = (response.status(), began.elapsed());
    span.in_scope(|| match status.is_server_error() {
        true => tracing::warn!(status = status.as_u16(), ?took, "answered"),
        false => tracing::debug!(status = status.as_u16(), ?took, "answered"),
    });
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The route that answered, as the API names it.
#[derive(Clone)]
enum Route {
    Api(MatchedPath),
    Proxy,
}

impl Route {
    fn as_str(&self) -> &str {
        match self {
            Self::Api(path) => path.as_str(),
            Self::Proxy => "proxy",
        }
    }
}

/// What is meant for a port of a sandbox goes there.
async fn to_port(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_owned())
        .or_else(|| request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).map(str::to_owned));
    match parse_host(host.as_deref().unwrap_or_default(), &app.config.domains) {
        HostMatch::NotOurs => by_path(&app, request, next).await,
        HostMatch::Malformed(reason) => {
            ApiError::invalid(format!("the host names no port of a sandbox: {reason}")).into_response()
        }
        HostMatch::Ours(target) => forward(&app, target, request).await,
    }
}

async fn by_path(app: &App, mut request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    match parse_path(path) {
        PathMatch::NotOurs => next.run(request).await,
        PathMatch::Malformed(reason) => {
            ApiError::invalid(format!("the path names no port of a sandbox: {reason}")).into_response()
        }
        PathMatch::Ours(target, rest) => match rest.parse() {
            Ok(uri) => {
                *request.uri_mut() = uri;
                forward(app, target, request).await
            }
            Err(odd) => ApiError::invalid(format!("the path is none: {odd}")).into_response(),
        },
    }
}

async fn forward(app: &App, target: Target, request: Request) -> Response {
    let mut response = app.proxy.forward(target, request).await;
    response.extensions_mut().insert(Route::Proxy);
    response
}

/// Lets a request in whose key is valid, and notes what was done with it.
async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let about = About::of(&request);
    let mut response = match admit(&app, request.headers(), about.remote).await {
        Ok(caller) => {
            traces::note_caller(&caller);
            request.extensions_mut().insert(caller.clone());
            let response = next.run(request).await;
            about.note(&app, &caller, &response);
            response
        }
        Err(error) => error.into_response(),
    };
    if let Some(route) = route {
        response.extensions_mut().insert(Route::Api(route));
    }
    response
}

async fn admit(app: &App, headers: &HeaderMap, remote: Option<IpAddr>) -> Result<Caller, ApiError> {
    let refused = |message: &str| {
        let error = wrong_key(message);
        match remote.map(|ip| app.wrong_keys.take(ip, Instant::now())) {
            Some(Err(wait)) => too_often("this address shows wrong keys too often", wait),
            Some(Ok(())) | None => error,
        }
    };
    let secret = match shown_secret(headers) {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(wrong_key("this needs a key")),
        Err(error) => return Err(refused(&error.body.message)),
    };
    let Some(caller) = app.keys.caller(&secret).await? else {
        return Err(refused("this key is not valid: it was never made, or was revoked"));
    };
    let taken = app.rates.take(caller.key.id.clone(), Instant::now());
    taken.map_err(|wait| too_often("this key asks too often", wait))?;
    Ok(caller)
}

fn too_often(message: &str, wait: std::time::Duration) -> ApiError {
    ApiError::new(Code::RateLimited, message).remedy("come again a little later").retry_after(wait.as_secs() + 1)
}

/// What the audit has of a request, taken before it is answered.
struct About {
    /// Whether it is noted: looking is not.
    is_noted: bool,
    action: String,
    object: Option<String>,
    request_id: String,
    remote: Option<IpAddr>,
}

impl About {
    fn of(request: &Request) -> Self {
        let extensions = request.extensions();
        let route = extensions.get::<MatchedPath>().map_or("other", MatchedPath::as_str);
        let is_stream = request.headers().contains_key(header::UPGRADE);
        // Of the path only what the route does not say: which sandbox, which snapshot.
        let object = request.uri().path().split('/').nth(3).filter(|_| route.contains('{'));
        Self {
            is_noted: changes(request.method()) || is_stream,
            action: format!("{} {route}", request.method()),
            object: object.map(crate::error::shown),
            request_id: extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
            remote: extensions.get::<ConnectInfo<SocketAddr>>().map(|remote| remote.0.ip()),
        }
    }

    fn note(self, app: &App, caller: &Caller, response: &Response) {
        if !self.is_noted {
            return;
        }
        let outcome = response.extensions().get::<Code>().map_or("ok", |code| code.as_str());
        let entry = NewAuditEntry {
            unix_ms: now_unix_ms(),
            key_id: Some(caller.key.id.clone()),
            tenant: Some(caller.key.tenant.clone()),
            action: self.action,
            object: self.object,
            outcome: outcome.to_owned(),
            request_id: self.request_id,
            remote: self.remote.map(|ip| ip.to_string()),
        };
        app.audit.note(entry, &app.metrics);
    }
}

/// What Prometheus is told: of everything, so it needs a key that may see everything.
async fn prometheus(State(app): State<Arc<App>>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    caller.demand(wrenn_client::types::Scope::Admin)?;
    let host = tokio::time::timeout(limits::HEALTH_LIMIT, app.agent.host()).await.ok().and_then(Result::ok);
    let views = app.world.last_known();
    app.metrics.look(views.iter().map(AsRef::as_ref), host.as_ref());
    let text = app.metrics.text().map_err(|error| ApiError::new(Code::Failed, error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
