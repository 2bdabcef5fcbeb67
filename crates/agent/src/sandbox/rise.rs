//! Bringing a VM up: the steps that a birth, a resume and a cold boot of a stopped sandbox have in common.
//!
//! ```text
//!   network ─► disk ─► control group ─► VMM under its shim ─► (captured state) ─► guest answers ─► /init, or confirmation
//! ```
//!
//! Each step leaves what it made in [`Parts`]; whoever calls takes it down when a later one fails.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use wrenn_engine::cgroup::{Cgroup, Limits};
use wrenn_engine::image::{KernelFiles, Template};
use wrenn_engine::limits;
use wrenn_engine::names::{DiskName, LayerId, SandboxId};
use wrenn_engine::network::GUEST_MAC;
use wrenn_engine::network::addresses::TAP;
use wrenn_engine::probe::Restore;
use wrenn_engine::storage::{self, Disk, Layer, LayerFormat, Place, StorageError};
use wrenn_engine::vmm::seccomp::{self, Confinement};
use wrenn_engine::vmm::{
    Accel, Boot, DiskFile, HostFile, Incident, LaunchCgroups, LaunchSpec, Machine, MemoryBacking, Plan, Start, Tap,
    VmEnd, VmSpec, launch,
};

use super::create::CreateError;
use super::parts::blocking;
use super::resume::CLOCK_WITHIN;
use super::{Cancel, Parts, Stopwatch, Trouble, ending, on_demand};
use crate::envd_client::{EnvdClient, EnvdError, HostKey, HostLine, Init, Nonces};
use crate::faults::Step;
use crate::generation::{self, Folder, Number};
use crate::guest_dial::GuestDial;
use crate::host::{Host, zero_memory};
use crate::instance::{io_error, random_bytes};
use crate::layers::Layers;
use crate::manifest::{LiveDisk, Manifest, MemoryBase};

/// What of the console is shown when a guest does not become ready, in bytes.
const CONSOLE_EXCERPT_BYTES: u64 = 2048;
/// What a VMM may write beyond its disk's and its memory's size, in bytes: tables of the overlay, state of devices.
const FILE_SLACK_BYTES: u64 = 64 << 20;
/// How long a rehearsal's call may take.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(2);
/// How long the shim has to tell of an end that the control connection showed.
const END_WORD_LIMIT: Duration = Duration::from_millis(500);

/// What the live disk starts from.
pub(super) enum DiskFrom {
    /// The template, with nothing written yet.
    Template,
    /// The live file of a VM that has ended.
    LiveFile(LiveDisk),
    /// The disk of a generation, which stays as it is.
    Generation {
        /// The generation.
        folder: Folder,
        /// Its disk.
        top: Layer,
        /// The layers between it and the template, lowest first.
        beneath: Vec<LayerId>,
        /// What the disk becomes as a layer, if the live one is to stand on it; else it is copied.
        stands_on: Option<LayerId>,
    },
}

impl DiskFrom {
    /// A large disk is stood on, a small one copied: a layer costs something on the way of every read.
    pub(super) fn generation(folder: Folder, disk: &generation::Disk) -> Result<Self, StorageError> {
        let top = folder.layer(disk);
        let is_large = storage::allocated_bytes(&top.path)? > limits::DISK_COPY_MAX.bytes();
        let stacks = is_large && disk.beneath.len() < limits::DISK_LAYERS_STACKED_MAX;
        let stands_on = stacks.then(|| LayerId::from_random(random_bytes()));
        Ok(Self::Generation { folder, top, beneath: disk.beneath.clone(), stands_on })
    }
}

/// What the VM starts from.
pub(super) enum VmFrom {
    /// Its kernel.
    Boot,
    /// The state in this generation.
    Generation(Number, Folder),
}

/// A VM whose guest can be spoken to.
pub(super) struct Risen {
    pub envd: EnvdClient,
    /// The connection to one that goes on from a captured state: it has not been told so yet.
    pub line: Option<HostLine>,
    pub machine: Box<dyn Machine>,
    pub ended: oneshot::Receiver<VmEnd>,
}

/// A VMM that runs and has not been told anything yet.
struct Launched {
    boot: Box<dyn Boot>,
    ended: oneshot::Receiver<VmEnd>,
}

/// A VM that is as it was captured, its CPUs standing still.
pub(super) struct Loaded {
    machine: Box<dyn Machine>,
    ended: oneshot::Receiver<VmEnd>,
}

impl Loaded {
    /// Whether its VMM still runs.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// The names of the steps, which differ between a birth and a resume.
pub(super) struct Steps {
    pub networked: Step,
    pub disked: Step,
    pub launched: Step,
    pub loaded: Step,
    pub thawed: Step,
    pub ready: Step,
}

/// What is needed throughout.
pub(super) struct Rise<'a> {
    pub host: &'a Host,
    pub template: &'a Template,
    pub kernel: &'a KernelFiles,
    pub ready_limit: Duration,
    pub steps: Steps,
}

impl Rise<'_> {
    /// All of it, up to a guest that answers. A VM that goes on from a captured state has its CPUs run by then, but nothing
    /// of its users.
    pub(super) async fn run(
        &self,
        parts: &mut Parts,
        disk: DiskFrom,
        vm: VmFrom,
        watch: &mut Stopwatch,
        cancel: Cancel,
    ) -> Result<Risen, CreateError> {
        match vm {
            VmFrom::Boot => {
                let launched = self.start_vmm(parts, disk, &vm, watch, &cancel).await?;
                self.boot(parts, launched, watch, cancel).await
            }
            VmFrom::Generation(..) => {
                let loaded = self.load(parts, disk, &vm, watch, cancel.clone()).await?;
                self.wake(parts, loaded, watch, cancel).await
            }
        }
    }

    /// Up to a VM that is as it was captured: nothing of it runs yet.
    pub(super) async fn load(
        &self,
        parts: &mut Parts,
        disk: DiskFrom,
        vm: &VmFrom,
        watch: &mut Stopwatch,
        mut cancel: Cancel,
    ) -> Result<Loaded, CreateError> {
        let Launched { boot, mut ended } = self.start_vmm(parts, disk, vm, watch, &cancel).await?;
        let load = async { Ok::<_, CreateError>(boot.boot().await?) };
        let machine = while_it_runs(parts, &mut ended, &mut cancel, load).await?;
        parts.reached(self.steps.loaded)?;
        watch.lap("load");
        Ok(Loaded { machine, ended })
    }

    /// Up to a VMM that waits for what it is to run.
    async fn start_vmm(
        &self,
        parts: &mut Parts,
        disk: DiskFrom,
        vm: &VmFrom,
        watch: &mut Stopwatch,
        cancel: &Cancel,
    ) -> Result<Launched, CreateError> {
        // With the network's slot, and before there is anything of it.
        parts.manifest.disk = Some(self.disk_record(parts, &disk));
        self.network(parts).await?;
        parts.reached(self.steps.networked)?;
        watch.lap("network");
        self.disk(parts, disk).await?;
        parts.reached(self.steps.disked)?;
        watch.lap("disk");
        check_cancel(cancel)?;
        self.cgroup(parts).await?;
        let launched = self.launch(parts, vm).await?;
        parts.reached(self.steps.launched)?;
        watch.lap("vmm");
        Ok(launched)
    }

    async fn network(&self, parts: &mut Parts) -> Result<(), CreateError> {
        let lease = self.host.lease().await?;
        parts.manifest.slot = Some(lease.slot());
        parts.lease = Some(lease);
        Ok(parts.write()?)
    }

    /// The live disk that is going to be made.
    fn disk_record(&self, parts: &Parts, from: &DiskFrom) -> LiveDisk {
        match from {
            DiskFrom::Template => {
                let size_bytes = parts.manifest.disk_mib.bytes().max(self.template.size_bytes);
                LiveDisk { beneath: Vec::new(), size_bytes }
            }
            DiskFrom::LiveFile(record) => record.clone(),
            DiskFrom::Generation { top, beneath, stands_on, .. } => {
                let beneath = beneath.iter().chain(stands_on).cloned().collect();
                LiveDisk { beneath, size_bytes: top.size_bytes }
            }
        }
    }

    async fn disk(&self, parts: &mut Parts, from: DiskFrom) -> Result<(), CreateError> {
        let place = disk_place(self.host, parts);
        let storage = Arc::clone(&self.host.storage);
        let record = parts.manifest.disk.clone().expect("recorded before it is made");
        let layers = live_layers(self.template, parts, &record);
        let ours = Layers::of(&parts.places.dir);
        let disk = blocking(move || -> Result<Disk, CreateError> {
            Ok(match from {
                DiskFrom::Template => storage.create(&place, &layers, record.size_bytes)?,
                DiskFrom::LiveFile(_) => storage.open(&place, &layers, record.size_bytes)?,
                DiskFrom::Generation { folder, stands_on: Some(id), .. } => {
                    ours.take(&folder, &id).map_err(|error| CreateError::Captured(Box::new(error.into())))?;
                    storage.create(&place, &layers, record.size_bytes)?
                }
                DiskFrom::Generation { top, stands_on: None, .. } => {
                    storage.restore(&place, &[layers, vec![top]].concat())?
                }
            })
        });
        parts.disk = Some(disk.await?);
        Ok(())
    }

    /// The limits are in force before there is anything to limit. The group's name follows from the manifest's id.
    async fn cgroup(&self, parts: &mut Parts) -> Result<(), CreateError> {
        let Some(cgroups) = self.host.cgroups.clone() else { return Ok(()) };
        let vmm = &self.host.vmm;
        let emulated = vmm.describe().accel == Accel::Tcg;
        let limits = Limits::of_vm(parts.manifest.vcpus, vmm.memory(parts.manifest.memory_mib), emulated);
        let id = parts.manifest.id.clone();
        parts.cgroup = Some(blocking(move || cgroups.create(&id, limits)).await?);
        Ok(())
    }

    /// Starts the VMM under its shim; its end can be awaited from then on.
    async fn launch(&self, parts: &mut Parts, vm: &VmFrom) -> Result<Launched, CreateError> {
        parts.places.make_run_dir()?;
        // How an earlier VM ended says nothing of this one.
        remove_file(&parts.places.exit_record())?;
        let vm = self.vm_spec(parts, vm)?;
        let lease = parts.lease.as_ref().expect("networked before booted");
        let disk = parts.disk.as_ref().expect("disked before booted");
        let (uid, netns) = (vm.uid, lease.netns_path());
        let Plan { launch: to_launch, boot } = self.host.vmm.plan(vm)?;
        let folders = |cgroup: &Cgroup| LaunchCgroups { vmm: cgroup.path().to_owned(), shim: cgroup.shims() };
        let cgroups = parts.cgroup.as_ref().map(folders);
        let (id, places, shim_program) =
            (parts.manifest.id.clone(), parts.places.clone(), self.host.shim_program.clone());
        let memory = self.host.vmm.memory(parts.manifest.memory_mib).bytes();
        let file_bytes_max = disk.size_bytes.max(memory) + FILE_SLACK_BYTES;
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
        Ok(Launched { boot, ended })
    }

    fn vm_spec(&self, parts: &mut Parts, vm: &VmFrom) -> Result<VmSpec, CreateError> {
        let (start, memory_base) = self.start(parts, vm)?;
        let lease = parts.lease.as_ref().expect("networked before booted");
        let disk = parts.disk.as_ref().expect("disked before booted");
        let kernel = match self.host.vmm.enters_any_elf() {
            true => &self.kernel.vmlinux,
            false => self.kernel.boot_image(),
        };
        Ok(VmSpec {
            id: parts.manifest.id.clone(),
            uid: lease.slot().vmm_uid(),
            run_dir: parts.places.run_dir.clone(),
            capture_dir: parts.places.capture(),
            start,
            vcpus: parts.manifest.vcpus,
            memory: parts.manifest.memory_mib,
            memory_base,
            kernel: host_file(kernel)?,
            initramfs: host_file(&self.kernel.initramfs)?,
            command_line: self.command_line(&parts.manifest.id),
            disk: disk_files(disk)?,
            tap: Tap { name: TAP, queue: lease.open_tap()? },
            guest_mac: GUEST_MAC.to_string(),
        })
    }

    fn start(&self, parts: &mut Parts, vm: &VmFrom) -> Result<(Start, HostFile), CreateError> {
        match vm {
            VmFrom::Boot => {
                let size = self.host.vmm.memory(parts.manifest.memory_mib);
                let base = zero_memory(&self.host.instance, size)?;
                parts.record_memory(MemoryBase::Zero);
                Ok((Start::Boot, base))
            }
            VmFrom::Generation(number, folder) => {
                let base = folder.memory_files().base;
                for path in [&folder.devices(), &base] {
                    let_others_read(path)?;
                }
                parts.record_memory(MemoryBase::Generation(*number));
                let memory = match self.host.restore {
                    Restore::File => MemoryBacking::File,
                    Restore::Userfaultfd => MemoryBacking::Uffd(on_demand::pages(folder)?),
                };
                Ok((Start::Restore { devices: host_file(&folder.devices())?, memory }, host_file(&base)?))
            }
        }
    }

    /// What the kernel and wrenn-init are told.
    fn command_line(&self, id: &SandboxId) -> String {
        let key = self.host.instance.public_key();
        format!(
            "{} wrenn.id={id} wrenn.key={key} wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
             wrenn.root=/dev/vda",
            self.host.vmm.kernel_arguments(),
        )
    }

    async fn boot(
        &self,
        parts: &Parts,
        launched: Launched,
        watch: &mut Stopwatch,
        mut cancel: Cancel,
    ) -> Result<Risen, CreateError> {
        let Launched { boot, mut ended } = launched;
        let envd = guest_client(parts);
        let answers = Notify::new();
        let boot = async { undisturbed(boot.boot().await?, answers.notified()).await };
        let ready = async {
            let ready = envd.wait_ready(self.ready_limit).await;
            ready.map(|()| answers.notify_one()).map_err(|source| not_ready(parts, source))
        };
        let up = async { tokio::try_join!(boot, ready) };
        let (machine, ()) = while_it_runs(parts, &mut ended, &mut cancel, up).await?;
        self.is_up(parts, watch)?;
        Ok(Risen { machine, envd, line: None, ended })
    }

    /// Lets a loaded VM go on; answers when its guest does.
    pub(super) async fn wake(
        &self,
        parts: &Parts,
        loaded: Loaded,
        watch: &mut Stopwatch,
        mut cancel: Cancel,
    ) -> Result<Risen, CreateError> {
        let Loaded { mut machine, mut ended } = loaded;
        let envd = guest_client(parts);
        let answers = Notify::new();
        let up = async {
            machine.thaw().await?;
            parts.reached(self.steps.thawed)?;
            let line = async {
                let line = envd.reach(self.ready_limit).await;
                line.inspect(|_| answers.notify_one()).map_err(|source| not_ready(parts, source))
            };
            tokio::try_join!(undisturbed(machine, answers.notified()), line)
        };
        let (machine, line) = while_it_runs(parts, &mut ended, &mut cancel, up).await?;
        self.is_up(parts, watch)?;
        Ok(Risen { machine, envd, line: Some(line), ended })
    }

    /// Lets a loaded VM go on until its guest, which takes itself for `guest`, has answered a call, and stops it again: whatever a
    /// guest does for the first time after its restore takes many times as long as later. Nothing of any user runs.
    pub(super) async fn rehearse(
        &self,
        parts: &mut Parts,
        guest: &SandboxId,
        loaded: Loaded,
        cancel: Cancel,
    ) -> Result<Loaded, CreateError> {
        let risen = self.wake(parts, loaded, &mut Stopwatch::default(), cancel).await?;
        let Risen { mut machine, envd, line, ended } = risen;
        let mut line = line.expect("a VM that was restored has a connection");
        let host = HostKey { id: guest, ..host_key(parts) };
        if let Err(error) = line.set_clock(host, CLOCK_WITHIN, REHEARSAL_LIMIT).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(sandbox = %parts.manifest.id, error, "a rehearsal that came to nothing");
        }
        machine.freeze().await?;
        parts.keep_nonces(&envd);
        Ok(Loaded { machine, ended })
    }

    /// Its guest answers.
    fn is_up(&self, parts: &Parts, watch: &mut Stopwatch) -> Result<(), CreateError> {
        warn_of_no_filter(parts);
        parts.reached(self.steps.ready)?;
        watch.lap("guest");
        Ok(())
    }

    /// Gives a guest that was booted its token, environment and clock.
    pub(super) async fn init(&self, parts: &Parts, risen: &mut Risen) -> Result<(), CreateError> {
        let init = Init {
            access_token: parts.manifest.access_token.clone(),
            env_vars: guest_env(&parts.manifest),
            timestamp: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
            default_user: None,
            default_workdir: None,
        };
        match risen.envd.init(host_key(parts), &init).await {
            Ok(()) => Ok(()),
            Err(source) => {
                let error = not_ready(parts, source);
                Err(better_cause(parts, error, &mut risen.ended).await)
            }
        }
    }
}

/// The environment of every process in a guest.
pub(super) fn guest_env(manifest: &Manifest) -> BTreeMap<String, String> {
    let ours = [
        ("E2B_SANDBOX".to_owned(), "true".to_owned()),
        ("E2B_SANDBOX_ID".to_owned(), manifest.id.to_string()),
        ("E2B_TEMPLATE_ID".to_owned(), manifest.template.clone()),
    ];
    manifest.env.clone().into_iter().chain(ours).collect()
}

/// The machine, once its guest `answers`, unless it meets something before that keeps the guest from ever answering.
async fn undisturbed(
    mut machine: Box<dyn Machine>,
    answers: impl Future<Output = ()>,
) -> Result<Box<dyn Machine>, CreateError> {
    tokio::select! {
        () = answers => Ok(machine),
        incident = machine.incident() => Err(match incident {
            Incident::DiskFull => Trouble::DiskFull.into(),
            Incident::DiskError(reason) => Trouble::DiskError(reason).into(),
            Incident::Broken(how) => Trouble::VmBroken(how).into(),
            // Its shim tells how.
            Incident::Ended => std::future::pending().await,
        }),
    }
}

/// Waits for `work` that needs a VM that runs and somebody who wants it.
pub(super) async fn while_it_runs<T, E: From<CreateError>>(
    parts: &Parts,
    ended: &mut oneshot::Receiver<VmEnd>,
    cancel: &mut Cancel,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let done = tokio::select! {
        biased;
        end = &mut *ended => return Err(ended_early(parts, end).into()),
        () = cancelled(cancel) => return Err(CreateError::Cancelled.into()),
        done = work => done,
    };
    match done {
        Ok(done) => Ok(done),
        Err(error) => Err(better_cause(parts, error, ended).await),
    }
}

/// Waits until nobody wants it any more; whoever could say so may be gone, then it is wanted.
async fn cancelled(cancel: &mut Cancel) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending().await
    }
}

/// A file is gone afterwards; already gone is fine.
fn remove_file(path: &Path) -> Result<(), CreateError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error).into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A VMM that opens by name does so as a user of its own. Nobody else gets that far: the folders are root's alone.
fn let_others_read(path: &Path) -> Result<(), CreateError> {
    const MODE: u32 = 0o444;
    let mode = std::fs::metadata(path).map_err(io_error("look at", path))?.permissions().mode();
    // A file that is as it should be is not touched: who has checked it knows it by its times.
    if mode & 0o777 != MODE {
        let permissions = std::fs::Permissions::from_mode(MODE);
        std::fs::set_permissions(path, permissions).map_err(io_error("give the VMM", path))?;
    }
    Ok(())
}

fn check_cancel(cancel: &Cancel) -> Result<(), CreateError> {
    if *cancel.borrow() { Err(CreateError::Cancelled) } else { Ok(()) }
}

/// Who signs what this sandbox's guest is told.
pub(super) fn host_key(parts: &Parts) -> HostKey<'_> {
    HostKey { key: parts.host.instance.key(), id: &parts.manifest.id }
}

/// The way into the guest of a sandbox that has its network.
pub(super) fn guest_client(parts: &Parts) -> EnvdClient {
    let lease = parts.lease.as_ref().expect("networked before it is spoken to");
    let nonces = Nonces::starting_above(parts.manifest.nonces_below);
    EnvdClient::new(Arc::new(GuestDial::new(lease.connector())), parts.manifest.access_token.clone(), nonces)
}

/// The template's image as the lowest layer.
pub(super) fn template_layer(template: &Template) -> Layer {
    Layer { path: template.rootfs.clone(), format: LayerFormat::Raw, size_bytes: template.size_bytes }
}

/// Where the live disk is.
pub(super) fn disk_place(host: &Host, parts: &Parts) -> Place {
    let name = DiskName { tag: host.instance.tag(), sandbox: parts.manifest.id.clone() };
    Place { path: parts.places.disk(), name }
}

/// What the live disk stands on, lowest first.
pub(super) fn live_layers(template: &Template, parts: &Parts, record: &LiveDisk) -> Vec<Layer> {
    let ours = Layers::of(&parts.places.dir);
    let between = record.beneath.iter().map(|id| Layer {
        path: ours.path(id),
        format: parts.host.storage.layer_format(),
        size_bytes: record.size_bytes,
    });
    std::iter::once(template_layer(template)).chain(between).collect()
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

/// A control connection breaks a moment before the shim can tell how the VMM ended; the shim's word says more.
async fn better_cause<E: From<CreateError>>(parts: &Parts, error: E, ended: &mut oneshot::Receiver<VmEnd>) -> E {
    match tokio::time::timeout(END_WORD_LIMIT, ended).await {
        Ok(end) => ended_early(parts, end).into(),
        Err(_it_still_runs) => error,
    }
}

/// The VMM's own complaint is on its stderr, which the shim keeps.
fn ended_early(parts: &Parts, end: Result<VmEnd, oneshot::error::RecvError>) -> CreateError {
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

/// A guest that did not become ready, with the end of its console.
pub(super) fn not_ready(parts: &Parts, source: EnvdError) -> CreateError {
    CreateError::Guest { console: excerpt(parts), source }
}

pub(super) fn excerpt(parts: &Parts) -> String {
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
