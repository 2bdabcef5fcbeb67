//! The pages that a memory is wanted for first, in their order: recorded on first use, served ahead from then on.
//!
//! The file is a hint that lasts. One shim records at a time (it holds a lock of the file); what it writes is whole, or not
//! taken by the next reader.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::FlockOperation;
use wrenn_proto::shim::pages::{Content, PageTable, Span, WORKING_SET_RUNS_MAX, encode_working_set, read_working_set};

use super::layers::Layers;
use crate::limits::{PREFETCH_PAGES, READ_AHEAD_PAGES, RECORD_FOR, RECORD_SHARE};

/// What is done with it.
#[derive(Debug)]
pub(super) enum WorkingSet {
    /// Nothing.
    Unwanted,
    /// It is served ahead.
    Known(Prefetch),
    /// It is being learned.
    Recording(Recorder),
}

impl WorkingSet {
    /// Takes what `file` says of a memory with this table; learns it if the file says nothing of use.
    pub fn open(mut file: File, table: &PageTable) -> Self {
        let read = file.rewind().map_err(Into::into).and_then(|()| read_working_set(&file, table.memory_bytes()));
        if let Ok(order) = read {
            return Self::Known(Prefetch::new(&order, table.pages()));
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Self::Recording(Recorder::new(file, table)),
            // Somebody else is at it.
            Err(_) => Self::Unwanted,
        }
    }
}

/// What is served ahead, slice by slice.
#[derive(Debug)]
pub(super) struct Prefetch {
    slices: Vec<Span>,
    /// The first that was not served.
    next: usize,
    /// The first that the host was not told to read.
    advised: usize,
    /// Pages that it was told of and that were not served yet.
    ahead: u32,
}

impl Prefetch {
    /// In this order, of a memory of so many pages; what goes beyond them names some twice.
    fn new(order: &[Span], pages: u32) -> Self {
        let mut left = pages;
        let mut slices = Vec::new();
        for mut span in order.iter().copied() {
            while span.count > 0 && left > 0 {
                let slice = Span { first: span.first, count: span.count.min(PREFETCH_PAGES).min(left) };
                slices.push(slice);
                left -= slice.count;
                span = Span::between(slice.end(), span.end());
            }
        }
        Self { slices, next: 0, advised: 0, ahead: 0 }
    }

    /// The next slice; `None` when all were served. Those that come after it are read meanwhile.
    pub fn next(&mut self, layers: &Layers) -> Option<Span> {
        while self.ahead < READ_AHEAD_PAGES
            && let Some(slice) = self.slices.get(self.advised)
        {
            layers.read_ahead(*slice);
            self.ahead += slice.count;
            self.advised += 1;
        }
        self.slices.get(self.next).copied()
    }

    /// What [`Prefetch::next`] gave was served.
    pub fn served(&mut self) {
        if let Some(slice) = self.slices.get(self.next) {
            self.ahead -= slice.count;
            self.next += 1;
        }
    }

    /// Whether all of it was served.
    pub fn is_over(&self) -> bool {
        self.next == self.slices.len()
    }
}

/// What was wanted so far.
#[derive(Debug)]
pub(super) struct Recorder {
    file: File,
    memory_bytes: u64,
    spans: Vec<Span>,
    /// Pages of files that are still taken.
    left: u32,
    /// When it ends; `None` before something was wanted.
    until: Option<Instant>,
}

impl Recorder {
    fn new(file: File, table: &PageTable) -> Self {
        let left = table.pages() / RECORD_SHARE;
        Self { file, memory_bytes: table.memory_bytes(), spans: Vec::new(), left, until: None }
    }

    /// These pages were wanted, around one of this content.
    pub fn note(&mut self, span: Span, content: Content, now: Instant) {
        if self.is_over(now) {
            return;
        }
        self.until.get_or_insert(now + RECORD_FOR);
        match content {
            Content::File(_) => self.left = self.left.saturating_sub(span.count),
            Content::Zero => {}
        }
        match self.spans.last_mut() {
            Some(last) if last.end() == span.first => last.count += span.count,
            Some(_) | None => self.spans.push(span),
        }
    }

    /// Whether enough is known.
    pub fn is_over(&self, now: Instant) -> bool {
        let is_full = self.left == 0 || self.spans.len() == WORKING_SET_RUNS_MAX;
        is_full || self.until.is_some_and(|until| now >= until)
    }

    /// When enough will be known; `None` before something was wanted.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Keeps it, if there is something to keep.
    pub fn write(&self) -> io::Result<()> {
        if self.spans.is_empty() {
            return Ok(());
        }
        self.file.set_len(0)?;
        self.file.write_all_at(&encode_working_set(self.memory_bytes, &self.spans), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_bounded_and_no_more_than_the_memory_has() {
        let span = |first, count| Span { first, count };
        let slices = |order: &[Span], pages| Prefetch::new(order, pages).slices;
        assert_eq!(slices(&[span(9, 300), span(0, 2)], 1000), [span(9, 256), span(265, 44), span(0, 2)]);
        assert_eq!(slices(&[span(0, 5); 4], 12), [span(0, 5), span(0, 5), span(0, 2)]);
        assert!(Prefetch::new(&[], 12).is_over());
    }
}
