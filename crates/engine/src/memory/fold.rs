//! Writes a patch into its base, as a redo log is applied.
//!
//! ```text
//!   check what is touched, in base and patch        nothing was changed
//!   marker: the checksums that the base will have   from here on the base is half written, and the patch is complete
//!   write the runs into the base, fsync
//!   check what was written against the marker
//!   rename the marker over the base's checksums     done
//!   remove the patch: data, then map
//! ```
//!
//! Cut off anywhere, the next fold finishes: with a marker of this patch, it writes the runs again and checks the result;
//! with base's checksums that say that this patch was the last, only the patch's files are left to be removed. A marker is
//! the one thing that lets a base pass that does not agree with its checksums, and it lets it pass until the end of the fold.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::checksums::{Checksums, check_size};
use super::compose::{Composer, touched_by};
use super::files::{self, Files};
use super::patch::{Map, SealedPatch};
use super::runs::{Content, Run, Runs};
use super::{Base, MemoryError};

/// Bytes that are copied with one pair of system calls.
const COPY_BYTES: usize = 1024 * 1024;

/// What a fold did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// There was no patch.
    Nothing,
    /// An earlier fold had written the patch, and was cut off when it removed the files.
    Tidied,
    /// The patch is in the base now.
    Written {
        /// Pages with data.
        data_pages: u64,
        /// Pages that are zero.
        zero_pages: u64,
        /// Whether an earlier fold had begun, and was cut off.
        resumed: bool,
    },
}

/// Where a fold is; tests cut it off after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Checked,
    Marked,
    WroteRun,
    Copied,
    Renamed,
    Synced,
    Proved,
    Committed,
    DataRemoved,
    MapRemoved,
}

/// Writes the patch of `files` into the base, in place. For a base that nobody else has a name of and no VM maps; the
/// patch's generation is committed: there is no way back.
pub fn fold(files: &Files) -> Result<Folded, MemoryError> {
    fold_in_steps(files, Way::InPlace, &mut |_| Ok(()))
}

/// As [`fold`](fold()), for a base that others stand on: a new base takes the place of this name, and the others keep theirs.
pub fn fold_copy(files: &Files) -> Result<Folded, MemoryError> {
    fold_in_steps(files, Way::Copy, &mut |_| Ok(()))
}

/// Writes base and patch of `from` together as a new base, with checksums, of `to`, durable; `from` stays as it is and must
/// have a patch that no fold has begun to write.
pub fn merge(from: &Files, to: &Files) -> Result<Checksums, MemoryError> {
    let base = Base::open(&from.base)?;
    let sums = base_sums(from, &base)?;
    let patch = SealedPatch::open(from, base.bytes())?;
    let patch = patch.ok_or_else(|| missing(&from.patch_map))?;
    if from.marker.exists() {
        return Err(MemoryError::Exists { path: from.marker.clone() });
    }
    let merged = Composer::new(&base, &sums, &patch).write(&to.base)?;
    sync_new(&to.base)?;
    merged.write(&to.base_sums)?;
    Ok(merged)
}

/// How the patch gets into the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    InPlace,
    Copy,
}

pub(super) fn fold_in_steps(
    files: &Files,
    way: Way,
    after: &mut dyn FnMut(Step) -> Result<(), MemoryError>,
) -> Result<Folded, MemoryError> {
    let base = Base::open(&files.base)?;
    let marker = sums_of(&files.marker, &base)?;
    let current = if marker.is_none() { sums_of(&files.base_sums, &base)? } else { None };
    let Some(map) = Map::read(&files.patch_map, base.bytes())? else {
        return if marker.is_none() { Ok(Folded::Nothing) } else { Err(patch_gone(files, &files.patch_map)) };
    };
    if current.is_some_and(|sums| sums.folded == Some(map.id)) {
        remove_patch(files, after)?;
        return Ok(Folded::Tidied);
    }
    let resumed = marker.is_some();
    let patch = open_data(files, map, resumed)?;
    // Half written in place, the base cannot be copied any more; and it is ours alone, or it would not have been written to.
    let way = if resumed && base.check_unshared().is_ok() { Way::InPlace } else { way };
    let wanted = match way {
        Way::InPlace => write_in_place(files, &base, &patch, marker, after)?,
        Way::Copy => write_copy(files, &base, &patch, marker, after)?,
    };
    prove(files, &patch.map.runs, &wanted)?;
    after(Step::Proved)?;
    files::rename(&files.marker, &files.base_sums)?;
    after(Step::Committed)?;
    remove_patch(files, after)?;
    let runs = &patch.map.runs;
    Ok(Folded::Written { data_pages: runs.pages(Content::Data), zero_pages: runs.pages(Content::Zero), resumed })
}

/// Writes the runs into the base itself. Gives the checksums it should have now.
fn write_in_place(
    files: &Files,
    base: &Base,
    patch: &SealedPatch,
    marker: Option<Checksums>,
    after: &mut dyn FnMut(Step) -> Result<(), MemoryError>,
) -> Result<Checksums, MemoryError> {
    base.check_unshared()?;
    let wanted = match marker {
        Some(wanted) => {
            check_marker(files, &wanted, patch)?;
            patch.verify()?;
            wanted
        }
        None => {
            let wanted = Composer::new(base, &base_sums(files, base)?, patch).sums()?;
            after(Step::Checked)?;
            wanted.write(&files.marker)?;
            after(Step::Marked)?;
            wanted
        }
    };
    let target = OpenOptions::new().write(true).open(&files.base).map_err(MemoryError::io("open", &files.base))?;
    for run in patch.map.runs.list() {
        write_run(&target, &files.base, patch, *run)?;
        after(Step::WroteRun)?;
    }
    target.sync_data().map_err(MemoryError::io("sync", &files.base))?;
    after(Step::Synced)?;
    Ok(wanted)
}

/// Makes a new base and puts it in the old one's place. A marker is there while old base and new checksums could meet.
fn write_copy(
    files: &Files,
    base: &Base,
    patch: &SealedPatch,
    marker: Option<Checksums>,
    after: &mut dyn FnMut(Step) -> Result<(), MemoryError>,
) -> Result<Checksums, MemoryError> {
    // With a marker and other names still on the base, the new one was not put in its place: it is made again.
    marker.as_ref().map_or(Ok(()), |marker| check_marker(files, marker, patch))?;
    files::remove(&files.base_copy)?;
    let wanted = Composer::new(base, &base_sums(files, base)?, patch).write(&files.base_copy)?;
    sync_new(&files.base_copy)?;
    after(Step::Copied)?;
    wanted.write(&files.marker)?;
    after(Step::Marked)?;
    files::rename(&files.base_copy, &files.base)?;
    after(Step::Renamed)?;
    Ok(wanted)
}

fn base_sums(files: &Files, base: &Base) -> Result<Checksums, MemoryError> {
    sums_of(&files.base_sums, base)?.ok_or_else(|| missing(&files.base_sums))
}

/// Reads checksums of a base, whose size they must agree with.
fn sums_of(path: &Path, base: &Base) -> Result<Option<Checksums>, MemoryError> {
    let sums = Checksums::read(path)?;
    sums.as_ref().map_or(Ok(()), |sums| check_size(base.file(), base.path(), sums.memory_bytes()))?;
    Ok(sums)
}

fn missing(path: &Path) -> MemoryError {
    MemoryError::io("open", path)(io::ErrorKind::NotFound.into())
}

fn patch_gone(files: &Files, patch: &Path) -> MemoryError {
    MemoryError::PatchGone { marker: files.marker.clone(), patch: patch.to_owned() }
}

fn open_data(files: &Files, map: Map, began: bool) -> Result<SealedPatch, MemoryError> {
    SealedPatch::with_map(files, map).map_err(|error| match error {
        MemoryError::Io { ref source, .. } if began && source.kind() == io::ErrorKind::NotFound => {
            patch_gone(files, &files.patch_data)
        }
        other => other,
    })
}

fn check_marker(files: &Files, marker: &Checksums, patch: &SealedPatch) -> Result<(), MemoryError> {
    if marker.folded == Some(patch.id()) {
        return Ok(());
    }
    Err(MemoryError::OtherPatch { marker: files.marker.clone(), patch: files.patch_map.clone() })
}

fn write_run(target: &File, path: &Path, patch: &SealedPatch, run: Run) -> Result<(), MemoryError> {
    match run.content {
        Content::Data => copy(target, path, patch, run),
        Content::Zero => make_zero(target, run).map_err(MemoryError::io("write", path)),
    }
}

fn copy(target: &File, path: &Path, patch: &SealedPatch, run: Run) -> Result<(), MemoryError> {
    let mut buffer = vec![0; COPY_BYTES.min(run.bytes() as usize)];
    let (mut offset, end) = (run.offset(), run.offset() + run.bytes());
    while offset < end {
        let bytes = &mut buffer[..COPY_BYTES.min((end - offset) as usize)];
        patch.read(offset, bytes)?;
        target.write_all_at(bytes, offset).map_err(MemoryError::io("write", path))?;
        offset += bytes.len() as u64;
    }
    Ok(())
}

/// A hole where the file system can, zeros where not.
fn make_zero(target: &File, run: Run) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(target, flags, run.offset(), run.bytes()) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = vec![0; COPY_BYTES.min(run.bytes() as usize)];
            let mut offset = run.offset();
            while offset < run.offset() + run.bytes() {
                let length = zeros.len().min((run.offset() + run.bytes() - offset) as usize);
                target.write_all_at(&zeros[..length], offset)?;
                offset += length as u64;
            }
            Ok(())
        }
        other => other.map_err(io::Error::from),
    }
}

/// Reads back what was touched. After a fold that was cut off, this is what says that the base was not damaged meanwhile.
fn prove(files: &Files, runs: &Runs, wanted: &Checksums) -> Result<(), MemoryError> {
    wanted.check_chunks(&files::open(&files.base)?, &files.base, &touched_by(runs))
}

fn sync_new(path: &Path) -> Result<(), MemoryError> {
    files::open(path)?.sync_all().map_err(MemoryError::io("sync", path))?;
    files::sync_folder(path)
}

fn remove_patch(files: &Files, after: &mut dyn FnMut(Step) -> Result<(), MemoryError>) -> Result<(), MemoryError> {
    files::remove(&files.base_copy)?;
    files::remove(&files.patch_data)?;
    after(Step::DataRemoved)?;
    files::remove(&files.patch_map)?;
    after(Step::MapRemoved)
}
