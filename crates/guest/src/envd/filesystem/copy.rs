//! Moves to another file system, where the kernel cannot rename: copies beside the destination, renames the copy into
//! place, and only then removes the original. Whoever looks sees the old state or the new one.
//!
//! Kept are contents, owners, modes, times and the user's extended attributes. Hard links become files of their own, and
//! holes are filled.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::operations::{FsError, rename_error};
use super::removal;
use crate::envd::files_limits as limits;

/// Moves `from` to `to`, which is on another file system and whose parent exists.
pub fn across(from: &Path, to: &Path) -> Result<(), FsError> {
    let copy = beside(to);
    let moved = copy_tree(from, &copy, 0)
        .and_then(|()| rustix::fs::rename(&copy, to).map_err(|error| rename_error(error, from, to)));
    if let Err(error) = moved {
        return Err(match removal::remove(&copy) {
            Ok(()) => error,
            Err(_) => FsError::CopyLeft { copy, source: Box::new(error) },
        });
    }
    removal::remove(from)
}

/// A hidden name in the same directory; the process and a counter make it one of its own.
fn beside(to: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static MOVES: AtomicU64 = AtomicU64::new(0);
    let serial = MOVES.fetch_add(1, Ordering::Relaxed);
    to.with_file_name(format!(".wrenn-moving-{}-{serial}", std::process::id()))
}

fn copy_tree(from: &Path, to: &Path, depth: usize) -> Result<(), FsError> {
    let about = fs::symlink_metadata(from).map_err(FsError::io("look at", from))?;
    let file_type = about.file_type();
    if file_type.is_dir() {
        return copy_dir(from, to, &about, depth);
    }
    if file_type.is_socket() {
        return Err(FsError::Socket(from.to_owned()));
    }
    let copied = if file_type.is_file() {
        copy_file(from, to, &about)
    } else if file_type.is_symlink() {
        copy_link(from, to, &about)
    } else {
        copy_node(to, &about)
    };
    copied.map_err(FsError::io("copy to another file system", from))
}

fn copy_dir(from: &Path, to: &Path, about: &Metadata, depth: usize) -> Result<(), FsError> {
    if depth >= limits::COPY_DEPTH_MAX {
        return Err(FsError::TooDeep(from.to_owned()));
    }
    let failed = |error: io::Error| FsError::io("copy to another file system", from)(error);
    // Nobody looks into a copy that does not have its owner and mode yet.
    fs::DirBuilder::new().mode(0o700).create(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        copy_tree(&from.join(&name), &to.join(&name), depth + 1)?;
    }
    File::open(to).and_then(|dir| dress(&dir, from, about)).map_err(failed)
}

fn copy_file(from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let mut source = OpenOptions::new().read(true).custom_flags(flags).open(from)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut copy)?;
    dress(&copy, from, about)
}

fn copy_link(from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
    symlink(fs::read_link(from)?, to)?;
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    keep_times(to, about)
}

/// A FIFO or a device.
fn copy_node(to: &Path, about: &Metadata) -> io::Result<()> {
    let mode = Mode::from_raw_mode(about.mode() & 0o7777);
    rustix::fs::mknodat(CWD, to, FileType::from_raw_mode(about.mode()), mode, about.rdev())?;
    lchown(to, Some(about.uid()), Some(about.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(about.mode() & 0o7777))?;
    keep_times(to, about)
}

/// Sets the times of something that cannot be opened for it.
fn keep_times(to: &Path, about: &Metadata) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: about.atime(), tv_nsec: about.atime_nsec() },
        last_modification: Timespec { tv_sec: about.mtime(), tv_nsec: about.mtime_nsec() },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Gives a copy the original's attributes, owner, mode and times. The mode comes after the owner: a change of owner takes
/// the set-user-id bit away.
fn dress(copy: &File, from: &Path, about: &Metadata) -> io::Result<()> {
    for name in user_attributes(from) {
        let mut value = vec![0; limits::XATTR_LIST_BYTES_MAX];
        let length = rustix::fs::lgetxattr(from, &*name, value.as_mut_slice())?;
        match rustix::fs::fsetxattr(copy, &*name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(other) => return Err(other.into()),
        }
    }
    std::os::unix::fs::fchown(copy, Some(about.uid()), Some(about.gid()))?;
    copy.set_permissions(fs::Permissions::from_mode(about.mode() & 0o7777))?;
    copy.set_times(FileTimes::new().set_modified(about.modified()?).set_accessed(about.accessed()?))
}

fn user_attributes(path: &Path) -> Vec<OsString> {
    let names = crate::envd::entry::attributes(b"user.", |list| rustix::fs::llistxattr(path, list));
    names.iter().map(|name| <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name).to_owned()).collect()
}
