//! Layers written over one another into one raw image. No device and no helper program is needed: every format is read
//! here, so that a flatten that is killed leaves nothing but a half-made file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fsync};

use super::extents::{Extent, data_extents, remove_half_made};
use super::{Layer, LayerFormat, SEALED_MODE, StorageError, dm, qcow2};

/// Bytes moved at once when a raw image is copied.
const COPY_BYTES: usize = 1 << 20;

/// One raw, sparse image of `size_bytes` at the new file `path` with what `layers` say together, lowest first.
pub(super) fn flatten(layers: &[Layer], path: &Path, size_bytes: u64) -> Result<Layer, StorageError> {
    write_sealed(path, |target| flatten_into(layers, target, path, size_bytes))?;
    Ok(Layer { path: path.to_owned(), format: LayerFormat::Raw, size_bytes })
}

/// The new file `path`, with what `fill` writes, durable; on failure it is gone again.
pub(super) fn write_sealed(
    path: &Path,
    fill: impl FnOnce(&File) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let target = create_new(path, SEALED_MODE)?;
    let synced = || fsync(&target).map_err(|error| StorageError::io("sync", path)(error.into()));
    fill(&target).and_then(|()| synced()).map_err(|error| remove_half_made(path, error))
}

/// The new file `path`; one that is there already is not touched.
pub(super) fn create_new(path: &Path, mode: u32) -> Result<File, StorageError> {
    let created = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path);
    created.map_err(StorageError::io("create", path))
}

fn flatten_into(layers: &[Layer], target: &File, path: &Path, size_bytes: u64) -> Result<(), StorageError> {
    target.set_len(size_bytes).map_err(StorageError::io("size", path))?;
    for layer in layers {
        let source = File::open(&layer.path).map_err(StorageError::io("read", &layer.path))?;
        match layer.format {
            LayerFormat::Raw => copy_data(&source, target).map_err(StorageError::io("copy an image into", path))?,
            LayerFormat::Qcow2 => qcow2::apply(layer, source, target, path)?,
            LayerFormat::DmCow => dm::apply(layer, source, target, path)?,
        }
    }
    Ok(())
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    for Extent { start, length } in data_extents(source)? {
        let mut at = start;
        while at < start + length {
            let wanted = (start + length - at).min(COPY_BYTES as u64) as usize;
            source.read_exact_at(&mut buffer[..wanted], at)?;
            write_unless_zero(target, &buffer[..wanted], at)?;
            at += wanted as u64;
        }
    }
    Ok(())
}

/// A block of zeros over a hole stays a hole: images are full of blocks that were written once and zeroed later.
pub(super) fn write_unless_zero(target: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            target.write_all_at(block, at + 4096 * index as u64)?;
        }
    }
    Ok(())
}

/// Writes `data` over what a layer beneath said at `offset`; `length` zeros when there is none.
pub(super) fn overwrite(target: &File, offset: u64, length: u64, data: Option<&[u8]>) -> io::Result<()> {
    // What lies beneath may not be zero: the place is emptied first, then what is not zero is written.
    fallocate(target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?;
    data.map_or(Ok(()), |bytes| write_unless_zero(target, bytes, offset))
}
