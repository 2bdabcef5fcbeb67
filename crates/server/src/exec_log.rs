//! The last commands that were run through this server, by sandbox.
//!
//! ```text
//!   begin, wrote, ended ─► here, in memory ── write: what changed, now and then ─► database
//!   of ◄─ here, if it is under way or was not written yet; else ◄───────────────────┘
//! ```
//!
//! The database has them; here is what is under way, and what it was not told yet. No command waits for it: while it is not there,
//! changes wait here, and of each sandbox the last ones alone. What the database has without an end and from another run of a
//! server was under way when that one was killed. Nobody saw how it ended, and that is what is said of it.
//!
//! One task writes and removes, in this order for each sandbox: nothing of one that is gone comes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use wrenn_agent::host_agent::HostAgent;
use wrenn_client::types::{Exit, LoggedExec};
use wrenn_engine::names::SandboxId;

use crate::db::{Database, DbError, ExecRow};
use crate::error::ApiError;
use crate::limits;
use crate::time::now_unix_ms;
use crate::world::World;

/// Most commands of one transaction.
const BATCH: usize = 256;

/// What is remembered. Cheap to clone.
#[derive(Clone)]
pub struct ExecLog(Arc<Inner>);

struct Inner {
    /// This run of a server, to be told from others.
    run: String,
    state: Mutex<State>,
    /// Told when there is something to write.
    changed: Notify,
}

#[derive(Default)]
struct State {
    execs: BTreeMap<SandboxId, VecDeque<Known>>,
    /// Sandboxes that are gone, and of which the database was not told yet.
    gone: BTreeSet<SandboxId>,
    /// Nothing comes any more.
    closed: bool,
}

struct Known {
    exec: LoggedExec,
    /// Whether the database has it as it is.
    written: bool,
}

/// One command that is under way.
pub struct Entry {
    log: ExecLog,
    id: SandboxId,
    pid: u32,
    started_unix_ms: u64,
}

/// What the database is to be told.
#[derive(Default)]
struct News {
    execs: Vec<(SandboxId, LoggedExec)>,
    gone: BTreeSet<SandboxId>,
}

impl Default for ExecLog {
    fn default() -> Self {
        let run = format!("{}.{}", now_unix_ms(), std::process::id());
        Self(Arc::new(Inner { run, state: Mutex::default(), changed: Notify::new() }))
    }
}

impl ExecLog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command has begun.
    pub fn begin(&self, id: &SandboxId, pid: u32, command: Vec<String>) -> Entry {
        let started_unix_ms = now_unix_ms();
        let command = shortened(command);
        let exec = LoggedExec { pid, command, started_unix_ms, ended_unix_ms: None, exit: None, output_bytes: 0 };
        let mut state = self.state();
        let known = state.execs.entry(id.clone()).or_default();
        known.push_back(Known { exec, written: false });
        while known.len() > limits::EXECS_LOGGED_MAX {
            known.pop_front();
        }
        drop(state);
        self.0.changed.notify_one();
        Entry { log: self.clone(), id: id.clone(), pid, started_unix_ms }
    }

    /// Those of one sandbox, the oldest first.
    pub async fn of(&self, db: &Database, id: &SandboxId) -> Result<Vec<LoggedExec>, ApiError> {
        // First what is here: what is written meanwhile is in the database by then.
        let here: Vec<LoggedExec> =
            self.state().execs.get(id).into_iter().flatten().map(|known| known.exec.clone()).collect();
        let mut all: BTreeMap<_, _> = here.into_iter().map(|exec| (place(&exec), exec)).collect();
        for row in db.execs(id.as_str()).await? {
            let is_others = row.run != self.0.run;
            let exec = if is_others { seen_to_its_end(row.exec) } else { row.exec };
            let known = all.entry(place(&exec)).or_insert_with(|| exec.clone());
            if exec.exit.is_some() {
                *known = exec;
            }
        }
        let extra = all.len().saturating_sub(limits::EXECS_LOGGED_MAX);
        Ok(all.into_values().skip(extra).collect())
    }

    /// The sandbox is gone.
    pub fn forget(&self, id: &SandboxId) {
        let mut state = self.state();
        state.execs.remove(id);
        state.gone.insert(id.clone());
        drop(state);
        self.0.changed.notify_one();
    }

    /// Nothing comes any more: [`write()`] ends when it has written what there is.
    pub fn close(&self) {
        self.state().closed = true;
        self.0.changed.notify_one();
    }

    /// What the database does not know yet, up to a batch of it.
    fn news(&self) -> News {
        let mut state = self.state();
        let gone = std::mem::take(&mut state.gone);
        let unwritten = state.execs.iter_mut().flat_map(|(id, all)| all.iter_mut().map(move |known| (id, known)));
        let unwritten = unwritten.filter(|(_, known)| !known.written).take(BATCH);
        let execs = unwritten
            .map(|(id, known)| {
                known.written = true;
                (id.clone(), known.exec.clone())
            })
            .collect();
        News { execs, gone }
    }

    /// The database has these as they were; what has ended is there alone from now on.
    fn has_written(&self, execs: &[(SandboxId, LoggedExec)]) {
        let mut state = self.state();
        for id in execs.iter().map(|(id, _)| id).collect::<BTreeSet<_>>() {
            let Some(known) = state.execs.get_mut(id) else { continue };
            known.retain(|known| known.exec.exit.is_none() || !known.written);
            if known.is_empty() {
                state.execs.remove(id);
            }
        }
    }

    /// The database does not have these.
    fn has_not_written(&self, news: News) {
        let mut state = self.state();
        state.gone.extend(news.gone);
        for (id, exec) in news.execs {
            let all = state.execs.get_mut(&id).into_iter().flatten();
            if let Some(known) = all.into_iter().find(|known| place(&known.exec) == place(&exec)) {
                known.written = false;
            }
        }
    }
}

impl News {
    fn is_empty(&self) -> bool {
        self.execs.is_empty() && self.gone.is_empty()
    }
}

impl Entry {
    /// It has written so much.
    pub fn wrote(&self, output_bytes: u64) {
        self.change(|exec| exec.output_bytes = output_bytes);
    }

    /// It has ended.
    pub fn ended(&self, exit: Exit) {
        self.change(|exec| {
            exec.exit = Some(exit);
            exec.ended_unix_ms = Some(now_unix_ms());
        });
    }

    fn change(&self, change: impl FnOnce(&mut LoggedExec)) {
        let mut state = self.log.state();
        let all = state.execs.get_mut(&self.id).into_iter().flatten();
        let own = (self.started_unix_ms, self.pid);
        let Some(mine) = all.into_iter().find(|known| place(&known.exec) == own) else { return };
        change(&mut mine.exec);
        let is_news = std::mem::replace(&mut mine.written, false);
        drop(state);
        if is_news {
            self.log.0.changed.notify_one();
        }
    }
}

/// What a command of a sandbox is told from others by, and its place among them.
fn place(exec: &LoggedExec) -> (u64, u32) {
    (exec.started_unix_ms, exec.pid)
}

/// A command whose end nobody saw.
fn seen_to_its_end(exec: LoggedExec) -> LoggedExec {
    LoggedExec { exit: exec.exit.or(Some(Exit::Unknown)), ..exec }
}

/// A command as it is logged: as much of its words as fits.
fn shortened(command: Vec<String>) -> Vec<String> {
    const CUT: char = '…';
    let mut room = limits::EXEC_LINE_BYTES_MAX;
    let mut kept = Vec::new();
    for mut word in command {
        // Many empty words are many as well.
        let takes = word.len().max(1);
        if takes > room {
            let end = (0..=room).rev().find(|end| word.is_char_boundary(*end)).unwrap_or(0);
            word.truncate(end);
            word.push(CUT);
            kept.push(word);
            break;
        }
        room -= takes;
        kept.push(word);
    }
    kept
}

/// Writes until the log is closed, and all of it is written.
pub async fn write(log: ExecLog, db: Database, world: Arc<World>) {
    loop {
        let news = log.news();
        if news.is_empty() {
            if log.state().closed {
                return;
            }
            log.0.changed.notified().await;
            continue;
        }
        let is_all = news.execs.len() < BATCH;
        match write_once(&log, &db, &world.host(), &news).await {
            Ok(()) => log.has_written(&news.execs),
            Err(error) if error.is_unavailable() => {
                tracing::warn!(%error, "the log of commands waits for the database");
                log.has_not_written(news);
                sleep(limits::AGENT_RETRY * 5).await;
            }
            Err(error) => {
                tracing::error!(%error, commands = news.execs.len(), "entries of the log of commands are lost");
                log.has_written(&news.execs);
            }
        }
        if is_all {
            // What happens meanwhile is written together; but nobody waits who ends.
            drop(timeout(limits::EXECS_WRITTEN_EVERY, closed(&log)).await);
        }
    }
}

/// Ready when the log is closed. Cancel safe.
async fn closed(log: &ExecLog) {
    while !log.state().closed {
        log.0.changed.notified().await;
    }
}

async fn write_once(log: &ExecLog, db: &Database, host: &str, news: &News) -> Result<(), DbError> {
    let row = |(id, exec): &(SandboxId, LoggedExec)| ExecRow {
        sandbox: id.to_string(),
        host: host.to_owned(),
        run: log.0.run.clone(),
        exec: exec.clone(),
    };
    let rows: Vec<ExecRow> = news.execs.iter().filter(|(id, _)| !news.gone.contains(id)).map(row).collect();
    db.put_execs(&rows).await?;
    for id in &news.gone {
        db.forget_execs(id.as_str()).await?;
    }
    Ok(())
}

/// Has those forgotten whose sandboxes went while no server saw it. The agent alone says that one is gone.
pub async fn sweep(log: ExecLog, db: Database, world: Arc<World>, agent: Arc<dyn HostAgent>) {
    world.synced().await;
    let kept = loop {
        match db.sandboxes_with_execs(&world.host()).await {
            Ok(kept) => break kept,
            Err(error) => tracing::warn!(%error, "cannot look whose commands are kept; trying again"),
        }
        sleep(limits::AGENT_RETRY * 5).await;
    };
    let there: BTreeSet<SandboxId> = world.last_known().iter().map(|view| view.id.clone()).collect();
    for id in kept.iter().filter_map(|id| id.parse::<SandboxId>().ok()).filter(|id| !there.contains(id)) {
        match agent.get(&id).await {
            Err(error) if error.says_gone() => log.forget(&id),
            // The next server looks again.
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut() {
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(shortened(words(&["sh", "-c", "echo käse"])), words(&["sh", "-c", "echo käse"]));
        let long = "ä".repeat(limits::EXEC_LINE_BYTES_MAX);
        let cut = shortened(words(&["x", &long, "never"]));
        assert_eq!(cut.len(), 2);
        assert!(cut[1].len() <= limits::EXEC_LINE_BYTES_MAX + 3 && cut[1].ends_with("ä…"));
        assert!(shortened(vec![String::new(); 100_000]).len() <= limits::EXEC_LINE_BYTES_MAX + 1);
    }

    #[test]
    fn what_is_written_and_has_ended_is_kept_here_no_more() {
        let log = ExecLog::default();
        let id = SandboxId::from_random([1; 18]);
        let (first, second) = (log.begin(&id, 1, Vec::new()), log.begin(&id, 2, Vec::new()));
        let news = log.news();
        assert_eq!((news.execs.len(), log.news().is_empty()), (2, true), "told once");
        first.ended(Exit::TimedOut);
        log.has_written(&news.execs);
        assert_eq!(log.state().execs[&id].len(), 2, "its end is news");
        let news = log.news();
        assert_eq!(news.execs.len(), 1);
        log.has_not_written(news);
        let news = log.news();
        log.has_written(&news.execs);
        assert_eq!(log.state().execs[&id].len(), 1, "what is under way stays");
        second.wrote(7);
        assert_eq!(log.news().execs[0].1.output_bytes, 7);
        log.forget(&id);
        second.ended(Exit::Unknown);
        let news = log.news();
        assert_eq!((news.execs.len(), news.gone.len()), (0, 1));
    }

    #[test]
    fn of_each_sandbox_the_last_ones_wait() {
        let log = ExecLog::default();
        let id = SandboxId::from_random([1; 18]);
        for pid in 0..limits::EXECS_LOGGED_MAX as u32 + 7 {
            log.begin(&id, pid, Vec::new()).ended(Exit::Unknown);
        }
        let state = log.state();
        assert_eq!((state.execs[&id].len(), state.execs[&id][0].exec.pid), (limits::EXECS_LOGGED_MAX, 7));
    }
}
