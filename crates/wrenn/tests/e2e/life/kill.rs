//! Faults at every named step of a life: the agent killed, the VMM, the shim, a step that fails, a disk without room.
//!
//! After each of them, the sandbox is in a state that an ordinary request could have left, what it knew is there, the next
//! operation works, and nothing is left behind in the end. Sampled: a soak runs the whole of the matrix.

use std::collections::BTreeMap;

use crate::chance::Chance;
use crate::world::{World, text};

const AGENT: &str = "kill-agent";

/// The steps of an operation, and what of a running sandbox's memory must be there after a fault at them.
pub struct Operation {
    /// As `wrenn sandbox` calls it.
    pub name: &'static str,
    /// In their order.
    pub steps: &'static [&'static str],
}

/// From a boot; a warm start has its own steps.
const CREATE: Operation = Operation {
    name: "create",
    steps: &[
        "create-begun",
        "create-networked",
        "create-disked",
        "create-launched",
        "create-ready",
        "create-inited",
        "create-done",
    ],
};
const PAUSE: Operation = Operation {
    name: "pause",
    steps: &[
        "pause-begun",
        "pause-users-frozen",
        "pause-frozen",
        "pause-captured",
        "pause-durable",
        "pause-decided",
        "pause-ended",
        "pause-detached",
        "pause-moved",
        "pause-committed",
        "pause-freed",
        "pause-done",
        "pause-folded",
    ],
};
const RESUME: Operation = Operation {
    name: "resume",
    steps: &[
        "resume-begun",
        "resume-networked",
        "resume-disked",
        "resume-launched",
        "resume-loaded",
        "resume-thawed",
        "resume-ready",
        "resume-confirmed",
        "resume-done",
    ],
};
const DESTROY: Operation =
    Operation { name: "destroy", steps: &["destroy-begun", "destroy-ended", "destroy-freed", "destroy-disk"] };
/// What goes wrong.
pub const FAULTS: [&str; 5] = [AGENT, "kill-vmm", "kill-shim", "fail", "full"];

/// The matrix of an operation: all of it in a soak, else some cells that a seed chooses, an agent's death among them.
pub fn cells(operation: &Operation, faults: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    let all: Vec<_> = faults.iter().flat_map(|fault| operation.steps.iter().map(move |step| (*step, *fault))).collect();
    let chance = Chance::of_this_run();
    if chance.soak_rounds().is_some() {
        return all;
    }
    let pick = |salt: u64, among: usize| chance.pick(salt, among as u64) as usize;
    let deaths: Vec<_> = all.iter().copied().filter(|(_, fault)| *fault == AGENT).collect();
    vec![deaths[pick(1, deaths.len())], deaths[pick(2, deaths.len())], all[pick(3, all.len())]]
}

/// The agent with a fault that waits for it, and `wrenn` with these arguments; whether that succeeded.
pub fn strike(world: &World, (step, fault): (&str, &str), operation: &[&str]) -> bool {
    let mut agent = world.agent(&["--fault", &format!("{step}:{fault}")]);
    let output = world.output(operation);
    // What need not be waited for has its steps too.
    if !agent.has_ended() {
        drop(world.output(&["sandbox", "ls"]));
        std::thread::sleep(std::time::Duration::from_millis(if step == "pause-folded" { 500 } else { 0 }));
    }
    println!("{step}:{fault} -> {} {}", output.status, text(&output.stderr).trim());
    match fault {
        AGENT => agent.await_death(),
        _survived => agent.stop(),
    }
    output.status.success()
}

/// The matrix, a line for each cell.
pub fn report(outcomes: &BTreeMap<(&str, &str), String>) {
    println!("step | fault | outcome");
    outcomes.iter().for_each(|((step, fault), outcome)| println!("{step} | {fault} | {outcome}"));
}

#[test]
fn root_a_fault_at_any_moment_of_a_create_leaves_a_sandbox_or_nothing() {
    let world = World::cold();
    let mut outcomes = BTreeMap::new();
    for cell in cells(&CREATE, &FAULTS) {
        strike(&world, cell, &["sandbox", "create"]);
        let agent = world.agent(&[]);
        let left = world.sandbox(&["ls"]);
        let left: Vec<&serde_json::Value> = left.as_array().unwrap().iter().collect();
        let outcome = match left[..] {
            [] => "nothing".to_owned(),
            [view] => view["state"].as_str().unwrap().to_owned(),
            _ => panic!("{left:?}"),
        };
        assert!(["nothing", "running", "stopped"].contains(&outcome.as_str()), "{cell:?}: {left:?}");
        for view in left {
            world.sandbox(&["rm", view["id"].as_str().unwrap()]);
        }
        outcomes.insert(cell, outcome);
        agent.stop();
        assert_eq!(world.left_behind_by_agent(), Vec::<String>::new(), "{cell:?}");
    }
    report(&outcomes);
    world.finish_agent();
}

#[test]
fn root_a_fault_at_any_moment_of_a_pause_loses_nothing() {
    life(&PAUSE, &FAULTS);
}

#[test]
fn root_a_fault_at_any_moment_of_a_resume_loses_nothing() {
    life(&RESUME, &FAULTS);
}

/// One sandbox through all cells: what it knows must be there after each, unless its VM itself was killed while it ran; and
/// then what is on its disk must be.
fn life(operation: &Operation, faults: &[&'static str]) {
    let (world, neighbour) = (World::new(), World::new());
    let neighbours_agent = neighbour.agent(&[]);
    let neighbours = neighbour.create(&["--memory", "128"]);
    let agent = world.agent(&[]);
    let id = world.create(&[]);
    world.sh(&id, "echo on disk > /root/file; sync; echo in memory > /dev/shm/file");
    // From the second pause on only what changed is kept, which has a step of its own.
    world.sandbox(&["pause", &id]);
    if operation.name == "pause" {
        world.sandbox(&["resume", &id]);
    }
    agent.stop();
    let mut outcomes = BTreeMap::new();
    for cell in cells(operation, faults) {
        let done = strike(&world, cell, &["sandbox", operation.name, &id]);
        let agent = world.agent(&[]);
        let state = world.state(&id);
        outcomes.insert(cell, format!("{} then {state}", if done { "done" } else { "failed" }));
        match state.as_str() {
            "running" => {}
            "paused" | "stopped" => drop(world.sandbox(&["resume", &id])),
            "needs_repair" => {
                let repaired = world.output(&["repair", &id]);
                assert!(repaired.status.success(), "{cell:?}: {repaired:?} {}", world.agent_words());
                if world.state(&id) != "running" {
                    world.sandbox(&["resume", &id]);
                }
            }
            other => panic!("{cell:?}: {other} {}", world.agent_words()),
        }
        assert_eq!(world.sh(&id, "cat /root/file"), "on disk\n", "{cell:?}");
        let vm_was_killed = state == "stopped";
        assert!(!vm_was_killed || ["kill-vmm", "kill-shim"].contains(&cell.1), "{cell:?}: {}", world.agent_words());
        if vm_was_killed {
            world.sh(&id, "echo in memory > /dev/shm/file");
        }
        assert_eq!(world.sh(&id, "cat /dev/shm/file"), "in memory\n", "{cell:?}");
        if operation.name == "resume" {
            world.sandbox(&["pause", &id]);
        }
        agent.stop();
    }
    report(&outcomes);
    assert_eq!(neighbour.sh(&neighbours, "echo never noticed"), "never noticed\n");
    neighbour.sandbox(&["rm", &neighbours]);
    neighbours_agent.stop();
    neighbour.finish_agent();
    let agent = world.agent(&[]);
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_fault_at_any_moment_of_a_destroy_ends_in_nothing() {
    let world = World::new();
    let mut outcomes = BTreeMap::new();
    for (round, cell) in cells(&DESTROY, &FAULTS).into_iter().enumerate() {
        let agent = world.agent(&[]);
        let id = world.create(&[]);
        if round % 2 == 1 {
            world.sandbox(&["pause", &id]);
        }
        agent.stop();
        strike(&world, cell, &["sandbox", "rm", &id]);
        let agent = world.agent(&[]);
        assert_eq!(world.state(&id), "gone", "{cell:?}: {}", world.agent_words());
        outcomes.insert(cell, "gone".to_owned());
        agent.stop();
        assert_eq!(world.left_behind_by_agent(), Vec::<String>::new(), "{cell:?}");
    }
    report(&outcomes);
    world.finish_agent();
}
