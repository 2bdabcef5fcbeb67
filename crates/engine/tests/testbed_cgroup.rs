//! Control groups of a real kernel: limits that hold, ends that are told, and a host that is as it was.
//!
//! These need the unified hierarchy with its controllers, and root. They share the host's root group: the one test that
//! looks at its controllers runs while no other does.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use wrenn_engine::cgroup::{self, Cgroup, CgroupError, Cgroups, Limits, OutOfMemory};
use wrenn_engine::names::{InstanceTag, SandboxId};
use wrenn_engine::units::Mib;
use wrenn_sys::spawn::{Child, ExitStatus, Spawn};

/// The folder shared by everybody who makes control groups on this host, as in the product.
const RUN_DIR: &str = "/run/wrenn";

/// An instance with a tag of its own, whose groups are gone when the test ends, however it ends.
struct World {
    cgroups: Cgroups,
    mount: PathBuf,
    tag: InstanceTag,
    _among_tests: File,
}

/// Tests run side by side, but for one. A folder can be locked as well as a file, and none has to be made.
fn among_tests(operation: FlockOperation) -> File {
    let folder = File::open(std::env::temp_dir()).unwrap();
    flock(&folder, operation).unwrap();
    folder
}

impl World {
    fn new(tag: &str) -> Self {
        Self::locked(tag, FlockOperation::LockShared)
    }

    fn locked(tag: &str, operation: FlockOperation) -> Self {
        let among_tests = among_tests(operation);
        assert!(rustix::process::getuid().is_root(), "control groups need root");
        let mount = cgroup::mount_point().expect("a host with the unified hierarchy; run this in the testbed");
        let tag: InstanceTag = tag.parse().unwrap();
        let cgroups = Cgroups::open(&mount, tag, Path::new(RUN_DIR)).expect("all controllers; run this in the testbed");
        Self { cgroups, mount, tag, _among_tests: among_tests }
    }

    fn folder(&self) -> PathBuf {
        self.mount.join(format!("wrenn-{}", self.tag))
    }

    fn create(&self, number: u8, limits: Limits) -> Cgroup {
        self.cgroups.create(&id(number), limits).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What fails is told already; a panic on top of it would hide that.
            self.remove().unwrap_or_else(|error| println!("{error} {:?}", self.tag));
            return;
        }
        self.remove().unwrap();
        assert!(!self.folder().exists(), "{} is left behind", self.folder().display());
    }
}

impl World {
    fn remove(&self) -> Result<(), CgroupError> {
        for id in self.cgroups.sandboxes()? {
            self.cgroups.at(&id).destroy()?;
        }
        // Nobody has any if the folder is gone.
        fs::write(self.cgroups.shims().join("cgroup.kill"), "1").ok();
        self.cgroups.tidy()
    }
}

fn id(number: u8) -> SandboxId {
    SandboxId::from_random([number; 18])
}

fn modest() -> Limits {
    Limits { memory: Mib(64), pids: 20, cpu_us: 100_000, cpu_weight: 100 }
}

fn start(cgroup: &Cgroup, script: &str) -> Child {
    let folder = File::open(cgroup.path()).unwrap();
    shell(script).cgroup(folder.as_fd()).start().unwrap()
}

fn shell(script: &str) -> Spawn<'static> {
    Spawn::new("/bin/sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin")
}

fn subtree_control(mount: &Path) -> String {
    fs::read_to_string(mount.join("cgroup.subtree_control")).unwrap()
}

#[test]
fn testbed_limits_are_in_force_before_anybody_is_in() {
    let world = World::new("tlim");
    let cgroup = world.create(1, modest());
    assert_eq!(cgroup.limits().unwrap(), modest());
    let file = |name: &str| fs::read_to_string(cgroup.path().join(name)).unwrap().trim().to_owned();
    assert_eq!(file("memory.max"), (64 << 20).to_string());
    assert_eq!((file("memory.oom.group").as_str(), file("pids.max").as_str()), ("1", "20"));
    assert_eq!((file("cpu.max").as_str(), file("cpu.weight").as_str()), ("100000 100000", "100"));
    let swap = fs::read_to_string(cgroup.path().join("memory.swap.max"));
    assert!(swap.is_ok_and(|text| text.trim() == "0") || !Path::new("/proc/swaps").exists());
    assert_eq!(cgroup.usage().unwrap().pids, 0);
    assert!(world.cgroups.shims().is_dir() && cgroup.shims() == world.cgroups.shims());
    assert_eq!(world.cgroups.sandboxes().unwrap(), [id(1)]);
    let twice = world.cgroups.create(&id(1), modest());
    assert!(matches!(twice, Err(CgroupError::Io { .. })), "{twice:?}");
    drop(cgroup);
}

#[test]
fn testbed_who_eats_all_memory_ends_alone_and_that_is_told() {
    let world = World::new("tmem");
    let (eater, neighbour) = (world.create(1, modest()), world.create(2, modest()));
    let bystander = start(&neighbour, "exec sleep 600");
    // The group goes as a whole: the shell that only waits, too.
    let victim = start(&eater, "sleep 600 & head -c 1G /dev/zero | tail -c 1G; exit 0");
    assert_eq!(victim.wait().unwrap(), ExitStatus::Signalled(9));
    assert_eq!(eater.out_of_memory().unwrap(), Some(OutOfMemory::Limit(Mib(64))));
    assert_eq!(OutOfMemory::Limit(Mib(64)).to_string(), "its memory limit of 64 MiB was reached");
    assert_eq!(neighbour.out_of_memory().unwrap(), None);
    assert!(bystander.try_wait().unwrap().is_none(), "the neighbour is untouched");
    eater.destroy().unwrap();
    neighbour.destroy().unwrap();
    assert_eq!(bystander.wait().unwrap(), ExitStatus::Signalled(9), "destroying a group kills what is in it");
}

#[test]
fn testbed_a_fork_bomb_stops_at_the_limit_and_is_killed_as_a_whole() {
    let world = World::new("tfrk");
    let cgroup = world.create(1, modest());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let folder = File::open(cgroup.path()).unwrap();
    // It ends of itself when its shell cannot fork any more; its children live on.
    let bomb = "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done";
    let child = shell(bomb).fd(writer.as_fd(), 2).cgroup(folder.as_fd()).start().unwrap();
    drop(writer);
    child.wait().unwrap();
    let usage = cgroup.usage().unwrap();
    assert!((15..=20).contains(&usage.pids), "{usage:?}");
    assert!(usage.memory_bytes > 0 && usage.cpu > Duration::ZERO, "{usage:?}");
    let before = Instant::now();
    cgroup.destroy().unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
    let mut said = String::new();
    // Ends when the last process that holds it is gone.
    reader.read_to_string(&mut said).unwrap();
    assert!(said.contains("fork"), "{said}");
}

#[test]
fn testbed_cpu_time_is_limited_roughly() {
    let world = World::new("tcpu");
    let cgroup = world.create(1, Limits { cpu_us: 20_000, ..modest() });
    let before = Instant::now();
    let child = start(&cgroup, "exec timeout 2 sh -c 'while :; do :; done'");
    child.wait().unwrap();
    let used = cgroup.usage().unwrap().cpu.as_secs_f64() / before.elapsed().as_secs_f64();
    assert!(used < 0.35, "a fifth of a CPU was allowed, {used:.2} was used");
    cgroup.destroy().unwrap();
}

#[test]
fn testbed_a_shim_beside_the_group_survives_its_end() {
    let world = World::new("tshm");
    let cgroup = world.create(1, modest());
    let shims = File::open(cgroup.shims()).unwrap();
    let shim = shell("exec sleep 600").cgroup(shims.as_fd()).start().unwrap();
    start(&cgroup, "head -c 1G /dev/zero | tail -c 1G").wait().unwrap();
    assert!(cgroup.out_of_memory().unwrap().is_some() && shim.try_wait().unwrap().is_none());
    // The sandbox's own group goes; the shims' one stays for as long as somebody is in it.
    cgroup.destroy().unwrap();
    assert!(world.cgroups.sandboxes().unwrap().is_empty() && world.cgroups.shims().exists());
    assert!(matches!(world.cgroups.tidy(), Err(CgroupError::Populated { .. })));
    shim.signal(rustix::process::Signal::KILL).unwrap();
    shim.wait().unwrap();
    world.cgroups.tidy().unwrap();
    assert!(!world.folder().exists());
}

#[test]
fn testbed_fifty_groups_are_made_and_removed_side_by_side() {
    let world = World::new("tpar");
    let took = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..25 {
            let cgroups = &world.cgroups;
            scope.spawn(move || {
                for round in [number, number + 100] {
                    let cgroup = cgroups.create(&id_of(round), modest()).unwrap();
                    let child = start(&cgroup, "exec sleep 600");
                    cgroup.destroy().unwrap();
                    assert_eq!(child.wait().unwrap(), ExitStatus::Signalled(9));
                }
            });
        }
    });
    println!("50 control groups made, used and removed in {} ms", took.elapsed().as_millis());
    assert!(!world.folder().exists(), "nothing is left, not even the instance's own group");
}

/// Ids that differ although bytes are taken modulo 36.
fn id_of(number: u8) -> SandboxId {
    let mut random = [0; 18];
    random[0] = number % 36;
    random[1] = number / 36;
    SandboxId::from_random(random)
}

/// One test, because there is one root: its parts would be in each other's way.
#[test]
fn testbed_the_hosts_controllers_are_as_before_when_the_last_group_is_gone() {
    let world = World::locked("tcta", FlockOperation::LockExclusive);
    let other = Cgroups::open(&world.mount, "tctb".parse().unwrap(), Path::new(RUN_DIR)).unwrap();
    let before = subtree_control(&world.mount);
    let record = Path::new(RUN_DIR).join("cgroup-controllers");

    let (first, second) = (world.create(1, modest()), other.create(&id(1), modest()).unwrap());
    let now = subtree_control(&world.mount);
    assert!(["cpu", "memory", "pids"].iter().all(|name| now.contains(name)), "{now}");
    assert_eq!(record.exists(), before != now, "what was added is on record");
    first.destroy().unwrap();
    assert!(!world.folder().exists());
    assert_eq!(subtree_control(&world.mount), now, "another instance needs them still");
    second.destroy().unwrap();
    assert_eq!(subtree_control(&world.mount), before);
    assert!(!record.exists());

    // Killed when the record was written and the controller enabled: the next one that is the last goes by it.
    if !before.contains("pids") {
        fs::write(&record, "pids").unwrap();
        fs::write(world.mount.join("cgroup.subtree_control"), "+pids").unwrap();
        world.cgroups.tidy().unwrap();
        assert_eq!((subtree_control(&world.mount), record.exists()), (before.clone(), false));
    }

    // Somebody else comes to use one meanwhile: it stays, and only it.
    let group = world.create(1, modest());
    let stranger = world.mount.join("stranger");
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("pids.max"), "7777").unwrap();
    group.destroy().unwrap();
    let kept = subtree_control(&world.mount);
    fs::remove_dir(&stranger).unwrap();
    assert!(kept.contains("pids") && kept.contains("memory") == before.contains("memory"), "{kept}");
    for name in kept.split_whitespace().filter(|name| !before.contains(name)) {
        fs::write(world.mount.join("cgroup.subtree_control"), format!("-{name}")).unwrap();
    }
}

#[test]
fn testbed_a_trial_leaves_nothing() {
    let _among_tests = among_tests(FlockOperation::LockShared);
    let mount = cgroup::mount_point().unwrap();
    cgroup::trial(&mount, Path::new(RUN_DIR)).unwrap();
    assert!(!mount.join("wrenn-prob").exists());
}
