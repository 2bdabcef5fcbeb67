//! VMM drivers: how a microVM is described, started and held.
//!
//! ```text
//!   VmSpec ──Vmm::plan──► Launch ──(the shim starts it)──► process ──Vmm::attach──► Machine: freeze · thaw · stop
//! ```
//!
//! A driver never starts a process itself: it says *what* to start ([`Launch`]: program, arguments, descriptors), the
//! shim is the VMM's parent, and [`Vmm::attach`] takes control over the socket the VMM listens on; a later agent attaches
//! in the same way. Drivers know nothing of networks or disks but descriptors and paths.

mod launcher;
pub mod qemu;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use wrenn_proto::shim::Jail;

use crate::units::Mib;

pub use launcher::{LaunchError, LaunchSpec, Shim, VmEnd, launch};

/// Which VMM runs a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// QEMU's `microvm` machine.
    Qemu,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
        })
    }
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's own translation: works everywhere, about ten times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Which driver this is, as it is shown to people and kept in manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The VMM.
    pub driver: DriverKind,
    /// Its version, such as `10.0.2`.
    pub version: String,
    /// What executes the guest.
    pub accel: Accel,
}

/// One disk layer or live file, already opened by the caller: the VMM runs as a user who may open none of them.
#[derive(Debug)]
pub struct DiskFile {
    /// The open file: read-write for the live file, read-only for a layer.
    pub file: OwnedFd,
    /// Whether it is an overlay (qcow2) or the plain bytes.
    pub overlay: bool,
}

/// A VM to be started. Descriptors are given away: they end in the VMM.
#[derive(Debug)]
pub struct VmSpec {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// What guest memory reads before it is written: an immutable file of the memory's size, mapped privately.
    pub memory_base: OwnedFd,
    /// The kernel image.
    pub kernel: OwnedFd,
    /// The initramfs.
    pub initramfs: OwnedFd,
    /// The kernel's command line.
    pub command_line: String,
    /// The root disk: the live file first, then the layers beneath it, topmost first.
    pub disk: Vec<DiskFile>,
    /// The network interface: a TAP that is up, and the guest's MAC address on it.
    pub tap: OwnedFd,
    /// MAC address of the guest's end, such as `02:fc:00:00:00:05`.
    pub guest_mac: String,
    /// Where the VMM listens for control; made by the driver, mode 0600.
    pub control_socket: PathBuf,
}

/// How to start a VMM: everything the shim needs to know about it.
#[derive(Debug)]
pub struct Launch {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Descriptors it inherits, each under the number its arguments name.
    pub descriptors: Vec<(OwnedFd, i32)>,
    /// The root it is locked into; `None` for a VMM that opens nothing by name.
    pub jail: Option<Jail>,
}

/// Why a VM cannot be started or held. The VMM's own words are in `detail`.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The control socket cannot be made or reached.
    #[error("cannot {step} the VMM's control socket {path}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// Hardware virtualization was there when the host was probed, and is not now.
    #[error("cannot open /dev/kvm; `wrenn doctor` says more")]
    Kvm(#[source] std::io::Error),
    /// The VMM did not answer in time.
    #[error("the VMM did not answer `{command}` within {} ms; it hangs or the host is overloaded", .limit.as_millis())]
    Deadline {
        /// What it was asked.
        command: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The VMM closed its control connection: it has ended.
    #[error("the VMM ended while it was asked to `{command}`")]
    Gone {
        /// What it was asked.
        command: &'static str,
    },
    /// The VMM refused a command.
    #[error("the VMM refused `{command}`: {detail}")]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// Its error.
        detail: String,
    },
    /// The VMM said something that is not its protocol.
    #[error("the VMM's answer to `{command}` is not its protocol: {detail}")]
    Protocol {
        /// What it was asked.
        command: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// Something a VMM says on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incident {
    /// The host's file system is full: the VM is frozen until there is room.
    DiskFull,
    /// Reading or writing the VM's disk failed on the host.
    DiskError(String),
    /// The control connection closed: the VMM has ended.
    Ended,
}

/// Whether the guest's CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// They stand still.
    Frozen,
}

/// A kind of VMM on this host.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Which driver this is.
    fn describe(&self) -> &Description;

    /// The memory a VM really gets when `asked` is asked for: some sizes do not boot on some machine types.
    fn memory(&self, asked: Mib) -> Mib;

    /// What the guest's kernel must be told on this driver's machine: console, how to restart, what to leave out.
    fn kernel_arguments(&self) -> String;

    /// How to start a VMM for `vm`. Makes the control socket; starts nothing.
    fn plan(&self, vm: VmSpec) -> Result<Launch, VmmError>;

    /// Takes control of the VMM that listens at `control_socket`, also one that an earlier agent started.
    async fn attach(&self, control_socket: &Path) -> Result<Box<dyn Machine>, VmmError>;
}

/// Control over one running VMM.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whether the guest's CPUs run.
    async fn run_state(&mut self) -> Result<RunState, VmmError>;

    /// Stops the guest's CPUs and flushes its block devices.
    async fn freeze(&mut self) -> Result<(), VmmError>;

    /// Lets the guest's CPUs go on.
    async fn thaw(&mut self) -> Result<(), VmmError>;

    /// Ends the VMM now; nothing is written back. The shim sees the process end.
    async fn stop(&mut self) -> Result<(), VmmError>;

    /// The next thing the VMM says on its own. Cancel safe.
    async fn incident(&mut self) -> Incident;
}
