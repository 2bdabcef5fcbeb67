//! Which processes there are: being started, running, and finished a moment ago.
//!
//! ```text
//!   reserve ─► Place ─► admit ─► running ─► retire ─► finished (30 s, the last 256) ─► forgotten
//!                └ dropped: free again
//! ```
//! Running processes have unique tags. A pid is looked for among the running first, then the youngest finished: pids come
//! round again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::Process;
use super::log::{Log, Pool};
use crate::limits;

/// How a client names a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its number.
    Pid(u32),
    /// By the name it was started under.
    Tag(String),
}

/// There is no such process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Neither running nor finished a moment ago.
    #[error("process with pid {0} not found")]
    Pid(u32),
    /// The same by name.
    #[error("process with tag '{0}' not found")]
    Tag(String),
}

/// No place for another process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Too many run.
    #[error("{} processes are running already; wait for some to end", limits::PROCESSES_MAX)]
    Full,
    /// The tag names a running one.
    #[error("a running process has the tag '{0}' already")]
    TagTaken(String),
}

/// All processes of this envd.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    pool: Arc<Pool>,
    /// Bytes of input that wait for processes to read.
    pub input_budget: Semaphore,
    /// Turns to start a process.
    pub starts: Semaphore,
    retired: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<u32, Arc<Process>>,
    finished: VecDeque<(Instant, Arc<Process>)>,
    starting: usize,
    starting_tags: Vec<String>,
}

impl Inner {
    fn has_tag(&self, tag: &str) -> bool {
        self.starting_tags.iter().any(|known| known == tag)
            || self.running.values().any(|process| process.tag.as_deref() == Some(tag))
    }
}

impl Registry {
    /// No processes yet.
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner::default()),
            pool: Pool::new(limits::RINGS_BYTES_MAX),
            input_budget: Semaphore::new(limits::INPUT_BYTES_MAX),
            starts: Semaphore::new(limits::STARTS_AT_ONCE_MAX),
            retired: Notify::new(),
        }
    }

    /// A place for a process about to be started.
    pub fn reserve(self: &Arc<Self>, tag: Option<&str>) -> Result<Place, NoPlace> {
        let mut inner = self.lock();
        if inner.running.len() + inner.starting >= limits::PROCESSES_MAX {
            return Err(NoPlace::Full);
        }
        if let Some(tag) = tag {
            if inner.has_tag(tag) {
                return Err(NoPlace::TagTaken(tag.to_owned()));
            }
            inner.starting_tags.push(tag.to_owned());
        }
        inner.starting += 1;
        Ok(Place { registry: Arc::clone(self), tag: tag.map(str::to_owned) })
    }

    /// A log for a new process.
    pub fn new_log(&self) -> Arc<Log> {
        self.pool.log()
    }

    /// Running processes by pid.
    pub fn running(&self) -> Vec<Arc<Process>> {
        self.lock().running.values().cloned().collect()
    }

    /// A running or just finished process.
    pub fn find(&self, selector: &Selector) -> Result<Arc<Process>, Unknown> {
        let inner = self.lock();
        let is_it = |process: &&Arc<Process>| match selector {
            Selector::Pid(pid) => process.pid == *pid,
            Selector::Tag(tag) => process.tag.as_deref() == Some(tag),
        };
        let finished = || inner.finished.iter().rev().map(|(_, process)| process);
        let found = inner.running.values().find(is_it).or_else(|| finished().find(is_it));
        found.cloned().ok_or_else(|| unknown(selector))
    }

    /// A running process.
    pub fn find_running(&self, selector: &Selector) -> Result<Arc<Process>, Unknown> {
        self.find(selector).and_then(|process| if process.has_ended() { Err(unknown(selector)) } else { Ok(process) })
    }

    /// Moves a process to the finished ones.
    pub fn retire(&self, process: &Arc<Process>) {
        let mut inner = self.lock();
        // Its pid may belong to another one by now.
        if inner.running.get(&process.pid).is_some_and(|known| Arc::ptr_eq(known, process)) {
            inner.running.remove(&process.pid);
        }
        inner.finished.push_back((Instant::now() + limits::FINISHED_KEPT, Arc::clone(process)));
        let too_many = inner.finished.len().saturating_sub(limits::FINISHED_MAX);
        let forgotten: Vec<_> = inner.finished.drain(..too_many).collect();
        drop(inner);
        forget(forgotten);
        self.retired.notify_one();
    }

    /// Forgets finished processes when their time has come; never returns.
    pub async fn sweep(&self) {
        loop {
            let next = self.lock().finished.front().map(|(until, _)| *until);
            match next {
                Some(until) => tokio::time::sleep_until(until).await,
                None => self.retired.notified().await,
            }
            let now = Instant::now();
            let mut inner = self.lock();
            let due = inner.finished.iter().take_while(|(until, _)| *until <= now).count();
            let forgotten: Vec<_> = inner.finished.drain(..due).collect();
            let is_idle = inner.finished.is_empty() && inner.running.is_empty();
            drop(inner);
            forget(forgotten);
            if is_idle {
                wrenn_sys::malloc::trim();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever still reads may finish; whoever stalls keeps nothing in memory any more.
fn forget(processes: Vec<(Instant, Arc<Process>)>) {
    for (_, process) in processes {
        process.log.detach_stalled();
    }
}

fn unknown(selector: &Selector) -> Unknown {
    match selector {
        Selector::Pid(pid) => Unknown::Pid(*pid),
        Selector::Tag(tag) => Unknown::Tag(tag.clone()),
    }
}

/// A place for a process about to be started; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    registry: Arc<Registry>,
    tag: Option<String>,
}

impl Place {
    /// The process runs.
    pub fn admit(self, process: &Arc<Process>) {
        self.registry.lock().running.insert(process.pid, Arc::clone(process));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.starting -= 1;
        if let Some(at) = self.tag.as_ref().and_then(|tag| inner.starting_tags.iter().position(|known| known == tag)) {
            inner.starting_tags.swap_remove(at);
        }
    }
}
