//! What the server remembers: keys, the record of what was done, operations, and an index of sandboxes.
//!
//! ```text
//!   keys ─ audit ─ operations ─ sandboxes ─ execs   what is kept, table by table
//!        └──────── Database ────────┘          one pool, and a turn for whoever writes
//!                    │ call                    a connection for a bounded time; row, error: what comes back
//!              sqlx's `Any` driver
//!         SQLite (a file) │ PostgreSQL         named by `url`, brought up to date by `migrate`, copied by `backup`
//! ```
//!
//! Both databases share the statements, the tables and the tests: BIGINT and TEXT alone, `$1` for arguments, and nothing that
//! one of them understands differently.
//!
//! - A call ends within [`limits::CALL`], whatever the database does, and says whether it is just not there
//!   ([`DbError::is_unavailable`]). When it is there again the next call works: nothing is opened anew by hand.
//! - What a write returned `Ok` for survives a crash of the server and of the host.
//! - A SQLite file belongs to one server, and to programs of the same host beside it (`wrenn server key`): its locks do not
//!   work over networks.
//! - Nothing here decides: who may do what, what is too old, and what an operation's end means is the callers' matter. The
//!   agents' files are the truth about sandboxes; here is an index, and why one is gone.

mod audit;
mod backup;
mod call;
mod error;
mod execs;
mod keys;
pub mod limits;
mod migrate;
mod operations;
mod row;
mod sandboxes;
mod url;

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, Connection, Executor, query};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

pub use audit::NewAuditEntry;
pub use error::DbError;
pub use execs::ExecRow;
pub use operations::{Begun, NewOperation, OperationEnd, OperationRow};
pub use sandboxes::SandboxRow;
pub use url::{DatabaseUrl, TlsUrlError, UrlError};

use call::{Call, Start};
use row::bigint;
use url::Backend;

/// The server's database. Clones share one pool.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    pool: AnyPool,
    options: AnyConnectOptions,
    backend: Backend,
    /// SQLite's file, as it was opened.
    file: Option<File>,
    /// One for SQLite, which has one writer at a time.
    turns: Option<Arc<Semaphore>>,
}

impl Database {
    /// Opens a database and brings its tables up to date; a SQLite file is made if there is none.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, DbError> {
        sqlx::any::install_default_drivers();
        let backend = url.backend();
        let file = url.file().map(File::ensure).transpose()?;
        let options = url.options().map_err(|source| DbError::of("name the database", backend, source))?;
        migrate::run(&options, backend).await?;
        let turns = match backend {
            Backend::Sqlite => Some(Arc::new(Semaphore::new(1))),
            Backend::Postgres => None,
        };
        let database = Self { inner: Arc::new(Inner { pool: pool(&options, backend), options, backend, file, turns }) };
        database.check().await?;
        Ok(database)
    }

    /// Reads something from it, to see whether it is there.
    pub async fn check(&self) -> Result<(), DbError> {
        let select = query("SELECT value FROM counters WHERE name = 'audit'");
        self.read("read the database").await?.one("counters", select).await?;
        Ok(())
    }

    /// Whether it is there. Why not is in the log.
    pub async fn is_alive(&self) -> bool {
        match self.check().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database is not well");
                false
            }
        }
    }

    /// Writes all of it into a new file at `path`, while it is used. SQLite alone.
    pub async fn backup(&self, path: &Path) -> Result<(), DbError> {
        match self.inner.backend {
            Backend::Sqlite => {
                self.same_file("make a backup")?;
                backup::run(&self.inner.options, path).await
            }
            Backend::Postgres => Err(DbError::BackupElsewhere),
        }
    }

    /// Ends its connections, and leaves all of a SQLite database in its one file. Calls that come later are told that it is
    /// unavailable.
    pub async fn close(&self) {
        let Inner { pool, options, backend, .. } = &*self.inner;
        let closed = async {
            pool.close().await;
            // It miscounts, and leaves connections open that were on their way back.
            while pool.size() > 0 {
                sleep(limits::CLOSE_PAUSE).await;
                pool.close().await;
            }
            match backend {
                Backend::Sqlite if self.same_file("close the database").is_ok() => fold_in(options).await,
                Backend::Sqlite | Backend::Postgres => Ok(()),
            }
        };
        match timeout(limits::CLOSE, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the database's last changes stay in its -wal file; they are not lost");
            }
            Err(_elapsed) => {
                tracing::warn!("the database's connections have not ended in time; they end with this process")
            }
        }
    }

    async fn read(&self, step: &'static str) -> Result<Call, DbError> {
        self.same_file(step)?;
        let Inner { pool, backend, .. } = &*self.inner;
        Call::start(Start { pool, backend: *backend, turns: None, step }).await
    }

    async fn write(&self, step: &'static str) -> Result<Call, DbError> {
        self.same_file(step)?;
        let Inner { pool, backend, turns, .. } = &*self.inner;
        Call::start(Start { pool, backend: *backend, turns: turns.as_ref(), step }).await
    }

    /// Runs a statement that removes at most `$2` of the rows that `$1` says, until there are no more of them; how many.
    async fn remove(&self, step: &'static str, delete: &str, what: i64) -> Result<u64, DbError> {
        let at_once = limits::TRANSACTION_ROWS as u64;
        let mut removed = 0;
        loop {
            let statement = query(delete).bind(what).bind(bigint(at_once));
            let now = self.write(step).await?.execute(statement).await?;
            removed += now;
            if now < at_once {
                return Ok(removed);
            }
        }
    }

    fn same_file(&self, step: &'static str) -> Result<(), DbError> {
        match &self.inner.file {
            Some(file) if !file.is_there() => Err(DbError::Replaced { step, path: file.path.clone() }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Connections are made when they are needed. What is set here fails only where the connection itself does.
fn pool(options: &AnyConnectOptions, backend: Backend) -> AnyPool {
    let (connections, set) = match backend {
        // Foreign keys are on and each commit is on the disk (synchronous = FULL): these are the driver's and SQLite's defaults.
        Backend::Sqlite => (limits::SQLITE_CONNECTIONS, format!("PRAGMA busy_timeout = {}", limits::LOCK.as_millis())),
        Backend::Postgres => (
            limits::POSTGRES_CONNECTIONS,
            format!(
                "SET statement_timeout = {lock}; SET idle_in_transaction_session_timeout = {call}",
                lock = limits::LOCK.as_millis(),
                call = limits::CALL.as_millis()
            ),
        ),
    };
    let set: Arc<str> = set.into();
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(limits::START)
        .after_connect(move |connection, _meta| {
            let set = Arc::clone(&set);
            Box::pin(async move { connection.execute(&*set).await.map(|_done| ()) })
        })
        .connect_lazy_with(options.clone())
}

/// Has SQLite take the log beside the file into the file. It does so when the last connection ends, but not when the last two
/// end at the same time: this one ends alone, unless another program is there.
async fn fold_in(options: &AnyConnectOptions) -> sqlx::Result<()> {
    let mut connection = AnyConnection::connect_with(options).await?;
    // A connection that has read nothing knows of no log.
    query("SELECT value FROM counters").fetch_all(&mut connection).await?;
    connection.close().await
}

/// A file that must stay the one that it was.
struct File {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl File {
    /// Makes it, for its owner alone, unless it is there.
    fn ensure(path: &Path) -> Result<Self, DbError> {
        let failed = |step| move |source| DbError::File { step, path: path.to_owned(), source };
        // One that is there is not opened: closing it again would give up the locks of a connection of this process.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_made) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make the database's file")(error)),
        }
        let found = fs::metadata(path).map_err(failed("look at the database's file"))?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}
