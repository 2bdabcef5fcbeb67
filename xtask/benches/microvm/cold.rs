//! From nothing: `wrenn run -- true` beside a plain VMM.
//!
//! The plain VMM has the same kernel, initramfs, command line, memory and disk, and a TAP of the same kind; all of that is
//! made before its clock starts. It has no shim, no jail and no user of its own, and nobody manages it: QEMU has our
//! arguments, Firecracker a configuration file. Its guest is asked with the same short attempts as ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use wrenn_agent::host::zero_memory;
use wrenn_engine::network::Lease;
use wrenn_engine::vmm::{DriverKind, Launch, Plan, Start, VmSpec};
use wrenn_sys::spawn::{ExitStatus, Spawn};

use crate::Round;
use crate::plain;
use crate::program;
use crate::setting::{MEMORY, READY_LIMIT, Setting};

/// Phases of a run that the guest or the command takes, not we.
const NOT_OURS: [&str; 3] = ["guest", "init", "exec"];
/// Phases that come after the guest's agent has answered.
const AFTER_READY: [&str; 3] = ["init", "exec", "destroy"];
/// How the names of the phases of taking down begin.
const TAKING_DOWN: &str = "end ";

/// Plain and ours, first and second in turn.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    if round.number() % 2 == 1 {
        bare(setting, round)?;
        ours(setting, round)
    } else {
        ours(setting, round)?;
        bare(setting, round)
    }
}

fn bare(setting: &Setting, round: &mut Round) -> Result<()> {
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
    let base = plain::template_layer(setting)?;
    let size_bytes = base.size_bytes;
    let disk = setting.host.storage.create(&plain::place(setting, folder.path()), &[base], size_bytes)?;
    let zeroes = zero_memory(&setting.host.instance, setting.host.vmm.memory(MEMORY))?;
    let vm = plain::vm(setting, lease, folder.path(), &disk, (Start::Boot, zeroes))?;
    let ready = match setting.host.vmm.describe().driver {
        DriverKind::Qemu => boot_qemu(setting, lease, vm).await,
        DriverKind::Firecracker => boot_firecracker(setting, lease, vm, folder.path()).await,
    };
    setting.host.storage.remove(&disk)?;
    ready
}

async fn boot_qemu(setting: &Setting, lease: &Lease, vm: VmSpec) -> Result<Duration> {
    let Plan { launch, boot: _not_needed_by_qemu } = setting.host.vmm.plan(vm)?;
    let Launch { program, args, descriptors, jail: _, pager: _ } = launch;
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
    let envd = plain::guest(lease);
    let vmm = plain::start(spawn)?;
    envd.wait_ready(READY_LIMIT).await?;
    Ok(vmm.started().elapsed())
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

/// As values are said.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
