//! The server itself, its host, and its long work.

use super::{Client, ListQuery, pages};
use crate::error::ClientError;
use crate::types::{Health, Host, Operation, Page};

impl Client {
    /// The host that sandboxes are on.
    pub async fn host(&self) -> Result<Host, ClientError> {
        self.get(&["v1", "host"])?.json().await
    }

    /// Some long work.
    pub async fn operations(&self, list: &ListQuery) -> Result<Page<Operation>, ClientError> {
        list.of(self.get(&["v1", "operations"])?).json().await
    }

    /// All long work that is known.
    pub async fn all_operations(&self) -> Result<Vec<Operation>, ClientError> {
        pages::all(|list| async move { self.operations(&list).await }).await
    }

    /// How far a piece of long work is.
    pub async fn operation(&self, id: &str) -> Result<Operation, ClientError> {
        self.get(&["v1", "operations", id])?.json().await
    }

    /// Whether all is there that the server needs. Needs no key.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get(&["healthz"])?.json().await
    }

    /// What the server says it can do, as OpenAPI. Needs no key.
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get(&["openapi.json"])?.json().await
    }

    /// The server's counters, as Prometheus reads them.
    pub async fn counters(&self) -> Result<String, ClientError> {
        self.get(&["metrics"])?.text().await
    }
}
