//! Network namespaces: made, named by a handle in the file system, entered by a closure.
//!
//! ```text
//!   NetNs::create(handle) ──► namespace kept by the descriptor *and* by the bind mount at `handle`
//!   NetNs::open(handle)   ──► the same namespace, from any process
//!   netns.run(|| ...)     ──► the closure runs on a thread of its own that lives in the namespace
//!   remove_handle(handle) ──► the namespace ends when nobody holds a descriptor, a process or a socket in it any more
//! ```
//!
//! A thread that has entered a namespace is never given back to anybody: it ends with the closure. So nobody can forget
//! to come back, and no runtime's thread is ever in the wrong network. A socket belongs to the namespace in which it was
//! *made*; a closure may return one and it stays there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// `f_type` of the file system that namespaces live in.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// A network namespace, kept alive by this descriptor.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// A new namespace that lives as long as this value (and what was put into it).
    pub fn anonymous() -> io::Result<Self> {
        on_thread(|| {
            unshare_network()?;
            Self::current()
        })
    }

    /// A new namespace that also lives on behind `handle`: a file that must not exist yet, made here, on which the
    /// namespace is mounted.
    pub fn create(handle: &Path) -> io::Result<Self> {
        File::create_new(handle)?;
        let made = on_thread(|| {
            unshare_network()?;
            mount_bind("/proc/thread-self/ns/net", handle)?;
            Self::current()
        });
        if made.is_err() {
            // The first error is the one to report; an empty file is what a sweep removes.
            std::fs::remove_file(handle).ok();
        }
        made
    }

    /// The namespace behind `handle`. `InvalidInput` if the file is no network namespace (its mount is gone).
    pub fn open(handle: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(handle, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::fs::fstatfs(&fd)?.f_type as u64 != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no namespace is mounted there"));
        }
        Ok(Self(fd))
    }

    /// The calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        let fd = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(fd))
    }

    /// Runs `work` on a new thread inside this namespace and waits for it. A panic of `work` goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
    }

    /// What tells two namespaces apart: device and inode.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Another descriptor of the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Removes a handle made by [`NetNs::create`]: what is mounted there, then the file. `true` if there was one.
pub fn remove_handle(handle: &Path) -> io::Result<bool> {
    match unmount(handle, UnmountFlags::DETACH) {
        // INVAL: nothing is mounted there, only the file is left.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_file(handle) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves the *calling thread* (and those it starts from now on) into new namespaces: always a network, and, where
/// `mounts` says so, a mount namespace whose changes nobody else sees. For the first lines of a program or a test that
/// must not touch its host; there is no way back.
pub fn leave_host_network(mounts: bool) -> io::Result<()> {
    unshare_network()?;
    if mounts {
        // SAFETY: no descriptor becomes invalid by it; the thread's root and working directory are its own from here on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
    }
    Ok(())
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: a network namespace has no memory, no descriptor table and no credentials in it; open sockets keep theirs.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("wrenn-netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_a_namespace_lives_behind_its_handle_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let handle = dir.path().join("ns");
        let made = NetNs::create(&handle).expect("this test needs root");
        assert_eq!(NetNs::open(&handle).unwrap().identity().unwrap(), made.identity().unwrap());
        assert_ne!(NetNs::current().unwrap().identity().unwrap(), made.identity().unwrap());
        assert_eq!(NetNs::create(&handle).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(remove_handle(&handle).unwrap());
        assert!(!remove_handle(&handle).unwrap(), "removing what is gone is not an error");
        assert!(NetNs::open(&handle).is_err());
    }

    #[test]
    fn root_a_closure_runs_inside_and_its_thread_never_returns() {
        let outside = NetNs::current().unwrap().identity().unwrap();
        let netns = NetNs::anonymous().expect("this test needs root");
        let inside = netns.run(|| NetNs::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(inside, netns.identity().unwrap());
        assert_eq!(NetNs::current().unwrap().identity().unwrap(), outside);
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(NetNs::open(file.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
