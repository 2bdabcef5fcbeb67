//! Files that were checked before and have not been touched since.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::checksums::{Checksums, verify};
use super::format::{encode_sums, hash};
use super::{Base, MemoryError};
use crate::limits;

/// How coarse a file's times may be: the kernel's tick is 10 ms at most. A file that changed within this time may change
/// again and look the same.
const TICK: Duration = Duration::from_millis(50);

/// What tells a file from others, and from itself before it was written to. Not when its inode changed: that a file gets one
/// more name, for a fork, or one fewer, says nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Identity {
    /// The identity of `file` now.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Whether it was written long enough ago for another write to be seen.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.modified.0), u32::try_from(self.modified.1)) else {
            return false;
        };
        let modified = UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(modified).is_ok_and(|age| age > TICK)
    }
}

/// How a base was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// All of it was read.
    Now,
    /// It was before, and has not been touched.
    Before,
}

/// Remembers which bases were checked, for as long as this process lives.
#[derive(Debug, Default)]
pub struct Verified {
    /// The file, and the checksums it agreed with; the latest last.
    known: Mutex<VecDeque<(Identity, u64)>>,
}

impl Verified {
    /// Nothing was checked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks all of `base`, unless it was before and has not been touched.
    pub fn verify(&self, base: &Base, sums: &Checksums) -> Result<Checked, MemoryError> {
        let identity = || Identity::of(base.file()).map_err(MemoryError::io("look at", base.path()));
        let agreed = (identity()?, hash(&encode_sums(sums)));
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&agreed) {
            return Ok(Checked::Before);
        }
        verify(base.file(), base.path(), sums)?;
        if agreed.0.is_settled(SystemTime::now()) && identity()? == agreed.0 {
            self.remember(agreed);
        }
        Ok(Checked::Now)
    }

    fn remember(&self, agreed: (Identity, u64)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // What a file was before is of no use any more.
        known.retain(|(old, _)| (old.device, old.inode) != (agreed.0.device, agreed.0.inode));
        if known.len() >= limits::MEMORY_VERIFIED_MAX {
            known.pop_front();
        }
        known.push_back(agreed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;

    fn base(path: &Path) -> (Base, Checksums) {
        let base = Base::open(path).unwrap();
        let sums = Checksums::of(base.file(), path).unwrap();
        (base, sums)
    }

    fn settle() {
        std::thread::sleep(TICK * 2);
    }

    #[test]
    fn a_base_is_read_again_only_after_it_was_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        Base::create_zero(&path, 1 << 20).unwrap();
        let (file, (base, sums)) = (File::options().write(true).open(&path).unwrap(), base(&path));
        let verified = Verified::new();
        let check = || verified.verify(&base, &sums);
        // Just made: it could be changed within the same tick, so it is not remembered.
        assert_eq!((check().unwrap(), check().unwrap()), (Checked::Now, Checked::Now));
        settle();
        assert_eq!((check().unwrap(), check().unwrap()), (Checked::Now, Checked::Before));
        std::fs::hard_link(&path, dir.path().join("another name")).unwrap();
        assert_eq!(check().unwrap(), Checked::Before);
        let mut others = sums.clone();
        others.folded = Some(crate::memory::PatchId(9));
        assert_eq!(verified.verify(&base, &others).unwrap(), Checked::Now);
        file.write_all_at(&[1], 5000).unwrap();
        assert!(matches!(check().unwrap_err(), MemoryError::Damaged { offset: 0, .. }));
        file.write_all_at(&[0], 5000).unwrap();
        settle();
        assert_eq!((check().unwrap(), check().unwrap()), (Checked::Now, Checked::Before));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let verified = Verified::new();
        let identity = Identity::of(&tempfile::tempfile().unwrap()).unwrap();
        for inode in 0..limits::MEMORY_VERIFIED_MAX as u64 + 3 {
            verified.remember((Identity { inode, ..identity }, 0));
        }
        let known = verified.known.lock().unwrap();
        assert_eq!(known.len(), limits::MEMORY_VERIFIED_MAX);
        assert!(!known.contains(&(Identity { inode: 2, ..identity }, 0)));
    }
}
