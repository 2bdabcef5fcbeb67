//! The tables, brought up to date when a database is opened.
//!
//! Steps are the files in `migrations/`, in the binary. A step that was once released is never changed: what was applied is
//! recorded in the database with its checksum. A database that has had a step which this version does not know is refused.

use sqlx::AnyConnection;
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection, query};
use tokio::time::{sleep, timeout};

use super::error::DbError;
use super::limits;
use super::url::Backend;

/// Number, name and text of each step.
const STEPS: [(i64, &str, &str); 1] = [(1, "first", include_str!("../../migrations/0001_first.sql"))];

const STEP: &str = "open the database";

/// Brings the tables up to date, over a connection of its own. It may be done by several at once.
pub(super) async fn run(options: &AnyConnectOptions, backend: Backend) -> Result<(), DbError> {
    let attempts = async {
        for _ in 1..limits::OPEN_ATTEMPTS {
            match once(options, backend).await {
                Err(
                    DbError::Unavailable { .. }
                    | DbError::Untrusted { .. }
                    | DbError::Query { .. }
                    | DbError::Migration { .. },
                ) => {
                    sleep(limits::OPEN_PAUSE).await;
                }
                done => return done,
            }
        }
        once(options, backend).await
    };
    match timeout(limits::OPEN, attempts).await {
        Ok(done) => done,
        Err(_elapsed) => Err(DbError::TimedOut { step: STEP, after: limits::OPEN }),
    }
}

async fn once(options: &AnyConnectOptions, backend: Backend) -> Result<(), DbError> {
    let failed = |source| DbError::of(STEP, backend, source);
    let mut connection = AnyConnection::connect_with(options).await.map_err(failed)?;
    if backend == Backend::Sqlite {
        // Readers then go on beside the one that writes. It is kept in the file.
        query("PRAGMA journal_mode = WAL").fetch_all(&mut connection).await.map_err(failed)?;
    }
    migrator().run_direct(&mut connection).await.map_err(|error| migration_failed(backend, error))?;
    connection.close().await.map_err(failed)
}

fn migrator() -> Migrator {
    let step = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into(), false)
    };
    Migrator { migrations: STEPS.into_iter().map(step).collect(), ..Migrator::DEFAULT }
}

fn migration_failed(backend: Backend, error: MigrateError) -> DbError {
    match error {
        MigrateError::VersionMissing(version) => DbError::Newer { version, known: STEPS[STEPS.len() - 1].0 },
        MigrateError::Execute(source) => DbError::of(STEP, backend, source),
        source => DbError::Migration { source },
    }
}
