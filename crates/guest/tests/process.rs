//! `process.Process` as its clients see it: a real envd, over loopback.

mod common;

use std::time::{Duration, Instant};

use common::{
    Envd, Seen, TOKEN, WIRES, Wire, as_user, by_pid, by_tag, command, connect, connect_request, eventually,
    input_request, is_there, refusal, run, run_with, sh, signal_request, start, start_with, stdin, time_limit, to_pty,
    typed, with_pty, with_stdin,
};
use connectrpc::client::CallOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_proto::envd::TOKEN_HEADER;
use wrenn_proto::envd::process::process_event::Event;
use wrenn_proto::envd::process::{
    CloseStdinRequest, ConnectRequest, ListRequest, StreamInputRequest, UpdateRequest, stream_input_request,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn every_wire_carries_a_command_with_output_and_exit_code() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let seen = run(&envd.client(wire), sh("printf 'out\\377\\000'; printf err >&2; exit 3")).await;
        assert!(seen.pid > 0);
        assert_eq!((&seen.stdout[..], &seen.stderr[..]), (&b"out\xff\0"[..], &b"err"[..]), "{wire:?}");
        let end = seen.end();
        assert_eq!((end.exit_code, end.exited, end.status.as_str(), end.signal), (3, true, "exit status 3", None));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
    }
}

#[tokio::test]
async fn success_has_no_error() {
    let envd = Envd::ready().await;
    let seen = run(&envd.default_client(), command("true", &[])).await;
    let end = seen.end();
    assert_eq!(
        (end.exit_code, end.exited, end.status.as_str(), end.error.as_deref()),
        (0, true, "exit status 0", None)
    );
}

#[tokio::test]
async fn a_death_by_signal_is_told_as_one() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    for (script, signal, status) in [
        ("kill -9 $$", 9, "signal: killed"),
        ("kill -TERM $$", 15, "signal: terminated"),
        ("kill -SEGV $$", 11, "signal: segmentation fault"),
    ] {
        let seen = run(&client, sh(script)).await;
        let end = seen.end();
        assert_eq!((end.exit_code, end.exited, end.status.as_str(), end.signal), (-1, false, status, Some(signal)));
    }
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_byte_for_byte() {
    const SIZE: usize = 100 * 1000 * 1000;
    let envd = Envd::ready().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = pseudo_random(SIZE);
    std::fs::write(file.path(), &bytes).unwrap();
    for wire in [Wire::Http2Proto, Wire::Http1Json] {
        let seen = run(&envd.client(wire), command("cat", &[file.path().to_str().unwrap()])).await;
        assert_eq!(seen.end().exit_code, 0);
        assert!(seen.stdout == bytes, "{wire:?}: {} of {SIZE} bytes, or other ones", seen.stdout.len());
        assert!(seen.largest <= 32 * 1024, "{}", seen.largest);
    }
}

fn pseudo_random(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(size.div_ceil(8)).flatten().collect();
    bytes.truncate(size);
    bytes
}

#[tokio::test]
async fn stdout_and_stderr_keep_the_order_in_which_they_were_read() {
    let envd = Envd::ready().await;
    let mut events =
        start(&envd.default_client(), sh("for i in 1 2 3; do echo $i; sleep 0.05; echo $i >&2; sleep 0.05; done"))
            .await
            .unwrap();
    let mut order = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        if let Event::Data(data) = event {
            order.push(format!("{:?}", data.output.unwrap()));
        }
    }
    let expected =
        ["1", "2", "3"].iter().flat_map(|n| [format!("Stdout(b\"{n}\\n\")"), format!("Stderr(b\"{n}\\n\")")]);
    assert_eq!(order, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn output_comes_as_it_is_written() {
    let envd = Envd::ready().await;
    let begun = Instant::now();
    let mut events = start(&envd.default_client(), sh("echo first; exec sleep 1000")).await.unwrap();
    let mut seen = Seen::default();
    events.until(&mut seen, |seen| seen.out() == "first\n").await;
    assert!(begun.elapsed() < 5 * SECOND && seen.end.is_none());
}

#[tokio::test]
async fn a_background_process_does_not_hold_up_the_end() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let begun = Instant::now();
    let seen = run(&client, sh("sleep 1000 & echo hi")).await;
    assert_eq!((seen.out().as_str(), seen.end().exit_code), ("hi\n", 0));
    let seen = run(&client, sh("(while :; do echo again; done) & echo hi >&2")).await;
    assert_eq!((&seen.stderr[..], seen.end().exit_code), (&b"hi\n"[..], 0));
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_was_written_before_the_end_is_never_lost() {
    let envd = Envd::ready().await;
    // The pipe is full of it when the process ends, and a background process holds it open.
    let seen = run(&envd.default_client(), sh("head -c 200000 /dev/zero; sleep 1000 & exit 0")).await;
    assert_eq!(seen.stdout.len(), 200_000);
}

#[tokio::test]
async fn a_process_is_gone_when_its_end_is_told() {
    let envd = Envd::ready().await;
    let seen = run(&envd.default_client(), command("true", &[])).await;
    assert!(!is_there(seen.pid));
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let script = script.to_str().unwrap().to_owned();
    let why = async |request| refusal(&client, request, CallOptions::default()).await;
    let expect = |code: &str, text: &str| (code.to_owned(), text.to_owned());
    assert_eq!(why(command("no-such", &[])).await, expect("not_found", "command 'no-such' not found"));
    assert_eq!(why(command("/no/such", &[])).await, expect("not_found", "command '/no/such' not found"));
    assert_eq!(
        why(command(&script, &[])).await,
        expect("permission_denied", &format!("command '{script}' cannot be executed: Permission denied (os error 13)"))
    );
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(
        why(command(&script, &[])).await,
        expect(
            "permission_denied",
            &format!("command '{script}' cannot be executed: the interpreter it names does not exist")
        )
    );
    assert_eq!(why(command("", &[])).await, expect("invalid_argument", "the command is empty"));
    assert_eq!(why(command("/tmp", &[])).await.0, "permission_denied");
    assert_eq!(why(command("echo", &["a\0b"])).await.0, "invalid_argument");
    assert_eq!(why(command("echo", &[&"x".repeat(200_000)])).await.0, "invalid_argument");
    let mut no_process = sh("");
    no_process.process = None.into();
    assert_eq!(why(no_process).await.0, "invalid_argument");
    let unknown = refusal(&client, sh("true"), as_user("nobody-here")).await;
    assert_eq!(unknown, expect("unauthenticated", "invalid username: 'nobody-here'"));
}

#[tokio::test]
async fn the_working_directory_is_checked() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let in_dir = |cwd: &str| {
        let mut request = sh("pwd");
        request.process.as_option_mut().unwrap().cwd = Some(cwd.to_owned());
        request
    };
    assert_eq!(run(&client, in_dir("/usr/../usr/bin")).await.out(), "/usr/bin\n");
    assert_eq!(run(&client, in_dir("..")).await.out(), "/\n", "relative to root's home");
    let why = async |cwd| refusal(&client, in_dir(cwd), CallOptions::default()).await;
    let expect = |text: &str| ("invalid_argument".to_owned(), text.to_owned());
    assert_eq!(why("/no/such").await, expect("cwd '/no/such' does not exist"));
    assert_eq!(why("/etc/passwd").await, expect("cwd '/etc/passwd' is not a directory"));
    assert_eq!(why("/etc/passwd/x").await, expect("cwd '/etc/passwd/x' is not a directory"));
}

#[tokio::test]
async fn the_environment_is_exactly_what_was_asked_for() {
    let envd = Envd::ready().await;
    envd.init("{\"envVars\":{\"GLOBAL\":\"g\",\"BOTH\":\"global\"}}").await;
    let client = envd.default_client();
    let mut request = command("env", &[]);
    request.process.as_option_mut().unwrap().envs = [("BOTH", "own"), ("OWN", "with = and\nline")]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let out = run(&client, request).await.out();
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    let id = format!("E2B_SANDBOX_ID={}", envd.id);
    let mut expected = vec![
        "BOTH=own",
        "E2B_SANDBOX=true",
        &id,
        "GLOBAL=g",
        "HOME=/root",
        "LOGNAME=root",
        "OWN=with = and",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "USER=root",
        "line",
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert!(!run(&client, command("env", &[])).await.out().contains("OWN"), "nothing is left for the next command");
}

#[tokio::test]
async fn root_a_command_runs_as_the_user_it_names() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it becomes another user");
    let envd = Envd::ready().await;
    let client = envd.default_client();
    // The user's output can be opened by its name, which asks for its owner.
    let seen =
        run_with(&client, sh("id -un; id -u; pwd; echo opened > /dev/stdout; echo $HOME"), as_user("nobody")).await;
    assert_eq!(seen.out(), "nobody\n65534\n/\nopened\n/nonexistent\n", "{seen:?}");
    envd.init("{\"defaultUser\":\"daemon\",\"defaultWorkdir\":\"/usr\"}").await;
    assert_eq!(run(&client, sh("id -un; pwd")).await.out(), "daemon\n/usr\n");
    let seen = run_with(&client, with_pty(sh("tty >/dev/null && echo x > $(tty)"), 80, 24), as_user("nobody")).await;
    assert_eq!(seen.pty, b"x\r\n");
}

#[tokio::test]
async fn a_process_has_its_session_limits_and_score() {
    let envd = Envd::ready().await;
    let seen = run(
        &envd.default_client(),
        sh("cat /proc/self/oom_score_adj; ulimit -n; ps -o sid=,pgid= -p $$; echo $$; ls /proc/self/fd"),
    )
    .await;
    let out = seen.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..2], ["100", "1024"]);
    let pid = seen.pid.to_string();
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), [&pid, &pid]);
    assert_eq!(lines[3], pid);
    assert_eq!(&lines[4..], ["0", "1", "2", "3"], "no descriptor of envd's (3 is ls's own)");
}

#[tokio::test]
async fn stdin_is_a_pipe_or_nothing() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let client = envd.client(wire);
        assert_eq!(run(&client, sh("readlink /proc/self/fd/0; cat")).await.out(), "/dev/null\n");
        let mut events = start(&client, with_stdin(command("cat", &[]))).await.unwrap();
        let pid = events.pid().await;
        client.send_input(input_request(pid, stdin(b"hello\xff\0"))).await.unwrap();
        let mut seen = Seen::default();
        events.until(&mut seen, |seen| seen.stdout.len() == 7).await;
        client.send_input(input_request(pid, stdin(b" again"))).await.unwrap();
        client.close_stdin(CloseStdinRequest { process: by_pid(pid).into() }).await.unwrap();
        events.until(&mut seen, |_| false).await;
        assert_eq!(seen.stdout, b"hello\xff\0 again", "{wire:?}");
        assert_eq!(seen.end().exit_code, 0);
    }
}

#[tokio::test]
async fn a_stream_of_input_arrives_whole() {
    let envd = Envd::ready().await;
    let data = pseudo_random(5_000_000);
    for wire in [Wire::Http2Proto, Wire::Http1Json] {
        let client = envd.client(wire);
        let mut events = start(&client, with_stdin(command("cat", &[]))).await.unwrap();
        let pid = events.pid().await;
        let mut messages = vec![message(stream_input_request::Event::from(stream_input_request::StartEvent {
            process: by_pid(pid).into(),
        }))];
        for chunk in data.chunks(100_000) {
            messages.push(message(stream_input_request::Event::from(stream_input_request::DataEvent {
                input: stdin(chunk).into(),
            })));
            messages.push(message(stream_input_request::Event::from(stream_input_request::KeepAlive::default())));
        }
        let reading = tokio::spawn(events.rest());
        client.stream_input(connectrpc::stream_iter(messages)).await.unwrap();
        client.close_stdin(CloseStdinRequest { process: by_pid(pid).into() }).await.unwrap();
        let seen = reading.await.unwrap();
        assert!(seen.stdout == data, "{wire:?}: {} bytes", seen.stdout.len());
    }
}

fn message(event: stream_input_request::Event) -> StreamInputRequest {
    StreamInputRequest { event: Some(event) }
}

#[tokio::test]
async fn input_of_the_wrong_kind_is_refused() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut piped = start(&client, with_stdin(command("cat", &[]))).await.unwrap();
    let mut terminal = start(&client, with_pty(command("cat", &[]), 80, 24)).await.unwrap();
    let mut deaf = start(&client, sh("sleep 1000")).await.unwrap();
    let (piped, terminal, deaf) = (piped.pid().await, terminal.pid().await, deaf.pid().await);
    let code =
        async |pid, input| client.send_input(input_request(pid, input)).await.unwrap_err().code.as_str().to_owned();
    assert_eq!(code(piped, typed(b"x")).await, "internal");
    assert_eq!(code(terminal, stdin(b"x")).await, "internal");
    assert_eq!(code(deaf, stdin(b"x")).await, "internal");
    assert_eq!(code(999_999, stdin(b"x")).await, "not_found");
    let close = |pid| client.close_stdin(CloseStdinRequest { process: by_pid(pid).into() });
    assert_eq!(close(terminal).await.unwrap_err().code.as_str(), "unknown");
    close(piped).await.unwrap();
    close(piped).await.ok();
    let update = |pid| client.update(UpdateRequest { process: by_pid(pid).into(), pty: to_pty(9, 9).into() });
    assert_eq!(update(deaf).await.unwrap_err().code.as_str(), "invalid_argument");
    let early = client.stream_input(connectrpc::stream_iter([message(stream_input_request::Event::from(
        stream_input_request::DataEvent { input: stdin(b"x").into() },
    ))]));
    assert_eq!(early.await.unwrap_err().code.as_str(), "invalid_argument");
}

#[tokio::test]
async fn input_that_nobody_reads_ends_with_the_process() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut events = start(&client, with_stdin(sh("exec sleep 1000"))).await.unwrap();
    let pid = events.pid().await;
    let writing = tokio::spawn({
        let client = envd.default_client();
        async move { client.send_input(input_request(pid, stdin(&vec![0; 3_000_000]))).await }
    });
    client.send_signal(signal_request(pid, 9)).await.unwrap();
    let error = writing.await.unwrap().unwrap_err();
    assert!(["internal", "not_found"].contains(&error.code.as_str()), "{error}");
    assert_eq!(events.rest().await.end().signal, Some(9));
}

#[tokio::test]
async fn signals_reach_the_whole_group() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut events = start(&client, sh("sleep 1000 & echo $!; wait")).await.unwrap();
    let pid = events.pid().await;
    let mut seen = Seen::default();
    events.until(&mut seen, |seen| seen.stdout.ends_with(b"\n")).await;
    let grandchild: u32 = seen.out().trim().parse().unwrap();
    client.send_signal(signal_request(pid, 15)).await.unwrap();
    events.until(&mut seen, |_| false).await;
    assert_eq!((seen.end().status.as_str(), seen.end().signal), ("signal: terminated", Some(15)));
    eventually("the grandchild is gone", || !runs(grandchild)).await;
}

/// Neither gone nor a zombie that its new parent has not seen yet.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_killed_process_is_gone_at_once() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut events = start(&client, sh("exec sleep 1000")).await.unwrap();
    let pid = events.pid().await;
    client.send_signal(signal_request(pid, 9)).await.unwrap();
    assert!(!is_there(pid), "the answer came before the end");
    assert_eq!(client.send_signal(signal_request(pid, 9)).await.unwrap_err().code.as_str(), "not_found");
    assert_eq!(events.rest().await.end().status, "signal: killed");
}

#[tokio::test]
async fn any_signal_can_be_sent_and_nonsense_is_refused() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut events =
        start(&client, sh("trap 'echo winch' WINCH; echo ready; while :; do sleep 0.01; done")).await.unwrap();
    let pid = events.pid().await;
    let mut seen = Seen::default();
    events.until(&mut seen, |seen| seen.out() == "ready\n").await;
    client.send_signal(signal_request(pid, 28)).await.unwrap();
    events.until(&mut seen, |seen| seen.out() == "ready\nwinch\n").await;
    for nonsense in [0, -1, 32, 65, i32::MAX] {
        let error = client.send_signal(signal_request(pid, nonsense)).await.unwrap_err();
        assert_eq!(error.code.as_str(), "invalid_argument", "{nonsense}");
    }
}

#[tokio::test]
async fn a_command_out_of_time_is_killed_with_its_group() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let client = envd.client(wire);
        let begun = Instant::now();
        let seen = run_with(&client, sh("sleep 1000 & echo $!; wait"), time_limit(SECOND / 5)).await;
        let error = seen.error.clone().expect("an error instead of an end");
        assert_eq!(error.code.as_str(), "deadline_exceeded", "{wire:?}");
        assert!(begun.elapsed() >= SECOND / 5 && begun.elapsed() < 5 * SECOND);
        let grandchild: u32 = seen.out().trim().parse().unwrap();
        eventually("the grandchild is gone", || !runs(grandchild)).await;
        assert!(!is_there(seen.pid));
        // Whoever asks again learns how it ended.
        let again = connect(&client, connect_request(seen.pid, Some(0))).await.unwrap().rest().await;
        assert_eq!((again.end().signal, again.out()), (Some(9), seen.out()));
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let script = format!(
        "while [ ! -e {0}/go ]; do echo line; sleep 0.01; done; touch {0}/done; echo over",
        dir.path().display()
    );
    let mut events = start(&client, sh(&script)).await.unwrap();
    let pid = events.pid().await;
    events.until(&mut Seen::default(), |seen| seen.out().starts_with("line\n")).await;
    drop(events);
    let listed = client.list(ListRequest::default()).await.unwrap().into_owned();
    assert_eq!(listed.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    std::fs::write(dir.path().join("go"), "").unwrap();
    eventually("the script has ended", || done.exists() && !is_there(pid)).await;
    let seen = connect(&client, connect_request(pid, Some(0))).await.unwrap().rest().await;
    assert!(seen.out().starts_with("line\n") && seen.out().ends_with("over\n"), "{}", seen.out());
    assert_eq!(seen.end().exit_code, 0);
}

#[tokio::test]
async fn connecting_without_an_offset_shows_only_what_comes() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut first = start(&client, with_stdin(sh("echo before; cat"))).await.unwrap();
    let pid = first.pid().await;
    let mut seen = Seen::default();
    first.until(&mut seen, |seen| seen.out() == "before\n").await;
    let mut second = connect(&client, connect_request(pid, None)).await.unwrap();
    assert_eq!(second.pid().await, pid);
    client.send_input(input_request(pid, stdin(b"after\n"))).await.unwrap();
    client.close_stdin(CloseStdinRequest { process: by_pid(pid).into() }).await.unwrap();
    first.until(&mut seen, |_| false).await;
    assert_eq!(seen.out(), "before\nafter\n");
    assert_eq!(second.rest().await.out(), "after\n", "both clients see it");
    let late = connect(&client, connect_request(pid, None)).await.unwrap().rest().await;
    assert_eq!((late.pid, late.out().as_str(), late.end().exit_code), (pid, "", 0));
}

#[tokio::test]
async fn a_client_that_comes_back_misses_nothing_or_is_told() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let client = envd.client(wire);
        let mut events = start(
            &client,
            with_stdin(sh("echo 0123456789; read x; head -c 3000000 /dev/zero | tr '\\0' z; echo; echo end")),
        )
        .await
        .unwrap();
        let pid = events.pid().await;
        let mut seen = Seen::default();
        events.until(&mut seen, |seen| seen.stdout.len() == 11).await;
        drop(events);
        let mut back = connect(&client, connect_request(pid, Some(4))).await.unwrap();
        let mut seen = Seen::default();
        back.until(&mut seen, |seen| seen.out() == "456789\n").await;
        drop(back);
        // With nobody attached three megabytes go by; one of them is kept.
        client.send_input(input_request(pid, stdin(b"go\n"))).await.unwrap();
        eventually("it has ended", || !is_there(pid)).await;
        let back = connect(&client, connect_request(pid, Some(seen.position))).await.unwrap().rest().await;
        let total = 11 + 3_000_000 + 1 + 4;
        assert_eq!(back.position, total, "{wire:?}");
        assert_eq!(seen.position + back.gap + back.stdout.len() as u64, total);
        assert!(
            back.gap > 1_500_000 && back.stdout.len() > 900_000 && back.stdout.len() <= 1024 * 1024,
            "{}",
            back.gap
        );
        assert!(back.stdout.ends_with(b"zzz\nend\n"));
    }
}

#[tokio::test]
async fn a_flood_that_nobody_reads_is_bounded_in_memory() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut pids = Vec::new();
    for _ in 0..20 {
        let mut events =
            start(&client, sh("head -c 30000000 /dev/zero; head -c 10000000 /dev/urandom >&2")).await.unwrap();
        pids.push(events.pid().await);
    }
    eventually("they have ended", || pids.iter().all(|pid| !is_there(*pid))).await;
    let rss = resident_mib(envd.pid());
    assert!(rss < 64, "{rss} MiB");
    let seen = connect(&client, connect_request(pids[0], Some(0))).await.unwrap().rest().await;
    assert_eq!(seen.position, 40_000_000);
    assert!(seen.gap > 0);
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn a_slow_client_slows_the_process_down() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let dir = tempfile::tempdir().unwrap();
    let progress = dir.path().join("progress");
    // A megabyte at a time, each noted when it was taken.
    let script = format!("for i in $(seq 1 50); do head -c 1000000 /dev/zero; echo $i > {}; done", progress.display());
    let mut events = start(&client, sh(&script)).await.unwrap();
    events.pid().await;
    // It stops by itself: what is on the way is bounded, and the rest is not written.
    let taken = || std::fs::read_to_string(&progress).unwrap_or_default().trim().parse::<u32>().unwrap_or(0);
    let mut last = u32::MAX;
    while last != taken() {
        last = taken();
        tokio::time::sleep(SECOND / 2).await;
    }
    assert!(last < 25, "{last} MB were written and nobody read them");
    let seen = events.rest().await;
    assert_eq!((seen.stdout.len(), seen.gap), (50_000_000, 0));
}

#[tokio::test]
async fn a_client_that_stalls_is_detached_after_thirty_seconds() {
    let envd = Envd::ready().await;
    let client = envd.client(Wire::Http1Proto);
    let mut events = start(&client, sh("head -c 50000000 /dev/zero")).await.unwrap();
    let pid = events.pid().await;
    let begun = Instant::now();
    while is_there(pid) {
        assert!(begun.elapsed() < 45 * SECOND, "the process still waits");
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(begun.elapsed() > 25 * SECOND, "{:?}", begun.elapsed());
    let seen = events.rest().await;
    assert_eq!(seen.error.clone().unwrap().code.as_str(), "resource_exhausted");
    let back = connect(&client, connect_request(pid, Some(seen.position))).await.unwrap().rest().await;
    assert_eq!((back.position, back.end().exit_code), (50_000_000, 0));
}

/// A client whose connection was reset, as every one is by a host that has a paused guest run again.
#[tokio::test]
async fn a_client_whose_connection_died_keeps_nobody_from_reading() {
    let envd = Envd::ready().await;
    let request =
        br#"{"process":{"cmd":"/bin/sh","args":["-c","head -c 10000000 /dev/zero; sleep 1000"]},"tag":"dead"}"#;
    let stream = TcpStream::connect(envd.address).await.unwrap();
    let stream = stalled(stream, request).await;
    let client = envd.default_client();
    // It stands still because that client has not read.
    let mut back = connect(&client, tagged("dead", 0)).await.unwrap();
    let mut seen = Seen::default();
    back.until(&mut seen, |seen| seen.stdout.len() >= 256 * 1024).await;
    // A close with data that nobody reads is a reset.
    drop(stream);
    let begun = Instant::now();
    back.until(&mut seen, |seen| seen.stdout.len() as u64 + seen.gap >= 10_000_000).await;
    assert!(begun.elapsed() < 20 * SECOND, "{:?}: it was waited for", begun.elapsed());
    assert_eq!((seen.position, seen.error.is_none()), (10_000_000, true));
}

fn tagged(tag: &str, offset: u64) -> ConnectRequest {
    ConnectRequest { process: by_tag(tag).into(), offset: Some(offset) }
}

/// Sends a Start call by hand and reads the head of its answer, and then nothing more.
async fn stalled(mut stream: TcpStream, request: &[u8]) -> TcpStream {
    let length = u32::try_from(request.len()).unwrap();
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nHost: envd\r\n{TOKEN_HEADER}: {TOKEN}\r\n\
         Content-Type: application/connect+json\r\nContent-Length: {}\r\n\r\n",
        request.len() + 5
    );
    let body = [&[0][..], &length.to_be_bytes(), request].concat();
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = [0; 512];
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer[..read]));
    stream
}

#[tokio::test]
async fn a_silent_connection_is_probed_by_the_kernel() {
    let envd = Envd::ready().await;
    let client = TcpStream::connect(envd.address).await.unwrap();
    let (ours, theirs) = (client.local_addr().unwrap().port(), envd.address.port());
    // In a line of the table: local and remote address, state, queues, and which timer runs (02 is the one of probes).
    let row = format!("0100007F:{theirs:04X} 0100007F:{ours:04X} 01 00000000:00000000 02:");
    eventually("the timer runs", || std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&row)).await;
}

#[tokio::test]
async fn fifty_commands_at_once() {
    let envd = Envd::ready().await;
    for wire in [Wire::Http2Proto, Wire::Http1Json] {
        let client = envd.client(wire);
        let runs = (0..50).map(|index| {
            let client = client.clone();
            tokio::spawn(async move {
                (index, run(&client, sh(&format!("echo {index}; head -c 100000 /dev/zero >&2; exit {index}"))).await)
            })
        });
        for run in runs.collect::<Vec<_>>() {
            let (index, seen) = run.await.unwrap();
            assert_eq!((seen.out(), seen.stderr.len(), seen.end().exit_code), (format!("{index}\n"), 100_000, index));
        }
    }
    assert!(envd.default_client().list(ListRequest::default()).await.unwrap().into_owned().processes.is_empty());
}

#[tokio::test]
async fn processes_are_listed_and_found_by_tag() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut request = with_stdin(command("cat", &["-u"]));
    request.tag = Some("mine".into());
    request.process.as_option_mut().unwrap().cwd = Some("/usr".into());
    request.process.as_option_mut().unwrap().envs = [("A".into(), "b".into())].into_iter().collect();
    let asked = request.process.clone();
    let mut events = start(&client, request.clone()).await.unwrap();
    let pid = events.pid().await;
    let listed = client.list(ListRequest::default()).await.unwrap().into_owned().processes;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, listed[0].tag.as_deref(), &listed[0].config), (pid, Some("mine"), &asked));
    let (code, _) = refusal(&client, request, CallOptions::default()).await;
    assert_eq!(code, "already_exists");
    client.close_stdin(CloseStdinRequest { process: by_tag("mine").into() }).await.unwrap();
    assert_eq!(events.rest().await.end().exit_code, 0);
    let connected = connect(&client, ConnectRequest { process: by_tag("mine").into(), offset: None }).await;
    assert_eq!(connected.unwrap().rest().await.pid, pid, "a finished process can still be found");
    for (selector, text) in [
        (by_pid(999_999), "process with pid 999999 not found"),
        (by_tag("other"), "process with tag 'other' not found"),
    ] {
        let error = connect(&client, ConnectRequest { process: selector.into(), offset: None }).await;
        let error = match error {
            Ok(events) => events.rest().await.error.unwrap(),
            Err(error) => error,
        };
        assert_eq!((error.code.as_str(), error.message.as_deref()), ("not_found", Some(text)));
    }
}

#[tokio::test]
async fn keepalives_come_as_asked() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
        let mut events = start_with(&envd.client(wire), sh("sleep 1000"), options).await.unwrap();
        let begun = Instant::now();
        let mut seen = Seen::default();
        events.until(&mut seen, |seen| seen.keepalives == 2).await;
        assert!(begun.elapsed() > SECOND && begun.elapsed() < 6 * SECOND, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_terminal_is_one() {
    let envd = Envd::ready().await;
    for wire in WIRES {
        let client = envd.client(wire);
        let mut events =
            start(&client, with_pty(sh("stty size; tty; read line; echo \"got $line\"; stty size; exit 4"), 100, 30))
                .await
                .unwrap();
        let pid = events.pid().await;
        let text = |seen: &Seen| String::from_utf8_lossy(&seen.pty).into_owned();
        let mut seen = Seen::default();
        events.until(&mut seen, |seen| text(seen).matches('\n').count() == 2).await;
        assert!(text(&seen).starts_with("30 100\r\n/dev/pts/"), "{}", text(&seen));
        client.update(UpdateRequest { process: by_pid(pid).into(), pty: to_pty(132, 50).into() }).await.unwrap();
        client.send_input(input_request(pid, typed(b"hello\n"))).await.unwrap();
        events.until(&mut seen, |_| false).await;
        assert!(text(&seen).ends_with("hello\r\ngot hello\r\n50 132\r\n"), "{:?}", text(&seen));
        assert_eq!((seen.end().exit_code, seen.stdout.len()), (4, 0));
    }
}

#[tokio::test]
async fn a_terminal_s_keys_and_floods_work() {
    let envd = Envd::ready().await;
    let client = envd.default_client();
    let mut events = start(&client, with_pty(sh("echo ready; exec sleep 1000"), 80, 24)).await.unwrap();
    let pid = events.pid().await;
    let mut seen = Seen::default();
    events.until(&mut seen, |seen| seen.pty.ends_with(b"ready\r\n")).await;
    client.send_input(input_request(pid, typed(b"\x03"))).await.unwrap();
    events.until(&mut seen, |_| false).await;
    assert_eq!(seen.end().signal, Some(2), "Ctrl-C");

    let flood = run(&client, with_pty(sh("stty -opost; head -c 5000000 /dev/zero; sleep 1000 & exit 0"), 80, 24)).await;
    assert_eq!((flood.pty.len(), flood.end().exit_code), (5_000_000, 0));
    assert!(flood.largest <= 16 * 1024);
    let error = refusal(&client, with_pty(sh("true"), 70_000, 1), CallOptions::default()).await;
    assert_eq!(error.0, "invalid_argument");
}
