//! Reads and writes exception stores: which chunks of a disk a sealed layer holds.
//!
//! ```text
//!   chunk 0: header │ 1: metadata │ 2 … 257: data │ 258: metadata │ 259 …          4 KiB each
//! ```
//!
//! A chunk of metadata lists up to 256 exceptions: chunk of the disk, chunk of the store that has its bytes. The list ends
//! with the first exception whose second number is 0. Little endian. The kernel writes these files; but they lie on a disk
//! for long, so every number is checked. What [`StoreWriter`] makes of several of them is laid out as the kernel does, and
//! one that it was killed in the middle of has no header. Source of the layout: `drivers/md/dm-snap-persistent.c` in Linux.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::storage::flatten::write_unless_zero;

/// Bytes in a chunk, the unit of copying: what a first write to a chunk costs, and the size of a page.
pub(super) const CHUNK_BYTES: u64 = 4096;

const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const CHUNK_SECTORS: u32 = (CHUNK_BYTES / 512) as u32;
const PER_AREA: u64 = CHUNK_BYTES / 16;

/// Why a file is not an exception store of ours.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No header.
    #[error("it has no header of an exception store; was it cut short?")]
    NotAStore,
    /// The kernel gave it up.
    #[error("it was given up when writing to it failed; what it held is lost")]
    Invalid,
    /// A feature that our stores never use.
    #[error("its {field} is {found}, which no exception store made here has; it was changed from outside")]
    Foreign {
        /// The header's field.
        field: &'static str,
        /// What it says.
        found: u32,
    },
    /// An exception is outside of the disk or of the file.
    #[error("it has the chunk {disk} of the disk at chunk {store}, outside of the disk or the file; it is corrupt")]
    BadException {
        /// Chunk of the disk.
        disk: u64,
        /// Chunk of the store.
        store: u64,
    },
    /// Reading failed.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

/// A store opened for reading.
pub(super) struct StoreReader {
    file: File,
    chunks: u64,
    disk_bytes: u64,
    /// Nothing was ever written: the kernel writes the header with the first activation.
    blank: bool,
}

impl StoreReader {
    /// Reads the header of `file`, the store of a disk of `disk_bytes`.
    pub(super) fn new(file: File, disk_bytes: u64) -> Result<Self, StoreError> {
        let chunks = file.metadata()?.len() / CHUNK_BYTES;
        if chunks < 2 {
            return Err(StoreError::NotAStore);
        }
        let mut header = [0; 16];
        file.read_exact_at(&mut header, 0)?;
        let blank = header == [0; 16];
        if !blank {
            check_header(&header)?;
        }
        Ok(Self { file, chunks, disk_bytes, blank })
    }

    /// Calls `visit(disk offset, bytes)` for each chunk in the store; the disk's last chunk may be shorter.
    pub(super) fn for_each_chunk<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = vec![0; CHUNK_BYTES as usize];
        self.for_each_exception(|disk, store| {
            let length = self.read_chunk(&mut data, disk, store)?;
            visit(disk * CHUNK_BYTES, &data[..length])
        })
    }

    /// Calls `visit(chunk of the disk, chunk of the store)` for each chunk in the store.
    pub(super) fn for_each_exception<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.blank {
            return Ok(());
        }
        for area in 0.. {
            let exceptions = self.exceptions(area)?;
            for &(disk, store) in &exceptions {
                visit(disk, store)?;
            }
            if (exceptions.len() as u64) < PER_AREA {
                break;
            }
        }
        Ok(())
    }

    /// The exceptions of one chunk of metadata, as (chunk of the disk, chunk of the store).
    fn exceptions(&self, area: u64) -> Result<Vec<(u64, u64)>, StoreError> {
        let place = 1 + area * (PER_AREA + 1);
        if place >= self.chunks {
            // A store that is exactly full has no room for a further list, and so no further exceptions.
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        self.read(&mut bytes, place)?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let pairs = (0..CHUNK_BYTES as usize).step_by(16).map(|at| (number(at), number(at + 8)));
        pairs.take_while(|(_, store)| *store != 0).map(|(disk, store)| self.check(disk, store)).collect()
    }

    fn check(&self, disk: u64, store: u64) -> Result<(u64, u64), StoreError> {
        let fits = disk < self.disk_bytes.div_ceil(CHUNK_BYTES) && (2..self.chunks).contains(&store);
        if fits { Ok((disk, store)) } else { Err(StoreError::BadException { disk, store }) }
    }

    /// Reads the bytes that an exception says; answers how many of them are the disk's: its last chunk may be shorter.
    pub(super) fn read_chunk(&self, chunk: &mut [u8], disk: u64, store: u64) -> Result<usize, StoreError> {
        self.read(chunk, store)?;
        Ok(CHUNK_BYTES.min(self.disk_bytes - disk * CHUNK_BYTES) as usize)
    }

    fn read(&self, chunk: &mut [u8], store: u64) -> Result<(), StoreError> {
        Ok(self.file.read_exact_at(chunk, store * CHUNK_BYTES)?)
    }
}

/// Writes a store from its first chunk to its last.
pub(super) struct StoreWriter<'a> {
    file: &'a File,
    /// Exceptions so far.
    count: u64,
    /// Those of the chunk of metadata that is not full yet.
    metadata: Vec<u8>,
}

impl<'a> StoreWriter<'a> {
    /// Writes to `file`, which is empty and has the size of a store.
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, count: 0, metadata: Vec::with_capacity(CHUNK_BYTES as usize) }
    }

    /// Adds a chunk of the disk that was not added yet. Zeroes stay holes.
    pub(super) fn add(&mut self, disk: u64, bytes: &[u8]) -> io::Result<()> {
        // The header, the full chunks of metadata with their data, the one that is being filled, its data so far.
        let store = 2 + self.count + self.count / PER_AREA;
        write_unless_zero(self.file, bytes, store * CHUNK_BYTES)?;
        self.metadata.extend([disk, store].iter().flat_map(|number| number.to_le_bytes()));
        self.count += 1;
        if self.count.is_multiple_of(PER_AREA) { self.flush(self.count / PER_AREA - 1) } else { Ok(()) }
    }

    fn flush(&mut self, area: u64) -> io::Result<()> {
        self.file.write_all_at(&self.metadata, (1 + area * (PER_AREA + 1)) * CHUNK_BYTES)?;
        self.metadata.clear();
        Ok(())
    }

    /// Makes it a store.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush(self.count / PER_AREA)?;
        let header = [MAGIC, 1, VERSION, CHUNK_SECTORS].map(u32::to_le_bytes);
        self.file.write_all_at(header.as_flattened(), 0)
    }
}

fn check_header(header: &[u8; 16]) -> Result<(), StoreError> {
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if word(0) != MAGIC {
        return Err(StoreError::NotAStore);
    }
    if word(4) != 1 {
        return Err(StoreError::Invalid);
    }
    for (field, at, wanted) in [("version", 8, VERSION), ("chunk size", 12, CHUNK_SECTORS)] {
        if word(at) != wanted {
            return Err(StoreError::Foreign { field, found: word(at) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: u64 = 4 << 20;

    /// A store with these exceptions, each chunk filled with the low byte of its own number.
    fn store(header: [u32; 4], exceptions: &[(u64, u64)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(super::super::plan::store_bytes(DISK)).unwrap();
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&header, 0).unwrap();
        for (index, (disk, store)) in exceptions.iter().enumerate() {
            let (area, slot) = (index as u64 / PER_AREA, index as u64 % PER_AREA);
            let pair: Vec<u8> = [*disk, *store].iter().flat_map(|number| number.to_le_bytes()).collect();
            file.write_all_at(&pair, (1 + area * (PER_AREA + 1)) * CHUNK_BYTES + slot * 16).unwrap();
            if (2..2000).contains(store) {
                file.write_all_at(&vec![*disk as u8; CHUNK_BYTES as usize], store * CHUNK_BYTES).unwrap();
            }
        }
        file
    }

    const GOOD: [u32; 4] = [MAGIC, 1, 1, 8];

    fn read(file: File) -> Result<Vec<u64>, StoreError> {
        let mut found = Vec::new();
        StoreReader::new(file, DISK)?.for_each_chunk(|offset, bytes| {
            assert!(bytes.iter().all(|byte| u64::from(*byte) == (offset / CHUNK_BYTES) & 0xff), "at {offset}");
            found.push(offset / CHUNK_BYTES);
            Ok::<(), StoreError>(())
        })?;
        Ok(found)
    }

    #[test]
    fn every_exception_is_found_across_lists() {
        let layout = |index: u64| 2 + index + index / 256;
        let exceptions: Vec<(u64, u64)> = (0..600).map(|index| (index * 7 % 1024, layout(index))).collect();
        let wanted: Vec<u64> = exceptions.iter().map(|(disk, _)| *disk).collect();
        assert_eq!(read(store(GOOD, &exceptions)).unwrap(), wanted);
    }

    #[test]
    fn what_is_written_is_read_whether_the_last_list_is_full_or_not() {
        for count in [0, 1, 255, 256, 257, 512, 600] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(super::super::plan::store_bytes(DISK)).unwrap();
            let mut writer = StoreWriter::new(&file);
            let disk: Vec<u64> = (0..count).map(|index| index * 7 % 1024).collect();
            disk.iter().for_each(|chunk| writer.add(*chunk, &[*chunk as u8; CHUNK_BYTES as usize]).unwrap());
            assert!(StoreReader::new(file.try_clone().unwrap(), DISK).unwrap().blank, "no store before it is finished");
            writer.finish().unwrap();
            assert_eq!(read(file).unwrap(), disk, "{count}");
        }
    }

    #[test]
    fn damage_is_told() {
        assert_eq!(read(store([0; 4], &[])).unwrap(), Vec::<u64>::new(), "never activated");
        assert!(matches!(read(store([MAGIC, 0, 1, 8], &[])), Err(StoreError::Invalid)));
        assert!(matches!(read(store([1, 1, 1, 8], &[])), Err(StoreError::NotAStore)));
        assert!(matches!(read(store([MAGIC, 1, 2, 8], &[])), Err(StoreError::Foreign { field: "version", found: 2 })));
        assert!(matches!(read(store([MAGIC, 1, 1, 16], &[])), Err(StoreError::Foreign { field: "chunk size", .. })));
        for bad in [(1024, 2), (0, 1), (0, 5000), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(matches!(read(store(GOOD, &[bad])), Err(StoreError::BadException { .. })), "{bad:?}");
        }
        let short = tempfile::tempfile().unwrap();
        short.set_len(4096).unwrap();
        assert!(matches!(read(short), Err(StoreError::NotAStore)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_chunks_or_an_error(noise in proptest::collection::vec(any::<u8>(), 4096..20_000)) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(64 << 10).unwrap();
            file.write_all_at(&noise, 4096).unwrap();
            let header: Vec<u8> = GOOD.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.write_all_at(&header, 0).unwrap();
            let result = StoreReader::new(file, DISK).unwrap().for_each_chunk(|offset, _| {
                assert!(offset < DISK);
                Ok::<(), StoreError>(())
            });
            drop(result);
        }
    }
}
