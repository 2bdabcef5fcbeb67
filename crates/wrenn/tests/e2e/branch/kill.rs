//! Faults at every named step of a capture and a rollback, and of a creation that goes on from what was captured.

use crate::life::kill::{FAULTS, Operation, cells, report, strike};
use crate::world::World;

const CAPTURE: Operation = Operation {
    name: "capture",
    steps: &[
        "capture-begun",
        "capture-users-frozen",
        "capture-frozen",
        "capture-taken",
        "capture-sealed",
        "capture-thawed",
        "capture-durable",
        "capture-done",
    ],
};
const ROLLBACK: Operation =
    Operation { name: "rollback", steps: &["rollback-placed", "rollback-decided", "rollback-ended", "rollback-done"] };
const CREATE: Operation = Operation {
    name: "create",
    steps: &[
        "create-begun",
        "create-networked",
        "create-disked",
        "create-launched",
        "create-loaded",
        "create-thawed",
        "create-ready",
        "create-inited",
        "create-done",
    ],
};
/// A sandbox that can be told from others by what it knows.
fn begin(world: &World) -> String {
    let agent = world.agent(&[]);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, "echo on disk > /root/file; sync; echo in memory > /dev/shm/file");
    agent.stop();
    id
}

/// It runs afterwards with all that it knew, unless its VM was killed: then with its disk.
fn check(world: &World, id: &str, (step, fault): (&str, &str)) -> String {
    let state = world.state(id);
    match state.as_str() {
        "running" => {}
        "paused" | "stopped" => drop(world.sandbox(&["resume", id])),
        "needs_repair" => {
            let repaired = world.output(&["repair", id]);
            assert!(repaired.status.success(), "{step}:{fault}: {repaired:?} {}", world.agent_words());
            if world.state(id) != "running" {
                world.sandbox(&["resume", id]);
            }
        }
        other => panic!("{step}:{fault}: {other} {}", world.agent_words()),
    }
    assert_eq!(world.sh(id, "cat /root/file"), "on disk\n", "{step}:{fault}");
    let was_killed = state == "stopped";
    assert!(!was_killed || ["kill-vmm", "kill-shim"].contains(&fault), "{step}:{fault}: {}", world.agent_words());
    if was_killed {
        world.sh(id, "echo in memory > /dev/shm/file");
    }
    assert_eq!(world.sh(id, "cat /dev/shm/file"), "in memory\n", "{step}:{fault}");
    state
}

#[test]
fn root_a_fault_at_any_moment_of_a_snapshot_leaves_the_sandbox_and_a_whole_snapshot_or_none() {
    let world = World::new();
    let id = begin(&world);
    let mut outcomes = std::collections::BTreeMap::new();
    for cell in cells(&CAPTURE, &FAULTS) {
        let done = strike(&world, cell, &["snapshot", "create", &id]);
        let agent = world.agent(&[]);
        let state = check(&world, &id, cell);
        let kept = world.json(&["snapshot", "ls"]);
        let kept = kept.as_array().unwrap();
        assert!(!done || kept.len() == 1, "{cell:?}: {kept:?}");
        for snapshot in kept {
            let snapshot = snapshot["id"].as_str().unwrap();
            let child = world.create(&["--snapshot", snapshot]);
            assert_eq!(world.sh(&child, "cat /root/file /dev/shm/file"), "on disk\nin memory\n", "{cell:?}");
            world.remove(&[child]);
            world.json(&["snapshot", "rm", snapshot]);
        }
        let left = std::fs::read_dir(world.dir().join("snapshots")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{cell:?}: half a snapshot stays");
        outcomes.insert(cell, format!("{} then {state}, {} kept", if done { "done" } else { "failed" }, kept.len()));
        agent.stop();
    }
    report(&outcomes);
    end(world, id);
}

#[test]
fn root_a_fault_at_any_moment_of_a_rollback_leaves_what_was_or_what_is_to_be() {
    let world = World::new();
    let id = begin(&world);
    let agent = world.agent(&[]);
    world.snapshot(&id, "then");
    agent.stop();
    let mut outcomes = std::collections::BTreeMap::new();
    for cell in cells(&ROLLBACK, &FAULTS) {
        let done = strike(&world, cell, &["sandbox", "rollback", &id, "then"]);
        let agent = world.agent(&[]);
        let state = check(&world, &id, cell);
        outcomes.insert(cell, format!("{} then {state}", if done { "done" } else { "failed" }));
        agent.stop();
    }
    report(&outcomes);
    let agent = world.agent(&[]);
    world.json(&["snapshot", "rm", "then"]);
    agent.stop();
    end(world, id);
}

#[test]
fn root_a_fault_at_any_moment_of_a_fork_leaves_the_parent_and_forks_or_nothing() {
    let world = World::new();
    let id = begin(&world);
    let mut outcomes = std::collections::BTreeMap::new();
    for cell in cells(&CREATE, &FAULTS) {
        let done = strike(&world, cell, &["sandbox", "fork", &id, "--count", "2"]);
        let agent = world.agent(&[]);
        let state = check(&world, &id, cell);
        let children: Vec<(String, String)> = world.sandbox(&["ls"]).as_array().unwrap().iter().map(view).collect();
        let children: Vec<_> = children.into_iter().filter(|(child, _)| *child != id).collect();
        for (child, state) in &children {
            assert!(["running", "stopped"].contains(&state.as_str()), "{cell:?}: {state} {}", world.agent_words());
            if state == "running" {
                assert_eq!(world.sh(child, "cat /root/file /dev/shm/file"), "on disk\nin memory\n", "{cell:?}");
            }
            world.remove(std::slice::from_ref(child));
        }
        let left = std::fs::read_dir(world.dir().join("snapshots")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{cell:?}: half a capture stays");
        outcomes
            .insert(cell, format!("{} then {state}, {} forks", if done { "done" } else { "failed" }, children.len()));
        agent.stop();
    }
    report(&outcomes);
    end(world, id);
}

/// The same of a VM before anything was told to it; it gets no name in the end.
const WARM: Operation = Operation { name: "warm", steps: CAPTURE.steps.split_last().unwrap().1 };

#[test]
fn root_a_fault_at_any_moment_of_a_warm_up_leaves_a_warm_image_or_none() {
    let world = World::cold();
    let images = world.dir().join("warm");
    let mut outcomes = std::collections::BTreeMap::new();
    for cell in cells(&WARM, &FAULTS) {
        let done = strike(&world, cell, &["template", "warm", "minimal", "--memory", "128"]);
        let agent = world.agent(&[]);
        assert!(world.sandbox(&["ls"]).as_array().unwrap().is_empty(), "{cell:?}");
        let names = || std::fs::read_dir(&images).into_iter().flatten().map(|entry| entry.unwrap().path());
        let kept: Vec<_> = names().filter(|path| path.is_dir()).collect();
        assert!(kept.len() <= 1 && (!done || kept.len() == 1), "{cell:?}: {kept:?}");
        assert!(kept.iter().all(|path| path.extension().is_none()), "{cell:?}: half an image stays: {kept:?}");
        let next = world.sandbox(&["create", "--memory", "128"]);
        assert_eq!(next["start"], if kept.is_empty() { "cold" } else { "warm" }, "{cell:?}");
        let next = next["id"].as_str().unwrap().to_owned();
        assert_eq!(world.sh(&next, "echo well"), "well\n", "{cell:?}");
        world.remove(&[next]);
        outcomes.insert(cell, if kept.is_empty() { "none" } else { "one" }.to_owned());
        agent.stop();
        assert_eq!(world.left_behind_by_agent(), Vec::<String>::new(), "{cell:?}");
        std::fs::remove_dir_all(&images).unwrap();
    }
    report(&outcomes);
    world.finish_agent();
}

const FLATTEN: Operation =
    Operation { name: "flatten", steps: &["flatten-begun", "flatten-written", "flatten-named", "flatten-done"] };

#[test]
fn root_a_fault_at_any_moment_of_a_flattening_leaves_a_template_or_none() {
    let world = World::new();
    let id = begin(&world);
    let agent = world.agent(&[]);
    world.snapshot(&id, "then");
    agent.stop();
    let folders = || std::fs::read_dir(world.dir().join("templates")).unwrap().count();
    let (before, mut outcomes) = (folders(), std::collections::BTreeMap::new());
    // No VM takes part in it.
    for cell in cells(&FLATTEN, &["kill-agent", "fail", "full"]) {
        let done = strike(&world, cell, &["template", "from-snapshot", "then", "mine"]);
        let agent = world.agent(&[]);
        let all = world.json(&["template", "ls"])["templates"].clone();
        let is_there = all.as_array().unwrap().iter().any(|template| template["name"] == "mine");
        assert!(is_there || !done, "{cell:?}: {all}");
        if !is_there {
            assert_eq!(folders(), before, "{cell:?}: half a template stays");
            world.json(&["template", "from-snapshot", "then", "mine"]);
        }
        let child = world.create(&["--template", "mine", "--memory", "128"]);
        assert_eq!(world.sh(&child, "cat /root/file"), "on disk\n", "{cell:?}");
        world.remove(&[child]);
        world.json(&["template", "rm", "mine"]);
        assert_eq!(folders(), before, "{cell:?}");
        outcomes.insert(cell, if is_there { "a template" } else { "none" }.to_owned());
        agent.stop();
    }
    report(&outcomes);
    let agent = world.agent(&[]);
    world.json(&["snapshot", "rm", "then"]);
    agent.stop();
    end(world, id);
}

fn view(view: &serde_json::Value) -> (String, String) {
    (view["id"].as_str().unwrap().to_owned(), view["state"].as_str().unwrap().to_owned())
}

fn end(world: World, id: String) {
    let agent = world.agent(&[]);
    world.remove(&[id]);
    agent.stop();
    world.finish_agent();
}
