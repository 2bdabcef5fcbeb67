//! What memory is made of: a table, and the files that it names.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::Advice;
use wrenn_proto::shim::pages::{Content, PAGE_BYTES, PageTable, PagesError, Span};

use super::{NoPages, PagerError};

/// The files, and which page is in which of them.
#[derive(Debug)]
pub(super) struct Layers {
    table: PageTable,
    files: Vec<File>,
}

impl Layers {
    /// Reads the table that comes with these files.
    pub fn new(mut table: File, files: Vec<OwnedFd>) -> Result<Self, NoPages> {
        table.rewind().map_err(PagesError::from)?;
        let table = PageTable::read(&table, files.len())?;
        Ok(Self { table, files: files.into_iter().map(File::from).collect() })
    }

    pub fn table(&self) -> &PageTable {
        &self.table
    }

    /// Reads the pages of `span`, all of them in this file, into as many bytes.
    pub fn read(&self, file: u32, span: Span, bytes: &mut [u8]) -> Result<(), PagerError> {
        let offset = u64::from(span.first) * PAGE_BYTES;
        let file = &self.files[file as usize];
        file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                // How long it is now is a detail of the message.
                let found = file.metadata().map_or(0, |metadata| metadata.len());
                PagerError::Short { path: path(file), found, wanted: offset + bytes.len() as u64 }
            }
            _other_kinds => PagerError::Read { path: path(file), offset, source },
        })
    }

    /// Has the host read the pages of `span` that are in files, without waiting for them.
    pub fn read_ahead(&self, span: Span) {
        let mut page = span.first;
        while page < span.end() {
            let (content, stretch) = self.table.at(page);
            let end = stretch.end().min(span.end());
            if let Content::File(file) = content {
                let (offset, bytes) = (u64::from(page) * PAGE_BYTES, u64::from(end - page) * PAGE_BYTES);
                // A hint: without it they are read when they are needed.
                rustix::fs::fadvise(
                    &self.files[file as usize],
                    offset,
                    std::num::NonZeroU64::new(bytes),
                    Advice::WillNeed,
                )
                .ok();
            }
            page = end;
        }
    }
}

/// The name that a file has or had, for people.
fn path(file: &File) -> PathBuf {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).unwrap_or_else(|_| PathBuf::from("a file of the memory"))
}
