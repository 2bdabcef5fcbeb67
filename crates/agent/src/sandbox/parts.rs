//! What exists of a sandbox on the host, and taking it down, piece by piece.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use wrenn_engine::cgroup::{Cgroup, CgroupError, OutOfMemory};
use wrenn_engine::names::LayerId;
use wrenn_engine::network::{Lease, NetworkError};
use wrenn_engine::storage::{self, Backend, Disk, StorageError};
use wrenn_engine::vmm::Shim;
use wrenn_proto::shim::ring;
use wrenn_sys::process;

use super::Stopwatch;
use crate::envd_client::EnvdClient;
use crate::faults::{Injected, Step};
use crate::generation::{Allocated, Generation, Generations, Number};
use crate::host::Host;
use crate::host_agent::{Stat, Timeout, with_causes};
use crate::instance::{InstanceError, Places};
use crate::layers::Layers;
use crate::lock::Lock;
use crate::manifest::{Manifest, ManifestError, MemoryBase, State, unix_ms};
use crate::reconcile;

/// Numbers of signed calls (nanoseconds, mostly) that are taken for used: a minute.
const NONCES_AHEAD: u64 = 60_000_000_000;

/// What exists of a sandbox. The order of the fields is the order of teardown: the VM holds disk and network.
pub struct Parts {
    pub(super) shim: Option<Shim>,
    /// Where the VM runs: whatever is in there is killed before disk and network go.
    pub(super) cgroup: Option<Cgroup>,
    pub(super) disk: Option<Disk>,
    pub(super) lease: Option<Lease>,
    pub(super) places: Places,
    pub(super) manifest: Manifest,
    pub(super) host: Arc<Host>,
    /// Held until the last file is gone: who finds the lock free finds an orphan.
    _lock: Lock,
}

/// A piece that cannot be taken down.
#[derive(Debug, thiserror::Error)]
pub enum TakeDownError {
    /// The control group.
    #[error("cannot remove the control group of the sandbox")]
    Cgroup(#[from] CgroupError),
    /// The network.
    #[error("cannot take down the network of the sandbox")]
    Network(#[from] NetworkError),
    /// The instance's files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The disk.
    #[error("cannot let go of the disk of the sandbox")]
    Disk(#[from] StorageError),
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl Parts {
    /// A sandbox that has its folders and its manifest, and nothing else yet.
    pub(crate) fn new(host: Arc<Host>, places: Places, manifest: Manifest, lock: Lock) -> Self {
        Self { shim: None, cgroup: None, disk: None, lease: None, places, manifest, host, _lock: lock }
    }

    /// What is written down of it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What its disk is made of.
    pub(super) fn storage(&self) -> Backend {
        self.host.storage.backend()
    }

    pub(super) fn generations(&self) -> Generations {
        Generations::of(&self.places.dir)
    }

    pub(super) fn layers(&self) -> Layers {
        Layers::of(&self.places.dir)
    }

    /// `step` was just done.
    pub(super) fn reached(&self, step: Step) -> Result<(), Injected> {
        self.host.faults.at(step, self.shim.as_ref())
    }

    /// Writes down that it is in `state`.
    pub(crate) fn note(&mut self, state: State) -> Result<(), ManifestError> {
        self.manifest.state = state;
        self.write()
    }

    pub(crate) fn write(&mut self) -> Result<(), ManifestError> {
        self.manifest.write(&self.places.manifest())
    }

    /// The VM and all its processes have ended afterwards. Idempotent.
    pub(super) async fn end_vm(&mut self) -> Result<(), TakeDownError> {
        let shim = self.shim.take();
        let (host, places) = (Arc::clone(&self.host), self.places.clone());
        blocking(move || match shim {
            Some(shim) if shim.is_child() => shim.end(),
            Some(_) | None => reconcile::end_vm(&host.instance, &places),
        })
        .await;
        if let Some(cgroups) = &self.host.cgroups {
            let cgroup = self.cgroup.take().unwrap_or_else(|| cgroups.at(&self.manifest.id));
            blocking(move || cgroup.destroy()).await?;
        }
        self.manifest.memory_base = None;
        Ok(())
    }

    /// The network is free afterwards, also one that an earlier process has left.
    pub(super) async fn free_network(&mut self) -> Result<(), TakeDownError> {
        let network = &self.host.network;
        match (self.lease.take(), self.manifest.slot) {
            (Some(lease), _) => lease.destroy().await?,
            (None, Some(slot)) => match network.adopt(slot).await {
                Ok(lease) => lease.destroy().await?,
                // Half of it, or nothing any more: then by the names of what is there.
                Err(_not_whole) => {
                    let mut kept = reconcile::kept_slots(&self.host.instance)?;
                    kept.remove(&slot);
                    network.sweep(&kept).await?;
                }
            },
            (None, None) => {}
        }
        self.manifest.slot = None;
        Ok(())
    }

    /// The disk's devices are gone afterwards, its live file stays.
    pub(super) async fn detach_disk(&mut self) -> Result<(), TakeDownError> {
        if let Some(disk) = self.disk.clone() {
            let storage = Arc::clone(&self.host.storage);
            blocking(move || storage.detach(&disk)).await?;
        }
        Ok(())
    }

    /// The live disk is gone afterwards.
    pub(super) async fn remove_disk(&mut self) -> Result<(), TakeDownError> {
        if let Some(disk) = self.disk.clone() {
            let storage = Arc::clone(&self.host.storage);
            blocking(move || storage.remove(&disk)).await?;
        }
        self.disk = None;
        self.manifest.disk = None;
        Ok(())
    }

    /// Takes down what is there, and all files. What fails is logged; what is left then is in the folder, whose lock is free
    /// once this returns, and the next start tries again. So the folder stays as long as anything else does.
    pub async fn destroy(mut self, watch: &mut Stopwatch) -> Result<(), TakeDownError> {
        if let Err(error) = self.note(State::Destroying) {
            tracing::warn!(%error, "cannot note that a sandbox is being destroyed");
        }
        let taken_down = self.take_all_down(watch).await;
        match &taken_down {
            Ok(()) => {
                Self::remove_folders(&self.places);
                watch.lap("end files");
            }
            Err(error) => {
                let error = error as &dyn std::error::Error;
                tracing::error!(sandbox = %self.manifest.id, error, "a sandbox is not wholly destroyed; the next start goes on");
            }
        }
        taken_down
    }

    async fn take_all_down(&mut self, watch: &mut Stopwatch) -> Result<(), TakeDownError> {
        self.reached(Step::DestroyBegun)?;
        self.end_vm().await?;
        self.reached(Step::DestroyEnded)?;
        watch.lap("end vmm");
        self.free_network().await?;
        self.reached(Step::DestroyFreed)?;
        watch.lap("end network");
        self.remove_disk().await?;
        self.reached(Step::DestroyDisk)?;
        watch.lap("end disk");
        Ok(())
    }

    /// Its VM is gone: what it had on the host is taken down, and its disk kept.
    pub(crate) async fn stop(&mut self, reason: String) {
        let taken_down = async {
            self.end_vm().await?;
            self.free_network().await?;
            self.detach_disk().await
        };
        match taken_down.await {
            Ok(()) => {
                self.clear_run_dir();
                self.note_or_warn(State::Stopped { reason });
            }
            Err(error) => self.needs_repair(&error),
        }
    }

    /// A step could be neither finished nor undone; `repair` goes on from the state it is in.
    pub(crate) fn needs_repair(&mut self, why: &(dyn std::error::Error + 'static)) {
        let reason = with_causes(why);
        tracing::error!(sandbox = %self.manifest.id, reason, "a sandbox needs a repair: `wrenn repair`");
        let was = match self.manifest.state.clone() {
            State::NeedsRepair { was, .. } => was,
            state => Box::new(state),
        };
        self.note_or_warn(State::NeedsRepair { reason, was });
    }

    /// Where a state is noted that follows from what there is: a crash before it is durable makes the next agent find the same.
    pub(super) fn note_or_warn(&mut self, state: State) {
        if let Err(error) = self.note(state) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sandbox = %self.manifest.id, error, "cannot note the state of a sandbox");
        }
    }

    /// Its time starts to run.
    pub(super) fn start_clock(&mut self) {
        self.manifest.deadline_unix_ms = self.manifest.timeout_ms.map(|timeout| unix_ms().saturating_add(timeout));
    }

    /// Another deadline, counted from now.
    pub(crate) fn set_timeout(&mut self, timeout: Timeout) -> Result<(), ManifestError> {
        self.manifest.timeout_ms = timeout.after.map(|after| after.as_millis() as u64);
        self.manifest.on_timeout = timeout.on_timeout.unwrap_or(self.manifest.on_timeout);
        self.start_clock();
        self.write()
    }

    /// What it takes of the host.
    pub(crate) fn stat(&self) -> Result<Stat, StorageError> {
        let vmm_pid = self.shim.as_ref().and_then(|shim| shim.vmm_pid().ok().flatten());
        // A process that ends while it is looked at takes nothing.
        let usage = vmm_pid.and_then(|pid| process::usage(pid).ok());
        // Neither does a network that is being taken down.
        let traffic =
            self.lease.as_ref().filter(|_| vmm_pid.is_some()).and_then(|lease| lease.traffic().ok().flatten());
        let live = self.disk.as_ref().filter(|disk| disk.path.exists());
        let live_bytes = match live.map(|disk| self.host.storage.status(disk)).transpose()? {
            Some(status) => status.own_bytes,
            None => 0,
        };
        // A template that is gone takes nothing.
        let template = self.host.images.template(&self.manifest.template).ok();
        let shared = template.map_or(Ok(0), |template| storage::allocated_bytes(&template.rootfs))?;
        let Allocated { disk, memory } = self.generations().allocated();
        let kept = disk.plus(memory).plus(self.layers().allocated());
        Ok(Stat {
            memory_bytes: usage.map(|usage| usage.resident_bytes),
            cpu_ms: usage.map(|usage| usage.cpu.as_millis() as u64),
            disk_own_bytes: live_bytes + kept.own_bytes,
            disk_shared_bytes: shared + kept.shared_bytes,
            memory_file_bytes: memory.own_bytes,
            vmm_pid,
            network_rx_bytes: traffic.map(|traffic| traffic.received_bytes),
            network_tx_bytes: traffic.map(|traffic| traffic.sent_bytes),
            // It is asked by who can wait for it.
            guest: None,
        })
    }

    /// The numbers of signed calls that were used, and those that may be before this is done again, are written down with
    /// the next write: a guest takes none that is not larger, also from a host whose clock was set back.
    pub(super) fn keep_nonces(&mut self, envd: &EnvdClient) {
        self.reserve_nonces(envd.nonces().ceiling());
    }

    /// As [`Parts::keep_nonces`], of numbers below `ceiling`.
    pub(super) fn reserve_nonces(&mut self, ceiling: u64) {
        self.manifest.nonces_below = self.manifest.nonces_below.max(ceiling).saturating_add(NONCES_AHEAD);
    }

    /// Removes what the sandbox needs no more of its generations and layers.
    pub(crate) fn collect_garbage(&self) {
        let generations = self.generations();
        let needed = Needed::of(&self.manifest, &generations);
        generations.keep_only(&needed.generations);
        if let Some(layers) = &needed.layers {
            self.layers().keep_only(layers);
        }
        // The disk of the generation whose memory is in use was copied, or is a layer by now.
        if let (State::Running, Some(MemoryBase::Generation(number))) =
            (&self.manifest.state, self.manifest.memory_base)
        {
            generations.folder(number).remove_disk();
        }
    }

    /// Removes both folders of a sandbox; the one with the manifest last.
    pub(crate) fn remove_folders(places: &Places) {
        for folder in [&places.run_dir, &places.dir] {
            if let Err(error) = remove_folder(folder) {
                tracing::warn!(path = %folder.display(), %error, "cannot remove a sandbox's folder");
            }
        }
    }

    /// Removes the sockets of a VM that has ended.
    pub(super) fn clear_run_dir(&self) {
        if let Err(error) = remove_folder(&self.places.run_dir) {
            tracing::warn!(path = %self.places.run_dir.display(), %error, "cannot remove the sockets of a sandbox");
        }
    }

    /// Whether the kernel has killed the VM for want of memory.
    pub(super) fn out_of_memory(&self) -> Option<OutOfMemory> {
        match self.cgroup.as_ref()?.out_of_memory() {
            Ok(shortage) => shortage,
            Err(error) => {
                tracing::warn!(sandbox = %self.manifest.id, %error, "cannot find out whether a VM ended for want of memory");
                None
            }
        }
    }

    /// The last bytes of the serial console, also of a VM that has ended.
    pub fn console_tail(&self, bytes_max: u64) -> Vec<u8> {
        ring::read_tail(&self.places.console(), bytes_max).map(|tail| tail.data).unwrap_or_default()
    }

    /// What the memory of its VM is mapped over.
    pub(super) fn record_memory(&mut self, base: MemoryBase) {
        self.manifest.memory_base = Some(base);
    }

    /// Lets go of everything, and leaves it as it is: the next agent adopts it.
    pub(crate) fn leave(self) {
        if let Some(lease) = self.lease {
            lease.leave();
        }
        if let Some(shim) = self.shim {
            shim.leave();
        }
    }
}

/// What a sandbox rests as, runs on, or will go on from.
struct Needed {
    generations: BTreeSet<Number>,
    /// `None` where it is not known: then all of them.
    layers: Option<BTreeSet<LayerId>>,
}

impl Needed {
    fn of(manifest: &Manifest, generations: &Generations) -> Self {
        let running = match manifest.memory_base {
            Some(MemoryBase::Generation(number)) => Some(number),
            Some(MemoryBase::Zero) | None => None,
        };
        let layers = manifest.disk.iter().flat_map(|disk| disk.beneath.iter().cloned()).collect();
        let mut needed = Self { generations: running.into_iter().collect(), layers: Some(layers) };
        if let Some(number) = manifest.state.generation() {
            needed.generation(number, generations);
        }
        needed
    }

    fn generation(&mut self, number: Number, generations: &Generations) {
        self.generations.insert(number);
        match Generation::read(&generations.folder(number)) {
            Ok(generation) => {
                self.layers.iter_mut().for_each(|layers| layers.extend(generation.disk.beneath.iter().cloned()));
                self.generations.extend(generation.memory.and_then(|memory| memory.builds_on));
            }
            // One that cannot be read may build on any.
            Err(_) => {
                self.generations.extend(generations.numbers());
                self.layers = None;
            }
        }
    }
}

pub(crate) fn remove_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Runs what blocks where blocking is fine. A panic in there is passed on.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
