//! Several exception stores as one: what the topmost of them says of a chunk counts.
//!
//! A store lists its chunks in no order, so the disk is gone through in windows: for each, all lists are read, which are a
//! 256th of what they are lists of, and then the chunks that lie in it. So the memory this takes is bounded, whatever the size
//! of the disk, and the chunks of the new store are in the order of the disk.

use std::fs::File;
use std::io;
use std::path::Path;

use super::store::{CHUNK_BYTES, StoreError, StoreReader, StoreWriter};
use super::{bad_store, plan};
use crate::storage::{Layer, StorageError};

/// Chunks of a disk that are looked at together: 16 GiB of it, in 64 MiB of memory.
const WINDOW_CHUNKS: u64 = 4 << 20;

/// Where a chunk's bytes are.
#[derive(Clone, Copy)]
struct Found {
    /// Index of the store.
    store: u32,
    /// Chunk of that store; 0, the header, where no store has it.
    chunk: u64,
}

const NOWHERE: Found = Found { store: 0, chunk: 0 };

/// Writes into `target`, the new file at `path`, what the exception stores `layers` (lowest first) say together of a disk of
/// `size_bytes`. Not durable yet.
pub(super) fn merge(layers: &[Layer], target: &File, path: &Path, size_bytes: u64) -> Result<(), StorageError> {
    merge_in_windows(layers, target, path, size_bytes, WINDOW_CHUNKS)
}

fn merge_in_windows(
    layers: &[Layer],
    target: &File,
    path: &Path,
    size_bytes: u64,
    window_chunks: u64,
) -> Result<(), StorageError> {
    let failed = |step| move |error: io::Error| StorageError::io(step, path)(error);
    target.set_len(plan::store_bytes(size_bytes)).map_err(failed("size"))?;
    let stores = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut writer = StoreWriter::new(target);
    let chunks = size_bytes.div_ceil(CHUNK_BYTES);
    let mut window = vec![NOWHERE; chunks.min(window_chunks) as usize];
    for first in (0..chunks).step_by(window_chunks as usize) {
        look_up(layers, &stores, &mut window, first)?;
        for (found, disk) in window.iter().zip(first..).filter(|(found, _)| found.chunk != 0) {
            let index = found.store as usize;
            let mut bytes = [0; CHUNK_BYTES as usize];
            let read = stores[index].read_chunk(&mut bytes, disk, found.chunk);
            // What follows the end of a smaller disk is zero for those above, whatever the store has there.
            bytes[read.map_err(bad_store(&layers[index].path))?..].fill(0);
            writer.add(disk, &bytes).map_err(failed("write"))?;
        }
    }
    writer.finish().map_err(failed("write"))
}

fn open(layer: &Layer) -> Result<StoreReader, StorageError> {
    let file = File::open(&layer.path).map_err(StorageError::io("read", &layer.path))?;
    StoreReader::new(file, layer.size_bytes).map_err(bad_store(&layer.path))
}

/// Finds the topmost store for each chunk of the disk from `first` on.
fn look_up(layers: &[Layer], stores: &[StoreReader], window: &mut [Found], first: u64) -> Result<(), StorageError> {
    window.fill(NOWHERE);
    for (index, (layer, store)) in layers.iter().zip(stores).enumerate() {
        let visit = |disk: u64, chunk| {
            let place = disk.checked_sub(first).and_then(|place| window.get_mut(usize::try_from(place).ok()?));
            if let Some(found) = place {
                *found = Found { store: index as u32, chunk };
            }
            Ok::<(), StoreError>(())
        };
        store.for_each_exception(visit).map_err(bad_store(&layer.path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::LayerFormat;

    /// Chunks of a disk, and a byte that fills each.
    type Chunks = BTreeMap<u64, u8>;

    fn layer(dir: &Path, name: usize, size_bytes: u64, chunks: &Chunks) -> Layer {
        let path = dir.join(name.to_string());
        let file = File::create_new(&path).unwrap();
        file.set_len(plan::store_bytes(size_bytes)).unwrap();
        let mut writer = StoreWriter::new(&file);
        // In another order than that of the disk.
        chunks.iter().rev().for_each(|(chunk, byte)| writer.add(*chunk, &[*byte; CHUNK_BYTES as usize]).unwrap());
        writer.finish().unwrap();
        Layer { path, format: LayerFormat::DmCow, size_bytes }
    }

    fn chunks(path: &PathBuf, size_bytes: u64) -> Chunks {
        let mut found = Chunks::new();
        let reader = StoreReader::new(File::open(path).unwrap(), size_bytes).unwrap();
        let visit = |offset: u64, bytes: &[u8]| {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            assert_eq!(found.insert(offset / CHUNK_BYTES, bytes[0]), None, "a chunk that is there twice");
            Ok::<(), StoreError>(())
        };
        reader.for_each_chunk(visit).unwrap();
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        /// Whatever stores say, also of disks that grew, and wherever windows begin.
        #[test]
        fn the_topmost_counts(
            says in prop::collection::vec(prop::collection::btree_map(0u64..600, 0u8..4, 0..400), 0..5),
            window in 1u64..700,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut layers = Vec::new();
            let mut model = Chunks::new();
            for (index, says) in says.iter().enumerate() {
                layers.push(layer(dir.path(), index, (600 + index as u64) * CHUNK_BYTES, says));
                model.extend(says);
            }
            let size_bytes = 700 * CHUNK_BYTES;
            let path = dir.path().join("merged");
            let target = File::create_new(&path).unwrap();
            merge_in_windows(&layers, &target, &path, size_bytes, window).unwrap();
            prop_assert_eq!(chunks(&path, size_bytes), model);
        }
    }

    #[test]
    fn what_follows_the_end_of_a_smaller_disk_is_zero() {
        let dir = tempfile::tempdir().unwrap();
        // The kernel copies whole chunks; this disk ends in the middle of its last one.
        let small = layer(dir.path(), 0, 3 * CHUNK_BYTES + 512, &Chunks::from([(3, 7)]));
        let path = dir.path().join("merged");
        let target = File::create_new(&path).unwrap();
        merge(&[small], &target, &path, 4 * CHUNK_BYTES).unwrap();
        let reader = StoreReader::new(File::open(&path).unwrap(), 4 * CHUNK_BYTES).unwrap();
        let mut seen = Vec::new();
        let visit = |_, bytes: &[u8]| {
            seen.extend_from_slice(bytes);
            Ok::<(), StoreError>(())
        };
        reader.for_each_chunk(visit).unwrap();
        assert_eq!(seen, [vec![7; 512], vec![0; CHUNK_BYTES as usize - 512]].concat());
    }
}
