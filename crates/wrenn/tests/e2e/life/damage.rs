//! A disk that has damaged a file of a sandbox at rest: refused by the file's name, and nothing else is affected.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::agent::AgentWorld;
use crate::world::{World, assert_failed};

/// Where the kept files of a sandbox at rest are.
fn generation(world: &World, id: &str) -> PathBuf {
    let generations = world.dir().join("sandboxes").join(id).join("generations");
    let entries: Vec<_> = fs::read_dir(&generations).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

/// Flips a bit in the middle of a file, or of its first data.
pub fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let offset = first_data(&file).max(file.metadata().unwrap().len().min(4096) / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn first_data(file: &fs::File) -> u64 {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)).unwrap() + 100
}

#[test]
fn root_a_damaged_file_is_refused_by_name_and_nothing_else_is_affected() {
    let world = AgentWorld::begin(&[]);
    let (id, other) = (world.create(&[]), world.create(&[]));
    world.sh(&id, "echo known > /dev/shm/file; dd if=/dev/urandom of=/root/blob bs=1k count=200 2>/dev/null; sync");
    world.sandbox(&["pause", &id]);
    // What need not be waited for is done by then: the request after it waits.
    world.sandbox(&["stat", &id]);
    let kept = generation(&world, &id);
    for name in ["memory/memory", "memory/devices", "disk", "generation.json", "memory/memory.sums", "disk.sums"] {
        let path = kept.join(name);
        flip(&path);
        let refused = world.output(&["sandbox", "resume", &id]);
        assert_failed(&refused, &[name.rsplit('/').next().unwrap()]);
        assert_eq!(world.state(&id), "paused");
        flip(&path);
    }
    let memory = kept.join("memory/memory");
    let whole = memory.with_extension("whole");
    fs::copy(&memory, &whole).unwrap();
    let file = fs::File::options().write(true).open(&memory).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    assert_failed(&world.output(&["sandbox", "resume", &id]), &["memory"]);
    fs::rename(&whole, &memory).unwrap();
    assert_eq!(world.sh(&other, "echo unharmed"), "unharmed\n");
    world.sandbox(&["resume", &id]);
    assert_eq!(world.sh(&id, "cat /dev/shm/file"), "known\n");
    world.sandbox(&["rm", &id, &other]);
    world.end();
}

#[test]
fn root_a_damaged_manifest_is_named_and_repaired_from_what_is_there() {
    let world = World::new();
    let agent = world.agent(&[]);
    let (rests, runs, other) = (world.create(&[]), world.create(&[]), world.create(&[]));
    for id in [&rests, &runs] {
        world.sh(id, "echo known > /dev/shm/file");
    }
    world.sandbox(&["pause", &rests]);
    agent.stop();
    for id in [&rests, &runs] {
        flip(&world.dir().join("sandboxes").join(id).join("manifest.json"));
    }
    let agent = world.agent(&[]);
    for id in [&rests, &runs] {
        let view = world.sandbox(&["get", id]);
        assert_eq!(view["state"], "needs_repair", "{view}");
        assert!(view["reason"].as_str().unwrap().contains("manifest.json"), "{view}");
        assert_failed(&world.output(&["sandbox", "resume", id]), &["wrenn repair"]);
    }
    assert_eq!(world.sh(&other, "echo unharmed"), "unharmed\n");
    for id in [&rests, &runs] {
        let repaired = world.output(&["repair", id]);
        assert!(repaired.status.success(), "{repaired:?}");
    }
    assert_eq!((world.state(&rests).as_str(), world.state(&runs).as_str()), ("paused", "running"));
    world.sandbox(&["resume", &rests]);
    for id in [&rests, &runs] {
        assert_eq!(world.sh(id, "cat /dev/shm/file"), "known\n");
    }
    assert_failed(&world.output(&["repair", &other]), &["nothing to repair"]);
    world.sandbox(&["rm", &rests, &runs, &other]);
    agent.stop();
    world.finish_agent();
}
