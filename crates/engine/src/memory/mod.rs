//! What a VM's memory held when it was captured, kept as files. Knows files and a pid, nothing of VMMs.
//!
//! ```text
//!             capture of a process, or a VMM's own diff
//!                        │ data, runs                       sealed: durable, with checksums
//!   base ◄── fold ── patch (data file + map)                one per base at most
//!    │
//!    └── mapped privately by the next VM, which never writes to it
//! ```
//!
//! - A **base** ([`Base`]) is a raw, sparse file of exactly the memory's size; a hole is zero. It is never written while a VM
//!   maps it, not even privately: such a mapping shows later writes in pages that it has not touched itself.
//! - A **patch** ([`Patch`]) says what differs from the base: a sparse data file of the same size, and a list of [`Run`]s of
//!   pages that are *data* or *zero*. A page in no run is *inherited*. That a page reads as zero, or is a hole, never stands for
//!   "unchanged": a page that was something in the base and was zeroed since must come back as zero.
//! - [`fold`](fold()) writes a patch into its base, as a redo log is applied: done twice it does no harm, and one that was cut off
//!   is finished by the next. It is for bases of one owner; [`fold_copy`] makes a new base where several share one.
//! - [`on_demand`](on_demand()) makes a table of a base and the patches over it, for who serves pages to a VM instead of mapping
//!   a file. It needs no fold.
//! - Everything has checksums ([`Checksums`]), and nothing is changed before what it is made from was checked. Damage is refused
//!   by the file's name and the place in it.
//!
//! The files of one capture are in one folder ([`Files`]), whose owner has a lock: one writer at a time is taken for granted here.

mod base;
mod capture;
mod checksums;
mod compose;
mod files;
mod fold;
mod format;
mod on_demand;
mod patch;
mod runs;
mod threads;
mod verified;

use std::io;
use std::path::{Path, PathBuf};

pub use base::{Base, seal_base};
pub use capture::{Capture, CaptureError, Counts, Prepared, SortedOut, Timings};
pub use checksums::{CHUNK_BYTES, Checksums, verify};
pub use files::Files;
pub use fold::{Folded, fold, fold_copy, merge};
pub use format::{FormatError, PatchId};
pub use on_demand::{OnDemand, on_demand};
pub use patch::{Patch, SealedPatch};
pub use runs::{Content, PAGE_BYTES, Run, Runs};
pub use verified::{Checked, Identity, Verified};

/// Why what a VM's memory held cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused a file operation.
    #[error("cannot {step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file system is full.
    #[error("no room to {step} {path}: the file system is full; free some space there")]
    Full {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
    },
    /// A file is in the way.
    #[error("there is a file at {path} already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file's content is not what was written.
    #[error("{path} is damaged at byte {offset}: what it holds from there on is not what was written")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the first chunk that differs begins.
        offset: u64,
    },
    /// A file is longer or shorter than what it belongs to.
    #[error("{path} has {found} bytes and not {wanted}; it was cut short, or belongs to another memory")]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// What they should be.
        wanted: u64,
    },
    /// A file of checksums or runs cannot be believed.
    #[error("{path} cannot be used")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// Others use the same base.
    #[error("{path} has {links} names: others stand on it, so it must not be changed; make a copy")]
    Shared {
        /// The base.
        path: PathBuf,
        /// Its hard links.
        links: u64,
    },
    /// A fold began and its patch is gone.
    #[error("{marker} says that a patch is being written into the base, but {patch} is gone; the base is half written")]
    PatchGone {
        /// The marker.
        marker: PathBuf,
        /// The part of the patch that is missing.
        patch: PathBuf,
    },
    /// A fold began with another patch than the one that is there.
    #[error("{marker} says that another patch than {patch} is being written into the base; the base is half written")]
    OtherPatch {
        /// The marker.
        marker: PathBuf,
        /// The patch's map.
        patch: PathBuf,
    },
    /// Holes cannot tell what changed.
    #[error(
        "the file system of {path} has blocks of {block_bytes} bytes, larger than a page: holes do not tell which \
             pages changed there; keep sandboxes on one with blocks of {PAGE_BYTES}"
    )]
    LargeBlocks {
        /// The file.
        path: PathBuf,
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A patch needs its base.
    #[error("{path} does not hold all of the memory by itself: it was taken over a base that is not empty")]
    NotWhole {
        /// The patch's data.
        path: PathBuf,
    },
}

impl MemoryError {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { step, path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _other_kinds => Self::Io { step, path, source },
        }
    }

    fn bad_file(path: &Path) -> impl FnOnce(FormatError) -> Self {
        let path = path.to_owned();
        move |source| Self::BadFile { path, source }
    }
}

#[cfg(test)]
mod tests;
