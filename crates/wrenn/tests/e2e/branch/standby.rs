//! Sandboxes made ahead: taken by whoever wants one of their kind, nobody's until then, and gone with their agent.

use crate::world::{World, eventually, signal};

/// How many wait: they are in no list, but the agent says what becomes of each, and each has its VMM.
fn waiting(world: &World) -> usize {
    let words = world.agent_words();
    let count = |what: &str| words.matches(what).count();
    count(" made ahead sandbox=") - count("what was made ahead is taken") - count("what was made ahead is given up")
}

fn await_waiting(world: &World, count: usize) {
    eventually(&format!("{count} wait"), || waiting(world) == count);
    let running = world.sandbox(&["ls"]).as_array().unwrap().iter().filter(|view| view["state"] == "running").count();
    eventually("each has its VMM", || world.pids("shim.json").len() == running + count);
}

#[test]
fn root_what_waits_becomes_whoever_asks_and_is_gone_with_its_agent() {
    let world = World::new();
    let agent = world.agent(&["--standby", "2", "--pool", "1"]);
    let first = world.create(&["--memory", "128"]);
    await_waiting(&world, 1);
    assert_eq!(world.sandbox(&["ls"]).as_array().unwrap().len(), 1, "what waits is in no list");

    let second = world.sandbox(&["create", "--memory", "128", "--env", "A=b", "--metadata", "who=me"]);
    let timings = second["timings_ms"].as_object().unwrap();
    assert!(!timings.contains_key("vmm") && timings.contains_key("confirm"), "it was started already: {second}");
    assert_eq!((&second["start"], &second["metadata"]["who"]), (&"warm".into(), &"me".into()));
    let second = second["id"].as_str().unwrap().to_owned();
    assert_eq!(world.sh(&second, "echo $A; hostname"), format!("b\n{second}\n"));
    let who = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id";
    assert_ne!(world.sh(&first, who), world.sh(&second, who));

    // Two of a kind are wanted, two of the kind wait; and of another kind, when that is wanted.
    await_waiting(&world, 2);
    let other = world.sandbox(&["create", "--memory", "256"]);
    assert!(other["timings_ms"].as_object().unwrap().contains_key("vmm"), "{other}");
    let other = other["id"].as_str().unwrap().to_owned();
    await_waiting(&world, 2);
    let warm = world.sandbox(&["create", "--memory", "256"]);
    assert!(!warm["timings_ms"].as_object().unwrap().contains_key("vmm"), "{warm}");

    // A cold one takes none, and one that was killed while it waited is not given to anybody.
    let cold = world.sandbox(&["create", "--memory", "256", "--cold"]);
    assert_eq!(cold["start"], "cold");
    world.sandbox(&["pause", &second]);
    world.sandbox(&["resume", &second]);
    assert_eq!(world.sh(&second, "echo $A"), "b\n");
    let warm = warm["id"].as_str().unwrap().to_owned();
    world.remove(&[first, second, other, warm, cold["id"].as_str().unwrap().to_owned()]);
    await_waiting(&world, 2);
    world.pids("shim.json").into_iter().for_each(|shim| signal(shim, "KILL"));
    let after = world.create(&["--memory", "256"]);
    assert_eq!(world.sh(&after, "echo well"), "well\n");
    world.remove(&[after]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_what_waits_goes_when_its_memory_or_its_template_is_wanted() {
    let world = World::new();
    // Room for three of 128 MiB with what a VMM itself takes, or for two of which one has 256.
    let agent = world.agent(&["--standby", "2", "--memory", "600"]);
    let one = world.create(&["--memory", "128"]);
    let two = world.create(&["--memory", "128"]);
    await_waiting(&world, 1);
    world.sandbox(&["pause", &one]);
    await_waiting(&world, 1);
    let large = world.create(&["--memory", "256"]);
    assert_eq!(world.sh(&large, "echo has room"), "has room\n");
    assert_eq!(waiting(&world), 0, "{}", world.agent_words());
    world.remove(&[one, two, large]);

    let last = world.create(&["--memory", "128"]);
    await_waiting(&world, 1);
    world.remove(&[last]);
    world.json(&["template", "rm", "minimal"]);
    assert_eq!(waiting(&world), 0, "{}", world.agent_words());
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_what_waits_is_removed_after_its_agent_was_killed() {
    let world = World::new();
    let agent = world.agent(&["--standby", "1"]);
    let id = world.create(&["--memory", "128"]);
    await_waiting(&world, 1);
    agent.kill();
    let agent = world.agent(&[]);
    assert_eq!(world.pids("shim.json").len(), 1, "{}", world.agent_words());
    assert_eq!(world.sh(&id, "echo goes on"), "goes on\n");
    world.remove(&[id]);
    agent.stop();
    world.finish_agent();
}
