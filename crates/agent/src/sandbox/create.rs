//! A sandbox's birth: begun (id, folder, lock, manifest), then brought up; the first failure takes all of it down.

use std::sync::Arc;

use tokio::sync::watch;
use wrenn_engine::cgroup::CgroupError;
use wrenn_engine::image::{ImageError, KernelFiles, Template};
use wrenn_engine::names::SandboxId;
use wrenn_engine::network::NetworkError;
use wrenn_engine::storage::StorageError;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{LaunchError, VmmError};

use super::rise::{DiskFrom, Rise, Risen, Steps, VmFrom};
use super::{CheckedShape, HostFacts, Parts, Problems, Sandbox, Stopwatch, Trouble};
use crate::envd_client::EnvdError;
use crate::faults::{Injected, Step};
use crate::generation::Number;
use crate::host::Host;
use crate::host_agent::CreateRequest;
use crate::instance::{InstanceError, Places, io_error, random_bytes};
use crate::lock::Lock;
use crate::manifest::{self, Manifest, ManifestError, State, unix_ms};

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
    template: Template,
    kernel: KernelFiles,
    request: CreateRequest,
    watch: Stopwatch,
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

/// Checks what is asked for, and begins it. Under the instance's lock: a sweep must not take a folder that is not locked
/// yet for one that nobody owns.
pub fn begin(host: &Arc<Host>, request: CreateRequest, owner: Owner) -> Result<Begun, CreateError> {
    let mut watch = Stopwatch::default();
    let template = host.images.template(&request.template)?;
    let kernel = host.images.kernel(request.kernel.as_deref())?;
    let facts = HostFacts { memory: host.memory, template_disk: Mib::holding(template.size_bytes) };
    let shape = request.shape.check(facts)?;

    let id = SandboxId::from_random(random_bytes());
    let places = host.instance.places(&id);
    let _no_sweep = host.instance.lock()?;
    let manifest = first_manifest(host, &request, id, &template, &kernel, shape);
    let parts = first_files(host, places.clone(), manifest, owner).inspect_err(|_| Parts::remove_folders(&places))?;
    watch.lap("prepare");
    Ok(Begun { parts, template, kernel, request, watch })
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
    request: &CreateRequest,
    id: SandboxId,
    template: &Template,
    kernel: &KernelFiles,
    shape: CheckedShape,
) -> Manifest {
    Manifest {
        version: manifest::FORMAT,
        revision: 0,
        id,
        state: State::Creating,
        created_unix_ms: unix_ms(),
        deadline_unix_ms: None,
        timeout_ms: request.timeout.map(|timeout| timeout.as_millis() as u64),
        on_timeout: request.on_timeout,
        bound: request.bound,
        template: template.id.clone(),
        kernel: kernel.id.clone(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory,
        disk_mib: shape.disk,
        vmm: host.vmm.describe().clone(),
        storage: host.storage.backend(),
        env: request.env.clone(),
        metadata: request.metadata.clone(),
        slot: None,
        disk: None,
        memory_base: None,
        newest_generation: Number::NONE,
        access_token: hex::encode(random_bytes::<32>()),
        nonces_below: 0,
    }
}

/// Brings up what was begun. On any failure, and when `cancel` turns true, nothing is left.
pub async fn finish(begun: Begun, cancel: Cancel) -> Result<Sandbox, CreateError> {
    let Begun { mut parts, template, kernel, request, mut watch } = begun;
    match bring_up(&mut parts, &template, &kernel, &request, &mut watch, cancel).await {
        Ok(risen) => Ok(Sandbox::new(parts, risen, watch)),
        Err(error) => {
            // What cannot be taken down was logged, and the next start goes on.
            parts.destroy(&mut watch).await.ok();
            Err(error)
        }
    }
}

async fn bring_up(
    parts: &mut Parts,
    template: &Template,
    kernel: &KernelFiles,
    request: &CreateRequest,
    watch: &mut Stopwatch,
    cancel: Cancel,
) -> Result<Risen, CreateError> {
    parts.reached(Step::CreateBegun)?;
    let host = Arc::clone(&parts.host);
    let steps = Steps {
        networked: Step::CreateNetworked,
        disked: Step::CreateDisked,
        launched: Step::CreateLaunched,
        ready: Step::CreateReady,
    };
    let rise = Rise { host: &host, template, kernel, ready_limit: request.ready_limit, steps };
    let mut risen = rise.run(parts, DiskFrom::Template, VmFrom::Boot, watch, cancel).await?;
    rise.init(parts, &mut risen).await?;
    parts.reached(Step::CreateInited)?;
    parts.start_clock();
    parts.keep_nonces(&risen.envd);
    parts.note(State::Running)?;
    parts.reached(Step::CreateDone)?;
    watch.lap("init");
    Ok(risen)
}
