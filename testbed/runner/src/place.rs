//! The emulated host around a job: modules, mounts, disks, the port, and its end.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, finit_module, reboot};
use wrenn_testbed_runner::{JOB_FILE, Job, ROOT_DISK, SUPPLIES_DISK, SUPPLIES_PLACE};

/// Kernel modules, numbered in the order in which they are loaded.
const MODULES: &str = "/lib/modules/wrenn";
const NEW_ROOT: &str = "/newroot";
/// How long a device may take to appear after its driver was loaded.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
const DEVICE_POLL: Duration = Duration::from_millis(5);

/// Drivers of hardware that need not be there: which of them this CPU can use, they say themselves.
const OPTIONAL: [&str; 2] = ["kvm_amd", "kvm_intel"];

/// From the initramfs to a host with everything mounted.
pub fn come_up() -> Result<()> {
    mount_at("devtmpfs", "/dev", None)?;
    mount_at("sysfs", "/sys", None)?;
    load_modules()?;
    let root = disk(ROOT_DISK)?;
    mount(&root, NEW_ROOT, "ext4", MountFlags::empty(), None).context("cannot mount the root disk")?;
    mount_move("/dev", "/newroot/dev").context("cannot move /dev")?;
    mount_move("/sys", "/newroot/sys").context("cannot move /sys")?;
    chdir(NEW_ROOT).context("cannot enter the root disk")?;
    mount_move(".", "/").context("cannot move the root disk to /")?;
    chroot(".").context("cannot switch root")?;
    chdir("/").context("cannot enter /")?;
    mount_at("proc", "/proc", None)?;
    mount_at("cgroup2", "/sys/fs/cgroup", None)?;
    for (place, options) in [("/run", "mode=0755"), ("/tmp", "mode=1777")] {
        mount_at("tmpfs", place, Some(options))?;
    }
    for (kind, place) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount_at(kind, place, None)?;
    }
    wrenn_sys::loopback::up().context("cannot bring loopback up")
}

fn mount_at(kind: &str, place: &str, options: Option<&str>) -> Result<()> {
    let options = options.map(|text| std::ffi::CString::new(text).expect("options have no NUL"));
    mount(kind, place, kind, MountFlags::empty(), options.as_deref())
        .with_context(|| format!("cannot mount {kind} on {place}"))
}

fn load_modules() -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(MODULES)
        .with_context(|| format!("cannot list {MODULES}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    for path in files {
        let file = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if let Err(error) = finit_module(&file, c"", 0) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !OPTIONAL.iter().any(|optional| name.replace('-', "_").ends_with(optional)) {
                bail!("cannot load the kernel module {name}: {error}");
            }
        }
    }
    Ok(())
}

/// The disk of this serial number: which name it gets depends on the order in which the kernel finds them.
fn disk(serial: &str) -> Result<PathBuf> {
    wait_for(&format!("the disk {serial}"), || {
        let disks = fs::read_dir("/sys/block").ok()?;
        let mut names = disks.flatten().map(|disk| disk.file_name().to_string_lossy().into_owned());
        let name = names.find(|name| {
            fs::read_to_string(format!("/sys/block/{name}/serial")).is_ok_and(|found| found.trim() == serial)
        })?;
        let path = Path::new("/dev").join(name);
        fs::metadata(&path).is_ok_and(|node| node.file_type().is_block_device()).then_some(path)
    })
}

/// The virtio serial port to the testbed.
pub fn port() -> Result<File> {
    let path = wait_for("the serial port to the testbed", || {
        let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
        ports.flatten().next().map(|port| Path::new("/dev").join(port.file_name()))
    })?;
    File::options().read(true).write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + DEVICE_LIMIT;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("{what} did not appear within {} s", DEVICE_LIMIT.as_secs());
        }
        std::thread::sleep(DEVICE_POLL);
    }
}

/// Mounts the supplies, puts them where the job wants them, and reads the job.
pub fn supplies() -> Result<Job> {
    let device = disk(SUPPLIES_DISK)?;
    fs::create_dir_all(SUPPLIES_PLACE).context("cannot make the place of the supplies")?;
    mount(&device, SUPPLIES_PLACE, "ext4", MountFlags::empty(), None).context("cannot mount the supplies")?;
    let path = Path::new(SUPPLIES_PLACE).join(JOB_FILE);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let job: Job = serde_json::from_slice(&text).context("the job is not understood")?;
    for bind in &job.binds {
        let from = Path::new(SUPPLIES_PLACE).join(&bind.from);
        put(&from, &bind.to).with_context(|| format!("cannot put {} at {}", from.display(), bind.to.display()))?;
    }
    Ok(job)
}

fn put(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
    } else {
        fs::create_dir_all(to.parent().context("a file needs a folder")?)?;
        File::options().create(true).append(true).open(to)?;
    }
    Ok(mount_bind(from, to)?)
}

/// Writes everything back and ends the machine: its VMM is told not to start it again.
pub fn switch_off() -> ! {
    rustix::fs::sync();
    // Whatever the job left mounted over it, the disk itself is what matters.
    if let Err(error) = unmount(SUPPLIES_PLACE, UnmountFlags::DETACH) {
        println!("testbed: the supplies stay mounted: {error}");
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::Restart) {
        println!("testbed: FATAL: cannot switch off: {error}");
    }
    // The first process must not end: the kernel would panic, and with `panic=-1` start again, which is an end as well.
    std::process::exit(1)
}
