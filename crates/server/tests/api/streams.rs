//! Streams: events and WebSockets, how they begin, and what ends them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use wrenn_agent::fake::Fake;
use wrenn_agent::host_agent::{Ended, Phase};
use wrenn_server::limits;
use wrenn_testworld::api::Api;

use crate::server::{Server, sandbox, sandbox_as, until, within};

/// A stream of events, read one by one.
struct Events {
    response: Response,
    heard: String,
}

impl Events {
    async fn open(api: &Api, path: &str) -> Self {
        let response = api.request(Method::GET, path).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"].to_str().unwrap()[..17]),
            (200, "text/event-stream")
        );
        Self { response, heard: String::new() }
    }

    /// The next event, or `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        within("an event", async {
            loop {
                if let Some((event, rest)) = self.heard.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.heard = rest;
                    let line = |name: &str| {
                        event.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
                    };
                    if let Some(name) = line("event:") {
                        return Some((name, serde_json::from_str(&line("data:").unwrap()).unwrap()));
                    }
                    continue;
                }
                let chunk = self.response.chunk().await.unwrap()?;
                self.heard.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        })
        .await
    }

    /// The next one must have this name; its data.
    async fn expect(&mut self, name: &str) -> Value {
        let (is, data) = self.next().await.unwrap();
        assert_eq!(is, name, "{data}");
        data
    }
}

#[tokio::test]
async fn first_comes_what_is_there_then_what_happens_in_order() {
    let server = Server::start().await.ready().await;
    let (one, other) = (sandbox(&server.api).await, server.tenant("other").await);
    let theirs = sandbox(&other).await;
    let mut all = Events::open(&server.api, "/v1/events").await;
    let mut own = Events::open(&other, "/v1/events").await;
    let mut single = Events::open(&server.api, &format!("/v1/sandboxes/{one}/events")).await;
    assert_eq!(all.expect("sandbox").await["id"], one.as_str());
    assert_eq!(all.expect("sandbox").await["id"], theirs.as_str());
    assert_eq!(all.expect("complete").await, json!({}));
    assert_eq!(own.expect("sandbox").await["id"], theirs.as_str());
    own.expect("complete").await;
    single.expect("sandbox").await;
    single.expect("complete").await;
    let path = format!("/v1/sandboxes/{one}");
    server.api.post(&format!("{path}/pause"), json!({})).await.ok();
    server.api.post(&format!("{path}/resume"), json!({})).await.ok();
    server.agent.become_phase(&one.parse().unwrap(), Phase::Stopped, Some("the VM ended"));
    server.agent.gone(&one.parse().unwrap(), Ended::TimedOut);
    for events in [&mut all, &mut single] {
        let (mut revision, mut states) = (0, Vec::new());
        let why = loop {
            let (name, data) = events.next().await.unwrap();
            if name == "gone" {
                break data["why"].clone();
            }
            assert!(data["revision"].as_u64().unwrap() >= revision, "in order");
            revision = data["revision"].as_u64().unwrap();
            states.push(data["state"].as_str().unwrap().to_owned());
        };
        states.dedup();
        assert_eq!(
            (states, why),
            (vec!["paused".to_owned(), "running".to_owned(), "stopped".to_owned()], json!("timed_out"))
        );
    }
    other.delete(&format!("/v1/sandboxes/{theirs}")).await.ok();
    assert_eq!(own.expect("sandbox").await["state"], "destroying");
    assert_eq!(own.expect("gone").await["id"], theirs.as_str(), "and nothing of what happened to others");
}

#[tokio::test]
async fn a_revoked_key_is_told_nothing_more_also_where_much_happens() {
    let server = Server::start().await.ready().await;
    let (key, api) = server.key(json!({})).await;
    let id = sandbox(&api).await;
    let mut events = Events::open(&api, "/v1/events").await;
    let path = format!("/v1/sandboxes/{id}/timeout");
    let agent = Arc::clone(&server.agent);
    let busy = tokio::spawn(async move {
        loop {
            agent.become_phase(&id.parse().unwrap(), Phase::Running, None);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    events.expect("sandbox").await;
    events.expect("complete").await;
    server.api.delete(&format!("/v1/keys/{}", key["id"].as_str().unwrap())).await.ok();
    let refused = loop {
        let (name, data) = events.next().await.unwrap();
        if name == "error" {
            break data;
        }
    };
    busy.abort();
    assert_eq!(refused["code"], "unauthenticated");
    assert_eq!(events.next().await, None, "the stream ends");
    assert_eq!(api.post(&path, json!({"timeout_s": 1})).await.code(), "unauthenticated");
}

#[tokio::test]
async fn who_does_not_read_is_told_so() {
    let server = Server::start().await.ready().await;
    let id = sandbox(&server.api).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request =
        format!("GET /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n\r\n", server.api.key.as_deref().unwrap());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    // More than sockets hold, and then more than are kept.
    for burst in 0..400 {
        for _ in 0..100 {
            server.agent.become_phase(&id.parse().unwrap(), Phase::Running, Some(&"x".repeat(1000)));
        }
        if burst % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::yield_now().await;
    }
    let mut heard = Vec::new();
    within("the end", async {
        let mut buffer = vec![0; 1 << 16];
        while !String::from_utf8_lossy(&heard[heard.len().saturating_sub(2000)..]).contains("event: error") {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0);
            heard.extend_from_slice(&buffer[..count]);
        }
    })
    .await;
    let told = String::from_utf8_lossy(&heard[heard.len() - 600..]).into_owned();
    assert!(told.contains("exhausted") || told.contains("unavailable"), "{told}");
}

#[tokio::test]
async fn events_end_when_the_agent_does() {
    let server = Server::start().await.ready().await;
    let mut events = Events::open(&server.api, "/v1/events").await;
    events.expect("complete").await;
    server.agent.end();
    assert_eq!(events.expect("error").await["code"], "unavailable");
    assert_eq!(events.next().await, None);
    assert_eq!(server.api.get("/v1/events").await.code(), "unavailable");
}

fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4
}

#[tokio::test]
async fn a_thousand_listeners_cost_little() {
    const LISTENERS: usize = 1000;
    let wanted = (LISTENERS * 2 + 200) as u64;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: most.maximum, ..most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    assert!(most.maximum.is_none_or(|most| most > wanted), "this test needs {wanted} descriptors");
    let server = Server::start().await.ready().await;
    let before = resident_kib();
    let request =
        format!("GET /v1/events HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\n\r\n", server.api.key.as_deref().unwrap());
    let mut streams = Vec::new();
    for _ in 0..LISTENERS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    let heard = async |stream: &mut TcpStream, what: &str| {
        let mut heard = String::new();
        let mut buffer = [0; 4096];
        while !heard.contains(what) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{heard}");
            heard.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    };
    within("all of them", join_all(streams.iter_mut().map(|stream| heard(stream, "event: complete")))).await;
    let each = resident_kib().saturating_sub(before) / LISTENERS as u64;
    assert!(each < 150, "{each} KiB each");
    sandbox(&server.api).await;
    within("the news", join_all(streams.iter_mut().map(|stream| heard(stream, "event: sandbox")))).await;
    drop(streams);
    server.api.get("/v1/whoami").await.ok();
}

type Socket = WebSocketStream<TcpStream>;

async fn connect(server: &Server, api: &Api, path: &str) -> Result<Socket, Error> {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().unwrap();
    if let Some(key) = &api.key {
        let protocols = format!("wrenn.v1, key.{key}");
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    let stream = TcpStream::connect(server.address).await.unwrap();
    client_async(request, stream).await.map(|(socket, answer)| {
        assert_eq!(answer.headers()["sec-websocket-protocol"], "wrenn.v1");
        socket
    })
}

fn status(refused: Result<Socket, Error>) -> u16 {
    match refused {
        Err(Error::Http(answer)) => answer.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

/// A server whose guests are played by the test.
async fn with_guests() -> (Server, mpsc::UnboundedReceiver<DuplexStream>) {
    let (guests, come) = mpsc::unbounded_channel();
    (Server::with(Fake::with_guests(guests)).await.ready().await, come)
}

#[tokio::test]
async fn a_tunnel_carries_bytes_until_its_key_is_revoked() {
    let (server, mut guests) = with_guests().await;
    let (key, api) = server.key(json!({})).await;
    let id = sandbox(&api).await;
    let mut socket = connect(&server, &api, &format!("/v1/sandboxes/{id}/tunnel/8080")).await.unwrap();
    let mut guest = within("the guest", guests.recv()).await.unwrap();
    socket.send(Message::Binary("hello".into())).await.unwrap();
    let mut heard = [0; 5];
    within("bytes", guest.read_exact(&mut heard)).await.unwrap();
    guest.write_all(b"world").await.unwrap();
    let Message::Binary(bytes) = within("bytes", socket.next()).await.unwrap().unwrap() else { panic!("no bytes") };
    assert_eq!((&heard, &bytes[..]), (b"hello", &b"world"[..]));
    server.api.delete(&format!("/v1/keys/{}", key["id"].as_str().unwrap())).await.ok();
    let ended = async {
        while let Some(Ok(message)) = socket.next().await
            && !message.is_close()
        {}
    };
    within("the end", ended).await;
    assert_eq!(within("the guest's end", guest.read(&mut heard)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_socket_whose_client_is_silent_ends_whatever_its_guest_does() {
    let (server, mut guests) = with_guests().await;
    let id = sandbox(&server.api).await;
    let socket = connect(&server, &server.api, &format!("/v1/sandboxes/{id}/tunnel/80")).await.unwrap();
    let mut guest = within("the guest", guests.recv()).await.unwrap();
    // It answers no ping, as one whose host has lost its power.
    let mut stream = socket.into_inner();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut heard = Vec::new();
    guest.read_to_end(&mut heard).await.unwrap();
    stream.read_to_end(&mut heard).await.unwrap();
    let took = began.elapsed();
    tokio::time::resume();
    assert!(took <= limits::SILENCE_MAX * 2, "{took:?}");
}

/// Plays a guest's agent whose commands run for ever and say one word, `begun`; ready when its client is gone.
async fn run_for_ever(guest: DuplexStream) {
    use hyper::body::{Bytes, Frame};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    // Messages of Connect RPC, each after a flag and its length: StartResponse { event { start { pid: 7 } } }, and the same with
    // data { stdout: "begun" }.
    const SAID: &[u8] = b"\0\0\0\0\x06\x0a\x04\x0a\x02\x08\x07\0\0\0\0\x0b\x0a\x09\x12\x07\x0a\x05begun";
    let answer = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
        assert_eq!(request.uri().path(), "/process.Process/Start");
        let said = futures::stream::iter([Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(SAID)))]);
        let body = http_body_util::StreamBody::new(said.chain(futures::stream::pending()));
        hyper::Response::builder().header("content-type", "application/connect+proto").body(body)
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // How its client goes is not its matter.
    drop(serving.serve_connection(TokioIo::new(guest), answer).await);
}

/// A command that runs in such a guest: its socket, and the guest.
async fn endless_command(
    server: &Server,
    api: &Api,
    guests: &mut mpsc::UnboundedReceiver<DuplexStream>,
) -> (Socket, tokio::task::JoinHandle<()>) {
    let id = sandbox(api).await;
    let mut socket = connect(server, api, &format!("/v1/sandboxes/{id}/exec/stream")).await.unwrap();
    socket.send(Message::text(r#"{"command":["sleep","infinity"]}"#)).await.unwrap();
    let guest = tokio::spawn(run_for_ever(within("the guest", guests.recv()).await.unwrap()));
    let started = within("its start", socket.next()).await.unwrap().unwrap().into_text().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&started).unwrap(), json!({"type": "started", "pid": 7}));
    let said = within("its word", socket.next()).await.unwrap().unwrap().into_data();
    assert_eq!(said, &b"\x01\0\0\0\0\0\0\0\0begun"[..]);
    (socket, guest)
}

#[tokio::test]
async fn a_command_s_stream_ends_at_once_when_its_key_is_revoked_and_says_so() {
    let (server, mut guests) = with_guests().await;
    let (key, api) = server.key(json!({})).await;
    let (mut socket, guest) = endless_command(&server, &api, &mut guests).await;
    server.api.delete(&format!("/v1/keys/{}", key["id"].as_str().unwrap())).await.ok();
    // Sooner than a key is looked up anew.
    let told = tokio::time::timeout(limits::KEY_BELIEVED_FOR / 2, socket.next()).await.expect("it ends at once");
    let told: Value = serde_json::from_str(&told.unwrap().unwrap().into_text().unwrap()).unwrap();
    assert_eq!((&told["type"], &told["error"]["code"]), (&json!("error"), &json!("unauthenticated")));
    assert_eq!(told["error"]["message"], "the key was revoked");
    assert!(told["error"]["remedy"].as_str().unwrap().contains("come back with another key"), "{told}");
    let Message::Close(Some(close)) = within("the end", socket.next()).await.unwrap().unwrap() else {
        panic!("no end")
    };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1011, "unauthenticated"));
    within("the guest's end", guest).await.unwrap();
}

#[tokio::test]
async fn a_command_s_stream_whose_client_is_silent_ends() {
    let (server, mut guests) = with_guests().await;
    let (socket, guest) = endless_command(&server, &server.api, &mut guests).await;
    // It answers no ping, as one whose host has lost its power.
    let mut stream = socket.into_inner();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    guest.await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    let took = began.elapsed();
    tokio::time::resume();
    assert!(took <= limits::SILENCE_MAX * 2, "{took:?}");
    server.api.get("/v1/host").await.ok();
}

#[tokio::test]
async fn sockets_are_refused_before_they_stand() {
    let (server, _guests) = with_guests().await;
    let id = sandbox(&server.api).await;
    let (_, reader) = server.key(json!({"scope": "read"})).await;
    let stranger = server.tenant("stranger").await;
    for end in ["exec/stream", "exec/7/stream", "pty", "tunnel/80"] {
        let path = format!("/v1/sandboxes/{id}/{end}");
        assert_eq!(status(connect(&server, &reader, &path).await), 403, "{end}");
        assert_eq!(status(connect(&server, &stranger, &path).await), 404, "{end}");
        assert_eq!(server.api.get(&path).await.code(), "invalid", "{end} without an upgrade");
        let request = server.api.request(Method::GET, &path);
        let request = request.header("connection", "upgrade").header("upgrade", "websocket");
        assert_eq!(server.api.answer("get", &path, request).await.code(), "invalid", "{end} without a version");
    }
    let nobody = server.api.with_key(Some("wrn_0000000000000000000000000000000000000000"));
    assert_eq!(status(connect(&server, &nobody, &format!("/v1/sandboxes/{id}/pty")).await), 401);
    for odd in ["tunnel/0", "tunnel/65536", "tunnel/x", "exec/-1/stream", "pty?cols=0", "pty?user=a:b"] {
        assert_eq!(status(connect(&server, &server.api, &format!("/v1/sandboxes/{id}/{odd}")).await), 400, "{odd}");
    }
    server.api.post(&format!("/v1/sandboxes/{id}/pause"), json!({})).await.ok();
    assert_eq!(status(connect(&server, &server.api, &format!("/v1/sandboxes/{id}/tunnel/80")).await), 409);
}

/// What a server says before it ends a socket.
async fn refusal(mut socket: Socket) -> Value {
    let text = within("a refusal", socket.next()).await.unwrap().unwrap().into_text().unwrap();
    let Message::Close(Some(close)) = within("the end", socket.next()).await.unwrap().unwrap() else {
        panic!("no end")
    };
    assert_eq!(u16::from(close.code), 1011);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_first_message_that_makes_no_sense_is_refused_in_the_socket() {
    let (server, _guests) = with_guests().await;
    let id = sandbox(&server.api).await;
    for wrong in [
        Message::text("nonsense"),
        Message::text("[]"),
        Message::text(r#"{"command":[]}"#),
        Message::text(r#"{"command":["a"],"nonsense":1}"#),
        Message::text(r#"{"command":["a\u0000"]}"#),
        Message::text(r#"{"command":["a"],"pty":{"cols":0,"rows":1}}"#),
        Message::text(r#"{"command":["a"],"timeout_s":0}"#),
        Message::binary(vec![0; 10]),
    ] {
        let mut socket = connect(&server, &server.api, &format!("/v1/sandboxes/{id}/exec/stream")).await.unwrap();
        socket.send(wrong.clone()).await.unwrap();
        let refused = refusal(socket).await;
        assert_eq!((&refused["type"], &refused["error"]["code"]), (&json!("error"), &json!("invalid")), "{wrong}");
    }
}

#[tokio::test]
async fn a_frame_that_is_too_large_or_none_ends_its_socket_alone() {
    let (server, mut guests) = with_guests().await;
    let id = sandbox(&server.api).await;
    for broken in [vec![0xff; 64], vec![0x82, 0x7f, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff], vec![0x81, 0x01, b'x']] {
        let socket = connect(&server, &server.api, &format!("/v1/sandboxes/{id}/tunnel/80")).await.unwrap();
        let mut guest = within("the guest", guests.recv()).await.unwrap();
        let mut stream = socket.into_inner();
        stream.write_all(&broken).await.unwrap();
        let mut rest = Vec::new();
        within("the guest's end", guest.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
        drop(guest);
        within("the end", stream.read_to_end(&mut rest)).await.ok();
    }
    server.api.get("/v1/host").await.ok();
}

#[tokio::test]
async fn a_sandbox_that_traffic_resumes_is_resumed_by_it() {
    let (server, mut guests) = with_guests().await;
    let (_, api) = server.key(json!({"vcpus_max": 1})).await;
    let id = sandbox_as(&api, json!({"auto_resume": true})).await;
    let path = format!("/v1/sandboxes/{id}");
    api.post(&format!("{path}/pause"), json!({})).await.ok();
    // All at once: it is brought back once, and takes its key's one CPU once.
    let tunnel = format!("{path}/tunnel/80");
    let sockets = join_all((0..8).map(|_| connect(&server, &api, &tunnel))).await;
    for socket in &sockets {
        assert!(socket.is_ok(), "{socket:?}");
        within("the guest", guests.recv()).await.unwrap();
    }
    until("it runs", || async { api.get(&path).await.ok()["state"] == "running" }).await;
}
