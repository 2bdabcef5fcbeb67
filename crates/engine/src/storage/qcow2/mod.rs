//! Storage without device-mapper: each live disk is a qcow2 overlay that QEMU reads and writes.
//!
//! No helper program runs: an empty overlay is 256 KiB of bytes that [`mod@format`] computes, [`reader`] reads overlays back to
//! flatten them, and [`mod@merge`] writes several of them as one. QEMU is told by the caller what each overlay stands on.

mod format;
mod merge;
mod reader;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use format::FormatError;
use reader::Reader;

use super::extents::{self, copy_sparse};
use super::flatten::{create_new, flatten, overwrite, write_sealed};
use super::{
    Backend, Disk, DiskStatus, Health, LIVE_MODE, Layer, LayerFormat, Place, SEALED_MODE, Storage, StorageError,
    allocated_bytes, check_size, remove_live_file, shared_bytes, sync_live_file, topmost, topmost_of_growing,
};

/// How this backend keeps what differs from the layers beneath.
const OURS: LayerFormat = LayerFormat::Qcow2;

/// The qcow2 backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qcow2;

impl Storage for Qcow2 {
    fn backend(&self) -> Backend {
        Backend::Qcow2
    }

    fn create(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError> {
        check_size(topmost(layers, OURS)?, size_bytes)?;
        let path = &place.path;
        let file = create_new(path, LIVE_MODE)?;
        // Not synced: a disk that nobody has used yet is not worth waiting for, and a crash makes its owner sweep it.
        file.write_all_at(&format::empty_overlay(size_bytes), 0)
            .map_err(|error| extents::remove_half_made(path, StorageError::io("write", path)(error)))?;
        Ok(disk(place, layers, size_bytes))
    }

    fn open(&self, place: &Place, layers: &[Layer], size_bytes: u64) -> Result<Disk, StorageError> {
        check_size(topmost(layers, OURS)?, size_bytes)?;
        let file = File::open(&place.path).map_err(StorageError::io("open", &place.path))?;
        reader_of(&Layer { path: place.path.clone(), format: OURS, size_bytes }, file)?;
        Ok(disk(place, layers, size_bytes))
    }

    fn seal(&self, disk: &Disk, path: &Path) -> Result<Layer, StorageError> {
        copy_sparse(&disk.path, path, SEALED_MODE)?;
        Ok(Layer { path: path.to_owned(), format: LayerFormat::Qcow2, size_bytes: disk.size_bytes })
    }

    fn restore(&self, place: &Place, layers: &[Layer]) -> Result<Disk, StorageError> {
        let top = topmost(layers, OURS)?;
        match top.format {
            LayerFormat::Raw => self.create(place, layers, top.size_bytes),
            LayerFormat::Qcow2 | LayerFormat::DmCow => {
                copy_sparse(&top.path, &place.path, LIVE_MODE)?;
                Ok(disk(place, &layers[..layers.len() - 1], top.size_bytes))
            }
        }
    }

    fn detach(&self, disk: &Disk) -> Result<(), StorageError> {
        sync_live_file(&disk.path)
    }

    fn layer_format(&self) -> LayerFormat {
        OURS
    }

    fn flatten(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError> {
        flatten(layers, path, topmost(layers, OURS)?.size_bytes)
    }

    fn merge(&self, layers: &[Layer], path: &Path) -> Result<Layer, StorageError> {
        let size_bytes = topmost_of_growing(layers, OURS)?.size_bytes;
        write_sealed(path, |target| merge::merge(&layers[1..], target, path, size_bytes))?;
        Ok(Layer { path: path.to_owned(), format: OURS, size_bytes })
    }

    fn remove(&self, disk: &Disk) -> Result<(), StorageError> {
        remove_live_file(&disk.path)
    }

    fn status(&self, disk: &Disk) -> Result<DiskStatus, StorageError> {
        Ok(DiskStatus {
            size_bytes: disk.size_bytes,
            own_bytes: allocated_bytes(&disk.path)?,
            shared_bytes: shared_bytes(&disk.layers)?,
            health: Health::Sound,
        })
    }
}

/// The VMM puts live file and layers together itself.
fn disk(place: &Place, layers: &[Layer], size_bytes: u64) -> Disk {
    Disk { name: place.name.clone(), path: place.path.clone(), layers: layers.to_vec(), size_bytes, device: None }
}

/// Reads `source`, the file of `layer`, whose size must be what it says.
fn reader_of(layer: &Layer, source: File) -> Result<Reader, StorageError> {
    let bad = bad_layer(&layer.path);
    match Reader::new(source) {
        Ok(reader) if reader.size_bytes() == layer.size_bytes => Ok(reader),
        Ok(reader) => Err(bad(FormatError::Foreign { field: "disk size", found: reader.size_bytes() })),
        Err(error) => Err(bad(error)),
    }
}

fn bad_layer(path: &Path) -> impl FnOnce(FormatError) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::BadLayer { path, source }
}

/// Writes what the overlay `layer` holds over `target`, the half-made image at `path`.
pub(super) fn apply(layer: &Layer, source: File, target: &File, path: &Path) -> Result<(), StorageError> {
    let reader = reader_of(layer, source)?;
    let write = |offset, data: Option<&[u8]>| {
        let length = data.map_or(format::CLUSTER, |bytes| bytes.len() as u64);
        overwrite(target, offset, length, data).map_err(OverlayError::Write)
    };
    reader.for_each_cluster(write).map_err(|error| match error {
        OverlayError::Layer(source) => bad_layer(&layer.path)(source),
        OverlayError::Write(source) => StorageError::io("write", path)(source),
    })
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
