//! Which pages are settled: one bit each.

use wrenn_proto::shim::pages::Span;

const BITS: u32 = u64::BITS;

/// The pages that are not to be filled from files any more.
#[derive(Debug)]
pub(super) struct Settled(Vec<u64>);

impl Settled {
    /// None of so many.
    pub fn none(pages: u32) -> Self {
        Self(vec![0; pages.div_ceil(BITS) as usize])
    }

    /// Whether this one is.
    pub fn has(&self, page: u32) -> bool {
        self.0[(page / BITS) as usize] & (1 << (page % BITS)) != 0
    }

    /// These are from now on.
    pub fn add(&mut self, span: Span) {
        let mut page = span.first;
        while page < span.end() {
            let end = span.end().min((page / BITS + 1) * BITS);
            self.0[(page / BITS) as usize] |= (u64::MAX >> (BITS - (end - page))) << (page % BITS);
            page = end;
        }
    }

    /// The first pages between two that are not settled and lie together.
    pub fn next_unsettled(&self, from: u32, end: u32) -> Option<Span> {
        let first = self.first(from, end, false)?;
        Some(Span::between(first, self.first(first, end, true).unwrap_or(end)))
    }

    /// The first page between two that is settled, or is not.
    fn first(&self, from: u32, end: u32, settled: bool) -> Option<u32> {
        let mut page = from;
        while page < end {
            let word = self.0[(page / BITS) as usize];
            let word = (if settled { word } else { !word }) >> (page % BITS);
            if word != 0 {
                page += word.trailing_zeros();
                return (page < end).then_some(page);
            }
            page = (page / BITS + 1) * BITS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_found_across_words() {
        let mut settled = Settled::none(300);
        assert_eq!(settled.next_unsettled(7, 300), Some(Span::between(7, 300)));
        for (first, end) in [(0, 1), (60, 130), (192, 256), (299, 300)] {
            settled.add(Span::between(first, end));
        }
        let mut free = Vec::new();
        let mut page = 0;
        while let Some(span) = settled.next_unsettled(page, 300) {
            free.push((span.first, span.end()));
            page = span.end();
        }
        assert_eq!(free, [(1, 60), (130, 192), (256, 299)]);
        assert_eq!(settled.next_unsettled(64, 128), None);
        assert_eq!(settled.next_unsettled(64, 131), Some(Span::between(130, 131)));
        assert!(settled.has(129) && !settled.has(130) && settled.has(255) && !settled.has(256));
    }
}
