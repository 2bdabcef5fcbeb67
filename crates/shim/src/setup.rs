//! From a spec to a running VMM, step by step; the first step that fails undoes the others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wrenn_proto::shim::ring::{RingError, RingWriter};
use wrenn_proto::shim::{self, End, ExitRecord, RECORD_VERSION, Spec};
use wrenn_sys::fds::Inherited;
use wrenn_sys::process::SignalFd;
use wrenn_sys::spawn::{self, Child, Spawn, SpawnError};

use crate::console::{Drain, Log, Ring};
use crate::limits::{PIPE_READ_BYTES, VMM_LOG_BYTES_PER_SECOND};
use crate::pager::{NoPages, Pager};
use crate::record;
use crate::service::Service;
use crate::supervisor::Supervisor;
use crate::throttle::Throttle;
use crate::vmm::Vmm;

/// Why there is no VMM.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The spec names a descriptor that was not inherited.
    #[error("descriptor {number} is named in the spec but was not inherited")]
    Descriptor {
        /// Its number here.
        number: i32,
    },
    /// The socket's path is taken.
    #[error("somebody listens on {path} already; is another shim running for this sandbox?", path = path.display())]
    SocketTaken {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("cannot listen on {path}", path = path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The console ring could not be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Something of the process itself could not be set up.
    #[error("cannot set up {what}")]
    Process {
        /// What.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The VMM's memory could not be served.
    #[error(transparent)]
    Pages(#[from] NoPages),
    /// The VMM could not be started; the record is written.
    #[error("the VMM {}", _0.end)]
    Spawn(Box<ExitRecord>),
}

/// Sets up everything and starts the VMM. The socket listens before the VMM is started, so that whoever learns of the
/// VMM can reach its shim.
pub fn set_up(spec: Spec, mut inherited: Inherited) -> Result<Supervisor, SetupError> {
    detach()?;
    let signals = SignalFd::new(&[Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT]);
    let signals = signals.map_err(|source| SetupError::Process { what: "signals", source })?;
    let socket = Socket::bind(&spec.socket)?;
    let ring = Ring::new(RingWriter::create(&spec.console.path, spec.console.bytes)?);
    let fds = take_descriptors(&spec, &mut inherited)?;
    let user = spec.vmm.credentials.as_ref();
    let pager = spec.pager.as_ref().map(|pager| Pager::set_up(pager, user, &mut inherited)).transpose()?;
    // Those that nobody named are closed.
    drop(inherited);
    let (console_reader, console_writer) = pipe()?;
    let (log_reader, log_writer) = pipe()?;

    let started_ms = record::unix_ms();
    let child = start_vmm(&spec, &fds, &console_writer, &log_writer)
        .map_err(|failure| SetupError::Spawn(Box::new(failure.record(&spec, started_ms))))?;
    // Only the VMM has them from here on, so that their end is its end.
    drop((fds, console_writer, log_writer));

    let now = Instant::now();
    let pace = Throttle::new(spec.console.bytes_per_second, spec.console.burst_bytes, now);
    let log_pace = Throttle::new(VMM_LOG_BYTES_PER_SECOND, VMM_LOG_BYTES_PER_SECOND, now);
    let service = Service {
        vmm: Vmm::new(spec.sandbox.clone(), spec.exit_record, child, started_ms),
        sandbox: spec.sandbox,
        pager,
        console: Drain::new(console_reader, pace, ring),
        log: Drain::new(log_reader, log_pace, Log::default()),
        buffer: Box::new([0; PIPE_READ_BYTES]),
    };
    let linger = (spec.linger_s > 0).then(|| Duration::from_secs(u64::from(spec.linger_s)));
    Ok(Supervisor::new(service, socket, signals, linger))
}

/// A session of its own: what happens to the agent's terminal does not concern us. Files are for us alone.
fn detach() -> Result<(), SetupError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    match rustix::process::setsid() {
        // PERM: we lead a group already, which is as good.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(errno) => Err(SetupError::Process { what: "a session", source: errno.into() }),
    }
}

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    /// Non-blocking.
    pub listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`; the socket of a shim that was killed is replaced.
    pub fn bind(path: &Path) -> Result<Self, SetupError> {
        let error = |source| SetupError::Socket { path: path.to_owned(), source };
        let listener = match UnixListener::bind(path) {
            Err(taken) if taken.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path).map_err(error)?
            }
            bound => bound.map_err(error)?,
        };
        let socket = Self { listener, path: path.to_owned() };
        socket.listener.set_nonblocking(true).map_err(error)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If it is gone already, so much the better; if it cannot be removed, the next shim takes it for stale.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Removes the socket of a shim that was killed; not one that somebody listens on, nor a file of another kind.
fn remove_stale(path: &Path) -> Result<(), SetupError> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(_) | Err(_) => return Err(SetupError::SocketTaken { path: path.to_owned() }),
    }
    let metadata = std::fs::symlink_metadata(path);
    let is_socket = metadata.is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
    if !is_socket {
        return Err(SetupError::SocketTaken { path: path.to_owned() });
    }
    std::fs::remove_file(path).map_err(|source| SetupError::Socket { path: path.to_owned(), source })
}

fn pipe() -> Result<(PipeReader, PipeWriter), SetupError> {
    let error = |source| SetupError::Process { what: "a pipe", source };
    let (reader, writer) = io::pipe().map_err(error)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|errno| error(errno.into()))?;
    Ok((reader, writer))
}

/// The descriptors for the VMM, by their number there.
fn take_descriptors(spec: &Spec, inherited: &mut Inherited) -> Result<BTreeMap<i32, OwnedFd>, SetupError> {
    let take = |fd: &shim::InheritedFd| {
        let taken = inherited.take(fd.shim).ok_or(SetupError::Descriptor { number: fd.shim })?;
        Ok((fd.vmm, taken))
    };
    spec.vmm.fds.iter().map(take).collect()
}

fn start_vmm(
    spec: &Spec,
    fds: &BTreeMap<i32, OwnedFd>,
    console: &PipeWriter,
    log: &PipeWriter,
) -> Result<Child, StartFailure> {
    let vmm = &spec.vmm;
    let netns = vmm.netns.as_deref().map(|path| open("open_netns", path, 0)).transpose()?;
    let folder = rustix::fs::OFlags::DIRECTORY.bits() as i32;
    let cgroup = vmm.cgroup.as_deref().map(|path| open("open_cgroup", path, folder)).transpose()?;
    let mut spawn = Spawn::new(&vmm.program)
        .args(&vmm.args)
        .envs(vmm.env.iter().cloned())
        .cwd(&vmm.cwd)
        .fd(console.as_fd(), 1)
        .fd(log.as_fd(), 2)
        .session()
        .parent_death_signal(Signal::KILL)
        .no_new_privs();
    for (number, fd) in fds {
        spawn = spawn.fd(fd.as_fd(), *number);
    }
    for limit in &vmm.rlimits {
        spawn = spawn.rlimit(rlimit(limit));
    }
    if let Some(shim::Credentials { uid, gid, groups }) = vmm.credentials.clone() {
        spawn = spawn.credentials(spawn::Credentials { uid, gid, groups }).drop_capabilities();
    }
    if let Some(jail) = &vmm.jail {
        spawn = spawn.jail(jail_of(jail));
    }
    if let Some(netns) = &netns {
        spawn = spawn.netns(netns.as_fd());
    }
    if let Some(cgroup) = &cgroup {
        spawn = spawn.cgroup(cgroup.as_fd());
    }
    if let Some(adjustment) = vmm.oom_score_adj {
        spawn = spawn.oom_score_adj(adjustment);
    }
    spawn.start().map_err(StartFailure::from)
}

fn open(step: &'static str, path: &Path, flags: i32) -> Result<File, StartFailure> {
    let opened = File::options().read(true).custom_flags(flags).open(path);
    opened.map_err(|error| StartFailure { step, errno: error.raw_os_error().unwrap_or(0), object: path.to_owned() })
}

fn jail_of(jail: &shim::Jail) -> spawn::Jail {
    let entry = |entry: &shim::JailEntry| match entry.clone() {
        shim::JailEntry::Device { path, source } => spawn::JailEntry::Device { path, source },
        shim::JailEntry::ReadOnly { path, source } => spawn::JailEntry::ReadOnly { path, source },
        shim::JailEntry::Writable { path, source } => spawn::JailEntry::Writable { path, source },
    };
    spawn::Jail { mount_point: jail.mount_point.clone(), entries: jail.entries.iter().map(entry).collect() }
}

fn rlimit(limit: &shim::Rlimit) -> spawn::Rlimit {
    let resource = match limit.resource {
        shim::Resource::AddressSpace => spawn::Resource::AddressSpace,
        shim::Resource::Core => spawn::Resource::Core,
        shim::Resource::Cpu => spawn::Resource::Cpu,
        shim::Resource::FileSize => spawn::Resource::FileSize,
        shim::Resource::LockedMemory => spawn::Resource::LockedMemory,
        shim::Resource::OpenFiles => spawn::Resource::OpenFiles,
        shim::Resource::Processes => spawn::Resource::Processes,
        shim::Resource::Stack => spawn::Resource::Stack,
    };
    spawn::Rlimit { resource, soft: limit.soft, hard: limit.hard }
}

/// The step on which the start of the VMM failed.
#[derive(Debug)]
struct StartFailure {
    step: &'static str,
    errno: i32,
    object: PathBuf,
}

impl From<SpawnError> for StartFailure {
    fn from(error: SpawnError) -> Self {
        Self { step: error.step.as_str(), errno: error.errno(), object: error.entry.unwrap_or(error.program) }
    }
}

impl StartFailure {
    /// Puts it on record.
    fn record(self, spec: &Spec, started_ms: u64) -> ExitRecord {
        let record = ExitRecord {
            version: RECORD_VERSION,
            sandbox: spec.sandbox.clone(),
            pid: None,
            started_ms,
            ended_ms: record::unix_ms(),
            end: End::SpawnFailed { step: self.step.to_owned(), errno: self.errno, program: self.object },
            reason: None,
            detail: None,
        };
        if let Err(error) = record::write(&spec.exit_record, &record) {
            // The ready line says the same.
            crate::complain(&format!("cannot write the exit record {}: {error}", spec.exit_record.display()));
        }
        record
    }
}
