//! What nobody owns any more, and taking it away.
//!
//! A sandbox belongs to the process that holds its lock. When that process is gone, however it went, the lock is free, and
//! the next start of this instance finds the sandbox's folder here. One that is the instance's own ([`Places::kept`]) is left
//! to the next agent, with its slot; others are removed. Everything else on the host with this instance's tag is derived
//! from slots; the network's own sweep takes away what has no living owner. Objects of other tags are never touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wrenn_engine::cgroup::{CgroupError, Cgroups};
use wrenn_engine::names::{SandboxId, Slot, SlotName};
use wrenn_engine::network::NetworkError;
use wrenn_engine::storage::{self, StorageError};
use wrenn_engine::vmm::Shim;
use wrenn_sys::process::Identity;

use crate::host::Host;
use crate::instance::{Instance, InstanceError, Places, RUN_DIR, io_error};
use crate::lock::Lock;
use crate::manifest::Manifest;
use crate::sandbox::Parts;

/// How long killed processes of an orphan have to be gone.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often that is looked at: there is nothing to wait on for processes that are not children.
const END_POLL: Duration = Duration::from_millis(5);

/// Why a sweep could not be finished; what was not swept is tried again at the next start.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The instance's files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The network's objects.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The disks' devices.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a sweep took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sandboxes without an owner.
    pub sandboxes: Vec<SandboxId>,
    /// Control groups of sandboxes that have no folder.
    pub cgroups: Vec<SandboxId>,
    /// Devices of disks of sandboxes that have no folder.
    pub disks: Vec<SandboxId>,
    /// Network slots without an owner.
    pub slots: Vec<Slot>,
}

impl Swept {
    /// How much it was.
    pub fn count(&self) -> usize {
        self.sandboxes.len() + self.cgroups.len() + self.disks.len() + self.slots.len()
    }
}

/// Takes away what nobody owns, under the instance's lock. Cheap when there is nothing.
pub async fn sweep(host: &Host) -> Result<Swept, SweepError> {
    let _one_sweeps = host.instance.lock()?;
    let mut swept = Swept::default();
    for id in sandboxes(&host.instance)? {
        if sweep_sandbox(host, &id)? {
            tracing::warn!(sandbox = %id, "removed a sandbox whose owner was gone");
            swept.sandboxes.push(id);
        }
    }
    if let Some(cgroups) = &host.cgroups {
        swept.cgroups = sweep_cgroups(&host.instance, cgroups)?;
    }
    // Devices whose sandbox has no folder: somebody removed that by hand, or the disk it was on is another one now.
    swept.disks = storage::dm::sweep(host.instance.tag(), &|id| host.instance.places(id).dir.exists())?;
    swept.slots = host.network.sweep(&kept_slots(&host.instance)?).await?.removed;
    Ok(swept)
}

/// The slots of sandboxes that are the instance's own, whether an agent has them now or the next one will.
pub(crate) fn kept_slots(instance: &Instance) -> Result<BTreeSet<Slot>, InstanceError> {
    let kept = sandboxes(instance)?.into_iter().map(|id| instance.places(&id)).filter(|places| places.kept().exists());
    Ok(kept.filter_map(|places| slot_of(&places)).collect())
}

/// The slot that a sandbox has, as far as its manifest, or the one before, tells.
fn slot_of(places: &Places) -> Option<Slot> {
    let manifest = Manifest::read(&places.manifest()).or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "taking the manifest before");
        Manifest::read_previous(&places.manifest())
    });
    manifest.ok().flatten().and_then(|manifest| manifest.slot)
}

/// Ids of the sandboxes that have a folder; other names are not ours and stay.
pub fn sandboxes(instance: &Instance) -> Result<Vec<SandboxId>, InstanceError> {
    let folder = instance.sandboxes_dir();
    let failed = || io_error("read the folder", &folder);
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Whether the sandbox had no owner and is gone now.
fn sweep_sandbox(host: &Host, id: &SandboxId) -> Result<bool, InstanceError> {
    let instance = &host.instance;
    let places = instance.places(id);
    if places.kept().exists() {
        return Ok(false);
    }
    let lock_path = places.lock();
    let Some(_lock) = Lock::try_acquire(&lock_path).map_err(io_error("lock", &lock_path))? else {
        return Ok(false);
    };
    end_vm(instance, &places);
    if let Some(cgroups) = &host.cgroups
        && let Err(error) = cgroups.at(id).destroy()
    {
        tracing::error!(sandbox = %id, %error, "the control group of an orphan cannot be removed; the next start tries again");
        return Ok(false);
    }
    // Not before its VM has ended: that has the device open. Whichever storage is chosen now: another one may have been
    // when the disk was made.
    if let Err(error) = storage::dm::sweep(instance.tag(), &|other| other != id) {
        tracing::error!(sandbox = %id, %error, "the disk of an orphan cannot be removed; the next start tries again");
        return Ok(false);
    }
    Parts::remove_folders(&places);
    Ok(true)
}

/// Groups whose sandbox has no folder, and what is around them. A sandbox's folder is made before its group, under the
/// lock that is held here, and removed after it.
fn sweep_cgroups(instance: &Instance, cgroups: &Cgroups) -> Result<Vec<SandboxId>, CgroupError> {
    let mut swept = Vec::new();
    for id in cgroups.sandboxes()? {
        if !instance.places(&id).dir.exists() {
            tracing::warn!(sandbox = %id, "killing what runs in a control group without a sandbox");
            cgroups.at(&id).destroy()?;
            swept.push(id);
        }
    }
    cgroups.tidy()?;
    Ok(swept)
}

/// Ends shim and VMM. The shim is asked first; what still has the sandbox's spec as its argument (a shim that is stuck, or
/// one that did not listen yet), or runs as the slot's user in the slot's namespace, is killed.
pub(crate) fn end_vm(instance: &Instance, places: &Places) {
    Shim::at(&places.shim_socket()).end();
    let vmm = slot_of(places).and_then(|slot| VmmTraits::of(instance, slot));
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = processes(&places.shim_spec(), vmm.as_ref());
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            tracing::error!(?left, "processes of an orphaned sandbox do not end");
            return;
        }
        left.iter().for_each(kill);
        std::thread::sleep(END_POLL);
    }
}

/// By what a slot's VMM is told from every other process.
struct VmmTraits {
    uid: u32,
    /// Device and inode of the network namespace.
    netns: (u64, u64),
}

impl VmmTraits {
    /// `None` when the namespace is gone: then no VMM was started in it, or its shim was ended in order.
    fn of(instance: &Instance, slot: Slot) -> Option<Self> {
        let name = SlotName { tag: instance.tag(), slot }.netns();
        let netns = file_identity(&Path::new(RUN_DIR).join("netns").join(name))?;
        Some(Self { uid: slot.vmm_uid(), netns })
    }

    fn fit(&self, pid: u32) -> bool {
        runs_as(pid, self.uid) && file_identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(self.netns)
    }
}

fn file_identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    // What is not there, or is a process that ends while it is looked at, fits nothing.
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn kill(process: &Identity) {
    if let Err(error) = process.signal(Signal::KILL) {
        tracing::warn!(?process, %error, "cannot kill a process of an orphaned sandbox");
    }
}

/// The living processes that have `spec` as an argument, or are the VMM.
fn processes(spec: &Path, vmm: Option<&VmmTraits>) -> Vec<Identity> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| has_argument(*pid, spec) || vmm.is_some_and(|vmm| vmm.fit(*pid)))
        .filter_map(|pid| Identity::read(pid).ok())
        .filter(|process| process.is_alive().unwrap_or(false))
        .collect()
}

fn has_argument(pid: u32, wanted: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    // A process that ends while it is looked at has no arguments any more.
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == wanted.as_os_str().as_bytes())
}

fn runs_as(pid: u32, uid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().next() == Some(uid.to_string().as_str()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use wrenn_engine::cgroup::{Cgroup, Limits};
    use wrenn_engine::units::Mib;
    use wrenn_sys::spawn::{Child, ExitStatus, Spawn};

    use super::*;

    fn start_in(cgroup: &Cgroup) -> Child {
        let folder = File::open(cgroup.path()).unwrap();
        Spawn::new("/bin/sleep").arg("600").cgroup(folder.as_fd()).start().unwrap()
    }

    #[test]
    fn testbed_a_group_whose_sandbox_has_no_folder_is_swept_with_what_runs_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::open(dir.path()).unwrap();
        let cgroups =
            Cgroups::mounted(instance.tag(), Path::new(RUN_DIR)).expect("control groups; run this in the testbed");
        let [orphan, owned] = [[1; 18], [2; 18]].map(SandboxId::from_random);
        instance.places(&owned).make(false).unwrap();
        let limits = Limits::of_vm(1, Mib(128), false);
        let (lost, kept) = (cgroups.create(&orphan, limits).unwrap(), cgroups.create(&owned, limits).unwrap());
        let (to_be_killed, to_live) = (start_in(&lost), start_in(&kept));

        assert_eq!(sweep_cgroups(&instance, &cgroups).unwrap(), [orphan]);
        assert_eq!(to_be_killed.wait().unwrap(), ExitStatus::Signalled(9));
        assert!(to_live.try_wait().unwrap().is_none());
        assert_eq!(cgroups.sandboxes().unwrap(), std::slice::from_ref(&owned));

        kept.destroy().unwrap();
        to_live.wait().unwrap();
        cgroups.tidy().unwrap();
        assert!(!cgroups.shims().exists());
        Parts::remove_folders(&instance.places(&owned));
    }
}
