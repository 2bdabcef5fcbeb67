//! A VM that is captured and goes on elsewhere, again and again: first what changed since its boot, then what changed since
//! it was restored.
//!
//! That it is the same guest, at the same instant, is told by a connection that stays open all the while: its other end is
//! nowhere but in the guest's memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use wrenn_engine::vmm::firecracker::Firecracker;
use wrenn_engine::vmm::firecracker::api::{Change, SnapshotCreate, SnapshotType};
use wrenn_engine::vmm::{
    Accel, Captured, HostFile, Machine, MemoryBacking, RunState, Start, Then, VmSpec, Vmm, VmmError,
};

use crate::world::{Conversation, MEMORY, Process, World, firecracker, qemu};

const PAGE: u64 = 4096;
/// How often a guest is captured and restored.
const ROUNDS: usize = 3;
/// A guest on a busy host has this long for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn vm_a_qemu_goes_on_from_its_captures() {
    go_on(&qemu(Accel::Tcg), None, &World::with_overlay()).await;
}

#[tokio::test]
async fn vm_a_qemu_says_why_it_cannot_take_up_a_state() {
    refuses(&qemu(Accel::Tcg), &World::with_overlay()).await;
}

#[tokio::test]
async fn testbed_a_firecracker_says_why_it_cannot_take_up_a_state() {
    refuses(&firecracker(), &World::new()).await;
}

#[tokio::test]
async fn testbed_a_qemu_goes_on_from_its_captures_with_kvm() {
    go_on(&qemu(Accel::Kvm), None, &World::new()).await;
}

#[tokio::test]
async fn testbed_a_firecracker_goes_on_from_its_captures() {
    let driver = firecracker();
    go_on(&driver, Some(&driver), &World::new()).await;
}

/// What is no captured state is told from one.
async fn refuses(driver: &dyn Vmm, world: &World) {
    let run_dir = world.run_dir("r");
    let devices = HostFile::open(Path::new("/etc/passwd")).unwrap();
    let spec =
        VmSpec { start: Start::Restore { devices, memory: MemoryBacking::File }, ..world.spec(driver, &run_dir) };
    let (process, boot) = world.launch_as(driver, spec);
    let error = boot.boot().await.map(drop).unwrap_err();
    println!("{error}; it said: {}", process.console());
    assert!(matches!(&error, VmmError::Restore { detail } if !detail.is_empty()), "{error:?}");
}

/// Boots a guest and takes it through [`ROUNDS`] captures, each of which also has a snapshot of the running VM before it.
async fn go_on(driver: &dyn Vmm, firecracker: Option<&Firecracker>, world: &World) {
    let mut base = world.zero_memory();
    let mut run_dir = world.run_dir("r0");
    let (mut process, boot) = world.launch(driver, &run_dir);
    let mut machine = boot.boot().await.unwrap_or_else(|error| panic!("{error}; it said: {}", process.console()));
    world.await_healthy(&process);
    let mut conversation = world.netns.run(|| Conversation::begin(ANSWER_LIMIT)).unwrap().unwrap();
    let refused = machine.capture(&run_dir, Then::Ends).await.unwrap_err();
    assert!(matches!(refused, VmmError::NotFrozen { .. }), "{refused}");

    for round in 1..=ROUNDS {
        conversation.ask().unwrap();
        snapshot(&mut *machine, &world.run_dir(&format!("s{round}"))).await;
        conversation.ask().expect("the VM goes on after a snapshot");
        // A later agent.
        drop(machine);
        let mut last = driver.attach(world.folders(&run_dir)).await.unwrap();
        let generation = world.run_dir(&format!("g{round}"));
        let captured = capture(&mut *last, &generation, Then::Ends).await;
        let memory = generation.join("whole");
        let pages = compose(&captured, &process, &base, &memory);
        println!("round {round}: {pages} pages were captured");
        if let Some(firecracker) = firecracker {
            is_all_of_memory(firecracker, &run_dir, &memory).await;
        }
        last.stop().await.unwrap();
        drop(process);

        run_dir = world.run_dir(&format!("r{round}"));
        let devices = HostFile::open(&generation.join("devices")).unwrap();
        let memory_base = HostFile::open(&memory).unwrap();
        let spec = VmSpec {
            start: Start::Restore { devices, memory: MemoryBacking::File },
            memory_base,
            ..world.spec(driver, &run_dir)
        };
        let started = Instant::now();
        let (restored, boot) = world.launch_as(driver, spec);
        let booted = boot.boot().await;
        machine = booted.unwrap_or_else(|error| panic!("{error}; it said: {}", restored.console()));
        assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
        let ready = started.elapsed();
        machine.thaw().await.unwrap();
        conversation.ask().unwrap_or_else(|error| panic!("round {round}: {error}; console: {}", restored.console()));
        println!(
            "round {round}: restored in {} ms, answered after {} ms",
            ready.as_millis(),
            started.elapsed().as_millis()
        );
        assert_eq!(restored.console(), "", "it does not boot");
        world.await_healthy(&restored);
        (process, base) = (restored, memory);
    }
    machine.stop().await.unwrap();
}

/// A capture after which the VM goes on; the next one is not less for it.
async fn snapshot(machine: &mut dyn Machine, into: &Path) {
    capture(machine, into, Then::GoesOn).await;
    machine.thaw().await.unwrap();
}

async fn capture(machine: &mut dyn Machine, into: &Path, then: Then) -> Captured {
    machine.freeze().await.unwrap();
    let started = Instant::now();
    let captured = machine.capture(into, then).await.unwrap();
    println!("captured in {} ms", started.elapsed().as_millis());
    assert!(into.join("devices").metadata().unwrap().len() > 1000);
    let again = machine.capture(into, then).await.unwrap_err();
    assert!(matches!(again, VmmError::Capture { .. }), "{again}");
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    captured
}

/// Makes `whole` a file of all of the captured memory. Answers how many pages were captured.
fn compose(captured: &Captured, process: &Process, base: &Path, whole: &Path) -> usize {
    let target = OpenOptions::new().write(true).create_new(true).open(whole).unwrap();
    target.set_len(MEMORY.bytes()).unwrap();
    let changed = match captured {
        Captured::InProcess => own_pages(process, base),
        Captured::Written { path } => pages_of(&File::open(path).unwrap()),
    };
    for pages in [pages_of(&File::open(base).unwrap()), changed.clone()] {
        pages.iter().for_each(|(at, page)| target.write_all_at(page, *at).unwrap());
    }
    fs::set_permissions(whole, Permissions::from_mode(0o444)).unwrap();
    changed.len()
}

type Pages = BTreeMap<u64, Vec<u8>>;

fn page(file: &File, at: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    file.read_exact_at(&mut page, at).unwrap();
    page
}

/// The pages of a sparse file that are no holes.
fn pages_of(file: &File) -> Pages {
    let mut pages = Pages::new();
    let mut position = 0;
    loop {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return pages,
            Err(errno) => panic!("{}", io::Error::from(errno)),
        };
        position = seek(file, SeekFrom::Hole(data)).unwrap();
        pages.extend((data / PAGE..position.div_ceil(PAGE)).map(|page| (page * PAGE, self::page(file, page * PAGE))));
    }
}

/// The pages of the mapping over `base` that are a QEMU's own: neither the file's nor untouched.
fn own_pages(process: &Process, base: &Path) -> Pages {
    const IN_FILE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    let proc = PathBuf::from(format!("/proc/{}", process.child.pid()));
    let start = mapping(&fs::read_to_string(proc.join("maps")).unwrap(), &base.canonicalize().unwrap());
    let mut entries = vec![0; (MEMORY.bytes() / PAGE * 8) as usize];
    File::open(proc.join("pagemap")).unwrap().read_exact_at(&mut entries, start / PAGE * 8).unwrap();
    let memory = File::open(proc.join("mem")).unwrap();
    let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
    let own = entries.enumerate().filter(|(_, entry)| entry & (PRESENT | SWAPPED) != 0 && entry & IN_FILE == 0);
    own.map(|(index, _)| (index as u64 * PAGE, page(&memory, start + index as u64 * PAGE))).collect()
}

/// Where the one mapping of the file `base` begins.
fn mapping(maps: &str, base: &Path) -> u64 {
    let mapped: Vec<_> = maps.lines().filter(|line| line.ends_with(&*base.to_string_lossy())).collect();
    let [line] = mapped[..] else { panic!("one mapping of {}, not {mapped:?}", base.display()) };
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
    assert_eq!(number(end) - number(start), MEMORY.bytes());
    number(start)
}

/// Firecracker's own whole snapshot of the still frozen VM is what was put together.
async fn is_all_of_memory(driver: &Firecracker, run_dir: &Path, composed: &Path) {
    let change = Change::SnapshotCreate(SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/run/state".to_owned(),
        mem_file_path: "/run/memory".to_owned(),
    });
    driver.client(run_dir).await.unwrap().change(&change).await.unwrap();
    let full: PathBuf = run_dir.join("vmm/memory");
    let (full, composed) = (File::open(full).unwrap(), File::open(composed).unwrap());
    let differ = (0..MEMORY.bytes()).step_by(1 << 20).filter(|at| {
        let chunk = |file: &File| {
            let mut bytes = vec![0; 1 << 20];
            file.read_exact_at(&mut bytes, *at).unwrap();
            bytes
        };
        chunk(&full) != chunk(&composed)
    });
    assert_eq!(differ.map(|at| at >> 20).collect::<Vec<_>>(), Vec::<u64>::new(), "MiB that differ");
}
