//! The two files into which a Firecracker writes a capture, `CAPTURE_DIR/devices` and `CAPTURE_DIR/memory`.
//!
//! They are made beforehand, each for itself bound into the jail: a Firecracker that was taken over can fill them, up to its
//! limit for one file, and can make no others. They stay where they are for as long as it lives, because the bind leads to
//! them and to nothing else, and because memory adds up in there: from the second capture on Firecracker writes only what
//! changed since the one before, into the same file. After one that failed they are emptied, and the next is of all memory.
//!
//! ```text
//!   prepare ─► [its user's, 0600] ─open─► Firecracker writes ─take─► [ours, read-only] ─open─► …
//!                                                             │
//!                                                             └─► into/devices: a copy
//!                                                                 into/memory:  a copy, or for a VM that ends a link
//! ```

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::{getegid, geteuid};

use super::jail::Snapshot;
use crate::vmm::{DEVICES, MEMORY, Then, VmmError, capture};

/// There when the files were emptied after a capture that failed: what was written before is gone from them, and may no
/// longer count as changed. The next capture must be of all memory.
const EMPTIED: &str = "emptied";

/// Gives back what a failed capture took of the disk, which may be all there was. The mark comes first: without it nothing
/// is emptied.
pub(super) fn empty(capture_dir: &Path) -> io::Result<()> {
    File::create(capture_dir.join(EMPTIED))?;
    let Snapshot { devices, memory } = of(capture_dir);
    [memory, devices].into_iter().try_for_each(|path| OpenOptions::new().write(true).open(path)?.set_len(0))
}

/// Whether they were emptied.
pub(super) fn are_emptied(capture_dir: &Path) -> bool {
    capture_dir.join(EMPTIED).exists()
}

/// They hold all of memory again.
pub(super) fn are_whole(capture_dir: &Path) -> Result<(), VmmError> {
    let path = capture_dir.join(EMPTIED);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmmError::Capture { step: "remove the mark", path, source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The files in `capture_dir`.
pub(super) fn of(capture_dir: &Path) -> Snapshot<PathBuf> {
    Snapshot { devices: capture_dir.join(DEVICES), memory: capture_dir.join(MEMORY) }
}

/// Makes them, empty; what an earlier VM left is replaced, not emptied: a capture may be linked to it.
pub(super) fn prepare(capture_dir: &Path, uid: u32) -> Result<(), VmmError> {
    let failed = |step, path: &Path, source| VmmError::Capture { step, path: path.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(capture_dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make", capture_dir, error)),
        Ok(()) | Err(_) => {}
    }
    are_whole(capture_dir)?;
    let Snapshot { devices, memory } = of(capture_dir);
    for path in [devices, memory] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", &path, error)),
            Ok(()) | Err(_) => {}
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.and_then(|_| chown(&path, Some(uid), Some(uid))).map_err(|error| failed("make", &path, error))?;
    }
    Ok(())
}

/// Lets Firecracker's user open them.
pub(super) fn open(capture_dir: &Path, uid: u32) -> Result<(), VmmError> {
    own(capture_dir, uid, uid, 0o600)
}

/// Takes them from Firecracker's user again. What it has open stays open to it.
pub(super) fn close(capture_dir: &Path) -> Result<(), VmmError> {
    own(capture_dir, geteuid().as_raw(), getegid().as_raw(), 0o444)
}

fn own(capture_dir: &Path, uid: u32, gid: u32, mode: u32) -> Result<(), VmmError> {
    let Snapshot { devices, memory } = of(capture_dir);
    for path in [devices, memory] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode))
            .and_then(|()| chown(&path, Some(uid), Some(gid)))
            .map_err(|source| VmmError::Capture { step: "hand over", path, source })?;
    }
    Ok(())
}

/// Brings what Firecracker wrote to where it is wanted: both files or none.
pub(super) fn take(capture_dir: &Path, into: &Snapshot<PathBuf>, then: Then) -> Result<(), VmmError> {
    let from = of(capture_dir);
    capture::copy_devices(&written(&from.devices)?, &into.devices)?;
    let taken = match then {
        Then::GoesOn => written(&from.memory).and_then(|memory| capture::copy_memory(&memory, &into.memory)),
        Then::Ends => std::fs::hard_link(&from.memory, &into.memory).map_err(|source| VmmError::Capture {
            step: "link memory to",
            path: into.memory.clone(),
            source,
        }),
    };
    taken.inspect_err(|_| capture::remove(&into.devices))
}

fn written(path: &Path) -> Result<File, VmmError> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path);
    opened.map_err(|source| VmmError::Capture { step: "open", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_capture_took_is_given_back_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let capture_dir = dir.path().join("capture");
        let own = geteuid().as_raw();
        prepare(&capture_dir, own).unwrap();
        std::fs::write(of(&capture_dir).memory, vec![1; 100_000]).unwrap();
        assert!(!are_emptied(&capture_dir));
        empty(&capture_dir).unwrap();
        assert!(are_emptied(&capture_dir));
        assert_eq!(std::fs::metadata(of(&capture_dir).memory).unwrap().len(), 0);
        are_whole(&capture_dir).unwrap();
        assert!(!are_emptied(&capture_dir));
        empty(&capture_dir).unwrap();
        prepare(&capture_dir, own).unwrap();
        assert!(!are_emptied(&capture_dir), "another VM begins anew");
    }
}
