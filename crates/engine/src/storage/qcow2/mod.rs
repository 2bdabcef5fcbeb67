//! Storage without device-mapper: each live disk is a qcow2 overlay that QEMU reads and writes.
//!
//! No helper program runs: an empty overlay is 256 KiB of bytes that [`mod@format`] computes, and [`reader`] reads overlays
//! back to flatten them. QEMU is told by the caller what each overlay stands on.

mod format;
mod reader;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::fsync;

pub use format::FormatError;
use reader::Reader;

use super::extents::{self, Extent, copy_sparse, data_extents};
use super::{Disk, DiskStatus, Layer, LayerFormat, Storage, StorageError, allocated_bytes};

/// Mode of a live file; the caller gives it to the user the VMM runs as.
const LIVE_MODE: u32 = 0o600;
/// Mode of a layer: nobody writes it any more.
const SEALED_MODE: u32 = 0o400;
/// Bytes moved at once when a raw image is copied.
const COPY_BYTES: usize = 1 << 20;

/// The qcow2 backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qcow2;

impl Storage for Qcow2 {
    fn create(&self, path: &Path, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError> {
        let beneath = topmost(layers)?.size_bytes;
        if size_bytes < beneath {
            return Err(StorageError::SmallerThanBase { wanted: size_bytes, beneath });
        }
        let file = create_new(path, LIVE_MODE)?;
        // Not synced: a disk that nobody has used yet is not worth waiting for, and a crash makes its owner sweep it.
        file.write_all_at(&format::empty_overlay(size_bytes), 0)
            .map_err(|error| extents::remove_half_made(path, StorageError::io("write", path)(error)))?;
        Ok(Disk { path: path.to_owned(), layers: layers.to_vec(), size_bytes })
    }

    fn seal(&self, disk: &Disk, path: &Path) -> Result<Layer, StorageError> {
        copy_sparse(&disk.path, path, SEALED_MODE)?;
        Ok(Layer { path: path.to_owned(), format: LayerFormat::Qcow2, size_bytes: disk.size_bytes })
    }

    fn restore(&self, path: &Path, layers: &[Layer]) -> Result<Disk, StorageError> {
        let top = topmost(layers)?;
        match top.format {
            LayerFormat::Raw => self.create(path, layers, top.size_bytes),
            LayerFormat::Qcow2 => {
                copy_sparse(&top.path, path, LIVE_MODE)?;
                let beneath = layers[..layers.len() - 1].to_vec();
                Ok(Disk { path: path.to_owned(), layers: beneath, size_bytes: top.size_bytes })
            }
        }
    }

    fn flatten(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError> {
        let size_bytes = topmost(layers)?.size_bytes;
        let target = create_new(path, SEALED_MODE)?;
        flatten_into(layers, &target, path, size_bytes).map_err(|error| extents::remove_half_made(path, error))?;
        Ok(Layer { path: path.to_owned(), format: LayerFormat::Raw, size_bytes })
    }

    fn remove(&self, disk: &Disk) -> Result<(), StorageError> {
        match std::fs::remove_file(&disk.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StorageError::io("remove", &disk.path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn status(&self, disk: &Disk) -> Result<DiskStatus, StorageError> {
        let shared = disk.layers.iter().map(|layer| allocated_bytes(&layer.path)).sum::<Result<u64, _>>()?;
        Ok(DiskStatus { size_bytes: disk.size_bytes, own_bytes: allocated_bytes(&disk.path)?, shared_bytes: shared })
    }
}

/// The layer that a disk is seen through; the lowest must be raw, the others overlays.
fn topmost(layers: &[Layer]) -> Result<&Layer, StorageError> {
    let overlays = layers.get(1..).ok_or(StorageError::NoBase)?;
    let well_formed =
        layers[0].format == LayerFormat::Raw && overlays.iter().all(|layer| layer.format == LayerFormat::Qcow2);
    if !well_formed {
        return Err(StorageError::NoBase);
    }
    layers.last().ok_or(StorageError::NoBase)
}

fn create_new(path: &Path, mode: u32) -> Result<File, StorageError> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(StorageError::io("create", path))
}

/// Writes the layers over one another, lowest first, holes left as holes.
fn flatten_into(layers: &[Layer], target: &File, path: &Path, size_bytes: u64) -> Result<(), StorageError> {
    target.set_len(size_bytes).map_err(StorageError::io("size", path))?;
    for layer in layers {
        let source = File::open(&layer.path).map_err(StorageError::io("read", &layer.path))?;
        match layer.format {
            LayerFormat::Raw => copy_data(&source, target, path)?,
            LayerFormat::Qcow2 => apply_overlay(layer, source, target, path)?,
        }
    }
    fsync(target).map_err(|error| StorageError::io("sync", path)(error.into()))
}

fn copy_data(source: &File, target: &File, path: &Path) -> Result<(), StorageError> {
    let mut buffer = vec![0; COPY_BYTES];
    let copy = |Extent { start, length }: Extent, buffer: &mut Vec<u8>| -> io::Result<()> {
        let mut at = start;
        while at < start + length {
            let wanted = (start + length - at).min(COPY_BYTES as u64) as usize;
            source.read_exact_at(&mut buffer[..wanted], at)?;
            write_unless_zero(target, &buffer[..wanted], at)?;
            at += wanted as u64;
        }
        Ok(())
    };
    data_extents(source)
        .and_then(|extents| extents.into_iter().try_for_each(|extent| copy(extent, &mut buffer)))
        .map_err(StorageError::io("copy an image into", path))
}

/// A block of zeros over a hole stays a hole: images are full of blocks that were written once and zeroed later.
fn write_unless_zero(target: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            target.write_all_at(block, at + 4096 * index as u64)?;
        }
    }
    Ok(())
}

fn apply_overlay(layer: &Layer, source: File, target: &File, path: &Path) -> Result<(), StorageError> {
    let bad = |source| StorageError::BadLayer { path: layer.path.clone(), source };
    let reader = Reader::new(source).map_err(bad)?;
    if reader.size_bytes() != layer.size_bytes {
        return Err(bad(FormatError::Foreign { field: "disk size", found: reader.size_bytes() }));
    }
    reader.for_each_cluster(|offset, data| write_cluster(target, offset, data).map_err(OverlayError::Write)).map_err(
        |error| match error {
            OverlayError::Layer(source) => bad(source),
            OverlayError::Write(source) => StorageError::io("write", path)(source),
        },
    )
}

fn write_cluster(target: &File, offset: u64, data: Option<&[u8]>) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let length = data.map_or(format::CLUSTER, |bytes| bytes.len() as u64);
    // What lies beneath may not be zero: the place is emptied first, then what is not zero is written.
    fallocate(target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?;
    data.map_or(Ok(()), |bytes| write_unless_zero(target, bytes, offset))
}

enum OverlayError {
    Layer(FormatError),
    Write(io::Error),
}

impl From<FormatError> for OverlayError {
    fn from(source: FormatError) -> Self {
        Self::Layer(source)
    }
}

#[cfg(test)]
mod tests;
