//! What a process that mapped a base privately has changed in it: the time during which a VM stands still.
//!
//! ```text
//!   /proc/PID/maps     where the base is mapped (one stretch or several)
//!   /proc/PID/pagemap  which pages are the process's own by now
//!   their bytes        256 pages with one system call, wherever they lie
//!   compare            equal to the base: inherited │ zero: a run of zero │ else: data, for its offset in the data file
//! ```
//!
//! Nothing is synced here, most is not even written (a file system takes longer for scattered pages than all else together), and
//! nothing is looked up in the base that was not known before ([`Base`]): [`Patch::seal`] does the rest while the VM may run
//! again. The process must stand still meanwhile, or the capture is of no moment at all.

mod pagemap;
mod process;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_sys::process_memory::Span;

use self::pagemap::Pagemap;
use self::process::{Process, Region};
use super::patch::{Held, Patch};
use super::runs::{Content, PAGE_BYTES, Run, Runs, ZERO_PAGE};
use super::{Base, MemoryError, files};
use crate::limits;

/// Pages that are read with one system call: 1 MiB.
const BATCH_PAGES: usize = 256;
const BATCH_BYTES: usize = BATCH_PAGES * PAGE_BYTES as usize;

const _: () = assert!(BATCH_PAGES <= wrenn_sys::process_memory::SPANS_MAX, "each page may lie apart");

/// Why a process's memory could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The process is not there, or ended meanwhile.
    #[error("process {pid} is gone; what it had in memory is lost")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// A file under /proc says no.
    #[error("cannot read /proc/{pid}/{file}")]
    Proc {
        /// The process.
        pid: u32,
        /// The file.
        file: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its memory cannot be read.
    #[error("cannot read the memory of process {pid}; that takes the right to trace it (CAP_SYS_PTRACE)")]
    Read {
        /// The process.
        pid: u32,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The base is not mapped, or not all of it, or some of it twice.
    #[error("process {pid} has not mapped {base} exactly once, writable and privately: byte {offset} is {what}")]
    Mapping {
        /// The process.
        pid: u32,
        /// The base.
        base: PathBuf,
        /// The first byte for which that is not so.
        offset: u64,
        /// What it is instead.
        what: &'static str,
    },
    /// The base cannot be read, or the patch not be written.
    #[error(transparent)]
    File(#[from] MemoryError),
}

/// What was looked at, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of the memory.
    pub scanned: u64,
    /// That are the process's own by now.
    pub changed: u64,
    /// Of these, equal to the base: inherited.
    pub equal: u64,
    /// Zero, where the base is not.
    pub zero: u64,
    /// Kept as data.
    pub data: u64,
}

/// How long each part took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Finding out which pages changed.
    pub scan: Duration,
    /// Reading them.
    pub read: Duration,
    /// Comparing them with the base.
    pub compare: Duration,
    /// Writing what was too much to be held back.
    pub write: Duration,
    /// All of it.
    pub total: Duration,
}

/// A capture.
#[derive(Debug)]
pub struct Capture {
    /// What differs from the base; not durable yet.
    pub patch: Patch,
    /// What was looked at.
    pub counts: Counts,
    /// How long it took.
    pub timings: Timings,
}

/// Captures what process `pid`, which stands still and has mapped all of `base` privately, has changed. The data goes to the
/// new file `data`, which is removed again on failure. Until the patch is sealed, part of it is in this process's memory alone.
pub fn capture(pid: u32, base: &Base, data: &Path) -> Result<Capture, CaptureError> {
    let begin = Instant::now();
    let file = files::create_hole(data, base.bytes())?;
    let captured = capture_to(pid, base, &file, data).map_err(|error| files::remove_half_made(data, error))?;
    let Captured { runs, held, counts, mut timings } = captured;
    timings.total = begin.elapsed();
    Ok(Capture { patch: Patch { data: file, path: data.to_owned(), runs, held }, counts, timings })
}

struct Captured {
    runs: Runs,
    held: Vec<Held>,
    counts: Counts,
    timings: Timings,
}

fn capture_to(pid: u32, base: &Base, file: &File, path: &Path) -> Result<Captured, CaptureError> {
    let process = Process::open(pid)?;
    let regions = process.regions_of(base)?;
    let mut pagemap = Pagemap::open(&process)?;
    let mut collector = Collector::new(&process, base, file, path);
    for region in regions {
        let begin = Instant::now();
        let changed = pagemap.changed(&process, region)?;
        collector.timings.scan += begin.elapsed();
        collector.counts.scanned += u64::from(region.pages);
        for stretch in changed {
            collector.add(region, stretch)?;
        }
    }
    collector.flush()?;
    // Everything was read from one process only if that is still the one which has this pid.
    process.check_alive()?;
    let Collector { runs, held, counts, timings, .. } = collector;
    Ok(Captured { runs, held, counts, timings })
}

/// Adjacent pages of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    first: u32,
    count: u32,
}

/// Collects changed pages until a batch is full, and sorts it out then.
struct Collector<'a> {
    process: &'a Process,
    base: &'a Base,
    file: &'a File,
    path: &'a Path,
    /// What is to be read next: as pages of the memory, and where they are in the process.
    stretches: Vec<Stretch>,
    spans: Vec<Span>,
    pages: usize,
    now: Held,
    before: Vec<u8>,
    runs: Runs,
    held: Vec<Held>,
    counts: Counts,
    timings: Timings,
}

impl<'a> Collector<'a> {
    fn new(process: &'a Process, base: &'a Base, file: &'a File, path: &'a Path) -> Self {
        Self {
            process,
            base,
            file,
            path,
            stretches: Vec::with_capacity(BATCH_PAGES),
            spans: Vec::with_capacity(BATCH_PAGES),
            pages: 0,
            now: Held::empty(BATCH_BYTES),
            before: vec![0; BATCH_BYTES],
            runs: Runs::new(base.bytes()),
            held: Vec::new(),
            counts: Counts::default(),
            timings: Timings::default(),
        }
    }

    /// Adds pages that changed.
    fn add(&mut self, region: Region, mut stretch: Stretch) -> Result<(), CaptureError> {
        self.counts.changed += u64::from(stretch.count);
        while stretch.count > 0 {
            let count = stretch.count.min((BATCH_PAGES - self.pages) as u32);
            let bytes = count as usize * PAGE_BYTES as usize;
            self.stretches.push(Stretch { first: stretch.first, count });
            self.spans.push(Span { address: region.address_of(stretch.first), bytes });
            self.pages += count as usize;
            stretch = Stretch { first: stretch.first + count, count: stretch.count - count };
            if self.pages == BATCH_PAGES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Reads what was added, sorts it out, and keeps the data.
    fn flush(&mut self) -> Result<(), CaptureError> {
        if self.pages == 0 {
            return Ok(());
        }
        let begin = Instant::now();
        self.process.read(&self.spans, &mut self.now.bytes[..self.pages * PAGE_BYTES as usize])?;
        let read = Instant::now();
        let mut at = 0;
        for stretch in std::mem::take(&mut self.stretches) {
            let bytes = stretch.count as usize * PAGE_BYTES as usize;
            self.sort_out(stretch, at..at + bytes)?;
            at += bytes;
        }
        let compared = Instant::now();
        self.keep()?;
        self.timings.read += read - begin;
        self.timings.compare += compared - read;
        self.timings.write += compared.elapsed();
        self.spans.clear();
        self.pages = 0;
        Ok(())
    }

    /// Compares adjacent pages, whose bytes are at `place` of the batch, with the base.
    fn sort_out(&mut self, stretch: Stretch, place: Range<usize>) -> Result<(), MemoryError> {
        let (offset, bytes) = (u64::from(stretch.first) * PAGE_BYTES, place.len());
        let before = if self.base.is_hole(offset, bytes as u64) {
            None
        } else {
            self.base.read(offset, &mut self.before[..bytes])?;
            Some(&self.before[..bytes])
        };
        for page in 0..stretch.count {
            let at = place.start + page as usize * PAGE_BYTES as usize;
            let in_stretch = at - place.start..at - place.start + PAGE_BYTES as usize;
            let before = before.map_or(&ZERO_PAGE[..], |before| &before[in_stretch]);
            let content = content(&self.now.bytes[at..at + PAGE_BYTES as usize], before);
            match content {
                None => self.counts.equal += 1,
                Some(Content::Zero) => self.counts.zero += 1,
                Some(Content::Data) => {
                    self.counts.data += 1;
                    self.now.add(u64::from(stretch.first + page) * PAGE_BYTES, at, PAGE_BYTES as usize);
                }
            }
            if let Some(content) = content {
                self.runs.push(Run { first: stretch.first + page, count: 1, content });
            }
        }
        Ok(())
    }

    /// Holds the batch's data back, or writes it if that is too much.
    fn keep(&mut self) -> Result<(), MemoryError> {
        if (self.held.len() + 1) * BATCH_BYTES <= limits::CAPTURE_HELD_BYTES_MAX {
            self.held.push(std::mem::replace(&mut self.now, Held::empty(BATCH_BYTES)));
            return Ok(());
        }
        self.now.write(self.file).map_err(MemoryError::io("write", self.path))?;
        self.now.clear();
        Ok(())
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

#[cfg(test)]
mod tests;
