//! The VMM's life as the shim sees it.
//!
//! ```text
//! Running ──(stop: SIGTERM, after the grace SIGKILL)──► Running, stopping ──► Ended(record)
//!    └──────────────────(by itself)──────────────────────────────────────────────▲
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wrenn_proto::shim::{DETAIL_MAX_CHARS, End, ExitRecord, RECORD_VERSION, Reason, VmmStatus};
use wrenn_sys::spawn::{Child, ExitStatus};

use crate::{complain, record};

/// The VMM, running or ended.
#[derive(Debug)]
pub struct Vmm {
    sandbox: String,
    record_path: PathBuf,
    pid: u32,
    started_ms: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Running { child: Child, stop: Option<Stop> },
    Ended(ExitRecord),
}

#[derive(Debug)]
struct Stop {
    /// Of the first who asked.
    reason: Reason,
    /// What went wrong, if that is why.
    detail: Option<String>,
    /// `None` once SIGKILL was sent.
    kill_at: Option<Instant>,
}

impl Vmm {
    /// One that was just started.
    pub fn new(sandbox: String, record_path: PathBuf, child: Child, started_ms: u64) -> Self {
        Self { sandbox, record_path, pid: child.pid(), started_ms, state: State::Running { child, stop: None } }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when it has ended; `None` if that was noticed already.
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Running { child, .. } => Some(child.as_fd()),
            State::Ended(_) => None,
        }
    }

    /// How it ended, if it has.
    pub fn record(&self) -> Option<&ExitRecord> {
        match &self.state {
            State::Running { .. } => None,
            State::Ended(record) => Some(record),
        }
    }

    /// For [`wrenn_proto::shim::Status`].
    pub fn status(&self) -> VmmStatus {
        match &self.state {
            State::Running { stop, .. } => {
                VmmStatus::Running { pid: self.pid, started_ms: self.started_ms, stopping: stop.is_some() }
            }
            State::Ended(record) => VmmStatus::Ended(record.clone()),
        }
    }

    /// Sends a signal. `false` if it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match &self.state {
            State::Running { child, .. } => child.signal(signal),
            State::Ended(_) => Ok(false),
        }
    }

    /// Ends it: SIGTERM, and SIGKILL after `grace`; at once if that is zero. A second call can only shorten the first.
    pub fn stop(&mut self, grace: Duration, reason: Reason, now: Instant) -> io::Result<()> {
        let State::Running { child, stop } = &mut self.state else { return Ok(()) };
        let kill_at = now + grace;
        match stop {
            None => *stop = Some(Stop { reason, detail: None, kill_at: Some(kill_at) }),
            Some(Stop { kill_at: Some(earlier), .. }) => *earlier = kill_at.min(*earlier),
            Some(Stop { kill_at: None, .. }) => return Ok(()),
        }
        if grace.is_zero() {
            return self.kill_if_due(now);
        }
        child.signal(Signal::TERM).map(drop)
    }

    /// Kills it at once, because of something that went wrong. The reason of somebody who asked before stays.
    pub fn kill_for(&mut self, reason: Reason, detail: &str, now: Instant) -> io::Result<()> {
        let State::Running { stop, .. } = &mut self.state else { return Ok(()) };
        let detail = Some(detail.chars().take(DETAIL_MAX_CHARS).collect());
        stop.get_or_insert(Stop { reason, detail, kill_at: Some(now) });
        self.stop(Duration::ZERO, reason, now)
    }

    /// When the grace of a stop is over.
    pub fn kill_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running { stop: Some(stop), .. } => stop.kill_at,
            State::Running { stop: None, .. } | State::Ended(_) => None,
        }
    }

    /// Sends SIGKILL if the grace of a stop is over.
    pub fn kill_if_due(&mut self, now: Instant) -> io::Result<()> {
        if self.kill_at().is_none_or(|at| now < at) {
            return Ok(());
        }
        let State::Running { child, stop: Some(stop) } = &mut self.state else { return Ok(()) };
        stop.kill_at = None;
        // The group is its session: whatever the VMM has started dies with it.
        child.signal_group(Signal::KILL).map(drop)
    }

    /// Blocks until it has ended; for a shim that cannot go on.
    pub fn wait_for_end(&self) {
        if let State::Running { child, .. } = &self.state
            && let Err(error) = child.wait()
        {
            complain(&format!("cannot wait for the VMM's end: {error}"));
        }
    }

    /// How it has ended, if it just has; then [`Vmm::record_end`] is next. `None` while it runs and once that is recorded.
    pub fn reap(&self) -> Option<End> {
        let State::Running { child, .. } = &self.state else { return None };
        let end = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(ExitStatus::Exited(code))) => End::Exited { code },
            Ok(Some(ExitStatus::Signalled(signal))) => End::Signalled { signal },
            Err(error) => {
                complain(&format!("cannot learn how the VMM ended: {error}"));
                End::Unknown
            }
        };
        if let Err(error) = child.signal_group(Signal::KILL) {
            complain(&format!("cannot end what the VMM has left behind: {error}"));
        }
        Some(end)
    }

    /// Puts its end on record, on disk first.
    pub fn record_end(&mut self, end: End) {
        let State::Running { stop, .. } = &self.state else { return };
        let record = ExitRecord {
            version: RECORD_VERSION,
            sandbox: self.sandbox.clone(),
            pid: Some(self.pid),
            started_ms: self.started_ms,
            ended_ms: record::unix_ms(),
            end,
            reason: stop.as_ref().map(|stop| stop.reason),
            detail: stop.as_ref().and_then(|stop| stop.detail.clone()),
        };
        if let Err(error) = record::write(&self.record_path, &record) {
            // Those who ask over the socket are still told.
            complain(&format!("cannot write the exit record {}: {error}", self.record_path.display()));
        }
        self.state = State::Ended(record);
    }
}
