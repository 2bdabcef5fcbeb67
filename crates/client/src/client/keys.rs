//! Keys, and the record of what was done with them.

use super::{Client, ListQuery, pages};
use crate::error::ClientError;
use crate::types::{AuditEntry, Key, NewKey, NewKeyRequest, Page};

impl Client {
    /// A new key; its secret is told this once.
    pub async fn create_key(&self, request: &NewKeyRequest) -> Result<NewKey, ClientError> {
        self.post(&["v1", "keys"])?.body(request).json().await
    }

    /// Some keys.
    pub async fn keys(&self, list: &ListQuery) -> Result<Page<Key>, ClientError> {
        list.of(self.get(&["v1", "keys"])?).json().await
    }

    /// All keys.
    pub async fn all_keys(&self) -> Result<Vec<Key>, ClientError> {
        pages::all(|list| async move { self.keys(&list).await }).await
    }

    /// Revokes a key: whoever has it is refused from now on.
    pub async fn revoke_key(&self, id: &str) -> Result<Key, ClientError> {
        self.delete(&["v1", "keys", id])?.json().await
    }

    /// The key that this client asks with.
    pub async fn whoami(&self) -> Result<Key, ClientError> {
        self.get(&["v1", "whoami"])?.json().await
    }

    /// Who did what, the newest first. There may be very much of it: it is read page by page.
    pub async fn audit(&self, list: &ListQuery) -> Result<Page<AuditEntry>, ClientError> {
        list.of(self.get(&["v1", "audit"])?).json().await
    }
}
