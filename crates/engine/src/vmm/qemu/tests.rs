use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::names::SandboxId;
use crate::vmm::fake::{Failure, FakeQemu, Fault};
use crate::vmm::{DiskFile, DiskForm, HostFile, Incident, RunState, Tap};

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
        vcpus: 1,
        memory: Mib(256),
        memory_base: host_file().file,
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
        let dir = tempfile::tempdir().unwrap();
        let Plan { launch, boot } = driver().plan(vm(dir.path())).unwrap();
        let control: OwnedFd = launch.descriptors.into_iter().find(|(_, number)| *number == CONTROL).unwrap().0;
        Self { dir, boot: Some(boot), fake: FakeQemu::start(control, failure) }
    }

    async fn boot(&mut self) -> Result<Box<dyn Machine>, VmmError> {
        self.boot.take().unwrap().boot().await
    }
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
    let mut machine = driver().attach(world.dir.path()).await.unwrap();
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

/// As in the Firecracker driver: whatever goes wrong at whatever step is a typed error, soon and without much memory.
#[tokio::test(start_paused = true)]
async fn every_fault_at_every_step_of_a_life_is_typed_and_bounded() {
    for fault in Fault::ALL {
        for at in 0..5 {
            let mut world = World::new(Some(Failure { at, fault }));
            let started = Instant::now();
            let lived = live(&mut world).await;
            match (lived, fault, at) {
                // A greeting cannot be refused; and a QEMU that ends when it is asked to end has done so.
                (Ok(()), Fault::Exit | Fault::CutOff, 4) => {}
                (Ok(()), _, _) => panic!("{fault:?} at {at} is no success"),
                (Err(error), _, _) => assert!(is_expected(fault, &error), "{fault:?} at {at}: {error:?}"),
            }
            assert!(started.elapsed() <= Duration::from_secs(11), "{fault:?} at {at}: {:?}", started.elapsed());
            assert!(world.fake.sent_bytes() < FLOOD_MAX, "{fault:?} at {at}: {} bytes", world.fake.sent_bytes());
        }
    }
}

/// Greeting, capabilities, stop, query-status, quit.
async fn live(world: &mut World) -> Result<(), VmmError> {
    let mut machine = world.boot().await?;
    machine.freeze().await?;
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
