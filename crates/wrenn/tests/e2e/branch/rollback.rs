//! Back to a snapshot under the same id.

use std::process::Stdio;

use crate::world::{World, assert_failed, eventually, finish};

#[test]
fn root_a_rollback_takes_a_sandbox_back_with_all_that_it_was() {
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, "echo before > /root/file; echo before > /dev/shm/file");
    world.detach(&id, "while :; do echo x >> /dev/shm/ticks; sleep 0.3; done");
    world.snapshot(&id, "before");
    world.sh(&id, "echo after > /root/file; rm /dev/shm/file");

    // While something runs in it: that ends, and is told.
    let running = world.wrenn(&["sandbox", "exec", &id, "--", "sh", "-c", "echo begun; sleep 300"]);
    let running = World::start_piped(running);
    let back = world.sandbox(&["rollback", &id, "before"]);
    assert_eq!((&back["id"], &back["state"]), (&id.as_str().into(), &"running".into()));
    let ended = running.end();
    assert!(!ended.status.success(), "{ended:?}");
    assert_eq!(world.sh(&id, "cat /root/file /dev/shm/file"), "before\nbefore\n");
    let ticks = || world.sh(&id, "wc -c < /dev/shm/ticks").trim().parse::<u64>().unwrap();
    let before = ticks();
    eventually("what ran then goes on", || ticks() > before);

    // From rest, after a stop, and twice to the same.
    world.sh(&id, "echo lost > /root/file");
    world.sandbox(&["pause", &id]);
    world.sandbox(&["rollback", &id, "before"]);
    assert_eq!(world.sh(&id, "cat /root/file"), "before\n");
    crate::world::signal(world.vmm_pid_if_any().unwrap(), "KILL");
    world.await_state(&id, "stopped");
    world.sandbox(&["rollback", &id, "before"]);
    assert_eq!(world.sh(&id, "cat /root/file /dev/shm/file"), "before\nbefore\n");

    // Only its own; and what cannot be used is refused before anything is given up.
    let other = world.create(&["--snapshot", "before"]);
    assert_failed(
        &world.output(&["sandbox", "rollback", &other, "before"]),
        &["is of the sandbox", "--snapshot before"],
    );
    world.remove(&[other]);
    world.sh(&id, "echo going on > /dev/shm/file");
    let damaged = world.snapshot(&id, "damaged");
    crate::life::damage::flip(&world.dir().join("snapshots").join(damaged).join("generation/memory/memory"));
    assert_failed(&world.output(&["sandbox", "rollback", &id, "damaged"]), &["damaged"]);
    assert_eq!(world.sh(&id, "cat /dev/shm/file"), "going on\n");
    assert_failed(&world.output(&["sandbox", "rollback", &id, "never"]), &["no snapshot `never`"]);

    world.remove(&[id]);
    world.json(&["snapshot", "rm", "before", "damaged"]);
    agent.stop();
    world.finish_agent();
}

/// A command that has begun when it is returned.
struct Begun(std::process::Child, std::io::BufReader<std::process::ChildStdout>);

impl World {
    fn start_piped(mut command: std::process::Command) -> Begun {
        use std::io::BufRead as _;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        Begun(child, stdout)
    }
}

impl Begun {
    fn end(self) -> std::process::Output {
        drop(self.1);
        finish(self.0)
    }
}
