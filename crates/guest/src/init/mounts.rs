//! The kernel's filesystems: three before the root filesystem is there (they move with it), the rest on it.

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::InitError;

/// One filesystem of the kernel.
struct Mount {
    what: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Needed to find modules and devices.
const EARLY: [Mount; 3] = [
    Mount { what: "proc", target: "/proc", flags: STRICT, options: c"" },
    Mount { what: "sysfs", target: "/sys", flags: STRICT, options: c"" },
    Mount { what: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
];

/// Those that move into the root filesystem when it takes over.
pub const MOVED: [&str; 3] = ["proc", "sys", "dev"];

/// What programs expect on top of it. The devpts options are what grantpt(3) of every libc assumes (group `tty` is 5).
const LATE: [Mount; 5] = [
    Mount {
        what: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=0620,ptmxmode=0666",
    },
    Mount {
        what: "tmpfs",
        target: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
    Mount { what: "tmpfs", target: "/run", flags: MountFlags::NOSUID.union(MountFlags::NODEV), options: c"mode=0755" },
    Mount { what: "tmpfs", target: "/tmp", flags: MountFlags::NOSUID.union(MountFlags::NODEV), options: c"mode=1777" },
    Mount { what: "cgroup2", target: "/sys/fs/cgroup", flags: STRICT, options: c"nsdelegate,memory_recursiveprot" },
];

/// Names in /dev that are links into /proc.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts /proc, /sys and /dev of the initramfs.
pub fn early() -> Result<(), InitError> {
    EARLY.iter().try_for_each(attach)
}

/// Mounts the rest, on the root filesystem.
pub fn late() -> Result<(), InitError> {
    LATE.iter().try_for_each(attach)?;
    for (link, target) in LINKS {
        match rustix::fs::symlink(target, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(InitError::Write { path: link, source: errno.into() }),
        }
    }
    Ok(())
}

fn attach(plan: &Mount) -> Result<(), InitError> {
    let failed = |source| InitError::Mount { what: plan.what, target: plan.target.to_owned(), source };
    match rustix::fs::mkdir(plan.target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    mount(plan.what, plan.target, plan.what, plan.flags, plan.options).map_err(failed)
}
