//! The emulated machine: QEMU's `microvm` with two disks, a serial port for frames, and a console that is read.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::dup;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use wrenn_engine::command;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Accel;
use wrenn_sys::spawn::{Child, Spawn};
use wrenn_testbed_runner::{ROOT_DISK, SUPPLIES_DISK};

/// The number under which QEMU finds our end of the port.
const PORT: i32 = 10;
/// How much of the console is kept for the report of a failure.
const CONSOLE_BYTES_KEPT: usize = 16 * 1024;
/// Time for three instructions of a test guest.
const KVM_LIMIT: Duration = Duration::from_secs(2);

/// What the machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// What executes its instructions.
    pub accel: Accel,
    /// Its memory.
    pub memory: Mib,
    /// Its CPUs.
    pub cpus: u32,
}

/// KVM where it works, with nesting; else translation, which emulates AMD's virtualization.
pub fn accel() -> Accel {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualization = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if virtualization && wrenn_sys::kvm::prove(KVM_LIMIT).is_ok() { Accel::Kvm } else { Accel::Tcg }
}

/// Its disks.
#[derive(Clone, Copy, Debug)]
pub struct Disks<'a> {
    /// The host itself; never written.
    pub root: &'a Path,
    /// What the job brings along.
    pub supplies: &'a Path,
}

/// A machine that runs; it ends with this process at the latest.
#[derive(Debug)]
pub struct Machine {
    /// Frames to and from its first process; closed when the machine has ended.
    pub port: UnixStream,
    vmm: Child,
    console: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

/// Starts a machine. What it writes to its root disk is kept in `work` and never seen again.
pub fn start(kernel: &Path, initramfs: &Path, disks: Disks<'_>, work: &Path, hardware: Hardware) -> Result<Machine> {
    let (port, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let (console, console_end) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let program = command::find("qemu-system-x86_64")?;
    let vmm = Spawn::new(program)
        .args(arguments(kernel, initramfs, disks, hardware))
        .env("TMPDIR", work)
        .fd(theirs.as_fd(), PORT)
        .fd(console_end.as_fd(), 1)
        .fd(dup(&console_end)?.as_fd(), 2)
        .parent_death_signal(Signal::KILL)
        .start()?;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let kept = Arc::clone(&kept);
        move || keep_end(File::from(console), &kept)
    });
    Ok(Machine { port, vmm, console: kept, reader })
}

fn arguments(kernel: &Path, initramfs: &Path, disks: Disks<'_>, hardware: Hardware) -> Vec<String> {
    let mut args: Vec<String> =
        ["-M", "microvm,rtc=on", "-bios", "qboot.rom", "-nodefaults", "-no-user-config", "-no-reboot"]
            .map(str::to_owned)
            .to_vec();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    match hardware.accel {
        Accel::Kvm => {
            option("-accel", "kvm".to_owned());
            option("-cpu", "host".to_owned());
        }
        Accel::Tcg => {
            option("-accel", "tcg,thread=multi".to_owned());
            // Page tables of five levels are not what its virtualization can nest; string instructions are translated byte
            // by byte, so its kernel should not take them for the fast ones.
            option("-cpu", "max,la57=off,erms=off,fsrm=off".to_owned());
        }
    }
    option("-m", hardware.memory.0.to_string());
    option("-smp", hardware.cpus.to_string());
    option("-display", "none".to_owned());
    option("-serial", "stdio".to_owned());
    option("-kernel", kernel.display().to_string());
    option("-initrd", initramfs.display().to_string());
    option("-append", kernel_arguments(hardware.accel));
    for (number, (path, serial, temporary)) in
        [(disks.root, ROOT_DISK, true), (disks.supplies, SUPPLIES_DISK, false)].into_iter().enumerate()
    {
        // A comma in a value is written twice.
        let path = path.display().to_string().replace(',', ",,");
        let snapshot = if temporary { ",snapshot=on" } else { "" };
        option("-drive", format!("if=none,id=disk{number},file={path},format=raw,cache=unsafe{snapshot}"));
        option("-device", format!("virtio-blk-device,drive=disk{number},serial={serial}"));
    }
    option("-chardev", format!("socket,id=port,fd={PORT}"));
    option("-device", "virtio-serial-device".to_owned());
    option("-device", "virtserialport,chardev=port,name=testbed".to_owned());
    option("-device", "virtio-rng-device".to_owned());
    args
}

/// See the QEMU driver for both: a kernel that measures the counter on a busy host may hang, and one that finds it not in
/// step between CPUs falls back to a clock of 4 ms, with which nested guests take twice as long to boot.
fn kernel_arguments(accel: Accel) -> String {
    let common = "console=ttyS0 reboot=t panic=-1 quiet cryptomgr.notests";
    let khz = match accel {
        Accel::Kvm => None,
        Accel::Tcg => wrenn_sys::tsc::khz(Duration::from_millis(50)),
    };
    khz.map_or_else(|| common.to_owned(), |khz| format!("{common} tsc=reliable tsc_early_khz={khz}"))
}

fn keep_end(mut console: File, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(CONSOLE_BYTES_KEPT);
        kept.drain(..surplus);
    }
}

impl Machine {
    /// Ends the machine, if it still runs, and answers the end of its console.
    pub fn end(self) -> Result<String> {
        self.vmm.signal(Signal::KILL).context("cannot end the machine")?;
        self.vmm.wait().context("cannot wait for the machine")?;
        if self.reader.join().is_err() {
            return Ok("(its console could not be read)".to_owned());
        }
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(String::from_utf8_lossy(&console).replace('\r', ""))
    }
}
