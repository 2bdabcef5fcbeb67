//! The file that a VM's memory is mapped from.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::MemoryError;
use super::checksums::{Checksums, memory_size};
use super::files::{self, Files};
use super::threads::both;
use crate::sparse::{Extent, data_extents};

/// A base, opened for reading. Where its data is was looked up at once, while the VM on it may still run: it cannot change.
#[derive(Debug)]
pub struct Base {
    file: File,
    path: PathBuf,
    bytes: u64,
    extents: Vec<Extent>,
}

impl Base {
    /// Opens the base at `path`.
    pub fn open(path: &Path) -> Result<Self, MemoryError> {
        Self::of(files::open(path)?, path)
    }

    /// A new base that is all zero, for a VM that boots. Not durable: a VM that has not been captured keeps nothing.
    pub fn create_zero(path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        Self::of(files::create_hole(path, memory_bytes)?, path)
    }

    /// Takes an opened file.
    pub(super) fn of(file: File, path: &Path) -> Result<Self, MemoryError> {
        let bytes = memory_size(&file, path)?;
        let extents = data_extents(&file).map_err(MemoryError::io("find the data of", path))?;
        Ok(Self { file, path: path.to_owned(), bytes, extents })
    }

    /// The file, for who maps it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The memory's size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is a hole from end to end.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Where its data is.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Whether there is no data in these bytes, so that they are zero without being read.
    pub(super) fn is_hole(&self, start: u64, length: u64) -> bool {
        let after = self.extents.partition_point(|extent| extent.start + extent.length <= start);
        self.extents.get(after).is_none_or(|extent| extent.start >= start + length)
    }

    /// Reads from `offset` on.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.file.read_exact_at(bytes, offset).map_err(MemoryError::io("read", &self.path))
    }

    /// Refuses one that has several names: each is somebody who stands on it.
    pub(super) fn check_unshared(&self) -> Result<(), MemoryError> {
        let links = self.file.metadata().map_err(MemoryError::io("look at", &self.path))?.nlink();
        if links == 1 { Ok(()) } else { Err(MemoryError::Shared { path: self.path.clone(), links }) }
    }
}

/// Makes the file at `files.base`, which somebody else wrote (a VMM's full snapshot), durable, and writes its checksums.
pub fn seal_base(files: &Files) -> Result<Checksums, MemoryError> {
    seal_file(&files::open(&files.base)?, files, None)
}

/// Makes `file`, which is at `files.base`, durable with its name, and then its checksums; `None` are computed.
pub(super) fn seal_file(file: &File, files: &Files, sums: Option<Checksums>) -> Result<Checksums, MemoryError> {
    let sync = || {
        file.sync_all().map_err(MemoryError::io("sync", &files.base))?;
        files::sync_folder(&files.base)
    };
    let write_sums = || {
        let sums = sums.clone().map_or_else(|| Checksums::of(file, &files.base), Ok)?;
        Ok((sums.stage(&files.base_sums)?, sums))
    };
    let (synced, staged) = both(sync, write_sums);
    let (staged, sums) = synced.and(staged)?;
    staged.put()?;
    Ok(sums)
}
