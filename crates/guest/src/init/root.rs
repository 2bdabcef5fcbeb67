//! The root filesystem: wait for its device, check and mount it, grow it to the device, make it `/`.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_move, mount_remount};

use super::superblock::{self, Superblock};
use super::{InitError, mounts};

/// Where the root filesystem is mounted until it takes over.
const TARGET: &str = "/newroot";
/// A device is there when its driver's module was loaded; the wait is for slow probes on busy hosts.
const DEVICE_WAIT_MAX: Duration = Duration::from_secs(10);
const DEVICE_POLL: Duration = Duration::from_millis(1);

/// Waits until a device's path exists.
pub fn wait_for(device: &Path) -> Result<(), InitError> {
    let started = Instant::now();
    while !device.exists() {
        if started.elapsed() > DEVICE_WAIT_MAX {
            return Err(InitError::NoDevice { device: device.to_owned(), waited_ms: DEVICE_WAIT_MAX.as_millis() });
        }
        std::thread::sleep(DEVICE_POLL);
    }
    Ok(())
}

/// Checks and mounts the filesystem of `device` and grows it to the device's end.
///
/// `noinit_itable`: the kernel would otherwise write zeros over unused inode tables in the background, which on a
/// copy-on-write disk only makes it grow. What is below them reads as zeros anyway. Growing needs the option off for a
/// moment: with it the resize itself writes them.
pub fn mount(device: &Path) -> Result<(), InitError> {
    wait_for(device)?;
    let growth = read_growth(device)?;
    let options = if growth.is_some() { c"init_itable" } else { c"noinit_itable" };
    let failed = |source: io::Error| InitError::MountRoot { device: device.to_owned(), source };
    ensure_folder(Path::new(TARGET)).map_err(failed)?;
    rustix::mount::mount(device, TARGET, "ext4", MountFlags::NOATIME, options).map_err(|errno| failed(errno.into()))?;
    let Some(blocks) = growth else { return Ok(()) };
    grow(blocks).map_err(|source| InitError::Grow { blocks, source })?;
    mount_remount(TARGET, MountFlags::NOATIME, "noinit_itable").map_err(|errno| failed(errno.into()))
}

fn read_growth(device: &Path) -> Result<Option<u64>, InitError> {
    let (superblock, bytes) =
        read_device(device).map_err(|source| InitError::ReadRoot { device: device.to_owned(), source })?;
    let bad = |source| InitError::BadRoot { device: device.to_owned(), source };
    let superblock: Superblock = superblock::parse(&superblock).map_err(bad)?;
    superblock.growth(bytes).map_err(bad)
}

/// The bytes of the superblock and the length of the device.
fn read_device(device: &Path) -> io::Result<([u8; superblock::LENGTH], u64)> {
    let mut file = File::open(device)?;
    let mut bytes = [0; superblock::LENGTH];
    let length = file.seek(SeekFrom::End(0))?;
    if length >= superblock::OFFSET + superblock::LENGTH as u64 {
        file.read_exact_at(&mut bytes, superblock::OFFSET)?;
    }
    Ok((bytes, length))
}

fn grow(blocks: u64) -> io::Result<()> {
    wrenn_sys::ext4::resize(File::open(TARGET)?.as_fd(), blocks)
}

/// Makes the mounted filesystem `/`. What the initramfs held is freed; the running program keeps its own pages.
pub fn switch() -> Result<(), InitError> {
    let failed = |step: &'static str| move |source: io::Error| InitError::SwitchRoot { step, source };
    for name in mounts::MOVED {
        let target = Path::new(TARGET).join(name);
        ensure_folder(&target).map_err(failed("make the folders of the kernel's filesystems"))?;
        mount_move(Path::new("/").join(name), &target)
            .map_err(|errno| failed("move the kernel's filesystems")(errno.into()))?;
    }
    free_initramfs().map_err(failed("free the initramfs"))?;
    std::env::set_current_dir(TARGET).map_err(failed("enter it"))?;
    mount_move(".", "/").map_err(|errno| failed("move it to /")(errno.into()))?;
    rustix::process::chroot(".").map_err(|errno| failed("make it /")(errno.into()))?;
    std::env::set_current_dir("/").map_err(failed("enter /"))
}

fn ensure_folder(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Removes what we packed: the modules are in the kernel now, and `/init` stays alive as long as it runs.
fn free_initramfs() -> io::Result<()> {
    std::fs::remove_dir_all("/lib").or_else(absent_is_fine)?;
    std::fs::remove_file("/init").or_else(absent_is_fine)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
