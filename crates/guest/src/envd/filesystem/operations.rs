//! What the file system service does, as plain blocking calls on absolute, cleaned paths.
//!
//! Everything runs as root on a user's behalf: what is made is given to the user, whose own permissions do not matter.
//! Nothing here knows of the wire, of requests or of who may ask.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{copy, removal};
use crate::envd::entry::Entry;
use crate::envd::files_limits as limits;
use crate::envd::users::{Accounts, User};

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Nothing is there.
    #[error("path '{}' does not exist", .0.display())]
    NotFound(PathBuf),
    /// A directory was needed here.
    #[error("path '{}' is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The directory to make, or a filled one in the place of what is moved, is there already.
    #[error("path '{}' already exists", .0.display())]
    AlreadyExists(PathBuf),
    /// What would be moved or removed is the whole file system.
    #[error("the root directory cannot be moved, replaced or removed")]
    Root,
    /// A directory cannot be moved to where it would be its own parent, nor take a file's place, nor the reverse.
    #[error("cannot move '{}' to '{}': one is inside the other, or only one of them is a directory", .from.display(), .to.display())]
    Unmovable {
        /// What was to be moved.
        from: PathBuf,
        /// Where to.
        to: PathBuf,
    },
    /// More than an answer may hold.
    #[error("'{}' holds too much for one listing ({} entries or {} bytes of names); list its sub-directories one by one",
        .0.display(), limits::LIST_ENTRIES_MAX, limits::LIST_BYTES_MAX)]
    TooMuch(PathBuf),
    /// Somebody fills a directory as fast as it is emptied.
    #[error("'{}' is being filled while it is removed; end the process that writes there", .0.display())]
    Refilled(PathBuf),
    /// Deeper than a copy to another file system goes.
    #[error("'{}' nests deeper than {} levels, which cannot be moved to another file system", .0.display(), limits::COPY_DEPTH_MAX)]
    TooDeep(PathBuf),
    /// A socket cannot be copied to another file system.
    #[error("'{}' is a socket, which cannot be moved to another file system", .0.display())]
    Socket(PathBuf),
    /// A move to another file system failed, and so did the removal of what had been copied.
    #[error("the move failed; remove what is left of the copy at '{}'", .copy.display())]
    CopyLeft {
        /// The half-made copy.
        copy: PathBuf,
        /// Why the move failed.
        #[source]
        source: Box<FsError>,
    },
    /// The kernel refused.
    #[error("cannot {step} '{}'", .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl FsError {
    /// The error of a step on a path, for `map_err`.
    pub fn io<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { step, path: path.to_owned(), source: source.into() }
    }

    /// The disk, or the user's share of it, is full.
    pub fn is_no_space(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// The same, where "nothing there" is an answer of its own.
    fn look(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| if is_absent(&source) { Self::NotFound(path.to_owned()) } else { Self::io(step, path)(source) }
    }
}

/// Describes what is at `path`, a link as such.
pub fn stat(path: &Path, accounts: &Accounts) -> Result<Entry, FsError> {
    Entry::read(path, accounts).map_err(FsError::look("look at", path))
}

/// The entries of a directory down to `depth` levels (0 means 1), sorted by name, each directory before its contents.
///
/// Entries that vanish meanwhile, and sub-directories that even root may not read, are left out.
pub fn list(path: &Path, depth: u32, accounts: &Accounts) -> Result<Vec<Entry>, FsError> {
    let top = fs::metadata(path).map_err(FsError::look("look at", path))?;
    if !top.is_dir() {
        return Err(FsError::NotADirectory(path.to_owned()));
    }
    let mut budget = Budget { entries: limits::LIST_ENTRIES_MAX, bytes: limits::LIST_BYTES_MAX };
    let mut found = Vec::new();
    let names = sorted_names(path, budget.entries).map_err(FsError::look("list", path))?;
    let mut levels = vec![(path.to_owned(), names.into_iter())];
    while let Some((dir, names)) = levels.last_mut() {
        let Some(name) = names.next() else {
            levels.pop();
            continue;
        };
        let child = dir.join(name);
        let entry = match Entry::read(&child, accounts) {
            Err(error) if is_out_of_reach(&error) => continue,
            other => other.map_err(FsError::io("look at", &child))?,
        };
        if !budget.spend(&entry) {
            return Err(FsError::TooMuch(path.to_owned()));
        }
        let deeper = entry.can_be_walked() && levels.len() < depth.max(1) as usize;
        found.push(entry);
        if deeper {
            match sorted_names(&child, budget.entries) {
                Err(error) if is_out_of_reach(&error) => {}
                other => levels.push((child.clone(), other.map_err(FsError::io("list", &child))?.into_iter())),
            }
        }
    }
    Ok(found)
}

/// What a listing may still grow by.
struct Budget {
    entries: usize,
    bytes: usize,
}

impl Budget {
    fn spend(&mut self, entry: &Entry) -> bool {
        let left = (self.entries.checked_sub(1), self.bytes.checked_sub(entry.weight()));
        let (Some(entries), Some(bytes)) = left else { return false };
        *self = Self { entries, bytes };
        true
    }
}

/// The names in a directory, at most one more than `most`: enough to overdraw the budget, never more than memory holds.
fn sorted_names(dir: &Path, most: usize) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(dir)?.take(most + 1).map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Makes a directory and its parents, 0755, given to `owner`.
pub fn make_dir(path: &Path, owner: &User) -> Result<(), FsError> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(FsError::AlreadyExists(path.to_owned())),
        Ok(_) => Err(FsError::NotADirectory(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_dirs(path, owner),
        Err(error) if is_absent(&error) => Err(FsError::NotADirectory(parent(path).to_owned())),
        Err(error) => Err(FsError::io("look at", path)(error)),
    }
}

/// Makes those directories of `path` that are missing, 0755, given to `owner`; the ones that are there stay as they are.
///
/// New ones are opened without following links and given away through their descriptor, so that nobody can put a link in
/// their place and be given what it points to.
pub fn make_dirs(path: &Path, owner: &User) -> Result<(), FsError> {
    let (mut dir, missing) = deepest_existing(path)?;
    for name in missing {
        let step = "make a directory of";
        let made = match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => false,
            other => other.map(|()| true).map_err(FsError::io(step, path))?,
        };
        dir = match open_dir(&dir, name, OFlags::NOFOLLOW) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(FsError::NotADirectory(path.to_owned())),
            other => other.map_err(FsError::io(step, path))?,
        };
        if made {
            give(&dir, owner).map_err(FsError::io("give the user a directory of", path))?;
        }
    }
    Ok(())
}

/// The deepest directory of `path` that is there, and the names below it that are not.
fn deepest_existing(path: &Path) -> Result<(OwnedFd, Vec<&OsStr>), FsError> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match open_dir(CWD, ancestor, OFlags::empty()) {
            Ok(dir) => {
                missing.reverse();
                return Ok((dir, missing));
            }
            Err(Errno::NOENT) => missing.extend(ancestor.file_name()),
            Err(Errno::NOTDIR) => return Err(FsError::NotADirectory(ancestor.to_owned())),
            Err(error) => return Err(FsError::io("open", ancestor)(error)),
        }
    }
    Err(FsError::NotFound(path.to_owned()))
}

/// Opens a directory to work in; `extra` says whether a link is followed.
pub fn open_dir<Fd: AsFd>(at: Fd, path: impl rustix::path::Arg, extra: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | extra, Mode::empty())
}

/// Makes `owner` the owner of an open file or directory.
pub fn give<Fd: AsFd>(file: Fd, owner: &User) -> Result<(), Errno> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))
}

/// Renames, replacing a file that is at `to`; missing parents of `to` are made for `owner`. Copies when `to` is on
/// another file system: then links between files inside are lost, and holes are filled.
pub fn rename(from: &Path, to: &Path, owner: &User) -> Result<(), FsError> {
    fs::symlink_metadata(from).map_err(FsError::look("look at", from))?;
    if from == Path::new("/") || to == Path::new("/") {
        return Err(FsError::Root);
    }
    if from != to && to.starts_with(from) {
        return Err(FsError::Unmovable { from: from.to_owned(), to: to.to_owned() });
    }
    make_dirs(parent(to), owner)?;
    match rustix::fs::rename(from, to) {
        Err(Errno::XDEV) => copy::across(from, to),
        other => other.map_err(|error| rename_error(error, from, to)),
    }
}

/// What a failed rename means.
pub fn rename_error(error: Errno, from: &Path, to: &Path) -> FsError {
    match error {
        Errno::NOENT => FsError::NotFound(from.to_owned()),
        Errno::EXIST | Errno::NOTEMPTY => FsError::AlreadyExists(to.to_owned()),
        Errno::INVAL | Errno::ISDIR | Errno::NOTDIR => FsError::Unmovable { from: from.to_owned(), to: to.to_owned() },
        other => FsError::io("move", from)(other),
    }
}

/// Removes a file, a link itself, or a directory with all that is in it; nothing there is success.
pub fn remove(path: &Path) -> Result<(), FsError> {
    if path == Path::new("/") {
        return Err(FsError::Root);
    }
    removal::remove(path)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// There is nothing at the path: not the thing itself, or not even the directory it would be in.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Gone meanwhile; or not even root may look, as with another user's FUSE mount; or too deep for a path to name it.
fn is_out_of_reach(error: &io::Error) -> bool {
    is_absent(error) || matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidFilename)
}
