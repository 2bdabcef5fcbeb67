//! Freezing a mounted filesystem: everything is on its device, and who wants to write waits.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

const FIFREEZE: Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

/// Freezes the filesystem that `folder` lies in: waits for writes that have begun, then writes everything back, the
/// journal included. One that is frozen already is fine. Blocks for as long as the device takes. Needs CAP_SYS_ADMIN.
///
/// Errors: `Unsupported` for a filesystem that knows no such state, such as a tmpfs.
pub fn freeze(folder: BorrowedFd<'_>) -> io::Result<()> {
    fine_if(change::<FIFREEZE>(folder), Errno::BUSY)
}

/// Lets the filesystem that `folder` lies in be written again. One that is not frozen is fine. Needs CAP_SYS_ADMIN.
pub fn thaw(folder: BorrowedFd<'_>) -> io::Result<()> {
    fine_if(change::<FITHAW>(folder), Errno::INVAL)
}

fn change<const NUMBER: Opcode>(folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: FIFREEZE and FITHAW, the only numbers here, ignore their argument; `Setter` gives them an integer all the same,
    // as their header says.
    unsafe { ioctl(folder, Setter::<NUMBER, libc::c_int>::new(0)) }
}

/// How the kernel says that there is nothing to do.
fn fine_if(answer: rustix::io::Result<()>, nothing_to_do: Errno) -> io::Result<()> {
    match answer {
        Err(errno) if errno != nothing_to_do => Err(errno.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::time::Duration;

    use rustix::fs::Mode;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::UnshareFlags;

    use super::*;
    use crate::loopdev::{LoopDevice, Options};
    use crate::spawn::{ExitStatus, Spawn};

    #[test]
    fn has_the_numbers_of_the_kernel_header_and_is_refused_where_it_makes_no_sense() {
        assert_eq!((FIFREEZE, FITHAW), (0xc004_5877, 0xc004_5878));
        let proc = File::open("/proc").unwrap();
        let error = freeze(proc.as_fd()).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)), "{error}");
    }

    /// In a mount namespace of its own, on a filesystem in a file: nothing of this machine's is frozen.
    #[test]
    fn root_who_writes_waits_for_the_thaw_and_both_may_be_repeated() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(16 << 20).unwrap();
        let mke2fs = Spawn::new("/usr/sbin/mke2fs").args(["-q", "-t", "ext4"]).arg(image.path()).start().unwrap();
        assert_eq!(mke2fs.wait().unwrap(), ExitStatus::Exited(0));
        let options = Options { read_only: false, direct_io: false, autoclear: true };
        let device = LoopDevice::attach(image.as_file().as_fd(), options).expect("this test needs root");
        let place = tempfile::tempdir().unwrap();
        let (device, place) = (device.path(), place.path().to_owned());
        std::thread::spawn(move || frozen_and_thawed(&device, &place)).join().unwrap();
    }

    fn frozen_and_thawed(device: &Path, place: &Path) {
        // SAFETY: descriptors stay shared; the namespace is this thread's alone, and the thread ends with the test.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        mount(device, place, "ext4", MountFlags::empty(), None).unwrap();
        let folder = File::open(place).unwrap();
        thaw(folder.as_fd()).expect("it is not frozen, which is fine");
        freeze(folder.as_fd()).unwrap();
        freeze(folder.as_fd()).expect("it is frozen already, which is fine");
        let waiting = folder.try_clone().unwrap();
        let writer = std::thread::spawn(move || rustix::fs::mkdirat(&waiting, "new", Mode::RWXU));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished(), "it was written to");
        thaw(folder.as_fd()).unwrap();
        writer.join().unwrap().unwrap();
        thaw(folder.as_fd()).unwrap();
    }

    #[test]
    fn only_what_was_to_be_done_anyway_is_forgiven() {
        assert!(fine_if(Ok(()), Errno::BUSY).is_ok());
        assert!(fine_if(Err(Errno::BUSY), Errno::BUSY).is_ok());
        assert!(fine_if(Err(Errno::INVAL), Errno::BUSY).is_err());
    }
}
