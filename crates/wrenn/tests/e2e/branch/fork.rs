//! Forks: many from one, each somebody else; forks of forks; while others remove, pause and destroy what they come from.

use std::collections::BTreeSet;
use std::process::Stdio;

use crate::world::{World, assert_failed, finish};

/// What must differ in each guest, a line each.
const WHO: &str =
    "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | sha256sum";

/// How many at once, and how often: a soak makes so many that chance would show.
fn forks() -> (usize, usize) {
    let (emulated, soak) = (std::env::var_os("WRENN_TEST_STACK"), std::env::var_os("WRENN_TEST_ROUNDS"));
    match (emulated, soak) {
        (Some(_), None) => (4, 1),
        (Some(_), Some(_)) => (10, 5),
        (None, None) => (50, 1),
        (None, Some(_)) => (50, 20),
    }
}

#[test]
fn root_every_fork_at_any_moment_is_somebody_else_and_knows_all() {
    let world = World::new();
    let agent = world.agent(&[]);
    let parent = world.create(&["--memory", "128"]);
    world.sh(&parent, "echo kept > /root/file; echo kept > /dev/shm/file");
    // One that sleeps through the fork and draws its random number only afterwards.
    world.detach(
        &parent,
        "while [ ! -e /dev/shm/go ]; do sleep 1; done; head -c 32 /dev/urandom | sha256sum > /root/drawn",
    );
    let ((at_once, times), mut seen) = (forks(), vec![BTreeSet::new(); 6]);
    for _ in 0..times {
        let children = world.fork(&parent, at_once);
        assert_eq!(world.sh(&parent, "cat /root/file /dev/shm/file"), "kept\nkept\n");
        children.iter().for_each(|id| assert_is_somebody_else(&world, id, &mut seen));
        // What one does, no other sees.
        world.sh(&children[0], "echo mine > /root/file; echo mine > /dev/shm/file");
        assert_eq!(world.sh(&children[1], "cat /root/file /dev/shm/file"), "kept\nkept\n");
        world.remove(&children);
    }
    assert_is_somebody_else(&world, &parent, &mut seen);
    world.remove(&[parent]);
    assert_eq!(
        std::fs::read_dir(world.dir().join("snapshots")).map_or(0, Iterator::count),
        0,
        "nothing of the capture"
    );
    agent.stop();
    world.finish_agent();
}

/// It knows what its parent did, and nothing by which it could be told from another has been `seen` yet.
fn assert_is_somebody_else(world: &World, id: &str, seen: &mut [BTreeSet<String>]) {
    let script = format!(
        "cat /root/file /dev/shm/file; echo $E2B_SANDBOX_ID; touch /dev/shm/go; until [ -s /root/drawn ]; do sleep 0.1; done; \
         {WHO}; cat /root/drawn"
    );
    let told = world.sh(id, &script);
    let told = told.strip_prefix(&format!("kept\nkept\n{id}\n")).unwrap_or_else(|| panic!("{id}: {told}"));
    let mut lines: Vec<String> = told.lines().map(str::to_owned).collect();
    lines.push(world.sandbox(&["get", id])["access_token"].to_string());
    assert_eq!(lines.len(), seen.len(), "{lines:?}");
    for (seen, line) in seen.iter_mut().zip(lines) {
        assert!(seen.insert(line.clone()), "twice: {line}");
    }
}

#[test]
fn root_forks_of_forks_keep_what_each_of_their_parents_knew() {
    let world = World::new();
    let agent = world.agent(&[]);
    let mut line = vec![world.create(&["--memory", "128"])];
    let depth = if std::env::var_os("WRENN_TEST_STACK").is_some() { 4 } else { 10 };
    for level in 0..depth {
        let parent = line.last().unwrap().clone();
        world.sh(&parent, &format!("echo {level} >> /root/line; echo {level} >> /dev/shm/line"));
        if level % 3 == 1 {
            world.sandbox(&["pause", &parent]);
        }
        line.extend(world.fork(&parent, 1));
    }
    for (level, id) in line.iter().enumerate() {
        if world.state(id) == "paused" {
            world.sandbox(&["resume", id]);
        }
        let wanted: String = (0..=level.min(depth - 1)).map(|number| format!("{number}\n")).collect();
        assert_eq!(world.sh(id, "cat /root/line"), wanted, "disk at level {level}");
        assert_eq!(world.sh(id, "cat /dev/shm/line"), wanted, "memory at level {level}");
    }
    world.remove(&line);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_forks_cross_pauses_and_removals_in_one_order_or_the_other() {
    let world = World::new();
    let agent = world.agent(&[]);
    let parent = world.create(&["--memory", "128"]);
    let begin = |args: &[&str]| world.wrenn(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    // Forked while it is paused.
    let (pausing, forking) =
        (begin(&["sandbox", "pause", &parent]), begin(&["sandbox", "fork", &parent, "--count", "2"]));
    assert!(finish(pausing).status.success());
    let forked = finish(forking);
    assert!(forked.status.success(), "a sandbox can be forked before and after its pause: {forked:?}");
    world.sandbox(&["resume", &parent]);

    // A snapshot removed while sandboxes are started from it.
    world.snapshot(&parent, "gone");
    let creating = begin(&["sandbox", "create", "--snapshot", "gone"]);
    let removing = begin(&["snapshot", "rm", "gone"]);
    let (created, removed) = (finish(creating), finish(removing));
    assert!(removed.status.success(), "{removed:?}");
    if !created.status.success() {
        assert_failed(&created, &["no snapshot"]);
    }
    // Destroyed while it is forked: the forks are there, or none is; nothing of the parent stays.
    let forking = begin(&["sandbox", "fork", &parent, "--count", "2"]);
    let removing = begin(&["sandbox", "rm", &parent]);
    assert!(finish(removing).status.success());
    let forked = finish(forking);
    println!("forked while destroyed: {forked:?}");
    assert_eq!(world.state(&parent), "gone");
    for view in world.sandbox(&["ls"]).as_array().unwrap() {
        let id = view["id"].as_str().unwrap().to_owned();
        assert_eq!(world.sh(&id, "echo here"), "here\n");
        world.remove(&[id]);
    }
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_forks_that_find_no_memory_fail_and_the_others_live() {
    let world = World::new();
    let agent = world.agent(&["--memory", "700"]);
    let parent = world.create(&["--memory", "128"]);
    let output = world.output(&["sandbox", "fork", &parent, "--count", "8", "--json"]);
    assert!(!output.status.success());
    let forked: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (made, refused): (Vec<_>, Vec<_>) =
        forked["forks"].as_array().unwrap().iter().partition(|fork| fork["error"].is_null());
    assert!(!made.is_empty() && !refused.is_empty(), "{forked}");
    for fork in refused {
        assert_eq!(fork["error"]["code"], "exhausted", "{fork}");
    }
    for fork in &made {
        assert_eq!(world.sh(fork["sandbox"]["id"].as_str().unwrap(), "echo here"), "here\n");
    }
    for count in ["0", "1025"] {
        assert_failed(&world.output(&["sandbox", "fork", &parent, "--count", count]), &["1 to 1024"]);
    }
    let ids: Vec<String> =
        made.iter().map(|fork| fork["sandbox"]["id"].as_str().unwrap().to_owned()).chain([parent]).collect();
    world.remove(&ids);
    agent.stop();
    world.finish_agent();
}
