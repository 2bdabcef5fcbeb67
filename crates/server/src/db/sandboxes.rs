//! Sandboxes, as an index of what the hosts' agents have. It can be thrown away and made anew at any time, but for one thing:
//! why a sandbox is gone, which no agent knows afterwards.

use sqlx::query;
use wrenn_client::types::{State, Why};

use super::row::{Row, bigint};
use super::{Database, DbError, limits};

const COLUMNS: &str = "id, host, tenant, key_id, state, revision, created_unix_ms, why, ended_unix_ms";

/// A sandbox, as it was when its host told of it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its id.
    pub id: String,
    /// The host that it is on.
    pub host: String,
    /// Whose it is.
    pub tenant: String,
    /// The key that made it, if it was one of ours.
    pub key_id: Option<String>,
    /// How it is.
    pub state: State,
    /// Grows with each change.
    pub revision: u64,
    /// When it was created.
    pub created_unix_ms: u64,
    /// Why it is gone, and since when.
    pub ended: Option<(Why, u64)>,
}

impl Database {
    /// Takes over what a host tells of sandboxes. What is known in a newer revision stays, and so does an end.
    pub async fn put_sandboxes(&self, rows: &[SandboxRow]) -> Result<(), DbError> {
        for part in rows.chunks(limits::TRANSACTION_ROWS) {
            let mut call = self.write("index sandboxes").await?;
            call.begin().await?;
            for row in part {
                call.execute(upsert(row)).await?;
            }
            call.commit().await?;
        }
        Ok(())
    }

    /// Notes why a sandbox is gone; whether that is news. The first reason counts.
    pub async fn end_sandbox(&self, host: &str, id: &str, why: Why, unix_ms: u64) -> Result<bool, DbError> {
        let update = query(
            "UPDATE sandboxes SET why = $1, ended_unix_ms = $2 WHERE host = $3 AND id = $4 AND ended_unix_ms IS NULL",
        )
        .bind(why.as_str())
        .bind(bigint(unix_ms))
        .bind(host)
        .bind(id);
        Ok(self.write("note a sandbox's end").await?.execute(update).await? == 1)
    }

    /// A sandbox, whichever host it is or was on.
    pub async fn sandbox(&self, id: &str) -> Result<Option<SandboxRow>, DbError> {
        let select = format!("SELECT {COLUMNS} FROM sandboxes WHERE id = $1 ORDER BY created_unix_ms LIMIT 1");
        let mut call = self.read("look up a sandbox").await?;
        call.one("sandboxes", query(&select).bind(id)).await?.map(|row| sandbox(&row)).transpose()
    }

    /// Ids of a host's sandboxes that are not known to be gone, in order.
    pub async fn live_sandboxes(&self, host: &str) -> Result<Vec<String>, DbError> {
        let select = query("SELECT id FROM sandboxes WHERE host = $1 AND ended_unix_ms IS NULL ORDER BY id").bind(host);
        let rows = self.read("list a host's sandboxes").await?.all("sandboxes", select).await?;
        rows.iter().map(|row| row.text("id")).collect()
    }

    /// Removes sandboxes that are gone since before this time; how many.
    pub async fn forget_sandboxes(&self, ended_before_unix_ms: u64) -> Result<u64, DbError> {
        let delete = "DELETE FROM sandboxes WHERE (host, id) IN \
                      (SELECT host, id FROM sandboxes WHERE ended_unix_ms < $1 LIMIT $2)";
        self.remove("forget sandboxes that are gone", delete, bigint(ended_before_unix_ms)).await
    }
}

fn upsert(row: &SandboxRow) -> super::call::Statement<'_> {
    query(
        "INSERT INTO sandboxes (id, host, tenant, key_id, state, revision, created_unix_ms, why, ended_unix_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (host, id) DO UPDATE SET \
         tenant = excluded.tenant, key_id = excluded.key_id, state = excluded.state, revision = excluded.revision, \
         created_unix_ms = excluded.created_unix_ms, why = coalesce(sandboxes.why, excluded.why), \
         ended_unix_ms = coalesce(sandboxes.ended_unix_ms, excluded.ended_unix_ms) \
         WHERE sandboxes.revision <= excluded.revision",
    )
    .bind(&row.id)
    .bind(&row.host)
    .bind(&row.tenant)
    .bind(&row.key_id)
    .bind(row.state.as_str())
    .bind(bigint(row.revision))
    .bind(bigint(row.created_unix_ms))
    .bind(row.ended.map(|(why, _)| why.as_str()))
    .bind(row.ended.map(|(_, unix_ms)| bigint(unix_ms)))
}

fn sandbox(row: &Row) -> Result<SandboxRow, DbError> {
    let why = row.word_or_null("why", &Why::ALL, Why::as_str)?;
    let ended_unix_ms = row.number_or_null("ended_unix_ms")?;
    Ok(SandboxRow {
        id: row.text("id")?,
        host: row.text("host")?,
        tenant: row.text("tenant")?,
        key_id: row.text_or_null("key_id")?,
        state: row.word("state", &State::ALL, State::as_str)?,
        revision: row.number("revision")?,
        created_unix_ms: row.number("created_unix_ms")?,
        ended: why.zip(ended_unix_ms),
    })
}
