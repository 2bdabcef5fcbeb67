//! Disks by device-mapper against the kernel; all of them need a host that has it.

#![allow(
    clippy::disallowed_methods,
    reason = "mke2fs makes a file system that can be filled up; children are this test"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wrenn_sys::dm::{Access, DeviceMapper, Table};
use wrenn_sys::loopdev::{self, LoopDevice, Options};

use super::*;
use crate::storage::suite::{self, Io, MIB, place};

/// A folder, and the certainty that nothing on the host is left of the disks in it.
struct World {
    dir: tempfile::TempDir,
    dm: Dm,
}

impl World {
    fn new() -> Self {
        let dm = Dm::open().expect("this test needs device-mapper");
        Self { dir: tempfile::tempdir().unwrap(), dm }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn base(&self) -> Layer {
        suite::base(&self.path())
    }

    fn create(&self, name: &str, base: &Layer, size_bytes: u64) -> Disk {
        self.dm.create(&place(&self.path(), name), std::slice::from_ref(base), size_bytes).unwrap()
    }

    fn devices(&self) -> Vec<String> {
        let tag = suite::tag(&self.path());
        let listed = self.dm.devices.mapper().list().unwrap();
        let ours =
            listed.into_iter().filter(|(name, _)| DiskName::parse(name.as_str()).is_ok_and(|it| it.0.tag == tag));
        ours.map(|(name, _)| name.to_string()).collect()
    }

    /// How many loop devices have a file of this folder, also one that has no name any more.
    fn loops(&self, of: &str) -> usize {
        let prefix = self.path().join(of);
        let fits = |path: &PathBuf| path.to_string_lossy().starts_with(&*prefix.to_string_lossy());
        loopdev::attached().unwrap().filter(|attached| fits(&attached.backing)).count()
    }

    fn assert_clean(&self) {
        assert_eq!(self.devices(), Vec::<String>::new());
        assert_eq!(self.loops(""), 0, "loop devices");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After a test that failed; one that did not has shown that there is nothing.
        if let Err(error) = self.dm.devices.sweep(suite::tag(&self.path()), &|_| false) {
            eprintln!("left behind: {error}");
        }
    }
}

/// Does as a VMM would: the block device, opened for as long as the VM runs.
fn run(disk: &Disk, ios: &[Io]) {
    try_run(disk, ios).unwrap();
}

fn try_run(disk: &Disk, ios: &[Io]) -> io::Result<()> {
    let device = File::options().read(true).write(true).open(disk.device.as_ref().unwrap())?;
    for io in ios {
        match *io {
            Io::Write(at, length, byte) => device.write_all_at(&vec![byte; length as usize], at)?,
            Io::Zero(at, length) => device.write_all_at(&vec![0; length as usize], at)?,
            Io::Find(at, length, byte) => {
                let mut bytes = vec![!byte; length as usize];
                device.read_exact_at(&mut bytes, at)?;
                assert!(bytes.iter().all(|it| *it == byte), "{io:?}");
            }
        }
    }
    device.sync_all()
}

#[test]
fn testbed_does_what_every_backend_must_do() {
    let world = World::new();
    suite::all(&world.dm, run);
    world.assert_clean();
}

#[test]
fn testbed_the_kernel_and_the_reader_of_stores_agree() {
    let world = World::new();
    let base = world.base();
    // Every other chunk, so that there are several lists, and the last one is full.
    let disk = world.create("disk", &base, 4 * MIB);
    let ios: Vec<Io> = (0..512).map(|index| Io::Write(index * 8192, 4096, index as u8 | 1)).collect();
    run(&disk, &ios);
    let layer = world.dm.seal(&disk, &world.path().join("layer")).unwrap();
    let flat = world.dm.flatten(&[base, layer], &world.path().join("flat")).unwrap();
    let device = std::fs::read(disk.device.as_ref().unwrap()).unwrap();
    assert!(device == std::fs::read(&flat.path).unwrap());
    world.dm.remove(&disk).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_the_kernel_reads_a_merged_store_as_the_stores() {
    let world = World::new();
    let mut layers = vec![world.base()];
    // More than one list each, chunks in common, and the last list of the merged one full: 512 + 512 - 256 chunks.
    let written: [Vec<Io>; 2] = [
        (0..512).map(|index| Io::Write((1023 - index) * 4096, 4096, 0x11)).collect(),
        (0..512).map(|index| Io::Write(index * 8192, 4096, index as u8 | 1)).collect(),
    ];
    for (index, ios) in written.iter().enumerate() {
        let disk = world.dm.create(&place(&world.path(), "disk"), &layers, 4 * MIB).unwrap();
        run(&disk, ios);
        layers.push(world.dm.seal(&disk, &world.path().join(format!("layer{index}"))).unwrap());
        world.dm.remove(&disk).unwrap();
    }
    let merged = world.dm.merge(&layers, &world.path().join("merged")).unwrap();
    let chained = world.dm.create(&place(&world.path(), "chained"), &layers, 4 * MIB).unwrap();
    let short = [layers[0].clone(), merged];
    let above = world.dm.create(&place(&world.path(), "above"), &short, 4 * MIB).unwrap();
    let goes_on = world.dm.restore(&place(&world.path(), "goes on"), &short).unwrap();
    let bytes = |disk: &Disk| std::fs::read(disk.device.as_ref().unwrap()).unwrap();
    assert!(bytes(&above) == bytes(&chained));
    assert!(bytes(&goes_on) == bytes(&chained));
    // The kernel goes on where the merged store ends.
    run(&goes_on, &[Io::Write(0, 4 * MIB, 0x44)]);
    run(&goes_on, &[Io::Find(0, 4 * MIB, 0x44)]);
    assert_eq!(world.dm.status(&goes_on).unwrap().health, Health::Sound);
    for disk in [chained, above, goes_on] {
        world.dm.remove(&disk).unwrap();
    }
    world.assert_clean();
}

#[test]
fn testbed_a_disk_that_is_written_all_over_stays_sound() {
    let world = World::new();
    let base = world.base();
    let disk = world.create("disk", &base, 8 * MIB);
    run(&disk, &[Io::Write(0, 8 * MIB, 0x77)]);
    run(&disk, &[Io::Find(0, 8 * MIB, 0x77)]);
    let status = world.dm.status(&disk).unwrap();
    assert_eq!(status.health, Health::Sound);
    assert!(status.own_bytes >= 8 * MIB);
    world.dm.remove(&disk).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_one_of_two_disks_on_an_image_is_removed() {
    let world = World::new();
    let base = world.base();
    let (first, second) = (world.create("first", &base, 4 * MIB), world.create("second", &base, 8 * MIB));
    assert_eq!(world.loops("base.img"), 1);
    run(&first, &[Io::Write(0, MIB, 0x11)]);
    run(&second, &[Io::Write(0, MIB, 0x22)]);
    world.dm.remove(&first).unwrap();
    run(&second, &[Io::Find(0, MIB, 0x22), Io::Find(MIB, MIB, 0xba), Io::Find(2 * MIB, 6 * MIB, 0)]);
    assert_eq!(world.loops("base.img"), 1);
    world.dm.remove(&second).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_an_image_that_is_deleted_keeps_working() {
    let world = World::new();
    let base = world.base();
    let disk = world.create("disk", &base, 8 * MIB);
    std::fs::remove_file(&base.path).unwrap();
    run(&disk, &[Io::Find(MIB, MIB, 0xba), Io::Write(0, 4096, 0x11)]);
    assert_eq!(world.dm.status(&disk).unwrap().health, Health::Sound);
    // Another image in its place is another image.
    let other = world.base();
    File::options().write(true).open(&other.path).unwrap().write_all_at(&[0xcc; 4096], 0).unwrap();
    let second = world.create("second", &other, 4 * MIB);
    run(&second, &[Io::Find(0, 4096, 0xcc)]);
    run(&disk, &[Io::Find(0, 4096, 0x11), Io::Find(4096, 4096, 0)]);
    world.dm.remove(&disk).unwrap();
    world.dm.remove(&second).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_64_disks_on_one_image_share_one_loop_device() {
    let world = World::new();
    let base = world.base();
    // From several backends, as several processes have.
    let disks: Vec<Disk> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|group| {
                let (world, base) = (&world, &base);
                scope.spawn(move || {
                    let dm = Dm::open().unwrap();
                    let create = |index: u32| {
                        let place = place(&world.path(), &format!("disk-{group}-{index}"));
                        dm.create(&place, std::slice::from_ref(base), 4 * MIB).unwrap()
                    };
                    (0..16).map(create).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(disks.len(), 64);
    assert_eq!((world.loops("base.img"), world.loops("disk")), (1, 64));
    run(&disks[63], &[Io::Find(MIB, MIB, 0xba)]);
    for disk in &disks {
        world.dm.remove(disk).unwrap();
    }
    world.assert_clean();
}

#[test]
fn testbed_a_disk_in_use_is_not_removed_and_then_it_is() {
    let world = World::new();
    let base = world.base();
    let disk = world.create("disk", &base, 8 * MIB);
    let open = File::open(disk.device.as_ref().unwrap()).unwrap();
    let begin = Instant::now();
    let error = world.dm.remove(&disk).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
    assert!(begin.elapsed() >= Duration::from_millis(800) && disk.path.exists());
    run(&disk, &[Io::Find(MIB, MIB, 0xba)]);

    // Who lets go meanwhile is waited for.
    let remove = std::thread::scope(|scope| {
        let removing = scope.spawn(|| world.dm.remove(&disk));
        std::thread::sleep(Duration::from_millis(300));
        drop(open);
        removing.join().unwrap()
    });
    remove.unwrap();
    world.assert_clean();
}

#[test]
fn testbed_devices_that_are_as_wanted_are_adopted() {
    let world = World::new();
    let base = world.base();
    let place = place(&world.path(), "disk");
    let layers = std::slice::from_ref(&base);
    let disk = world.dm.create(&place, layers, 8 * MIB).unwrap();
    run(&disk, &[Io::Write(0, 4096, 0x11)]);
    // As another process that knows nothing, with the device open, and suspended by a seal that was killed.
    let held = File::open(disk.device.as_ref().unwrap()).unwrap();
    world.dm.devices.mapper().suspend(&dm_name(&disk.name), Suspend::Flush).unwrap();
    let adopted = Dm::open().unwrap().open(&place, layers, 8 * MIB).unwrap();
    assert_eq!(adopted, disk);
    run(&adopted, &[Io::Find(0, 4096, 0x11), Io::Write(0, 4096, 0x22)]);
    drop(held);

    // After a restart of the host there is only the live file.
    world.dm.devices.remove_all(&disk.name).unwrap();
    world.assert_clean();
    let again = world.dm.open(&place, layers, 8 * MIB).unwrap();
    run(&again, &[Io::Find(0, 4096, 0x22), Io::Find(MIB, MIB, 0xba)]);
    world.dm.remove(&again).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_stale_devices_are_replaced() {
    let world = World::new();
    let base = world.base();
    let stale = |name: &DmName, table: Option<&str>| {
        let mapper = DeviceMapper::open().unwrap();
        mapper.create(name).unwrap();
        if let Some(table) = table {
            mapper.load(name, &table.parse::<Table>().unwrap(), Access::ReadWrite).unwrap();
            mapper.resume(name).unwrap();
        }
    };
    for (index, table) in [None, Some("0 8 zero"), Some("0 16384 zero")].into_iter().enumerate() {
        let place = place(&world.path(), &format!("disk{index}"));
        stale(&dm_name(&place.name), table);
        stale(&place.name.beneath(0).parse().unwrap(), table);
        stale(&place.name.beneath(7).parse().unwrap(), table);
        let disk = world.dm.create(&place, std::slice::from_ref(&base), 8 * MIB).unwrap();
        run(&disk, &[Io::Find(MIB, MIB, 0xba), Io::Find(4 * MIB, 4 * MIB, 0)]);
        world.dm.remove(&disk).unwrap();
    }
    // A whole disk whose live file was removed, and is another one now.
    let place = place(&world.path(), "whole");
    let old = world.dm.create(&place, std::slice::from_ref(&base), 8 * MIB).unwrap();
    run(&old, &[Io::Write(0, 4096, 0x11)]);
    std::fs::remove_file(&place.path).unwrap();
    let new = world.dm.create(&place, std::slice::from_ref(&base), 8 * MIB).unwrap();
    run(&new, &[Io::Find(0, 4096, 0)]);
    world.dm.remove(&new).unwrap();
    world.assert_clean();
}

#[test]
fn testbed_a_sweep_takes_what_nobody_owns_and_nothing_else() {
    let world = World::new();
    let base = world.base();
    let (kept, orphan) = (world.create("kept", &base, 8 * MIB), world.create("orphan", &base, 8 * MIB));
    let held = world.create("held", &base, 4 * MIB);
    let open = File::open(held.device.as_ref().unwrap()).unwrap();
    let tag = suite::tag(&world.path());
    let owned = |id: &SandboxId| *id == kept.name.sandbox;
    let error = sweep(tag, &owned).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }), "{error:?}");
    assert!(!world.devices().contains(&orphan.name.device()), "one in use did not keep the other from going");
    drop(open);
    assert_eq!(sweep(tag, &owned).unwrap(), [held.name.sandbox]);
    assert_eq!(world.devices().len(), 2);
    run(&kept, &[Io::Find(MIB, MIB, 0xba)]);
    world.dm.remove(&kept).unwrap();
    world.assert_clean();
}

/// A file system of its own that is soon full.
struct SmallFileSystem {
    folder: PathBuf,
}

impl SmallFileSystem {
    fn new(world: &World, mib: u64) -> Self {
        let (image, folder) = (world.path().join("small.ext4"), world.path().join("small"));
        File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image).status().unwrap();
        assert!(made.success());
        std::fs::create_dir(&folder).unwrap();
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let options = Options { read_only: false, direct_io: false, autoclear: true };
        let device = LoopDevice::attach(std::os::fd::AsFd::as_fd(&file), options).unwrap();
        mount(device.path(), &folder, "ext4", MountFlags::empty(), None).unwrap();
        Self { folder }
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        unmount(&self.folder, UnmountFlags::empty()).unwrap_or_else(|error| eprintln!("small file system: {error}"));
    }
}

#[test]
fn testbed_a_full_file_system_costs_the_disk_that_filled_it_and_no_other() {
    let world = World::new();
    let base = world.base();
    let small = SmallFileSystem::new(&world, 24);
    let elsewhere = world.create("elsewhere", &base, 64 * MIB);
    let in_small = |name: &str| {
        let place = place(&world.path(), name);
        let place = Place { path: small.folder.join(name), ..place };
        world.dm.create(&place, std::slice::from_ref(&base), 64 * MIB).unwrap()
    };
    let (filler, neighbour) = (in_small("filler"), in_small("neighbour"));
    run(&neighbour, &[Io::Write(0, 4096, 0x22)]);

    let all = [Io::Write(0, 64 * MIB, 0x11)];
    let written = try_run(&filler, &all);
    assert!(written.is_err(), "64 MiB do not fit into 24");
    assert_eq!(world.dm.status(&filler).unwrap().health, Health::Lost);
    let sealed = world.dm.seal(&filler, &world.path().join("layer")).unwrap_err();
    assert!(matches!(sealed, StorageError::Lost { .. }), "{sealed:?}");
    assert!(!world.path().join("layer").exists());
    assert!(try_run(&filler, &[Io::Find(0, 4096, 0x11)]).is_err(), "a lost disk does not answer with something");

    run(&neighbour, &[Io::Find(0, 4096, 0x22), Io::Find(MIB, MIB, 0xba)]);
    run(&elsewhere, &[Io::Write(8 * MIB, MIB, 0x33), Io::Find(MIB, MIB, 0xba)]);
    assert_eq!(world.dm.status(&neighbour).unwrap().health, Health::Sound);
    let refused = Dm::open().unwrap().open(
        &Place { path: filler.path.clone(), name: filler.name.clone() },
        &filler.layers,
        filler.size_bytes,
    );
    assert!(refused.is_err(), "{refused:?}");

    world.dm.remove(&filler).unwrap();
    run(&neighbour, &[Io::Write(MIB, MIB, 0x44), Io::Find(MIB, MIB, 0x44)]);
    for disk in [neighbour, elsewhere] {
        world.dm.remove(&disk).unwrap();
    }
    drop(small);
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn testbed_a_writer_that_stops_at_the_reserve_loses_nothing() {
    use crate::storage::space::{Space, Thresholds, Watch, available_bytes};
    use std::sync::atomic::{AtomicBool, Ordering};
    let world = World::new();
    let base = world.base();
    let small = SmallFileSystem::new(&world, 512);
    let place = Place { path: small.folder.join("disk"), ..place(&world.path(), "disk") };
    let disk = world.dm.create(&place, std::slice::from_ref(&base), 2048 * MIB).unwrap();
    let stop = AtomicBool::new(false);
    let mut watch = Watch::new(&small.folder, Thresholds::of(&small.folder).unwrap(), crate::limits::SPACE_LOOK_EVERY);
    let written = std::thread::scope(|scope| {
        // Through the page cache, as fast as it takes it: as a guest's vCPUs do by their VMM.
        let writer = scope.spawn(|| {
            let device = File::options().write(true).open(disk.device.as_ref().unwrap()).unwrap();
            let mut mib = 0;
            while !stop.load(Ordering::Relaxed) && mib < 2048 {
                device.write_all_at(&vec![mib as u8 | 1; MIB as usize], mib * MIB).unwrap();
                mib += 1;
            }
            (device, mib)
        });
        let change = tokio::runtime::Handle::current();
        let change = tokio::task::block_in_place(|| change.block_on(watch.change()));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(change.now, Space::Low);
        let (device, mib) = writer.join().unwrap();
        println!("stopped after {mib} MiB with {} bytes free", change.available_bytes);
        device.sync_all().expect("what was accepted finds room");
        mib
    });
    println!("synced: {} bytes free", available_bytes(&small.folder).unwrap());
    assert!((100..512).contains(&written), "{written} MiB");
    assert_eq!(world.dm.status(&disk).unwrap().health, Health::Sound);
    for mib in [0, written / 2, written - 1] {
        run(&disk, &[Io::Find(mib * MIB, MIB, mib as u8 | 1)]);
    }
    // Room is made, by somebody else: it goes on.
    world.dm.remove(&disk).unwrap();
    assert_eq!(watch.change().await.now, Space::Ample);
    drop(small);
    world.assert_clean();
}

/// Where a child makes its disk; without it, nobody asked for a child.
const CHILD_FOLDER: &str = "WRENN_TEST_CHILD_FOLDER";
/// How many disks the child makes and removes; the last one stays when the number ends in `+`.
const CHILD_WORK: &str = "WRENN_TEST_CHILD_WORK";

/// Not a test of its own: what [`testbed_a_process_killed_at_any_moment_leaves_what_a_sweep_finds`] kills, and what can be
/// run under a tracer to count its system calls.
#[test]
#[ignore = "a child of other tests"]
fn child_makes_and_removes_disks() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER).map(PathBuf::from) else { return };
    let work = std::env::var(CHILD_WORK).unwrap();
    let (rounds, stay) = work.strip_suffix('+').map_or((work.as_str(), false), |rounds| (rounds, true));
    let rounds: u32 = rounds.parse().unwrap();
    if rounds == 0 {
        return;
    }
    let dm = Dm::open().unwrap();
    let path = folder.join("base.img");
    let base_bytes = std::fs::metadata(&path).unwrap().len();
    let base = Layer { path, format: LayerFormat::Raw, size_bytes: base_bytes };
    let size_bytes = if stay { 2 * base_bytes } else { base_bytes };
    for round in 0..rounds {
        let disk = dm.create(&place(&folder, "child"), std::slice::from_ref(&base), size_bytes).unwrap();
        if !stay || round + 1 < rounds {
            dm.remove(&disk).unwrap();
        }
    }
}

fn child(folder: &Path, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "storage::dm::tests::child_makes_and_removes_disks"])
        .env(CHILD_FOLDER, folder)
        .env(CHILD_WORK, work)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn testbed_a_process_killed_at_any_moment_leaves_what_a_sweep_finds() {
    let world = World::new();
    world.base();
    let tag = suite::tag(&world.path());
    let live = place(&world.path(), "child").path;
    // How long it takes from the first trace of the disk to the last step.
    let begin = Instant::now();
    assert!(child(&world.path(), "200").wait().unwrap().success());
    let round = begin.elapsed() / 200;
    println!("a disk made and removed: {round:?}");
    let mut residues = BTreeSet::new();
    for attempt in 0..60u32 {
        let mut victim = child(&world.path(), "100000");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !live.exists() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        std::thread::sleep(round * attempt / 40);
        victim.kill().unwrap();
        victim.wait().unwrap();
        let found = world.devices();
        let state: Vec<String> = found
            .iter()
            .map(|name| {
                format!("{:?}", world.dm.devices.mapper().info(&name.parse().unwrap()).map(|it| it.has_table).ok())
            })
            .collect();
        residues.insert(format!("live file {}, devices with a table {state:?}", live.exists()));
        assert_eq!(sweep(tag, &|_| false).unwrap().len(), usize::from(!found.is_empty()));
        // What a sandbox's folder holds goes with it.
        remove_live_file(&live).unwrap();
        world.assert_clean();
    }
    println!("{residues:#?}");
    assert!(residues.len() > 1, "every kill found the same: {residues:?}");
}

#[test]
fn testbed_a_disk_outlives_the_process_that_made_it() {
    let world = World::new();
    let base = world.base();
    assert!(child(&world.path(), "1+").wait().unwrap().success());
    assert_eq!((world.devices().len(), world.loops("base.img"), world.loops("child")), (2, 1, 1));
    // The image's device is found by who comes later, and is not made twice.
    let mine = world.create("mine", &base, 4 * MIB);
    assert_eq!(world.loops("base.img"), 1);
    let place = place(&world.path(), "child");
    let disk = world.dm.open(&place, std::slice::from_ref(&base), 8 * MIB).unwrap();
    run(&disk, &[Io::Find(MIB, MIB, 0xba), Io::Write(0, 4096, 0x11)]);
    world.dm.remove(&disk).unwrap();
    run(&mine, &[Io::Find(MIB, MIB, 0xba)]);
    world.dm.remove(&mine).unwrap();
    world.assert_clean();
}
