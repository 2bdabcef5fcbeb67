//! What a base's chunks are with a patch over them, checked on the way.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::checksums::{CHUNK_BYTES, Checksums, ChunkSum, data_chunks, read_chunk};
use super::files;
use super::patch::SealedPatch;
use super::runs::{Content, PAGE_BYTES, Runs, is_zero};
use super::threads::in_two;
use super::{Base, MemoryError};

const CHUNK_PAGES: u64 = CHUNK_BYTES / PAGE_BYTES;

/// The part of a run that is in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    chunk: u32,
    /// First byte in the chunk.
    start: usize,
    /// Bytes.
    length: usize,
    content: Content,
}

/// Runs, cut at the borders of chunks, in order.
fn pieces(runs: &Runs) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for run in runs.list() {
        let mut page = u64::from(run.first);
        while page < run.end() {
            let chunk = page / CHUNK_PAGES;
            let end = run.end().min((chunk + 1) * CHUNK_PAGES);
            let start = (page % CHUNK_PAGES * PAGE_BYTES) as usize;
            let length = ((end - page) * PAGE_BYTES) as usize;
            pieces.push(Piece { chunk: chunk as u32, start, length, content: run.content });
            page = end;
        }
    }
    pieces
}

/// A base and a patch over it.
pub(super) struct Composer<'a> {
    base: &'a Base,
    base_sums: &'a Checksums,
    patch: &'a SealedPatch,
    /// In order; those of one chunk follow each other.
    pieces: Vec<Piece>,
}

/// What a chunk is made of and made in.
struct Buffers {
    chunk: Vec<u8>,
    patch: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        let buffer = vec![0; CHUNK_BYTES as usize];
        Self { chunk: buffer.clone(), patch: buffer }
    }
}

impl<'a> Composer<'a> {
    pub fn new(base: &'a Base, base_sums: &'a Checksums, patch: &'a SealedPatch) -> Self {
        let pieces = pieces(&patch.map.runs);
        Self { base, base_sums, patch, pieces }
    }

    /// Every chunk that the patch changes, in order.
    pub fn touched(&self) -> Vec<u32> {
        touched(&self.pieces)
    }

    /// The checksums that the base will have with the patch in it. Every chunk that the patch changes was checked then, in
    /// the base and in the patch; nothing was changed.
    pub fn sums(&self) -> Result<Checksums, MemoryError> {
        let touched = self.touched();
        let halves = in_two(&touched, |chunks| self.sums_of(chunks))?;
        let mut sums = self.base_sums.with(&touched, &halves.concat());
        sums.folded = Some(self.patch.id());
        Ok(sums)
    }

    fn sums_of(&self, chunks: &[u32]) -> Result<Vec<ChunkSum>, MemoryError> {
        let mut buffers = Buffers::new();
        let mut sums = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            sums.extend(Checksums::entry(*chunk, self.chunk(*chunk, &mut buffers)?));
        }
        Ok(sums)
    }

    /// Writes base and patch together to the new file at `path`, not synced, checking all of both. Gives its checksums.
    pub fn write(&self, path: &Path) -> Result<Checksums, MemoryError> {
        let memory_bytes = self.base.bytes();
        let mut chunks = data_chunks(self.base.file(), self.base.path())?;
        chunks.extend(self.base_sums.chunks().iter().map(|sum| sum.chunk));
        chunks.extend(self.touched());
        chunks.sort_unstable();
        chunks.dedup();
        let file = files::create_hole(path, memory_bytes)?;
        let halves = in_two(&chunks, |chunks| self.write_chunks(&file, path, chunks));
        let halves = halves.map_err(|error| files::remove_half_made(path, error))?;
        let mut sums = Checksums::of_zero(memory_bytes).with(&[], &halves.concat());
        sums.folded = Some(self.patch.id());
        Ok(sums)
    }

    fn write_chunks(&self, file: &File, path: &Path, chunks: &[u32]) -> Result<Vec<ChunkSum>, MemoryError> {
        let mut buffers = Buffers::new();
        let mut sums = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let bytes = self.chunk(*chunk, &mut buffers)?;
            sums.extend(Checksums::entry(*chunk, bytes));
            write_pages(file, u64::from(*chunk) * CHUNK_BYTES, bytes).map_err(MemoryError::io("write", path))?;
        }
        Ok(sums)
    }

    /// One chunk with the patch in it; base and patch were checked.
    fn chunk<'b>(&self, chunk: u32, buffers: &'b mut Buffers) -> Result<&'b [u8], MemoryError> {
        let memory_bytes = self.base.bytes();
        let bytes = read_chunk(self.base.file(), self.base.path(), chunk, memory_bytes, &mut buffers.chunk)?;
        self.base_sums.check(chunk, bytes, self.base.path())?;
        let pieces = self.pieces_of(chunk);
        if pieces.iter().any(|piece| piece.content == Content::Data) {
            let patch = &self.patch;
            let changed = read_chunk(&patch.data, &patch.path, chunk, memory_bytes, &mut buffers.patch)?;
            patch.map.sums.check(chunk, changed, &patch.path)?;
        }
        for piece in pieces {
            let place = piece.start..piece.start + piece.length;
            match piece.content {
                Content::Data => bytes[place.clone()].copy_from_slice(&buffers.patch[place]),
                Content::Zero => bytes[place].fill(0),
            }
        }
        Ok(bytes)
    }

    fn pieces_of(&self, chunk: u32) -> &[Piece] {
        let start = self.pieces.partition_point(|piece| piece.chunk < chunk);
        let length = self.pieces[start..].partition_point(|piece| piece.chunk == chunk);
        &self.pieces[start..start + length]
    }
}

/// Every chunk that these runs are in, in order.
pub(super) fn touched_by(runs: &Runs) -> Vec<u32> {
    touched(&pieces(runs))
}

fn touched(pieces: &[Piece]) -> Vec<u32> {
    let mut chunks: Vec<u32> = pieces.iter().map(|piece| piece.chunk).collect();
    chunks.dedup();
    chunks
}

/// Writes the pages of a chunk that are not zero, neighbours together.
fn write_pages(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut at = offset;
    let pages: Vec<&[u8]> = bytes.chunks(PAGE_BYTES as usize).collect();
    for stretch in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let start = (at - offset) as usize;
        let length: usize = stretch.iter().map(|page| page.len()).sum();
        if !is_zero(stretch[0]) {
            file.write_all_at(&bytes[start..start + length], at)?;
        }
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::runs::Run;

    #[test]
    fn runs_are_cut_where_chunks_begin() {
        let mut runs = Runs::new(1 << 20);
        runs.push(Run { first: 15, count: 18, content: Content::Data });
        runs.push(Run { first: 40, count: 1, content: Content::Zero });
        let cut =
            [(0, 15, 1, Content::Data), (1, 0, 16, Content::Data), (2, 0, 1, Content::Data), (2, 8, 1, Content::Zero)];
        let wanted = cut.map(|(chunk, start, pages, content)| Piece {
            chunk,
            start: start * 4096,
            length: pages * 4096,
            content,
        });
        assert_eq!(pieces(&runs), wanted);
        assert_eq!(touched_by(&runs), [0, 1, 2]);
    }
}
