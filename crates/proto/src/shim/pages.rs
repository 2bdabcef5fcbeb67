//! Memory on demand: which file has which page, and the order in which pages were wanted before.
//!
//! ```text
//!   table:        "WrennPgT" version │ memory bytes │ count │ count × (first page, pages, file)
//!   working set:  "WrennPgW" version │ memory bytes │ count │ count × (first page, pages)
//! ```
//!
//! Little endian. A page lies in its file at the place it has in the memory; a page in no run of the table is zero. The table
//! is made for one shim, in memory, from however many layers there are: a look-up costs the same for all of them. The working
//! set is a file that lasts, and a hint: what it says can cost time, and nothing else.

use std::io::{self, Read};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Most runs of a working set: half a MiB of them.
pub const WORKING_SET_RUNS_MAX: usize = 64 * 1024;

const TABLE_MAGIC: [u8; 8] = *b"WrennPgT";
const WORKING_SET_MAGIC: [u8; 8] = *b"WrennPgW";
const VERSION: u32 = 1;
/// Magic, version, memory's size, count.
const HEAD_BYTES: usize = 28;
/// Page numbers have 32 bits, and so have their sums.
const PAGES_MAX: u64 = 1 << 31;

/// Neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the first.
    pub first: u32,
    /// How many; at least one.
    pub count: u32,
}

impl Span {
    /// The pages from `first` to the one before `end`.
    pub fn between(first: u32, end: u32) -> Self {
        Self { first, count: end - first }
    }

    /// The page after the last.
    pub fn end(self) -> u32 {
        self.first + self.count
    }
}

/// Neighbouring pages that lie in the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRun {
    /// Which pages.
    pub span: Span,
    /// The file's number in the list that comes with the table.
    pub file: u32,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nowhere: it is zero.
    Zero,
    /// In this file.
    File(u32),
}

/// Why a table or a working set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// It is something else, was cut short, or was written by another version.
    #[error("it is not what it should be, or was cut short")]
    Form,
    /// No memory has this size.
    #[error("a memory of {0} bytes")]
    Memory(u64),
    /// An entry is outside of the memory, out of order, or of a file that is not there.
    #[error("its entry {0} is outside of the memory, out of order, or of no file")]
    Entry(usize),
}

/// Where each page of a memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageTable {
    pages: u32,
    runs: Vec<FileRun>,
}

impl PageTable {
    /// Of a memory of `memory_bytes` and `files` files; the runs are in order.
    pub fn new(memory_bytes: u64, files: usize, runs: Vec<FileRun>) -> Result<Self, PagesError> {
        let pages = pages_of(memory_bytes)?;
        let mut end = 0;
        for (index, FileRun { span, file }) in runs.iter().enumerate() {
            if !is_inside(*span, pages) || span.first < end || *file as usize >= files {
                return Err(PagesError::Entry(index));
            }
            end = span.end();
        }
        Ok(Self { pages, runs })
    }

    /// How many pages the memory has.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The memory's size.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[FileRun] {
        &self.runs
    }

    /// Where `page` is, and all of its neighbours with it.
    pub fn at(&self, page: u32) -> (Content, Span) {
        let next = self.runs.partition_point(|run| run.span.end() <= page);
        match self.runs.get(next) {
            Some(run) if run.span.first <= page => (Content::File(run.file), run.span),
            above => {
                let begin = next.checked_sub(1).map_or(0, |below| self.runs[below].span.end());
                let end = above.map_or(self.pages, |run| run.span.first);
                (Content::Zero, Span::between(begin, end))
            }
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = begin(TABLE_MAGIC, self.memory_bytes(), self.runs.len());
        for FileRun { span, file } in &self.runs {
            bytes.extend([span.first, span.count, *file].iter().flat_map(|number| number.to_le_bytes()));
        }
        bytes
    }

    /// Reads one that comes with so many files.
    pub fn read(from: impl Read, files: usize) -> Result<Self, PagesError> {
        let (memory_bytes, entries) = open::<3>(from, TABLE_MAGIC, u64::from)?;
        let run = |[first, count, file]: [u32; 3]| FileRun { span: Span { first, count }, file };
        Self::new(memory_bytes, files, entries.into_iter().map(run).collect())
    }
}

/// The bytes of a working set: these pages, in the order in which they were wanted.
pub fn encode_working_set(memory_bytes: u64, spans: &[Span]) -> Vec<u8> {
    let mut bytes = begin(WORKING_SET_MAGIC, memory_bytes, spans.len());
    bytes.extend(spans.iter().flat_map(|span| [span.first, span.count]).flat_map(u32::to_le_bytes));
    bytes
}

/// Reads a working set of a memory of `memory_bytes`; one of another is of no use.
pub fn read_working_set(from: impl Read, memory_bytes: u64) -> Result<Vec<Span>, PagesError> {
    let pages = pages_of(memory_bytes)?;
    let (found, entries) = open::<2>(from, WORKING_SET_MAGIC, |_| WORKING_SET_RUNS_MAX as u64)?;
    if found != memory_bytes {
        return Err(PagesError::Memory(found));
    }
    let spans: Vec<Span> = entries.into_iter().map(|[first, count]| Span { first, count }).collect();
    match spans.iter().position(|span| !is_inside(*span, pages)) {
        Some(index) => Err(PagesError::Entry(index)),
        None => Ok(spans),
    }
}

/// The pages of a memory that has whole ones, and not too many.
fn pages_of(memory_bytes: u64) -> Result<u32, PagesError> {
    let pages = memory_bytes / PAGE_BYTES;
    let fits = memory_bytes.is_multiple_of(PAGE_BYTES) && (1..=PAGES_MAX).contains(&pages);
    if fits { Ok(pages as u32) } else { Err(PagesError::Memory(memory_bytes)) }
}

fn is_inside(span: Span, pages: u32) -> bool {
    span.count > 0 && span.first.checked_add(span.count).is_some_and(|end| end <= pages)
}

fn begin(magic: [u8; 8], memory_bytes: u64, count: usize) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(memory_bytes.to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
    bytes
}

/// The memory's size and the entries of `N` numbers each, of which there may be as many as `most` says for that many pages.
fn open<const N: usize>(
    mut from: impl Read,
    magic: [u8; 8],
    most: impl FnOnce(u32) -> u64,
) -> Result<(u64, Vec<[u32; N]>), PagesError> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (memory_bytes, count) = (number(12), number(20));
    let most = most(pages_of(memory_bytes)?);
    if head[..8] != magic || head[8..12] != VERSION.to_le_bytes() || count > most {
        return Err(PagesError::Form);
    }
    let mut bytes = Vec::new();
    from.take(count * N as u64 * 4 + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != count * N as u64 * 4 {
        return Err(PagesError::Form);
    }
    let entry = |entry: &[u8]| {
        std::array::from_fn(|index| u32::from_le_bytes(entry[index * 4..][..4].try_into().expect("four bytes")))
    };
    Ok((memory_bytes, bytes.chunks_exact(N * 4).map(entry).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 100 * PAGE_BYTES;

    fn run(first: u32, count: u32, file: u32) -> FileRun {
        FileRun { span: Span { first, count }, file }
    }

    #[test]
    fn a_page_is_found_with_its_neighbours() {
        let table = PageTable::new(MEMORY, 2, vec![run(10, 5, 0), run(15, 1, 1), run(99, 1, 0)]).unwrap();
        for (page, content, first, end) in [
            (0, Content::Zero, 0, 10),
            (10, Content::File(0), 10, 15),
            (14, Content::File(0), 10, 15),
            (15, Content::File(1), 15, 16),
            (16, Content::Zero, 16, 99),
            (99, Content::File(0), 99, 100),
        ] {
            assert_eq!(table.at(page), (content, Span::between(first, end)), "{page}");
        }
        assert_eq!(PageTable::read(&table.encode()[..], 2).unwrap(), table);
        let empty = PageTable::new(MEMORY, 0, vec![]).unwrap();
        assert_eq!(empty.at(7), (Content::Zero, Span::between(0, 100)));
    }

    #[test]
    fn what_breaks_the_rules_is_no_table() {
        for runs in [
            vec![run(0, 0, 0)],
            vec![run(99, 2, 0)],
            vec![run(u32::MAX, u32::MAX, 0)],
            vec![run(5, 5, 0), run(9, 1, 1)],
            vec![run(5, 1, 0), run(4, 1, 0)],
            vec![run(0, 1, 2)],
        ] {
            assert!(matches!(PageTable::new(MEMORY, 2, runs.clone()), Err(PagesError::Entry(_))), "{runs:?}");
        }
        for bytes in [0, 1, 4095, (PAGES_MAX + 1) * PAGE_BYTES] {
            assert!(matches!(PageTable::new(bytes, 0, vec![]), Err(PagesError::Memory(_))), "{bytes}");
        }
    }

    #[test]
    fn what_is_cut_short_longer_or_another_file_is_refused() {
        let table = PageTable::new(MEMORY, 1, vec![run(1, 2, 0), run(4, 1, 0)]).unwrap().encode();
        for length in 0..table.len() {
            assert!(PageTable::read(&table[..length], 1).is_err(), "{length}");
        }
        assert!(PageTable::read(&[&table[..], &[0]].concat()[..], 1).is_err());
        assert!(matches!(PageTable::read(&table[..], 0), Err(PagesError::Entry(0))));
        assert!(read_working_set(&table[..], MEMORY).is_err());
        // It says that it has more than there can be: nothing is allocated for them.
        let mut huge = table.clone();
        huge[20..28].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(PageTable::read(&huge[..], 1), Err(PagesError::Form)));
    }

    #[test]
    fn a_working_set_keeps_its_order_and_is_of_one_memory() {
        let spans = [(50, 3), (2, 1), (99, 1)].map(|(first, count)| Span { first, count });
        let bytes = encode_working_set(MEMORY, &spans);
        assert_eq!(read_working_set(&bytes[..], MEMORY).unwrap(), spans);
        assert!(matches!(read_working_set(&bytes[..], 2 * MEMORY), Err(PagesError::Memory(MEMORY))));
        let outside = encode_working_set(MEMORY, &[Span { first: 100, count: 1 }]);
        assert!(matches!(read_working_set(&outside[..], MEMORY), Err(PagesError::Entry(0))));
        assert!(read_working_set(&[][..], MEMORY).is_err());
    }
}
