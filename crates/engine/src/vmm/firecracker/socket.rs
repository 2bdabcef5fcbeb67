//! The control socket's folder, `RUN_DIR/vmm`: the one place of the host where a Firecracker may write, and so the one
//! where it may set traps.
//!
//! Firecracker binds its socket itself, as its own user. Whoever has taken it over may put something else there: a
//! symbolic link to another sandbox's socket, a FIFO. So nothing in the folder is opened by its name alone: the folder and
//! the socket are held by descriptors that follow no link, and who is at the other end is asked of the kernel. That also
//! keeps the path below the 107 bytes of a socket's address.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;

use crate::vmm::VmmError;

const FOLDER: &str = "vmm";
const SOCKET: &str = "control.sock";

/// Where the folder of `run_dir` is.
pub(super) fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join(FOLDER)
}

/// Makes an empty folder of a sandbox; its user's own if there is one.
pub(super) fn make_folder(path: &Path, owner: Option<u32>) -> Result<(), VmmError> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.and_then(|()| match owner {
        Some(uid) => std::os::unix::fs::chown(path, Some(uid), Some(uid)),
        None => Ok(()),
    })
    .map_err(|source| VmmError::Socket { step: "make a folder for", path: path.to_owned(), source })
}

/// The user whose folder it is: the VMM's.
pub(super) fn owner(folder: &Path) -> Result<u32, VmmError> {
    let metadata = std::fs::symlink_metadata(folder);
    let failed = |source| VmmError::Socket { step: "look at the folder of", path: folder.to_owned(), source };
    metadata.map(|metadata| metadata.uid()).map_err(failed)
}

/// The process at the other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pid: i32,
    pidfd: Arc<OwnedFd>,
}

/// Connects to the socket in `folder`; `None` if nobody listens there (yet, or any more).
pub(super) async fn connect(folder: &Path) -> Result<Option<(UnixStream, Peer)>, VmmError> {
    let path = folder.join(SOCKET);
    let failed = |source| VmmError::Socket { step: "reach", path: path.clone(), source };
    let impostor = |reason: String| VmmError::Impostor { path: path.clone(), reason };

    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty()).map_err(|e| failed(e.into()))?;
    let owner = fstat(&held).map_err(|e| failed(e.into()))?.st_uid;
    let socket = match openat(&held, SOCKET, flags, Mode::empty()) {
        Ok(socket) => socket,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno.into())),
    };
    let kind = FileType::from_raw_mode(fstat(&socket).map_err(|e| failed(e.into()))?.st_mode);
    if kind != FileType::Socket {
        return Err(impostor(format!("it is a {kind:?}")));
    }
    // The descriptor's own entry leads to what it holds, whatever the name means by now.
    let stream = match UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await {
        Ok(stream) => stream,
        Err(error) if is_silent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let peer = peer_of(&stream, owner).map_err(failed)?;
    match peer {
        Listener::Trusted(peer) => Ok(Some((stream, peer))),
        Listener::Ended => Ok(None),
        Listener::Other { uid } => Err(impostor(format!("user {uid} listens there, not its own user {owner}"))),
    }
}

/// Bound but not listening (yet, or any more), or more callers than it takes at once.
fn is_silent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}

enum Listener {
    Trusted(Peer),
    Ended,
    Other { uid: u32 },
}

/// The process that listens, held before its user is looked at: from then on it cannot come to mean another one.
fn peer_of(stream: &UnixStream, owner: u32) -> io::Result<Listener> {
    let listener = socket_peercred(stream)?;
    if listener.uid.as_raw() != owner {
        return Ok(Listener::Other { uid: listener.uid.as_raw() });
    }
    let pidfd = match pidfd_open(listener.pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(Listener::Ended),
        Err(errno) => return Err(errno.into()),
    };
    let pid = listener.pid.as_raw_pid();
    match effective_uid(pid)? {
        None => Ok(Listener::Ended),
        Some(uid) if uid != owner => Ok(Listener::Other { uid }),
        Some(_owner) => Ok(Listener::Trusted(Peer { pid, pidfd: Arc::new(pidfd) })),
    }
}

/// A process's effective user; `None` if it is gone.
fn effective_uid(pid: i32) -> io::Result<Option<u32>> {
    let status = match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = uids.and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok());
    uid.map(Some).ok_or_else(|| io::Error::other("a process without a user"))
}

/// How much of a process's own memory is in swap, as its `status` says; nothing on a kernel without swap.
fn swapped_kib(status: &str) -> u64 {
    let swapped = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    swapped.and_then(|swapped| swapped.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

impl Peer {
    /// Whether some of its memory is in swap. Of one that has ended nothing is.
    pub(super) fn is_swapped(&self) -> io::Result<bool> {
        match std::fs::read_to_string(format!("/proc/{}/status", self.pid)) {
            Ok(status) => Ok(swapped_kib(&status) > 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills it; one that has ended is fine.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until it has ended; `false` if it has not within `limit`. Cancel safe.
    pub(super) async fn ended(&self, limit: Duration) -> bool {
        let pidfd = Arc::clone(&self.pidfd);
        let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
        let waited = move || poll(&mut [PollFd::new(&*pidfd, PollFlags::IN)], Some(&limit));
        matches!(tokio::task::spawn_blocking(waited).await, Ok(Ok(ready)) if ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn what_is_no_socket_of_its_own_is_never_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        make_folder(&folder, None).unwrap();
        assert!(connect(&folder).await.unwrap().is_none(), "nothing there yet");

        let elsewhere = dir.path().join("elsewhere");
        let _somebody = UnixListener::bind(&elsewhere).unwrap();
        symlink(&elsewhere, folder.join(SOCKET)).unwrap();
        let error = connect(&folder).await.unwrap_err();
        assert!(matches!(&error, VmmError::Impostor { reason, .. } if reason.contains("Symlink")), "{error}");

        std::fs::remove_file(folder.join(SOCKET)).unwrap();
        std::fs::write(folder.join(SOCKET), "").unwrap();
        assert!(matches!(connect(&folder).await.unwrap_err(), VmmError::Impostor { .. }));

        std::fs::remove_file(folder.join(SOCKET)).unwrap();
        let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        assert!(connect(&folder).await.unwrap().is_some());
        drop(listener);
        assert!(connect(&folder).await.unwrap().is_none(), "a socket whose owner is gone");
    }

    #[test]
    fn memory_in_swap_is_seen() {
        for (status, kib) in [("VmRSS:\t 7 kB\nVmSwap:\t     132 kB\n", 132), ("VmSwap:\t0 kB", 0), ("Name:\tx\n", 0)] {
            assert_eq!(swapped_kib(status), kib, "{status}");
        }
    }

    #[tokio::test]
    async fn the_folder_itself_is_no_link_either() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/tmp", folder(dir.path())).unwrap();
        assert!(matches!(connect(&folder(dir.path())).await.unwrap_err(), VmmError::Socket { .. }));
    }

    #[tokio::test]
    async fn root_a_listener_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        make_folder(&folder, Some(12345)).unwrap();
        let _listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let error = connect(&folder).await.unwrap_err();
        assert!(matches!(&error, VmmError::Impostor { reason, .. } if reason.contains("12345")), "{error}");
    }
}
