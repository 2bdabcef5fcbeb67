//! Files that agree with their checksums, and have not been touched since that was known.
//!
//! That a file was not touched is read from its times, which the kernel sets by a clock that stands still between two ticks. So
//! something is known of a file only if that clock had moved on from the file's last change *before* the bytes were looked at:
//! then every later change shows.
//!
//! It is known of what was read, and of what this process wrote itself: of a base that it made, and of one that was known and
//! that a patch was folded into. Nobody else writes to a base meanwhile (its folder's owner has a lock).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::checksums::{Checksums, verify};
use super::files::{self, Files};
use super::fold::{Folded, Step, Way, fold_in_steps};
use super::format::{encode_sums, hash};
use super::{Base, MemoryError};
use crate::limits;

/// How long to wait for the clock to move on: its tick is 10 ms at most, and another is for a host that is busy.
const TICK_WAIT: Duration = Duration::from_millis(20);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(1);

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

    /// Whether any write from now on shows: it gives the file a later time than the last one.
    fn is_settled(&self) -> bool {
        is_before(self.modified, clock_gettime(ClockId::RealtimeCoarse))
    }
}

fn is_before(modified: (i64, i64), now: Timespec) -> bool {
    modified < (now.tv_sec, now.tv_nsec)
}

/// How a base was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// All of it was read.
    Now,
    /// That was known, and it has not been touched since.
    Before,
}

/// A file, and the checksums that it agrees with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Agreed {
    file: Identity,
    /// Their hash.
    sums: u64,
}

/// Remembers which bases agree with their checksums, for as long as this process lives.
#[derive(Debug, Default)]
pub struct Verified {
    /// The latest last.
    known: Mutex<VecDeque<Agreed>>,
}

impl Verified {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks all of `base`, unless it is known and has not been touched.
    pub fn verify(&self, base: &Base, sums: &Checksums) -> Result<Checked, MemoryError> {
        let identity = || Identity::of(base.file()).map_err(MemoryError::io("look at", base.path()));
        let agreed = Agreed { file: identity()?, sums: hash_of(sums) };
        if self.lock().contains(&agreed) {
            return Ok(Checked::Before);
        }
        let is_settled = agreed.file.is_settled();
        verify(base.file(), base.path(), sums)?;
        if is_settled && identity()? == agreed.file {
            self.remember(agreed);
        }
        Ok(Checked::Now)
    }

    /// The base of `files`, which this process has just made, durable and with these checksums, need not be checked.
    pub fn was_made(&self, files: &Files, sums: &Checksums) -> Result<(), MemoryError> {
        let file = identity_of(files)?;
        if file.is_settled() {
            self.remember(Agreed { file, sums: hash_of(sums) });
        }
        Ok(())
    }

    /// As [`fold`](super::fold()); a base that was known, also by another name, is known with the patch in it.
    pub fn fold(&self, files: &Files) -> Result<Folded, MemoryError> {
        let (mut was_known, mut written) = (false, None);
        let folded = fold_in_steps(files, Way::InPlace, &mut |step| {
            match step {
                Step::Marked => was_known = self.knows_content(files)?,
                Step::Synced => written = settled_identity_of(files)?,
                Step::Checked
                | Step::WroteRun
                | Step::Copied
                | Step::Renamed
                | Step::Proved
                | Step::Committed
                | Step::DataRemoved
                | Step::MapRemoved => {}
            }
            Ok(())
        })?;
        if let (true, Some(file), Some(sums)) = (was_known, written, Checksums::read(&files.base_sums)?) {
            self.remember(Agreed { file, sums: hash_of(&sums) });
        }
        Ok(folded)
    }

    /// Whether the base of `files` agrees with its checksums.
    fn knows_content(&self, files: &Files) -> Result<bool, MemoryError> {
        let Some(sums) = Checksums::read(&files.base_sums)? else { return Ok(false) };
        let (file, sums) = (identity_of(files)?, hash_of(&sums));
        Ok(self.lock().iter().any(|known| known.sums == sums && file == known.file))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Agreed>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, agreed: Agreed) {
        let mut known = self.lock();
        // What a file was before is of no use any more.
        known.retain(|old| (old.file.device, old.file.inode) != (agreed.file.device, agreed.file.inode));
        if known.len() >= limits::MEMORY_VERIFIED_MAX {
            known.pop_front();
        }
        known.push_back(agreed);
    }
}

fn hash_of(sums: &Checksums) -> u64 {
    hash(&encode_sums(sums))
}

fn identity_of(files: &Files) -> Result<Identity, MemoryError> {
    Identity::of(&files::open(&files.base)?).map_err(MemoryError::io("look at", &files.base))
}

/// The base's identity once any change shows; `None` if the host's clock does not move on.
fn settled_identity_of(files: &Files) -> Result<Option<Identity>, MemoryError> {
    let (identity, deadline) = (identity_of(files)?, Instant::now() + TICK_WAIT);
    while !identity.is_settled() {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok((identity_of(files)? == identity).then_some(identity))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::memory::Patch;
    use crate::memory::runs::{Content, Run, Runs};

    fn base(path: &Path) -> (Base, Checksums) {
        let base = Base::open(path).unwrap();
        let sums = Checksums::of(base.file(), path).unwrap();
        (base, sums)
    }

    fn settle(files: &Files) {
        settled_identity_of(files).unwrap().expect("the clock moves on");
    }

    #[test]
    fn a_change_shows_once_the_clock_has_moved_on() {
        let now = Timespec { tv_sec: 100, tv_nsec: 4_000_000 };
        for (modified, wanted) in [
            ((100, 4_000_000), false),
            ((100, 4_000_001), false),
            ((101, 0), false),
            ((100, 3_999_999), true),
            ((99, 999_999_999), true),
        ] {
            assert_eq!(is_before(modified, now), wanted, "{modified:?}");
        }
        // A file of the future, after the host's clock was set back.
        let identity = Identity::of(&tempfile::tempfile().unwrap()).unwrap();
        assert!(!Identity { modified: (i64::MAX, 0), ..identity }.is_settled());
    }

    #[test]
    fn a_base_is_read_again_only_after_it_was_touched() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_folder(dir.path());
        Base::create_zero(&files.base, 1 << 20).unwrap();
        let (file, (base, sums)) = (File::options().write(true).open(&files.base).unwrap(), base(&files.base));
        let verified = Verified::new();
        let check = || verified.verify(&base, &sums);
        settle(&files);
        assert_eq!((check().unwrap(), check().unwrap()), (Checked::Now, Checked::Before));
        std::fs::hard_link(&files.base, dir.path().join("another name")).unwrap();
        assert_eq!(check().unwrap(), Checked::Before);
        let mut others = sums.clone();
        others.folded = Some(crate::memory::PatchId(9));
        assert_eq!(verified.verify(&base, &others).unwrap(), Checked::Now);
        file.write_all_at(&[1], 5000).unwrap();
        assert!(matches!(check().unwrap_err(), MemoryError::Damaged { offset: 0, .. }));
        file.write_all_at(&[0], 5000).unwrap();
        settle(&files);
        assert_eq!((check().unwrap(), check().unwrap()), (Checked::Now, Checked::Before));
    }

    /// A base with a patch for it, which changes one page of another chunk than the base's only data.
    fn with_patch(dir: &Path) -> (Files, Checksums) {
        let files = Files::in_folder(dir);
        Base::create_zero(&files.base, 1 << 20).unwrap();
        File::options().write(true).open(&files.base).unwrap().write_all_at(&[5; 4096], 0).unwrap();
        let sums = crate::memory::seal_base(&files).unwrap();
        let mut runs = Runs::new(1 << 20);
        runs.push(Run { first: 100, count: 1, content: Content::Data });
        let data = files::create_hole(&files.patch_data, 1 << 20).unwrap();
        data.write_all_at(&[7; 4096], 100 * 4096).unwrap();
        let patch = Patch { data, path: files.patch_data.clone(), runs, sums: None };
        patch.seal(&files.patch_map).unwrap();
        (files, sums)
    }

    fn check(verified: &Verified, files: &Files) -> Result<Checked, MemoryError> {
        verified.verify(&Base::open(&files.base)?, &Checksums::read(&files.base_sums)?.unwrap())
    }

    #[test]
    fn what_was_made_and_folded_is_known_until_it_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (files, sums) = with_patch(dir.path());
        let verified = Verified::new();
        settle(&files);
        verified.was_made(&files, &sums).unwrap();
        assert_eq!(check(&verified, &files).unwrap(), Checked::Before);
        // Its other names are no change of what is in it.
        let link = dir.path().join("link");
        std::fs::hard_link(&files.base, &link).unwrap();
        std::fs::remove_file(&link).unwrap();
        assert!(matches!(verified.fold(&files).unwrap(), Folded::Written { .. }));
        assert_eq!(check(&verified, &files).unwrap(), Checked::Before);
        let file = File::options().write(true).open(&files.base).unwrap();
        file.write_all_at(&[6], 17).unwrap();
        assert!(matches!(check(&verified, &files).unwrap_err(), MemoryError::Damaged { offset: 0, .. }));
    }

    #[test]
    fn what_was_not_known_before_a_fold_is_not_known_after_it() {
        for touched in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (files, sums) = with_patch(dir.path());
            let verified = Verified::new();
            if touched {
                settle(&files);
                verified.was_made(&files, &sums).unwrap();
                // In a chunk that the fold does not look at.
                File::options().write(true).open(&files.base).unwrap().write_all_at(&[6], 17).unwrap();
            }
            assert!(matches!(verified.fold(&files).unwrap(), Folded::Written { .. }));
            match check(&verified, &files) {
                Ok(checked) => assert_eq!((checked, touched), (Checked::Now, false)),
                Err(error) => assert!(touched && matches!(error, MemoryError::Damaged { offset: 0, .. }), "{error}"),
            }
        }
    }

    #[test]
    fn only_so_many_are_remembered() {
        let verified = Verified::new();
        let identity = Identity::of(&tempfile::tempfile().unwrap()).unwrap();
        for inode in 0..limits::MEMORY_VERIFIED_MAX as u64 + 3 {
            verified.remember(Agreed { file: Identity { inode, ..identity }, sums: 0 });
        }
        let known = verified.lock();
        assert_eq!(known.len(), limits::MEMORY_VERIFIED_MAX);
        assert!(!known.contains(&Agreed { file: Identity { inode: 2, ..identity }, sums: 0 }));
    }
}
