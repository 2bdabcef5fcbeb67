use super::*;
use proptest::prelude::*;

fn spec() -> Spec {
    Spec {
        version: SPEC_VERSION,
        sandbox: "sb0123456789abcdefgh".into(),
        vmm: Vmm {
            program: "/usr/bin/qemu-system-x86_64".into(),
            args: vec!["-M".into(), "microvm".into()],
            env: vec![("PATH".into(), "/usr/bin".into())],
            cwd: "/".into(),
            credentials: Some(Credentials { uid: 70_000, gid: 70_000, groups: vec![104] }),
            jail: None,
            netns: Some("/run/wrenn/netns/wrn-abcd-1".into()),
            cgroup: None,
            fds: vec![InheritedFd { shim: 4, vmm: 3 }, InheritedFd { shim: 5, vmm: 4 }],
            rlimits: vec![Rlimit { resource: Resource::Core, soft: Some(0), hard: Some(0) }],
            oom_score_adj: Some(500),
        },
        console: Console {
            path: "/run/x/console".into(),
            bytes: 65_536,
            bytes_per_second: 1 << 20,
            burst_bytes: 1 << 16,
        },
        exit_record: "/run/x/exit.json".into(),
        socket: "/run/x/shim.sock".into(),
        ready_fd: 3,
        pager: Some(Pager {
            socket: "/run/x/pager/pager.sock".into(),
            table_fd: 6,
            file_fds: vec![7, 8],
            working_set_fd: Some(9),
        }),
        linger_s: 60,
    }
}

fn problems(spec: &Spec) -> Vec<String> {
    match spec.check() {
        Ok(()) => Vec::new(),
        Err(SpecError::Nonsense { problems }) => problems,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_spec_survives_its_file() {
    let path = std::env::temp_dir().join(format!("wrenn-spec-{}", std::process::id()));
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let json = serde_json::to_string(&spec()).unwrap();
    write(&json);
    assert_eq!(Spec::read(&path).unwrap(), spec());
    write(r#"{"version": 99, "from": "the future"}"#);
    assert!(matches!(Spec::read(&path), Err(SpecError::Version { found: 99 })));
    write(&json.replace(r#""linger_s""#, r#""lingers""#));
    let error = Spec::read(&path).unwrap_err();
    assert!(matches!(&error, SpecError::Json { source, .. } if source.to_string().contains("lingers")), "{error:?}");
    write(&json[..json.len() / 2]);
    assert!(matches!(Spec::read(&path), Err(SpecError::Json { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Spec::read(&path), Err(SpecError::Read { .. })));
}

#[test]
fn all_that_makes_no_sense_in_a_spec_is_said_at_once() {
    assert_eq!(problems(&spec()), Vec::<String>::new());
    let mut bad = spec();
    bad.vmm.program = "qemu".into();
    bad.vmm.netns = Some("netns".into());
    bad.socket = format!("/{}", "s".repeat(107)).into();
    bad.console.bytes = 10;
    bad.console.burst_bytes = 0;
    bad.ready_fd = 4;
    bad.vmm.fds.push(InheritedFd { shim: 1, vmm: 3 });
    let said = problems(&bad);
    assert_eq!(said.len(), 8, "{said:#?}");
}

#[test]
fn a_pager_shares_no_descriptor_and_has_a_place() {
    for (change, wanted) in [
        ((|pager| pager.table_fd = 8) as fn(&mut Pager), 1),
        (|pager| pager.working_set_fd = Some(5), 1),
        (|pager| pager.file_fds.push(2), 1),
        (|pager| pager.file_fds = (100..357).collect(), 1),
        (|pager| pager.socket = "pager.sock".into(), 1),
        (|pager| pager.socket = format!("/{}", "s".repeat(107)).into(), 1),
        (|pager| pager.working_set_fd = None, 0),
    ] {
        let mut spec = spec();
        change(spec.pager.as_mut().unwrap());
        assert_eq!(problems(&spec).len(), wanted, "{:?}", spec.pager);
    }
}

#[test]
fn a_record_says_why_a_vmm_was_ended_that_nobody_wanted_ended() {
    let record = |reason, detail: Option<&str>| ExitRecord {
        version: RECORD_VERSION,
        sandbox: "sb".into(),
        pid: Some(7),
        started_ms: 1,
        ended_ms: 2,
        end: End::Signalled { signal: 9 },
        reason,
        detail: detail.map(str::to_owned),
    };
    let lost = record(Some(Reason::MemoryLost), Some("file 0 ends before page 7"));
    let wanted = "was ended by signal 9, because its memory could not be served: file 0 ends before page 7";
    assert_eq!(lost.to_string(), wanted);
    let json = String::from_utf8(lost.to_json()).unwrap();
    assert!(json.contains(r#""reason":"memory_lost","detail":"file 0"#), "{json}");
    assert_eq!(record(Some(Reason::StopRequested), None).to_string(), "was ended by signal 9");
}

#[test]
fn a_jail_has_plain_paths_and_each_once() {
    let device = |path: &str, source: &str| JailEntry::Device { path: path.into(), source: source.into() };
    let said = |mount_point: &str, entries: Vec<JailEntry>| {
        let mut spec = spec();
        spec.vmm.jail = Some(Jail { mount_point: mount_point.into(), entries });
        problems(&spec).len()
    };
    let kvm = || device("/dev/kvm", "/dev/kvm");
    assert_eq!(said("/run/x/root", vec![kvm(), device("/dev/net/tun", "/dev/net/tun")]), 0);
    for (mount_point, entries, problems) in [
        ("root", vec![kvm()], 1),
        ("/", vec![kvm()], 1),
        ("/run/../x", vec![kvm()], 1),
        ("/run/x", vec![kvm(), kvm()], 1),
        ("/run/x", vec![device("dev/kvm", "/dev/kvm"), device("/a", "../kvm")], 2),
        ("/run/x", vec![device("/../kvm", "/dev/kvm"), device("/", "/dev/kvm")], 2),
        ("/run/x", (0..65).map(|n| device(&format!("/{n}"), "/dev/kvm")).collect(), 1),
    ] {
        assert_eq!(said(mount_point, entries.clone()), problems, "{mount_point} {entries:?}");
    }
}

#[test]
fn every_request_is_in_the_list_of_known_ones() {
    let requests = [
        Request::Hello { min: 1, max: 2 },
        Request::Status,
        Request::ConsoleTail { bytes: 7 },
        Request::VmmLog,
        Request::Signal { signal: 15 },
        Request::Stop { grace_ms: 100 },
        Request::Wait,
        Request::Shutdown { kill: true },
    ];
    assert_eq!(requests.len(), Request::OPS.len());
    for (request, op) in requests.into_iter().zip(Request::OPS) {
        let json = serde_json::to_value(RequestFrame { id: 3, request }).unwrap();
        assert_eq!((json["op"].as_str(), json["id"].as_u64()), (Some(op), Some(3)), "{json}");
        assert_eq!(serde_json::from_value::<RequestFrame>(json).unwrap().request, request);
    }
}

#[test]
fn the_wire_is_as_it_was() {
    let record = ExitRecord {
        version: 1,
        sandbox: "sb".into(),
        pid: Some(7),
        started_ms: 1,
        ended_ms: 2,
        end: End::Signalled { signal: 9 },
        reason: Some(Reason::StopRequested),
        detail: None,
    };
    let answer = AnswerFrame { id: 5, answer: Answer::Ok(Reply::Ended(record)) };
    let text = r#"{"id":5,"ok":{"kind":"ended","version":1,"sandbox":"sb","pid":7,"started_ms":1,"ended_ms":2,"end":{"how":"signalled","signal":9},"reason":"stop_requested"}}"#;
    assert_eq!(serde_json::to_string(&answer).unwrap(), text);
    assert_eq!(serde_json::from_str::<AnswerFrame>(text).unwrap(), answer);

    let refusal = Refusal { code: ErrorCode::VmmRunning, message: "no".into() };
    let text = r#"{"id":0,"error":{"code":"vmm_running","message":"no"}}"#;
    assert_eq!(serde_json::to_string(&AnswerFrame { id: 0, answer: Answer::Error(refusal) }).unwrap(), text);
    assert_eq!(
        serde_json::from_str::<RequestFrame>(r#"{"id":1,"op":"stop","new":"field"}"#).unwrap().request,
        Request::Stop { grace_ms: 0 }
    );
}

#[test]
fn what_is_no_request_is_told_apart() {
    let table = [
        (r#"{"id":4,"op":"status"}"#, None),
        (r#"{"id":4,"op":"levitate"}"#, Some((4, ErrorCode::UnknownRequest))),
        (r#"{"id":4,"op":"signal"}"#, Some((4, ErrorCode::Malformed))),
        (r#"{"id":4,"op":"signal","signal":"nine"}"#, Some((4, ErrorCode::Malformed))),
        (r#"{"id":4}"#, Some((4, ErrorCode::Malformed))),
        (r#"{"op":"status"}"#, Some((0, ErrorCode::Malformed))),
        (r#"{"id":-1,"op":"status"}"#, Some((0, ErrorCode::Malformed))),
        ("[]", Some((0, ErrorCode::Malformed))),
        ("", Some((0, ErrorCode::Malformed))),
        ("\u{0}", Some((0, ErrorCode::Malformed))),
    ];
    for (json, expected) in table {
        let refused = RequestFrame::parse(json.as_bytes()).err().map(|none| (none.id, none.refusal.code));
        assert_eq!(refused, expected, "{json}");
    }
}

#[test]
fn words_of_a_newer_shim_are_unknown_not_errors() {
    let code: ErrorCode = serde_json::from_str(r#""on_strike""#).unwrap();
    assert_eq!(code, ErrorCode::Unknown);
    let record: ExitRecord = serde_json::from_str(
        r#"{"version":2,"sandbox":"s","pid":null,"started_ms":0,"ended_ms":0,"end":{"how":"evaporated"},"reason":"heat","x":1}"#,
    )
    .unwrap();
    assert_eq!((record.end, record.reason), (End::Unknown, Some(Reason::Unknown)));
}

#[test]
fn ready_lines_are_read_or_say_why_not() {
    let started = Ready::Started { shim_pid: 1, vmm_pid: 2 };
    assert_eq!(Ready::read(&started.to_line()[..]).unwrap(), started);
    assert!(matches!(Ready::read(&b""[..]), Err(ReadError::Silent)));
    assert!(matches!(Ready::read(&b"{\"ready\":"[..]), Err(ReadError::Json { .. })));
}

#[test]
fn a_missing_exit_record_is_none_and_a_cut_one_an_error() {
    let path = std::env::temp_dir().join(format!("wrenn-exit-{}", std::process::id()));
    assert!(ExitRecord::read(&path).unwrap().is_none());
    std::fs::write(&path, "{\"version\":1,").unwrap();
    assert!(matches!(ExitRecord::read(&path), Err(ReadError::Json { .. })));
    std::fs::remove_file(&path).unwrap();
}

proptest! {
    #[test]
    fn bytes_survive_the_wire(offset in any::<u64>(), data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let answer = AnswerFrame { id: 1, answer: Answer::Ok(Reply::Console(Tail { offset, data })) };
        let encoded = frame::encode(&answer).unwrap();
        prop_assert_eq!(frame::decode::<AnswerFrame>(&encoded[4..]).unwrap(), answer);
    }

    #[test]
    fn no_json_frightens_the_messages(text in r#"[\{\}\[\]":, a-z0-9_]{0,80}"#) {
        // Whether it fits or not is not the point; that there is an answer is.
        let fits = frame::decode::<RequestFrame>(text.as_bytes()).is_ok();
        prop_assert!(!fits || text.contains("op"));
        prop_assert!(frame::decode::<AnswerFrame>(text.as_bytes()).is_err() || text.contains("id"));
    }
}
