//! A plain VMM: the same VM as ours, without a shim, a user or a control group of its own, and with nobody who manages it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use wrenn_agent::envd_client::{EnvdClient, Nonces};
use wrenn_agent::generation::{Folder, Generation};
use wrenn_agent::guest_dial::GuestDial;
use wrenn_agent::layers::Layers;
use wrenn_engine::names::{DiskName, SandboxId};
use wrenn_engine::network::addresses::TAP;
use wrenn_engine::network::{GUEST_MAC, Lease};
use wrenn_engine::storage::{Disk, Layer, LayerFormat, Place};
use wrenn_engine::vmm::{DiskFile, HostFile, Launch, MemoryBacking, Plan, Start, Tap, VmSpec};
use wrenn_proto::shim;
use wrenn_sys::spawn::{Jail, JailEntry, Spawn};

use crate::program::{Running, cpu_time, own_memory};
use crate::setting::{MEMORY, READY_LIMIT, Setting, TEMPLATE, VCPUS};

/// Whose VM it is, as far as names go: no sandbox is called this.
pub fn id() -> SandboxId {
    SandboxId::from_random([0; 18])
}

/// Where its disk is in `folder`.
pub fn place(setting: &Setting, folder: &Path) -> Place {
    Place { path: folder.join("disk"), name: DiskName { tag: setting.host.instance.tag(), sandbox: id() } }
}

/// The template's image as a layer.
pub fn template_layer(setting: &Setting) -> Result<Layer> {
    let template = setting.host.images.template(TEMPLATE)?;
    Ok(Layer { path: template.rootfs, format: LayerFormat::Raw, size_bytes: template.size_bytes })
}

/// The VM of every measurement, with its files in `folder`.
pub fn vm(
    setting: &Setting,
    lease: &Lease,
    folder: &Path,
    disk: &Disk,
    (start, memory_base): (Start, HostFile),
) -> Result<VmSpec> {
    let host = &setting.host;
    let kernel = host.images.kernel(None)?;
    let key = host.instance.public_key();
    let id = id();
    Ok(VmSpec {
        // As we are: who listens for us is checked against this.
        uid: rustix::process::geteuid().as_raw(),
        run_dir: folder.to_owned(),
        capture_dir: folder.join("capture"),
        start,
        vcpus: VCPUS,
        memory: MEMORY,
        memory_base,
        kernel: HostFile::open(kernel.boot_image())?,
        initramfs: HostFile::open(&kernel.initramfs)?,
        command_line: format!(
            "{} wrenn.id={id} wrenn.key={key} wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
             wrenn.root=/dev/vda",
            host.vmm.kernel_arguments()
        ),
        disk: disk_files(disk)?,
        tap: Tap { name: TAP, queue: lease.open_tap()? },
        guest_mac: GUEST_MAC.to_string(),
        id,
    })
}

/// What the VMM opens of a disk: the device where the kernel puts it together, else every file of it.
fn disk_files(disk: &Disk) -> Result<Vec<DiskFile>> {
    if let Some(device) = &disk.device {
        return Ok(vec![DiskFile::live(device, false)?]);
    }
    let mut files = vec![DiskFile::live(&disk.path, true)?];
    for layer in disk.layers.iter().rev() {
        files.push(DiskFile::layer(&layer.path, layer.format == LayerFormat::Qcow2)?);
    }
    Ok(files)
}

/// Starts a VMM. Its console is read, as our shim reads ours: a pipe that fills up would stop the guest.
pub fn start(spawn: Spawn<'_>) -> Result<Running> {
    let (console, console_writer) = io::pipe()?;
    drain(console);
    Running::start(spawn.fd(console_writer.as_fd(), 1))
}

/// Reads a console on a thread of its own until its writers are gone; nobody looks at it.
fn drain(mut console: io::PipeReader) {
    std::thread::spawn(move || io::copy(&mut console, &mut io::sink()));
}

/// A plain VMM that has gone on from a captured state.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// From its start until its guest's agent answers.
    pub wall: Duration,
    /// Its CPU time until then, the guest's included.
    pub cpu: Duration,
    /// Memory that is its own then, in bytes.
    pub own_bytes: u64,
}

/// A plain VMM goes on from the generation in `folder`, whose disk stands on `layers`; its network and its copy of the disk are
/// made before.
pub async fn restore(setting: &Setting, folder: &Folder, layers: &Layers) -> Result<Restored> {
    let lease = setting.host.network.acquire().await?;
    let restored = restore_on(setting, &lease, folder, layers).await;
    lease.destroy().await?;
    restored.context("cannot measure a plain VMM")
}

async fn restore_on(setting: &Setting, lease: &Lease, folder: &Folder, beneath: &Layers) -> Result<Restored> {
    // Sockets want a short path, and the copy of the disk the file system of the disk.
    let (scratch, disk_folder) = (tempfile::tempdir()?, tempfile::tempdir_in(&setting.data)?);
    let description = Generation::read(folder)?.disk;
    let layer = |id| Layer { path: beneath.path(id), format: description.format, size_bytes: description.size_bytes };
    let mut layers = vec![template_layer(setting)?];
    layers.extend(description.beneath.iter().map(layer));
    layers.push(folder.layer(&description));
    let devices = HostFile::open(&folder.devices())?;
    let memory = HostFile::open(&folder.memory_files().base)?;
    let start = (Start::Restore { devices, memory: MemoryBacking::File }, memory);
    let disk = setting.host.storage.restore(&place(setting, disk_folder.path()), &layers)?;
    let restored = match vm(setting, lease, scratch.path(), &disk, start) {
        Ok(vm) => restored(setting, lease, vm).await,
        Err(error) => Err(error),
    };
    setting.host.storage.remove(&disk)?;
    restored
}

/// From the start of the driver's own VMM until it has taken up the captured state of `vm` and its guest's agent answers;
/// then it is ended.
///
/// A Firecracker is put into the root that the driver has for it, because what it captured names its disk in there.
async fn restored(setting: &Setting, lease: &Lease, vm: VmSpec) -> Result<Restored> {
    let Plan { launch: Launch { program, args, descriptors, jail, pager: _ }, boot } = setting.host.vmm.plan(vm)?;
    let netns = File::open(lease.netns_path())?;
    let mut spawn = Spawn::new(program).args(args).netns(netns.as_fd());
    for (fd, number) in &descriptors {
        spawn = spawn.fd(fd.as_fd(), *number);
    }
    if let Some(jail) = jail {
        spawn = spawn.jail(jail_of(jail));
    }
    let envd = guest(lease);
    let vmm = start(spawn)?;
    let mut machine = boot.boot().await?;
    machine.thaw().await?;
    envd.wait_ready(READY_LIMIT).await?;
    let wall = vmm.started().elapsed();
    Ok(Restored { wall, cpu: cpu_time(vmm.pid())?, own_bytes: own_memory(vmm.pid())? })
}

/// As the shim makes it of its orders.
fn jail_of(jail: shim::Jail) -> Jail {
    let entry = |entry| match entry {
        shim::JailEntry::Device { path, source } => JailEntry::Device { path, source },
        shim::JailEntry::ReadOnly { path, source } => JailEntry::ReadOnly { path, source },
        shim::JailEntry::Writable { path, source } => JailEntry::Writable { path, source },
    };
    Jail { mount_point: jail.mount_point, entries: jail.entries.into_iter().map(entry).collect() }
}

/// The way to the agent of the guest on this network. Nobody has to be let in to ask whether it is well.
pub fn guest(lease: &Lease) -> EnvdClient {
    EnvdClient::new(Arc::new(GuestDial::new(lease.connector())), String::new(), Nonces::default())
}
