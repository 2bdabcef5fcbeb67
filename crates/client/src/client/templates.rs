//! Snapshots and templates: what sandboxes start from.

use super::{Client, ListQuery, pages};
use crate::error::ClientError;
use crate::types::{
    NewSnapshot, NewTemplate, Operation, Page, Snapshot, SnapshotRequest, Template, WarmRequest, Warmed,
};

/// Which snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotQuery {
    /// Of this sandbox, by its id; of any if `None`.
    pub sandbox: Option<String>,
    /// Which part of the list.
    pub list: ListQuery,
}

impl Client {
    /// Keeps what a sandbox is now.
    pub async fn create_snapshot(&self, request: &SnapshotRequest) -> Result<NewSnapshot, ClientError> {
        self.post(&["v1", "snapshots"])?.body(request).json().await
    }

    /// Some snapshots, the oldest first.
    pub async fn snapshots(&self, query: &SnapshotQuery) -> Result<Page<Snapshot>, ClientError> {
        let call = self.get(&["v1", "snapshots"])?.query_if("sandbox", query.sandbox.as_deref());
        query.list.of(call).json().await
    }

    /// All of them that `query` is about, whatever part it names.
    pub async fn all_snapshots(&self, query: &SnapshotQuery) -> Result<Vec<Snapshot>, ClientError> {
        pages::all(|list| {
            let query = SnapshotQuery { list, ..query.clone() };
            async move { self.snapshots(&query).await }
        })
        .await
    }

    /// One snapshot, by its name or id.
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.get(&["v1", "snapshots", snapshot])?.json().await
    }

    /// Removes a snapshot, by its name or id.
    pub async fn remove_snapshot(&self, snapshot: &str) -> Result<Snapshot, ClientError> {
        self.delete(&["v1", "snapshots", snapshot])?.json().await
    }

    /// Some templates.
    pub async fn templates(&self, list: &ListQuery) -> Result<Page<Template>, ClientError> {
        list.of(self.get(&["v1", "templates"])?).json().await
    }

    /// All templates.
    pub async fn all_templates(&self) -> Result<Vec<Template>, ClientError> {
        pages::all(|list| async move { self.templates(&list).await }).await
    }

    /// One template, by its name or id.
    pub async fn template(&self, template: &str) -> Result<Template, ClientError> {
        self.get(&["v1", "templates", template])?.json().await
    }

    /// Removes a template, by its name or id.
    pub async fn remove_template(&self, template: &str) -> Result<Template, ClientError> {
        self.delete(&["v1", "templates", template])?.json().await
    }

    /// Builds a template, or makes one of a snapshot; answers when it is there.
    pub async fn create_template(&self, new: &NewTemplate) -> Result<Template, ClientError> {
        self.post(&["v1", "templates"])?.body(new).json().await
    }

    /// The same without waiting for it.
    pub async fn begin_create_template(&self, new: &NewTemplate) -> Result<Operation, ClientError> {
        self.post(&["v1", "templates"])?.query("wait", false).body(new).json().await
    }

    /// Makes a warm image of a template, if it is not there yet.
    pub async fn warm(&self, template: &str, request: &WarmRequest) -> Result<Warmed, ClientError> {
        self.post(&["v1", "templates", template, "warm"])?.body(request).json().await
    }
}
