//! Which pages of a process are its own by now.
//!
//! An entry of /proc/PID/pagemap has 64 bits for a page. A page of a file that is mapped privately is the file's (bit 61) until
//! the process writes to it; from then on it is an anonymous one, in memory (bit 63) or in swap (bit 62). Source:
//! Documentation/admin-guide/mm/pagemap.rst in Linux.
//!
//! PAGEMAP_SCAN (Linux 6.7) answers the same question with ranges and takes as long: looking at a page that is mapped costs
//! more than telling of it. Its `walk_end` was also seen to lie before ranges that it had given, so that some came twice.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::process::{Process, Region};
use super::{CaptureError, Stretch};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 8;

/// Bytes that are read with one system call: the entries of 256 MiB.
const READ_BYTES: usize = 512 * 1024;

/// A process's pagemap.
pub(super) struct Pagemap {
    file: File,
    buffer: Vec<u8>,
}

impl Pagemap {
    pub fn open(process: &Process) -> Result<Self, CaptureError> {
        Ok(Self { file: process.open_file("pagemap")?, buffer: vec![0; READ_BYTES] })
    }

    /// The pages of `region` that changed, in order.
    pub fn changed(&mut self, process: &Process, region: Region) -> Result<Vec<Stretch>, CaptureError> {
        let mut changed = Vec::new();
        let mut done = 0;
        while done < region.pages {
            let pages = (region.pages - done).min((READ_BYTES / ENTRY_BYTES) as u32);
            let entries = &mut self.buffer[..pages as usize * ENTRY_BYTES];
            let at = (region.page_address() + u64::from(done)) * ENTRY_BYTES as u64;
            self.file.read_exact_at(entries, at).map_err(|source| process.proc_error("pagemap", source))?;
            collect(entries, region.first + done, &mut changed);
            done += pages;
        }
        Ok(changed)
    }
}

/// Adds the changed pages of these entries, the first of which is of page `first`.
fn collect(entries: &[u8], first: u32, changed: &mut Vec<Stretch>) {
    for (page, entry) in (first..).zip(entries.chunks_exact(ENTRY_BYTES)) {
        if !is_changed(u64::from_ne_bytes(entry.try_into().expect("8 bytes"))) {
            continue;
        }
        match changed.last_mut() {
            Some(last) if last.first + last.count == page => last.count += 1,
            Some(_) | None => changed.push(Stretch { first: page, count: 1 }),
        }
    }
}

/// Whether a page is the process's own. One that is being moved, and may be either, is compared with the base anyway.
fn is_changed(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_swap_has_changed_too() {
        const SOFT_DIRTY: u64 = 1 << 55;
        for (entry, wanted) in [
            (0, false),
            (SOFT_DIRTY, false),
            (PRESENT, true),
            (PRESENT | SOFT_DIRTY | 0x1234, true),
            (PRESENT | OF_FILE, false),
            (SWAPPED, true),
            (SWAPPED | 0x5678, true),
            (SWAPPED | OF_FILE, false),
            (OF_FILE, false),
        ] {
            assert_eq!(is_changed(entry), wanted, "{entry:#x}");
        }
    }

    #[test]
    fn changed_pages_are_joined() {
        let entries = [PRESENT, SWAPPED, 0, PRESENT, PRESENT | OF_FILE].map(u64::to_ne_bytes).concat();
        let mut changed = vec![Stretch { first: 8, count: 2 }];
        collect(&entries, 10, &mut changed);
        assert_eq!(changed, [Stretch { first: 8, count: 4 }, Stretch { first: 13, count: 1 }]);
    }
}
