//! Agents come and go; sandboxes stay.

use std::time::{Duration, Instant};

use super::agent::AgentWorld;
use crate::world::{World, assert_failed, assert_run, finish, text};

/// How soon a new agent must have taken over; a busy machine gets more than the 2 s that are the aim, which the benchmark
/// measures.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn root_a_killed_agent_is_replaced_and_nothing_is_lost() {
    let world = World::new();
    let agent = world.agent(&[]);
    let (runs, rests) = (world.create(&[]), world.create(&[]));
    world.sh(&rests, "echo remembered > /dev/shm/file");
    world.sandbox(&["pause", &rests]);
    let vmm = world.vmm_pid();
    let script = "echo ready; n=0; while [ $n -lt 80 ]; do n=$((n+1)); echo line $n; sleep 0.05; done";
    let exec = world.start_wrenn(&["sandbox", "exec", &runs, "--", "sh", "-c", script]);
    agent.kill();
    assert_failed(&world.output(&["sandbox", "ls"]), &["no agent runs", "wrenn agent"]);
    assert!(std::path::Path::new(&format!("/proc/{vmm}")).exists(), "VMs go on under their shims");

    let agent = world.agent(&[]);
    assert!(agent.ready_after < ADOPTED_WITHIN, "{:?}", agent.ready_after);
    assert_eq!((world.state(&runs).as_str(), world.state(&rests).as_str()), ("running", "paused"));
    assert_eq!(world.vmm_pid(), vmm, "the same VM");
    let (output, _) = exec.finish();
    let wanted: String = (1..=80).map(|n| format!("line {n}\n")).collect();
    assert_run(&output, 0, &wanted);
    world.sandbox(&["pause", &runs]);
    for id in [&runs, &rests] {
        world.sandbox(&["resume", id]);
    }
    assert_eq!(world.sh(&rests, "cat /dev/shm/file"), "remembered\n");

    // In order, it leaves them as well.
    agent.stop();
    let agent = world.agent(&[]);
    assert_eq!(world.sh(&runs, "echo still here"), "still here\n");
    assert_eq!(world.sandbox(&["ls"]).as_array().unwrap().len(), 2);
    agent.stop();
    let agent = world.agent(&["--pause-all", "--pool", "2"]);
    agent.stop();
    assert_eq!(world.pids("shim.json"), [] as [u32; 0]);
    let agent = world.agent(&["--destroy-all", "--pool", "2"]);
    assert_eq!((world.state(&runs).as_str(), world.state(&rests).as_str()), ("paused", "paused"));
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_host_that_was_started_again_has_stopped_sandboxes() {
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&[]);
    world.sh(&id, "echo kept > /root/file; sync");
    agent.kill();
    // As after a reboot: no process, no sockets. Networks are found by their names and swept.
    crate::world::signal(world.shim_pid(), "KILL");
    std::fs::remove_dir_all(format!("/run/wrenn/{}/{id}", world.tag())).unwrap();
    let agent = world.agent(&[]);
    assert_eq!(world.state(&id), "stopped");
    world.sandbox(&["resume", &id]);
    assert_eq!(world.sh(&id, "cat /root/file"), "kept\n");
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_run_without_an_agent_leaves_the_agents_sandboxes_alone() {
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&[]);
    agent.kill();
    assert_run(&world.run(&["echo", "alone"]), 0, "alone\n");
    let agent = world.agent(&[]);
    assert_eq!(world.sh(&id, "echo here"), "here\n");
    let begun = Instant::now();
    let through = finish(world.run_through_agent("echo through the agent; exit 3").spawn().unwrap());
    assert_run(&through, 3, "through the agent\n");
    assert!(world.agent_words().contains("to=destroying"), "the agent had it: {}", world.agent_words());
    assert!(begun.elapsed() < crate::world::LIMIT);
    assert_eq!(world.sandbox(&["ls"]).as_array().unwrap().len(), 1, "a run leaves nothing behind");
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_second_agent_is_refused_and_another_instances_agent_is_not() {
    let (world, other) = (World::new(), World::new());
    let (agent, others) = (world.agent(&[]), other.agent(&[]));
    let (id, others_id) = (world.create(&[]), other.create(&[]));
    let second = world.output(&["agent"]);
    assert_failed(&second, &["an agent runs for"]);
    agent.kill();
    assert_eq!(other.sh(&others_id, "echo unharmed"), "unharmed\n");
    other.sandbox(&["pause", &others_id]);
    let agent = world.agent(&[]);
    assert_eq!(world.sh(&id, "echo back"), "back\n");
    other.sandbox(&["resume", &others_id]);
    assert_failed(&world.output(&["sandbox", "get", &others_id]), &["there is no sandbox"]);
    world.sandbox(&["rm", &id]);
    other.sandbox(&["rm", &others_id]);
    agent.stop();
    others.stop();
    world.finish_agent();
    other.finish_agent();
}

#[test]
fn root_a_run_that_is_killed_takes_its_sandbox_of_the_agent_with_it() {
    let world = AgentWorld::begin(&[]);
    let start = |script: &str| World::start_command(&mut world.run_through_agent(&format!("echo ready; {script}")));
    let running = start("sleep 1000");
    assert_eq!(world.sandbox(&["ls"]).as_array().unwrap().len(), 1);
    running.signal("KILL");
    running.finish();
    crate::world::eventually("the agent destroys it", || world.sandbox(&["ls"]).as_array().unwrap().is_empty());
    // Killed while its sandbox is being made: that comes to an end as well.
    let mut creating = world.run_through_agent("true").spawn().unwrap();
    crate::world::eventually("it is in the list", || !world.sandbox(&["ls"]).as_array().unwrap().is_empty());
    creating.kill().unwrap();
    creating.wait().unwrap();
    crate::world::eventually("nothing is left of it", || world.sandbox(&["ls"]).as_array().unwrap().is_empty());
    let mut interrupted = start("trap 'echo trapped; exit 0' TERM; echo armed; while true; do sleep 0.1; done");
    assert_eq!(interrupted.line(), "armed\n");
    interrupted.signal("INT");
    let (output, _) = interrupted.finish();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(130), "trapped\n"));
    crate::world::eventually("nothing is left", || world.sandbox(&["ls"]).as_array().unwrap().is_empty());
    world.end();
}
