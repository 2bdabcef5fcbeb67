//! Operations: work that goes on whether or not somebody waits, and the requests that must not be done twice.
//!
//! A tenant's idempotency key belongs to the first operation that was begun with it, until that one is forgotten. Which is
//! the first is decided by the table itself, so that of many at once exactly one is.

use sqlx::query;
use wrenn_client::types::{ErrorBody, NewTemplate, Operation, OperationKind, OperationState};

use super::row::{Row, bigint, json, keepable};
use super::{Database, DbError, limits};

const COLUMNS: &str = "id, kind, tenant, key_id, idempotency_key, request_digest, wanted, state, sandbox, template, \
                       error, progress, created_unix_ms, ended_unix_ms";

/// An operation that is to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOperation {
    /// Its id, which nobody else has.
    pub id: String,
    /// What is done.
    pub kind: OperationKind,
    /// Whose it is.
    pub tenant: String,
    /// The key that asked for it.
    pub key_id: String,
    /// What the client called the request, if it must not be done twice.
    pub idempotency_key: Option<String>,
    /// Digest of the request, to tell a repetition from another request with the same idempotency key.
    pub request_digest: String,
    /// The template that is to be made, if it is one: what another server needs to go on with it.
    pub wanted: Option<NewTemplate>,
    /// When.
    pub created_unix_ms: u64,
}

/// An operation, with what is not told to everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationRow {
    /// It, as it is told.
    pub operation: Operation,
    /// Whose it is.
    pub tenant: String,
    /// The key that asked for it.
    pub key_id: String,
    /// What the client called the request.
    pub idempotency_key: Option<String>,
    /// Digest of the request.
    pub request_digest: String,
    /// The template that is to be made, if it is one.
    pub wanted: Option<NewTemplate>,
}

/// What came of beginning an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is this one's to do.
    New,
    /// The tenant has used the idempotency key before, for this one. Nothing was begun.
    Known(Box<OperationRow>),
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationEnd {
    /// It did what was asked.
    Succeeded {
        /// The sandbox that it made.
        sandbox: Option<String>,
        /// Id of the template that it made.
        template: Option<String>,
    },
    /// It did not.
    Failed(ErrorBody),
}

impl Database {
    /// Begins an operation, unless the tenant's idempotency key is taken.
    pub async fn begin_operation(&self, new: &NewOperation) -> Result<Begun, DbError> {
        let select = format!("SELECT {COLUMNS} FROM operations WHERE tenant = $1 AND idempotency_key = $2");
        let mut call = self.write("begin an operation").await?;
        // The one that was in the way may be forgotten before it is read; then there is room. The call's deadline ends this.
        loop {
            if call.execute(insert(new)).await? == 1 {
                return Ok(Begun::New);
            }
            let known = query(&select).bind(&new.tenant).bind(&new.idempotency_key);
            if let Some(row) = call.one("operations", known).await? {
                return Ok(Begun::Known(Box::new(operation(&row)?)));
            }
        }
    }

    /// Ends an operation; whether it was still running. The first end counts.
    pub async fn end_operation(&self, id: &str, end: &OperationEnd, unix_ms: u64) -> Result<bool, DbError> {
        let (state, sandbox, template, error) = match end {
            OperationEnd::Succeeded { sandbox, template } => {
                (OperationState::Succeeded, sandbox.as_ref(), template.as_ref(), None)
            }
            OperationEnd::Failed(error) => (OperationState::Failed, None, None, Some(json(error))),
        };
        let update = query(
            "UPDATE operations SET state = $1, sandbox = $2, template = $3, error = $4, ended_unix_ms = $5 \
             WHERE id = $6 AND state = $7",
        )
        .bind(state.as_str())
        .bind(sandbox)
        .bind(template)
        .bind(error)
        .bind(bigint(unix_ms))
        .bind(id)
        .bind(OperationState::Running.as_str());
        Ok(self.write("end an operation").await?.execute(update).await? == 1)
    }

    /// Adds a line to what a running operation has done so far; whether it was still running. The oldest lines give way.
    pub async fn progress_operation(&self, id: &str, line: &str) -> Result<bool, DbError> {
        let mut call = self.write("note an operation's progress").await?;
        call.begin().await?;
        // It changes nothing, but from here on nobody else adds a line.
        let hold = query("UPDATE operations SET progress = progress WHERE id = $1 AND state = $2 RETURNING progress")
            .bind(id)
            .bind(OperationState::Running.as_str());
        let held = call.one("operations", hold).await?;
        let running = held.is_some();
        if let Some(row) = held {
            let lines = with_line(row.json("progress")?, line);
            let update = query("UPDATE operations SET progress = $1 WHERE id = $2").bind(json(&lines)).bind(id);
            call.execute(update).await?;
        }
        call.commit().await?;
        Ok(running)
    }

    /// An operation.
    pub async fn operation(&self, id: &str) -> Result<Option<OperationRow>, DbError> {
        let select = format!("SELECT {COLUMNS} FROM operations WHERE id = $1");
        let mut call = self.read("look up an operation").await?;
        call.one("operations", query(&select).bind(id)).await?.map(|row| operation(&row)).transpose()
    }

    /// The operation that a tenant's idempotency key belongs to.
    pub async fn operation_of(&self, tenant: &str, idempotency_key: &str) -> Result<Option<OperationRow>, DbError> {
        let select = format!("SELECT {COLUMNS} FROM operations WHERE tenant = $1 AND idempotency_key = $2");
        let mut call = self.read("look for a request that was sent before").await?;
        let row = call.one("operations", query(&select).bind(tenant).bind(idempotency_key)).await?;
        row.map(|row| operation(&row)).transpose()
    }

    /// Operations, the newest first: those before the one with the id `before`, of one tenant or of all; at most `limit` (and
    /// never more than [`limits::PAGE_ROWS_MAX`]).
    pub async fn operations(
        &self,
        tenant: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<OperationRow>, DbError> {
        let select = format!(
            "SELECT {COLUMNS} FROM operations WHERE (CAST($1 AS TEXT) IS NULL OR tenant = $1) AND (CAST($2 AS TEXT) IS NULL \
             OR (created_unix_ms, id) < (SELECT created_unix_ms, id FROM operations WHERE id = $2)) \
             ORDER BY created_unix_ms DESC, id DESC LIMIT $3"
        );
        let limit = i64::from(limit.min(limits::PAGE_ROWS_MAX));
        let mut call = self.read("list operations").await?;
        let rows = call.all("operations", query(&select).bind(tenant).bind(before).bind(limit)).await?;
        rows.iter().map(operation).collect()
    }

    /// All operations that have not ended: after a restart, those that somebody must end.
    pub async fn running_operations(&self) -> Result<Vec<OperationRow>, DbError> {
        let select =
            format!("SELECT {COLUMNS} FROM operations WHERE ended_unix_ms IS NULL ORDER BY created_unix_ms, id");
        let rows = self.read("list running operations").await?.all("operations", query(&select)).await?;
        rows.iter().map(operation).collect()
    }

    /// Removes operations that ended before this time, and frees their idempotency keys; how many.
    pub async fn forget_operations(&self, ended_before_unix_ms: u64) -> Result<u64, DbError> {
        let delete = "DELETE FROM operations WHERE id IN \
                      (SELECT id FROM operations WHERE ended_unix_ms < $1 LIMIT $2)";
        self.remove("forget old operations", delete, bigint(ended_before_unix_ms)).await
    }
}

fn insert(new: &NewOperation) -> super::call::Statement<'_> {
    query(
        "INSERT INTO operations (id, kind, tenant, key_id, idempotency_key, request_digest, wanted, state, progress, \
         created_unix_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (tenant, idempotency_key) DO NOTHING",
    )
    .bind(&new.id)
    .bind(new.kind.as_str())
    .bind(&new.tenant)
    .bind(&new.key_id)
    .bind(&new.idempotency_key)
    .bind(&new.request_digest)
    .bind(new.wanted.as_ref().map(json))
    .bind(OperationState::Running.as_str())
    .bind("[]")
    .bind(bigint(new.created_unix_ms))
}

fn with_line(mut lines: Vec<String>, line: &str) -> Vec<String> {
    lines.push(keepable(line, limits::PROGRESS_LINE_BYTES_MAX).into_owned());
    lines.split_off(lines.len().saturating_sub(limits::PROGRESS_LINES_MAX))
}

fn operation(row: &Row) -> Result<OperationRow, DbError> {
    let operation = Operation {
        id: row.text("id")?,
        kind: row.word("kind", &OperationKind::ALL, OperationKind::as_str)?,
        state: row.word("state", &OperationState::ALL, OperationState::as_str)?,
        created_unix_ms: row.number("created_unix_ms")?,
        ended_unix_ms: row.number_or_null("ended_unix_ms")?,
        progress: row.json("progress")?,
        sandbox: row.text_or_null("sandbox")?,
        template: row.text_or_null("template")?,
        error: row.json_or_null("error")?,
    };
    Ok(OperationRow {
        operation,
        tenant: row.text("tenant")?,
        key_id: row.text("key_id")?,
        idempotency_key: row.text_or_null("idempotency_key")?,
        request_digest: row.text("request_digest")?,
        wanted: row.json_or_null("wanted")?,
    })
}
