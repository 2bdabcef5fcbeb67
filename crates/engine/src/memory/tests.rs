//! Generations of a memory against a model of it; folds cut off after each step; damage in each file.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use proptest::prelude::*;

use super::fold::{Step, Way, fold_in_steps};
use super::*;

const PAGE: usize = PAGE_BYTES as usize;
/// 40 pages: two chunks and a half.
const PAGES: usize = 40;

/// A memory in a folder, and what it should hold.
struct World {
    folder: tempfile::TempDir,
    files: Files,
    model: Vec<u8>,
}

impl World {
    /// A base whose every other page is data.
    fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    /// Where fsync costs nothing, for what is done hundreds of times.
    fn in_memory() -> Self {
        Self::in_folder(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn in_folder(folder: tempfile::TempDir) -> Self {
        let files = Files::in_folder(folder.path());
        let mut model = vec![0; PAGES * PAGE];
        (0..PAGES).step_by(2).for_each(|page| model[page * PAGE..][..PAGE].fill(page as u8 + 1));
        std::fs::write(&files.base, &model).unwrap();
        seal_base(&files).unwrap();
        Self { folder, files, model }
    }

    fn base(&self) -> Base {
        Base::open(&self.files.base).unwrap()
    }

    /// Makes a sealed patch of these changes: page by page, zero or filled with something.
    fn patch(&mut self, changes: &[(usize, u8)]) -> PatchId {
        let mut runs = Runs::new((PAGES * PAGE) as u64);
        let data = files::create_hole(&self.files.patch_data, runs.memory_bytes()).unwrap();
        let mut changes = changes.to_vec();
        changes.sort_by_key(|(page, _)| *page);
        changes.dedup_by_key(|(page, _)| *page);
        for (page, fill) in changes {
            self.model[page * PAGE..][..PAGE].fill(fill);
            let content = if fill == 0 { Content::Zero } else { Content::Data };
            if content == Content::Data {
                data.write_all_at(&[fill; PAGE], (page * PAGE) as u64).unwrap();
            }
            runs.push(Run { first: page as u32, count: 1, content });
        }
        Patch { data, path: self.files.patch_data.clone(), runs, sums: None }.seal(&self.files.patch_map).unwrap()
    }

    /// The base is the model, agrees with its checksums, and nothing else is left.
    fn assert_folded(&self) {
        assert!(std::fs::read(&self.files.base).unwrap() == self.model, "the base is not what it should be");
        let base = self.base();
        verify(base.file(), base.path(), &Checksums::read(&self.files.base_sums).unwrap().unwrap()).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["memory", "memory.sums"]);
    }

    /// Another name for the base, as a fork has it.
    fn share(&self) -> tempfile::TempDir {
        let fork = tempfile::tempdir_in(self.folder.path().parent().unwrap()).unwrap();
        std::fs::hard_link(&self.files.base, fork.path().join("memory")).unwrap();
        fork
    }
}

/// Writes, zeroing, and pages that stay what they are.
const CHANGES: [(usize, u8); 8] = [(0, 0), (1, 9), (2, 3), (15, 7), (16, 8), (17, 0), (38, 0), (39, 5)];

fn cut() -> MemoryError {
    MemoryError::NotWhole { path: "cut off".into() }
}

/// Folds, and is cut off after the `n`-th step; whether it came that far.
fn fold_cut_off(files: &Files, way: Way, n: usize) -> Option<Step> {
    let mut left = n;
    let mut last = None;
    let mut after = |step| {
        last = Some(step);
        left = left.checked_sub(1).ok_or_else(cut)?;
        Ok(())
    };
    fold_in_steps(files, way, &mut after).is_err().then_some(last).flatten()
}

#[test]
fn a_fold_puts_the_patch_into_the_base() {
    let mut world = World::new();
    assert_eq!(fold(&world.files).unwrap(), Folded::Nothing);
    world.patch(&CHANGES);
    let before = std::fs::metadata(&world.files.base).unwrap().permissions();
    assert_eq!(fold(&world.files).unwrap(), Folded::Written { data_pages: 5, zero_pages: 3, resumed: false });
    world.assert_folded();
    assert_eq!(std::fs::metadata(&world.files.base).unwrap().permissions(), before);
    assert_eq!(fold(&world.files).unwrap(), Folded::Nothing);
}

#[test]
fn a_fold_that_was_cut_off_anywhere_is_finished_by_the_next() {
    for way in [Way::InPlace, Way::Copy] {
        let mut seen = Vec::new();
        for n in 0.. {
            let mut world = World::new();
            world.patch(&CHANGES);
            let fork = (way == Way::Copy).then(|| world.share());
            let Some(step) = fold_cut_off(&world.files, way, n) else { break };
            seen.push(step);
            let folded = fold_in_steps(&world.files, way, &mut |_| Ok(())).unwrap();
            let began = !matches!(step, Step::Checked | Step::Copied);
            match folded {
                Folded::Nothing => assert_eq!(step, Step::MapRemoved),
                Folded::Tidied => assert!(matches!(step, Step::Committed | Step::DataRemoved), "{step:?}"),
                Folded::Written { resumed, .. } => assert_eq!(resumed, began, "{step:?}"),
            }
            world.assert_folded();
            if let Some(fork) = fork {
                assert!(
                    std::fs::read(fork.path().join("memory")).unwrap()
                        == std::fs::read(World::new().files.base).unwrap()
                );
            }
        }
        let mut kinds = seen.clone();
        kinds.dedup();
        assert_eq!(kinds.len(), if way == Way::InPlace { 8 } else { 7 }, "{seen:?}");
    }
}

#[test]
fn a_fold_is_cut_off_twice() {
    for (n, m) in (0..12).flat_map(|n| (0..12).map(move |m| (n, m))) {
        let mut world = World::in_memory();
        world.patch(&CHANGES);
        fold_cut_off(&world.files, Way::InPlace, n);
        fold_cut_off(&world.files, Way::InPlace, m);
        fold(&world.files).unwrap();
        world.assert_folded();
    }
}

#[test]
fn a_base_that_others_stand_on_is_never_written() {
    let mut world = World::new();
    let before = world.model.clone();
    let fork = world.share();
    world.patch(&CHANGES);
    assert!(matches!(fold(&world.files).unwrap_err(), MemoryError::Shared { links: 2, .. }));
    assert!(!world.files.marker.exists());
    assert!(matches!(fold_copy(&world.files).unwrap(), Folded::Written { resumed: false, .. }));
    world.assert_folded();
    assert!(std::fs::read(fork.path().join("memory")).unwrap() == before);
    let mode = std::fs::metadata(&world.files.base).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn base_and_patch_are_merged_elsewhere() {
    let mut world = World::new();
    let before = world.model.clone();
    world.patch(&CHANGES);
    let elsewhere = tempfile::tempdir().unwrap();
    let to = Files::in_folder(elsewhere.path());
    let sums = merge(&world.files, &to).unwrap();
    assert!(std::fs::read(&to.base).unwrap() == world.model);
    assert!(std::fs::read(&world.files.base).unwrap() == before);
    let merged = Base::open(&to.base).unwrap();
    verify(merged.file(), merged.path(), &sums).unwrap();
    assert_eq!(Checksums::read(&to.base_sums).unwrap().unwrap(), sums);
    assert!(matches!(merge(&world.files, &to).unwrap_err(), MemoryError::Exists { .. }));
}

/// Every file, and what is refused when it is damaged.
fn flip(path: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn named(error: &MemoryError) -> Option<&Path> {
    match error {
        MemoryError::Damaged { path, .. } | MemoryError::WrongSize { path, .. } | MemoryError::BadFile { path, .. } => {
            Some(path)
        }
        _others => None,
    }
}

#[test]
fn damage_is_named_before_anything_is_changed() {
    type Place = fn(&Files) -> &Path;
    let places: [(Place, &[u64]); 4] = [
        // The page, its neighbours in the chunk, and the hole there.
        (|files| &files.base, &[0, 4096 * 3 + 7, 4096 * 39]),
        (|files| &files.base_sums, &[0, 9, 13, 25, 40, 59]),
        (|files| &files.patch_data, &[4096, 4096 * 16, 4096 * 18]),
        (|files| &files.patch_map, &[0, 9, 13, 25, 40, 59]),
    ];
    for (place, offsets) in places {
        for offset in offsets {
            for way in [Way::InPlace, Way::Copy] {
                let mut world = World::new();
                world.patch(&CHANGES);
                flip(place(&world.files), *offset);
                let before = std::fs::read(&world.files.base).unwrap();
                let error = fold_in_steps(&world.files, way, &mut |_| Ok(())).unwrap_err();
                assert_eq!(named(&error), Some(place(&world.files)), "{offset}: {error}");
                assert!(std::fs::read(&world.files.base).unwrap() == before);
                assert!(!world.files.marker.exists() && !world.files.base_copy.exists());
            }
        }
    }
}

#[test]
fn files_that_were_cut_short_or_grew_are_named() {
    type Place = fn(&Files) -> &Path;
    let places: [Place; 4] =
        [|files| &files.base, |files| &files.base_sums, |files| &files.patch_data, |files| &files.patch_map];
    for place in places {
        for change in [-4096, -1, 1, 4096i64] {
            let mut world = World::new();
            world.patch(&CHANGES);
            let path = place(&world.files).to_owned();
            let length = std::fs::metadata(&path).unwrap().len() as i64;
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len((length + change).max(0) as u64).unwrap();
            let error = fold(&world.files).unwrap_err();
            assert_eq!(named(&error), Some(path.as_path()), "{change}: {error}");
            assert!(!world.files.marker.exists());
        }
    }
}

#[test]
fn a_fold_that_was_cut_off_still_finds_damage() {
    let half_written = || {
        let mut world = World::new();
        world.patch(&CHANGES);
        // Checked, marked, two runs written.
        assert_eq!(fold_cut_off(&world.files, Way::InPlace, 3), Some(Step::WroteRun));
        world
    };
    let world = half_written();
    flip(&world.files.patch_data, 4096 * 39);
    assert_eq!(named(&fold(&world.files).unwrap_err()), Some(world.files.patch_data.as_path()));

    // In a page that the patch does not have.
    let world = half_written();
    flip(&world.files.base, 4096 * 4);
    assert_eq!(named(&fold(&world.files).unwrap_err()), Some(world.files.base.as_path()));

    let world = half_written();
    flip(&world.files.marker, 30);
    assert_eq!(named(&fold(&world.files).unwrap_err()), Some(world.files.marker.as_path()));

    for part in [|files: &Files| files.patch_data.clone(), |files: &Files| files.patch_map.clone()] {
        let world = half_written();
        std::fs::remove_file(part(&world.files)).unwrap();
        let error = fold(&world.files).unwrap_err();
        assert!(matches!(&error, MemoryError::PatchGone { patch, .. } if *patch == part(&world.files)), "{error}");
    }

    let mut world = half_written();
    std::fs::remove_file(&world.files.patch_data).unwrap();
    world.patch(&[(3, 3)]);
    assert!(matches!(fold(&world.files).unwrap_err(), MemoryError::OtherPatch { .. }));
}

#[test]
fn a_chunk_of_zeros_is_a_hole_or_not() {
    let world = World::new();
    let hole = world.folder.path().join("hole");
    let zeros = world.folder.path().join("zeros");
    files::create_hole(&hole, 1 << 20).unwrap();
    std::fs::write(&zeros, vec![0; 1 << 20]).unwrap();
    let [hole, zeros] = [hole, zeros].map(|path| Base::open(&path).unwrap());
    let sums = [&hole, &zeros].map(|base| Checksums::of(base.file(), base.path()).unwrap());
    assert_eq!(sums[0], sums[1]);
    for base in [&hole, &zeros] {
        verify(base.file(), base.path(), &Checksums::of_zero(1 << 20)).unwrap();
    }
}

#[test]
fn verify_reads_everything() {
    let world = World::new();
    let sums = Checksums::read(&world.files.base_sums).unwrap().unwrap();
    for page in 0..PAGES as u64 {
        let offset = page * PAGE_BYTES + page * 97;
        flip(&world.files.base, offset);
        let base = world.base();
        let error = verify(base.file(), base.path(), &sums).unwrap_err();
        let chunk = offset / CHUNK_BYTES * CHUNK_BYTES;
        assert!(matches!(error, MemoryError::Damaged { offset, .. } if offset == chunk), "{error}");
        flip(&world.files.base, offset);
        verify(base.file(), base.path(), &sums).unwrap();
    }
    // A chunk that became a hole.
    let file = std::fs::File::options().write(true).open(&world.files.base).unwrap();
    file.set_len(CHUNK_BYTES).unwrap();
    file.set_len((PAGES * PAGE) as u64).unwrap();
    let base = world.base();
    let error = verify(base.file(), base.path(), &sums).unwrap_err();
    assert!(matches!(error, MemoryError::Damaged { offset: CHUNK_BYTES, .. }), "{error}");
}

#[test]
fn a_diff_of_a_vmm_has_real_zeros() {
    let mut world = World::new();
    let data = files::create_hole(&world.files.patch_data, (PAGES * PAGE) as u64).unwrap();
    // Pages 2 and 3 are zero now, 20 is something, 4 stays what it is.
    data.write_all_at(&[0; 2 * PAGE], 2 * PAGE_BYTES).unwrap();
    data.write_all_at(&[77; PAGE], 20 * PAGE_BYTES).unwrap();
    world.model[2 * PAGE..4 * PAGE].fill(0);
    world.model[20 * PAGE..21 * PAGE].fill(77);
    let patch = Patch::of_sparse(&world.files.patch_data, (PAGES * PAGE) as u64).unwrap();
    patch.seal(&world.files.patch_map).unwrap();
    fold(&world.files).unwrap();
    world.assert_folded();
}

#[test]
fn only_a_patch_over_nothing_is_a_base() {
    let world = World::new();
    let bytes = (PAGES * PAGE) as u64;
    let capture = || {
        let data = files::create_hole(&world.files.patch_data, bytes).unwrap();
        data.write_all_at(&[5; PAGE], PAGE_BYTES).unwrap();
        Patch::of_sparse(&world.files.patch_data, bytes).unwrap()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let zero = Base::create_zero(&elsewhere.path().join("zero"), bytes).unwrap();
    let to = Files::in_folder(elsewhere.path());
    assert!(matches!(capture().into_base(&world.base(), &to).unwrap_err(), MemoryError::NotWhole { .. }));
    std::fs::remove_file(&world.files.patch_data).unwrap();
    assert!(matches!(capture().into_base(&zero, &world.files).unwrap_err(), MemoryError::Exists { .. }));
    std::fs::remove_file(&world.files.patch_data).unwrap();
    let sums = capture().into_base(&zero, &to).unwrap();
    let base = Base::open(&to.base).unwrap();
    verify(base.file(), base.path(), &sums).unwrap();
    assert_eq!(Checksums::read(&to.base_sums).unwrap().unwrap(), sums);
}

/// What happens to some pages in one generation.
fn generation() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let fill = prop_oneof![2 => 1..4u8, 1 => Just(0)];
    proptest::collection::vec((0..PAGES, fill), 0..PAGES)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn generations_are_what_a_model_says(
        generations in proptest::collection::vec((generation(), any::<bool>(), 0..60usize), 1..6)
    ) {
        let mut world = World::in_memory();
        for (changes, shared, cut_after) in generations {
            world.patch(&changes);
            let fork = shared.then(|| world.share());
            let way = if shared { Way::Copy } else { Way::InPlace };
            fold_cut_off(&world.files, way, cut_after);
            fold_in_steps(&world.files, way, &mut |_| Ok(())).unwrap();
            world.assert_folded();
            drop(fork);
        }
    }
}

/// What the files of a table hold is what a fold would make of them.
#[test]
fn a_memory_on_demand_is_what_it_is_folded() {
    let mut world = World::new();
    world.patch(&[(0, 0), (1, 91), (2, 92), (20, 0), (39, 93)]);
    let base = world.base();
    let patch = SealedPatch::open(&world.files, base.bytes()).unwrap().unwrap();
    let OnDemand { table, files } = on_demand(&base, &[patch]).unwrap();
    for page in 0..PAGES {
        let mut bytes = [0; PAGE];
        match table.at(page as u32).0 {
            wrenn_proto::shim::pages::Content::Zero => {}
            wrenn_proto::shim::pages::Content::File(file) => {
                files[file as usize].read_exact_at(&mut bytes, (page * PAGE) as u64).unwrap();
            }
        }
        assert_eq!(bytes[..], world.model[page * PAGE..][..PAGE], "page {page}");
    }
}

#[test]
fn checksums_take_the_room_that_was_kept_for_them() {
    use std::os::unix::fs::MetadataExt as _;
    let world = World::new();
    let file = std::fs::File::open(&world.files.base).unwrap();
    let (sums, kept) = (world.folder.path().join("kept.sums"), world.folder.path().join("kept.sums.new"));
    // Enough for many chunks, and left by somebody who was killed.
    std::fs::write(&kept, vec![7; 100_000]).unwrap();
    Checksums::keep_room(&file, &world.files.base, &sums).unwrap();
    let room = std::fs::metadata(&kept).unwrap();
    assert!(!sums.exists() && room.blocks() > 0);
    let wanted = Checksums::of(&file, &world.files.base).unwrap();
    wanted.write(&sums).unwrap();
    assert_eq!(std::fs::metadata(&sums).unwrap().ino(), room.ino(), "it is the same file");
    assert_eq!(Checksums::read(&sums).unwrap(), Some(wanted));
    assert!(!kept.exists());
}
