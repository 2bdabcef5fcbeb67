//! What keeps the VMM apart: its user, its network.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;

use wrenn_proto::shim::{Credentials, End, Ready};
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
