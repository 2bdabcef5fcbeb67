//! What keeps the VMM apart: its user, its network.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;

use wrenn_proto::shim::{Credentials, End, Jail, JailEntry, Ready};
use wrenn_sys::netns::NetNs;

use crate::harness::Plan;

fn require_root() {
    assert!(rustix::process::getuid().is_root(), "this test changes users and namespaces: run it as root");
}

#[test]
fn root_the_vmm_runs_as_its_user_without_any_right() {
    require_root();
    let mut plan = Plan::program("/bin/cat", &["/proc/self/status"]);
    plan.spec.vmm.credentials = Some(Credentials { uid: 65_534, gid: 65_534, groups: vec![1234] });
    let shim = plan.start();
    assert_eq!(shim.wait().end, End::Exited { code: 0 });
    let status = shim.console();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().trim_end().to_owned();
    assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Gid:"), "Gid:\t65534\t65534\t65534\t65534");
    assert_eq!(line("Groups:"), "Groups:\t1234");
    assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(name), format!("{name}\t0000000000000000"));
    }
}

#[test]
fn root_the_vmm_of_another_user_dies_with_its_shim_too() {
    require_root();
    let mut plan = Plan::script("exec sleep 600");
    plan.spec.vmm.credentials = Some(Credentials { uid: 65_534, gid: 65_534, groups: vec![] });
    let shim = plan.start();
    let vmm = wrenn_sys::process::Identity::read(shim.vmm_pid()).unwrap();
    let handle = vmm.pidfd().unwrap().unwrap();
    shim.child.signal(rustix::process::Signal::KILL).unwrap();
    assert!(crate::harness::is_readable_within(handle.as_fd(), crate::harness::PATIENCE));
}

#[test]
fn root_a_folder_closed_to_the_user_is_a_failed_step() {
    require_root();
    let mut plan = Plan::script("exit 0");
    let folder = plan.spec.socket.parent().unwrap().to_owned();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    plan.spec.vmm.cwd = folder;
    plan.spec.vmm.credentials = Some(Credentials { uid: 65_534, gid: 65_534, groups: vec![] });
    let shim = plan.launch(&[]);
    let Some(Ready::SpawnFailed(record)) = &shim.ready else { panic!("{:?}", shim.ready) };
    let expected = End::SpawnFailed { step: "working_directory".into(), errno: 13, program: "/bin/sh".into() };
    assert_eq!(record.end, expected);
}

#[test]
fn root_the_vmm_is_in_its_network_namespace_and_the_shim_is_not() {
    require_root();
    let netns = NetNs::anonymous().unwrap();
    let mut plan = Plan::script("readlink /proc/self/ns/net; exec sleep 600");
    // The namespace has no name in the file system; this path leads to our descriptor of it.
    plan.spec.vmm.netns = Some(format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into());
    let shim = plan.start();
    let inode = rustix::fs::fstat(netns.as_fd()).unwrap().st_ino;
    shim.console_says(&format!("net:[{inode}]\n"));
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(of(shim.child.pid()), of(std::process::id()));
    assert_ne!(of(shim.vmm_pid()), of(std::process::id()));
}

/// A VMM, a busybox, that sees itself and a folder to write in.
fn jailed(script: &str) -> Plan {
    let mut plan = Plan::program("/busybox", &["sh", "-c", script]);
    let folder = plan.spec.socket.parent().unwrap().to_owned();
    for name in ["root", "out"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    std::os::unix::fs::chown(folder.join("out"), Some(65_534), Some(65_534)).unwrap();
    plan.spec.vmm.credentials = Some(Credentials { uid: 65_534, gid: 65_534, groups: vec![] });
    let entries = vec![
        JailEntry::ReadOnly { path: "/busybox".into(), source: "/bin/busybox".into() },
        JailEntry::Device { path: "/dev/null".into(), source: "/dev/null".into() },
        JailEntry::Writable { path: "/run".into(), source: folder.join("out") },
    ];
    plan.spec.vmm.jail = Some(Jail { mount_point: folder.join("root"), entries });
    plan
}

#[test]
fn root_the_vmm_is_locked_into_its_jail_and_the_shim_is_not() {
    require_root();
    let shim = jailed("/busybox find / && echo here > /run/file; exec /busybox sleep 600").start();
    crate::harness::until("all is listed", || shim.console().lines().count() == 5);
    let mut console: Vec<_> = shim.console().lines().map(str::to_owned).collect();
    console.sort();
    assert_eq!(console, ["/", "/busybox", "/dev", "/dev/null", "/run"]);
    let written = shim.spec.socket.with_file_name("out/file");
    crate::harness::until("the file is written", || {
        std::fs::read_to_string(&written).is_ok_and(|text| text == "here\n")
    });
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_eq!(of(shim.child.pid()), of(std::process::id()));
    assert_ne!(of(shim.vmm_pid()), of(std::process::id()));
    let (_, plain) = Plan::script("exec sleep 600").start().memory_kib();
    let (_, most) = shim.memory_kib();
    assert!(most < plain + 256, "the jail costs the shim memory: {most} KiB, {plain} KiB without");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = shim.spec.socket.parent().unwrap().to_str().unwrap();
    assert!(!table.contains(folder), "the host sees the jail:\n{table}");
}

#[test]
fn root_a_jail_that_cannot_be_built_is_a_failed_step_and_names_the_entry() {
    require_root();
    let mut plan = jailed("exit 0");
    let entry = JailEntry::ReadOnly { path: "/kernel".into(), source: "/no/such/kernel".into() };
    plan.spec.vmm.jail.as_mut().unwrap().entries.push(entry);
    let shim = plan.launch(&[]);
    let Some(Ready::SpawnFailed(record)) = &shim.ready else { panic!("{:?}", shim.ready) };
    let expected = End::SpawnFailed { step: "jail_source".into(), errno: 2, program: "/kernel".into() };
    assert_eq!(record.end, expected);
}
