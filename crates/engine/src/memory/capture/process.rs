//! A process whose memory is read: where it has mapped a file, and its bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Mode, OFlags, major, minor, openat};
use rustix::process::Pid;
use wrenn_sys::process_memory::{self, Span};

use super::CaptureError;
use super::batch::Stretch;
use super::pagemap::Pagemap;
use crate::limits;
use crate::memory::runs::PAGE_BYTES;
use crate::memory::{Base, MemoryError};

/// A process, held by its folder under /proc: that stays the folder of this process and of no later one with its pid.
#[derive(Debug)]
pub(super) struct Process {
    id: u32,
    pid: Pid,
    folder: OwnedFd,
}

impl Process {
    pub fn open(id: u32) -> Result<Self, CaptureError> {
        let gone = || CaptureError::Gone { pid: id };
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let folder = rustix::fs::open(format!("/proc/{id}"), flags, Mode::empty()).map_err(|_| gone())?;
        Ok(Self { id, pid, folder })
    }

    /// One of its files under /proc.
    pub fn open_file(&self, name: &'static str) -> Result<File, CaptureError> {
        let flags = OFlags::CLOEXEC | OFlags::RDONLY;
        let file = openat(&self.folder, name, flags, Mode::empty());
        file.map(File::from).map_err(|error| self.proc_error(name, error.into()))
    }

    pub fn proc_error(&self, file: &'static str, source: io::Error) -> CaptureError {
        CaptureError::Proc { pid: self.id, file, source }
    }

    /// Refuses a process that is gone.
    pub fn check_alive(&self) -> Result<(), CaptureError> {
        self.open_file("stat").map(drop).map_err(|_| CaptureError::Gone { pid: self.id })
    }

    /// The pages of `base` that are its own by now, in order.
    pub fn changed(&self, base: &Base, pagemap: &Pagemap) -> Result<Vec<Stretch>, CaptureError> {
        pagemap.changed(self, &self.regions_of(base)?)
    }

    /// Where it has mapped `base`: all of it, once, writable and privately. In the base's order.
    fn regions_of(&self, base: &Base) -> Result<Vec<Region>, CaptureError> {
        let mut text = Vec::new();
        let maps = self.open_file("maps")?;
        let read = maps.take(limits::PROCESS_MAPS_BYTES_MAX).read_to_end(&mut text);
        read.map_err(|source| self.proc_error("maps", source))?;
        let metadata = base.file().metadata().map_err(MemoryError::io("look at", base.path()))?;
        let device = (major(metadata.dev()), minor(metadata.dev()));
        let mut regions = regions(&String::from_utf8_lossy(&text), device, metadata.ino());
        regions.sort_by_key(|region| region.first);
        check_tiling(&regions, base.bytes()).map_err(|(offset, what)| CaptureError::Mapping {
            pid: self.id,
            base: base.path().to_owned(),
            offset,
            what,
        })?;
        Ok(regions)
    }

    /// Reads what it has at `spans`, together as long as `buffer`.
    pub fn read(&self, spans: &[Span], buffer: &mut [u8]) -> Result<(), CaptureError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(code) if code == rustix::io::Errno::SRCH.raw_os_error() => CaptureError::Gone { pid: self.id },
            Some(_) | None => CaptureError::Read { pid: self.id, source },
        };
        match process_memory::read(self.pid, spans, buffer) {
            // Some sandboxes around us forbid this system call, and not the file.
            Err(error) if is_forbidden(&error) => self.read_file(spans, buffer).map_err(failed),
            other => other.map_err(failed),
        }
    }

    /// The same through /proc/PID/mem, a system call for each span.
    pub fn read_file(&self, spans: &[Span], mut buffer: &mut [u8]) -> io::Result<()> {
        let memory = openat(&self.folder, "mem", OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty()).map(File::from)?;
        for span in spans {
            let (bytes, rest) = buffer.split_at_mut(span.bytes);
            memory.read_exact_at(bytes, span.address)?;
            buffer = rest;
        }
        Ok(())
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}

/// A stretch of a process's address space that stands for pages of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it begins in the process.
    address: u64,
    /// Its first page in the memory.
    pub first: u32,
    /// How many pages it has.
    pub pages: u32,
}

impl Region {
    #[cfg(test)]
    pub fn at(address: u64, first: u32, pages: u32) -> Self {
        Self { address, first, pages }
    }

    /// Where a page of the memory that is in it is in the process.
    pub fn address_of(&self, page: u32) -> u64 {
        self.address + u64::from(page - self.first) * PAGE_BYTES
    }

    /// It, in parts of so many pages.
    pub fn parts(self, pages_max: u32) -> impl Iterator<Item = Self> {
        (0..self.pages).step_by(pages_max as usize).map(move |done| {
            let first = self.first + done;
            Self { address: self.address_of(first), first, pages: pages_max.min(self.pages - done) }
        })
    }

    /// The number of its first page in the process's address space.
    pub fn page_address(&self) -> u64 {
        self.address / PAGE_BYTES
    }
}

/// The lines of /proc/PID/maps that map this file privately and writable, for example
/// `7f00-7f80 rw-p 00001000 fd:01 1234   /path`.
fn regions(maps: &str, device: (u32, u32), inode: u64) -> Vec<Region> {
    maps.lines().filter_map(|line| region(line, device, inode)).collect()
}

fn region(line: &str, device: (u32, u32), inode: u64) -> Option<Region> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let of_file = (hex(major)?, hex(minor)?) == (device.0.into(), device.1.into());
    if !of_file || fields.next()?.parse() != Ok(inode) || !rights.starts_with("rw") || !rights.ends_with('p') {
        return None;
    }
    let (start, end) = (hex(start)?, hex(end)?);
    let pages = u32::try_from(end.checked_sub(start)? / PAGE_BYTES).ok()?;
    Some(Region { address: start, first: u32::try_from(offset / PAGE_BYTES).ok()?, pages })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Whether regions, in order, cover a memory exactly; if not, from which byte on, and how.
fn check_tiling(regions: &[Region], bytes: u64) -> Result<(), (u64, &'static str)> {
    let mut end = 0;
    for region in regions {
        let first = u64::from(region.first);
        if first != end {
            let what = if first > end { "not mapped like that" } else { "mapped more than once" };
            return Err((end.min(first) * PAGE_BYTES, what));
        }
        end = first + u64::from(region.pages);
    }
    match (end * PAGE_BYTES).cmp(&bytes) {
        std::cmp::Ordering::Less => Err((end * PAGE_BYTES, "not mapped like that")),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err((bytes, "beyond its end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000004000 rw-p 00000000 fd:10 77                         /var/lib/x y/memory (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
7f0000010000-7f0000012000 rw-p 00004000 fd:10 77                         /var/lib/x y/memory (deleted)
7f0000020000-7f0000021000 r--p 00000000 fd:10 77                         /var/lib/x y/memory (deleted)
7f0000030000-7f0000031000 rw-s 00000000 fd:10 77                         /var/lib/x y/memory (deleted)
7f0000040000-7f0000041000 rw-p 00000000 fd:10 78                         /var/lib/x y/other
7f0000050000-7f0000051000 rw-p 00000000 fd:11 77                         /elsewhere
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
nonsense
";

    #[test]
    fn finds_where_a_file_is_mapped_privately() {
        let found = regions(MAPS, (0xfd, 0x10), 77);
        let wanted = [
            Region { address: 0x7f00_0000_0000, first: 0, pages: 4 },
            Region { address: 0x7f00_0001_0000, first: 4, pages: 2 },
        ];
        assert_eq!(found, wanted);
        assert_eq!(found[1].address_of(5), 0x7f00_0001_1000);
        assert_eq!(check_tiling(&found, 6 * 4096), Ok(()));
    }

    #[test]
    fn a_region_is_cut_into_parts() {
        let region = Region::at(0x7f00_0000_0000, 4, 5);
        let parts: Vec<_> = region.parts(2).collect();
        let wanted = [(0, 2), (2, 2), (4, 1)]
            .map(|(done, pages)| Region::at(0x7f00_0000_0000 + u64::from(done) * 4096, 4 + done, pages));
        assert_eq!(parts, wanted);
        assert_eq!(region.parts(5).collect::<Vec<_>>(), [region]);
    }

    #[test]
    fn a_memory_is_mapped_once_and_whole() {
        let region = |first, pages| Region { address: 0, first, pages };
        for (regions, wanted) in [
            (vec![], Err((0, "not mapped like that"))),
            (vec![region(0, 8)], Ok(())),
            (vec![region(0, 4), region(4, 4)], Ok(())),
            (vec![region(0, 3), region(4, 4)], Err((3 * 4096, "not mapped like that"))),
            (vec![region(0, 4)], Err((4 * 4096, "not mapped like that"))),
            (vec![region(0, 4), region(3, 5)], Err((3 * 4096, "mapped more than once"))),
            (vec![region(0, 8), region(0, 8)], Err((0, "mapped more than once"))),
            (vec![region(0, 9)], Err((8 * 4096, "beyond its end"))),
        ] {
            assert_eq!(check_tiling(&regions, 8 * 4096), wanted, "{regions:?}");
        }
    }
}
