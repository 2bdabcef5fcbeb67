//! Removes a whole directory, however deep, wide or contested it is.
//!
//! It works on open directories and never on paths, so a link put into the tree meanwhile is removed and not followed.
//! Only so many directories are open at a time: one that lies deeper is first moved up into the top one, which is then
//! gone through once more.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::operations::{FsError, open_dir};
use crate::envd::files_limits as limits;

/// A directory that is being emptied.
struct Level {
    /// Its name in the one above.
    name: CString,
    dir: OwnedFd,
    entries: Dir,
    passes: usize,
}

impl Level {
    fn open<Fd: AsFd>(above: Fd, name: &CStr) -> Result<Self, Errno> {
        let dir = open_dir(above, name, OFlags::NOFOLLOW)?;
        let entries = Dir::read_from(&dir)?;
        Ok(Self { name: name.to_owned(), dir, entries, passes: 0 })
    }

    /// The next entry to remove, and whether it says it is a directory.
    fn next(&mut self) -> Option<Result<(CString, bool), Errno>> {
        let entry = self.entries.find(|entry| !matches!(entry, Ok(entry) if is_dot(entry.file_name())))?;
        Some(entry.map(|entry| (entry.file_name().to_owned(), entry.file_type() == FileType::Directory)))
    }
}

/// Removes what is at `path`, an absolute path other than the root; nothing there is success.
pub fn remove(path: &Path) -> Result<(), FsError> {
    let failed = |error| FsError::io("remove", path)(error);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(FsError::Root) };
    let name = CString::new(name.as_bytes()).map_err(|_nul| failed(Errno::INVAL))?;
    let parent = match open_dir(CWD, parent, OFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.map_err(failed)?,
    };
    if unlink(&parent, &name).map_err(failed)? {
        return Ok(());
    }
    remove_tree(&parent, &name).map_err(|error| match error {
        Errno::NOTEMPTY => FsError::Refilled(path.to_owned()),
        other => failed(other),
    })
}

/// Unlinks anything but a directory; whether there is nothing any more.
fn unlink<Fd: AsFd>(dir: Fd, name: &CStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Removes a directory; `NOTEMPTY` when others fill it for good.
fn remove_tree(parent: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let mut moved_up = 0;
    let mut levels = vec![Level::open(parent, name)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.next() else {
            leave(&mut levels, parent)?;
            continue;
        };
        let (name, is_dir) = entry?;
        if !is_dir && unlink(&level.dir, &name)? {
            continue;
        }
        if levels.len() < limits::REMOVE_OPEN_DIRS_MAX {
            enter(&mut levels, &name)?;
        } else {
            move_up(&levels, &name, &mut moved_up)?;
        }
    }
    Ok(())
}

/// Goes into a sub-directory; one that is gone, or no directory any more, is left to the next pass.
fn enter(levels: &mut Vec<Level>, name: &CStr) -> Result<(), Errno> {
    let Some(level) = levels.last() else { return Ok(()) };
    match Level::open(&level.dir, name) {
        Ok(below) => levels.push(below),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Removes the directory that was just emptied, or starts it over when it is not empty after all.
fn leave(levels: &mut Vec<Level>, parent: &OwnedFd) -> Result<(), Errno> {
    let Some(mut level) = levels.pop() else { return Ok(()) };
    let above = levels.last().map_or(parent, |above| &above.dir);
    match rustix::fs::unlinkat(above, &level.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) if level.passes < limits::REMOVE_PASSES_MAX => {
            level.passes += 1;
            level.entries.rewind();
            levels.push(level);
            Ok(())
        }
        Err(other) => Err(other),
    }
}

/// Moves a directory that lies too deep into the top one, under a name nobody else uses.
fn move_up(levels: &[Level], name: &CStr, moved_up: &mut u32) -> Result<(), Errno> {
    let (Some(top), Some(level)) = (levels.first(), levels.last()) else { return Ok(()) };
    loop {
        let new_name = format!(".wrenn-removing-{moved_up}");
        *moved_up += 1;
        match rustix::fs::renameat(&level.dir, name, &top.dir, &*new_name) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return other,
        }
    }
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
