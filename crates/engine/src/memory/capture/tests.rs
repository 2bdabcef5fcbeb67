//! Captures of a real process: this one.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use wrenn_sys::mapping::PrivateMapping;
use wrenn_sys::process_memory::Span;

use super::*;
use crate::memory::{Checksums, Content, Files, Run, SealedPatch, fold, verify};

const PAGE: usize = PAGE_BYTES as usize;

fn own() -> u32 {
    std::process::id()
}

/// What this process has changed over `base`, sorted out.
fn capture(pid: u32, base: &Arc<Base>, data: &Path) -> Result<SortedOut, CaptureError> {
    Ok(Prepared::of(pid, Arc::clone(base), data)?.capture()?.sort_out()?)
}

fn open_base(files: &Files) -> Arc<Base> {
    Arc::new(Base::open(&files.base).unwrap())
}

fn contents(mapping: &PrivateMapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.bytes()];
    mapping.read(0, &mut bytes);
    bytes
}

/// A folder with a base of `pages`, every other stretch of 7 of which is data.
fn base_of(pages: usize, folder: tempfile::TempDir) -> (tempfile::TempDir, Files) {
    let files = Files::in_folder(folder.path());
    let file = files::create_hole(&files.base, (pages * PAGE) as u64).unwrap();
    for page in (0..pages).filter(|page| page / 7 % 2 == 0) {
        file.write_all_at(&[page as u8 | 1; PAGE], (page * PAGE) as u64).unwrap();
    }
    crate::memory::seal_base(&files).unwrap();
    (folder, files)
}

#[test]
fn what_a_process_changed_is_found() {
    let (_folder, files) = base_of(1024, tempfile::tempdir().unwrap());
    let base = open_base(&files);
    let mut mapping = PrivateMapping::of(base.file()).unwrap();
    // Split into several mappings, as advice of a VMM does.
    mapping.split(100 * PAGE, 50 * PAGE).unwrap();
    mapping.write(99 * PAGE, &[200; 3 * PAGE]);
    // Zeroed where the base is data, and where it is a hole; the same bytes again; read only; given back.
    mapping.write(0, &[0; PAGE]);
    mapping.write(7 * PAGE, &[0; PAGE]);
    mapping.write(14 * PAGE, &[15; 1]);
    mapping.read(28 * PAGE, &mut [0; 1]);
    mapping.write(29 * PAGE, &[1]);
    mapping.discard(29 * PAGE, PAGE).unwrap();
    // More than a batch at once, and the last byte.
    mapping.write(300 * PAGE, &vec![201; 600 * PAGE]);
    mapping.write(1024 * PAGE - 1, &[9]);

    let captured = capture(own(), &base, &files.patch_data).unwrap();
    let wanted = Counts { scanned: 1024, changed: 3 + 3 + 600 + 1, equal: 2, zero: 1, data: 3 + 600 + 1 };
    assert_eq!(captured.counts, wanted);
    let runs = [(0, 1, Content::Zero), (99, 3, Content::Data), (300, 600, Content::Data), (1023, 1, Content::Data)];
    let runs = runs.map(|(first, count, content)| Run { first, count, content });
    assert_eq!(captured.patch.runs().list(), runs);

    let sums = captured.patch.sums.clone().unwrap();
    assert_eq!(sums, Checksums::of(&captured.patch.data, &files.patch_data).unwrap());

    let memory = contents(&mapping);
    drop(mapping);
    captured.patch.seal(&files.patch_map).unwrap();
    SealedPatch::open(&files, base.bytes()).unwrap().unwrap().verify().unwrap();
    fold(&files).unwrap();
    assert!(std::fs::read(&files.base).unwrap() == memory);
}

#[test]
fn more_than_is_held_is_sorted_out_at_once() {
    let pages = limits::CAPTURE_HELD_BYTES_MAX / PAGE + 3 * BATCH_BYTES / PAGE + 5;
    let (_folder, files) = base_of(pages, tempfile::tempdir().unwrap());
    let base = open_base(&files);
    let mut mapping = PrivateMapping::of(base.file()).unwrap();
    (0..pages).for_each(|page| mapping.write(page * PAGE, &[page as u8, 77]));
    let captured = Prepared::of(own(), base, &files.patch_data).unwrap().capture().unwrap();
    assert_eq!(captured.held.len(), BATCHES_HELD_MAX);
    assert_eq!(captured.spilled.data + captured.spilled.equal, (3 * BATCH_BYTES / PAGE + 5) as u64);
    let memory = contents(&mapping);
    drop(mapping);
    captured.sort_out().unwrap().patch.seal(&files.patch_map).unwrap();
    SealedPatch::open(&files, memory.len() as u64).unwrap().unwrap().verify().unwrap();
    fold(&files).unwrap();
    assert!(std::fs::read(&files.base).unwrap() == memory);
}

#[test]
fn what_changes_while_a_capture_is_prepared_is_in_it() {
    let (_folder, files) = base_of(4096, tempfile::tempdir().unwrap());
    let base = open_base(&files);
    let mut mapping = PrivateMapping::of(base.file()).unwrap();
    mapping.write(0, &[1; 3 * PAGE]);
    let prepared = Prepared::of(own(), base, &files.patch_data).unwrap();
    // More than there is room for, in part where something had changed before.
    mapping.write(PAGE, &vec![2; 6 * BATCH_BYTES]);
    let memory = contents(&mapping);
    let captured = prepared.capture().unwrap();
    // And what changes afterwards is not.
    mapping.write(0, &[3; 9 * PAGE]);
    drop(mapping);
    captured.sort_out().unwrap().patch.seal(&files.patch_map).unwrap();
    fold(&files).unwrap();
    assert!(std::fs::read(&files.base).unwrap() == memory);
}

#[test]
fn the_first_capture_is_a_base() {
    let folder = tempfile::tempdir().unwrap();
    let zero = Arc::new(Base::create_zero(&folder.path().join("zero"), 512 * PAGE_BYTES).unwrap());
    let mut mapping = PrivateMapping::of(zero.file()).unwrap();
    mapping.write(3 * PAGE + 17, b"something");
    mapping.write(5 * PAGE, &[0; PAGE]);
    let files = Files::in_folder(folder.path());
    let captured = capture(own(), &zero, &files.patch_data).unwrap();
    assert_eq!((captured.counts.data, captured.counts.equal, captured.counts.zero), (1, 1, 0));
    let sums = captured.patch.into_base(&zero, &files).unwrap();
    let base = Base::open(&files.base).unwrap();
    verify(base.file(), base.path(), &sums).unwrap();
    assert!(std::fs::read(&files.base).unwrap() == contents(&mapping));
    assert!(!files.patch_data.exists());
}

#[test]
fn the_file_of_memory_gives_the_same() {
    let text: Vec<u8> = (0..=255).cycle().take(3 * PAGE).collect();
    let at = |offset: usize, bytes| Span { address: text.as_ptr() as u64 + offset as u64, bytes };
    let spans = [at(4096, 100), at(7, 5)];
    let process = Process::open(own()).unwrap();
    let mut buffers = [[0; 105]; 2];
    process.read(&spans, &mut buffers[0]).unwrap();
    process.read_file(&spans, &mut buffers[1]).unwrap();
    assert_eq!(buffers[0], buffers[1]);
    assert_eq!(buffers[0][100..], text[7..12]);
}

#[test]
fn what_nobody_changed_is_an_empty_patch() {
    let (_folder, files) = base_of(16, tempfile::tempdir().unwrap());
    let base = open_base(&files);
    let mapping = PrivateMapping::of(base.file()).unwrap();
    mapping.read(0, &mut [0; 16 * PAGE]);
    let before = contents(&mapping);
    let captured = capture(own(), &base, &files.patch_data).unwrap();
    assert_eq!(captured.counts, Counts { scanned: 16, ..Counts::default() });
    captured.patch.seal(&files.patch_map).unwrap();
    drop(mapping);
    fold(&files).unwrap();
    assert!(std::fs::read(&files.base).unwrap() == before);
}

#[test]
fn what_cannot_be_captured_leaves_nothing() {
    let (_folder, files) = base_of(16, tempfile::tempdir().unwrap());
    let base = open_base(&files);
    let error = capture(own(), &base, &files.patch_data).unwrap_err();
    assert!(matches!(error, CaptureError::Mapping { offset: 0, .. }), "{error}");
    for pid in [0, i32::MAX as u32, u32::MAX] {
        let error = capture(pid, &base, &files.patch_data).unwrap_err();
        assert!(matches!(error, CaptureError::Gone { .. }), "{error}");
    }
    let [_one, _two] = [(); 2].map(|()| PrivateMapping::of(base.file()).unwrap());
    let error = capture(own(), &base, &files.patch_data).unwrap_err();
    assert!(matches!(error, CaptureError::Mapping { offset: 0, what: "mapped more than once", .. }), "{error}");
    assert!(!files.patch_data.exists());
    std::fs::write(&files.patch_data, "mine").unwrap();
    let error = capture(own(), &base, &files.patch_data).unwrap_err();
    assert!(matches!(error, CaptureError::File(MemoryError::Exists { .. })), "{error}");
    assert_eq!(std::fs::read(&files.patch_data).unwrap(), b"mine");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Generations of a process's memory: each maps what the last left, and changes it.
    #[test]
    fn generations_of_a_process_are_what_it_had(
        generations in proptest::collection::vec(
            proptest::collection::vec((0..300usize, 1..40usize, prop_oneof![Just(0u8), 1..3u8]), 0..20), 1..5)
    ) {
        // Where fsync costs nothing.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (_folder, files) = base_of(340, folder);
        for writes in generations {
            let base = open_base(&files);
            let mut mapping = PrivateMapping::of(base.file()).unwrap();
            for (page, count, fill) in writes {
                mapping.write(page * PAGE, &vec![fill; count * PAGE]);
            }
            let captured = capture(own(), &base, &files.patch_data).unwrap();
            let sums = Checksums::of(&captured.patch.data, &files.patch_data).unwrap();
            prop_assert_eq!(captured.patch.sums.as_ref(), Some(&sums));
            let memory = contents(&mapping);
            drop(mapping);
            captured.patch.seal(&files.patch_map).unwrap();
            fold(&files).unwrap();
            prop_assert!(std::fs::read(&files.base).unwrap() == memory);
            let base = Base::open(&files.base).unwrap();
            verify(base.file(), base.path(), &Checksums::read(&files.base_sums).unwrap().unwrap()).unwrap();
        }
    }
}
