//! What a VMM may do to its host: next to nothing. Read from the kernel while it runs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::world::{Stack, World, assert_run, is_tagged, text};

/// Users from here on belong to sandboxes.
const VMM_UID_BASE: u32 = 0x7000_0000;

/// A field of each thread's status.
fn statuses(pid: u32, field: &str) -> BTreeSet<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |thread: PathBuf| std::fs::read_to_string(thread.join("status")).unwrap();
    let value = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("no {field}"));
        line.trim_start_matches(':').trim().to_owned()
    };
    threads.map(|thread| value(status(thread.unwrap().path()))).collect()
}

fn only(values: BTreeSet<String>) -> String {
    assert_eq!(values.len(), 1, "all threads alike: {values:?}");
    values.into_iter().next().unwrap()
}

#[test]
fn root_a_vmm_is_nobody_with_no_rights_under_a_filter() {
    let world = World::new();
    let running = world.start("sleep 1000");
    let vmm = world.vmm_pid();
    let ids = only(statuses(vmm, "Uid"));
    let uids: BTreeSet<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert!(uids.len() == 1 && uids.iter().all(|uid| *uid >= VMM_UID_BASE), "{ids}");
    assert_eq!(only(statuses(vmm, "Groups")), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(only(statuses(vmm, set)), "0000000000000000", "{set}");
    }
    assert_eq!(only(statuses(vmm, "NoNewPrivs")), "1");
    let filters = only(statuses(vmm, "Seccomp"));
    println!("the filter in force on every thread: Seccomp {filters}");
    assert_eq!(filters, "2");
    running.signal("TERM");
    running.finish();
    world.finish();
}

#[test]
fn root_a_vmm_is_in_namespaces_of_its_own() {
    let world = World::new();
    let running = world.start("sleep 1000");
    let vmm = world.vmm_pid();
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let own = |kind: &str| namespace(&vmm.to_string(), kind) != namespace("self", kind);
    assert!(own("net"));
    if Stack::of_this_run().vmm == "firecracker" {
        assert!(own("mnt"));
        let entries = std::fs::read_dir(format!("/proc/{vmm}/root")).unwrap();
        let names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let ours = ["capture", "dev", "disk", "firecracker", "initramfs", "kernel", "run", "snapshot"];
        let allowed = [&ours[..], &["lib", "lib64", "usr"]].concat();
        assert!(names.iter().all(|name| allowed.contains(&name.as_str())), "{names:?}");
        let mounts = std::fs::read_to_string(format!("/proc/{vmm}/mountinfo")).unwrap();
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
        let tag = world.tag();
        let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        // The handle of the network namespace is a mount of the host's.
        let seen: Vec<&str> = host.lines().filter(|line| is_tagged(line, &tag) && !line.contains("nsfs")).collect();
        assert!(seen.is_empty(), "the host sees it: {seen:?}");
    }
    running.signal("TERM");
    running.finish();
    world.finish();
}

#[test]
fn root_a_vmm_has_limits_where_there_are_control_groups() {
    let world = World::new();
    let running = world.start("sleep 1000");
    let vmm = world.vmm_pid();
    let groups = std::fs::read_to_string(format!("/proc/{vmm}/cgroup")).unwrap();
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    // A host whose controllers are with version 1 has none here: then nothing is limited, and `wrenn doctor` says so.
    if unified.contains("/wrenn-") {
        let folder = PathBuf::from(format!("/sys/fs/cgroup{unified}"));
        let limit = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap().trim().to_owned();
        let memory: u64 = limit("memory.max").parse().unwrap();
        assert!((256 << 20..2 << 30).contains(&memory), "{memory}");
        assert_eq!(limit("memory.swap.max"), "0");
        assert!(limit("pids.max").parse::<u32>().unwrap() <= 1024);
        assert_ne!(limit("cpu.max").split(' ').next(), Some("max"));
        assert!(unified.contains(&world.tag()));
    } else {
        assert_ne!(Stack::of_this_run().accel, "kvm", "the emulated host has them: {groups}");
    }
    running.signal("TERM");
    running.finish();
    world.finish();
}

#[test]
fn root_a_guest_that_eats_all_its_memory_harms_itself_alone() {
    let world = World::new();
    let eater = world.start("tail /dev/zero; echo tail ended with $?; sleep 1000");
    let mut eater = eater;
    // Its own kernel ends the program that ate it; the host goes on, and starts another sandbox.
    assert_eq!(eater.line(), "tail ended with 137\n");
    let other = world.run(&["echo", "untouched"]);
    assert_run(&other, 0, "untouched\n");
    eater.signal("TERM");
    let (output, _) = eater.finish();
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    world.finish();
}
