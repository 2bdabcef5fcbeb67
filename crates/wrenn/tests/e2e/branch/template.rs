//! Templates from snapshots, and templates that are removed.

use crate::world::{World, assert_failed};

#[test]
fn root_a_template_from_a_snapshot_starts_warm_with_what_was_there() {
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, "echo prepared > /root/file; echo ready > /dev/shm/file; dd if=/dev/urandom of=/root/big bs=64k count=40 2>&1; sync");
    let sum = world.sh(&id, "sha256sum /root/big");
    world.snapshot(&id, "prepared");
    let made = world.json(&["template", "from-snapshot", "prepared", "mine"]);
    assert_eq!(made["name"], "mine");
    world.remove(&[id]);
    world.json(&["snapshot", "rm", "prepared"]);

    for (args, wanted, memory) in [(&[][..], "warm", "ready\n"), (&["--cold"], "cold", "")] {
        let created = world.sandbox(&[&["create", "--template", "mine", "--memory", "128"], args].concat());
        assert_eq!(created["start"], wanted);
        let child = created["id"].as_str().unwrap().to_owned();
        assert_eq!(
            world.sh(&child, "cat /root/file; cat /dev/shm/file 2> /dev/null; true"),
            format!("prepared\n{memory}")
        );
        assert_eq!(world.sh(&child, "sha256sum /root/big"), sum);
        world.sandbox(&["pause", &child]);
        world.sandbox(&["resume", &child]);
        assert_eq!(world.sh(&child, "sha256sum /root/big"), sum);
        assert_failed(&world.output(&["template", "rm", "mine"]), &["in use", &child]);
        world.remove(&[child]);
    }
    for (name, words) in [("minimal", "already"), ("mine", "already"), ("No", "cannot be a template's name")] {
        let refused = world.output(&["template", "from-snapshot", "gone", name]);
        assert!(!refused.status.success(), "{name}: {words}");
    }
    world.json(&["template", "rm", "mine"]);
    assert_failed(&world.output(&["sandbox", "create", "--template", "mine"]), &["no template `mine`"]);
    agent.stop();
    world.finish_agent();
}
