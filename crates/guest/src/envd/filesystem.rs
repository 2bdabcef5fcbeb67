//! The `filesystem.Filesystem` service: who asks, for which path, and what the answer is called on the wire.
//!
//! [`operations`] does the work, blocking, on a thread of its own. Such a thread is not stopped when the client hangs up,
//! so whatever was begun is finished. Watching directories is not here yet; those calls say so.

mod copy;
pub mod operations;
mod removal;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use connectrpc::ServiceStream;
use connectrpc::{ConnectError, Encodable, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult};
use tokio::sync::Semaphore;
use wrenn_proto::envd::filesystem as wire;

use self::operations::FsError;
use super::auth;
use super::entry::{Entry, Kind};
use super::files_limits as limits;
use super::paths::{self, PathError};
use super::state::State;
use super::users::{Accounts, User, UserError};

/// The service, as one guest has it.
pub struct FilesystemService {
    state: Arc<State>,
    /// Permits of listings, the only answers that take much memory.
    listings: Arc<Semaphore>,
}

/// Why a call is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl Refusal {
    fn code(&self) -> ErrorCode {
        match self {
            Self::User(UserError::Unknown(_)) => ErrorCode::Unauthenticated,
            Self::User(UserError::Read { .. }) => ErrorCode::Internal,
            Self::Path(_) => ErrorCode::InvalidArgument,
            Self::Fs(error) => fs_code(error),
        }
    }
}

fn fs_code(error: &FsError) -> ErrorCode {
    match error {
        FsError::NotFound(_) => ErrorCode::NotFound,
        FsError::NotADirectory(_) | FsError::Root | FsError::Unmovable { .. } => ErrorCode::InvalidArgument,
        FsError::AlreadyExists(_) => ErrorCode::AlreadyExists,
        FsError::TooMuch(_) => ErrorCode::ResourceExhausted,
        FsError::Refilled(_) => ErrorCode::Aborted,
        FsError::TooDeep(_) | FsError::Socket(_) => ErrorCode::FailedPrecondition,
        FsError::CopyLeft { source, .. } => fs_code(source),
        FsError::Io { .. } if error.is_no_space() => ErrorCode::ResourceExhausted,
        FsError::Io { source, .. } => io_code(source),
    }
}

fn io_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorCode::PermissionDenied,
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => ErrorCode::InvalidArgument,
        io::ErrorKind::ResourceBusy => ErrorCode::FailedPrecondition,
        // ELOOP has no stable kind.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => ErrorCode::InvalidArgument,
        _ => ErrorCode::Internal,
    }
}

impl From<Refusal> for ConnectError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), super::files::with_causes(&refusal))
    }
}

/// Whoever asks, and what is needed to answer.
struct Caller {
    user: User,
    accounts: Accounts,
    default_workdir: Option<PathBuf>,
}

impl Caller {
    fn resolve(&self, path: &str) -> Result<PathBuf, PathError> {
        paths::resolve(path, &self.user.home, self.default_workdir.as_deref())
    }

    /// Describes what an operation left at `path`.
    fn describe(&self, path: &Path) -> Result<wire::EntryInfo, Refusal> {
        Ok(entry_info(operations::stat(path, &self.accounts)?))
    }
}

impl FilesystemService {
    /// The service for the guest of this state.
    pub fn new(state: Arc<State>) -> Self {
        Self { state, listings: Arc::new(Semaphore::new(limits::LISTINGS_AT_ONCE_MAX)) }
    }

    /// Does some work for whoever asks, on a thread where it may block.
    async fn run<T: Send + 'static>(
        &self,
        context: &RequestContext,
        work: impl FnOnce(&Caller) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, ConnectError> {
        let settings = self.state.settings();
        let name = auth::requested_user(context.headers()).unwrap_or(settings.default_user);
        let work = move || {
            let accounts = Accounts::load()?;
            let user = accounts.user(&name)?;
            work(&Caller { user, accounts, default_workdir: settings.default_workdir })
        };
        let done = tokio::task::spawn_blocking(work).await;
        Ok(done.map_err(|panic| ConnectError::internal(format!("the call ended by a panic: {panic}")))??)
    }
}

impl wire::Filesystem for FilesystemService {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<impl Encodable<wire::StatResponse> + Send + use<'a>> {
        let path = request.path.to_owned();
        let entry = self.run(&context, move |caller| caller.describe(&caller.resolve(&path)?)).await?;
        Response::ok(wire::StatResponse { entry: entry.into() })
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::MakeDirResponse> + Send + use<'a>> {
        let path = request.path.to_owned();
        let make = move |caller: &Caller| {
            let path = caller.resolve(&path)?;
            operations::make_dir(&path, &caller.user)?;
            caller.describe(&path)
        };
        let entry = self.run(&context, make).await?;
        Response::ok(wire::MakeDirResponse { entry: entry.into() })
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::MoveResponse> + Send + use<'a>> {
        let (source, destination) = (request.source.to_owned(), request.destination.to_owned());
        let rename = move |caller: &Caller| {
            let (from, to) = (caller.resolve(&source)?, caller.resolve(&destination)?);
            operations::rename(&from, &to, &caller.user)?;
            caller.describe(&to)
        };
        let entry = self.run(&context, rename).await?;
        Response::ok(wire::MoveResponse { entry: entry.into() })
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListDirResponse> + Send + use<'a>> {
        let (path, depth) = (request.path.to_owned(), request.depth);
        let permit = Arc::clone(&self.listings).acquire_owned().await;
        let permit = permit.map_err(|closed| ConnectError::internal(closed.to_string()))?;
        let list = move |caller: &Caller| {
            let _permit = permit;
            let entries = operations::list(&caller.resolve(&path)?, depth, &caller.accounts)?;
            Ok(entries.into_iter().map(entry_info).collect())
        };
        let entries = self.run(&context, list).await?;
        Response::ok(wire::ListDirResponse { entries })
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveResponse> + Send + use<'a>> {
        let path = request.path.to_owned();
        self.run(&context, move |caller| Ok(operations::remove(&caller.resolve(&path)?)?)).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchDirResponse> + Send + use<>>> {
        Err::<Response<ServiceStream<wire::WatchDirResponse>>, _>(no_watching())
    }

    async fn create_watcher<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::CreateWatcherResponse> + Send + use<'a>> {
        Err::<Response<wire::CreateWatcherResponse>, _>(no_watching())
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetWatcherEventsResponse> + Send + use<'a>> {
        Err::<Response<wire::GetWatcherEventsResponse>, _>(no_watching())
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveWatcherResponse> + Send + use<'a>> {
        Err::<Response<wire::RemoveWatcherResponse>, _>(no_watching())
    }
}

fn no_watching() -> ConnectError {
    ConnectError::unimplemented("this version of envd cannot watch directories; list them instead")
}

/// An entry in the words of the wire.
fn entry_info(entry: Entry) -> wire::EntryInfo {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut info = wire::EntryInfo {
        r#type: file_type(entry.kind).into(),
        path: text(&entry.path),
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        mode: entry.mode,
        symlink_target: entry.symlink_target.as_deref().map(text),
        is_symlink: entry.is_symlink,
        name: entry.name,
        permissions: entry.permissions,
        owner: entry.owner,
        group: entry.group,
        metadata: entry.metadata.into_iter().collect(),
        ..Default::default()
    };
    let modified = info.modified_time.get_or_insert_default();
    (modified.seconds, modified.nanos) = unix_time(entry.modified);
    info
}

fn file_type(kind: Kind) -> wire::FileType {
    match kind {
        Kind::File => wire::FileType::FILE_TYPE_FILE,
        Kind::Directory => wire::FileType::FILE_TYPE_DIRECTORY,
        Kind::Other => wire::FileType::FILE_TYPE_UNSPECIFIED,
    }
}

/// Seconds since 1970 rounded down, and the nanoseconds after them.
fn unix_time(time: SystemTime) -> (i64, i32) {
    let (seconds, nanos) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (i128::from(since.as_secs()), since.subsec_nanos()),
        Err(before) => match (before.duration().as_secs(), before.duration().subsec_nanos()) {
            (seconds, 0) => (-i128::from(seconds), 0),
            (seconds, nanos) => (-i128::from(seconds) - 1, 1_000_000_000 - nanos),
        },
    };
    (i64::try_from(seconds).unwrap_or(i64::MIN), nanos.cast_signed())
}
