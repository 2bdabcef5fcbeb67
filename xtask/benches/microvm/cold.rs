//! From nothing: `wrenn run -- true` beside a plain QEMU.
//!
//! The plain QEMU has the same arguments, memory file, kernel, initramfs, command line and disk, and a TAP of the same
//! kind; all of that is made before its clock starts. It has no shim and no user of its own, and nobody manages it. Its
//! guest is asked with the same short attempts as ours.

use std::collections::BTreeMap;
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
use wrenn_engine::storage::{Layer, LayerFormat, Place};
use wrenn_engine::vmm::{DiskFile, HostFile, Launch, Plan, Tap, VmSpec};
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
    round.doing("plain QEMU");
    let ready = setting.runtime.block_on(plain_ready(setting)).context("cannot measure a plain QEMU")?;
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
    let Plan { launch, boot: _not_needed_by_qemu } = setting.host.vmm.plan(vm(setting, lease, folder.path())?)?;
    let Launch { program, args, descriptors, jail: _ } = launch;
    // Its console is read, as our shim reads ours: a pipe that fills up would stop the guest.
    let (console, console_writer) = io::pipe()?;
    drain(console);
    let mut spawn = Spawn::new(program).args(args).fd(console_writer.as_fd(), 1);
    for (fd, number) in &descriptors {
        spawn = spawn.fd(fd.as_fd(), *number);
    }
    let envd = EnvdClient::new(Arc::new(GuestDial(lease.connector())), String::new());
    let qemu = Running::start(spawn)?;
    envd.wait_ready(READY_LIMIT).await?;
    Ok(qemu.started().elapsed())
}

/// The VM that `wrenn run` makes.
fn vm(setting: &Setting, lease: &Lease, folder: &Path) -> Result<VmSpec> {
    let host = &setting.host;
    let (template, kernel) = (host.images.template(TEMPLATE)?, host.images.kernel(None)?);
    let base = Layer { path: template.rootfs, format: LayerFormat::Raw, size_bytes: template.size_bytes };
    let id = SandboxId::from_random([0; 18]);
    let name = DiskName { tag: host.instance.tag(), sandbox: id.clone() };
    let disk = host.storage.create(&Place { path: folder.join("disk"), name }, &[base], template.size_bytes)?;
    let mut files = vec![DiskFile::live(&disk.path, true)?];
    for layer in disk.layers.iter().rev() {
        files.push(DiskFile::layer(&layer.path, layer.format == LayerFormat::Qcow2)?);
    }
    let key = hex::encode(host.instance.key().verifying_key().to_bytes());
    Ok(VmSpec {
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
    })
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
