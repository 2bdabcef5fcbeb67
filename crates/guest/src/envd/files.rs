//! `/files`: the bytes of files over plain HTTP, streamed in both directions.
//!
//! This module decides who may ask and what the answer is; [`download`] and [`upload`] move the bytes, [`headers`] and
//! [`multipart`] read the wire. Who is asked for is settled in this order: access token or signature, user, path; then
//! the file itself. An upload belongs to a task of its own, so that one that has arrived is finished even if the client
//! does not wait for the answer.

mod download;
mod headers;
mod multipart;
mod upload;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::BodyDataStream;
use axum::extract::{Request, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt as _;
use serde::Serialize;
use wrenn_proto::envd::WHOLE_HEADER;

use self::download::DownloadError;
use self::headers::{MetadataError, Query};
use self::multipart::Parser;
use self::upload::{Form, Plan, Upload, UploadError};
use super::auth::{self, Access};
use super::files_limits as limits;
use super::filesystem::operations::FsError;
use super::paths::{self, PathError};
use super::signature::{self, Claim, Operation, SignatureError};
use super::state::State;
use super::users::{Accounts, User, UserError};

/// Why a request to `/files` is refused.
#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error("a valid X-Access-Token header, or a signed URL, is required")]
    Token,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("the query is longer than {} bytes", limits::QUERY_BYTES_MAX)]
    Query,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("unsupported Content-Type '{0}': send multipart/form-data or application/octet-stream")]
    ContentType(String),
    #[error("unsupported Content-Encoding '{0}': send identity or gzip")]
    ContentEncoding(String),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error("the request ended by a panic")]
    Panic(#[from] tokio::task::JoinError),
}

impl FilesError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Token | Self::Signature(_) | Self::User(UserError::Unknown(_)) => StatusCode::UNAUTHORIZED,
            Self::Path(_) | Self::Query | Self::Metadata(_) | Self::ContentType(_) | Self::ContentEncoding(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Download(error) => download_status(error),
            Self::Upload(error) => upload_status(error),
            Self::User(UserError::Read { .. }) | Self::Panic(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

fn download_status(error: &DownloadError) -> StatusCode {
    match error {
        DownloadError::NotFound(_) => StatusCode::NOT_FOUND,
        DownloadError::Directory(_) | DownloadError::NotRegular(_) => StatusCode::BAD_REQUEST,
        DownloadError::Encoding => StatusCode::NOT_ACCEPTABLE,
        DownloadError::Read { source, .. } => io_status(source),
    }
}

/// What the kernel refuses because of the path itself is the client's fault.
fn io_status(error: &io::Error) -> StatusCode {
    // ELOOP has no stable kind.
    let is_loop = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    if is_loop || error.kind() == io::ErrorKind::InvalidFilename {
        return StatusCode::BAD_REQUEST;
    }
    StatusCode::INTERNAL_SERVER_ERROR
}

fn upload_status(error: &UploadError) -> StatusCode {
    match error {
        UploadError::Directory(_)
        | UploadError::NotRegular(_)
        | UploadError::Duplicate(_)
        | UploadError::NoName
        | UploadError::NoFile
        | UploadError::TooManyFiles
        | UploadError::Path(_)
        | UploadError::Multipart(_)
        | UploadError::Gzip(_)
        | UploadError::Body(_) => StatusCode::BAD_REQUEST,
        UploadError::Stalled => StatusCode::REQUEST_TIMEOUT,
        UploadError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        UploadError::Parents(error) if error.is_no_space() => StatusCode::INSUFFICIENT_STORAGE,
        UploadError::Write { source, .. } | UploadError::Parents(FsError::Io { source, .. }) => io_status(source),
        UploadError::Parents(_) | UploadError::NoMetadata(_) | UploadError::Panic(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// What an error looks like on the wire.
#[derive(Serialize)]
struct ErrorBody {
    code: u16,
    message: String,
}

impl IntoResponse for FilesError {
    fn into_response(self) -> Response {
        let status = self.status();
        json(status, &ErrorBody { code: status.as_u16(), message: with_causes(&self) })
    }
}

/// An error and what caused it, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], text).into_response(),
        // Texts alone cannot fail to be written; if they did, the status says the most of it.
        Err(_) => status.into_response(),
    }
}

/// The routes of `/files`.
pub fn routes(state: Arc<State>) -> Router {
    Router::new().route("/files", get(get_file).post(post_files)).with_state(state)
}

async fn get_file(Shared(state): Shared<Arc<State>>, uri: Uri, request: HeaderMap) -> Result<Response, FilesError> {
    let query = checked_query(&state, &uri, &request, Operation::Read)?;
    let opened = blocking(move || {
        let user = user(&state, &query)?;
        let path = query.path.as_deref().unwrap_or_default();
        Ok(download::open(&resolve(path, &user, &state)?)?)
    })
    .await?;
    Ok(download::respond(opened, &request)?)
}

async fn post_files(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, FilesError> {
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    tokio::spawn(async move {
        let written = receive(state, parts, &mut body).await;
        if written.is_err() {
            read_to_waste(&mut body).await;
        }
        written
    })
    .await?
}

async fn receive(state: Arc<State>, parts: Parts, body: &mut BodyDataStream) -> Result<Response, FilesError> {
    let query = checked_query(&state, &parts.uri, &parts.headers, Operation::Write)?;
    let form = form(&parts.headers)?;
    let gzip = is_gzip(&parts.headers)?;
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let metadata = headers::metadata(headers)?;
    let size = if gzip { None } else { content_length(&parts.headers) };
    let whole = parts.headers.contains_key(WHOLE_HEADER);

    let answered: BTreeMap<String, String> = metadata.iter().cloned().collect();
    let upload = blocking(move || {
        let owner = user(&state, &query)?;
        let target = query.path.as_deref().filter(|path| !path.is_empty());
        let target = target.map(|path| resolve(path, &owner, &state)).transpose()?;
        Ok(Upload::begin(Plan { owner, target, metadata, size, whole }, form, gzip)?)
    })
    .await?;
    let paths = upload::receive(upload, body).await?;
    Ok(json(StatusCode::OK, &paths.iter().map(|path| Written::new(path, &answered)).collect::<Vec<_>>()))
}

/// What the answer says of one file.
#[derive(Serialize)]
struct Written<'a> {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
}

impl<'a> Written<'a> {
    fn new(path: &Path, metadata: &'a BTreeMap<String, String>) -> Self {
        let name = paths::name(path).to_string_lossy().into_owned();
        Self { path: path.to_string_lossy().into_owned(), name, r#type: "file", metadata }
    }
}

/// The query of a request that may be answered: with the access token, or signed with it.
fn checked_query(state: &State, uri: &Uri, request: &HeaderMap, operation: Operation) -> Result<Query, FilesError> {
    let text = uri.query().unwrap_or_default();
    if text.len() > limits::QUERY_BYTES_MAX {
        return Err(FilesError::Query);
    }
    let query = headers::query(text);
    let token = state.token().ok_or(FilesError::Token)?;
    match auth::access(request, Some(&token)) {
        Access::Granted => return Ok(query),
        Access::Wrong => return Err(FilesError::Token),
        Access::Missing => {}
    }
    let claim = Claim {
        path: query.path.as_deref().unwrap_or_default(),
        user: query.username.as_deref().unwrap_or_default(),
        signature: query.signature.as_deref(),
        expiration: query.signature_expiration.as_deref(),
    };
    signature::check(&claim, operation, &token, unix_seconds())?;
    Ok(query)
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The user that the query names, or the default one.
fn user(state: &State, query: &Query) -> Result<User, UserError> {
    let named = query.username.as_deref().filter(|name| !name.is_empty());
    let name = named.map_or_else(|| state.settings().default_user, |name| String::from_utf8_lossy(name).into_owned());
    Accounts::load()?.user(&name)
}

fn resolve(path: &[u8], user: &User, state: &State) -> Result<PathBuf, PathError> {
    paths::resolve(OsStr::from_bytes(path), &user.home, state.settings().default_workdir.as_deref())
}

fn form(request: &HeaderMap) -> Result<Form, FilesError> {
    let content_type = request.get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"multipart/form-data") {
        return Ok(Form::Multipart(Parser::new(content_type).map_err(UploadError::from)?));
    }
    if essence.eq_ignore_ascii_case(b"application/octet-stream") {
        return Ok(Form::Whole);
    }
    Err(FilesError::ContentType(String::from_utf8_lossy(essence).into_owned()))
}

fn is_gzip(request: &HeaderMap) -> Result<bool, FilesError> {
    let value = request.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()).unwrap_or_default();
    match value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(false),
        b"gzip" => Ok(true),
        other => Err(FilesError::ContentEncoding(String::from_utf8_lossy(other).into_owned())),
    }
}

fn content_length(request: &HeaderMap) -> Option<u64> {
    request.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads some more of a refused upload: a connection closed with unread data is reset, and then the client would see that
/// instead of the answer.
async fn read_to_waste(body: &mut BodyDataStream) {
    let waste = async {
        let mut left = limits::REFUSED_BODY_BYTES_MAX;
        while let Some(Ok(chunk)) = body.next().await {
            left = left.saturating_sub(chunk.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    let time = Duration::from_secs(limits::REFUSED_BODY_SECONDS_MAX);
    // Whether it was all of the body changes nothing.
    tokio::time::timeout(time, waste).await.unwrap_or_default();
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    tokio::task::spawn_blocking(work).await?
}
