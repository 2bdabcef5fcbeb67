//! Copies of sparse files: what holds data, and nothing else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{copy_file_range, fsync};

use super::StorageError;

pub use crate::sparse::{Extent, data_extents};

/// Copies `from` to the new file `to` (mode `mode`), holes as holes, durable when this returns. Blocks are shared
/// where the file system can (reflink). On failure `to` is removed again.
pub fn copy_sparse(from: &Path, to: &Path, mode: u32) -> Result<(), StorageError> {
    let source = File::open(from).map_err(StorageError::io("read", from))?;
    let target =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(to).map_err(StorageError::io("create", to))?;
    copy_extents(&source, &target).map_err(|error| remove_half_made(to, StorageError::io("write", to)(error)))
}

fn copy_extents(source: &File, target: &File) -> io::Result<()> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    for Extent { start, length } in data_extents(source)? {
        copy_range(source, target, start, length)?;
    }
    fsync(target)?;
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, length: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    let end = start + length;
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
        let copied = copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted)?;
        if copied == 0 {
            // The source was cut short while it was copied: what was read is not the file that was asked for.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Removes a file that could not be finished; the first error stays the one that is reported.
pub(super) fn remove_half_made(path: &Path, error: StorageError) -> StorageError {
    if let Err(removal) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %removal, "cannot remove a half-made file");
    }
    error
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::storage::allocated_bytes;

    fn sparse_file(path: &Path) {
        let mut file = File::create(path).unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&[2; 8192]).unwrap();
        file.set_len(64 << 20).unwrap();
    }

    #[test]
    fn copies_data_and_leaves_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        sparse_file(&from);
        copy_sparse(&from, &to, 0o400).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(allocated_bytes(&to).unwrap() <= 64 * 1024, "{}", allocated_bytes(&to).unwrap());
    }

    #[test]
    fn never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        sparse_file(&from);
        std::fs::write(&to, "mine").unwrap();
        let error = copy_sparse(&from, &to, 0o600).unwrap_err();
        assert!(matches!(error, StorageError::Exists { .. }), "{error}");
        assert_eq!(std::fs::read(&to).unwrap(), b"mine");
    }
}
