//! What differs from a base: a data file and a list of runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::base::seal_file;
use super::checksums::{Checksums, check_size, memory_size};
use super::files::{self, Files, Staged};
use super::format::{self, FormatError, PatchId};
use super::runs::{Content, PAGE_BYTES, Run, Runs};
use super::threads::both;
use super::{Base, MemoryError};
use crate::sparse::{Extent, data_extents};

/// A patch that was just made: not durable yet.
#[derive(Debug)]
pub struct Patch {
    pub(super) data: File,
    pub(super) path: PathBuf,
    pub(super) runs: Runs,
    /// Of the data; `None` when somebody else wrote it.
    pub(super) sums: Option<Checksums>,
}

impl Patch {
    /// Takes the sparse file at `path` that a VMM wrote, with real bytes (zeros too) for pages that changed and holes for
    /// those that did not, of a memory of `memory_bytes`.
    pub fn of_sparse(path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        let data = files::open(path)?;
        check_size(&data, path, memory_bytes)?;
        let memory_bytes = memory_size(&data, path)?;
        check_blocks(&data, path)?;
        let mut runs = Runs::new(memory_bytes);
        for extent in data_extents(&data).map_err(MemoryError::io("find the data of", path))? {
            if let Some(run) = whole_pages(extent, &runs) {
                runs.push(run);
            }
        }
        Ok(Self { data, path: path.to_owned(), runs, sums: None })
    }

    /// What differs.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Makes it durable: the data, its name, and then the map at `map`. The VM may run again meanwhile; who wants to end it for
    /// good waits for this to succeed.
    pub fn seal(&self, map: &Path) -> Result<PatchId, MemoryError> {
        let write_map = || -> Result<(Staged, PatchId), MemoryError> {
            let (bytes, id) = format::encode_map(&self.runs, &self.sums()?);
            Ok((files::stage(map, &bytes)?, id))
        };
        let (synced, staged) = both(|| self.sync(), write_map);
        let (staged, id) = synced.and(staged)?;
        staged.put()?;
        Ok(id)
    }

    /// Makes it a base at `files`, durable, without a copy. Only what was taken over a base that is all zero, `over`, holds
    /// all of the memory. There must not be a base yet.
    pub fn into_base(self, over: &Base, files: &Files) -> Result<Checksums, MemoryError> {
        if !over.is_empty() || over.bytes() != self.runs.memory_bytes() {
            return Err(MemoryError::NotWhole { path: self.path });
        }
        if files.base.exists() {
            return Err(MemoryError::Exists { path: files.base.clone() });
        }
        std::fs::rename(&self.path, &files.base).map_err(MemoryError::io("rename a file to", &files.base))?;
        seal_file(&self.data, files, self.sums)
    }

    fn sync(&self) -> Result<(), MemoryError> {
        self.data.sync_all().map_err(MemoryError::io("sync", &self.path))?;
        files::sync_folder(&self.path)
    }

    fn sums(&self) -> Result<Checksums, MemoryError> {
        self.sums.clone().map_or_else(|| Checksums::of(&self.data, &self.path), Ok)
    }
}

/// The pages that an extent touches, but for one that the extent before touched as well.
pub(super) fn whole_pages(extent: Extent, before: &Runs) -> Option<Run> {
    let free = before.list().last().map_or(0, Run::end);
    let first = (extent.start / PAGE_BYTES).max(free);
    let end = (extent.start + extent.length).min(before.memory_bytes()).div_ceil(PAGE_BYTES);
    (first < end).then(|| Run { first: first as u32, count: (end - first) as u32, content: Content::Data })
}

/// Refuses a file system whose blocks are larger than a page: one page that changed makes its neighbours look changed.
fn check_blocks(data: &File, path: &Path) -> Result<(), MemoryError> {
    let block_bytes =
        rustix::fs::fstatvfs(data).map_err(|error| MemoryError::io("look at", path)(error.into()))?.f_bsize;
    check_block_bytes(block_bytes, path)
}

fn check_block_bytes(block_bytes: u64, path: &Path) -> Result<(), MemoryError> {
    if block_bytes > PAGE_BYTES {
        return Err(MemoryError::LargeBlocks { path: path.to_owned(), block_bytes });
    }
    Ok(())
}

/// What a patch's map says, without a look at the data.
#[derive(Debug)]
pub(super) struct Map {
    pub runs: Runs,
    pub sums: Checksums,
    pub id: PatchId,
}

impl Map {
    /// Reads the map at `path`, of a memory of `wanted` bytes; `None` when there is none.
    pub fn read(path: &Path, wanted: u64) -> Result<Option<Self>, MemoryError> {
        let Some(bytes) = files::read(path, format::map_bytes_max)? else { return Ok(None) };
        let (runs, sums, id) = format::decode_map(&bytes).map_err(MemoryError::bad_file(path))?;
        let found = runs.memory_bytes();
        if found != wanted {
            return Err(MemoryError::bad_file(path)(FormatError::OtherMemory { found, wanted }));
        }
        Ok(Some(Self { runs, sums, id }))
    }
}

/// A patch that is durable and has checksums. The data was not checked by being opened.
#[derive(Debug)]
pub struct SealedPatch {
    pub(super) data: File,
    pub(super) path: PathBuf,
    pub(super) map: Map,
}

impl SealedPatch {
    /// Opens the patch of `files`, of a memory of `memory_bytes`; `None` when there is none. The map was checked then.
    pub fn open(files: &Files, memory_bytes: u64) -> Result<Option<Self>, MemoryError> {
        let map = Map::read(&files.patch_map, memory_bytes)?;
        map.map(|map| Self::with_map(files, map)).transpose()
    }

    pub(super) fn with_map(files: &Files, map: Map) -> Result<Self, MemoryError> {
        let data = files::open(&files.patch_data)?;
        check_size(&data, &files.patch_data, map.runs.memory_bytes())?;
        Ok(Self { data, path: files.patch_data.clone(), map })
    }

    /// Which patch it is.
    pub fn id(&self) -> PatchId {
        self.map.id
    }

    /// What differs from the base.
    pub fn runs(&self) -> &Runs {
        &self.map.runs
    }

    /// Checks all of the data, with two threads.
    pub fn verify(&self) -> Result<(), MemoryError> {
        super::verify(&self.data, &self.path, &self.map.sums)
    }

    /// Reads changed bytes, of pages in a data run.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.data.read_exact_at(bytes, offset).map_err(MemoryError::io("read", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 1 << 20;

    #[test]
    fn data_is_what_changed_and_a_hole_is_what_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diff");
        let file = files::create_hole(&path, MEMORY).unwrap();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        file.write_all_at(&[0; 4096], 64 * 4096).unwrap();
        let patch = Patch::of_sparse(&path, MEMORY).unwrap();
        let wanted = [(1, 2), (64, 1)].map(|(first, count)| Run { first, count, content: Content::Data });
        assert_eq!(patch.runs().list(), wanted);
    }

    #[test]
    fn extents_are_rounded_to_pages_once() {
        let mut runs = Runs::new(MEMORY);
        for (start, length, wanted) in
            [(0, 512, Some((0, 1))), (1024, 512, None), (3584, 1024, Some((1, 1))), (MEMORY - 1, 9, Some((255, 1)))]
        {
            let run = whole_pages(Extent { start, length }, &runs);
            assert_eq!(run.map(|run| (run.first, run.count)), wanted, "{start}");
            run.into_iter().for_each(|run| runs.push(run));
        }
    }

    #[test]
    fn another_size_and_large_blocks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diff");
        files::create_hole(&path, MEMORY).unwrap();
        let error = Patch::of_sparse(&path, 2 * MEMORY).unwrap_err();
        assert!(matches!(error, MemoryError::WrongSize { .. }), "{error}");
        for (bytes, fine) in [(512, true), (4096, true), (8192, false), (65536, false)] {
            assert_eq!(check_block_bytes(bytes, &path).is_ok(), fine, "{bytes}");
        }
    }
}
