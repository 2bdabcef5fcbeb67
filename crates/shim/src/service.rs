//! What the shim answers to each request, apart from who asks and how it is sent.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use wrenn_proto::shim::{CONSOLE_TAIL_MAX, ErrorCode, Reason, Reply, Request, STOP_GRACE_MAX_MS, Status};

use crate::complain;
use crate::console::{Drain, Log, Ring};
use crate::limits::PIPE_READ_BYTES;
use crate::pager::Pager;
use crate::vmm::Vmm;

/// The VMM and what it has said.
#[derive(Debug)]
pub struct Service {
    /// The sandbox's id.
    pub sandbox: String,
    /// The VMM.
    pub vmm: Vmm,
    /// What serves its memory, if anything does.
    pub pager: Option<Pager>,
    /// Its serial console.
    pub console: Drain<Ring>,
    /// Its stderr.
    pub log: Drain<Log>,
    /// Where pipes are read into.
    pub buffer: Box<[u8; PIPE_READ_BYTES]>,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answered.
    Reply(Reply),
    /// Refused.
    Refuse(ErrorCode, String),
    /// Answered when the VMM has ended.
    Later(Pending),
    /// Answered with `Done`, then the shim leaves.
    Leave,
}

/// A request that is answered when the VMM has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// With the record.
    Wait,
    /// With `Done`, then the shim leaves.
    Shutdown,
}

impl Service {
    /// Does what is asked. `Hello` is the connection's business and refused here.
    pub fn handle(&mut self, request: Request, now: Instant) -> Verdict {
        match request {
            Request::Hello { .. } => Verdict::Refuse(ErrorCode::Malformed, "a second hello".to_owned()),
            Request::Status => Verdict::Reply(Reply::Status(self.status())),
            Request::ConsoleTail { bytes } => self.console_tail(bytes, now),
            Request::VmmLog => {
                self.log.read(&mut self.buffer, now);
                Verdict::Reply(Reply::VmmLog(self.log.sink.tail()))
            }
            Request::Signal { signal } => self.signal(signal),
            Request::Stop { grace_ms } => self.stop(grace_ms, now),
            Request::Wait => self.wait(),
            Request::Shutdown { kill } => self.shutdown(kill, now),
        }
    }

    /// Looks whether the VMM has ended. If so, its last words are read and its end is recorded before anyone is told.
    pub fn notice_end(&mut self) -> bool {
        let Some(end) = self.vmm.reap() else { return false };
        self.console.finish(&mut self.buffer);
        self.log.finish(&mut self.buffer);
        if let Some(mut pager) = self.pager.take() {
            pager.finish();
        }
        self.vmm.record_end(end);
        true
    }

    /// Serves the VMM's memory; the VMM is ended if that is not possible.
    pub fn serve_memory(&mut self, now: Instant) {
        let Some(Err(error)) = self.pager.as_mut().map(|pager| pager.serve(now)) else { return };
        let detail = crate::with_causes(&error);
        complain(&format!("the VMM is ended, because its memory cannot be served: {detail}"));
        if let Err(error) = self.vmm.kill_for(Reason::MemoryLost, &detail, now) {
            complain(&format!("cannot kill the VMM: {error}"));
        }
    }

    fn status(&self) -> Status {
        Status {
            sandbox: self.sandbox.clone(),
            pid: std::process::id(),
            vmm: self.vmm.status(),
            console_bytes: self.console.sink.total(),
            console_throttled: self.console.throttled(),
            vmm_log_bytes: self.log.sink.total(),
        }
    }

    fn console_tail(&mut self, bytes: u32, now: Instant) -> Verdict {
        self.console.read(&mut self.buffer, now);
        match self.console.sink.tail(u64::from(bytes.min(CONSOLE_TAIL_MAX))) {
            Ok(tail) => Verdict::Reply(Reply::Console(tail)),
            Err(error) => failed(&error),
        }
    }

    fn signal(&self, number: i32) -> Verdict {
        let Some(signal) = Signal::from_named_raw(number) else {
            return Verdict::Refuse(ErrorCode::Malformed, format!("{number} is no signal"));
        };
        match self.vmm.signal(signal) {
            Ok(true) => Verdict::Reply(Reply::Done),
            Ok(false) => Verdict::Refuse(ErrorCode::VmmEnded, "the VMM has ended".to_owned()),
            Err(error) => failed(&error),
        }
    }

    fn stop(&mut self, grace_ms: u32, now: Instant) -> Verdict {
        let grace = Duration::from_millis(u64::from(grace_ms.min(STOP_GRACE_MAX_MS)));
        match self.vmm.stop(grace, Reason::StopRequested, now) {
            Ok(()) => Verdict::Reply(Reply::Done),
            Err(error) => failed(&error),
        }
    }

    fn wait(&self) -> Verdict {
        match self.vmm.record() {
            Some(record) => Verdict::Reply(Reply::Ended(record.clone())),
            None => Verdict::Later(Pending::Wait),
        }
    }

    fn shutdown(&mut self, kill: bool, now: Instant) -> Verdict {
        if self.vmm.record().is_some() {
            return Verdict::Leave;
        }
        if !kill {
            let message = "the VMM runs; stop it first, or ask for its end with `kill`";
            return Verdict::Refuse(ErrorCode::VmmRunning, message.to_owned());
        }
        match self.vmm.stop(Duration::ZERO, Reason::ShutdownRequested, now) {
            Ok(()) => Verdict::Later(Pending::Shutdown),
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> Verdict {
    Verdict::Refuse(ErrorCode::Failed, crate::with_causes(error))
}
