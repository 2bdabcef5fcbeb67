//! Serves one VM's faults.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use wrenn_proto::shim::pages::{Content, PAGE_BYTES, Span};
use wrenn_sys::userfaultfd::{Event, Filled, Userfaultfd};

use super::greeting::{Greeting, Regions};
use super::layers::Layers;
use super::settled::Settled;
use super::working_set::WorkingSet;
use super::{Memory, PagerError};
use crate::complain;
use crate::limits::{FAULT_BLOCK_PAGES, FAULT_ROUNDS, PAGER_BUFFER_PAGES, PAGER_RETRY, ZERO_BLOCK_PAGES};

/// A VM's memory, and how far it has been served.
#[derive(Debug)]
pub(super) struct Server {
    faults: Userfaultfd,
    regions: Regions,
    layers: Layers,
    working_set: WorkingSet,
    settled: Settled,
    /// The pages that threads of the VMM wait for, each once: as many as it has threads.
    waiting: Vec<u32>,
    /// When to try again what the kernel would not take; `None` when it takes everything.
    retry_at: Option<Instant>,
    events: Vec<Event>,
    buffer: Box<[u8]>,
}

/// What becomes of the pager after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Served {
    GoesOn,
    VmmEnded,
}

/// How far pages were filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Progress {
    Done,
    /// The kernel takes none now, because memory is being removed.
    Later,
    VmmEnded,
}

impl Server {
    pub fn new(greeting: Greeting, memory: Memory) -> Self {
        let Greeting { regions, faults } = greeting;
        let Memory { layers, working_set } = memory;
        Self {
            faults,
            regions,
            settled: Settled::none(layers.table().pages()),
            layers,
            working_set,
            waiting: Vec::new(),
            retry_at: None,
            events: Vec::new(),
            buffer: vec![0; PAGER_BUFFER_PAGES as usize * PAGE_BYTES as usize].into(),
        }
    }

    pub fn handle(&self) -> BorrowedFd<'_> {
        self.faults.as_fd()
    }

    /// When there is something to do that nobody asks for; not after `now` if that is now.
    pub fn wanted_at(&self, now: Instant) -> Option<Instant> {
        match (&self.working_set, self.retry_at) {
            (_, Some(at)) => Some(at),
            (WorkingSet::Known(_), None) => Some(now),
            (WorkingSet::Recording(recorder), None) => recorder.until(),
            (WorkingSet::Unwanted, None) => None,
        }
    }

    /// What waits is served, then some of what is served ahead.
    pub fn serve(&mut self, now: Instant) -> Result<Served, PagerError> {
        self.retry_at = None;
        for _ in 0..FAULT_ROUNDS {
            self.listen()?;
            if self.waiting.is_empty() {
                break;
            }
            match self.serve_waiting(now)? {
                Progress::Done => {}
                // Either there is an event by now, or its remover has to go on first.
                Progress::Later => self.retry_at = Some(now + PAGER_RETRY),
                Progress::VmmEnded => return Ok(Served::VmmEnded),
            }
        }
        if self.waiting.is_empty() {
            self.retry_at = None;
            return self.go_ahead(now);
        }
        Ok(Served::GoesOn)
    }

    /// Hears what happened. Removals count at once: nothing is filled again that was given back.
    fn listen(&mut self) -> Result<(), PagerError> {
        self.events.clear();
        self.faults.read(&mut self.events).map_err(PagerError::Events)?;
        for event in &self.events {
            match *event {
                Event::Fault { address } => {
                    let stray = || PagerError::Stray(format!("a fault at {address:#x}"));
                    let page = self.regions.page(address).ok_or_else(stray)?;
                    if !self.waiting.contains(&page) {
                        self.waiting.push(page);
                    }
                }
                Event::Removed { start, end } => {
                    self.regions.pages_between(start, end).for_each(|span| self.settled.add(span));
                }
                Event::Other(number) => return Err(PagerError::Stray(format!("an event of kind {number}"))),
            }
        }
        Ok(())
    }

    /// Serves the pages that are waited for; those that the kernel does not take stay.
    fn serve_waiting(&mut self, now: Instant) -> Result<Progress, PagerError> {
        while let Some(&page) = self.waiting.first() {
            match self.serve_page(page, now)? {
                Progress::Done => drop(self.waiting.swap_remove(0)),
                other => return Ok(other),
            }
        }
        Ok(Progress::Done)
    }

    fn serve_page(&mut self, page: u32, now: Instant) -> Result<Progress, PagerError> {
        if self.settled.has(page) {
            return self.serve_settled(page);
        }
        let block = self.block(page);
        let progress = self.fill(block)?;
        if progress == Progress::Done
            && let WorkingSet::Recording(recorder) = &mut self.working_set
        {
            recorder.note(block, self.layers.table().at(page).0, now);
        }
        Ok(progress)
    }

    /// A page that was filled already: it was given back since, or is there.
    fn serve_settled(&mut self, page: u32) -> Result<Progress, PagerError> {
        let (address, _) = self.regions.place(page);
        match self.faults.zero(address, PAGE_BYTES).map_err(refused("zero", page))? {
            Filled::All | Filled::Partly(_) => Ok(Progress::Done),
            Filled::Present => {
                self.faults.wake(address).map_err(refused("wake who waits for", page)).map(|()| Progress::Done)
            }
            Filled::Changing => Ok(Progress::Later),
            Filled::Gone => Ok(Progress::VmmEnded),
        }
    }

    /// What is served together with `page`.
    fn block(&self, page: u32) -> Span {
        let (_, region) = self.regions.place(page);
        let (content, stretch) = self.layers.table().at(page);
        let (size, within) = match content {
            Content::Zero => (ZERO_BLOCK_PAGES, stretch),
            Content::File(_) => (FAULT_BLOCK_PAGES, region),
        };
        let start = page - page % size;
        let first = start.max(within.first).max(region.first);
        Span::between(first, (start + size).min(within.end()).min(region.end()))
    }

    /// Fills what of these pages is not settled.
    fn fill(&mut self, span: Span) -> Result<Progress, PagerError> {
        let mut page = span.first;
        while let Some((content, piece)) = self.next_piece(page, span.end()) {
            let done = match self.fill_piece(content, piece)? {
                Filled::All => piece.count,
                Filled::Partly(bytes) => (bytes / PAGE_BYTES) as u32,
                Filled::Present => 1,
                Filled::Changing => return Ok(Progress::Later),
                Filled::Gone => return Ok(Progress::VmmEnded),
            };
            self.settled.add(Span { first: piece.first, count: done });
            page = piece.first + done;
        }
        Ok(Progress::Done)
    }

    /// The next pages that can be filled with one request.
    fn next_piece(&self, from: u32, end: u32) -> Option<(Content, Span)> {
        let free = self.settled.next_unsettled(from, end)?;
        let (content, stretch) = self.layers.table().at(free.first);
        let most = match content {
            Content::Zero => ZERO_BLOCK_PAGES,
            Content::File(_) => PAGER_BUFFER_PAGES,
        };
        let (_, region) = self.regions.place(free.first);
        let end = free.end().min(stretch.end()).min(region.end()).min(free.first.saturating_add(most));
        Some((content, Span::between(free.first, end)))
    }

    fn fill_piece(&mut self, content: Content, piece: Span) -> Result<Filled, PagerError> {
        let (address, _) = self.regions.place(piece.first);
        let length = u64::from(piece.count) * PAGE_BYTES;
        match content {
            Content::Zero => self.faults.zero(address, length).map_err(refused("zero", piece.first)),
            Content::File(file) => {
                let bytes = &mut self.buffer[..length as usize];
                self.layers.read(file, piece, bytes)?;
                self.faults.copy(address, bytes).map_err(refused("take", piece.first))
            }
        }
    }

    /// Nobody waits: a slice of the working set is served ahead, or what is known of it kept.
    fn go_ahead(&mut self, now: Instant) -> Result<Served, PagerError> {
        let slice = match &mut self.working_set {
            WorkingSet::Unwanted => return Ok(Served::GoesOn),
            WorkingSet::Recording(recorder) => {
                if recorder.is_over(now) {
                    self.stop_recording();
                }
                return Ok(Served::GoesOn);
            }
            WorkingSet::Known(prefetch) => prefetch.next(&self.layers),
        };
        let progress = slice.map_or(Ok(Progress::Done), |slice| self.fill(slice))?;
        match (progress, &mut self.working_set) {
            (Progress::Done, WorkingSet::Known(prefetch)) => {
                prefetch.served();
                if prefetch.is_over() {
                    self.working_set = WorkingSet::Unwanted;
                }
            }
            (Progress::Done, WorkingSet::Unwanted | WorkingSet::Recording(_)) => {}
            (Progress::Later, _) => self.retry_at = Some(now + PAGER_RETRY),
            (Progress::VmmEnded, _) => return Ok(Served::VmmEnded),
        }
        Ok(Served::GoesOn)
    }

    #[cfg(test)]
    pub fn is_settled(&self, page: u32) -> bool {
        self.settled.has(page)
    }

    /// The VMM has ended: what was recorded of it is worth keeping.
    pub fn finish(mut self) {
        self.stop_recording();
    }

    fn stop_recording(&mut self) {
        if let WorkingSet::Recording(recorder) = std::mem::replace(&mut self.working_set, WorkingSet::Unwanted)
            && let Err(error) = recorder.write()
        {
            // It is a hint for the next time, which can do without.
            complain(&format!("cannot write which pages were wanted: {error}"));
        }
    }
}

fn refused(what: &'static str, page: u32) -> impl FnOnce(io::Error) -> PagerError {
    move |source| PagerError::Refused { what, page, source }
}
