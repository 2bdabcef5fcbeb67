//! Reads overlays of ours, cluster by cluster, without a helper program.
//!
//! The file was written by a VMM that a guest may have taken over, and this code runs as root: every pointer is
//! checked, no name in it is followed, and one L2 table (64 KiB) is held at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::format::{self, CLUSTER, Cluster, FormatError, Header};

/// An overlay opened for reading.
pub struct Reader {
    file: File,
    file_bytes: u64,
    header: Header,
    l1: Vec<u64>,
}

impl Reader {
    /// Reads the header and the L1 table of `file`.
    pub fn new(file: File) -> Result<Self, FormatError> {
        let file_bytes = file.metadata()?.len();
        let mut start = [0; 104];
        if file_bytes < start.len() as u64 {
            return Err(FormatError::NotQcow2);
        }
        file.read_exact_at(&mut start, 0)?;
        let header = format::parse_header(&start)?;
        let l1_bytes = header.l1_entries * 8;
        if header.l1_offset.checked_add(l1_bytes).is_none_or(|end| end > file_bytes) {
            return Err(FormatError::BadPointer { table: "header", offset: header.l1_offset });
        }
        let mut table = vec![0; l1_bytes as usize];
        file.read_exact_at(&mut table, header.l1_offset)?;
        Ok(Self { file, file_bytes, header, l1: format::table_entries(&table).collect() })
    }

    /// Size of the disk, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    /// Calls `visit(disk offset, bytes)` for each cluster this overlay holds, in order: `Some(bytes)` of data (the
    /// disk's last cluster may be shorter), or `None` where it says zero. Clusters of the layer beneath are passed over.
    pub fn for_each_cluster<E: From<FormatError>>(
        &self,
        mut visit: impl FnMut(u64, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = vec![0; CLUSTER as usize];
        for index in 0..self.l1.len() as u64 {
            for (cluster, place) in self.places(index)? {
                let offset = cluster * CLUSTER;
                match place {
                    Cluster::Beneath => {}
                    Cluster::Zero => visit(offset, None)?,
                    Cluster::At(at) => {
                        let length = self.read_cluster(&mut data, cluster, at)?;
                        visit(offset, Some(&data[..length]))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The disk clusters of the L2 table with this index, with their places, in order; those past the disk's end are left out.
    /// None where nothing was written.
    pub fn places(&self, l1_index: u64) -> Result<Vec<(u64, Cluster)>, FormatError> {
        let entry = usize::try_from(l1_index).ok().and_then(|index| self.l1.get(index));
        match entry.map(|entry| format::l2_table(*entry, self.file_bytes)).transpose()?.flatten() {
            Some(table) => self.l2_places(l1_index, table),
            None => Ok(Vec::new()),
        }
    }

    /// Reads the bytes of a disk cluster, which are at `at` of the file; answers how many of them are the disk's: its last
    /// cluster may be shorter.
    pub fn read_cluster(&self, data: &mut [u8], cluster: u64, at: u64) -> Result<usize, FormatError> {
        let length = CLUSTER.min(self.header.size_bytes.saturating_sub(cluster * CLUSTER)) as usize;
        self.read_short(&mut data[..length], at)?;
        Ok(length)
    }

    fn l2_places(&self, l1_index: u64, table: u64) -> Result<Vec<(u64, Cluster)>, FormatError> {
        let mut bytes = vec![0; CLUSTER as usize];
        self.read_short(&mut bytes, table)?;
        let first = l1_index * (CLUSTER / 8);
        let last = self.header.size_bytes.div_ceil(CLUSTER);
        format::table_entries(&bytes)
            .zip(first..last)
            .map(|(entry, cluster)| Ok((cluster, format::l2_entry(entry, cluster, self.file_bytes)?)))
            .collect()
    }

    /// Reads at `at`; the file's last cluster may not be written out in full, and the rest of it is zero.
    fn read_short(&self, buffer: &mut [u8], at: u64) -> Result<(), FormatError> {
        let available = usize::try_from(self.file_bytes - at).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_exact_at(&mut buffer[..available], at)?;
        buffer[available..].fill(0);
        Ok(())
    }
}
