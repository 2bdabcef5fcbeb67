use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, delete, get, post};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wrenn_agent::host_agent::{Change, Ended, OnTimeout, Phase, Source, Start, Wishes};
use wrenn_agent::sandbox::Shape;
use wrenn_engine::units::Mib;

use super::*;

const ID: &str = "sbabcdefghijklmnopqr";

fn id() -> SandboxId {
    ID.parse().unwrap()
}

async fn agent(router: Router) -> RestAgent {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    RestAgent::new(Client::new(&url, Some("wrn_key")).unwrap())
}

fn sandbox() -> Value {
    json!({
        "id": ID, "host": "here", "state": "paused", "reason": "its time was up", "revision": 4, "created_unix_ms": 5,
        "deadline_unix_ms": null, "on_timeout": "pause", "template": "0123", "kernel": "6.12.9", "vcpus": 2,
        "memory_mib": 512, "disk_mib": 4096, "vmm": { "driver": "firecracker", "version": "1.16.1", "accel": "kvm" },
        "storage": "dm", "start": "warm", "metadata": { "owner": "me" }, "tenant": "default", "auto_resume": false,
        "traffic_token": null, "access_token": "secret",
    })
}

fn refusal(code: types::Code) -> Response {
    let error = json!({ "code": code, "message": "it is so", "remedy": "do that" });
    (StatusCode::from_u16(code.status()).unwrap(), Json(json!({ "error": error }))).into_response()
}

#[tokio::test]
async fn a_sandbox_is_the_same_through_a_server() {
    let agent = agent(Router::new().route("/v1/sandboxes/{id}", get(|| async { Json(sandbox()) }))).await;
    let view = agent.get(&id()).await.unwrap();
    assert_eq!((view.id.clone(), view.phase, view.reason.as_deref()), (id(), Phase::Paused, Some("its time was up")));
    assert_eq!(
        (view.on_timeout, view.start, view.memory, view.disk),
        (OnTimeout::Pause, Start::Warm, Mib(512), Mib(4096))
    );
    assert_eq!((view.vmm.driver.to_string(), view.vmm.accel.to_string()), ("firecracker".to_owned(), "kvm".to_owned()));
    assert_eq!((view.storage.to_string(), view.access_token.as_str()), ("dm".to_owned(), "secret"));
    assert_eq!(view.metadata, BTreeMap::from([("owner".to_owned(), "me".to_owned())]));
}

#[test]
fn a_sandbox_that_makes_no_sense_is_an_error() {
    for (field, value) in [("id", json!("sb1")), ("storage", json!("zfs"))] {
        let mut told = sandbox();
        told[field] = value;
        let error = view(serde_json::from_value(told).unwrap()).unwrap_err();
        assert!(error.code == Code::Failed && error.message.contains("another version"), "{error}");
    }
    let mut told = sandbox();
    told["vmm"]["driver"] = json!("xen");
    assert!(view(serde_json::from_value(told).unwrap()).is_err());
    let mut told = sandbox();
    told["access_token"] = Value::Null;
    assert_eq!(view(serde_json::from_value(told).unwrap()).unwrap().access_token, "");
}

#[tokio::test]
async fn every_refusal_is_one_of_an_agents() {
    for (code, expected) in [
        (types::Code::NotFound, Code::NotFound),
        (types::Code::Conflict, Code::Denied),
        (types::Code::Forbidden, Code::Denied),
        (types::Code::Unauthenticated, Code::Denied),
        (types::Code::Destroyed, Code::Destroyed),
        (types::Code::QuotaExceeded, Code::Exhausted),
        (types::Code::NeedsRepair, Code::NeedsRepair),
        (types::Code::Unavailable, Code::Unavailable),
        (types::Code::TooLarge, Code::Invalid),
    ] {
        let agent =
            agent(Router::new().route("/v1/sandboxes/{id}", delete(move || async move { refusal(code) }))).await;
        let error = agent.destroy(&id()).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (expected, "it is so; do that"), "{code:?}");
    }
    let nobody = RestAgent::new(Client::new("http://127.0.0.1:1", None).unwrap());
    assert_eq!(nobody.get(&id()).await.unwrap_err().code, Code::Unavailable);
}

fn fresh() -> Fresh {
    let shape = Shape { vcpus: 2, memory: Mib(512), disk: Some(Mib(4096)) };
    Fresh { template: "base".to_owned(), kernel: None, shape, cold: true }
}

fn wishes() -> Wishes {
    Wishes { timeout: Some(Duration::from_millis(1500)), bound: false, ..Wishes::bound(Duration::from_secs(60)) }
}

#[test]
fn a_sandbox_is_asked_for_in_whole_seconds() {
    let request = CreateRequest { source: Source::Template(fresh()), wishes: wishes() };
    let new = requests::create(request).unwrap();
    assert_eq!((new.template.as_deref(), new.snapshot, new.cold), (Some("base"), None, true));
    assert_eq!((new.vcpus, new.memory_mib, new.disk_mib), (Some(2), Some(512), Some(4096)));
    assert_eq!((new.timeout_s, new.boot_timeout_s), (Some(2), Some(60)));
    let request = CreateRequest { source: Source::Snapshot("before".to_owned()), wishes: wishes() };
    let new = requests::create(request).unwrap();
    assert_eq!((new.template, new.snapshot.as_deref(), new.vcpus), (None, Some("before"), None));
}

#[test]
fn what_a_server_has_no_way_for_is_said() {
    let bound = Wishes { bound: true, ..wishes() };
    let error = requests::create(CreateRequest { source: Source::Template(fresh()), wishes: bound }).unwrap_err();
    assert!(error.message.contains("timeout"), "{error}");
    let kernel = Fresh { kernel: Some("/boot/vmlinuz".into()), ..fresh() };
    let request = CreateRequest { source: Source::Template(kernel.clone()), wishes: wishes() };
    assert!(requests::create(request).unwrap_err().message.contains("--kernel"));
    assert_eq!(requests::warm(kernel, Duration::from_secs(1)).unwrap_err().code, Code::Invalid);
}

#[tokio::test]
async fn forks_are_sandboxes_or_errors() {
    let forked = json!({
        "forks": [
            { "sandbox": sandbox(), "error": null },
            { "sandbox": null, "error": { "code": "exhausted", "message": "no room", "remedy": null } },
        ],
        "timings": [{ "step": "capture", "ms": 5.5 }, { "step": "odd", "ms": -1.0 }],
    });
    let agent = agent(Router::new().route("/v1/sandboxes/{id}/fork", post(move || async move { Json(forked) }))).await;
    let request = ForkRequest {
        count: 2,
        ready_limit: Duration::from_secs(60),
        timeout: None,
        metadata: BTreeMap::new(),
        attributes: BTreeMap::new(),
    };
    let forked = agent.fork(&id(), request).await.unwrap();
    assert_eq!(forked.children[0].as_ref().unwrap().view.id, id());
    assert_eq!(forked.children[1].as_ref().unwrap_err().code, Code::Exhausted);
    assert_eq!(forked.timings[0].took, Duration::from_micros(5500));
    assert_eq!((forked.timings[1].phase.as_ref(), forked.timings[1].took), ("odd", Duration::ZERO));
}

#[tokio::test]
async fn what_was_measured_last_is_what_it_takes() {
    let sample = |unix_ms: u64, memory: Value| {
        json!({
            "unix_ms": unix_ms, "cpu_percent": 1.5, "memory_bytes": memory, "disk_own_bytes": unix_ms,
            "disk_shared_bytes": 7, "network_rx_bytes": null, "network_tx_bytes": null,
            "guest": { "unix_ms": 1, "cpus": 1, "cpu_percent": 2.5, "memory_total_bytes": 9, "memory_used_bytes": 8,
                       "disk_total_bytes": 7, "disk_used_bytes": 6 },
        })
    };
    let samples = vec![sample(1, Value::Null), sample(2, json!(99))];
    let metrics = |samples: Vec<Value>| serde_json::from_value(json!({ "samples": samples })).unwrap();
    let last = stat(&id(), metrics(samples)).unwrap();
    assert_eq!((last.memory_bytes, last.disk_own_bytes, last.disk_shared_bytes, last.vmm_pid), (Some(99), 2, 7, None));
    assert_eq!(
        last.guest.map(|guest| (guest.cpu_percent, guest.memory_used_bytes, guest.disk_used_bytes)),
        Some((2.5, 8, 6))
    );
    assert!(stat(&id(), metrics(Vec::new())).unwrap_err().message.contains("try again"));
}

#[tokio::test]
async fn a_guest_is_dialled_through_a_websocket() {
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                let answered = match message {
                    bytes @ Message::Binary(_) => socket.send(bytes).await,
                    Message::Text(_) => socket.send(Message::Close(None)).await,
                    Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
                };
                answered.unwrap();
            }
        })
    };
    let router = Router::new()
        .route("/v1/sandboxes/{id}/tunnel/49983", any(echo))
        .route("/v1/sandboxes/{id}/tunnel/81", any(|| async { refusal(types::Code::Conflict) }))
        .route("/v1/sandboxes/{id}/tunnel/82", any(std::future::pending::<()>));
    let agent = agent(router).await;
    let mut tunnel = agent.dial(&id(), 49983, Duration::from_secs(10)).await.unwrap();
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut read = String::new();
    tunnel.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "hello");
    let refused = agent.dial(&id(), 81, Duration::from_secs(10)).await.err().unwrap();
    assert_eq!(refused.code, Code::Denied);
    let silent = agent.dial(&id(), 82, Duration::from_millis(50)).await.err().unwrap();
    assert_eq!(silent.code, Code::Unavailable);
}

#[tokio::test]
async fn who_watches_is_told_until_it_ends() {
    let gone = json!({ "id": ID, "why": "timed_out", "ended_unix_ms": 9 });
    let told =
        format!("event: sandbox\ndata: {}\n\nevent: complete\ndata: {{}}\n\nevent: gone\ndata: {gone}\n\n", sandbox());
    let agent = agent(Router::new().route("/v1/events", get(move || async move { told }))).await;
    let changes: Vec<_> = agent.watch().await.unwrap().collect().await;
    assert!(matches!(&changes[0], Ok(Change::Is(view)) if view.id == id()), "{changes:?}");
    assert!(matches!(&changes[1], Ok(Change::Complete)));
    assert!(matches!(&changes[2], Ok(Change::Gone(gone)) if gone.why == Ended::TimedOut && gone.at_unix_ms == 9));
    assert!(
        matches!(&changes[3..], [Err(error)] if error.code == Code::Unavailable),
        "its end is an error, and the last"
    );
}

#[tokio::test]
async fn a_host_is_the_same_through_a_server() {
    let host = json!({
        "host": "ab12", "version": "0.1.0", "cpus": 8, "memory_mib": 16000, "memory_taken_mib": 512, "disk_free_bytes": 1,
        "disk_total_bytes": 2, "vmm": { "driver": "qemu", "version": "10.0.2", "accel": "tcg" }, "storage": "qcow2",
        "sandboxes": { "running": 1 },
    });
    let agent = agent(Router::new().route("/v1/host", get(move || async move { Json(host) }))).await;
    let view = agent.host().await.unwrap();
    assert_eq!((view.host.as_str(), view.cpus, view.memory_taken), ("ab12", 8, Mib(512)));
}

#[tokio::test]
async fn a_build_is_followed_to_its_end() {
    let asked = Arc::new(Mutex::new(0));
    let operation = |state: &str, lines: &[&str], error: Value| {
        json!({
            "id": "op1", "kind": "template_build", "state": state, "created_unix_ms": 1, "ended_unix_ms": null,
            "progress": lines, "sandbox": null, "template": "0123", "error": error,
        })
    };
    let begun = operation("running", &["fetch"], Value::Null);
    let counted = Arc::clone(&asked);
    let ask = move || async move {
        *counted.lock().unwrap() += 1;
        let error = json!({ "code": "failed", "message": "no room", "remedy": null });
        let is_first = *counted.lock().unwrap() == 1;
        Json(match is_first {
            true => operation("succeeded", &["fetch", "pack"], Value::Null),
            false => operation("failed", &["fetch"], error),
        })
    };
    let template = json!({
        "id": "0123", "host": "here", "name": "base", "created": "2026-01-02T03:04:05Z", "size_bytes": 1, "own_bytes": 2,
        "warm": [],
    });
    let router = Router::new()
        .route("/v1/templates", post(move || async move { (StatusCode::ACCEPTED, Json(begun)) }))
        .route("/v1/operations/op1", get(ask))
        .route("/v1/templates/0123", get(move || async move { Json(template) }));
    let agent = agent(router).await;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lines);
    let progress: Progress = Arc::new(move |step: &str| told.lock().unwrap().push(step.to_owned()));
    let made = agent.build_template("base", Arc::clone(&progress)).await.unwrap();
    assert_eq!((made.name.as_str(), made.own_bytes), ("base", 2));
    assert_eq!(*lines.lock().unwrap(), ["fetch", "pack"]);
    let error = agent.build_template("base", progress).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::Failed, "no room"));
}
