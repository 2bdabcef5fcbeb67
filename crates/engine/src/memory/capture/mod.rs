//! What a process that mapped a base privately has changed in it: the time during which a VM stands still.
//!
//! ```text
//!   Prepared::of       while the VM runs: room for what has changed so far, every page of it there; the data file
//!   capture            while it stands still
//!     /proc/PID/maps     where the base is mapped (one stretch or several)
//!     /proc/PID/pagemap  which pages are the process's own by now; with two threads
//!     their bytes        512 pages with one system call, wherever they lie; with two threads
//!   sort_out           while it may run again: equal to the base is inherited, zero a run of zero, all else data
//! ```
//!
//! What is too much to be held is sorted out at once: while the VM stands still. Nothing is synced here: [`Patch::seal`] does
//! that. The process must stand still from the capture's begin to its end, or the capture is of no moment at all.

mod batch;
mod pagemap;
mod process;
mod sort;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_sys::populated::Populated;

use self::batch::{BATCH_BYTES, Batch, in_batches};
use self::pagemap::Pagemap;
use self::process::Process;
use self::sort::{Sorted, Sorter};
use super::patch::Patch;
use super::runs::PAGE_BYTES;
use super::threads::{each_by_two, in_two};
use super::{Base, MemoryError, files};
use crate::limits;

/// Batches of which no more are held.
const BATCHES_HELD_MAX: usize = limits::CAPTURE_HELD_BYTES_MAX / BATCH_BYTES;

/// Batches for which there is room besides those that had changed when the capture was prepared.
const BATCHES_MORE: u64 = 2;

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
    /// There is no memory to hold what changed.
    #[error("cannot get {bytes} bytes of memory for what a process has changed")]
    NoMemory {
        /// How much was asked for.
        bytes: usize,
        /// What the host said.
        #[source]
        source: io::Error,
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

/// How long a process had to stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Finding out which pages changed.
    pub scan: Duration,
    /// Reading them.
    pub read: Duration,
    /// Sorting out what was too much to be held.
    pub spill: Duration,
    /// All of it.
    pub total: Duration,
}

/// A process whose memory is about to be captured: what can be done for that while it still runs.
#[derive(Debug)]
pub struct Prepared {
    process: Process,
    pagemap: Pagemap,
    base: Arc<Base>,
    file: File,
    path: PathBuf,
    room: Vec<Populated>,
}

impl Prepared {
    /// Gets ready to capture what process `pid`, which has mapped all of `base` privately, has changed when it stands still.
    /// That will go to the new file `data`, which is there from now on; a failure, now or then, removes it again.
    pub fn of(pid: u32, base: Arc<Base>, data: &Path) -> Result<Self, CaptureError> {
        let file = files::create_hole(data, base.bytes())?;
        let prepare = || -> Result<_, CaptureError> {
            let process = Process::open(pid)?;
            let pagemap = Pagemap::open(&process)?;
            let changed = process.changed(&base, &pagemap)?;
            Ok((process, pagemap, room_for(changed.iter().map(|stretch| stretch.bytes() as u64).sum())?))
        };
        let (process, pagemap, room) = prepare().map_err(|error| files::remove_half_made(data, error))?;
        Ok(Self { process, pagemap, base, file, path: data.to_owned(), room })
    }

    /// Captures it. Until that is sorted out, most of it is in this process's memory alone.
    pub fn capture(self) -> Result<Capture, CaptureError> {
        let path = self.path.clone();
        self.capture_now().map_err(|error| files::remove_half_made(&path, error))
    }

    fn capture_now(mut self) -> Result<Capture, CaptureError> {
        let begin = Instant::now();
        let batches = in_batches(&self.process.changed(&self.base, &self.pagemap)?);
        let scanned = Instant::now();
        let changed = batches.iter().map(Batch::pages).sum();
        let (held, rest) = self.hold(batches)?;
        let read = Instant::now();
        let spilled = self.spill(&rest)?;
        // Everything was read from one process only if that is still the one which has this pid.
        self.process.check_alive()?;
        let timings =
            Timings { scan: scanned - begin, read: read - scanned, spill: read.elapsed(), total: begin.elapsed() };
        Ok(Capture { base: self.base, file: self.file, path: self.path, changed, held, spilled, timings })
    }

    /// Reads as many batches as may be held; gives the others back.
    fn hold(&mut self, batches: Vec<Batch>) -> Result<(Vec<Held>, Vec<Batch>), CaptureError> {
        let (mut held, mut rest) = (Vec::with_capacity(batches.len().min(BATCHES_HELD_MAX)), Vec::new());
        for batch in batches {
            match self.room.pop() {
                Some(bytes) => held.push(Held { batch, bytes }),
                None if held.len() < BATCHES_HELD_MAX => held.push(Held { batch, bytes: room()? }),
                None => rest.push(batch),
            }
        }
        each_by_two(&mut held, |held| held.batch.read(&self.process, &mut held.bytes))?;
        Ok((held, rest))
    }

    /// Reads batches one by one, and sorts each out at once.
    fn spill(&self, batches: &[Batch]) -> Result<Sorted, CaptureError> {
        let mut sorted = Sorted::default();
        if batches.is_empty() {
            return Ok(sorted);
        }
        let (mut bytes, mut sorter) = (room()?, Sorter::new(&self.base, &self.file, &self.path));
        for batch in batches {
            batch.read(&self.process, &mut bytes)?;
            sorter.sort_out(batch, &bytes, &mut sorted)?;
        }
        Ok(sorted)
    }
}

/// Room for what has changed so far, and some more: more will have when the process stands still. What finds none then gets
/// its own, which takes longer.
fn room_for(bytes: u64) -> Result<Vec<Populated>, CaptureError> {
    let batches = bytes.div_ceil(BATCH_BYTES as u64).saturating_add(BATCHES_MORE).min(BATCHES_HELD_MAX as u64);
    (0..batches).map(|_| room()).collect()
}

fn room() -> Result<Populated, CaptureError> {
    Populated::of(BATCH_BYTES).map_err(|source| CaptureError::NoMemory { bytes: BATCH_BYTES, source })
}

/// A batch, and what the process had in its pages.
#[derive(Debug)]
struct Held {
    batch: Batch,
    bytes: Populated,
}

/// What a process had changed. It may go on.
#[derive(Debug)]
pub struct Capture {
    base: Arc<Base>,
    file: File,
    path: PathBuf,
    changed: u64,
    held: Vec<Held>,
    /// Of pages after those that are held.
    spilled: Sorted,
    timings: Timings,
}

impl Capture {
    /// How long it had to stand still.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Compares what it had with the base, and writes what differs to the data file; with two threads. Not durable yet.
    pub fn sort_out(self) -> Result<SortedOut, MemoryError> {
        let Self { base, file, path, changed, held, spilled, timings: _ } = self;
        let [first, second] = in_two(&held, |held| {
            let (mut sorted, mut sorter) = (Sorted::default(), Sorter::new(&base, &file, &path));
            held.iter().try_for_each(|held| sorter.sort_out(&held.batch, &held.bytes, &mut sorted))?;
            Ok(sorted)
        })?;
        let sorted = first.followed_by(second).followed_by(spilled);
        let counts = Counts {
            scanned: base.bytes() / PAGE_BYTES,
            changed,
            equal: sorted.equal,
            zero: sorted.zero,
            data: sorted.data,
        };
        let (runs, sums) = sorted.into_map(base.bytes());
        Ok(SortedOut { patch: Patch { data: file, path, runs, sums: Some(sums) }, counts })
    }
}

/// A capture that was sorted out.
#[derive(Debug)]
pub struct SortedOut {
    /// What differs from the base; not durable yet.
    pub patch: Patch,
    /// What was looked at.
    pub counts: Counts,
}

#[cfg(test)]
mod tests;
