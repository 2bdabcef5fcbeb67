//! What a guest can do to its host: nothing.

use std::time::Duration;

use crate::world::{World, assert_failed, assert_run, text};

#[test]
fn root_a_flooded_console_is_bounded_and_harms_nobody() {
    let world = World::new();
    let mut running = world.start("(yes flood > /dev/ttyS0) & sleep 3; echo still here; sleep 1");
    assert_eq!(running.line(), "still here\n");
    let ring = std::fs::read_dir(world.dir().join("sandboxes")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::metadata(ring.join("console.ring")).unwrap().len();
    assert!(bytes <= 256 * 1024, "{bytes}");
    let (output, _) = running.finish();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    world.finish();
}

#[test]
fn root_a_program_in_the_guest_cannot_make_host_calls() {
    let world = World::new();
    for path in ["init", "freeze", "thaw", "sync", "poweroff"] {
        let script = format!(
            "wget -q -O - --header 'X-Wrenn-Nonce: 99999999999999999999' --header 'X-Wrenn-Signature: AAAA' \
             --post-data '{{\"accessToken\":\"mine\"}}' http://127.0.0.1:49983/{path} 2>&1; echo end"
        );
        let output = world.run(&["sh", "-c", &script]);
        let stdout = text(&output.stdout);
        assert!(stdout.contains("404") && stdout.ends_with("end\n"), "{path}: {stdout}");
    }
    world.finish();
}

#[test]
fn root_a_program_in_the_guest_cannot_use_the_agent_without_the_token() {
    let world = World::new();
    let script = "wget -q -O - --header 'Content-Type: application/json' --post-data '{}' \
                  http://127.0.0.1:49983/process.Process/List 2>&1; echo end";
    let stdout = text(&world.run(&["sh", "-c", script]).stdout);
    assert!(stdout.contains("401") && stdout.ends_with("end\n"), "{stdout}");
    world.finish();
}

#[test]
fn root_a_guest_that_kills_its_agent_ends_its_vm() {
    let world = World::new();
    let running = world.start("kill -9 $(pidof envd) $PPID; sleep 1000");
    let (output, took) = running.finish();
    // Which of the two is noticed first, the broken stream or the VM's end, is a race; both are told as what they are.
    assert_failed(&output, &[]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("VM ended") || stderr.contains("guest's agent"), "{stderr}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    world.finish();
}

#[test]
fn root_a_guest_that_powers_off_ends_its_run() {
    let world = World::new();
    let running = world.start("echo o > /proc/sysrq-trigger; sleep 1000");
    let (output, took) = running.finish();
    assert_failed(&output, &["VM ended"]);
    // A VMM without a power-off goes on; then it is the silence that tells.
    assert!(took < Duration::from_secs(60), "{took:?}");
    world.finish();
}

#[test]
fn root_a_fork_bomb_dies_with_its_sandbox() {
    let world = World::new();
    let output = world.output(&["run", "--timeout", "3s", "--", "sh", "-c", "b() { b | b & }; b; sleep 1000"]);
    // The guest may be too busy to say how it ended; that it ends, and leaves nothing, is what counts.
    assert!(matches!(output.status.code(), Some(124 | 125)), "{output:?}");
    world.finish();
}

#[test]
fn root_every_zombie_is_reaped() {
    let world = World::new();
    let script = "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 1; ps -o stat | grep -c Z; true";
    assert_run(&world.run(&["sh", "-c", script]), 0, "0\n");
    world.finish();
}
