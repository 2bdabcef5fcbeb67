//! The console ring: a file that keeps the last bytes of something endless and never grows past its size.
//!
//! ```text
//! byte 0        8              16             24            32                                           size
//! │ "WRNRING1" │ capacity u64 │ position u64 │ claimed u64 │ data: byte n of the whole is at 32 + n % capacity │
//! ```
//! Numbers are little endian. `position` is how many bytes were ever written. The writer first claims (`claimed` = the
//! position after this write), then puts down the data, then moves the position. A reader that looks at the claim after
//! it has read the data knows which bytes may have been overwritten meanwhile, and gives those up. The file is
//! readable also when its writer was killed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Tail;

/// Bytes before the data.
pub const HEADER_BYTES: u64 = 32;
/// Least size of a ring file in bytes.
pub const RING_MIN_BYTES: u64 = 4096;
/// Largest size of a ring file in bytes; a reader may hold all of it.
pub const RING_MAX_BYTES: u64 = 64 * 1024 * 1024;

const MAGIC: [u8; 8] = *b"WRNRING1";
const CAPACITY_AT: u64 = 8;
const POSITION_AT: u64 = 16;
const CLAIMED_AT: u64 = 24;

/// Why a ring could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The system said no.
    #[error("cannot {verb} the console ring {path}", path = path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The header is not one.
    #[error("{path} is no console ring, or a damaged one", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The writing side. One per file.
#[derive(Debug)]
pub struct RingWriter {
    file: File,
    path: PathBuf,
    capacity: u64,
    position: u64,
}

impl RingWriter {
    /// A new ring in a file of at most `size` bytes, mode 0600. A file that is there is replaced.
    pub fn create(path: &Path, size: u64) -> Result<Self, RingError> {
        use std::os::unix::fs::OpenOptionsExt;
        let capacity = size.clamp(RING_MIN_BYTES, RING_MAX_BYTES) - HEADER_BYTES;
        let error = |source| RingError::Io { verb: "create", path: path.to_owned(), source };
        // `create_new` after the removal: never writes through a link somebody has put there.
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
            Ok(()) | Err(_) => {}
        }
        let file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
        file.write_all_at(&header(capacity), 0).map_err(error)?;
        Ok(Self { file, path: path.to_owned(), capacity, position: 0 })
    }

    /// Appends bytes; the oldest give way.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RingError> {
        self.try_write(bytes).map_err(|source| RingError::Io { verb: "write to", path: self.path.clone(), source })
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = bytes.len().saturating_sub(self.capacity as usize);
        let kept = &bytes[skipped..];
        let at = (self.position + skipped as u64) % self.capacity;
        let (first, second) = kept.split_at(kept.len().min((self.capacity - at) as usize));
        let after = self.position + bytes.len() as u64;
        self.file.write_all_at(&after.to_le_bytes(), CLAIMED_AT)?;
        self.file.write_all_at(first, HEADER_BYTES + at)?;
        self.file.write_all_at(second, HEADER_BYTES)?;
        self.file.write_all_at(&after.to_le_bytes(), POSITION_AT)?;
        self.position = after;
        Ok(())
    }

    /// How many bytes were ever written.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn header(capacity: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&capacity.to_le_bytes());
    header
}

/// The last `most` bytes of a ring, less if there are less. Safe beside a writer: bytes that it may have overwritten
/// meanwhile are left out.
pub fn read_tail(path: &Path, most: u64) -> Result<Tail, RingError> {
    let error = |source| RingError::Io { verb: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let Header { capacity, position, .. } = Header::read(&file, path)?;
    let offset = position - position.min(most).min(capacity);
    let mut data = read_between(&file, capacity, offset, position).map_err(error)?;
    let intact_from = Header::read(&file, path)?.claimed.saturating_sub(capacity);
    let lost = intact_from.saturating_sub(offset).min(data.len() as u64);
    data.drain(..lost as usize);
    Ok(Tail { offset: offset + lost, data })
}

struct Header {
    capacity: u64,
    position: u64,
    claimed: u64,
}

impl Header {
    fn read(file: &File, path: &Path) -> Result<Self, RingError> {
        let mut bytes = [0; HEADER_BYTES as usize];
        let damaged = || RingError::Damaged { path: path.to_owned() };
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
            read => read.map_err(|source| RingError::Io { verb: "read", path: path.to_owned(), source })?,
        }
        Self::parse(&bytes).ok_or_else(damaged)
    }

    fn parse(bytes: &[u8; HEADER_BYTES as usize]) -> Option<Self> {
        let number = |at: u64| {
            let field = bytes[at as usize..].first_chunk().expect("the header has eight bytes there");
            u64::from_le_bytes(*field)
        };
        let header = Self { capacity: number(CAPACITY_AT), position: number(POSITION_AT), claimed: number(CLAIMED_AT) };
        let sensible = (RING_MIN_BYTES - HEADER_BYTES..=RING_MAX_BYTES - HEADER_BYTES).contains(&header.capacity);
        (bytes.starts_with(&MAGIC) && sensible).then_some(header)
    }
}

/// The bytes `from..to` of the whole; at most `capacity` of them.
fn read_between(file: &File, capacity: u64, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut data = vec![0; (to - from) as usize];
    let at = from % capacity;
    let split = data.len().min((capacity - at) as usize);
    let (first, second) = data.split_at_mut(split);
    file.read_exact_at(first, HEADER_BYTES + at)?;
    file.read_exact_at(second, HEADER_BYTES)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let unique = format!("wrenn-ring-{}-{:?}", std::process::id(), std::thread::current().id());
            let folder = std::env::temp_dir().join(unique);
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn ring(&self) -> PathBuf {
            self.0.join("console")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_tail_is_the_end_of_all_that_was_written(
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..12),
            size in 0_u64..9000,
            most in 0_u64..9000,
        ) {
            let folder = Folder::new();
            let mut ring = RingWriter::create(&folder.ring(), size).unwrap();
            let capacity = size.max(RING_MIN_BYTES) - HEADER_BYTES;
            let mut all = Vec::new();
            for bytes in &writes {
                ring.write(bytes).unwrap();
                all.extend_from_slice(bytes);
                prop_assert!(std::fs::metadata(folder.ring()).unwrap().len() <= size.max(RING_MIN_BYTES));
            }
            let kept = (all.len() as u64).min(capacity).min(most) as usize;
            let tail = read_tail(&folder.ring(), most).unwrap();
            prop_assert_eq!(tail.offset as usize, all.len() - kept);
            prop_assert_eq!(&tail.data[..], &all[all.len() - kept..]);
            prop_assert_eq!(ring.position(), all.len() as u64);
        }

        #[test]
        fn any_file_is_read_or_refused(content in proptest::collection::vec(any::<u8>(), 0..200), with_magic in any::<bool>()) {
            let folder = Folder::new();
            let mut content = content;
            if with_magic && content.len() >= 8 {
                content[..8].copy_from_slice(&MAGIC);
            }
            std::fs::write(folder.ring(), content).unwrap();
            prop_assert!(read_tail(&folder.ring(), u64::MAX).is_err());
        }
    }

    #[test]
    fn a_reader_beside_a_writer_sees_no_mixture() {
        let folder = Folder::new();
        let path = folder.ring();
        let mut ring = RingWriter::create(&path, RING_MIN_BYTES).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Every byte says where it belongs.
                let all: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 251) as u8).collect();
                all.chunks(700).for_each(|chunk| ring.write(chunk).unwrap());
            });
            while !writer.is_finished() {
                let tail = read_tail(&path, 2000).unwrap();
                for (n, byte) in tail.data.iter().enumerate() {
                    assert_eq!(*byte, ((tail.offset + n as u64) % 251) as u8, "byte {n} of {}", tail.data.len());
                }
            }
        });
    }

    #[test]
    fn what_a_write_under_way_may_have_overwritten_is_given_up() {
        let folder = Folder::new();
        let path = folder.ring();
        let mut ring = RingWriter::create(&path, RING_MIN_BYTES).unwrap();
        let capacity = RING_MIN_BYTES - HEADER_BYTES;
        ring.write(&vec![b'x'; capacity as usize + 10]).unwrap();
        let header = Header::read(&File::open(&path).unwrap(), &path).unwrap();
        assert_eq!((header.position, header.claimed), (capacity + 10, capacity + 10), "claimed, then written");
        // A writer that was killed, or is just busy, 700 bytes later.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&(capacity + 710).to_le_bytes(), CLAIMED_AT).unwrap();
        let tail = read_tail(&path, u64::MAX).unwrap();
        assert_eq!((tail.offset, tail.data.len() as u64), (710, capacity - 700));
        file.write_all_at(&(5 * capacity).to_le_bytes(), CLAIMED_AT).unwrap();
        assert_eq!(read_tail(&path, u64::MAX).unwrap().data, b"");
    }

    #[test]
    fn a_link_in_the_rings_place_is_replaced_not_followed() {
        let folder = Folder::new();
        let victim = folder.0.join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.ring()).unwrap();
        RingWriter::create(&folder.ring(), 0).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(read_tail(&folder.ring(), 100).unwrap(), Tail { offset: 0, data: b"new".to_vec() });
    }
}
