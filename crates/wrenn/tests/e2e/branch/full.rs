//! A disk that is really full, at any write of a capture and of what goes on from one (see [`crate::life::full`]).

use std::process::Output;

use crate::life::agent::AgentWorld;
use crate::life::full::{CREATE, MIB, assert_knows, learn, rooms, worked};
use crate::world::World;

/// Entries of a folder of the instance.
fn count(world: &World, folder: &str) -> usize {
    std::fs::read_dir(world.dir().join(folder)).map_or(0, Iterator::count)
}

/// Does it on disks with less and less room; each time `undo` takes back what has worked. The sandbox goes on.
fn on_full_disks(operation: &[&str], folder: &str, undo: impl Fn(&World)) {
    // Room for a snapshot, and for another one to be taken.
    let world = AgentWorld::on_small_disk(2 * MIB);
    let disk = world.small_disk();
    let id = world.create(&CREATE[1..]);
    learn(&world, &id, "known");
    world.snapshot(&id, "first");
    let operation: Vec<&str> = operation.iter().map(|word| if *word == "ID" { id.as_str() } else { word }).collect();
    let before = count(&world, folder);
    let run = || -> Output { world.output(&operation) };
    let taken = disk.most_taken_by(|| {
        let done = run();
        assert!(done.status.success(), "{done:?} {}", world.agent_words());
    });
    undo(&world);
    assert_eq!(count(&world, folder), before);
    for room in rooms(taken) {
        disk.leave(room);
        let done = run();
        let worked = worked(&world, room, operation[1], &done);
        let state = world.state(&id);
        // What was decided on is what it comes back to, when there is room.
        let may_rest = operation[1] == "rollback" && !worked;
        assert!(state == "running" || may_rest && state == "paused", "{state}: {}", world.agent_words());
        disk.free();
        if state == "paused" {
            world.sandbox(&["resume", &id]);
        }
        if worked {
            undo(&world);
        }
        assert_eq!(count(&world, folder), before, "half of it stays: {}", world.agent_words());
        assert_knows(&world, &id, "known");
    }
    world.json(&["snapshot", "rm", "first"]);
    world.remove(&[id]);
    world.end();
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_snapshot_leaves_it_or_nothing() {
    on_full_disks(&["snapshot", "create", "ID", "--name", "second"], "snapshots", |world| {
        world.json(&["snapshot", "rm", "second"]);
    });
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_fork_leaves_it_or_nothing() {
    on_full_disks(&["sandbox", "fork", "ID"], "sandboxes", |world| {
        let newest = world.sandbox(&["ls"]).as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
        world.remove(&[newest]);
    });
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_rollback_leaves_what_was_or_what_is_to_be() {
    on_full_disks(&["sandbox", "rollback", "ID", "first"], "sandboxes", |_| {});
}

#[test]
fn root_a_disk_that_is_full_at_any_moment_of_a_flattening_leaves_a_template_or_none() {
    on_full_disks(&["template", "from-snapshot", "first", "mine"], "templates", |world| {
        world.json(&["template", "rm", "mine"]);
    });
}
