//! One call to the database: a connection for a bounded time.
//!
//! Everything that a call waits for ends at its deadline: its turn (SQLite has one writer at a time, and a queue is fair
//! where waiting for its lock is not), a connection, an answer. A connection that was left in the middle of something, by
//! the deadline, by an error or because nobody waits any more, is not used again: dropping it ends its transaction, and the
//! pool makes another one. The database's own limit for a lock ends before the deadline: what waited for one in vain is not
//! done later. So no call inherits another's trouble, and a database that comes back is found by itself.

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::AnyArguments;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::DbError;
use super::limits;
use super::row::Row;
use super::url::Backend;

/// A statement with its arguments.
pub(super) type Statement<'q> = Query<'q, Any, AnyArguments<'q>>;

/// What a call to be made needs.
pub(super) struct Start<'a> {
    pub(super) pool: &'a AnyPool,
    pub(super) backend: Backend,
    /// Whoever writes waits here first; nobody, where the database has many writers.
    pub(super) turns: Option<&'a Arc<Semaphore>>,
    /// What is done, as in "cannot …".
    pub(super) step: &'static str,
}

/// A connection for a bounded time.
pub(super) struct Call {
    /// There until the end.
    connection: Option<PoolConnection<Any>>,
    _turn: Option<OwnedSemaphorePermit>,
    backend: Backend,
    step: &'static str,
    deadline: Instant,
    /// A statement is under way, or the connection failed in one.
    busy: bool,
    in_transaction: bool,
}

impl Call {
    pub(super) async fn start(start: Start<'_>) -> Result<Self, DbError> {
        let Start { pool, backend, turns, step } = start;
        let begun = Instant::now();
        let ready = async {
            let turn = match turns {
                Some(turns) => Some(turns.clone().acquire_owned().await.map_err(|_closed| sqlx::Error::PoolClosed)?),
                None => None,
            };
            Ok((turn, pool.acquire().await?))
        };
        match timeout_at(begun + limits::START, ready).await {
            Ok(Ok((turn, connection))) => {
                let (connection, deadline) = (Some(connection), begun + limits::CALL);
                Ok(Self { connection, _turn: turn, backend, step, deadline, busy: false, in_transaction: false })
            }
            Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(timed_out(step, limits::START)),
            Ok(Err(source)) => Err(DbError::of(step, backend, source)),
        }
    }

    /// Begins a transaction that is undone unless [`Call::commit`] ends it.
    pub(super) async fn begin(&mut self) -> Result<(), DbError> {
        let begin = match self.backend {
            // A transaction that reads first and then wants to write loses against whoever wrote meanwhile.
            Backend::Sqlite => "BEGIN IMMEDIATE",
            Backend::Postgres => "BEGIN",
        };
        self.execute(sqlx::query(begin)).await?;
        self.in_transaction = true;
        Ok(())
    }

    pub(super) async fn commit(mut self) -> Result<(), DbError> {
        self.execute(sqlx::query("COMMIT")).await?;
        self.in_transaction = false;
        Ok(())
    }

    /// How many rows it changed.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, DbError> {
        let deadline = self.deadline;
        let done = timeout_at(deadline, statement.execute(self.connection())).await;
        Ok(self.finished(done)?.rows_affected())
    }

    /// All rows that it gives.
    pub(super) async fn all(&mut self, table: &'static str, statement: Statement<'_>) -> Result<Vec<Row>, DbError> {
        let deadline = self.deadline;
        let done = timeout_at(deadline, statement.fetch_all(self.connection())).await;
        Ok(self.finished(done)?.into_iter().map(|row| Row::new(table, row)).collect())
    }

    /// The one row that it gives, if it gives one. The statement is always run to its end: one that changes something and
    /// gives rows would else hold its lock.
    pub(super) async fn one(&mut self, table: &'static str, statement: Statement<'_>) -> Result<Option<Row>, DbError> {
        Ok(self.all(table, statement).await?.pop())
    }

    fn connection(&mut self) -> &mut AnyConnection {
        self.busy = true;
        self.connection.as_mut().expect("it is taken at the end alone")
    }

    fn finished<T>(&mut self, done: Result<sqlx::Result<T>, tokio::time::error::Elapsed>) -> Result<T, DbError> {
        match done {
            Ok(Ok(done)) => {
                self.busy = false;
                Ok(done)
            }
            Ok(Err(source)) => {
                // What the database itself says leaves the connection in order.
                self.busy = !matches!(source, sqlx::Error::Database(_));
                Err(DbError::of(self.step, self.backend, source))
            }
            Err(_elapsed) => Err(timed_out(self.step, limits::CALL)),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && (self.busy || self.in_transaction)
        {
            drop(connection.detach());
        }
    }
}

fn timed_out(step: &'static str, after: Duration) -> DbError {
    DbError::TimedOut { step, after }
}
