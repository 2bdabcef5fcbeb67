//! A copy of the database while it is used.

use std::io;
use std::path::Path;

use sqlx::AnyConnection;
use sqlx::any::AnyConnectOptions;
use sqlx::{Connection, query};
use tokio::time::timeout;

use super::error::DbError;
use super::limits;
use super::url::Backend;

const STEP: &str = "make a backup";

/// Writes all of a SQLite database into a new file at `path`, as it is at one moment. The file has its name when it is
/// complete and on the disk; writers are not held up.
pub(super) async fn run(options: &AnyConnectOptions, path: &Path) -> Result<(), DbError> {
    let path = &std::path::absolute(path).map_err(|source| file("find", path, source))?;
    let failed = |step| move |source| file(step, path, source);
    if path.try_exists().map_err(failed("look for"))? {
        return Err(DbError::BackupExists { path: path.clone() });
    }
    let folder = path.parent().ok_or_else(|| failed("name a file")(io::ErrorKind::InvalidInput.into()))?;
    // For its owner alone, from the beginning.
    let part = tempfile::Builder::new().prefix(".wrenn-backup-").suffix(".part").tempfile_in(folder);
    let part = part.map_err(failed("make a file beside"))?;
    copy(options, part.path()).await?;
    part.as_file().sync_all().map_err(failed("write"))?;
    match part.persist_noclobber(path) {
        Ok(_file) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(DbError::BackupExists { path: path.clone() });
        }
        Err(error) => return Err(failed("give a name to")(error.error)),
    }
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("write the folder of"))
}

async fn copy(options: &AnyConnectOptions, into: &Path) -> Result<(), DbError> {
    let failed = |source| DbError::of(STEP, Backend::Sqlite, source);
    let no_text = || file("use the name (it is no UTF-8) of", into, io::ErrorKind::InvalidFilename.into());
    let into = into.to_str().ok_or_else(no_text)?;
    let copied = async {
        let mut connection = AnyConnection::connect_with(options).await.map_err(failed)?;
        query("VACUUM INTO $1").bind(into).execute(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    };
    match timeout(limits::BACKUP, copied).await {
        Ok(done) => done,
        Err(_elapsed) => Err(DbError::TimedOut { step: STEP, after: limits::BACKUP }),
    }
}

fn file(step: &'static str, path: &Path, source: io::Error) -> DbError {
    DbError::File { step, path: path.to_owned(), source }
}
