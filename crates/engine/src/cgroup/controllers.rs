//! Which controllers the children of the hierarchy's root have: enabled for us, taken back when nobody needs them.
//!
//! ```text
//!   missing ──written to the record──► enabled for us ──last wrenn-* gone──► not used by others: disabled ┐
//!                                                                            used by others: left        ├─► record gone
//! ```
//!
//! All of it happens under the host's lock. A crash leaves the record, which errs on the side of naming a controller that
//! was not enabled yet: disabling that changes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::files;

/// What limits need.
pub const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// Files of each controller by which its users are known, with what they say when nobody has set them.
const DEFAULTS: [(&str, &str, &str); 9] = [
    ("cpu", "cpu.max", "max 100000"),
    ("cpu", "cpu.weight", "100"),
    ("memory", "memory.max", "max"),
    ("memory", "memory.high", "max"),
    ("memory", "memory.low", "0"),
    ("memory", "memory.min", "0"),
    ("memory", "memory.swap.max", "max"),
    ("memory", "memory.oom.group", "0"),
    ("pids", "pids.max", "max"),
];

/// Those of the root.
#[derive(Debug)]
pub struct Controllers<'a> {
    /// The root of the hierarchy.
    pub mount: &'a Path,
    /// Where the record is.
    pub run_dir: &'a Path,
}

impl Controllers<'_> {
    /// Enables what is missing, and remembers that.
    pub fn enable(&self) -> Result<(), CgroupError> {
        let missing = missing(self.mount)?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut record = self.record()?;
        let unknown: Vec<_> = missing.iter().filter(|name| !record.iter().any(|known| known == *name)).collect();
        record.extend(unknown.into_iter().map(|name| (*name).to_owned()));
        self.write_record(&record)?;
        missing.into_iter().try_for_each(|name| enable(self.mount, name))
    }

    /// Disables what was enabled for us and is used by nobody else.
    pub fn take_back(&self) -> Result<(), CgroupError> {
        let record = self.record()?;
        if record.is_empty() {
            return Ok(());
        }
        for name in WANTED.into_iter().filter(|name| record.iter().any(|known| known == name)) {
            if used_by_others(self.mount, name)? {
                tracing::info!(
                    controller = name,
                    "a controller that was enabled for sandboxes is used by others and stays"
                );
                continue;
            }
            disable(self.mount, name)?;
        }
        let path = self.record_path();
        fs::remove_file(&path).map_err(CgroupError::io("remove", &path))
    }

    fn record(&self) -> Result<Vec<String>, CgroupError> {
        match files::words(&self.record_path()) {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        }
    }

    /// Whole or not at all. Not synced: neither /run nor control groups outlive the machine.
    fn write_record(&self, names: &[String]) -> Result<(), CgroupError> {
        let path = self.record_path();
        let new = path.with_extension("new");
        fs::write(&new, names.join(" ")).map_err(CgroupError::io("write", &new))?;
        fs::rename(&new, &path).map_err(CgroupError::io("write", &path))
    }

    fn record_path(&self) -> PathBuf {
        self.run_dir.join("cgroup-controllers")
    }
}

/// Enables all of them for the children of a group of ours.
pub fn enable_all(cgroup: &Path) -> Result<(), CgroupError> {
    missing(cgroup)?.into_iter().try_for_each(|name| enable(cgroup, name))
}

fn missing(cgroup: &Path) -> Result<Vec<&'static str>, CgroupError> {
    let enabled = files::words(&cgroup.join("cgroup.subtree_control"))?;
    Ok(WANTED.into_iter().filter(|name| !enabled.iter().any(|each| each == name)).collect())
}

fn enable(cgroup: &Path, controller: &'static str) -> Result<(), CgroupError> {
    match files::write(&cgroup.join("cgroup.subtree_control"), &format!("+{controller}")) {
        Err(CgroupError::Io { source, .. }) => Err(CgroupError::Enable { controller, path: cgroup.to_owned(), source }),
        other => other,
    }
}

fn disable(cgroup: &Path, controller: &str) -> Result<(), CgroupError> {
    match files::write(&cgroup.join("cgroup.subtree_control"), &format!("-{controller}")) {
        // Another group hands it on to its own children.
        Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

/// Whether a child of the root hands the controller on, or has set something that it controls.
fn used_by_others(mount: &Path, controller: &str) -> Result<bool, CgroupError> {
    for name in files::folders(mount)? {
        let child = mount.join(name);
        // One that is removed meanwhile uses nothing.
        let hands_on = files::words(&child.join("cgroup.subtree_control")).unwrap_or_default();
        let set = DEFAULTS
            .iter()
            .filter(|(of, ..)| *of == controller)
            .any(|(_, file, default)| files::read(&child.join(file)).is_ok_and(|text| text != *default));
        if set || hands_on.iter().any(|each| each == controller) {
            return Ok(true);
        }
    }
    Ok(false)
}
