//! The record of who did what. It only grows at its end and is only cut at its beginning.

use sqlx::query;
use wrenn_client::types::AuditEntry;

use super::row::{Row, bigint, keepable};
use super::{Database, DbError, limits};

/// What is to be recorded; each field is as in [`AuditEntry`], and gets its number when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAuditEntry {
    /// When.
    pub unix_ms: u64,
    /// With which key.
    pub key_id: Option<String>,
    /// Whose.
    pub tenant: Option<String>,
    /// What was asked for.
    pub action: String,
    /// On what.
    pub object: Option<String>,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// The request's id.
    pub request_id: String,
    /// From where.
    pub remote: Option<String>,
}

impl Database {
    /// Records entries in this order, all or none of them. Texts that are too long are cut off.
    pub async fn record(&self, entries: &[NewAuditEntry]) -> Result<(), DbError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut call = self.write("record what was done").await?;
        call.begin().await?;
        let take = query("UPDATE counters SET value = value + $1 WHERE name = 'audit' RETURNING value");
        let count = bigint(entries.len() as u64);
        // Without its counter there is no next number; the table is never written without it.
        let taken = call.one("counters", take.bind(count)).await?.map(|row| row.number::<i64>("value")).transpose()?;
        let first = taken.unwrap_or(count) - count + 1;
        for (id, entry) in (first..).zip(entries) {
            call.execute(insert(id, entry)).await?;
        }
        call.commit().await
    }

    /// What was done, the newest first: entries before the number `before`, of one tenant or of all; at most `limit` (and
    /// never more than [`limits::PAGE_ROWS_MAX`]).
    pub async fn audit(
        &self,
        tenant: Option<&str>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, DbError> {
        let select = query(
            "SELECT id, unix_ms, key_id, tenant, action, object, outcome, request_id, remote FROM audit \
             WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR tenant = $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(bigint(before.unwrap_or(u64::MAX)))
        .bind(tenant)
        .bind(i64::from(limit.min(limits::PAGE_ROWS_MAX)));
        let rows = self.read("read what was done").await?.all("audit", select).await?;
        rows.iter().map(entry).collect()
    }

    /// Removes the oldest entries but the last `keep`; how many were removed.
    pub async fn trim_audit(&self, keep: u64) -> Result<u64, DbError> {
        // Numbers have no holes, so those from the oldest on are as many as rows.
        let delete = "DELETE FROM audit WHERE id <= (SELECT value FROM counters WHERE name = 'audit') - $1 \
                      AND id < (SELECT min(id) FROM audit) + $2";
        self.remove("trim the record of what was done", delete, bigint(keep)).await
    }
}

fn insert(id: i64, entry: &NewAuditEntry) -> super::call::Statement<'_> {
    let keep = |text: &str| keepable(text, limits::AUDIT_TEXT_BYTES_MAX).into_owned();
    let keep_some = |text: &Option<String>| text.as_deref().map(&keep);
    query(
        "INSERT INTO audit (id, unix_ms, key_id, tenant, action, object, outcome, request_id, remote) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(id)
    .bind(bigint(entry.unix_ms))
    .bind(keep_some(&entry.key_id))
    .bind(keep_some(&entry.tenant))
    .bind(keep(&entry.action))
    .bind(keep_some(&entry.object))
    .bind(keep(&entry.outcome))
    .bind(keep(&entry.request_id))
    .bind(keep_some(&entry.remote))
}

fn entry(row: &Row) -> Result<AuditEntry, DbError> {
    Ok(AuditEntry {
        id: row.number("id")?,
        unix_ms: row.number("unix_ms")?,
        key_id: row.text_or_null("key_id")?,
        tenant: row.text_or_null("tenant")?,
        action: row.text("action")?,
        object: row.text_or_null("object")?,
        outcome: row.text("outcome")?,
        request_id: row.text("request_id")?,
        remote: row.text_or_null("remote")?,
    })
}
