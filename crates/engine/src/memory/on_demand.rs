//! A memory as a table, for who serves it page by page: a base and whatever patches lie over it become one list in which
//! each page is found in one step. Nothing is copied, folded or written.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{MemfdFlags, memfd_create};
use wrenn_proto::shim::pages::{FileRun, PageTable, Span};

use super::patch::whole_pages;
use super::runs::{Content, PAGE_BYTES, Run, Runs};
use super::{Base, MemoryError, SealedPatch};
use crate::sparse::Extent;

/// Which page is in which file.
#[derive(Debug)]
pub struct OnDemand {
    /// The table.
    pub table: PageTable,
    /// The files that it names, for reading, in its order.
    pub files: Vec<File>,
}

impl OnDemand {
    /// The table as a file in memory, to be handed over.
    pub fn table_file(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"wrenn-pages", MemfdFlags::CLOEXEC)?);
        file.write_all(&self.table.encode())?;
        Ok(file)
    }
}

/// The memory that `base` and these patches over it, the oldest first, are together. Nothing of it is checked here.
///
/// # Panics
/// When a patch is of a memory of another size.
pub fn on_demand(base: &Base, patches: &[SealedPatch]) -> Result<OnDemand, MemoryError> {
    let layers: Vec<&Runs> = patches.iter().map(SealedPatch::runs).collect();
    assert!(layers.iter().all(|runs| runs.memory_bytes() == base.bytes()), "patches of another memory");
    let mut runs = composed(base.extents(), &layers, base.bytes());
    let file = |number: u32| match number.checked_sub(1) {
        None => base.file().try_clone().map_err(MemoryError::io("open", base.path())),
        Some(patch) => {
            let SealedPatch { data, path, .. } = &patches[patch as usize];
            data.try_clone().map_err(MemoryError::io("open", path))
        }
    };
    let files = renumbered(&mut runs).into_iter().map(file).collect::<Result<Vec<_>, _>>()?;
    let table = PageTable::new(base.bytes(), files.len(), runs).expect("runs of checked layers keep to the rules");
    Ok(OnDemand { table, files })
}

/// The runs of all layers together. File 0 is the base, which has data in these extents; the others are the patches.
fn composed(base: &[Extent], patches: &[&Runs], memory_bytes: u64) -> Vec<FileRun> {
    let mut data = Runs::new(memory_bytes);
    for extent in base {
        if let Some(run) = whole_pages(*extent, &data) {
            data.push(run);
        }
    }
    let base = data.list().iter().map(|run| FileRun { span: span(run), file: 0 }).collect();
    patches.iter().zip(1..).fold(base, |below, (patch, file)| overlaid(&below, patch.list(), file))
}

/// What is there with a patch, in `file`, laid over it.
fn overlaid(below: &[FileRun], patch: &[Run], file: u32) -> Vec<FileRun> {
    let mut all = Vec::with_capacity(below.len() + patch.len());
    let mut page = 0;
    for run in patch {
        let over = span(run);
        between(below, page, over.first).for_each(|run| push(&mut all, run));
        match run.content {
            Content::Data => push(&mut all, FileRun { span: over, file }),
            // In no run: zero, whatever lies beneath.
            Content::Zero => {}
        }
        page = over.end();
    }
    between(below, page, u32::MAX).for_each(|run| push(&mut all, run));
    all
}

/// The parts of `runs` that are between two pages.
fn between(runs: &[FileRun], first: u32, end: u32) -> impl Iterator<Item = FileRun> {
    let from = runs.partition_point(|run| run.span.end() <= first);
    let inside = runs[from..].iter().take_while(move |run| first < end && run.span.first < end);
    inside.map(move |run| FileRun {
        span: Span::between(run.span.first.max(first), run.span.end().min(end)),
        file: run.file,
    })
}

/// Adds a run after all others; one that goes on with the last becomes part of it.
fn push(runs: &mut Vec<FileRun>, run: FileRun) {
    match runs.last_mut() {
        Some(last) if last.span.end() == run.span.first && last.file == run.file => last.span.count += run.span.count,
        Some(_) | None => runs.push(run),
    }
}

/// Numbers the files anew, without those of which nothing is left; answers the old number of each.
fn renumbered(runs: &mut [FileRun]) -> Vec<u32> {
    let mut used: Vec<u32> = runs.iter().map(|run| run.file).collect();
    used.sort_unstable();
    used.dedup();
    for run in runs {
        let place = used.binary_search(&run.file).expect("every file was listed");
        run.file = u32::try_from(place).expect("no more files than there were");
    }
    used
}

fn span(run: &Run) -> Span {
    Span { first: run.first, count: run.count }
}

const _: () = assert!(PAGE_BYTES == wrenn_proto::shim::pages::PAGE_BYTES, "both mean the same pages");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u32 = 64;
    const MEMORY: u64 = PAGES as u64 * PAGE_BYTES;

    /// What a layer says of each page: `None` is inherited, else data or zero.
    fn layer() -> impl Strategy<Value = Vec<Option<Content>>> {
        let page = prop_oneof![2 => Just(None), 1 => Just(Some(Content::Data)), 1 => Just(Some(Content::Zero))];
        // Each drawn page stands for a stretch, so that there are neighbours.
        proptest::collection::vec(page, PAGES as usize / 4)
            .prop_map(|pages| pages.into_iter().flat_map(|page| [page; 4]).collect())
    }

    fn runs(layer: &[Option<Content>]) -> Runs {
        let mut runs = Runs::new(MEMORY);
        for (page, content) in layer.iter().zip(0..).filter_map(|(content, page)| Some((page, (*content)?))) {
            runs.push(Run { first: page, count: 1, content });
        }
        runs
    }

    proptest! {
        /// Page by page: the uppermost layer that says something has it.
        #[test]
        fn each_page_is_where_the_uppermost_layer_says(
            base in proptest::collection::vec(any::<bool>(), PAGES as usize),
            patches in proptest::collection::vec(layer(), 0..5),
        ) {
            let extents = base.iter().zip(0u64..).filter(|(data, _)| **data);
            let extents: Vec<_> = extents
                .map(|(_, page)| Extent { start: page * PAGE_BYTES, length: PAGE_BYTES })
                .collect();
            let layers: Vec<Runs> = patches.iter().map(|patch| runs(patch)).collect();
            let mut composed = composed(&extents, &layers.iter().collect::<Vec<_>>(), MEMORY);
            let files = renumbered(&mut composed);
            let table = PageTable::new(MEMORY, files.len(), composed).unwrap();
            for page in 0..PAGES {
                let place = page as usize;
                let upper = patches.iter().zip(1..).filter_map(|(patch, file)| Some((patch[place]?, file))).last();
                let wanted = match upper {
                    Some((Content::Data, file)) => Some(file),
                    Some((Content::Zero, _)) => None,
                    None => base[place].then_some(0),
                };
                let found = match table.at(page).0 {
                    wrenn_proto::shim::pages::Content::Zero => None,
                    wrenn_proto::shim::pages::Content::File(file) => Some(files[file as usize]),
                };
                prop_assert_eq!(found, wanted, "page {}", page);
            }
        }
    }

    #[test]
    fn runs_are_as_long_as_can_be_and_files_without_a_page_are_left_out() {
        let all = vec![Some(Content::Data); PAGES as usize];
        let mut hidden = composed(&[Extent { start: 0, length: MEMORY }], &[&runs(&all), &runs(&all)], MEMORY);
        assert_eq!(renumbered(&mut hidden), [2]);
        let whole = FileRun { span: Span { first: 0, count: PAGES }, file: 0 };
        assert_eq!(hidden, [whole]);
        // Blocks smaller than a page, two of them in the same page.
        let blocks = [(0, 1024), (2048, 1024), (4096, 512)].map(|(start, length)| Extent { start, length });
        assert_eq!(composed(&blocks, &[], MEMORY), [FileRun { span: Span { first: 0, count: 2 }, file: 0 }]);
    }
}
