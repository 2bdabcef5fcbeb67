//! A sandbox's life, from the request to the last file.
//!
//! ```text
//!   Request ─► begun (id, folder, lock, manifest) ─► networked ─► disked ─► booted ─► ready ─► Sandbox
//!                 └──────────────┴──────────┴─────────┴────────┴── any failure ──► Parts::destroy ─► gone
//! ```
//!
//! [`Parts`] is what exists of a sandbox on the host at any moment; destroying it takes down whatever is there, in the
//! reverse order. Its slot is written into the manifest before anything of it is used, and so is `destroying` before
//! anything is taken down; what a crash leaves is found by [`crate::reconcile`].

mod create;
mod parts;
mod pulse;
mod request;
mod room;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wrenn_engine::cgroup::OutOfMemory;
use wrenn_engine::names::SandboxId;
use wrenn_engine::storage::Backend;
use wrenn_engine::vmm::{Description, Incident, Machine, VmEnd};

use self::pulse::Pulse;
use self::room::{News, Room};
use crate::envd_client::EnvdClient;

pub use create::{Cancel, CreateError, create};
pub use parts::Parts;
pub use request::{CheckedShape, HostFacts, Problem, Problems, Shape};

/// What is asked of a new sandbox.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name or id of the template.
    pub template: String,
    /// A kernel image to boot instead of the prepared one.
    pub kernel: Option<PathBuf>,
    /// Its size.
    pub shape: Shape,
    /// How long the guest may take to become ready.
    pub ready_limit: Duration,
}

/// One phase of a sandbox's life and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Which phase.
    pub phase: &'static str,
    /// Wall time.
    pub took: Duration,
}

/// Measures phases one after another.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    timings: Vec<Timing>,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self { last: Instant::now(), timings: Vec::new() }
    }
}

impl Stopwatch {
    /// Ends `phase`, and begins the next.
    pub fn lap(&mut self, phase: &'static str) {
        let now = Instant::now();
        self.timings.push(Timing { phase, took: now - self.last });
        self.last = now;
    }

    /// What was measured so far.
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

/// Something that went wrong with a running sandbox without anybody asking for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Its VM ended.
    #[error("the VM ended on its own: {0}")]
    VmEnded(String),
    /// Its guest has stopped for good, and its VM with it, but for the VMM's process.
    #[error("the VM ended: its guest has switched itself off, or its kernel has stopped")]
    Halted,
    /// The kernel killed its VM.
    #[error("the VM was killed: {0}")]
    OutOfMemory(OutOfMemory),
    /// Its VMM broke the protocol by which it is controlled; it may still run.
    #[error("the VMM cannot be trusted any more: {0}")]
    VmBroken(String),
    /// There is no room for what the guest writes; it stands still.
    #[error("the guest's disk cannot grow: the file system under WRENN_DIR is full; free some space there")]
    DiskFull,
    /// The host cannot read or write its disk.
    #[error("the host cannot read or write the guest's disk: {0}")]
    DiskError(String),
}

/// A sandbox whose guest is ready.
pub struct Sandbox {
    id: SandboxId,
    envd: EnvdClient,
    vmm: Description,
    machine: Box<dyn Machine>,
    ended: oneshot::Receiver<VmEnd>,
    room: Room,
    pulse: Pulse,
    parts: Parts,
    watch: Stopwatch,
}

impl Sandbox {
    /// Which sandbox.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The way into its guest.
    pub fn envd(&self) -> &EnvdClient {
        &self.envd
    }

    /// Which VMM runs it.
    pub fn vmm(&self) -> &Description {
        &self.vmm
    }

    /// What its disk is made of.
    pub fn storage(&self) -> Backend {
        self.parts.storage()
    }

    /// Whether its guest stands still for want of room: then it does not answer either.
    pub fn is_lacking_room(&self) -> bool {
        self.room.is_lacking()
    }

    /// The last `bytes_max` bytes of its serial console, as the guest wrote them.
    pub fn console_tail(&self, bytes_max: u64) -> Vec<u8> {
        self.parts.console_tail(bytes_max)
    }

    /// Waits until something goes wrong with the VM. Cancel safe.
    ///
    /// Meanwhile the guest's CPUs are stopped when there is only a reserve left of the space its disk grows into, and go on
    /// when there is room again.
    pub async fn trouble(&mut self) -> Trouble {
        loop {
            self.room.follow(&self.id, &mut *self.machine).await;
            tokio::select! {
                // The shim's word counts more than a control connection that closed: it knows how the VM ended.
                biased;
                end = &mut self.ended => return self.end(end),
                incident = self.machine.incident() => return match incident {
                    Incident::DiskFull => Trouble::DiskFull,
                    Incident::DiskError(reason) => Trouble::DiskError(reason),
                    Incident::Broken(how) => Trouble::VmBroken(how),
                    Incident::Ended => {
                        let end = (&mut self.ended).await;
                        self.end(end)
                    }
                },
                () = self.pulse.stops(&self.envd), if !self.room.is_lacking() => return Trouble::Halted,
                news = self.room.change(&self.id) => match news {
                    News::Changed => {}
                    News::GivenUp => return Trouble::DiskFull,
                },
            }
        }
    }

    fn end(&self, end: Result<VmEnd, oneshot::error::RecvError>) -> Trouble {
        self.parts.out_of_memory().map_or_else(|| Trouble::VmEnded(ending(end)), Trouble::OutOfMemory)
    }

    /// Takes it down; nothing of it is left. Answers how long each phase of its life took.
    pub async fn destroy(self) -> Vec<Timing> {
        let Self { parts, mut watch, .. } = self;
        parts.destroy(&mut watch).await;
        watch.timings
    }

    /// Ends the current phase of its life.
    pub fn lap(&mut self, phase: &'static str) {
        self.watch.lap(phase);
    }
}

fn ending(end: Result<VmEnd, oneshot::error::RecvError>) -> String {
    match end {
        Ok(VmEnd::Recorded(record)) => format!("the VMM {}", record.end),
        Ok(VmEnd::ShimGone) | Err(_) => "its shim is gone".to_owned(),
    }
}
