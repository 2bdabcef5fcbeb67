use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post, put};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::testing::{KEY, sandbox, serve};
use crate::types::{
    Changed, Code, CreateSandbox, ErrorBody, ExecRequest, MakeDirRequest, MoveRequest, NewKeyRequest, NewTemplate,
    PauseRequest, Refusal, RemoveRequest, ResumeRequest, RollbackRequest, SnapshotRequest, State, TimeoutRequest,
    WarmRequest,
};
use crate::{Event, Events};

fn refuse(code: Code, remedy: Option<&str>) -> Response {
    let error = ErrorBody { code, message: "it is so".to_owned(), remedy: remedy.map(str::to_owned) };
    let status = StatusCode::from_u16(code.status()).unwrap();
    (status, [("x-request-id", "req7"), ("retry-after", "3")], Json(Refusal { error })).into_response()
}

#[test]
fn urls_and_keys_are_looked_at() {
    for url in ["", "example.com", "ftp://example.com", "unix:/run/x", "http://", "http://a/?b", "http://a/#b"] {
        assert!(matches!(Client::new(url, None), Err(ClientError::Url { .. })), "{url:?}");
    }
    let secret = Client::new("https://wrn_secret@example.com", None).unwrap_err().to_string();
    assert!(!secret.contains("wrn_secret"), "{secret}");
    for key in ["", " ", "a\nb"] {
        assert!(matches!(Client::new("http://[::1]:1", Some(key)), Err(ClientError::Key)), "{key:?}");
    }
    let client = Client::new(" https://example.com/a/ ", Some(KEY)).unwrap();
    assert_eq!(client.server(), "https://example.com/a");
    assert!(!format!("{client:?} {:?}", client.get(&["v1"]).map(|_call| ())).contains(KEY));
    let local = |url: &str| is_loopback(&Url::parse(url).unwrap());
    assert!(local("http://localhost:1") && local("http://127.9.9.9") && local("http://[::1]"));
    assert!(!local("http://localhost.example.com") && !local("http://[::2]"));
}

/// What a server was asked for, one line each.
async fn recorder() -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&asked);
    let router = Router::new().fallback(any(move |request: Request| async move {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let key = parts.headers["x-api-key"].to_str().unwrap();
        assert_eq!(key, KEY);
        let line = format!("{} {} {}", parts.method, parts.uri, String::from_utf8_lossy(&body));
        record.lock().unwrap().push(line.trim_end().to_owned());
        // No answer of the API's: all that is asked here is what was sent.
        StatusCode::NO_CONTENT
    }));
    (serve(router).await, asked)
}

/// Calls whose answer does not matter.
macro_rules! ask {
    ($client:ident, $asked:ident, $($call:ident($($argument:expr),*) => $line:expr;)*) => {
        $(
            drop($client.$call($($argument),*).await);
            assert_eq!($asked.lock().unwrap().pop().as_deref(), Some($line), stringify!($call));
        )*
    };
}

#[tokio::test]
async fn every_route_is_asked_as_it_is_written() {
    let (client, asked) = recorder().await;
    let labels: BTreeMap<_, _> = [("a b".to_owned(), "ü&=".to_owned())].into();
    let list = ListQuery { limit: Some(5), cursor: Some("x/y".to_owned()) };
    let which = SandboxQuery { states: vec![State::Running, State::Paused], metadata: labels, list: list.clone() };
    let file = FileTarget { path: "/tmp/ä b", user: Some("root") };
    let dir = MakeDirRequest { path: "d".to_owned(), user: None };
    let moved = MoveRequest { from: "a".to_owned(), to: "b".to_owned(), user: None };
    let removed = RemoveRequest { path: "d".to_owned(), user: Some("me".to_owned()) };
    let snapshot = SnapshotRequest { sandbox: "sb1".to_owned(), name: Some("n".to_owned()) };
    let back = RollbackRequest { snapshot: "n".to_owned(), timeout_s: Some(9), boot_timeout_s: None };
    ask! { client, asked,
        sandboxes(&which) => "GET /v1/sandboxes?state=running%2Cpaused&metadata=a+b%3D%C3%BC%26%3D&limit=5&cursor=x%2Fy";
        sandboxes(&SandboxQuery::default()) => "GET /v1/sandboxes";
        sandbox("sb1") => "GET /v1/sandboxes/sb1";
        sandbox("a/../b?c") => "GET /v1/sandboxes/a%2F..%2Fb%3Fc";
        destroy("sb1") => "DELETE /v1/sandboxes/sb1";
        pause("sb1", &PauseRequest { disk_only: true }) => r#"POST /v1/sandboxes/sb1/pause {"disk_only":true}"#;
        resume("sb1", &ResumeRequest::default()) => r#"POST /v1/sandboxes/sb1/resume {"timeout_s":null,"boot_timeout_s":null}"#;
        repair("sb1") => "POST /v1/sandboxes/sb1/repair {}";
        set_timeout("sb1", &TimeoutRequest { timeout_s: None, on_timeout: None })
            => r#"POST /v1/sandboxes/sb1/timeout {"timeout_s":null,"on_timeout":null}"#;
        rollback("sb1", &back) => r#"POST /v1/sandboxes/sb1/rollback {"snapshot":"n","timeout_s":9,"boot_timeout_s":null}"#;
        processes("sb1") => "GET /v1/sandboxes/sb1/exec";
        signal("sb1", 77, 9) => r#"POST /v1/sandboxes/sb1/exec/77/signal {"signal":9}"#;
        metrics("sb1", Some(5)) => "GET /v1/sandboxes/sb1/metrics?since_unix_ms=5";
        logs("sb1", None) => "GET /v1/sandboxes/sb1/logs";
        events("sb1") => "GET /v1/sandboxes/sb1/events";
        all_events() => "GET /v1/events";
        download("sb1", file, None) => "GET /v1/sandboxes/sb1/files?path=%2Ftmp%2F%C3%A4+b&user=root";
        list_files("sb1", FileTarget { path: "~", user: None }, 2) => "GET /v1/sandboxes/sb1/files/list?path=%7E&depth=2";
        make_dir("sb1", &dir) => r#"POST /v1/sandboxes/sb1/files/mkdir {"path":"d","user":null}"#;
        move_file("sb1", &moved) => r#"POST /v1/sandboxes/sb1/files/move {"from":"a","to":"b","user":null}"#;
        remove_file("sb1", &removed) => r#"POST /v1/sandboxes/sb1/files/remove {"path":"d","user":"me"}"#;
        create_snapshot(&snapshot) => r#"POST /v1/snapshots {"sandbox":"sb1","name":"n"}"#;
        snapshots(&SnapshotQuery { sandbox: Some("sb1".to_owned()), list: list.clone() })
            => "GET /v1/snapshots?sandbox=sb1&limit=5&cursor=x%2Fy";
        snapshot("n") => "GET /v1/snapshots/n";
        remove_snapshot("n") => "DELETE /v1/snapshots/n";
        templates(&ListQuery::default()) => "GET /v1/templates";
        template("base") => "GET /v1/templates/base";
        remove_template("base") => "DELETE /v1/templates/base";
        create_template(&NewTemplate { build: Some("base".to_owned()), ..NewTemplate::default() })
            => r#"POST /v1/templates {"build":"base","snapshot":null,"name":null}"#;
        begin_create_template(&NewTemplate::default())
            => r#"POST /v1/templates?wait=false {"build":null,"snapshot":null,"name":null}"#;
        warm("base", &WarmRequest { vcpus: Some(2), ..WarmRequest::default() })
            => r#"POST /v1/templates/base/warm {"vcpus":2,"memory_mib":null,"disk_mib":null,"boot_timeout_s":null}"#;
        operations(&list) => "GET /v1/operations?limit=5&cursor=x%2Fy";
        operation("op1") => "GET /v1/operations/op1";
        create_key(&NewKeyRequest { name: "n".to_owned(), ..NewKeyRequest::default() })
            => r#"POST /v1/keys {"name":"n","scope":"write","tenant":null,"sandboxes_max":null,"vcpus_max":null,"memory_mib_max":null}"#;
        keys(&list) => "GET /v1/keys?limit=5&cursor=x%2Fy";
        revoke_key("ky1") => "DELETE /v1/keys/ky1";
        whoami() => "GET /v1/whoami";
        host() => "GET /v1/host";
        audit(&list) => "GET /v1/audit?limit=5&cursor=x%2Fy";
        health() => "GET /healthz";
        openapi() => "GET /openapi.json";
        counters() => "GET /metrics";
    }
    assert!(matches!(client.sandbox("..").await, Err(ClientError::Name(_))));
    assert!(matches!(client.snapshot("").await, Err(ClientError::Name(_))));
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_creation_has_its_key_and_waits_or_not() {
    let router = Router::new().route(
        "/v1/sandboxes",
        post(|Query(query): Query<BTreeMap<String, String>>, headers: HeaderMap, Json(new): Json<CreateSandbox>| async move {
            assert_eq!(new.template.as_deref(), Some("base"));
            if query.get("wait").is_some_and(|wait| wait == "false") {
                return Json(json!({
                    "id": "op1", "kind": "create", "state": "running", "created_unix_ms": 1, "ended_unix_ms": null,
                    "progress": [], "sandbox": null, "template": null, "error": null, "of_a_newer_server": 1,
                }));
            }
            let id = headers["idempotency-key"].to_str().unwrap().to_owned();
            let timings = json!([{ "step": "boot", "ms": 1.5 }]);
            Json(json!({ "sandbox": sandbox(&id), "timings": timings }))
        }),
    );
    let client = serve(router).await;
    let new = CreateSandbox { template: Some("base".to_owned()), ..CreateSandbox::default() };
    let Changed { sandbox: made, timings } = client.create(&new, Some("once")).await.unwrap();
    assert_eq!((made, timings[0].step.as_str(), timings[0].ms), (sandbox("once"), "boot", 1.5));
    assert_eq!(client.begin_create(&new, None).await.unwrap().id, "op1");
    assert!(matches!(client.create(&new, Some("a\nb")).await, Err(ClientError::Name(_))));
}

#[tokio::test]
async fn refusals_keep_what_the_server_says() {
    let router = Router::new()
        .route("/v1/sandboxes/{id}", get(|| async { refuse(Code::RateLimited, Some("wait a little")) }))
        .route("/v1/host", get(|| async { (StatusCode::BAD_GATEWAY, "<html>nginx</html>") }))
        .route("/v1/whoami", get(|| async { (StatusCode::FOUND, [("location", "https://else.example/")]) }))
        .route("/v1/operations", get(|| async { "<html>hello</html>" }))
        .route("/v1/keys", get(|| async { "x".repeat(10) }));
    let client = serve(router).await;
    let refused = client.sandbox("sb1").await.unwrap_err();
    assert_eq!(refused.to_string(), "it is so; wait a little (request req7)");
    assert_eq!((refused.code(), refused.request_id()), (Some(Code::RateLimited), Some("req7")));
    let ClientError::Refused { status: 429, retry_after: Some(wait), call, .. } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((wait, call.as_str()), (Duration::from_secs(3), "GET /v1/sandboxes/sb1"));
    for (error, words) in [
        (client.host().await.unwrap_err(), "HTTP 502"),
        (client.whoami().await.unwrap_err(), "HTTP 302 Found, which points to https://else.example/"),
        (client.all_operations().await.unwrap_err(), "expected value"),
    ] {
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.code().is_none() && error.request_id().is_none());
    }
}

#[tokio::test]
async fn who_is_not_there_cannot_be_reached() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::new(&url, None).unwrap().health().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn lists_are_followed_to_their_end() {
    let page = |Query(query): Query<BTreeMap<String, String>>| async move {
        assert_eq!(query["limit"], "1000");
        assert_eq!(query.get("state").map(String::as_str), Some("paused"));
        let place: u32 = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
        let items: Vec<_> = if place == 1 { vec![] } else { vec![sandbox(&format!("sb{place}"))] };
        Json(json!({ "items": items, "next_cursor": (place < 3).then(|| (place + 1).to_string()) }))
    };
    let stuck = || async { Json(json!({ "items": Value::Array(vec![]), "next_cursor": "here" })) };
    let router = Router::new().route("/v1/sandboxes", get(page)).route("/v1/keys", get(stuck));
    let client = serve(router).await;
    let query = SandboxQuery { states: vec![State::Paused], ..SandboxQuery::default() };
    let all = client.all_sandboxes(&query).await.unwrap();
    assert_eq!(all.iter().map(|sandbox| sandbox.id.as_str()).collect::<Vec<_>>(), ["sb0", "sb2", "sb3"]);
    assert_eq!(client.all_keys().await.unwrap(), [], "a server that goes in circles is left");
}

#[tokio::test]
async fn output_stays_bytes() {
    let exec = |Json(request): Json<ExecRequest>| async move {
        assert_eq!(request.command, ["cat"]);
        let stdout = crate::types::Bytes::of(b"\xff\x00", true);
        let stderr = crate::types::Bytes::of("ä".as_bytes(), false);
        Json(json!({ "pid": 7, "exit": { "kind": "signalled", "signal": 9 }, "stdout": stdout, "stderr": stderr }))
    };
    let client = serve(Router::new().route("/v1/sandboxes/sb1/exec", post(exec))).await;
    let request = ExecRequest { command: vec!["cat".to_owned()], ..ExecRequest::default() };
    let ran = client.exec("sb1", &request).await.unwrap();
    assert_eq!((ran.stdout.decode().unwrap(), ran.stdout.truncated), (b"\xff\x00".to_vec(), true));
    assert_eq!(ran.stderr.data, "ä");
}

const FILE: &[u8] = b"0123456789";

async fn file_server() -> Client {
    let read = |Path(id): Path<String>, headers: HeaderMap| async move {
        if id == "cut" {
            let cut = stream::iter([Ok(Bytes::from_static(b"01")), Err(io::Error::other("gone"))]);
            return Body::from_stream(cut).into_response();
        }
        match headers.get("range").map(|range| range.to_str().unwrap()) {
            None => FILE.into_response(),
            Some("bytes=4-") => {
                (StatusCode::PARTIAL_CONTENT, [("content-range", "bytes 4-9/10")], &FILE[4..]).into_response()
            }
            Some("bytes=-3") => {
                (StatusCode::PARTIAL_CONTENT, [("content-range", "bytes 7-9/*")], &FILE[7..]).into_response()
            }
            Some(_) if id == "whole" => FILE.into_response(),
            Some(_) => refuse(Code::RangeNotSatisfiable, None),
        }
    };
    let write = |headers: HeaderMap, request: Request| async move {
        assert_eq!(headers["content-type"], "application/octet-stream");
        let length = headers.get("content-length").map(|length| length.to_str().unwrap().to_owned());
        match axum::body::to_bytes(request.into_body(), 1 << 20).await {
            Ok(bytes) => {
                let path = format!("{length:?} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(10)]));
                Json(json!({ "path": path, "size": bytes.len() })).into_response()
            }
            Err(_cut) => refuse(Code::Failed, None),
        }
    };
    serve(Router::new().route("/v1/sandboxes/{id}/files", get(read).merge(put(write)))).await
}

#[tokio::test]
async fn files_come_whole_or_in_part() {
    let client = file_server().await;
    let file = FileTarget { path: "/f", user: None };
    let read = async |id: &str, range| {
        let download = client.download(id, file, range).await?;
        let sizes = (download.size(), download.file_size());
        let mut bytes = Vec::new();
        download.write_to(&mut bytes).await.unwrap().map(|count| {
            assert_eq!(count, bytes.len() as u64);
            (String::from_utf8(bytes).unwrap(), sizes)
        })
    };
    assert_eq!(read("sb1", None).await.unwrap(), ("0123456789".to_owned(), (Some(10), Some(10))));
    assert_eq!(read("sb1", Some(FileRange::From(4))).await.unwrap(), ("456789".to_owned(), (Some(6), Some(10))));
    assert_eq!(read("sb1", Some(FileRange::Last(3))).await.unwrap(), ("789".to_owned(), (Some(3), None)));
    let outside = read("sb1", Some(FileRange::Within(10, 20))).await.unwrap_err();
    assert_eq!(outside.code(), Some(Code::RangeNotSatisfiable));
    let whole = read("whole", Some(FileRange::Within(0, 1))).await.unwrap_err();
    assert!(matches!(whole, ClientError::Protocol { .. }), "the whole is not taken for a part: {whole:?}");
    let cut = read("cut", None).await.unwrap_err();
    assert!(matches!(cut, ClientError::Broke { .. }), "a file that is cut short is an error: {cut:?}");
    let pieces: Vec<_> = client.download("sb1", file, None).await.unwrap().into_stream().collect().await;
    assert!(pieces.iter().all(Result::is_ok));
}

#[tokio::test]
async fn files_are_sent_as_they_are_read() {
    let client = file_server().await;
    let file = FileTarget { path: "/f", user: Some("root") };
    let sent = client.upload_from("sb1", file, FILE, Some(10)).await.unwrap();
    assert_eq!((sent.path.as_str(), sent.size), (r#"Some("10") 0123456789"#, 10));
    let large: &'static [u8] = vec![b'x'; 300_000].leak();
    let sent = client.upload_from("sb1", file, large, None).await.unwrap();
    assert_eq!((sent.path.as_str(), sent.size), ("None xxxxxxxxxx", 300_000));
    let cut = stream::iter([Ok(Bytes::from_static(b"01")), Err(io::Error::other("no more"))]);
    assert!(client.upload("sb1", file, cut, None).await.is_err());
}

async fn told(body: Body) -> Vec<Result<Event, ClientError>> {
    let body = Arc::new(Mutex::new(Some(body)));
    let router = Router::new().route(
        "/v1/events",
        get(move || async move { ([("x-request-id", "req9")], body.lock().unwrap().take().unwrap()) }),
    );
    let events: Events = serve(router).await.all_events().await.unwrap();
    events.collect().await
}

#[tokio::test]
async fn events_are_told_in_their_order() {
    let first = format!(": hello\n\nevent: sandbox\ndata: {}\n\n", serde_json::to_string(&sandbox("sb1")).unwrap());
    let rest = "event: complete\ndata: {}\n\nevent: of_a_newer_server\ndata: ?\n\nevent: gone\ndata: \
                {\"id\":\"sb1\",\"why\":\"timed_out\",\"ended_unix_ms\":5}\n\n";
    let error =
        "event: error\ndata: {\"code\":\"unauthenticated\",\"message\":\"revoked\",\"remedy\":null}\n\ndata: no\n\n";
    let pieces = [first, rest.to_owned(), error.to_owned()].map(|piece| Ok::<_, io::Error>(Bytes::from(piece)));
    let events = told(Body::from_stream(stream::iter(pieces))).await;
    assert_eq!(events.len(), 4, "nothing comes after an error: {events:?}");
    assert!(matches!(&events[0], Ok(Event::Sandbox(told)) if **told == sandbox("sb1")));
    assert!(matches!(&events[1], Ok(Event::Complete)));
    assert!(matches!(&events[2], Ok(Event::Gone(gone)) if gone.id == "sb1"));
    let Err(error) = &events[3] else { panic!("{:?}", events[3]) };
    assert_eq!((error.code(), error.request_id()), (Some(Code::Unauthenticated), Some("req9")));
}

#[tokio::test]
async fn events_that_break_are_an_error_and_ones_that_end_an_end() {
    assert!(told(Body::from(": nothing\n\n")).await.is_empty());
    let cut = stream::iter([Ok(Bytes::from_static(b"event: complete\ndata: {}\n\n"))]).chain(stream::once(async {
        // What came before it is to be on its way.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(io::Error::other("gone"))
    }));
    let events = told(Body::from_stream(cut)).await;
    assert!(matches!(&events[..], [Ok(Event::Complete), Err(ClientError::Broke { .. })]), "{events:?}");
    let wrong = told(Body::from("event: sandbox\ndata: {}\n\n")).await;
    assert!(matches!(&wrong[..], [Err(ClientError::Protocol { .. })]), "{wrong:?}");
}
