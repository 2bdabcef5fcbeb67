//! Warm starts: booted once, restored from then on; each time somebody else.

use std::collections::BTreeSet;

use crate::world::{World, text};

#[test]
fn root_the_second_sandbox_of_a_kind_starts_warm_and_another_kind_cold() {
    let world = World::cold();
    let agent = world.agent(&[]);
    let start = |args: &[&str]| {
        let created = world.sandbox(&[&["create", "--memory", "128"], args].concat());
        (created["start"].as_str().unwrap().to_owned(), created["id"].as_str().unwrap().to_owned())
    };
    let mut ids = Vec::new();
    for (args, wanted) in [
        (&[][..], "cold"),
        (&[], "warm"),
        (&["--env", "A=b"], "warm"),
        (&["--cold"], "cold"),
        (&["--vcpus", "2"], "cold"),
        (&["--vcpus", "2"], "warm"),
    ] {
        let (start, id) = start(args);
        assert_eq!(start, wanted, "{args:?}: {}", world.agent_words());
        ids.push(id);
    }
    assert_eq!(world.sh(&ids[2], "echo $A"), "b\n");
    let who = "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | sha256sum";
    let mut seen = BTreeSet::new();
    for id in &ids {
        for line in world.sh(id, who).lines() {
            assert!(seen.insert(line.to_owned()), "twice: {line}");
        }
    }
    let templates = world.json(&["template", "ls"]);
    let minimal =
        templates["templates"].as_array().unwrap().iter().find(|template| template["name"] == "minimal").unwrap();
    assert_eq!(minimal["warm"].as_array().unwrap().len(), 2, "{minimal}");
    // One that starts warm is a sandbox like any other.
    world.sandbox(&["pause", &ids[1]]);
    world.sandbox(&["resume", &ids[1]]);
    assert_eq!(world.sh(&ids[1], "echo back"), "back\n");
    world.remove(&ids);
    agent.stop();

    // `wrenn run` alone uses what is there as well.
    let ran = world.output(&["run", "--memory", "128", "--json", "--", "hostname"]);
    let ran: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&ran["start"], &ran["exit_code"]), (&"warm".into(), &0.into()), "{ran}");
    assert_eq!(ran["stdout"]["text"].as_str().unwrap().trim(), ran["id"]);
    world.finish_agent();
}

#[test]
fn root_a_damaged_warm_image_is_made_anew() {
    let world = World::cold();
    let run = |word: &str| {
        let ran = world.output(&["run", "--memory", "128", "--json", "--", "echo", word]);
        let json: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(json["stdout"]["text"].as_str().unwrap().trim(), word);
        (json["start"].as_str().unwrap().to_owned(), text(&ran.stderr))
    };
    assert_eq!(run("one").0, "cold");
    assert_eq!(run("two").0, "warm");
    let images: Vec<_> =
        std::fs::read_dir(world.dir().join("warm")).unwrap().flatten().map(|entry| entry.path()).collect();
    let image = images.iter().find(|path| path.is_dir()).unwrap();
    crate::life::damage::flip(&image.join("generation/memory/memory"));
    let (start, words) = run("three");
    assert_eq!(start, "cold");
    assert!(words.contains("a warm image cannot be used"), "it is said: {words}");
    assert_eq!(run("four").0, "warm");
    assert_eq!(world.left_behind(), Vec::<String>::new());
}
