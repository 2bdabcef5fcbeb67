//! Snapshots: taken of what runs and of what rests, listed, started from, removed while others need them.

use crate::world::{World, assert_failed, eventually};

#[test]
fn root_a_snapshot_keeps_a_moment_and_the_sandbox_goes_on() {
    let world = World::new();
    let agent = world.agent(&[]);
    let parent = world.create(&["--memory", "128", "--metadata", "who=me"]);
    world.sh(&parent, "echo then > /root/file; echo then > /dev/shm/file; sync");
    world.detach(&parent, "while :; do echo x >> /dev/shm/ticks; sleep 0.3; done");
    eventually("it ticks", || world.exec(&parent, "test -s /dev/shm/ticks").status.success());

    let made = world.json(&["snapshot", "create", &parent, "--name", "then"]);
    assert_eq!((&made["name"], &made["sandbox"]), (&"then".into(), &parent.as_str().into()));
    assert!(made["own_bytes"].as_u64().unwrap() > 1 << 20, "{made}");
    // It goes on, with everything that ran.
    let ticks = |id: &str| world.sh(id, "wc -c < /dev/shm/ticks").trim().parse::<u64>().unwrap();
    let before = ticks(&parent);
    eventually("it goes on ticking", || ticks(&parent) > before);
    world.sh(&parent, "echo now > /root/file; echo now > /dev/shm/file");
    assert_eq!(world.state(&parent), "running");

    let child = world.sandbox(&["create", "--snapshot", "then"]);
    assert_eq!((&child["start"], &child["metadata"]["who"]), (&"warm".into(), &"me".into()));
    let child = child["id"].as_str().unwrap().to_owned();
    assert_eq!(world.sh(&child, "cat /root/file /dev/shm/file"), "then\nthen\n");
    let before = ticks(&child);
    eventually("what ran goes on in it", || ticks(&child) > before);
    assert_eq!(world.sh(&parent, "cat /root/file /dev/shm/file"), "now\nnow\n");

    // One of the child, while it runs on what it shares with the snapshot; and the snapshot removed meanwhile.
    world.sh(&child, "echo later > /root/file; echo later > /dev/shm/file");
    world.snapshot(&child, "later");
    world.json(&["snapshot", "rm", "then"]);
    let grandchild = world.create(&["--snapshot", "later"]);
    for id in [&child, &grandchild] {
        assert_eq!(world.sh(id, "cat /root/file /dev/shm/file"), "later\nlater\n");
        world.sandbox(&["pause", id]);
        world.sandbox(&["resume", id]);
        assert_eq!(world.sh(id, "cat /root/file /dev/shm/file"), "later\nlater\n");
    }
    assert_failed(&world.output(&["sandbox", "create", "--snapshot", "then"]), &["no snapshot `then`", "snapshot ls"]);

    world.remove(&[parent, child, grandchild]);
    world.json(&["snapshot", "rm", "later"]);
    assert_eq!(world.json(&["snapshot", "ls"]), serde_json::json!([]));
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_what_rests_can_be_kept_and_names_are_names() {
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&["--memory", "128"]);
    world.sh(&id, "echo kept > /root/file; echo kept > /dev/shm/file");
    world.sandbox(&["pause", &id]);
    let kept = world.snapshot(&id, "kept");
    assert_eq!(world.state(&id), "paused");
    let listed = world.json(&["snapshot", "ls"]);
    assert_eq!(listed[0]["id"], kept.as_str());
    assert!(listed[0]["shared_bytes"].as_u64().unwrap() > 1 << 20, "it shares all with the sandbox: {listed}");

    for (name, words) in [("kept", "there is a snapshot `kept` already"), ("Bad", "cannot be a snapshot's name")] {
        assert_failed(&world.output(&["snapshot", "create", &id, "--name", name]), &[words]);
    }
    // The sandbox changes what it shared: the snapshot does not.
    world.sandbox(&["resume", &id]);
    world.sh(&id, "echo changed > /root/file; echo changed > /dev/shm/file");
    world.sandbox(&["pause", &id]);
    world.remove(&[id]);
    let child = world.create(&["--snapshot", &kept]);
    assert_eq!(world.sh(&child, "cat /root/file /dev/shm/file"), "kept\nkept\n");
    world.sandbox(&["pause", "--disk-only", &child]);
    world.snapshot(&child, "disk");
    let cold = world.sandbox(&["create", "--snapshot", "disk"]);
    assert_eq!(cold["start"], "cold");
    let cold = cold["id"].as_str().unwrap().to_owned();
    assert_eq!(world.sh(&cold, "cat /root/file; ls /dev/shm"), "kept\n");
    world.remove(&[child, cold]);
    world.json(&["snapshot", "rm", "disk", "kept"]);
    agent.stop();
    world.finish_agent();
}

#[test]
fn root_a_damaged_snapshot_is_refused_by_name_and_nothing_else_suffers() {
    let world = World::new();
    let agent = world.agent(&[]);
    let parent = world.create(&["--memory", "128"]);
    world.sh(&parent, "echo here > /dev/shm/file");
    for name in ["memory", "devices", "disk", "record", "description"] {
        let id = world.snapshot(&parent, name);
        let folder = world.dir().join("snapshots").join(&id);
        let file = match name {
            "record" => folder.join("snapshot.json"),
            "description" => folder.join("generation/generation.json"),
            "disk" => folder.join("generation/disk"),
            in_memory => folder.join("generation/memory").join(in_memory),
        };
        crate::life::damage::flip(&file);
        let refused = world.output(&["sandbox", "create", "--snapshot", &id]);
        assert_failed(&refused, &[file.file_name().unwrap().to_str().unwrap()]);
        let removed = world.output(&["snapshot", "rm", &id]);
        assert!(removed.status.success() || ["record", "description"].contains(&name), "{removed:?}");
        assert_eq!(world.sandbox(&["ls"]).as_array().unwrap().len(), 1, "nothing is left of the one that was refused");
    }
    assert_eq!(world.sh(&parent, "cat /dev/shm/file"), "here\n");
    world.remove(&[parent]);
    agent.stop();
    world.finish_agent();
}

/// So much on a disk that whoever goes on from it stands on it.
const LARGE_BYTES: u32 = 36_000_000;

/// Writes so much on a sandbox's disk, and keeps that under a name.
fn grow(world: &World, id: &str, name: &str) -> String {
    let write = format!("yes {name} | head -c {LARGE_BYTES} > /root/{name}; md5sum /root/{name} >> /root/sums");
    world.sh(id, &format!("{write}; echo {name} > /root/last; sync"));
    world.snapshot(id, name)
}

/// What the disk of a snapshot stands on.
fn layers(world: &World, snapshot: &str) -> Vec<std::path::PathBuf> {
    let folder = world.dir().join("snapshots").join(snapshot).join("layers");
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_none()).collect()
}

#[test]
fn root_a_long_line_of_snapshots_does_not_stand_on_ever_more_layers() {
    let world = World::new();
    let agent = world.agent(&[]);
    let mut line = vec![world.create(&["--memory", "128", "--disk", "384"])];
    let mut stood_on = Vec::new();
    for number in 0..6 {
        let name = format!("number{number}");
        stood_on.push(layers(&world, &grow(&world, line.last().unwrap(), &name)).len());
        line.push(world.create(&["--snapshot", &name]));
    }
    assert_eq!(stood_on, [0, 1, 2, 3, 1, 2], "{}", world.agent_words());
    for (number, id) in line[1..].iter().enumerate() {
        // Each but the last has written something more since.
        assert_eq!(world.sh(id, "cat /root/last"), format!("number{}\n", (number + 1).min(5)));
    }
    // The last two stand on what was made one layer.
    for id in &line[5..] {
        world.sh(id, "echo 3 > /proc/sys/vm/drop_caches; md5sum -c /root/sums");
    }
    world.remove(&line);
    agent.stop();
    world.finish_agent();
}

/// A disk that has grown large is stood on, not copied: what others stand on as well is one file.
#[test]
fn root_a_damaged_layer_in_the_middle_is_named_and_who_does_not_stand_on_it_lives_on() {
    let world = World::new();
    let agent = world.agent(&[]);
    let grow = |id: &str, name: &str| grow(&world, id, name);
    let parent = world.create(&["--memory", "128", "--disk", "384"]);
    grow(&parent, "lowest");
    let child = world.create(&["--snapshot", "lowest"]);
    let middle = grow(&child, "middle");
    let grandchild = world.create(&["--snapshot", "middle"]);
    let highest = grow(&grandchild, "highest");
    let (of_middle, of_highest) = (layers(&world, &middle), layers(&world, &highest));
    assert_eq!((of_middle.len(), of_highest.len()), (1, 2), "{of_middle:?} {of_highest:?}");
    let is_lowest = |path: &&std::path::PathBuf| path.file_name() == of_middle[0].file_name();
    let between = of_highest.iter().find(|path| !is_lowest(path)).unwrap();
    crate::life::damage::flip(between);

    let name = between.file_name().unwrap().to_str().unwrap();
    assert_failed(&world.output(&["sandbox", "create", "--snapshot", "highest"]), &[name, "damaged"]);
    let template = world.output(&["template", "from-snapshot", "highest", "mine"]);
    assert_failed(&template, &[name, "damaged"]);
    for id in [&parent, &child] {
        world.sandbox(&["pause", id]);
        world.sandbox(&["resume", id]);
        assert!(world.exec(id, "cat /root/lowest > /dev/null").status.success());
    }
    let other = world.create(&["--snapshot", "lowest"]);
    assert_eq!(world.sh(&other, "cat /root/last"), "lowest\n");
    world.remove(&[parent, child, grandchild, other]);
    agent.stop();
    world.finish_agent();
}
