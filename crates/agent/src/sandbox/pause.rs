//! To rest: a VM becomes a generation.
//!
//! ```text
//!   users frozen ─► CPUs frozen ─► captured ─► durable ─┃─► VM ended ─► disk detached ─► moved ─► whole ─► network free ─► Paused
//!   └──────────── any failure: thawed, it goes on ──────┘┃└──────── any failure: NeedsRepair, and `finish` goes on ─────────┘
//!                                                no way back
//! ```
//!
//! The line between the two is one word in the manifest ([`Progress::Captured`]), written when all that the VM knew is
//! durable. A crash before it is undone by the next agent, one after it finished. Nothing after it needs room on the disk:
//! what is still written then was given its place before. The VM is ended before its disk's devices are removed: it has them
//! open. Nothing of the generation that it ran on is touched.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_engine::memory::{
    self, Base, Capture, CaptureError, Checksums, Files, MemoryError, PAGE_BYTES, Patch, Prepared,
};
use wrenn_engine::storage::StorageError;
use wrenn_engine::vmm::{Captured, GuestCpu, Machine, Then, VmmError};

use super::parts::{TakeDownError, blocking};
use super::resume;
use super::rise::host_key;
use super::{Parts, Sandbox, Stopwatch};
use crate::durable::{self, Staged};
use crate::envd_client::{EnvdClient, EnvdError};
use crate::faults::{Injected, Step};
use crate::generation::{self, Folder, Generation, GenerationError, Number};
use crate::host::{Host, zero_memory};
use crate::host_agent::{PauseOptions, with_causes};
use crate::instance::{InstanceError, Places, io_error};
use crate::manifest::{ManifestError, MemoryBase, Progress, State, unix_ms};
use crate::snapshot::SnapshotError;

/// Why a sandbox was not put to rest.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The guest does not stand still, or does not sync its disk.
    #[error("the guest does not come to rest")]
    Guest(#[from] EnvdError),
    /// The VMM.
    #[error("cannot capture the VM")]
    Vmm(#[from] VmmError),
    /// Memory cannot be read from the VM.
    #[error("cannot capture the VM's memory")]
    Capture(#[from] CaptureError),
    /// Memory cannot be kept.
    #[error("cannot keep the VM's memory")]
    Memory(#[from] MemoryError),
    /// The generation's files.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A snapshot's files.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The disk.
    #[error("cannot keep the disk")]
    Storage(#[from] StorageError),
    /// Something cannot be taken down.
    #[error(transparent)]
    TakeDown(#[from] TakeDownError),
    /// The instance's files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its guest stands still already, and must not go on.
    #[error("the sandbox stands still for want of room on the disk; free some space under WRENN_DIR first")]
    NoRoom,
    /// The VM ended by itself before it was captured.
    #[error("the VM ended while it was being captured")]
    VmGone,
    /// Its process is not known.
    #[error("the shim does not say which process the VMM is")]
    NoPid,
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// What is left when a pause fails.
pub enum Unpaused {
    /// It goes on as before.
    GoesOn(Box<Sandbox>),
    /// Its VM is gone, and what it had in memory.
    VmGone(Box<Parts>),
    /// There was no way back, and [`finish`] has to be tried again. Nothing is lost.
    Stuck(Box<Parts>),
}

/// Puts a sandbox to rest.
pub(crate) async fn pause(
    mut sandbox: Sandbox,
    options: PauseOptions,
    watch: &mut Stopwatch,
) -> Result<Parts, (Unpaused, PauseError)> {
    if sandbox.is_lacking_room() {
        return Err((Unpaused::GoesOn(Box::new(sandbox)), PauseError::NoRoom));
    }
    match capture(&mut sandbox, options, watch).await {
        Ok(()) => {}
        Err(error) => return Err((undo(sandbox).await, error)),
    }
    let mut parts = sandbox.into_parts();
    match finish(&mut parts, watch).await {
        Ok(()) => Ok(parts),
        Err(error) => Err((Unpaused::Stuck(Box::new(parts)), error)),
    }
}

/// Everything up to the point of no return.
async fn capture(sandbox: &mut Sandbox, options: PauseOptions, watch: &mut Stopwatch) -> Result<(), PauseError> {
    let number = sandbox.parts.manifest.newest_generation.next();
    sandbox.parts.manifest.newest_generation = number;
    sandbox.parts.keep_nonces(&sandbox.envd);
    sandbox.parts.note(State::Pausing { generation: number, progress: Progress::Capturing })?;
    sandbox.parts.reached(Step::PauseBegun)?;
    watch.lap("note");
    let folder = sandbox.parts.generations().begin(number)?;

    // What need not be done while the guest stands still is done while it comes to a stand.
    let (frozen, ready) = tokio::join!(sandbox.envd.freeze(host_key(&sandbox.parts)), async {
        match options.disk_only {
            true => Ok(None),
            false => prepare_memory(&sandbox.parts, &*sandbox.machine, &folder).await.map(Some),
        }
    });
    frozen?;
    let ready = ready?;
    if options.disk_only {
        sandbox.envd.fs_freeze(host_key(&sandbox.parts)).await?;
    }
    sandbox.parts.reached(Step::PauseUsersFrozen)?;
    watch.lap("freeze users");

    sandbox.machine.freeze().await?;
    sandbox.parts.reached(Step::PauseFrozen)?;
    watch.lap("freeze cpus");
    let kept = match ready {
        None => Kept::Disk,
        Some(ready) => capture_memory(&mut *sandbox.machine, (&folder, ready), Then::Ends, watch).await?,
    };
    sandbox.parts.reached(Step::PauseCaptured)?;
    make_durable(&sandbox.parts, number, &folder, kept).await?;
    sandbox.parts.reached(Step::PauseDurable)?;
    watch.lap("sync");
    sandbox.parts.note(State::Pausing { generation: number, progress: Progress::Captured })?;
    sandbox.parts.reached(Step::PauseDecided)?;
    watch.lap("decide");
    Ok(())
}

/// What is known and made before the VM stands still.
pub(super) struct Ready {
    cpu: GuestCpu,
    base: Arc<Base>,
    /// The generation that the base is of.
    builds_on: Option<Number>,
    /// Where the VMM leaves memory to us.
    memory: Option<Prepared>,
}

/// Gets ready to capture memory.
pub(super) async fn prepare_memory(parts: &Parts, machine: &dyn Machine, folder: &Folder) -> Result<Ready, PauseError> {
    let cpu = parts.host.vmm.cpu()?;
    let (base, builds_on) = open_base(parts)?;
    let base = Arc::new(base);
    let memory = match machine.keeps_memory() {
        true => {
            let pid = parts.shim.as_ref().and_then(|shim| shim.vmm_pid().ok()).ok_or(PauseError::NoPid)?;
            let pid = pid.ok_or(PauseError::VmGone)?;
            let (base, files) = (Arc::clone(&base), folder.memory_files());
            Some(blocking(move || Prepared::of(pid, base, &files.patch_data)).await?)
        }
        false => None,
    };
    Ok(Ready { cpu, base, builds_on, memory })
}

/// What was captured, not durable yet.
pub(super) enum Kept {
    /// Only the disk is to be kept.
    Disk,
    /// The memory is whole by itself.
    Whole { cpu: GuestCpu, memory: Changed, base: Arc<Base> },
    /// The memory is what changed since this generation's.
    Changes { cpu: GuestCpu, memory: Changed, builds_on: Number },
}

/// What changed in memory.
pub(super) enum Changed {
    /// It is in our memory.
    Held(Capture),
    /// The VMM has written it.
    Written(Patch),
}

impl Kept {
    /// The CPU that the memory is of, and the generation it builds on.
    pub(super) fn of_memory(&self) -> Option<(GuestCpu, Option<Number>)> {
        match self {
            Self::Disk => None,
            Self::Whole { cpu, .. } => Some((cpu.clone(), None)),
            Self::Changes { cpu, builds_on, .. } => Some((cpu.clone(), Some(*builds_on))),
        }
    }
}

impl Changed {
    /// As a patch, which takes more time than a VM should stand still.
    fn into_patch(self) -> Result<Patch, MemoryError> {
        match self {
            Self::Held(capture) => Ok(capture.sort_out()?.patch),
            Self::Written(patch) => Ok(patch),
        }
    }
}

/// Takes state and memory of a VM whose CPUs stand still.
pub(super) async fn capture_memory(
    machine: &mut dyn Machine,
    (folder, ready): (&Folder, Ready),
    then: Then,
    watch: &mut Stopwatch,
) -> Result<Kept, PauseError> {
    let Ready { cpu, base, builds_on, memory } = ready;
    let captured = machine.capture(&folder.memory(), then).await?;
    watch.lap("devices");
    let memory = match (captured, memory) {
        (Captured::InProcess, Some(prepared)) => Changed::Held(blocking(move || prepared.capture()).await?),
        (Captured::InProcess, None) => unreachable!("a VMM that keeps memory to itself has said so"),
        (Captured::Written { path }, _) => {
            let (base, files) = (Arc::clone(&base), folder.memory_files());
            let taken = blocking(move || take_written(&path, &files, &base)).await?;
            Changed::Written(taken)
        }
    };
    watch.lap("memory");
    Ok(match builds_on {
        None => Kept::Whole { cpu, memory, base },
        Some(builds_on) => Kept::Changes { cpu, memory, builds_on },
    })
}

fn take_written(path: &Path, files: &Files, base: &Base) -> Result<Patch, PauseError> {
    fs::rename(path, &files.patch_data).map_err(io_error("rename", path))?;
    Ok(Patch::of_sparse(&files.patch_data, base.bytes())?)
}

/// What the memory of the VM that runs is mapped over.
fn open_base(parts: &Parts) -> Result<(Base, Option<Number>), PauseError> {
    match parts.manifest.memory_base {
        Some(MemoryBase::Generation(number)) => {
            let files = parts.generations().folder(number).memory_files();
            Ok((Base::open(&files.base)?, Some(number)))
        }
        Some(MemoryBase::Zero) | None => {
            let zero = zero_memory(&parts.host.instance, parts.host.vmm.memory(parts.manifest.memory_mib))?;
            Ok((Base::open(&zero.path)?, None))
        }
    }
}

/// Memory, devices and disk are on the disk afterwards, and so is the generation's description. The VM could still go on.
async fn make_durable(parts: &Parts, number: Number, folder: &Folder, kept: Kept) -> Result<(), PauseError> {
    let described = {
        let (description, kept) = (describe(parts, number), kept.of_memory());
        let (disk, device) = (parts.places.disk(), parts.disk.as_ref().and_then(|disk| disk.device.clone()));
        let folder = folder.clone();
        blocking(move || keep_others(description, kept, &folder, &disk, device.as_deref()))
    };
    let memory = {
        let (host, folder) = (Arc::clone(&parts.host), folder.clone());
        blocking(move || keep_memory(&host, &folder, kept))
    };
    // Each takes about as long as the disk does for it, and the disk takes both at once.
    let (memory, described) = tokio::join!(memory, described);
    memory?;
    // Last: a generation whose description is there is whole.
    let (described, path) = (described?, folder.manifest());
    blocking(move || described.put().map_err(io_error("write", &path))).await?;
    Ok(())
}

/// What was captured of memory becomes durable.
pub(super) fn keep_memory(host: &Host, folder: &Folder, kept: Kept) -> Result<(), PauseError> {
    let files = folder.memory_files();
    match kept {
        Kept::Disk => {}
        Kept::Whole { memory, base, .. } => {
            let sums = memory.into_patch()?.into_base(&base, &files)?;
            host.verified.was_made(&files, &sums)?;
        }
        Kept::Changes { memory, .. } => {
            memory.into_patch()?.seal(&files.patch_map)?;
        }
    }
    Ok(())
}

/// Devices and disk are on the disk afterwards, and so is the generation's description, but not at its place.
fn keep_others(
    mut description: Generation,
    memory: Option<(GuestCpu, Option<Number>)>,
    folder: &Folder,
    disk: &Path,
    device: Option<&Path>,
) -> Result<Staged, PauseError> {
    description.memory = memory.map(|(cpu, builds_on)| describe_memory(folder, cpu, builds_on)).transpose()?;
    let staged = description.stage(folder)?;
    device.map_or(Ok(()), sync_file)?;
    sync_file(disk)?;
    keep_room_for_sums(disk, folder)?;
    Ok(staged)
}

/// What is said of a memory whose devices are there, durable from here on.
pub(super) fn describe_memory(
    folder: &Folder,
    cpu: GuestCpu,
    builds_on: Option<Number>,
) -> Result<generation::Memory, PauseError> {
    sync_file(&folder.devices())?;
    let (devices_bytes, devices_sha256) = generation::hash_devices(&folder.devices())?;
    Ok(generation::Memory { builds_on, devices_bytes, devices_sha256, cpu })
}

/// The disk stands still by now: its checksums will be of what it holds already.
fn keep_room_for_sums(disk: &Path, folder: &Folder) -> Result<(), PauseError> {
    let file = fs::File::open(disk).map_err(io_error("open", disk))?;
    Ok(Checksums::keep_room(&file, disk, &folder.disk_sums())?)
}

pub(super) fn sync_file(path: &Path) -> Result<(), PauseError> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))?;
    Ok(())
}

/// The generation that the VM becomes, but for its memory.
pub(super) fn describe(parts: &Parts, number: Number) -> Generation {
    let manifest = &parts.manifest;
    let disk = manifest.disk.clone().expect("a VM that runs has a disk");
    Generation {
        version: generation::FORMAT,
        sandbox: manifest.id.clone(),
        number,
        created_unix_ms: unix_ms(),
        vmm: manifest.vmm.clone(),
        kernel: manifest.kernel.clone(),
        vcpus: manifest.vcpus,
        memory_mib: manifest.memory_mib,
        memory: None,
        disk: generation::Disk {
            format: parts.host.storage.layer_format(),
            size_bytes: disk.size_bytes,
            beneath: disk.beneath,
        },
    }
}

/// Lets it go on as before.
async fn undo(mut sandbox: Sandbox) -> Unpaused {
    let Err(error) = go_on(&mut sandbox.parts, &mut *sandbox.machine, &sandbox.envd).await else {
        return Unpaused::GoesOn(Box::new(sandbox));
    };
    let reason = with_causes(&error);
    tracing::warn!(sandbox = %sandbox.parts.manifest.id, reason, "a sandbox that could not be paused cannot go on");
    give_up(sandbox).await
}

/// What there is of one that stands still and cannot go on.
pub(crate) async fn give_up(mut sandbox: Sandbox) -> Unpaused {
    let ended = sandbox.vm_has_ended().await;
    let parts = Box::new(sandbox.into_parts());
    if ended { Unpaused::VmGone(parts) } else { Unpaused::Stuck(parts) }
}

/// Thaws what a pause that came to nothing had frozen (CPUs first, then the disk, then the users), and throws away what it
/// had made. Whether something was frozen or not makes no difference.
pub(super) async fn go_on(parts: &mut Parts, machine: &mut dyn Machine, envd: &EnvdClient) -> Result<(), PauseError> {
    // What was captured must not be what a crash goes back to once the guest has gone on.
    if matches!(parts.manifest.state, State::Pausing { progress: Progress::Captured, .. }) {
        parts.note(State::Running)?;
    }
    machine.thaw().await?;
    resume::right_clock(parts, envd).await;
    envd.fs_thaw(host_key(parts)).await?;
    envd.thaw(host_key(parts)).await?;
    // A crash before this is durable has the next agent do all of it again, which changes nothing.
    let noted = parts.note(State::Running);
    let abandoned = parts.generations().abandon(parts.manifest.newest_generation);
    for error in [noted.err().map(PauseError::from), abandoned.err().map(PauseError::from)].into_iter().flatten() {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(sandbox = %parts.manifest.id, error, "cannot tidy up after a pause that came to nothing");
    }
    Ok(())
}

/// Everything after the point of no return. Whatever of it is done already is found done: it is tried again after a failure
/// or a crash, with whatever is left.
pub(super) async fn finish(parts: &mut Parts, watch: &mut Stopwatch) -> Result<(), PauseError> {
    let number = parts.manifest.newest_generation;
    let generations = parts.generations();
    parts.end_vm().await?;
    parts.reached(Step::PauseEnded)?;
    watch.lap("end vmm");
    parts.detach_disk().await?;
    parts.reached(Step::PauseDetached)?;
    watch.lap("detach disk");
    if !generations.is_whole(number) {
        let folder = generations.unfinished(number);
        let places = parts.places.clone();
        blocking(move || move_disk(&places, &folder)).await?;
        parts.reached(Step::PauseMoved)?;
        generations.commit(number)?;
    }
    parts.disk = None;
    parts.manifest.disk = None;
    parts.reached(Step::PauseCommitted)?;
    watch.lap("keep disk");
    parts.free_network().await?;
    parts.reached(Step::PauseFreed)?;
    parts.clear_run_dir();
    watch.lap("end network");
    parts.note(State::Paused { generation: number })?;
    parts.reached(Step::PauseDone)?;
    watch.lap("done");
    Ok(())
}

/// The live file becomes the generation's disk.
fn move_disk(places: &Places, folder: &Folder) -> Result<(), PauseError> {
    let (live, kept) = (places.disk(), folder.disk());
    if !kept.exists() {
        fs::rename(&live, &kept).map_err(io_error("move", &live))?;
    }
    seal_disk(folder)?;
    durable::sync_folder(&places.dir).map_err(io_error("sync", &places.dir))?;
    Ok(())
}

/// The disk that is in `folder` gets its checksums, durably, and is for us alone.
pub(crate) fn seal_disk(folder: &Folder) -> Result<(), PauseError> {
    let kept = folder.disk();
    let file = fs::File::options().read(true).write(true).open(&kept).map_err(io_error("open", &kept))?;
    // Checksums are of whole pages; what follows the end of a disk's file means nothing.
    let length = file.metadata().map_err(io_error("look at", &kept))?.len();
    file.set_len(length.next_multiple_of(PAGE_BYTES)).map_err(io_error("lengthen", &kept))?;
    std::os::unix::fs::fchown(&file, Some(0), Some(0)).map_err(io_error("take over", &kept))?;
    Checksums::of(&file, &kept)?.write(&folder.disk_sums())?;
    file.sync_all().map_err(io_error("sync", &kept))?;
    Ok(())
}

/// Brings the memory of the generation that the sandbox rests as into one file: what a resume maps. Nothing is lost when
/// this fails or is cut off; it is tried again at the resume.
pub(crate) async fn settle_memory(parts: &mut Parts) -> Result<Duration, PauseError> {
    let begun = Instant::now();
    let State::Paused { generation: number } = parts.manifest.state else { return Ok(Duration::ZERO) };
    let generations = parts.generations();
    let folder = generations.folder(number);
    let mut description = Generation::read(&folder)?;
    let Some(memory) = &mut description.memory else { return Ok(Duration::ZERO) };
    let Some(builds_on) = memory.builds_on else { return Ok(Duration::ZERO) };
    let before = generations.folder(builds_on);
    let (from, to) = (before.memory_files(), folder.memory_files());
    let host = Arc::clone(&parts.host);
    memory.builds_on = None;
    blocking(move || -> Result<(), PauseError> {
        // Checksums first: a base that is here is here with them.
        for (from, to) in [(&from.base_sums, &to.base_sums), (&from.base, &to.base)] {
            if !to.exists() {
                fs::rename(from, to).map_err(io_error("move", from))?;
            }
        }
        // What was wanted first of it will be wanted first again; it is a hint, which may be missing.
        fs::rename(before.working_set(), folder.working_set()).ok();
        durable::sync_folder(&folder.memory()).map_err(io_error("sync", &folder.memory()))?;
        fold(&host, &to)?;
        description.write(&folder)?;
        Ok(())
    })
    .await?;
    parts.reached(Step::PauseFolded)?;
    Ok(begun.elapsed())
}

/// In place where the base has no other name: others, snapshots and forks, may stand on it.
fn fold(host: &Host, files: &Files) -> Result<(), MemoryError> {
    match host.verified.fold(files) {
        Err(MemoryError::Shared { .. }) => memory::fold_copy(files).map(drop),
        other => other.map(drop),
    }
}
