//! Commands that were run in sandboxes: the last ones of each, as far as a server saw them.

use std::collections::BTreeSet;

use sqlx::query;
use wrenn_client::types::LoggedExec;

use super::row::{Row, bigint, json};
use super::{Database, DbError, limits};

/// A command, and who saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRow {
    /// The sandbox that it ran in.
    pub sandbox: String,
    /// The host that this is on.
    pub host: String,
    /// The run of a server that saw it begin.
    pub run: String,
    /// It.
    pub exec: LoggedExec,
}

impl Database {
    /// Keeps commands as they are now, and of each sandbox the last [`limits::EXECS_KEPT`].
    pub async fn put_execs(&self, rows: &[ExecRow]) -> Result<(), DbError> {
        for part in rows.chunks(limits::TRANSACTION_ROWS) {
            let mut call = self.write("log commands").await?;
            call.begin().await?;
            for row in part {
                call.execute(upsert(row)).await?;
            }
            for sandbox in part.iter().map(|row| row.sandbox.as_str()).collect::<BTreeSet<_>>() {
                call.execute(trim(sandbox)).await?;
            }
            call.commit().await?;
        }
        Ok(())
    }

    /// Those of a sandbox, the oldest first.
    pub async fn execs(&self, sandbox: &str) -> Result<Vec<ExecRow>, DbError> {
        let select = query(
            "SELECT sandbox, host, run, pid, command, started_unix_ms, ended_unix_ms, exit, output_bytes FROM execs \
             WHERE sandbox = $1 ORDER BY started_unix_ms, pid LIMIT $2",
        )
        .bind(sandbox)
        .bind(bigint(limits::EXECS_KEPT));
        let rows = self.read("read which commands were run").await?.all("execs", select).await?;
        rows.iter().map(exec).collect()
    }

    /// Sandboxes of a host that commands are kept of, in order.
    pub async fn sandboxes_with_execs(&self, host: &str) -> Result<Vec<String>, DbError> {
        let select = query("SELECT DISTINCT sandbox FROM execs WHERE host = $1 ORDER BY sandbox").bind(host);
        let rows = self.read("look whose commands are kept").await?.all("execs", select).await?;
        rows.iter().map(|row| row.text("sandbox")).collect()
    }

    /// Removes those of a sandbox that is gone; how many.
    pub async fn forget_execs(&self, sandbox: &str) -> Result<u64, DbError> {
        let delete = query("DELETE FROM execs WHERE sandbox = $1").bind(sandbox);
        self.write("forget the commands of a sandbox").await?.execute(delete).await
    }
}

fn upsert(row: &ExecRow) -> super::call::Statement<'_> {
    let ExecRow { sandbox, host, run, exec } = row;
    query(
        "INSERT INTO execs (sandbox, started_unix_ms, pid, host, run, command, output_bytes, ended_unix_ms, exit) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (sandbox, started_unix_ms, pid) DO UPDATE SET \
         output_bytes = excluded.output_bytes, ended_unix_ms = excluded.ended_unix_ms, exit = excluded.exit",
    )
    .bind(sandbox)
    .bind(bigint(exec.started_unix_ms))
    .bind(i64::from(exec.pid))
    .bind(host)
    .bind(run)
    .bind(json(&exec.command))
    .bind(bigint(exec.output_bytes))
    .bind(exec.ended_unix_ms.map(bigint))
    .bind(exec.exit.as_ref().map(json))
}

/// Removes all of a sandbox's but the last ones.
fn trim(sandbox: &str) -> super::call::Statement<'_> {
    query(
        "DELETE FROM execs WHERE sandbox = $1 AND (started_unix_ms, pid) <= (SELECT started_unix_ms, pid FROM execs \
         WHERE sandbox = $1 ORDER BY started_unix_ms DESC, pid DESC LIMIT 1 OFFSET $2)",
    )
    .bind(sandbox)
    .bind(bigint(limits::EXECS_KEPT))
}

fn exec(row: &Row) -> Result<ExecRow, DbError> {
    let exec = LoggedExec {
        pid: row.number("pid")?,
        command: row.json("command")?,
        started_unix_ms: row.number("started_unix_ms")?,
        ended_unix_ms: row.number_or_null("ended_unix_ms")?,
        exit: row.json_or_null("exit")?,
        output_bytes: row.number("output_bytes")?,
    };
    Ok(ExecRow { sandbox: row.text("sandbox")?, host: row.text("host")?, run: row.text("run")?, exec })
}
