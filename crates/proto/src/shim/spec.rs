//! What a shim is told: one JSON file, named by its only argument.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ring;

/// The version of [`Spec`]s written here.
pub const SPEC_VERSION: u32 = 2;

/// Largest spec in bytes. A VMM's arguments are a few KiB.
const SPEC_MAX: u64 = 1024 * 1024;

/// Most entries of a [`Jail`]; a VMM needs about ten.
const JAIL_ENTRIES_MAX: usize = 64;

/// Most files that a VM's memory may lie in: a base and what was laid over it.
const PAGER_FILES_MAX: usize = 256;

/// Longest Unix socket path the kernel takes (sun_path less the NUL).
const SOCKET_PATH_MAX: usize = 107;

/// Everything a shim needs to know. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// The sandbox; only passed on.
    pub sandbox: String,
    /// The VMM to start.
    pub vmm: Vmm,
    /// Where the serial console (the VMM's stdout) goes.
    pub console: Console,
    /// Where the VMM's end is recorded, written whole (temp + fsync + rename).
    pub exit_record: PathBuf,
    /// Where the shim listens; at most 107 bytes, the file has mode 0600.
    pub socket: PathBuf,
    /// The inherited descriptor on which the shim says that it is ready ([`super::Ready`]).
    pub ready_fd: i32,
    /// What the VMM's guest memory is served from, for a VMM that has it served.
    #[serde(default)]
    pub pager: Option<Pager>,
    /// Seconds without a client after which a shim whose VMM has ended leaves by itself; 0 is never.
    #[serde(default = "Spec::default_linger_s")]
    pub linger_s: u32,
}

/// The program beside which the shim lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vmm {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Its working directory, entered as its user.
    pub cwd: PathBuf,
    /// Its user; without it, the shim's own with all its rights.
    #[serde(default)]
    pub credentials: Option<Credentials>,
    /// A root of its own; the program's path is then one in there.
    #[serde(default)]
    pub jail: Option<Jail>,
    /// The network namespace's handle.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// The cgroup (v2) folder it is born into.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Descriptors the shim inherited and hands on; the shim keeps no copies.
    #[serde(default)]
    pub fds: Vec<InheritedFd>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// What the kernel's out-of-memory killer adds to its score, -1000 to 1000.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// What a VMM sees as `/`: a small file system in memory, in a mount namespace of its own, that holds these and nothing
/// else, and is read-only once it is built. It is gone with its last process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    /// An empty folder of the host over which it is mounted; nobody else sees that.
    pub mount_point: PathBuf,
    /// What is in there. Folders on the way are made.
    pub entries: Vec<JailEntry>,
}

/// One thing in a [`Jail`], at `path` as seen from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum JailEntry {
    /// A device node of the same number as the host's `source`, mode 0600, the VMM's user's own.
    Device {
        /// Its place inside.
        path: PathBuf,
        /// The host's node.
        source: PathBuf,
    },
    /// A file or folder of the host, mounted read-only.
    ReadOnly {
        /// Its place inside.
        path: PathBuf,
        /// On the host.
        source: PathBuf,
    },
    /// A folder of the host in which the VMM may make files, or a file that it may write; mounted without devices and
    /// programs.
    Writable {
        /// Its place inside.
        path: PathBuf,
        /// On the host.
        source: PathBuf,
    },
}

impl JailEntry {
    /// Its place inside.
    pub fn path(&self) -> &Path {
        match self {
            Self::Device { path, .. } | Self::ReadOnly { path, .. } | Self::Writable { path, .. } => path,
        }
    }

    /// What of the host it is made of.
    pub fn source(&self) -> &Path {
        match self {
            Self::Device { source, .. } | Self::ReadOnly { source, .. } | Self::Writable { source, .. } => source,
        }
    }
}

/// A descriptor that is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InheritedFd {
    /// Its number in the shim, above 2.
    pub shim: i32,
    /// Its number in the VMM, above 2.
    pub vmm: i32,
}

/// A resource limit, in the resource's unit; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// What is limited.
    pub resource: Resource,
    /// Soft limit.
    pub soft: Option<u64>,
    /// Hard limit.
    pub hard: Option<u64>,
}

/// A resource that can be limited, as in setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core file.
    Core,
    /// CPU seconds.
    Cpu,
    /// Bytes of a file.
    FileSize,
    /// Bytes of locked memory.
    LockedMemory,
    /// Open descriptors.
    OpenFiles,
    /// Processes and threads of the user.
    Processes,
    /// Bytes of the main thread's stack.
    Stack,
}

/// The serial console's file and pace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// The ring file ([`super::ring`]); one that is there is replaced.
    pub path: PathBuf,
    /// Size of the whole file in bytes, never exceeded.
    pub bytes: u64,
    /// How fast the console is drained in the long run. A guest that prints faster blocks itself.
    pub bytes_per_second: u32,
    /// How much may come at once after a quiet time, in bytes.
    pub burst_bytes: u32,
}

/// Memory that the shim serves to the VMM, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pager {
    /// Where the VMM says which addresses are to be served; at most 107 bytes. The file belongs to the VMM's user, has mode
    /// 0600, and is gone once the VMM has connected.
    pub socket: PathBuf,
    /// The inherited descriptor of the table that says which page is in which file ([`super::pages`]).
    pub table_fd: i32,
    /// The inherited descriptors of those files, for reading, in the table's order.
    pub file_fds: Vec<i32>,
    /// The inherited descriptor of the working set, for reading and writing: what is in there is served first, and if nothing
    /// is, it is recorded.
    #[serde(default)]
    pub working_set_fd: Option<i32>,
}

impl Pager {
    /// Every descriptor it names.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.file_fds.iter().copied().chain([self.table_fd]).chain(self.working_set_fd)
    }
}

/// Why a spec is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The system said no.
    #[error("cannot read the spec {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no spec.
    #[error("the spec {path} is not understood", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it does not fit.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("the spec has version {found}, this shim knows {SPEC_VERSION}; agent and shim must be of one installation")]
    Version {
        /// The version found.
        found: u32,
    },
    /// It makes no sense; all problems at once.
    #[error("the spec makes no sense: {}", problems.join("; "))]
    Nonsense {
        /// The problems.
        problems: Vec<String>,
    },
}

impl Spec {
    /// The linger of a spec that does not say: a minute is ample for an agent that restarts.
    pub const fn default_linger_s() -> u32 {
        60
    }

    /// Reads and checks a spec.
    pub fn read(path: &Path) -> Result<Self, SpecError> {
        let read_error = |source| SpecError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(SPEC_MAX).read_to_end(&mut bytes)).map_err(read_error)?;
        let json_error = |source| SpecError::Json { path: path.to_owned(), source };
        // The version first: a spec of another one need not fit at all.
        let Version { version } = serde_json::from_slice(&bytes).map_err(json_error)?;
        if version != SPEC_VERSION {
            return Err(SpecError::Version { found: version });
        }
        let spec: Self = serde_json::from_slice(&bytes).map_err(json_error)?;
        spec.check()?;
        Ok(spec)
    }

    /// Says everything that makes no sense. To be called before a spec is written, too.
    pub fn check(&self) -> Result<(), SpecError> {
        let mut problems = Vec::new();
        self.check_paths(&mut problems);
        self.check_jail(&mut problems);
        self.check_console(&mut problems);
        self.check_descriptors(&mut problems);
        if problems.is_empty() { Ok(()) } else { Err(SpecError::Nonsense { problems }) }
    }

    fn check_paths(&self, problems: &mut Vec<String>) {
        let paths = [&self.vmm.program, &self.vmm.cwd, &self.console.path, &self.exit_record, &self.socket];
        let optional = [self.vmm.netns.as_ref(), self.vmm.cgroup.as_ref(), self.pager_socket()];
        for path in paths.into_iter().chain(optional.into_iter().flatten()) {
            if !path.is_absolute() {
                problems.push(format!("{} is not absolute", path.display()));
            }
        }
        for socket in [Some(&self.socket), self.pager_socket()].into_iter().flatten() {
            let length = socket.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                problems.push(format!("a socket's path has {length} bytes, the most is {SOCKET_PATH_MAX}"));
            }
        }
    }

    fn pager_socket(&self) -> Option<&PathBuf> {
        self.pager.as_ref().map(|pager| &pager.socket)
    }

    /// What follows from the text alone; the host has its say when the jail is built.
    fn check_jail(&self, problems: &mut Vec<String>) {
        let Some(Jail { mount_point, entries }) = &self.vmm.jail else { return };
        if entries.len() > JAIL_ENTRIES_MAX {
            problems.push(format!("a jail of {} entries; the most is {JAIL_ENTRIES_MAX}", entries.len()));
        }
        let paths = entries.iter().flat_map(|entry| [entry.path(), entry.source()]);
        for path in paths.chain([mount_point.as_path()]).filter(|path| !is_plain(path)) {
            problems.push(format!("{} in the jail is not a plain absolute path", path.display()));
        }
        let mut places = BTreeSet::new();
        for entry in entries.iter().filter(|entry| !places.insert(entry.path())) {
            problems.push(format!("{} is in the jail twice", entry.path().display()));
        }
    }

    fn check_console(&self, problems: &mut Vec<String>) {
        let sizes = ring::RING_MIN_BYTES..=ring::RING_MAX_BYTES;
        if !sizes.contains(&self.console.bytes) {
            problems.push(format!("a console ring of {} bytes; it has {sizes:?}", self.console.bytes));
        }
        if self.console.bytes_per_second == 0 || self.console.burst_bytes == 0 {
            problems.push("a console that may never print".to_owned());
        }
    }

    fn check_descriptors(&self, problems: &mut Vec<String>) {
        let files = self.pager.as_ref().map_or(0, |pager| pager.file_fds.len());
        if files > PAGER_FILES_MAX {
            problems.push(format!("memory in {files} files; the most is {PAGER_FILES_MAX}"));
        }
        let pagers = self.pager.iter().flat_map(Pager::descriptors);
        let own = self.vmm.fds.iter().map(|fd| fd.shim).chain([self.ready_fd]).chain(pagers);
        let theirs = self.vmm.fds.iter().map(|fd| fd.vmm);
        for (whose, numbers) in [("shim", own.collect::<Vec<_>>()), ("VMM", theirs.collect())] {
            let mut seen = BTreeSet::new();
            for number in numbers {
                if number <= 2 {
                    problems.push(format!("descriptor {number} of the {whose} is a standard one"));
                } else if !seen.insert(number) {
                    problems.push(format!("descriptor {number} of the {whose} is named twice"));
                }
            }
        }
    }
}

/// Absolute, below the root, and without `..`.
fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}
