//! The plain side of envd: who is let in, the host's calls, and what no client would send.

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{Envd, TOKEN, Wire, run, sh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wrenn_proto::envd::TOKEN_HEADER;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const STREAM: (&str, &str) = ("Content-Type", "application/connect+json");

fn envelope(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test]
async fn before_init_nobody_is_let_in() {
    let envd = Envd::new();
    assert_eq!(envd.request("GET", "/health", &[], b"").await.status, 204);
    for token in [None, Some(""), Some(TOKEN)] {
        let headers: Vec<_> = token.iter().map(|token| (TOKEN_HEADER, *token)).collect();
        for (method, path) in [
            ("GET", "/metrics"),
            ("GET", "/envs"),
            ("GET", "/files?path=/etc/passwd"),
            ("POST", "/files?path=/tmp/x"),
            ("POST", "/process.Process/List"),
            ("POST", "/process.Process/Start"),
            ("POST", "/filesystem.Filesystem/Stat"),
        ] {
            let answer = envd.request(method, path, &headers, b"{}").await;
            assert_eq!((answer.status, answer.json()["code"].as_u64()), (401, Some(401)), "{method} {path} {token:?}");
        }
    }
}

#[tokio::test]
async fn after_init_the_token_opens_and_can_be_changed() {
    let envd = Envd::ready().await;
    assert_eq!(envd.authorized("GET", "/envs", &[], b"").await.status, 200);
    assert_eq!(envd.authorized("POST", "/process.Process/List", &[JSON], b"{}").await.text(), "{}");
    for wrong in ["", "x", &TOKEN[1..], &format!("{TOKEN}0")] {
        assert_eq!(envd.request("GET", "/envs", &[(TOKEN_HEADER, wrong)], b"").await.status, 401);
    }
    assert_eq!(envd.request("GET", "/envs", &[], b"").await.status, 401);
    envd.init("{\"accessToken\":\"another\"}").await;
    assert_eq!(envd.authorized("GET", "/envs", &[], b"").await.status, 401);
    assert_eq!(envd.request("GET", "/envs", &[(TOKEN_HEADER, "another")], b"").await.status, 200);
    envd.init("{}").await;
    assert_eq!(envd.request("GET", "/envs", &[(TOKEN_HEADER, "another")], b"").await.status, 200, "kept");
}

#[tokio::test]
async fn the_generated_client_is_told_that_it_is_not_let_in() {
    let envd = Envd::new();
    for wire in common::WIRES {
        let seen = run(&envd.client(wire), sh("true")).await;
        assert_eq!(seen.error.unwrap().code.as_str(), "unauthenticated", "{wire:?}");
    }
}

#[tokio::test]
async fn without_the_host_s_signature_its_calls_do_not_exist() {
    let envd = Envd::ready().await;
    let nothing = envd.request("POST", "/no/such/route", &[], b"{}").await;
    assert_eq!(nothing.status, 404);
    let body = "{\"accessToken\":\"stolen\"}";
    for path in ["/init", "/freeze", "/thaw", "/sync", "/fsfreeze", "/fsthaw", "/clock", "/resumed", "/poweroff"] {
        for method in ["POST", "GET", "PUT", "DELETE"] {
            let answer = envd.authorized(method, path, &[], body.as_bytes()).await;
            assert_eq!((answer.status, &answer.body), (404, &nothing.body), "{method} {path}");
        }
        let forged = [("X-Wrenn-Nonce", "99"), ("X-Wrenn-Signature", "AAAA")];
        assert_eq!(envd.request("POST", path, &forged, body.as_bytes()).await.status, 404);
    }
    assert_eq!(envd.authorized("GET", "/envs", &[], b"").await.status, 200, "the token is as it was");
}

#[tokio::test]
async fn a_program_in_the_sandbox_cannot_call_init() {
    let envd = Envd::ready().await;
    let body = "{\"accessToken\":\"stolen\"}";
    // What a program can do: connect, and send what it likes, also with the token it has been given.
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'POST /init HTTP/1.1\\r\\nHost: x\\r\\nX-Access-Token: {TOKEN}\\r\\nX-Wrenn-Nonce: 18446744073709551615\\r\\nX-Wrenn-Signature: AAAA\\r\\nConnection: close\\r\\nContent-Length: {}\\r\\n\\r\\n{}' >&3; head -1 <&3",
        envd.address.port(),
        body.len(),
        body
    );
    let seen = run(&envd.default_client(), common::command("/bin/bash", &["-c", &script])).await;
    assert_eq!(seen.out().trim(), "HTTP/1.1 404 Not Found");
    assert_eq!(envd.authorized("GET", "/envs", &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_nonce_works_once_and_only_forwards() {
    let envd = Envd::new();
    let body = format!("{{\"accessToken\":\"{TOKEN}\"}}");
    assert_eq!(envd.signed("/init", 1000, &body).await.status, 204);
    assert_eq!(envd.signed("/init", 1000, &body).await.status, 404, "replayed");
    assert_eq!(envd.signed("/init", 999, &body).await.status, 404, "older");
    assert_eq!(envd.signed("/init", 1001, &body).await.status, 204);
}

#[tokio::test]
async fn init_sets_what_it_names() {
    let envd = Envd::ready().await;
    let answer = envd.host_call("/init", "{\"envVars\":{\"A\":\"1\"},\"unknown\":[1],\"hyperloopIP\":\"x\"}").await;
    assert_eq!(answer.status, 204);
    assert!(answer.header("x-envd-version").is_some_and(|version| version.split('.').count() == 3), "{answer:?}");
    envd.init("{\"envVars\":{\"B\":\"2\"}}").await;
    let envs = envd.authorized("GET", "/envs", &[], b"").await.json();
    assert_eq!((&envs["A"], &envs["B"], &envs["E2B_SANDBOX"]), (&"1".into(), &"2".into(), &"true".into()));
    for bad in ["3", "{", "{\"timestamp\":\"yesterday\"}", "{\"envVars\":3}"] {
        let answer = envd.host_call("/init", bad).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
}

#[tokio::test]
async fn calls_that_need_a_guest_say_so_outside_of_one() {
    let envd = Envd::ready().await;
    for path in ["/freeze", "/thaw"] {
        let answer = envd.host_call(path, "").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text().contains("without a cgroup"));
    }
    assert_eq!(envd.host_call("/sync", "").await.status, 204);
    let entropy = format!("{{\"host_unix_ns\":\"5\",\"entropy\":\"{}\"}}", "AAAA".repeat(11));
    // This machine's filesystem, clock and random generator are none of envd's.
    for (path, body) in
        [("/fsfreeze", ""), ("/fsthaw", ""), ("/clock", "{\"step_ns\":0}"), ("/resumed", entropy.as_str())]
    {
        let answer = envd.host_call(path, body).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert!(answer.text().contains("does not run in a guest"), "{answer:?}");
    }
}

#[tokio::test]
async fn the_clock_is_told() {
    let envd = Envd::ready().await;
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    for body in ["", "{}"] {
        let before = now();
        let answer = envd.host_call("/clock", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let told: u128 = answer.json()["unix_ns"].as_str().expect("a text").parse().unwrap();
        assert!((before..=now()).contains(&told), "{told}");
    }
}

#[tokio::test]
async fn bodies_that_a_call_does_not_know_are_refused() {
    let envd = Envd::ready().await;
    const IDENTITY: &str = r#"{"sandbox_id":"sb2","access_token":"t","env_vars":{},"hostname":"h",
        "machine_id":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","boot_id":"0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"}"#;
    let entropy = &"AAAA".repeat(11);
    let resumed =
        |time: &str, entropy: &str, more: &str| format!(r#"{{"host_unix_ns":"{time}","entropy":"{entropy}"{more}}}"#);
    for (path, body) in [
        ("/clock", "3".to_owned()),
        ("/clock", "{".to_owned()),
        ("/clock", "{\"step_ns\":\"5\"}".to_owned()),
        ("/clock", "{\"step_ns\":1.5}".to_owned()),
        ("/clock", "{\"step_ns\":9223372036854775808}".to_owned()),
        ("/clock", "{\"slew_ns\":5}".to_owned()),
        ("/resumed", String::new()),
        ("/resumed", resumed("5", "AAAA", "")),
        ("/resumed", resumed("5", "nonsense!", "")),
        ("/resumed", resumed("now", entropy, "")),
        ("/resumed", resumed("5", entropy, r#","hostname":"sb2""#)),
        ("/resumed", resumed("5", entropy, r#","identity":{"sandbox_id":"sb2"}"#)),
        ("/resumed", resumed("5", entropy, &format!(r#","identity":{}"#, IDENTITY.replace("sb2", "../x")))),
        ("/resumed", resumed("5", entropy, &format!(r#","identity":{}"#, IDENTITY.replace("0f0f0f0f-", "0F0F0F0F-")))),
    ] {
        let answer = envd.host_call(path, &body).await;
        assert_eq!(answer.status, 400, "{path} {body}: {answer:?}");
    }
}

#[tokio::test]
async fn power_off_answers_first() {
    let envd = Envd::ready().await;
    assert_eq!(envd.host_call("/poweroff", "").await.status, 204);
    assert_eq!(envd.wait(), wrenn_sys::spawn::ExitStatus::Exited(0));
}

#[tokio::test]
async fn root_the_user_cgroup_is_frozen_and_thawed() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it mounts a cgroup v2");
    let dir = tempfile::tempdir().unwrap();
    let mount = Mounted::cgroup2(dir.path());
    let cgroup = mount.path.join(format!("wrenn-test-{}", std::process::id()));
    std::fs::create_dir(&cgroup).unwrap();
    {
        let envd = Envd::with_args(&["--cgroup", cgroup.to_str().unwrap()]);
        envd.init(&format!("{{\"accessToken\":\"{TOKEN}\"}}")).await;
        let client = envd.default_client();
        let mut events =
            common::start(&client, sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")).await.unwrap();
        let pid = events.pid().await;
        assert_eq!(
            std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines().next().unwrap(),
            pid.to_string()
        );
        let mut seen = common::Seen::default();
        events.until(&mut seen, |seen| seen.stdout.len() > 10).await;
        assert_eq!(envd.host_call("/freeze", "").await.status, 204);
        assert!(std::fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("frozen 1"));
        // More than may be started at a time, and than there are threads for blocking work.
        let late: Vec<_> = (0..40)
            .map(|_| {
                let client = envd.default_client();
                tokio::spawn(async move { run(&client, sh("echo thawed")).await })
            })
            .collect();
        // What was written before may still come; then it is silent, while envd itself is not.
        let silence = async { while tokio::time::timeout(Duration::from_millis(300), events.next()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), silence).await.expect("it still writes");
        everything_of_the_host_answers(&envd).await;
        what_was_written_can_be_read(&envd, pid).await;
        assert!(late.iter().all(|late| !late.is_finished()), "a process was started in a frozen cgroup");
        assert_eq!(envd.host_call("/freeze", "").await.status, 204, "it is frozen, which is fine");
        assert_eq!(envd.host_call("/thaw", "").await.status, 204);
        assert_eq!(envd.host_call("/thaw", "").await.status, 204, "it is thawed, which is fine");
        for late in late {
            assert_eq!(late.await.unwrap().out(), "thawed\n");
        }
        let mut after = common::Seen::default();
        events.until(&mut after, |seen| !seen.stdout.is_empty()).await;
        client.send_signal(common::signal_request(pid, 9)).await.unwrap();
    }
    common::eventually("the cgroup is empty", || std::fs::remove_dir(&cgroup).is_ok()).await;
}

/// While users' processes stand still, and starts of others wait for them.
async fn everything_of_the_host_answers(envd: &Envd) {
    let begun = Instant::now();
    assert_eq!(envd.request("GET", "/health", &[], b"").await.status, 204);
    assert_eq!(envd.host_call("/clock", "").await.status, 200);
    assert_eq!(envd.host_call("/init", "{\"envVars\":{\"A\":\"1\"}}").await.status, 204);
    assert_eq!(envd.host_call("/fsthaw", "").await.status, 503, "no guest, and said so at once");
    assert_eq!(envd.authorized("GET", "/envs", &[], b"").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

async fn what_was_written_can_be_read(envd: &Envd, pid: u32) {
    let client = envd.default_client();
    let mut events = common::connect(&client, common::connect_request(pid, Some(0))).await.unwrap();
    assert_eq!(events.pid().await, pid);
    let mut seen = common::Seen::default();
    events.until(&mut seen, |seen| seen.stdout.len() > 10).await;
    assert!(seen.out().starts_with("1\n2\n"), "{seen:?}");
}

/// A mount that goes away with the test.
struct Mounted {
    path: std::path::PathBuf,
}

impl Mounted {
    fn cgroup2(path: &std::path::Path) -> Self {
        use rustix::mount::{MountFlags, mount};
        mount("cgroup2", path, "cgroup2", MountFlags::empty(), None).expect("cgroup v2 can be mounted");
        Self { path: path.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH).expect("it was mounted");
    }
}

#[tokio::test]
async fn metrics_are_numbers_of_this_machine() {
    let envd = Envd::ready().await;
    let metrics = envd.authorized("GET", "/metrics", &[], b"").await.json();
    for name in ["ts", "cpu_count", "mem_total", "mem_used", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total"]
    {
        assert!(metrics[name].as_u64().is_some_and(|value| value > 0), "{name}: {metrics}");
    }
    assert!(metrics["cpu_used_pct"].as_f64().is_some_and(|used| (0.0..=100.0).contains(&used)), "{metrics}");
    assert!(metrics["mem_cache"].is_u64());
}

#[tokio::test]
async fn any_web_page_may_read_the_answers() {
    let envd = Envd::ready().await;
    let asks = [("Origin", "https://example.test"), ("Access-Control-Request-Method", "POST")];
    let answer = envd.request("OPTIONS", "/process.Process/Start", &asks, b"").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, Some("*")));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("Authorization"));
    assert_eq!(envd.request("GET", "/envs", &[], b"").await.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn repeated_slashes_count_as_one() {
    let envd = Envd::ready().await;
    assert_eq!(envd.authorized("POST", "//process.Process/List", &[JSON], b"{}").await.status, 200);
    assert_eq!(envd.request("GET", "///health", &[], b"").await.status, 204);
}

#[tokio::test]
async fn a_stream_s_content_type_is_exact_and_its_frames_are() {
    let envd = Envd::ready().await;
    let request = br#"{"process":{"cmd":"/bin/sh","args":["-c","printf '\\377'"],"surprise":1},"stdin":false}"#;
    let answer = envd.authorized("POST", "/process.Process/Start", &[STREAM], &envelope(request)).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/connect+json")));
    let mut frames = Vec::new();
    let mut rest = &answer.body[..];
    while let [flags, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        frames.push((*flags, serde_json::from_slice::<serde_json::Value>(&tail[..length]).unwrap()));
        rest = &tail[length..];
    }
    assert!(frames[0].1["event"]["start"]["pid"].is_u64());
    assert_eq!(frames[1], (0, serde_json::json!({"event": {"data": {"stdout": "/w=="}}})));
    assert_eq!(frames[2], (0, serde_json::json!({"event": {"end": {"exited": true, "status": "exit status 0"}}})));
    assert_eq!(frames[3], (2, serde_json::json!({})));
    assert_eq!(frames.len(), 4);
}

#[tokio::test]
async fn malformed_and_oversized_requests_are_refused_and_harm_nobody() {
    let envd = Envd::ready().await;
    let start = "/process.Process/Start";
    let long = format!("{{\"process\":{{\"cmd\":\"{}\"}}}}", "x".repeat(5 * 1024 * 1024));
    let input = format!("{{\"process\":{{\"pid\":1}},\"input\":{{\"stdin\":\"{}\"}}}}", "A".repeat(9 * 1024 * 1024));
    let mut endless = vec![0, 0xff, 0xff, 0xff, 0xff];
    endless.extend_from_slice(&[b' '; 1000]);
    let mut nested = b"{\"process\":".to_vec();
    nested.extend(std::iter::repeat_n(b'[', 100_000));
    for (what, path, header, body) in [
        ("no JSON", "/process.Process/List", JSON, b"nonsense".to_vec()),
        ("a wrong type", "/process.Process/List", JSON, b"[1]".to_vec()),
        ("deep nesting", start, STREAM, envelope(&nested)),
        ("no envelope", start, STREAM, b"{}".to_vec()),
        ("an endless envelope", start, STREAM, endless),
        ("a short envelope", start, STREAM, envelope(b"{}")[..6].to_vec()),
        ("an empty body", start, STREAM, Vec::new()),
        ("a compressed flag without compression", start, STREAM, [&[1][..], &envelope(b"{}")[1..]].concat()),
        ("too long a message", start, STREAM, envelope(long.as_bytes())),
        ("too long a unary message", "/process.Process/SendInput", JSON, input.into_bytes()),
        ("an unknown method", "/process.Process/Nonsense", JSON, b"{}".to_vec()),
        ("an unknown content type", start, ("Content-Type", "text/plain"), b"{}".to_vec()),
        ("a body on a GET", "/envs", JSON, b"{}".to_vec()),
    ] {
        let answer = envd.authorized("POST", path, &[header], &body).await;
        let failed_in_stream = answer.status == 200 && String::from_utf8_lossy(&answer.body).contains("\"error\"");
        assert!((400..600).contains(&answer.status) || failed_in_stream, "{what}: {answer:?}");
        assert_ne!(answer.status, 500, "{what}: {answer:?}");
    }
    for bytes in
        [&b"\0\0\0\0\0\0"[..], b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        envd.raw(bytes).await;
    }
    let huge_head = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(300_000));
    assert_eq!(envd.raw(huge_head.as_bytes()).await.status, 431);
    assert_eq!(run(&envd.client(Wire::Http1Json), sh("echo fine")).await.out(), "fine\n");
}

#[tokio::test]
async fn a_client_that_sends_no_request_is_let_go() {
    let envd = Envd::ready().await;
    let mut stream = TcpStream::connect(envd.address).await.unwrap();
    stream.write_all(b"GET /health HT").await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the connection is still open after 40 s");
}
