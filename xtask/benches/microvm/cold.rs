//! From nothing: `wrenn run -- true` beside a plain VMM.
//!
//! The plain VMM has the same kernel, initramfs, command line, memory and disk, and a TAP of the same kind; all of that is
//! made before its clock starts. It has no shim, no jail and no user of its own, and nobody manages it: QEMU has our
//! arguments, Firecracker a configuration file. Its guest is asked with the same short attempts as ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde::Deserialize;
use tokio::net::TcpStream;
use wrenn_agent::envd_client::{Dial, EnvdClient};
use wrenn_agent::host::zero_memory;
use wrenn_engine::names::{DiskName, SandboxId};
use wrenn_engine::network::addresses::TAP;
use wrenn_engine::network::{Connector, GUEST_MAC, Lease};
use wrenn_engine::storage::{Disk, Layer, LayerFormat, Place};
use wrenn_engine::vmm::{DiskFile, DriverKind, HostFile, Launch, Plan, Tap, VmSpec};
use wrenn_sys::spawn::{ExitStatus, Spawn};

use crate::Round;
use crate::program::{self, Running};
use crate::setting::{MEMORY, READY_LIMIT, Setting, TEMPLATE, VCPUS};

/// Phases of a run that the guest or the command takes, not we.
const NOT_OURS: [&str; 3] = ["guest", "init", "exec"];
/// Phases that come after the guest's agent has answered.
const AFTER_READY: [&str; 3] = ["init", "exec", "destroy"];
/// How the names of the phases of taking down begin.
const TAKING_DOWN: &str = "end ";

/// Plain and ours, first and second in turn.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    if round.number() % 2 == 1 {
        plain(setting, round)?;
        ours(setting, round)
    } else {
        ours(setting, round)?;
        plain(setting, round)
    }
}

fn plain(setting: &Setting, round: &mut Round) -> Result<()> {
    round.doing("a plain VMM");
    let ready = setting.runtime.block_on(plain_ready(setting)).context("cannot measure a plain VMM")?;
    round.value("plain-ready", "ms", millis(ready));
    Ok(())
}

async fn plain_ready(setting: &Setting) -> Result<Duration> {
    let lease = setting.host.network.acquire().await?;
    let ready = boot(setting, &lease).await;
    lease.destroy().await?;
    ready
}

async fn boot(setting: &Setting, lease: &Lease) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let (vm, disk) = vm(setting, lease, folder.path())?;
    let ready = match setting.host.vmm.describe().driver {
        DriverKind::Qemu => boot_qemu(setting, lease, vm).await,
        DriverKind::Firecracker => boot_firecracker(setting, lease, vm, folder.path()).await,
    };
    setting.host.storage.remove(&disk)?;
    ready
}

async fn boot_qemu(setting: &Setting, lease: &Lease, vm: VmSpec) -> Result<Duration> {
    let Plan { launch, boot: _not_needed_by_qemu } = setting.host.vmm.plan(vm)?;
    let Launch { program, args, descriptors, jail: _ } = launch;
    let mut spawn = Spawn::new(program).args(args);
    for (fd, number) in &descriptors {
        spawn = spawn.fd(fd.as_fd(), *number);
    }
    until_ready(lease, spawn).await
}

/// The same VM as our driver asks for over the API, in one file.
async fn boot_firecracker(setting: &Setting, lease: &Lease, vm: VmSpec, folder: &Path) -> Result<Duration> {
    let disk = vm.disk.first().context("a VM without a disk")?;
    let configuration = serde_json::json!({
        "machine-config": { "vcpu_count": vm.vcpus, "mem_size_mib": vm.memory.0 },
        "boot-source": {
            "kernel_image_path": vm.kernel.path,
            "initrd_path": vm.initramfs.path,
            "boot_args": vm.command_line,
        },
        "drives": [{
            "drive_id": "root",
            "path_on_host": disk.file.path,
            "is_root_device": false,
            "is_read_only": false,
            "cache_type": "Writeback",
        }],
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": vm.tap.name, "guest_mac": vm.guest_mac }],
        "entropy": {},
    });
    // A TAP has one queue: whoever holds it keeps Firecracker from having it.
    drop(vm.tap);
    let file = folder.join("firecracker.json");
    std::fs::write(&file, configuration.to_string())?;
    let netns = File::open(lease.netns_path())?;
    let args = ["--no-api", "--level", "Error", "--config-file", file.to_str().context("a path that is no text")?];
    until_ready(lease, Spawn::new(&setting.vmm_program).args(args).netns(netns.as_fd())).await
}

/// From the start of a VMM until its guest's agent answers; then it is ended.
async fn until_ready(lease: &Lease, spawn: Spawn<'_>) -> Result<Duration> {
    // Its console is read, as our shim reads ours: a pipe that fills up would stop the guest.
    let (console, console_writer) = io::pipe()?;
    drain(console);
    let envd = EnvdClient::new(Arc::new(GuestDial(lease.connector())), String::new());
    let vmm = Running::start(spawn.fd(console_writer.as_fd(), 1))?;
    envd.wait_ready(READY_LIMIT).await?;
    Ok(vmm.started().elapsed())
}

/// The VM that `wrenn run` makes.
fn vm(setting: &Setting, lease: &Lease, folder: &Path) -> Result<(VmSpec, Disk)> {
    let host = &setting.host;
    let (template, kernel) = (host.images.template(TEMPLATE)?, host.images.kernel(None)?);
    let base = Layer { path: template.rootfs, format: LayerFormat::Raw, size_bytes: template.size_bytes };
    let id = SandboxId::from_random([0; 18]);
    let name = DiskName { tag: host.instance.tag(), sandbox: id.clone() };
    let disk = host.storage.create(&Place { path: folder.join("disk"), name }, &[base], template.size_bytes)?;
    let files = disk_files(&disk)?;
    let key = hex::encode(host.instance.key().verifying_key().to_bytes());
    let spec = VmSpec {
        uid: lease.slot().vmm_uid(),
        run_dir: folder.to_owned(),
        vcpus: VCPUS,
        memory: MEMORY,
        memory_base: zero_memory(&host.instance, host.vmm.memory(MEMORY))?.into(),
        kernel: HostFile::open(kernel.boot_image())?,
        initramfs: HostFile::open(&kernel.initramfs)?,
        command_line: format!(
            "{} wrenn.id={id} wrenn.key={key} wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns=169.254.0.22 \
             wrenn.root=/dev/vda",
            host.vmm.kernel_arguments()
        ),
        disk: files,
        tap: Tap { name: TAP, queue: lease.open_tap()? },
        guest_mac: GUEST_MAC.to_string(),
        id,
    };
    Ok((spec, disk))
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

/// Reads a console on a thread of its own until its writers are gone; nobody looks at it.
fn drain(mut console: io::PipeReader) {
    std::thread::spawn(move || io::copy(&mut console, &mut io::sink()));
}

#[derive(Debug)]
struct GuestDial(Connector);

#[async_trait]
impl Dial for GuestDial {
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<TcpStream> {
        self.0.connect(port, limit).await.map_err(io::Error::other)
    }
}

/// What `wrenn run --json` prints; the rest is not looked at.
#[derive(Debug, Deserialize)]
struct Printed {
    exit_code: u8,
    timings_ms: BTreeMap<String, f64>,
}

fn ours(setting: &Setting, round: &mut Round) -> Result<()> {
    round.doing("wrenn run -- true");
    let (running, stdin, mut stdout) = program::wrenn_run(setting, &["--json"], &["true"])?;
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    let ended = running.wait()?;
    let printed: Printed = serde_json::from_str(&text).with_context(|| format!("`wrenn run --json` said {text:?}"))?;
    ensure!(
        ended.status == ExitStatus::Exited(0) && printed.exit_code == 0,
        "`wrenn run -- true` ended with {:?}: {text}",
        ended.status
    );
    let wall = millis(ended.wall);
    let sum = |counts: &dyn Fn(&str) -> bool| -> f64 {
        printed.timings_ms.iter().filter(|(phase, _)| counts(phase)).map(|(_, took)| took).sum()
    };
    let after_ready = sum(&|phase| AFTER_READY.contains(&phase) || phase.starts_with(TAKING_DOWN));
    round.value("cold-run", "ms", wall);
    round.value("cold-ready", "ms", wall - after_ready);
    round.value("own-wall", "ms", wall - sum(&|phase| NOT_OURS.contains(&phase)));
    round.value("own-cpu", "ms", millis(ended.cpu));
    for (phase, took) in &printed.timings_ms {
        round.value(&format!("phase-{}", phase.replace(' ', "-")), "ms", *took);
    }
    round.value("phase-none", "ms", wall - sum(&|_| true));
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
