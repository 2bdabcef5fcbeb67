//! What goes wrong on the host: a part killed, no room, something in the way. Typed errors, soon; nothing left behind.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::world::{World, assert_failed, assert_run, eventually, signal, text};

/// How soon a run must notice that its VM is gone. The busy machine of a whole test run gets more than the second that is
/// the aim; the benchmark measures the second.
const NOTICE_LIMIT: Duration = Duration::from_secs(5);

#[test]
fn root_a_killed_vmm_is_told_within_a_second() {
    let world = World::new();
    let running = world.start("sleep 1000");
    signal(world.vmm_pid(), "KILL");
    let (output, took) = running.finish();
    assert_failed(&output, &["VM ended", "signal 9"]);
    assert!(took < NOTICE_LIMIT, "{took:?}");
    world.finish();
}

#[test]
fn root_a_killed_shim_takes_its_vm_with_it() {
    let world = World::new();
    let running = world.start("sleep 1000");
    let vmm = world.vmm_pid();
    signal(world.shim_pid(), "KILL");
    let (output, took) = running.finish();
    assert_failed(&output, &["VM ended", "shim is gone"]);
    assert!(took < NOTICE_LIMIT, "{took:?}");
    eventually("the VMM ends with its shim", || !std::path::Path::new(&format!("/proc/{vmm}")).exists());
    world.finish();
}

#[test]
fn root_what_a_killed_run_leaves_the_next_one_removes() {
    let world = World::new();
    let running = world.start("sleep 1000");
    let vmm = world.vmm_pid();
    running.signal("KILL");
    running.finish();
    assert!(!world.left_behind().is_empty(), "a killed run cannot clean up after itself");
    assert!(std::path::Path::new(&format!("/proc/{vmm}")).exists(), "its VM goes on until somebody looks");

    let output = world.run(&["echo", "next"]);
    assert_run(&output, 0, "next\n");
    assert!(!std::path::Path::new(&format!("/proc/{vmm}")).exists());
    world.finish();
}

/// `kill -9` at many moments of a creation; the next start removes whatever there was by then. Sampled: a soak has more
/// rounds (`WRENN_TEST_ROUNDS`), each of them followed by a run that must succeed.
#[test]
fn root_a_run_killed_at_any_moment_of_its_creation_is_cleaned_up() {
    let world = World::new();
    let chance = Chance::of_this_run();
    let mut reached: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..chance.soak_rounds().unwrap_or(12) {
        let mut child = world.wrenn(&["run", "--", "true"]).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(chance.pick(round + 1, 150_000)));
        signal(child.id(), "KILL");
        child.wait().unwrap();
        *reached.entry(furthest(&world)).or_default() += 1;
        if chance.soak_rounds().is_some() {
            assert_run(&world.run(&["echo", "clean"]), 0, "clean\n");
            assert_eq!(world.left_behind(), Vec::<String>::new(), "after round {round}");
        }
    }
    println!("killed, with this left behind: {reached:?}");
    assert_run(&world.run(&["echo", "clean"]), 0, "clean\n");
    world.finish();
}

/// `kill -9` of the VMM at many moments of a creation: the run ends with an error that says so, and cleans up.
#[test]
fn root_a_vmm_killed_at_any_moment_of_a_creation_is_told_and_cleaned_up() {
    let world = World::new();
    let chance = Chance::of_this_run();
    for round in 0..chance.soak_rounds().unwrap_or(4) {
        let mut command = world.wrenn(&["run", "--", "sleep", "1000"]);
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        eventually("a VMM runs", || world.vmm_pid_if_any().is_some());
        std::thread::sleep(Duration::from_micros(chance.pick(round + 1, 1_500_000)));
        let vmm = world.vmm_pid_if_any().expect("it sleeps");
        signal(vmm, "KILL");
        let output = crate::world::finish(child);
        assert_failed(&output, &["signal 9"]);
        assert_eq!(world.left_behind(), Vec::<String>::new(), "after round {round}");
    }
    world.finish();
}

#[test]
fn root_a_template_removed_while_in_use_goes_on_working() {
    let world = World::new();
    let mut running = world.start("echo 3 > /proc/sys/vm/drop_caches; echo armed; sleep 2; cat /bin/busybox | wc -c");
    assert_eq!(running.line(), "armed\n");
    std::fs::remove_dir_all(world.dir().join("templates")).unwrap();
    let (output, _) = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).trim().parse::<u64>().unwrap() > 100_000);
    world.finish();
}

/// The furthest a killed creation had come.
fn furthest(world: &World) -> &'static str {
    let left = world.left_behind();
    let any = |word: &str| left.iter().any(|line| line.contains(word));
    match () {
        () if any("process") => "a VM",
        () if any("netns") => "a network",
        () if any("sandboxes") => "a folder",
        () => "nothing",
    }
}

#[test]
fn root_ctrl_c_ends_the_command_then_the_vm() {
    let world = World::new();
    let mut running = world.start("trap 'echo trapped; exit 0' TERM; echo armed; while true; do sleep 0.1; done");
    assert_eq!(running.line(), "armed\n");
    running.signal("INT");
    let (output, took) = running.finish();
    assert_run(&output, 130, "trapped\n");
    assert!(took < Duration::from_secs(10), "{took:?}");
    world.finish();
}

#[test]
fn root_sigterm_ends_also_a_command_that_does_not_listen() {
    let world = World::new();
    let mut running = world.start("trap '' TERM; echo armed; while true; do sleep 0.1; done");
    assert_eq!(running.line(), "armed\n");
    running.signal("TERM");
    let (output, took) = running.finish();
    assert_run(&output, 143, "");
    assert!(took < Duration::from_secs(10), "{took:?}");
    world.finish();
}

#[test]
fn root_ctrl_c_while_booting_leaves_nothing() {
    let world = World::cold();
    let child = world.wrenn(&["run", "--", "true"]).spawn().unwrap();
    eventually("a VMM runs", || !world.pids("shim.json").is_empty());
    signal(child.id(), "INT");
    let output = crate::world::finish(child);
    assert_eq!(output.status.code(), Some(130));
    world.finish();
}

#[test]
fn root_a_reader_that_goes_away_ends_the_run() {
    let world = World::new();
    let binary = env!("CARGO_BIN_EXE_wrenn");
    let begun = Instant::now();
    let output = Command::new("bash")
        .args(["-c", "\"$0\" run -- yes | head -n 1; echo ${PIPESTATUS[0]}", binary])
        .env("WRENN_DIR", world.dir())
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "y\n141\n", "{}", text(&output.stderr));
    assert!(begun.elapsed() < Duration::from_secs(60));
    world.finish();
}

#[test]
fn root_a_full_disk_under_the_guest_is_told() {
    let world = World::new();
    // A file system of its own under the sandboxes: 24 MiB, less than what the guest writes.
    let sandboxes = world.dir().join("sandboxes");
    std::fs::create_dir_all(&sandboxes).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "none"]).arg(&sandboxes).status().unwrap();
    assert!(mounted.success());
    let output = world.output(&[
        "run",
        "--disk",
        "512",
        "--",
        "sh",
        "-c",
        "dd if=/dev/urandom of=/big bs=1M count=100; sync; echo not reached",
    ]);
    let unmounted = Command::new("umount").arg(&sandboxes).status().unwrap();
    assert!(unmounted.success());
    assert_failed(&output, &["full", "free some space"]);
    assert!(!text(&output.stdout).contains("not reached"));
    world.finish();
}

#[test]
fn root_no_room_for_a_sandbox_is_told() {
    let world = World::new();
    let sandboxes = world.dir().join("sandboxes");
    std::fs::create_dir_all(&sandboxes).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&sandboxes).status().unwrap();
    assert!(mounted.success());
    let output = world.run(&["true"]);
    let unmounted = Command::new("umount").arg(&sandboxes).status().unwrap();
    assert!(unmounted.success());
    assert_failed(&output, &["full"]);
    world.finish();
}

#[test]
fn root_a_guest_that_never_becomes_ready_shows_its_console() {
    let world = World::cold();
    let begun = Instant::now();
    let output = world.output(&["run", "--boot-timeout", "300ms", "--", "true"]);
    assert_failed(&output, &["not ready within 300 ms", "console"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    world.finish();
}
