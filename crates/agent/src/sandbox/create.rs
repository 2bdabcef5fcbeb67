//! A sandbox's birth: begun (id, folder, lock, manifest), then brought up; the first failure takes all of it down.
//!
//! ```text
//!   a template ─► booted ─► (captured as a warm image) ─► told who it is ─┐
//!   a snapshot, a fork, a warm image ─► placed as the first generation    ├─► Running
//!                 ─► restored ─► becomes somebody else ───────────────────┘
//! ```
//!
//! What was captured is restored with all that it knew, so it is told who it is now before anything of its users runs: id, token,
//! host name, machine id, boot id, fresh entropy and the time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wrenn_engine::cgroup::CgroupError;
use wrenn_engine::image::{ImageError, KernelFiles, Template};
use wrenn_engine::memory::MemoryError;
use wrenn_engine::names::SandboxId;
use wrenn_engine::network::NetworkError;
use wrenn_engine::storage::StorageError;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{LaunchError, VmmError};

use super::capture::{Uncaptured, Users, Vm};
use super::parts::blocking;
use super::resume::{self, ResumeError};
use super::rise::{self, DiskFrom, Loaded, Rise, Risen, Steps, VmFrom, not_ready, while_it_runs};
use super::{CheckedShape, HostFacts, Parts, Problems, Sandbox, Stopwatch, Trouble};
use crate::envd_client::{EnvdError, HostLine, Identity};
use crate::faults::{Injected, Step};
use crate::generation::{Generation, GenerationError, Number};
use crate::host::Host;
use crate::host_agent::{CreateRequest, Fresh, Source, Start, Wishes, with_causes};
use crate::instance::{InstanceError, Places, io_error, random_bytes};
use crate::lock::Lock;
use crate::manifest::{self, Manifest, ManifestError, State, unix_ms};
use crate::snapshot::{Key, Record, SnapshotError, Stored};

/// Says that nobody wants the sandbox any more; it is noticed wherever something waits for long.
pub type Cancel = watch::Receiver<bool>;

/// Whose a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The process that creates it: when that is gone, whoever starts next removes it.
    Process,
    /// The instance: when its agent is gone, the next agent adopts it.
    Instance,
}

/// Why a VM was not brought up.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It cannot be had as asked.
    #[error(transparent)]
    Shape(#[from] Problems),
    /// Its template or kernel is not there, or not as it was.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The instance's files.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Its manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Its disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What it may use of the host.
    #[error("cannot limit what the VM uses of the host")]
    Cgroup(#[from] CgroupError),
    /// Its VMM was not started.
    #[error("cannot start the VM")]
    Launch(#[from] LaunchError),
    /// Its VMM cannot be controlled.
    #[error("cannot control the VM")]
    Vmm(#[from] VmmError),
    /// What it is to start from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The captured state it is to start from cannot be used.
    #[error("cannot start from what was captured")]
    Captured(#[source] Box<ResumeError>),
    /// What it had in memory cannot be served.
    #[error("the captured memory cannot be used")]
    Memory(#[from] MemoryError),
    /// Its guest did not become ready; with the end of its console.
    #[error("the guest did not become ready; its console ends with:\n{console}")]
    Guest {
        /// The last lines, escaped.
        console: String,
        /// Why.
        #[source]
        source: EnvdError,
    },
    /// Its guest cannot become ready.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// Its VM ended before its guest was ready.
    #[error("the VM ended before its guest was ready: {end}{}", console_part(.console))]
    Ended {
        /// How.
        end: String,
        /// The last lines of its console, escaped.
        console: String,
    },
    /// Nobody wants it any more.
    #[error("creating the sandbox was cancelled")]
    Cancelled,
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

fn console_part(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("; its console ends with:\n{console}") }
}

/// A sandbox that has its id, folder, lock and first manifest.
pub struct Begun {
    /// What there is of it.
    pub(crate) parts: Parts,
    pub(super) template: Template,
    pub(super) kernel: KernelFiles,
    pub(super) origin: Origin,
    pub(super) ready_limit: Duration,
    pub(super) watch: Stopwatch,
}

/// What a sandbox begins as.
pub(super) enum Origin {
    /// Its template, booted. If this says for what, a warm image is made on the way.
    Boot { warm: Option<Key> },
    /// The generation it was given, whose guest takes itself for `guest`.
    Captured { guest: SandboxId, warm: Option<Key> },
    /// A VM that was loaded ahead (see [`super::standby`]), whose guest takes itself for `guest`.
    Standby { guest: SandboxId, loaded: Loaded },
}

impl Begun {
    /// Which sandbox.
    pub fn id(&self) -> &SandboxId {
        &self.parts.manifest.id
    }
}

/// Creates a sandbox and waits until its guest is ready. On any failure, and when `cancel` turns true, nothing is left.
pub async fn create(
    host: &Arc<Host>,
    request: CreateRequest,
    owner: Owner,
    cancel: Cancel,
) -> Result<Sandbox, CreateError> {
    finish(begin(host, request, owner)?, cancel).await
}

/// Checks what is asked for, and begins it.
pub fn begin(host: &Arc<Host>, request: CreateRequest, owner: Owner) -> Result<Begun, CreateError> {
    match &request.source {
        Source::Template(fresh) => begin_fresh(host, fresh, &request.wishes, owner),
        Source::Snapshot(snapshot) => begin_from(host, &host.snapshots.find(snapshot)?, &request.wishes, owner),
    }
}

fn begin_fresh(host: &Arc<Host>, fresh: &Fresh, wishes: &Wishes, owner: Owner) -> Result<Begun, CreateError> {
    let mut watch = Stopwatch::default();
    let checked = Checked::of(host, fresh)?;
    let warm = if fresh.cold { None } else { Some(checked.warm_key(host)?) };
    if let Some(key) = &warm
        && let Some(begun) = begin_warm(host, key, wishes, owner)?
    {
        return Ok(begun);
    }
    let Checked { template, kernel, shape } = checked;
    let build = |id| first_manifest(host, wishes, id, (&template, &kernel), shape);
    let parts = begin_parts(host, owner, build, |_| Ok(()))?;
    watch.lap("prepare");
    Ok(Begun { parts, template, kernel, origin: Origin::Boot { warm }, ready_limit: wishes.ready_limit, watch })
}

/// One that starts from the warm image of its kind; `None` where there is none, or it cannot be placed: that is no reason not to
/// boot.
pub(super) fn begin_warm(
    host: &Arc<Host>,
    key: &Key,
    wishes: &Wishes,
    owner: Owner,
) -> Result<Option<Begun>, CreateError> {
    let Some(stored) = host.warm.find(key) else { return Ok(None) };
    match begin_from(host, &stored, wishes, owner) {
        Ok(begun) => {
            let Origin::Captured { guest, .. } = begun.origin else { unreachable!("it starts from what was captured") };
            Ok(Some(Begun { origin: Origin::Captured { guest, warm: Some(key.clone()) }, ..begun }))
        }
        Err(CreateError::Snapshot(error)) => {
            let reason = with_causes(&error);
            tracing::warn!(reason, "a warm image cannot be placed; the sandbox boots");
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

/// What a fresh sandbox is to be made of, all of which is there.
pub(crate) struct Checked {
    template: Template,
    kernel: KernelFiles,
    shape: CheckedShape,
}

impl Checked {
    /// Finds it, and that this host can give it.
    pub(crate) fn of(host: &Host, fresh: &Fresh) -> Result<Self, CreateError> {
        let template = host.images.template(&fresh.template)?;
        let kernel = host.images.kernel(fresh.kernel.as_deref())?;
        let facts = HostFacts { memory: host.memory, template_disk: Mib::holding(template.size_bytes) };
        let shape = fresh.shape.check(facts)?;
        Ok(Self { template, kernel, shape })
    }

    /// What a warm image of such a sandbox fits to.
    pub(crate) fn warm_key(&self, host: &Host) -> Result<Key, CreateError> {
        Ok(Key {
            template: self.template.id.clone(),
            kernel: self.kernel.id.clone(),
            vcpus: self.shape.vcpus,
            memory: self.shape.memory,
            disk: self.shape.disk,
            vmm: host.vmm.describe().clone(),
            cpu: host.vmm.cpu()?,
            storage: host.storage.layer_format(),
            host_key: host.instance.public_key(),
        })
    }
}

/// Begins one that goes on from what was captured.
pub fn begin_from(host: &Arc<Host>, stored: &Stored, wishes: &Wishes, owner: Owner) -> Result<Begun, CreateError> {
    let mut watch = Stopwatch::default();
    let (record, captured) = (stored.record()?, Generation::read(&stored.generation()).map_err(SnapshotError::from)?);
    let template = host.images.template(&record.template)?;
    let kernel = host.images.kernel_set(&captured.kernel)?;
    let shape = CheckedShape { vcpus: captured.vcpus, memory: captured.memory_mib, disk: record.disk_mib };
    let build = |id| manifest_from(host, wishes, id, (&template, &kernel), shape, (&record, &captured));
    let place = |parts: &Parts| {
        stored.place(&parts.manifest.id, &parts.places.dir, Number::FIRST).map_err(|error| gone(stored, error))
    };
    let parts = begin_parts(host, owner, build, place)?;
    watch.lap("prepare");
    let origin = Origin::Captured { guest: record.sandbox, warm: None };
    Ok(Begun { parts, template, kernel, origin, ready_limit: wishes.ready_limit, watch })
}

/// A snapshot that is removed while it is placed was not there.
fn gone(stored: &Stored, error: SnapshotError) -> CreateError {
    match error {
        SnapshotError::Generation(GenerationError::Missing { .. }) if !stored.path().exists() => {
            let name = stored.path().file_name().unwrap_or_default();
            SnapshotError::Unknown(name.to_string_lossy().into_owned()).into()
        }
        other => other.into(),
    }
}

/// Folder, lock, what `place` puts there, manifest. Under the instance's lock: a sweep must not take a folder that is not
/// locked yet for one that nobody owns.
fn begin_parts(
    host: &Arc<Host>,
    owner: Owner,
    build: impl FnOnce(SandboxId) -> Manifest,
    place: impl FnOnce(&Parts) -> Result<(), CreateError>,
) -> Result<Parts, CreateError> {
    let id = SandboxId::from_random(random_bytes());
    let places = host.instance.places(&id);
    let _no_sweep = host.instance.lock()?;
    let parts = first_files(host, places.clone(), build(id), owner).inspect_err(|_| Parts::remove_folders(&places))?;
    place(&parts).inspect_err(|_| Parts::remove_folders(&places))?;
    Ok(parts)
}

/// Folder, lock and manifest of a sandbox that nobody else knows of yet.
fn first_files(host: &Arc<Host>, places: Places, manifest: Manifest, owner: Owner) -> Result<Parts, CreateError> {
    places.make(owner == Owner::Instance)?;
    let lock_path = places.lock();
    let lock = Lock::try_acquire(&lock_path)
        .map_err(io_error("lock", &lock_path))?
        .ok_or(InstanceError::Locked { path: lock_path })?;
    let mut parts = Parts::new(Arc::clone(host), places, manifest, lock);
    parts.write()?;
    Ok(parts)
}

fn first_manifest(
    host: &Host,
    wishes: &Wishes,
    id: SandboxId,
    (template, kernel): (&Template, &KernelFiles),
    shape: CheckedShape,
) -> Manifest {
    Manifest {
        version: manifest::FORMAT,
        revision: 0,
        id,
        state: State::Creating,
        created_unix_ms: unix_ms(),
        deadline_unix_ms: None,
        timeout_ms: wishes.timeout.map(|timeout| timeout.as_millis() as u64),
        on_timeout: wishes.on_timeout,
        bound: wishes.bound,
        template: template.id.clone(),
        kernel: kernel.id.clone(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory,
        disk_mib: shape.disk,
        vmm: host.vmm.describe().clone(),
        storage: host.storage.backend(),
        start: Start::Cold,
        env: wishes.env.clone(),
        metadata: wishes.metadata.clone(),
        attributes: wishes.attributes.clone(),
        slot: None,
        disk: None,
        memory_base: None,
        newest_generation: Number::NONE,
        access_token: hex::encode(random_bytes::<32>()),
        nonces_below: 0,
    }
}

/// One that was begun for nobody is somebody's from now on.
pub(super) fn set_wishes(manifest: &mut Manifest, wishes: &Wishes) {
    let Wishes { env, metadata, attributes, timeout, on_timeout, ready_limit: _, bound } = wishes.clone();
    manifest.created_unix_ms = unix_ms();
    manifest.env.extend(env);
    manifest.metadata = metadata;
    manifest.attributes = attributes;
    manifest.timeout_ms = timeout.map(|timeout| timeout.as_millis() as u64);
    manifest.on_timeout = on_timeout;
    manifest.bound = bound;
}

fn manifest_from(
    host: &Host,
    wishes: &Wishes,
    id: SandboxId,
    images: (&Template, &KernelFiles),
    shape: CheckedShape,
    (record, captured): (&Record, &Generation),
) -> Manifest {
    let first = first_manifest(host, wishes, id, images, shape);
    let env = record.env.clone().into_iter().chain(first.env).collect();
    let metadata = if first.metadata.is_empty() { record.metadata.clone() } else { first.metadata };
    Manifest {
        env,
        metadata,
        start: if captured.memory.is_some() { Start::Warm } else { Start::Cold },
        newest_generation: Number::FIRST,
        nonces_below: record.nonces_below,
        ..first
    }
}

/// Brings up what was begun. On any failure, and when `cancel` turns true, nothing is left.
pub async fn finish(begun: Begun, cancel: Cancel) -> Result<Sandbox, CreateError> {
    let Begun { mut parts, template, kernel, origin, ready_limit, mut watch } = begun;
    let host = Arc::clone(&parts.host);
    let rise = Rise { host: &host, template: &template, kernel: &kernel, ready_limit, steps: steps() };
    match bring_up(&mut parts, &rise, origin, &mut watch, cancel).await {
        Ok(risen) => Ok(Sandbox::new(parts, risen, watch)),
        Err(error) => {
            // What cannot be taken down was logged, and the next start goes on.
            parts.destroy(&mut watch).await.ok();
            Err(error)
        }
    }
}

/// The steps of a birth.
pub(super) fn steps() -> Steps {
    Steps {
        networked: Step::CreateNetworked,
        disked: Step::CreateDisked,
        launched: Step::CreateLaunched,
        loaded: Step::CreateLoaded,
        thawed: Step::CreateThawed,
        ready: Step::CreateReady,
    }
}

async fn bring_up(
    parts: &mut Parts,
    rise: &Rise<'_>,
    origin: Origin,
    watch: &mut Stopwatch,
    cancel: Cancel,
) -> Result<Risen, CreateError> {
    parts.reached(Step::CreateBegun)?;
    let (risen, frozen) = match origin {
        Origin::Boot { warm } => (boot(parts, rise, warm, watch, cancel).await?, None),
        Origin::Captured { guest, warm } => match usable(parts, warm.as_ref()).await? {
            Some((disk, vm)) => {
                let risen = rise.run(parts, disk, vm, watch, cancel.clone()).await?;
                go_on(parts, rise, &guest, risen, watch, cancel).await?
            }
            None => (boot(parts, rise, warm, watch, cancel).await?, None),
        },
        Origin::Standby { guest, loaded } => {
            let risen = rise.wake(parts, loaded, watch, cancel.clone()).await?;
            go_on(parts, rise, &guest, risen, watch, cancel).await?
        }
    };
    parts.reached(Step::CreateInited)?;
    parts.start_clock();
    parts.keep_nonces(&risen.envd);
    parts.note(State::Running)?;
    parts.reached(Step::CreateDone)?;
    watch.lap("init");
    if let Some(mut line) = frozen {
        resume::thaw_users(parts, &mut line).await.map_err(captured)?;
        watch.lap("thaw users");
    }
    Ok(risen)
}

/// What the VM goes on from, if it can be used. A warm image that cannot is removed, and the sandbox boots cold.
pub(super) async fn usable(parts: &mut Parts, warm: Option<&Key>) -> Result<Option<(DiskFrom, VmFrom)>, CreateError> {
    let host = Arc::clone(&parts.host);
    match (resume::check_generation(&host, parts, Number::FIRST).await, warm) {
        (Ok(back), _) => Ok(Some(back.split())),
        (Err(error), None) => Err(captured(error)),
        (Err(error), Some(key)) => {
            let reason = with_causes(&error);
            tracing::warn!(sandbox = %parts.manifest.id, reason, "a warm image cannot be used; it is made anew");
            host.warm.remove(key);
            parts.manifest.start = Start::Cold;
            parts.manifest.newest_generation = Number::NONE;
            parts.collect_garbage();
            Ok(None)
        }
    }
}

fn captured(error: ResumeError) -> CreateError {
    match error {
        // It is not about what was captured.
        ResumeError::Rise(error) => error,
        other => CreateError::Captured(Box::new(other)),
    }
}

async fn boot(
    parts: &mut Parts,
    rise: &Rise<'_>,
    warm: Option<Key>,
    watch: &mut Stopwatch,
    cancel: Cancel,
) -> Result<Risen, CreateError> {
    let mut risen = rise.run(parts, DiskFrom::Template, VmFrom::Boot, watch, cancel).await?;
    if let Some(key) = warm {
        keep_warm(parts, &mut risen, &key, watch).await?;
    }
    rise.init(parts, &mut risen).await?;
    Ok(risen)
}

/// Keeps a VM whose guest has just become ready for all later sandboxes of its kind. That it cannot be kept is no reason not to
/// go on with it.
async fn keep_warm(parts: &mut Parts, risen: &mut Risen, key: &Key, watch: &mut Stopwatch) -> Result<(), CreateError> {
    let host = Arc::clone(&parts.host);
    let making = match host.warm.make(key) {
        Ok(Some(making)) => making,
        // Somebody else makes the same one.
        Ok(None) => return Ok(()),
        Err(error) => {
            warn_not_kept(parts, &error);
            return Ok(());
        }
    };
    let mut vm = Vm { parts, machine: &mut *risen.machine, envd: &risen.envd, users: Users::None };
    let record = match vm.capture(making.stored(), &mut Stopwatch::default()).await {
        Ok(record) => record,
        Err(Uncaptured::Stuck(error)) => return Err(captured(ResumeError::Settle(error))),
        Err(Uncaptured::GoesOn(error)) => {
            warn_not_kept(parts, &error);
            return Ok(());
        }
    };
    watch.lap("keep warm");
    if let Err(error) = blocking(move || host.warm.finish(making, &record)).await {
        warn_not_kept(parts, &error);
    }
    Ok(())
}

fn warn_not_kept(parts: &Parts, error: &(dyn std::error::Error + 'static)) {
    let reason = with_causes(error);
    tracing::warn!(sandbox = %parts.manifest.id, reason, "no warm image is kept; the next sandbox boots cold as well");
}

/// The guest becomes this sandbox's. Answers with a line to it: its users may still stand still.
async fn go_on(
    parts: &mut Parts,
    rise: &Rise<'_>,
    guest: &SandboxId,
    mut risen: Risen,
    watch: &mut Stopwatch,
    mut cancel: Cancel,
) -> Result<(Risen, Option<HostLine>), CreateError> {
    let (guest, mut line) = match risen.line.take() {
        Some(line) => (guest, line),
        // Booted from a disk that others have too, it takes itself for this sandbox, but for what is on that disk.
        None => {
            rise.init(parts, &mut risen).await?;
            let line = risen.envd.reach(rise.ready_limit).await.map_err(|source| not_ready(parts, source))?;
            (&parts.manifest.id, line)
        }
    };
    let confirmed = resume::confirm(parts, guest, &mut line, Some(identity(parts)));
    while_it_runs(parts, &mut risen.ended, &mut cancel, confirmed).await.map_err(captured)?;
    watch.lap("confirm");
    Ok((risen, Some(line)))
}

/// Who the guest is to be.
fn identity(parts: &Parts) -> Identity {
    let manifest = &parts.manifest;
    Identity {
        id: manifest.id.clone(),
        access_token: manifest.access_token.clone(),
        env_vars: rise::guest_env(manifest),
        hostname: manifest.id.to_string(),
        machine_id: hex::encode(random_bytes::<16>()),
        boot_id: uuid(random_bytes()),
    }
}

/// Random bytes in the form of a random UUID (version 4), as the kernel makes its boot ids.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_has_the_form_of_the_kernels() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
    }
}
