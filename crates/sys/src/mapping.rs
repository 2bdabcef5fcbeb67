//! Memory mapped privately, as a VMM maps its guest's: what is written stays in this process.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A private, writable mapping of a whole file or of no file, for tests of what finds changed pages and of what fills them.
///
/// The file must stay as long as it is: to touch a page beyond its end ends the process (SIGBUS).
#[derive(Debug)]
pub struct PrivateMapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is the process's, not a thread's, and this is its one owner; no reference into it is ever given out.
unsafe impl Send for PrivateMapping {}

impl PrivateMapping {
    /// Maps all of `file`, which may be open for reading only.
    pub fn of(file: &File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces no other.
        let start = unsafe { mmap(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }

    /// Maps `bytes` of zeroes.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces no other.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }

    /// Where it is, for who tells the kernel of it.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Bytes that are mapped.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes `bytes` at `offset`. Panics outside of the mapping.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes), "outside of the mapping");
        // SAFETY: inside of the mapping (asserted), which is writable and ours alone: nobody else has its address, and
        // `bytes` cannot lie in it because no reference into it is ever given out.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len()) };
    }

    /// Reads into `bytes` from `offset` on. Panics outside of the mapping.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes), "outside of the mapping");
        // SAFETY: as in `write`; the file beneath may change pages that were not written, but the copy is of plain bytes.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Gives `bytes` from `offset` on back, as a balloon does: they read as the file's again. Both in whole pages.
    pub fn discard(&mut self, offset: usize, bytes: usize) -> io::Result<()> {
        self.advise(offset, bytes, Advice::LinuxDontNeed)
    }

    /// Splits the mapping in the kernel's books, without a change of what is in it.
    pub fn split(&mut self, offset: usize, bytes: usize) -> io::Result<()> {
        self.advise(offset, bytes, Advice::LinuxDontFork)
    }

    fn advise(&mut self, offset: usize, bytes: usize, advice: Advice) -> io::Result<()> {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "outside of the mapping");
        // SAFETY: inside of the mapping (asserted), to which no reference exists; both kinds of advice leave it mapped.
        unsafe { madvise(self.start.as_ptr().add(offset).cast(), bytes, advice) }.map_err(io::Error::from)
    }
}

impl Drop for PrivateMapping {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by us, and no reference into it exists.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours cannot be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_stays_here_until_it_is_given_back() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        let mut mapping = PrivateMapping::of(&file).unwrap();
        mapping.write(4095, &[1, 2]);
        mapping.split(4096, 4096).unwrap();
        let mut seen = [0; 4];
        mapping.read(4094, &mut seen);
        assert_eq!(seen, [7, 1, 2, 7]);
        mapping.discard(4096, 4096).unwrap();
        mapping.read(4094, &mut seen);
        assert_eq!(seen, [7, 1, 7, 7]);
        let mut beneath = [0; 8192];
        file.read_exact_at(&mut beneath, 0).unwrap();
        assert_eq!(beneath, [7; 8192]);
    }
}
