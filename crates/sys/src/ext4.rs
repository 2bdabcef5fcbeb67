//! Growing a mounted ext4 filesystem.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

/// Grows the mounted ext4 filesystem that `folder` (any open folder or file of it) lies in to `blocks` filesystem blocks.
///
/// The size the filesystem already has is no error; a smaller one is (EINVAL): ext4 cannot shrink while mounted.
pub fn resize(folder: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads one u64 through its pointer and writes nothing; `Setter` passes a pointer to a u64 that
    // outlives the call. On another filesystem than ext4 the number is refused (ENOTTY).
    unsafe { ioctl(folder, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn has_the_number_of_the_kernel_header_and_is_refused_elsewhere() {
        assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(resize(proc.as_fd(), 1).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
