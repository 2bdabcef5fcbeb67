//! The last commands that were run through this server, by sandbox.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wrenn_client::types::{Exit, LoggedExec};
use wrenn_engine::names::SandboxId;

use crate::limits;
use crate::time::now_unix_ms;

/// What is remembered. Cheap to clone.
#[derive(Clone, Default)]
pub struct ExecLog(Arc<Mutex<BTreeMap<SandboxId, VecDeque<LoggedExec>>>>);

/// One command that is under way.
pub struct Entry {
    log: ExecLog,
    id: SandboxId,
    pid: u32,
    started_unix_ms: u64,
}

impl ExecLog {
    fn map(&self) -> MutexGuard<'_, BTreeMap<SandboxId, VecDeque<LoggedExec>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command has begun.
    pub fn begin(&self, id: &SandboxId, pid: u32, command: Vec<String>) -> Entry {
        let started_unix_ms = now_unix_ms();
        let entry = LoggedExec { pid, command, started_unix_ms, ended_unix_ms: None, exit: None, output_bytes: 0 };
        let mut map = self.map();
        let entries = map.entry(id.clone()).or_default();
        entries.push_back(entry);
        while entries.len() > limits::EXECS_LOGGED_MAX {
            entries.pop_front();
        }
        Entry { log: self.clone(), id: id.clone(), pid, started_unix_ms }
    }

    /// Those of one sandbox, the oldest first.
    pub fn of(&self, id: &SandboxId) -> Vec<LoggedExec> {
        self.map().get(id).map(|entries| entries.iter().cloned().collect()).unwrap_or_default()
    }

    /// The sandbox is gone.
    pub fn forget(&self, id: &SandboxId) {
        self.map().remove(id);
    }
}

impl Entry {
    /// It has written so much.
    pub fn wrote(&self, output_bytes: u64) {
        self.change(|entry| entry.output_bytes = output_bytes);
    }

    /// It has ended.
    pub fn ended(&self, exit: Exit) {
        self.change(|entry| {
            entry.exit = Some(exit);
            entry.ended_unix_ms = Some(now_unix_ms());
        });
    }

    fn change(&self, change: impl FnOnce(&mut LoggedExec)) {
        let mut map = self.log.map();
        let entries = map.get_mut(&self.id).into_iter().flatten();
        let mine =
            entries.into_iter().find(|entry| entry.pid == self.pid && entry.started_unix_ms == self.started_unix_ms);
        if let Some(entry) = mine {
            change(entry);
        }
    }
}
