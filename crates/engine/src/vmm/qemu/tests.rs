use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::names::SandboxId;
use crate::vmm::fake::{FAKE_DEVICES, Failure, FakeQemu, FakeStart, Fault};
use crate::vmm::{Captured, DiskFile, DiskForm, HostFile, Incident, Pages, RunState, Tap, Then};

/// What a fault may cost, in bytes that the fake got rid of: buffers of both sides of a socket.
const FLOOD_MAX: u64 = 4 << 20;
/// The number under which QEMU finds its control socket.
const CONTROL: i32 = 10;

fn host_file() -> HostFile {
    HostFile::open(Path::new("/dev/null")).unwrap()
}

fn vm(run_dir: &Path) -> VmSpec {
    VmSpec {
        id: SandboxId::from_random([0; 18]),
        uid: 12345,
        run_dir: run_dir.to_owned(),
        capture_dir: run_dir.join("capture"),
        start: Start::Boot,
        vcpus: 1,
        memory: Mib(256),
        memory_base: host_file(),
        kernel: host_file(),
        initramfs: host_file(),
        command_line: "quiet".to_owned(),
        disk: vec![DiskFile { file: host_file(), form: DiskForm::Raw }],
        tap: Tap { name: "tap0", queue: host_file().file },
        guest_mac: "02:fc:00:00:00:05".to_owned(),
    }
}

fn driver() -> Qemu {
    Qemu::new(PathBuf::from("/usr/bin/qemu-system-x86_64"), "10.0.2".to_owned(), Accel::Tcg, None)
}

struct World {
    dir: TempDir,
    boot: Option<Box<dyn Boot>>,
    fake: FakeQemu,
}

impl World {
    fn new(failure: Option<Failure>) -> Self {
        Self::of(FakeStart::Boot, failure)
    }

    fn of(start: FakeStart, failure: Option<Failure>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm = match start {
            FakeStart::Boot => vm(dir.path()),
            FakeStart::Restore { .. } => {
                VmSpec { start: Start::Restore { devices: host_file(), memory: MemoryBacking::File }, ..vm(dir.path()) }
            }
        };
        let Plan { launch, boot } = driver().plan(vm).unwrap();
        let control: OwnedFd = launch.descriptors.into_iter().find(|(_, number)| *number == CONTROL).unwrap().0;
        Self { dir, boot: Some(boot), fake: FakeQemu::start(control, start, failure) }
    }

    fn folders(&self) -> Folders<'_> {
        Folders { run: self.dir.path(), capture: self.dir.path() }
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
fn memory_that_is_served_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let pages = Pages { table: host_file().file, files: Vec::new(), working_set: None };
    let start = Start::Restore { devices: host_file(), memory: MemoryBacking::Uffd(pages) };
    let error = driver().plan(VmSpec { start, ..vm(dir.path()) }).unwrap_err();
    assert!(matches!(error, VmmError::NoUffd { driver: DriverKind::Qemu }));
    assert!(error.to_string().starts_with("qemu maps its memory"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a refusal leaves something behind");
}

#[tokio::test]
async fn a_vm_is_frozen_thawed_and_attached_to_again() {
    let mut world = World::new(None);
    let mut machine = world.boot().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
    machine.freeze().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    drop(machine);
    let mut machine = driver().attach(world.folders()).await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
    machine.stop().await.unwrap();
    assert_eq!(machine.incident().await, Incident::Ended);
}

#[tokio::test]
async fn events_between_command_and_answer_are_kept() {
    let mut world = World::new(None);
    let mut machine = world.boot().await.unwrap();
    world.fake.say(json!({ "event": "BLOCK_IO_ERROR", "data": { "nospace": true, "reason": "x" } })).await;
    world.fake.say(json!({ "event": "BLOCK_IO_ERROR", "data": { "nospace": false, "reason": "it burns" } })).await;
    machine.freeze().await.unwrap();
    assert_eq!(machine.incident().await, Incident::DiskFull);
    assert_eq!(machine.incident().await, Incident::DiskError("it burns".to_owned()));
    drop(world.fake);
    assert_eq!(machine.incident().await, Incident::Ended);
}

#[tokio::test]
async fn a_frozen_vm_is_captured_and_a_running_one_is_not() {
    let mut world = World::new(None);
    let (first, second) = (world.folder("first"), world.folder("second"));
    let mut machine = world.boot().await.unwrap();
    let error = machine.capture(&first, Then::GoesOn).await.unwrap_err();
    assert!(matches!(&error, VmmError::NotFrozen { state } if state == "running"), "{error}");
    machine.freeze().await.unwrap();
    for (into, then) in [(&first, Then::GoesOn), (&second, Then::Ends)] {
        assert_eq!(machine.capture(into, then).await.unwrap(), Captured::InProcess);
        assert_eq!(std::fs::read(into.join("devices")).unwrap(), FAKE_DEVICES);
        assert_eq!(std::fs::read_dir(into).unwrap().count(), 1);
    }
    let again = machine.capture(&first, Then::Ends).await.unwrap_err();
    assert!(matches!(&again, VmmError::Capture { path, .. } if *path == first.join("devices")), "{again}");
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    let captures = world.fake.asked().iter().filter(|asked| *asked == "xen-save-devices-state").count();
    assert_eq!(captures, 2, "what is refused beforehand is not asked");
}

#[tokio::test]
async fn a_restored_vm_stands_still_until_it_is_thawed() {
    let mut world = World::of(FakeStart::Restore { good: true }, None);
    let mut machine = world.boot().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Frozen);
    machine.thaw().await.unwrap();
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
    let asked = world.fake.asked();
    assert_eq!(asked[2..6], ["migrate-incoming", "query-migrate", "query-migrate", "query-status"]);
}

#[tokio::test]
async fn a_state_that_cannot_be_taken_up_is_an_error_in_qemus_words() {
    let mut world = World::of(FakeStart::Restore { good: false }, None);
    let error = world.boot().await.map(drop).unwrap_err();
    assert!(matches!(&error, VmmError::Restore { detail } if detail.contains("the fake's state")), "{error}");
}

/// A QEMU that waits for its state has no guest that could be captured or go on.
#[tokio::test]
async fn a_vm_that_was_not_restored_yet_cannot_be_captured() {
    let world = World::of(FakeStart::Restore { good: true }, None);
    let mut machine = driver().attach(world.folders()).await.unwrap();
    let error = machine.capture(&world.folder("x"), Then::Ends).await.unwrap_err();
    assert!(matches!(&error, VmmError::NotFrozen { state } if state == "inmigrate"), "{error}");
    assert!(matches!(machine.thaw().await.unwrap_err(), VmmError::Refused { command: "cont", .. }));
}

/// As in the Firecracker driver: whatever goes wrong at whatever step is a typed error, soon and without much memory.
#[tokio::test(start_paused = true)]
async fn every_fault_at_every_step_of_a_life_is_typed_and_bounded() {
    for fault in Fault::ALL {
        for at in 0..=QUIT {
            let mut world = World::of(FakeStart::Restore { good: true }, Some(Failure { at, fault }));
            let started = Instant::now();
            let lived = live(&mut world).await;
            match (lived, fault, at) {
                // A greeting cannot be refused; and a QEMU that ends when it is asked to end has done so.
                (Ok(()), Fault::Exit | Fault::CutOff, QUIT) => {}
                (Ok(()), _, _) => panic!("{fault:?} at {at} is no success"),
                (Err(error), _, _) => assert!(is_expected(fault, &error), "{fault:?} at {at}: {error:?}"),
            }
            let captured = world.dir.path().join("captured/devices").exists();
            assert_eq!(captured, at > REMOVE_FD, "{fault:?} at {at}: all of a capture or none of it");
            assert!(started.elapsed() <= Duration::from_secs(21), "{fault:?} at {at}: {:?}", started.elapsed());
            assert!(world.fake.sent_bytes() < FLOOD_MAX, "{fault:?} at {at}: {} bytes", world.fake.sent_bytes());
        }
    }
}

/// The last step of a capture in [`live`], and of all.
const REMOVE_FD: usize = 11;
const QUIT: usize = 13;

/// Greeting, capabilities; migrate-incoming, query-migrate twice, query-status; cont; stop; query-status, add-fd,
/// xen-save-devices-state, remove-fd; query-status; quit.
async fn live(world: &mut World) -> Result<(), VmmError> {
    let into = world.folder("captured");
    let mut machine = world.boot().await?;
    machine.thaw().await?;
    machine.freeze().await?;
    machine.capture(&into, Then::GoesOn).await?;
    machine.run_state().await?;
    machine.stop().await
}

fn is_expected(fault: Fault, error: &VmmError) -> bool {
    match fault {
        Fault::Refuse => match error {
            VmmError::Refused { detail, .. } => detail == "GenericError: the fake was told to refuse",
            error => matches!(error, VmmError::Protocol { command: "greet", .. }),
        },
        Fault::CutOff => matches!(error, VmmError::CutOff { .. }),
        Fault::Huge | Fault::Endless => matches!(error, VmmError::TooLong { .. }),
        Fault::Nonsense => matches!(error, VmmError::Protocol { .. }),
        Fault::Silence => matches!(error, VmmError::Deadline { .. }),
        Fault::Exit => matches!(error, VmmError::Gone { .. }),
    }
}

/// A fake that answers late: the answer to the first command comes with the second one's.
#[tokio::test(start_paused = true)]
async fn the_late_answer_to_a_command_that_was_given_up_is_no_answer_to_the_next() {
    let mut world = World::new(None);
    let mut machine = world.boot().await.unwrap();
    world.fake.say(json!({ "return": { "running": false }, "id": 1 })).await;
    assert_eq!(machine.run_state().await.unwrap(), RunState::Running);
}
