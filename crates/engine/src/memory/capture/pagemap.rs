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

use super::CaptureError;
use super::batch::Stretch;
use super::process::{Process, Region};
use crate::memory::threads::each_by_two;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Bytes of an entry.
const ENTRY_BYTES: usize = 8;

/// Pages that are looked at with one system call: those of 32 MiB.
const PART_PAGES: u32 = 8192;

/// A process's pagemap.
#[derive(Debug)]
pub(super) struct Pagemap(File);

impl Pagemap {
    pub fn open(process: &Process) -> Result<Self, CaptureError> {
        process.open_file("pagemap").map(Self)
    }

    /// The pages of `regions` that changed, in order; looked for with two threads.
    pub fn changed(&self, process: &Process, regions: &[Region]) -> Result<Vec<Stretch>, CaptureError> {
        let parts = regions.iter().flat_map(|region| region.parts(PART_PAGES));
        let mut parts: Vec<_> = parts.map(|part| (part, Vec::new())).collect();
        each_by_two(&mut parts, |(part, changed)| self.add_changed(process, *part, changed))?;
        let mut all: Vec<Stretch> = Vec::new();
        for next in parts.into_iter().flat_map(|(_, changed)| changed) {
            match all.last_mut() {
                Some(last) if last.goes_on_with(&next) => last.count += next.count,
                Some(_) | None => all.push(next),
            }
        }
        Ok(all)
    }

    fn add_changed(&self, process: &Process, part: Region, changed: &mut Vec<Stretch>) -> Result<(), CaptureError> {
        let mut entries = vec![0; part.pages as usize * ENTRY_BYTES];
        let at = part.page_address() * ENTRY_BYTES as u64;
        self.0.read_exact_at(&mut entries, at).map_err(|source| process.proc_error("pagemap", source))?;
        collect(&entries, part, changed);
        Ok(())
    }
}

/// Adds the changed pages of a part, of whose pages these are the entries.
fn collect(entries: &[u8], part: Region, changed: &mut Vec<Stretch>) {
    for (page, entry) in (part.first..).zip(entries.chunks_exact(ENTRY_BYTES)) {
        if !is_changed(u64::from_ne_bytes(entry.try_into().expect("8 bytes"))) {
            continue;
        }
        match changed.last_mut() {
            Some(last) if last.first + last.count == page => last.count += 1,
            Some(_) | None => changed.push(Stretch { first: page, count: 1, address: part.address_of(page) }),
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
        let part = Region::at(1 << 20, 10, 5);
        let stretch = |first, count| Stretch { first, count, address: part.address_of(first) };
        let mut changed = Vec::new();
        collect(&entries, part, &mut changed);
        assert_eq!(changed, [stretch(10, 2), stretch(13, 1)]);
    }
}
