//! Descriptors that the runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor registered with the runtime; it must not block.
#[expect(
    deprecated,
    reason = "an OwnedFd stays the descriptor it is, which is all that the unsafe replacement asks for"
)]
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
