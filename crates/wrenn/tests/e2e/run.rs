//! What `wrenn run` does when all is well: output, exit codes, input, environment.

use std::time::{Duration, Instant};

use crate::world::{Stack, World, assert_run, output_with_input, text};

#[test]
fn root_prints_what_the_command_prints_and_exits_with_its_code() {
    let world = World::new();
    let output = world.run(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_run(&output, 7, "out\n");
    assert_eq!(text(&output.stderr), "err\n");
    world.finish();
}

#[test]
fn root_passes_a_hundred_megabytes_byte_for_byte() {
    let world = World::new();
    // A pattern that no loss, repetition or exchange of chunks can hide in: numbered rounds of numbered lines.
    let script = "seq 1 150000 > /tmp/lines; for i in $(seq 1 110); do echo round $i; cat /tmp/lines; done";
    let output = world.run(&["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: String = (1..=150_000).map(|number| format!("{number}\n")).collect();
    let expected: String = (1..=110).map(|round| format!("round {round}\n{lines}")).collect();
    assert!(expected.len() > 100_000_000);
    assert_eq!(output.stdout.len(), expected.len());
    assert!(output.stdout == expected.as_bytes());
    world.finish();
}

#[test]
fn root_keeps_bytes_that_are_no_text() {
    let world = World::new();
    let output = world.run(&["sh", "-c", r"printf '\377\376\000a\303'; printf '\200' >&2"]);
    assert_eq!(output.stdout, b"\xff\xfe\0a\xc3");
    assert_eq!(output.stderr, b"\x80");
    world.finish();
}

#[test]
fn root_exit_codes_are_those_of_a_shell() {
    let world = World::new();
    let missing = world.run(&["no-such-command"]);
    assert_run(&missing, 127, "");
    assert!(text(&missing.stderr).contains("no-such-command"), "{}", text(&missing.stderr));

    let not_executable = world.run(&["/etc/passwd"]);
    assert_run(&not_executable, 126, "");

    let killed = world.run(&["sh", "-c", "kill -9 $$"]);
    assert_run(&killed, 137, "");
    world.finish();
}

#[test]
fn root_a_time_limit_kills_the_command_and_keeps_its_output() {
    let world = World::new();
    let begun = Instant::now();
    let output = world.output(&["run", "--timeout", "2s", "--", "sh", "-c", "echo begun; sleep 1000"]);
    assert_run(&output, 124, "begun\n");
    assert!(begun.elapsed() < Duration::from_secs(60));
    world.finish();
}

#[test]
fn root_passes_input_on_and_ends_it() {
    let world = World::new();
    let input: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let output = output_with_input(world.wrenn(&["run", "--", "sha256sum"]), &input);
    use sha2::Digest as _;
    let expected = format!("{}  -\n", hex::encode(sha2::Sha256::digest(&input)));
    assert_run(&output, 0, &expected);
    world.finish();
}

#[test]
fn root_environment_folder_and_user_are_as_asked() {
    let world = World::new();
    let script = "echo $A; echo $HOME $USER; pwd; id -u; cat /proc/sys/kernel/hostname; echo $E2B_SANDBOX; tty";
    let args = ["run", "-e", "A=b c", "-e", "B=", "--user", "user", "--workdir", "/tmp", "--", "sh", "-c", script];
    let output = world.output(&args);
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[..4], ["b c", "/home/user user", "/tmp", "1000"], "{stdout} {}", text(&output.stderr));
    assert!(lines[4].starts_with("sb") && lines[4].len() == 20, "{stdout}");
    assert_eq!(lines[5], "true");
    world.finish();
}

#[test]
fn root_nothing_of_the_host_reaches_the_guest() {
    let world = World::new();
    let mut command = world.wrenn(&["run", "--", "env"]);
    command.env("SECRET_OF_THE_HOST", "1");
    let output = command.output().unwrap();
    let stdout = text(&output.stdout);
    assert!(!stdout.contains("SECRET") && !stdout.contains("WRENN"), "{stdout}");
    world.finish();
}

#[test]
fn root_json_holds_output_exit_and_timings() {
    let world = World::new();
    let output = world.output(&["run", "--cold", "--json", "--", "sh", "-c", "echo hi; printf '\\377' >&2; exit 3"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(json["exit_code"], 3);
    assert_eq!(json["stdout"], serde_json::json!({"text": "hi\n", "bytes": 3, "truncated": false}));
    assert_eq!(json["stderr"]["base64"], "/w==");
    assert_eq!(json["start"], "cold");
    let stack = Stack::of_this_run();
    let ran = ["driver", "accel"].map(|part| json["vmm"][part].as_str().unwrap_or_default().to_owned());
    assert_eq!(ran, [stack.vmm, stack.accel], "{json}");
    assert_eq!(json["storage"], stack.storage.as_str());
    assert_eq!(json["id"].as_str().unwrap().len(), 20);
    for phase in ["network", "disk", "vmm", "guest", "init", "exec", "end vmm", "end network", "end files"] {
        assert!(json["timings_ms"][phase].as_f64().unwrap() > 0.0, "{phase}: {json}");
    }
    world.finish();
}

#[test]
fn root_timing_is_a_table_on_stderr() {
    let world = World::new();
    let output = world.output(&["run", "--timing", "--", "true"]);
    let stderr = text(&output.stderr);
    assert!(stderr.lines().any(|line| line.starts_with("guest ") && line.ends_with(" ms")), "{stderr}");
    assert!(stderr.lines().last().unwrap().starts_with("total "), "{stderr}");
    world.finish();
}

#[test]
fn root_size_is_as_asked() {
    let world = World::new();
    let script = "nproc; grep MemTotal /proc/meminfo; df -m / | tail -1";
    let output = world.output(&["run", "--vcpus", "2", "--memory", "512", "--disk", "1024", "--", "sh", "-c", script]);
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "2", "{stdout} {}", text(&output.stderr));
    let kib: u32 = lines[1].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((400 * 1024..512 * 1024).contains(&kib), "{stdout}");
    let mib: u32 = lines[2].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((900..1024).contains(&mib), "the root file system has grown: {stdout}");
    world.finish();
}

/// A kernel that distrusts the CPUs' counter falls back to a clock of 4 ms.
#[test]
fn root_the_clock_of_several_cpus_is_fine_grained() {
    let world = World::new();
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let output = world.output(&["run", "--vcpus", "2", "--", "cat", clock]);
    let name = text(&output.stdout);
    assert!(["tsc\n", "kvm-clock\n"].contains(&name.as_str()), "{name} {}", text(&output.stderr));
    world.finish();
}

#[test]
fn root_two_gibibytes_boot() {
    let world = World::new();
    let output = world.output(&["run", "--memory", "2048", "--", "grep", "MemTotal", "/proc/meminfo"]);
    let stdout = text(&output.stdout);
    let kib: u32 = stdout.split_whitespace().nth(1).expect("a line").parse().unwrap();
    assert!(kib > 1900 * 1024, "{stdout} {}", text(&output.stderr));
    world.finish();
}

#[test]
fn root_several_runs_of_one_instance_work_side_by_side() {
    let world = World::new();
    let mut one = world.start("read line; echo got $line");
    let other = world.run(&["echo", "side by side"]);
    assert_run(&other, 0, "side by side\n");
    // The first has stdin from /dev/null: it reads the end of it at once.
    assert_eq!(one.line(), "got\n");
    assert_eq!(one.finish().0.status.code(), Some(0));
    world.finish();
}

#[test]
fn root_a_background_process_does_not_hold_the_end() {
    let world = World::new();
    let begun = Instant::now();
    let output = world.run(&["sh", "-c", "sleep 1000 & echo hi"]);
    assert_run(&output, 0, "hi\n");
    assert!(begun.elapsed() < Duration::from_secs(60));
    world.finish();
}

#[test]
fn root_base_runs_python() {
    let world = World::new();
    let output = world.output(&["run", "-t", "base", "--", "python3", "-c", "print(6*7)"]);
    assert_run(&output, 0, "42\n");
    let tools = "python --version && curl --version && git --version && sudo -n true && test -d /etc/ssl/certs && \
                 bash -l -c 'tput -T xterm-256color cols' >/dev/null && echo $USER $PWD";
    let output = world.output(&["run", "-t", "base", "--user", "user", "--", "sh", "-c", tools]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("user /home/user\n"), "{}", text(&output.stdout));
    world.finish();
}
