//! Sorts out what was read of a process: what is inherited, zero, or data, which is written and hashed while it is at hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wrenn_sys::writeback;

use super::batch::{Batch, Stretch};
use crate::memory::checksums::{CHUNK_BYTES, Checksums, ChunkSum, chunk_length};
use crate::memory::runs::{Content, PAGE_BYTES, Run, Runs, ZERO_PAGE};
use crate::memory::{Base, MemoryError};

const PAGE: usize = PAGE_BYTES as usize;

/// What differs from the base, in order.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    runs: Vec<Run>,
    /// Of the data file's chunks that have data.
    sums: Vec<ChunkSum>,
    /// Pages that are equal to the base.
    pub equal: u64,
    /// Pages that are zero, and were not.
    pub zero: u64,
    /// Pages that are something else.
    pub data: u64,
}

impl Sorted {
    /// This, and what is of pages behind.
    pub fn followed_by(mut self, next: Self) -> Self {
        self.runs.extend(next.runs);
        self.sums.extend(next.sums);
        self.equal += next.equal;
        self.zero += next.zero;
        self.data += next.data;
        self
    }

    /// What a patch's map says.
    pub fn into_map(self, memory_bytes: u64) -> (Runs, Checksums) {
        let mut runs = Runs::new(memory_bytes);
        self.runs.into_iter().for_each(|run| runs.push(run));
        (runs, Checksums::of_zero(memory_bytes).with(&[], &self.sums))
    }

    fn add(&mut self, page: u32, content: Option<Content>) {
        match content {
            None => self.equal += 1,
            Some(Content::Zero) => self.zero += 1,
            Some(Content::Data) => self.data += 1,
        }
        let Some(content) = content else { return };
        match self.runs.last_mut() {
            Some(last) if last.end() == u64::from(page) && last.content == content => last.count += 1,
            Some(_) | None => self.runs.push(Run { first: page, count: 1, content }),
        }
    }
}

/// A page of data, and where it begins in what was read.
#[derive(Clone, Copy)]
struct DataPage {
    page: u32,
    at: usize,
}

impl DataPage {
    fn offset(self) -> u64 {
        u64::from(self.page) * PAGE_BYTES
    }

    fn chunk(self) -> u32 {
        (self.offset() / CHUNK_BYTES) as u32
    }

    fn is_followed_by(self, next: Self) -> bool {
        self.page + 1 == next.page && self.at + PAGE == next.at
    }
}

/// Sorts out batch after batch.
pub(super) struct Sorter<'a> {
    base: &'a Base,
    file: &'a File,
    path: &'a Path,
    /// What the base has.
    before: Vec<u8>,
    /// A chunk of the data file.
    chunk: Vec<u8>,
}

impl<'a> Sorter<'a> {
    /// Data goes to `file`, at `path`.
    pub fn new(base: &'a Base, file: &'a File, path: &'a Path) -> Self {
        Self { base, file, path, before: Vec::new(), chunk: vec![0; CHUNK_BYTES as usize] }
    }

    /// Adds a batch, with `bytes` in its pages, to `sorted`, and writes its data.
    pub fn sort_out(&mut self, batch: &Batch, bytes: &[u8], sorted: &mut Sorted) -> Result<(), MemoryError> {
        let (mut data, mut at) = (Vec::new(), 0);
        for stretch in &batch.stretches {
            self.compare(*stretch, bytes, at, sorted, &mut data)?;
            at += stretch.bytes();
        }
        self.write(&data, bytes)?;
        for pages in data.chunk_by(|one, next| one.chunk() == next.chunk()) {
            sorted.sums.extend(self.sum(pages, bytes));
        }
        Ok(())
    }

    /// Compares a stretch, whose bytes begin at `at`, with the base.
    fn compare(
        &mut self,
        stretch: Stretch,
        bytes: &[u8],
        at: usize,
        sorted: &mut Sorted,
        data: &mut Vec<DataPage>,
    ) -> Result<(), MemoryError> {
        let offset = u64::from(stretch.first) * PAGE_BYTES;
        let is_hole = self.base.is_hole(offset, stretch.bytes() as u64);
        if !is_hole {
            self.before.resize(self.before.len().max(stretch.bytes()), 0);
            self.base.read(offset, &mut self.before[..stretch.bytes()])?;
        }
        for (index, page) in (stretch.first..stretch.first + stretch.count).enumerate() {
            let before = if is_hole { &ZERO_PAGE } else { &self.before[index * PAGE..][..PAGE] };
            let at = at + index * PAGE;
            let content = content(&bytes[at..][..PAGE], before);
            sorted.add(page, content);
            if content == Some(Content::Data) {
                data.push(DataPage { page, at });
            }
        }
        Ok(())
    }

    /// Writes data, neighbours together, and has the disk begin with it: it is synced soon.
    fn write(&self, data: &[DataPage], bytes: &[u8]) -> Result<(), MemoryError> {
        for pages in data.chunk_by(|one, next| one.is_followed_by(*next)) {
            let bytes = &bytes[pages[0].at..][..pages.len() * PAGE];
            self.file.write_all_at(bytes, pages[0].offset()).map_err(MemoryError::io("write", self.path))?;
        }
        if let [first, .., last] | [first @ last] = data {
            // Whether the disk begins now or with the sync, which reports what goes wrong, makes a difference of time alone.
            writeback::begin(self.file, first.offset()..last.offset() + PAGE_BYTES).ok();
        }
        Ok(())
    }

    /// The checksum of a chunk of the data file that has these pages, and is a hole elsewhere.
    fn sum(&mut self, pages: &[DataPage], bytes: &[u8]) -> Option<ChunkSum> {
        let (first, chunk) = (pages[0], pages[0].chunk());
        let length = chunk_length(chunk, self.base.bytes());
        let is_whole = pages.len() * PAGE == length && pages.is_sorted_by(|one, next| one.is_followed_by(*next));
        if is_whole {
            return Checksums::entry(chunk, &bytes[first.at..][..length]);
        }
        self.chunk.fill(0);
        for page in pages {
            let place = (page.offset() % CHUNK_BYTES) as usize;
            self.chunk[place..][..PAGE].copy_from_slice(&bytes[page.at..][..PAGE]);
        }
        Checksums::entry(chunk, &self.chunk[..length])
    }
}

/// What a page holds that differs from the base.
fn content(now: &[u8], before: &[u8]) -> Option<Content> {
    if now == before {
        None
    } else if now == ZERO_PAGE {
        Some(Content::Zero)
    } else {
        Some(Content::Data)
    }
}
