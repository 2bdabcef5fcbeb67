//! Who did what: a queue that a task empties into the database.
//!
//! A request does not wait for its entry. While the database is not there, entries wait; when the queue is full they are dropped,
//! and that is counted and logged.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::sleep;

use crate::db::{Database, NewAuditEntry};
use crate::limits;
use crate::metrics::Metrics;

/// Where entries go in.
pub struct Audit {
    entries: Mutex<Option<mpsc::Sender<NewAuditEntry>>>,
}

impl Audit {
    /// A queue, and its other end for [`write()`].
    pub fn new() -> (Self, mpsc::Receiver<NewAuditEntry>) {
        let (sender, receiver) = mpsc::channel(limits::AUDIT_QUEUE);
        (Self { entries: Mutex::new(Some(sender)) }, receiver)
    }

    /// Queues an entry.
    pub fn note(&self, entry: NewAuditEntry, metrics: &Metrics) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = &*entries else { return };
        match sender.try_send(entry) {
            Ok(()) => {}
            Err(TrySendError::Full(entry) | TrySendError::Closed(entry)) => {
                metrics.audit_dropped();
                tracing::error!(action = entry.action, outcome = entry.outcome, key = ?entry.key_id, "an audit entry is lost");
            }
        }
    }

    /// No more entries come: [`write()`] ends when it has written those that are there.
    pub fn close(&self) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Writes entries until the queue is closed and empty.
pub async fn write(mut entries: mpsc::Receiver<NewAuditEntry>, db: Database, metrics: Metrics) {
    let mut batch = Vec::new();
    let mut written = 0usize;
    while entries.recv_many(&mut batch, limits::AUDIT_BATCH).await > 0 {
        while let Err(error) = db.record(&batch).await {
            if !error.is_unavailable() {
                tracing::error!(%error, entries = batch.len(), "audit entries are lost");
                batch.iter().for_each(|_| metrics.audit_dropped());
                break;
            }
            tracing::warn!(%error, "the audit log waits for the database");
            sleep(limits::AGENT_RETRY * 5).await;
        }
        written += batch.len();
        batch.clear();
        if written >= 10_000 {
            written = 0;
            if let Err(error) = db.trim_audit(limits::AUDIT_KEPT).await {
                tracing::warn!(%error, "cannot trim the audit log");
            }
        }
    }
}
