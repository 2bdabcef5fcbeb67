//! Which pages are read and sorted out together.

use wrenn_sys::process_memory::{SPANS_MAX, Span};

use super::CaptureError;
use super::process::Process;
use crate::memory::checksums::CHUNK_BYTES;
use crate::memory::runs::PAGE_BYTES;

/// Pages that are read with one system call: 2 MiB, a huge page.
pub(super) const BATCH_PAGES: u32 = 512;
pub(super) const BATCH_BYTES: usize = BATCH_PAGES as usize * PAGE_BYTES as usize;
const CHUNK_PAGES: u32 = (CHUNK_BYTES / PAGE_BYTES) as u32;

const _: () = assert!(BATCH_PAGES as usize <= SPANS_MAX, "each page may lie apart");
const _: () = assert!(BATCH_PAGES >= CHUNK_PAGES, "a chunk fits a batch");

/// Adjacent pages of the memory, and where they begin in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub first: u32,
    pub count: u32,
    pub address: u64,
}

impl Stretch {
    pub fn bytes(&self) -> usize {
        self.count as usize * PAGE_BYTES as usize
    }

    /// Cuts off its first pages: those of one chunk.
    fn cut(&mut self) -> Self {
        let count = self.count.min(CHUNK_PAGES - self.first % CHUNK_PAGES);
        let piece = Self { count, ..*self };
        *self = Self {
            first: self.first + count,
            count: self.count - count,
            address: self.address + u64::from(count) * PAGE_BYTES,
        };
        piece
    }

    /// Whether `next` goes on where this ends, here and there.
    pub fn goes_on_with(&self, next: &Self) -> bool {
        self.first + self.count == next.first && self.address + self.bytes() as u64 == next.address
    }
}

/// Stretches of no more than [`BATCH_PAGES`], in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub stretches: Vec<Stretch>,
    pages: u32,
}

impl Batch {
    pub fn pages(&self) -> u64 {
        self.pages.into()
    }

    /// Reads what the process has there to the front of `bytes`.
    pub fn read(&self, process: &Process, bytes: &mut [u8]) -> Result<(), CaptureError> {
        let span = |stretch: &Stretch| Span { address: stretch.address, bytes: stretch.bytes() };
        let spans: Vec<Span> = self.stretches.iter().map(span).collect();
        process.read(&spans, &mut bytes[..self.pages as usize * PAGE_BYTES as usize])
    }

    fn add(&mut self, piece: Stretch) {
        self.pages += piece.count;
        match self.stretches.last_mut() {
            Some(last) if last.goes_on_with(&piece) => last.count += piece.count,
            Some(_) | None => self.stretches.push(piece),
        }
    }

    /// The chunk that it ends in.
    fn last_chunk(&self) -> Option<u32> {
        self.stretches.last().map(|last| (last.first + last.count - 1) / CHUNK_PAGES)
    }
}

/// Stretches, in order, as batches, each of which can be sorted out and hashed by itself: a chunk's pages are in one of them.
pub(super) fn in_batches(stretches: &[Stretch]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for mut stretch in stretches.iter().copied() {
        while stretch.count > 0 {
            let piece = stretch.cut();
            match batches.last_mut() {
                Some(batch)
                    if batch.last_chunk() == Some(piece.first / CHUNK_PAGES)
                        || batch.pages + CHUNK_PAGES <= BATCH_PAGES =>
                {
                    batch.add(piece);
                }
                Some(_) | None => {
                    let mut batch = Batch::default();
                    batch.add(piece);
                    batches.push(batch);
                }
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(first: u32, count: u32) -> Stretch {
        Stretch { first, count, address: (1 << 30) | (u64::from(first) * PAGE_BYTES) }
    }

    #[test]
    fn a_batch_is_full_before_a_chunk_would_be_cut() {
        let stretches = [stretch(3, 2), stretch(6, 1), stretch(17, 520), stretch(2000, 1), stretch(2002, 30)];
        let batches: Vec<Vec<_>> = in_batches(&stretches)
            .into_iter()
            .map(|batch| {
                assert_eq!(batch.pages(), batch.stretches.iter().map(|stretch| u64::from(stretch.count)).sum::<u64>());
                batch.stretches
            })
            .collect();
        // 3 + 15 pages up to the next chunk, and 30 chunks: there is no room for one more.
        let first = vec![stretch(3, 2), stretch(6, 1), stretch(17, 15 + 30 * 16)];
        let second = vec![stretch(512, 25), stretch(2000, 1), stretch(2002, 30)];
        assert_eq!(batches, [first, second]);
        assert_eq!(in_batches(&[]), []);
    }

    #[test]
    fn neighbours_in_memory_that_lie_apart_stay_apart() {
        let [one, mut other] = [stretch(0, 4), stretch(4, 4)];
        other.address += PAGE_BYTES;
        assert_eq!(in_batches(&[one, other])[0].stretches, [one, other]);
    }
}
