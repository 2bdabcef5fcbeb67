//! The kernel's small text files, and waiting for what they say to change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::CgroupError;

/// Longest text of a control group's file taken, in bytes; `cgroup.events` has some twenty.
const TEXT_BYTES: usize = 4096;

/// A file's text without the line's end.
pub fn read(path: &Path) -> Result<String, CgroupError> {
    let text = fs::read_to_string(path).map_err(CgroupError::io("read", path))?;
    Ok(text.trim_end().to_owned())
}

/// The words of a file.
pub fn words(path: &Path) -> Result<Vec<String>, CgroupError> {
    Ok(read(path)?.split_whitespace().map(str::to_owned).collect())
}

/// Writes to a file of the kernel's, in one call.
pub fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(CgroupError::io("write to", path))
}

/// The names of the folders in `path`; none when it is not there.
pub fn folders(path: &Path) -> Result<Vec<String>, CgroupError> {
    let failed = || CgroupError::io("list", path);
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        if entry.file_type().map_err(failed())?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// A number as text, `max` being the largest.
pub fn number(path: &Path, text: &str) -> Result<u64, CgroupError> {
    match text {
        "max" => Ok(u64::MAX),
        text => text.parse().map_err(|_| strange(path, text)),
    }
}

/// The number after `name` in a file of lines `name number`.
pub fn field(path: &Path, text: &str, name: &str) -> Result<u64, CgroupError> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).ok_or_else(|| strange(path, text))
}

/// The error for a text that should be another one.
pub fn strange(path: &Path, text: &str) -> CgroupError {
    CgroupError::Strange { path: path.to_owned(), text: text.chars().take(80).collect() }
}

/// What `memory.events` tells of a shortage.
#[derive(Debug, PartialEq, Eq)]
pub struct Events {
    /// How often an allocation failed for the group's own limit.
    pub limit_reached: u64,
    /// Processes the kernel killed for want of memory, the group's or the host's.
    pub kills: u64,
}

/// Reads the text of `memory.events`.
pub fn parse_events(path: &Path, text: &str) -> Result<Events, CgroupError> {
    Ok(Events { limit_reached: field(path, text, "oom")?, kills: field(path, text, "oom_kill")? })
}

/// Waits until no process is in a group, or below it. One that is gone is empty.
pub fn wait_empty(cgroup: &Path, limit: Duration) -> Result<(), CgroupError> {
    wait_for(cgroup, "populated", 0, limit)
}

/// Waits until every process of a group stands still.
pub fn wait_frozen(cgroup: &Path, limit: Duration) -> Result<(), CgroupError> {
    wait_for(cgroup, "frozen", 1, limit)
}

/// The kernel says with POLLPRI that `cgroup.events` has changed.
fn wait_for(cgroup: &Path, name: &str, wanted: u64, limit: Duration) -> Result<(), CgroupError> {
    let path = cgroup.join("cgroup.events");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(CgroupError::io("open", &path))?,
    };
    let deadline = Instant::now() + limit;
    loop {
        let mut text = [0; TEXT_BYTES];
        let length = match file.read_at(&mut text, 0) {
            // Somebody has removed it.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => return Ok(()),
            other => other.map_err(CgroupError::io("read", &path))?,
        };
        let text = String::from_utf8_lossy(&text[..length]);
        if field(&path, &text, name)? == wanted {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CgroupError::Populated { path: cgroup.to_owned(), limit });
        }
        wait_change(&file, left).map_err(CgroupError::io("wait for", &path))?;
    }
}

fn wait_change(file: &File, left: Duration) -> io::Result<()> {
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)], Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
