//! Keys: who may ask for something. Of a secret there is its SHA-256 alone.

use sqlx::query;
use wrenn_client::types::{Key, Scope};

use super::row::{Row, bigint};
use super::{Database, DbError, limits};

const COLUMNS: &str = "id, name, prefix, scope, tenant, created_unix_ms, last_used_unix_ms, revoked_unix_ms, \
                       sandboxes_max, vcpus_max, memory_mib_max";

impl Database {
    /// Adds a key; `digest` is the SHA-256 of its secret, in hexadecimal.
    pub async fn add_key(&self, key: &Key, digest: &str) -> Result<(), DbError> {
        let insert =
            format!("INSERT INTO keys ({COLUMNS}, digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
        let statement = query(&insert)
            .bind(&key.id)
            .bind(&key.name)
            .bind(&key.prefix)
            .bind(key.scope.as_str())
            .bind(&key.tenant)
            .bind(bigint(key.created_unix_ms))
            .bind(key.last_used_unix_ms.map(bigint))
            .bind(key.revoked_unix_ms.map(bigint))
            .bind(key.sandboxes_max.map(i64::from))
            .bind(key.vcpus_max.map(i64::from))
            .bind(key.memory_mib_max.map(i64::from))
            .bind(digest);
        self.write("add a key").await?.execute(statement).await?;
        Ok(())
    }

    /// The key of this secret, revoked or not.
    pub async fn find_key(&self, digest: &str) -> Result<Option<Key>, DbError> {
        let select = format!("SELECT {COLUMNS} FROM keys WHERE digest = $1");
        let mut call = self.read("look up a key").await?;
        call.one("keys", query(&select).bind(digest)).await?.map(|row| key(&row)).transpose()
    }

    /// The key of this id, revoked or not.
    pub async fn key(&self, id: &str) -> Result<Option<Key>, DbError> {
        let select = format!("SELECT {COLUMNS} FROM keys WHERE id = $1");
        let mut call = self.read("look up a key").await?;
        call.one("keys", query(&select).bind(id)).await?.map(|row| key(&row)).transpose()
    }

    /// Keys, the oldest first: those after the one with the id `after`, at most `limit` (and never more than
    /// [`limits::PAGE_ROWS_MAX`]).
    pub async fn keys(&self, after: Option<&str>, limit: u32) -> Result<Vec<Key>, DbError> {
        let select = format!(
            "SELECT {COLUMNS} FROM keys WHERE CAST($1 AS TEXT) IS NULL \
             OR (created_unix_ms, id) > (SELECT created_unix_ms, id FROM keys WHERE id = $1) \
             ORDER BY created_unix_ms, id LIMIT $2"
        );
        let limit = i64::from(limit.min(limits::PAGE_ROWS_MAX));
        let rows = self.read("list the keys").await?.all("keys", query(&select).bind(after).bind(limit)).await?;
        rows.iter().map(key).collect()
    }

    /// Revokes a key, and gives it as it is then; `None` if there is no such key. The first time counts.
    pub async fn revoke_key(&self, id: &str, unix_ms: u64) -> Result<Option<Key>, DbError> {
        let update = format!(
            "UPDATE keys SET revoked_unix_ms = coalesce(revoked_unix_ms, $1) WHERE id = $2 RETURNING {COLUMNS}"
        );
        let mut call = self.write("revoke a key").await?;
        let row = call.one("keys", query(&update).bind(bigint(unix_ms)).bind(id)).await?;
        row.map(|row| key(&row)).transpose()
    }

    /// Notes that a key was used, unless that was noted less than [`limits::KEY_USE_GRAIN_MS`] ago.
    pub async fn note_key_use(&self, id: &str, unix_ms: u64) -> Result<(), DbError> {
        let statement = query(
            "UPDATE keys SET last_used_unix_ms = $1 WHERE id = $2 AND (last_used_unix_ms IS NULL OR last_used_unix_ms <= $3)",
        )
        .bind(bigint(unix_ms))
        .bind(id)
        .bind(bigint(unix_ms) - bigint(limits::KEY_USE_GRAIN_MS));
        self.write("note the use of a key").await?.execute(statement).await?;
        Ok(())
    }

    /// Whether there is a key that is not revoked.
    pub async fn has_keys(&self) -> Result<bool, DbError> {
        let select = query("SELECT id FROM keys WHERE revoked_unix_ms IS NULL LIMIT 1");
        Ok(self.read("look for keys").await?.one("keys", select).await?.is_some())
    }
}

fn key(row: &Row) -> Result<Key, DbError> {
    Ok(Key {
        id: row.text("id")?,
        name: row.text("name")?,
        prefix: row.text("prefix")?,
        scope: row.word("scope", &Scope::ALL, Scope::as_str)?,
        tenant: row.text("tenant")?,
        created_unix_ms: row.number("created_unix_ms")?,
        last_used_unix_ms: row.number_or_null("last_used_unix_ms")?,
        revoked_unix_ms: row.number_or_null("revoked_unix_ms")?,
        sandboxes_max: row.number_or_null("sandboxes_max")?,
        vcpus_max: row.number_or_null("vcpus_max")?,
        memory_mib_max: row.number_or_null("memory_mib_max")?,
    })
}
