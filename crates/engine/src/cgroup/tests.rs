//! What is read and planned, without a kernel. What the kernel makes of it is in `tests/testbed_cgroup.rs`.

use super::*;

fn path() -> &'static Path {
    Path::new("/x")
}

#[test]
fn a_vm_has_its_memory_its_cpus_and_some_for_its_vmm() {
    let small = Limits::of_vm(1, Mib(256), false);
    assert_eq!(small, Limits { memory: Mib(416), pids: 128, cpu_us: 150_000, cpu_weight: 100 });
    let emulated = Limits::of_vm(4, Mib(1024), true);
    assert_eq!(emulated, Limits { memory: Mib(2208), pids: 128, cpu_us: 450_000, cpu_weight: 400 });
    assert_eq!(Limits::of_vm(4, Mib(u32::MAX), true).memory, Mib(u32::MAX));
    assert_eq!(Limits::of_vm(200, Mib(1), false).cpu_weight, 10_000);
}

#[test]
fn a_want_of_memory_is_read_from_the_kernels_words() {
    let events = |text: &str| parse_events(path(), text);
    let text = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 1";
    assert_eq!(events(text).unwrap(), Events { limit_reached: 2, kills: 1 });
    // Without the line for groups, which is from Linux 5.17 on.
    assert_eq!(events("low 0\nhigh 0\nmax 0\noom 0\noom_kill 3").unwrap(), Events { limit_reached: 0, kills: 3 });
    for text in ["", "oom 1", "oom_kill 1", "oom x\noom_kill 1", "oom 1\noom_kill -1"] {
        assert!(matches!(events(text), Err(CgroupError::Strange { .. })), "{text}");
    }
}

#[test]
fn numbers_are_numbers_or_max() {
    assert_eq!(number(path(), "max").unwrap(), u64::MAX);
    assert_eq!(number(path(), "12").unwrap(), 12);
    for text in ["", "-1", "1 2", "maximum"] {
        assert!(number(path(), text).is_err(), "{text}");
    }
}

#[test]
fn a_hierarchy_without_all_controllers_is_none() {
    let mount = tempfile::tempdir().unwrap();
    let open = || Cgroups::open(mount.path(), "abcd".parse().unwrap(), mount.path());
    let missing = |opened: Result<Cgroups, CgroupError>| match opened {
        Err(CgroupError::Missing { missing, .. }) => missing,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(open()), ["cpu", "memory", "pids"]);
    // A hybrid host, where the old hierarchies have the rest.
    std::fs::write(mount.path().join("cgroup.controllers"), "cpu hugetlb pids\n").unwrap();
    assert_eq!(missing(open()), ["memory"]);
    std::fs::write(mount.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    assert!(open().is_ok());
}

#[test]
fn names_of_others_are_not_taken_for_sandboxes() {
    let mount = tempfile::tempdir().unwrap();
    std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let cgroups = Cgroups::open(mount.path(), "abcd".parse().unwrap(), mount.path()).unwrap();
    assert_eq!(cgroups.sandboxes().unwrap(), []);
    let id = SandboxId::from_random([3; 18]);
    for name in ["shims", "other", id.as_str()] {
        std::fs::create_dir_all(mount.path().join("wrenn-abcd").join(name)).unwrap();
    }
    assert_eq!(cgroups.sandboxes().unwrap(), [id]);
}

#[test]
fn a_group_that_is_gone_is_as_good_as_destroyed() {
    let mount = tempfile::tempdir().unwrap();
    std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    let cgroups = Cgroups::open(mount.path(), "abcd".parse().unwrap(), &mount.path().join("run")).unwrap();
    let cgroup = || cgroups.at(&SandboxId::from_random([3; 18]));
    cgroup().kill().unwrap();
    cgroup().destroy().unwrap();
    cgroups.tidy().unwrap();
    assert!(!mount.path().join("wrenn-abcd").exists());
}

/// What kernels without `cgroup.kill` get; this one may have it.
#[test]
fn testbed_processes_that_fork_are_killed_one_by_one_too() {
    use std::os::fd::AsFd;

    let cgroups = Cgroups::mounted("tone".parse().unwrap(), Path::new("/run/wrenn")).expect("run this in the testbed");
    let limits = Limits { memory: Mib(64), pids: 50, cpu_us: 100_000, cpu_weight: 100 };
    let cgroup = cgroups.create(&SandboxId::from_random([5; 18]), limits).unwrap();
    let folder = fs::File::open(cgroup.path()).unwrap();
    let restless = "while :; do /bin/sleep 0.01 & done 2>/dev/null";
    let spawn = wrenn_sys::spawn::Spawn::new("/bin/sh").arg("-c").arg(restless).cgroup(folder.as_fd());
    let child = spawn.start().unwrap();
    cgroup.kill_one_by_one().unwrap();
    files::wait_empty(cgroup.path(), END_LIMIT).unwrap();
    assert_eq!(child.wait().unwrap(), wrenn_sys::spawn::ExitStatus::Signalled(9));
    cgroup.destroy().unwrap();
}
