//! Starting programs: the VMM, the shim and every process of a guest.
//!
//! ```text
//! Spawn (what the caller wants) ─► Prepared (C strings, plain numbers) ─► child: system calls only ─► execve
//!                                        ▲                                  │ a step failed
//!                                        └──────────── (step, errno) ◄──────┘
//! ```
//!
//! Nothing is inherited that was not named: the environment is exact, descriptors other than the mapped ones are
//! closed, signals are back at their defaults, and stdin, stdout and stderr that nobody mapped are `/dev/null`.
//!
//! **How the child comes to be.** `clone3(CLONE_VM | CLONE_VFORK)` on a stack of its own: no page table is copied, which
//! matters where each page fault is emulated, and the calling thread sleeps until the child executes the program or
//! ends. The child shares our memory, so that a failed step is simply written there; no pipe is needed. Why that is
//! sound is said in `child.rs`. Two consequences for callers:
//!
//! - The call blocks while the child cannot run, for example when it is born into a frozen cgroup. Async callers use a
//!   blocking thread.
//! - A process that starts another under different credentials stops being dumpable (`PR_SET_DUMPABLE`). That is left
//!   so on purpose: it is what keeps the other user from tracing the child while it still shares our memory.
//!
//! **Who reaps.** A [`Child`] is named by its pidfd, so that a signal never hits a recycled pid. Dropping it neither ends
//! nor reaps the process; whoever starts one waits for it.

mod child;
mod jail;

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};

use child::{Failure, Prepared};

pub use jail::{JAIL_ENTRIES_MAX, Jail, JailEntry};

/// Where the start of a program can fail. The order is the order in which the child takes the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Making sense of the request: a NUL byte in an argument, a relative program path, a descriptor mapped twice.
    Prepare,
    /// Looking at what an entry of the jail is made of.
    JailSource,
    /// `clone3`, including the entry into the cgroup.
    Clone,
    /// `setsid`.
    Session,
    /// `setpgid`.
    ProcessGroup,
    /// `setns` to the network namespace.
    Netns,
    /// Writing `/proc/self/oom_score_adj`.
    OomScore,
    /// `setpriority`.
    Nice,
    /// Bringing the descriptors to their numbers.
    Descriptors,
    /// `TIOCSCTTY` on descriptor 0.
    ControllingTerminal,
    /// `unshare`, and ending the propagation of mounts.
    Namespaces,
    /// Mounting the jail's root.
    JailRoot,
    /// Making a folder of the jail, or the place for a bind mount.
    JailFolder,
    /// Making a device node of the jail.
    JailDevice,
    /// Mounting an entry of the jail, or restricting the mount.
    JailBind,
    /// `pivot_root`, and detaching the old root.
    JailEnter,
    /// Making the jail's root read-only.
    JailSeal,
    /// `setrlimit`.
    Rlimit,
    /// Dropping the bounding set or the other capability sets.
    Capabilities,
    /// `setgroups`.
    Groups,
    /// `setresgid`.
    Gid,
    /// `setresuid`.
    Uid,
    /// `PR_SET_PDEATHSIG`, or the parent was already gone.
    ParentDeathSignal,
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// Entering the working directory, as the user the program will run as.
    WorkingDirectory,
    /// Putting signal dispositions and mask to their defaults.
    Signals,
    /// `execve`.
    Exec,
}

impl Step {
    /// The step's name in records and messages: lower case with underscores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Clone => "clone",
            Self::Session => "session",
            Self::ProcessGroup => "process_group",
            Self::Netns => "netns",
            Self::OomScore => "oom_score",
            Self::Nice => "nice",
            Self::Descriptors => "descriptors",
            Self::ControllingTerminal => "controlling_terminal",
            Self::JailSource => "jail_source",
            Self::Namespaces => "namespaces",
            Self::JailRoot => "jail_root",
            Self::JailFolder => "jail_folder",
            Self::JailDevice => "jail_device",
            Self::JailBind => "jail_bind",
            Self::JailEnter => "jail_enter",
            Self::JailSeal => "jail_seal",
            Self::Rlimit => "rlimit",
            Self::Capabilities => "capabilities",
            Self::Groups => "groups",
            Self::Gid => "gid",
            Self::Uid => "uid",
            Self::ParentDeathSignal => "parent_death_signal",
            Self::NoNewPrivs => "no_new_privs",
            Self::WorkingDirectory => "working_directory",
            Self::Signals => "signals",
            Self::Exec => "exec",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program} (step: {step}{})", of_entry(.entry.as_deref()), program = program.display())]
pub struct SpawnError {
    /// The step that failed.
    pub step: Step,
    /// The place of the jail's entry on which it failed.
    pub entry: Option<PathBuf>,
    /// The program that should have been started.
    pub program: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

fn of_entry(entry: Option<&Path>) -> String {
    entry.map(|path| format!(", of {} in its jail", path.display())).unwrap_or_default()
}

impl SpawnError {
    /// The error number of the failed system call; 0 if the request was refused before any.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// The exit code a shell reports for this failure: 127 if the program does not exist, 126 if it cannot be
    /// executed; `None` if the program was never reached.
    pub fn shell_code(&self) -> Option<i32> {
        match (self.step, self.errno()) {
            (Step::Exec, libc::ENOENT) => Some(127),
            (Step::Exec, _) => Some(126),
            _ => None,
        }
    }
}

/// The user a program runs as; supplementary groups are exactly these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective and saved user.
    pub uid: u32,
    /// Real, effective and saved group.
    pub gid: u32,
    /// Supplementary groups; empty drops all.
    pub groups: Vec<u32>,
}

/// A resource that can be limited, as in setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// A limit, in the resource's unit; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// What is limited.
    pub resource: Resource,
    /// The soft limit.
    pub soft: Option<u64>,
    /// The hard limit.
    pub hard: Option<u64>,
}

/// What to start and how. Each method returns the builder; [`Spawn::start`] does it.
#[derive(Debug)]
#[must_use = "nothing is started before `start`"]
pub struct Spawn<'fd> {
    program: PathBuf,
    arg0: Option<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    descriptors: Vec<(BorrowedFd<'fd>, RawFd)>,
    credentials: Option<Credentials>,
    session: bool,
    process_group: bool,
    controlling_terminal: bool,
    parent_death_signal: Option<Signal>,
    cgroup: Option<BorrowedFd<'fd>>,
    netns: Option<BorrowedFd<'fd>>,
    jail: Option<Jail>,
    no_new_privs: bool,
    drop_capabilities: bool,
    rlimits: Vec<Rlimit>,
    nice: Option<i32>,
    oom_score_adj: Option<i32>,
    umask: u32,
}

impl<'fd> Spawn<'fd> {
    /// A program by its absolute path, with no arguments, an empty environment, `/` as its folder, umask 022.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arg0: None,
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            descriptors: Vec::new(),
            credentials: None,
            session: false,
            process_group: false,
            controlling_terminal: false,
            parent_death_signal: None,
            cgroup: None,
            netns: None,
            jail: None,
            no_new_privs: false,
            drop_capabilities: false,
            rlimits: Vec::new(),
            nice: None,
            oom_score_adj: None,
            umask: 0o022,
        }
    }

    /// What the program sees as its own name; by default its path.
    pub fn arg0(mut self, name: impl Into<OsString>) -> Self {
        self.arg0 = Some(name.into());
        self
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more variable of the environment; a name given twice keeps the later value.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
        self
    }

    /// More variables of the environment.
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        vars.into_iter().fold(self, |spawn, (name, value)| spawn.env(name, value))
    }

    /// The working directory, entered with the rights of the user the program will run as.
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cwd = folder.into();
        self
    }

    /// Gives the program `fd` under the number `target`. Numbers may collide with those in use here.
    pub fn fd(mut self, fd: BorrowedFd<'fd>, target: RawFd) -> Self {
        self.descriptors.push((fd, target));
        self
    }

    /// Runs the program as this user; without it the user stays.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Makes the program leader of a new session (and so of a new process group).
    pub fn session(mut self) -> Self {
        self.session = true;
        self
    }

    /// Makes the program leader of a new process group.
    pub fn process_group(mut self) -> Self {
        self.process_group = true;
        self
    }

    /// Makes the terminal on descriptor 0 the controlling terminal; needs [`Spawn::session`].
    pub fn controlling_terminal(mut self) -> Self {
        self.controlling_terminal = true;
        self
    }

    /// The signal the program gets when its parent ends. "Parent" is the *thread* that calls [`Spawn::start`]: use it
    /// from a thread that lives as long as the process. A set-user-id program loses it.
    pub fn parent_death_signal(mut self, signal: Signal) -> Self {
        self.parent_death_signal = Some(signal);
        self
    }

    /// The cgroup (v2) folder the program is born into.
    pub fn cgroup(mut self, folder: BorrowedFd<'fd>) -> Self {
        self.cgroup = Some(folder);
        self
    }

    /// The network namespace the program runs in.
    pub fn netns(mut self, netns: BorrowedFd<'fd>) -> Self {
        self.netns = Some(netns);
        self
    }

    /// The root the program is locked into. Its path and working directory are then paths in there; its device nodes
    /// belong to the user of [`Spawn::credentials`].
    pub fn jail(mut self, jail: Jail) -> Self {
        self.jail = Some(jail);
        self
    }

    /// Set-user-id bits and file capabilities give the program nothing.
    pub fn no_new_privs(mut self) -> Self {
        self.no_new_privs = true;
        self
    }

    /// Empties every capability set including the bounding set, also for user 0.
    pub fn drop_capabilities(mut self) -> Self {
        self.drop_capabilities = true;
        self
    }

    /// One more resource limit.
    pub fn rlimit(mut self, limit: Rlimit) -> Self {
        self.rlimits.push(limit);
        self
    }

    /// The nice value, -20 to 19.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = Some(nice);
        self
    }

    /// What the kernel's out-of-memory killer adds to the program's score, -1000 to 1000.
    pub fn oom_score_adj(mut self, adjustment: i32) -> Self {
        self.oom_score_adj = Some(adjustment);
        self
    }

    /// The file mode mask, 022 by default.
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = mask;
        self
    }

    /// Starts the program. Returns once it runs, or with the step that failed; then nothing is left of it.
    pub fn start(self) -> Result<Child, SpawnError> {
        let null = self.dev_null().map_err(|source| self.refused(source))?;
        let root = self.plan_jail()?;
        let mut prepared = self.prepare(null.as_ref(), root).map_err(|source| self.refused(source))?;
        child::launch(&mut prepared)
            .map_err(|Failure { step, entry, errno }| self.failed((step, entry, io::Error::from_raw_os_error(errno))))
    }

    fn refused(&self, source: io::Error) -> SpawnError {
        self.failed((Step::Prepare, None, source))
    }

    fn failed(&self, (step, entry, source): jail::NoPlan) -> SpawnError {
        let entries = self.jail.as_ref().map_or(&[][..], |jail| &jail.entries);
        let entry = entry.and_then(|index| entries.get(index)).map(|entry| entry.path().to_owned());
        SpawnError { step, entry, program: self.program.clone(), source }
    }

    fn plan_jail(&self) -> Result<Vec<jail::Operation>, SpawnError> {
        let Some(jail) = &self.jail else { return Ok(Vec::new()) };
        jail::plan(jail, self.credentials.as_ref(), jail::kind).map_err(|no_plan| self.failed(no_plan))
    }

    /// `/dev/null`, if one of the standard descriptors is nobody's.
    fn dev_null(&self) -> io::Result<Option<File>> {
        let all_mapped = (0..=2).all(|number| self.maps(number));
        if all_mapped { Ok(None) } else { File::options().read(true).write(true).open("/dev/null").map(Some) }
    }

    fn maps(&self, number: RawFd) -> bool {
        self.descriptors.iter().any(|(_, target)| *target == number)
    }

    /// Turns the request into what the child can use without allocating.
    fn prepare(&self, null: Option<&File>, root: Vec<jail::Operation>) -> io::Result<Prepared> {
        if !self.program.is_absolute() {
            return Err(invalid("the program's path is not absolute"));
        }
        let arg0 = self.arg0.as_deref().unwrap_or(self.program.as_os_str());
        let args = std::iter::once(arg0).chain(self.args.iter().map(OsString::as_os_str));
        Ok(Prepared::new(child::Request {
            program: c_string(self.program.as_os_str())?,
            argv: args.map(c_string).collect::<io::Result<_>>()?,
            envp: self.env.iter().map(|(name, value)| variable(name, value)).collect::<io::Result<_>>()?,
            cwd: c_string(self.cwd.as_os_str())?,
            mappings: self.mappings(null)?,
            credentials: self.credentials.clone(),
            session: self.session,
            process_group: self.process_group,
            controlling_terminal: self.controlling_terminal,
            parent_death_signal: self.parent_death_signal.map(Signal::as_raw),
            cgroup: self.cgroup.map(|fd| fd.as_raw_fd()),
            netns: self.netns.map(|fd| fd.as_raw_fd()),
            root,
            no_new_privs: self.no_new_privs,
            drop_capabilities: self.drop_capabilities,
            rlimits: self.rlimits.clone(),
            nice: self.nice,
            oom_score_adj: self.oom_score_adj.map(|score| c_string(OsStr::new(&score.to_string()))).transpose()?,
            umask: self.umask,
        }))
    }

    /// Every descriptor the program gets as (ours, its number), by ascending number.
    fn mappings(&self, null: Option<&File>) -> io::Result<Vec<(RawFd, RawFd)>> {
        let mut mappings: Vec<_> = self.descriptors.iter().map(|(fd, target)| (fd.as_raw_fd(), *target)).collect();
        if let Some(null) = null {
            mappings.extend((0..=2).filter(|number| !self.maps(*number)).map(|number| (null.as_raw_fd(), number)));
        }
        mappings.sort_by_key(|(_, target)| *target);
        if mappings.windows(2).any(|pair| pair[0].1 == pair[1].1) {
            return Err(invalid("two descriptors are mapped to one number"));
        }
        if mappings.iter().any(|(_, target)| *target < 0) {
            return Err(invalid("a descriptor is mapped to a negative number"));
        }
        Ok(mappings)
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| invalid("a NUL byte in the program, an argument, the environment or a path"))
}

fn variable(name: &OsStr, value: &OsStr) -> io::Result<CString> {
    if name.is_empty() || name.as_bytes().contains(&b'=') {
        return Err(invalid("an environment variable without a name or with `=` in it"));
    }
    let mut line = name.to_owned().into_vec();
    line.push(b'=');
    line.extend_from_slice(value.as_bytes());
    c_string(OsStr::from_bytes(&line))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code, 0 to 255.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

impl ExitStatus {
    /// The code a shell reports: the exit code, or 128 + the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
        }
    }

    fn from_wait(status: &WaitIdStatus) -> io::Result<Self> {
        let exited = status.exit_status().map(Self::Exited);
        let signalled = status.terminating_signal().map(Self::Signalled);
        exited.or(signalled).ok_or_else(|| io::Error::other("waitid answered neither an exit nor a signal"))
    }
}

/// A started process. Dropping it neither ends nor reaps the process.
///
/// Its pidfd ([`AsFd`]) becomes readable when the process ends, so that an event loop can wait for it.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    status: OnceLock<ExitStatus>,
}

impl Child {
    fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, status: OnceLock::new() }
    }

    /// The process number. Only a name for people and records: it may be recycled once the process was reaped.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended and reaps it. A second call answers the same again.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            match self.wait_with(WaitIdOptions::EXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The status, if the process has ended (it is then reaped); `None` while it runs.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn wait_with(&self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        if let Some(status) = self.status.get() {
            return Ok(Some(*status));
        }
        let answer = match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(answer) => answer,
            // Another thread reaped it between our look at `status` and now, and has stored or will store it there.
            Err(rustix::io::Errno::CHILD) if self.status.get().is_some() => return Ok(self.status.get().copied()),
            Err(errno) => return Err(errno.into()),
        };
        let Some(answer) = answer else { return Ok(None) };
        let status = ExitStatus::from_wait(&answer)?;
        Ok(Some(*self.status.get_or_init(|| status)))
    }

    /// Sends a signal to the process. `false` if it was already reaped.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        gone_is_false(rustix::process::pidfd_send_signal(&self.pidfd, signal).map_err(io::Error::from))
    }

    /// Sends a signal to every process of the group the process leads ([`Spawn::session`] or
    /// [`Spawn::process_group`]). `false` if the group is empty.
    ///
    /// Linux 6.9 reaches the group through the pidfd, also after its leader was reaped. Before that only a leader that
    /// was not reaped yet is taken for proof that the number still means the group; else the answer is `false`.
    pub fn signal_group(&self, signal: Signal) -> io::Result<bool> {
        match child::pidfd_signal_group(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.signal_group_by_number(signal),
            answer => gone_is_false(answer),
        }
    }

    fn signal_group_by_number(&self, signal: Signal) -> io::Result<bool> {
        if self.status.get().is_some() || !gone_is_false(child::pidfd_probe(self.pidfd.as_fd()))? {
            return Ok(false);
        }
        let group = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let group = group.ok_or_else(|| invalid("a pid that is no pid"))?;
        gone_is_false(rustix::process::kill_process_group(group, signal).map_err(io::Error::from))
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn gone_is_false(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The absolute path of a program: as it is if it has a `/` (relative to `cwd`), else the first executable file of that
/// name in `path` (a `PATH` value). The error is the one a shell would report: not found, or found but not executable.
pub fn find_program(name: &OsStr, path: &OsStr, cwd: &Path) -> io::Result<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Ok(cwd.join(name));
    }
    let not_found = io::Error::from_raw_os_error(libc::ENOENT);
    if name.is_empty() {
        return Err(not_found);
    }
    let mut error = not_found;
    for folder in std::env::split_paths(path) {
        let candidate = cwd.join(folder).join(name);
        if !candidate.is_file() {
            continue;
        }
        match rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK) {
            Ok(()) => return Ok(candidate),
            Err(errno) => error = errno.into(),
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests;
