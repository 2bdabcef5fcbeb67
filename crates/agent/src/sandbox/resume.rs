//! Back from rest: a generation becomes a VM again, or a sandbox that stopped is booted from its disk.
//!
//! ```text
//!   checked ─► network ─► disk (a copy) ─► VMM with the captured state ─► CPUs run ─► guest answers
//!           ─► clock and entropy confirmed, hooks run ─► Running ─► users thawed
//!   any failure: the VM and all that was made for it is taken down; the sandbox rests as before
//! ```
//!
//! Nothing of the generation is written to, so it stays valid until the manifest says `running`. What was made with another
//! VMM, CPU or kernel, and what is damaged, is refused before anything starts. Users' processes do not run before the guest
//! has confirmed that its clock is right and its random generator is fed: no confirmation, no resume.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wrenn_engine::image::{ImageError, KernelFiles, Template};
use wrenn_engine::memory::{Base, Checksums, MemoryError};
use wrenn_engine::names::SandboxId;
use wrenn_engine::storage::StorageError;
use wrenn_engine::vmm::VmmError;

use super::create::{Cancel, CreateError};
use super::parts::{TakeDownError, blocking};
use super::pause::{PauseError, settle_memory};
use super::rise::{DiskFrom, Rise, Risen, Steps, VmFrom, host_key, while_it_runs};
use super::{Parts, Sandbox, Stopwatch};
use crate::envd_client::{EnvdClient, EnvdError, HostKey, HostLine, Identity, Resumed};
use crate::faults::{Injected, Step};
use crate::generation::{Folder, Generation, GenerationError, Number, Offer};
use crate::host::Host;
use crate::host_agent::{ResumeOptions, Start};
use crate::instance::random_bytes;
use crate::layers::{Layers, VerifyError};
use crate::manifest::{LiveDisk, ManifestError, State};

/// How far a guest's clock may be off when its users go on.
pub(super) const CLOCK_WITHIN: Duration = Duration::from_millis(50);
/// How long that may take beyond the one call that mostly does.
const CLOCK_LIMIT: Duration = Duration::from_secs(10);
/// How long setting it may take where a guest goes on in any case.
const RIGHT_CLOCK_LIMIT: Duration = Duration::from_secs(2);

/// Why a sandbox did not come back.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// What it rests as cannot be used.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// Its memory is damaged, or cannot be read.
    #[error("the captured memory cannot be used")]
    Memory(#[from] MemoryError),
    /// Its memory cannot be brought into one file.
    #[error("the captured memory cannot be prepared")]
    Settle(#[source] PauseError),
    /// Its disk cannot be read.
    #[error("the disk cannot be used")]
    Disk(#[from] StorageError),
    /// Its disk, or a layer beneath it, is damaged.
    #[error("the disk cannot be used")]
    Layer(#[from] VerifyError),
    /// Its template or kernel is gone.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What this host offers is not known.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// It cannot be brought up.
    #[error("cannot bring the VM up")]
    Rise(#[from] CreateError),
    /// The guest did not confirm what must be so before its users go on.
    #[error("the guest did not confirm its {what}")]
    Unconfirmed {
        /// What: `clock, entropy and hooks`, `users`.
        what: &'static str,
        /// Why.
        #[source]
        source: EnvdError,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// What is left when a resume fails.
pub enum Unresumed {
    /// It rests as before.
    Rests(Box<Parts>),
    /// What was made for it cannot be taken down: [`undo`] has to be tried again. Nothing is lost.
    Stuck(Box<Parts>, TakeDownError),
}

/// Brings a sandbox that rests, or has stopped, back.
pub(crate) async fn resume(
    mut parts: Parts,
    options: ResumeOptions,
    watch: &mut Stopwatch,
    cancel: Cancel,
) -> Result<Sandbox, (Unresumed, ResumeError)> {
    let rests_as = parts.manifest.state.clone();
    match bring_back(&mut parts, options, watch, cancel).await {
        Ok(risen) => Ok(Sandbox::new(parts, risen, Stopwatch::default())),
        Err(error) => match undo(&mut parts, rests_as).await {
            Ok(()) => Err((Unresumed::Rests(Box::new(parts)), error)),
            Err(failed) => Err((Unresumed::Stuck(Box::new(parts), failed), error)),
        },
    }
}

async fn bring_back(
    parts: &mut Parts,
    options: ResumeOptions,
    watch: &mut Stopwatch,
    mut cancel: Cancel,
) -> Result<Risen, ResumeError> {
    let source = Source::find(parts, watch).await?;
    let host = Arc::clone(&parts.host);
    let state = match &source.vm {
        Back::Generation { number, .. } => State::Resuming { generation: *number },
        Back::LiveDisk { reason, .. } => State::Booting { reason: reason.clone() },
    };
    parts.note(state)?;
    parts.reached(Step::ResumeBegun)?;
    watch.lap("check");
    let steps = Steps {
        networked: Step::ResumeNetworked,
        disked: Step::ResumeDisked,
        launched: Step::ResumeLaunched,
        loaded: Step::ResumeLoaded,
        thawed: Step::ResumeThawed,
        ready: Step::ResumeReady,
    };
    let rise = Rise {
        host: &host,
        template: &source.template,
        kernel: &source.kernel,
        ready_limit: options.ready_limit,
        steps,
    };
    let (disk, vm) = source.vm.split();
    parts.manifest.start = match vm {
        VmFrom::Generation(..) => Start::Warm,
        VmFrom::Boot => {
            // What boots runs under whatever is here now.
            parts.manifest.vmm = host.vmm.describe().clone();
            Start::Cold
        }
    };
    let mut risen = rise.run(parts, disk, vm, watch, cancel.clone()).await?;
    let mut line = risen.line.take();
    match &mut line {
        Some(line) => {
            let confirmed = confirm(parts, &parts.manifest.id, line, None);
            while_it_runs(parts, &mut risen.ended, &mut cancel, confirmed).await?;
        }
        None => rise.init(parts, &mut risen).await?,
    }
    watch.lap("confirm");
    parts.reached(Step::ResumeConfirmed)?;
    if let Some(timeout) = options.timeout {
        parts.manifest.timeout_ms = Some(timeout.as_millis() as u64);
    }
    parts.start_clock();
    parts.keep_nonces(&risen.envd);
    parts.note(State::Running)?;
    parts.reached(Step::ResumeDone)?;
    watch.lap("note");
    // Last of all: what users do from here on is never undone. An agent that takes over lets them go on as well.
    if let Some(mut line) = line {
        thaw_users(parts, &mut line).await?;
        watch.lap("thaw users");
    }
    Ok(risen)
}

/// Sets the clock of a guest whose CPUs stood still for a moment, and its clock with them. One that cannot be set is no reason
/// not to go on.
pub(super) async fn right_clock(parts: &Parts, envd: &EnvdClient) {
    let right = async {
        let mut line = envd.reach(RIGHT_CLOCK_LIMIT).await?;
        line.set_clock(host_key(parts), CLOCK_WITHIN, RIGHT_CLOCK_LIMIT).await
    };
    if let Err(error) = right.await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(sandbox = %parts.manifest.id, error, "the clock of a guest that stood still may be behind");
    }
}

/// Lets the users of a guest that was restored go on.
pub(super) async fn thaw_users(parts: &Parts, line: &mut HostLine) -> Result<(), ResumeError> {
    let thawed = line.thaw(host_key(parts)).await;
    thawed.map_err(|source| ResumeError::Unconfirmed { what: "users", source })
}

/// What a sandbox comes back from.
struct Source {
    template: Template,
    kernel: KernelFiles,
    vm: Back,
}

pub(super) enum Back {
    /// A generation: its disk, and its memory if it has one.
    Generation { number: Number, folder: Folder, memory: bool, disk: DiskFrom },
    /// The disk that a VM which ended by itself has left.
    LiveDisk { reason: String, record: LiveDisk },
}

impl Back {
    pub(super) fn split(self) -> (DiskFrom, VmFrom) {
        match self {
            Self::Generation { number, folder, memory, disk } => {
                let vm = if memory { VmFrom::Generation(number, folder) } else { VmFrom::Boot };
                (disk, vm)
            }
            Self::LiveDisk { record, .. } => (DiskFrom::LiveFile(record), VmFrom::Boot),
        }
    }
}

impl Source {
    /// Finds it, and that all of it is as it was written.
    async fn find(parts: &mut Parts, watch: &mut Stopwatch) -> Result<Self, ResumeError> {
        let host = Arc::clone(&parts.host);
        let (template, kernel) = (parts.manifest.template.clone(), parts.manifest.kernel.clone());
        let images = host.images.clone();
        let (template, kernel) =
            blocking(move || Ok::<_, ImageError>((images.template(&template)?, images.kernel_set(&kernel)?))).await?;
        let vm = match parts.manifest.state.clone() {
            State::Paused { generation } => {
                settle_memory(parts).await.map_err(ResumeError::Settle)?;
                watch.lap("settle");
                check_generation(&host, parts, generation).await?
            }
            State::Stopped { reason } => {
                let missing = || GenerationError::Missing { path: parts.places.disk() };
                let record = parts.manifest.disk.clone().ok_or_else(missing)?;
                Back::LiveDisk { reason, record }
            }
            other => unreachable!("the policy lets nobody resume from {:?}", other.phase()),
        };
        Ok(Self { template, kernel, vm })
    }
}

/// A generation that runs on this host, and all of which is as it was written.
pub(super) async fn check_generation(host: &Arc<Host>, parts: &Parts, number: Number) -> Result<Back, ResumeError> {
    let generations = parts.generations();
    let folder = generations.folder(number);
    let description = Generation::read(&folder)?;
    let cpu = host.vmm.cpu()?;
    description.check_fits(Offer { vmm: host.vmm.describe(), cpu: &cpu, storage: host.storage.layer_format() })?;
    let (memory, disk) = (description.memory.is_some(), DiskFrom::generation(folder.clone(), &description.disk)?);
    let layers = Layers::of(&parts.places.dir);
    let (host, checked) = (Arc::clone(host), folder.clone());
    blocking(move || -> Result<(), ResumeError> {
        if memory {
            description.check_devices(&checked)?;
            check_memory(&host, &checked)?;
        }
        checked.verify_disk()?;
        description.disk.beneath.iter().try_for_each(|id| Ok(layers.verify(id)?))
    })
    .await?;
    Ok(Back::Generation { number, folder, memory, disk })
}

fn check_memory(host: &Host, folder: &Folder) -> Result<(), ResumeError> {
    let files = folder.memory_files();
    let base = Base::open(&files.base)?;
    let sums = read_sums(&files.base_sums)?;
    host.verified.verify(&base, &sums)?;
    Ok(())
}

fn read_sums(path: &Path) -> Result<Checksums, ResumeError> {
    Ok(Checksums::read(path)?.ok_or_else(|| GenerationError::Missing { path: path.to_owned() })?)
}

/// What must be so before users' processes run again: the clock, fresh entropy, who it is, the hooks. `guest` is who the guest
/// takes itself for, and `identity` who it is to be if it is to be somebody else.
pub(super) async fn confirm(
    parts: &Parts,
    guest: &SandboxId,
    line: &mut HostLine,
    identity: Option<Identity>,
) -> Result<(), ResumeError> {
    let host = HostKey { id: guest, ..host_key(parts) };
    let resumed = Resumed { entropy: random_bytes(), identity };
    let came_back = line.come_back(host, &resumed, CLOCK_WITHIN, CLOCK_LIMIT).await;
    let came_back =
        came_back.map_err(|source| ResumeError::Unconfirmed { what: "clock, entropy and hooks", source })?;
    tracing::debug!(sandbox = %parts.manifest.id, ?came_back, "the guest is fit to go on");
    Ok(())
}

/// Takes down what a resume has made, and lets the sandbox rest as before. Idempotent; also for one that a crash cut off.
pub(super) async fn undo(parts: &mut Parts, rests_as: State) -> Result<(), TakeDownError> {
    parts.end_vm().await?;
    parts.free_network().await?;
    match &rests_as {
        // The live file is a copy; the generation has the disk.
        State::Paused { .. } => parts.remove_disk().await?,
        // The live file is the disk.
        _stopped => parts.detach_disk().await?,
    }
    parts.clear_run_dir();
    if let Err(error) = parts.note(rests_as) {
        // The next start finds `resuming`, and undoes what is undone already.
        let error = &error as &dyn std::error::Error;
        tracing::warn!(sandbox = %parts.manifest.id, error, "cannot note that a resume was undone");
    }
    Ok(())
}
