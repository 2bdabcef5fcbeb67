//! What was found out before and cannot have changed since: the versions of programs, by the file they are.
//!
//! Asking QEMU for its version takes 20 ms, which every run would pay. A file that has the same inode, length and time of
//! change is the same file. A list that cannot be read or written costs those 20 ms and nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parse::Version;

/// Name of the list in the instance's folder.
const FILE: &str = "programs.json";

/// Which file a path named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    identity: Identity,
    version: String,
}

/// The version that the program at `path` said when it was asked last, if it is still the same file.
pub fn version(data_dir: &Path, path: &Path) -> Option<Version> {
    let known = read(data_dir).remove(path)?;
    (Identity::of(path)? == known.identity).then(|| Version::in_text(&known.version)).flatten()
}

/// Remembers a version. Another process may do the same at the same time: the last one's list stays.
pub fn remember(data_dir: &Path, path: &Path, version: Version) {
    let Some(identity) = Identity::of(path) else { return };
    let mut list = read(data_dir);
    list.insert(path.to_owned(), Known { identity, version: version.to_string() });
    let temporary = data_dir.join(format!("{FILE}.{}", std::process::id()));
    let written = serde_json::to_vec(&list)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, data_dir.join(FILE)));
    if let Err(error) = written {
        tracing::debug!(%error, "cannot remember the version of a program");
    }
}

fn read(data_dir: &Path) -> BTreeMap<PathBuf, Known> {
    let text = std::fs::read(data_dir.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_program_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu");
        std::fs::write(&program, "one").unwrap();
        assert_eq!(version(dir.path(), &program), None);
        remember(dir.path(), &program, Version::new(10, 0, 2));
        assert_eq!(version(dir.path(), &program), Some(Version::new(10, 0, 2)));
        std::fs::write(&program, "other").unwrap();
        assert_eq!(version(dir.path(), &program), None);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(version(dir.path(), &program), None);
    }
}
