//! The files of one capture: their names, and how they are opened, read and replaced.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::MemoryError;
use super::format::{self, FormatError};

/// What guests had in memory is their secret.
pub(super) const MODE: u32 = 0o600;

/// Where the files of one memory are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The base.
    pub base: PathBuf,
    /// Its checksums.
    pub base_sums: PathBuf,
    /// A patch's data, at the pages' own offsets.
    pub patch_data: PathBuf,
    /// A patch's map. A patch is there when its map is: it is written last and removed last.
    pub patch_map: PathBuf,
    /// There while a patch is being written into the base: the checksums that the base will have. It becomes `base_sums`.
    pub marker: PathBuf,
    /// There while a new base is being made, which becomes `base`.
    pub base_copy: PathBuf,
}

impl Files {
    /// The files of the memory that is kept in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            base: folder.join("memory"),
            base_sums: folder.join("memory.sums"),
            patch_data: folder.join("memory.patch"),
            patch_map: folder.join("memory.patch.map"),
            marker: folder.join("memory.folding"),
            base_copy: folder.join("memory.copy"),
        }
    }
}

/// A file that is there already, for reading.
pub(super) fn open(path: &Path) -> Result<File, MemoryError> {
    File::open(path).map_err(MemoryError::io("open", path))
}

/// A new file for reading and writing, ours alone.
pub(super) fn create_new(path: &Path) -> Result<File, MemoryError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(MODE);
    options.open(path).map_err(MemoryError::io("create", path))
}

/// A new file of `bytes`, all of them a hole; removed again if it cannot have that size.
pub(super) fn create_hole(path: &Path, bytes: u64) -> Result<File, MemoryError> {
    let file = create_new(path)?;
    file.set_len(bytes).map_err(|error| remove_half_made(path, MemoryError::io("size", path)(error)))?;
    Ok(file)
}

/// Reads a whole file of ours, which is as long as its beginning allows; `None` when it does not exist.
pub(super) fn read(path: &Path, limit: fn(&[u8]) -> Result<u64, FormatError>) -> Result<Option<Vec<u8>>, MemoryError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(MemoryError::io("open", path))?,
    };
    let mut bytes = Vec::new();
    let mut read = |limit: u64, bytes: &mut Vec<u8>| {
        (&mut file).take(limit).read_to_end(bytes).map_err(MemoryError::io("read", path))
    };
    read(format::HEAD_BYTES, &mut bytes)?;
    let limit = limit(&bytes).map_err(MemoryError::bad_file(path))?;
    read(limit - format::HEAD_BYTES + 1, &mut bytes)?;
    let found = bytes.len() as u64;
    if found > limit {
        return Err(MemoryError::bad_file(path)(FormatError::TooLong { limit }));
    }
    Ok(Some(bytes))
}

/// Writes what `path` is to be to a durable file beside it, which takes the room that [`keep_room`] has kept.
pub(super) fn stage(path: &Path, bytes: &[u8]) -> Result<Staged, MemoryError> {
    let temporary = temporary(path);
    let failed = MemoryError::io("write", &temporary);
    let write = || {
        let mut file = open_temporary(&temporary)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    };
    write().map_err(failed)?;
    Ok(Staged { temporary, path: path.to_owned() })
}

/// A durable file that is not at its place yet. One that never comes there is replaced by the next.
#[derive(Debug)]
#[must_use]
pub(super) struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Puts it there, durable when this returns: after a crash what is there is as before or as wanted.
    pub fn put(self) -> Result<(), MemoryError> {
        rename(&self.temporary, &self.path)
    }
}

/// The next [`stage`] of `path` with so many bytes at most finds room, where the file system can promise that.
pub(super) fn keep_room(path: &Path, bytes: u64) -> Result<(), MemoryError> {
    let temporary = temporary(path);
    let failed = MemoryError::io("keep room for", &temporary);
    let keep = || match fallocate(open_temporary(&temporary)?, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        kept => kept.map_err(io::Error::from),
    };
    keep().map_err(failed)
}

/// What is there already keeps its room.
fn open_temporary(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(path)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Renames a durable file over another, durable when this returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), MemoryError> {
    std::fs::rename(from, to).map_err(MemoryError::io("rename a file to", to))?;
    sync_folder(to)
}

/// A file is gone afterwards, durably; already gone is fine.
pub(super) fn remove(path: &Path) -> Result<(), MemoryError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MemoryError::io("remove", path)(error)),
        Ok(()) => sync_folder(path),
        Err(_) => Ok(()),
    }
}

/// Makes names in the folder of `path` durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), MemoryError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(MemoryError::io("sync", folder))
}

/// Removes a file that could not be finished; the first error stays the one that is reported.
pub(super) fn remove_half_made<E>(path: &Path, error: E) -> E {
    if let Err(removal) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %removal, "cannot remove a half-made file");
    }
    error
}
