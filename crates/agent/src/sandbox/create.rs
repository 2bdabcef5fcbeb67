//! A sandbox's birth: each step leaves what it made in [`Parts`], and the first failure takes all of it down.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use wrenn_engine::cgroup::{Cgroup, CgroupError, Limits};
use wrenn_engine::image::{ImageError, KernelFiles, Template};
use wrenn_engine::names::{DiskName, SandboxId};
use wrenn_engine::network::addresses::TAP;
use wrenn_engine::network::{Connector, GUEST_MAC, NetworkError};
use wrenn_engine::storage::{Disk, Layer, LayerFormat, Place, StorageError};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::seccomp::{self, Confinement};
use wrenn_engine::vmm::{
    Accel, Boot, DiskFile, HostFile, LaunchCgroups, LaunchError, LaunchSpec, Machine, Plan, Tap, VmEnd, VmSpec,
    VmmError, launch,
};

use super::parts::blocking;
use super::pulse::Pulse;
use super::room::Room;
use super::{CheckedShape, HostFacts, Parts, Problems, Request, Sandbox, Stopwatch, ending};
use crate::envd_client::{Dial, EnvdClient, EnvdError, HostKey, Init};
use crate::host::{Host, zero_memory};
use crate::instance::{InstanceError, io_error, random_bytes};
use crate::lock::Lock;
use crate::manifest::{self, Manifest, ManifestError, State, unix_ms};

/// What of the console is shown when a guest does not become ready, in bytes.
const CONSOLE_EXCERPT_BYTES: u64 = 2048;
/// What a VMM may write beyond its disk's size, in bytes: tables of the overlay.
const OVERLAY_SLACK_BYTES: u64 = 64 << 20;

/// How long the shim has to tell of an end that the control connection showed.
const END_WORD_LIMIT: Duration = Duration::from_millis(500);

/// Says that nobody wants the sandbox any more; it is noticed wherever a creation waits for long.
pub type Cancel = watch::Receiver<bool>;

/// Why a sandbox was not created. Nothing of it is left.
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
}

fn console_part(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("; its console ends with:\n{console}") }
}

/// Creates a sandbox and waits until its guest is ready. On any failure, and when `cancel` turns true, nothing is left.
pub async fn create(host: &Host, request: &Request, cancel: Cancel) -> Result<Sandbox, CreateError> {
    let mut watch = Stopwatch::default();
    let template = host.images.template(&request.template)?;
    let kernel = host.images.kernel(request.kernel.as_deref())?;
    let facts = HostFacts { memory: host.memory, template_disk: Mib::holding(template.size_bytes) };
    let shape = request.shape.check(facts)?;
    let mut parts = begin(host, &template, &kernel, shape)?;
    watch.lap("prepare");
    let birth = Birth { host, template: &template, kernel: &kernel, shape, ready_limit: request.ready_limit };
    match birth.run(&mut parts, &mut watch, cancel).await {
        Ok(Born { envd, machine, ended }) => Ok(Sandbox {
            id: parts.manifest.id.clone(),
            envd,
            vmm: host.vmm.describe().clone(),
            machine,
            ended,
            room: Room::of(&parts),
            pulse: Pulse::of(&parts),
            parts,
            watch,
        }),
        Err(error) => {
            parts.destroy(&mut watch).await;
            Err(error)
        }
    }
}

/// Id, folders, lock and first manifest. Under the instance's lock: a sweep must not take a folder that is not locked yet
/// for one that nobody owns.
fn begin(host: &Host, template: &Template, kernel: &KernelFiles, shape: CheckedShape) -> Result<Parts, CreateError> {
    let id = SandboxId::from_random(random_bytes());
    let places = host.instance.places(&id);
    let _no_sweep = host.instance.lock()?;
    places.make()?;
    let lock_path = places.lock();
    let lock = Lock::try_acquire(&lock_path)
        .map_err(io_error("lock", &lock_path))?
        .ok_or(InstanceError::Locked { path: lock_path })?;
    let mut manifest = Manifest {
        version: manifest::FORMAT,
        revision: 0,
        id,
        state: State::Creating,
        created_unix_ms: unix_ms(),
        template: template.id.clone(),
        kernel: kernel.id.clone(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory,
        disk_mib: shape.disk,
        vmm: host.vmm.describe().clone(),
        slot: None,
        access_token: hex::encode(random_bytes::<32>()),
    };
    manifest.write(&places.manifest())?;
    Ok(Parts::new(Arc::clone(&host.storage), places, manifest, lock))
}

/// What is needed throughout a birth.
struct Birth<'a> {
    host: &'a Host,
    template: &'a Template,
    kernel: &'a KernelFiles,
    shape: CheckedShape,
    ready_limit: Duration,
}

/// What a birth ends with, beside [`Parts`].
struct Born {
    envd: EnvdClient,
    machine: Box<dyn Machine>,
    ended: oneshot::Receiver<VmEnd>,
}

impl Birth<'_> {
    async fn run(&self, parts: &mut Parts, watch: &mut Stopwatch, cancel: Cancel) -> Result<Born, CreateError> {
        self.network(parts).await?;
        watch.lap("network");
        self.disk(parts).await?;
        watch.lap("disk");
        self.cgroup(parts).await?;
        let (boot, ended) = self.launch(parts).await?;
        watch.lap("vmm");
        let born = self.ready(parts, boot, ended, cancel).await?;
        watch.lap("guest");
        self.init(parts, &born.envd).await?;
        watch.lap("init");
        Ok(born)
    }

    async fn network(&self, parts: &mut Parts) -> Result<(), CreateError> {
        let lease = self.host.network.acquire().await?;
        parts.manifest.slot = Some(lease.slot());
        parts.lease = Some(lease);
        Ok(parts.manifest.write(&parts.places.manifest())?)
    }

    async fn disk(&self, parts: &mut Parts) -> Result<(), CreateError> {
        let base = Layer {
            path: self.template.rootfs.clone(),
            format: LayerFormat::Raw,
            size_bytes: self.template.size_bytes,
        };
        let size = self.shape.disk.bytes().max(base.size_bytes);
        let name = DiskName { tag: self.host.instance.tag(), sandbox: parts.manifest.id.clone() };
        let place = Place { path: parts.places.disk(), name };
        let storage = Arc::clone(&self.host.storage);
        parts.disk = Some(blocking(move || storage.create(&place, &[base], size)).await?);
        Ok(())
    }

    /// The limits are in force before there is anything to limit. The group's name follows from the manifest's id.
    async fn cgroup(&self, parts: &mut Parts) -> Result<(), CreateError> {
        let Some(cgroups) = self.host.cgroups.clone() else { return Ok(()) };
        let vmm = &self.host.vmm;
        let emulated = vmm.describe().accel == Accel::Tcg;
        let limits = Limits::of_vm(self.shape.vcpus, vmm.memory(self.shape.memory), emulated);
        let id = parts.manifest.id.clone();
        parts.cgroup = Some(blocking(move || cgroups.create(&id, limits)).await?);
        Ok(())
    }

    /// Starts the VMM under its shim; its end can be awaited from then on.
    async fn launch(&self, parts: &mut Parts) -> Result<(Box<dyn Boot>, oneshot::Receiver<VmEnd>), CreateError> {
        let lease = parts.lease.as_ref().expect("networked before booted");
        let disk = parts.disk.as_ref().expect("disked before booted");
        let uid = lease.slot().vmm_uid();
        let kernel = match self.host.vmm.enters_any_elf() {
            true => &self.kernel.vmlinux,
            false => self.kernel.boot_image(),
        };
        let vm = VmSpec {
            id: parts.manifest.id.clone(),
            uid,
            run_dir: parts.places.run_dir.clone(),
            vcpus: self.shape.vcpus,
            memory: self.shape.memory,
            memory_base: zero_memory(&self.host.instance, self.host.vmm.memory(self.shape.memory))?.into(),
            kernel: host_file(kernel)?,
            initramfs: host_file(&self.kernel.initramfs)?,
            command_line: self.command_line(parts),
            disk: disk_files(disk)?,
            tap: Tap { name: TAP, queue: lease.open_tap()? },
            guest_mac: GUEST_MAC.to_string(),
        };
        let Plan { launch: to_launch, boot } = self.host.vmm.plan(vm)?;
        let netns = lease.netns_path();
        let folders = |cgroup: &Cgroup| LaunchCgroups { vmm: cgroup.path().to_owned(), shim: cgroup.shims() };
        let cgroups = parts.cgroup.as_ref().map(folders);
        let (id, places, shim_program) =
            (parts.manifest.id.clone(), parts.places.clone(), self.host.shim_program.clone());
        let file_bytes_max = disk.size_bytes + OVERLAY_SLACK_BYTES;
        let shim = blocking(move || {
            launch(LaunchSpec {
                id: &id,
                launch: to_launch,
                shim_program: &shim_program,
                netns: &netns,
                cgroups,
                uid,
                file_bytes_max,
                spec_path: &places.shim_spec(),
                socket: &places.shim_socket(),
                console: &places.console(),
                exit_record: &places.exit_record(),
                log: &places.shim_log(),
            })
        })
        .await?;
        let ended = shim.watch();
        parts.shim = Some(shim);
        Ok((boot, ended))
    }

    /// What the kernel and wrenn-init are told.
    fn command_line(&self, parts: &Parts) -> String {
        let key = hex::encode(self.host.instance.key().verifying_key().to_bytes());
        format!(
            "{} wrenn.id={} wrenn.key={key} wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
             wrenn.root=/dev/vda",
            self.host.vmm.kernel_arguments(),
            parts.manifest.id,
        )
    }

    async fn ready(
        &self,
        parts: &Parts,
        boot: Box<dyn Boot>,
        mut ended: oneshot::Receiver<VmEnd>,
        mut cancel: Cancel,
    ) -> Result<Born, CreateError> {
        let lease = parts.lease.as_ref().expect("networked before ready");
        let dial = Arc::new(GuestDial(lease.connector()));
        let envd = EnvdClient::new(dial, parts.manifest.access_token.clone());
        let up = async {
            let boot = async { boot.boot().await.map_err(CreateError::from) };
            let wait = async {
                envd.wait_ready(self.ready_limit)
                    .await
                    .map_err(|source| CreateError::Guest { console: excerpt(parts), source })
            };
            tokio::try_join!(boot, wait).map(|(machine, ())| machine)
        };
        tokio::select! {
            biased;
            end = &mut ended => Err(self.ended_early(parts, end)),
            _ = cancel.wait_for(|cancelled| *cancelled) => Err(CreateError::Cancelled),
            up = up => match up {
                Ok(machine) => {
                    warn_of_no_filter(parts);
                    Ok(Born { machine, envd, ended })
                }
                Err(error) => Err(self.better_cause(parts, error, &mut ended).await),
            },
        }
    }

    /// A control connection breaks a moment before the shim can tell how the VMM ended; the shim's word says more.
    async fn better_cause(
        &self,
        parts: &Parts,
        error: CreateError,
        ended: &mut oneshot::Receiver<VmEnd>,
    ) -> CreateError {
        match tokio::time::timeout(END_WORD_LIMIT, ended).await {
            Ok(end) => self.ended_early(parts, end),
            Err(_it_still_runs) => error,
        }
    }

    /// The VMM's own complaint is on its stderr, which the shim keeps.
    fn ended_early(&self, parts: &Parts, end: Result<VmEnd, oneshot::error::RecvError>) -> CreateError {
        let complaint = parts
            .shim
            .as_ref()
            .and_then(|shim| shim.vmm_log().ok())
            .map(|log| printable(&log))
            .filter(|text| !text.is_empty());
        let end = match complaint {
            Some(complaint) => format!("{}: {complaint}", ending(end)),
            None => ending(end),
        };
        let end = match parts.out_of_memory() {
            Some(shortage) => format!("{end}; {shortage}"),
            None => end,
        };
        CreateError::Ended { end, console: excerpt(parts) }
    }

    async fn init(&self, parts: &mut Parts, envd: &EnvdClient) -> Result<(), CreateError> {
        let id = parts.manifest.id.to_string();
        let init = Init {
            access_token: parts.manifest.access_token.clone(),
            env_vars: BTreeMap::from([
                ("E2B_SANDBOX".to_owned(), "true".to_owned()),
                ("E2B_SANDBOX_ID".to_owned(), id),
                ("E2B_TEMPLATE_ID".to_owned(), parts.manifest.template.clone()),
            ]),
            timestamp: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            default_user: None,
            default_workdir: None,
        };
        let host = HostKey { key: self.host.instance.key(), id: &parts.manifest.id };
        envd.init(host, &init).await.map_err(|source| CreateError::Guest { console: excerpt(parts), source })?;
        parts.manifest.state = State::Running;
        Ok(parts.manifest.write(&parts.places.manifest())?)
    }
}

/// Control traffic goes through sockets of the sandbox's own namespace.
#[derive(Debug)]
struct GuestDial(Connector);

#[async_trait]
impl Dial for GuestDial {
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<TcpStream> {
        self.0.connect(port, limit).await.map_err(io::Error::other)
    }
}

/// The live disk first, then what lies beneath, topmost first; a block device is all of it.
fn disk_files(disk: &Disk) -> Result<Vec<DiskFile>, CreateError> {
    if let Some(device) = &disk.device {
        return Ok(vec![DiskFile::live(device, false).map_err(io_error("open", device))?]);
    }
    let mut files = vec![DiskFile::live(&disk.path, true).map_err(io_error("open", &disk.path))?];
    for layer in disk.layers.iter().rev() {
        let file = DiskFile::layer(&layer.path, layer.format == LayerFormat::Qcow2);
        files.push(file.map_err(io_error("open", &layer.path))?);
    }
    Ok(files)
}

fn host_file(path: &Path) -> Result<HostFile, CreateError> {
    Ok(HostFile::open(path).map_err(io_error("open", path))?)
}

/// A VMM that was built without its system-call filter runs all the same; whoever runs untrusted code should know.
fn warn_of_no_filter(parts: &Parts) {
    let pid = parts.shim.as_ref().and_then(|shim| shim.vmm_pid().ok().flatten());
    // A VMM that has ended by now is told of elsewhere.
    let Some(Ok(threads)) = pid.map(seccomp::filters) else { return };
    match seccomp::confinement(&threads) {
        Confinement::Filtered { .. } => {}
        Confinement::Open { threads } => tracing::warn!(
            sandbox = %parts.manifest.id,
            ?threads,
            "the VMM runs without a system-call filter; install a release of it"
        ),
    }
}

fn excerpt(parts: &Parts) -> String {
    printable(&parts.console_tail(CONSOLE_EXCERPT_BYTES))
}

/// A guest's or a VMM's bytes as text for people: line by line, everything else escaped.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
        .collect();
    lines.join("\n").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_cannot_drive_a_terminal() {
        assert_eq!(printable(b"one\r\n\x1b[31mtwo\xff\n"), "one\n\u{fffd}[31mtwo\u{fffd}");
        assert_eq!(printable(b""), "");
    }
}
