//! TAP devices: an Ethernet link whose other end is a descriptor.
//!
//! A TAP is made in the namespace of the thread that opens it and belongs there, whoever holds the descriptor later. It
//! is *persistent*: it stays when its descriptor is closed, so that a VM can be ended and another one started on the same
//! link, and goes with its namespace. Only one descriptor can be attached at a time; a second one is told `EBUSY`.
//!
//! The flags are those that QEMU (`-netdev tap,fd=N`) and Firecracker expect: frames without packet information, each
//! with a virtio-net header in front.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Bytes of the virtio-net header in front of every frame read from or written to a TAP, unless its user changes it.
pub const VNET_HEADER_BYTES: usize = 10;

/// Attaches to the TAP `name` in the calling thread's namespace, making it if there is none. With `owner`, that user may
/// attach to it later without being root. The descriptor is non-blocking and close-on-exec.
///
/// Errors: `InvalidInput` for a name that the kernel does not take, `ResourceBusy` if somebody is attached already.
pub fn open(name: &str, owner: Option<u32>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = interface_request(name)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    // SAFETY: TUNSETPERSIST takes a plain number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
    if let Some(uid) = owner {
        // SAFETY: TUNSETOWNER takes a plain number.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(uid)) })?;
    }
    Ok(fd)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['\0', '%', '/']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name of a network interface"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn root_a_tap_persists_and_takes_one_user_at_a_time() {
        let netns = NetNs::anonymous().expect("this test needs root");
        let first = netns.run(|| open("tap0", Some(12345))).unwrap().unwrap();
        let busy = netns.run(|| open("tap0", None)).unwrap().unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        netns.run(|| open("tap0", None)).unwrap().expect("it stayed and is free again");
    }

    #[test]
    fn names_the_kernel_would_misread_are_refused() {
        for name in ["", "a-name-of-16-chr", "tap%d", "a/b", "a\0b"] {
            assert_eq!(open(name, None).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
