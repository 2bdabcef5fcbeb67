//! Why a call to the database gave no result, told apart by what helps.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::migrate::MigrateError;

use super::url::Backend;

/// Why a call to the database gave no result.
///
/// After a write that ended with [`DbError::TimedOut`] nobody knows whether it was done.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// It is not there, it is locked, or it ends just now. Later it may work again.
    #[error("cannot {step}: the database is not available")]
    Unavailable {
        /// What was tried.
        step: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// It is not who it should be, or it has no TLS. Later it may be.
    #[error(
        "cannot {step}: there is no TLS connection to the database; with sslmode=verify-full its certificate has to be of the host \
         that the URL names, valid now, and signed by an authority of this system's or in the file that sslrootcert names"
    )]
    Untrusted {
        /// What was tried.
        step: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// It did not answer in time. Later it may work again.
    #[error("cannot {step}: the database has not answered within {} s; is it locked, stopped or overloaded?", after.as_secs_f32())]
    TimedOut {
        /// What was tried.
        step: &'static str,
        /// The time it had.
        after: Duration,
    },
    /// What is at the path now is not the file that was opened: writing to that one would be writing into nowhere.
    #[error(
        "cannot {step}: {} is not the file any more that was opened; put it back, or restart the server to use what is there now",
        path.display()
    )]
    Replaced {
        /// What was tried.
        step: &'static str,
        /// Where the file was.
        path: PathBuf,
    },
    /// Its disk is full.
    #[error("cannot {step}: the database's disk is full; make room on it")]
    Full {
        /// What was tried.
        step: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// It is damaged, or no database at all.
    #[error("cannot {step}: the database is damaged, or no database of ours at all; restore a backup")]
    Corrupt {
        /// What was tried.
        step: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// It has a row with something in it that this version cannot read.
    #[error("the database has a row in `{table}` whose `{column}` makes no sense to this version")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refused the statement.
    #[error("cannot {step}: the database refuses the statement")]
    Query {
        /// What was tried.
        step: &'static str,
        /// What the driver says.
        #[source]
        source: sqlx::Error,
    },
    /// Its tables could not be made or brought up to date.
    #[error("cannot bring the database's tables up to date")]
    Migration {
        /// What went wrong.
        #[source]
        source: MigrateError,
    },
    /// A newer version has worked with it.
    #[error(
        "the database was used by a newer version of Wrenn (its tables are of step {version}, this version knows {known}); \
         run that version, or restore a backup from before it"
    )]
    Newer {
        /// The step that this version does not know.
        version: i64,
        /// The last one that it does.
        known: i64,
    },
    /// A file could not be made, written or named.
    #[error("cannot {step} {}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is a file where a backup was to be.
    #[error("{} exists; name a file for the backup that does not", path.display())]
    BackupExists {
        /// Where.
        path: PathBuf,
    },
    /// A backup of what others back up.
    #[error("a PostgreSQL database is not backed up by Wrenn; use pg_dump")]
    BackupElsewhere,
}

impl DbError {
    /// Whether the database is just not there now, and the same call may work later.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Untrusted { .. } | Self::TimedOut { .. } | Self::Replaced { .. } => true,
            Self::Full { .. }
            | Self::Corrupt { .. }
            | Self::Unreadable { .. }
            | Self::Query { .. }
            | Self::Migration { .. }
            | Self::Newer { .. }
            | Self::File { .. }
            | Self::BackupExists { .. }
            | Self::BackupElsewhere => false,
        }
    }

    /// What the driver's error is to us.
    pub(super) fn of(step: &'static str, backend: Backend, source: sqlx::Error) -> Self {
        match kind(backend, &source) {
            Kind::Unavailable => Self::Unavailable { step, source },
            Kind::Untrusted => Self::Untrusted { step, source },
            Kind::Full => Self::Full { step, source },
            Kind::Corrupt => Self::Corrupt { step, source },
            Kind::Query => Self::Query { step, source },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Untrusted,
    Full,
    Corrupt,
    Query,
}

fn kind(backend: Backend, error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Database(error) => match (backend, error.code()) {
            (Backend::Sqlite, Some(code)) => sqlite_kind(&code),
            (Backend::Postgres, Some(code)) => postgres_kind(&code),
            (Backend::Sqlite | Backend::Postgres, None) => Kind::Query,
        },
        sqlx::Error::Tls(_) => Kind::Untrusted,
        // What TLS itself finds wrong comes as such.
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => Kind::Untrusted,
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Kind::Unavailable,
        // Not ours, and open: what is left are slips in statements and their arguments.
        _ => Kind::Query,
    }
}

/// By the primary result code, which is the lower byte of the extended one (sqlite.org/rescode.html).
fn sqlite_kind(code: &str) -> Kind {
    match code.parse::<i32>().map(|code| code & 0xff) {
        // BUSY, LOCKED, READONLY, IOERR, CANTOPEN, PROTOCOL (a race for a lock that was lost too often)
        Ok(5 | 6 | 8 | 10 | 14 | 15) => Kind::Unavailable,
        Ok(13) => Kind::Full,
        // CORRUPT, NOTADB
        Ok(11 | 26) => Kind::Corrupt,
        Ok(_) | Err(_) => Kind::Query,
    }
}

/// By SQLSTATE (PostgreSQL manual, appendix A).
fn postgres_kind(code: &str) -> Kind {
    match code {
        "53100" => Kind::Full,
        "XX001" | "XX002" => Kind::Corrupt,
        // No such database, a standby that only reads, a lock that was not to be had, victims of others' transactions.
        "3D000" | "25006" | "55P03" | "40001" | "40P01" => Kind::Unavailable,
        _ => match code.get(..2) {
            // Connection, authorization, resources, an operator's or a timeout's intervention, the system below.
            Some("08" | "28" | "53" | "57" | "58") => Kind::Unavailable,
            Some(_) | None => Kind::Query,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart_by_what_helps() {
        for (code, kind) in [
            ("5", Kind::Unavailable),
            ("261", Kind::Unavailable),
            ("13", Kind::Full),
            ("26", Kind::Corrupt),
            ("267", Kind::Corrupt),
            ("2067", Kind::Query),
            ("?", Kind::Query),
        ] {
            assert_eq!(sqlite_kind(code), kind, "{code}");
        }
        for (code, kind) in [
            ("57014", Kind::Unavailable),
            ("57P01", Kind::Unavailable),
            ("53300", Kind::Unavailable),
            ("53100", Kind::Full),
            ("XX001", Kind::Corrupt),
            ("23505", Kind::Query),
            ("", Kind::Query),
        ] {
            assert_eq!(postgres_kind(code), kind, "{code}");
        }
    }
}
