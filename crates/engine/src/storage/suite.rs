//! What every backend must do, as tests that run over any [`Storage`]; each backend's own tests call all of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::names::{InstanceTag, SandboxId};

pub(super) const MIB: u64 = 1 << 20;

/// What a VM does with its disk. Bytes; on whole blocks of 4 KiB.
#[derive(Clone, Copy, Debug)]
pub(super) enum Io {
    /// Writes so many bytes of this value there.
    Write(u64, u64, u8),
    /// Zeroes so many bytes there.
    Zero(u64, u64),
    /// Finds so many bytes of this value there, or fails the test.
    Find(u64, u64, u8),
}

/// A backend under test, with a folder of its own.
pub(super) struct Bench<'a> {
    storage: &'a dyn Storage,
    /// Does as the disk's VMM would.
    run: fn(&Disk, &[Io]),
    dir: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    pub(super) fn new(storage: &'a dyn Storage, run: fn(&Disk, &[Io])) -> Self {
        Self { storage, run, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn place(&self, name: &str) -> Place {
        place(self.dir.path(), name)
    }

    pub(super) fn base(&self) -> Layer {
        base(self.dir.path())
    }
}

/// A place in the folder of a test, which is an instance of its own: another folder has another tag.
pub(super) fn place(dir: &Path, name: &str) -> Place {
    Place { path: dir.join(name), name: DiskName { tag: tag(dir), sandbox: id(&dir.join(name)) } }
}

/// The tag of a folder.
pub(super) fn tag(dir: &Path) -> InstanceTag {
    id(dir).as_str()[2..2 + InstanceTag::LENGTH].parse().unwrap()
}

fn id(path: &Path) -> SandboxId {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut bytes = [0; 18];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let mut hasher = DefaultHasher::new();
        (index, path).hash(&mut hasher);
        *byte = hasher.finish() as u8;
    }
    SandboxId::from_random(bytes)
}

/// A raw image of 4 MiB with a pattern in its second MiB.
pub(super) fn base(dir: &Path) -> Layer {
    let path = dir.join("base.img");
    let file = File::create(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&vec![0xba; MIB as usize], MIB).unwrap();
    Layer { path, format: LayerFormat::Raw, size_bytes: 4 * MIB }
}

type Test = fn(&Bench<'_>);

/// Everything below.
pub(super) fn all(storage: &dyn Storage, run: fn(&Disk, &[Io])) {
    let tests: [(&str, Test); 12] = [
        ("keeps_apart", keeps_apart),
        ("a_seal_is_a_moment", a_seal_is_a_moment),
        ("layers_stack", layers_stack),
        ("opens_again", opens_again),
        ("a_detached_disk_is_a_layer_or_goes_on", a_detached_disk_is_a_layer_or_goes_on),
        ("refuses", refuses),
        ("removing_twice_is_fine", removing_twice_is_fine),
        ("a_failure_leaves_nothing", a_failure_leaves_nothing),
        ("agrees_with_a_plain_array", agrees_with_a_plain_array),
        ("merged_layers_are_read_as_the_layers", merged_layers_are_read_as_the_layers),
        ("nothing_merged_is_a_layer", nothing_merged_is_a_layer),
        ("a_merge_that_fails_leaves_nothing", a_merge_that_fails_leaves_nothing),
    ];
    for (name, test) in tests {
        println!("suite: {name}");
        test(&Bench::new(storage, run));
    }
}

/// A live disk that was let go of goes on where it stood; moved away, others stand on it.
fn a_detached_disk_is_a_layer_or_goes_on(bench: &Bench<'_>) {
    let (storage, base, place) = (bench.storage, bench.base(), bench.place("disk"));
    let beneath = std::slice::from_ref(&base);
    let disk = storage.create(&place, beneath, 8 * MIB).unwrap();
    (bench.run)(&disk, &[Io::Write(0, 65_536, 0x31), Io::Write(7 * MIB, 4096, 0x32)]);
    storage.detach(&disk).unwrap();
    storage.detach(&disk).unwrap();

    let disk = storage.open(&place, beneath, 8 * MIB).unwrap();
    (bench.run)(&disk, &[Io::Find(0, 65_536, 0x31), Io::Write(65_536, 65_536, 0x33)]);
    storage.detach(&disk).unwrap();
    let moved = bench.path("moved");
    std::fs::rename(&disk.path, &moved).unwrap();
    storage.detach(&disk).unwrap();
    let layer = Layer { path: moved, format: storage.layer_format(), size_bytes: 8 * MIB };

    let layers = [base, layer];
    let copy = storage.restore(&place, &layers).unwrap();
    (bench.run)(&copy, &[Io::Find(7 * MIB, 4096, 0x32), Io::Write(0, 131_072, 0x34)]);
    storage.remove(&copy).unwrap();
    let above = storage.create(&bench.place("above"), &layers, 8 * MIB).unwrap();
    (bench.run)(&above, &[Io::Find(0, 65_536, 0x31), Io::Find(65_536, 65_536, 0x33), Io::Find(MIB, MIB, 0xba)]);
    storage.remove(&above).unwrap();
}

/// What was written, and what lies beneath, are not mixed up; the image stays as it is, and a flat copy is sparse.
fn keeps_apart(bench: &Bench<'_>) {
    let base = bench.base();
    let before = std::fs::read(&base.path).unwrap();
    let disk = bench.storage.create(&bench.place("disk"), std::slice::from_ref(&base), 8 * MIB).unwrap();
    (bench.run)(&disk, &[Io::Write(0, 65_536, 0x11), Io::Zero(MIB, 131_072), Io::Write(7 * MIB, 4096, 0x22)]);
    (bench.run)(&disk, &[Io::Find(MIB + 131_072, MIB - 131_072, 0xba), Io::Find(4 * MIB, 3 * MIB, 0)]);

    let layer = bench.storage.seal(&disk, &bench.path("layer")).unwrap();
    assert_eq!(layer.size_bytes, 8 * MIB);
    let status = bench.storage.status(&disk).unwrap();
    assert_eq!((status.size_bytes, status.health), (8 * MIB, Health::Sound));
    assert!(status.own_bytes < 2 * MIB && status.shared_bytes >= MIB, "{status:?}");
    let flat = bench.storage.flatten(&[base.clone(), layer], &bench.path("flat")).unwrap();
    let bytes = std::fs::read(&flat.path).unwrap();
    assert_eq!(bytes.len() as u64, 8 * MIB);
    let all = |from: u64, to: u64, value: u8| bytes[from as usize..to as usize].iter().all(|byte| *byte == value);
    assert!(all(0, 65_536, 0x11), "what was written");
    assert!(all(MIB, MIB + 131_072, 0), "what was zeroed over data of the base is zero");
    assert!(all(MIB + 131_072, 2 * MIB, 0xba), "what lies beneath");
    assert!(all(7 * MIB, 7 * MIB + 4096, 0x22), "beyond the base");
    assert!(allocated_bytes(&flat.path).unwrap() < 2 * MIB, "the flat image is sparse");
    assert_eq!(std::fs::read(&base.path).unwrap(), before, "the base is as it was");
    bench.storage.remove(&disk).unwrap();
}

/// What is written after a seal is not in the layer, and forks go their own ways.
fn a_seal_is_a_moment(bench: &Bench<'_>) {
    let base = bench.base();
    let disk = bench.storage.create(&bench.place("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    (bench.run)(&disk, &[Io::Write(0, 65_536, 0x11)]);
    let layer = bench.storage.seal(&disk, &bench.path("layer")).unwrap();
    (bench.run)(&disk, &[Io::Write(0, 65_536, 0x33)]);

    let fork = bench.storage.restore(&bench.place("fork"), &[base.clone(), layer.clone()]).unwrap();
    (bench.run)(&fork, &[Io::Find(0, 65_536, 0x11), Io::Find(MIB, MIB, 0xba), Io::Write(3 * MIB, 65_536, 0x44)]);
    (bench.run)(&disk, &[Io::Find(0, 65_536, 0x33), Io::Find(3 * MIB, 65_536, 0)]);
    let fresh = bench.storage.restore(&bench.place("fresh"), &[base]).unwrap();
    (bench.run)(&fresh, &[Io::Find(0, MIB, 0), Io::Find(MIB, MIB, 0xba)]);
    for disk in [disk, fork, fresh] {
        bench.storage.remove(&disk).unwrap();
    }
}

/// Disks on sealed layers on sealed layers, each larger than the one beneath; two on the same ones.
fn layers_stack(bench: &Bench<'_>) {
    let base = bench.base();
    let first = bench.storage.create(&bench.place("first"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    (bench.run)(&first, &[Io::Write(0, 65_536, 0x11)]);
    let mut layers = vec![base, bench.storage.seal(&first, &bench.path("layer1")).unwrap()];
    let second = bench.storage.create(&bench.place("second"), &layers, 6 * MIB).unwrap();
    (bench.run)(&second, &[Io::Find(0, 65_536, 0x11), Io::Write(5 * MIB, 65_536, 0x22)]);
    layers.push(bench.storage.seal(&second, &bench.path("layer2")).unwrap());

    let seen = [Io::Find(0, 65_536, 0x11), Io::Find(MIB, MIB, 0xba), Io::Find(5 * MIB, 65_536, 0x22)];
    let third = bench.storage.create(&bench.place("third"), &layers, 8 * MIB).unwrap();
    let fourth = bench.storage.create(&bench.place("fourth"), &layers, 8 * MIB).unwrap();
    let restored = bench.storage.restore(&bench.place("restored"), &layers).unwrap();
    assert_eq!(restored.size_bytes, 6 * MIB);
    (bench.run)(&third, &[Io::Write(0, 4096, 0x33), Io::Write(7 * MIB, 4096, 0x33)]);
    (bench.run)(&third, &[Io::Find(0, 4096, 0x33), Io::Find(4096, 61_440, 0x11)]);
    bench.storage.remove(&third).unwrap();
    (bench.run)(&fourth, &seen);
    (bench.run)(&fourth, &[Io::Find(7 * MIB, MIB, 0)]);
    (bench.run)(&restored, &seen);
    for disk in [first, second, fourth, restored] {
        bench.storage.remove(&disk).unwrap();
    }
}

/// A disk that is there already is found again, with what it holds.
fn opens_again(bench: &Bench<'_>) {
    let (base, place) = (bench.base(), bench.place("disk"));
    let layers = std::slice::from_ref(&base);
    let disk = bench.storage.create(&place, layers, 8 * MIB).unwrap();
    (bench.run)(&disk, &[Io::Write(0, 4096, 0x11)]);
    let again = bench.storage.open(&place, layers, 8 * MIB).unwrap();
    assert_eq!(again, disk);
    (bench.run)(&again, &[Io::Find(0, 4096, 0x11), Io::Write(4096, 4096, 0x22)]);
    assert!(bench.storage.open(&place, layers, 16 * MIB).is_err(), "another size");
    (bench.run)(&again, &[Io::Find(4096, 4096, 0x22)]);
    bench.storage.remove(&disk).unwrap();
    assert!(bench.storage.open(&place, layers, 8 * MIB).is_err(), "nothing there");
}

fn refuses(bench: &Bench<'_>) {
    let base = bench.base();
    let layers = std::slice::from_ref(&base);
    let place = bench.place("disk");
    let smaller = bench.storage.create(&place, layers, MIB).unwrap_err();
    assert!(matches!(smaller, StorageError::SmallerThanBase { .. }), "{smaller}");
    assert!(matches!(bench.storage.create(&place, &[], MIB), Err(StorageError::NoBase)));
    let many = vec![base.clone(); limits::DISK_LAYERS_MAX + 1];
    assert!(matches!(bench.storage.create(&place, &many, 4 * MIB), Err(StorageError::TooManyLayers { .. })));
    let raw_twice = bench.storage.create(&place, &[base.clone(), base.clone()], 4 * MIB).unwrap_err();
    assert!(matches!(raw_twice, StorageError::OtherBackend { .. }), "{raw_twice}");

    let disk = bench.storage.create(&place, layers, 4 * MIB).unwrap();
    let again = bench.storage.create(&place, layers, 4 * MIB).unwrap_err();
    assert!(matches!(again, StorageError::Exists { .. }), "{again}");
    (bench.run)(&disk, &[Io::Find(MIB, MIB, 0xba)]);
    bench.storage.remove(&disk).unwrap();
}

fn removing_twice_is_fine(bench: &Bench<'_>) {
    let disk = bench.storage.create(&bench.place("disk"), &[bench.base()], 8 * MIB).unwrap();
    bench.storage.remove(&disk).unwrap();
    bench.storage.remove(&disk).unwrap();
    assert!(!disk.path.exists());
}

fn a_failure_leaves_nothing(bench: &Bench<'_>) {
    let base = bench.base();
    let garbage = |format| {
        let path = bench.path("garbage");
        std::fs::write(&path, [0x55; 65_536]).unwrap();
        Layer { path, format, size_bytes: 4 * MIB }
    };
    let probe = bench.storage.create(&bench.place("probe"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    let ours = bench.storage.seal(&probe, &bench.path("sealed")).unwrap().format;
    bench.storage.remove(&probe).unwrap();

    let place = bench.place("disk");
    let layers = [base, garbage(ours)];
    // A backend may see it only when the layer is read.
    match bench.storage.restore(&place, &layers) {
        Ok(disk) => bench.storage.remove(&disk).unwrap(),
        Err(_told_at_once) => assert!(!place.path.exists(), "a half-made disk stayed"),
    }
    bench.storage.flatten(&layers, &bench.path("flat")).unwrap_err();
    assert!(!bench.path("flat").exists(), "a half-made image stayed");
}

/// Any writes and zeroings, with a seal in between: disk and flat image say what a plain array says.
fn agrees_with_a_plain_array(bench: &Bench<'_>) {
    let writes = || proptest::collection::vec((0u64..1024, 1u64..64, 0u8..4), 1..6);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(12) });
    runner.run(&(writes(), writes()), |(first, second)| agree(bench, &first, &second)).unwrap();
}

fn agree(bench: &Bench<'_>, first: &[(u64, u64, u8)], second: &[(u64, u64, u8)]) -> Result<(), TestCaseError> {
    let base = bench.base();
    let mut model = std::fs::read(&base.path).unwrap();
    let disk = bench.storage.create(&bench.place("disk"), std::slice::from_ref(&base), 4 * MIB).unwrap();
    apply(bench, &disk, &mut model, first);
    let layer = bench.storage.seal(&disk, &bench.path("layer1")).unwrap();
    let top = bench.storage.create(&bench.place("top"), &[base.clone(), layer.clone()], 4 * MIB).unwrap();
    apply(bench, &top, &mut model, second);
    let layers = [base, layer, bench.storage.seal(&top, &bench.path("layer2")).unwrap()];
    let flat = bench.storage.flatten(&layers, &bench.path("flat")).unwrap();
    let same = std::fs::read(&flat.path).unwrap() == model;
    for disk in [disk, top] {
        bench.storage.remove(&disk).unwrap();
    }
    for path in ["layer1", "layer2", "flat"] {
        std::fs::remove_file(bench.path(path)).unwrap();
    }
    prop_assert!(same);
    Ok(())
}

/// Value 0 is a zeroing.
fn apply(bench: &Bench<'_>, disk: &Disk, model: &mut [u8], writes: &[(u64, u64, u8)]) {
    let mut ios = Vec::new();
    for (block, count, value) in writes {
        let (start, end) = (block * 4096, ((block + count) * 4096).min(model.len() as u64));
        model[start as usize..end as usize].fill(*value);
        ios.push(match value {
            0 => Io::Zero(start, end - start),
            value => Io::Write(start, end - start, *value),
        });
    }
    (bench.run)(disk, &ios);
}

/// Any writes and zeroings in several layers, each of a disk that may be larger than the one beneath: the one layer that is made
/// of them says what a plain array says, to a flatten, to a disk that goes on from it, and to one that stands on it.
fn merged_layers_are_read_as_the_layers(bench: &Bench<'_>) {
    let writes = proptest::collection::vec((0u64..1500, 1u64..64, 0u8..4), 0..6);
    let layers = proptest::collection::vec((writes, 0u64..2), 1..5);
    // A disk takes seconds to be made and removed where device-mapper is emulated.
    let cases = match bench.storage.backend() {
        Backend::DeviceMapper => 2,
        Backend::Qcow2 => 12,
    };
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
    runner.run(&layers, |layers| merge(bench, &layers)).unwrap();
}

/// What is written in a layer (first block, blocks, what), and by how many MiB its disk is larger than the one beneath.
type Written = (Vec<(u64, u64, u8)>, u64);

fn merge(bench: &Bench<'_>, written: &[Written]) -> Result<(), TestCaseError> {
    let base = bench.base();
    let mut model = std::fs::read(&base.path).unwrap();
    let mut layers = vec![base.clone()];
    for (index, (writes, grown_mib)) in written.iter().enumerate() {
        model.resize(model.len() + (grown_mib * MIB) as usize, 0);
        let place = bench.place(&format!("disk{index}"));
        let disk = bench.storage.create(&place, &layers, model.len() as u64).unwrap();
        let fits = |(block, ..): &&(u64, u64, u8)| block * 4096 < model.len() as u64;
        let writes: Vec<_> = writes.iter().filter(fits).copied().collect();
        apply(bench, &disk, &mut model, &writes);
        layers.push(bench.storage.seal(&disk, &bench.path(&format!("layer{index}"))).unwrap());
        bench.storage.remove(&disk).unwrap();
    }
    let merged = bench.storage.merge(&layers, &bench.path("merged")).unwrap();
    let wanted = (bench.storage.layer_format(), model.len() as u64);
    prop_assert_eq!((merged.format, merged.size_bytes), wanted);
    let sealed: u64 = layers[1..].iter().map(|layer| allocated_bytes(&layer.path).unwrap()).sum();
    prop_assert!(allocated_bytes(&merged.path).unwrap() <= sealed + 256 * 1024, "it is sparse");

    let merged_layers = [base, merged];
    let flat = bench.storage.flatten(&merged_layers, &bench.path("flat")).unwrap();
    prop_assert!(std::fs::read(&flat.path).unwrap() == model);
    let goes_on = bench.storage.restore(&bench.place("goes on"), &merged_layers).unwrap();
    let above = bench.storage.create(&bench.place("above"), &merged_layers, model.len() as u64).unwrap();
    for disk in [goes_on, above] {
        (bench.run)(&disk, &finds(&model));
        let mut model = model.clone();
        apply(bench, &disk, &mut model, &[(3, 40, 7), (300, 20, 0), (1000, 20, 8)]);
        (bench.run)(&disk, &finds(&model));
        bench.storage.remove(&disk).unwrap();
    }
    for layer in layers[1..].iter().chain([&merged_layers[1], &flat]) {
        std::fs::remove_file(&layer.path).unwrap();
    }
    Ok(())
}

/// All that the model says, stretch by stretch.
fn finds(model: &[u8]) -> Vec<Io> {
    let mut at = 0;
    let stretch = |stretch: &[u8]| {
        let (start, length) = (at, stretch.len() as u64);
        at += length;
        Io::Find(start, length, stretch[0])
    };
    model.chunk_by(|a, b| a == b).map(stretch).collect()
}

/// Where there is nothing above the base, or nothing was written there.
fn nothing_merged_is_a_layer(bench: &Bench<'_>) {
    let base = bench.base();
    let disk = bench.storage.create(&bench.place("disk"), std::slice::from_ref(&base), 8 * MIB).unwrap();
    let empty = bench.storage.seal(&disk, &bench.path("empty")).unwrap();
    bench.storage.remove(&disk).unwrap();
    for (layers, size_bytes) in [(vec![base.clone()], 4 * MIB), (vec![base.clone(), empty], 8 * MIB)] {
        let merged = bench.storage.merge(&layers, &bench.path("merged")).unwrap();
        assert_eq!(merged.size_bytes, size_bytes);
        let disk = bench.storage.restore(&bench.place("disk"), &[base.clone(), merged.clone()]).unwrap();
        (bench.run)(
            &disk,
            &[Io::Find(0, MIB, 0), Io::Find(MIB, MIB, 0xba), Io::Write(0, 4096, 1), Io::Find(0, 4096, 1)],
        );
        bench.storage.remove(&disk).unwrap();
        std::fs::remove_file(&merged.path).unwrap();
    }
}

fn a_merge_that_fails_leaves_nothing(bench: &Bench<'_>) {
    let base = bench.base();
    let merged = bench.path("merged");
    let garbage = Layer { path: bench.path("garbage"), format: bench.storage.layer_format(), size_bytes: 4 * MIB };
    std::fs::write(&garbage.path, [0x55; 65_536]).unwrap();
    bench.storage.merge(&[base.clone(), garbage.clone()], &merged).unwrap_err();
    assert!(!merged.exists(), "a half-made layer stayed");
    let smaller = Layer { size_bytes: 2 * MIB, ..garbage };
    let error = bench.storage.merge(&[base.clone(), smaller], &merged).unwrap_err();
    assert!(matches!(error, StorageError::SmallerThanBase { .. }), "{error}");
    assert!(matches!(bench.storage.merge(&[], &merged), Err(StorageError::NoBase)));
    std::fs::write(&merged, "mine").unwrap();
    let error = bench.storage.merge(std::slice::from_ref(&base), &merged).unwrap_err();
    assert!(matches!(error, StorageError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(&merged).unwrap(), b"mine", "it is not overwritten");
}
