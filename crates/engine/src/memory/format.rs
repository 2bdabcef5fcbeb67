//! Our two binary files, as pure code: checksums, and the map of a patch. Little endian.
//!
//! ```text
//!   checksums: "WrennSum" version │ memory bytes │ id of the patch folded last, or 0 │ count │ count × (chunk, hash) │ hash
//!   map:       "WrennMap" version │ memory bytes │ runs │ runs × (first, count·2 + zero?) │ count │ count × (chunk, hash) │ hash
//! ```
//!
//! The hash at the end (XXH3, 64 bits) is of all bytes before it; a map's is also the id of its patch. It finds damage, not
//! forgery: these files are root's alone. Still nothing in them is believed: counts are measured against the bytes that are
//! there before anything is allocated.

use twox_hash::XxHash3_64;

use super::checksums::{CHUNK_BYTES, Checksums, ChunkSum};
use super::runs::{Content, PAGE_BYTES, Run, Runs, is_memory_size};

const SUMS_MAGIC: [u8; 8] = *b"WrennSum";
const MAP_MAGIC: [u8; 8] = *b"WrennMap";
const SUMS_NAME: &str = "a file of checksums";
const MAP_NAME: &str = "the map of a patch";
const VERSION: u32 = 1;
const SUM_BYTES: usize = 12;
const RUN_BYTES: usize = 8;
/// Magic, version, three numbers, the hash at the end.
const FRAME_BYTES: u64 = 64;
/// Magic, version, the memory's size: what says how long a file can be.
pub(super) const HEAD_BYTES: u64 = 20;

/// Which patch: the hash of its map, which has the hashes of its data in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchId(pub(super) u64);

/// Why a file is none of ours, or not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another file, or the beginning is damaged.
    #[error("it does not begin as {wanted} does")]
    Magic {
        /// What it should be.
        wanted: &'static str,
    },
    /// Bytes are missing or changed.
    #[error("its bytes are not those that were written; it was cut short or damaged")]
    Hash,
    /// From another Wrenn.
    #[error("it has version {found}, and this Wrenn reads version {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// It has more or fewer entries than it says.
    #[error("it says that it has {said} entries, which is not what it has")]
    Count {
        /// What it says.
        said: u64,
    },
    /// A memory of this size cannot be.
    #[error("it is of a memory of {found} bytes, which cannot be")]
    MemorySize {
        /// What it says.
        found: u64,
    },
    /// An entry is outside of the memory, or not after the one before.
    #[error("its entry {index} is outside of the memory or out of order")]
    Entry {
        /// Which.
        index: u64,
    },
    /// Larger than such a file can be.
    #[error("it is longer than {limit} bytes, the most that one of its memory can have")]
    TooLong {
        /// The most there can be, in bytes.
        limit: u64,
    },
    /// Of another memory.
    #[error("it is of a memory of {found} bytes, and the base has {wanted}")]
    OtherMemory {
        /// What it says.
        found: u64,
        /// The base's size.
        wanted: u64,
    },
}

/// The 64-bit XXH3 of `bytes`.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// How long a file of checksums that begins like this can be.
pub(super) fn sums_bytes_max(head: &[u8]) -> Result<u64, FormatError> {
    let memory_bytes = memory_bytes(head, SUMS_MAGIC, SUMS_NAME)?;
    Ok(sums_bytes(memory_bytes.div_ceil(CHUNK_BYTES) as usize))
}

/// How long a file with the checksums of so many chunks can be.
pub(super) fn sums_bytes(chunks: usize) -> u64 {
    FRAME_BYTES + (chunks * SUM_BYTES) as u64
}

/// How long a map that begins like this can be: every page a run of its own.
pub(super) fn map_bytes_max(head: &[u8]) -> Result<u64, FormatError> {
    let memory_bytes = memory_bytes(head, MAP_MAGIC, MAP_NAME)?;
    let (runs, chunks) = (memory_bytes / PAGE_BYTES, memory_bytes.div_ceil(CHUNK_BYTES));
    Ok(FRAME_BYTES + runs * RUN_BYTES as u64 + chunks * SUM_BYTES as u64)
}

fn memory_bytes(head: &[u8], magic: [u8; 8], wanted: &'static str) -> Result<u64, FormatError> {
    let mut reader = Reader(head.strip_prefix(&magic).ok_or(FormatError::Magic { wanted })?);
    let found = reader.u32()?;
    if found != VERSION {
        return Err(FormatError::Version { found });
    }
    let found = reader.u64()?;
    if is_memory_size(found) { Ok(found) } else { Err(FormatError::MemorySize { found }) }
}

/// The bytes of a file of checksums.
pub(super) fn encode_sums(sums: &Checksums) -> Vec<u8> {
    let mut bytes = begin(SUMS_MAGIC, sums.memory_bytes());
    bytes.extend(sums.folded.map_or(0, |PatchId(id)| id).to_le_bytes());
    put_sums(&mut bytes, sums.chunks());
    seal(bytes).0
}

/// Reads a file of checksums.
pub(super) fn decode_sums(bytes: &[u8]) -> Result<Checksums, FormatError> {
    let (mut reader, memory_bytes, _) = open(bytes, SUMS_MAGIC, SUMS_NAME)?;
    let folded = reader.u64()?;
    let mut sums = Checksums::checked(memory_bytes, reader.sums()?)?;
    reader.end()?;
    sums.folded = (folded != 0).then_some(PatchId(folded));
    Ok(sums)
}

/// The bytes of a patch's map, and its id.
pub(super) fn encode_map(runs: &Runs, sums: &Checksums) -> (Vec<u8>, PatchId) {
    let mut bytes = begin(MAP_MAGIC, runs.memory_bytes());
    bytes.extend((runs.list().len() as u64).to_le_bytes());
    for run in runs.list() {
        let zero = match run.content {
            Content::Data => 0,
            Content::Zero => 1,
        };
        bytes.extend(run.first.to_le_bytes());
        bytes.extend((run.count << 1 | zero).to_le_bytes());
    }
    put_sums(&mut bytes, sums.chunks());
    seal(bytes)
}

/// Reads a patch's map: runs, checksums of the data, id.
pub(super) fn decode_map(bytes: &[u8]) -> Result<(Runs, Checksums, PatchId), FormatError> {
    let (mut reader, memory_bytes, id) = open(bytes, MAP_MAGIC, MAP_NAME)?;
    let runs = Runs::checked(memory_bytes, reader.runs()?)?;
    let sums = Checksums::checked(memory_bytes, reader.sums()?)?;
    reader.end()?;
    Ok((runs, sums, id))
}

fn begin(magic: [u8; 8], memory_bytes: u64) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(memory_bytes.to_le_bytes());
    bytes
}

fn put_sums(bytes: &mut Vec<u8>, chunks: &[ChunkSum]) {
    bytes.extend((chunks.len() as u64).to_le_bytes());
    for ChunkSum { chunk, hash } in chunks {
        bytes.extend(chunk.to_le_bytes());
        bytes.extend(hash.to_le_bytes());
    }
}

/// Adds the hash at the end; 0 stands for "no patch", so the id never is that.
fn seal(mut bytes: Vec<u8>) -> (Vec<u8>, PatchId) {
    let sum = hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    (bytes, id(sum))
}

fn id(sum: u64) -> PatchId {
    PatchId(sum.max(1))
}

/// Checks what frames a file, and gives what is in the frame, the memory's size and the id.
fn open<'a>(bytes: &'a [u8], magic: [u8; 8], wanted: &'static str) -> Result<(Reader<'a>, u64, PatchId), FormatError> {
    let inner = bytes.strip_prefix(&magic).ok_or(FormatError::Magic { wanted })?;
    let (_, &sum) = inner.split_last_chunk::<8>().ok_or(FormatError::Hash)?;
    let sum = u64::from_le_bytes(sum);
    if hash(&bytes[..bytes.len() - 8]) != sum {
        return Err(FormatError::Hash);
    }
    let memory_bytes = memory_bytes(&bytes[..bytes.len() - 8], magic, wanted)?;
    Ok((Reader(&bytes[HEAD_BYTES as usize..bytes.len() - 8]), memory_bytes, id(sum)))
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Hash)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A count and that many entries of `N` bytes, of which the file must have enough.
    fn entries<const N: usize, T>(
        &mut self,
        read: impl Fn(&mut Reader<'_>) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let said = self.u64()?;
        let bytes = usize::try_from(said).ok().and_then(|count| count.checked_mul(N));
        let bytes = bytes.filter(|bytes| *bytes <= self.0.len()).ok_or(FormatError::Count { said })?;
        let (entries, rest) = self.0.split_at(bytes);
        self.0 = rest;
        entries.chunks_exact(N).map(|entry| read(&mut Reader(entry))).collect()
    }

    fn runs(&mut self) -> Result<Vec<Run>, FormatError> {
        self.entries::<RUN_BYTES, _>(|entry| {
            let (first, packed) = (entry.u32()?, entry.u32()?);
            let content = if packed & 1 == 0 { Content::Data } else { Content::Zero };
            Ok(Run { first, count: packed >> 1, content })
        })
    }

    fn sums(&mut self) -> Result<Vec<ChunkSum>, FormatError> {
        self.entries::<SUM_BYTES, _>(|entry| Ok(ChunkSum { chunk: entry.u32()?, hash: entry.u64()? }))
    }

    fn end(self) -> Result<(), FormatError> {
        let left = self.0.len() as u64;
        if left == 0 { Ok(()) } else { Err(FormatError::Count { said: 0 }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 4 << 20;

    fn example() -> (Runs, Checksums) {
        let mut runs = Runs::new(MEMORY);
        runs.push(Run { first: 3, count: 20, content: Content::Data });
        runs.push(Run { first: 23, count: 1, content: Content::Zero });
        runs.push(Run { first: 1023, count: 1, content: Content::Data });
        let chunks = [(0, 7), (1, u64::MAX), (63, 0)].map(|(chunk, hash)| ChunkSum { chunk, hash });
        (runs, Checksums::checked(MEMORY, chunks.to_vec()).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let (runs, mut sums) = example();
        let (map, id) = encode_map(&runs, &sums);
        assert_eq!(decode_map(&map).unwrap(), (runs, sums.clone(), id));
        for folded in [None, Some(id)] {
            sums.folded = folded;
            assert_eq!(decode_sums(&encode_sums(&sums)).unwrap(), sums);
        }
        assert!(map.len() as u64 <= map_bytes_max(&map[..20]).unwrap());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let (runs, sums) = example();
        let files = [encode_map(&runs, &sums).0, encode_sums(&sums)];
        let refused = |bytes: &[u8]| decode_map(bytes).is_err() && decode_sums(bytes).is_err();
        for bytes in files {
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(refused(&damaged), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(refused(&bytes[..length]), "{length} bytes");
            }
            assert!(refused(&[&bytes[..], &[0]].concat()));
        }
    }

    /// A frame that is right around anything, so that what is inside is looked at.
    fn framed(magic: [u8; 8], version: u32, inner: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(inner);
        seal(bytes).0
    }

    #[test]
    fn a_frame_that_is_right_around_what_is_wrong_is_refused() {
        let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        for (version, inner, wanted) in [
            (2, vec![], FormatError::Version { found: 2 }),
            (1, numbers(&[]), FormatError::Hash),
            (1, numbers(&[4095]), FormatError::MemorySize { found: 4095 }),
            (1, numbers(&[4096, 0, u64::MAX]), FormatError::Count { said: u64::MAX }),
            (1, numbers(&[4096, 0, 1 << 61]), FormatError::Count { said: 1 << 61 }),
            (1, numbers(&[4096, 0, 1]), FormatError::Count { said: 1 }),
            (1, numbers(&[4096, 0, 0, 0]), FormatError::Count { said: 0 }),
        ] {
            assert_eq!(decode_sums(&framed(SUMS_MAGIC, version, &inner)).unwrap_err(), wanted);
        }
        let outside = [numbers(&[4096, 1]), 1u32.to_le_bytes().to_vec(), 2u32.to_le_bytes().to_vec()].concat();
        assert_eq!(decode_map(&framed(MAP_MAGIC, 1, &outside)).unwrap_err(), FormatError::Entry { index: 0 });
        let chunk_outside = [numbers(&[4096, 0, 1]), vec![1, 0, 0, 0], numbers(&[9])].concat();
        assert_eq!(decode_sums(&framed(SUMS_MAGIC, 1, &chunk_outside)).unwrap_err(), FormatError::Entry { index: 0 });
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode_map(&bytes).is_err() && decode_sums(&bytes).is_err());
        }

        #[test]
        fn any_bytes_in_a_right_frame_give_a_value_or_an_error(
            inner in proptest::collection::vec(prop_oneof![4 => Just(0u8), 1 => 0..4u8, 1 => any::<u8>()], 0..120)
        ) {
            let sized = [&MEMORY.to_le_bytes()[..], &inner].concat();
            for magic in [MAP_MAGIC, SUMS_MAGIC] {
                let bytes = framed(magic, VERSION, &sized);
                if let Ok((runs, sums, _)) = decode_map(&bytes) {
                    prop_assert_eq!(encode_map(&runs, &sums).0, bytes.clone());
                }
                if let Ok(sums) = decode_sums(&bytes) {
                    prop_assert_eq!(encode_sums(&sums), bytes);
                }
            }
        }
    }
}
