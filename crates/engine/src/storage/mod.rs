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

pub mod dm;
mod extents;
mod flatten;
pub mod qcow2;
pub mod space;
#[cfg(test)]
mod suite;

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wrenn_sys::blockdev::DeviceNumber;
use wrenn_sys::{dm as mapper, loopdev};

use crate::limits;
use crate::names::DiskName;
use crate::words::words;

pub use extents::{Extent, copy_sparse, data_extents};

/// Mode of a live file; the caller gives it to the user the VMM runs as.
const LIVE_MODE: u32 = 0o600;
/// Mode of a layer: nobody writes it any more.
const SEALED_MODE: u32 = 0o400;

/// How the bytes of a layer are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// The disk's bytes as they are: a template's image, or a flattened disk.
    Raw,
    /// What differs from the layers beneath, as a qcow2 overlay.
    Qcow2,
    /// What differs from the layers beneath, as a device-mapper exception store.
    DmCow,
}

impl fmt::Display for LayerFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "a raw image",
            Self::Qcow2 => "a qcow2 overlay",
            Self::DmCow => "a device-mapper exception store",
        })
    }
}

/// What disks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Device-mapper snapshots over loop devices.
    DeviceMapper,
    /// Overlay files.
    Qcow2,
}

words!(Backend: DeviceMapper => "dm", Qcow2 => "qcow2");

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

/// Where a live disk is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The live file.
    pub path: PathBuf,
    /// Whose disk it is; what it needs on the host beside the live file is named after this.
    pub name: DiskName,
}

/// A disk that one VM writes: a live file over immutable layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Whose disk it is.
    pub name: DiskName,
    /// The live file.
    pub path: PathBuf,
    /// What it stands on, lowest first.
    pub layers: Vec<Layer>,
    /// Size as the guest sees it, in bytes.
    pub size_bytes: u64,
    /// The node of the block device that has the disk's bytes, where the kernel puts live file and layers together; the VMM
    /// opens it for reading and writing, and nothing else. `None` where the VMM puts them together itself.
    pub device: Option<PathBuf>,
}

/// Whether a disk still holds what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does.
    Sound,
    /// Writing to the live file failed at some time: the disk is lost, every access to it fails. Layers are not touched.
    Lost,
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
    /// Whether it still holds what was written to it.
    pub health: Health,
}

/// Why a storage verb failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A disk must stand on something.
    #[error("a disk needs at least one layer, and the lowest one raw")]
    NoBase,
    /// A disk stands on too much.
    #[error("a disk of {layers} layers: {} are the most; merge some of them", limits::DISK_LAYERS_MAX)]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// A layer that another backend made.
    #[error("{path} is {found}, and this disk is made of {wanted}; use the storage that made it, or flatten it there")]
    OtherBackend {
        /// The layer's file.
        path: PathBuf,
        /// What it is.
        found: LayerFormat,
        /// What it would have to be.
        wanted: LayerFormat,
    },
    /// A size that no block device has.
    #[error("{path} has {bytes} bytes, which is no whole number of sectors of 512 bytes")]
    NotSectors {
        /// The layer or live file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Device-mapper.
    #[error(transparent)]
    DeviceMapper(#[from] mapper::Error),
    /// A loop device.
    #[error(transparent)]
    Loop(#[from] loopdev::Error),
    /// A device is in use by somebody and does not get free.
    #[error("{name} is still in use after {} tries; is its VM still there?", limits::DEVICE_REMOVAL_TRIES)]
    InUse {
        /// The device-mapper device.
        name: mapper::DmName,
        /// What the kernel said.
        #[source]
        source: mapper::Error,
    },
    /// A device without a node.
    #[error("{name} has the number {device}, but /dev has no node for it; is devtmpfs mounted on /dev?")]
    NoNode {
        /// The device-mapper device.
        name: mapper::DmName,
        /// Its number.
        device: DeviceNumber,
    },
    /// The disk cannot be used any more.
    #[error("the disk {name} lost what was written to it: writing to {path} failed, maybe for want of room")]
    Lost {
        /// The device-mapper device.
        name: mapper::DmName,
        /// The live file.
        path: PathBuf,
    },
    /// Somebody else is at the same image for too long.
    #[error("{path} is being attached by somebody else for more than {} s", limits::IMAGE_LOCK_LIMIT.as_secs())]
    ImageLocked {
        /// The image.
        path: PathBuf,
    },
    /// An exception store is not what it should be.
    #[error("{path} is not a usable exception store")]
    BadStore {
        /// The layer's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: dm::StoreError,
    },
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
    /// Which backend this is.
    fn backend(&self) -> Backend;

    /// An empty live disk of `size_bytes` at `place`, over `layers`.
    fn create(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError>;

    /// The live disk that is at `place` already, as [`Storage::create`] or [`Storage::restore`] made it over `layers`: after
    /// the agent or the host was started again.
    fn open(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError>;

    /// A consistent read-only copy, at `path`, of what `disk` holds above its layers. The VM must be frozen and its
    /// block cache flushed; it may go on afterwards.
    fn seal(&self, disk: &Disk, path: &Path) -> Result<Layer, StorageError>;

    /// A live disk at `place` that goes on from the topmost of `layers`, which stays as it is.
    fn restore(&self, place: &Place, layers: &[Layer]) -> Result<Disk, StorageError>;

    /// Lets go of the live disk: what it needed on the host is gone afterwards, and the live file stays, durable, with all
    /// that was written. [`Storage::open`] takes it up again; moved away, it is a layer of [`Storage::layer_format`]. Already
    /// let go of, and moved away since, is fine. The VM must have ended.
    fn detach(&self, disk: &Disk) -> Result<(), StorageError>;

    /// How this backend's live files are kept.
    fn layer_format(&self) -> LayerFormat;

    /// One raw, sparse image at `path` with what `layers` say together.
    fn flatten(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError>;

    /// One layer of [`Storage::layer_format`] at the new file `path`, sparse and durable, with what all of `layers` but the lowest
    /// say together: over the lowest it is read as they are. So a disk stands on less, and the image is not copied. A process that
    /// is killed meanwhile leaves a file that is no layer yet.
    fn merge(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError>;

    /// The live disk and all that it needed on the host is gone afterwards; already gone is fine. Layers stay. The VM must
    /// have ended.
    fn remove(&self, disk: &Disk) -> Result<(), StorageError>;

    /// How large the disk is, what it takes on the host, and whether it is sound.
    fn status(&self, disk: &Disk) -> Result<DiskStatus, StorageError>;
}

/// The layer that a disk is seen through; the lowest must be raw, the others as `overlay` says.
fn topmost(layers: &[Layer], overlay: LayerFormat) -> Result<&Layer, StorageError> {
    let (base, overlays) = layers.split_first().ok_or(StorageError::NoBase)?;
    if base.format != LayerFormat::Raw {
        return Err(StorageError::NoBase);
    }
    if layers.len() > limits::DISK_LAYERS_MAX {
        return Err(StorageError::TooManyLayers { layers: layers.len() });
    }
    if let Some(other) = overlays.iter().find(|layer| layer.format != overlay) {
        return Err(StorageError::OtherBackend { path: other.path.clone(), found: other.format, wanted: overlay });
    }
    Ok(overlays.last().unwrap_or(base))
}

/// The layer that a disk is seen through, where none is smaller than the one beneath.
fn topmost_of_growing(layers: &[Layer], overlay: LayerFormat) -> Result<&Layer, StorageError> {
    let top = topmost(layers, overlay)?;
    layers.windows(2).try_for_each(|pair| check_size(&pair[0], pair[1].size_bytes))?;
    Ok(top)
}

fn check_size(top: &Layer, wanted: u64) -> Result<(), StorageError> {
    let beneath = top.size_bytes;
    if wanted < beneath { Err(StorageError::SmallerThanBase { wanted, beneath }) } else { Ok(()) }
}

/// Makes a live file durable; one that was moved away since was made so before.
fn sync_live_file(path: &Path) -> Result<(), StorageError> {
    match std::fs::File::open(path) {
        Ok(file) => file.sync_all().map_err(StorageError::io("sync", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io("open", path)(error)),
    }
}

fn remove_live_file(path: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a file takes on its file system, in bytes: allocated blocks × 512.
pub fn allocated_bytes(path: &Path) -> Result<u64, StorageError> {
    let metadata = std::fs::metadata(path).map_err(StorageError::io("look at", path))?;
    Ok(metadata.blocks() * 512)
}

/// What layers take together. One whose name was removed while disks stand on it counts as nothing: it is gone with them.
fn shared_bytes(layers: &[Layer]) -> Result<u64, StorageError> {
    let mut bytes = 0;
    for layer in layers {
        bytes += match std::fs::metadata(&layer.path) {
            Ok(metadata) => metadata.blocks() * 512,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(StorageError::io("look at", &layer.path)(error)),
        };
    }
    Ok(bytes)
}
