//! Memory that the shim serves page by page: a guest comes back to what it had, again and again; what cannot be served is the
//! end, with a reason; and where it is not to be had it is refused by name.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::world::{Stack, World, assert_failed, eventually};

const UFFD: [&str; 2] = ["--memory-backend", "uffd"];
const ROUNDS: u64 = 2;

/// Whether this run's VMM can have its memory served; that one which cannot is refused is tested here.
fn is_served(world: &World) -> bool {
    if Stack::of_this_run().vmm == "firecracker" {
        return true;
    }
    assert_failed(&world.output(&[&["agent"], &UFFD[..]].concat()), &["memory backend = uffd", "QEMU maps memory"]);
    false
}

impl World {
    /// The folder of the memory that a sandbox rests as, or came back from: of its newest generation.
    fn memory_folder(&self, id: &str) -> PathBuf {
        let folder = self.dir().join("sandboxes").join(id).join("generations");
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let newest = names.filter_map(|name| name.to_str()?.parse::<u64>().ok()).max().expect("it has one");
        folder.join(newest.to_string()).join("memory")
    }

    /// Whether the one shim holds a descriptor on which the kernel tells of faults.
    fn shim_serves(&self) -> bool {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.shim_pid())).unwrap();
        let mut links = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        links.any(|link| link == Path::new("anon_inode:[userfaultfd]"))
    }
}

/// What the guest has in memory: pages of chance, pages of zeroes, pages that were something and are zero.
const FILL: &str = "cd /dev/shm; head -c 8000000 /dev/urandom > kept; head -c 2000000 /dev/urandom > changed; \
                    dd if=/dev/zero of=zeroed bs=64k count=64 2>/dev/null";
/// Changes a part of it, another one in each round.
const CHANGE: &str = "cd /dev/shm; dd if=/dev/urandom of=changed bs=64k count=8 seek=$((N * 9)) conv=notrunc 2>/dev/null; \
                      dd if=/dev/zero of=changed bs=64k count=4 seek=$((N * 9 + 20)) conv=notrunc 2>/dev/null; \
                      dd if=/dev/urandom of=zeroed bs=64k count=3 seek=$((N * 5)) conv=notrunc 2>/dev/null";
const HASH: &str = "cat /dev/shm/kept /dev/shm/changed /dev/shm/zeroed | sha256sum";

#[test]
fn root_a_guest_whose_memory_is_served_has_all_of_it_again_and_again() {
    let world = World::new();
    if !is_served(&world) {
        return world.finish();
    }
    let agent = world.agent(&UFFD);
    let id = world.create(&["--memory", "128", "--cold"]);
    world.sh(&id, FILL);
    assert!(!world.shim_serves(), "a guest that boots has memory of its own");
    let boot_id = world.sh(&id, "cat /proc/sys/kernel/random/boot_id");
    for round in 0..ROUNDS {
        let hash = world.sh(&id, HASH);
        world.sandbox(&["pause", &id]);
        let hint = || std::fs::metadata(world.memory_folder(&id).join("working-set")).map_or(0, |file| file.len());
        if round > 0 {
            // It moves with the memory, once the changes are folded into that.
            eventually("what the last resume wanted is known to the next one", || hint() > 0);
        }
        println!("round {round}: {} bytes of what was wanted the last time", hint());
        let resumed = world.sandbox(&["resume", &id]);
        println!("round {round}: {}", resumed["timings_ms"]);
        assert!(world.shim_serves(), "round {round}");
        assert_eq!(world.sh(&id, HASH), hash, "round {round}");
        assert_eq!(world.sh(&id, "cat /proc/sys/kernel/random/boot_id"), boot_id);
        world.sh(&id, &format!("N={round}; {CHANGE}"));
    }
    // What was served, changed and captured is the same for one who maps it.
    let hash = world.sh(&id, HASH);
    world.sandbox(&["pause", &id]);
    agent.stop();
    let agent = world.agent(&["--memory-backend", "file"]);
    world.sandbox(&["resume", &id]);
    assert!(!world.shim_serves());
    assert_eq!(world.sh(&id, HASH), hash);
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}

/// What the first fork of a snapshot wants first is brought ahead for the next one: they share the list as they share the memory.
#[test]
fn root_forks_share_what_is_wanted_first() {
    let world = World::new();
    if !is_served(&world) {
        return world.finish();
    }
    let agent = world.agent(&UFFD);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, FILL);
    let hash = world.sh(&id, HASH);
    let snapshot = world.snapshot(&id, "filled");
    world.sandbox(&["rm", &id]);
    let hint = world.dir().join("snapshots").join(snapshot).join("generation/memory/working-set");
    let recorded = || std::fs::read(&hint).unwrap_or_default();
    let first = world.create(&["--snapshot", "filled"]);
    assert_eq!(world.sh(&first, HASH), hash);
    eventually("what the first one wanted is known", || !recorded().is_empty());
    world.sandbox(&["rm", &first]);
    let before = recorded();
    let second = world.create(&["--snapshot", "filled"]);
    assert!(world.shim_serves());
    assert_eq!(world.sh(&second, HASH), hash);
    assert_eq!(recorded(), before, "it is not recorded anew");
    let shared = world.memory_folder(&second).join("working-set");
    assert_eq!(std::fs::read(shared).unwrap(), before);
    world.sandbox(&["rm", &second]);
    world.json(&["snapshot", "rm", "filled"]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_memory_that_cannot_be_served_any_more_is_the_end_with_a_reason() {
    let world = World::new();
    if !is_served(&world) {
        return world.finish();
    }
    let agent = world.agent(&UFFD);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, FILL);
    world.sandbox(&["pause", &id]);
    world.sandbox(&["resume", &id]);
    // Nobody but root can do this to it; a disk that fails looks the same.
    let memory: File = OpenOptions::new().write(true).open(world.memory_folder(&id).join("memory")).unwrap();
    memory.set_len(4096).unwrap();
    world.exec(&id, HASH);
    world.await_state(&id, "stopped");
    let view = world.sandbox(&["get", &id]);
    let reason = view["reason"].as_str().unwrap();
    for word in ["its memory could not be served", "memory/memory was cut short: it has 4096 bytes"] {
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(world.pids(&id), [] as [u32; 0]);
    world.sandbox(&["resume", &id]);
    assert!(!world.shim_serves(), "it boots from its disk");
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}
