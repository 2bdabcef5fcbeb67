//! A disk that is really full, at any write of an operation: the instance is in a file system of its own, which is filled until
//! only so many bytes are left.
//!
//! For each of these rooms the operation works, or is refused with an error that says what is lacking and what to do about it.
//! Refused, it leaves what an ordinary request could have left; when there is room again, the next operation works and all
//! that the sandbox knew is there. A destruction needs no room at all.

use std::process::Output;

use super::agent::AgentWorld;
use crate::chance::Chance;
use crate::small_disk::BLOCK;
use crate::world::{World, assert_failed, text};

/// Size of the file system: some memories and disks.
pub const MIB: u64 = 320;
/// What a sandbox is here: small, so that much of what is written is not memory.
pub const CREATE: [&str; 3] = ["create", "--memory", "128"];
/// Near the first and the last write of an operation are this many blocks, where only some are looked at.
const NEAR: u64 = 32;

/// How much room there is in each round, in bytes, for an operation that takes `taken`: as much as its first writes need, or any
/// of them, or all but the last. A sample has one of each, and none at all.
pub fn rooms(taken: u64) -> Vec<u64> {
    let (chance, blocks) = (Chance::of_this_run(), taken / BLOCK);
    println!("the operation takes {blocks} blocks");
    let anywhere = |salt: u64| chance.pick(salt, blocks + 1);
    let last = |before: u64| (blocks + 1).saturating_sub(before);
    let rooms: Vec<u64> = match chance.soak_rounds() {
        Some(rounds) => (0..rounds.div_ceil(3)).flat_map(|round| [round, anywhere(round), last(round)]).collect(),
        None => vec![0, 1 + chance.pick(1, NEAR), anywhere(2), last(chance.pick(3, NEAR))],
    };
    rooms.into_iter().map(|blocks| blocks * BLOCK).collect()
}

/// Says how it ended. What failed, failed for want of room, and says what to do.
#[track_caller]
pub fn worked(world: &World, room: u64, operation: &str, output: &Output) -> bool {
    let how = if output.status.success() { "worked".to_owned() } else { text(&output.stderr).trim().to_owned() };
    println!("{operation} with {} blocks left: {how}", room / BLOCK);
    if output.status.success() {
        return true;
    }
    assert_failed(output, &["free some space"]);
    let lacks_room = ["full", "No space left", "want of room"].iter().any(|words| how.contains(words));
    assert!(lacks_room, "{how}\n{}", world.agent_words());
    false
}

/// A sandbox that runs and knows something: in memory, on its disk, and enough of both that it takes some writing.
pub fn learn(world: &World, id: &str, what: &str) {
    world.sh(id, &format!("echo {what} > /dev/shm/file; echo {what} > /root/file"));
    world.sh(
        id,
        "for to in /dev/shm/noise /root/noise; do dd if=/dev/urandom of=$to bs=64k count=16 2>/dev/null; done; sync",
    );
}

#[track_caller]
pub fn assert_knows(world: &World, id: &str, what: &str) {
    assert_eq!(world.sh(id, "cat /dev/shm/file /root/file"), format!("{what}\n{what}\n"), "{}", world.agent_words());
}

/// Pauses it, and waits for what need not be waited for: the request after it does.
fn pause(world: &World, id: &str) -> Output {
    let paused = world.try_sandbox(&["pause", id]);
    world.sandbox(&["stat", id]);
    paused
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_create_leaves_a_sandbox_or_nothing() {
    let world = AgentWorld::on_small_disk(MIB);
    let disk = world.small_disk();
    let mut id = String::new();
    let taken = disk.most_taken_by(|| id = world.create(&CREATE[1..]));
    world.sandbox(&["rm", &id]);
    for room in rooms(taken) {
        disk.leave(room);
        let created = world.try_sandbox(&CREATE);
        let left: Vec<serde_json::Value> = world.sandbox(&["ls"]).as_array().unwrap().clone();
        if worked(&world, room, "create", &created) {
            let id = left[0]["id"].as_str().unwrap();
            world.sandbox(&["rm", id]);
        } else {
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(folders(&world), [""; 0], "{}", world.agent_words());
        disk.free();
    }
    world.end();
}

/// What there is of sandboxes in the instance's folder.
fn folders(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.dir().join("sandboxes")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_first_pause_loses_nothing() {
    let world = AgentWorld::on_small_disk(MIB);
    let disk = world.small_disk();
    let id = world.create(&CREATE[1..]);
    learn(&world, &id, "first");
    let taken = disk.most_taken_by(|| assert!(pause(&world, &id).status.success()));
    world.sandbox(&["rm", &id]);
    for room in rooms(taken) {
        let id = world.create(&CREATE[1..]);
        learn(&world, &id, "known");
        disk.leave(room);
        let paused = pause(&world, &id);
        let state = if worked(&world, room, "pause", &paused) { "paused" } else { "running" };
        assert_eq!(world.state(&id), state, "{}", world.agent_words());
        disk.free();
        come_back(&world, &id, state);
        assert_knows(&world, &id, "known");
        world.sandbox(&["rm", &id]);
    }
    world.end();
}

/// It runs afterwards.
fn come_back(world: &World, id: &str, state: &str) {
    if state == "paused" {
        world.sandbox(&["resume", id]);
    }
}

/// What changed is written beside the memory before, and then into it; where there was no room for that, a resume does it.
#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_later_pause_loses_nothing() {
    let world = AgentWorld::on_small_disk(MIB);
    let disk = world.small_disk();
    let id = world.create(&CREATE[1..]);
    for what in ["zeroth", "first"] {
        learn(&world, &id, what);
        let taken = disk.most_taken_by(|| assert!(pause(&world, &id).status.success()));
        world.sandbox(&["resume", &id]);
        if what == "zeroth" {
            continue;
        }
        for room in rooms(taken) {
            let what = format!("known with {room}");
            learn(&world, &id, &what);
            disk.leave(room);
            let paused = pause(&world, &id);
            let mut state = if worked(&world, room, "pause", &paused) { "paused" } else { "running" };
            assert_eq!(world.state(&id), state, "{}", world.agent_words());
            if state == "paused" {
                let resumed = world.try_sandbox(&["resume", &id]);
                state = if worked(&world, room, "resume", &resumed) { "running" } else { "paused" };
                assert_eq!(world.state(&id), state, "{}", world.agent_words());
            }
            disk.free();
            come_back(&world, &id, state);
            assert_knows(&world, &id, &what);
        }
    }
    world.sandbox(&["rm", &id]);
    world.end();
}

/// What is still written after the point of no return was given its place before, and the next agent needs none to start.
#[test]
fn root_a_pause_that_was_decided_on_is_finished_on_a_full_disk() {
    let world = World::on_small_disk(MIB);
    let disk = world.small_disk();
    let agent = world.agent(&["--fault", "pause-decided:kill-agent"]);
    let id = world.create(&CREATE[1..]);
    learn(&world, &id, "known");
    assert!(!world.try_sandbox(&["pause", &id]).status.success());
    agent.await_death();
    disk.leave(0);
    let agent = world.agent(&[]);
    assert_eq!(world.state(&id), "paused", "{}", world.agent_words());
    assert!(!worked(&world, 0, "resume", &world.try_sandbox(&["resume", &id])));
    disk.free();
    world.sandbox(&["resume", &id]);
    assert_knows(&world, &id, "known");
    world.sandbox(&["rm", &id]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_resume_loses_nothing() {
    let world = AgentWorld::on_small_disk(MIB);
    let disk = world.small_disk();
    let id = world.create(&CREATE[1..]);
    learn(&world, &id, "known");
    pause(&world, &id);
    let taken = disk.most_taken_by(|| drop(world.sandbox(&["resume", &id])));
    for room in rooms(taken) {
        pause(&world, &id);
        disk.leave(room);
        let resumed = world.try_sandbox(&["resume", &id]);
        let state = if worked(&world, room, "resume", &resumed) { "running" } else { "paused" };
        assert_eq!(world.state(&id), state, "{}", world.agent_words());
        disk.free();
        come_back(&world, &id, state);
        assert_knows(&world, &id, "known");
    }
    world.sandbox(&["rm", &id]);
    world.end();
}

/// Whatever a sandbox is doing, and whoever is its agent by then.
#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_life_does_not_keep_a_sandbox_from_being_destroyed() {
    let world = World::on_small_disk(MIB);
    let disk = world.small_disk();
    for (round, room) in rooms(NEAR * BLOCK).into_iter().enumerate() {
        let agent = world.agent(&[]);
        let (runs, rests) = (world.create(&CREATE[1..]), world.create(&CREATE[1..]));
        pause(&world, &rests);
        disk.leave(room);
        let agent = match round % 2 {
            0 => agent,
            _odd => {
                agent.kill();
                world.agent(&[])
            }
        };
        let states = (world.state(&runs), world.state(&rests));
        assert_eq!((states.0.as_str(), states.1.as_str()), ("running", "paused"), "{}", world.agent_words());
        for id in [&runs, &rests] {
            assert!(world.output(&["sandbox", "rm", id]).status.success(), "{}", world.agent_words());
        }
        assert_eq!(folders(&world), [""; 0], "{}", world.agent_words());
        disk.free();
        agent.stop();
        assert_eq!(world.left_behind_by_agent(), Vec::<String>::new());
    }
    world.finish_agent();
}
