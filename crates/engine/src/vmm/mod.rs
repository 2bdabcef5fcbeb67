//! VMM drivers: how a microVM is described, started and held.
//!
//! ```text
//!   VmSpec ──Vmm::plan──► Plan { launch, boot }
//!                                │      │
//!             the shim starts it ▼      ▼
//!                             process ◄─Boot::boot──► Machine: freeze · capture · thaw · stop
//!                                ▲                       ▲ │
//!                                └── Vmm::attach ────────┘ │  a later agent
//!                                                          ▼
//!                     { devices, memory } ──composed──► Start::Restore of a later VM
//! ```
//!
//! **Memory** of every VM is a *private* mapping over one immutable file, its base: zeroes for a VM that boots, all of a
//! captured VM's memory for one that goes on. A capture gives the state of CPUs and devices as a file, and says where the
//! memory that differs from the base is found; what becomes of it is not a driver's business.
//!
//! A driver never starts a process itself: it says *what* to start ([`Launch`]: program, arguments, descriptors, jail) and
//! the shim is the VMM's parent. What is to be said to it once it runs is [`Boot`]: nothing for QEMU, which finds all of
//! it in its arguments; everything for Firecracker. Drivers know nothing of networks or disks but descriptors and paths.
//! What a VMM answers is not trusted: a guest may have taken it over.

mod capture;
mod cpu;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
pub mod firecracker;
mod launcher;
pub mod qemu;
pub mod seccomp;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use wrenn_proto::shim::Jail;

use crate::names::SandboxId;
use crate::units::Mib;
use crate::words::words;

pub use cpu::GuestCpu;
pub use launcher::{LaunchCgroups, LaunchError, LaunchSpec, Shim, VmEnd, launch};

/// Which VMM runs a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// QEMU's `microvm` machine.
    Qemu,
    /// Firecracker.
    Firecracker,
}

words!(DriverKind: Qemu => "qemu", Firecracker => "firecracker");

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's own translation: works everywhere, about ten times slower.
    Tcg,
}

words!(Accel: Kvm => "kvm", Tcg => "tcg");

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

/// A file of the host under both of its handles: QEMU is given the descriptor, Firecracker finds the path in its jail.
#[derive(Debug)]
pub struct HostFile {
    /// Where it is.
    pub path: PathBuf,
    /// It, opened by the caller: the VMM runs as a user who may open none of them.
    pub file: OwnedFd,
}

impl HostFile {
    /// Opens `path` for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)?.into() })
    }
}

/// How the bytes of a disk are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskForm {
    /// A file of what differs from what lies beneath (qcow2).
    Overlay,
    /// A file of the disk's bytes.
    Raw,
    /// A block device.
    BlockDevice,
}

/// One disk layer or live disk.
#[derive(Debug)]
pub struct DiskFile {
    /// It: open read-write for the live disk, read-only for a layer.
    pub file: HostFile,
    /// How its bytes are kept.
    pub form: DiskForm,
}

impl DiskFile {
    /// Opens the disk that the VM writes. `overlay` tells the two kinds of files apart; a block device is seen.
    pub fn live(path: &Path, overlay: bool) -> io::Result<Self> {
        Self::of(path, OpenOptions::new().read(true).write(true).open(path)?, overlay)
    }

    /// Opens a layer beneath it.
    pub fn layer(path: &Path, overlay: bool) -> io::Result<Self> {
        Self::of(path, File::open(path)?, overlay)
    }

    fn of(path: &Path, file: File, overlay: bool) -> io::Result<Self> {
        let form = match (file.metadata()?.file_type().is_block_device(), overlay) {
            (true, _) => DiskForm::BlockDevice,
            (false, true) => DiskForm::Overlay,
            (false, false) => DiskForm::Raw,
        };
        Ok(Self { file: HostFile { path: path.to_owned(), file: file.into() }, form })
    }
}

/// A network interface's other end: a TAP that is up and belongs to the VMM's user.
#[derive(Debug)]
pub struct Tap {
    /// Its name in the sandbox's network namespace.
    pub name: &'static str,
    /// Its only queue. A driver whose VMM attaches by name lets go of it.
    pub queue: OwnedFd,
}

/// How a VM begins.
#[derive(Debug)]
pub enum Start {
    /// By its kernel; its CPUs run at once.
    Boot,
    /// Where a captured VM stood; its CPUs stand still until they are thawed. Everything else of the [`VmSpec`] must be as
    /// it was, but for the host's end of it: folders, user, files of the same content.
    Restore {
        /// The captured state of CPUs and devices.
        devices: HostFile,
        /// How it comes by its memory.
        memory: MemoryBacking,
    },
}

/// How a VM that is restored comes by its memory.
#[derive(Debug)]
pub enum MemoryBacking {
    /// [`VmSpec::memory_base`] is mapped privately: pages that are only read are shared by all who map it.
    File,
    /// Page by page, served by the shim through userfaultfd, from these. [`VmSpec::memory_base`] is what they are together,
    /// or part of it, and not used.
    Uffd(Pages),
}

/// What the shim serves a VM's memory from. The files are not changed for as long as the VM runs.
#[derive(Debug)]
pub struct Pages {
    /// A file with the table of where each page is ([`wrenn_proto::shim::pages`]).
    pub table: OwnedFd,
    /// The files that it names, for reading.
    pub files: Vec<OwnedFd>,
    /// A file, for reading and writing, of the pages that were wanted first: what it says is served ahead, and if it says
    /// nothing, it is written.
    pub working_set: Option<OwnedFd>,
}

/// A VM to be started. Descriptors are given away: they end in the VMM, or are closed.
#[derive(Debug)]
pub struct VmSpec {
    /// The sandbox.
    pub id: SandboxId,
    /// The user and group the VMM runs as.
    pub uid: u32,
    /// The sandbox's folder for sockets, on tmpfs, which exists and only root may enter. The driver keeps the way to
    /// control the VMM in there.
    pub run_dir: PathBuf,
    /// A folder of the sandbox's that only root may enter, on the file system to which captures go. A VMM that writes
    /// captures itself finds the files for them in there: planning makes them, and the folder where it is missing. What an
    /// earlier VM of the sandbox left there is replaced.
    pub capture_dir: PathBuf,
    /// How it begins.
    pub start: Start,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// What guest memory reads before it is written, unless that is served otherwise: an immutable file of the memory's size, mapped privately. Zeroes for a
    /// VM that boots, where Firecracker has its own; all of the captured memory for one that is restored, and then
    /// Firecracker's user must be allowed to read it, as it must be for `devices`.
    pub memory_base: HostFile,
    /// The kernel image.
    pub kernel: HostFile,
    /// The initramfs.
    pub initramfs: HostFile,
    /// The kernel's command line.
    pub command_line: String,
    /// The root disk: the live disk first, then the layers beneath an overlay, topmost first.
    pub disk: Vec<DiskFile>,
    /// The network interface.
    pub tap: Tap,
    /// MAC address of the guest's end, such as `02:fc:00:00:00:05`.
    pub guest_mac: String,
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
    /// The memory that its shim serves, if it is to serve any.
    pub pager: Option<Pager>,
}

/// Memory that a shim serves.
#[derive(Debug)]
pub struct Pager {
    /// Where the shim listens for the VMM.
    pub socket: PathBuf,
    /// What it serves.
    pub pages: Pages,
}

/// A VM, planned: start `launch`, then `boot`.
#[derive(Debug)]
pub struct Plan {
    /// What the shim is to start.
    pub launch: Launch,
    /// What then is to be said to it.
    pub boot: Box<dyn Boot>,
}

/// Why a VM cannot be started or held. The VMM's own words are in `detail`.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The control socket, or its folder, cannot be made or reached.
    #[error("cannot {step} the VMM's control socket {path}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// The socket or folder.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What lies where the control socket should be is something else: the VMM put it there.
    #[error("the VMM's control socket {path} is not to be trusted: {reason}")]
    Impostor {
        /// The socket.
        path: PathBuf,
        /// What is there instead.
        reason: String,
    },
    /// Hardware virtualization was there when the host was probed, and is not now.
    #[error("cannot open /dev/kvm; `wrenn doctor` says more")]
    Kvm(#[source] io::Error),
    /// The VMM's program or one of the VM's files cannot be looked at.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The VMM's user may not read a file that it must open itself.
    #[error("{path} can be read by its owner only, and the VMM runs as a user of its own; chmod a+r {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
    },
    /// This VMM cannot use a disk of this kind.
    #[error("{driver} takes a block device as its disk, not {found}; use `--storage dm`, or QEMU")]
    Disk {
        /// The driver.
        driver: DriverKind,
        /// What the disk is.
        found: &'static str,
    },
    /// This VMM cannot have its memory served.
    #[error("{driver} maps its memory from a file and cannot have it served (uffd); use the memory backend `file`")]
    NoUffd {
        /// The driver.
        driver: DriverKind,
    },
    /// The host cannot serve memory.
    #[error("there is no {path} on this host, without which no memory is served (uffd); use the memory backend `file`")]
    NoUserfaultfd {
        /// The device.
        path: PathBuf,
    },
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
    /// The control connection ended in the middle of an answer.
    #[error("the VMM ended in the middle of its answer to `{command}`")]
    CutOff {
        /// What it was asked.
        command: &'static str,
    },
    /// An answer larger than any there is.
    #[error("the VMM's answer to `{command}` is longer than {limit} bytes")]
    TooLong {
        /// What it was asked.
        command: &'static str,
        /// The most that is read, in bytes.
        limit: usize,
    },
    /// The VMM refused a command.
    #[error("the VMM refused `{command}`{}: {detail}", .status.map(|status| format!(" (HTTP {status})")).unwrap_or_default())]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// The HTTP status, from a VMM that speaks HTTP.
        status: Option<u16>,
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
    /// Only a VM whose CPUs stand still can be captured.
    #[error("a VM that is `{state}` cannot be captured; freeze it first")]
    NotFrozen {
        /// What it is doing, in the VMM's word.
        state: String,
    },
    /// A file of a capture cannot be made, or is there already.
    #[error("cannot {step} {path}")]
    Capture {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The VMM was given a captured state and could not make use of it.
    #[error("the VMM cannot go on from the captured state: {detail}")]
    Restore {
        /// Its words.
        detail: String,
    },
    /// The program is another version than the one that was looked at, and not one to be used.
    #[error(transparent)]
    Version(#[from] firecracker::RefusedVersion),
}

/// Something a VMM says on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incident {
    /// The host's file system is full: the VM is frozen until there is room.
    DiskFull,
    /// Reading or writing the VM's disk failed on the host.
    DiskError(String),
    /// The VMM broke its protocol: it is not to be trusted any more, and may still run.
    Broken(String),
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

/// What becomes of a VM once it is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It is ended. Nothing is copied: what was captured is the VMM's to change until it has ended.
    Ends,
    /// It goes on, and can be captured again. What was captured is out of its reach.
    GoesOn,
}

/// Where the memory of a captured VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captured {
    /// In the VMM, as long as the VM is frozen: the pages of its private mapping that are no longer its base's.
    InProcess,
    /// In a sparse file of the memory's length, which the VMM wrote and which is not to be trusted in this: data for every
    /// page that was written since the VM's start, zeroed ones too, and maybe for others; holes for the rest.
    Written {
        /// The file.
        path: PathBuf,
    },
}

/// The folders of a sandbox that a later agent needs to take control of its VM; those of its [`VmSpec`].
#[derive(Clone, Copy, Debug)]
pub struct Folders<'a> {
    /// [`VmSpec::run_dir`].
    pub run: &'a Path,
    /// [`VmSpec::capture_dir`].
    pub capture: &'a Path,
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

    /// Whether it enters any ELF kernel (and no packed one); otherwise it wants one with a PVH entry, or a packed one.
    fn enters_any_elf(&self) -> bool;

    /// How to start a VMM for `vm`, and what to tell it then. Makes the place of its control socket; starts nothing.
    fn plan(&self, vm: VmSpec) -> Result<Plan, VmmError>;

    /// The CPU as guests see it on this host: one that was captured goes on only where this, [`Vmm::describe`] and its
    /// shape are the same.
    fn cpu(&self) -> Result<GuestCpu, VmmError>;

    /// Takes control of the VMM whose sandbox has these folders, also one that an earlier agent started.
    async fn attach(&self, folders: Folders<'_>) -> Result<Box<dyn Machine>, VmmError>;
}

/// What is left to do once the VMM's process was started.
#[async_trait]
pub trait Boot: fmt::Debug + Send {
    /// Waits until the VMM listens, tells it what it does not know yet, and lets the guest's CPUs run; those of a VM that is
    /// restored stand still. The caller watches for the process's end meanwhile: a VMM that never listens is waited for
    /// until a deadline.
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, VmmError>;
}

/// Control over one running VMM.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whether the guest's CPUs run.
    async fn run_state(&mut self) -> Result<RunState, VmmError>;

    /// Stops the guest's CPUs. What the guest wrote to its disk is the host's from then on, maybe in the page cache only.
    async fn freeze(&mut self) -> Result<(), VmmError>;

    /// Whether a capture leaves memory where it is ([`Captured::InProcess`]), for the caller to read. It may do so from the
    /// freeze on: what the capture itself does changes nothing in there.
    fn keeps_memory(&self) -> bool;

    /// Captures the frozen VM into the folder `into`: makes the file `devices` there, and, where the VMM itself writes
    /// memory, `memory`; neither may be there yet, and after a failure neither is. Nothing is synced. The VM stays frozen,
    /// and may go on in any case: what [`Then::Ends`] announced need not come true, but then the capture is void.
    async fn capture(&mut self, into: &Path, then: Then) -> Result<Captured, VmmError>;

    /// Lets the guest's CPUs go on.
    async fn thaw(&mut self) -> Result<(), VmmError>;

    /// Ends the VMM now; nothing is written back. The shim sees the process end. A VMM that has ended is fine.
    async fn stop(&mut self) -> Result<(), VmmError>;

    /// The next thing the VMM says on its own. Cancel safe.
    async fn incident(&mut self) -> Incident;
}

/// The names of what a capture makes.
const DEVICES: &str = "devices";
const MEMORY: &str = "memory";

/// What a VMM says, for a message to people: bounded, and nothing in it that drives a terminal.
fn excerpt(bytes: &[u8]) -> String {
    const EXCERPT_MAX: usize = 500;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_MAX)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}
