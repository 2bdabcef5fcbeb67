//! What cannot be had: each refusal says the cause and the remedy, in well under a boot's time, and leaves nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use crate::world::{World, assert_failed, text, unprivileged};

fn assert_refused(world: World, output: &Output, words: &[&str]) {
    assert_failed(output, words);
    world.finish();
}

#[test]
fn root_an_unknown_template_is_named_with_those_there_are() {
    let world = World::new();
    let output = world.output(&["run", "-t", "debain", "--", "true"]);
    assert_refused(world, &output, &["no template `debain`", "there are: ", "minimal"]);
}

#[test]
fn root_sizes_that_no_sandbox_has_are_refused_all_at_once() {
    let world = World::new();
    let output = world.output(&["run", "--vcpus", "0", "--memory", "1", "--disk", "1", "--", "true"]);
    assert_failed(&output, &["0 vCPUs", "1 MiB", "at least 128 MiB", "disk of 1 MiB"]);
    let output = world.output(&["run", "--vcpus", "1000", "--memory", "100000000", "--", "true"]);
    assert_refused(world, &output, &["1000 vCPUs", "1 to 32", "this host has"]);
}

#[test]
fn root_a_template_cut_short_is_refused() {
    let world = World::new();
    let image = template_file(&world);
    // A copy of its own: the prepared image is shared with other tests.
    let bytes = std::fs::read(&image).unwrap();
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, &bytes[..bytes.len() - 4096]).unwrap();
    let output = world.run(&["true"]);
    assert_refused(world, &output, &["minimal", "template build"]);
}

#[test]
fn root_a_template_with_a_changed_byte_is_refused() {
    let world = World::new();
    let image = template_file(&world);
    let mut bytes = std::fs::read(&image).unwrap();
    std::fs::remove_file(&image).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    let output = world.run(&["true"]);
    assert_refused(world, &output, &["hash", "template build"]);
}

fn template_file(world: &World) -> std::path::PathBuf {
    let output = world.output(&["template", "ls", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let templates = json["templates"].as_array().unwrap();
    let minimal = templates.iter().find(|template| template["name"] == "minimal").unwrap();
    world.dir().join("templates").join(minimal["id"].as_str().unwrap()).join("rootfs.ext4")
}

#[test]
fn root_a_kernel_that_is_none_is_refused() {
    let world = World::new();
    let file = world.dir().join("not-a-kernel");
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let output = world.output(&["run", "--kernel", file.to_str().unwrap(), "--", "true"]);
    assert_failed(&output, &["not-a-kernel", "kernel"]);
    let output = world.output(&["run", "--kernel", "/no/such/file", "--", "true"]);
    std::fs::remove_file(file).unwrap();
    assert_refused(world, &output, &["/no/such/file"]);
}

#[test]
fn root_without_root_it_says_so() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // The binary where anybody may execute it.
    let binary = dir.path().join("wrenn");
    std::fs::copy(env!("CARGO_BIN_EXE_wrenn"), &binary).unwrap();
    let mut command = std::process::Command::new(&binary);
    command.args(["run", "--", "true"]).env("WRENN_DIR", dir.path().join("data"));
    let output = unprivileged(command);
    assert_refused(world, &output, &["root", "sudo"]);
}

#[test]
fn root_a_missing_qemu_and_an_old_one_are_told_apart() {
    let world = World::new();
    // Where Firecracker runs sandboxes nobody misses QEMU: here it is asked for.
    let args = ["run", "--vmm", "qemu", "--", "true"];
    let output = world.wrenn(&args).env("WRENN_QEMU", "/no/such/qemu").output().unwrap();
    assert_failed(&output, &["/no/such/qemu", "qemu-system-x86"]);

    // A QEMU too old cannot be had beside the real one: this one only says that it is.
    let old = world.dir().join("qemu-system-x86_64");
    std::fs::write(&old, "#!/bin/sh\necho QEMU emulator version 7.2.9 '(Debian 1:7.2+dfsg-7+deb12u9)'\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = world.wrenn(&args).env("WRENN_QEMU", &old).output().unwrap();
    std::fs::remove_file(&old).unwrap();
    assert_refused(world, &output, &["7.2", "8.2", "backports"]);
}

#[test]
fn root_a_user_or_a_folder_that_is_not_there_is_named() {
    let world = World::new();
    let output = world.output(&["run", "--user", "nobody-here", "--", "true"]);
    assert_failed(&output, &["nobody-here"]);
    let output = world.output(&["run", "--workdir", "/no/such/dir", "--", "true"]);
    assert_refused(world, &output, &["/no/such/dir"]);
}

#[test]
fn root_an_instance_that_is_a_copy_is_refused() {
    let world = World::new();
    assert_eq!(world.run(&["true"]).status.code(), Some(0));
    let copy = World::without_images();
    std::fs::copy(world.dir().join("instance.json"), copy.dir().join("instance.json")).unwrap();
    let output = copy.run(&["true"]);
    assert_failed(&output, &["copy", "instance.json"]);
    std::fs::remove_file(copy.dir().join("instance.json")).unwrap();
    copy.finish();
    world.finish();
}

#[test]
fn root_no_images_at_all_says_how_to_build_them() {
    let world = World::without_images();
    let output = world.run(&["true"]);
    assert!(text(&output.stderr).contains("wrenn template build minimal"), "{}", text(&output.stderr));
    assert_refused(world, &output, &["minimal"]);
}

/// No sandbox has it.
const NOBODY: &str = "sb0123456789abcdefgh";

#[test]
fn root_what_needs_an_agent_says_how_to_start_one() {
    let world = World::without_images();
    for args in [
        &["sandbox", "fork", NOBODY, "--count", "2"][..],
        &["sandbox", "rollback", NOBODY, "before"],
        &["sandbox", "create", "--snapshot", "before"],
        &["snapshot", "create", NOBODY],
        &["snapshot", "ls"],
        &["snapshot", "rm", "before"],
        &["template", "warm", "minimal"],
        &["template", "rm", "minimal"],
        &["template", "from-snapshot", "before", "own"],
        &["forkcheck"],
    ] {
        assert_failed(&world.output(args), &["no agent runs", "start one: `wrenn agent`"]);
    }
    world.finish();
}

#[test]
fn root_templates_are_listed_without_an_agent_but_not_what_is_warm() {
    let world = World::new();
    let listed = world.output(&["template", "ls", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let minimal = listed["templates"].as_array().unwrap().iter().find(|template| template["name"] == "minimal");
    assert_eq!(minimal.unwrap()["warm"], serde_json::Value::Null);
    let table = world.output(&["template", "ls"]);
    assert!(text(&table.stdout).lines().any(|line| line.starts_with("minimal ") && line.contains(" ? ")), "{table:?}");
    world.finish();
}

#[test]
fn root_an_agent_refuses_names_that_are_none_and_counts_beyond_its_limits() {
    let world = World::new();
    let agent = world.agent(&[]);
    let long = "x".repeat(257);
    for (args, words) in [
        (&["sandbox", "fork", NOBODY, "--count", "0"][..], "0 forks: 1 to 1024"),
        (&["sandbox", "fork", NOBODY, "--count", "1025"], "1025 forks: 1 to 1024"),
        (&["sandbox", "fork", NOBODY, "--timeout", "400days"], "a timeout of 1year"),
        (&["sandbox", "rollback", NOBODY, "Before"], "`Before` cannot be a snapshot's name"),
        (&["sandbox", "create", "--snapshot", ".hidden"], "`.hidden` cannot be a snapshot's name"),
        (&["snapshot", "create", NOBODY, "--name", "a/b/c"], "`a/b/c` cannot be a snapshot's name"),
        (&["snapshot", "create", NOBODY, "--name", "sn0123456789abcdefgh"], "cannot be a snapshot's name"),
        (&["snapshot", "rm", ""], "`` cannot be a snapshot's name"),
        (&["template", "warm", "minimal", "--boot-timeout", "2h"], "a boot timeout of 2h: 1h is the most"),
        (&["template", "rm", ""], "a template's name of 0 bytes"),
        (&["template", "from-snapshot", "before", &long], "a template's name of 257 bytes"),
        (&["forkcheck", "-t", ""], "a template's name of 0 bytes"),
    ] {
        assert_failed(&world.output(args), &[words]);
    }
    // With `--json` a refusal is an answer like any other.
    let removed = world.output(&["snapshot", "rm", "No", "Neither", "--json"]);
    assert_eq!(removed.status.code(), Some(125));
    let removed: serde_json::Value = serde_json::from_slice(&removed.stdout).unwrap();
    let codes: Vec<_> = removed.as_array().unwrap().iter().map(|answer| &answer["error"]["code"]).collect();
    assert_eq!(codes, ["invalid", "invalid"]);
    agent.stop();
    world.finish_agent();
}
