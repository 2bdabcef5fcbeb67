//! Two wishes at once: one order or the other, never a mixture.

use std::process::{Child, Stdio};
use std::time::Duration;

use super::agent::AgentWorld;
use crate::world::{World, finish, text};

fn begin(world: &World, args: &[&str]) -> Child {
    world.wrenn(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn root_wishes_that_cross_each_other_end_in_one_order_or_the_other() {
    let world = AgentWorld::begin(&[]);
    let id = world.create(&[]);

    // Two resumes at once: one comes first.
    world.sandbox(&["pause", &id]);
    let both = [(); 2].map(|()| begin(&world, &["sandbox", "resume", &id]));
    let ended = both.map(finish);
    assert_eq!(ended.iter().filter(|output| output.status.success()).count(), 1, "{ended:?}");
    let refused = ended.iter().find(|output| !output.status.success()).unwrap();
    assert!(text(&refused.stderr).contains("nothing to resume"), "{refused:?}");
    assert_eq!(world.sh(&id, "echo once"), "once\n");

    // A pause while its time is up: it is paused once.
    world.sandbox(&["timeout", &id, "1s", "--on-timeout", "pause"]);
    std::thread::sleep(Duration::from_millis(950));
    let paused = finish(begin(&world, &["sandbox", "pause", &id]));
    assert!(paused.status.success() || text(&paused.stderr).contains("nothing to pause"), "{paused:?}");
    assert_eq!(world.state(&id), "paused");

    // Destroyed while it comes back.
    let resuming = begin(&world, &["sandbox", "resume", &id]);
    std::thread::sleep(Duration::from_millis(60));
    assert!(world.output(&["sandbox", "rm", &id]).status.success());
    finish(resuming);
    assert_eq!(world.state(&id), "gone");
    assert_eq!(world.pids(&id), [] as [u32; 0]);

    // Destroyed while it is put to rest, and while it is created.
    let id = world.create(&[]);
    let pausing = begin(&world, &["sandbox", "pause", &id]);
    std::thread::sleep(Duration::from_millis(40));
    assert!(world.output(&["sandbox", "rm", &id]).status.success());
    finish(pausing);
    assert_eq!(world.state(&id), "gone");
    let creating = begin(&world, &["sandbox", "create"]);
    crate::world::eventually("it is in the list", || !world.sandbox(&["ls"]).as_array().unwrap().is_empty());
    let id = world.sandbox(&["ls"])[0]["id"].as_str().unwrap().to_owned();
    assert!(world.output(&["sandbox", "rm", &id]).status.success());
    let created = finish(creating);
    assert!(!created.status.success(), "{created:?}");
    assert_eq!(world.state(&id), "gone");
    world.end();
}
