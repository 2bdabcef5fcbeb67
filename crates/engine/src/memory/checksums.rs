//! Checksums of a sparse file, chunk by chunk.
//!
//! Only chunks that are not all zero are listed: an empty memory of 1 TiB has an empty list. A chunk that is not listed must
//! read as zero, whether it is a hole or not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::MemoryError;
use super::files::{self, Staged};
use super::format::{self, FormatError, PatchId, hash};
use super::runs::{is_memory_size, is_zero};
use super::threads::in_two;
use crate::sparse::data_extents;

/// Bytes that one checksum is of. Large enough for a list of 200 kB per GiB, small enough to be read for one changed page.
pub const CHUNK_BYTES: u64 = 64 * 1024;

/// Chunks that are read with one system call.
const CHUNKS_AT_ONCE: usize = 16;

/// The checksum of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkSum {
    pub chunk: u32,
    pub hash: u64,
}

/// The checksums of a file of a memory's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksums {
    memory_bytes: u64,
    /// By chunk, in order.
    chunks: Vec<ChunkSum>,
    /// Of a base: which patch was written into it last.
    pub(super) folded: Option<PatchId>,
}

impl Checksums {
    /// Of a memory that is all zero.
    pub fn of_zero(memory_bytes: u64) -> Self {
        assert!(is_memory_size(memory_bytes), "{memory_bytes} bytes are no memory");
        Self { memory_bytes, chunks: Vec::new(), folded: None }
    }

    /// Reads `file` (at `path`, for errors) and computes them, with two threads.
    pub fn of(file: &File, path: &Path) -> Result<Self, MemoryError> {
        let memory_bytes = memory_size(file, path)?;
        let chunks = data_chunks(file, path)?;
        let halves = in_two(&chunks, |chunks| {
            let mut sums = Vec::with_capacity(chunks.len());
            for_each_chunk(file, path, memory_bytes, chunks, |chunk, bytes| {
                sums.extend(Self::entry(chunk, bytes));
                Ok(())
            })?;
            Ok(sums)
        })?;
        Ok(Self { memory_bytes, chunks: halves.concat(), folded: None })
    }

    /// Reads the file of checksums at `path`; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, MemoryError> {
        let Some(bytes) = files::read(path, format::sums_bytes_max)? else { return Ok(None) };
        format::decode_sums(&bytes).map(Some).map_err(MemoryError::bad_file(path))
    }

    /// Keeps room for them at `path`: those of `file` (at `of`, for errors) as it is now, and of no more than that, can be written
    /// there then on a full disk.
    pub fn keep_room(file: &File, of: &Path, path: &Path) -> Result<(), MemoryError> {
        files::keep_room(path, format::sums_bytes(data_chunks(file, of)?.len()))
    }

    /// Keeps them at `path`: after a crash there is the old file or the new one. Durable when this returns.
    pub fn write(&self, path: &Path) -> Result<(), MemoryError> {
        self.stage(path)?.put()
    }

    /// Makes them durable beside `path`, for a rename to it.
    pub(super) fn stage(&self, path: &Path) -> Result<Staged, MemoryError> {
        files::stage(path, &format::encode_sums(self))
    }

    /// The size of the memory they are of.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Takes what a file says, if it keeps to the rules.
    pub(super) fn checked(memory_bytes: u64, chunks: Vec<ChunkSum>) -> Result<Self, FormatError> {
        let mut end = 0;
        for (index, sum) in chunks.iter().enumerate() {
            let chunk = u64::from(sum.chunk);
            if chunk < end || chunk * CHUNK_BYTES >= memory_bytes {
                return Err(FormatError::Entry { index: index as u64 });
            }
            end = chunk + 1;
        }
        Ok(Self { memory_bytes, chunks, folded: None })
    }

    pub(super) fn chunks(&self) -> &[ChunkSum] {
        &self.chunks
    }

    /// What is listed of a chunk: nothing if it is all zero.
    pub(super) fn entry(chunk: u32, bytes: &[u8]) -> Option<ChunkSum> {
        (!is_zero(bytes)).then(|| ChunkSum { chunk, hash: hash(bytes) })
    }

    /// These, with those of `touched` (chunks, in order) replaced by `by`, of the same chunks.
    pub(super) fn with(&self, touched: &[u32], by: &[ChunkSum]) -> Self {
        let kept = self.chunks.iter().filter(|sum| touched.binary_search(&sum.chunk).is_err());
        let mut chunks: Vec<ChunkSum> = kept.chain(by).copied().collect();
        chunks.sort_unstable_by_key(|sum| sum.chunk);
        Self { memory_bytes: self.memory_bytes, chunks, folded: self.folded }
    }

    /// Whether a chunk holds what it should.
    pub(super) fn agrees(&self, chunk: u32, bytes: &[u8]) -> bool {
        match self.chunks.binary_search_by_key(&chunk, |sum| sum.chunk) {
            Ok(index) => self.chunks[index].hash == hash(bytes),
            Err(_) => is_zero(bytes),
        }
    }

    /// Refuses a chunk of the file at `path` that does not hold what it should.
    pub(super) fn check(&self, chunk: u32, bytes: &[u8], path: &Path) -> Result<(), MemoryError> {
        let offset = u64::from(chunk) * CHUNK_BYTES;
        if self.agrees(chunk, bytes) { Ok(()) } else { Err(MemoryError::Damaged { path: path.to_owned(), offset }) }
    }

    /// Checks these chunks of a file, with two threads.
    pub(super) fn check_chunks(&self, file: &File, path: &Path, chunks: &[u32]) -> Result<(), MemoryError> {
        in_two(chunks, |chunks| {
            for_each_chunk(file, path, self.memory_bytes, chunks, |chunk, bytes| self.check(chunk, bytes, path))
        })?;
        Ok(())
    }
}

/// Checks all of `file` (at `path`, for errors) against `sums`, with two threads; of several damaged places one is named.
pub fn verify(file: &File, path: &Path, sums: &Checksums) -> Result<(), MemoryError> {
    check_size(file, path, sums.memory_bytes)?;
    let mut chunks = data_chunks(file, path)?;
    chunks.extend(sums.chunks.iter().map(|sum| sum.chunk));
    chunks.sort_unstable();
    chunks.dedup();
    sums.check_chunks(file, path, &chunks)
}

/// The size of a file that can be a memory's.
pub(super) fn memory_size(file: &File, path: &Path) -> Result<u64, MemoryError> {
    let found = file.metadata().map_err(MemoryError::io("look at", path))?.len();
    if is_memory_size(found) { Ok(found) } else { Err(MemoryError::bad_file(path)(FormatError::MemorySize { found })) }
}

/// Refuses a file of another size.
pub(super) fn check_size(file: &File, path: &Path, wanted: u64) -> Result<(), MemoryError> {
    let found = file.metadata().map_err(MemoryError::io("look at", path))?.len();
    if found == wanted { Ok(()) } else { Err(MemoryError::WrongSize { path: path.to_owned(), found, wanted }) }
}

/// The chunks in which a file, of a size that was checked, has data, in order.
pub(super) fn data_chunks(file: &File, path: &Path) -> Result<Vec<u32>, MemoryError> {
    let extents = data_extents(file).map_err(MemoryError::io("find the data of", path))?;
    let of_extent = |extent: &crate::sparse::Extent| {
        let (start, end) = (extent.start / CHUNK_BYTES, (extent.start + extent.length).div_ceil(CHUNK_BYTES));
        start as u32..end as u32
    };
    let mut chunks: Vec<u32> = extents.iter().flat_map(of_extent).collect();
    chunks.dedup();
    Ok(chunks)
}

/// How many bytes a chunk has: the last one may be shorter.
pub(super) fn chunk_length(chunk: u32, memory_bytes: u64) -> usize {
    CHUNK_BYTES.min(memory_bytes - u64::from(chunk) * CHUNK_BYTES) as usize
}

/// Reads one chunk to the front of `buffer`.
pub(super) fn read_chunk<'a>(
    file: &File,
    path: &Path,
    chunk: u32,
    memory_bytes: u64,
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], MemoryError> {
    let bytes = &mut buffer[..chunk_length(chunk, memory_bytes)];
    file.read_exact_at(bytes, u64::from(chunk) * CHUNK_BYTES).map_err(MemoryError::io("read", path))?;
    Ok(bytes)
}

/// Reads these chunks, neighbours together, and calls `visit` with each.
fn for_each_chunk(
    file: &File,
    path: &Path,
    memory_bytes: u64,
    chunks: &[u32],
    mut visit: impl FnMut(u32, &[u8]) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut buffer = vec![0; CHUNKS_AT_ONCE * CHUNK_BYTES as usize];
    let neighbours = chunks.chunk_by(|one, next| one + 1 == *next).flat_map(|chunks| chunks.chunks(CHUNKS_AT_ONCE));
    for stretch in neighbours {
        let bytes: usize = stretch.iter().map(|chunk| chunk_length(*chunk, memory_bytes)).sum();
        let start = u64::from(stretch[0]) * CHUNK_BYTES;
        file.read_exact_at(&mut buffer[..bytes], start).map_err(MemoryError::io("read", path))?;
        for (chunk, content) in stretch.iter().zip(buffer[..bytes].chunks(CHUNK_BYTES as usize)) {
            visit(*chunk, content)?;
        }
    }
    Ok(())
}
