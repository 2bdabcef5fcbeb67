//! Starting a VMM under its shim, and holding on to the shim.
//!
//! The shim is the VMM's parent from the first moment: it reads its spec from a file, listens, starts the VMM as an
//! unprivileged user in the sandbox's network namespace, control group and, if the driver wants one, jail, and writes
//! down how it ended. A VMM never has capabilities, and `no_new_privs` always. This side only speaks the shim's protocol;
//! it blocks, so callers use a blocking thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use tokio::sync::oneshot;
use wrenn_proto::shim::{
    self, Client, ClientError, Console, Credentials, ExitRecord, InheritedFd, ReadError, Ready, Resource, Rlimit,
    SPEC_VERSION, Spec, SpecError, Vmm, VmmStatus,
};
use wrenn_sys::spawn::{Child, Spawn, SpawnError};

use super::Launch;
use crate::limits;
use crate::names::SandboxId;

/// How long the shim has for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long VMM and shim have to end once they are killed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// The first descriptor number given to a shim; below are its standard ones and the ready descriptor.
const FIRST_FD: i32 = 10;
const READY_FD: i32 = 3;
/// Open descriptors a VMM may have.
const VMM_FILES_MAX: u64 = 256;

/// Where a VMM and its shim live.
#[derive(Debug)]
pub struct LaunchSpec<'a> {
    /// The sandbox.
    pub id: &'a SandboxId,
    /// What to start.
    pub launch: Launch,
    /// The shim's binary.
    pub shim_program: &'a Path,
    /// The sandbox's network namespace.
    pub netns: &'a Path,
    /// The control groups they are born into; without any, only the VM's size limits what it takes.
    pub cgroups: Option<LaunchCgroups>,
    /// The user and group the VMM runs as.
    pub uid: u32,
    /// Largest file the VMM may write, in bytes.
    pub file_bytes_max: u64,
    /// Where the spec goes.
    pub spec_path: &'a Path,
    /// Where the shim listens.
    pub socket: &'a Path,
    /// Where the console ring goes.
    pub console: &'a Path,
    /// Where the end is recorded.
    pub exit_record: &'a Path,
    /// Where the shim's own complaints go.
    pub log: &'a Path,
}

/// Folders of control groups (v2).
#[derive(Clone, Debug)]
pub struct LaunchCgroups {
    /// The VMM's.
    pub vmm: PathBuf,
    /// The shim's: another one, because it has to tell of the other one's end.
    pub shim: PathBuf,
}

/// Why a VMM was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec makes no sense.
    #[error("cannot describe the VMM to its shim")]
    Spec(#[from] SpecError),
    /// A file or pipe of the launch failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The shim's binary did not start.
    #[error("cannot start the shim")]
    Shim(#[from] SpawnError),
    /// The shim did not say how it went.
    #[error("the shim did not start the VMM; see {log}")]
    Silent {
        /// Where its complaints are.
        log: PathBuf,
        /// What was read.
        #[source]
        source: ReadError,
    },
    /// The shim could not set itself up.
    #[error("the shim could not start: {0}")]
    Failed(String),
    /// The VMM's program did not start.
    #[error("the VMM {}", .0)]
    Vmm(Box<ExitRecord>),
}

/// How a VM ended, as far as its shim can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// The shim wrote it down.
    Recorded(ExitRecord),
    /// The shim itself is gone, and the VMM with it.
    ShimGone,
}

/// A shim that runs.
#[derive(Debug)]
pub struct Shim {
    socket: PathBuf,
    /// The process, when this one started it and has to reap it.
    child: Option<Child>,
}

/// Starts a shim, which starts the VMM. Blocks until the VMM runs or did not start.
pub fn launch(spec: LaunchSpec<'_>) -> Result<Shim, LaunchError> {
    let described = describe(&spec);
    described.check()?;
    write_spec(&described, spec.spec_path)?;
    let (ready_read, ready_write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| LaunchError::Io {
        step: "make a pipe for",
        path: spec.socket.to_owned(),
        source: error.into(),
    })?;
    let child = spawn_shim(&spec, &ready_write)?;
    drop(ready_write);
    match Ready::read(File::from(ready_read)) {
        Ok(Ready::Started { .. }) => Ok(Shim { socket: spec.socket.to_owned(), child: Some(child) }),
        Ok(Ready::SpawnFailed(record)) => Err(after(child, LaunchError::Vmm(Box::new(record)))),
        Ok(Ready::Failed { message }) => Err(after(child, LaunchError::Failed(message))),
        Err(source) => Err(after(child, LaunchError::Silent { log: spec.log.to_owned(), source })),
    }
}

fn spawn_shim(spec: &LaunchSpec<'_>, ready: &OwnedFd) -> Result<Child, LaunchError> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(spec.log)
        .map_err(|source| LaunchError::Io { step: "open", path: spec.log.to_owned(), source })?;
    let cgroup = spec.cgroups.as_ref().map(|cgroups| open_folder(&cgroups.shim)).transpose()?;
    let mut spawn = Spawn::new(spec.shim_program)
        .arg0("wrenn-shim")
        .arg(spec.spec_path)
        .fd(log.as_fd(), 2)
        .fd(ready.as_fd(), READY_FD)
        .umask(0o077);
    if let Some(cgroup) = &cgroup {
        spawn = spawn.cgroup(cgroup.as_fd());
    }
    for (fd, number) in all_descriptors(&spec.launch).zip(FIRST_FD..) {
        spawn = spawn.fd(fd.as_fd(), number);
    }
    Ok(spawn.start()?)
}

/// Every descriptor that goes to the shim, in the order of their numbers there: those for the VMM, then the pager's.
fn all_descriptors(launch: &Launch) -> impl Iterator<Item = &OwnedFd> {
    let pages = launch.pager.iter().map(|pager| &pager.pages);
    let pagers = pages.flat_map(|pages| [&pages.table].into_iter().chain(&pages.files).chain(&pages.working_set));
    launch.descriptors.iter().map(|(fd, _)| fd).chain(pagers)
}

/// The pager as its shim is told; its descriptors are numbered as [`all_descriptors`] has them.
fn describe_pager(launch: &Launch) -> Option<shim::Pager> {
    let pager = launch.pager.as_ref()?;
    let mut numbers = FIRST_FD + launch.descriptors.len() as i32..;
    let mut number = || numbers.next().expect("there are enough numbers");
    Some(shim::Pager {
        socket: pager.socket.clone(),
        table_fd: number(),
        file_fds: pager.pages.files.iter().map(|_| number()).collect(),
        working_set_fd: pager.pages.working_set.as_ref().map(|_| number()),
    })
}

fn open_folder(path: &Path) -> Result<File, LaunchError> {
    let folder = rustix::fs::OFlags::DIRECTORY.bits() as i32;
    let opened = OpenOptions::new().read(true).custom_flags(folder).open(path);
    opened.map_err(|source| LaunchError::Io { step: "open the control group", path: path.to_owned(), source })
}

/// Reaps a shim that ended by itself; its end says nothing that the error does not.
fn after(child: Child, error: LaunchError) -> LaunchError {
    if let Err(reaping) = child.wait() {
        tracing::warn!(%reaping, "cannot reap a shim that did not start its VMM");
    }
    error
}

fn describe(spec: &LaunchSpec<'_>) -> Spec {
    let fds = spec.launch.descriptors.iter().zip(FIRST_FD..);
    Spec {
        version: SPEC_VERSION,
        sandbox: spec.id.to_string(),
        vmm: Vmm {
            program: spec.launch.program.clone(),
            args: spec.launch.args.clone(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            credentials: Some(Credentials { uid: spec.uid, gid: spec.uid, groups: Vec::new() }),
            jail: spec.launch.jail.clone(),
            netns: Some(spec.netns.to_owned()),
            cgroup: spec.cgroups.as_ref().map(|cgroups| cgroups.vmm.clone()),
            fds: fds.map(|((_, vmm), shim)| InheritedFd { shim, vmm: *vmm }).collect(),
            rlimits: rlimits(spec.file_bytes_max),
            // Under memory pressure a sandbox goes before what the host itself runs.
            oom_score_adj: Some(500),
        },
        console: Console {
            path: spec.console.to_owned(),
            bytes: limits::CONSOLE_RING_BYTES,
            bytes_per_second: limits::CONSOLE_BYTES_PER_SECOND,
            burst_bytes: limits::CONSOLE_BURST_BYTES,
        },
        exit_record: spec.exit_record.to_owned(),
        socket: spec.socket.to_owned(),
        ready_fd: READY_FD,
        pager: describe_pager(&spec.launch),
        linger_s: Spec::default_linger_s(),
    }
}

fn rlimits(file_bytes_max: u64) -> Vec<Rlimit> {
    [
        (Resource::Core, 0),
        (Resource::OpenFiles, VMM_FILES_MAX),
        (Resource::Processes, u64::from(limits::VMM_THREADS_MAX)),
        (Resource::FileSize, file_bytes_max),
    ]
    .map(|(resource, most)| Rlimit { resource, soft: Some(most), hard: Some(most) })
    .to_vec()
}

fn write_spec(spec: &Spec, path: &Path) -> Result<(), LaunchError> {
    let text = serde_json::to_vec_pretty(spec).expect("a spec is JSON");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(&text))
        .map_err(|source| LaunchError::Io { step: "write", path: path.to_owned(), source })
}

impl Shim {
    /// The shim that listens at `socket`, started by an earlier agent.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), child: None }
    }

    /// Tells, once, how the VM ended. The watch runs on a thread of its own, which ends with the shim.
    pub fn watch(&self) -> oneshot::Receiver<VmEnd> {
        let (tell, told) = oneshot::channel();
        let socket = self.socket.clone();
        std::thread::spawn(move || {
            let ended = Client::connect(&socket, ANSWER_LIMIT).and_then(|mut client| client.wait(None));
            let end = ended.map_or(VmEnd::ShimGone, VmEnd::Recorded);
            // Nobody listens any more: then nobody wants to know.
            drop(tell.send(end));
        });
        told
    }

    /// The VMM's pid; `None` when it has ended.
    pub fn vmm_pid(&self) -> Result<Option<u32>, ClientError> {
        Ok(match Client::connect(&self.socket, ANSWER_LIMIT)?.status()?.vmm {
            VmmStatus::Running { pid, .. } => Some(pid),
            VmmStatus::Ended(_) => None,
        })
    }

    /// The shim's own pid.
    pub fn pid(&self) -> Result<u32, ClientError> {
        Ok(Client::connect(&self.socket, ANSWER_LIMIT)?.status()?.pid)
    }

    /// Whether this process started it, and so can end it in any case.
    pub fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// Lets go of a shim that is to go on: a later agent finds it at its socket.
    pub fn leave(mut self) {
        self.child = None;
    }

    /// The VMM's last words on stderr.
    pub fn vmm_log(&self) -> Result<Vec<u8>, ClientError> {
        Ok(Client::connect(&self.socket, ANSWER_LIMIT)?.vmm_log()?.data)
    }

    /// Kills the VMM, ends the shim, and waits for both. A shim that is gone already is fine.
    pub fn end(self) {
        let shutdown = Client::connect(&self.socket, ANSWER_LIMIT).and_then(|client| client.shutdown(true, END_LIMIT));
        match shutdown {
            Ok(()) | Err(ClientError::Connect { .. } | ClientError::Closed) => {}
            Err(error) => {
                // It does not listen to reason: then it is killed, and the VMM with it.
                self.kill();
                tracing::warn!(%error, "the shim did not end its VM when asked and was killed");
            }
        }
        self.reap();
    }

    fn kill(&self) {
        if let Some(child) = &self.child
            && let Err(error) = child.signal(Signal::KILL)
        {
            tracing::warn!(%error, "cannot kill a shim");
        }
    }

    fn reap(&self) {
        if let Some(child) = &self.child
            && let Err(error) = child.wait()
        {
            tracing::warn!(%error, "cannot reap a shim");
        }
    }
}
