//! Files of sandboxes: bytes streamed in both directions, and what is in directories.
//!
//! Paths are the guest's, and are passed on as they are: `..` and links are legal there, and mean nothing on the host.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep};
use utoipa::IntoParams;
use wrenn_agent::envd_client::{EntryKind, EnvdClient, StreamedBody};
use wrenn_client::types::{self, FileEntry, FileList, MakeDirRequest, MoveRequest, RemoveRequest, Written};
use wrenn_proto::envd::WHOLE_HEADER;

use super::exec::check_user;
use super::guest_http;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Id, Json, Query, Writer};
use crate::limits;

/// Headers of a download's request that its answer depends on.
const ASKED: [header::HeaderName; 4] =
    [header::RANGE, header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE];
/// Headers of a download's answer.
const TOLD: [header::HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::LAST_MODIFIED,
    header::CONTENT_DISPOSITION,
];

/// Which file.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// Where it is: absolute, `~`, or relative to the user's home.
    #[param(min_length = 1, max_length = 4096)]
    path: String,
    /// On whose behalf; the sandbox's default user if nothing is said.
    #[serde(default)]
    user: Option<String>,
}

fn check(path: &str, user: Option<&str>) -> Result<(), ApiError> {
    if path.is_empty() || path.len() > limits::PATH_BYTES_MAX || path.contains('\0') {
        return Err(ApiError::invalid(format!("a path is 1 to {} bytes, without NUL", limits::PATH_BYTES_MAX)));
    }
    check_user(user)
}

/// Where the guest's agent has the bytes of a file.
fn files_uri(path: &str) -> String {
    format!("/files?path={}", utf8_percent_encode(path, NON_ALPHANUMERIC))
}

fn empty() -> StreamedBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Reads a file.
///
/// Ranges can be asked for: a download that broke off goes on where it was.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/files",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), Which),
    responses(
        (status = 200, description = "Its bytes, with the type that the guest gives them", content_type = "*/*"),
        (status = 206, description = "Some of them, with the type that the guest gives them", content_type = "*/*"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id,
    Query(which): Query<Which>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check(&which.path, which.user.as_deref())?;
    let guest = app.guest(&caller, &id).await?;
    let mut request = http::Request::get(files_uri(&which.path)).header(header::ACCEPT_ENCODING, "identity");
    for name in &ASKED {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(empty()).map_err(|odd| ApiError::invalid(odd.to_string()))?;
    let user = which.user.as_deref();
    let answer = guest.http(request, user, "GET /files", Some(limits::FILE_CALL_LIMIT)).await?;
    let answer = guest_http::accepted(answer).await?;
    let mut response = Response::builder().status(answer.status());
    for name in &TOLD {
        if let Some(value) = answer.headers().get(name) {
            response = response.header(name, value);
        }
    }
    // A guest's page is not to act in the name of whoever looks at it.
    let response =
        response.header(header::X_CONTENT_TYPE_OPTIONS, "nosniff").header(header::CONTENT_SECURITY_POLICY, "sandbox");
    response.body(Body::new(answer.into_body())).map_err(|odd| ApiError::invalid(odd.to_string()))
}

/// Writes a file, and the directories above it.
///
/// The body is its bytes. It appears under its name when it is whole, in place of what was there: a link is followed, and the
/// permissions of a file are kept.
#[utoipa::path(
    put,
    path = "/v1/sandboxes/{id}/files",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), Which),
    request_body(content_type = "application/octet-stream", description = "Its bytes"),
    responses(
        (status = 200, description = "It is there", body = Written),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn write(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Query(which): Query<Which>,
    request: Request,
) -> Result<Answer<Written>, ApiError> {
    check(&which.path, which.user.as_deref())?;
    if names_no_file(&which.path) {
        return Err(ApiError::invalid("the path names no file"));
    }
    let guest = app.guest(&caller, &id).await?;
    // In a task of its own: an upload that has arrived is finished also when its client hangs up.
    let writing = tokio::spawn(send(guest, which, request.into_body()));
    let written = writing.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))?;
    Ok(Answer(written))
}

fn names_no_file(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_folder, name)| name);
    matches!(name, "" | "." | ".." | "~")
}

/// Sends the bytes. That the file appears when it is whole, and that nothing stays of one that is not, is seen to by the guest's
/// agent: it is there also when this server is not any more.
async fn send(guest: EnvdClient, which: Which, body: Body) -> Result<Written, ApiError> {
    let sent = Arc::new(Sent::default());
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(files_uri(&which.path))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(WHOLE_HEADER, "true")
        .body(Watched::new(body, Arc::clone(&sent)).boxed_unsync())
        .map_err(|odd| ApiError::invalid(odd.to_string()))?;
    let answer = guest.http(request, which.user.as_deref(), "POST /files", None).await;
    if sent.stalled.load(Ordering::Relaxed) {
        let seconds = limits::STALL_MAX.as_secs();
        return Err(ApiError::invalid(format!("the body did not arrive: nothing came for {seconds} s")));
    }
    guest_http::accepted(answer?).await?;
    Ok(Written { path: which.path, size: sent.bytes.load(Ordering::Relaxed) })
}

/// What became of an upload's body.
#[derive(Default)]
struct Sent {
    bytes: AtomicU64,
    stalled: AtomicBool,
}

/// A body that is counted, and given up when its client sends nothing for too long. A guest that does not take it is not the
/// client's fault.
struct Watched {
    body: Body,
    sent: Arc<Sent>,
    silence: Pin<Box<Sleep>>,
    is_silent: bool,
}

impl Watched {
    fn new(body: Body, sent: Arc<Sent>) -> Self {
        Self { body, sent, silence: Box::pin(sleep(limits::STALL_MAX)), is_silent: false }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.is_silent = false;
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            self.sent.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !self.is_silent {
            self.is_silent = true;
            self.silence.as_mut().reset(Instant::now() + limits::STALL_MAX);
        }
        self.silence.as_mut().poll(cx).map(|()| {
            self.sent.stalled.store(true, Ordering::Relaxed);
            Some(Err("the client sends nothing".into()))
        })
    }
}

/// Which directory.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Directory {
    /// Where it is; the user's home if nothing is said.
    #[serde(default)]
    #[param(max_length = 4096)]
    path: Option<String>,
    /// On whose behalf; the sandbox's default user if nothing is said.
    #[serde(default)]
    user: Option<String>,
    /// How deep: 1 is what is in it.
    #[serde(default)]
    #[param(minimum = 1, maximum = 32)]
    depth: Option<u32>,
}

/// Lists what is in a directory.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/files/list",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), Directory),
    responses(
        (status = 200, description = "Its entries", body = FileList),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id,
    Query(directory): Query<Directory>,
) -> Result<Answer<FileList>, ApiError> {
    let (path, user) = (directory.path.as_deref().unwrap_or("~"), directory.user.as_deref());
    check(path, user)?;
    let depth = directory.depth.unwrap_or(1);
    if !(1..=32).contains(&depth) {
        return Err(ApiError::invalid("`depth` is 1 to 32"));
    }
    let entries = app.guest(&caller, &id).await?.list_dir(path, depth, user).await?;
    if entries.len() > limits::ENTRIES_MAX {
        let message = format!("there are {} entries, more than {}", entries.len(), limits::ENTRIES_MAX);
        return Err(ApiError::invalid(message).remedy("ask for less depth, or list it with a command"));
    }
    Ok(Answer(FileList { entries: entries.into_iter().map(entry).collect() }))
}

fn entry(entry: wrenn_agent::envd_client::Entry) -> FileEntry {
    FileEntry {
        name: entry.name,
        path: entry.path,
        kind: match entry.kind {
            EntryKind::File => types::EntryKind::File,
            EntryKind::Directory => types::EntryKind::Directory,
            EntryKind::Other => types::EntryKind::Other,
        },
        size: entry.size,
        mode: entry.mode,
        permissions: entry.permissions,
        owner: entry.owner,
        group: entry.group,
        modified_unix_ms: entry.modified_unix_ms,
        symlink_target: entry.symlink_target,
    }
}

/// Makes a directory, and those above it.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/mkdir",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    request_body = MakeDirRequest,
    responses(
        (status = 204, description = "It is there"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn make_dir(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<MakeDirRequest>,
) -> Result<StatusCode, ApiError> {
    check(&request.path, request.user.as_deref())?;
    app.guest(&caller, &id).await?.make_dir(&request.path, request.user.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves or renames.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/move",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    request_body = MoveRequest,
    responses(
        (status = 204, description = "It is there"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn rename(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<MoveRequest>,
) -> Result<StatusCode, ApiError> {
    let user = request.user.as_deref();
    check(&request.from, user)?;
    check(&request.to, user)?;
    app.guest(&caller, &id).await?.rename(&request.from, &request.to, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a file or a directory with all that is in it. Nothing there is success.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/remove",
    tag = "files",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    request_body = RemoveRequest,
    responses(
        (status = 204, description = "It is gone"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Json(request): Json<RemoveRequest>,
) -> Result<StatusCode, ApiError> {
    check(&request.path, request.user.as_deref())?;
    app.guest(&caller, &id).await?.remove(&request.path, request.user.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_name() {
        for none in ["/", "/a/", ".", "a/..", "~"] {
            assert!(names_no_file(none), "{none}");
        }
        for some in ["/a/b", "c", "~/c", "../c", "..."] {
            assert!(!names_no_file(some), "{some}");
        }
    }

    #[test]
    fn paths_are_passed_on_whole() {
        assert_eq!(files_uri("/a b/../ä?&=#%"), "/files?path=%2Fa%20b%2F%2E%2E%2F%C3%A4%3F%26%3D%23%25");
        assert!(check("", None).is_err() && check("a\0b", None).is_err() && check("/a", Some("a:b")).is_err());
    }
}
