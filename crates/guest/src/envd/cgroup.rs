//! The cgroup of users' processes: they are born into it, and all of them can be stopped at once.
//!
//! While it is frozen a start of a process waits for the thaw, on a thread of its own; signals that kill still do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::time::timeout;

use super::watch::watch;
use crate::limits;

/// Where wrenn-init makes it.
pub const PATH: &str = "/sys/fs/cgroup/user";

/// Whether the processes may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// They stand still.
    Frozen,
    /// They run.
    Thawed,
}

/// Why the processes could not be stopped or let run.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// One of its files could not be used.
    #[error("cannot {verb} {file} of the cgroup {path}; is it a cgroup v2?", path = path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        file: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It took too long: a process in the kernel's hands.
    #[error("the cgroup {path} is not {wanted:?} after {} s", limits::FREEZE_TIME_MAX.as_secs(), path = path.display())]
    Late {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        wanted: Motion,
    },
}

/// An open cgroup folder.
#[derive(Debug)]
pub struct UserCgroup {
    folder: File,
    path: PathBuf,
}

impl UserCgroup {
    /// The cgroup at `path`, which is there.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::File { verb: "open", file: ".", path: path.to_owned(), source };
        Ok(Self { folder: File::open(path).map_err(failed)?, path: path.to_owned() })
    }

    /// Stops all processes or lets them run, and waits until it is so. Those that could not all be stopped are let run
    /// again: half of a sandbox standing still is worse than an error.
    pub async fn set(&self, wanted: Motion) -> Result<(), CgroupError> {
        self.order(wanted)?;
        let settled = timeout(limits::FREEZE_TIME_MAX, self.settled(wanted)).await;
        let settled = settled.map_err(|_| CgroupError::Late { path: self.path.clone(), wanted }).and_then(|done| done);
        if settled.is_err()
            && wanted == Motion::Frozen
            && let Err(error) = self.order(Motion::Thawed)
        {
            eprintln!("envd: a freeze that failed cannot be taken back: {error}");
        }
        settled
    }

    fn order(&self, wanted: Motion) -> Result<(), CgroupError> {
        let value = match wanted {
            Motion::Frozen => b"1",
            Motion::Thawed => b"0",
        };
        let freeze = self.file("cgroup.freeze", OFlags::WRONLY)?;
        rustix::io::write(&freeze, value).map_err(|errno| self.failed("write", "cgroup.freeze", errno.into()))?;
        Ok(())
    }

    async fn settled(&self, wanted: Motion) -> Result<(), CgroupError> {
        let failed = |source| self.failed("read", "cgroup.events", source);
        let events = self.file("cgroup.events", OFlags::RDONLY)?;
        // The kernel says through poll(2) that the file has changed.
        let events = watch(events.into(), Interest::PRIORITY).map_err(failed)?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(events.get_ref(), &mut text, 0).map_err(|errno| failed(errno.into()))?;
            if motion(&text[..length]) == Some(wanted) {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await.map_err(failed)?.clear_ready();
        }
    }

    fn file(&self, name: &'static str, mode: OFlags) -> Result<File, CgroupError> {
        let flags = mode | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.folder, name, flags, Mode::empty());
        fd.map(File::from).map_err(|errno| self.failed("open", name, errno.into()))
    }

    fn failed(&self, verb: &'static str, file: &'static str, source: io::Error) -> CgroupError {
        CgroupError::File { verb, file, path: self.path.clone(), source }
    }
}

impl AsFd for UserCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// What `cgroup.events` says.
fn motion(events: &[u8]) -> Option<Motion> {
    events.split(|byte| *byte == b'\n').find_map(|line| match line {
        b"frozen 1" => Some(Motion::Frozen),
        b"frozen 0" => Some(Motion::Thawed),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_it_did() {
        assert_eq!(motion(b"populated 1\nfrozen 1\n"), Some(Motion::Frozen));
        assert_eq!(motion(b"populated 0\nfrozen 0\n"), Some(Motion::Thawed));
        assert_eq!(motion(b"populated 1\nfrozen 10\n"), None);
        assert_eq!(motion(b""), None);
    }
}
