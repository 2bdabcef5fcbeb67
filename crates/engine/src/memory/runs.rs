//! Runs of pages: what a patch says of which pages.

use super::format::FormatError;
use crate::limits;

/// Bytes in a page, on every CPU that is supported.
pub const PAGE_BYTES: u64 = 4096;

/// A page of zeros, to compare with.
pub(super) static ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// What pages hold that differ from their base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What the patch's data file has at the same offset.
    Data,
    /// Zeros.
    Zero,
}

/// Adjacent pages with the same kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page.
    pub first: u32,
    /// How many; at least one.
    pub count: u32,
    /// What they hold.
    pub content: Content,
}

impl Run {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Where its first byte is in the memory.
    pub fn offset(&self) -> u64 {
        u64::from(self.first) * PAGE_BYTES
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        u64::from(self.count) * PAGE_BYTES
    }
}

/// Runs of one memory: in order, apart or of different content, inside of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    memory_bytes: u64,
    list: Vec<Run>,
}

impl Runs {
    /// No runs yet: everything is inherited.
    pub(super) fn new(memory_bytes: u64) -> Self {
        assert!(is_memory_size(memory_bytes), "{memory_bytes} bytes are no memory");
        Self { memory_bytes, list: Vec::new() }
    }

    /// Takes what a file says, if it keeps to the rules.
    pub(super) fn checked(memory_bytes: u64, list: Vec<Run>) -> Result<Self, FormatError> {
        if !is_memory_size(memory_bytes) {
            return Err(FormatError::MemorySize { found: memory_bytes });
        }
        let mut end = 0;
        for (index, run) in list.iter().enumerate() {
            if run.count == 0 || u64::from(run.first) < end || run.end() * PAGE_BYTES > memory_bytes {
                return Err(FormatError::Entry { index: index as u64 });
            }
            end = run.end();
        }
        Ok(Self { memory_bytes, list })
    }

    /// Adds pages after all others; those that go on with the last run become part of it.
    pub(super) fn push(&mut self, run: Run) {
        let end = self.list.last().map_or(0, Run::end);
        assert!(u64::from(run.first) >= end && run.count > 0 && run.end() * PAGE_BYTES <= self.memory_bytes);
        match self.list.last_mut() {
            Some(last) if last.end() == u64::from(run.first) && last.content == run.content => last.count += run.count,
            Some(_) | None => self.list.push(run),
        }
    }

    /// The memory's size.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The runs, in order.
    pub fn list(&self) -> &[Run] {
        &self.list
    }

    /// How many pages have this content.
    pub fn pages(&self, content: Content) -> u64 {
        self.list.iter().filter(|run| run.content == content).map(|run| u64::from(run.count)).sum()
    }
}

/// Whether a memory can have this size.
pub(super) fn is_memory_size(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(PAGE_BYTES) && bytes <= limits::MEMORY_BYTES_MAX
}

/// Whether these bytes, whole pages, are all zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_PAGE.len()).all(|page| page == &ZERO_PAGE[..page.len()])
}

const _: () = assert!(limits::MEMORY_BYTES_MAX / PAGE_BYTES < 1 << 31, "or a run does not fit 64 bits of a map");

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32, content: Content) -> Run {
        Run { first, count, content }
    }

    #[test]
    fn runs_that_go_on_become_one() {
        let mut runs = Runs::new(1 << 20);
        for (first, content) in [(0, Content::Data), (1, Content::Data), (2, Content::Zero), (4, Content::Zero)] {
            runs.push(run(first, 1, content));
        }
        let wanted = [run(0, 2, Content::Data), run(2, 1, Content::Zero), run(4, 1, Content::Zero)];
        assert_eq!(runs.list(), wanted);
        assert_eq!((runs.pages(Content::Data), runs.pages(Content::Zero)), (2, 2));
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        use Content::{Data, Zero};
        for (list, wanted) in [
            (vec![], true),
            (vec![run(0, 256, Data)], true),
            (vec![run(0, 1, Data), run(1, 1, Zero), run(255, 1, Data)], true),
            (vec![run(0, 0, Data)], false),
            (vec![run(0, 257, Data)], false),
            (vec![run(u32::MAX, u32::MAX >> 1, Data)], false),
            (vec![run(0, 2, Data), run(1, 1, Zero)], false),
            (vec![run(4, 1, Data), run(1, 1, Zero)], false),
        ] {
            assert_eq!(Runs::checked(1 << 20, list.clone()).is_ok(), wanted, "{list:?}");
        }
        for bytes in [0, 4095, limits::MEMORY_BYTES_MAX + 4096] {
            assert!(Runs::checked(bytes, vec![]).is_err(), "{bytes}");
        }
    }
}
