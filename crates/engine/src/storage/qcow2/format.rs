//! The part of the qcow2 format that Wrenn's overlays use, as pure code.
//!
//! Overlays are version 3, 64 KiB clusters, 16-bit refcounts; no compression, encryption, internal snapshots, external
//! data file, and no backing name: what lies beneath is told to QEMU on its command line, so that a path in a file that
//! a VMM writes is never believed. Source of the layout: QEMU's docs/interop/qcow2.

/// log2 of the cluster size.
pub const CLUSTER_BITS: u32 = 16;
/// Bytes in a cluster.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
const HEADER_BYTES: u32 = 104;
const REFCOUNT_ORDER: u32 = 4;
/// Disk bytes that one L2 table (one cluster of 8-byte entries) describes: 512 MiB.
const L2_SPAN: u64 = CLUSTER / 8 * CLUSTER;

/// Set where a cluster has one reference: it is written in place.
const COPIED: u64 = 1 << 63;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L2_COMPRESSED: u64 = 1 << 62;
const L2_ZERO: u64 = 1;

/// Why a file is not an overlay of ours.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Too short, or without qcow2's magic.
    #[error("it has no qcow2 header; was it cut short?")]
    NotQcow2,
    /// A feature that our overlays never use.
    #[error("its {field} is {found}, which no overlay made here has; it was changed from outside")]
    Foreign {
        /// The header's field.
        field: &'static str,
        /// What it says.
        found: u64,
    },
    /// A table points outside of the file or at a place where no cluster begins.
    #[error("its {table} points to byte {offset}, outside of the file; it is corrupt")]
    BadPointer {
        /// The table.
        table: &'static str,
        /// Where it points.
        offset: u64,
    },
    /// A cluster is compressed.
    #[error("its cluster {cluster} is compressed, which no overlay made here is")]
    Compressed {
        /// Index of the cluster on the disk.
        cluster: u64,
    },
    /// Reading failed.
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
}

/// What a header says, after it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the disk, in bytes.
    pub size_bytes: u64,
    /// Where the L1 table is in the file, in bytes.
    pub l1_offset: u64,
    /// Entries in the L1 table.
    pub l1_entries: u64,
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// In the layer beneath.
    Beneath,
    /// All zero.
    Zero,
    /// In this file, at this byte.
    At(u64),
}

/// Where the tables of an overlay are, in bytes of the file.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The L1 table.
    pub l1: u64,
    /// The table of refcount blocks.
    pub refcount_table: u64,
    /// Its length.
    pub refcount_table_clusters: u64,
}

/// Entries of the L1 table of a disk of `size_bytes`.
pub fn l1_entries(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(L2_SPAN)
}

/// Clusters that the L1 table takes.
pub fn l1_clusters(size_bytes: u64) -> u64 {
    (l1_entries(size_bytes) * 8).div_ceil(CLUSTER).max(1)
}

/// The header of an overlay of `size_bytes`.
pub fn header_of(size_bytes: u64, places: Places) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..4].copy_from_slice(&MAGIC);
    put32(&mut header, 4, VERSION);
    put32(&mut header, 20, CLUSTER_BITS);
    put64(&mut header, 24, size_bytes);
    put32(&mut header, 36, l1_entries(size_bytes) as u32);
    put64(&mut header, 40, places.l1);
    put64(&mut header, 48, places.refcount_table);
    put32(&mut header, 56, places.refcount_table_clusters as u32);
    put32(&mut header, 96, REFCOUNT_ORDER);
    put32(&mut header, 100, HEADER_BYTES);
    header
}

/// A table entry that points to a cluster of the file that nothing else points to.
pub fn pointer(offset: u64) -> u64 {
    offset | COPIED
}

/// The entry of an L2 table for a cluster that is all zero, whatever lies beneath.
pub const ZERO_ENTRY: u64 = L2_ZERO;

/// The bytes of a table.
pub fn table_bytes(entries: impl IntoIterator<Item = u64>) -> Vec<u8> {
    entries.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// The bytes of an overlay of `size_bytes` in which nothing was written yet: header, refcount table, one refcount
/// block, L1 table. 4 clusters for disks up to 4 TiB.
pub fn empty_overlay(size_bytes: u64) -> Vec<u8> {
    let (refcount_table, refcount_block, l1) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
    let clusters = 3 + l1_clusters(size_bytes);

    let mut image = vec![0; (clusters * CLUSTER) as usize];
    let header = Places { l1, refcount_table, refcount_table_clusters: 1 };
    image[..HEADER_BYTES as usize].copy_from_slice(&header_of(size_bytes, header));
    put64(&mut image, refcount_table as usize, refcount_block);
    for cluster in 0..clusters as usize {
        let at = refcount_block as usize + 2 * cluster;
        image[at..at + 2].copy_from_slice(&1u16.to_be_bytes());
    }
    image
}

/// Reads and checks a header; `bytes` are the file's first 104.
pub fn parse_header(bytes: &[u8]) -> Result<Header, FormatError> {
    if bytes.len() < HEADER_BYTES as usize || bytes[..4] != MAGIC {
        return Err(FormatError::NotQcow2);
    }
    let (size_bytes, l1_found) = (get64(bytes, 24), u64::from(get32(bytes, 36)));
    let expected = [
        ("version", u64::from(get32(bytes, 4)), u64::from(VERSION)),
        ("backing file name", get64(bytes, 8), 0),
        ("cluster size (log2)", u64::from(get32(bytes, 20)), u64::from(CLUSTER_BITS)),
        ("encryption method", u64::from(get32(bytes, 32)), 0),
        ("L1 table size", l1_found, l1_entries(size_bytes)),
        ("number of snapshots", u64::from(get32(bytes, 60)), 0),
        ("set of incompatible features", get64(bytes, 72), 0),
    ];
    for (field, found, wanted) in expected {
        if found != wanted {
            return Err(FormatError::Foreign { field, found });
        }
    }
    Ok(Header { size_bytes, l1_offset: get64(bytes, 40), l1_entries: l1_found })
}

/// Reads a table entry of the L1: the file offset of an L2 table, `None` where nothing was written.
pub fn l2_table(entry: u64, file_bytes: u64) -> Result<Option<u64>, FormatError> {
    cluster_pointer(entry, file_bytes, "L1 table")
}

/// Reads a table entry of an L2: where the bytes of disk cluster `cluster` are.
pub fn l2_entry(entry: u64, cluster: u64, file_bytes: u64) -> Result<Cluster, FormatError> {
    if entry & L2_COMPRESSED != 0 {
        return Err(FormatError::Compressed { cluster });
    }
    if entry & L2_ZERO != 0 {
        return Ok(Cluster::Zero);
    }
    Ok(cluster_pointer(entry, file_bytes, "L2 table")?.map_or(Cluster::Beneath, Cluster::At))
}

fn cluster_pointer(entry: u64, file_bytes: u64, table: &'static str) -> Result<Option<u64>, FormatError> {
    let offset = entry & OFFSET_MASK;
    if offset == 0 {
        return Ok(None);
    }
    if !offset.is_multiple_of(CLUSTER) || offset >= file_bytes {
        return Err(FormatError::BadPointer { table, offset });
    }
    Ok(Some(offset))
}

/// The big-endian entries of a table.
pub fn table_entries(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|entry| get64(entry, 0))
}

fn put32(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_empty_overlay_says_its_size(mib in 1u64..(1 << 20)) {
            let image = empty_overlay(mib << 20);
            let header = parse_header(&image).unwrap();
            prop_assert_eq!(header.size_bytes, mib << 20);
            prop_assert!(header.l1_offset + header.l1_entries * 8 <= image.len() as u64);
        }

        #[test]
        fn no_header_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_header(&bytes).is_err());
        }

        #[test]
        fn a_changed_header_is_refused(at in 4usize..76, bit in 0u8..8) {
            let mut image = empty_overlay(64 << 20);
            image[at] ^= 1 << bit;
            // The table positions and the refcount fields are checked where they are used.
            prop_assume!(!(40..60).contains(&at) && !(16..20).contains(&at) && !(64..72).contains(&at));
            // A size within the same 512 MiB keeps the L1 table valid: then the size is what the file says.
            let size_only = (24..32).contains(&at) && parse_header(&image).is_ok();
            prop_assert!(size_only || parse_header(&image).is_err());
        }
    }
}
