//! The lock under which the host's control groups are made and removed, shared by all instances.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::CgroupError;

/// How long others may hold it. They do for some milliseconds, and for a second when a shim does not end.
pub const LIMIT: Duration = Duration::from_secs(20);
/// How often it is tried: there is no way to wait for it with a deadline but to ask.
const PAUSE: Duration = Duration::from_millis(1);

/// The lock, held; the kernel gives it back when the file is closed.
#[derive(Debug)]
#[must_use = "dropping it gives the lock back"]
pub struct HostLock {
    _file: File,
}

/// Takes the lock.
pub fn host(run_dir: &Path) -> Result<HostLock, CgroupError> {
    let path = run_dir.join("cgroup.lock");
    DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(CgroupError::io("make", run_dir))?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(CgroupError::io("open", &path))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(HostLock { _file: file }),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(CgroupError::Locked { path }),
            Err(errno) => return Err(CgroupError::io("lock", &path)(errno.into())),
        }
    }
}
