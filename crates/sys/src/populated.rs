//! Memory of this process that is there before it is used: who fills it waits for no page fault.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Zeroed memory of our own, in huge pages where the host has them. Given back to the host, not to the allocator.
#[derive(Debug)]
pub struct Populated {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is this value's alone, as a `Box<[u8]>`'s allocation is; nothing about it belongs to a thread.
unsafe impl Send for Populated {}
// SAFETY: a shared reference gives out shared references to plain bytes only.
unsafe impl Sync for Populated {}

impl Populated {
    /// `bytes` of them, which takes the time of writing to all of it.
    ///
    /// # Panics
    /// With no bytes.
    pub fn of(bytes: usize) -> io::Result<Self> {
        assert!(bytes > 0 && bytes <= isize::MAX as usize, "{bytes} bytes cannot be mapped");
        // SAFETY: a new mapping at an address that the kernel chooses replaces no other.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        let mut memory = Self { start: NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?, bytes };
        memory.populate()?;
        Ok(memory)
    }

    fn populate(&mut self) -> io::Result<()> {
        // A kernel without huge pages refuses, and has small ones.
        match self.advise(Advice::LinuxHugepage) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        match self.advise(Advice::LinuxPopulateWrite) {
            // Before Linux 5.14.
            Err(Errno::INVAL) => self.fill(0),
            other => other?,
        }
        Ok(())
    }

    fn advise(&mut self, advice: Advice) -> Result<(), Errno> {
        // SAFETY: exactly this mapping, which is borrowed by us alone; both kinds of advice leave its bytes as they are.
        unsafe { madvise(self.start.as_ptr().cast(), self.bytes, advice) }
    }
}

impl Deref for Populated {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped, readable and zeroed by the kernel for as long as this value lives; the bytes change through
        // `deref_mut` alone, which borrows all of the value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Populated {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and writable; nobody else has a reference, because this value is borrowed by us alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Populated {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by us, and no reference into it outlives the value.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours cannot be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minor page faults of this thread so far.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        after_name.split_ascii_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn it_is_there_before_it_is_used() {
        const BYTES: usize = 4 << 20;
        let mut memory = Populated::of(BYTES).unwrap();
        assert!(memory.iter().all(|byte| *byte == 0));
        let before = faults();
        memory.fill(7);
        let during = faults() - before;
        assert!(during < (BYTES / 4096) as u64 / 4, "{during} page faults");
        assert!(memory.len() == BYTES && memory.iter().all(|byte| *byte == 7));
    }
}
