use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use super::api::{GetMmds, SnapshotCreate, SnapshotType, VmState};
use super::*;
use crate::names::SandboxId;
use crate::vmm::fake::{FAKE_DEVICES, FAKE_MEMORY_BYTES, Failure, FakeFirecracker, Fault};
use crate::vmm::{Captured, DiskFile, HostFile, Incident, Pages, RunState, Tap, Then};

const VERSION: &str = "1.16.1";
/// What a fault may cost, in bytes that the fake got rid of: buffers of both sides of a socket.
const FLOOD_MAX: u64 = 4 << 20;

fn host_file(path: &str) -> HostFile {
    HostFile::open(Path::new(path)).unwrap()
}

fn null() -> OwnedFd {
    host_file("/dev/null").file
}

/// A VM of this user whose files are only looked at.
fn vm(run_dir: &Path, form: DiskForm) -> VmSpec {
    VmSpec {
        id: SandboxId::from_random([0; 18]),
        uid: rustix::process::geteuid().as_raw(),
        run_dir: run_dir.to_owned(),
        capture_dir: run_dir.join("capture"),
        start: Start::Boot,
        vcpus: 2,
        memory: Mib(256),
        memory_base: host_file("/dev/null"),
        kernel: host_file("/dev/null"),
        initramfs: host_file("/dev/null"),
        command_line: "console=ttyS0 quiet".to_owned(),
        disk: vec![DiskFile { file: host_file("/dev/null"), form }],
        tap: Tap { name: "tap0", queue: null() },
        guest_mac: "02:fc:00:00:00:05".to_owned(),
    }
}

fn driver() -> Firecracker {
    let program = std::env::current_exe().unwrap();
    Firecracker::new(program, Version::in_text(VERSION).unwrap()).unwrap()
}

struct World {
    dir: TempDir,
    boot: Option<Box<dyn Boot>>,
    fake: FakeFirecracker,
}

impl World {
    fn new(failure: Option<Failure>) -> Self {
        Self::of_version(VERSION, failure)
    }

    fn of_version(version: &'static str, failure: Option<Failure>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm = vm(dir.path(), DiskForm::BlockDevice);
        Self::of(dir, vm, version, failure)
    }

    fn restored(failure: Option<Failure>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let start = Start::Restore { devices: host_file("/dev/null"), memory: MemoryBacking::File };
        let vm = VmSpec { start, ..vm(dir.path(), DiskForm::BlockDevice) };
        Self::of(dir, vm, VERSION, failure)
    }

    fn of(dir: TempDir, vm: VmSpec, version: &'static str, failure: Option<Failure>) -> Self {
        let plan = driver().plan(vm).unwrap();
        let capture_dir = Some(dir.path().join("capture"));
        let fake = FakeFirecracker::start_with(dir.path(), version, failure, capture_dir);
        Self { dir, boot: Some(plan.boot), fake }
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    async fn boot(&mut self) -> Result<Box<dyn Machine>, VmmError> {
        self.boot.take().unwrap().boot().await
    }
}

#[test]
fn the_plan_names_only_what_is_in_the_jail() {
    let dir = tempfile::tempdir().unwrap();
    let Plan { launch, boot } = driver().plan(vm(dir.path(), DiskForm::BlockDevice)).unwrap();
    assert_eq!(launch.program, Path::new("/firecracker"));
    let id = SandboxId::from_random([0; 18]);
    assert_eq!(launch.args, ["--api-sock", "/run/control.sock", "--id", id.as_str(), "--level", "Error"]);
    assert!(launch.descriptors.is_empty());
    let jail = launch.jail.unwrap();
    assert!(jail.mount_point.is_dir() && jail.mount_point.starts_with(dir.path()));
    let told = format!("{boot:?}");
    for path in ["/kernel", "/initramfs", "/disk"] {
        assert!(told.contains(&format!("\"{path}\"")), "{told}");
    }
    assert!(!told.contains("/dev/null"), "{told}");
}

#[test]
fn a_disk_that_is_no_block_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (form, found) in [(DiskForm::Overlay, "qcow2"), (DiskForm::Raw, "plain file")] {
        let error = driver().plan(vm(dir.path(), form)).unwrap_err();
        assert!(matches!(error, VmmError::Disk { .. }));
        assert!(error.to_string().contains(found) && error.to_string().contains("--storage dm"), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a refusal leaves something behind");
}

#[test]
fn a_file_that_its_user_may_not_read_is_refused_beforehand() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux");
    std::fs::write(&kernel, "").unwrap();
    rustix::fs::chmod(&kernel, Mode::RUSR).unwrap();
    let vm = VmSpec { uid: 12345, kernel: HostFile::open(&kernel).unwrap(), ..vm(dir.path(), DiskForm::BlockDevice) };
    assert!(matches!(driver().plan(vm).unwrap_err(), VmmError::Unreadable { path } if path == kernel));
}

#[test]
fn a_program_that_needs_libraries_is_told_from_one_that_does_not() {
    let dynamic = std::env::current_exe().unwrap();
    assert!(is_dynamic(&dynamic).unwrap());
    assert_eq!(is_dynamic(Path::new("/etc/passwd")).unwrap_err().kind(), io::ErrorKind::InvalidData);
    let busybox = Path::new("/usr/bin/busybox");
    assert!(!is_dynamic(busybox).unwrap(), "busybox-static is linked statically");
}

#[tokio::test]
async fn a_vm_is_configured_in_order_started_frozen_and_thawed() {
    let mut world = World::new(None);
    let mut machine = world.boot().await.unwrap();
    assert_eq!(
        world.fake.asked(),
        [
            "GET /version",
            "PUT /machine-config",
            "PUT /boot-source",
            "PUT /drives/root",
            "PUT /network-interfaces/eth0",
            "PUT /entropy",
            "PUT /actions",
        ]
    );
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
    machine.freeze().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
    drop(machine);
    // A later agent.
    let capture = world.dir.path().join("capture");
    let mut machine = driver().attach(Folders { run: world.dir.path(), capture: &capture }).await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
}

#[tokio::test]
async fn a_restored_vm_is_told_one_thing_and_stands_still() {
    let mut world = World::restored(None);
    let mut machine = world.boot().await.unwrap();
    assert_eq!(world.fake.asked(), ["GET /version", "PUT /snapshot/load"]);
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    let error = World::restored(Some(Failure { at: 1, fault: Fault::Refuse })).boot().await.map(drop).unwrap_err();
    assert!(matches!(&error, VmmError::Restore { detail } if detail.contains("told to")), "{error}");
}

#[test]
fn what_was_captured_must_be_readable_and_is_all_of_the_host_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let captured = dir.path().join("captured");
    std::fs::write(&captured, "").unwrap();
    for (readable, name) in [(false, "closed"), (true, "open")] {
        rustix::fs::chmod(&captured, if readable { Mode::from_raw_mode(0o444) } else { Mode::RUSR }).unwrap();
        let vm = VmSpec {
            uid: 12345,
            start: Start::Restore { devices: HostFile::open(&captured).unwrap(), memory: MemoryBacking::File },
            memory_base: HostFile::open(&captured).unwrap(),
            ..vm(dir.path(), DiskForm::BlockDevice)
        };
        match driver().plan(vm) {
            Ok(plan) => assert!(readable && format!("{:?}", plan.boot).contains("/snapshot/memory"), "{name}"),
            Err(VmmError::Unreadable { path }) => assert!(!readable && path == captured, "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn root_memory_that_is_served_goes_to_the_shim_and_firecracker_is_told_of_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let pages = Pages { table: null(), files: vec![null(), null()], working_set: Some(null()) };
    // Its user need not be able to read the memory.
    let base = dir.path().join("memory");
    std::fs::write(&base, "").unwrap();
    rustix::fs::chmod(&base, Mode::RUSR).unwrap();
    let vm = VmSpec {
        uid: 12345,
        start: Start::Restore { devices: host_file("/dev/null"), memory: MemoryBacking::Uffd(pages) },
        memory_base: HostFile::open(&base).unwrap(),
        ..vm(dir.path(), DiskForm::BlockDevice)
    };
    let Plan { launch, boot } = driver().plan(vm).unwrap();
    let pager = launch.pager.unwrap();
    assert_eq!(pager.socket, dir.path().join("pager/pager.sock"));
    assert_eq!(pager.socket.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o711);
    assert_eq!((pager.pages.files.len(), pager.pages.working_set.is_some()), (2, true));
    let told = format!("{boot:?}");
    assert!(told.contains("Uffd") && told.contains("\"/pager/pager.sock\""), "{told}");
    assert!(launch.jail.unwrap().entries.iter().all(|entry| entry.source() != base));
}

fn page(file: &Path, number: u64) -> u8 {
    let mut byte = [0];
    std::fs::File::open(file).unwrap().read_exact_at(&mut byte, number * 64 * 1024).unwrap();
    byte[0]
}

/// Each capture of the fake writes one page more, into the same file.
#[tokio::test]
async fn captures_add_up_and_are_out_of_the_vmms_reach_when_it_goes_on() {
    let mut world = World::new(None);
    let [first, second, third] = ["first", "second", "third"].map(|name| world.folder(name));
    let mut machine = world.boot().await.unwrap();
    let error = machine.capture(&first, Then::GoesOn).await.unwrap_err();
    assert!(matches!(&error, VmmError::NotFrozen { state } if state == "Running"), "{error}");
    machine.freeze().await.unwrap();
    for (into, then) in [(&first, Then::GoesOn), (&second, Then::GoesOn), (&third, Then::Ends)] {
        let captured = machine.capture(into, then).await.unwrap();
        assert_eq!(captured, Captured::Written { path: into.join("memory") });
        assert_eq!(std::fs::read(into.join("devices")).unwrap(), FAKE_DEVICES);
        assert_eq!(into.join("memory").metadata().unwrap().len(), FAKE_MEMORY_BYTES);
        assert_eq!(into.join("memory").metadata().unwrap().mode() & 0o7777, 0o444);
    }
    let pages = |into: &Path| [1, 2, 3].map(|number| page(&into.join("memory"), number));
    assert_eq!([&first, &second, &third].map(|into| pages(into)), [[1, 0, 0], [1, 2, 0], [1, 2, 3]]);
    let inode = |path: &Path| path.metadata().unwrap().ino();
    let written = inode(&world.dir.path().join("capture/memory"));
    assert_eq!([&first, &second, &third].map(|into| inode(&into.join("memory")) == written), [false, false, true]);
    let error = machine.capture(&first, Then::Ends).await.unwrap_err();
    assert!(matches!(&error, VmmError::Capture { path, .. } if path.starts_with(&first)), "{error}");
    machine.thaw().await.unwrap();

    // The next VM of the sandbox writes into other files: what was linked stays.
    files::prepare(&world.dir.path().join("capture"), 0).unwrap();
    assert_eq!(pages(&third), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_capture_that_fails_leaves_nothing_and_can_be_repeated() {
    for fault in Fault::ALL {
        // Version, five parts, start, pause, state.
        let mut world = World::new(Some(Failure { at: 9, fault }));
        let into = world.folder("into");
        let mut machine = world.boot().await.unwrap();
        machine.freeze().await.unwrap();
        let error = machine.capture(&into, Then::Ends).await.unwrap_err();
        assert!(is_expected(fault, &error), "{fault:?}: {error:?}");
        assert_eq!(world.fake.asked().last().unwrap(), "PUT /snapshot/create");
        assert_eq!(std::fs::read_dir(&into).unwrap().count(), 0, "{fault:?}");
        if !matches!(fault, Fault::CutOff | Fault::Exit) {
            machine.capture(&into, Then::Ends).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        }
    }
}

/// The heart of it: whatever goes wrong at whatever step is a typed error, soon and without much memory.
#[tokio::test(start_paused = true)]
async fn every_fault_at_every_step_of_a_boot_is_typed_and_bounded() {
    for fault in Fault::ALL {
        let mut steps = 0;
        loop {
            let mut world = World::new(Some(Failure { at: steps, fault }));
            let started = Instant::now();
            let booted = world.boot().await;
            if world.fake.asked().len() <= steps {
                booted.expect("the fault is beyond the last step");
                break;
            }
            let error = booted.map(|_| ()).expect_err("a fault is no success");
            assert!(is_expected(fault, &error), "{fault:?} at {steps}: {error:?}");
            assert_eq!(world.fake.asked().len(), steps + 1, "nothing is said after a failure");
            assert!(started.elapsed() <= Duration::from_secs(31), "{fault:?} at {steps}: {:?}", started.elapsed());
            assert!(world.fake.sent_bytes() < FLOOD_MAX, "{fault:?} at {steps}: {} bytes", world.fake.sent_bytes());
            steps += 1;
        }
        assert_eq!(steps, 7, "version, five parts, start");
    }
}

fn is_expected(fault: Fault, error: &VmmError) -> bool {
    match fault {
        Fault::Refuse => {
            matches!(error, VmmError::Refused { status: Some(400), detail, .. } if detail.contains("told to"))
        }
        Fault::CutOff => matches!(error, VmmError::CutOff { .. }),
        Fault::Huge | Fault::Endless => matches!(error, VmmError::TooLong { .. }),
        Fault::Nonsense => matches!(error, VmmError::Protocol { .. }),
        Fault::Silence => matches!(error, VmmError::Deadline { .. }),
        Fault::Exit => matches!(error, VmmError::Gone { .. }),
    }
}

#[tokio::test(start_paused = true)]
async fn a_vmm_that_never_listens_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let plan = driver().plan(vm(dir.path(), DiskForm::BlockDevice)).unwrap();
    let error = plan.boot.boot().await.map(|_| ()).unwrap_err();
    assert!(matches!(error, VmmError::Deadline { command: "listen", .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_given_up_leaves_the_next_one_in_step() {
    let mut world = World::new(Some(Failure { at: 7, fault: Fault::Silence }));
    let mut machine = world.boot().await.unwrap();
    assert!(matches!(machine.freeze().await.unwrap_err(), VmmError::Deadline { command: "pause", .. }));
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
}

#[tokio::test]
async fn a_program_that_was_replaced_by_one_with_the_hole_is_not_told_anything() {
    let mut world = World::of_version("1.15.0", None);
    let error = world.boot().await.map(|_| ()).unwrap_err();
    assert!(matches!(error, VmmError::Version(RefusedVersion(_))), "{error}");
    assert_eq!(world.fake.asked(), ["GET /version"]);
}

#[tokio::test]
async fn the_wrong_order_is_refused_with_its_words() {
    let mut world = World::new(None);
    let mut early = Client::await_listening(&socket::folder(world.dir.path())).await.unwrap();
    let pause = Change::Vm(VmState::Paused);
    let snapshot = Change::SnapshotCreate(SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/capture/devices".to_owned(),
        mem_file_path: "/capture/memory".to_owned(),
    });
    let start = Change::Action(Action::InstanceStart);
    for (change, word) in [(&pause, "before"), (&snapshot, "before"), (&start, "boot source")] {
        let error = early.change(change).await.unwrap_err();
        assert!(
            matches!(&error, VmmError::Refused { status: Some(400), detail, .. } if detail.contains(word)),
            "{error}"
        );
    }
    // A refusal leaves the connection as it was.
    early.change(&Change::MmdsPut(json!({ "a": 1 }))).await.unwrap();
    assert_eq!(early.ask::<GetMmds>().await.unwrap(), json!({ "a": 1 }));
    drop(early);
    world.boot().await.unwrap();
    let mut late = Client::connect(&socket::folder(world.dir.path())).await.unwrap();
    assert!(late.change(&start).await.unwrap_err().to_string().contains("(HTTP 400)"));
    assert!(late.change(&snapshot).await.unwrap_err().to_string().contains("not paused"));
    late.change(&pause).await.unwrap();
    late.change(&snapshot).await.unwrap();
}

/// A fake lives in this process, so what its real counterpart's end looks like is for the testbed; here it "still runs".
#[tokio::test]
async fn a_connection_that_closes_while_the_process_lives_is_told() {
    let mut world = World::new(Some(Failure { at: 7, fault: Fault::Exit }));
    let mut machine = world.boot().await.unwrap();
    drop(world.fake);
    // The fake's end closes the connection; its process is this one.
    let incident = machine.incident().await;
    assert!(matches!(&incident, Incident::Broken(how) if how.contains("still runs")), "{incident:?}");
    assert_eq!(machine.incident().await, Incident::Ended, "nobody listens any more");
}
