//! Start, end and what is left.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use wrenn_proto::shim::{Client, ClientError, End, ErrorCode, InheritedFd, Ready, Reason, VmmStatus};
use wrenn_sys::process::Identity;
use wrenn_sys::spawn::ExitStatus;

use crate::harness::{Killed, PATIENCE, Plan, file, is_readable_within, read_all, shim, until};

#[test]
fn the_end_is_recorded_and_told_as_it_was() {
    let table = [
        ("exit 0", End::Exited { code: 0 }),
        ("exit 7", End::Exited { code: 7 }),
        ("kill -9 $$", End::Signalled { signal: 9 }),
        ("kill -15 $$", End::Signalled { signal: 15 }),
    ];
    for (script, end) in table {
        let shim = Plan::script(script).start();
        let record = shim.wait();
        assert_eq!((&record.end, record.reason), (&end, None), "{script}");
        assert_eq!(record.pid, Some(shim.vmm_pid()));
        assert_eq!(record.sandbox, shim.spec.sandbox);
        assert!(record.started_ms <= record.ended_ms);
        assert_eq!(shim.record().as_ref(), Some(&record), "{script}: on disk");
        assert_eq!(shim.client().status().unwrap().vmm, VmmStatus::Ended(record.clone()));
        assert_eq!(shim.wait(), record, "{script}: told again");
        shim.client().shutdown(false, PATIENCE).unwrap();
        assert_eq!(shim.ended(), ExitStatus::Exited(0));
        assert!(!shim.spec.socket.exists(), "{script}: the socket is gone");
        assert!(shim.record().is_some(), "{script}: the record stays");
    }
}

#[test]
fn a_vmm_that_cannot_be_started_is_a_typed_failure_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    let plain = plain.to_str().unwrap();
    let mut no_netns = Plan::script("exit 0");
    no_netns.spec.vmm.netns = Some("/no/such/netns".into());
    let mut no_folder = Plan::script("exit 0");
    no_folder.spec.vmm.cwd = "/no/such/folder".into();
    let table = [
        (Plan::program("/no/such/vmm", &[]), "exec", 2, "/no/such/vmm"),
        (Plan::program(plain, &[]), "exec", 13, plain),
        (no_netns, "open_netns", 2, "/no/such/netns"),
        (no_folder, "working_directory", 2, "/bin/sh"),
    ];
    for (plan, step, errno, program) in table {
        let mut shim = plan.launch(&[]);
        let Some(Ready::SpawnFailed(record)) = shim.ready.clone() else { panic!("{step}: {:?}", shim.ready) };
        assert_eq!(record.end, End::SpawnFailed { step: step.into(), errno, program: program.into() });
        assert_eq!(record.pid, None);
        assert_eq!(shim.record(), Some(record), "{step}: on disk");
        assert_eq!(shim.ended(), ExitStatus::Exited(1));
        assert!(!shim.spec.socket.exists(), "{step}: the socket is gone");
        assert!(shim.errors().contains(program), "{step}: stderr names it");
    }
}

#[test]
fn the_vmm_gets_exactly_what_the_spec_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Plan::script("env | sort; cat <&7; pwd; ls /proc/self/fd | tr '\\n' ' '; ulimit -n; echo error >&2");
    plan.spec.vmm.env.push(("KEY".into(), "a b".into()));
    plan.spec.vmm.cwd = "/usr".into();
    plan.spec.vmm.fds = vec![InheritedFd { shim: 5, vmm: 7 }];
    let limit = wrenn_proto::shim::Resource::OpenFiles;
    plan.spec.vmm.rlimits = vec![wrenn_proto::shim::Rlimit { resource: limit, soft: Some(99), hard: Some(100) }];
    let inherited = file(folder.path(), "through a descriptor\n");
    let shim = plan.launch(&[(inherited.as_fd(), 5), (inherited.as_fd(), 20)]);
    assert_eq!(shim.wait().end, End::Exited { code: 0 });
    let expected = "KEY=a b\nPATH=/usr/bin:/bin\nPWD=/usr\nthrough a descriptor\n/usr\n0 1 2 3 7 99\n";
    assert_eq!(shim.console(), expected);
    assert_eq!(shim.client().vmm_log().unwrap().data, b"error\n");
}

#[test]
fn the_shim_keeps_no_copy_of_the_vmms_descriptors() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut plan = Plan::script("echo from the VMM >&9");
    plan.spec.vmm.fds = vec![InheritedFd { shim: 8, vmm: 9 }];
    let shim = plan.launch(&[(writer.as_fd(), 8), (writer.as_fd(), 30)]);
    drop(writer);
    // The end of the pipe comes although the shim still runs, and although it inherited another copy as 30.
    assert_eq!(read_all(reader), "from the VMM\n");
    assert!(matches!(shim.client().status().unwrap().vmm, VmmStatus::Ended(_) | VmmStatus::Running { .. }));
}

#[test]
fn a_missing_descriptor_stops_the_start() {
    let mut plan = Plan::script("exit 0");
    plan.spec.vmm.fds = vec![InheritedFd { shim: 77, vmm: 9 }];
    let shim = plan.launch(&[]);
    assert!(matches!(&shim.ready, Some(Ready::Failed { message }) if message.contains("77")), "{:?}", shim.ready);
    assert_eq!(shim.ended(), ExitStatus::Exited(1));
    assert!(!shim.spec.socket.exists());
}

#[test]
fn the_vmm_dies_with_a_shim_that_is_killed() {
    let shim = Plan::script("exec sleep 600").start();
    let vmm = Identity::read(shim.vmm_pid()).unwrap();
    let handle = vmm.pidfd().unwrap().unwrap();
    shim.child.signal(Signal::KILL).unwrap();
    assert!(is_readable_within(handle.as_fd(), PATIENCE), "the VMM outlives its shim");
    assert_eq!(shim.ended(), ExitStatus::Signalled(9));
    assert_eq!(shim.record(), None, "nobody was there to record it, and nothing is invented");
    assert!(matches!(Client::connect(&shim.spec.socket, PATIENCE), Err(ClientError::Connect { .. })));
}

#[test]
fn the_vmms_own_children_die_with_it() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut plan = Plan::script("sleep 600 & echo started; exit 5");
    plan.spec.vmm.fds = vec![InheritedFd { shim: 8, vmm: 9 }];
    let shim = plan.launch(&[(writer.as_fd(), 8)]);
    drop(writer);
    assert_eq!(shim.wait().end, End::Exited { code: 5 });
    assert_eq!(read_all(reader), "", "the last holder of the pipe is gone");
}

#[test]
fn sigterm_ends_the_vmm_orderly_then_the_shim() {
    let shim = Plan::script("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done").start();
    shim.console_says("up");
    shim.child.signal(Signal::TERM).unwrap();
    assert_eq!(shim.ended(), ExitStatus::Exited(0));
    let record = shim.record().unwrap();
    assert_eq!((record.end, record.reason), (End::Exited { code: 3 }, Some(Reason::ShimTerminated)));
    assert!(!shim.spec.socket.exists());
}

#[test]
fn sigterm_ends_a_vmm_that_will_not_hear_too() {
    let shim = Plan::script("trap '' TERM; echo up; while :; do sleep 0.05; done").start();
    shim.console_says("up");
    shim.child.signal(Signal::TERM).unwrap();
    assert_eq!(shim.ended(), ExitStatus::Exited(0));
    let record = shim.record().unwrap();
    assert_eq!((record.end, record.reason), (End::Signalled { signal: 9 }, Some(Reason::ShimTerminated)));
}

#[test]
fn other_signals_of_a_terminal_do_not_concern_the_shim() {
    let shim = Plan::script("exec sleep 600").start();
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT, Signal::PIPE] {
        shim.child.signal(signal).unwrap();
    }
    assert!(matches!(shim.client().status().unwrap().vmm, VmmStatus::Running { stopping: false, .. }));
}

#[test]
fn stop_kills_at_once_or_after_the_grace() {
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let polite = "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done";
    let table = [
        (deaf, Duration::ZERO, End::Signalled { signal: 9 }),
        (deaf, Duration::from_millis(100), End::Signalled { signal: 9 }),
        (polite, Duration::from_secs(600), End::Exited { code: 4 }),
    ];
    for (script, grace, end) in table {
        let shim = Plan::script(script).start();
        shim.console_says("up");
        shim.client().stop(grace).unwrap();
        let record = shim.wait();
        assert_eq!((record.end, record.reason), (end, Some(Reason::StopRequested)), "{script} {grace:?}");
        shim.client().stop(grace).unwrap();
    }
}

#[test]
fn a_second_stop_can_shorten_the_first() {
    let shim = Plan::script("trap '' TERM; echo up; while :; do sleep 0.05; done").start();
    shim.console_says("up");
    shim.client().stop(Duration::from_secs(600)).unwrap();
    assert!(matches!(shim.client().status().unwrap().vmm, VmmStatus::Running { stopping: true, .. }));
    shim.client().stop(Duration::from_secs(300)).unwrap();
    shim.client().stop(Duration::ZERO).unwrap();
    assert_eq!(shim.wait().end, End::Signalled { signal: 9 });
}

#[test]
fn signals_reach_the_vmm_and_only_while_it_runs() {
    let shim = Plan::script("trap 'echo usr1; exit 9' USR1; echo up; while :; do sleep 0.05; done").start();
    shim.console_says("up");
    let mut client = shim.client();
    assert_eq!(client.signal(4000).unwrap_err().refusal(), Some(ErrorCode::Malformed));
    client.signal(10).unwrap();
    assert_eq!(client.wait(Some(PATIENCE)).unwrap().end, End::Exited { code: 9 });
    assert_eq!(client.signal(10).unwrap_err().refusal(), Some(ErrorCode::VmmEnded));
}

#[test]
fn shutdown_spares_a_running_vmm_unless_told_otherwise() {
    let shim = Plan::script("exec sleep 600").start();
    let refused = shim.client().shutdown(false, PATIENCE).unwrap_err();
    assert_eq!(refused.refusal(), Some(ErrorCode::VmmRunning));
    let mut waiter = shim.client();
    waiter.status().unwrap();
    shim.client().shutdown(true, PATIENCE).unwrap();
    let record = shim.record().expect("recorded before the answer");
    assert_eq!((record.end, record.reason), (End::Signalled { signal: 9 }, Some(Reason::ShutdownRequested)));
    assert_eq!(shim.ended(), ExitStatus::Exited(0));
}

#[test]
fn a_shim_left_alone_leaves_after_its_linger() {
    let mut plan = Plan::script("exit 0");
    plan.spec.linger_s = 1;
    let shim = plan.start();
    let mut client = shim.client();
    client.wait(Some(PATIENCE)).unwrap();
    assert!(!shim.ends_within(Duration::from_millis(1500)), "it stays for a client");
    client.status().unwrap();
    drop(client);
    assert_eq!(shim.ended(), ExitStatus::Exited(0));
    assert!(!shim.spec.socket.exists());
    assert!(shim.record().is_some());
}

#[test]
fn a_shim_without_linger_stays() {
    let shim = Plan::script("exit 0").start();
    until("the record is there", || shim.record().is_some());
    assert!(!shim.ends_within(Duration::from_millis(1500)));
    shim.client().status().unwrap();
}

#[test]
fn the_socket_is_for_the_owner_alone() {
    let shim = Plan::script("exec sleep 600").start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&shim.spec.socket), 0o600);
    assert_eq!(mode(&shim.spec.console.path), 0o600);
    shim.client().stop(Duration::ZERO).unwrap();
    shim.wait();
    assert_eq!(mode(&shim.spec.exit_record), 0o600);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_respected() {
    let plan = Plan::script("exec sleep 600");
    drop(std::os::unix::net::UnixListener::bind(&plan.spec.socket).unwrap());
    assert!(plan.spec.socket.exists());
    let first = plan.start();
    let mut plan = Plan::script("echo must not run");
    plan.spec.socket = first.spec.socket.clone();
    let second = plan.launch(&[]);
    assert!(
        matches!(&second.ready, Some(Ready::Failed { message }) if message.contains("listens")),
        "{:?}",
        second.ready
    );
    assert!(!second.spec.console.path.exists());
    first.client().status().unwrap();

    let plan = Plan::script("echo must not run");
    std::fs::write(&plan.spec.socket, "a file of somebody").unwrap();
    let third = plan.launch(&[]);
    assert!(matches!(third.ready, Some(Ready::Failed { .. })), "{:?}", third.ready);
    assert_eq!(std::fs::read(&third.spec.socket).unwrap(), b"a file of somebody");
}

#[test]
fn a_wrong_call_says_so_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("spec.json");
    let version = wrenn_proto::shim::SPEC_VERSION;
    std::fs::write(&bad, format!("{{\"version\": {version}, \"nonsense\": true}}")).unwrap();
    let missing = folder.path().join("missing");
    let table = [
        (vec![], "usage"),
        (vec![bad.as_os_str(), bad.as_os_str()], "usage"),
        (vec![missing.as_os_str()], "cannot read the spec"),
        (vec![bad.as_os_str()], "not understood"),
    ];
    for (args, text) in table {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = shim(&args).fd(writer.as_fd(), 2).start().unwrap();
        drop(writer);
        let said = read_all(reader);
        assert!(said.contains(text), "{args:?}: {said}");
        assert_eq!(child.wait().unwrap(), ExitStatus::Exited(2), "{args:?}");
    }
}

#[test]
fn nobody_reading_the_ready_line_is_no_reason_to_die() {
    // The harness wants the line; here its reader is gone from the start.
    let plan = Plan::script("exec sleep 600");
    let spec = plan.spec.socket.with_file_name("by-hand.json");
    std::fs::write(&spec, serde_json::to_vec(&plan.spec).unwrap()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = Killed(shim(&[spec.as_os_str()]).fd(writer.as_fd(), plan.spec.ready_fd).start().unwrap());
    let mut client = None;
    until("it listens", || {
        client = Client::connect(&plan.spec.socket, PATIENCE).ok();
        client.is_some()
    });
    client.unwrap().shutdown(true, PATIENCE).unwrap();
    assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0));
}
