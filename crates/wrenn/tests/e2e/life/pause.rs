//! To rest and back: what must be as before, what must not, and what is refused meanwhile.

use std::time::Duration;

use super::agent::AgentWorld;
use crate::world::{World, assert_failed, text};

#[test]
fn root_a_pause_keeps_memory_disk_and_processes() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&["--metadata", "purpose=test", "--env", "GREETING=hello"]);
    world.sh(&id, "echo on-disk > /root/file; echo in-memory > /dev/shm/file; mkdir -p /etc/wrenn/resume.d");
    world.sh(&id, "printf '#!/bin/sh\\necho $WRENN_SANDBOX_ID >> /root/hooks\\n' > /etc/wrenn/resume.d/10-note; chmod +x /etc/wrenn/resume.d/10-note");
    world.detach(&id, "n=0; while true; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.05; done");
    let boot_id = world.sh(&id, "cat /proc/sys/kernel/random/boot_id");
    let (seed_before, vmm) = (world.sh(&id, "head -c 16 /dev/urandom | sha256sum"), world.vmm_pid());

    let paused = world.sandbox(&["pause", &id]);
    assert_eq!((paused["state"].as_str(), paused["id"].as_str()), (Some("paused"), Some(id.as_str())));
    assert!(paused["timings_ms"]["memory"].as_f64().is_some_and(|ms| ms > 0.0), "{paused}");
    assert!(!std::path::Path::new(&format!("/proc/{vmm}")).exists(), "a paused sandbox has no VMM");
    assert_eq!(world.pids(&id), [] as [u32; 0]);
    assert_failed(&world.exec(&id, "true"), &["paused", "resume it first"]);
    assert_failed(&world.output(&["sandbox", "pause", &id]), &["nothing to pause"]);
    let stat = world.sandbox(&["stat", &id]);
    assert!(stat["memory_file_bytes"].as_u64().unwrap() > 1 << 20, "{stat}");

    let resumed = world.sandbox(&["resume", &id]);
    assert_eq!(resumed["state"], "running");
    assert_eq!(world.sh(&id, "cat /root/file /dev/shm/file; echo $GREETING"), "on-disk\nin-memory\nhello\n");
    assert_eq!(world.sh(&id, "cat /proc/sys/kernel/random/boot_id"), boot_id);
    assert_eq!(world.sh(&id, "cat /root/hooks").trim(), id);
    assert_ne!(world.sh(&id, "head -c 16 /dev/urandom | sha256sum"), seed_before);
    let count = || world.sh(&id, "cat /dev/shm/count").trim().parse::<u64>().unwrap();
    let before = count();
    std::thread::sleep(Duration::from_millis(500));
    assert!(count() > before, "a process that ran goes on");
    assert_failed(&world.output(&["sandbox", "resume", &id]), &["nothing to resume"]);

    world.sandbox(&["rm", &id]);
    assert_eq!(world.state(&id), "gone");
    world.end();
}

/// Unix time in nanoseconds, of the host, or of a time as `stat` prints it.
fn unix_ns(what: &str) -> i128 {
    let output = std::process::Command::new("date").args(["-d", what, "+%s%N"]).output().unwrap();
    text(&output.stdout).trim().parse().unwrap_or_else(|_| panic!("{what}: {}", text(&output.stderr)))
}

/// A hook sees the guest's clock before any user's process does. In an emulated host, whose clock is nobody's, the host's
/// own clock is set by an hour meanwhile, forth and back.
#[test]
fn root_the_clock_is_right_before_users_go_on() {
    const OFF_AT_MOST_NS: i128 = 50_000_000;
    /// Of a file's times.
    const GRAIN_NS: i128 = 10_000_000;
    let world = AgentWorld::begin(&[]);
    let id = world.create(&[]);
    world.sh(
        &id,
        "mkdir -p /etc/wrenn/resume.d; printf '#!/bin/sh\\ntouch /dev/shm/now\\n' > /etc/wrenn/resume.d/now; chmod +x \
         /etc/wrenn/resume.d/now",
    );
    for step in ["+1 hour", "-1 hour"] {
        world.sandbox(&["pause", &id]);
        if std::env::var_os("WRENN_TEST_STACK").is_some() {
            let set = std::process::Command::new("date").args(["-s", &format!("now {step}")]).output().unwrap();
            assert!(set.status.success(), "{set:?}");
        } else {
            std::thread::sleep(Duration::from_secs(1));
        }
        let before = unix_ns("now");
        world.sandbox(&["resume", &id]);
        let after = unix_ns("now");
        let seen = unix_ns(world.sh(&id, "stat -c %y /dev/shm/now").trim());
        let off = OFF_AT_MOST_NS + GRAIN_NS;
        assert!((before - off..after + off).contains(&seen), "{step}: {before} .. {seen} .. {after}");
    }
    world.sandbox(&["rm", &id]);
    world.end();
}

#[test]
fn root_a_hook_that_fails_keeps_the_sandbox_paused() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&[]);
    world.sh(&id, "mkdir -p /etc/wrenn/resume.d; printf '#!/bin/sh\\n[ -e /root/ok ] || { echo not yet >&2; exit 7; }\\n' > /etc/wrenn/resume.d/50-check; chmod +x /etc/wrenn/resume.d/50-check");
    world.sandbox(&["pause", &id]);
    for _ in 0..2 {
        assert_failed(&world.output(&["sandbox", "resume", &id]), &["50-check", "not yet"]);
        assert_eq!(world.state(&id), "paused");
        assert_eq!(world.pids(&id), [] as [u32; 0], "nothing of the failed resume is left");
    }
    world.sandbox(&["rm", &id]);
    world.end();
}

#[test]
fn root_a_disk_only_pause_keeps_the_disk_and_boots_again() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&["--disk", "128"]);
    world.sh(&id, "echo kept > /root/file; echo lost > /dev/shm/file");
    let boot_id = world.sh(&id, "cat /proc/sys/kernel/random/boot_id");
    for round in 0..2 {
        world.sandbox(&["pause", "--disk-only", &id]);
        assert_eq!(world.sandbox(&["stat", &id])["memory_file_bytes"], 0);
        world.sandbox(&["resume", &id]);
        assert_eq!(world.sh(&id, "cat /root/file; ls /dev/shm"), "kept\n", "round {round}");
        assert_ne!(world.sh(&id, "cat /proc/sys/kernel/random/boot_id"), boot_id);
    }
    world.sandbox(&["rm", &id]);
    world.end();
}

#[test]
fn root_a_vm_that_ends_leaves_a_sandbox_that_boots_again() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&[]);
    world.sh(&id, "echo kept > /root/file; sync");
    crate::world::signal(world.vmm_pid(), "KILL");
    world.await_state(&id, "stopped");
    let view = world.sandbox(&["get", &id]);
    assert!(view["reason"].as_str().unwrap().contains("signal 9"), "{view}");
    assert_eq!(world.pids(&id), [] as [u32; 0]);
    assert_failed(&world.exec(&id, "true"), &["stopped"]);
    world.sandbox(&["resume", &id]);
    assert_eq!(world.sh(&id, "cat /root/file"), "kept\n");

    crate::world::signal(world.shim_pid(), "KILL");
    world.await_state(&id, "stopped");
    world.sandbox(&["resume", &id]);
    assert_eq!(world.sh(&id, "cat /root/file"), "kept\n");
    world.sandbox(&["rm", &id]);
    world.end();
}

#[test]
fn root_a_command_that_runs_across_a_pause_loses_nothing() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&[]);
    // A pipe between two processes, and a connection within the guest, live on as well.
    let script = "nc -l -p 7777 -e sh -c 'while read n; do echo got $n; done' & sleep 0.3; \
                  n=0; while [ $n -lt 60 ]; do n=$((n+1)); echo $n; sleep 0.05; done | nc 127.0.0.1 7777";
    let pid = world.detach(&id, script);
    std::thread::sleep(Duration::from_millis(1200));
    let watching = world
        .wrenn(&["sandbox", "attach", &id, &pid])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    world.sandbox(&["pause", &id]);
    let watched = crate::world::finish(watching);
    assert_failed(&watched, &["paused", "attach"]);
    world.sandbox(&["resume", &id]);
    let output = world.output(&["sandbox", "attach", &id, &pid]);
    let wanted: String = (1..=60).map(|n| format!("got {n}\n")).collect();
    assert_eq!(text(&output.stdout), wanted, "{}", text(&output.stderr));
    world.sandbox(&["rm", &id]);
    world.end();
}

#[test]
fn root_time_is_up_and_what_happens_then() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&["--timeout", "2s", "--on-timeout", "pause"]);
    world.await_state(&id, "paused");
    let resumed = world.sandbox(&["resume", &id]);
    assert!(resumed["deadline_unix_ms"].as_u64().is_some(), "it is counted anew: {resumed}");
    let changed = world.sandbox(&["timeout", &id, "never"]);
    assert!(changed["deadline_unix_ms"].is_null(), "{changed}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(world.state(&id), "running");
    world.sandbox(&["timeout", &id, "1s", "--on-timeout", "destroy"]);
    world.await_state(&id, "gone");
    world.end();
}

#[test]
fn root_memory_that_the_host_does_not_have_is_refused_beforehand() {
    let world = AgentWorld::begin(&["--memory", "460"]);
    let first = world.create(&["--memory", "128"]);
    let second = world.create(&["--memory", "128"]);
    let refused = world.try_sandbox(&["create", "--memory", "128"]);
    assert_failed(&refused, &["no memory for another", "pause or destroy some"]);
    world.sandbox(&["pause", &first]);
    let third = world.create(&["--memory", "128"]);
    assert_failed(&world.try_sandbox(&["resume", &first]), &["no memory for another"]);
    assert_eq!(world.state(&first), "paused");
    world.sandbox(&["rm", &third]);
    world.sandbox(&["resume", &first]);
    world.sandbox(&["rm", &first, &second]);
    world.end();
}

#[test]
fn root_a_full_disk_fails_a_pause_and_the_sandbox_goes_on() {
    let world = World::new();
    // A file system of its own under the sandboxes, with less room than the memory takes.
    let sandboxes = world.dir().join("sandboxes");
    std::fs::create_dir_all(&sandboxes).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "none"])
        .arg(&sandboxes)
        .status()
        .unwrap();
    assert!(mounted.success());
    let agent = world.agent(&[]);
    let id = world.create(&[]);
    world.sh(&id, "dd if=/dev/urandom of=/dev/shm/x bs=1M count=30 2>/dev/null");
    let failed = world.output(&["sandbox", "pause", &id]);
    assert_failed(&failed, &["capture"]);
    // In our words, or in the VMM's that writes memory itself.
    let why = text(&failed.stderr);
    assert!(why.contains("the file system is full") || why.contains("No space left"), "{why}");
    assert_eq!(world.state(&id), "running");
    assert_eq!(world.sh(&id, "echo goes on"), "goes on\n");
    world.sandbox(&["rm", &id]);
    agent.stop();
    let unmounted = std::process::Command::new("umount").arg(&sandboxes).status().unwrap();
    assert!(unmounted.success());
    world.finish_agent();
}
