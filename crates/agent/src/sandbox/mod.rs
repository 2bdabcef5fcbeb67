//! A sandbox's life, step by step: from the request to the last file.
//!
//! ```text
//!   CreateRequest ─► begun ─► networked ─► disked ─► launched ─► ready ─► Sandbox ──pause──► Parts (a generation)
//!                                                                            ▲                   │
//!                                                                            └──────resume───────┘
//!   Sandbox ──capture──► Stored (a snapshot), and goes on          Stored ──► another sandbox, or this one again (rollback)
//! ```
//!
//! [`Parts`] is what exists of a sandbox on the host at any moment; [`Sandbox`] is one whose VM runs and is under control.
//! Each step is written into the manifest before it is done, and each failure leaves what an ordinary request could have
//! left: a creation nothing, a pause a running sandbox or one that needs a repair, a resume a sandbox at rest. What a crash
//! leaves is found by [`adopt`]. *Whether* a step may be done is [`crate::policy`]'s; who asks for it, and what waits
//! meanwhile, is [`crate::manager`]'s.

pub(crate) mod adopt;
pub(crate) mod capture;
mod create;
mod on_demand;
mod parts;
pub(crate) mod pause;
mod pulse;
mod request;
pub(crate) mod resume;
mod rise;
pub(crate) mod rollback;
mod room;
mod standby;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use wrenn_engine::cgroup::OutOfMemory;
use wrenn_engine::names::SandboxId;
use wrenn_engine::network::{Connector, Lease};
use wrenn_engine::storage::Backend;
use wrenn_engine::vmm::{Description, Incident, Machine, VmEnd, VmmError};

use self::pulse::Pulse;
use self::room::{News, Room};
use crate::envd_client::EnvdClient;
use crate::host_agent::Start;

pub(crate) use create::Checked;
pub use create::{Begun, Cancel, CreateError, Owner, begin, begin_from, create, finish};
pub(crate) use parts::blocking;
pub use parts::{Parts, TakeDownError};
pub use pause::PauseError;
pub(crate) use pause::seal_disk;
pub use request::{CheckedShape, HostFacts, Problem, Problems, Shape};
pub use resume::ResumeError;
pub(crate) use standby::Standby;

use self::rise::Risen;

/// One phase of a sandbox's life and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Which phase.
    pub phase: Cow<'static, str>,
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
        self.timings.push(Timing { phase: phase.into(), took: now - self.last });
        self.last = now;
    }

    /// What was measured so far.
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// What was measured.
    pub fn into_timings(self) -> Vec<Timing> {
        self.timings
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

/// How long the shim has to tell of an end that was noticed otherwise.
const END_WORD_LIMIT: Duration = Duration::from_millis(500);

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
    /// The one that `risen` has just brought up.
    fn new(parts: Parts, risen: Risen, watch: Stopwatch) -> Self {
        let Risen { envd, machine, ended, line: _ } = risen;
        Self {
            id: parts.manifest.id.clone(),
            envd,
            vmm: parts.manifest.vmm.clone(),
            machine,
            ended,
            room: Room::of(&parts),
            pulse: Pulse::of(&parts),
            parts,
            watch,
        }
    }

    /// What there is of it on the host; control over its VM is given up.
    pub(crate) fn into_parts(self) -> Parts {
        self.parts
    }

    /// What there is of it on the host.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What there is of it on the host, to be changed.
    pub(crate) fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    /// What makes connections to its guest.
    pub(crate) fn connector(&self) -> Option<Connector> {
        self.parts.lease.as_ref().map(Lease::connector)
    }

    /// How long each phase of its life took so far.
    pub fn timings(&self) -> &[Timing] {
        self.watch.timings()
    }

    /// Whether its VM has ended by now.
    async fn vm_has_ended(&mut self) -> bool {
        tokio::time::timeout(END_WORD_LIMIT, &mut self.ended).await.is_ok()
    }

    /// Lets its CPUs go on after its disk found no room; `false` where there is known to be none still. Where it is not
    /// known, and there is none, it says so again.
    pub(crate) async fn try_again(&mut self) -> Result<bool, VmmError> {
        if self.room.is_lacking() {
            return Ok(false);
        }
        self.machine.thaw().await?;
        Ok(true)
    }

    /// Lets go of it and leaves it as it is: the next agent adopts it.
    pub(crate) fn leave(self) {
        self.parts.leave();
    }

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

    /// How its VM began.
    pub fn start(&self) -> Start {
        self.parts.manifest.start
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
        // What failed was logged, and the next start goes on.
        parts.destroy(&mut watch).await.ok();
        watch.timings
    }

    /// Ends the current phase of its life.
    pub fn lap(&mut self, phase: &'static str) {
        self.watch.lap(phase);
    }
}

fn ending(end: Result<VmEnd, oneshot::error::RecvError>) -> String {
    match end {
        Ok(VmEnd::Recorded(record)) => format!("the VMM {record}"),
        Ok(VmEnd::ShimGone) | Err(_) => "its shim is gone".to_owned(),
    }
}
