//! Control groups (v2): what a sandbox may use of the host at most.
//!
//! ```text
//!   /sys/fs/cgroup/                    controllers we had to enable are on record, and taken back with the last wrenn-*
//!     wrenn-TAG/                       one instance; no process is ever directly in it
//!       <sandbox id>/                  one VMM: born into it, with limits in force before it starts
//!       shims/                         the shims of all its sandboxes
//! ```
//!
//! **All or nothing.** A sandbox has every limit ([`Limits`]) or the host has no usable control groups and it has none;
//! limits are read back before a VMM is started under them.
//!
//! **The shim is outside** of its sandbox's group: when memory runs out there, the kernel kills the whole group, and
//! somebody has to record that end. It has a group beside it, so that what shims take (3 MiB each) is counted, and so that
//! they do not end with the service that started them.
//!
//! **The host is left as it was.** Making and removing groups, and all that depends on "is this the last one", happens
//! under one lock for the host, `/run/wrenn/cgroup.lock`, held for milliseconds; the kernel does these one after the
//! other anyway. Which controllers were enabled for us is written down before that is done. A controller that somebody
//! else has come to use meanwhile stays. No process is ever moved.
//!
//! Everything here blocks, for milliseconds but for [`Cgroup::destroy`], which waits for processes to end.

mod controllers;
mod files;
mod lock;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::limits;
use crate::names::{self, InstanceTag, SandboxId};
use crate::probe;
use crate::units::Mib;

use controllers::Controllers;
use files::{Events, number, parse_events};

/// How long killed processes have to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long shims that are ending have when the last sandbox is gone, while the host's lock is held.
const SHIMS_END_LIMIT: Duration = Duration::from_secs(1);
/// The period over which CPU time is limited, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Where systemd mounts the hierarchy; for messages.
const USUAL_MOUNT: &str = "/sys/fs/cgroup";
/// The tag of groups that are made to see whether it works; an age beyond which they are left-overs.
const TRIAL_TAG: &str = "prob";
const TRIAL_AGE: Duration = Duration::from_secs(60);

/// Why control groups cannot be used, or not as they should.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file operation failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file or group.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The hierarchy is not there, or not as a whole.
    #[error(
        "{mount} has no controller {}; boot with systemd.unified_cgroup_hierarchy=1",
        .missing.join(", ")
    )]
    Missing {
        /// Where the hierarchy should be.
        mount: PathBuf,
        /// The controllers it lacks.
        missing: Vec<&'static str>,
    },
    /// A controller cannot be enabled.
    #[error(
        "cannot enable the controller {controller} in {path}; is this a container, or does a real-time process run?"
    )]
    Enable {
        /// Which.
        controller: &'static str,
        /// For the children of which group.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A limit was set and is another one.
    #[error("the limits of {path} are {found:?}, although {wanted:?} were set")]
    NotInForce {
        /// The group.
        path: PathBuf,
        /// What was set.
        wanted: Limits,
        /// What is in force.
        found: Limits,
    },
    /// A file of the kernel's says something else than it should.
    #[error("{path} says `{text}`")]
    Strange {
        /// The file.
        path: PathBuf,
        /// Its text, at most 80 characters.
        text: String,
    },
    /// Its processes were killed and are still there.
    #[error("the processes of {path} were killed and did not end within {} s", .limit.as_secs())]
    Populated {
        /// The group.
        path: PathBuf,
        /// How long they had.
        limit: Duration,
    },
    /// Somebody holds the host's lock for far too long.
    #[error("another process has held {path} for {} s; is a wrenn process stopped or stuck?", lock::LIMIT.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

impl CgroupError {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { step, path, source }
    }
}

/// What a sandbox may use at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory, of which none may be swapped out.
    pub memory: Mib,
    /// Processes and threads.
    pub pids: u32,
    /// CPU time in microseconds per 100 ms of wall time.
    pub cpu_us: u64,
    /// Share of a busy CPU among the host's groups, 1 to 10000; 100 is what everybody has.
    pub cpu_weight: u32,
}

impl Limits {
    /// What a VM of this size needs, and nothing beyond. `emulated`: its instructions are translated, in memory.
    pub fn of_vm(vcpus: u32, memory: Mib, emulated: bool) -> Self {
        let translation = if emulated { limits::VMM_TRANSLATION_MEMORY } else { Mib(0) };
        Self {
            memory: Mib(memory.0.saturating_add(limits::VMM_MEMORY_OVERHEAD.0 + translation.0)),
            pids: limits::VMM_THREADS_MAX,
            cpu_us: u64::from(vcpus) * CPU_PERIOD_US + limits::VMM_CPU_OVERHEAD_US,
            cpu_weight: (100 * vcpus).clamp(1, 10_000),
        }
    }
}

/// What a group uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Memory in bytes, with the cached parts of files.
    pub memory_bytes: u64,
    /// CPU time since its birth.
    pub cpu: Duration,
    /// Processes and threads.
    pub pids: u32,
}

/// Why the kernel killed a group for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfMemory {
    /// Its own limit was reached.
    #[error("its memory limit of {} MiB was reached", .0.0)]
    Limit(Mib),
    /// The host had none left.
    #[error("the host ran out of memory")]
    Host,
}

/// The control groups of one instance.
#[derive(Clone, Debug)]
pub struct Cgroups {
    mount: PathBuf,
    tag: InstanceTag,
    run_dir: PathBuf,
}

impl Cgroups {
    /// Those of the instance `tag` where this process has the unified hierarchy mounted.
    pub fn mounted(tag: InstanceTag, run_dir: &Path) -> Result<Self, CgroupError> {
        Self::open(&mount_point()?, tag, run_dir)
    }

    /// Those of the instance `tag` in the unified hierarchy mounted at `mount`. Changes nothing. `run_dir` is the host's
    /// shared folder.
    pub fn open(mount: &Path, tag: InstanceTag, run_dir: &Path) -> Result<Self, CgroupError> {
        let available = files::words(&mount.join("cgroup.controllers")).unwrap_or_default();
        let missing = controllers::WANTED.into_iter().filter(|name| !available.iter().any(|each| each == name));
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            return Err(CgroupError::Missing { mount: mount.to_owned(), missing });
        }
        Ok(Self { mount: mount.to_owned(), tag, run_dir: run_dir.to_owned() })
    }

    /// Makes the group of a sandbox, with its limits in force. On an error nothing of it is left.
    pub fn create(&self, id: &SandboxId, limits: Limits) -> Result<Cgroup, CgroupError> {
        let cgroup = self.at(id);
        let made = self.make(&cgroup).and_then(|()| cgroup.limit(limits));
        match made {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                if let Err(left) = cgroup.destroy() {
                    tracing::warn!(sandbox = %id, error = %left, "cannot remove a half-made control group");
                }
                Err(error)
            }
        }
    }

    fn make(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        let _changing = lock::host(&self.run_dir)?;
        self.controllers().enable()?;
        make_folder(&self.folder())?;
        controllers::enable_all(&self.folder())?;
        make_folder(&self.shims())?;
        fs::create_dir(&cgroup.path).map_err(CgroupError::io("make the control group", &cgroup.path))
    }

    /// The group of a sandbox, which may be gone or not made yet.
    pub fn at(&self, id: &SandboxId) -> Cgroup {
        Cgroup { path: self.folder().join(names::sandbox_cgroup(id)), owner: self.clone() }
    }

    /// The group for the shims; it is there as long as any sandbox's is.
    pub fn shims(&self) -> PathBuf {
        self.folder().join(names::SHIMS_CGROUP)
    }

    /// The sandboxes that have a group; other names are not ours and stay.
    pub fn sandboxes(&self) -> Result<Vec<SandboxId>, CgroupError> {
        let names = files::folders(&self.folder())?;
        Ok(names.iter().filter_map(|name| names::parse_sandbox_cgroup(name).ok()).collect())
    }

    /// Removes what no sandbox uses: of this instance, and of the host if this was the last one.
    pub fn tidy(&self) -> Result<(), CgroupError> {
        let _changing = lock::host(&self.run_dir)?;
        self.tidy_locked()
    }

    fn tidy_locked(&self) -> Result<(), CgroupError> {
        if !self.sandboxes()?.is_empty() {
            return Ok(());
        }
        let shims = self.shims();
        if shims.exists() {
            files::wait_empty(&shims, SHIMS_END_LIMIT)?;
        }
        remove_folder(&shims)?;
        remove_folder(&self.folder())?;
        let ours = |name: &String| names::parse_instance_cgroup(name).is_ok();
        if files::folders(&self.mount)?.iter().any(ours) {
            return Ok(());
        }
        self.controllers().take_back()
    }

    fn folder(&self) -> PathBuf {
        self.mount.join(names::instance_cgroup(self.tag))
    }

    fn controllers(&self) -> Controllers<'_> {
        Controllers { mount: &self.mount, run_dir: &self.run_dir }
    }
}

/// Where the unified hierarchy is mounted.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mount = probe::cgroup2_mount(&files::read(path)?);
    mount.ok_or_else(|| CgroupError::Missing { mount: USUAL_MOUNT.into(), missing: controllers::WANTED.to_vec() })
}

/// Whether a sandbox's control group can really be made here: makes one with limits, and removes it.
pub fn trial(mount: &Path, run_dir: &Path) -> Result<(), CgroupError> {
    let tag = TRIAL_TAG.parse().expect("a tag");
    let cgroups = Cgroups::open(mount, tag, run_dir)?;
    sweep_trials(&cgroups)?;
    let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut unique = [0; 18];
    unique.iter_mut().zip(nanoseconds.to_le_bytes()).for_each(|(to, from)| *to = from);
    unique[14..].copy_from_slice(&std::process::id().to_le_bytes());
    cgroups.create(&SandboxId::from_random(unique), Limits::of_vm(1, limits::MEMORY_MIN, false))?.destroy()?;
    cgroups.tidy()
}

/// Those of trials that were killed.
fn sweep_trials(cgroups: &Cgroups) -> Result<(), CgroupError> {
    for id in cgroups.sandboxes()? {
        let cgroup = cgroups.at(&id);
        let age = fs::metadata(&cgroup.path).and_then(|metadata| metadata.modified()).ok();
        if age.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > TRIAL_AGE) {
            cgroup.destroy()?;
        }
    }
    Ok(())
}

/// The control group of one sandbox. Dropping it leaves it: whoever owns the sandbox destroys it, or a sweep does.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    owner: Cgroups,
}

impl Cgroup {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the group for its shim.
    pub fn shims(&self) -> PathBuf {
        self.owner.shims()
    }

    /// Sets all limits and reads them back.
    fn limit(&self, wanted: Limits) -> Result<(), CgroupError> {
        self.write("memory.max", &wanted.memory.bytes().to_string())?;
        // A kernel without swap has no such file, and nothing to forbid.
        match self.write("memory.swap.max", "0") {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.write("memory.oom.group", "1")?;
        self.write("pids.max", &wanted.pids.to_string())?;
        self.write("cpu.max", &format!("{} {CPU_PERIOD_US}", wanted.cpu_us))?;
        self.write("cpu.weight", &wanted.cpu_weight.to_string())?;
        let found = self.limits()?;
        if found == wanted { Ok(()) } else { Err(CgroupError::NotInForce { path: self.path.clone(), wanted, found }) }
    }

    /// The limits in force.
    pub fn limits(&self) -> Result<Limits, CgroupError> {
        let cpu = self.path.join("cpu.max");
        let text = files::read(&cpu)?;
        let cpu_us = match text.split_once(' ') {
            Some((quota, period)) if period == CPU_PERIOD_US.to_string() => number(&cpu, quota)?,
            Some(_) | None => return Err(files::strange(&cpu, &text)),
        };
        Ok(Limits {
            memory: self.memory_max()?,
            pids: self.number("pids.max")? as u32,
            cpu_us,
            cpu_weight: self.number("cpu.weight")? as u32,
        })
    }

    /// What it uses now.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let stat = self.path.join("cpu.stat");
        let cpu_us = files::field(&stat, &files::read(&stat)?, "usage_usec")?;
        Ok(Usage {
            memory_bytes: self.number("memory.current")?,
            cpu: Duration::from_micros(cpu_us),
            pids: self.number("pids.current")? as u32,
        })
    }

    /// Whether the kernel has killed in it for want of memory, and whose want that was.
    pub fn out_of_memory(&self) -> Result<Option<OutOfMemory>, CgroupError> {
        let path = self.path.join("memory.events");
        match parse_events(&path, &files::read(&path)?)? {
            Events { kills: 0, .. } => Ok(None),
            Events { limit_reached: 0, .. } => Ok(Some(OutOfMemory::Host)),
            Events { .. } => Ok(Some(OutOfMemory::Limit(self.memory_max()?))),
        }
    }

    /// Kills every process in it; a group that is gone has none.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => self.kill_one_by_one(),
            other => other,
        }
    }

    /// Before Linux 5.14. Frozen, no process can start another one, and none ends but by us: no number is recycled.
    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.write("cgroup.freeze", "1")?;
        files::wait_frozen(&self.path, END_LIMIT)?;
        for pid in files::words(&self.path.join("cgroup.procs"))? {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            let Some(pid) = pid else { continue };
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(CgroupError::io("kill the processes of", &self.path)(errno.into())),
            }
        }
        self.write("cgroup.freeze", "0")
    }

    /// Kills what is in it, waits for that, and removes it, with all that no other sandbox needs. One that is gone is fine.
    /// What cannot be tidied around it is logged, and left to the next one's end or [`Cgroups::tidy`].
    pub fn destroy(self) -> Result<(), CgroupError> {
        if self.path.exists() {
            self.kill()?;
            files::wait_empty(&self.path, END_LIMIT)?;
        }
        let _changing = lock::host(&self.owner.run_dir)?;
        remove_folder(&self.path)?;
        if let Err(error) = self.owner.tidy_locked() {
            tracing::warn!(%error, "control groups that no sandbox uses any more are left");
        }
        Ok(())
    }

    /// Without a limit the most that a [`Mib`] can say.
    fn memory_max(&self) -> Result<Mib, CgroupError> {
        Ok(Mib(u32::try_from(self.number("memory.max")? >> 20).unwrap_or(u32::MAX)))
    }

    fn number(&self, file: &str) -> Result<u64, CgroupError> {
        let path = self.path.join(file);
        number(&path, &files::read(&path)?)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), CgroupError> {
        files::write(&self.path.join(file), text)
    }
}

fn make_folder(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(CgroupError::io("make the control group", path)),
    }
}

fn remove_folder(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(CgroupError::io("remove the control group", path)),
    }
}

#[cfg(test)]
mod tests;
