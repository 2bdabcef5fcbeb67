//! Several overlays as one: what the topmost of them says of a cluster counts.
//!
//! ```text
//!   header │ L1 table │ clusters of data, and after those of each 512 MiB of disk their L2 table │ refcount blocks │ refcount table
//! ```
//!
//! Written from front to back, but for L1 table and header, which come last: one that was cut off is no overlay. Every cluster
//! of the file is used once. One L2 table of each overlay is held at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::format::{self, CLUSTER, Cluster, Places};
use super::reader::Reader;
use super::{bad_layer, reader_of};
use crate::storage::flatten::write_unless_zero;
use crate::storage::{Layer, StorageError};

/// Entries of one table.
const TABLE_ENTRIES: u64 = CLUSTER / 8;
/// Refcounts of one block, 2 bytes each.
const BLOCK_ENTRIES: u64 = CLUSTER / 2;

/// Writes into `target`, the new file at `path`, what the overlays `layers` (lowest first) say together of a disk of
/// `size_bytes`. Not durable yet.
pub(super) fn merge(layers: &[Layer], target: &File, path: &Path, size_bytes: u64) -> Result<(), StorageError> {
    let readers = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let failed = |error| StorageError::io("write", path)(error);
    let mut writer = Writer::new(target, size_bytes);
    for index in 0..format::l1_entries(size_bytes) {
        let said = topmost(layers, &readers, index)?;
        let mut entries = vec![0; TABLE_ENTRIES as usize];
        for (said, entry) in said.into_iter().zip(&mut entries) {
            *entry = match said {
                Said::Nothing => 0,
                Said::Zero => format::ZERO_ENTRY,
                Said::Data { layer, cluster, at } => {
                    let mut bytes = vec![0; CLUSTER as usize];
                    // What follows the end of a smaller disk is zero for those above.
                    readers[layer].read_cluster(&mut bytes, cluster, at).map_err(bad_layer(&layers[layer].path))?;
                    writer.data(&bytes).map_err(failed)?
                }
            };
        }
        writer.table(index, &entries).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

fn open(layer: &Layer) -> Result<Reader, StorageError> {
    reader_of(layer, File::open(&layer.path).map_err(StorageError::io("read", &layer.path))?)
}

/// What the topmost overlay that says anything of a cluster says.
#[derive(Clone, Copy)]
enum Said {
    Nothing,
    Zero,
    Data {
        /// Index of the overlay.
        layer: usize,
        /// Cluster of the disk.
        cluster: u64,
        /// Where its bytes are in the overlay's file.
        at: u64,
    },
}

/// For each cluster of the L2 table with this index.
fn topmost(layers: &[Layer], readers: &[Reader], index: u64) -> Result<Vec<Said>, StorageError> {
    let mut said = vec![Said::Nothing; TABLE_ENTRIES as usize];
    for (layer, reader) in readers.iter().enumerate() {
        for (cluster, place) in reader.places(index).map_err(bad_layer(&layers[layer].path))? {
            let of_cluster = &mut said[(cluster % TABLE_ENTRIES) as usize];
            match place {
                Cluster::Beneath => {}
                Cluster::Zero => *of_cluster = Said::Zero,
                Cluster::At(at) => *of_cluster = Said::Data { layer, cluster, at },
            }
        }
    }
    Ok(said)
}

/// An overlay that is being written.
struct Writer<'a> {
    file: &'a File,
    size_bytes: u64,
    l1: Vec<u64>,
    /// The first cluster of the file that is free.
    next: u64,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, size_bytes: u64) -> Self {
        let l1 = vec![0; format::l1_entries(size_bytes) as usize];
        Self { file, size_bytes, l1, next: 1 + format::l1_clusters(size_bytes) }
    }

    /// Adds a cluster of data; answers its entry. Zeroes take no room.
    fn data(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(format::ZERO_ENTRY);
        }
        let offset = self.take(1);
        write_unless_zero(self.file, bytes, offset)?;
        Ok(format::pointer(offset))
    }

    /// Adds an L2 table, unless it says nothing.
    fn table(&mut self, index: u64, entries: &[u64]) -> io::Result<()> {
        if entries.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let offset = self.take(1);
        self.l1[index as usize] = format::pointer(offset);
        self.file.write_all_at(&format::table_bytes(entries.iter().copied()), offset)
    }

    /// Makes it an overlay.
    fn finish(mut self) -> io::Result<()> {
        let (blocks, table_clusters) = refcount_clusters(self.next);
        let (first_block, table) = (self.take(blocks), self.take(table_clusters));
        // The file has all of its clusters, holes where they are zero.
        self.file.set_len(self.next * CLUSTER)?;
        let refcounts: Vec<u8> = (0..self.next).flat_map(|_| 1u16.to_be_bytes()).collect();
        self.file.write_all_at(&refcounts, first_block)?;
        let pointers = (0..blocks).map(|block| first_block + block * CLUSTER);
        self.file.write_all_at(&format::table_bytes(pointers), table)?;
        self.file.write_all_at(&format::table_bytes(self.l1), CLUSTER)?;
        let places = Places { l1: CLUSTER, refcount_table: table, refcount_table_clusters: table_clusters };
        self.file.write_all_at(&format::header_of(self.size_bytes, places), 0)
    }

    /// The next clusters of the file; answers where they begin.
    fn take(&mut self, clusters: u64) -> u64 {
        let offset = self.next * CLUSTER;
        self.next += clusters;
        offset
    }
}

/// Refcount blocks, and clusters of the table of them, of a file that has `used` clusters without these.
fn refcount_clusters(used: u64) -> (u64, u64) {
    let mut blocks = 1_u64;
    loop {
        let table = blocks.div_ceil(TABLE_ENTRIES);
        let needed = (used + blocks + table).div_ceil(BLOCK_ENTRIES);
        if needed <= blocks {
            return (blocks, table);
        }
        blocks = needed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_count_themselves() {
        for used in [1, 4, BLOCK_ENTRIES - 2, BLOCK_ENTRIES - 1, BLOCK_ENTRIES, 100 * BLOCK_ENTRIES, 16 << 20] {
            let (blocks, table) = refcount_clusters(used);
            assert!(used + blocks + table <= blocks * BLOCK_ENTRIES && blocks <= table * TABLE_ENTRIES, "{used}");
        }
        assert_eq!(refcount_clusters(BLOCK_ENTRIES - 2), (1, 1));
        assert_eq!(refcount_clusters(BLOCK_ENTRIES - 1), (2, 1));
    }
}
