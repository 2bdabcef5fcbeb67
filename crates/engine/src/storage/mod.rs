//! Storage: the disks of sandboxes, as layers over shared read-only images.
//!
//! ```text
//!   template image (raw, immutable, shared) ◄── sealed layer ◄── … ◄── live disk (one sandbox writes it)
//!        Layer                                    Layer                   Disk
//! ```
//!
//! A [`Layer`] never changes. A [`Disk`] is what one VM writes; it stands on layers. [`Storage`] is the one trait, and
//! each backend offers the same verbs in the same order. Invariants:
//!
//! * no file that a VM writes is ever beneath another disk: a fork stands on what [`Storage::seal`] returned;
//! * storage never talks to a VMM: the caller freezes the VM (and has its block cache flushed) before `seal`;
//! * disk use is allocated blocks × 512, never the apparent size: these files are sparse.

mod extents;
pub mod qcow2;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use extents::{Extent, copy_sparse, data_extents};

/// How the bytes of a layer are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// The disk's bytes as they are: a template's image, or a flattened disk.
    Raw,
    /// What differs from the layers beneath, as a qcow2 overlay.
    Qcow2,
}

/// An immutable piece of a disk. A list of layers is read from the last (topmost) to the first, which is always raw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Where the layer's file is.
    pub path: PathBuf,
    /// How it is kept.
    pub format: LayerFormat,
    /// Size of the disk it describes, in bytes.
    pub size_bytes: u64,
}

/// A disk that one VM writes: a live file over immutable layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The live file.
    pub path: PathBuf,
    /// What it stands on, lowest first.
    pub layers: Vec<Layer>,
    /// Size as the guest sees it, in bytes.
    pub size_bytes: u64,
}

/// What a disk is like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiskStatus {
    /// Size as the guest sees it, in bytes.
    pub size_bytes: u64,
    /// What the live file alone takes on the host: allocated blocks × 512.
    pub own_bytes: u64,
    /// What the layers beneath take, shared with other disks on them: allocated blocks × 512.
    pub shared_bytes: u64,
}

/// Why a storage verb failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A disk must stand on something.
    #[error("a disk needs at least one layer, and the lowest one raw")]
    NoBase,
    /// A disk cannot be smaller than what it stands on.
    #[error("a disk of {wanted} bytes cannot stand on an image of {beneath} bytes; ask for at least that much")]
    SmallerThanBase {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes of the topmost layer.
        beneath: u64,
    },
    /// Somebody made a disk here already.
    #[error("there is a disk at {path} already")]
    Exists {
        /// The live file in the way.
        path: PathBuf,
    },
    /// The file system under the disks is full.
    #[error("no room to {step} {path}: the file system is full; free some space there")]
    Full {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
    },
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
    /// A layer is not what its format says.
    #[error("{path} is not a usable layer")]
    BadLayer {
        /// The layer's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: qcow2::FormatError,
    },
}

impl StorageError {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { step, path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _other_kinds => Self::Io { step, path, source },
        }
    }
}

/// What every storage backend does. All verbs block on file I/O: call them where blocking is fine.
pub trait Storage: Send + Sync {
    /// An empty live disk of `size_bytes` at `path`, over `layers`.
    fn create(&self, path: &Path, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError>;

    /// A consistent read-only copy, at `path`, of what `disk` holds above its layers. The VM must be frozen and its
    /// block cache flushed; it may go on afterwards.
    fn seal(&self, disk: &Disk, path: &Path) -> Result<Layer, StorageError>;

    /// A live disk at `path` that goes on from the topmost of `layers`, which stays as it is.
    fn restore(&self, path: &Path, layers: &[Layer]) -> Result<Disk, StorageError>;

    /// One raw, sparse image at `path` with what `layers` say together.
    fn flatten(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError>;

    /// The live file is gone afterwards; already gone is fine. Layers stay.
    fn remove(&self, disk: &Disk) -> Result<(), StorageError>;

    /// How large the disk is and what it takes on the host.
    fn status(&self, disk: &Disk) -> Result<DiskStatus, StorageError>;
}

/// What a file takes on its file system, in bytes: allocated blocks × 512.
pub fn allocated_bytes(path: &Path) -> Result<u64, StorageError> {
    let metadata = std::fs::metadata(path).map_err(StorageError::io("look at", path))?;
    Ok(metadata.blocks() * 512)
}
